//! `ostler doctor`: what store and host do not agree about.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;
use crate::api::v1::host_finding::State;

use super::super::args::{DoctorArgs, Output};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::json;
use super::super::{print, show};

/// Two looks at the host.
const CHECK: Duration = Duration::from_secs(60);
/// Devices may have to be reset.
const REPAIR: Duration = Duration::from_secs(3600);

#[derive(Serialize)]
struct DoctorView {
    findings: Vec<FindingView>,
    omitted: u32,
}

#[derive(Debug, Serialize)]
struct FindingView {
    kind: String,
    object: String,
    detail: String,
    remedy: String,
    state: String,
    failure: String,
}

impl From<v1::HostFinding> for FindingView {
    fn from(finding: v1::HostFinding) -> Self {
        Self {
            kind: finding.kind().as_str_name().to_owned(),
            state: finding.state().as_str_name().to_owned(),
            object: finding.object,
            detail: finding.detail,
            remedy: finding.remedy,
            failure: finding.failure,
        }
    }
}

pub(crate) async fn doctor(mut client: Client, arguments: DoctorArgs) -> Result<(), Failure> {
    let (findings, omitted) = if arguments.repair {
        let request = v1::RepairHostRequest { request_id: arguments.request_id, ..Default::default() };
        let answer = patiently("repairing", client.host.repair_host(within(REPAIR, request))).await?;
        (answer.findings, answer.omitted)
    } else {
        let request = v1::CheckHostRequest {};
        let answer = patiently("looking", client.host.check_host(within(CHECK, request))).await?;
        (answer.findings, answer.omitted)
    };
    let verdict = verdict(&findings, omitted, arguments.repair);
    let view = DoctorView { findings: findings.into_iter().map(FindingView::from).collect(), omitted };
    match client.output {
        Output::Table => show(&table(&view))?,
        Output::Json => show(&json(&view, false)?)?,
    }
    verdict
}

/// Whether all is well now; what is not decides the exit code.
fn verdict(findings: &[v1::HostFinding], omitted: u32, is_repaired: bool) -> Result<(), Failure> {
    let count = |state: State| findings.iter().filter(|finding| finding.state() == state).count();
    let left = findings.len() - count(State::Repaired) + usize::try_from(omitted).unwrap_or(usize::MAX);
    if left == 0 {
        return Ok(());
    }
    let failure = Failure::new(Exit::Findings, format!("{left} findings remain"));
    Err(match (count(State::Repairable), count(State::NotRepaired)) {
        (1.., _) if !is_repaired => failure.hint("ostler doctor --repair does away with those that are REPAIRABLE"),
        (_, 1..) => failure.hint("the daemon's log says more about those that are NOT_REPAIRED"),
        _ => failure.hint("the remedies say what a person is to do"),
    })
}

/// A finding with what is or was done about it below: texts are sentences.
fn table(view: &DoctorView) -> String {
    if view.findings.is_empty() {
        return "all is well: store and host agree\n".to_owned();
    }
    let rows = view.findings.iter().map(|finding| {
        let FindingView { kind, object, detail, remedy, state, failure } = finding;
        let failed = if failure.is_empty() { String::new() } else { format!("; failed: {failure}") };
        [kind.clone(), object.clone(), detail.clone(), format!("{state}: {remedy}{failed}")]
    });
    let mut text = print::table(["KIND", "OBJECT", "WHAT IS WRONG", "REPAIR"], &rows.collect::<Vec<_>>());
    if view.omitted > 0 {
        text += &format!("and {} more\n", view.omitted);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(state: State) -> v1::HostFinding {
        v1::HostFinding {
            kind: v1::host_finding::Kind::TapOrphaned.into(),
            object: "tap ost1\u{1b}[2J".into(),
            detail: "no VM has its network".into(),
            remedy: "remove it".into(),
            state: state.into(),
            failure: if state == State::NotRepaired { "it is busy".into() } else { String::new() },
        }
    }

    #[test]
    fn ends_well_only_if_nothing_is_left() {
        let of = |states: &[State], omitted, is_repaired| {
            let findings: Vec<_> = states.iter().map(|state| finding(*state)).collect();
            verdict(&findings, omitted, is_repaired).map_err(|failure| (failure.exit, failure.hint.unwrap()))
        };
        assert_eq!(of(&[], 0, false), Ok(()));
        assert_eq!(of(&[State::Repaired, State::Repaired], 0, true), Ok(()));
        let (exit, hint) = of(&[State::Repairable, State::NeedsOperator], 0, false).unwrap_err();
        assert!(exit == Exit::Findings && hint.contains("--repair"), "{hint}");
        let (_, hint) = of(&[State::Repaired, State::NotRepaired], 0, true).unwrap_err();
        assert!(hint.contains("log"), "{hint}");
        let (_, hint) = of(&[State::Repaired, State::NeedsOperator], 0, true).unwrap_err();
        assert!(hint.contains("person"), "{hint}");
        assert!(of(&[], 1, false).is_err());
    }

    #[test]
    fn shows_what_is_wrong_with_what_was_done_about_it() {
        let view = |findings: Vec<v1::HostFinding>| DoctorView {
            findings: findings.into_iter().map(FindingView::from).collect(),
            omitted: 2,
        };
        let text = table(&view(vec![finding(State::NotRepaired)]));
        assert!(text.contains("TAP_ORPHANED  tap ost1") && !text.contains('\u{1b}'), "{text}");
        assert!(
            text.contains("NOT_REPAIRED: remove it; failed: it is busy") && text.ends_with("and 2 more\n"),
            "{text}"
        );
        assert!(table(&view(vec![])).contains("all is well"));
    }
}
