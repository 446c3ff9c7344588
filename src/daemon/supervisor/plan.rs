//! From a VM's record to what its vmm is told; pure. Key function: [`plan`].

use crate::daemon::record::{NicLease, RNG, Subnet, VmRecord};
use crate::model::{
    DeviceId, DeviceKind, DeviceLaunch, FIRST_WORDS, InstanceId, Launch, MemorySpec, NicSpec, PciSlot, TapSpec, VmSpec,
};
use crate::sys::tap;

/// A VM cannot be laid out: a record that no longer fits this daemon's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    /// Record and spec disagree about a device.
    #[error("a device has no slot")]
    NoSlot,
    /// The same about what is behind it.
    #[error("a device has no address or no device of the host")]
    NoLease,
}

/// The launch of `vm` as `instance`: rng in slot 1, disks, NICs, NVMe devices, the socket device, the balloon and a virtio
/// console in theirs.
pub(super) fn plan(vm: &VmRecord, instance: InstanceId) -> Result<Launch, PlanError> {
    let spec = &vm.spec;
    let own = spec.device_ids().map(|id| device(vm, id)).collect::<Result<Vec<_>, _>>()?;
    let devices = std::iter::once(rng()).chain(own).collect();
    Ok(Launch {
        vm: vm.uid,
        instance,
        vcpus: spec.vcpus(),
        memory_bytes: spec.memory_bytes(),
        cmdline: cmdline(spec, vm.nics.first()),
        has_initrd: spec.boot().initrd.is_some(),
        devices,
        request: String::new(),
        memory: memory(vm),
        // Where policy placed it, no vCPU has a CPU of its own: its cgroup holds all its threads on the node.
        cpus: spec.cpus().clone(),
    })
}

/// Where its memory comes from: as its spec says, and where it was placed.
fn memory(vm: &VmRecord) -> MemorySpec {
    let spec = *vm.spec.memory();
    MemorySpec { numa_node: spec.numa_node.or(vm.placement.as_ref().map(|placement| placement.node)), ..spec }
}

/// The entropy device, which every VM has.
fn rng() -> DeviceLaunch {
    let id = RNG.parse().unwrap_or_else(|_| unreachable!("a DNS label"));
    let slot = PciSlot::new(1).unwrap_or_else(|| unreachable!("1 to 31"));
    DeviceLaunch { id, slot, kind: DeviceKind::Rng }
}

/// The device `id` of `vm`, as its vmm is told, at launch or later.
pub(super) fn device(vm: &VmRecord, id: &DeviceId) -> Result<DeviceLaunch, PlanError> {
    let slot = vm.attachment(id).ok_or(PlanError::NoSlot)?.slot;
    let spec = &vm.spec;
    let kind = if let Some(disk) = spec.disks().iter().find(|disk| disk.id == *id) {
        DeviceKind::Block { is_read_only: disk.is_read_only, queues: disk.queues, limits: disk.limits }
    } else if let Some(nic) = spec.nics().iter().find(|nic| nic.id == *id) {
        nic_kind(vm, nic)?
    } else if let Some(vsock) = spec.vsock().filter(|vsock| vsock.id() == id) {
        DeviceKind::Vsock { cid: vsock.cid() }
    } else if let Some(balloon) = spec.balloon().filter(|balloon| balloon.id() == id) {
        DeviceKind::Balloon { keep_mib: balloon.keep_mib() }
    } else if spec.console().id() == Some(id) {
        DeviceKind::Console
    } else {
        let device = vm.nvmes.iter().find(|device| device.id == *id);
        DeviceKind::Vfio { host: device.and_then(|device| device.function).ok_or(PlanError::NoLease)? }
    };
    Ok(DeviceLaunch { id: id.clone(), slot, kind })
}

