//! What every call that changes something has in common. Key types: [`Changes`], [`Asked`].
//!
//! ```text
//!   request ──terms──▶ request_id · etag · validate_only        message ──▶ fingerprint (method, message without its id)
//!     └────────────────▶ own task: Node::change ── the use case ──▶ response, or the first one again; one audit line
//!                                   └ Ticket ── its work begins ──▶ operation, named in the answer's metadata
//! ```
//!
//! A new call of this kind gets the three fields in its message (10, 11, 12), a line in [`asked!`], and goes through
//! [`Changes::make`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tonic::{Response, Status};

use super::audit::{Audit, Change};
use super::call::{finished, within};
use super::status;
use crate::api::v1;
use crate::daemon::service::{
    Answer, Claim, Identity, Node, OperationName, RequestKey, ServiceError, SharedNode, Subject, Terms, Ticket,
};
use crate::daemon::trace;
use crate::model::{IdError, SpecError};

/// Names, in an answer's metadata, the operation that its call has become.
const OPERATION: &str = "ostler-operation";

/// A message that asks for a change.
pub(super) trait Asked: Message + Clone {
    /// The call's name, as the API has it.
    const METHOD: &'static str;
    /// Takes the request id out of the message.
    fn take_request_id(&mut self) -> String;
    /// As the client has seen it; empty: it does not care.
    fn etag(&self) -> &str;
    /// Whether nothing shall change.
    fn validate_only(&self) -> bool;
    /// Takes out of the message whether it is to be answered once its work is under way.
    fn take_no_wait(&mut self) -> bool;
}

/// Messages with the three fields; `no etag` for those that make something new, `no wait` for those with `no_wait`.
macro_rules! asked {
    (@etag $self:ident) => { &$self.etag };
    (@etag $self:ident no etag) => { "" };
    (@wait $self:ident) => { false };
    (@wait $self:ident no wait) => { std::mem::take(&mut $self.no_wait) };
    ($($message:path => $method:literal $($none:ident etag)? $(, $no:ident wait)?;)*) => {$(
        impl Asked for $message {
            const METHOD: &'static str = $method;
            fn take_request_id(&mut self) -> String {
                std::mem::take(&mut self.request_id)
            }
            fn etag(&self) -> &str {
                asked!(@etag self $($none etag)?)
            }
            fn validate_only(&self) -> bool {
                self.validate_only
            }
            fn take_no_wait(&mut self) -> bool {
                asked!(@wait self $($no wait)?)
            }
        }
    )*};
}

asked! {
    v1::RegisterVirtualMachineRequest => "RegisterVirtualMachine" no etag;
    v1::StartVirtualMachineRequest => "StartVirtualMachine";
    v1::StopVirtualMachineRequest => "StopVirtualMachine", no wait;
    v1::DestroyVirtualMachineRequest => "DestroyVirtualMachine";
    v1::ReleaseHostDeviceRequest => "ReleaseHostDevice", no wait;
    v1::RebootVirtualMachineRequest => "RebootVirtualMachine", no wait;
    v1::PauseVirtualMachineRequest => "PauseVirtualMachine";
    v1::ResumeVirtualMachineRequest => "ResumeVirtualMachine";
    v1::PressPowerButtonRequest => "PressPowerButton";
    v1::InjectNmiRequest => "InjectNmi";
    v1::ResizeVirtualMachineDiskRequest => "ResizeVirtualMachineDisk";
    v1::LimitVirtualMachineDeviceRequest => "LimitVirtualMachineDevice";
    v1::SetVirtualMachineBalloonRequest => "SetVirtualMachineBalloon";
    v1::AttachDeviceRequest => "AttachDevice";
    v1::DetachDeviceRequest => "DetachDevice", no wait;
    v1::ProvisionNvmeControllerRequest => "ProvisionNvmeController" no etag;
    v1::RepairHostRequest => "RepairHost" no etag;
    v1::load_plugin_request::Header => "LoadPlugin";
    v1::RollBackPluginRequest => "RollBackPlugin";
    v1::SetPluginModeRequest => "SetPluginMode";
    v1::EndPluginCanaryRequest => "EndPluginCanary";
    v1::SetPluginAliasRequest => "SetPluginAlias";
    v1::DeletePluginAliasRequest => "DeletePluginAlias";
    v1::FollowPluginAliasRequest => "FollowPluginAlias";
    v1::UnloadPluginRequest => "UnloadPlugin";
    v1::ClearPluginKvRequest => "ClearPluginKv" no etag;
}

