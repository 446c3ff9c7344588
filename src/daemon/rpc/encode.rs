//! Records to responses.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::api::convert::{
    decision_to_proto, duration_to_proto, failure_to_proto, spec_to_proto, state_to_proto, timestamp_to_proto,
};
use crate::api::v1::device_status;
use crate::api::v1::virtual_machine::State;
use crate::api::{PluginName, VmRef, decision_name, scope_name, v1};
use crate::daemon::service::{
    Acs, AttachState, Attachment, BreakerState, Bridge, CanaryRecord, CanaryState, ChainSigners, DeviceView,
    GroupMember, HeldFor, HostUse, Lease, LeaseState, MemoryUse, ObserverStatus, PluginKv, PluginStatus, PluginVersion,
    PluginView, ResumePoint, Subnet, VirtualFunction, VmRecord, VmStats, VmUsage, WatchItem, lease_etag, plugin_etag,
    vm_etag,
};
use crate::model::{
    Counts, KvPlace, KvValue, MacAddr, Placement, PluginAlias, PluginMode, PluginSignature, SignerKey, SignerName,
    SpecError, TenantId,
};
use crate::sys::counter_page::now_ns;
use crate::sys::devlink::EswitchMode;
use crate::sys::rtnl::{LinkState, VfConfig};
use crate::wire::counters::{BalloonCounters, DeviceCounters, Held, Phase, QueueCounters, Reason, Statistic};

/// A VM's name in the API.
pub(super) fn vm_name(vm: &VmRecord) -> String {
    VmRef { tenant: vm.tenant.clone(), vm: vm.name.clone() }.to_string()
}

/// A plugin's name in the API.
pub(super) fn plugin_name(view: &PluginView) -> String {
    PluginName { scope: view.record.scope.clone(), plugin: view.record.name.clone() }.to_string()
}

/// A VM as the API shows it.
pub(super) fn vm(vm: &VmRecord) -> v1::VirtualMachine {
    let process = vm.run.as_ref().and_then(|run| run.process);
    let nics = vm.spec.nics().iter().map(|nic| {
        let mut status = v1::NicStatus { id: nic.id.to_string(), ..Default::default() };
        if let Some(tap) = vm.nics.iter().find(|lease| lease.id == nic.id) {
            status.mac = tap.mac.to_string();
            status.tap = process.map(|_| tap.subnet.tap_name()).unwrap_or_default();
            status.host_address = format!("{}/{}", tap.subnet.host(), Subnet::PREFIX_LEN);
            status.guest_address = format!("{}/{}", tap.subnet.guest(), Subnet::PREFIX_LEN);
        }
        if let Some(vf) = vm.vfs.iter().find(|vf| vf.id == nic.id) {
            status.mac = vf.mac.to_string();
            status.vf_address = vf.address.to_string();
            status.pf_interface = vf.pf_interface.clone();
        }
        status
    });
    v1::VirtualMachine {
        name: vm_name(vm),
        uid: vm.uid.to_string(),
        spec: Some(spec_to_proto(&vm.spec)),
        state: state_to_proto(&vm.state).into(),
        failure: failure_to_proto(&vm.state),
        vmm_pid: process.map_or(0, |process| process.pid),
        nics: nics.collect(),
        create_time: Some(timestamp_to_proto(vm.created)),
        update_time: Some(timestamp_to_proto(vm.updated)),
        admission: Some(decision_to_proto(&vm.admission)),
        etag: vm_etag(vm),
        nvme: vm.nvmes.iter().map(super::nvme::device).collect(),
        devices: vm.devices.iter().map(device_status).collect(),
        memory_use: None,
        placement: vm.placement.as_deref().map(placement),
    }
}

fn placement(placement: &Placement) -> v1::Placement {
    let Placement { node, cpus, decision } = placement;
    let decision = decision.as_ref().map(decision_name).unwrap_or_default();
    v1::Placement { numa_node: *node, host_cpus: cpus.to_string(), decision }
}

/// What a VM's process takes.
pub(super) fn memory_use(memory: MemoryUse) -> v1::MemoryUse {
    v1::MemoryUse { guest_bytes: memory.guest, overhead_bytes: memory.overhead }
}

