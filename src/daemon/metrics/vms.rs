//! Families about VMs. Key function: [`text`]. Base units, and names as Prometheus has them: `_total`, `_bytes`,
//! `_seconds`.

use std::time::Duration;

use super::exposition::{Exposition, Kind};
use crate::daemon::service::VmStats;
use crate::wire::counters::{BalloonCounters, DeviceCounters, Held, QueueCounters, Reason, Statistic};

/// Everything that is known of these VMs.
pub(super) fn text(all: &[VmStats]) -> String {
    let mut text = Exposition::default();
    text.family("ostler_vm_info", Kind::Gauge, "A VM and the state that it is in; always 1.");
    for stats in all {
        let uid = stats.vm.uid.to_string();
        let (tenant, vm) = (stats.vm.tenant.as_str(), stats.vm.name.as_str());
        let labels = [("tenant", tenant), ("vm", vm), ("uid", &uid), ("state", stats.vm.state.name())];
        text.sample("ostler_vm_info", &labels, 1);
    }
    text.family("ostler_vm_boot_seconds", Kind::Gauge, "When a phase of the last start was reached, since its first.");
    each(all, |stats, own| {
        for (phase, at) in &stats.counters.phases {
            let labels = [own[0], own[1], ("phase", phase.name())];
            text.sample("ostler_vm_boot_seconds", &labels, at.as_secs_f64());
        }
    });
    text.family("ostler_vm_exits_total", Kind::Counter, "Times that a vCPU left the guest for the vmm, by reason.");
    each(all, |stats, own| {
        for (vcpu, exits) in stats.counters.exits.iter().enumerate() {
            let vcpu = vcpu.to_string();
            for (reason, count) in Reason::ALL.into_iter().zip(exits) {
                let labels = [own[0], own[1], ("vcpu", &vcpu), ("reason", reason.name())];
                text.sample("ostler_vm_exits_total", &labels, count);
            }
        }
    });
    memory(&mut text, all);
    for held in Held::ALL {
        let name = format!("ostler_vm_kvm_{}", held.name());
        text.family(&name, Kind::Gauge, "What KVM holds for a VM: one kind of its objects.");
        each(all, |stats, own| {
            if let Some(counts) = stats.counters.held {
                text.sample(&name, &own, counts[held as usize]);
            }
        });
    }
    text.family("ostler_vm_device_faults_total", Kind::Counter, "Faults of guest and host that a device has met.");
    devices(all, |own, device| {
        let labels = [own[0], own[1], ("device", &device.name)];
        text.sample("ostler_vm_device_faults_total", &labels, device.faults);
    });
    queues(&mut text, all);
    balloons(&mut text, all);
    text.finish()
}

/// Tenant and name.
type Own<'a> = [(&'static str, &'a str); 2];

fn each<'a>(all: &'a [VmStats], mut with: impl FnMut(&'a VmStats, Own<'a>)) {
    for stats in all {
        with(stats, [("tenant", stats.vm.tenant.as_str()), ("vm", stats.vm.name.as_str())]);
    }
}

fn devices<'a>(all: &'a [VmStats], mut with: impl FnMut(Own<'a>, &'a DeviceCounters)) {
    each(all, |stats, own| stats.counters.devices.iter().for_each(|device| with(own, device)));
}

fn memory(text: &mut Exposition, all: &[VmStats]) {
    text.family("ostler_vm_memory_guest_bytes", Kind::Gauge, "Guest memory that was touched.");
    each(all, |stats, own| {
        if let Some(memory) = stats.memory {
            text.sample("ostler_vm_memory_guest_bytes", &own, memory.guest);
        }
    });
    text.family("ostler_vm_memory_overhead_bytes", Kind::Gauge, "Memory of the VM's process besides the guest's.");
    each(all, |stats, own| {
        if let Some(memory) = stats.memory {
            text.sample("ostler_vm_memory_overhead_bytes", &own, memory.overhead);
        }
    });
}

fn balloons(text: &mut Exposition, all: &[VmStats]) {
    type Get = fn(&BalloonCounters) -> u64;
    let families: [(&str, Kind, &str, Get); 5] = [
        ("ostler_vm_balloon_target_bytes", Kind::Gauge, "Memory that a guest is to give up.", |one| one.target),
        ("ostler_vm_balloon_held_bytes", Kind::Gauge, "Memory that it has given up, by its account.", |one| one.held),
        ("ostler_vm_balloon_removed_bytes_total", Kind::Counter, "What of that the host got back.", |one| one.removed),
        ("ostler_vm_balloon_reported_bytes_total", Kind::Counter, "What the host got back of free pages.", |one| {
            one.reported
        }),
        ("ostler_vm_balloon_kept_bytes_total", Kind::Counter, "What of both was left where it is.", |one| one.kept),
    ];
    for (name, kind, help, get) in families {
        text.family(name, kind, help);
        each(all, |stats, own| {
            if let Some(balloon) = &stats.counters.balloon {
                text.sample(name, &own, get(balloon));
            }
        });
    }
    for statistic in Statistic::ALL {
        let name = format!("ostler_vm_guest_memory_{}", statistic.name());
        text.family(&name, Kind::Gauge, "What the guest says of its memory; not to be relied upon.");
        each(all, |stats, own| {
            let told = stats.counters.balloon.iter().flat_map(|balloon| &balloon.statistics);
            if let Some((_, value)) = told.into_iter().find(|(told, _)| *told == statistic) {
                text.sample(&name, &own, value);
            }
        });
    }
}

