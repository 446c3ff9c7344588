//! Counts what happens to a tenant's VMs: the example of a plugin that observes.
//!
//! It has no settings. For each tenant it keeps a number for each kind of event that came: `registered`, `started`, `stopped`,
//! `failed` (of those that stopped, the ones whose end nobody asked for), `destroyed`, `attached`, `detached`, `overruled`; and
//! `missed`, those that it was not told. `ostler plugin kv list tally` shows them. VMs that fail it names in the log.

use ostler_policy::observe::{Batch, Happening, Observe, VmEnd};
use ostler_policy::{Error, Policy, Reader, Source, kv, log};

struct Tally;

impl Policy for Tally {
    const NAME: &'static str = "tally";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "counts what happens to a tenant's VMs";
    const SETTINGS: &'static [&'static str] = &[];

    fn read(_: &mut Reader<'_, impl Source>) -> Self {
        Self
    }
}

impl Observe for Tally {
    fn observe(&self, batch: &Batch) -> Result<(), Error> {
        if batch.missed > 0 {
            count("missed", batch.missed)?;
        }
        for event in &batch.events {
            match &event.what {
                Happening::VmRegistered(_) => count("registered", 1)?,
                Happening::VmStarted(_) => count("started", 1)?,
                Happening::VmStopped(stopped) => {
                    count("stopped", 1)?;
                    if !matches!(stopped.end, VmEnd::Off | VmEnd::Restart) {
                        count("failed", 1)?;
                        log::warn(&format!("{} {}", stopped.vm, in_words(stopped.end)));
                    }
                }
                Happening::VmDestroyed(_) => count("destroyed", 1)?,
                Happening::DeviceAttached(_) => count("attached", 1)?,
                Happening::DeviceDetached(_) => count("detached", 1)?,
                Happening::DecisionOverruled(_) => count("overruled", 1)?,
            }
        }
        Ok(())
    }
}

fn in_words(end: VmEnd) -> &'static str {
    match end {
        VmEnd::Off => "is off",
        VmEnd::Restart => "begins anew",
        VmEnd::TripleFault => "has lost its processor",
        VmEnd::Panicked => "has panicked",
        VmEnd::Killed => "was killed",
        VmEnd::LaunchFailed => "did not start",
        VmEnd::HostError => "was failed by the host",
        VmEnd::Vanished => "has vanished",
    }
}

/// So many more of a kind.
fn count(kind: &str, more: u64) -> Result<(), Error> {
    let before = kv::number(kind).unwrap_or(0);
    kv::set_number(kind, before.saturating_add(more)).map_err(|why| Error::Internal(format!("cannot count: {why:?}")))
}

ostler_policy::export!(Tally: observe);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use ostler_policy::observe::StoppedVm;
    use ostler_policy::testing;

    fn stopped(end: VmEnd) -> Happening {
        Happening::VmStopped(StoppedVm { vm: "web".into(), end })
    }

    #[test]
    fn counts_go_on_from_batch_to_batch() {
        let tally: Tally = testing::read([]).unwrap();
        testing::remember(60, &[("started", "7")]);
        let first = [Happening::VmStarted("web".into()), stopped(VmEnd::Restart), Happening::VmStarted("web".into())];
        tally.observe(&testing::batch(3, first.into())).unwrap();
        let more = testing::batch(40, vec![stopped(VmEnd::Panicked)]);
        tally.observe(&Batch { missed: 34, ..more }).unwrap();
        let expected = [("failed", "1"), ("missed", "34"), ("started", "9"), ("stopped", "2")];
        assert_eq!(testing::remembered(), expected.map(|(key, value)| (key.into(), value.into())).into());
    }
}
