//! Machine code of a WebAssembly component, made by a compiler that is this program's own. Key type: [`Artefact`].
//!
//! Whoever can choose the bytes of an artefact runs code in the process that loads it. So the bytes have four origins and
//! no other: a child that was started here, over a socket that was made here; this process itself; a file with an
//! authentication code under a key that only this node has; or, in the process that runs plugins, the daemon that started
//! it, over a socket that it got from there. Called by `daemon/policy`.
#![allow(unsafe_code, reason = "machine code becomes callable")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ring::hmac;
use rustix::event::{PollFd, PollFlags, Timespec};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::packet::{Connection, Received};
use super::process::End;
use super::sealed;
use super::spawn::{self, Isolation};

/// Length of an authentication code, in bytes (HMAC-SHA256: RFC 2104, FIPS 180-4).
const TAG_LEN: usize = 32;
/// First byte of a child's answer: the artefact follows.
const MADE: u8 = 0;
/// What stands before an artefact in the answer, in bytes: that, and its length.
const FRAME_LEN: u64 = 9;
/// First byte of a child's answer: why there is none follows, as text.
pub const REFUSED: u8 = 1;
/// Longest text of a refusal that is read, in bytes.
const MAX_REFUSAL_LEN: usize = 4096;

/// Serialized machine code that may be loaded.
pub struct Artefact(Vec<u8>);

/// Sends artefacts to the process that runs them.
pub struct ArtefactSender(Connection);

/// Receives artefacts from the daemon.
pub struct ArtefactReceiver(Connection);

/// The node's key for artefacts in files.
#[derive(Clone)]
pub struct ArtefactKey(hmac::Key);

/// A compiler as a process of its own.
#[derive(Debug, Clone, Copy)]
pub struct CompilerProcess<'a> {
    /// The program: this one.
    pub program: &'a Path,
    /// Its arguments, the role first.
    pub arguments: &'a [&'a OsStr],
    /// Longest that it may take, by the clock; then it is killed.
    pub deadline: Duration,
    /// Longest artefact, in bytes.
    pub max_len: u64,
}

/// Why a child made no artefact.
#[derive(Debug, thiserror::Error)]
pub enum CompilerEnd {
    /// It refuses the component.
    #[error("{0}")]
    Refused(String),
    /// It was killed at its deadline.
    #[error("the compiler did not end in time")]
    Late,
    /// It ended otherwise.
    #[error("the compiler ended early: {0:?}")]
    Ended(End),
    /// What it made is too long.
    #[error("the compiled component is too large")]
    TooLarge,
    /// It could not be started or talked to.
    #[error("the compiler cannot be run: {0}")]
    Io(#[from] io::Error),
}

/// The answer of a compiler that has made this: with its length, for one that ends in the middle of it has made nothing.
pub fn made(artefact: &[u8]) -> Vec<u8> {
    [&[MADE], &(artefact.len() as u64).to_le_bytes()[..], artefact].concat()
}

impl Artefact {
    /// Compiles `component` in this process.
    pub fn compile(engine: &Engine, component: &[u8]) -> wasmtime::Result<Self> {
        engine.precompile_component(component).map(Self)
    }

