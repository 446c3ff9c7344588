//! `ostler events`: what happens to VMs, told change by change, until interrupted.
//!
//! The watch says how each VM is; what happened is the difference to how it was. Key functions: [`events`], [`happened`].

use std::collections::HashMap;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::v1;
use crate::api::v1::virtual_machine::State;

use super::super::args::{EventsArgs, Output};
use super::super::client::Client;
use super::super::failure::Failure;
use super::super::view::{VmView, json, short};
use super::super::{print, show_bytes};
use super::follow::Changes;

/// One change; a line of JSON.
#[derive(Debug, Serialize)]
struct ChangeView<'a> {
    /// When the state changed, as the daemon has it; of any other change, when it was heard of here.
    time: String,
    revision: u64,
    /// From where `--resume` goes on behind this change.
    resume_token: &'a str,
    /// Its name; empty in a bookmark.
    virtual_machine: &'a str,
    uid: &'a str,
    events: &'a [Event],
}

/// What happened to a VM.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Event {
    /// It is in another state.
    State { state: String, failure: String },
    /// Something is under way with a device, or it is `DETACHED`.
    Device { id: String, state: String },
    /// Its spec is another one: limits, devices.
    Spec,
    /// Something else about it that the API shows.
    Status,
}

impl Event {
    fn text(&self) -> String {
        match self {
            Self::State { state, failure } if failure.is_empty() => state.clone(),
            Self::State { state, failure } => format!("{state} ({failure})"),
            Self::Device { id, state } => format!("device {id} {state}"),
            Self::Spec => "spec changed".to_owned(),
            Self::Status => "status changed".to_owned(),
        }
    }
}

pub(crate) async fn events(client: Client, arguments: EventsArgs) -> Result<(), Failure> {
    match arguments.timeout {
        None => follow(client, arguments).await,
        Some(limit) => tokio::time::timeout(limit, follow(client, arguments)).await.unwrap_or(Ok(())),
    }
}

async fn follow(client: Client, arguments: EventsArgs) -> Result<(), Failure> {
    let only = arguments.name.as_deref().map(|name| client.caller.vm(name)).transpose()?;
    let parent = match &only {
        Some(vm) => format!("tenants/{}", vm.tenant),
        None => client.caller.parent(arguments.tenant.as_deref())?.to_string(),
    };
    let only = only.map(|vm| vm.to_string());
    let mut changes = Changes::open(&client, parent, arguments.resume.unwrap_or_default()).await?;
    let mut known: HashMap<String, v1::VirtualMachine> = HashMap::new();
    loop {
        let message = changes.next().await?;
        let (name, uid, happened, time) = match &message.virtual_machine {
            None if arguments.bookmarks => (String::new(), String::new(), Vec::new(), None),
            None => continue,
            Some(vm) if only.as_ref().is_some_and(|name| *name != vm.name) => continue,
            Some(vm) => {
                let before = known.get(&vm.name);
                let happened = if message.initial { Vec::new() } else { happened(before, vm) };
                let is_state = happened.iter().any(|event| matches!(event, Event::State { .. }));
                let time = VmView::from(vm.clone()).update_time.filter(|_| is_state);
                match vm.state() {
                    State::Destroyed => known.remove(&vm.name),
                    _ => known.insert(vm.name.clone(), vm.clone()),
                };
                if happened.is_empty() {
                    continue;
                }
                (vm.name.clone(), vm.uid.clone(), happened, time)
            }
        };
        let view = ChangeView {
            time: time.unwrap_or_else(now),
            revision: message.revision,
            resume_token: &message.resume_token,
            virtual_machine: &name,
            uid: &uid,
            events: &happened,
        };
        let line = match client.output {
            Output::Table => text(&view),
            Output::Json => json(&view, true)?,
        };
        if !show_bytes(line.as_bytes())? {
            return Ok(());
        }
    }
}