/// Makes changes and writes down who asked for them.
#[derive(Clone)]
pub(super) struct Changes {
    node: SharedNode,
    audit: Arc<Audit>,
}

impl Changes {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { node, audit }
    }

    /// Has `work` done under what `message` asks, about `resource`, and gives its response.
    pub(super) async fn make<M: Asked, T, R, F>(
        &self,
        principal: Identity,
        message: M,
        resource: impl ToString,
        encode: impl Fn(&T) -> R + Send + Sync + 'static,
        work: impl FnOnce(SharedNode, Identity, Terms<T>) -> F + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        T: Send + Sync + 'static,
        R: Message + Default + Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        self.make_with(principal, message, &[], resource, encode, work).await
    }

    /// The same for a change whose client may not want to wait for it: then the answer is what `now` gives once the work is
    /// under way.
    pub(super) async fn make_or_begin<M: Asked, T, R, F>(
        &self,
        principal: Identity,
        mut message: M,
        resource: impl ToString,
        encode: impl Fn(&T) -> R + Send + Sync + 'static,
        now: impl FnOnce(&Node) -> Result<T, ServiceError>,
        work: impl FnOnce(SharedNode, Identity, Terms<T>) -> F + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        T: Send + Sync + 'static,
        R: Message + Default + Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let is_waited_for = !message.take_no_wait() || message.validate_only();
        let encode: Encode<T, R> = Arc::new(encode);
        let made = self.begin(principal, message, &[], resource, Arc::clone(&encode), work)?;
        let Some(ticket) = made.ticket.clone().filter(|_| !is_waited_for) else { return made.answer().await };
        let mut answer = std::pin::pin!(made.answer());
        let name = tokio::select! {
            biased; // what has ended is answered as ever
            answer = &mut answer => return answer,
            name = self.node.under_way(&ticket) => name,
        };
        let Some(name) = name else { return answer.await };
        let now = now(&self.node).map(|value| Response::new(encode(&value)));
        named(now.map_err(|error| status::of(&error)), Some(name))
    }

    /// The same for a message that more belongs to: `rest`.
    pub(super) async fn make_with<M: Asked, T, R, F>(
        &self,
        principal: Identity,
        message: M,
        rest: &[u8],
        resource: impl ToString,
        encode: impl Fn(&T) -> R + Send + Sync + 'static,
        work: impl FnOnce(SharedNode, Identity, Terms<T>) -> F + Send + 'static,
    ) -> Result<Response<R>, Status>
    where
        T: Send + Sync + 'static,
        R: Message + Default + Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        self.begin(principal, message, rest, resource, Arc::new(encode), work)?.answer().await
    }

    /// Begins a change in a task of its own.
    #[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
    fn begin<M: Asked, T, R, F>(
        &self,
        principal: Identity,
        message: M,
        rest: &[u8],
        resource: impl ToString,
        encode: Encode<T, R>,
        work: impl FnOnce(SharedNode, Identity, Terms<T>) -> F + Send + 'static,
    ) -> Result<Made<T, R>, Status>
    where
        T: Send + Sync + 'static,
        R: Message + Default + Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let resource = resource.to_string();
        let terms = terms(&principal, message, rest, &resource, Arc::clone(&encode))?;
        let ticket = terms.ticket.clone();
        let mut change = Change::new(&principal, M::METHOD, resource);
        change.request_id = terms.claim.as_ref().map(|claim| claim.key.id.to_string());
        change.is_validation = terms.validate_only;
        let (node, audit, own) = (Arc::clone(&self.node), Arc::clone(&self.audit), ticket.clone());
        let whole = trace::spawn(async move {
            let done = trace::spawn(async move {
                if !principal.may_change() {
                    return Err(ServiceError::RoleDenied);
                }
                node.change(terms, |terms| work(Arc::clone(&node), principal, terms)).await
            });
            let outcome = finished(done.await);
            change.is_repetition = matches!(outcome, Ok(Answer::Repeated(_)));
            audit.record(&change, outcome.as_ref().map(drop));
            if let Some(ticket) = own {
                ticket.end(|| status::end(outcome.as_ref().err()));
            }
            outcome
        });
        Ok(Made { ticket, whole, limit: limit_of(M::METHOD), encode })
    }
}

/// The response for what a change came to.
type Encode<T, R> = Arc<dyn Fn(&T) -> R + Send + Sync>;

/// A change that is being made: done to its end whether or not somebody waits for it.
struct Made<T, R> {
    /// `None`: it is only validated.
    ticket: Option<Ticket>,
    whole: JoinHandle<Result<Answer<T>, Status>>,
    limit: Duration,
    encode: Encode<T, R>,
}