    /// Has a new process compile `component`, which must answer with [`made`] or [`REFUSED`]. It has no descriptor but
    /// its socket, and nothing of it is left when this returns. Blocks for as long as that takes, at most the deadline.
    pub fn by_child(compiler: CompilerProcess<'_>, component: &[u8]) -> Result<Self, CompilerEnd> {
        let ends_at = Instant::now() + compiler.deadline;
        let (mut ours, theirs) = UnixStream::pair()?;
        let isolation = Isolation { has_own_pids: rustix::process::geteuid().is_root(), ..Isolation::default() };
        let log = File::options().write(true).open("/dev/null")?;
        let child =
            spawn::isolated(compiler.program, "ostler-compile", compiler.arguments, theirs.as_fd(), log, isolation)?;
        drop(theirs);
        let answer = exchange(&mut ours, component, ends_at, compiler.max_len);
        // It has answered, or never will.
        child.kill()?;
        rustix::event::poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&timespec(Duration::from_secs(5))))
            .map_err(io::Error::from)?;
        let end = child.try_reap()?;
        match answer {
            Ok(answer) => match answer.split_first() {
                Some((&MADE, framed)) => match framed.split_first_chunk() {
                    Some((_, artefact)) if artefact.len() as u64 > compiler.max_len => Err(CompilerEnd::TooLarge),
                    Some((len, artefact)) if artefact.len() as u64 == u64::from_le_bytes(*len) => {
                        Ok(Self(artefact.to_vec()))
                    }
                    // It ended in the middle of its answer, or after more than that.
                    Some(_) | None => Err(CompilerEnd::Ended(end.unwrap_or(End::Unknown))),
                },
                Some((&REFUSED, text)) => {
                    let text = text.get(..text.len().min(MAX_REFUSAL_LEN)).unwrap_or_default();
                    Err(CompilerEnd::Refused(String::from_utf8_lossy(text).into_owned()))
                }
                Some(_) | None => Err(CompilerEnd::Ended(end.unwrap_or(End::Unknown))),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(CompilerEnd::Late)
            }
            Err(error) => Err(CompilerEnd::Io(error)),
        }
    }

    /// The artefact for a file that is named by `name`, with its authentication code.
    pub fn seal(&self, key: &ArtefactKey, name: &[u8]) -> Vec<u8> {
        let tag = tagged(key, name, &self.0);
        [tag.as_ref(), &self.0].concat()
    }

    /// The artefact in the bytes of a file that was sealed under this `name` and key; else nothing.
    pub fn unseal(key: &ArtefactKey, name: &[u8], mut bytes: Vec<u8>) -> Option<Self> {
        let (tag, artefact) = bytes.split_at_checked(TAG_LEN)?;
        let message = [&length(name), name, artefact].concat();
        hmac::verify(&key.0, &message, tag).ok()?;
        bytes.drain(..TAG_LEN);
        Some(Self(bytes))
    }

    /// Makes it callable. Refuses an artefact of another engine.
    pub fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are what wasmtime's serialization made: the field is private, and set only by `compile`, by
        // `by_child` from a process that it started itself from this program, over a socket that nobody else has, by
        // `unseal` after the authentication code of `seal` was verified, and by `ArtefactReceiver::receive` from a process
        // that sends an `Artefact`, whose bytes have one of these origins there.
        unsafe { Component::deserialize(engine, &self.0) }
    }

    /// Its length, in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

impl ArtefactSender {
    /// A sender, and the socket for its [`ArtefactReceiver`].
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Connection::pair()?;
        Ok((Self(ours), theirs.into_fd()))
    }

    /// Sends an artefact under a number, as a sealed memfd.
    pub fn send(&self, number: u64, artefact: &Artefact) -> io::Result<()> {
        let sealed = sealed::seal("artefact", &artefact.0)?;
        self.0.send(&number.to_le_bytes(), &[sealed.as_fd()])
    }
}

impl ArtefactReceiver {
    /// Takes the socket of [`ArtefactSender::new`]. It must have come from the process that started this one, or have been
    /// made here: what arrives over it is executed.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Connection::from_fd(fd))
    }

    /// Waits for the next artefact, of at most `max_len` bytes, and gives it with its number.
    pub fn receive(&self, max_len: usize) -> io::Result<(u64, Artefact)> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "no artefact");
        let Received::Packet(number, fds) = self.0.receive(8)? else { return Err(bad()) };
        let number = u64::from_le_bytes(number.try_into().map_err(|_| bad())?);
        let fd = fds.into_iter().next().ok_or_else(bad)?;
        Ok((number, Artefact(sealed::read(fd, max_len)?)))
    }
}

impl ArtefactKey {
    /// A key from 32 secret bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl std::fmt::Debug for ArtefactKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArtefactKey")
    }
}

fn tagged(key: &ArtefactKey, name: &[u8], artefact: &[u8]) -> hmac::Tag {
    hmac::sign(&key.0, &[&length(name), name, artefact].concat())
}

/// Tells where the name ends and the artefact begins.
fn length(name: &[u8]) -> [u8; 8] {
    (name.len() as u64).to_le_bytes()
}

/// Sends the component, then reads the whole answer.
fn exchange(stream: &mut UnixStream, component: &[u8], ends_at: Instant, max_len: u64) -> io::Result<Vec<u8>> {
    let left = || {
        let left = ends_at.saturating_duration_since(Instant::now());
        // A timeout of zero would mean none.
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    for piece in component.chunks(64 << 10) {
        stream.set_write_timeout(Some(left()?))?;
        match stream.write_all(piece) {
            Ok(()) => {}
            // It reads no more: perhaps it has said why.
            Err(error) if is_end(&error) => break,
            Err(error) => return Err(error),
        }
    }
    // Of no use where nobody reads.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(len) => answer.extend_from_slice(piece.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_end(&error) => return Ok(answer),
            Err(error) => return Err(error),
        }
        // One byte more than is allowed, and what stands before it: enough to see that it is too long.
        if answer.len() as u64 > max_len.saturating_add(FRAME_LEN) {
            return Ok(answer);
        }
    }
}

