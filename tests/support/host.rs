//! A daemon with its directories. Dropping it leaves nothing behind; dropping it in a failed test tells what happened.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use ostler::daemon::crash::Point;

use super::certs::Identity;
use super::client::{Caller, connect};
use super::console::Console;
use super::shell::run;
use super::wait::{BOOT, SOON, until};
use super::{TENANTS, assets};

/// Attempts to find a port that nobody takes between looking and listening.
const PORT_ATTEMPTS: usize = 5;
/// Lines of each log that a failed test prints.
const LOG_LINES: usize = 60;
/// Bytes of a guest's output that it prints.
const LAST_WORDS: usize = 2000;

/// A node.
pub struct Host {
    // Short: sockets live below it, and their paths have at most 107 bytes.
    directory: tempfile::TempDir,
    images: PathBuf,
    /// Where VMs have their cgroups; without one they run without a jail, which only tests without guests do.
    cgroup: Option<PathBuf>,
    daemon: Option<Child>,
    port: u16,
    /// Further options of the next daemon that is started.
    pub options: Vec<String>,
    /// Where the next daemon that is started dies.
    armed: Option<Point>,
    /// Its data directory is a disk of its own.
    is_mounted: bool,
}

impl Host {
    /// A node with certificates and without plugins, whose images do not boot. For what needs no guest.
    pub fn without_policy() -> Self {
        Self::launch(None)
    }

    /// The same with the admission plugin in the operator's chain, without limits.
    pub fn start() -> Self {
        let host = Self::without_policy();
        host.admit_all();
        host
    }

    /// A node with the admission plugin and this `tenants.toml` from the beginning.
    pub fn start_with_tenants(tenants: &str) -> Self {
        let mut host = Self::start();
        host.stop_daemon();
        fs::write(host.data().join("tenants.toml"), tenants).unwrap();
        host.start_daemon();
        host
    }

    /// A node that boots guests: with the lab's images, and volumes for both tenants.
    pub fn with_guests() -> Self {
        Self::prepared(Self::launch(Some(assets::images())))
    }

    /// The same, whose data lies on a disk of so many MiB.
    pub fn with_guests_on(mib: u32) -> Self {
        let directory = new_directory();
        let data = directory.path().join("data");
        fs::create_dir(&data).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", data.to_str().unwrap()]);
        Self::prepared(Self::launch_in(directory, Some(assets::images()), true))
    }

    fn prepared(host: Self) -> Self {
        host.admit_all();
        for tenant in TENANTS {
            host.add_volume(tenant, "hello.img", &fs::read(host.images.join("hello.img")).unwrap());
        }
        host
    }

    fn launch(images: Option<PathBuf>) -> Self {
        Self::launch_in(new_directory(), images, false)
    }

    fn launch_in(directory: tempfile::TempDir, images: Option<PathBuf>, is_mounted: bool) -> Self {
        let cgroup = images.is_some().then(|| Path::new("/sys/fs/cgroup").join(directory.path().file_name().unwrap()));
        let images = images.unwrap_or_else(|| {
            let images = directory.path().join("data/images");
            fs::create_dir_all(&images).unwrap();
            fs::write(images.join(assets::PLACEHOLDER), "not a kernel").unwrap();
            images
        });
        for tenant in TENANTS {
            fs::create_dir_all(directory.path().join("data/volumes").join(tenant)).unwrap();
        }
        let certs = directory.path().join("data/certs");
        let mut init = Command::new(assets::binary());
        init.args(["certs", "init", "--dir"]).arg(&certs);
        for tenant in TENANTS {
            init.args(["--tenant", tenant]);
        }
        let made = init.output().unwrap();
        assert!(made.status.success(), "certs init: {}", String::from_utf8_lossy(&made.stderr));
        let mut host =
            Self { directory, images, cgroup, daemon: None, port: 0, options: Vec::new(), armed: None, is_mounted };
        host.start_daemon();
        host
    }

    fn admit_all(&self) {
        self.operator().load("operator/plugins/admission", &assets::plugin("admission"), &[]).unwrap();
    }

