//! A version of a plugin that is tried, as people and programs see it. Key type: [`CanaryView`].

use serde::Serialize;

use super::super::print;
use super::moment;
use super::plugin::{SignerView, VersionView};
use crate::api::v1;

/// A canary.
#[derive(Debug, Serialize)]
pub(super) struct CanaryView {
    version: VersionView,
    percent: u32,
    state: String,
    code: String,
    message: String,
    roll_back_time: Option<String>,
    canary_counts: Option<CountsView>,
    stable_counts: Option<CountsView>,
}

#[derive(Debug, Serialize)]
struct CountsView {
    asked: u64,
    denied: u64,
    failed: u64,
}

impl From<v1::PluginCanary> for CanaryView {
    fn from(canary: v1::PluginCanary) -> Self {
        Self {
            state: canary.state().as_str_name().to_owned(),
            version: VersionView::from(canary.version.unwrap_or_default()),
            percent: canary.percent,
            code: canary.code,
            message: canary.message,
            roll_back_time: canary.roll_back_time.and_then(moment),
            canary_counts: canary.canary_counts.map(CountsView::from),
            stable_counts: canary.stable_counts.map(CountsView::from),
        }
    }
}

impl From<v1::plugin_canary::Counts> for CountsView {
    fn from(counts: v1::plugin_canary::Counts) -> Self {
        let v1::plugin_canary::Counts { asked, denied, failed } = counts;
        Self { asked, denied, failed }
    }
}

impl CanaryView {
    /// Its line in a table of plugins, below that of the bound version.
    pub(super) fn row(&self) -> [String; 10] {
        let none = String::new;
        let settings = self.version.settings.iter().map(|(key, value)| format!("{key}={value}"));
        [
            none(),
            none(),
            none(),
            format!("canary {}%", self.percent),
            print::short_digest(&self.version.digest),
            none(),
            SignerView::cell(&self.version.signers, &self.version.unsigned_code),
            self.version.grants.join(" "),
            settings.collect::<Vec<_>>().join(" "),
            self.remark(),
        ]
    }

    fn remark(&self) -> String {
        if self.state != "ACTIVE" {
            let message = if self.message.is_empty() { String::new() } else { format!(": {}", self.message) };
            return format!("ROLLED BACK{message} ({})", self.code);
        }
        match (&self.canary_counts, &self.stable_counts) {
            (Some(with), Some(without)) => format!("{}; bound version: {}", with.text(), without.text()),
            _ => String::new(),
        }
    }
}

impl CountsView {
    fn text(&self) -> String {
        format!("{} asked, {} denied, {} failed", self.asked, self.denied, self.failed)
    }
}
