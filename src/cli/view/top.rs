//! What the host, tenants and VMs take, worked out from two looks. Key types: [`Look`], [`TopView`]. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::super::args::TopOrder;
use super::super::print;
use super::{nanos, short};
use crate::api::v1;

/// What the daemon said at one time.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// When, since any fixed moment.
    pub(crate) at: Duration,
    /// When, for people: RFC 3339.
    pub(crate) time: String,
    /// For operators.
    pub(crate) host: Option<v1::HostUsage>,
    pub(crate) vms: Vec<v1::VirtualMachineUsage>,
}

/// What all take. Rates are null where there is no earlier look at the same process.
#[derive(Debug, Serialize)]
pub(crate) struct TopView {
    time: String,
    host: Option<HostView>,
    tenants: Vec<TenantView>,
    virtual_machines: Vec<UsageView>,
}

#[derive(Debug, Serialize)]
struct HostView {
    cpus: u32,
    /// Of all CPUs together: 100 is all that there is.
    cpu_percent: Option<f64>,
    memory_bytes: u64,
    memory_available_bytes: u64,
}

#[derive(Debug, Serialize)]
struct TenantView {
    tenant: String,
    virtual_machines: u64,
    vcpus: u64,
    #[serde(flatten)]
    rates: Rates,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct UsageView {
    name: String,
    state: String,
    vmm_pid: u32,
    vcpus: u32,
    memory_mib: u64,
    #[serde(flatten)]
    rates: Rates,
    memory_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Rates {
    /// Of one CPU: 200 is two of them.
    cpu_percent: Option<f64>,
    disk_operations_per_second: Option<u64>,
    disk_bytes_per_second: Option<u64>,
    nic_frames_per_second: Option<u64>,
    nic_bytes_per_second: Option<u64>,
}

/// One decimal is all that the kernel's clock ticks bear.
fn percent(part: Duration, whole: Duration) -> Option<f64> {
    (!whole.is_zero()).then(|| (part.as_secs_f64() / whole.as_secs_f64() * 1000.0).round() / 10.0)
}

/// Per second, to the nearest whole number.
fn per_second(more: u64, interval: Duration) -> Option<u64> {
    let millis = u64::try_from(interval.as_millis()).ok().filter(|millis| *millis > 0)?;
    Some(more.saturating_mul(1000).saturating_add(millis / 2) / millis)
}

impl Rates {
    fn between(before: &v1::VirtualMachineUsage, after: &v1::VirtualMachineUsage, interval: Duration) -> Self {
        let cpu = Duration::from_nanos(nanos(after.cpu_time).saturating_sub(nanos(before.cpu_time)));
        let rate = |before: u64, after: u64| per_second(after.saturating_sub(before), interval);
        Self {
            cpu_percent: percent(cpu, interval),
            disk_operations_per_second: rate(before.disk_operations, after.disk_operations),
            disk_bytes_per_second: rate(before.disk_bytes, after.disk_bytes),
            nic_frames_per_second: rate(before.nic_frames, after.nic_frames),
            nic_bytes_per_second: rate(before.nic_bytes, after.nic_bytes),
        }
    }

    /// What is not known of one counts as nothing, unless it is not known of any.
    fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
        };
        Self {
            cpu_percent: match (self.cpu_percent, other.cpu_percent) {
                (None, None) => None,
                (a, b) => Some(((a.unwrap_or(0.0) + b.unwrap_or(0.0)) * 10.0).round() / 10.0),
            },
            disk_operations_per_second: sum(self.disk_operations_per_second, other.disk_operations_per_second),
            disk_bytes_per_second: sum(self.disk_bytes_per_second, other.disk_bytes_per_second),
            nic_frames_per_second: sum(self.nic_frames_per_second, other.nic_frames_per_second),
            nic_bytes_per_second: sum(self.nic_bytes_per_second, other.nic_bytes_per_second),
        }
    }

    fn cells(self) -> [String; 3] {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
        [
            self.cpu_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}")),
            bytes(self.disk_bytes_per_second),
            bytes(self.nic_bytes_per_second),
        ]
    }
}

