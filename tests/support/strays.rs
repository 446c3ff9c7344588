//! What nobody has on a host, planted. Key type: [`Stray`]; key function: [`found`].

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use ostler::api::v1;
use ostler::api::v1::host_finding::{Kind, State};
use ostler::model::VmId;

use super::Host;

/// Of a VM that does not exist.
pub struct Stray {
    pub uid: String,
    /// Where its files are.
    pub dirs: [PathBuf; 2],
    process: Child,
}

impl Stray {
    /// A process that carries the VM's name and writes into its log, and both of its directories.
    pub fn plant(host: &Host) -> Self {
        let uid = VmId::new().to_string();
        let dirs = [host.run_dir(), host.data()].map(|dir| dir.join("vms").join(&uid));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        fs::write(dirs[0].join("control.sock"), "").unwrap();
        let process = sleeper(&format!("ostler-vm-{uid}"), &dirs[1].join("vmm.log"));
        Self { uid, dirs, process }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kind and object of each of its traces, as the daemon names them.
    pub fn expected(&self) -> Vec<(Kind, String)> {
        vec![
            (Kind::ProcessOrphaned, format!("process {}", self.pid())),
            (Kind::RunDirectoryOrphaned, format!("run directory {}", self.uid)),
            (Kind::StateDirectoryOrphaned, format!("state directory {}", self.uid)),
        ]
    }

    /// Whether its process still runs.
    pub fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Whether anything of it is there.
    pub fn is_there(&mut self) -> bool {
        self.lives() || self.dirs.iter().any(|dir| dir.exists())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A process of this name that writes into this file, and waits for words that never come. A shell, since it may have
/// any name.
pub fn sleeper(name: &str, output: &Path) -> Child {
    let output = File::create(output).unwrap();
    Command::new("bash").arg0(name).args(["-c", "read"]).stdin(Stdio::piped()).stdout(output).spawn().unwrap()
}

/// A file that nobody has written to for a while.
pub fn old_file(path: &Path) {
    File::create(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

/// Kind, object and state of findings, in the daemon's order.
pub fn found(findings: &[v1::HostFinding]) -> Vec<(Kind, String, State)> {
    findings.iter().map(|finding| (finding.kind(), finding.object.clone(), finding.state())).collect()
}

/// The same as it is expected: all of one state.
pub fn all(expected: &[(Kind, String)], state: State) -> Vec<(Kind, String, State)> {
    let mut expected: Vec<_> = expected.iter().map(|(kind, object)| (*kind, object.clone(), state)).collect();
    expected.sort_by(|a, b| (a.0 as i32, &a.1).cmp(&(b.0 as i32, &b.1)));
    expected
}
