//! What is written is read again; what was edited is refused.

use proptest::prelude::*;

use super::*;
use crate::daemon::record::{NvmeDevice, samples};
use crate::daemon::store::format::parse_digest;
use crate::daemon::store::plugin::decode_plugin;
use crate::model::{
    ConsoleSpec, CpuSpec, Labels, MemorySpec, NicBackend, NicSpec, NvmeSpec, NvmeWish, PageSize, RateLimits, ServedBy,
    TapSpec, Topology, VfWish, VlanId,
};

#[test]
fn every_state_round_trips() {
    let exits = [
        VmExit::PowerOff,
        VmExit::Reset,
        VmExit::TripleFault,
        VmExit::Panicked,
        VmExit::Killed,
        VmExit::LaunchFailed("no kernel".into()),
        VmExit::HostError("EFAULT".into()),
        VmExit::Vanished("killed by signal 9".into()),
    ];
    let states = [
        VmState::Registered,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Rebooting,
        VmState::Stopped,
        VmState::Destroying,
    ];
    let mut vm = samples::running("acme", "web");
    for state in states.into_iter().chain(exits.map(|exit| VmState::Failed(FailureCause(exit)))) {
        vm.state = state;
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    }
    let wish = VfWish { mac: "02:00:00:00:00:01".parse().ok(), vlan: VlanId::new(100) };
    let nic = NicSpec { id: "vf0".parse().unwrap(), backend: NicBackend::Sriov(wish) };
    let tap = TapSpec { queues: 2, served_by: ServedBy::Kernel, ..TapSpec::default() };
    let fast = NicSpec { backend: NicBackend::Tap(tap), ..vm.spec.nics()[0].clone() };
    vm.spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![], vec![fast, nic]).unwrap();
    vm.devices = attachments_of(&vm.spec);
    vm.devices[0].state = AttachState::Detaching;
    vm.devices[1].slot = PciSlot::new(31).unwrap();
    vm.devices[1].state = AttachState::Attaching;
    vm.vfs = vec![VfNic {
        id: "vf0".parse().unwrap(),
        address: "0000:01:10.1".parse().unwrap(),
        pf_interface: "eth0".into(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
    }];
    assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    let (data, disk) = ("data".parse().unwrap(), "disk".parse().unwrap());
    let namespace = NvmeSpec { id: data, wish: NvmeWish::Namespace { min_bytes: 64 << 20 } };
    let whole = NvmeSpec { id: disk, wish: NvmeWish::Controller };
    vm.spec = vm.spec.with_nvmes(vec![namespace, whole]).unwrap();
    vm.devices = attachments_of(&vm.spec);
    vm.nvmes = vec![NvmeDevice {
        id: "data".parse().unwrap(),
        function: Some("0000:02:00.1".parse().unwrap()),
        controller: "0000:02:00.0".parse().unwrap(),
        serial: "LAB".into(),
        nsid: Some(2),
        size_bytes: 64 << 20,
    }];
    assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    let memory = MemorySpec { pages: PageSize::Huge2M, is_prefaulted: true, numa_node: Some(0) };
    let cpus = CpuSpec { host_cpus: "0-1,4".parse().ok(), topology: Topology::new(1, 1, 1, 1).ok() };
    vm.spec = vm.spec.with_memory(memory).unwrap().with_cpus(cpus).unwrap();
    vm.run = None;
    assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    vm.spec = vm.spec.with_console(ConsoleSpec::Virtio).unwrap();
    vm.devices = attachments_of(&vm.spec);
    assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    let labels = Labels::new([("team".to_owned(), "web".to_owned()), ("empty".to_owned(), String::new())].into());
    vm.spec = vm.spec.with_labels(labels.unwrap());
    assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    let edited = String::from_utf8(encode_vm(&vm)).unwrap().replace("\"team\"", "\"Team\"");
    assert!(decode_vm(edited.as_bytes()).unwrap_err().contains("spec.labels"));
}

