//! Errors to gRPC statuses: the only place that knows both. Key function: [`of`].
//!
//! Each carries `google.rpc.ErrorInfo` of domain `ostler` with a stable reason; what varies stands in the metadata too.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::listener::Refusal;
use crate::api::{decision_name, reasons};
use crate::daemon::service::{
    AddError, AliasRefused, BackingError, CallError, CanaryError, Compacted, DeviceError, Exceeded, Failure,
    HotplugError, Limits, OperationEnd, ServiceError, SignatureRefused, Unsigned,
};
use crate::model::{Bdf, Decision, DeviceId, FailureCause, Outcome, SpecError, TenantId, VmExit, VmName, denier};

const DOMAIN: &str = "ostler";

fn canary(error: &CanaryError) -> &'static str {
    match error {
        CanaryError::Active => "CANARY_ACTIVE",
        CanaryError::None => "NO_CANARY",
        CanaryError::NothingBound | CanaryError::OtherHooks { .. } => "CANARY_UNFIT",
    }
}

fn alias(error: &AliasRefused, text: String) -> Status {
    match error {
        AliasRefused::Unknown { alias } => {
            status(Code::NotFound, text, "ALIAS_NOT_FOUND", [("alias", alias.to_string())])
        }
        AliasRefused::TooMany { limit } => {
            status(Code::ResourceExhausted, text, "TOO_MANY_ALIASES", [("limit", limit.to_string())])
        }
        AliasRefused::Followed { alias } => {
            status(Code::FailedPrecondition, text, "ALIAS_FOLLOWED", [("alias", alias.to_string())])
        }
    }
}

fn signature(error: &SignatureRefused, text: String) -> Status {
    let (code, reason) = match error {
        SignatureRefused::Malformed(_) => (Code::InvalidArgument, "SIGNATURE_MALFORMED"),
        SignatureRefused::Mismatch { .. } => (Code::InvalidArgument, "SIGNATURE_MISMATCH"),
        SignatureRefused::Unsigned(Unsigned::Missing { .. }) => (Code::FailedPrecondition, "SIGNATURE_MISSING"),
        SignatureRefused::Unsigned(Unsigned::UnknownSigner { .. }) => (Code::FailedPrecondition, "SIGNER_UNKNOWN"),
    };
    status(code, text, reason, [("code", error.code().to_owned())])
}