/// What a VM takes now.
pub(super) fn usage(usage: VmUsage) -> v1::VirtualMachineUsage {
    let VmUsage { vm, cpu_time, memory_bytes, disks, nics } = usage;
    v1::VirtualMachineUsage {
        name: vm_name(&vm),
        state: state_to_proto(&vm.state).into(),
        vmm_pid: vm.run.as_ref().and_then(|run| run.process).map_or(0, |process| process.pid),
        vcpus: vm.spec.vcpus(),
        memory_mib: vm.spec.memory_mib(),
        cpu_time: Some(duration_to_proto(cpu_time)),
        memory_bytes,
        disk_operations: disks.operations,
        disk_bytes: disks.bytes,
        nic_frames: nics.operations,
        nic_bytes: nics.bytes,
    }
}

/// What the host takes now.
pub(super) fn host_use(host: HostUse) -> v1::HostUsage {
    v1::HostUsage {
        cpus: host.cpus,
        cpu_time: Some(duration_to_proto(host.cpu_time)),
        memory_bytes: host.memory_bytes,
        memory_available_bytes: host.memory_available_bytes,
    }
}

/// What a VM has done.
pub(super) fn stats(stats: VmStats) -> v1::VirtualMachineStats {
    use v1::virtual_machine_stats::{BootPhase, Device, ExitCount, Queue, Vcpu};
    let VmStats { vm, counters, memory } = stats;
    let exits = |exits: [u64; Reason::ALL.len()]| Vcpu {
        exits: Reason::ALL
            .into_iter()
            .zip(exits)
            .map(|(reason, count)| ExitCount { reason: reason.name().to_owned(), count })
            .collect(),
    };
    let queue = |queue: QueueCounters| Queue {
        operations: queue.operations,
        bytes: queue.bytes,
        errors: queue.errors,
        latency_sum: Some(duration_to_proto(Duration::from_nanos(queue.latency_sum_ns))),
        latency_buckets: queue.latency.to_vec(),
    };
    let device = |device: DeviceCounters| Device {
        id: device.name,
        faults: device.faults,
        queues: device.queues.into_iter().map(queue).collect(),
    };
    let phase =
        |(phase, at): (Phase, Duration)| BootPhase { name: phase.name().to_owned(), at: Some(duration_to_proto(at)) };
    v1::VirtualMachineStats {
        name: VmRef { tenant: vm.tenant.clone(), vm: vm.name.clone() }.to_string(),
        boot_phases: counters.phases.into_iter().map(phase).collect(),
        vcpus: counters.exits.into_iter().map(exits).collect(),
        devices: counters.devices.into_iter().map(device).collect(),
        memory_use: memory.map(memory_use),
        balloon: counters.balloon.map(balloon),
        kvm_use: counters.held.map(kvm_use),
    }
}

fn kvm_use([memory_slots, irqfds, ioeventfds]: [u64; Held::ALL.len()]) -> v1::virtual_machine_stats::KvmUse {
    v1::virtual_machine_stats::KvmUse { memory_slots, irqfds, ioeventfds }
}

fn balloon(balloon: BalloonCounters) -> v1::virtual_machine_stats::Balloon {
    use v1::virtual_machine_stats::{Balloon, GuestStatistic};
    let BalloonCounters { target, held, removed, reported, kept, told_at, statistics } = balloon;
    let statistic = |(statistic, value): (Statistic, u64)| GuestStatistic { name: statistic.name().to_owned(), value };
    let age = |told_at| Duration::from_nanos(now_ns()).saturating_sub(told_at);
    Balloon {
        target_bytes: target,
        held_bytes: held,
        removed_bytes: removed,
        reported_bytes: reported,
        kept_bytes: kept,
        statistics: statistics.into_iter().map(statistic).collect(),
        statistics_age: told_at.map(age).map(duration_to_proto),
    }
}

fn device_status(device: &Attachment) -> v1::DeviceStatus {
    let state = match device.state {
        AttachState::Attaching => device_status::State::Attaching,
        AttachState::Attached => device_status::State::Attached,
        AttachState::Detaching => device_status::State::Detaching,
    };
    v1::DeviceStatus { id: device.id.to_string(), slot: device.slot.number().into(), state: state.into() }
}

