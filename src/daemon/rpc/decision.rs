//! `DecisionService`: decode, call, encode. Key type: [`DecisionRpc`].

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::call::caller;
use super::vm::{Responses, whose};
use super::{replay, status};
use crate::api::convert::duration_to_proto;
use crate::api::v1::decision_record::Enforcement as ShownEnforcement;
use crate::api::v1::decision_record::enforcement::State;
use crate::api::v1::decision_service_server::DecisionService;
use crate::api::v1::list_decisions_request::Outcome;
use crate::api::v1::{DecisionExplanation, DecisionLink, DecisionRecord, DecisionShadow, decision_explanation};
use crate::api::{decision_name, parse_decision_name, scope_name, v1};
use crate::daemon::service::{DecisionQuery, Exported, SharedNode, StoredDecision, Verified};
use crate::model::{
    Answer, Cell, CellMark, ChainLink, DecisionId, Enforcement, OBSERVE_HOOK, ShadowAnswer, SpecError, canonical,
};

/// Decisions of one page, unless asked for fewer.
const PAGE_LEN: u32 = 100;
/// At most, as the contract says.
const MAX_PAGE_LEN: u32 = 1000;
/// Pieces of an export that wait for the client.
const EXPORT_QUEUE_LEN: usize = 4;

pub(super) struct DecisionRpc {
    node: SharedNode,
}

impl DecisionRpc {
    pub(super) fn new(node: SharedNode) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl DecisionService for DecisionRpc {
    type ExportDecisionsStream = Responses<v1::ExportDecisionsResponse>;
    type ReplayDecisionsStream = Responses<v1::ReplayDecisionsResponse>;

    async fn get_decision(&self, request: Request<v1::GetDecisionRequest>) -> Result<Response<DecisionRecord>, Status> {
        let principal = caller(request.extensions())?;
        let id = id(&request.get_ref().name)?;
        let decision = self.node.decision(&principal, id).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(encode(&decision)))
    }

    async fn list_decisions(
        &self,
        request: Request<v1::ListDecisionsRequest>,
    ) -> Result<Response<v1::ListDecisionsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let whose = whose(&request.parent)?;
        let query = query(request).map_err(|error| status::bad_field(&error))?;
        let page = self.node.decisions(&principal, &whose, query).await.map_err(|error| status::of(&error))?;
        let next_page_token = page.next_ns.map(|ns| ns.to_string()).unwrap_or_default();
        let decisions = page.decisions.iter().map(encode).collect();
        Ok(Response::new(v1::ListDecisionsResponse { decisions, next_page_token }))
    }

    async fn explain_decision(
        &self,
        request: Request<v1::ExplainDecisionRequest>,
    ) -> Result<Response<DecisionExplanation>, Status> {
        let principal = caller(request.extensions())?;
        let id = id(&request.get_ref().name)?;
        let decision = self.node.decision(&principal, id).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(explain(&decision)))
    }

    async fn verify_decisions(
        &self,
        request: Request<v1::VerifyDecisionsRequest>,
    ) -> Result<Response<v1::VerifyDecisionsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let whose = whose(&request.get_ref().parent)?;
        let verified = self.node.verify_decisions(&principal, &whose).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(v1::VerifyDecisionsResponse { chains: verified.iter().map(chain).collect() }))
    }

    async fn export_decisions(
        &self,
        request: Request<v1::ExportDecisionsRequest>,
    ) -> Result<Response<Self::ExportDecisionsStream>, Status> {
        let principal = caller(request.extensions())?;
        let whose = whose(&request.get_ref().parent)?;
        let mut pieces = self.node.export_decisions(&principal, &whose).await.map_err(|error| status::of(&error))?;
        let (responses, stream) = mpsc::channel(EXPORT_QUEUE_LEN);
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                let response = match piece {
                    Exported::Lines(lines) => Ok(v1::ExportDecisionsResponse { lines }),
                    Exported::Failed(error) => Err(status::of(&error)),
                };
                if responses.send(response).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn replay_decisions(
        &self,
        request: Request<Streaming<v1::ReplayDecisionsRequest>>,
    ) -> Result<Response<Self::ReplayDecisionsStream>, Status> {
        let principal = caller(request.extensions())?;
        let replay = replay::decode(request.into_inner()).await?;
        let events = self.node.replay(&principal, replay).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(events).map(replay::encode))))
    }
}

#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
fn id(name: &str) -> Result<DecisionId, Status> {
    parse_decision_name(name).map_err(|error| status::bad_field(&error))
}

fn query(request: v1::ListDecisionsRequest) -> Result<DecisionQuery, SpecError> {
    let unknown = |_| SpecError::new("outcome", format!("{} is none: ALLOWED or DENIED", request.outcome));
    let is_allowed = match Outcome::try_from(request.outcome).map_err(unknown)? {
        Outcome::Unspecified => None,
        Outcome::Allowed => Some(true),
        Outcome::Denied => Some(false),
    };
    let limit = match request.page_size {
        0 => PAGE_LEN,
        len if len <= MAX_PAGE_LEN => len,
        len => return Err(SpecError::new("page_size", format!("{len}: at most {MAX_PAGE_LEN} are allowed"))),
    };
    let token = Some(request.page_token).filter(|token| !token.is_empty());
    let before_ns = token.map(|token| token.parse().map_err(|_| SpecError::new("page_token", "is not one of ours")));
    let since_ns = request.since.map(nanos);
    Ok(DecisionQuery {
        tenant: None,
        hook: Some(request.hook).filter(|hook| !hook.is_empty()),
        subject: Some(request.subject).filter(|subject| !subject.is_empty()),
        is_allowed,
        has_differing_shadow: request.shadow_differs,
        since_ns,
        before_ns: before_ns.transpose()?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
    })
}

