//! One step as one call. Key function: [`perform`].

use std::time::Duration;

use tokio::time::sleep;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::api::convert::DEFAULT_UNPLUG;
use crate::api::v1;

use super::super::super::client::{Client, patiently, within};
use super::super::super::failure::{Exit, Failure};
use super::super::super::view::short;
use super::super::vm::{DEFAULT_GRACE, QUICK, START, STOP_MARGIN};
use super::plan::Step;

/// Attempts at a call whose fate is unknown; the request's id makes them one.
const ATTEMPTS: usize = 3;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Does a step, or only has it checked, on the VM of this name, if it still has this etag. Gives the VM as it then is.
pub(super) async fn perform(
    client: &mut Client,
    name: &str,
    etag: &str,
    step: &Step,
    validate_only: bool,
) -> Result<v1::VirtualMachine, Failure> {
    let request_id = Uuid::new_v4().to_string();
    let (name, etag) = (name.to_owned(), etag.to_owned());
    let doing = format!("{} {}", step.action(), short(&name));
    let mut attempt = 1;
    loop {
        let call = Call { name: name.clone(), etag: etag.clone(), request_id: request_id.clone(), validate_only };
        match patiently(&doing, call.make(client, step)).await {
            Err(failure) if failure.exit == Exit::Unreachable && attempt < ATTEMPTS => {
                attempt += 1;
                sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// What every request has.
struct Call {
    name: String,
    etag: String,
    request_id: String,
    validate_only: bool,
}

impl Call {
    async fn make(self, client: &mut Client, step: &Step) -> Result<Response<v1::VirtualMachine>, Status> {
        let Self { name, etag, request_id, validate_only } = self;
        let vms = &mut client.vms;
        match step.clone() {
            Step::Register(spec) => {
                let vm = v1::VirtualMachine { name, spec: Some(*spec), ..Default::default() };
                let request =
                    v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), request_id, validate_only };
                vms.register_virtual_machine(within(QUICK, request)).await
            }
            Step::Start => {
                let request = v1::StartVirtualMachineRequest { name, request_id, etag, validate_only };
                vms.start_virtual_machine(within(START, request)).await
            }
            Step::Pause => {
                let request = v1::PauseVirtualMachineRequest { name, request_id, etag, validate_only };
                vms.pause_virtual_machine(within(QUICK, request)).await
            }
            Step::Resume => {
                let request = v1::ResumeVirtualMachineRequest { name, request_id, etag, validate_only };
                vms.resume_virtual_machine(within(QUICK, request)).await
            }
            Step::Stop => {
                let (grace, no_wait) = (None, false);
                let request = v1::StopVirtualMachineRequest { name, grace, request_id, etag, validate_only, no_wait };
                vms.stop_virtual_machine(within(DEFAULT_GRACE + STOP_MARGIN, request)).await
            }
            Step::Destroy => {
                let request = v1::DestroyVirtualMachineRequest { name, force: false, request_id, etag, validate_only };
                let destroyed = vms.destroy_virtual_machine(within(QUICK, request)).await;
                destroyed.map(|_| Response::new(v1::VirtualMachine::default()))
            }
            Step::Detach(device_id) => {
                let request = v1::DetachDeviceRequest {
                    name,
                    device_id,
                    timeout: None,
                    force: false,
                    request_id,
                    etag,
                    validate_only,
                    no_wait: false,
                };
                vms.detach_device(within(DEFAULT_UNPLUG + STOP_MARGIN, request)).await
            }
            Step::Attach(device) => {
                let device = Some(device);
                let request = v1::AttachDeviceRequest { name, device, request_id, etag, validate_only };
                vms.attach_device(within(QUICK, request)).await
            }
            Step::Keep(keep_mib) => {
                let request = v1::SetVirtualMachineBalloonRequest { name, keep_mib, request_id, etag, validate_only };
                vms.set_virtual_machine_balloon(within(QUICK, request)).await
            }
            Step::Limit(device, limits) => {
                let request =
                    v1::LimitVirtualMachineDeviceRequest { name, device, limits, request_id, etag, validate_only };
                vms.limit_virtual_machine_device(within(QUICK, request)).await
            }
        }
    }
}