#[test]
fn where_a_vm_was_placed_is_on_record_and_what_was_only_tried_is_not() {
    let vm = samples::running("acme", "web");
    let decision = Some(DecisionId { tenant: vm.tenant.clone(), sequence: 42 });
    let placement = Placement { node: 1, cpus: "4-7,12".parse().unwrap(), decision };
    let placed = VmRecord { placement: Some(Box::new(placement.clone())), ..vm.clone() };
    assert_eq!(decode_vm(&encode_vm(&placed)).as_ref(), Ok(&placed));
    let tried = Placement { decision: None, ..placement };
    assert_eq!(encode_vm(&VmRecord { placement: Some(Box::new(tried)), ..vm.clone() }), encode_vm(&vm));
}

#[test]
fn devices_and_slots_go_together_or_the_record_is_of_no_use() {
    let vm = samples::running("acme", "web");
    let with = |change: fn(&mut Vec<Attachment>)| {
        let mut vm = vm.clone();
        change(&mut vm.devices);
        decode_vm(&encode_vm(&vm))
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|devices| drop(devices.pop())).is_err());
    assert!(with(|devices| devices[1].slot = devices[0].slot).is_err());
    assert!(with(|devices| devices[1].id = "other".parse().unwrap()).is_err());
}

#[test]
fn reads_a_record_from_before_there_were_devices_of_the_host() {
    let vm = samples::running("acme", "web");
    let mut json: serde_json::Value = serde_json::from_slice(&encode_vm(&vm)).unwrap();
    assert!(json.as_object_mut().unwrap().remove("vfs").is_some());
    // Nor was there a choice of slots.
    assert!(json.as_object_mut().unwrap().remove("devices").is_some());
    assert!(json["spec"].as_object_mut().unwrap().remove("vf_wishes").is_some());
    assert!(json["spec"].as_object_mut().unwrap().remove("taps").is_some());
    assert!(json["spec"].as_object_mut().unwrap().remove("resources").is_some());
    assert!(json.as_object_mut().unwrap().remove("nvmes").is_some());
    assert!(json["spec"].as_object_mut().unwrap().remove("nvmes").is_some());
    assert!(json["spec"].as_object_mut().unwrap().remove("vsock").is_some());
    // And the console was COM1.
    assert!(json["spec"].as_object_mut().unwrap().remove("hvc").is_some());
    assert_eq!(decode_vm(json.to_string().as_bytes()), Ok(vm));
}

#[test]
fn reads_a_disk_from_before_it_could_be_direct_or_have_queues() {
    let mut json: serde_json::Value = serde_json::from_slice(&encode_vm(&samples::running("acme", "web"))).unwrap();
    let disk = json["spec"]["disks"][0].as_object_mut().unwrap();
    assert!(["direct", "queues", "limits"].iter().all(|field| disk.remove(*field).is_some()));
    let disk = decode_vm(json.to_string().as_bytes()).unwrap().spec.disks()[0].clone();
    assert_eq!((disk.is_direct, disk.queues, disk.limits), (false, 1, RateLimits::default()));
}

#[test]
fn refuses_a_record_of_a_newer_daemon_and_one_that_breaks_a_bound() {
    let json = String::from_utf8(encode_vm(&samples::running("acme", "web"))).unwrap();
    let newer = json.replace("\"format\":1", "\"format\":2");
    assert!(decode_vm(newer.as_bytes()).unwrap_err().contains("format 2"));
    let edited = json.replace("\"vcpus\":2", "\"vcpus\":0");
    assert!(decode_vm(edited.as_bytes()).unwrap_err().contains("vcpus"));
    let escaping = json.replace("linux/vmlinux", "../vmlinux");
    assert!(decode_vm(escaping.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,80}") {
        let _ = decode_vm(&bytes);
        let _ = decode_plugin(&bytes);
        let _ = parse_digest(&text);
    }
}