impl TopView {
    /// What `after` shows, with rates since `before`.
    pub(crate) fn between(before: Option<&Look>, after: &Look, order: TopOrder) -> Self {
        let interval = before.map_or(Duration::ZERO, |before| after.at.saturating_sub(before.at));
        let earlier: HashMap<_, _> =
            before.iter().flat_map(|look| &look.vms).map(|vm| ((vm.name.as_str(), vm.vmm_pid), vm)).collect();
        let usage = |vm: &v1::VirtualMachineUsage| UsageView {
            name: vm.name.clone(),
            state: vm.state().as_str_name().to_owned(),
            vmm_pid: vm.vmm_pid,
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            rates: earlier
                .get(&(vm.name.as_str(), vm.vmm_pid))
                .map_or_else(Rates::default, |before| Rates::between(before, vm, interval)),
            memory_bytes: vm.memory_bytes,
        };
        let mut virtual_machines: Vec<_> = after.vms.iter().map(usage).collect();
        let tenants = tenants(&virtual_machines);
        sort(&mut virtual_machines, order);
        let host = after.host.map(|host| {
            let busy = before.and_then(|before| before.host).map(|before| {
                let worked = nanos(host.cpu_time).saturating_sub(nanos(before.cpu_time));
                percent(Duration::from_nanos(worked), interval.saturating_mul(host.cpus.max(1)))
            });
            HostView {
                cpus: host.cpus,
                cpu_percent: busy.flatten(),
                memory_bytes: host.memory_bytes,
                memory_available_bytes: host.memory_available_bytes,
            }
        });
        Self { time: after.time.clone(), host, tenants, virtual_machines }
    }

    /// Tables, for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(host) = &self.host {
            let busy = host.cpu_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}"));
            let used = host.memory_bytes.saturating_sub(host.memory_available_bytes);
            text += &format!(
                "host: {} CPUs, {busy} % busy; {} of {} memory in use\n\n",
                host.cpus,
                size(used),
                size(host.memory_bytes)
            );
        }
        let tenants: Vec<_> = self.tenants.iter().map(TenantView::cells).collect();
        text += &print::table(["TENANT", "VMS", "VCPUS", "CPU%", "MEMORY", "DISK/s", "NET/s"], &tenants);
        text.push('\n');
        let vms: Vec<_> = self.virtual_machines.iter().map(UsageView::cells).collect();
        text += &print::table(["VM", "STATE", "VCPUS", "CPU%", "MEMORY", "OF", "DISK/s", "NET/s"], &vms);
        text
    }
}

impl TenantView {
    fn cells(&self) -> [String; 7] {
        let [cpu, disk, net] = self.rates.cells();
        let (vms, vcpus) = (self.virtual_machines.to_string(), self.vcpus.to_string());
        [self.tenant.clone(), vms, vcpus, cpu, size(self.memory_bytes), disk, net]
    }
}

impl UsageView {
    fn tenant(&self) -> &str {
        self.name.split('/').nth(1).unwrap_or_default()
    }

    fn cells(&self) -> [String; 8] {
        let [cpu, disk, net] = self.rates.cells();
        let of = size(self.memory_mib.saturating_mul(1 << 20));
        let vcpus = self.vcpus.to_string();
        [short(&self.name), self.state.clone(), vcpus, cpu, size(self.memory_bytes), of, disk, net]
    }
}

/// Sums by tenant, from a to z.
fn tenants(vms: &[UsageView]) -> Vec<TenantView> {
    let mut tenants = BTreeMap::new();
    for vm in vms {
        let sum: &mut TenantView = tenants.entry(vm.tenant()).or_insert_with(|| TenantView {
            tenant: vm.tenant().to_owned(),
            virtual_machines: 0,
            vcpus: 0,
            rates: Rates::default(),
            memory_bytes: 0,
        });
        sum.virtual_machines += 1;
        sum.vcpus += u64::from(vm.vcpus);
        sum.rates = sum.rates.plus(vm.rates);
        sum.memory_bytes = sum.memory_bytes.saturating_add(vm.memory_bytes);
    }
    tenants.into_values().collect()
}

fn sort(vms: &mut [UsageView], order: TopOrder) {
    vms.sort_by(|a, b| {
        let largest_first = match order {
            TopOrder::Cpu => b.rates.cpu_percent.unwrap_or(0.0).total_cmp(&a.rates.cpu_percent.unwrap_or(0.0)),
            TopOrder::Memory => b.memory_bytes.cmp(&a.memory_bytes),
            TopOrder::Disk => b.rates.disk_bytes_per_second.cmp(&a.rates.disk_bytes_per_second),
            TopOrder::Net => b.rates.nic_bytes_per_second.cmp(&a.rates.nic_bytes_per_second),
            TopOrder::Name => std::cmp::Ordering::Equal,
        };
        largest_first.then_with(|| a.name.cmp(&b.name))
    });
}

