//! Streams between a guest with a stock driver and programs of the host: many at once, verified both ways, with ends of
//! their own; what is refused; and what a restart of the daemon, a pause and a reset leave of them. Boots guests
//! (feature `lab`).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::support::console::Console;
use crate::support::guest::{boot, disk, linux};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host, facts};
use ostler::api::v1;

/// What is to be shown: so many streams at once.
const MANY: usize = 1000;
/// More than all buffers on the way hold.
const LARGE: usize = 8 << 20;

fn with_vsock() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vsock: Some(v1::VsockSpec { cid: 42 }), ..linux() }
}

fn socket(host: &Host, caller: &Caller, vm: &str) -> PathBuf {
    host.run_dir().join("vms").join(caller.get(vm).unwrap().uid).join("vsock.sock")
}

/// A connection of which the VM's socket has been told this, and the line that it answers.
fn ask(socket: &Path, line: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(BOOT)).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let answer = answer(&mut stream);
    (stream, answer)
}

fn answer(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// A stream to the guest's port, once something listens there.
fn connect(socket: &Path, port: u32) -> UnixStream {
    let (stream, answer) = until("the guest's listener", SOON, || {
        let (stream, answer) = ask(socket, &format!("CONNECT {port}"));
        answer.starts_with("OK ").then_some((stream, answer))
    });
    assert!(answer["OK ".len()..].parse::<u32>().unwrap() >= 1 << 30, "{answer}");
    stream
}

/// Bytes that no other stream or place has in this order.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(step).collect()
}

/// Each stream sends its own bytes and gets them back, twice, with all of them open.
fn exchange(streams: &mut [UnixStream]) {
    for round in 0..2 {
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&noise(2 * number + round, 2000)).unwrap();
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut back = vec![0; 2000];
            stream.read_exact(&mut back).unwrap_or_else(|error| panic!("stream {number}: {error}"));
            assert_eq!(back, noise(2 * number + round, 2000), "stream {number}, round {round}");
        }
    }
}

/// Ends each from the host, and sees the guest's end.
fn end(streams: Vec<UnixStream>) {
    for mut stream in streams {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}

/// Raises this process' limit of open files: the streams' ends are here.
fn allow_many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

fn counted(caller: &Caller, vm: &str) -> (u64, u64) {
    let stats = caller.stats(vm).unwrap();
    let device = stats.devices.iter().find(|device| device.id == "vsock").unwrap();
    (device.queues.iter().map(|queue| queue.bytes).sum(), device.faults)
}

#[test]
fn a_thousand_streams_at_once_each_way_arrive_whole() {
    allow_many_files();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", with_vsock());
    let socket = socket(&host, &acme, "web");
    assert!(console.run("cat /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/*/device").contains("0x0013"));

    // The host calls the guest.
    console.type_line(&format!("vsock-peer echo 5000 {MANY}"));
    console.expect_within("vsock-peer: listens", SOON);
    let mut streams: Vec<_> = (0..MANY).map(|_| connect(&socket, 5000)).collect();
    console.expect_within(&format!("vsock-peer: {MANY} open"), BOOT);
    exchange(&mut streams);
    end(streams);
    console.expect_within(&format!("vsock-peer: echoed {} bytes", MANY * 4000), BOOT);

    // The guest calls the host, where as many wait.
    let (mut streams, answers): (Vec<_>, Vec<_>) = (0..MANY).map(|_| ask(&socket, "ACCEPT 6000")).unzip();
    assert!(answers.iter().all(|answer| answer == "OK 6000"));
    console.type_line(&format!("vsock-peer call 6000 {MANY}"));
    console.expect_within(&format!("vsock-peer: {MANY} open"), BOOT);
    for stream in &mut streams {
        assert!(answer(stream).starts_with("FROM "));
    }
    exchange(&mut streams);
    end(streams);
    console.expect_within(&format!("vsock-peer: echoed {} bytes", MANY * 4000), BOOT);

    // All went through the device, and nobody broke a rule.
    let (bytes, faults) = counted(&acme, "web");
    assert!(bytes > 2 * 2 * 4000 * MANY as u64, "{bytes}");
    assert_eq!(faults, 0);
}

#[test]
fn a_stream_keeps_order_and_each_way_has_an_end_of_its_own() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", with_vsock());
    let socket = socket(&host, &acme, "web");

    // Larger than all buffers: whoever reads late holds the other up, and nothing is lost.
    console.type_line("vsock-peer echo 5000 1");
    let mut stream = connect(&socket, 5000);
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(&noise(1, LARGE)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == noise(1, LARGE), "{} bytes came back", back.len());
    console.expect_within(&format!("vsock-peer: echoed {LARGE} bytes"), SOON);

    // The guest answers after the host has said all.
    console.type_line("vsock-peer count 5001");
    let mut stream = connect(&socket, 5001);
    stream.write_all(&noise(2, 100_000)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "100000\n");

    // Nobody listens: each side hears that at once.
    assert_eq!(ask(&socket, "CONNECT 5999").1, "ERROR the guest refuses port 5999");
    assert!(ask(&socket, "HELLO").1.starts_with("ERROR say CONNECT <port>"));
    assert!(console.run("vsock-peer call 6999 1").to_lowercase().contains("reset"));
    assert_eq!(counted(&acme, "web").1, 0);
}

