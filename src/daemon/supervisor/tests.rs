//! Lifecycles with real processes: this test binary, started as the vmm, speaks the control protocol; what it does is
//! written in the "kernel" that it is given.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::{BoxFuture, CallError, Devices, Journal, JournalError, Supervisor, VmHandle};
use crate::daemon::files::Files;
use crate::daemon::record::{VmRecord, attachments_of, samples};
use crate::model::{
    BootSpec, DeviceChange, DeviceId, DiskSpec, ImagePath, NicBackend, NicSpec, Rate, RateLimits, VfWish, VmExit, VmId,
    VmSpec, VmState,
};
use crate::sys::packet::{Connection, Listener, Received};
use crate::sys::process::Process;
use crate::wire::{FromVmm, MAX_PACKET_LEN, Role, ToVmm, decode_launch, encode_ended};
use lending::Lender;

mod hotplug;
mod lending;
mod operations;

const GRACE: Duration = Duration::from_secs(20);

/// Set by the script that starts this binary as a vmm.
const PLAY: &str = "OSTLER_TEST_PLAYS_VMM";

/// Not a test of its own: in the process that a supervisor starts, it is the vmm.
#[test]
fn plays_the_vmm_when_started_as_one() {
    if std::env::var_os(PLAY).is_none() {
        return;
    }
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let listener = Listener::from_fd(rustix::process::pidfd_getfd(own, 3, flags).unwrap());
    let link = listener.accept().unwrap();
    let Received::Packet(packet, fds) = link.receive(MAX_PACKET_LEN).unwrap() else { return };
    let ToVmm::Launch { roles } = ToVmm::decode(&packet).unwrap() else { return };
    let mut held: Vec<(Role, OwnedFd)> = roles.into_iter().zip(fds).collect();
    let mut take = |role: Role| {
        let at = held.iter().position(|(held, _)| *held == role).unwrap();
        held.swap_remove(at).1
    };
    let launch = decode_launch(&crate::sys::sealed::read(take(Role::Config), MAX_PACKET_LEN).unwrap()).unwrap();
    let mut script = String::new();
    File::from(take(Role::Kernel)).read_to_string(&mut script).unwrap();
    let mut record = File::from(take(Role::ExitRecord));
    let mut end = |link: &Connection, exit: VmExit| -> ! {
        let _ = link.send(&FromVmm::Ended(exit.clone()).encode(), &[]);
        record.write_all(&encode_ended(&exit)).unwrap();
        std::process::exit(exit.code().into())
    };
    let mut devices: Vec<_> = launch.devices.iter().map(|device| device.id.clone()).collect();
    let mut is_paused = false;
    if script == "fail" {
        end(&link, VmExit::LaunchFailed("kernel is not one".into()));
    }
    if script == "hang" {
        loop {
            std::thread::park();
        }
    }
    link.send(&FromVmm::Ready { build_ns: 1 }.encode(), &[]).unwrap();
    match script.as_str() {
        "abort" => std::process::abort(),
        "reset" => end(&link, VmExit::Reset),
        _ => {}
    }
    let mut link = Some(link);
    loop {
        match link.as_ref().map(|link| link.receive(MAX_PACKET_LEN)) {
            Some(Ok(Received::Packet(packet, fds))) => match (ToVmm::decode(&packet).unwrap(), script.as_str()) {
                (ToVmm::PowerButton, "deaf") => {}
                (ToVmm::PowerButton, _) if is_paused => panic!("a guest that stands still has no button"),
                (ToVmm::PowerButton, _) => end(link.as_ref().unwrap(), VmExit::PowerOff),
                (ToVmm::Kill, _) => end(link.as_ref().unwrap(), VmExit::Killed),
                (ToVmm::Nmi, _) => end(link.as_ref().unwrap(), VmExit::Panicked),
                (ToVmm::DeviceChange { .. }, "deaf") => std::process::abort(),
                (message, script) => {
                    let news = play_along(script, message, fds, &mut held, &mut devices);
                    is_paused = news.as_ref().map_or(is_paused, |news| *news == FromVmm::Paused);
                    say(link.as_ref().unwrap(), script, news);
                }
            },
            // The daemon is gone: wait for the next one.
            _ => {
                let next = listener.accept().unwrap();
                if script != "mute" {
                    let (vm, instance, devices) = (launch.vm, launch.instance, devices.clone());
                    next.send(&FromVmm::Hello { vm, instance, is_paused, devices }.encode(), &[]).unwrap();
                }
                link = Some(next);
            }
        }
    }
}