/// A message of a watch.
pub(super) fn watch_item(item: &WatchItem) -> v1::WatchVirtualMachinesResponse {
    match item {
        WatchItem::Initial { vm: record, revision } => v1::WatchVirtualMachinesResponse {
            virtual_machine: Some(vm(record)),
            revision: *revision,
            initial: true,
            ..Default::default()
        },
        WatchItem::Change(change) => {
            let mut shown = vm(&change.vm);
            if change.is_gone {
                shown.state = State::Destroyed.into();
                shown.vmm_pid = 0;
            }
            v1::WatchVirtualMachinesResponse {
                virtual_machine: Some(shown),
                revision: change.revision,
                resume_token: resume_token(change.point()),
                ..Default::default()
            }
        }
        WatchItem::Bookmark(point) => v1::WatchVirtualMachinesResponse {
            revision: point.revision,
            bookmark: true,
            resume_token: resume_token(*point),
            ..Default::default()
        },
    }
}

/// A point of a watch as its token.
pub(super) fn resume_token(point: ResumePoint) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([point.revision.to_be_bytes(), point.check.to_be_bytes()].concat())
}

/// The point that a token names; `None` if it is none. The error's field is `resume_token`.
pub(super) fn resume_point(token: &str) -> Result<Option<ResumePoint>, SpecError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = (token.len() <= 64).then(|| BASE64_URL_SAFE_NO_PAD.decode(token).ok()).flatten();
    let halves = bytes.as_deref().and_then(|bytes| Some((bytes.first_chunk()?, bytes.get(8..)?.try_into().ok()?)));
    let Some((revision, check)) = halves else {
        return Err(SpecError::new("resume_token", "this is no resume_token of a watch; watch anew, without one"));
    };
    Ok(Some(ResumePoint { revision: u64::from_be_bytes(*revision), check: u64::from_be_bytes(check) }))
}

/// A plugin as the API shows it, in a chain that requires these `signers`.
pub(super) fn plugin(view: &PluginView, signers: &ChainSigners) -> v1::Plugin {
    let PluginView { record, plugin, .. } = view;
    v1::Plugin {
        name: plugin_name(view),
        digest: record.digest.to_string(),
        hooks: plugin.hooks().iter().map(|hook| (*hook).to_owned()).collect(),
        version: plugin.version().to_owned(),
        summary: plugin.summary().to_owned(),
        settings: record.settings.clone().into_iter().collect(),
        size_bytes: plugin.size_bytes(),
        load_time: Some(timestamp_to_proto(record.loaded)),
        failure: plugin.broken_cause().unwrap_or_default().to_owned(),
        breakers: Vec::new(),
        observers: Vec::new(),
        previous: record.previous.iter().map(|version| plugin_version(version, signers)).collect(),
        etag: plugin_etag(record),
        mode: plugin_mode(record.mode).into(),
        canary: record.canary.as_ref().map(|canary| plugin_canary(canary, signers)),
        signers: plugin_signers(&record.signatures, signers),
        unsigned_code: unsigned_code(&record.signatures, signers),
        grants: record.grants.iter().map(ToString::to_string).collect(),
        aliases: record.aliases.iter().map(|alias| plugin_alias(alias, signers)).collect(),
        follows: record.aliases.followed().map(ToString::to_string).unwrap_or_default(),
        weight: record.weight.get(),
    }
}

fn plugin_alias((alias, version): (&PluginAlias, &PluginVersion), signers: &ChainSigners) -> v1::PluginAlias {
    v1::PluginAlias { name: alias.to_string(), version: Some(plugin_version(version, signers)) }
}

fn plugin_signers(signatures: &[PluginSignature], signers: &ChainSigners) -> Vec<v1::PluginSigner> {
    signatures.iter().map(|signature| plugin_signer(&signature.key, signers.name_of(&signature.key))).collect()
}

/// Somebody who signs, as the API shows them.
pub(super) fn plugin_signer(key: &SignerKey, name: Option<&SignerName>) -> v1::PluginSigner {
    v1::PluginSigner { key: key.id().to_string(), name: name.map(ToString::to_string).unwrap_or_default() }
}

fn unsigned_code(signatures: &[PluginSignature], signers: &ChainSigners) -> String {
    signers.check(signatures).err().map(|unsigned| unsigned.code().to_owned()).unwrap_or_default()
}

