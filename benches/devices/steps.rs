//! How long devices take to come to a running guest and to leave it: the calls, and the steps that their operations tell.

use std::time::{Duration, Instant};

use ostler::api::convert::{duration_from_proto, duration_to_proto};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use tonic::{Response, Status};

use super::report::Change;
use super::support::Caller;
use super::support::client::wait;
use super::support::console::Console;
use super::support::guest::{appears, vanishes};
use super::support::operations::named;

/// Times that each device comes and goes.
const CYCLES: usize = 3;
/// Longest that a guest may take to let one go.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is done before the first step is told: the intent put on record, and policy asked about an attachment.
const DECIDING: &str = "before the first step: asking policy, recording the intent";

/// A device that the guest has.
pub struct Coming<'a> {
    pub kind: &'static str,
    pub id: &'static str,
    pub device: Device,
    /// What the guest has in its file system while it has the device.
    pub shows: String,
    /// Waits until the host can lend it again.
    pub is_free: Option<Box<dyn Fn() + 'a>>,
}

/// Takes the device from the VM `web` and gives it back, as often as is wanted; what either takes.
pub fn measure(caller: &Caller, console: &mut Console, coming: &Coming<'_>) -> [Change; 2] {
    let named_as = |what: &str| Change {
        name: format!("{what} {}", coming.kind),
        whole: Vec::new(),
        steps: Vec::new(),
        then: Vec::new(),
    };
    let (mut attach, mut detach) = (named_as("attach"), named_as("detach"));
    for _ in 0..CYCLES {
        let request = v1::DetachDeviceRequest {
            name: caller.name("web"),
            device_id: coming.id.to_owned(),
            timeout: Some(duration_to_proto(PATIENCE)),
            ..Default::default()
        };
        note(&mut detach, caller, || wait(caller.vms.clone().detach_device(request.clone())));
        if let Some(is_free) = &coming.is_free {
            let begun = Instant::now();
            is_free();
            add(&mut detach.then, "after the answer: erasing it in the background", begun.elapsed());
        }
        vanishes(console, &coming.shows);
        let (name, device) = (caller.name("web"), Some(coming.device.clone()));
        let request = v1::AttachDeviceRequest { name, device, ..Default::default() };
        note(&mut attach, caller, || wait(caller.vms.clone().attach_device(request.clone())));
        let begun = Instant::now();
        appears(console, &coming.shows);
        add(&mut attach.then, "after the answer: until the guest's driver has it", begun.elapsed());
    }
    [attach, detach]
}

/// Starts a VM with all its devices; what that takes, once.
pub fn of_start(caller: &Caller, vm: &str) -> Change {
    let (steps, then) = (Vec::new(), Vec::new());
    let mut start = Change { name: "start with all of these".to_owned(), whole: Vec::new(), steps, then };
    let request = v1::StartVirtualMachineRequest { name: caller.name(vm), ..Default::default() };
    note(&mut start, caller, || wait(caller.vms.clone().start_virtual_machine(request.clone())));
    start
}

fn note(change: &mut Change, caller: &Caller, call: impl Fn() -> Result<Response<v1::VirtualMachine>, Status>) {
    let (answer, whole) = super::again(|| {
        let begun = Instant::now();
        call().map(|answer| (answer, begun.elapsed()))
    });
    let operation = named(&answer).expect("a change of a running VM is an operation");
    let steps = caller.operation(&operation).unwrap().steps;
    // Steps of one text, of which an operation may have several, are one.
    let mut parts: Vec<(String, Duration)> = vec![(DECIDING.to_owned(), Duration::ZERO)];
    for step in steps {
        let took = duration_from_proto("took", step.duration.unwrap_or_default()).unwrap();
        match parts.iter_mut().find(|(known, _)| *known == step.step) {
            Some((_, all)) => *all += took,
            None => parts.push((step.step, took)),
        }
    }
    let told: Duration = parts.iter().map(|(_, took)| *took).sum();
    parts[0].1 = whole.saturating_sub(told);
    change.whole.push(whole);
    for (step, took) in parts {
        add(&mut change.steps, step, took);
    }
}

fn add<T: PartialEq>(all: &mut Vec<(T, Vec<Duration>)>, what: T, took: Duration) {
    match all.iter_mut().find(|(known, _)| *known == what) {
        Some((_, times)) => times.push(took),
        None => all.push((what, vec![took])),
    }
}
