//! The user's terminal in raw mode, or as a screen that is drawn anew, restored on every way out. Key types: [`RawMode`],
//! [`Escape`], [`Screen`].
//!
//! `commands::console` uses it while it is attached, `commands::top` while it is live.

use std::io::{self, IsTerminal, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Ctrl-], as telnet(1) has it: rarely typed to a guest, and on every keyboard.
const ESCAPE: u8 = 0x1d;

/// stdin passes every key on at once, unechoed, until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    saved: Termios,
}

impl RawMode {
    /// `None` if stdin is not a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(io::stdin())?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Flush: keys meant for the guest must not become a command of the user's shell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.saved);
    }
}

/// A page of its own, without cursor, on which the terminal's earlier text is not seen (ECMA-48; xterm's private modes 1049
/// and 25).
#[derive(Debug)]
pub(crate) struct Screen {
    /// So that keys come at once. `None` if stdin is no terminal: then there are no keys.
    raw: Option<RawMode>,
}

/// Lines of a terminal that does not say how many it has.
const USUAL_HEIGHT: usize = 24;
const USUAL_WIDTH: usize = 80;

impl Screen {
    /// Takes the terminal over.
    pub(crate) fn enter() -> io::Result<Self> {
        let screen = Self { raw: RawMode::enter()? };
        io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Whether keys can be read from stdin.
    pub(crate) fn has_keyboard(&self) -> bool {
        self.raw.is_some()
    }

    /// Lines and columns as they are now.
    pub(crate) fn size() -> (usize, usize) {
        Self::window()
            .map_or((USUAL_HEIGHT, USUAL_WIDTH), |(lines, columns)| (usize::from(lines), usize::from(columns)))
    }

    /// The same of a terminal that says it; neither is 0.
    pub(crate) fn window() -> Option<(u16, u16)> {
        let size = tcgetwinsize(io::stdout()).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    }

    /// Shows as much of `text` as there is room for. What was there before is written over, not cleared first: nothing
    /// flickers.
    pub(crate) fn draw(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(page(text, Self::size()).as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to be done if the terminal is gone.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
    }
}

/// What writes `text` over a page of that many lines and columns.
fn page(text: &str, (height, width): (usize, usize)) -> String {
    let lines: Vec<String> = text.lines().take(height).map(|line| line.chars().take(width).collect()).collect();
    // To each line's end and to the page's end; raw terminals need the carriage's return.
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

/// What one read from the keyboard means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Escape<'a> {
    /// All of it is for the guest.
    Typed(&'a [u8]),
    /// The user detaches; what was typed before that is for the guest.
    Detach(&'a [u8]),
}

/// Looks for the escape key, if there is a keyboard: a pipe may carry any byte.
pub(crate) fn escape(keys: &[u8], is_keyboard: bool) -> Escape<'_> {
    match keys.iter().position(|&key| key == ESCAPE) {
        Some(at) if is_keyboard => Escape::Detach(&keys[..at]),
        _ => Escape::Typed(keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_no_larger_than_the_terminal() {
        assert_eq!(page("abc\nde\nf\n", (2, 2)), "\x1b[Hab\x1b[K\r\nde\x1b[K\x1b[J");
        assert_eq!(page("", (2, 2)), "\x1b[H\x1b[K\x1b[J");
    }

    #[test]
    fn only_a_keyboard_detaches() {
        assert_eq!(escape(b"ls\x1dx", true), Escape::Detach(b"ls"));
        assert_eq!(escape(b"ls\x1dx", false), Escape::Typed(b"ls\x1dx"));
        assert_eq!(escape(b"\x03", true), Escape::Typed(b"\x03"));
    }
}
