//! What a VM has done, as JSON and as text. Key type: [`StatsView`].

use std::time::Duration;

use serde::Serialize;

use super::super::print;
use super::{nanos, short};
use crate::api::v1;
use crate::api::v1::virtual_machine_stats::{Balloon, Device, KvmUse, Queue, Vcpu};

/// All of it. Times are nanoseconds.
#[derive(Debug, Serialize)]
pub(crate) struct StatsView {
    name: String,
    boot_phases: Vec<PhaseView>,
    vcpus: Vec<VcpuView>,
    devices: Vec<DeviceView>,
    memory_use: Option<MemoryUseView>,
    balloon: Option<BalloonView>,
    kvm_use: Option<KvmUseView>,
}

/// What KVM holds for a VM.
#[derive(Debug, Clone, Copy, Serialize)]
struct KvmUseView {
    memory_slots: u64,
    irqfds: u64,
    ioeventfds: u64,
}

#[derive(Debug, Serialize)]
struct BalloonView {
    target_bytes: u64,
    held_bytes: u64,
    removed_bytes: u64,
    reported_bytes: u64,
    kept_bytes: u64,
    statistics: Vec<StatisticView>,
    statistics_age_ns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct StatisticView {
    name: String,
    value: u64,
}

#[derive(Debug, Serialize)]
struct PhaseView {
    name: String,
    at_ns: u64,
}

#[derive(Debug, Serialize)]
struct VcpuView {
    exits: Vec<ExitView>,
}

#[derive(Debug, Serialize)]
struct ExitView {
    reason: String,
    count: u64,
}

#[derive(Debug, Serialize)]
struct DeviceView {
    id: String,
    faults: u64,
    queues: Vec<QueueView>,
}

#[derive(Debug, Serialize)]
struct QueueView {
    operations: u64,
    bytes: u64,
    errors: u64,
    latency_sum_ns: u64,
    latency_buckets: Vec<u64>,
}

/// What a VM's process takes, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct MemoryUseView {
    pub(crate) guest_bytes: u64,
    pub(crate) overhead_bytes: u64,
}

impl From<v1::MemoryUse> for MemoryUseView {
    fn from(memory: v1::MemoryUse) -> Self {
        Self { guest_bytes: memory.guest_bytes, overhead_bytes: memory.overhead_bytes }
    }
}

impl MemoryUseView {
    pub(crate) fn text(self) -> String {
        format!("{} MiB of the guest touched, {} KiB besides", self.guest_bytes >> 20, self.overhead_bytes >> 10)
    }
}

impl From<v1::VirtualMachineStats> for StatsView {
    fn from(stats: v1::VirtualMachineStats) -> Self {
        let phases = stats.boot_phases.into_iter();
        Self {
            name: stats.name,
            boot_phases: phases.map(|phase| PhaseView { name: phase.name, at_ns: nanos(phase.at) }).collect(),
            vcpus: stats.vcpus.into_iter().map(VcpuView::from).collect(),
            devices: stats.devices.into_iter().map(DeviceView::from).collect(),
            memory_use: stats.memory_use.map(MemoryUseView::from),
            balloon: stats.balloon.map(BalloonView::from),
            kvm_use: stats.kvm_use.map(KvmUseView::from),
        }
    }
}

impl From<KvmUse> for KvmUseView {
    fn from(KvmUse { memory_slots, irqfds, ioeventfds }: KvmUse) -> Self {
        Self { memory_slots, irqfds, ioeventfds }
    }
}

impl From<Balloon> for BalloonView {
    fn from(balloon: Balloon) -> Self {
        let statistics = balloon.statistics.into_iter();
        Self {
            target_bytes: balloon.target_bytes,
            held_bytes: balloon.held_bytes,
            removed_bytes: balloon.removed_bytes,
            reported_bytes: balloon.reported_bytes,
            kept_bytes: balloon.kept_bytes,
            statistics: statistics.map(|one| StatisticView { name: one.name, value: one.value }).collect(),
            statistics_age_ns: balloon.statistics_age.map(|age| nanos(Some(age))),
        }
    }
}

