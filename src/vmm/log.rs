//! What a vmm logs: one line for each event, on stderr, which is the VM's log file. Key type: [`Lines`].
//!
//! A subscriber of our own: that of tracing-subscriber has a registry of spans, which takes 32 KiB of each VM's process,
//! and a vmm has none. A line is made on the stack and written at once.

use std::fmt::{self, Debug, Write as _};
use std::io::Write as _;

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest line, in bytes; the rest is cut off.
const MAX_LINE_BYTES: usize = 1024;
/// What a line that was cut off ends with.
const CUT: &str = " [...]";

/// Writes what is at least of level INFO: time in UTC, level, message, fields.
pub(super) struct Lines {
    /// Takes a line with its end.
    out: fn(&[u8]),
}

impl Lines {
    /// Has this process log to stderr from here on.
    pub(super) fn begin() {
        // There is nobody to tell that stderr takes nothing, or that this was called before.
        let out = |line: &[u8]| drop(std::io::stderr().write_all(line));
        let _ = tracing::subscriber::set_global_default(Self { out });
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new();
        // A full line is no error of the event.
        let _ = write!(line, "{} {:>5}", Moment(OffsetDateTime::now_utc()), event.metadata().level());
        event.record(&mut line);
        (self.out)(line.end());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A line that is being made. No text can end it, or begin another: control characters are escaped.
struct Line {
    bytes: [u8; MAX_LINE_BYTES],
    len: usize,
    is_full: bool,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; MAX_LINE_BYTES], len: 0, is_full: false }
    }

    /// The line with its end.
    fn end(&mut self) -> &[u8] {
        let cut = if self.is_full { CUT.as_bytes() } else { b"" };
        for byte in cut.iter().chain(b"\n") {
            self.bytes[self.len] = *byte;
            self.len += 1;
        }
        &self.bytes[..self.len]
    }

    fn push(&mut self, character: char) -> fmt::Result {
        let end = self.len + character.len_utf8();
        if self.is_full || end > MAX_LINE_BYTES - CUT.len() - 1 {
            self.is_full = true;
            return Err(fmt::Error);
        }
        character.encode_utf8(&mut self.bytes[self.len..end]);
        self.len = end;
        Ok(())
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| {
            if character.is_control() {
                character.escape_default().try_for_each(|character| self.push(character))
            } else {
                self.push(character)
            }
        })
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // What does not fit is left out.
        let _ = match field.name() {
            "message" => write!(self, " {value:?}"),
            name => write!(self, " {name}={value:?}"),
        };
    }
}

/// A time in UTC, as RFC 3339 has it. The crate's own formatting would allocate.
struct Moment(OffsetDateTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        let (hour, minute, second, micros) = self.0.to_hms_micro();
        let month = u8::from(month);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// What is logged by `f`, without the times.
    fn logged(f: impl FnOnce()) -> Vec<String> {
        let lines = Lines { out: |line| WRITTEN.with_borrow_mut(|written| written.extend_from_slice(line)) };
        tracing::subscriber::with_default(lines, f);
        let written = String::from_utf8(WRITTEN.take()).unwrap();
        assert!(written.is_empty() || written.ends_with('\n'), "{written}");
        written.lines().map(|line| line.split_once("Z ").unwrap().1.to_owned()).collect()
    }

    #[test]
    fn an_event_is_a_line_with_its_fields() {
        let lines = logged(|| {
            let error = std::io::Error::other("no room");
            tracing::info!(vm = %"web", call = "c1", count = 3_u64, "attached");
            tracing::warn!(%error, "not attached");
            tracing::error!("{error}");
            tracing::debug!("nobody asked");
            tracing::info_span!("unused").in_scope(|| tracing::info!(none = None::<u8>, "in a span"));
        });
        assert_eq!(
            lines,
            [
                " INFO attached vm=web call=\"c1\" count=3",
                " WARN not attached error=no room",
                "ERROR no room",
                " INFO in a span",
            ]
        );
    }

    #[test]
    fn no_text_begins_a_line_of_its_own_or_makes_one_without_end() {
        let lines = logged(|| {
            tracing::warn!(what = %"a\nb\u{1b}[31m", "c\r\nd");
            tracing::warn!(what = %"é".repeat(2000), more = 1, "long");
        });
        assert_eq!(lines[0], " WARN c\\r\\nd what=a\\nb\\u{1b}[31m");
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with("éé [...]") && lines[1].len() < MAX_LINE_BYTES, "{}", lines[1]);
    }

    #[test]
    fn times_have_all_their_digits() {
        let moment = |nanos: i128| Moment(OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap()).to_string();
        assert_eq!(moment(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(moment(1_709_251_199_000_012_345), "2024-02-29T23:59:59.000012Z");
    }
}