    /// Starts the daemon on a free port and waits until it answers.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        for attempt in 1.. {
            // A client that waits for the daemon to come back looks where it was.
            if attempt > 1 || self.port == 0 {
                self.port = free_port();
            }
            let mut daemon = self.spawn_daemon();
            let prefix = self.certs().join("operator-admin");
            // It cleans devices of the host first, if it finds any that a daemon before it has left.
            let answer = until("the daemon's first answer", BOOT, || {
                if let Some(status) = daemon.try_wait().unwrap() {
                    return Some(Err(status));
                }
                let channel = connect(self.port, &self.certs().join("ca.pem"), Some(Identity::read(&prefix))).ok()?;
                Caller::new(channel, "acme").list("").ok().map(Ok)
            });
            match answer {
                Ok(_) => {
                    self.daemon = Some(daemon);
                    return;
                }
                Err(status) => {
                    let log = self.daemon_log();
                    let is_last = attempt == PORT_ATTEMPTS || !log.to_lowercase().contains("in use");
                    assert!(!is_last, "the daemon ended with {status}:\n{log}");
                }
            }
        }
    }

    fn spawn_daemon(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.directory.path().join("daemon.log")).unwrap();
        let mut command = Command::new(assets::binary());
        match &self.cgroup {
            Some(cgroup) => command.arg("serve").arg("--cgroup").arg(cgroup),
            None => command.args(["serve", "--no-jail"]),
        };
        if let Some(point) = self.armed {
            command.env("OSTLER_CRASH_AT", point.name());
        }
        command
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(self.data())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--images-dir")
            .arg(&self.images)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Starts a daemon on this data that should not begin to serve: whether it still runs after a while, and what it
    /// said.
    pub fn serve_briefly(&self, options: &[&str]) -> (bool, String) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let mut daemon = Command::new(assets::binary())
            .args(["serve", "--no-jail", "--data-dir"])
            .arg(self.data())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = std::time::Instant::now() + SOON;
        let has_ended = until("its end, or enough time", SOON * 2, || {
            let has_ended = daemon.try_wait().unwrap().is_some();
            (has_ended || std::time::Instant::now() > end).then_some(has_ended)
        });
        let _ = daemon.kill();
        let output = daemon.wait_with_output().unwrap();
        (!has_ended, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a daemon that dies at `point`, and waits until it answers.
    pub fn start_daemon_armed(&mut self, point: Point) {
        self.armed = Some(point);
        self.start_daemon();
        self.armed = None;
    }

    /// Starts a daemon that dies at `point` of its own start.
    pub fn boot_daemon_armed(&mut self, point: Point) {
        self.armed = Some(point);
        self.daemon = Some(self.spawn_daemon());
        self.armed = None;
        self.await_crash(point);
    }

    /// Waits for the end of a daemon that was armed for `point`, which must be that.
    pub fn await_crash(&mut self, point: Point) {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        let ended = until(&format!("the crash at {}", point.name()), BOOT, || daemon.try_wait().unwrap());
        assert_eq!(ended.signal(), Some(libc::SIGKILL), "{}: {ended}", point.name());
        let log = self.daemon_log();
        let said = format!("crash point {}", point.name());
        assert!(log.lines().any(|line| line.ends_with(&said)), "not at {}:\n{log}", point.name());
    }

    /// Whether VMs of this host have a jail.
    pub fn is_jailed(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Asks the daemon to end (SIGTERM) and waits for it.
    pub fn stop_daemon(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("no daemon runs");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        until("the daemon's end", SOON, || daemon.try_wait().unwrap())
    }

    pub fn daemon_pid(&mut self) -> Option<u32> {
        let daemon = self.daemon.as_mut()?;
        daemon.try_wait().unwrap().is_none().then(|| daemon.id())
    }

    /// The process that runs plugins for this daemon, if there is one.
    pub fn policy_host_pid(&self) -> Option<u32> {
        let daemon = self.daemon.as_ref()?.id();
        let pids =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let is_it = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default().split(' ');
            let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<u32>().ok()));
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            state != Some("Z") && parent == Some(daemon) && name.starts_with(b"ostler-policy\0")
        };
        pids.into_iter().find(is_it)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub fn certs(&self) -> PathBuf {
        self.data().join("certs")
    }

    /// A client with a tenant's certificate.
    pub fn tenant(&self, name: &str) -> Caller {
        self.caller(&format!("tenant-{name}"), name)
    }

    /// A client with the operator's certificate; its short VM names are acme's.
    pub fn operator(&self) -> Caller {
        self.caller("operator-admin", TENANTS[0])
    }

    fn caller(&self, identity: &str, tenant: &str) -> Caller {
        let identity = Identity::read(&self.certs().join(identity));
        let channel = connect(self.port, &self.certs().join("ca.pem"), Some(identity)).expect("cannot connect");
        Caller::new(channel, tenant)
    }

    /// The command line, as `identity` (`tenant-acme`).
    pub fn command(&self, identity: &str) -> Command {
        let mut command = Command::new(assets::binary());
        command
            .env_clear()
            .env("OSTLER_ENDPOINT", format!("https://127.0.0.1:{}", self.port))
            .env("OSTLER_IDENTITY", self.certs().join(identity))
            .stdin(Stdio::null());
        command
    }

    /// The path of a tenant's disk image on the host.
    pub fn volume(&self, tenant: &str, name: &str) -> PathBuf {
        self.data().join("volumes").join(tenant).join(name)
    }

    pub fn add_volume(&self, tenant: &str, name: &str, bytes: &[u8]) {
        fs::write(self.volume(tenant, name), bytes).unwrap();
    }

    /// A VM's console, from what is kept of its past on.
    pub fn console(&self, caller: &Caller, vm: &str) -> Console {
        Console::attach(caller, vm)
    }

    /// Processes whose output goes into this host's data directory: its vmms.
    pub fn vmm_processes(&self) -> Vec<u32> {
        let data = self.data();
        let own = self.daemon.as_ref().map(Child::id);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| Some(*pid) != own)
            .filter(|pid| fs::read_link(format!("/proc/{pid}/fd/1")).is_ok_and(|log| log.starts_with(&data)))
            .collect()
    }

    /// Sends SIGKILL to all vmms.
    pub fn kill_vmms(&self) {
        let pids = self.vmm_processes().into_iter().filter_map(|pid| i32::try_from(pid).ok());
        for pid in pids.filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Run directories of VMs.
    pub fn run_entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.run_dir().join("vms"));
        entries.map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }

    /// Cgroups of VMs.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let Some(cgroup) = &self.cgroup else { return Vec::new() };
        let entries = fs::read_dir(cgroup.join("vms")).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    /// The last line of the daemon's log that contains `text`.
    pub fn last_logged(&self, text: &str) -> Option<String> {
        let log = fs::read_to_string(self.directory.path().join("daemon.log")).ok()?;
        log.lines().rfind(|line| line.contains(text)).map(str::to_owned)
    }

    /// What the daemon logged last.
    pub fn daemon_log(&self) -> String {
        tail(&self.directory.path().join("daemon.log"))
    }
}