fn queues(text: &mut Exposition, all: &[VmStats]) {
    type Get = fn(&QueueCounters) -> u64;
    let families: [(&str, &str, Get); 3] = [
        ("ostler_vm_queue_operations_total", "Requests or frames that a queue has given back.", |queue| {
            queue.operations
        }),
        ("ostler_vm_queue_bytes_total", "Their bytes in both directions, headers included.", |queue| queue.bytes),
        ("ostler_vm_queue_errors_total", "Requests that failed.", |queue| queue.errors),
    ];
    for (name, help, get) in families {
        text.family(name, Kind::Counter, help);
        devices(all, |own, device| {
            for (number, queue) in device.queues.iter().enumerate() {
                let labels = [own[0], own[1], ("device", &device.name), ("queue", &number.to_string())];
                text.sample(name, &labels, get(queue));
            }
        });
    }
    let help = "From a device's taking a request to its giving it back.";
    text.family("ostler_vm_queue_latency_seconds", Kind::Histogram, help);
    devices(all, |own, device| {
        for (number, queue) in device.queues.iter().enumerate() {
            histogram(text, own, &device.name, &number.to_string(), queue);
        }
    });
}

fn histogram(text: &mut Exposition, own: Own<'_>, device: &str, number: &str, queue: &QueueCounters) {
    let mut below = 0u64;
    let last = queue.latency.len() - 1;
    for (index, count) in queue.latency.iter().enumerate() {
        below = below.wrapping_add(*count);
        let bound = Duration::from_micros(1 << index).as_secs_f64().to_string();
        let bound = if index == last { "+Inf" } else { &bound };
        let labels = [own[0], own[1], ("device", device), ("queue", number), ("le", bound)];
        text.sample("ostler_vm_queue_latency_seconds_bucket", &labels, below);
    }
    let labels = [own[0], own[1], ("device", device), ("queue", number)];
    let sum = Duration::from_nanos(queue.latency_sum_ns).as_secs_f64();
    text.sample("ostler_vm_queue_latency_seconds_sum", &labels, sum);
    text.sample("ostler_vm_queue_latency_seconds_count", &labels, below);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::samples;
    use crate::daemon::service::MemoryUse;
    use crate::wire::counters::{BUCKETS, Counters, Phase};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn every_family_is_told_once_with_all_its_samples() {
        let mut latency = [0; BUCKETS];
        (latency[1], latency[BUCKETS - 1]) = (2, 1);
        let queue = QueueCounters { operations: 3, bytes: 4096, errors: 1, latency_sum_ns: 1_500, latency };
        let stats = VmStats {
            vm: Arc::new(samples::running("acme", "web")),
            counters: Counters {
                phases: vec![(Phase::Started, Duration::ZERO), (Phase::Console, Duration::from_millis(12))],
                held: Some([2, 9, 5]),
                exits: vec![[1, 2, 3, 4, 5, 6, 7]],
                devices: vec![DeviceCounters { name: "root".into(), faults: 1, queues: vec![queue] }],
                balloon: Some(BalloonCounters {
                    held: 8192,
                    statistics: vec![(Statistic::Available, 77)],
                    ..Default::default()
                }),
            },
            memory: Some(MemoryUse { guest: 1 << 20, overhead: 4096 }),
        };
        let text = text(&[stats.clone(), stats]);
        for line in [
            "ostler_vm_exits_total{tenant=\"acme\",vm=\"web\",vcpu=\"0\",reason=\"mmio_write\"} 4",
            "ostler_vm_kvm_irqfds{tenant=\"acme\",vm=\"web\"} 9",
            "ostler_vm_boot_seconds{tenant=\"acme\",vm=\"web\",phase=\"console\"} 0.012",
            "ostler_vm_queue_bytes_total{tenant=\"acme\",vm=\"web\",device=\"root\",queue=\"0\"} 4096",
            "ostler_vm_queue_latency_seconds_bucket{tenant=\"acme\",vm=\"web\",device=\"root\",queue=\"0\",le=\"0.000002\"} 2",
            "ostler_vm_queue_latency_seconds_bucket{tenant=\"acme\",vm=\"web\",device=\"root\",queue=\"0\",le=\"+Inf\"} 3",
            "ostler_vm_queue_latency_seconds_sum{tenant=\"acme\",vm=\"web\",device=\"root\",queue=\"0\"} 0.0000015",
            "ostler_vm_balloon_held_bytes{tenant=\"acme\",vm=\"web\"} 8192",
            "ostler_vm_guest_memory_available_bytes{tenant=\"acme\",vm=\"web\"} 77",
            "ostler_vm_memory_overhead_bytes{tenant=\"acme\",vm=\"web\"} 4096",
        ] {
            assert!(text.lines().any(|had| had == line), "{line}\n{text}");
        }
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), types.len(), "{types:?}");
        // Samples of a family stand together, below its TYPE.
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None => assert!(line.starts_with('#') || line.starts_with(family), "{line} below {family}"),
            }
        }
    }
}
