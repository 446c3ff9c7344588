//! Text from plugins, made fit for logs, terminals and error details.

use crate::model::is_control;

/// Whether `text` is one line that can be shown as it is: 1 to `max_bytes` bytes, no control characters (Cc). Who shows
/// it leaves out what else is none of the text.
pub(super) fn is_line(text: &str, max_bytes: usize) -> bool {
    !text.is_empty() && text.len() <= max_bytes && !text.chars().any(char::is_control)
}

/// `text` as one line: cut at `max_bytes`, each control character replaced by a space.
pub(super) fn to_line(text: &str, max_bytes: usize) -> String {
    let cut = text.get(..text.floor_char_boundary(max_bytes)).unwrap_or_default();
    cut.chars().map(|c| if is_control(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_between_characters_and_drops_escapes() {
        assert_eq!(to_line("a\x1b[2Jb\n", 100), "a [2Jb ");
        assert_eq!(to_line("a\u{202e}b", 100), "a b");
        assert_eq!(to_line("aä", 2), "a");
        assert_eq!(to_line("aä", 3), "aä");
        assert!(is_line("aä", 3) && !is_line("aä", 2) && !is_line("", 9) && !is_line("a\u{9b}b", 9));
    }
}
