//! The figures as a table for people and as JSON for programs. Key types: [`Report`], [`Figure`].

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::OSTLER;

/// One figure: the median of each contender, and Ostler's in units of each contender's.
#[derive(Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    /// Contender and value, Ostler first.
    values: serde_json::Map<String, serde_json::Value>,
    /// Ostler's value divided by the contender's.
    ratio: serde_json::Map<String, serde_json::Value>,
}

impl Figure {
    /// From the medians of `names`; a contender that has none is not named.
    pub fn new(name: impl Into<String>, unit: &'static str, names: &[&'static str], medians: &[Option<f64>]) -> Self {
        let own = medians.first().copied().flatten().unwrap_or(f64::NAN);
        let collect = |value: &dyn Fn(f64) -> f64| {
            let known = names.iter().zip(medians).filter_map(|(name, median)| Some((name, (*median)?)));
            known.map(|(name, median)| ((*name).to_owned(), round(value(median)).into())).collect()
        };
        Self { name: name.into(), unit, values: collect(&|median| median), ratio: collect(&|median| own / median) }
    }
}

/// All figures, and what to know about them.
pub struct Report {
    /// Contenders, Ostler first.
    pub names: Vec<&'static str>,
    /// In the order of the table.
    pub figures: Vec<Figure>,
    /// Behind what the ratio is.
    pub notes: &'static str,
}

impl Report {
    /// Prints the table, and writes an array with one object per figure to `bench.json`.
    pub fn publish(&self) -> Result<(), String> {
        print!("{self}");
        let out = std::env::var("OSTLER_OUT").map_or_else(|_| PathBuf::from("."), PathBuf::from);
        let path = out.join("bench.json");
        let text = serde_json::to_string_pretty(&self.figures).map_err(|error| error.to_string())?;
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {:<16}", "figure", "unit")?;
        for name in &self.names {
            write!(f, " {name:>18}")?;
        }
        writeln!(f)?;
        for figure in &self.figures {
            write!(f, "{:<26} {:<16}", figure.name, figure.unit)?;
            for name in &self.names {
                let text = |map: &serde_json::Map<_, _>| map.get(*name).map(ToString::to_string);
                let cell = match (text(&figure.values), text(&figure.ratio)) {
                    (Some(value), _) if *name == OSTLER => value,
                    (Some(value), Some(ratio)) => format!("{value} (×{ratio})"),
                    _ => "-".to_owned(),
                };
                write!(f, " {cell:>18}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "(×r): Ostler's value divided by that contender's; below 1 is in Ostler's favour. {}", self.notes)
    }
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Three decimals are enough to read and few enough to compare.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
