//! `ostler vm stats`: what a VM has done, once or every second.

use std::time::Duration;

use super::super::args::{Output, StatsArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::Failure;
use super::super::show_bytes;
use super::super::view::stats::StatsView;
use super::super::view::{json, short};
use super::vm::QUICK;
use crate::api::v1;

/// Between two looks.
const STEP: Duration = Duration::from_secs(1);

pub(crate) async fn stats(mut client: Client, arguments: StatsArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    loop {
        let request = v1::GetVirtualMachineStatsRequest { name: name.clone() };
        let call = client.vms.get_virtual_machine_stats(within(QUICK, request));
        let stats = patiently("asking", call).await.map_err(|failure| failure.about(&shown))?;
        let view = StatsView::from(stats);
        let text = match client.output {
            Output::Table => view.text(),
            Output::Json => json(&view, arguments.watch)?,
        };
        if !show_bytes(text.as_bytes())? || !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    }
}