/// A decision as the API shows it.
fn encode(decision: &StoredDecision) -> DecisionRecord {
    let StoredDecision { id, time_ns, hash, entry, enforcement, shadows } = decision;
    let denial = entry.denial();
    let (code, message, plugin) =
        denial.map(|denial| (denial.code, denial.message, denial.plugin.unwrap_or_default())).unwrap_or_default();
    let is_to_be_done = entry.is_allowed() && entry.hook != OBSERVE_HOOK;
    let answers = entry.answers.iter().map(Some).chain(std::iter::repeat(None));
    DecisionRecord {
        name: decision_name(id),
        hook: entry.hook.clone(),
        subject: entry.subject.clone(),
        time: Some(timestamp(*time_ns)),
        allowed: entry.is_allowed(),
        code,
        message,
        plugin,
        took: Some(duration_to_proto(Duration::from_nanos(entry.took_ns))),
        enforcement: Some(encode_enforcement(is_to_be_done, enforcement.as_ref())),
        links: entry.chain.iter().zip(answers).map(|(link, answer)| encode_link(link, answer)).collect(),
        question: entry.question.to_string(),
        outcome: entry.outcome.to_string(),
        hash: hash.to_string(),
        shadows: shadows.iter().map(encode_shadow).collect(),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    String::from_utf8(canonical(value).unwrap_or_default()).unwrap_or_default()
}

fn encode_shadow(shadow: &ShadowAnswer) -> DecisionShadow {
    let ShadowAnswer { link, answer, instead } = shadow;
    DecisionShadow {
        link: Some(encode_link(link, Some(answer))),
        differs: instead.is_some(),
        outcome: instead.as_ref().map(json).unwrap_or_default(),
    }
}

fn encode_enforcement(is_to_be_done: bool, enforcement: Option<&Enforcement>) -> ShownEnforcement {
    let (state, detail, code) = match enforcement {
        Some(Enforcement::Enforced(what)) => (State::Enforced, what.as_str(), ""),
        Some(Enforcement::Overruled { code, message }) => (State::Overruled, message.as_str(), code.as_str()),
        None if is_to_be_done => (State::Pending, "", ""),
        None => (State::Enforced, "", ""),
    };
    ShownEnforcement { state: state.into(), detail: detail.to_owned(), code: code.to_owned() }
}

fn encode_link(link: &ChainLink, answer: Option<&Answer>) -> DecisionLink {
    let (verdict, detail) = answer.map(Answer::summary).unwrap_or_default();
    let kv = answer.and_then(|answer| answer.kv.as_ref());
    DecisionLink {
        plugin: link.plugin.clone(),
        scope: scope_name(&link.scope),
        digest: link.digest.to_string(),
        settings: link.settings.clone(),
        asked: answer.is_some(),
        verdict,
        detail,
        fuel: answer.map_or(0, |answer| answer.fuel),
        took: answer.map(|answer| duration_to_proto(Duration::from_nanos(answer.took_ns))),
        kv_read: kv.map(|kv| json(&kv.read.known)).unwrap_or_default(),
        kv_wrote: kv.map(|kv| json(&kv.wrote)).unwrap_or_default(),
        inventory: answer.and_then(|answer| answer.inventory.as_ref()).map(json).unwrap_or_default(),
        backtrace: answer.map(|answer| answer.backtrace.clone()).unwrap_or_default(),
        weight: link.weight.get(),
    }
}

fn explain(decision: &StoredDecision) -> DecisionExplanation {
    let table = decision.entry.explain(&decision.shadows);
    let rows = table.rows.iter().map(|row| decision_explanation::Row {
        candidate: row.candidate.clone(),
        cells: row.cells.iter().map(encode_cell).collect(),
        total_score: row.total,
        rank: row.rank.and_then(|rank| u32::try_from(rank).ok()).unwrap_or(0),
        shadow_cells: row.shadow_cells.iter().map(encode_cell).collect(),
    });
    let (plugins, shadows) = (table.plugins.clone(), table.shadows.clone());
    DecisionExplanation { decision: Some(encode(decision)), rows: rows.collect(), plugins, shadows }
}

fn encode_cell(cell: &Cell) -> decision_explanation::Cell {
    use decision_explanation::cell::Mark;
    let (mark, score) = match cell.mark {
        CellMark::Score(score) => (Mark::Score, score),
        CellMark::Reject => (Mark::Reject, 0),
        CellMark::Allow => (Mark::Allow, 0),
        CellMark::Deny => (Mark::Deny, 0),
        CellMark::Abstain => (Mark::Abstain, 0),
        CellMark::Fault => (Mark::Fault, 0),
    };
    decision_explanation::Cell { mark: mark.into(), score, code: cell.code.clone(), message: cell.message.clone() }
}

fn chain(verified: &Verified) -> v1::verify_decisions_response::Chain {
    let tenant = format!("tenants/{}", verified.tenant);
    match &verified.result {
        Ok(end) => v1::verify_decisions_response::Chain {
            tenant,
            records: end.records,
            sequence: end.sequence,
            hash: end.hash.to_string(),
            ..Default::default()
        },
        Err(fault) => v1::verify_decisions_response::Chain {
            tenant,
            fault: fault.kind.code().to_owned(),
            message: fault.to_string(),
            bad_sequence: fault.sequence,
            ..Default::default()
        },
    }
}

/// Since 1970; 0 for what was before.
pub(super) fn nanos(moment: prost_types::Timestamp) -> u64 {
    let seconds = u64::try_from(moment.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(moment.nanos).unwrap_or(0))
}

fn timestamp(ns: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}
