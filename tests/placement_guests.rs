//! Where a VM that policy placed really runs: its memory and its threads, as the kernel shows them. Boots guests (feature
//! `lab`), and waits for none of them: in a lab of several nodes (`cargo xtask lab --nodes 2`), over which they are spread, time
//! goes by leaps, and some do not come far.

use crate::support::Host;
use crate::support::assets::plugin;
use crate::support::guest::linux;
use crate::support::guest_ram::numa_of_guest;
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;

const NODES: &str = "/sys/devices/system/node";

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

/// Numbers in a list of single nodes or one range.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<u32>().unwrap()..=last.parse().unwrap()
    };
    list.split(',').flat_map(range).collect()
}

/// That the kernel has the VM where its placement says.
fn is_where_it_says(vm: &v1::VirtualMachine) -> u32 {
    let placement = vm.placement.clone().unwrap();
    let (node, cpus) = (placement.numa_node, placement.host_cpus);
    assert_eq!(read(&format!("{NODES}/node{node}/cpulist")), cpus);
    let pid = vm.vmm_pid;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = read(task.unwrap().path().join("status").to_str().unwrap());
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        assert_eq!(line("Cpus_allowed_list:"), cpus, "{status}");
    }
    let memory = numa_of_guest(pid);
    assert!(memory.contains(&format!("bind:{node}")), "{memory}");
    let pages =
        |node: u32| memory.split(' ').find_map(|word| word.strip_prefix(&format!("N{node}="))?.parse::<u64>().ok());
    assert!(pages(node).is_some_and(|pages| pages > 0), "{memory}");
    assert!(
        numbers(&read(&format!("{NODES}/online"))).into_iter().all(|other| other == node || pages(other).is_none()),
        "{memory}"
    );
    node
}

#[test]
fn memory_and_threads_are_where_policy_says_until_the_vm_is_off() {
    let mut host = Host::with_guests();
    host.operator().load("operator/plugins/placement", &plugin("placement"), &[("reserve-mib", "64")]).unwrap();
    let acme = host.tenant("acme");
    let memory = Some(v1::MemorySpec { prefault: true, ..Default::default() });
    let spec = v1::VirtualMachineSpec { memory, ..linux() };
    let mut nodes = Vec::new();
    for vm in ["web", "db"] {
        acme.register(vm, spec.clone()).unwrap();
        let running = acme.start(vm).unwrap();
        assert_eq!(running.state(), State::Running);
        nodes.push(is_where_it_says(&running));
        let decision = running.placement.unwrap().decision;
        let record = acme.decision(&decision).unwrap();
        assert_eq!((record.hook.as_str(), record.subject), ("place", format!("vms/{vm}")));
    }
    let with_cpus = numbers(&read(&format!("{NODES}/has_cpu")));
    println!("nodes with CPUs: {with_cpus:?}, placed on {nodes:?}");
    assert_eq!(nodes[0] == nodes[1], with_cpus.len() == 1, "spread over {with_cpus:?}: {nodes:?}");

    // What is on record is what the next daemon finds; a guest's reset leaves it there, and the end does not.
    let before = acme.get("web").unwrap();
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let after = acme.get("web").unwrap();
    assert_eq!((after.vmm_pid, &after.placement), (before.vmm_pid, &before.placement));
    let rebooted = acme.reboot("web", Some(0)).unwrap();
    assert_eq!(rebooted.placement, before.placement);
    is_where_it_says(&rebooted);
    assert_eq!(acme.stop("web", Some(0)).unwrap().placement, None);
    assert_eq!(acme.get("web").unwrap().placement, None);
    let asked = acme.decisions(v1::ListDecisionsRequest { hook: "place".into(), ..Default::default() }).unwrap();
    assert_eq!(asked.len(), 2, "a reboot asks nobody");
}
