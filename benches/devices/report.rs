//! The figures as a table for people and as JSON for programs. Key types: [`Report`], [`Compared`], [`Change`].

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// One figure of devices of several kinds: the one of the host first.
pub struct Compared {
    pub name: String,
    pub unit: &'static str,
    /// Kind, and its value in each round.
    pub values: Vec<(&'static str, Vec<f64>)>,
}

/// A device that comes to a running guest, or leaves it.
pub struct Change {
    /// `attach` or `detach`, and the device.
    pub name: String,
    /// From the call to its answer, each time.
    pub whole: Vec<Duration>,
    /// Its parts, in order, each time. One that is missing took nothing.
    pub steps: Vec<(String, Vec<Duration>)>,
    /// What follows the answer.
    pub then: Vec<(&'static str, Vec<Duration>)>,
}

/// Everything.
#[derive(Default)]
pub struct Report {
    pub compared: Vec<Compared>,
    pub changes: Vec<Change>,
    /// What is not measured here, and why.
    pub missing: Vec<String>,
}

/// The value in the middle, the least and the most.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), least: at(0), most: at(values.len().saturating_sub(1)) }
    }

    fn of_times(times: &[Duration]) -> Self {
        Self::of(times.iter().map(|time| time.as_secs_f64() * 1e3))
    }

    fn json(self) -> Value {
        json!({ "median": round(self.median), "least": round(self.least), "most": round(self.most) })
    }
}

/// Three decimals are enough to read and few enough to compare.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Compared {
    /// The first kind in units of each other one, round by round.
    fn ratios(&self) -> Vec<(&'static str, Spread)> {
        let Some(((_, own), others)) = self.values.split_first() else { return Vec::new() };
        let ratio = |values: &Vec<f64>| Spread::of(own.iter().zip(values).map(|(own, value)| own / value));
        others.iter().map(|(kind, values)| (*kind, ratio(values))).collect()
    }

    fn json(&self) -> Value {
        let value = |(kind, values): &(&str, Vec<f64>)| ((*kind).to_owned(), Spread::of(values.clone()).json());
        let ratios = self.ratios().into_iter().map(|(kind, ratio)| (kind.to_owned(), ratio.json()));
        json!({
            "name": self.name,
            "unit": self.unit,
            "values": self.values.iter().map(value).collect::<Map<_, _>>(),
            "ratio": ratios.collect::<Map<_, _>>(),
        })
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {:<10}", self.name, self.unit)?;
        for (kind, values) in &self.values {
            write!(f, "  {kind} {:.1}", Spread::of(values.clone()).median)?;
            if let Some((_, ratio)) = self.ratios().iter().find(|(other, _)| other == kind) {
                write!(f, " (×{:.2}, {:.2} to {:.2})", ratio.median, ratio.least, ratio.most)?;
            }
        }
        writeln!(f)
    }
}

impl Change {
    fn parts(&self) -> impl Iterator<Item = (&str, Spread)> {
        let then = self.then.iter().map(|(step, took)| (*step, took));
        self.steps.iter().map(|(step, took)| (step.as_str(), took)).chain(then).map(|(step, took)| {
            // Not every time did it have to be done.
            let skipped = self.whole.len().saturating_sub(took.len());
            let zeroes = std::iter::repeat_n(Duration::ZERO, skipped);
            (step, Spread::of_times(&took.iter().copied().chain(zeroes).collect::<Vec<_>>()))
        })
    }

    fn json(&self) -> Value {
        let steps: Vec<_> = self.parts().map(|(step, took)| json!({ "step": step, "took": took.json() })).collect();
        let whole = Spread::of_times(&self.whole).json();
        json!({ "name": self.name, "unit": "ms", "times": self.whole.len(), "whole": whole, "steps": steps })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, spread: Spread, what: &str| {
            writeln!(f, "{:>10.1} ms ({:.1} to {:.1})  {what}", spread.median, spread.least, spread.most)
        };
        let (whole, name) = (Spread::of_times(&self.whole), &self.name);
        line(f, whole, &format!("{name}, {} times; of that:", self.whole.len()))?;
        self.parts().try_for_each(|(step, took)| line(f, took, &format!("    {step}")))
    }
}

impl Report {
    /// Prints all of it, and writes an array with an object for each figure to `bench.json`.
    pub fn publish(&self) -> Result<(), String> {
        print!("{self}");
        let figures = self.compared.iter().map(Compared::json).chain(self.changes.iter().map(Change::json));
        let missing = self.missing.iter().map(|what| json!({ "missing": what }));
        let text = serde_json::to_string_pretty(&figures.chain(missing).collect::<Vec<_>>());
        let out = std::env::var("OSTLER_OUT").map_or_else(|_| PathBuf::from("."), PathBuf::from);
        let path = out.join("bench.json");
        std::fs::write(&path, text.map_err(|error| error.to_string())?)
            .map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.compared.iter().try_for_each(|figure| write!(f, "{figure}"))?;
        writeln!(
            f,
            "(×r): the first one's value divided by that one's, median of the rounds, least to most. Of µs below 1, of the \
             others above 1 is in favour of the device of the host. An emulated host emulates its cards too."
        )?;
        self.changes.iter().try_for_each(|change| write!(f, "{change}"))?;
        self.missing.iter().try_for_each(|what| writeln!(f, "not measured: {what}"))
    }
}
