//! Operations that a VM's task works at: what they show, and calling them off.

use super::*;
use crate::daemon::operation::{Operation, OperationEnd, OperationName, OperationState, Operations, Subject, Ticket};
use crate::daemon::record::AttachState;
use crate::model::DeviceSpec;

/// Operations as `rpc` and `service` keep them.
#[derive(Default)]
struct Desk(Operations);

impl Desk {
    /// Has `work` done as an operation; its name, and what came of it in the end.
    async fn begin<F>(
        &self,
        handle: &VmHandle,
        work: impl FnOnce(VmHandle) -> F,
    ) -> (OperationName, tokio::task::JoinHandle<Result<VmRecord, CallError>>)
    where
        F: Future<Output = Result<VmRecord, CallError>> + Send + 'static,
    {
        let ticket = Ticket::new(Subject::sample());
        let (name, underway) = self.0.begin(&ticket, Some("acme".parse().unwrap()));
        let work = work(handle.clone().part_of(underway));
        let own = ticket.clone();
        let task = tokio::spawn(async move {
            let done = work.await;
            own.end(|| match &done {
                Ok(_) => OperationEnd::Succeeded,
                Err(error) => {
                    let (code, message) = (1, error.to_string());
                    let failure = crate::daemon::operation::Failure { code, message, reason: String::new() };
                    match error {
                        CallError::CalledOff(_) => OperationEnd::Cancelled(failure),
                        _ => OperationEnd::Failed(failure),
                    }
                }
            });
            done
        });
        self.0.under_way(&ticket).await;
        (name, task)
    }

    fn get(&self, name: &OperationName) -> Operation {
        self.0.get(name).unwrap()
    }