/// The status of a failed call.
pub(super) fn of(error: &ServiceError) -> Status {
    let text = text(error);
    match error {
        ServiceError::BadField(error) => bad_field(error),
        ServiceError::NoSuchVm => no_such_vm(),
        ServiceError::Call(error) => call(error, text),
        ServiceError::NoSuchDecision => status(Code::NotFound, text, "DECISION_NOT_FOUND", []),
        ServiceError::NoSuchOperation => status(Code::NotFound, text, "OPERATION_NOT_FOUND", []),
        ServiceError::CalledOff(_) => called_off(text),
        ServiceError::NotCancellable(_) => status(Code::FailedPrecondition, text, "OPERATION_NOT_CANCELLABLE", []),
        ServiceError::NoSuchPlugin => status(Code::NotFound, text, "PLUGIN_NOT_FOUND", []),
        ServiceError::NothingBound => status(Code::NotFound, text, "PLUGIN_NOT_FOUND", []),
        ServiceError::NoSuchVersion => status(Code::NotFound, text, "VERSION_NOT_FOUND", []),
        ServiceError::VersionLost { .. } => status(Code::FailedPrecondition, text, "VERSION_LOST", []),
        ServiceError::TooManyPlugins { limit } => {
            status(Code::ResourceExhausted, text, "TOO_MANY_PLUGINS", [("limit", limit.to_string())])
        }
        ServiceError::LastOfHook { hook } => {
            status(Code::FailedPrecondition, text, "LAST_OF_HOOK", [("hook", (*hook).to_owned())])
        }
        ServiceError::PluginEnforced => status(Code::FailedPrecondition, text, "PLUGIN_ENFORCED", []),
        ServiceError::Signature(error) => signature(error, text),
        ServiceError::Alias(error) => alias(error, text),
        ServiceError::Canary(error) => status(Code::FailedPrecondition, text, canary(error), []),
        ServiceError::PolicyBusy { .. } => status(Code::Unavailable, text, "POLICY_BUSY", []),
        ServiceError::ReplayUnderWay => status(Code::ResourceExhausted, text, "REPLAY_UNDER_WAY", []),
        ServiceError::AlreadyRegistered { tenant, name } => {
            status(Code::AlreadyExists, text, "VM_EXISTS", [("name", format!("tenants/{tenant}/vms/{name}"))])
        }
        ServiceError::Denied { tenant, name, decision } => denied(tenant, name, decision),
        ServiceError::NoSuchTenant => status(Code::NotFound, text, "TENANT_NOT_FOUND", []),
        ServiceError::RoleDenied => status(Code::PermissionDenied, text, "ROLE_DENIED", []),
        ServiceError::Quota { tenant, exceeded } => quota(tenant, exceeded, text),
        ServiceError::NotAllowed { needs } => {
            status(Code::PermissionDenied, text, "NOT_ALLOWED", [("needs", (*needs).to_owned())])
        }
        ServiceError::Changed { .. } => changed(&text),
        ServiceError::RequestReused => status(Code::InvalidArgument, text, "REQUEST_ID_REUSED", []),
        ServiceError::Device(error) => device(error, text),
        ServiceError::Addresses(_) => status(Code::ResourceExhausted, text, "ADDRESSES_EXHAUSTED", []),
        ServiceError::Users(_) => status(Code::ResourceExhausted, text, "USERS_EXHAUSTED", []),
        ServiceError::Store(_) => status(Code::Internal, text, "STORE_FAILED", []),
        ServiceError::Plugin { source, .. } => {
            let metadata = [("cause", source.to_string()), ("code", source.code().to_owned())];
            let (code, reason) = if source.is_passing() {
                (Code::Unavailable, "POLICY_UNAVAILABLE")
            } else {
                (Code::InvalidArgument, "PLUGIN_REFUSED")
            };
            status(code, text, reason, metadata)
        }
        ServiceError::Host { .. } => status(Code::Internal, text, "HOST_FAILED", []),
        ServiceError::Compacted(Compacted { wanted, oldest }) => {
            let metadata = [("revision", wanted.to_string()), ("oldest", oldest.to_string())];
            status(Code::OutOfRange, format!("{text}; watch anew, without a token"), "WATCH_COMPACTED", metadata)
        }
        ServiceError::Lagged => status(Code::Aborted, text, "WATCH_LAGGED", []),
        ServiceError::Ending => status(Code::Unavailable, text, "SHUTTING_DOWN", []),
    }
}

/// What a VM's task, or its process, said.
fn call(error: &CallError, text: String) -> Status {
    match error {
        CallError::Gone => no_such_vm(),
        CallError::Changed => changed(&text),
        CallError::Refused(refused) => {
            let metadata = [("state", refused.state.to_owned()), ("verb", refused.verb.to_owned())];
            status(Code::FailedPrecondition, text, "WRONG_STATE", metadata)
        }
        CallError::StartFailed(FailureCause(exit)) => {
            let (code, reason) = match exit {
                VmExit::HostError(_) | VmExit::Vanished(_) => (Code::Internal, "VMM_FAILED"),
                VmExit::LaunchFailed(_)
                | VmExit::PowerOff
                | VmExit::Reset
                | VmExit::TripleFault
                | VmExit::Panicked
                | VmExit::Killed => (Code::FailedPrecondition, "START_FAILED"),
            };
            status(code, text, reason, [("cause", exit.to_string())])
        }
        CallError::CalledOff(_) => called_off(text),
        CallError::Interrupted { state } => {
            status(Code::Aborted, text, "INTERRUPTED", [("state", (*state).to_owned())])
        }
        CallError::ChangeFailed(cause) => {
            status(Code::FailedPrecondition, text, "CHANGE_FAILED", [("cause", cause.clone())])
        }
        CallError::NotPaused { cause } => status(Code::Unavailable, text, "NOT_PAUSED", [("cause", cause.clone())]),
        CallError::Deaf => status(Code::Unavailable, text, "VMM_DEAF", []),
        CallError::Device(error) => hotplug(error, text),
        CallError::NotRecorded(_) => status(Code::Internal, text, "STORE_FAILED", []),
    }
}

