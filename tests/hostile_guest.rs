//! A guest that mistreats every device, case after case: its vmm lives or ends with a reason, and nothing else notices.
//! Its program is `xtask/assets/hostile.rs`. Needs a KVM that can boot Linux (feature `lab`).

use crate::support::guest::{boot, disk, linux, nic};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use ostler::api::v1::virtual_machine_spec::Console;

const CASES: u32 = 1000;

/// With every device that there is, and two queues where there can be.
fn spec(seed: u32, console: Console) -> v1::VirtualMachineSpec {
    let boot = v1::BootSpec {
        kernel: "hostile/vmlinux".into(),
        cmdline: format!("seed={seed} cases={CASES}"),
        ..Default::default()
    };
    let balloon = Some(v1::BalloonSpec { keep_mib: 64 });
    v1::VirtualMachineSpec {
        vcpus: 1,
        memory_mib: 128,
        boot: Some(boot),
        disks: vec![v1::DiskSpec { queues: 2, ..disk("data", "data.img", false) }, disk("fixed", "hello.img", true)],
        nics: vec![v1::NicSpec { queues: 2, ..nic("eth0") }],
        memory: Some(v1::MemorySpec { balloon, ..Default::default() }),
        vsock: Some(v1::VsockSpec::default()),
        console: console.into(),
        ..Default::default()
    }
}

/// Waits until the guest has powered off. What it said, and what its vmm did.
fn lives(host: &Host, caller: &Caller, vm: &str, spec: v1::VirtualMachineSpec) -> (String, String) {
    caller.register(vm, spec).unwrap();
    caller.start(vm).unwrap();
    let console = host.console(caller, vm);
    let ended = until("the guest's end", BOOT, || {
        let vm = caller.get(vm).unwrap();
        matches!(vm.state(), State::Stopped | State::Failed).then_some(vm)
    });
    let (said, _) = console.end();
    let log = std::fs::read_to_string(host.data().join("vms").join(&ended.uid).join("vmm.log")).unwrap();
    assert_eq!((ended.state(), ended.failure.as_str()), (State::Stopped, ""), "{said}\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    (said, log)
}

#[test]
fn a_guest_that_breaks_every_rule_harms_nobody_and_each_device_comes_back() {
    let mut host = Host::with_guests();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let daemon = host.daemon_pid();
    host.add_volume("acme", "data.img", &vec![0; 1 << 20]);
    let (mut beside, _) = boot(&host, &globex, "beside", linux());

    for seed in [1, 2] {
        let (said, log) = lives(&host, &acme, &format!("serial-{seed}"), spec(seed, Console::Serial));
        println!("{said}");
        // Two disks, NIC, vsock, entropy, balloon.
        assert!(said.contains("hostile: 6 devices"), "{said}");
        assert!(said.contains(&format!("hostile: {CASES} cases, ")), "{said}");
        // What it could say besides is what should not be.
        let bad = ["does not come back", "is not what it was", "refuses", "panic"];
        assert!(bad.iter().all(|word| !said.contains(word)), "{said}");
        assert!(log.contains("needs a reset"), "no device gave up: {log}");
    }
    // Without a COM1 to say it at: its console is a device, too.
    let (_, log) = lives(&host, &acme, "virtio", spec(3, Console::Virtio));
    assert!(log.contains("needs a reset"), "no device gave up: {log}");
    // A NIC that the kernel serves: what is wrong with its rings the kernel says, if anybody.
    let mut kernels = spec(4, Console::Serial);
    kernels.nics.push(v1::NicSpec { vhost: true, ..nic("eth1") });
    let (said, _) = lives(&host, &host.operator(), "tenants/acme/vms/vhost", kernels);
    assert!(said.contains("hostile: 7 devices") && !said.contains("panic"), "{said}");
    assert!(said.contains(&format!("hostile: {CASES} cases, ")), "{said}");

    assert!(beside.run("echo still-$((40+2))").contains("still-42"));
    assert_eq!(host.daemon_pid(), daemon);
    until("no vmm but that of the neighbour", SOON, || (host.vmm_processes().len() == 1).then_some(()));
}
