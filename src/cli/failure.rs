//! Why a command failed, in words that say what to do. Key types: [`Failure`], [`Exit`].
//!
//! Everything that can go wrong in the client ends here: gRPC statuses with their `ErrorInfo`, transport and TLS
//! faults, files that are missing. `cli::run` prints it.

use std::error::Error;
use std::fmt;
use std::io;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::print::clean;

/// The process's exit code. What each means stands in [`Exit::ALL`] only; `ostler --help` and the manual show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Refused or failed.
    Refused = 1,
    /// The command line or the request is invalid.
    Usage = 2,
    /// The daemon is unreachable or refused the certificate.
    Unreachable = 3,
    /// Not found, or another tenant's.
    NotFound = 4,
    /// Denied by policy.
    Denied = 5,
    /// The VM's state forbids it.
    WrongState = 6,
    /// What was waited for did not happen in time.
    TimedOut = 7,
    /// What was waited for cannot happen any more.
    OutOfReach = 8,
    /// A fault ended the guest of `vm run`.
    GuestFailed = 9,
    /// Something is wrong with the node.
    Findings = 10,
    /// 128 and the signal's number, as shells have it: SIGHUP.
    HungUp = 129,
    /// SIGINT.
    Interrupted = 130,
    /// SIGTERM.
    Terminated = 143,
}

impl Exit {
    /// Every code with what it means, for people.
    pub(crate) const ALL: [(&str, &str); 12] = [
        ("0", "done"),
        ("1", "refused or failed"),
        ("2", "the command line or the request is invalid"),
        ("3", "the daemon is unreachable, or it refused the certificate"),
        ("4", "not found, or another tenant's"),
        ("5", "denied by policy"),
        ("6", "the VM's state forbids it"),
        ("7", "what was waited for did not happen in time"),
        ("8", "what was waited for cannot happen any more"),
        ("9", "a fault ended the guest (`vm run`)"),
        ("10", "something is wrong with the node, and was not repaired (`doctor`)"),
        ("128+n", "signal n ended it, and nothing was left behind (`vm run`)"),
    ];
}

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// One line: what is wrong.
    pub(crate) message: String,
    /// Facts beside it, by key.
    pub(crate) facts: Vec<(String, String)>,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), facts: Vec::new(), hint: None }
    }

    /// The same with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A fault of the local host: a file that cannot be read, a terminal that is gone.
    pub(crate) fn local(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Exit::Refused, format!("{what}: {error}"))
    }

    /// The same, saying what was not found: the daemon does not repeat names that may be another tenant's.
    pub(crate) fn about(mut self, name: &str) -> Self {
        if self.exit == Exit::NotFound {
            self.message = format!("{name}: {}", self.message);
        }
        self
    }

    /// The same with `hint` unless it has a better one already, if it failed for `exit`.
    pub(crate) fn hint_for(self, exit: Exit, hint: impl FnOnce() -> String) -> Self {
        if self.exit == exit && self.hint.is_none() { self.hint(hint()) } else { self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", clean(&self.message))?;
        for (key, value) in &self.facts {
            write!(f, "\n  {}: {}", clean(key), clean(value))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", clean(hint)),
            None => Ok(()),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status that the client's own transport made, not the daemon.
        if let Some(source) = status.source() {
            return transport(source);
        }
        let info = status.get_details_error_info();
        let reason = info.as_ref().map(|info| info.reason.as_str()).unwrap_or_default();
        let mut failure = Self::new(exit_of(status.code(), reason), status.message());
        if failure.message.is_empty() {
            failure.message = status.code().description().to_owned();
        }
        failure.hint = default_hint(status.code(), reason).map(str::to_owned);
        if failure.hint.is_none() && !is_told_better(reason) {
            failure.hint = status.get_details_help().and_then(|help| Some(help.links.first()?.description.clone()));
        }
        if let Some(info) = info {
            let mut metadata = info.metadata;
            if let Some(hint) = metadata.remove("hint") {
                failure.hint = Some(hint);
            } else if metadata.get("code").is_some_and(|code| code == "policy.no-opinion") {
                failure.hint = Some("load an admission plugin: ostler plugin load FILE --operator".to_owned());
            }
            failure.facts.push(("reason".to_owned(), info.reason));
            // Sentences that the message repeats are for programs; people read them once.
            metadata.retain(|_, value| !(value.contains(' ') && failure.message.contains(value.as_str())));
            let mut rest: Vec<_> = metadata.into_iter().collect();
            rest.sort();
            failure.facts.append(&mut rest);
        }
        failure
    }
}

fn exit_of(code: Code, reason: &str) -> Exit {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::PermissionDenied if reason.starts_with("POLICY_") => Exit::Denied,
        Code::FailedPrecondition if matches!(reason, "START_FAILED" | "SIGNATURE_MISSING" | "SIGNER_UNKNOWN") => {
            Exit::Refused
        }
        Code::FailedPrecondition => Exit::WrongState,
        Code::Unavailable | Code::Unauthenticated => Exit::Unreachable,
        Code::DeadlineExceeded => Exit::TimedOut,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Refused,
    }
}

