//! Operations as they are shown. Key type: [`OperationView`].

use std::time::Duration;

use serde::Serialize;

use super::super::print;
use super::{moment, nanos};
use crate::api::v1;

#[derive(Serialize)]
pub(crate) struct ListView {
    pub(crate) operations: Vec<OperationView>,
}

#[derive(Serialize)]
pub(crate) struct OperationView {
    pub(crate) name: String,
    method: String,
    target: String,
    principal: String,
    request_id: String,
    call_id: String,
    pub(crate) state: String,
    create_time: Option<String>,
    end_time: Option<String>,
    progress: Option<ProgressView>,
    is_cancellable: bool,
    error: Option<ErrorView>,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct StepView {
    step: String,
    start_time: Option<String>,
    /// `None`: it is under way.
    took_ns: Option<u64>,
}

#[derive(Serialize)]
struct ProgressView {
    step: String,
    done: u64,
    total: u64,
    unit: String,
    deadline: Option<String>,
}

#[derive(Serialize)]
struct ErrorView {
    code: i32,
    message: String,
    reason: String,
}

impl From<v1::Operation> for OperationView {
    fn from(operation: v1::Operation) -> Self {
        let state = operation.state().as_str_name().to_owned();
        let v1::Operation { name, method, target, principal, request_id, call_id, is_cancellable, .. } = operation;
        let progress = operation.progress.map(|progress| {
            let v1::OperationProgress { step, done, total, unit, deadline } = progress;
            ProgressView { step, done, total, unit, deadline: deadline.and_then(moment) }
        });
        let error = operation.error.map(|error| {
            let v1::OperationError { code, message, reason } = error;
            ErrorView { code, message, reason }
        });
        let steps = operation.steps.into_iter().map(|step| {
            let v1::OperationStep { step, start_time, duration } = step;
            StepView { step, start_time: start_time.and_then(moment), took_ns: duration.map(|took| nanos(Some(took))) }
        });
        let steps = steps.collect();
        let (create_time, end_time) = (operation.create_time.and_then(moment), operation.end_time.and_then(moment));
        Self {
            name,
            method,
            target,
            principal,
            request_id,
            call_id,
            state,
            create_time,
            end_time,
            progress,
            is_cancellable,
            error,
            steps,
        }
    }
}

impl StepView {
    fn text(&self) -> String {
        let took = self.took_ns.map(|took| print::duration(Duration::from_nanos(took)));
        format!("{:>10}  {}", took.as_deref().unwrap_or("under way"), self.step)
    }
}

impl ProgressView {
    fn text(&self) -> String {
        let share = self.done.saturating_mul(100).checked_div(self.total);
        let share = share.map(|share| format!(" ({share} % of {} {})", self.total, self.unit));
        let deadline = self.deadline.as_ref().map(|deadline| format!(" ({deadline})"));
        format!("{}{}{}", self.step, share.unwrap_or_default(), deadline.unwrap_or_default())
    }
}

impl OperationView {
    /// What it is at while it is under way, or why it did not succeed.
    fn detail(&self) -> String {
        match (&self.error, &self.progress) {
            (Some(error), _) => error.message.clone(),
            (None, Some(progress)) if self.end_time.is_none() => progress.text(),
            (None, _) => String::new(),
        }
    }

    /// Everything, in lines.
    pub(crate) fn text(&self) -> String {
        let facts = [
            ("operation", self.name.clone()),
            ("method", self.method.clone()),
            ("target", self.target.clone()),
            ("principal", self.principal.clone()),
            ("request id", self.request_id.clone()),
            ("call id", self.call_id.clone()),
            ("state", self.state.clone()),
            ("begun", self.create_time.clone().unwrap_or_default()),
            ("ended", self.end_time.clone().unwrap_or_default()),
            (
                "doing",
                self.progress.as_ref().filter(|_| self.end_time.is_none()).map(ProgressView::text).unwrap_or_default(),
            ),
            ("cancel", if self.is_cancellable { "can be called off".to_owned() } else { String::new() }),
            (
                "error",
                self.error.as_ref().map(|error| format!("{}: {}", error.reason, error.message)).unwrap_or_default(),
            ),
            ("steps", self.steps.iter().map(StepView::text).collect::<Vec<_>>().join("\n")),
        ];
        print::facts(&facts.into_iter().filter(|(_, value)| !value.is_empty()).collect::<Vec<_>>())
    }
}

/// One line for each.
pub(crate) fn table(operations: &[OperationView]) -> String {
    let row = |operation: &OperationView| {
        [
            operation.name.clone(),
            operation.method.clone(),
            operation.target.trim_start_matches("tenants/").to_owned(),
            operation.state.clone(),
            operation.detail(),
        ]
    };
    print::table(["OPERATION", "METHOD", "TARGET", "STATE", "DETAIL"], &operations.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str, took_ms: Option<i32>) -> v1::OperationStep {
        let took = |ms: i32| prost_types::Duration { seconds: (ms / 1000).into(), nanos: ms % 1000 * 1_000_000 };
        v1::OperationStep { step: text.into(), start_time: None, duration: took_ms.map(took) }
    }

    #[test]
    fn shows_how_far_it_is_and_then_why_it_did_not_get_there() {
        let progress = v1::OperationProgress {
            step: "reading".into(),
            done: 1 << 40,
            total: 4 << 40,
            unit: "bytes".into(),
            deadline: None,
        };
        let running = v1::Operation {
            name: "operations/01".into(),
            state: v1::operation::State::Running.into(),
            progress: Some(progress),
            steps: vec![step("formatting", Some(4_200)), step("reading", None)],
            ..Default::default()
        };
        let text = OperationView::from(running.clone()).text();
        assert!(text.contains(" 4.2 s  formatting\n") && text.contains(" under way  reading\n"), "{text}");
        let view = OperationView::from(running.clone());
        assert!(table(&[view]).contains("RUNNING  reading (25 % of 4398046511104 bytes)"));
        let error = v1::OperationError { code: 1, message: "called\toff".into(), reason: "OPERATION_CANCELLED".into() };
        let ended = v1::Operation {
            state: v1::operation::State::Cancelled.into(),
            end_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            error: Some(error),
            ..running
        };
        let text = OperationView::from(ended).text();
        assert!(text.contains("OPERATION_CANCELLED: called\u{fffd}off") && !text.contains("doing"), "{text}");
    }
}