fn plugin_canary(canary: &CanaryRecord, signers: &ChainSigners) -> v1::PluginCanary {
    let shown = v1::PluginCanary {
        version: Some(plugin_version(&canary.version, signers)),
        percent: canary.share.percent(),
        ..Default::default()
    };
    match &canary.state {
        CanaryState::Active => v1::PluginCanary { state: v1::plugin_canary::State::Active.into(), ..shown },
        CanaryState::RolledBack { cause, message, time } => v1::PluginCanary {
            state: v1::plugin_canary::State::RolledBack.into(),
            code: cause.code().to_owned(),
            message: message.clone(),
            roll_back_time: Some(timestamp_to_proto(*time)),
            ..shown
        },
    }
}

fn canary_counts(counts: Counts) -> v1::plugin_canary::Counts {
    let Counts { asked, denied, failed } = counts;
    v1::plugin_canary::Counts { asked, denied, failed }
}

/// A mode as the API shows it.
pub(super) fn plugin_mode(mode: PluginMode) -> v1::plugin::Mode {
    match mode {
        PluginMode::Enforced => v1::plugin::Mode::Enforced,
        PluginMode::Shadow => v1::plugin::Mode::Shadow,
    }
}

fn plugin_version(version: &PluginVersion, signers: &ChainSigners) -> v1::PluginVersion {
    v1::PluginVersion {
        digest: version.digest.to_string(),
        settings: version.settings.clone().into_iter().collect(),
        load_time: Some(timestamp_to_proto(version.loaded)),
        signers: plugin_signers(&version.signatures, signers),
        unsigned_code: unsigned_code(&version.signatures, signers),
        grants: version.grants.iter().map(ToString::to_string).collect(),
    }
}

/// What a plugin remembers, as the API shows it.
pub(super) fn plugin_kv(kv: &PluginKv) -> v1::PluginKv {
    let PluginKv { place: KvPlace { scope, plugin, tenant }, store } = kv;
    let entry = |(key, value): (&String, &KvValue)| v1::plugin_kv::Entry { key: key.clone(), value: value.0.clone() };
    let write_time = (!store.entries.is_empty())
        .then(|| timestamp_to_proto(SystemTime::UNIX_EPOCH + Duration::from_secs(store.moment_s)));
    v1::PluginKv {
        name: format!("{}/plugins/{plugin}", scope_name(scope)),
        tenant: format!("tenants/{tenant}"),
        entries: store.entries.iter().map(entry).collect(),
        write_time,
    }
}

/// A plugin as a list shows it.
pub(super) fn plugin_status(status: &PluginStatus) -> v1::Plugin {
    let breaker = |(hook, tenant, state): &(&'static str, TenantId, BreakerState)| v1::PluginBreaker {
        hook: (*hook).to_owned(),
        tenant: format!("tenants/{tenant}"),
        retry: Some(duration_to_proto(match state {
            BreakerState::Open(left) => *left,
            BreakerState::Closed | BreakerState::HalfOpen => Duration::ZERO,
        })),
    };
    let breakers = status.breakers.iter().map(breaker).collect();
    let observers = status.observers.iter().map(plugin_observer).collect();
    let mut plugin = v1::Plugin { breakers, observers, ..plugin(&status.view, &status.signers) };
    if let Some(canary) = &mut plugin.canary {
        let (with, without) = status.counts.unzip();
        canary.canary_counts = with.map(canary_counts);
        canary.stable_counts = without.map(canary_counts);
        if !status.is_owners {
            canary.message.clear();
        }
    }
    plugin
}

fn plugin_observer(status: &ObserverStatus) -> v1::PluginObserver {
    let ObserverStatus { tenant, next, waiting, failure } = status;
    let fault = failure.as_ref().map(|failure| &failure.fault);
    v1::PluginObserver {
        tenant: format!("tenants/{tenant}"),
        next_sequence: *next,
        waiting: *waiting,
        code: fault.map(|fault| fault.code().to_owned()).unwrap_or_default(),
        message: fault.map(ToString::to_string).unwrap_or_default(),
        failure_time: failure.as_ref().map(|failure| timestamp_to_proto(failure.time)),
    }
}

