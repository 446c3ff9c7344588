//! virtio-vsock: packets of a guest for connections that are open, asked for, or nobody's, with programs that wait.
#![no_main]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use ostler::vmm::virtio::Vsock;
use ostler_fuzz::{Bytes, Guest};

/// Packets that are made, a page each.
const PACKETS: usize = 8;
const PAGE: usize = 4096;
/// Ports of the host: one that programs wait at, the first from which they ask, and one more.
const HOST_PORTS: [u32; 4] = [7, (1 << 30) + 1, (1 << 30) + 2, 9];
const GUEST_PORTS: [u32; 4] = [1, 52, 1000, u32::MAX];

struct Host {
    guest: Guest,
    socket: PathBuf,
    programs: Vec<UnixStream>,
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(host());
}

fn host() -> Host {
    // As Rust's own start of a program does, which the fuzzer's replaces: programs that leave are an error of a write.
    // SAFETY: no handler is installed, and nothing here waits for that signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let directory = std::env::temp_dir().join(format!("ostler-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let socket = directory.join("vsock.sock");
    // Of an earlier process of this number.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    let vsock = Vsock::new("vsock".parse().expect("a name"), 3, listener).expect("a device");
    Host { guest: Guest::new(vsock), socket, programs: Vec::new() }
}

/// A packet: mostly one that belongs somewhere.
fn packet(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let (kind, ports, op, flags) = (bytes.u8(), bytes.u8(), bytes.u8(), bytes.u8());
    let (len, room, taken) = (bytes.u16(), bytes.u16(), bytes.u16());
    let mut packet = Vec::with_capacity(PAGE);
    packet.extend(u64::to_le_bytes(if kind & 0x0f == 0 { kind.into() } else { 3 }));
    packet.extend(u64::to_le_bytes(if kind & 0xf0 == 0 { kind.into() } else { 2 }));
    packet.extend(GUEST_PORTS[usize::from(ports & 3)].to_le_bytes());
    packet.extend(HOST_PORTS[usize::from(ports >> 2 & 3)].to_le_bytes());
    let len = if ports & 0x80 == 0 { u32::from(len) % 1500 } else { u32::from(len) << 8 };
    packet.extend(len.to_le_bytes());
    packet.extend(u16::to_le_bytes(if ports & 0x70 == 0x70 { 2 } else { 1 }));
    packet.extend(u16::from(op % 9).to_le_bytes());
    packet.extend(u32::from(flags).to_le_bytes());
    packet.extend((u32::from(room) << (flags >> 5)).to_le_bytes());
    packet.extend((u32::from(taken) << (op >> 5)).to_le_bytes());
    packet.resize(PAGE, kind);
    packet
}

fuzz_target!(|input: &[u8]| {
    HOST.with_borrow_mut(|host| {
        host.programs.truncate(2);
        for line in ["CONNECT 52\nabc", "ACCEPT 7\nbanner", "CONNECT 1\n"] {
            let mut program = UnixStream::connect(&host.socket).expect("the device listens");
            program.set_nonblocking(true).expect("a socket");
            // A few bytes fit into any socket.
            let _ = program.write_all(line.as_bytes());
            host.programs.push(program);
        }
        host.guest.live(!0, input, |bytes| (0..PACKETS).flat_map(|_| packet(bytes)).collect());
        for program in &mut host.programs {
            // Nothing is there, or some, or the end.
            let _ = program.read(&mut [0; PAGE]);
        }
    });
});
