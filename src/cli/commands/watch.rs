//! `ostler vm watch`: every change in order, until interrupted or until a VM is in the state that was asked for.

use std::time::Duration;

use serde::Serialize;
use tonic::Code;

use crate::api::v1;

use super::super::args::{Output, WatchArgs};
use super::super::client::{Client, within};
use super::super::failure::{Exit, Failure};
use super::super::view::{VmView, json, short};
use super::super::{print, show_bytes};

#[derive(Serialize)]
struct ChangeView {
    revision: u64,
    initial: bool,
    /// From where `--resume` goes on behind this change.
    resume_token: String,
    virtual_machine: VmView,
}

pub(crate) async fn watch(client: Client, arguments: WatchArgs) -> Result<(), Failure> {
    match arguments.timeout {
        None => follow(client, arguments).await,
        Some(limit) => tokio::time::timeout(limit, follow(client, arguments)).await.unwrap_or_else(|_| {
            Err(Failure::new(Exit::TimedOut, format!("nothing ended the watch within {}", print::duration(limit))))
        }),
    }
}

async fn follow(mut client: Client, arguments: WatchArgs) -> Result<(), Failure> {
    let only = arguments.name.as_deref().map(|name| client.caller.vm(name)).transpose()?;
    let parent = match &only {
        Some(vm) => format!("tenants/{}", vm.tenant),
        None => client.caller.parent(arguments.tenant.as_deref())?.to_string(),
    };
    let only = only.map(|vm| vm.to_string());
    let resume_token = arguments.resume.unwrap_or_default();
    let request = v1::WatchVirtualMachinesRequest { parent, resume_token };
    let mut changes = client.vms.watch_virtual_machines(request).await?.into_inner();
    if let Some(name) = &only {
        // After the watch stands, so that nothing can happen unseen in between.
        let request = v1::GetVirtualMachineRequest { name: name.clone() };
        let found = client.vms.get_virtual_machine(within(Duration::from_secs(60), request)).await;
        found.map_err(|status| Failure::from(status).about(&short(name)))?;
    }
    loop {
        let Some(change) = changes.message().await.map_err(lost)? else {
            return Err(Failure::new(Exit::Unreachable, "the daemon ended the watch"));
        };
        let Some(vm) = change.virtual_machine else { continue };
        if only.as_ref().is_some_and(|name| *name != vm.name) {
            continue;
        }
        let view = ChangeView {
            revision: change.revision,
            initial: change.initial,
            resume_token: change.resume_token,
            virtual_machine: VmView::from(vm),
        };
        let line = match client.output {
            Output::Table => text(&view),
            Output::Json => json(&view, true)?,
        };
        if !show_bytes(line.as_bytes())? {
            return Ok(());
        }
        if let Some(end) = arguments.until.as_deref().and_then(|wanted| ended(&view, wanted)) {
            return end;
        }
    }
}

/// Whether a wait for `wanted` is over with this change: reached, or out of reach.
fn ended(change: &ChangeView, wanted: &str) -> Option<Result<(), Failure>> {
    let vm = &change.virtual_machine;
    match vm.state.as_str() {
        state if state.eq_ignore_ascii_case(wanted) => Some(Ok(())),
        "DESTROYED" => Some(Err(Failure::new(Exit::NotFound, format!("{} was destroyed", vm.short_name())))),
        // A VM that was FAILED before may be about to be started; one that fails now is not.
        "FAILED" if !change.initial => {
            Some(Err(Failure::new(Exit::Refused, format!("{} is {}", vm.short_name(), vm.state_text()))))
        }
        _ => None,
    }
}

fn text(change: &ChangeView) -> String {
    let vm = &change.virtual_machine;
    let line = format!("{:<24} {}", short(&vm.name), vm.state_text());
    print::clean(&line).replace('\n', " ") + "\n"
}

fn lost(status: tonic::Status) -> Failure {
    let is_cut = matches!(status.code(), Code::ResourceExhausted | Code::Aborted);
    let failure = Failure::from(status);
    if is_cut { failure.hint("this reader was too slow; go on with --resume, or watch anew") } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(state: v1::virtual_machine::State, initial: bool) -> ChangeView {
        let vm = v1::VirtualMachine { name: "tenants/acme/vms/web".into(), state: state.into(), ..Default::default() };
        ChangeView { revision: 1, initial, resume_token: "t".into(), virtual_machine: VmView::from(vm) }
    }

    #[test]
    fn a_wait_ends_when_its_state_is_reached_or_out_of_reach() {
        use v1::virtual_machine::State as S;
        let exit = |state, initial, wanted| match ended(&change(state, initial), wanted) {
            None => None,
            Some(Ok(())) => Some(None),
            Some(Err(failure)) => Some(Some(failure.exit)),
        };
        assert_eq!(exit(S::Running, true, "running"), Some(None));
        assert_eq!(exit(S::Starting, false, "RUNNING"), None);
        assert_eq!(exit(S::Failed, true, "RUNNING"), None);
        assert_eq!(exit(S::Failed, false, "RUNNING"), Some(Some(Exit::Refused)));
        assert_eq!(exit(S::Failed, false, "FAILED"), Some(None));
        assert_eq!(exit(S::Destroyed, false, "STOPPED"), Some(Some(Exit::NotFound)));
        assert_eq!(exit(S::Destroyed, false, "DESTROYED"), Some(None));
    }

    #[test]
    fn one_line_per_change() {
        assert_eq!(text(&change(v1::virtual_machine::State::Running, false)), "acme/web                 RUNNING\n");
        let json = json(&change(v1::virtual_machine::State::Running, true), true).unwrap();
        assert_eq!(json.lines().count(), 1);
        assert!(
            json.starts_with("{\"revision\":1,\"initial\":true,\"resume_token\":\"t\",\"virtual_machine\":{"),
            "{json}"
        );
    }
}