impl BalloonView {
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let held = format!("{} given up of {} wanted", mib(self.held_bytes), mib(self.target_bytes));
        let back = format!(
            "{} given up, {} reported as free, {} left where it is",
            mib(self.removed_bytes),
            mib(self.reported_bytes),
            mib(self.kept_bytes)
        );
        let mut facts = vec![("balloon", held), ("given back", back)];
        if let Some(age) = self.statistics_age_ns {
            let said = self.statistics.iter().map(|one| format!("{} {}", one.name, one.value));
            let said = said.collect::<Vec<_>>().join(", ");
            facts.push(("guest says", format!("{said} ({} ago)", print::duration(Duration::from_nanos(age)))));
        }
        facts
    }
}

impl From<Vcpu> for VcpuView {
    fn from(vcpu: Vcpu) -> Self {
        let exits = vcpu.exits.into_iter();
        Self { exits: exits.map(|exit| ExitView { reason: exit.reason, count: exit.count }).collect() }
    }
}

impl From<Device> for DeviceView {
    fn from(device: Device) -> Self {
        let queues = device.queues.into_iter().map(QueueView::from).collect();
        Self { id: device.id, faults: device.faults, queues }
    }
}

impl From<Queue> for QueueView {
    fn from(queue: Queue) -> Self {
        let Queue { operations, bytes, errors, latency_sum, latency_buckets } = queue;
        Self { operations, bytes, errors, latency_sum_ns: nanos(latency_sum), latency_buckets }
    }
}

impl QueueView {
    /// The upper bound of the bucket in which the part of all operations ends.
    fn quantile(&self, part: f64) -> Option<Duration> {
        let whole: u64 = self.latency_buckets.iter().sum();
        let wanted = (whole as f64 * part).ceil() as u64;
        let mut seen = 0;
        let place = self.latency_buckets.iter().position(|count| {
            seen += count;
            whole > 0 && seen >= wanted
        })?;
        u32::try_from(place).ok().and_then(|place| 1u64.checked_shl(place)).map(Duration::from_micros)
    }
}

impl StatsView {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", short(&self.name));
        let phases: Vec<_> = self
            .boot_phases
            .iter()
            .map(|phase| format!("{} {}", phase.name, print::duration(Duration::from_nanos(phase.at_ns))))
            .collect();
        let mut facts = vec![("boot", phases.join(", "))];
        if let Some(memory) = self.memory_use {
            facts.push(("memory", memory.text()));
        }
        facts.extend(self.balloon.iter().flat_map(BalloonView::facts));
        if let Some(KvmUseView { memory_slots, irqfds, ioeventfds }) = self.kvm_use {
            facts.push(("kvm", format!("{memory_slots} memory slots, {irqfds} irqfds, {ioeventfds} ioeventfds")));
        }
        text.push_str(&print::facts(&facts));
        if let Some(first) = self.vcpus.first() {
            let sum = |index: usize| -> u64 {
                self.vcpus.iter().filter_map(|vcpu| vcpu.exits.get(index)).map(|exit| exit.count).sum()
            };
            let exits = first.exits.iter().enumerate().map(|(index, exit)| format!("{} {}", exit.reason, sum(index)));
            text.push_str(&print::facts(&[("exits", exits.collect::<Vec<_>>().join(", "))]));
        }
        let rows: Vec<_> = self.devices.iter().flat_map(device_rows).collect();
        text.push_str(&print::table(
            ["DEVICE", "QUEUE", "OPERATIONS", "BYTES", "ERRORS", "P50", "P99", "FAULTS"],
            &rows,
        ));
        text
    }
}

fn device_rows(device: &DeviceView) -> Vec<[String; 8]> {
    let below = |queue: &QueueView, part| {
        queue.quantile(part).map(|bound| format!("< {}", print::duration(bound))).unwrap_or_default()
    };
    let row = |(number, queue): (usize, &QueueView)| {
        [
            device.id.clone(),
            number.to_string(),
            queue.operations.to_string(),
            queue.bytes.to_string(),
            queue.errors.to_string(),
            below(queue, 0.5),
            below(queue, 0.99),
            device.faults.to_string(),
        ]
    };
    device.queues.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_that_enough_stay_below() {
        let queue = |latency_buckets| QueueView::from(Queue { latency_buckets, ..Queue::default() });
        let mut buckets = vec![0; 26];
        assert_eq!(queue(buckets.clone()).quantile(0.5), None);
        (buckets[3], buckets[10]) = (98, 2);
        assert_eq!(queue(buckets.clone()).quantile(0.5), Some(Duration::from_micros(8)));
        assert_eq!(queue(buckets).quantile(0.99), Some(Duration::from_micros(1024)));
    }
}
