//! Where a daemon can die and leave something half done: every step of a change, named. Key type: [`Point`]; key
//! function: [`reach`].
//!
//! A build with the feature `crash-points` ends itself with SIGKILL at the point that `OSTLER_CRASH_AT` names; any other
//! has nothing of this. `tests/crash*.rs` go through [`Point::ALL`]: a point that no test reaches fails them.

/// Defines [`Point`] with its list and names.
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A step that has just been made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// As `OSTLER_CRASH_AT` names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// What a request is about is on record; none of its effects has happened.
    RequestBegun = "request.begun",
    /// A request's answer is on record, and not on its way.
    RequestAnswered = "request.answered",

    /// A decision's record is written, with what plugins remember of it, and the transaction not ended.
    KvWritten = "kv.written",

    /// Events are written with the change that they speak of, and the transaction not ended.
    EventsWritten = "events.written",
    /// An observer has heard events, and that is not on record.
    ObserverHeard = "observer.heard",

    /// The decision to admit a VM is on record.
    RegisterDecided = "register.decided",
    /// The VM is, with the answer.
    RegisterRecorded = "register.recorded",

    /// A component is on disk, and not bound.
    PluginWritten = "plugin.written",
    /// It is bound on record.
    PluginRecorded = "plugin.recorded",
    /// It is not bound any more, on record.
    PluginUnloaded = "plugin.unloaded",
    /// A canary is rolled back on record; decisions still know it.
    CanaryRolledBack = "canary.rolled-back",

    /// A disk image has grown; nobody was told.
    DiskGrown = "disk.grown",

    /// STARTING is on record.
    StartRecorded = "start.recorded",
    /// A run's directories are made.
    LaunchDirectories = "launch.directories",
    /// Its control and console sockets are bound.
    LaunchSockets = "launch.sockets",
    /// Disks are locked, taps and devices open.
    LaunchOpened = "launch.opened",
    /// Its ring, counters, log and exit record are made.
    LaunchFiles = "launch.files",
    /// Its cgroup is made.
    LaunchCgroup = "launch.cgroup",
    /// Its process is there, and on no record.
    LaunchSpawned = "launch.spawned",
    /// The process is on record.
    LaunchRecorded = "launch.recorded",
    /// It has everything.
    LaunchSent = "launch.sent",
    /// It said that the guest runs.
    RunReady = "run.ready",
    /// RUNNING is on record.
    RunRecorded = "run.recorded",

    /// STOPPING is on record.
    StopRecorded = "stop.recorded",
    /// The power button is pressed.
    StopPressed = "stop.pressed",
    /// The process is to be killed.
    StopKilled = "stop.killed",
    /// The process has ended.
    EndSeen = "end.seen",
    /// The run's directory is gone.
    EndDirectory = "end.directory",
    /// So is its cgroup.
    EndCgroup = "end.cgroup",
    /// So is what it had of the host's devices.
    EndReleased = "end.released",
    /// The end is on record.
    EndRecorded = "end.recorded",

    /// DESTROYING is on record.
    DestroyRecorded = "destroy.recorded",
    /// The VM's own files are gone.
    DestroyErased = "destroy.erased",
    /// Its record is gone.
    DestroyForgotten = "destroy.forgotten",

    /// The decision to attach a device is on record.
    AttachDecided = "attach.decided",
    /// The device is on the VM's record.
    AttachRecorded = "attach.recorded",
    /// Its descriptors are open.
    AttachOpened = "attach.opened",
    /// The vmm has them.
    AttachSent = "attach.sent",
    /// The vmm said that the guest was told.
    AttachHeard = "attach.heard",
    /// That is on record.
    AttachSettled = "attach.settled",
    /// The decision to detach a device is on record.
    DetachDecided = "detach.decided",
    /// That the device goes, or went from a VM that is off, is on record.
    DetachRecorded = "detach.recorded",
    /// The vmm was told.
    DetachSent = "detach.sent",
    /// The vmm said that it has let go.
    DetachHeard = "detach.heard",
    /// The record is without it.
    DetachSettled = "detach.settled",

    /// A virtual function's lease is CLAIMED.
    VfClaimed = "vf.claimed",
    /// The card has its settings.
    VfSet = "vf.set",
    /// The function is vfio-pci's.
    VfBound = "vf.bound",
    /// It is reset, and its settings are verified.
    VfReady = "vf.ready",
    /// The lease is PREPARED.
    VfPrepared = "vf.prepared",
    /// The lease is ATTACHED.
    VfAttached = "vf.attached",
    /// The lease is RELEASING.
    VfReleasing = "vf.releasing",
    /// The function is reset.
    VfReset = "vf.reset",
    /// It is vfio-pci's no more.
    VfUnbound = "vf.unbound",
    /// The card has its first settings again.
    VfRestored = "vf.restored",
    /// The lease is FREE.
    VfFree = "vf.free",
    /// A device's function is on its running VM's record.
    FunctionRecorded = "function.recorded",
    /// What a running VM's device had is the host's again, and still on the VM's record.
    FunctionReturned = "function.returned",

    /// A namespace's, or whole controller's, lease is CLAIMED.
    DataClaimed = "data.claimed",
    /// A namespace is attached to its primary controller, to be erased.
    NamespaceTaken = "namespace.taken",
    /// It is erased.
    NamespaceErased = "namespace.erased",
    /// It is attached to nothing.
    NamespaceLeft = "namespace.left",
    /// The lease is PREPARED.
    DataPrepared = "data.prepared",
    /// A secondary controller's lease is CLAIMED.
    SecondaryClaimed = "secondary.claimed",
    /// Its function is vfio-pci's, and reset.
    SecondaryBound = "secondary.bound",
    /// Its namespace is attached.
    SecondaryConnected = "secondary.connected",
    /// The lease is PREPARED.
    SecondaryPrepared = "secondary.prepared",
    /// A whole controller is vfio-pci's, and reset.
    ControllerLent = "controller.lent",
    /// The leases are ATTACHED.
    NvmeAttached = "nvme.attached",
    /// A secondary controller's lease is RELEASING.
    SecondaryReleasing = "secondary.releasing",
    /// Its function is reset, and vfio-pci's no more.
    SecondaryUnbound = "secondary.unbound",
    /// Nothing is attached to it.
    SecondaryEmptied = "secondary.emptied",
    /// The lease is FREE.
    SecondaryFree = "secondary.free",
    /// A namespace's, or whole controller's, lease is RELEASING.
    DataReleasing = "data.releasing",
    /// A whole controller is the host's again, and not erased.
    ControllerReturned = "controller.returned",
    /// The lease is FREE.
    DataFree = "data.free",

    /// That a controller is to have secondaries is on record.
    ProvisionRecorded = "provision.recorded",
    /// It has no virtual functions.
    ProvisionCleared = "provision.cleared",
    /// It has none of the flexible resources, and is reset.
    ProvisionReset = "provision.reset",
    /// It has virtual functions.
    ProvisionEnabled = "provision.enabled",
    /// A secondary controller is online, with what its primary attached to it.
    ProvisionOnline = "provision.online",
    /// All are as they should be, and the intent is still on record.
    ProvisionDone = "provision.done",

    /// A daemon has begun or finished to clean devices that it found half done.
    BootDevices = "boot.devices",
    /// It has removed what belongs to no VM.
    BootSwept = "boot.swept",
    /// It has taken its VMs over, and does not serve yet.
    BootResumed = "boot.resumed",
}

/// Ends the daemon here if it is armed for this point: `OSTLER_CRASH_AT=launch.spawned`.
#[cfg(feature = "crash-points")]
pub fn reach(point: Point) {
    use std::sync::LazyLock;

    static ARMED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("OSTLER_CRASH_AT").ok());
    if ARMED.as_deref() != Some(point.name()) {
        return;
    }
    tracing::warn!("crash point {}", point.name());
    // Nothing of this process runs on: destructors, buffers, other threads.
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    tracing::error!(?killed, "cannot end itself");
}

/// Nothing: this build has no such switch.
#[cfg(not(feature = "crash-points"))]
pub fn reach(_: Point) {}