/// Says it; then, if so written, that the host wants back what has just come.
fn say(link: &Connection, script: &str, news: Option<FromVmm>) {
    let wanted = match &news {
        Some(FromVmm::Attached(id)) if script == "clings-wanted" => Some(FromVmm::DeviceWanted(id.clone())),
        _ => None,
    };
    news.into_iter().chain(wanted).for_each(|news| link.send(&news.encode(), &[]).unwrap());
}

/// What a vmm says to what it is asked.
fn play_along(
    script: &str,
    message: ToVmm,
    fds: Vec<OwnedFd>,
    held: &mut Vec<(Role, OwnedFd)>,
    devices: &mut Vec<DeviceId>,
) -> Option<FromVmm> {
    match (message, script) {
        (ToVmm::Pause | ToVmm::Resume, "restless") => {
            Some(FromVmm::NotPaused { cause: "a disk does not answer".into() })
        }
        (ToVmm::Pause, _) => Some(FromVmm::Paused),
        (ToVmm::Resume, _) => Some(FromVmm::Resumed),
        (ToVmm::DeviceChange { device, change }, _) => {
            let error = (change == DeviceChange::Resized).then(|| "it became shorter".to_owned());
            Some(FromVmm::DeviceChanged { device, error })
        }
        (ToVmm::Attach(device), "refuses") => {
            Some(FromVmm::AttachFailed { id: device.id, cause: "no ring".into(), is_exhausted: true })
        }
        (ToVmm::Attach(device), script) => {
            held.extend(fds.into_iter().map(|fd| (Role::Device(device.id.clone()), fd)));
            devices.push(device.id.clone());
            (script != "silent").then_some(FromVmm::Attached(device.id))
        }
        (ToVmm::Detach { id, is_forced: false }, "clings" | "clings-wanted") => Some(FromVmm::DetachAsked(id)),
        (ToVmm::Detach { id, .. }, _) => {
            held.retain(|(role, _)| *role != Role::Device(id.clone()));
            devices.retain(|device| *device != id);
            Some(FromVmm::Detached(id))
        }
        (other, _) => panic!("{other:?} is not asked of a vmm that runs"),
    }
}

/// Keeps the last record, and every state in order.
struct Notebook {
    last: watch::Sender<Option<VmRecord>>,
    states: Mutex<Vec<&'static str>>,
}

