//! `ostler apply`: makes VMs as a file says they are to be.
//!
//! ```text
//!   file ──▶ plan (pure: what differs) ──▶ every call with validate_only ──▶ shown ──▶ asked ──▶ act, call by call
//!   list ──▶                                └ nothing is changed unless all could be
//! ```
//! Each call carries a request id and the etag of the VM as it was planned: what somebody else changes meanwhile is not undone
//! unseen. A second run finds nothing to do.

mod act;
mod file;
mod plan;

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{ApplyArgs, Output};
use super::super::client::Client;
use super::super::failure::{Exit, Failure};
use super::super::identity::Caller;
use super::super::view::{json, short};
use super::super::{print, show};
use super::vm::{PAGE_LEN, all};
use act::perform;
use file::Wanted;
use plan::{Plan, Step, plan, removal};

/// A file that is longer than that is none.
const MAX_FILE_LEN: u64 = 4 << 20;

#[derive(Serialize)]
struct ReportView {
    changes: Vec<ChangeView>,
    obstacles: Vec<RemarkView>,
    notes: Vec<RemarkView>,
    /// Whether the changes were made.
    applied: bool,
}

#[derive(Serialize)]
struct ChangeView {
    virtual_machine: String,
    action: &'static str,
    detail: String,
}

#[derive(Serialize)]
struct RemarkView {
    virtual_machine: String,
    text: String,
}

pub(crate) async fn apply(mut client: Client, arguments: ApplyArgs) -> Result<(), Failure> {
    let wanted = file::read(&read(&arguments.file)?, &client.caller)?;
    let actual = present(&mut client, &wanted).await?;
    let mut plans = Vec::new();
    if arguments.prune {
        let is_named = |vm: &&v1::VirtualMachine| wanted.iter().any(|wanted| wanted.name == vm.name);
        plans.extend(actual.iter().filter(|vm| !is_named(vm)).map(removal));
    }
    plans.extend(wanted.iter().map(|wanted| plan(wanted, actual.iter().find(|vm| vm.name == wanted.name))));
    let refusal = validate(&mut client, &mut plans).await;
    let is_same = plans.iter().all(|plan| plan.steps.is_empty());
    if client.output == Output::Table {
        show(&text(&plans))?;
    }
    if let Some(refusal) = refusal {
        show_report(&client, &plans, false)?;
        return Err(refusal);
    }
    if arguments.dry_run || is_same {
        show_report(&client, &plans, false)?;
        let said = if is_same { "nothing is to be changed\n" } else { "nothing was changed\n" };
        return if client.output == Output::Table { show(said) } else { Ok(()) };
    }
    if !arguments.yes && !is_confirmed()? {
        return Err(Failure::new(Exit::Refused, "nothing was changed"));
    }
    for plan in &plans {
        carry_out(&mut client, plan).await?;
    }
    show_report(&client, &plans, true)
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().take(MAX_FILE_LEN).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_FILE_LEN).read_to_string(&mut text))
    };
    let bad =
        |error| Failure { exit: Exit::Usage, ..Failure::local(format_args!("cannot read {}", file.display()), &error) };
    read.map(|_| text).map_err(bad)
}

/// The VMs of every tenant that the file is about; of a tenant's own even if it names none.
async fn present(client: &mut Client, wanted: &[Wanted]) -> Result<Vec<v1::VirtualMachine>, Failure> {
    let mut tenants: BTreeSet<String> = wanted.iter().map(|wanted| wanted.tenant.to_string()).collect();
    if let Caller::Tenant(own) = &client.caller {
        tenants.insert(own.to_string());
    }
    let mut vms = Vec::new();
    for tenant in tenants {
        let parent = format!("tenants/{tenant}");
        let request = v1::ListVirtualMachinesRequest { parent, page_size: PAGE_LEN, ..Default::default() };
        vms.extend(all(client, request).await?);
    }
    Ok(vms)
}

/// Has every step checked that can be before others are done; what is refused becomes an obstacle. Gives the first.
async fn validate(client: &mut Client, plans: &mut [Plan]) -> Option<Failure> {
    let mut refusal = None;
    for plan in plans {
        if plan.obstacles.is_empty() {
            for step in &plan.steps {
                if let Err(failure) = perform(client, &plan.name, &plan.etag, step, true).await {
                    plan.obstacles.push(format!("{}: {}", step.action(), failure.message));
                    refusal.get_or_insert(failure);
                    break;
                }
                if step.changes_state() {
                    break;
                }
            }
        } else {
            let message = format!("{} cannot be made as the file says; nothing was changed", short(&plan.name));
            refusal.get_or_insert(Failure::new(Exit::Refused, message));
        }
    }
    refusal
}

/// Does a VM's steps; each with the etag that the one before left.
async fn carry_out(client: &mut Client, plan: &Plan) -> Result<(), Failure> {
    let shown = short(&plan.name);
    let mut etag = plan.etag.clone();
    for step in &plan.steps {
        let done = perform(client, &plan.name, &etag, step, false).await;
        etag = done
            .map_err(|failure| {
                let failure =
                    Failure { message: format!("{shown}: {}: {}", step.action(), failure.message), ..failure };
                failure.hint_for(Exit::Refused, || "what was done before stays done: apply the file again".to_owned())
            })?
            .etag;
        if client.output == Output::Table {
            show(&print::clean(&format!("{shown}: {} done\n", line(step))))?;
        }
    }
    Ok(())
}

/// Asks whoever sits at the terminal.
fn is_confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nobody is there to ask: nothing was changed")
            .hint("--yes applies without asking, --dry-run only shows"));
    }
    let _ = write!(io::stderr(), "Apply? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::local("cannot read the answer", &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn line(step: &Step) -> String {
    format!("{} {}", step.action(), step.detail()).trim_end().to_owned()
}

/// A line for each step, obstacle and note: `+` comes, `~` changes, `-` goes, `!` cannot be, ` ` stays.
fn text(plans: &[Plan]) -> String {
    let mut rows = Vec::new();
    for plan in plans {
        let mut add = |sign: &str, said: String| rows.push(vec![sign.to_owned(), short(&plan.name), said]);
        for step in &plan.steps {
            let sign = match step {
                Step::Register(_) => "+",
                Step::Destroy => "-",
                _ => "~",
            };
            add(sign, line(step));
        }
        plan.obstacles.iter().for_each(|obstacle| add("!", obstacle.clone()));
        plan.notes.iter().for_each(|note| add(" ", note.clone()));
    }
    print::columns(&rows)
}

/// The whole of it, for programs.
fn show_report(client: &Client, plans: &[Plan], applied: bool) -> Result<(), Failure> {
    if client.output == Output::Table {
        return Ok(());
    }
    let remark = |plan: &Plan, text: &String| RemarkView { virtual_machine: plan.name.clone(), text: text.clone() };
    let mut report = ReportView { changes: Vec::new(), obstacles: Vec::new(), notes: Vec::new(), applied };
    for plan in plans {
        let change = |step: &Step| ChangeView {
            virtual_machine: plan.name.clone(),
            action: step.action(),
            detail: step.detail(),
        };
        report.changes.extend(plan.steps.iter().map(change));
        report.obstacles.extend(plan.obstacles.iter().map(|text| remark(plan, text)));
        report.notes.extend(plan.notes.iter().map(|text| remark(plan, text)));
    }
    show(&json(&report, false)?)
}
