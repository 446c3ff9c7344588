//! What the policy host passes on of a plugin for people to read, bounded once more: the host may have been taken over.

use crate::model::PolicyFault;
use crate::wire::policy::{Note, NoteLevel};

use super::limits::{MAX_FRAME_BYTES, MAX_FRAMES, MAX_LOG_LINES, MAX_MESSAGE_BYTES};
use super::text::to_line;

/// A plugin's lines as a plugin may leave them, and the number of those that are missing.
pub(super) fn bounded(notes: Vec<Note>, dropped: u64) -> (Vec<Note>, u64) {
    let kept = notes.into_iter().take(MAX_LOG_LINES);
    let kept = kept.map(|Note { level, line }| Note { level, line: to_line(&line, MAX_MESSAGE_BYTES) });
    (kept.collect(), dropped)
}

/// Writes a plugin's lines to the daemon's log under its name.
pub(super) fn write(plugin: &str, notes: Vec<Note>, dropped: u64) {
    let (notes, dropped) = bounded(notes, dropped);
    for Note { level, line } in notes {
        match level {
            NoteLevel::Debug => tracing::debug!(target: "ostler::plugin", plugin, "{line}"),
            NoteLevel::Info => tracing::info!(target: "ostler::plugin", plugin, "{line}"),
            NoteLevel::Warn => tracing::warn!(target: "ostler::plugin", plugin, "{line}"),
        }
    }
    if dropped > 0 {
        tracing::debug!(target: "ostler::plugin", plugin, dropped, "too many log lines");
    }
}

/// A backtrace as it may be shown and recorded.
pub(super) fn frames(backtrace: Vec<String>) -> Vec<String> {
    backtrace.iter().take(MAX_FRAMES.get()).map(|frame| to_line(frame, MAX_FRAME_BYTES)).collect()
}

/// A fault as it may be shown and recorded. What only the daemon can know, and the host claims, is a bad answer.
pub(super) fn shown(fault: PolicyFault) -> PolicyFault {
    let line = |text: String| to_line(&text, MAX_MESSAGE_BYTES);
    match fault {
        PolicyFault::Trap(text) => PolicyFault::Trap(line(text)),
        // One more bound is a refusal's own prefix.
        PolicyFault::Refused(text) => PolicyFault::Refused(to_line(&text, MAX_MESSAGE_BYTES + 32)),
        PolicyFault::BadAnswer(text) => PolicyFault::BadAnswer(line(text)),
        PolicyFault::Unavailable(text) => PolicyFault::Unavailable(line(text)),
        PolicyFault::Deadline(_) | PolicyFault::Budget { .. } | PolicyFault::Memory { .. } => fault,
        PolicyFault::BreakerOpen { .. } | PolicyFault::HostLost => PolicyFault::BadAnswer("a fault of others".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_the_host_claims_is_one_line_and_never_the_daemons() {
        assert_eq!(shown(PolicyFault::Trap("a\nb".into())), PolicyFault::Trap("a b".into()));
        let PolicyFault::Unavailable(text) = shown(PolicyFault::Unavailable("x".repeat(10_000))) else { panic!() };
        assert_eq!(text.len(), MAX_MESSAGE_BYTES);
        for claimed in [PolicyFault::BreakerOpen { retry_s: 1 }, PolicyFault::HostLost] {
            assert!(matches!(shown(claimed), PolicyFault::BadAnswer(_)));
        }
    }

    #[test]
    fn a_backtrace_that_the_host_claims_is_short_lines() {
        let shown = frames(vec!["a\nb".repeat(1_000); 1_000]);
        assert_eq!(shown.len(), MAX_FRAMES.get());
        assert!(shown.iter().all(|line| line.len() <= MAX_FRAME_BYTES && !line.contains('\n')), "{shown:?}");
    }
}
