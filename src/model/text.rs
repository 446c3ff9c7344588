//! Characters that show something else than the text says. Key function: [`is_control`].

/// Whether the character moves the cursor, ends a line, or turns the direction of others, so that a terminal shows another
/// text than the one that is there: Cc, Zl, Zp (Unicode, §4.5) and `Bidi_Control` (UAX #9, §2.4).
pub fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_breaks_or_turns_is_no_text() {
        for character in
            ['\n', '\x1b', '\u{85}', '\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{200f}']
        {
            assert!(is_control(character), "{character:?}");
        }
        // Letters, a space that does not break, and what joins letters of Persian or parts of a picture.
        for character in ['a', 'ü', 'א', '\u{a0}', '\u{200c}', '\u{200d}', '\u{2027}', '\u{202f}', '\u{206a}'] {
            assert!(!is_control(character), "{character:?}");
        }
    }
}