/// Whether the commands have better hints for it than the daemon, which does not know them.
fn is_told_better(reason: &str) -> bool {
    matches!(
        reason,
        "WRONG_STATE"
            | "START_FAILED"
            | "VMM_FAILED"
            | "NO_PROCESS"
            | "POLICY_DENIED"
            | "WATCH_LAGGED"
            | "WATCH_COMPACTED"
    ) || reason.starts_with("DEVICE_")
}

fn default_hint(code: Code, reason: &str) -> Option<&'static str> {
    match code {
        Code::NotFound if reason == "NO_SUCH_DEVICE" => None,
        Code::NotFound if reason == "DEVICE_NOT_FOUND" => Some("ostler host devices shows those that the node has"),
        Code::NotFound if reason == "TENANT_NOT_FOUND" => Some("ostler tenant list shows what you may see"),
        Code::NotFound if reason == "OPERATION_NOT_FOUND" => Some("ostler operation list shows what you may see"),
        Code::NotFound if reason == "ALIAS_NOT_FOUND" => None,
        Code::NotFound if matches!(reason, "PLUGIN_NOT_FOUND" | "VERSION_NOT_FOUND") => {
            Some("ostler plugin list shows what you may see")
        }
        Code::NotFound => Some("ostler vm list shows what you may see"),
        Code::Unauthenticated => Some("name another identity with --identity, or make one with ostler certs init"),
        Code::PermissionDenied if !reason.starts_with("POLICY_") => Some("this needs another --identity"),
        Code::Unavailable if matches!(reason, "" | "SHUTTING_DOWN") => Some("is the daemon shutting down? try again"),
        Code::Unimplemented => Some("the daemon is of another version than this client"),
        _ => None,
    }
}