impl<T, R: Message + Default> Made<T, R> {
    /// Its response, with the name of the operation that it became.
    async fn answer(self) -> Result<Response<R>, Status> {
        let Self { ticket, whole, limit, encode } = self;
        let answered = async { whole.await.unwrap_or_else(|_ended| Err(status::panicked())) };
        let answer = within(limit, answered).await.and_then(|answer| match answer {
            Answer::Fresh(value) => Ok(Response::new(encode(&value))),
            Answer::Repeated(bytes) => {
                R::decode(bytes.as_slice()).map(Response::new).map_err(|_| status::unreadable_answer())
            }
        });
        named(answer, ticket.and_then(|ticket| ticket.name()))
    }
}

/// The answer with the name of its operation in its metadata.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
fn named<R>(mut answer: Result<Response<R>, Status>, name: Option<OperationName>) -> Result<Response<R>, Status> {
    if let Some(name) = name.and_then(|name| name.to_string().parse().ok()) {
        let metadata = match &mut answer {
            Ok(response) => response.metadata_mut(),
            Err(status) => status.metadata_mut(),
        };
        metadata.insert(OPERATION, name);
    }
    answer
}

/// Longest that a call may take; what a use case waits for has shorter limits of its own.
fn limit_of(method: &str) -> Duration {
    Duration::from_secs(match method {
        // A guest may take ten minutes to power off.
        "StopVirtualMachine" => 720,
        // And three to come up again.
        "RebootVirtualMachine" => 900,
        // Compilation included, and waiting for it.
        "LoadPlugin" | "RollBackPlugin" | "SetPluginAlias" | "FollowPluginAlias" => 300,
        // Each device that is reset may take a minute and a half.
        "RepairHost" => 3600,
        // A namespace is erased.
        "ReleaseHostDevice" => 24 * 3600,
        _ => 180,
    })
}

/// What the message asks beside the change itself.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
fn terms<M: Asked, T: 'static, R: Message + 'static>(
    principal: &Identity,
    mut message: M,
    rest: &[u8],
    resource: &str,
    encode: Encode<T, R>,
) -> Result<Terms<T>, Status> {
    let id = message.take_request_id();
    let id = (!id.is_empty())
        .then(|| id.parse())
        .transpose()
        .map_err(|error: IdError| status::bad_field(&SpecError::new("request_id", error.to_string())))?;
    let fingerprint = fingerprint(&message, rest);
    let subject = Subject {
        method: M::METHOD.to_owned(),
        target: resource.to_owned(),
        principal: principal.to_string(),
        call: trace::CallId::current(),
        request: id,
        fingerprint,
    };
    let claim = id.map(|id| Claim {
        key: RequestKey { caller: principal.to_string(), id },
        fingerprint,
        encode: Arc::new(move |value: &T| encode(value).encode_to_vec()),
        left: None,
    });
    let etag = Some(message.etag().to_owned()).filter(|etag| !etag.is_empty());
    let validate_only = message.validate_only();
    Ok(Terms { etag, validate_only, claim, ticket: (!validate_only).then(|| Ticket::new(subject)) })
}

fn fingerprint<M: Asked>(message: &M, rest: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(M::METHOD).chain_update([0]);
    // Fixed in length, so that one message with its rest is not another with another rest.
    digest.chain_update(Sha256::digest(message.encode_to_vec())).chain_update(Sha256::digest(rest)).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_of_everything_but_the_id() {
        let start = |name: &str, id: &str| v1::StartVirtualMachineRequest {
            name: name.into(),
            request_id: id.into(),
            ..Default::default()
        };
        let of = |mut message: v1::StartVirtualMachineRequest| {
            message.take_request_id();
            fingerprint(&message, b"")
        };
        assert_eq!(of(start("a", "1")), of(start("a", "2")));
        assert_ne!(of(start("a", "1")), of(start("b", "1")));
        let dry = v1::StartVirtualMachineRequest { validate_only: true, ..start("a", "1") };
        assert_ne!(of(start("a", "1")), of(dry));
        // The same bytes of another call.
        let destroy = v1::DestroyVirtualMachineRequest { name: "a".into(), ..Default::default() };
        assert_eq!(destroy.encode_to_vec(), start("a", "").encode_to_vec());
        assert_ne!(fingerprint(&destroy, b""), fingerprint(&start("a", ""), b""));
        assert_ne!(fingerprint(&destroy, b"x"), fingerprint(&destroy, b""));
    }
}
