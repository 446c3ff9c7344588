//! Places VMs on NUMA nodes: near their devices first, then packed or spread. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `mode` | `spread` (default): the node with the largest free share first; `pack`: the smallest, so that others stay whole |
//! | `reserve-mib` | so much of each node's memory stays free of VMs |
//!
//! A node is out whose memory would be promised to VMs beyond its size, less the reserve. One whose CPUs are fewer than the
//! vCPUs there would be comes behind those that have enough. Whatever is equal: a VM without devices leaves nodes that
//! are near free virtual functions to others.

use ostler_policy::place::{Pages, Place, PlaceRequest, Row, Verdict};
use ostler_policy::{Error, Policy, Reader, Refusal, Source, refuse};

/// What nodes are filled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Spread,
    Pack,
}

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Placement {
    mode: Mode,
    reserve_mib: u64,
}

/// Each preference outweighs all below it together. Near: of all the VM's devices, in permille.
const NEAR_WEIGHT: i32 = 100;
const CROWDED_WEIGHT: i32 = 10_000;
/// Of a share in permille; at most [`MOST`].
const LOAD_WEIGHT: i32 = 2;
const FREE_VFS_WEIGHT: i32 = 1;
/// A load of four times what there is counts as any higher one.
const MOST: u64 = 4000;

impl Policy for Placement {
    const NAME: &'static str = "placement";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "places VMs on NUMA nodes, near their devices, packed or spread";
    const SETTINGS: &'static [&'static str] = &["mode", "reserve-mib"];

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        Self {
            mode: settings.choice("mode", &[("spread", Mode::Spread), ("pack", Mode::Pack)]),
            reserve_mib: settings.number("reserve-mib", 0..=u64::MAX >> 20).unwrap_or(0),
        }
    }
}

impl Place for Placement {
    fn place(&self, request: &PlaceRequest) -> Result<Verdict, Error> {
        Ok(Verdict::Rank(request.rank(|row| self.judge(request, row))))
    }
}

impl Placement {
    /// A candidate's score, or why it is out.
    fn judge(&self, request: &PlaceRequest, row: Row) -> Result<i32, Refusal> {
        let vm = &request.vm;
        let promised = row.placed_mib.saturating_add(vm.memory_mib);
        // What is reserved as large pages is out of the kernel's hands: the host counts it.
        let is_ordinary = request.pages == Pages::Ordinary;
        if is_ordinary && promised > row.memory_mib.saturating_sub(self.reserve_mib) {
            let Row { node, memory_mib, placed_mib, .. } = row;
            let message = format!(
                "node {node} has {memory_mib} MiB, {placed_mib} are other VMs' and {} are kept free",
                self.reserve_mib
            );
            return Err(refuse("memory.promised", message));
        }
        if is_ordinary && vm.memory_mib > row.available_mib.saturating_sub(self.reserve_mib) {
            let Row { node, available_mib, .. } = row;
            let message = format!("node {node} has {available_mib} MiB left, {} are kept free", self.reserve_mib);
            return Err(refuse("memory.reserved", message));
        }
        let vcpus = row.placed_vcpus.saturating_add(vm.vcpus);
        let load = permille(promised, row.memory_mib).max(permille(vcpus.into(), row.cpus.into()));
        let load = match self.mode {
            Mode::Spread => -load,
            Mode::Pack => load,
        };
        let near = permille(row.own_devices.into(), request.devices.into()).min(1000) * NEAR_WEIGHT;
        let crowded = if vcpus > row.cpus { CROWDED_WEIGHT } else { 0 };
        let is_wanted_by_others = request.devices == 0 && row.free_vfs > 0;
        Ok(near - crowded + load * LOAD_WEIGHT - if is_wanted_by_others { FREE_VFS_WEIGHT } else { 0 })
    }
}

/// How much of `whole` is `part`, bounded.
fn permille(part: u64, whole: u64) -> i32 {
    let share = u128::from(part) * 1000 / u128::from(whole.max(1));
    i32::try_from(share.min(MOST.into())).unwrap_or(i32::MAX)
}

