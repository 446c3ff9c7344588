//! What people read: columns, blocks of facts, durations. Pure functions that return text.
//!
//! Texts come from daemons, tenants and plugins: [`clean`] keeps their control characters off the terminal.

use std::fmt::Write;
use std::time::Duration;

use crate::model::is_control;

/// `text` with every control character replaced, so that it cannot move the cursor or colour the screen.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_control(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Rows below a header, in columns that are as wide as their longest cell.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = std::iter::once(header.map(str::to_owned).to_vec());
    columns(&header.chain(rows.iter().map(|row| row.to_vec())).collect::<Vec<_>>())
}

/// Rows in columns that are as wide as their longest cell; for tables whose columns are not known beforehand.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell).replace('\n', " ")).collect()).collect();
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or(0)];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `key: value` lines with aligned values; a value of several lines stays indented.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(key, _)| key.chars().count() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (key, value) in facts {
        let indent = format!("\n{:width$} ", "");
        let _ = writeln!(text, "{:width$} {}", format!("{key}:"), clean(value).trim_end().replace('\n', &indent));
    }
    text
}

/// A duration with three figures and its unit.
pub(crate) fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} µs", duration.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// The first characters of a digest, enough to tell versions apart.
pub(crate) fn short_digest(digest: &str) -> String {
    // "sha256:" and 12 hexadecimal digits.
    digest.chars().take(19).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn aligns_columns_without_trailing_space() {
        let rows = [["acme/web".to_owned(), "RUNNING".to_owned()], ["a/b".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "STATE"], &rows), "NAME      STATE\nacme/web  RUNNING\na/b\n");
    }

    #[test]
    fn aligns_facts_and_indents_what_follows() {
        let text = facts(&[("name", "web".into()), ("disks", "a\nb".into())]);
        assert_eq!(text, "name:  web\ndisks: a\n       b\n");
    }

    #[test]
    fn says_durations_in_the_unit_that_fits() {
        for (nanos, text) in [(7, "7 ns"), (41_300, "41.3 µs"), (2_500_000, "2.5 ms"), (3_000_000_000, "3.0 s")] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }

    proptest! {
        #[test]
        fn never_lets_a_control_character_through(text in "[a\\x00-\\x1f\\x7f\u{80}-\u{9f}é\u{2028}\u{202e}\u{2066}]{0,12}") {
            let shown = table(["A", "B"], &[[text.clone(), text.clone()]]);
            prop_assert_eq!(shown.lines().count(), 2);
            let shown = shown + &facts(&[("a", text)]);
            prop_assert!(!shown.chars().any(|c| is_control(c) && c != '\n'));
        }
    }
}
