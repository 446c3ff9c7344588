//! What the kernel's log says of a process (kmsg(4), linux/Documentation/ABI/testing/dev-kmsg). Called by
//! `daemon/supervisor`.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// Longest record of the log, in bytes, and the most records that are looked at.
const RECORD_LEN: usize = 8192;
const MAX_RECORDS: usize = 100_000;

/// The system call for which its filter killed the process `pid`, if the log still has it (audit message 1326,
/// `AUDIT_SECCOMP` of linux/audit.h). Blocks shortly.
pub fn forbidden_call(pid: u32) -> Option<u32> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let mut record = vec![0; RECORD_LEN];
    let mut found = None;
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(record.get(..len).unwrap_or_default());
                found = parse(&text, pid).or(found);
            }
            // Records were overwritten meanwhile: the next read goes on with what is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            // The end of the log, or no right to read it.
            Err(_) => break,
        }
    }
    found
}

/// `… audit: type=1326 audit(…): … pid=42 comm="vcpu0" … sig=31 … syscall=257 …`
fn parse(record: &str, pid: u32) -> Option<u32> {
    let is_violation = record.contains("type=1326");
    let value = |key: &str| record.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<u32>().ok());
    (is_violation && value("pid=") == Some(pid) && value("sig=") == Some(31)).then(|| value("syscall="))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_call_of_that_process_only() {
        let record = "5,813,4242,-;audit: type=1326 audit(1.2:3): auid=0 uid=1325400064 gid=1325400064 ses=4294967295 \
                      pid=42 comm=\"vcpu0\" exe=\"/ostler\" sig=31 arch=c000003e syscall=257 compat=0 ip=0x1 code=0x80000000";
        assert_eq!(parse(record, 42), Some(257));
        assert_eq!(parse(record, 43), None);
        assert_eq!(parse(&record.replace("sig=31", "sig=0"), 42), None);
        assert_eq!(parse(&record.replace("1326", "1400"), 42), None);
    }
}