/// A device of a VM that cannot come or go.
fn hotplug(error: &HotplugError, text: String) -> Status {
    let with = |id: &DeviceId| vec![("device", id.to_string())];
    match error {
        HotplugError::Add(AddError::IdTaken(id)) => status(Code::AlreadyExists, text, "DEVICE_EXISTS", with(id)),
        HotplugError::Add(AddError::NoSlot(_)) => status(Code::ResourceExhausted, text, "NO_SLOT", []),
        HotplugError::Add(AddError::Spec(error)) | HotplugError::Backing(BackingError::File(error)) => bad_field(error),
        HotplugError::Backing(BackingError::DiskInUse { disk, volume }) => {
            let metadata = with(disk).into_iter().chain([("volume", volume.clone())]);
            status(Code::FailedPrecondition, text, "DISK_IN_USE", metadata)
        }
        HotplugError::Backing(BackingError::Tap { .. } | BackingError::Vhost { .. } | BackingError::Host { .. }) => {
            status(Code::Internal, text, "HOST_FAILED", [])
        }
        HotplugError::AttachFailed { id, cause, is_exhausted } => {
            let metadata = with(id).into_iter().chain([("cause", cause.clone())]);
            match is_exhausted {
                true => status(Code::ResourceExhausted, text, "DEVICES_EXHAUSTED", metadata),
                false => status(Code::FailedPrecondition, text, "ATTACH_FAILED", metadata),
            }
        }
        HotplugError::NotLent { id, cause } => {
            let metadata = with(id).into_iter().chain([("cause", cause.clone())]);
            status(Code::FailedPrecondition, text, "DEVICE_NOT_LENT", metadata)
        }
        HotplugError::NoSuchDevice(id) => status(Code::NotFound, text, "NO_SUCH_DEVICE", with(id)),
        HotplugError::Fixed(id) => status(Code::FailedPrecondition, text, "DEVICE_FIXED", with(id)),
        HotplugError::Busy(id) => status(Code::FailedPrecondition, text, "DEVICE_BUSY", with(id)),
        HotplugError::NotLetGo { id, waited } => {
            let metadata = with(id).into_iter().chain([("waited_ms", waited.as_millis().to_string())]);
            status(Code::DeadlineExceeded, text, "GUEST_UNPLUG_REFUSED", metadata)
        }
        HotplugError::Unreachable => status(Code::Internal, text, "VMM_FAILED", []),
        HotplugError::Journal(_) => status(Code::Internal, text, "STORE_FAILED", []),
    }
}

/// Word for word the same whether the VM is missing or another tenant's.
fn no_such_vm() -> Status {
    status(Code::NotFound, ServiceError::NoSuchVm.to_string(), "VM_NOT_FOUND", [])
}

fn called_off(text: String) -> Status {
    status(Code::Cancelled, text, "OPERATION_CANCELLED", [])
}

/// What became of an operation whose daemon ended is not known; it may have been done.
pub(super) fn interrupted() -> Status {
    let text = "the daemon ended while this was under way: repeat the request under its request_id, which finds out what \
                has happened and does the rest";
    status(Code::Unknown, text.to_owned(), "OPERATION_INTERRUPTED", [])
}

/// What came of a call, for those who look at its operation.
pub(super) fn end(status: Option<&Status>) -> OperationEnd {
    let Some(status) = status else { return OperationEnd::Succeeded };
    let failure = failure(status);
    if status.code() == Code::Cancelled { OperationEnd::Cancelled(failure) } else { OperationEnd::Failed(failure) }
}

/// An error, for those who did not make the call.
pub(super) fn failure(status: &Status) -> Failure {
    Failure {
        code: status.code().into(),
        message: status.message().to_owned(),
        reason: status.get_details_error_info().map(|info| info.reason).unwrap_or_default(),
    }
}

fn changed(text: &str) -> Status {
    status(Code::Aborted, format!("{text}: get it again, and decide anew"), "ETAG_MISMATCH", [])
}