/// Bytes in the unit in which they are a number of at most four digits.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            if tenths < 100 {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            } else {
                format!("{} {unit}", tenths / 10)
            }
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, pid: u32, cpu_ms: u64, memory: u64, disk: u64, net: u64) -> v1::VirtualMachineUsage {
        v1::VirtualMachineUsage {
            name: name.to_owned(),
            state: v1::virtual_machine::State::Running.into(),
            vmm_pid: pid,
            vcpus: 2,
            memory_mib: 256,
            cpu_time: Some(crate::api::convert::duration_to_proto(Duration::from_millis(cpu_ms))),
            memory_bytes: memory,
            disk_bytes: disk,
            disk_operations: disk / 512,
            nic_bytes: net,
            nic_frames: net / 64,
        }
    }

    fn look(at_ms: u64, busy_ms: u64, vms: Vec<v1::VirtualMachineUsage>) -> Look {
        let host = v1::HostUsage {
            cpus: 2,
            cpu_time: Some(crate::api::convert::duration_to_proto(Duration::from_millis(busy_ms))),
            memory_bytes: 8 << 30,
            memory_available_bytes: 6 << 30,
        };
        Look { at: Duration::from_millis(at_ms), time: "2026-01-01T00:00:00Z".to_owned(), host: Some(host), vms }
    }

    fn names(view: &TopView) -> Vec<&str> {
        view.virtual_machines.iter().map(|vm| vm.name.as_str()).collect()
    }

    const WEB: &str = "tenants/acme/vms/web";
    const DB: &str = "tenants/acme/vms/db";
    const NEW: &str = "tenants/globex/vms/new";

    #[test]
    fn rates_are_those_of_one_process_between_two_looks() {
        let before = look(1000, 5000, vec![vm(WEB, 7, 100, 1 << 20, 0, 0), vm(NEW, 8, 900, 0, 9000, 9000)]);
        let after = look(3000, 7000, vec![vm(WEB, 7, 3100, 2 << 20, 4096, 64), vm(NEW, 9, 10, 3 << 20, 1, 1)]);
        let view = TopView::between(Some(&before), &after, TopOrder::Cpu);
        assert_eq!(view.host.as_ref().unwrap().cpu_percent, Some(50.0));
        let expected = Rates {
            cpu_percent: Some(150.0),
            disk_operations_per_second: Some(4),
            disk_bytes_per_second: Some(2048),
            nic_frames_per_second: Some(1),
            nic_bytes_per_second: Some(32),
        };
        assert_eq!(view.virtual_machines[0].rates, expected);
        assert_eq!(view.virtual_machines[1].rates, Rates::default(), "another process: nothing is known of it");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["virtual_machines"][0]["cpu_percent"], 150.0);
        assert!(json["virtual_machines"][1]["disk_bytes_per_second"].is_null());
        let none = TopView::between(None, &after, TopOrder::Cpu);
        assert!(none.host.unwrap().cpu_percent.is_none() && none.virtual_machines[0].rates == Rates::default());
        // A clock that stood still, and numbers that went back.
        let back = TopView::between(Some(&after), &before, TopOrder::Cpu);
        assert_eq!(back.virtual_machines[0].rates, Rates::default());
    }

    #[test]
    fn tenants_are_sums_and_vms_come_in_the_order_that_is_asked_for() {
        let zero = [vm(WEB, 1, 0, 0, 0, 0), vm(DB, 2, 0, 0, 0, 0), vm(NEW, 3, 0, 0, 0, 0)];
        let before = look(0, 0, zero.to_vec());
        let vms = vec![
            vm(WEB, 1, 500, 10 << 20, 1024, 3000),
            vm(DB, 2, 250, 30 << 20, 4096, 0),
            vm(NEW, 3, 0, 20 << 20, 0, 9000),
        ];
        let after = look(1000, 0, vms);
        for (order, expected) in [
            (TopOrder::Cpu, [WEB, DB, NEW]),
            (TopOrder::Memory, [DB, NEW, WEB]),
            (TopOrder::Disk, [DB, WEB, NEW]),
            (TopOrder::Net, [NEW, WEB, DB]),
            (TopOrder::Name, [DB, WEB, NEW]),
        ] {
            assert_eq!(names(&TopView::between(Some(&before), &after, order)), expected, "{order:?}");
        }
        let view = TopView::between(Some(&before), &after, TopOrder::Cpu);
        let [acme, globex] = view.tenants.as_slice() else { panic!("{:?}", view.tenants) };
        assert_eq!((acme.tenant.as_str(), acme.virtual_machines, acme.vcpus), ("acme", 2, 4));
        assert_eq!((acme.rates.cpu_percent, acme.memory_bytes), (Some(75.0), 40 << 20));
        assert_eq!((globex.tenant.as_str(), globex.rates.nic_bytes_per_second), ("globex", Some(9000)));
        let text = view.text();
        assert!(text.starts_with("host: 2 CPUs, 0.0 % busy; 2.0 GiB of 8.0 GiB memory in use\n"), "{text}");
        assert!(text.contains("acme/web    RUNNING  2      50.0  10 MiB  256 MiB  1.0 KiB  2.9 KiB\n"), "{text}");
    }

    #[test]
    fn sizes_have_two_figures_at_least() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            ((1 << 40) - 1, "1023 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
