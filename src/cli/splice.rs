//! A console that is opened anew repeats what is kept of its past: what was shown already is left out. Pure. Key type:
//! [`Splice`].

/// What the daemon keeps of a console, in bytes.
const KEPT_LEN: usize = 64 << 10;

/// Joins the streams of one console to one.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    /// The last that was shown, [`KEPT_LEN`] bytes at most.
    shown: Vec<u8>,
    /// What came of the past so far, on a line that was opened anew.
    past: Option<Vec<u8>>,
}

impl Splice {
    /// A new line begins: first comes the past.
    pub(crate) fn reopened(&mut self) {
        self.past = Some(Vec::new());
    }

    /// What is to be shown of `output`; nothing until it is known how it follows on what was shown.
    pub(crate) fn take(&mut self, output: &[u8]) -> Vec<u8> {
        let Some(past) = &mut self.past else {
            self.remember(output);
            return output.to_vec();
        };
        past.extend_from_slice(output);
        if past.len() < self.shown.len() { Vec::new() } else { self.settle() }
    }

    /// Whether something is held back.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.past.is_some()
    }

    /// What is to be shown of what is held back, when no more of it comes at once.
    pub(crate) fn settle(&mut self) -> Vec<u8> {
        let Some(past) = self.past.take() else { return Vec::new() };
        // The past ends with all that is new, and begins somewhere in what was shown.
        let known = (0..self.shown.len()).map(|start| &self.shown[start..]).find(|rest| past.starts_with(rest));
        let fresh = past[known.map_or(0, <[u8]>::len)..].to_vec();
        self.remember(&fresh);
        fresh
    }

    fn remember(&mut self, output: &[u8]) {
        self.shown.extend_from_slice(output);
        self.shown.drain(..self.shown.len().saturating_sub(KEPT_LEN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_console_that_was_wiped_is_shown_whole() {
        let mut splice = Splice::default();
        assert_eq!(splice.take(b"before"), b"before");
        splice.reopened();
        assert_eq!(splice.take(b"new"), b"");
        assert!(splice.is_unsettled());
        assert_eq!(splice.settle(), b"new");
        assert_eq!(splice.take(b"er"), b"er");
        assert!(!splice.is_unsettled() && splice.settle().is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_shown_twice_and_nothing_is_left_out(
            before in 0usize..90_000,
            fresh in 0usize..60_000,
            chunk in 1usize..20_000,
        ) {
            // Lines that differ, as those of a console do.
            let all: Vec<u8> = (0..).flat_map(|n: u32| format!("{n}\n").into_bytes()).take(before + fresh).collect();
            let mut splice = Splice::default();
            let mut shown = splice.take(&all[..before]);
            splice.reopened();
            let kept = &all[all.len().saturating_sub(KEPT_LEN)..];
            for piece in kept.chunks(chunk) {
                shown.extend(splice.take(piece));
            }
            shown.extend(splice.settle());
            prop_assert_eq!(shown.len(), all.len());
            prop_assert!(shown == all);
        }
    }
}