/// A network card as the API shows it.
pub(super) fn physical_function(view: &DeviceView) -> v1::PhysicalFunction {
    let DeviceView { pf, leases } = view;
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    v1::PhysicalFunction {
        address: pf.address.to_string(),
        interface: pf.interface.clone().unwrap_or_default(),
        driver: pf.driver.clone().unwrap_or_default(),
        pci_id: pf.pci_id.clone(),
        numa_node: pf.numa_node,
        root_complex: pf.root_complex.clone(),
        root_port: pf.root_port.map(|port| port.to_string()).unwrap_or_default(),
        mac: pf.link.map(|link| link.mac.to_string()).unwrap_or_default(),
        up: pf.link.is_some_and(|link| link.is_up),
        carrier: pf.link.is_some_and(|link| link.has_carrier),
        speed_mbps: pf.link.and_then(|link| link.speed_mbps).unwrap_or(0),
        total_vfs: pf.total_vfs,
        num_vfs: count(pf.vfs.len()),
        bridges: pf.bridges.iter().map(bridge).collect(),
        iommu_group: pf.iommu_group,
        group_members: members(&pf.group_members),
        eswitch_mode: match pf.eswitch {
            None => String::new(),
            Some(EswitchMode::Legacy) => "legacy".to_owned(),
            Some(EswitchMode::Switchdev) => "switchdev".to_owned(),
            Some(EswitchMode::Other(number)) => number.to_string(),
        },
        virtual_functions: pf
            .vfs
            .iter()
            .zip(leases)
            .map(|(vf, lease)| virtual_function(vf, lease.as_deref()))
            .collect(),
    }
}

/// A bridge above a device.
pub(super) fn bridge(bridge: &Bridge) -> v1::PciBridge {
    let (acs, acs_controls) = match &bridge.acs {
        Acs::Absent => (false, vec![]),
        Acs::Present(controls) => (true, controls.iter().map(|control| (*control).to_owned()).collect()),
    };
    v1::PciBridge { address: bridge.address.to_string(), acs, acs_controls }
}

/// Members of an IOMMU group with their drivers.
pub(super) fn members(members: &[GroupMember]) -> Vec<String> {
    let text = |member: &GroupMember| match &member.driver {
        Some(driver) => format!("{} {driver}", member.address),
        None => member.address.to_string(),
    };
    members.iter().map(text).collect()
}

fn virtual_function<K: Clone, H: HeldFor>(vf: &VirtualFunction, lease: Option<&Lease<K, H>>) -> v1::VirtualFunction {
    v1::VirtualFunction {
        address: vf.address.to_string(),
        index: vf.index.into(),
        driver: vf.driver.clone().unwrap_or_default(),
        interface: vf.interface.clone().unwrap_or_default(),
        iommu_group: vf.iommu_group,
        group_members: members(&vf.group_members),
        reset_methods: vf.reset_methods.clone(),
        msix_vectors: vf.msix_vectors.map(Into::into),
        settings: vf.config.as_ref().map(settings),
        lease: lease.map(device_lease),
    }
}

fn settings(config: &VfConfig) -> v1::VirtualFunctionSettings {
    v1::VirtualFunctionSettings {
        mac: MacAddr(config.mac).to_string(),
        vlan: config.vlan.id.into(),
        spoof_check: config.checks_spoofing,
        trust: config.is_trusted,
        min_tx_mbps: config.min_tx_mbps,
        max_tx_mbps: config.max_tx_mbps,
        link_state: match config.link_state {
            LinkState::Auto => "auto",
            LinkState::Enable => "enable",
            LinkState::Disable => "disable",
        }
        .to_owned(),
    }
}

/// A lease as the API shows it.
pub(super) fn device_lease<K: Clone, H: HeldFor>(lease: &Lease<K, H>) -> v1::DeviceLease {
    use v1::device_lease::State;
    let (state, reason) = match &lease.state {
        LeaseState::Free => (State::Free, ""),
        LeaseState::Claimed(_) => (State::Claimed, ""),
        LeaseState::Prepared(_) => (State::Prepared, ""),
        LeaseState::Attached(_) => (State::Attached, ""),
        LeaseState::Releasing(_) => (State::Releasing, ""),
        LeaseState::Quarantined { reason, .. } => (State::Quarantined, reason.as_str()),
    };
    let holder = lease.state.holder();
    v1::DeviceLease {
        state: state.into(),
        generation: lease.generation,
        vm_uid: holder.map(|holder| holder.vm().to_string()).unwrap_or_default(),
        tenant: holder.map(|holder| holder.tenant().to_string()).unwrap_or_default(),
        last_tenant: lease.last_tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
        reason: reason.to_owned(),
        etag: lease_etag(lease),
    }
}