/// Network devices of the host whose names begin as the daemon's taps do.
pub fn taps() -> Vec<String> {
    let devices = fs::read_dir("/sys/class/net").unwrap();
    let names = devices.map(|device| device.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("ost")).collect()
}

fn new_directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ost").tempdir_in("/tmp").unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The end of what a guest has printed, whoever was shown it.
fn last_words(vm: &Path) -> String {
    let file = fs::read(vm.join("console.ring")).unwrap_or_default();
    let output = ostler::wire::console_ring::tail(&file).unwrap_or_default();
    String::from_utf8_lossy(&output[output.len().saturating_sub(LAST_WORDS)..]).into_owned()
}

/// What the threads of a process do: name, state, processor time in ticks, and where they wait in the kernel.
fn threads(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let field = |number: usize| stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(number - 3));
        let [state, user, system] = [3, 14, 15].map(|number| field(number).unwrap_or("?").to_owned());
        format!("{}: {state} {user}+{system} {}", read("comm").trim(), read("wchan"))
    };
    tasks.map(line).collect::<Vec<_>>().join("\n")
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon\n{}", self.daemon_log());
            for vm in fs::read_dir(self.data().join("vms")).into_iter().flatten().flatten() {
                eprintln!("--- {}\n{}", vm.path().display(), tail(&vm.path().join("vmm.log")));
                eprintln!("--- the last that it printed\n{}", last_words(&vm.path()));
            }
            for pid in self.vmm_processes() {
                eprintln!("--- threads of vmm {pid}\n{}", threads(pid));
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // After the daemon: nobody starts another one then.
        self.kill_vmms();
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(self.data()).status();
        }
        if let Some(cgroup) = &self.cgroup {
            // The kernel ends the process that runs plugins with the daemon; a moment later its group is empty.
            let (policy, end) = (cgroup.join("policy"), std::time::Instant::now() + SOON);
            while fs::remove_dir(&policy).is_err() && policy.exists() && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            for group in self.cgroups().into_iter().chain([cgroup.join("vms"), cgroup.clone()]) {
                let _ = fs::remove_dir(group);
            }
        }
    }
}
