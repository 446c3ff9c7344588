//! The user's terminal in raw mode, restored on every way out. Key types: [`RawMode`], [`Escape`].
//!
//! `commands::console` uses it while it is attached.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

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
    fn only_a_keyboard_detaches() {
        assert_eq!(escape(b"ls\x1dx", true), Escape::Detach(b"ls"));
        assert_eq!(escape(b"ls\x1dx", false), Escape::Typed(b"ls\x1dx"));
        assert_eq!(escape(b"\x03", true), Escape::Typed(b"\x03"));
    }
}