fn device(error: &DeviceError, text: String) -> Status {
    let metadata = |address: &Bdf| vec![("address", address.to_string())];
    match error {
        DeviceError::NoSuchDevice(address) => status(Code::NotFound, text, "DEVICE_NOT_FOUND", metadata(address)),
        DeviceError::NotHeld(address) => status(Code::FailedPrecondition, text, "DEVICE_NOT_HELD", metadata(address)),
        DeviceError::InUse { address, vm, .. } => {
            let metadata = metadata(address).into_iter().chain([("vm", vm.clone())]);
            status(Code::FailedPrecondition, text, "DEVICE_IN_USE", metadata)
        }
        DeviceError::Unclean { address, reason } => {
            let metadata = metadata(address).into_iter().chain([("cause", reason.clone())]);
            status(Code::Internal, text, "DEVICE_UNCLEAN", metadata)
        }
        DeviceError::Kept { address, vm, .. } => {
            let metadata = metadata(address).into_iter().chain([("vm", vm.clone())]);
            status(Code::FailedPrecondition, text, "DEVICE_IN_USE", metadata)
        }
        DeviceError::InUseByHost { address, by } => {
            let metadata = metadata(address).into_iter().chain([("by", by.clone())]);
            status(Code::FailedPrecondition, text, "DEVICE_IN_USE", metadata)
        }
        DeviceError::CalledOff(_) => called_off(text),
        DeviceError::NotPrimary(address) => {
            status(Code::FailedPrecondition, text, "NVME_NOT_PRIMARY", metadata(address))
        }
        DeviceError::TooManyVfs { .. } => bad_field(&SpecError::new("vfs", text)),
        DeviceError::Nvme { address, reason } => {
            let metadata = metadata(address).into_iter().chain([("cause", reason.clone())]);
            status(Code::Internal, text, "NVME_FAILED", metadata)
        }
        DeviceError::Unreadable(_) => status(Code::Internal, text, "HOST_FAILED", []),
    }
}

/// The status of a request that could not be read.
pub(super) fn bad_field(error: &SpecError) -> Status {
    let mut details = details("BAD_FIELD", [("field", error.field.clone())]);
    details.add_bad_request_violation(&error.field, &error.reason);
    Status::with_error_details(Code::InvalidArgument, error.to_string(), details)
}

/// The connection has a certificate that names nobody, or is one too many.
pub(super) fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Nobody(error) => status(Code::Unauthenticated, text(error), "BAD_IDENTITY", []),
        Refusal::TooManyConnections { limit } => {
            let text = format!("you have {limit} connections, as many as one identity may have; close one");
            later(text, "TOO_MANY_CONNECTIONS", [("limit", limit.to_string())], Duration::from_secs(5))
        }
    }
}

/// An identity calls faster than it may.
pub(super) fn too_fast(limits: Limits, wait: Duration) -> Status {
    let Limits { requests_per_second, burst, .. } = limits;
    let text = format!("you call too fast: {requests_per_second} calls per second are allowed, {burst} at once");
    let metadata = [("requests_per_second", requests_per_second.to_string()), ("burst", burst.to_string())];
    later(text, "RATE_LIMITED", metadata, wait)
}

/// A call took longer than any may.
pub(super) fn too_long(limit: Duration) -> Status {
    let text = format!("not done within {} s; what was begun goes on: look at the resource", limit.as_secs());
    status(Code::DeadlineExceeded, text, "TOO_LONG", [("limit_s", limit.as_secs().to_string())])
}

/// A message that is longer than any may be.
pub(super) fn too_long_message(limit: usize) -> Status {
    let text = format!("the request is longer than {limit} bytes");
    status(Code::InvalidArgument, text, "MESSAGE_TOO_LONG", [("limit_bytes", limit.to_string())])
}

/// Bytes that are no message of the call.
pub(super) fn no_message(cause: &str) -> Status {
    let text = format!("the request is not the message that this call takes: {cause}");
    status(Code::InvalidArgument, text, "BAD_MESSAGE", [("cause", cause.to_owned())])
}

/// A call of no service.
pub(super) fn no_such_call() -> Status {
    let text = "the daemon has no such call; it may be older than your client";
    status(Code::Unimplemented, text.to_owned(), "NO_SUCH_CALL", [])
}

