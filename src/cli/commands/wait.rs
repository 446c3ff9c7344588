//! `ostler vm wait`: until a VM is as it was asked for, or cannot come to be so any more. Follows the watch; never asks twice.

use crate::api::v1;

use super::super::args::{Output, WaitArgs};
use super::super::client::Client;
use super::super::condition::{Condition, Verdict};
use super::super::failure::{Exit, Failure};
use super::super::view::{VmView, json, short};
use super::super::{print, show};
use super::follow::Changes;

pub(crate) async fn wait(client: Client, arguments: WaitArgs) -> Result<(), Failure> {
    let vm = client.caller.vm(&arguments.name.name)?;
    let (parent, name) = (format!("tenants/{}", vm.tenant), vm.to_string());
    let waited = wait_for(&client, parent, &name, &arguments.condition);
    let vm = match arguments.timeout {
        None => waited.await,
        Some(limit) => tokio::time::timeout(limit, waited).await.unwrap_or_else(|_| {
            let limit = print::duration(limit);
            Err(Failure::new(Exit::TimedOut, format!("{}: not {} within {limit}", short(&name), arguments.condition)))
        }),
    }?;
    match (client.output, vm) {
        (Output::Table, _) => show(&format!("{} is {}\n", short(&name), arguments.condition)),
        (Output::Json, Some(vm)) => show(&json(&VmView::from(vm), false)?),
        (Output::Json, None) => show("{}\n"),
    }
}

/// The VM as it then was; `None` if there is none.
async fn wait_for(
    client: &Client,
    parent: String,
    name: &str,
    condition: &Condition,
) -> Result<Option<v1::VirtualMachine>, Failure> {
    let mut changes = Changes::open(client, parent, String::new()).await?;
    let mut is_known = false;
    loop {
        let message = changes.next().await?;
        let Some(vm) = message.virtual_machine else {
            // The snapshot is complete.
            match condition {
                _ if is_known => continue,
                Condition::Deleted => return Ok(None),
                _ => {
                    let failure = Failure::new(Exit::NotFound, format!("{}: no such virtual machine", short(name)));
                    return Err(failure.hint("ostler vm list shows what you may see"));
                }
            }
        };
        if vm.name != name {
            continue;
        }
        is_known = true;
        match condition.verdict(&vm, message.initial) {
            Verdict::Met => return Ok(Some(vm)),
            Verdict::NotYet => {}
            Verdict::OutOfReach => {
                let view = VmView::from(vm);
                let message = format!("{} is {}: it will not be {condition}", view.short_name(), view.state_text());
                return Err(Failure::new(Exit::OutOfReach, message));
            }
        }
    }
}
