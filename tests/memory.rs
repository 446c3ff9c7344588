//! Where a VM's memory and CPUs come from, seen on the host and by the guest. Boots guests (feature `lab`).

use crate::support::guest::{boot, linux};
use crate::support::guest_ram::{numa_of_guest, resident_kib, smaps_of_guest};
use crate::support::wait::{SOON, until};
use crate::support::{Host, facts};
use ostler::api::v1;
use ostler::api::v1::memory_spec::Hugepages;
use tonic::Code;

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

fn number(path: &str) -> u64 {
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn huge() -> v1::VirtualMachineSpec {
    let memory = v1::MemorySpec { hugepages: Hugepages::Size2m.into(), ..Default::default() };
    v1::VirtualMachineSpec { memory: Some(memory), ..linux() }
}

fn has(lines: &[String], name: &str, value: &str) -> bool {
    lines.iter().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim() == value))
}

#[test]
fn huge_pages_are_reserved_seen_and_given_back_and_a_lack_of_them_is_told() {
    let host = Host::with_guests();
    let operator = host.operator();
    operator.register("tenants/acme/vms/web", huge()).unwrap();
    std::fs::write(POOL, "100").unwrap();
    assert_eq!(number(POOL), 100, "the lab has no memory for 100 pages");
    let refused = facts(&operator.start("tenants/acme/vms/web").unwrap_err());
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("128 pages of 2M are needed, and 100 are free"), "{refused:?}");
    assert!(refused.message.contains("hugepages-2048kB/nr_hugepages"), "{refused:?}");

    // The larger ones come from another pool.
    let mut larger = huge();
    let memory = larger.memory.as_mut().unwrap();
    memory.hugepages = Hugepages::Size1g.into();
    larger.memory_mib = 1024;
    operator.register("tenants/acme/vms/large", larger).unwrap();
    let refused = facts(&operator.start("tenants/acme/vms/large").unwrap_err());
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("1G"), "{refused:?}");

    std::fs::write(POOL, "140").unwrap();
    let running = operator.start("tenants/acme/vms/web").unwrap();
    host.console(&operator, "tenants/acme/vms/web").expect_ready();
    let mapping = smaps_of_guest(running.vmm_pid);
    assert!(has(&mapping, "KernelPageSize:", "2048 kB"), "{mapping:#?}");
    assert!(number(FREE) < 140, "nothing was taken");
    operator.stop("tenants/acme/vms/web", Some(0)).unwrap();
    until("the pages' return", SOON, || (number(FREE) == 140).then_some(()));
    std::fs::write(POOL, "0").unwrap();
}

#[test]
fn without_reserved_ones_memory_comes_in_transparent_huge_pages() {
    let host = Host::with_guests();
    let operator = host.operator();
    operator.register("tenants/acme/vms/web", linux()).unwrap();
    let running = operator.start("tenants/acme/vms/web").unwrap();
    host.console(&operator, "tenants/acme/vms/web").expect_ready();
    let mapping = smaps_of_guest(running.vmm_pid);
    let kib = |name: &str| -> u64 {
        let value = mapping.iter().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    assert!(kib("AnonHugePages:") * 10 > kib("Rss:") * 9, "{mapping:#?}");
}

#[test]
fn what_others_would_lack_is_an_operator_s_to_give() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let refused = facts(&acme.register("web", huge()).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
    let placed = |memory, cpus| v1::VirtualMachineSpec { memory, cpus, ..linux() };
    let node = |node| Some(v1::MemorySpec { numa_node: Some(node), ..Default::default() });
    let cpus = |list: &str| Some(v1::CpuSpec { host_cpus: list.into(), topology: None });
    assert_eq!(acme.register("web", placed(node(0), None)).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(acme.register("web", placed(None, cpus("0"))).unwrap_err().code(), Code::PermissionDenied);
    let operator = host.operator();
    for (spec, field, says) in [
        (placed(node(7), None), "spec.memory.numa_node", "no NUMA node 7"),
        (placed(None, cpus("0-99")), "spec.cpus.host_cpus", "absent or offline"),
    ] {
        let refused = facts(&operator.register("tenants/acme/vms/web", spec).unwrap_err());
        assert_eq!((refused.code, refused.metadata["field"].as_str()), (Code::InvalidArgument, field));
        assert!(refused.message.contains(says), "{refused:?}");
    }
}

#[test]
fn vcpus_run_where_they_are_told_and_look_as_they_are_told_in_memory_that_is_there() {
    let host = Host::with_guests();
    let operator = host.operator();
    let topology = Some(v1::CpuTopology { sockets: 1, cores: 2, threads: 2 });
    let spec = v1::VirtualMachineSpec {
        vcpus: 4,
        memory: Some(v1::MemorySpec { prefault: true, numa_node: Some(0), ..Default::default() }),
        cpus: Some(v1::CpuSpec { host_cpus: "0".into(), topology }),
        ..linux()
    };
    operator.register("tenants/acme/vms/web", spec.clone()).unwrap();
    let running = operator.start("tenants/acme/vms/web").unwrap();
    assert_eq!(running.spec.as_ref().unwrap().cpus, spec.cpus);
    let pid = running.vmm_pid;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        if line("Name:").contains("vcpu") {
            assert_eq!(line("Cpus_allowed_list:"), "Cpus_allowed_list:\t0");
        }
    }
    let [cgroup] = host.cgroups().try_into().expect("one VM, one cgroup");
    assert_eq!(std::fs::read_to_string(cgroup.join("cpuset.cpus")).unwrap().trim(), "0");
    assert_eq!(resident_kib(pid), 262_144);
    let memory = numa_of_guest(pid);
    assert!(memory.contains("bind:0"), "{memory}");

    let mut console = host.console(&operator, "tenants/acme/vms/web");
    console.expect_ready();
    let show = "for c in 0 1 2 3; do cd /sys/devices/system/cpu/cpu$c/topology; \
                echo cpu-$c: $(cat physical_package_id) $(cat core_id) $(cat thread_siblings_list); done";
    let printed = console.run(show);
    for line in ["cpu-0: 0 0 0-1", "cpu-1: 0 0 0-1", "cpu-2: 0 1 2-3", "cpu-3: 0 1 2-3"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
}

#[test]
fn two_sockets_of_an_odd_number_of_cores_are_seen_by_the_guest() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let topology = Some(v1::CpuTopology { sockets: 2, cores: 3, threads: 1 });
    let cpus = Some(v1::CpuSpec { host_cpus: String::new(), topology });
    let (mut console, printed) = boot(&host, &acme, "web", v1::VirtualMachineSpec { vcpus: 6, cpus, ..linux() });
    assert!(printed.contains("cpus 6"), "{printed}");
    let sockets = console.run("cat /sys/devices/system/cpu/cpu*/topology/core_siblings_list");
    assert!(sockets.contains("0-2") && sockets.contains("3-5"), "{sockets}");
}
