//! `ostler operation list|get|wait|cancel`: one call each; `wait` repeats its own until the end.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::convert::duration_to_proto;
use crate::api::v1;
use crate::api::v1::operation::State;

use super::super::args::{OperationArg, OperationListArgs, OperationWaitArgs, Output};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::json;
use super::super::view::operation::{ListView, OperationView, table};

const QUICK: Duration = Duration::from_secs(60);
/// Longest that one call waits for an end.
const WAIT: Duration = Duration::from_secs(60);

pub(crate) async fn list(mut client: Client, arguments: OperationListArgs) -> Result<(), Failure> {
    let mut request = v1::ListOperationsRequest {
        parent: client.caller.parent(arguments.tenant.as_deref())?.to_string(),
        page_size: 1000,
        filter: arguments.filter.unwrap_or_default(),
        ..Default::default()
    };
    let mut operations = Vec::new();
    loop {
        let page = patiently("asking", client.operations.list_operations(within(QUICK, request.clone()))).await?;
        operations.extend(page.operations.into_iter().map(OperationView::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => show(&table(&operations)),
        Output::Json => show(&json(&ListView { operations }, false)?),
    }
}

pub(crate) async fn get(mut client: Client, arguments: OperationArg) -> Result<(), Failure> {
    let name = client.caller.operation(&arguments.name)?;
    let call = client.operations.get_operation(within(QUICK, v1::GetOperationRequest { name }));
    let operation = patiently("asking", call).await.map_err(|failure| failure.about(&arguments.name))?;
    shown(&client, operation)
}

pub(crate) async fn wait(mut client: Client, arguments: OperationWaitArgs) -> Result<(), Failure> {
    let OperationWaitArgs { operation: OperationArg { name: asked }, timeout } = arguments;
    let name = client.caller.operation(&asked)?;
    let by = timeout.map(|timeout| Instant::now() + timeout);
    let operation = loop {
        let left = by.map_or(WAIT, |by| by.saturating_duration_since(Instant::now()).min(WAIT));
        let request = v1::WaitOperationRequest { name: name.clone(), timeout: Some(duration_to_proto(left)) };
        let call = client.operations.wait_operation(within(left + QUICK, request));
        let operation = patiently("waiting", call).await.map_err(|failure| failure.about(&asked))?;
        if operation.state() != State::Running || by.is_some_and(|by| by <= Instant::now()) {
            break operation;
        }
    };
    let state = operation.state();
    let error = operation.error.clone().unwrap_or_default().message;
    shown(&client, operation)?;
    match state {
        State::Succeeded => Ok(()),
        State::Running => Err(Failure::new(Exit::TimedOut, format!("{asked} is still under way"))),
        State::Unspecified | State::Failed | State::Cancelled | State::Interrupted => {
            Err(Failure::new(Exit::OutOfReach, format!("{asked} did not succeed: {error}")))
        }
    }
}

pub(crate) async fn cancel(mut client: Client, arguments: OperationArg) -> Result<(), Failure> {
    let name = client.caller.operation(&arguments.name)?;
    let call = client.operations.cancel_operation(within(QUICK, v1::CancelOperationRequest { name }));
    let operation = patiently("calling it off", call).await.map_err(|failure| failure.about(&arguments.name))?;
    shown(&client, operation)
}

fn shown(client: &Client, operation: v1::Operation) -> Result<(), Failure> {
    let view = OperationView::from(operation);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}
