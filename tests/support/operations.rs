//! Operations, as clients see them.

use std::time::Duration;

use ostler::api::convert::duration_to_proto;
use ostler::api::v1;
use tonic::{Response, Status};

use super::Caller;
use super::client::wait;

/// Name of the operation that a call has become, in the metadata of its answer or error.
pub const OPERATION: &str = "ostler-operation";

/// The operation that an answer names.
pub fn named<T>(answer: &Response<T>) -> Option<String> {
    answer.metadata().get(OPERATION).map(|name| name.to_str().unwrap().to_owned())
}

/// What begins and ends the start of every VM.
const BEGINS: &str = "beginning a run";
const ENDS: [&str; 4] = [
    "opening what the VM's process gets",
    "starting the VM's process",
    "handing over to the VM's process",
    "waiting for the guest's processors",
];

/// What the first start of a VM that succeeded did for its devices, step by step; each has its time.
pub fn steps_of_start(caller: &Caller, vm: &str) -> Vec<String> {
    let filter = format!("method = StartVirtualMachine AND state = SUCCEEDED AND target : {vm}");
    let steps = caller.operations("", &filter).unwrap().pop().unwrap().steps;
    assert!(steps.iter().all(|step| step.start_time.is_some() && step.duration.is_some()), "{steps:?}");
    println!("{steps:#?}");
    let mut steps: Vec<_> = steps.into_iter().map(|step| step.step).collect();
    assert_eq!(steps.split_off(steps.len().saturating_sub(ENDS.len())), ENDS);
    assert_eq!(steps.remove(0), BEGINS);
    steps
}

/// Whether a call of this method that no daemon's end has cut off has come to a step, or past it.
pub fn began(caller: &Caller, method: &str, step: &str) -> bool {
    let filter = format!("method = {method}");
    let operations = caller.operations("", &filter).unwrap().into_iter();
    let mut own = operations.filter(|operation| operation.state() != v1::operation::State::Interrupted);
    own.any(|operation| operation.steps.iter().any(|begun| begun.step == step))
}

impl Caller {
    pub fn operations(&self, parent: &str, filter: &str) -> Result<Vec<v1::Operation>, Status> {
        let (parent, filter) = (parent.to_owned(), filter.to_owned());
        let request = v1::ListOperationsRequest { parent, filter, ..Default::default() };
        wait(self.operations.clone().list_operations(request)).map(|list| list.into_inner().operations)
    }

    pub fn operation(&self, name: &str) -> Result<v1::Operation, Status> {
        let request = v1::GetOperationRequest { name: name.to_owned() };
        wait(self.operations.clone().get_operation(request)).map(Response::into_inner)
    }

    pub fn cancel(&self, name: &str) -> Result<v1::Operation, Status> {
        let request = v1::CancelOperationRequest { name: name.to_owned() };
        wait(self.operations.clone().cancel_operation(request)).map(Response::into_inner)
    }

    pub fn wait_for(&self, name: &str, timeout: Duration) -> Result<v1::Operation, Status> {
        let request = v1::WaitOperationRequest { name: name.to_owned(), timeout: Some(duration_to_proto(timeout)) };
        wait(self.operations.clone().wait_operation(request)).map(Response::into_inner)
    }
}
