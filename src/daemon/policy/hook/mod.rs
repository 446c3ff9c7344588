//! The questions that plugins can be asked, one file each. Key type: [`Question`].
//!
//! A hook's file knows its interface in `wit/`, what of an answer breaks the contract, and what the opinions of a chain
//! come to. The host around it (`executor`, `call`) is the same for all.

pub(super) mod admit;
pub(super) mod attach;
pub(super) mod detach;
pub(super) mod observe;
pub(super) mod place;
mod ranking;
pub(super) mod select_nvme;
pub(super) mod select_vf;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{
    AdmitRequest, AttachRequest, DetachRequest, ObserveRequest, Opinion, Outcome, PlaceRequest, PluginMode,
    PolicyFault, PolicyScope, SelectNvmeRequest, SelectVfRequest, SubjectVm, TenantId, Verdict,
};

use super::call::Site;
use super::limits::{MAX_CODE_BYTES, MAX_MESSAGE_BYTES};
use super::notes;
use super::plugin::Bound;
use super::text::is_line;

/// Nobody who may decide has decided.
const NO_OPINION: &str = "policy.no-opinion";
/// Codes that only the host gives.
const RESERVED_PREFIX: &str = "policy.";

/// A request that a hook is asked about. It and its answers are recorded as serde writes them.
pub(super) trait Question: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What a plugin answers.
    type Verdict: Serialize + DeserializeOwned + Clone + Send + 'static;
    /// What the answers of a chain come to.
    type Outcome: Serialize;
    /// The hook's name, as [`LoadedPlugin::hooks`](super::LoadedPlugin::hooks) lists it.
    const HOOK: &'static str;

    /// Whose request it is.
    fn tenant(&self) -> &TenantId;

    /// What it is about, within the tenant, as a path: `vms/web`.
    fn subject(&self) -> String;

    /// Takes out what the import `subject` shows of the VM. `None`: this hook says nothing of it.
    fn take_vm(&mut self) -> Option<SubjectVm> {
        None
    }

    /// Asks one plugin that exports the hook, in the policy host. The answer is not checked yet.
    fn ask(&self, site: &Site<'_>) -> Result<Self::Verdict, PolicyFault>;

    /// What of the answer breaks the contract in `wit/`; `scope` is whose plugin gave it. The daemon looks, whatever the
    /// policy host may have seen.
    fn check(&self, verdict: &Self::Verdict, scope: &PolicyScope) -> Result<(), String>;

    /// Whether this answer decides whatever later plugins would say.
    fn is_final(verdict: &Self::Verdict) -> bool;

    /// What the opinions of those who decide, checked and in the order asked, come to.
    fn combine(&self, opinions: &[Opinion<Self::Verdict>]) -> Self::Outcome;
}

/// What is done at whichever hook.
pub(super) trait AtHook {
    /// What comes of it.
    type Out;

    /// Does it at the hook of this question.
    fn at<Q: Question>(self) -> Self::Out;
}

/// Does it at the hook of this name; `None` if there is none.
pub(super) fn at_hook<A: AtHook>(hook: &str, action: A) -> Option<A::Out> {
    Some(match hook {
        AdmitRequest::HOOK => action.at::<AdmitRequest>(),
        SelectVfRequest::HOOK => action.at::<SelectVfRequest>(),
        SelectNvmeRequest::HOOK => action.at::<SelectNvmeRequest>(),
        AttachRequest::HOOK => action.at::<AttachRequest>(),
        DetachRequest::HOOK => action.at::<DetachRequest>(),
        PlaceRequest::HOOK => action.at::<PlaceRequest>(),
        ObserveRequest::HOOK => action.at::<ObserveRequest>(),
        _ => return None,
    })
}

/// A shadow, and where it would stand if it decided: behind so many of those who do.
pub(super) type Standing = (usize, Bound);

/// The part of `chain` that has an opinion on `Q`: who decides, and the shadows. A plugin that could not be loaded again
/// stays in: it denies.
pub(super) fn asked<Q: Question>(chain: Arc<[Bound]>) -> (Arc<[Bound]>, Vec<Standing>) {
    let decides = |bound: &Bound| bound.mode == PluginMode::Enforced;
    if chain.iter().all(|bound| decides(bound) && bound.plugin.serves(Q::HOOK)) {
        return (chain, Vec::new());
    }
    let (mut enforced, mut shadows) = (Vec::new(), Vec::new());
    for bound in chain.iter().filter(|bound| bound.plugin.serves(Q::HOOK)).cloned() {
        match bound.mode {
            PluginMode::Enforced => enforced.push(bound),
            PluginMode::Shadow => shadows.push((enforced.len(), bound)),
        }
    }
    (enforced.into(), shadows)
}

/// An answer that keeps to the contract, or what is wrong.
pub(super) fn checked<Q: Question>(
    question: &Q,
    said: Result<Q::Verdict, PolicyFault>,
    scope: &PolicyScope,
) -> Result<Q::Verdict, PolicyFault> {
    let verdict = said.map_err(notes::shown)?;
    question.check(&verdict, scope).map_err(PolicyFault::BadAnswer)?;
    Ok(verdict)
}

/// Whether nobody behind this opinion needs to be asked.
pub(super) fn decides<Q: Question>(opinion: &Opinion<Q::Verdict>) -> bool {
    opinion.verdict.as_ref().map_or(true, Q::is_final)
}

/// The first opinion that denies, or that is none.
fn first_denial(opinions: &[Opinion]) -> Option<Outcome> {
    opinions.iter().find_map(|opinion| match &opinion.verdict {
        Ok(Verdict::Deny { code, message }) => Some(deny(code, message.clone(), Some(opinion))),
        Err(fault) => Some(deny(fault.code(), fault.to_string(), Some(opinion))),
        Ok(Verdict::Allow(_) | Verdict::Abstain) => None,
    })
}

fn deny(code: &str, message: String, by: Option<&Opinion>) -> Outcome {
    Outcome::Deny { code: code.to_owned(), message, plugin: by.map(|opinion| opinion.plugin.clone()) }
}

/// Whether a denial, or a reason, can be shown and its code is the plugin's to give.
fn check_denial(code: &str, message: &str) -> Result<(), String> {
    let is_code_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if code.is_empty() || code.len() > MAX_CODE_BYTES || !code.bytes().all(is_code_byte) {
        return Err(format!("code of the denial must be 1 to {MAX_CODE_BYTES} bytes of a-z, 0-9, '-' and '.'"));
    }
    if code.starts_with(RESERVED_PREFIX) {
        return Err(format!("code of the denial starts with {RESERVED_PREFIX:?}, which belongs to the host"));
    }
    if !is_line(message, MAX_MESSAGE_BYTES) {
        return Err(format!(
            "message of the denial has {} bytes, 1 to {MAX_MESSAGE_BYTES} without control characters are allowed",
            message.len()
        ));
    }
    Ok(())
}
