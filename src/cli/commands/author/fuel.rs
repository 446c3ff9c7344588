//! `ostler plugin fuel`: what each fixture's answer takes of the fuel that a call has, and how much more or less than with
//! another build. Fuel is counted, not timed: the same everywhere, and in every run.

use std::path::Path;

use serde::Serialize;

use super::fixture::Fixture;
use super::load::{Workbench, refused};
use super::{run, suite};
use crate::cli::args::{Output, PluginFuelArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};
use crate::daemon::policy::Limits;
use crate::model::Said;

#[derive(Serialize)]
struct FuelView {
    fuel_limit: u64,
    /// The plugin's digest; of the other build too, if there is one.
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    than: Option<String>,
    fixtures: Vec<FixtureView>,
}

#[derive(Serialize)]
struct FixtureView {
    fixture: String,
    hook: String,
    fuel: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    than: Option<u64>,
}

/// A plugin that can be asked.
struct Subject<'a> {
    file: &'a Path,
    workbench: Workbench,
    digest: String,
}

impl<'a> Subject<'a> {
    async fn open(file: &'a Path) -> Result<Self, Failure> {
        let workbench = Workbench::open(file)?;
        let plugin = workbench.load_without_settings().await.map_err(|error| refused(&error))?;
        Ok(Self { file, workbench, digest: plugin.digest().to_string() })
    }

    /// What the answer takes. One that is none has no price.
    async fn fuel(&self, name: &str, fixture: &Fixture) -> Result<u64, Failure> {
        let plugin = self.workbench.load(fixture.settings.clone()).await.map_err(|error| refused(&error))?;
        let asked = run::ask(&self.workbench.host, &plugin, fixture);
        let (answer, _) = asked.map_err(|error| run::not_asked(&error))?;
        match answer.said {
            Said::Verdict(_) => Ok(answer.fuel),
            Said::Fault(fault) => {
                let what = format!("{name}: {} failed ({}): {fault}", self.file.display(), fault.code());
                Err(Failure::new(Exit::Refused, what))
            }
        }
    }
}

pub(super) async fn fuel(arguments: &PluginFuelArgs, output: Output) -> Result<(), Failure> {
    let subject = Subject::open(&arguments.file).await?;
    let other = match &arguments.than {
        Some(file) => Some(Subject::open(file).await?),
        None => None,
    };
    let mut fixtures = Vec::new();
    for path in suite::fixtures(&arguments.dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fixture = Fixture::read(&path)?;
        let fuel = subject.fuel(&name, &fixture).await?;
        let than = match &other {
            Some(other) => Some(other.fuel(&name, &fixture).await?),
            None => None,
        };
        fixtures.push(FixtureView { fixture: name, hook: fixture.hook, fuel, than });
    }
    let too_much = arguments.most.map(|most| fixtures.iter().filter(|one| one.fuel > most).count());
    let than = other.map(|other| other.digest);
    let view = FuelView { fuel_limit: Limits::default().fuel, digest: subject.digest, than, fixtures };
    match output {
        Output::Json => show(&json(&view, false)?)?,
        Output::Table => show(&view.text())?,
    }
    match (too_much, arguments.most) {
        (Some(count @ 1..), Some(most)) => Err(Failure::new(
            Exit::Refused,
            format!("{count} of {} fixtures take more than {most}", view.fixtures.len()),
        )),
        _ => Ok(()),
    }
}

impl FuelView {
    fn text(&self) -> String {
        let rows: Vec<_> = self.fixtures.iter().map(|one| one.row(self.fuel_limit)).collect();
        print::table(["FIXTURE", "HOOK", "FUEL", "OF ITS LIMIT", "THAN THE OTHER"], &rows)
    }
}

impl FixtureView {
    fn row(&self, limit: u64) -> [String; 5] {
        let change = match self.than {
            None => "-".to_owned(),
            Some(than) if than == self.fuel => "the same".to_owned(),
            Some(than) => format!("{:+.1} %", (self.fuel as f64 / than.max(1) as f64 - 1.0) * 100.0),
        };
        let share = format!("{:.3} %", self.fuel as f64 / limit as f64 * 100.0);
        [self.fixture.clone(), self.hook.clone(), self.fuel.to_string(), share, change]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_much_of_the_limit_and_how_much_more() {
        let row = |fuel, than| FixtureView { fixture: "a".into(), hook: "admit".into(), fuel, than }.row(1000);
        assert_eq!(row(250, None)[2..], ["250", "25.000 %", "-"]);
        assert_eq!(row(250, Some(250))[4], "the same");
        assert_eq!([row(300, Some(200))[4].as_str(), row(100, Some(200))[4].as_str()], ["+50.0 %", "-50.0 %"]);
        assert_eq!(row(1, Some(0))[4], "+0.0 %");
    }
}
