//! `OperationService`: decode, call, encode. Key type: [`OperationRpc`].

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::audit::{Audit, Change};
use super::call::{caller, finished};
use super::list::{Field, Filter, Kind, Query, Value, Window};
use super::{status, vm};
use crate::api::convert::{duration_to_proto, timestamp_to_proto, wait_from_proto};
use crate::api::v1::operation_service_server::OperationService;
use crate::api::{parse_operation_name, v1};
use crate::daemon::service::{Failure, Operation, OperationEnd, OperationName, OperationState, SharedNode};
use crate::daemon::trace;

pub(super) struct OperationRpc {
    node: SharedNode,
    audit: Arc<Audit>,
}

impl OperationRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { node, audit }
    }
}

#[tonic::async_trait]
impl OperationService for OperationRpc {
    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let principal = caller(request.extensions())?;
        let name = name_of(&request.get_ref().name)?;
        let operation = self.node.get_operation(&principal, &name).map_err(|error| status::of(&error))?;
        Ok(Response::new(encode(&operation)))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let whose = vm::whose(&request.parent)?;
        let window = Window::new(Query {
            method: "ListOperations",
            caller: &principal.to_string(),
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        });
        let window = window.map_err(|error| status::bad_field(&error))?;
        let filter = Filter::parse(&request.filter, FIELDS).map_err(|error| status::bad_field(&error))?;
        let listed = self.node.list_operations(&principal, &whose).map_err(|error| status::of(&error))?;
        let listed = listed.into_iter().filter(|operation| filter.matches(|name| field(operation, name)));
        let (operations, next_page_token) = window.page(listed, |operation| operation.name.to_string(), encode);
        Ok(Response::new(v1::ListOperationsResponse { operations, next_page_token }))
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let principal = caller(request.extensions())?;
        let name = name_of(&request.get_ref().name)?;
        let change = Change::new(&principal, "CancelOperation", &name);
        let (node, audit) = (Arc::clone(&self.node), Arc::clone(&self.audit));
        // Written down whether or not somebody waits for it.
        let whole = trace::spawn(async move {
            let cancel = async move { node.cancel_operation(&principal, &name).await };
            let outcome = finished(trace::spawn(cancel).await);
            audit.record(&change, outcome.as_ref().map(drop));
            outcome
        });
        let operation = whole.await.unwrap_or_else(|_ended| Err(status::panicked()))?;
        Ok(Response::new(encode(&operation)))
    }

    async fn wait_operation(
        &self,
        request: Request<v1::WaitOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = name_of(&request.name)?;
        let patience: Duration = wait_from_proto(request.timeout).map_err(|error| status::bad_field(&error))?;
        let operation = self.node.wait_operation(&principal, &name, patience).await;
        Ok(Response::new(encode(&operation.map_err(|error| status::of(&error))?)))
    }
}

#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
fn name_of(name: &str) -> Result<OperationName, Status> {
    let (owner, id) = parse_operation_name(name).map_err(|error| status::bad_field(&error))?;
    Ok(OperationName { owner, id })
}

/// What a filter of operations may ask about.
const FIELDS: &[Field] = &[
    Field { name: "name", kind: Kind::Text },
    Field { name: "tenant", kind: Kind::Text },
    Field { name: "method", kind: Kind::Text },
    Field { name: "target", kind: Kind::Text },
    Field { name: "principal", kind: Kind::Text },
    Field { name: "request_id", kind: Kind::Text },
    Field { name: "call_id", kind: Kind::Text },
    Field { name: "state", kind: Kind::Choice(&OperationState::NAMES) },
];

fn field(operation: &Operation, name: &str) -> Option<Value> {
    let Operation { name: own, subject, .. } = operation;
    let text = match name {
        "name" => own.to_string(),
        "tenant" => own.owner.as_ref().map(ToString::to_string).unwrap_or_default(),
        "method" => subject.method.clone(),
        "target" => subject.target.clone(),
        "principal" => subject.principal.clone(),
        "request_id" => subject.request.map(|id| id.to_string()).unwrap_or_default(),
        "call_id" => subject.call.as_ref().map(ToString::to_string).unwrap_or_default(),
        "state" => operation.state().name().to_owned(),
        _ => return None,
    };
    Some(Value::Text(text))
}

fn encode(operation: &Operation) -> v1::Operation {
    use v1::operation::State;
    let Operation { name, subject, created, step, steps, is_cancellable, end } = operation;
    let error = match end {
        None | Some((_, OperationEnd::Succeeded)) => None,
        Some((_, OperationEnd::Failed(failure) | OperationEnd::Cancelled(failure))) => Some(failure.clone()),
        Some((_, OperationEnd::Interrupted)) => Some(status::failure(&status::interrupted())),
    };
    let state = match operation.state() {
        OperationState::Running => State::Running,
        OperationState::Succeeded => State::Succeeded,
        OperationState::Failed => State::Failed,
        OperationState::Cancelled => State::Cancelled,
        OperationState::Interrupted => State::Interrupted,
    };
    v1::Operation {
        name: name.to_string(),
        method: subject.method.clone(),
        target: subject.target.clone(),
        principal: subject.principal.clone(),
        request_id: subject.request.map(|id| id.to_string()).unwrap_or_default(),
        call_id: subject.call.as_ref().map(ToString::to_string).unwrap_or_default(),
        state: state.into(),
        create_time: Some(timestamp_to_proto(*created)),
        end_time: end.as_ref().map(|(at, _)| timestamp_to_proto(*at)),
        progress: step.as_ref().map(|step| {
            let amount = step.amount;
            v1::OperationProgress {
                step: step.text.to_owned(),
                done: amount.map_or(0, |amount| amount.done),
                total: amount.map_or(0, |amount| amount.total),
                unit: amount.map(|amount| amount.unit.to_owned()).unwrap_or_default(),
                deadline: step.deadline.map(timestamp_to_proto),
            }
        }),
        is_cancellable: *is_cancellable,
        error: error.map(|Failure { code, message, reason }| v1::OperationError { code, message, reason }),
        steps: steps
            .iter()
            .map(|step| v1::OperationStep {
                step: step.text.to_owned(),
                start_time: Some(timestamp_to_proto(step.begun)),
                duration: step.took.map(duration_to_proto),
            })
            .collect(),
    }
}