/// A fault below gRPC: name resolution, TCP, TLS.
pub(crate) fn transport(error: &(dyn Error + 'static)) -> Failure {
    let chain: Vec<&(dyn Error + 'static)> = std::iter::successors(Some(error), |&error| error.source()).collect();
    if let Some(tls) = chain.iter().find_map(|error| tls_error(*error)) {
        return tls_failure(tls);
    }
    let io = chain.iter().rev().find_map(|error| error.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            Failure::new(Exit::Unreachable, "nothing listens at the daemon's address")
                .hint("start it with ostler serve, or name another address with --endpoint")
        }
        Some(io::ErrorKind::TimedOut) => {
            Failure::new(Exit::Unreachable, "the daemon does not answer").hint("is --endpoint right?")
        }
        Some(
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotConnected,
        ) => Failure::new(Exit::Unreachable, "the daemon closed the connection")
            .hint("the daemon may be shutting down, or it refuses this --identity; its log says which"),
        // hyper's own words for it, once a connection stood.
        _ if chain.iter().any(|error| error.to_string() == "connection closed") => {
            Failure::new(Exit::Unreachable, "the daemon closed the connection").hint("is it shutting down? try again")
        }
        _ => {
            let deepest = chain.last().map_or_else(|| error.to_string(), ToString::to_string);
            Failure::new(Exit::Unreachable, format!("cannot talk to the daemon: {deepest}"))
        }
    }
}

/// The TLS error in `error`, also inside an `io::Error` (whose `source()` skips what it wraps).
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref().or_else(|| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

fn tls_failure(error: &rustls::Error) -> Failure {
    use rustls::{AlertDescription as Alert, CertificateError as Bad};
    let failure = |message: &str| Failure::new(Exit::Unreachable, message);
    match error {
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            failure("the daemon refuses this identity: its certificate has expired")
                .hint("remove the identity's .pem and .key and run ostler certs init again")
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            failure("the daemon wants a client certificate").hint("name one with --identity")
        }
        rustls::Error::AlertReceived(alert) => failure(&format!("the daemon refuses this identity ({alert:?})"))
            .hint("is its certificate signed by the CA that the daemon trusts? see --identity"),
        // Two CAs of one name differ in their keys only: the issuer is found, its signature does not fit.
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            failure("the daemon's certificate is not signed by this CA").hint("name the daemon's CA with --ca")
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            failure("the daemon's certificate is for another host name").hint(
                "use a name of the certificate in --endpoint, or remove server.pem and server.key, \
                 run ostler certs init --server-name NAME and restart the daemon",
            )
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            failure("the daemon's certificate has expired")
                .hint("remove server.pem and server.key, run ostler certs init again and restart the daemon")
        }
        other => failure(&format!("the TLS handshake failed: {other}")).hint("is --endpoint an ostler daemon?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn the_manual_has_every_exit_code() {
        let manual = include_str!("../../docs/cli.md");
        let rows: Vec<_> = manual.lines().skip_while(|line| !line.starts_with("| exit code |")).skip(2).collect();
        let rows: Vec<_> = rows.into_iter().take_while(|line| line.starts_with('|')).collect();
        assert_eq!(rows, Exit::ALL.map(|(code, meaning)| format!("| {code} | {meaning} |")));
    }

    fn denied(code: &str) -> Status {
        let metadata =
            [("code", code), ("plugin", "admission"), ("digest", "sha256:00"), ("message", "8 vCPUs, at most 4")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let details = ErrorDetails::with_error_info(
            "POLICY_DENIED",
            "ostler",
            metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        Status::with_error_details(Code::PermissionDenied, "policy denies acme/web: 8 vCPUs, at most 4", details)
    }

    #[test]
    fn shows_a_denial_with_its_plugin_and_reason() {
        let failure = Failure::from(denied("limit.vcpus"));
        assert_eq!(failure.exit, Exit::Denied);
        assert_eq!(
            failure.to_string(),
            "error: policy denies acme/web: 8 vCPUs, at most 4\n  reason: POLICY_DENIED\n  code: limit.vcpus\n  \
             digest: sha256:00\n  plugin: admission"
        );
    }

    #[test]
    fn tells_how_to_load_a_plugin_when_nobody_had_an_opinion() {
        assert!(Failure::from(denied("policy.no-opinion")).to_string().contains("hint: load an admission plugin"));
    }

    #[test]
    fn gives_each_kind_of_refusal_its_exit_code() {
        for (code, exit) in [
            (Code::NotFound, Exit::NotFound),
            (Code::InvalidArgument, Exit::Usage),
            (Code::FailedPrecondition, Exit::WrongState),
            (Code::PermissionDenied, Exit::Refused),
            (Code::AlreadyExists, Exit::Refused),
            (Code::Unavailable, Exit::Unreachable),
            (Code::DeadlineExceeded, Exit::TimedOut),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")).exit, exit, "{code:?}");
        }
    }

    #[test]
    fn a_start_that_failed_is_not_a_wrong_state() {
        let status = |reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "ostler", std::collections::HashMap::new());
            Status::with_error_details(Code::FailedPrecondition, "x", details)
        };
        for reason in ["START_FAILED", "SIGNATURE_MISSING", "SIGNER_UNKNOWN"] {
            assert_eq!(Failure::from(status(reason)).exit, Exit::Refused, "{reason}");
        }
        assert_eq!(Failure::from(status("WRONG_STATE")).exit, Exit::WrongState);
    }

    #[test]
    fn says_what_was_not_found_and_leaves_other_failures_alone() {
        let failure = |code| Failure::from(Status::new(code, "no such VM")).about("acme/web").message;
        assert_eq!(failure(Code::NotFound), "acme/web: no such VM");
        assert_eq!(failure(Code::Internal), "no such VM");
    }

    #[test]
    fn recognises_tls_and_tcp_faults_inside_other_errors() {
        let tls = |error: rustls::Error| transport(&io::Error::new(io::ErrorKind::InvalidData, error)).to_string();
        let expired = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        assert!(tls(expired).contains("has expired"));
        assert!(tls(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)).contains("UnknownCA"));
        for reason in [rustls::CertificateError::UnknownIssuer, rustls::CertificateError::BadSignature] {
            assert!(tls(rustls::Error::InvalidCertificate(reason)).contains("--ca"));
        }
        let refused = transport(&io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(refused.exit, Exit::Unreachable);
        assert!(refused.to_string().contains("ostler serve"));
    }

    #[test]
    fn keeps_control_characters_off_the_terminal() {
        let failure = Failure::from(Status::internal("a\u{1b}[2Jb"));
        assert!(!failure.to_string().contains('\u{1b}'));
    }
}