/// A client that does not go on with its request.
pub(super) fn stalled(limit: Duration) -> Status {
    let text = format!("the request did not go on, or not end, within {} s; nothing was done", limit.as_secs());
    status(Code::DeadlineExceeded, text, "REQUEST_STALLED", [("limit_s", limit.as_secs().to_string())])
}

fn later(
    text: String,
    reason: &str,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
    wait: Duration,
) -> Status {
    let mut details = details(reason, metadata);
    details.set_retry_info(Some(wait));
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

fn quota(tenant: &TenantId, exceeded: &[Exceeded], text: String) -> Status {
    let mut metadata = vec![("tenant", format!("tenants/{tenant}"))];
    if let Some(Exceeded { resource, limit, used, asked }) = exceeded.first() {
        metadata.push(("resource", (*resource).to_owned()));
        metadata
            .extend([("limit", limit), ("used", used), ("asked", asked)].map(|(key, value)| (key, value.to_string())));
    }
    let mut details = details("QUOTA_EXCEEDED", metadata);
    for Exceeded { resource, limit, used, asked } in exceeded {
        let description = format!("{used} {resource} of {limit} are in use, {asked} more were asked for");
        details.add_quota_failure_violation(format!("tenants/{tenant}"), description);
    }
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

/// A connection without a peer: only a server that is put together wrongly has one.
pub(super) fn nobody() -> Status {
    status(Code::Unauthenticated, "no client certificate".to_owned(), "BAD_IDENTITY", [])
}

/// The call's own task panicked; the log says where.
pub(super) fn panicked() -> Status {
    status(Code::Internal, "the daemon failed in this call; its log says where".to_owned(), "PANIC", [])
}

/// A remembered answer that is none.
pub(super) fn unreadable_answer() -> Status {
    let text = "this request was answered before, by a daemon of another version; look at the resource";
    status(Code::Internal, text.to_owned(), "ANSWER_UNREADABLE", [])
}

/// The console ends because there is nobody to talk to.
pub(super) fn no_process(state: &str) -> Status {
    let text = format!("the VM is {state}: this was its last output");
    status(Code::FailedPrecondition, text, "NO_PROCESS", [("state", state.to_owned())])
}

fn denied(tenant: &TenantId, name: &VmName, decision: &Decision) -> Status {
    let Outcome::Deny { code, message, plugin } = &decision.outcome else {
        return status(Code::PermissionDenied, format!("policy denies {tenant}/{name}"), "POLICY_DENIED", []);
    };
    let who = denier(plugin.as_deref());
    let hint = if code == "policy.no-opinion" { "; load an admission plugin with `ostler plugin load`" } else { "" };
    let text = format!("{who} denies {tenant}/{name}: {message} ({code}){hint}");
    let mut metadata = vec![("code", code.clone()), ("message", message.clone())];
    if let Some(plugin) = plugin {
        metadata.push(("plugin", plugin.clone()));
        let opinion = decision.opinions.iter().find(|opinion| opinion.plugin == *plugin);
        metadata.extend(opinion.map(|opinion| ("digest", opinion.digest.to_string())));
    }
    metadata.extend(decision.id.as_ref().map(|id| ("decision", decision_name(id))));
    metadata.push(("took_us", decision.took.as_micros().to_string()));
    if decision.is_for_want_of_an_answer() {
        return status(Code::Unavailable, text, "POLICY_UNAVAILABLE", metadata);
    }
    status(Code::PermissionDenied, text, "POLICY_DENIED", metadata)
}

fn status(
    code: Code,
    text: String,
    reason: &str,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
) -> Status {
    Status::with_error_details(code, text, details(reason, metadata))
}

/// What every error carries: the reason for programs, and what to do about it for people.
fn details(reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let Some(advice) = reasons::advice(reason) {
        details.add_help_link(advice, format!("docs/errors.md#{}", reason.to_ascii_lowercase()));
    }
    details
}

/// The error with its causes.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::samples;
    use crate::model::{Opinion, PolicyFault, Refused, Verdict};

    /// The reasons that this file names, and those that the table has.
    #[test]
    fn every_reason_is_in_the_table_and_has_its_advice() {
        let code = include_str!("status.rs").split("#[cfg(test)]").next().unwrap();
        let is_reason = |word: &&str| word.len() > 4 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let named: std::collections::BTreeSet<_> = code.split('"').filter(is_reason).collect();
        let listed: std::collections::BTreeSet<_> = reasons::REASONS.iter().map(|reason| reason.name).collect();
        assert_eq!(named, listed, "left: src/daemon/rpc/status.rs, right: src/api/reasons.rs");
        let sorted: Vec<_> = reasons::REASONS.iter().map(|reason| reason.name).collect();
        assert!(sorted.is_sorted());
        for reason in reasons::REASONS {
            assert!(!reason.advice.is_empty() && !reason.meaning.is_empty());
        }
        let help = of(&ServiceError::NoSuchVm).get_error_details().help().unwrap().links[0].clone();
        assert_eq!(help.description, "list the VMs that you may see");
    }

    fn reason(status: &Status) -> String {
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.domain, "ostler");
        info.reason.clone()
    }

    #[test]
    fn a_missing_vm_and_one_that_vanished_look_the_same() {
        let (missing, gone) = (of(&ServiceError::NoSuchVm), of(&ServiceError::Call(CallError::Gone)));
        assert_eq!(
            (missing.code(), missing.message(), missing.details()),
            (gone.code(), gone.message(), gone.details())
        );
        assert_eq!(missing.code(), Code::NotFound);
    }

    #[test]
    fn a_denial_names_plugin_digest_and_code() {
        let mut decision = samples::running("acme", "web").admission;
        decision.outcome = Outcome::Deny {
            code: "limit.vcpus".into(),
            message: "8 vCPUs, at most 4 are allowed".into(),
            plugin: Some("limits".into()),
        };
        let (tenant, name) = ("acme".parse().unwrap(), "web".parse().unwrap());
        let status = of(&ServiceError::Denied { tenant, name, decision });
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "POLICY_DENIED"));
        let metadata = status.get_error_details().error_info().unwrap().metadata.clone();
        assert_eq!(metadata["plugin"], "limits");
        assert_eq!(metadata["code"], "limit.vcpus");
        assert!(metadata["digest"].starts_with("sha256:0909"));
        assert!(status.message().contains("8 vCPUs"), "{}", status.message());
    }

    #[test]
    fn a_denial_for_want_of_an_answer_is_no_plugins_no() {
        let mut decision = samples::running("acme", "web").admission;
        let mut code_of = |verdicts: Vec<Result<Verdict, PolicyFault>>| {
            let one = decision.opinions[0].clone();
            decision.opinions = verdicts.into_iter().map(|verdict| Opinion { verdict, ..one.clone() }).collect();
            decision.outcome =
                Outcome::Deny { code: "any".into(), message: "any".into(), plugin: Some("limits".into()) };
            let (tenant, name) = ("acme".parse().unwrap(), "web".parse().unwrap());
            let status = of(&ServiceError::Denied { tenant, name, decision: decision.clone() });
            (status.code(), reason(&status))
        };
        let unavailable = (Code::Unavailable, "POLICY_UNAVAILABLE".to_owned());
        let denied = (Code::PermissionDenied, "POLICY_DENIED".to_owned());
        let no = || Ok(Verdict::Deny { code: "no".into(), message: "no".into() });
        assert_eq!(code_of(vec![Err(PolicyFault::HostLost)]), unavailable);
        assert_eq!(code_of(vec![Ok(Verdict::Abstain), Err(PolicyFault::Unavailable("busy".into()))]), unavailable);
        assert_eq!(code_of(vec![no(), Err(PolicyFault::HostLost)]), denied);
        assert_eq!(code_of(vec![Err(PolicyFault::Refused("no".into())), Err(PolicyFault::HostLost)]), denied);
        assert_eq!(code_of(vec![Ok(Verdict::Abstain)]), denied, "nobody admitted it");
    }

    #[test]
    fn bad_fields_and_wrong_states_say_which() {
        let status = of(&SpecError::new("spec.vcpus", "0 vCPUs, 1 to 128 are allowed").into());
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "BAD_FIELD"));
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["field"], "spec.vcpus");
        let refused = CallError::Refused(Refused { verb: "start", state: "RUNNING" });
        let status = of(&refused.into());
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "WRONG_STATE"));
        assert_eq!(status.message(), "cannot start a VM that is RUNNING");
    }
}
