//! What a test guest says over virtio-vsock; built by `xtask` for the guests' initial RAM disk, with nothing but `std`.
//!
//! ```text
//!   vsock-peer echo <port> <streams>     listens; with all streams open says so; sends back what comes on each, until its end
//!   vsock-peer count <port>              listens; counts the bytes of one stream to its end, then answers with the number
//!   vsock-peer call <port> <streams>     connects to the host so often; with all open says so; then as echo
//! ```

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// linux/socket.h, linux/vm_sockets.h, poll(2).
const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const ANY: u32 = u32::MAX;
const HOST: u32 = 2;
const POLLIN: i16 = 1;

/// struct sockaddr_vm.
#[repr(C)]
#[derive(Default)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

/// struct pollfd.
#[repr(C)]
#[derive(Clone, Copy)]
struct Poll {
    fd: RawFd,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: RawFd, address: *const Address, len: u32) -> i32;
    fn connect(fd: RawFd, address: *const Address, len: u32) -> i32;
    fn listen(fd: RawFd, backlog: i32) -> i32;
    fn accept(fd: RawFd, address: *mut u8, len: *mut u32) -> i32;
    fn poll(list: *mut Poll, count: u64, timeout_ms: i32) -> i32;
}

fn check(result: i32) -> Result<i32> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn address(cid: u32, port: u32) -> Address {
    Address { family: AF_VSOCK as u16, port, cid, ..Address::default() }
}

fn stream() -> Result<File> {
    // SAFETY: takes numbers; the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(check(socket(AF_VSOCK, SOCK_STREAM, 0))?) })
}

fn listener(port: u32) -> Result<File> {
    let (listener, at) = (stream()?, address(ANY, port));
    // SAFETY: the address is read during the call only, and as long as it says.
    check(unsafe { bind(listener.as_raw_fd(), &at, size_of::<Address>() as u32) })?;
    // SAFETY: takes numbers.
    check(unsafe { listen(listener.as_raw_fd(), 1024) })?;
    println!("vsock-peer: listens");
    Ok(listener)
}

fn accepted(listener: &File) -> Result<File> {
    // SAFETY: no address is asked for; the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(check(accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()))?) })
}

fn call(port: u32) -> Result<File> {
    let (stream, at) = (stream()?, address(HOST, port));
    // SAFETY: as for bind.
    check(unsafe { connect(stream.as_raw_fd(), &at, size_of::<Address>() as u32) })?;
    Ok(stream)
}

/// Sends back what comes on each stream, until all have ended.
fn echo(mut streams: Vec<File>) -> Result<()> {
    println!("vsock-peer: {} open", streams.len());
    let mut total = 0;
    let mut bytes = vec![0; 64 << 10];
    while !streams.is_empty() {
        let mut list: Vec<Poll> =
            streams.iter().map(|stream| Poll { fd: stream.as_raw_fd(), events: POLLIN, revents: 0 }).collect();
        // SAFETY: the list is as long as is said.
        check(unsafe { poll(list.as_mut_ptr(), list.len() as u64, -1) })?;
        let mut ready = list.iter().map(|entry| entry.revents != 0);
        let mut failure = None;
        streams.retain_mut(|stream| {
            if ready.next() != Some(true) {
                return true;
            }
            match stream.read(&mut bytes).and_then(|len| stream.write_all(&bytes[..len]).map(|()| len)) {
                Ok(len) => {
                    total += len;
                    len > 0
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
    }
    println!("vsock-peer: echoed {total} bytes");
    Ok(())
}

fn count(mut stream: File) -> Result<()> {
    let (mut total, mut bytes) = (0, vec![0; 64 << 10]);
    loop {
        match stream.read(&mut bytes)? {
            0 => break,
            len => total += len,
        }
    }
    stream.write_all(format!("{total}\n").as_bytes())
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| {
        let word = words.get(at).and_then(|word| word.parse::<u32>().ok());
        word.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a number is missing"))
    };
    let port = number(1)?;
    match words.first().map(String::as_str) {
        Some("echo") => {
            let listener = listener(port)?;
            echo((0..number(2)?).map(|_| accepted(&listener)).collect::<Result<_>>()?)
        }
        Some("count") => count(accepted(&listener(port)?)?),
        Some("call") => echo((0..number(2)?).map(|_| call(port)).collect::<Result<_>>()?),
        _ => Err(Error::new(ErrorKind::InvalidInput, "echo, count or call")),
    }
}

fn main() {
    if let Err(error) = run() {
        println!("vsock-peer: {error}");
        std::process::exit(1);
    }
}
