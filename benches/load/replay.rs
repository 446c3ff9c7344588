//! Decisions on record, put to their plugin again: the same ones must come out, fuel included, and with another setting
//! exactly those change that it concerns. Anything else ends it.

use std::ops::Range;
use std::time::{Duration, Instant};

use ostler::api::v1;
use tokio::task::JoinSet;

use super::support::client::wait;
use super::support::{Caller, Host, assets, small};
use super::{CLIENTS, TENANTS};

/// Decisions; of every ten one is about a VM of one vCPU, which is allowed, one about two, and the others about three.
const DECISIONS: usize = 100_000;
const TENTH: usize = DECISIONS / 10;
const OTHERS: usize = DECISIONS - 2 * TENTH;

/// What it took, as text.
pub fn measure() -> Result<String, String> {
    let host = Host::start_with_tenants(TENANTS);
    let operator = host.operator();
    let bytes = assets::plugin("admission");
    operator.load("operator/plugins/admission", &bytes, &[("max-vcpus", "1")]).map_err(|status| status.to_string())?;
    let begin = Instant::now();
    let callers: Vec<_> = (0..CLIENTS).map(|_| host.tenant("acme")).collect();
    for first in (0..DECISIONS).step_by(TENTH) {
        eprintln!("recording decisions: {first} of {DECISIONS}");
        wait(record(&callers, first..first + TENTH))?;
    }
    let recorded = begin.elapsed();
    let (same, took) = replay(&host, &[])?;
    expect(&same, &format!("0 of {DECISIONS} change: 0 now deny, 0 now allow, 0 differ otherwise;"))?;
    // Up to two vCPUs instead of one: a tenth is allowed, and the denials of the others name another number.
    let (changed, _) = replay(&host, &["--setting", "max-vcpus=2"])?;
    let all = TENTH + OTHERS;
    expect(
        &changed,
        &format!("{all} of {DECISIONS} change: 0 now deny, {TENTH} now allow, {OTHERS} differ otherwise;"),
    )?;
    let rate = |took: Duration| DECISIONS as f64 / took.as_secs_f64();
    let [recorded, took] = [recorded, took].map(rate);
    Ok(format!(
        "{DECISIONS} decisions recorded at {recorded:.0}/s, replayed at {took:.0}/s: all the same, fuel included; with \
         another setting {TENTH} are allowed, {OTHERS} denied in other words, and {TENTH} the same"
    ))
}

/// Has the decisions of these numbers made by all callers at once.
async fn record(callers: &[Caller], numbers: Range<usize>) -> Result<(), String> {
    let mut tasks = JoinSet::new();
    for (caller, first) in callers.iter().cloned().zip(numbers.clone()) {
        let own = (first..numbers.end).step_by(callers.len());
        tasks.spawn(async move {
            for at in own {
                decide(&caller, at).await?;
            }
            Ok::<_, String>(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Asks about a VM, which is gone afterwards.
async fn decide(caller: &Caller, at: usize) -> Result<(), String> {
    let name = caller.name(&format!("r{at}"));
    let vcpus = [1, 2].get(at % 10).copied().unwrap_or(3);
    let spec = Some(v1::VirtualMachineSpec { vcpus, ..small() });
    let vm = v1::VirtualMachine { name: name.clone(), spec, ..Default::default() };
    let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() };
    let mut vms = caller.vms.clone();
    match (vms.register_virtual_machine(request).await, vcpus) {
        (Ok(_), 1) => {
            let request = v1::DestroyVirtualMachineRequest { name, ..Default::default() };
            vms.destroy_virtual_machine(request).await.map(drop).map_err(|status| status.to_string())
        }
        (Err(status), 2 | 3) if status.message().contains("limit.vcpus") => Ok(()),
        (other, _) => Err(format!("{vcpus} vCPUs: {other:?}")),
    }
}

/// `ostler plugin replay`, as an operator does it: what it says, and how long it took.
fn replay(host: &Host, more: &[&str]) -> Result<(String, Duration), String> {
    let begin = Instant::now();
    let mut command = host.command("operator-admin");
    let output = command.args(["plugin", "replay", "--name", "admission"]).args(more).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok((text(output.stdout), begin.elapsed())) } else { Err(text(output.stderr)) }
}

/// What the last line begins with.
fn expect(text: &str, words: &str) -> Result<(), String> {
    let last = text.lines().next_back().unwrap_or_default();
    if last.starts_with(words) { Ok(()) } else { Err(format!("not {words:?} but {last:?}")) }
}
