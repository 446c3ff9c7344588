//! Devices that come and go, with a vmm that plays along or does not.

use super::*;
use crate::daemon::record::{AttachState, NicLease, Subnet, mac_of};
use crate::daemon::supervisor::HotplugError;
use crate::model::DeviceSpec;

const PATIENCE: Duration = Duration::from_secs(20);

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn image(bench: &Bench, name: &str) -> DeviceSpec {
    std::fs::write(bench.dir.path().join("volumes/acme").join(name), [0; 512]).unwrap();
    let volume = ImagePath::new("v", name).unwrap();
    DeviceSpec::Disk(DiskSpec { volume, ..disk(false) })
}

fn shown(vm: &VmRecord) -> Vec<(&str, u8, AttachState)> {
    vm.devices.iter().map(|device| (device.id.as_str(), device.slot.number(), device.state)).collect()
}

/// Whether no process has the image locked.
fn is_free(bench: &Bench, name: &str) -> bool {
    let image = File::open(bench.dir.path().join("volumes/acme").join(name)).unwrap();
    rustix::fs::flock(&image, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn refused(result: Result<VmRecord, CallError>) -> HotplugError {
    match result {
        Err(CallError::Device(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_to_a_running_vm_and_leaves_it() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    handle.start().await.unwrap();
    let vm = handle.attach(image(&bench, "data.img"), None, || {}).await.unwrap();
    assert_eq!(shown(&vm), [("data", 2, AttachState::Attached)]);
    assert!(!is_free(&bench, "data.img"), "the vmm has it");
    let twice = refused(handle.attach(image(&bench, "other.img"), None, || {}).await);
    assert!(twice.to_string().contains("has a device data already"), "{twice}");
    let vm = handle.detach(id("data"), PATIENCE, false).await.unwrap();
    assert!(vm.devices.is_empty() && vm.spec.disks().is_empty());
    assert!(is_free(&bench, "data.img"));
    assert_eq!(refused(handle.detach(id("data"), PATIENCE, false).await), HotplugError::NoSuchDevice(id("data")));
    assert_eq!(refused(handle.detach(id("rng"), PATIENCE, true).await), HotplugError::Fixed(id("rng")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_run_is_changed_in_its_record_alone() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    let vm = handle.attach(image(&bench, "data.img"), None, || {}).await.unwrap();
    assert_eq!(shown(&vm), [("data", 2, AttachState::Attached)]);
    assert!(is_free(&bench, "data.img"));
    handle.start().await.unwrap();
    assert!(!is_free(&bench, "data.img"), "the next start has it");
    handle.stop(GRACE).await.unwrap();
    assert!(handle.detach(id("data"), PATIENCE, false).await.unwrap().devices.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_vmm_or_the_host_refuses_leaves_nothing() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("refuses"));
    handle.start().await.unwrap();
    let held = Arc::new(Mutex::new(false));
    let subnet = Subnet::new("172.30.0.8".parse().unwrap()).unwrap();
    let nic = NicLease { id: id("data"), subnet, mac: mac_of(VmId::new(), &id("data")) };
    let note = Arc::clone(&held);
    let attached = handle.attach(image(&bench, "data.img"), Some(nic), move || *note.lock().unwrap() = true).await;
    let HotplugError::AttachFailed { is_exhausted: true, cause, .. } = refused(attached) else { panic!("attached") };
    assert_eq!(cause, "no ring");
    assert!(*held.lock().unwrap(), "the record held its addresses");
    assert!(is_free(&bench, "data.img"));
    let last = bench.notebook.last.borrow().clone().unwrap();
    assert!(last.devices.is_empty() && last.nics.is_empty() && last.spec.disks().is_empty());
    std::fs::remove_file(bench.dir.path().join("volumes/acme/data.img")).unwrap();
    let volume = ImagePath::new("v", "data.img").unwrap();
    let gone = DeviceSpec::Disk(DiskSpec { volume, ..disk(false) });
    let error = refused(handle.attach(gone, None, || {}).await);
    assert!(error.to_string().contains("disk.volume"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_clings_to_a_device_is_waited_for_and_then_forced() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("clings"));
    handle.start().await.unwrap();
    handle.attach(image(&bench, "data.img"), None, || {}).await.unwrap();
    let waited = Duration::from_millis(50);
    assert_eq!(
        refused(handle.detach(id("data"), waited, false).await),
        HotplugError::NotLetGo { id: id("data"), waited }
    );
    let last = bench.notebook.last.borrow().clone().unwrap();
    assert_eq!(shown(&last), [("data", 2, AttachState::Detaching)]);
    // Two wait: one asks again, one has it taken. Both get what they want.
    let asking = tokio::spawn({
        let handle = handle.clone();
        async move { handle.detach(id("data"), PATIENCE, false).await }
    });
    tokio::task::yield_now().await;
    let forced = handle.detach(id("data"), PATIENCE, true).await.unwrap();
    assert!(forced.devices.is_empty());
    match asking.await.unwrap() {
        Ok(vm) => assert!(vm.devices.is_empty()),
        Err(error) => assert_eq!(error, HotplugError::NoSuchDevice(id("data")).into(), "it came too late"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_run_ends_what_was_under_way_is_settled() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("silent"));
    handle.start().await.unwrap();
    let attaching = tokio::spawn({
        let (handle, disk) = (handle.clone(), image(&bench, "data.img"));
        async move { handle.attach(disk, None, || {}).await }
    });
    bench.until(|vm| vm.as_ref().is_some_and(|vm| !vm.devices.is_empty())).await;
    assert_eq!(refused(handle.detach(id("data"), PATIENCE, false).await), HotplugError::Busy(id("data")));
    let stopped = handle.stop(Duration::ZERO).await.unwrap();
    assert!(stopped.devices.is_empty());
    assert!(matches!(attaching.await.unwrap(), Err(CallError::Interrupted { .. })));

    let clinging = bench.vm("clings");
    let handle = bench.supervisor().adopt_new(VmRecord { uid: VmId::new(), ..clinging });
    handle.attach(image(&bench, "more.img"), None, || {}).await.unwrap();
    handle.start().await.unwrap();
    let detaching = tokio::spawn({
        let handle = handle.clone();
        async move { handle.detach(id("data"), PATIENCE, false).await }
    });
    let is_detaching = |vm: &VmRecord| vm.devices.iter().any(|device| device.state == AttachState::Detaching);
    bench.until(|vm| vm.as_ref().is_some_and(is_detaching)).await;
    handle.stop(Duration::ZERO).await.unwrap();
    assert!(detaching.await.unwrap().unwrap().devices.is_empty(), "what was to go is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_later_finishes_or_undoes_what_was_under_way() {
    let bench = Bench::new();
    let vm = abandoned(&bench, "run").await;
    // It did not come to send this one.
    let vm = vm.with_device(&image(&bench, "lost.img"), None, AttachState::Attaching).unwrap();
    let handle = resumed(&bench, vm).await;
    let last = bench.until(|vm| vm.as_ref().is_some_and(|vm| vm.devices.is_empty())).await.unwrap();
    assert!(last.spec.disks().is_empty(), "the vmm never had it: {last:?}");
    // And did not come to ask for this one.
    let mut vm = handle.attach(image(&bench, "kept.img"), None, || {}).await.unwrap();
    drop(handle);
    vm.set_device(&id("data"), AttachState::Detaching);
    let _handle = resumed(&bench, vm.clone()).await;
    bench.until(|vm| vm.as_ref().is_some_and(|vm| vm.devices.is_empty())).await;
    assert!(is_free(&bench, "kept.img") && is_alive(&vm));
}