/// How `now` differs from `before`; without that (it is new, or the events were resumed behind it) only its state is told.
fn happened(before: Option<&v1::VirtualMachine>, now: &v1::VirtualMachine) -> Vec<Event> {
    let state = || Event::State { state: now.state().as_str_name().to_owned(), failure: now.failure.clone() };
    let Some(before) = before.filter(|before| before.uid == now.uid) else { return vec![state()] };
    let mut events = Vec::new();
    if (before.state(), &before.failure) != (now.state(), &now.failure) {
        events.push(state());
    }
    // What goes with the VM is no event of its own.
    if now.state() != State::Destroyed {
        let device = |id: &str, state: &str| Event::Device { id: id.to_owned(), state: state.to_owned() };
        let was = |id: &str| before.devices.iter().find(|device| device.id == id).map(v1::DeviceStatus::state);
        let changed = now.devices.iter().filter(|device| was(&device.id) != Some(device.state()));
        events.extend(changed.map(|changed| device(&changed.id, changed.state().as_str_name())));
        let gone = before.devices.iter().filter(|old| now.devices.iter().all(|device| device.id != old.id));
        events.extend(gone.map(|gone| device(&gone.id, "DETACHED")));
    }
    match events.is_empty() {
        true if before.spec != now.spec => events.push(Event::Spec),
        true if before.etag != now.etag => events.push(Event::Status),
        _ => {}
    }
    events
}

fn text(change: &ChangeView<'_>) -> String {
    let line = |event: &Event| {
        let line = format!("{}  {:<24} {}", change.time, short(change.virtual_machine), event.text());
        print::clean(&line).replace('\n', " ") + "\n"
    };
    change.events.iter().map(line).collect()
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::device_status::State as DeviceState;

    fn vm(state: State, devices: &[(&str, DeviceState)]) -> v1::VirtualMachine {
        let device = |(id, state): &(&str, DeviceState)| v1::DeviceStatus {
            id: (*id).to_owned(),
            slot: 1,
            state: (*state).into(),
        };
        let devices = devices.iter().map(device).collect();
        v1::VirtualMachine { name: "tenants/acme/vms/web".into(), state: state.into(), devices, ..Default::default() }
    }

    fn told(before: Option<&v1::VirtualMachine>, now: &v1::VirtualMachine) -> Vec<String> {
        happened(before, now).iter().map(Event::text).collect()
    }

    #[test]
    fn tells_what_changed_and_nothing_else() {
        let (attaching, attached) = (DeviceState::Attaching, DeviceState::Attached);
        let running = vm(State::Running, &[("root", attached)]);
        assert_eq!(told(None, &running), ["RUNNING"]);
        assert_eq!(told(Some(&running), &running), [""; 0]);
        let more = vm(State::Running, &[("root", attached), ("data", attaching)]);
        assert_eq!(told(Some(&running), &more), ["device data ATTACHING"]);
        assert_eq!(told(Some(&more), &running), ["device data DETACHED"]);
        let failed = v1::VirtualMachine { failure: "guest\u{1b} panicked".into(), ..vm(State::Failed, &[]) };
        assert_eq!(told(Some(&running), &failed), ["FAILED (guest\u{1b} panicked)", "device root DETACHED"]);
        assert_eq!(told(Some(&running), &vm(State::Destroyed, &[])), ["DESTROYED"]);
        let limited = v1::VirtualMachine { spec: Some(v1::VirtualMachineSpec::default()), ..running.clone() };
        assert_eq!(told(Some(&running), &limited), ["spec changed"]);
        let other = v1::VirtualMachine { etag: "\"2\"".into(), ..running.clone() };
        assert_eq!(told(Some(&running), &other), ["status changed"]);
        // Another VM of the same name.
        let another = v1::VirtualMachine { uid: "2".into(), ..running.clone() };
        assert_eq!(told(Some(&running), &another), ["RUNNING"]);
    }

    #[test]
    fn one_line_of_text_per_event_and_of_json_per_change() {
        let events = [
            Event::State { state: "FAILED".into(), failure: "a\nb\u{1b}".into() },
            Event::Device { id: "data".into(), state: "DETACHED".into() },
        ];
        let virtual_machine = "tenants/acme/vms/web";
        let change =
            ChangeView { time: "T".into(), revision: 7, resume_token: "t", virtual_machine, uid: "u", events: &events };
        assert_eq!(
            text(&change),
            "T  acme/web                 FAILED (a b\u{fffd})\nT  acme/web                 device data DETACHED\n"
        );
        assert_eq!(
            json(&change, true).unwrap(),
            "{\"time\":\"T\",\"revision\":7,\"resume_token\":\"t\",\"virtual_machine\":\"tenants/acme/vms/web\",\
             \"uid\":\"u\",\"events\":[{\"kind\":\"state\",\"state\":\"FAILED\",\"failure\":\"a\\nb\\u001b\"},\
             {\"kind\":\"device\",\"id\":\"data\",\"state\":\"DETACHED\"}]}\n"
        );
    }
}
