//! Plugins that the clock ends where others keep the processor from them. That says nothing of them: what fuel, a trap or an
//! answer would end a moment later is asked again. Key functions: [`unhurried`], [`is_cut_short`].

use tonic::Status;

use super::client::facts;
use super::wait::{BOOT, until};

/// Whether a text tells of a plugin that the clock has ended.
pub fn is_cut_short(text: &str) -> bool {
    text.contains("policy.deadline") || text.contains("plugin ran longer than")
}

/// What a call is answered once the machine leaves its plugins the time that they may take.
pub fn unhurried<T>(mut call: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
    // Five ends by the clock in a row open a breaker, which is left to close again.
    let is_late = |status: &Status| {
        let facts = facts(status);
        let code = facts.metadata.get("code").map(String::as_str).unwrap_or_default();
        is_cut_short(&facts.message) || ["policy.deadline", "policy.breaker-open"].contains(&code)
    };
    until("an answer that is not the clock's", BOOT, || {
        let answer = call();
        (!answer.as_ref().is_err_and(is_late)).then_some(answer)
    })
}
