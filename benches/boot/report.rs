//! The figures as a table for people and as JSON for programs. Key type: [`Report`].

use std::fmt;

use serde::Serialize;

use super::Sample;

/// One figure: the median of each contender, and each contender's value in units of Ostler's.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// Contender and value, Ostler first.
    values: serde_json::Map<String, serde_json::Value>,
    /// Ostler's value divided by the contender's.
    ratio: serde_json::Map<String, serde_json::Value>,
}

/// All figures.
pub struct Report {
    names: Vec<&'static str>,
    figures: Vec<Figure>,
}

impl Report {
    /// From the samples of each contender, in the order of `names`; the first is Ostler.
    pub fn new(names: &[&'static str], samples: &[Vec<Sample>]) -> Self {
        let figure = |name, unit, scale: f64, value: fn(&Sample) -> u64| {
            let medians: Vec<f64> = samples.iter().map(|samples| median(samples, value) as f64 / scale).collect();
            let own = medians.first().copied().unwrap_or(f64::NAN);
            let collect = |value: &dyn Fn(f64) -> f64| {
                names
                    .iter()
                    .zip(&medians)
                    .map(|(name, median)| ((*name).to_owned(), round(value(*median)).into()))
                    .collect()
            };
            Figure { name, unit, values: collect(&|median| median), ratio: collect(&|median| own / median) }
        };
        let figures = vec![
            figure("exec_to_userspace", "M instructions", 1e6, |sample| sample.userspace_ns),
            figure("exec_to_power_off", "M instructions", 1e6, |sample| sample.power_off_ns),
            figure("vmm_anonymous_memory", "KiB", 1.0, |sample| sample.memory.anonymous_kib),
            figure("vmm_memory_besides_guest", "KiB", 1.0, |sample| sample.memory.resident_kib),
        ];
        Self { names: names.to_vec(), figures }
    }

    /// An array with one object per figure.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.figures).unwrap_or_default()
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
                let text = |map: &serde_json::Map<_, _>| map.get(*name).map(ToString::to_string).unwrap_or_default();
                let (value, ratio) = (text(&figure.values), text(&figure.ratio));
                let cell = if *name == "ostler" { value } else { format!("{value} (×{ratio})") };
                write!(f, " {cell:>18}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "(×r): Ostler's value divided by that contender's; below 1 is in Ostler's favour. Each kernel has the words of its own hypervisor"
        )
    }
}

fn median(samples: &[Sample], value: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(value).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Three decimals are enough to read and few enough to compare.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
