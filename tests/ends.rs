//! Ends that nobody asked for are told apart: a panic, no memory, a forbidden system call. Boots guests (feature `lab`).

use crate::support::guest::{boot, linux, linux_with};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;

mod trace;

fn failed(caller: &Caller, vm: &str) -> v1::VirtualMachine {
    until("FAILED", BOOT, || caller.get(vm).ok().filter(|vm| vm.state() == State::Failed))
}

#[test]
fn a_panic_of_the_guest_s_kernel_is_told_and_its_last_words_are_kept() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    // It would reboot at once: the host hears of the panic before.
    acme.register("web", linux_with("panic=-1 ostler.exec=panic")).unwrap();
    acme.start("web").unwrap();
    assert_eq!(failed(&acme, "web").failure, "guest kernel panicked");
    let (printed, _) = host.console(&acme, "web").end();
    assert!(printed.contains("Kernel panic - not syncing: sysrq triggered crash"), "{printed}");
    acme.destroy("web", false).unwrap();
}

#[test]
fn an_nmi_reaches_every_vcpu_and_the_guest_reacts_as_it_is_told() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", v1::VirtualMachineSpec { vcpus: 2, ..linux() });
    let sum = "grep NMI: /proc/interrupts | sed 's/[^0-9 ]//g' | (read a b; echo $((a > 0))$((b > 0)))";
    assert!(console.run(sum).contains("\n00"), "an NMI before any was asked for");
    assert_eq!(acme.nmi("web").unwrap().state(), State::Running);
    // Each when it comes to run next.
    until("an NMI of each vCPU", BOOT, || console.run(sum).contains("\n11").then_some(()));
    // This one is told nothing: it says what it saw, and goes on.
    let printed = console.run("dmesg | grep -c 'NMI received for unknown reason'");
    assert!(!printed.contains("\n0\r"), "{printed}");
}

#[test]
fn a_kill_for_want_of_memory_reads_as_one() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    boot(&host, &acme, "web", linux());
    let [cgroup] = host.cgroups().try_into().expect("one VM, one cgroup");
    std::fs::write(cgroup.join("memory.max"), (16 << 20).to_string()).unwrap();
    let failed = failed(&acme, "web");
    assert!(failed.failure.contains("want of memory"), "{failed:?}");
    // And a kill by somebody else does not.
    acme.start("web").unwrap();
    let cgroup = cgroup.join("cgroup.kill");
    std::fs::write(cgroup, "1").unwrap();
    let killed = self::failed(&acme, "web");
    assert!(killed.failure.contains("killed by signal 9"), "{killed:?}");
}

#[test]
fn a_forbidden_system_call_reads_as_one() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (_console, _) = boot(&host, &acme, "web", linux());
    let pid = acme.get("web").unwrap().vmm_pid;
    until("the control thread's wait", SOON, || trace::force_call(pid, libc::SYS_openat));
    let failed = failed(&acme, "web");
    assert!(failed.failure.contains("its seccomp filter killed it"), "{failed:?}");
    assert!(failed.failure.contains(&format!("system call {}", libc::SYS_openat)), "{failed:?}");
}
