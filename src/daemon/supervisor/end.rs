//! How a run ended, when its vmm did not say so itself. Key functions: [`inferred`], [`read_record`].
//!
//! The order of belief: the exit record, why a jail could not be built, the vmm's last message (or what we did to it), then
//! what else is said here.

use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::VmPaths;
use crate::model::{InstanceId, JAIL_FAILED, VmExit};
use crate::sys::kernel_log;
use crate::sys::process::{End, Identity};
use crate::wire::decode_ended;

/// What a kill by the kernel for want of memory reads as.
const OUT_OF_MEMORY: &str = "killed for want of memory: guest and vmm together came to the limit of their cgroup \
                             (memory.max), or the host had none left";
/// Longest exit record that is read, in bytes: a cause is a sentence.
const MAX_RECORD_LEN: u64 = 4096;
/// Bytes at the end of a log that are looked at for its last line.
const LOG_TAIL_LEN: i64 = 1024;

/// What the vmm wrote about the end of `instance`, if it came to it.
pub(super) async fn read_record(paths: &VmPaths, instance: InstanceId) -> Option<VmExit> {
    let file = tokio::fs::File::open(paths.exit_record(instance)).await.ok()?;
    let mut record = Vec::new();
    file.take(MAX_RECORD_LEN).read_to_end(&mut record).await.ok()?;
    decode_ended(&record).ok()
}

/// The end of a process that the kernel killed for want of memory.
pub(super) fn out_of_memory() -> VmExit {
    VmExit::Vanished(OUT_OF_MEMORY.to_owned())
}

/// Whether the jail could not be built, and its process has said why in the log.
pub(super) fn is_of_the_jail(end: End) -> bool {
    matches!(end, End::Exited(status) if status == i32::from(JAIL_FAILED))
}

/// What the end of the process itself tells; `was_out_of_memory`: what its cgroup says of that.
pub(super) async fn inferred(end: End, process: Identity, paths: &VmPaths, was_out_of_memory: bool) -> VmExit {
    VmExit::Vanished(match end {
        End::Signal(libc::SIGKILL) | End::Unknown if was_out_of_memory => return out_of_memory(),
        end if is_of_the_jail(end) => {
            let said = last_line(paths).await.unwrap_or_else(|| "see its log".to_owned());
            return VmExit::LaunchFailed(said);
        }
        End::Signal(libc::SIGSYS) => {
            let call = tokio::task::spawn_blocking(move || kernel_log::forbidden_call(process.pid)).await;
            match call.ok().flatten() {
                Some(number) => format!("its seccomp filter killed it (system call {number})"),
                None => "its seccomp filter killed it (the kernel's log may tell the system call)".to_owned(),
            }
        }
        End::Signal(signal) => format!("killed by signal {signal}"),
        End::Exited(code) => format!("ended with status {code} and without a record; see its log"),
        End::Unknown => "process ended without a record".to_owned(),
    })
}

/// The last line of the run's log.
async fn last_line(paths: &VmPaths) -> Option<String> {
    let mut file = tokio::fs::File::open(paths.log()).await.ok()?;
    let len = i64::try_from(file.metadata().await.ok()?.len()).ok()?;
    file.seek(std::io::SeekFrom::End(-len.min(LOG_TAIL_LEN))).await.ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).await.ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}