/// Of a stream whose other end is gone, with or without what it had been sent.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration, max_len: u64) -> Result<Vec<u8>, CompilerEnd> {
        let arguments = [OsStr::new("-c"), OsStr::new(script)];
        let compiler = CompilerProcess { program: Path::new("/bin/sh"), arguments: &arguments, deadline, max_len };
        Artefact::by_child(compiler, &[7; 100_000]).map(|artefact| artefact.0)
    }

    #[test]
    fn a_child_answers_refuses_dies_floods_or_hangs() {
        let long = Duration::from_secs(60);
        let made = shell(
            "cat <&3 | wc -c | tr -d ' \\n' > /dev/null; printf '\\000\\004\\0\\0\\0\\0\\0\\0\\0code' >&3",
            long,
            100,
        );
        assert_eq!(made.unwrap(), b"code");
        for wrong in ["", "\\004\\0\\0\\0\\0\\0\\0\\0cod", "\\004\\0\\0\\0\\0\\0\\0\\0codes", "\\004"] {
            let ended = shell(&format!("cat <&3 >/dev/null; printf '\\000{wrong}' >&3"), long, 100).unwrap_err();
            assert!(matches!(ended, CompilerEnd::Ended(_)), "{wrong}: {ended:?}");
        }
        // After all of the component, or before any.
        for script in ["cat <&3 >/dev/null; printf '\\001no good' >&3", "printf '\\001no good' >&3"] {
            let refused = shell(script, long, 100).unwrap_err();
            assert!(matches!(&refused, CompilerEnd::Refused(text) if text == "no good"), "{refused:?}");
        }
        for script in ["cat <&3 >/dev/null; exit 3", "exit 3"] {
            let ended = shell(script, long, 100).unwrap_err();
            assert!(matches!(ended, CompilerEnd::Ended(_)), "{ended:?}");
        }
        let flood = shell("cat <&3 >/dev/null; (printf '\\000'; cat /dev/zero) >&3", long, 1 << 20).unwrap_err();
        assert!(matches!(flood, CompilerEnd::TooLarge), "{flood:?}");
        let late = shell("sleep 600", Duration::from_millis(50), 100).unwrap_err();
        assert!(matches!(late, CompilerEnd::Late), "{late:?}");
    }

    #[test]
    fn an_artefact_arrives_as_it_was_sent_and_nothing_else_is_one() {
        let (sender, theirs) = ArtefactSender::new().unwrap();
        let receiver = ArtefactReceiver::from_fd(theirs);
        sender.send(7, &Artefact(b"machine code".to_vec())).unwrap();
        let (number, artefact) = receiver.receive(100).unwrap();
        assert_eq!((number, &artefact.0[..]), (7, &b"machine code"[..]));
        sender.send(7, &Artefact(vec![0; 101])).unwrap();
        assert!(receiver.receive(100).is_err(), "too long");
        sender.0.send(&[7; 8], &[]).unwrap();
        assert!(receiver.receive(100).is_err(), "no descriptor");
        sender.0.send(&[7; 8], &[tempfile::tempfile().unwrap().as_fd()]).unwrap();
        assert!(receiver.receive(100).is_err(), "not sealed");
        drop(sender);
        assert!(receiver.receive(100).is_err(), "closed");
    }

    #[test]
    fn a_file_is_believed_under_its_name_and_key_only() {
        let (key, other) = (ArtefactKey::new(&[1; 32]), ArtefactKey::new(&[2; 32]));
        let sealed = Artefact(b"machine code".to_vec()).seal(&key, b"name");
        assert_eq!(Artefact::unseal(&key, b"name", sealed.clone()).unwrap().0, b"machine code");
        assert!(Artefact::unseal(&other, b"name", sealed.clone()).is_none());
        assert!(Artefact::unseal(&key, b"nam", sealed.clone()).is_none());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(Artefact::unseal(&key, b"name", altered).is_none(), "byte {at}");
            assert!(Artefact::unseal(&key, b"name", sealed[..at].to_vec()).is_none(), "cut at {at}");
        }
    }
}
