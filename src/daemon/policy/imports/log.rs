//! The import `log`: lines that a plugin leaves for the operator. Key type: [`Notes`].
//!
//! Kept during the call and sent to the daemon with the answer, so that a plugin never waits for a log.

use crate::wire::policy::{Note, NoteLevel};

use super::super::limits::{MAX_LOG_LINES, MAX_MESSAGE_BYTES};
use super::super::text::to_line;
use super::Call;
use super::bindings::ostler::policy::log::{Host, Level};

/// Lines of one call, bounded in number and length.
#[derive(Debug, Default)]
pub(in super::super) struct Notes {
    pub(in super::super) lines: Vec<Note>,
    /// Lines beyond the bound.
    pub(in super::super) dropped: u64,
}

impl Notes {
    fn keep(&mut self, level: NoteLevel, message: &str) {
        if self.lines.len() < MAX_LOG_LINES {
            self.lines.push(Note { level, line: to_line(message, MAX_MESSAGE_BYTES) });
        } else {
            self.dropped += 1;
        }
    }
}

impl Host for Call {
    fn emit(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.count()?;
        let level = match level {
            Level::Debug => NoteLevel::Debug,
            Level::Info => NoteLevel::Info,
            Level::Warn => NoteLevel::Warn,
        };
        self.notes.keep(level, &message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_bounded_number_of_bounded_lines() {
        let mut notes = Notes::default();
        for _ in 0..1000 {
            notes.keep(NoteLevel::Info, &"x".repeat(10_000));
        }
        assert_eq!(notes.lines.len(), MAX_LOG_LINES);
        assert!(notes.lines.iter().all(|note| note.line.len() == MAX_MESSAGE_BYTES));
        assert_eq!(notes.dropped, 1000 - MAX_LOG_LINES as u64);
    }
}
