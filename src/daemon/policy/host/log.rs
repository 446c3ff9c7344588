//! The import `log`: lines that a plugin leaves for the operator. Key type: [`Notes`].
//!
//! Kept during the call and written to the daemon's log behind it, so that a plugin never waits for a log.

use super::super::limits::{MAX_LOG_LINES, MAX_MESSAGE_BYTES};
use super::super::text::to_line;
use super::Call;
use super::bindings::ostler::policy::log::{Host, Level};

/// Lines of one call, bounded in number and length.
#[derive(Debug, Default)]
pub(in super::super) struct Notes {
    lines: Vec<(Level, String)>,
    dropped: u64,
}

impl Notes {
    fn keep(&mut self, level: Level, message: &str) {
        if self.lines.len() < MAX_LOG_LINES {
            self.lines.push((level, to_line(message, MAX_MESSAGE_BYTES)));
        } else {
            self.dropped += 1;
        }
    }

    /// Writes the lines to the daemon's log under the plugin's name.
    pub(in super::super) fn write(self, plugin: &str) {
        for (level, line) in self.lines {
            match level {
                Level::Debug => tracing::debug!(target: "ostler::plugin", plugin, "{line}"),
                Level::Info => tracing::info!(target: "ostler::plugin", plugin, "{line}"),
                Level::Warn => tracing::warn!(target: "ostler::plugin", plugin, "{line}"),
            }
        }
        if self.dropped > 0 {
            tracing::debug!(target: "ostler::plugin", plugin, dropped = self.dropped, "too many log lines");
        }
    }
}

impl Host for Call {
    fn emit(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.count()?;
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
            notes.keep(Level::Info, &"x".repeat(10_000));
        }
        assert_eq!(notes.lines.len(), MAX_LOG_LINES);
        assert!(notes.lines.iter().all(|(_, line)| line.len() == MAX_MESSAGE_BYTES));
        assert_eq!(notes.dropped, 1000 - MAX_LOG_LINES as u64);
    }
}