ostler_policy::export!(Placement: place);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::place::Mark;
    use ostler_policy::testing;

    /// Marks of an empty node, and of one that is half full.
    fn marks(placement: Placement, change: impl Fn(&mut PlaceRequest)) -> Vec<Mark> {
        let half = Row { placed_mib: 8 << 10, placed_vcpus: 1, vms: 1, ..testing::node(1) };
        let mut request = testing::place(&[testing::node(0), half]);
        change(&mut request);
        match placement.place(&request) {
            Ok(Verdict::Rank(ranking)) => ranking.marks,
            other => panic!("{other:?}"),
        }
    }

    /// The first one.
    fn first(marks: &[Mark]) -> usize {
        let score = |mark: &Mark| match mark {
            Mark::Score(score) => *score,
            Mark::Reject(_) => i32::MIN,
        };
        if score(&marks[0]) >= score(&marks[1]) { 0 } else { 1 }
    }

    const SPREAD: Placement = Placement { mode: Mode::Spread, reserve_mib: 0 };
    const PACK: Placement = Placement { mode: Mode::Pack, reserve_mib: 0 };

    #[test]
    fn reads_its_settings() {
        assert_eq!(testing::read([]), Ok(SPREAD));
        let read = testing::read([("mode", "pack"), ("reserve-mib", "512")]);
        assert_eq!(read, Ok(Placement { mode: Mode::Pack, reserve_mib: 512 }));
        let wrong =
            testing::read::<Placement>([("mode", "stack"), ("reserve", "1"), ("reserve-mib", "x")]).unwrap_err();
        assert_eq!(
            wrong.iter().map(|invalid| invalid.key.as_str()).collect::<Vec<_>>(),
            ["reserve", "mode", "reserve-mib"]
        );
    }

    #[test]
    fn spreads_or_packs() {
        assert_eq!(first(&marks(SPREAD, |_| {})), 0);
        assert_eq!(first(&marks(PACK, |_| {})), 1);
    }

    #[test]
    fn devices_come_before_cpus_and_cpus_before_the_mode() {
        assert_eq!(first(&marks(PACK, |request| request.vm.vcpus = 4)), 0, "five vCPUs on four CPUs");
        let near = |request: &mut PlaceRequest| {
            request.vm.vcpus = 4;
            request.devices = 2;
            request.candidates.own_devices = vec![0, 1];
        };
        assert_eq!(first(&marks(PACK, near)), 1);
        let equal = |request: &mut PlaceRequest| {
            request.candidates.placed_mib = vec![0, 0];
            request.candidates.placed_vcpus = vec![0, 0];
            request.candidates.free_vfs = vec![2, 0];
        };
        assert_eq!(first(&marks(SPREAD, equal)), 1, "the other node is wanted by those with devices");
    }

    #[test]
    fn what_is_promised_or_kept_is_not_given() {
        let large = |request: &mut PlaceRequest| request.vm.memory_mib = 9 << 10;
        assert!(matches!(marks(SPREAD, large)[..], [Mark::Score(_), Mark::Reject(0)]));
        let kept = Placement { reserve_mib: 8 << 10, ..SPREAD };
        assert!(matches!(marks(kept, |_| {})[..], [Mark::Score(_), Mark::Reject(0)]));
        let taken = |request: &mut PlaceRequest| request.candidates.available_mib = vec![8 << 10, 16 << 10];
        assert_eq!(marks(kept, taken), [Mark::Reject(0), Mark::Reject(1)]);
        let huge = |request: &mut PlaceRequest| {
            request.vm.memory_mib = 9 << 10;
            request.pages = Pages::TwoMib;
        };
        assert!(matches!(marks(kept, huge)[..], [Mark::Score(_), Mark::Score(_)]));
    }

    #[test]
    fn nonsense_of_the_host_breaks_nothing() {
        let absurd = |request: &mut PlaceRequest| {
            request.vm.memory_mib = u64::MAX;
            request.vm.vcpus = u32::MAX;
            request.candidates.cpus = vec![0, 0];
            request.candidates.memory_mib = vec![0, u64::MAX];
            request.candidates.placed_mib = vec![u64::MAX; 2];
            request.candidates.available_mib = vec![u64::MAX; 2];
            request.candidates.own_devices = vec![u32::MAX; 2];
        };
        assert!(matches!(marks(SPREAD, absurd)[..], [Mark::Reject(0), Mark::Score(_)]));
    }
}