#[test]
fn streams_outlive_the_daemon_and_a_pause_and_end_with_the_run() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", with_vsock());
    let path = socket(&host, &acme, "web");
    // Only the daemon's user gets at it.
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // Beside the shell, which has more to do meanwhile.
    console.type_line("vsock-peer echo 5000 1 &");
    let mut stream = connect(&path, 5000);
    exchange(std::slice::from_mut(&mut stream));

    host.kill_daemon();
    exchange(std::slice::from_mut(&mut stream));
    host.start_daemon();
    let acme = host.tenant("acme");
    exchange(std::slice::from_mut(&mut stream));

    // What is sent meanwhile comes afterwards.
    acme.pause("web").unwrap();
    stream.write_all(b"meanwhile").unwrap();
    acme.resume("web").unwrap();
    let mut back = [0; 9];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"meanwhile");

    // A driver that goes takes its streams along, and the next one serves those who wait.
    let (mut waiting, answered) = ask(&path, "ACCEPT 6000");
    assert_eq!(answered, "OK 6000");
    let mut console = Console::attach(&acme, "web");
    console.expect_within("vsock-peer", SOON);
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    console.type_line("");
    console
        .run(&format!("d=$(basename $(ls -d {driver}/virtio*)); echo $d > {driver}/unbind; echo $d > {driver}/bind"));
    assert_eq!(stream.read(&mut back).unwrap(), 0);
    console.type_line("vsock-peer call 6000 1");
    assert!(answer(&mut waiting).starts_with("FROM "));
    exchange(std::slice::from_mut(&mut waiting));

    acme.stop("web", Some(0)).unwrap();
    assert_eq!(waiting.read(&mut back).unwrap(), 0);
    assert!(!path.exists(), "the socket goes with the run");
}

#[test]
fn the_device_is_shown_kept_and_refused_where_it_cannot_be() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let shown = acme.register("web", with_vsock()).unwrap();
    assert_eq!(shown.spec.unwrap().vsock, Some(v1::VsockSpec { cid: 42 }));
    assert_eq!(shown.devices.last().map(|device| (device.id.as_str(), device.slot)), Some(("vsock", 2)));
    let refused = acme.detach("web", "vsock", None, false).unwrap_err();
    assert_eq!(facts(&refused).reason, "DEVICE_FIXED", "{refused:?}");
    // Its name is taken.
    let attached = v1::attach_device_request::Device::Disk(disk("vsock", "hello.img", true));
    assert_eq!(facts(&acme.attach("web", attached).unwrap_err()).reason, "DEVICE_EXISTS");
    for cid in [1, 2, u32::MAX] {
        let spec = v1::VirtualMachineSpec { vsock: Some(v1::VsockSpec { cid }), ..linux() };
        let refused = acme.register("bad", spec).unwrap_err();
        assert!(refused.message().contains("spec.vsock.cid"), "{refused:?}");
    }
    let disks = vec![disk("vsock", "hello.img", true)];
    let refused = acme.register("bad", v1::VirtualMachineSpec { disks, ..with_vsock() }).unwrap_err();
    assert!(refused.message().contains("spec.vsock"), "{refused:?}");
    // Without a number it is the first that a guest may have; two VMs may have the same.
    let spec = v1::VirtualMachineSpec { vsock: Some(v1::VsockSpec::default()), ..linux() };
    assert_eq!(acme.register("two", spec).unwrap().spec.unwrap().vsock.unwrap().cid, 3);
}