fn nic_kind(vm: &VmRecord, nic: &NicSpec) -> Result<DeviceKind, PlanError> {
    let Some(TapSpec { limits, queues, served_by }) = nic.tap() else {
        let vf = vm.vfs.iter().find(|vf| vf.id == nic.id).ok_or(PlanError::NoLease)?;
        return Ok(DeviceKind::Vfio { host: vf.address });
    };
    let lease = vm.nics.iter().find(|lease| lease.id == nic.id).ok_or(PlanError::NoLease)?;
    Ok(DeviceKind::Net { mac: lease.mac, limits, queues, served_by })
}

/// The daemon's words, then the user's, so that the user's win where the kernel takes the last.
fn cmdline(spec: &VmSpec, first_nic: Option<&NicLease>) -> String {
    let own = &spec.boot().cmdline;
    let mut words = vec![spec.console().kernel_word().to_owned(), FIRST_WORDS.to_owned()];
    if let Some(nic) = first_nic
        && !own.split(' ').any(|word| word.starts_with("ip="))
    {
        // linux/Documentation/admin-guide/nfs/nfsroot.rst: client, server, gateway, netmask, host name, device, protocol.
        let (guest, host, mask) = (nic.subnet.guest(), nic.subnet.host(), tap::netmask(Subnet::PREFIX_LEN));
        words.push(format!("ip={guest}::{host}:{mask}::eth0:off"));
    }
    if !own.is_empty() {
        words.push(own.clone());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::{NvmeDevice, VfNic, attachments_of, samples};
    use crate::model::{
        BalloonSpec, Bdf, BootSpec, ConsoleSpec, NicBackend, NvmeSpec, NvmeWish, Placement, RateLimits, ServedBy,
        VfWish,
    };

    #[test]
    fn lays_out_rng_disks_and_nics_each_in_its_slot() {
        let vm = samples::running("acme", "web");
        let launch = plan(&vm, InstanceId::new()).unwrap();
        let devices: Vec<_> = launch.devices.iter().map(|d| (d.slot.number(), d.id.as_str())).collect();
        assert_eq!(devices, [(1, "rng"), (2, "root"), (3, "eth0")]);
        assert_eq!(
            launch.devices[1].kind,
            DeviceKind::Block { is_read_only: true, queues: 2, limits: vm.spec.disks()[0].limits }
        );
        assert_eq!(
            launch.devices[2].kind,
            DeviceKind::Net { mac: vm.nics[0].mac, limits: RateLimits::default(), queues: 1, served_by: ServedBy::Vmm }
        );
        assert_eq!(launch.memory_bytes, 256 << 20);
        assert!(launch.has_initrd);
    }

    #[test]
    fn a_vm_that_was_placed_has_its_memory_there_and_no_vcpu_a_cpu_of_its_own() {
        let mut vm = samples::running("acme", "web");
        assert_eq!(plan(&vm, InstanceId::new()).unwrap().memory.numa_node, None);
        vm.placement = Some(Box::new(Placement { node: 1, cpus: "4-7".parse().unwrap(), decision: None }));
        let launch = plan(&vm, InstanceId::new()).unwrap();
        assert_eq!((launch.memory.numa_node, launch.cpus.host_cpus), (Some(1), None));
    }

    #[test]
    fn a_balloon_is_as_large_as_the_record_says() {
        let mut vm = samples::running("acme", "web");
        vm.spec = vm.spec.clone().with_balloon(BalloonSpec::new("f", Some(128), 256).ok()).unwrap();
        vm.devices = attachments_of(&vm.spec);
        let launch = plan(&vm, InstanceId::new()).unwrap();
        let last = launch.devices.last().unwrap();
        assert_eq!((last.slot.number(), &last.kind), (4, &DeviceKind::Balloon { keep_mib: Some(128) }));
    }

    #[test]
    fn tells_the_kernel_its_address_unless_the_user_did() {
        let mut vm = samples::running("acme", "web");
        let cmdline = |vm: &VmRecord| plan(vm, InstanceId::new()).unwrap().cmdline;
        assert_eq!(
            cmdline(&vm),
            "console=ttyS0 cryptomgr.notests ip=172.30.0.6::172.30.0.5:255.255.255.252::eth0:off quiet"
        );
        let boot = BootSpec { cmdline: "ip=dhcp quiet".into(), ..vm.spec.boot().clone() };
        vm.spec = VmSpec::new(1, 128, boot, vec![], vm.spec.nics().to_vec()).unwrap();
        vm.devices = attachments_of(&vm.spec);
        assert_eq!(cmdline(&vm), "console=ttyS0 cryptomgr.notests ip=dhcp quiet");
        let boot = BootSpec { cmdline: String::new(), ..vm.spec.boot().clone() };
        vm.spec = VmSpec::new(1, 128, boot, vec![], vec![]).unwrap();
        vm.nics.clear();
        assert_eq!(cmdline(&vm), "console=ttyS0 cryptomgr.notests");
        vm.spec = vm.spec.with_console(ConsoleSpec::Virtio).unwrap();
        vm.devices = attachments_of(&vm.spec);
        let launch = plan(&vm, InstanceId::new()).unwrap();
        assert_eq!(launch.cmdline, "console=hvc0 cryptomgr.notests");
        assert_eq!(launch.devices.last().unwrap().kind, DeviceKind::Console);
    }

    #[test]
    fn refuses_a_nic_without_an_address() {
        let mut vm = samples::running("acme", "web");
        let other = NicSpec { id: "eth1".parse().unwrap(), backend: NicBackend::Tap(TapSpec::default()) };
        vm.spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![], vec![other]).unwrap();
        vm.devices = attachments_of(&vm.spec);
        assert_eq!(plan(&vm, InstanceId::new()), Err(PlanError::NoLease));
    }

    #[test]
    fn a_virtual_function_sits_where_its_nic_stands_in_the_spec() {
        let mut vm = samples::running("acme", "web");
        let vf = NicSpec { id: "vf".parse().unwrap(), backend: NicBackend::Sriov(VfWish::default()) };
        let nics = vec![vf.clone(), vm.spec.nics()[0].clone()];
        vm.spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![], nics).unwrap();
        vm.devices = attachments_of(&vm.spec);
        assert_eq!(plan(&vm, InstanceId::new()), Err(PlanError::NoLease), "it has none yet");
        let address = Bdf::new(0, 1, 16, 0).unwrap();
        let mac = vm.nics[0].mac;
        vm.vfs = vec![VfNic { id: vf.id, address, pf_interface: "eth0".into(), mac }];
        let launch = plan(&vm, InstanceId::new()).unwrap();
        assert_eq!(launch.devices[1].kind, DeviceKind::Vfio { host: address });
        let (limits, served_by) = (RateLimits::default(), ServedBy::Vmm);
        assert_eq!(launch.devices[2].kind, DeviceKind::Net { mac, limits, queues: 1, served_by });
    }

    #[test]
    fn an_nvme_device_comes_last_and_needs_its_function() {
        let mut vm = samples::running("acme", "web");
        let nvme = NvmeSpec { id: "data".parse().unwrap(), wish: NvmeWish::Namespace { min_bytes: 1 << 20 } };
        vm.spec = vm.spec.clone().with_nvmes(vec![nvme.clone()]).unwrap();
        vm.devices = attachments_of(&vm.spec);
        assert_eq!(plan(&vm, InstanceId::new()), Err(PlanError::NoLease), "it has none yet");
        let controller = Bdf::new(0, 2, 0, 0).unwrap();
        let device = NvmeDevice {
            id: nvme.id,
            function: None,
            controller,
            serial: "LAB".into(),
            nsid: Some(2),
            size_bytes: 1 << 20,
        };
        vm.nvmes = vec![device];
        assert_eq!(plan(&vm, InstanceId::new()), Err(PlanError::NoLease), "it has no function for this run");
        let function = Bdf::new(0, 2, 0, 1).unwrap();
        vm.nvmes[0].function = Some(function);
        let launch = plan(&vm, InstanceId::new()).unwrap();
        let last = launch.devices.last().unwrap();
        assert_eq!((last.id.as_str(), &last.kind), ("data", &DeviceKind::Vfio { host: function }));
    }
}