    async fn cancel(&self, name: &OperationName) -> Operation {
        self.0.cancel(name).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_called_off_in_its_grace_leaves_a_vm_that_nobody_kills() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("deaf"));
    let running = handle.start().await.unwrap();
    let desk = Desk::default();
    let grace = Duration::from_secs(3);
    for is_reboot in [false, true] {
        let before = std::time::Instant::now();
        let (name, stop) = desk
            .begin(&handle, |handle| async move {
                if is_reboot { handle.reboot(grace).await } else { handle.stop(grace).await }
            })
            .await;
        let shown = desk.get(&name);
        let stopping = bench.until_state("STOPPING").await;
        assert_eq!(shown.step.unwrap().deadline, stopping.run.unwrap().kill_at);
        assert!(shown.is_cancellable && shown.end.is_none());
        // Twice is like once.
        assert_eq!(desk.cancel(&name).await.state(), OperationState::Cancelled);
        assert_eq!(desk.cancel(&name).await.state(), OperationState::Cancelled);
        assert!(matches!(stop.await.unwrap(), Err(CallError::CalledOff(_))));
        let goes_on = bench.notebook.last.borrow().clone().unwrap();
        assert_eq!((&goes_on.state, goes_on.run.as_ref().unwrap().kill_at), (&VmState::Running, None));
        // Its deadline passes, and nothing happens.
        let late = tokio::time::timeout(grace.saturating_sub(before.elapsed()) + Duration::from_millis(500), async {
            bench.until(|vm| vm.as_ref().is_none_or(|vm| vm.state != VmState::Running)).await
        });
        assert!(late.await.is_err() && is_alive(&running));
    }
    // What was called off can be asked for anew; by force it cannot be called off.
    let (name, stop) = desk.begin(&handle, |handle| async move { handle.stop(Duration::ZERO).await }).await;
    assert!(!desk.get(&name).is_cancellable);
    assert_eq!(stop.await.unwrap().unwrap().state, VmState::Stopped);
    let refused = desk.0.cancel(&name).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("SUCCEEDED"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_has_become_one_by_force_is_not_called_off() {
    let bench = Bench::new();
    // It hangs before it reports: the kill takes as long as the signal does.
    let handle = bench.supervisor().adopt_new(bench.vm("deaf"));
    let running = handle.start().await.unwrap();
    // A process that cannot even end: whoever looks sees the VM being killed.
    rustix::process::kill_process(process_id(&running), rustix::process::Signal::STOP).unwrap();
    let desk = Desk::default();
    let (name, stop) = desk.begin(&handle, |handle| async move { handle.stop(GRACE).await }).await;
    assert!(desk.get(&name).is_cancellable);
    let (second, forced) = desk.begin(&handle, |handle| async move { handle.stop(Duration::ZERO).await }).await;
    assert!(!desk.get(&name).is_cancellable && !desk.get(&second).is_cancellable);
    let refused = desk.0.cancel(&name).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("ending the VM's process"), "{refused}");
    for stopped in [stop, forced] {
        assert_eq!(stopped.await.unwrap().unwrap().state, VmState::Stopped);
    }
    assert_eq!(desk.get(&name).state(), OperationState::Succeeded);
}

fn process_id(vm: &VmRecord) -> rustix::process::Pid {
    let pid = vm.run.as_ref().unwrap().process.unwrap().pid;
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detachment_that_is_called_off_leaves_the_device_unless_somebody_else_wants_it_gone() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("clings"));
    handle.start().await.unwrap();
    let id: DeviceId = "data".parse().unwrap();
    std::fs::write(bench.dir.path().join("volumes/acme/data.img"), [0; 512]).unwrap();
    let volume = ImagePath::new("v", "data.img").unwrap();
    let disk = DeviceSpec::Disk(DiskSpec { volume, ..disk(false) });
    handle.attach(disk, None, || {}).await.unwrap();
    let desk = Desk::default();
    let detach = |is_forced| {
        let id = id.clone();
        move |handle: VmHandle| async move { handle.detach(id, GRACE, is_forced).await }
    };
    let state = || bench.notebook.last.borrow().as_ref().unwrap().attachment(&id).map(|device| device.state);
    let (first, waiting) = desk.begin(&handle, detach(false)).await;
    let (second, other) = desk.begin(&handle, detach(false)).await;
    assert!(desk.get(&first).is_cancellable && desk.get(&first).step.unwrap().deadline.is_some());
    assert_eq!(desk.cancel(&first).await.state(), OperationState::Cancelled);
    assert!(matches!(waiting.await.unwrap(), Err(CallError::CalledOff(_))));
    assert_eq!(state(), Some(AttachState::Detaching), "the second call waits for it");
    assert_eq!(desk.cancel(&second).await.state(), OperationState::Cancelled);
    assert!(other.await.unwrap().is_err());
    assert_eq!(state(), Some(AttachState::Attached));
    // It can be asked for anew; by force it goes, and cannot be kept.
    let (third, gone) = desk.begin(&handle, detach(true)).await;
    assert!(!desk.get(&third).is_cancellable);
    assert!(gone.await.unwrap().unwrap().devices.is_empty());
    assert_eq!(desk.get(&third).state(), OperationState::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_s_coming_and_going_takes_is_told_step_by_step() {
    let bench = super::lending::lending();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    handle.start().await.unwrap();
    let desk = Desk::default();
    let device = super::lending::function();
    let id = device.id().clone();
    let (coming, attach) = desk.begin(&handle, |handle| async move { handle.attach(device, None, || {}).await }).await;
    attach.await.unwrap().unwrap();
    let detach = |handle: VmHandle| async move { handle.detach(id, GRACE, false).await };
    let (going, detach) = desk.begin(&handle, detach).await;
    detach.await.unwrap().unwrap();
    let told = |name: &OperationName| {
        let steps = desk.get(name).steps;
        assert!(steps.iter().all(|step| step.took.is_some()), "all is over: {steps:?}");
        steps.into_iter().map(|step| step.text).collect::<Vec<_>>()
    };
    let attached = [
        "preparing the device on the host",
        "lending",
        "opening the device",
        "attaching the device to the VM's process",
        "recording what the VM has",
    ];
    assert_eq!(told(&coming), attached);
    let detached = [
        "waiting for the guest to let the device go, until the deadline",
        "giving back what the device held",
        "cleaning",
        "recording what the VM has",
    ];
    assert_eq!(told(&going), detached);

    // One that the VM has from its start comes with that, and goes with its run.
    handle.stop(GRACE).await.unwrap();
    handle.attach(super::lending::function(), None, || {}).await.unwrap();
    let (starting, start) = desk.begin(&handle, |handle| async move { handle.start().await }).await;
    start.await.unwrap().unwrap();
    let started = [
        "beginning a run",
        "lending",
        "opening what the VM's process gets",
        "starting the VM's process",
        "handing over to the VM's process",
        "waiting for the guest's processors",
    ];
    assert_eq!(told(&starting), started);
    let (stopping, stop) = desk.begin(&handle, |handle| async move { handle.stop(Duration::ZERO).await }).await;
    stop.await.unwrap().unwrap();
    assert_eq!(told(&stopping), ["ending the VM's process", "cleaning"]);
}
