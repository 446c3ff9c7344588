//! `ostler decision list|get|explain|verify|export`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::api::{decision_name, v1};
use crate::model::ChainVerifier;

use super::super::args::{DecisionExportArgs, DecisionListArgs, DecisionVerifyArgs, Output};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::decision::{ChainView, ExplanationView, RecordView, chain_table, decision_table};
use super::super::view::json;
use super::super::{show, show_bytes};

const QUICK: Duration = Duration::from_secs(60);
/// Walking or reading every record of a node.
const LONG: Duration = Duration::from_secs(1800);
/// Decisions asked for at a time.
const PAGE_LEN: u32 = 500;
/// Longest line of an export, in bytes; the daemon's own are far shorter.
const MAX_LINE_LEN: u64 = 64 << 20;

#[derive(Serialize)]
struct ListView {
    decisions: Vec<RecordView>,
}

#[derive(Serialize)]
struct VerifyView {
    chains: Vec<ChainView>,
}

pub(crate) async fn list(mut client: Client, arguments: DecisionListArgs) -> Result<(), Failure> {
    use v1::list_decisions_request::Outcome;
    let outcome = match (arguments.allowed, arguments.denied) {
        (true, _) => Outcome::Allowed,
        (false, true) => Outcome::Denied,
        (false, false) => Outcome::Unspecified,
    };
    let since = arguments.since.and_then(|ago| SystemTime::now().checked_sub(ago));
    let mut request = v1::ListDecisionsRequest {
        parent: client.caller.parent(arguments.tenant.as_deref())?.to_string(),
        hook: arguments.hook.unwrap_or_default(),
        subject: arguments.subject.unwrap_or_default(),
        outcome: outcome.into(),
        shadow_differs: arguments.shadow_differs,
        since: since.map(prost_types::Timestamp::from),
        ..Default::default()
    };
    let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let mut decisions = Vec::new();
    loop {
        let missing = u32::try_from(limit - decisions.len()).unwrap_or(u32::MAX);
        request.page_size = missing.min(PAGE_LEN);
        let page = patiently("asking", client.decisions.list_decisions(within(QUICK, request.clone()))).await?;
        decisions.extend(page.decisions.into_iter().take(limit - decisions.len()).map(RecordView::from));
        if decisions.len() >= limit || page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match client.output {
        Output::Table => show(&decision_table(&decisions)),
        Output::Json => show(&json(&ListView { decisions }, false)?),
    }
}

pub(crate) async fn get(mut client: Client, name: &str) -> Result<(), Failure> {
    let request = v1::GetDecisionRequest { name: decision_name(&client.caller.decision(name)?) };
    let call = client.decisions.get_decision(within(QUICK, request));
    let view = RecordView::from(patiently("asking", call).await.map_err(|failure| failure.about(name))?);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn explain(mut client: Client, name: &str) -> Result<(), Failure> {
    let request = v1::ExplainDecisionRequest { name: decision_name(&client.caller.decision(name)?) };
    let call = client.decisions.explain_decision(within(QUICK, request));
    let view = ExplanationView::from(patiently("asking", call).await.map_err(|failure| failure.about(name))?);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn verify(mut client: Client, arguments: DecisionVerifyArgs) -> Result<(), Failure> {
    let parent = client.caller.parent(arguments.tenant.as_deref())?.to_string();
    let call = client.decisions.verify_decisions(within(LONG, v1::VerifyDecisionsRequest { parent }));
    let chains = patiently("verifying", call).await?.chains;
    tell(chains.into_iter().map(ChainView::from).collect(), client.output)
}

/// Verifies an export; asks no daemon.
pub(crate) fn verify_file(file: &Path, output: Output) -> Result<(), Failure> {
    let unreadable = |error| Failure::local(format_args!("cannot read {}", file.display()), &error);
    let reader: Box<dyn io::Read> =
        if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(file).map_err(unreadable)?) };
    let mut reader = BufReader::new(reader);
    let mut verifier = ChainVerifier::default();
    let mut fault = None;
    let mut line = Vec::new();
    while fault.is_none() {
        line.clear();
        let len = io::Read::take(&mut reader, MAX_LINE_LEN).read_until(b'\n', &mut line).map_err(unreadable)?;
        if len == 0 {
            break;
        }
        // A last line that was cut off has no end, and its hash no record.
        fault = verifier.line(line.strip_suffix(b"\n").unwrap_or(&line)).err();
    }
    let chains = match fault.map_or_else(|| verifier.finish(), Err) {
        Ok(ends) => ends
            .into_iter()
            .map(|(tenant, end)| ChainView {
                tenant: format!("tenants/{tenant}"),
                records: end.records,
                sequence: end.sequence,
                hash: end.hash.to_string(),
                fault: String::new(),
                message: String::new(),
                bad_sequence: None,
            })
            .collect(),
        Err(fault) => vec![ChainView {
            tenant: fault.tenant.as_ref().map(|tenant| format!("tenants/{tenant}")).unwrap_or_default(),
            records: 0,
            sequence: 0,
            hash: String::new(),
            fault: fault.kind.code().to_owned(),
            message: fault.to_string(),
            bad_sequence: fault.sequence,
        }],
    };
    tell(chains, output)
}

/// Shows what became of each chain; a failure if one is not whole.
fn tell(chains: Vec<ChainView>, output: Output) -> Result<(), Failure> {
    let bad = chains.iter().find(|chain| !chain.fault.is_empty()).map(|chain| chain.message.clone());
    match output {
        Output::Table => show(&chain_table(&chains))?,
        Output::Json => show(&json(&VerifyView { chains }, false)?)?,
    }
    bad.map_or(Ok(()), |message| Err(Failure::new(Exit::Refused, format!("a chain is not whole: {message}"))))
}

pub(crate) async fn export(mut client: Client, arguments: DecisionExportArgs) -> Result<(), Failure> {
    let parent = client.caller.parent(arguments.tenant.as_deref())?.to_string();
    let call = client.decisions.export_decisions(within(LONG, v1::ExportDecisionsRequest { parent }));
    let mut pieces = patiently("exporting", call).await?;
    while let Some(piece) = pieces.message().await? {
        if !show_bytes(&piece.lines)? {
            break;
        }
    }
    Ok(())
}
