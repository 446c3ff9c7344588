//! Who changed what: a line of JSON per call that changes something, or tries to. Key types: [`Audit`], [`Change`].
//!
//! Written when the call is over, whether or not its client still listens. Reading leaves no line; a call that never came
//! to its use case (no certificate, a request that cannot be read) changed nothing and leaves none either.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::daemon::trace::CallId;

/// A file of this length, in bytes, is put aside as `<name>.1`, in the place of the one before.
const MAX_LEN: u64 = 64 << 20;

/// The log. Lines survive the daemon, and a crash of the host up to what its file system had written.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    max_len: u64,
    /// Rank: leaf. Guards the file and its length; held for one write.
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Change {
    caller: String,
    method: &'static str,
    resource: String,
    request: Option<CallId>,
    /// Given by the client.
    pub(super) request_id: Option<String>,
    /// Asked for with validate_only.
    pub(super) is_validation: bool,
    /// It had been done before.
    pub(super) is_repetition: bool,
    started: Instant,
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    caller: &'a str,
    method: &'a str,
    resource: &'a str,
    /// As in the daemon's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// Nothing was to change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    validate_only: bool,
    /// Nothing changed: the answer of the first time was given again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
    /// The gRPC code, as its specification spells it.
    outcome: &'static str,
    /// The stable reason, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    took_us: u64,
}

impl Change {
    /// `caller` asks for `method` on `resource`, now.
    pub(super) fn new(caller: &impl Display, method: &'static str, resource: impl ToString) -> Self {
        Self {
            caller: caller.to_string(),
            method,
            resource: resource.to_string(),
            request: CallId::current(),
            request_id: None,
            is_validation: false,
            is_repetition: false,
            started: Instant::now(),
        }
    }
}

impl Audit {
    /// Opens the log at `path` (0600) to go on with it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), max_len: MAX_LEN, open: Mutex::new(Open::at(path)?) })
    }

    /// Writes down what came of `change`. What cannot be written is in the daemon's own log instead.
    pub(super) fn record(&self, change: &Change, outcome: Result<(), &Status>) {
        let line = line(change, outcome, SystemTime::now(), change.started.elapsed());
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.append(&bytes)
        });
        if let Err(error) = written {
            let Change { caller, method, resource, .. } = change;
            let outcome = line.outcome;
            tracing::error!(%error, caller, method, resource, outcome, "cannot write to {}", self.path.display());
        }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len >= self.max_len {
            std::fs::rename(&self.path, self.path.with_added_extension("1"))?;
            *open = Open::at(&self.path)?;
        }
        // One write for one line: the file is open for appending.
        open.file.write_all(bytes)?;
        open.len += bytes.len() as u64;
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }
}

fn line<'a>(change: &'a Change, outcome: Result<(), &Status>, now: SystemTime, took: Duration) -> Line<'a> {
    let status = outcome.err();
    Line {
        time: OffsetDateTime::from(now).format(&Rfc3339).unwrap_or_default(),
        caller: &change.caller,
        method: change.method,
        resource: &change.resource,
        request: change.request.as_ref().map(ToString::to_string),
        request_id: change.request_id.as_deref(),
        validate_only: change.is_validation,
        repeated: change.is_repetition,
        outcome: spelled(status.map_or(Code::Ok, Status::code)),
        reason: status.and_then(Status::get_details_error_info).map(|info| info.reason),
        took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
    }
}

/// A code as the gRPC specification spells it.
fn spelled(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn change(resource: &str) -> Change {
        Change::new(&"operator/admin", "StopVirtualMachine", resource)
    }

    #[test]
    fn goes_on_with_the_log_and_keeps_it_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for outcome in [Ok(()), Err(&Status::not_found("x"))] {
            let audit = Audit::open(&path).unwrap();
            audit.record(&change("a\"\n"), outcome);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!((&lines[0]["outcome"], &lines[1]["outcome"]), (&"OK".into(), &"NOT_FOUND".into()));
        assert_eq!((&lines[0]["caller"], &lines[0]["resource"]), (&"operator/admin".into(), &"a\"\n".into()));
        assert!(lines[0].get("reason").is_none() && lines[0]["took_us"].is_u64());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_long_log_is_put_aside_and_no_line_is_lost_before_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut audit = Audit::open(&path).unwrap();
        audit.max_len = 200;
        let count = |name: &str| {
            std::fs::read_to_string(dir.path().join(name))
                .map_or(0, |text| text.lines().filter(|l| !l.is_empty()).count())
        };
        for at in 1..=3 {
            audit.record(&change("tenants/acme/vms/web"), Ok(()));
            assert_eq!(count("audit.log") + count("audit.log.1"), at);
        }
        assert!(count("audit.log.1") > 0);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
