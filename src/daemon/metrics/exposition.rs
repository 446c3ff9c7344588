//! The Prometheus text format, version 0.0.4 (prometheus.io, exposition formats). Key type: [`Exposition`].

use std::fmt::{Display, Write};

/// What kind of number a family has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Text under way: families, each with all its samples.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family. `help`: one line.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a text cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}", escaped(help, false));
    }

    /// A sample of the family that was begun last; `name` with its suffix, if it has one.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(value, true));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Backslashes and line feeds, and quotation marks in the values of labels.
fn escaped(text: &str, is_label: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if is_label { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_value_or_a_line_is_escaped() {
        let mut text = Exposition::default();
        text.family("x_total", Kind::Counter, "a \"b\"\nc\\d");
        text.sample("x_total", &[("name", "a\"b\nc\\d"), ("other", "é")], 7);
        text.sample("x_total", &[], 0.5);
        let expected = "# HELP x_total a \"b\"\\nc\\\\d\n# TYPE x_total counter\n\
                        x_total{name=\"a\\\"b\\nc\\\\d\",other=\"é\"} 7\nx_total 0.5\n";
        assert_eq!(text.finish(), expected);
    }
}
