//! A guest whose console is a virtio device: all that it prints and is told goes that way, there is no serial port, and
//! what holds of a serial console holds of this one. Boots guests (feature `lab`).

use crate::support::console::Console;
use crate::support::guest::{boot, bootable, linux};
use crate::support::terminal::Terminal;
use crate::support::wait::{BOOT, until};
use crate::support::{Caller, Host, facts};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use ostler::api::v1::virtual_machine_spec::Console as Kind;
use tonic::Code;

/// What is kept of a console's past, in bytes.
const KEPT: usize = 64 << 10;

fn with_hvc(spec: v1::VirtualMachineSpec) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { console: Kind::Virtio.into(), ..spec }
}

fn reaches(caller: &Caller, vm: &str, state: State) -> v1::VirtualMachine {
    until(state.as_str_name(), BOOT, || caller.get(vm).ok().filter(|vm| vm.state() == state))
}

#[test]
fn a_guest_that_is_given_one_on_the_command_line_has_no_other() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let run = |arguments: &[&str]| {
        let output = host.command("tenant-acme").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let kernel = ["--kernel", "linux-6.12/vmlinux", "--initrd", "linux-6.12/initrd"];
    run(&[&["vm", "register", "web", "--console", "virtio", "--cmdline", "quiet"][..], &kernel].concat());
    assert!(run(&["vm", "get", "web", "-o", "json"]).contains("\"console\": \"VIRTIO\""));
    run(&["vm", "start", "web"]);
    let mut console = host.console(&acme, "web");
    let printed = console.expect_ready();
    assert!(printed.contains("ostler-guest: kernel 6.12"), "{printed}");
    assert!(console.run("cat /proc/cmdline").contains("console=hvc0 cryptomgr.notests"));
    let consoles = console.run("cat /proc/consoles");
    assert!(consoles.contains("hvc0") && !consoles.contains("ttyS"), "{consoles}");
    let ports = console.run("grep -c 16550 /proc/tty/driver/serial");
    assert!(ports.contains("\n0\r\n"), "{ports}");
    assert!(console.run("cat /sys/bus/virtio/drivers/virtio_console/*/device").contains("0x0003"));
    // Much at once, both ways; nothing is lost on the way, or an answer would not come.
    console.type_line("stty -echo; while read -r line; do [ \"$line\" = over ] && break; echo $line; done | sha256sum");
    for _ in 0..30 {
        console.type_line(&"0123456789".repeat(30));
    }
    console.type_line("over");
    // The digest of those thirty lines.
    console.expect("93f3b9e69b0fe96d011787538a8b9749798dff99760bbf7ac85527ab502b4541");
    let stats = acme.stats("web").unwrap();
    let device = stats.devices.iter().find(|device| device.id == "console").unwrap();
    assert_eq!((device.queues.len(), device.faults), (2, 0), "{device:?}");
    assert!(device.queues[0].bytes > 9000 && device.queues[1].operations > 10, "{device:?}");
}

#[test]
fn what_is_typed_during_a_pause_comes_after_it_and_a_reboot_brings_the_console_back() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    // A kernel whose driver is a module.
    let (mut console, printed) = boot(&host, &acme, "web", with_hvc(bootable("linux-6.1", "bzImage")));
    assert!(printed.contains("ostler-guest: kernel 6.1."), "{printed}");
    assert!(console.run("cat /proc/modules").contains("virtio_console"));
    let first = acme.get("web").unwrap();
    acme.pause("web").unwrap();
    console.type_line("echo after-$((40+2))");
    acme.resume("web").unwrap();
    console.expect("after-42");
    console.type_line("reboot -f");
    let second = until("another run", BOOT, || {
        acme.get("web").ok().filter(|vm| vm.vmm_pid != first.vmm_pid && vm.state() == State::Running)
    });
    assert_eq!(first.uid, second.uid);
    let mut console = host.console(&acme, "web");
    console.expect_ready();
    let mut other = host.console(&acme, "web");
    console.run("echo to-$((20+1))-all");
    other.expect("to-21-all");
    // Stays with the VM.
    let refused = acme.detach("web", "console", None, true).unwrap_err();
    assert_eq!(facts(&refused).reason, "DEVICE_FIXED", "{refused:?}");
}

/// That the guest knows the window's size, or will: an interrupt tells it.
fn expect_window(console: &mut Console, rows_and_columns: &str) {
    console.type_line(&format!(
        "until [ \"$(stty size </dev/hvc0)\" = '{rows_and_columns}' ]; do sleep 0.1; done; echo fit-$((40+2))"
    ));
    console.expect("fit-42");
}

#[test]
fn the_size_of_the_window_reaches_the_guest() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", with_hvc(linux()));
    console.resize(132, 43);
    expect_window(&mut console, "43 132");
    // A client tells that of its terminal, now and each time that it changes.
    let sign = host.data().join("larger");
    let mut command = host.command("tenant-acme");
    command.args(["vm", "console", "web"]);
    let later = format!("(until [ -e {} ]; do sleep 0.1; done; stty rows 50 cols 90 </dev/tty) &", sign.display());
    let mut terminal = Terminal::run(&format!("stty rows 30 cols 100; {later} {{}}"), &command);
    expect_window(&mut console, "30 100");
    std::fs::write(&sign, "").unwrap();
    expect_window(&mut console, "50 90");
    terminal.press(b"\x1d");
    terminal.end();
    console.resize(0, 43);
    assert_eq!(facts(&console.end().1.unwrap_err()).reason, "BAD_FIELD");
}

#[test]
fn the_end_of_what_it_printed_is_kept() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", with_hvc(linux()));
    console.type_line("i=0; while [ $i -lt 3000 ]; do echo line-$i-of-three-thousand; i=$((i+1)); done; poweroff -f");
    let stopped = reaches(&acme, "web", State::Stopped);
    assert_eq!((stopped.vmm_pid, stopped.failure.as_str()), (0, ""));
    let (kept, end) = host.console(&acme, "web").end();
    assert!((KEPT - 4..=KEPT).contains(&kept.len()), "{} bytes", kept.len());
    assert!(!kept.contains("line-0-of-") && kept.contains("line-2999-of-"), "{kept}");
    assert_eq!(facts(&end.unwrap_err()).code, Code::FailedPrecondition);
}
