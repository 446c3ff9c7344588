//! Devices of a host that come to a running VM and leave it, with a vmm that plays along or does not.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{AttachState, NvmeDevice, VfNic, mac_of};
use crate::daemon::supervisor::{DevicesError, HotplugError};
use crate::model::{Bdf, DeviceSpec, Placement};

const PATIENCE: Duration = Duration::from_secs(20);

/// A host that lends functions, or has none, and notes what is asked of it.
#[derive(Default)]
pub(super) struct Lender {
    pub(super) asked: Mutex<Vec<&'static str>>,
    lends: AtomicBool,
}

impl Lender {
    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
    }

    fn noted(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl Devices for Lender {
    fn claim(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Vec<VfNic>, DevicesError>> {
        self.note("claim");
        operation.tell(Step::new("lending"));
        if !self.lends.load(Ordering::Relaxed) {
            return ready(Err(DevicesError("no virtual function is free".into())));
        }
        let lacking = vm.spec.nics().iter().filter(|nic| nic.vf_wish().is_some());
        let lacking = lacking.filter(|nic| vm.vfs.iter().all(|vf| vf.id != nic.id));
        let address = Bdf::new(0, 1, 16, 0).unwrap();
        let given = lacking.map(|nic| {
            let mac = mac_of(vm.uid, &nic.id);
            VfNic { id: nic.id.clone(), address, pf_interface: "eth0".into(), mac }
        });
        ready(Ok(given.collect()))
    }

    fn place(&self, _vm: VmRecord, _operation: Underway) -> BoxFuture<'_, Result<Option<Placement>, DevicesError>> {
        ready(Ok(None))
    }

    fn attach(&self, _vm: VmId, _id: DeviceId) -> BoxFuture<'_, Result<(), DevicesError>> {
        self.note("attach");
        ready(Ok(()))
    }

    fn open(&self, _vf: &VfNic) -> Result<[OwnedFd; 2], DevicesError> {
        self.note("open");
        Ok([(); 2].map(|()| tempfile::tempfile().unwrap().into()))
    }

    fn claim_nvmes(&self, _vm: VmRecord, _operation: Underway) -> BoxFuture<'_, Result<Vec<NvmeDevice>, DevicesError>> {
        self.note("claim nvmes");
        ready(Err(DevicesError("no namespace is free".into())))
    }

    fn open_nvme(&self, _function: Bdf) -> Result<[OwnedFd; 2], DevicesError> {
        Err(DevicesError("there is none".into()))
    }

    fn release(&self, _vm: VmId, operation: Underway) -> BoxFuture<'_, ()> {
        self.note("release");
        operation.tell(Step::new("cleaning"));
        ready(())
    }

    fn give_back(&self, _vm: VmId, _id: DeviceId, operation: Underway) -> BoxFuture<'_, ()> {
        self.note("give back");
        operation.tell(Step::new("cleaning"));
        ready(())
    }

    fn forget(&self, _vm: VmId) -> BoxFuture<'_, ()> {
        self.note("forget");
        ready(())
    }
}

fn id() -> DeviceId {
    "vf".parse().unwrap()
}

pub(super) fn function() -> DeviceSpec {
    DeviceSpec::Nic(NicSpec { id: id(), backend: NicBackend::Sriov(VfWish::default()) })
}

pub(super) fn lending() -> Bench {
    let bench = Bench::new();
    bench.devices.lends.store(true, Ordering::Relaxed);
    bench
}

fn refused(result: Result<VmRecord, CallError>) -> HotplugError {
    match result {
        Err(CallError::Device(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Whether the last record has neither the device nor its function.
fn is_rid_of_it(vm: &VmRecord) -> bool {
    vm.devices.is_empty() && vm.vfs.is_empty() && vm.spec.nics().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_comes_to_a_running_vm_and_is_given_back_when_it_leaves() {
    let bench = lending();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    handle.start().await.unwrap();
    let vm = handle.attach(function(), None, || {}).await.unwrap();
    assert_eq!(bench.devices.noted(), ["claim", "attach", "open"]);
    assert_eq!((vm.vfs[0].id.clone(), vm.devices[0].state), (id(), AttachState::Attached));
    let vm = handle.detach(id(), PATIENCE, false).await.unwrap();
    assert!(is_rid_of_it(&vm));
    assert_eq!(bench.devices.noted(), ["give back"]);
    // One that leaves is no business of the run's end.
    handle.attach(function(), None, || {}).await.unwrap();
    handle.stop(GRACE).await.unwrap();
    assert_eq!(bench.devices.noted(), ["claim", "attach", "open", "release"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_or_the_vmm_refuses_is_given_back_and_leaves_nothing() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("refuses"));
    handle.start().await.unwrap();
    let none = refused(handle.attach(function(), None, || {}).await);
    assert_eq!(none, HotplugError::NotLent { id: id(), cause: "no virtual function is free".into() });
    assert_eq!(bench.devices.noted(), ["claim", "give back"]);
    assert!(is_rid_of_it(&bench.notebook.last.borrow().clone().unwrap()));
    bench.devices.lends.store(true, Ordering::Relaxed);
    let exhausted = refused(handle.attach(function(), None, || {}).await);
    assert!(matches!(exhausted, HotplugError::AttachFailed { is_exhausted: true, .. }), "{exhausted}");
    assert_eq!(bench.devices.noted(), ["claim", "attach", "open", "give back"]);
    assert!(is_rid_of_it(&bench.notebook.last.borrow().clone().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_gives_back_what_was_coming_before_the_rest() {
    let bench = lending();
    let handle = bench.supervisor().adopt_new(bench.vm("silent"));
    handle.start().await.unwrap();
    let attaching = tokio::spawn({
        let handle = handle.clone();
        async move { handle.attach(function(), None, || {}).await }
    });
    // On its way to a vmm that does not answer.
    bench.until(|vm| vm.as_ref().is_some_and(|vm| !vm.vfs.is_empty())).await;
    let stopped = handle.stop(Duration::ZERO).await.unwrap();
    assert!(is_rid_of_it(&stopped));
    assert!(matches!(attaching.await.unwrap(), Err(CallError::Interrupted { .. })));
    assert_eq!(bench.devices.noted(), ["claim", "attach", "open", "give back", "release"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_later_gives_back_what_the_vmm_does_not_have() {
    let bench = lending();
    let vm = abandoned(&bench, "run").await;
    // Leased, on record, and never sent.
    let before = bench.notebook.last.borrow().as_ref().unwrap().updated;
    let vm = vm.with_device(&function(), None, AttachState::Attaching).unwrap();
    let _handle = resumed(&bench, vm.clone()).await;
    let is_settled = |vm: &VmRecord| vm.updated > before && vm.devices.is_empty();
    let last = bench.until(|vm| vm.as_ref().is_some_and(is_settled)).await.unwrap();
    assert!(is_rid_of_it(&last) && is_alive(&vm));
    assert_eq!(bench.devices.noted(), ["give back"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_the_host_wants_back_is_taken_from_a_guest_that_clings_to_it() {
    let bench = lending();
    // It tells that the host wants the device as soon as it has it.
    let handle = bench.supervisor().adopt_new(bench.vm("clings-wanted"));
    handle.start().await.unwrap();
    handle.attach(function(), None, || {}).await.unwrap();
    let last = bench.until(|vm| vm.as_ref().is_some_and(|vm| vm.devices.is_empty())).await.unwrap();
    assert!(is_rid_of_it(&last));
    assert_eq!(last.state, VmState::Running);
    assert_eq!(bench.devices.noted(), ["claim", "attach", "open", "give back"]);
}