impl Journal for Notebook {
    fn update(&self, vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>> {
        self.states.lock().unwrap().push(vm.state.name());
        self.last.send_replace(Some(vm));
        Box::pin(std::future::ready(Ok(())))
    }

    fn remove(&self, _vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>> {
        self.states.lock().unwrap().push("gone");
        self.last.send_replace(None);
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Bench {
    dir: tempfile::TempDir,
    notebook: Arc<Notebook>,
    devices: Arc<Lender>,
    vmm: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vmm = dir.path().join("vmm.sh");
        let exe = std::env::current_exe().unwrap();
        let test = "daemon::supervisor::tests::plays_the_vmm_when_started_as_one";
        let script = format!("#!/bin/sh\n{PLAY}=1 exec '{}' --exact {test} --nocapture\n", exe.display());
        std::fs::write(&vmm, script).unwrap();
        std::fs::set_permissions(&vmm, PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/acme")).unwrap();
        let notebook = Notebook { last: watch::Sender::new(None), states: Mutex::default() };
        Self { dir, notebook: Arc::new(notebook), devices: Arc::default(), vmm }
    }

    fn supervisor(&self) -> Supervisor {
        let path = self.dir.path();
        let files = Files::new(path, &path.join("volumes"));
        let journal = Arc::clone(&self.notebook) as Arc<dyn Journal>;
        let devices = Arc::clone(&self.devices) as Arc<dyn Devices>;
        Supervisor::new(files, &path.join("sockets"), &path.join("data"), &self.vmm, None, journal, devices)
    }

    /// A registered VM whose vmm does what `script` says.
    fn vm(&self, script: &str) -> VmRecord {
        std::fs::write(self.dir.path().join(script), script).unwrap();
        let kernel = ImagePath::new("k", script).unwrap();
        let boot = BootSpec { kernel, initrd: None, cmdline: String::new() };
        VmRecord {
            spec: VmSpec::new(1, 128, boot, vec![], vec![]).unwrap(),
            devices: vec![],
            state: VmState::Registered,
            run: None,
            nics: vec![],
            ..samples::running("acme", "web")
        }
    }

    async fn until(&self, is_so: impl FnMut(&Option<VmRecord>) -> bool) -> Option<VmRecord> {
        let mut last = self.notebook.last.subscribe();
        tokio::time::timeout(Duration::from_secs(30), last.wait_for(is_so)).await.unwrap().unwrap().clone()
    }

    async fn until_state(&self, state: &str) -> VmRecord {
        self.until(|vm| vm.as_ref().is_some_and(|vm| vm.state.name() == state)).await.unwrap()
    }

    fn states(&self) -> Vec<&'static str> {
        let mut states = self.notebook.states.lock().unwrap().clone();
        states.dedup();
        states
    }

    fn has_run_dir(&self, uid: VmId) -> bool {
        self.dir.path().join("sockets/vms").join(uid.to_string()).exists()
    }
}

impl Drop for Bench {
    /// A test that fails leaves no process either.
    fn drop(&mut self) {
        let last = self.notebook.last.borrow();
        let identity = last.as_ref().and_then(|vm| vm.run.as_ref()).and_then(|run| run.process);
        if let Some(Ok(Some(process))) = identity.map(Process::find) {
            let _ = process.kill();
        }
    }
}

fn process(vm: &VmRecord) -> Process {
    Process::find(vm.run.as_ref().unwrap().process.unwrap()).unwrap().expect("the vmm lives")
}

fn is_alive(vm: &VmRecord) -> bool {
    Process::find(vm.run.as_ref().unwrap().process.unwrap()).unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_and_powers_off_and_starts_again() {
    let bench = Bench::new();
    let vm = bench.vm("run");
    let handle = bench.supervisor().adopt_new(vm.clone());
    for _ in 0..2 {
        let running = handle.start().await.unwrap();
        assert!(is_alive(&running) && bench.has_run_dir(vm.uid));
        assert!(matches!(handle.start().await, Err(CallError::Refused(_))));
        assert!(matches!(handle.destroy(false).await, Err(CallError::Refused(_))));
        let stopped = handle.stop(GRACE).await.unwrap();
        assert_eq!((stopped.state, stopped.run), (VmState::Stopped, None));
        assert!(!is_alive(&running) && !bench.has_run_dir(vm.uid));
    }
    let round = ["STARTING", "RUNNING", "STOPPING", "STOPPED"];
    assert_eq!(bench.states(), [round, round].concat());
    handle.destroy(false).await.unwrap();
    assert!(!bench.dir.path().join("data/vms").join(vm.uid.to_string()).exists());
    assert!(matches!(handle.start().await, Err(CallError::Gone)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let bench = Bench::new();
    let vm = bench.vm("fail");
    let handle = bench.supervisor().adopt_new(vm.clone());
    let error = handle.start().await.unwrap_err();
    assert!(error.to_string().contains("kernel is not one"), "{error}");
    assert!(!bench.has_run_dir(vm.uid));
    std::fs::remove_file(bench.dir.path().join("fail")).unwrap();
    let error = handle.start().await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    let mut missing = Bench::new();
    missing.vmm = "/nonexistent/vmm".into();
    let error = missing.supervisor().adopt_new(missing.vm("run")).start().await.unwrap_err();
    assert!(error.to_string().contains("cannot start the vmm process"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_gets_no_device_fails_with_the_reason_and_gives_back_what_it_has() {
    let bench = Bench::new();
    let vm = bench.vm("run");
    let nic = NicSpec { id: "vf".parse().unwrap(), backend: NicBackend::Sriov(VfWish::default()) };
    let spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![], vec![nic]).unwrap();
    let handle = bench.supervisor().adopt_new(VmRecord { devices: attachments_of(&spec), spec, ..vm.clone() });
    let error = handle.start().await.unwrap_err();
    assert!(error.to_string().contains("no virtual function is free"), "{error}");
    assert_eq!(*bench.devices.asked.lock().unwrap(), ["claim", "release"]);
    assert_eq!(bench.states(), ["STARTING", "FAILED"]);
    assert!(!bench.has_run_dir(vm.uid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_leaves_a_failed_vm_with_the_cause() {
    let bench = Bench::new();
    let vm = bench.vm("run");
    let handle = bench.supervisor().adopt_new(vm.clone());
    let running = handle.start().await.unwrap();
    process(&running).kill().unwrap();
    let failed = bench.until_state("FAILED").await;
    assert!(matches!(&failed.state, VmState::Failed(cause) if cause.to_string().contains("killed by signal 9")));
    assert!(!bench.has_run_dir(vm.uid));
    let aborting = bench.vm("abort");
    let _handle = bench.supervisor().adopt_new(aborting.clone());
    let started = _handle.start().await;
    let failed = bench
        .until(|last| last.as_ref().is_some_and(|last| last.uid == aborting.uid && last.state.name() == "FAILED"))
        .await
        .unwrap();
    assert!(started.is_ok(), "it was ready before it died: {started:?}");
    assert!(matches!(&failed.state, VmState::Failed(cause) if cause.to_string().contains("signal 6")), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ignores_the_button_is_stopped_when_the_grace_is_over() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("deaf"));
    let running = handle.start().await.unwrap();
    handle.stop(Duration::from_millis(50)).await.unwrap();
    assert!(!is_alive(&running));
    let running = handle.start().await.unwrap();
    handle.stop(Duration::ZERO).await.unwrap();
    assert!(!is_alive(&running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_under_way_can_be_stopped_and_destroyed() {
    let bench = Bench::new();
    let vm = bench.vm("hang");
    let handle = bench.supervisor().adopt_new(vm.clone());
    let starting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.start().await }
    });
    bench.until_state("STARTING").await;
    handle.stop(Duration::ZERO).await.unwrap();
    assert!(matches!(starting.await.unwrap(), Err(CallError::Interrupted { .. })));
    let starting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.start().await }
    });
    let with_process =
        |vm: &Option<VmRecord>| vm.as_ref().is_some_and(|vm| vm.run.as_ref().is_some_and(|run| run.process.is_some()));
    let started = bench.until(with_process).await.unwrap();
    handle.destroy(true).await.unwrap();
    assert!(!is_alive(&started) && !bench.has_run_dir(vm.uid));
    assert!(starting.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_resets_is_launched_again_as_a_new_run() {
    let bench = Bench::new();
    let vm = bench.vm("reset");
    let handle = bench.supervisor().adopt_new(vm);
    let first = handle.start().await.unwrap();
    std::fs::write(bench.dir.path().join("reset"), "run").unwrap();
    let instance = |vm: &VmRecord| vm.run.as_ref().map(|run| run.instance);
    let again = bench
        .until(|vm| vm.as_ref().is_some_and(|vm| vm.state == VmState::Running && instance(vm) != instance(&first)));
    assert!(is_alive(&again.await.unwrap()));
    assert!(bench.devices.asked.lock().unwrap().is_empty(), "a guest's reset takes no devices away");
    handle.destroy(true).await.unwrap();
}

/// The supervisor ends as with a daemon that is killed: its task is gone, the process stays.
async fn abandoned(bench: &Bench, script: &str) -> VmRecord {
    let handle = bench.supervisor().adopt_new(bench.vm(script));
    let running = handle.start().await.unwrap();
    drop(handle);
    running
}

async fn resumed(bench: &Bench, vm: VmRecord) -> VmHandle {
    let mut handle = None;
    bench.supervisor().resume(vm, |resumed| handle = Some(resumed)).await;
    handle.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_takes_its_vms_over() {
    let bench = Bench::new();
    let running = abandoned(&bench, "run").await;
    let handle = resumed(&bench, running.clone()).await;
    assert!(is_alive(&running));
    assert!(matches!(handle.start().await, Err(CallError::Refused(_))), "it runs");
    handle.stop(GRACE).await.unwrap();
    assert!(!is_alive(&running));

    // The Ready was not heard; a stop was under way.
    let running = abandoned(&bench, "run").await;
    bench.notebook.last.send_replace(None);
    let handle = resumed(&bench, VmRecord { state: VmState::Starting, ..running.clone() }).await;
    bench.until_state("RUNNING").await;
    drop(handle);
    let mut stopping = VmRecord { state: VmState::Stopping, ..running.clone() };
    stopping.run.as_mut().unwrap().kill_at = Some(std::time::SystemTime::now() + GRACE);
    let _handle = resumed(&bench, stopping).await;
    bench.until_state("STOPPED").await;
    assert!(!is_alive(&running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_what_the_vmm_says_and_a_stop_ends_it() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    assert!(matches!(handle.pause().await, Err(CallError::Refused(_))), "it does not run yet");
    handle.start().await.unwrap();
    for _ in 0..2 {
        assert_eq!(handle.pause().await.unwrap().state, VmState::Paused);
        assert_eq!(handle.pause().await.unwrap().state, VmState::Paused);
        assert!(matches!(handle.inject_nmi().await, Err(CallError::Refused(_))));
        assert_eq!(handle.resume().await.unwrap().state, VmState::Running);
        assert_eq!(handle.resume().await.unwrap().state, VmState::Running);
    }
    handle.pause().await.unwrap();
    // The guest goes on before the button is pressed, else it would not react.
    assert_eq!(handle.stop(GRACE).await.unwrap().state, VmState::Stopped);
    let round = ["RUNNING", "PAUSED"];
    assert_eq!(bench.states(), [&["STARTING"][..], &round, &round, &round, &["STOPPING", "STOPPED"]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_cannot_pause_says_so_and_its_guest_goes_on() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("restless"));
    handle.start().await.unwrap();
    let error = handle.pause().await.unwrap_err();
    assert_eq!(error, CallError::NotPaused { cause: "a disk does not answer".into() });
    // Still RUNNING: it can be interrupted, and ends by that as this one's guest does.
    handle.inject_nmi().await.unwrap();
    let failed = bench.until_state("FAILED").await;
    assert!(matches!(&failed.state, VmState::Failed(cause) if cause.to_string() == "guest kernel panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_a_new_run_of_the_same_vm() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    let first = handle.start().await.unwrap();
    let again = handle.reboot(GRACE).await.unwrap();
    assert!(again.state == VmState::Running && again.run != first.run && is_alive(&again) && !is_alive(&first));
    handle.pause().await.unwrap();
    let forced = handle.reboot(Duration::ZERO).await.unwrap();
    assert!(forced.state == VmState::Running && forced.run != again.run);
    handle.stop(GRACE).await.unwrap();
    assert!(matches!(handle.reboot(GRACE).await, Err(CallError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_finds_a_paused_vm_paused() {
    let bench = Bench::new();
    let handle = bench.supervisor().adopt_new(bench.vm("run"));
    handle.start().await.unwrap();
    let paused = handle.pause().await.unwrap();
    drop(handle);
    // As if the answer had not been heard: what the vmm is counts.
    let handle = resumed(&bench, VmRecord { state: VmState::Running, ..paused.clone() }).await;
    bench.until_state("PAUSED").await;
    assert_eq!(handle.resume().await.unwrap().state, VmState::Running);
    drop(handle);
    let handle = resumed(&bench, paused).await;
    bench.until_state("RUNNING").await;
    handle.stop(GRACE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_tells_what_it_missed_and_trusts_no_stranger() {
    let bench = Bench::new();
    let running = abandoned(&bench, "run").await;
    process(&running).kill().unwrap();
    while is_alive(&running) {
        let _ = process(&running).try_reap();
        tokio::task::yield_now().await;
    }
    let _handle = resumed(&bench, running.clone()).await;
    let failed = bench.until_state("FAILED").await;
    assert!(failed.run.is_none());
    assert!(!bench.has_run_dir(running.uid));

    let mut running = abandoned(&bench, "run").await;
    let live = running.clone();
    running.run.as_mut().unwrap().instance = crate::model::InstanceId::new();
    let _handle = resumed(&bench, running).await;
    let failed =
        bench.until(|vm| vm.as_ref().is_some_and(|vm| vm.uid == live.uid && vm.state.name() == "FAILED")).await;
    assert!(failed.unwrap().run.is_none());
    assert!(!is_alive(&live));
}

fn disk(is_read_only: bool) -> DiskSpec {
    DiskSpec {
        id: "data".parse().unwrap(),
        volume: ImagePath::new("v", "data.img").unwrap(),
        is_read_only,
        is_direct: false,
        queues: 1,
        limits: RateLimits::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_on_record_before_the_vmm_has_them_and_stay() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path().join("volumes/acme/data.img"), [0; 512]).unwrap();
    let with_disk = |script: &str| {
        let vm = bench.vm(script);
        let spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![disk(false)], vec![]).unwrap();
        VmRecord { devices: attachments_of(&spec), spec, ..vm }
    };
    let handle = bench.supervisor().adopt_new(with_disk("run"));
    let id = || "data".parse().unwrap();
    let limits = |rate| RateLimits { bandwidth: Rate::new("f", rate, 0).ok(), operations: None };
    let recorded = || bench.notebook.last.borrow().as_ref().unwrap().spec.disks()[0].limits;
    // Off: for later.
    assert_eq!(handle.limit(id(), limits(1)).await.unwrap().spec.disks()[0].limits, limits(1));
    assert_eq!(recorded(), limits(1));
    handle.start().await.unwrap();
    assert_eq!(handle.limit(id(), limits(2)).await.unwrap().spec.disks()[0].limits, limits(2));
    assert_eq!(recorded(), limits(2));
    let refused = handle.limit("gone".parse().unwrap(), limits(3)).await.unwrap_err();
    assert!(matches!(refused, CallError::ChangeFailed(_)), "{refused}");
    let refused = handle.resized(id(), 1024).await.unwrap_err();
    assert!(refused.to_string().contains("it became shorter"), "{refused}");
    let (first, second) = tokio::join!(handle.resized(id(), 0), handle.limit(id(), limits(4)));
    assert!(first.is_err() && second.is_ok(), "each has its own answer");
    handle.stop(GRACE).await.unwrap();
    assert_eq!(recorded(), limits(4));
    handle.resized(id(), 2048).await.unwrap();
    handle.destroy(false).await.unwrap();

    let handle = bench.supervisor().adopt_new(with_disk("deaf"));
    handle.start().await.unwrap();
    let ended = handle.limit(id(), limits(1)).await.unwrap_err();
    assert!(matches!(ended, CallError::Interrupted { .. }), "{ended}");
    bench.until_state("FAILED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_written_by_one_running_vm_only() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path().join("volumes/acme/data.img"), [0; 512]).unwrap();
    let with_disk = |is_read_only| {
        let vm = bench.vm("run");
        let spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![disk(is_read_only)], vec![]).unwrap();
        VmRecord { devices: attachments_of(&spec), spec, ..vm }
    };
    let supervisor = bench.supervisor();
    let (writer, reader) = (supervisor.adopt_new(with_disk(false)), supervisor.adopt_new(with_disk(true)));
    writer.start().await.unwrap();
    let error = reader.start().await.unwrap_err();
    assert!(error.to_string().contains("in use by another running VM"), "{error}");
    writer.stop(GRACE).await.unwrap();
    reader.start().await.unwrap();
    reader.destroy(true).await.unwrap();
}
