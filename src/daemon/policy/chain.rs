//! From opinions to an outcome. Pure: no plugin, no clock.
//!
//! Plugins are asked in order. The first that denies or fails decides, and later ones are not asked. Otherwise the VM is
//! allowed if a plugin of the *operator* allowed it: a tenant's own plugin may narrow, never admit. Of several caps the
//! narrowest holds.

use crate::model::{AdmitRequest, Opinion, Outcome, Patch, PolicyFault, PolicyScope, Verdict};

use super::limits::{MAX_CODE_BYTES, MAX_MESSAGE_BYTES, MAX_PATCHES};
use super::text::is_line;

/// Nobody who may admit has admitted.
const NO_OPINION: &str = "policy.no-opinion";
/// Codes that only the host gives.
const RESERVED_PREFIX: &str = "policy.";

/// The verdict if it keeps the contract in `wit/`, else the fault.
pub(super) fn check(verdict: Verdict, request: &AdmitRequest) -> Result<Verdict, PolicyFault> {
    match &verdict {
        Verdict::Allow(patches) => check_patches(patches, request),
        Verdict::Deny { code, message } => check_denial(code, message),
        Verdict::Abstain => Ok(()),
    }
    .map_err(PolicyFault::BadAnswer)?;
    Ok(verdict)
}

fn check_patches(patches: &[Patch], request: &AdmitRequest) -> Result<(), String> {
    if patches.len() > MAX_PATCHES {
        return Err(format!("{} patches, at most {MAX_PATCHES} are allowed", patches.len()));
    }
    for patch in patches {
        let (cap, asked) = match *patch {
            Patch::CapVcpus(vcpus) => (u64::from(vcpus), u64::from(request.vcpus)),
            Patch::CapMemoryMib(mib) => (mib, request.memory_mib),
        };
        if cap == 0 {
            return Err(format!("{patch}: nothing would be left"));
        }
        if cap > asked {
            return Err(format!("{patch}: the request asks for {asked}, and a patch may only narrow"));
        }
    }
    Ok(())
}

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

/// Whether nobody behind this opinion needs to be asked.
pub(super) fn decides(opinion: &Opinion) -> bool {
    !matches!(opinion.verdict, Ok(Verdict::Allow(_) | Verdict::Abstain))
}

/// What the opinions, checked and in the order asked, come to.
pub(super) fn combine(opinions: &[Opinion]) -> Outcome {
    let mut has_operator_allowed = false;
    let mut vcpus: Option<u32> = None;
    let mut memory_mib: Option<u64> = None;
    for opinion in opinions {
        let patches = match &opinion.verdict {
            Ok(Verdict::Abstain) => continue,
            Ok(Verdict::Allow(patches)) => patches,
            Ok(Verdict::Deny { code, message }) => return deny(code, message.clone(), Some(opinion)),
            Err(fault) => return deny(fault.code(), fault.to_string(), Some(opinion)),
        };
        has_operator_allowed |= opinion.scope == PolicyScope::Operator;
        for patch in patches {
            match *patch {
                Patch::CapVcpus(cap) => vcpus = Some(vcpus.map_or(cap, |least| least.min(cap))),
                Patch::CapMemoryMib(cap) => memory_mib = Some(memory_mib.map_or(cap, |least| least.min(cap))),
            }
        }
    }
    if !has_operator_allowed {
        let message = match opinions {
            [] => "no policy plugin is loaded, and only a plugin of the operator can admit",
            _ => "no policy plugin of the operator admitted the VM",
        };
        return deny(NO_OPINION, message.into(), None);
    }
    let vcpus = vcpus.map(Patch::CapVcpus);
    Outcome::Allow(vcpus.into_iter().chain(memory_mib.map(Patch::CapMemoryMib)).collect())
}

fn deny(code: &str, message: String, by: Option<&Opinion>) -> Outcome {
    Outcome::Deny { code: code.to_owned(), message, plugin: by.map(|opinion| opinion.plugin.clone()) }
}

#[cfg(test)]
mod tests;
