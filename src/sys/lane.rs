//! Questions and answers between two processes through shared memory, one at a time. Key types: [`Client`], [`Server`].
//!
//! ```text
//!   0     the question's number and length          64   the answer's number and length
//!   128   whether the server sleeps, the client     192  whether the lane is closed
//!   4096  the question, up to MAX_LEN bytes          …   the answer, up to MAX_LEN bytes
//! ```
//! A side that has something to say copies it in, writes its number, and wakes the other one by futex(2) if that sleeps;
//! before it sleeps it looks for a few microseconds, so that questions in a row cost no system call. Neither side trusts
//! the other: a length is checked, bytes are copied out once before anybody looks at them, and the file cannot be made
//! shorter under a mapping (`F_SEAL_SHRINK`).

use std::fs::File;
use std::hint;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::thread::futex;
use rustix::time::Timespec;
use vm_memory::volatile_memory::VolatileMemory;
use vm_memory::{Bytes, FileOffset, MmapRegion};

/// Longest question and longest answer, in bytes.
pub const MAX_LEN: usize = 1 << 20;
/// How often a client that waits is asked whether it still wants to.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Offsets of the words, each pair on a cache line of its own.
const QUESTION: Message = Message { number: 0, len: 4, bytes: 4096 };
const ANSWER: Message = Message { number: 64, len: 68, bytes: 4096 + MAX_LEN };
const SERVER_SLEEPS: usize = 128;
const CLIENT_SLEEPS: usize = 132;
const IS_CLOSED: usize = 192;
const FILE_LEN: usize = 4096 + 2 * MAX_LEN;

/// Looks between two readings of the clock.
const LOOKS: u32 = 64;

/// What goes in one direction.
#[derive(Clone, Copy)]
struct Message {
    number: usize,
    len: usize,
    bytes: usize,
}

/// Why a client has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The question is longer than [`MAX_LEN`]; nothing was sent.
    #[error("a question of {0} bytes is longer than {MAX_LEN}")]
    TooLong(usize),
    /// The caller did not want to wait any longer, or the lane was closed. No further answer can be told apart from a
    /// late one: the lane is of no use any more.
    #[error("no answer came")]
    GivenUp,
    /// What came is no answer to this question.
    #[error("what came is no answer to the question")]
    Garbled,
}

/// The mapped file.
#[derive(Clone)]
struct Shared(Arc<MmapRegion>);

/// The side that asks.
pub struct Client {
    shared: Shared,
    number: u32,
    looks_for: Duration,
}

/// The side that answers.
pub struct Server {
    shared: Shared,
    number: u32,
    looks_for: Duration,
}

/// Ends the waiting of a [`Client`] and its [`Server`], from any thread.
#[derive(Clone)]
pub struct Closer(Shared);

/// A new lane: the asking side, and the file for the other. `looks_for`: how long a side looks before it sleeps; of no
/// use, and left out, where there is one CPU.
pub fn lane(looks_for: Duration) -> io::Result<(Client, OwnedFd)> {
    let fd = rustix::fs::memfd_create("lane", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(FILE_LEN as u64)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let shared = Shared::map(file.try_clone()?)?;
    Ok((Client { shared, number: 0, looks_for: of_use(looks_for) }, file.into()))
}

/// Nobody can write an answer while the only CPU looks for it.
fn of_use(looks_for: Duration) -> Duration {
    let has_several = thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    if has_several { looks_for } else { Duration::ZERO }
}

impl Client {
    /// Sends `question` and waits for its answer. While none comes `is_patient` is asked after each [`LOOK_AGAIN`], with how
    /// long it has been; when it says no, or the lane is closed, the wait is over.
    pub fn ask(&mut self, question: &[u8], mut is_patient: impl FnMut(Duration) -> bool) -> Result<Vec<u8>, LaneError> {
        if question.len() > MAX_LEN {
            return Err(LaneError::TooLong(question.len()));
        }
        if self.shared.is_closed() {
            return Err(LaneError::GivenUp);
        }
        let (before, asked) = (self.number, Instant::now());
        self.number = self.number.wrapping_add(1);
        self.shared.send(QUESTION, self.number, question, SERVER_SLEEPS).ok_or(LaneError::Garbled)?;
        if !self.shared.look(ANSWER.number, before, self.looks_for) {
            let is_open =
                || self.shared.word(ANSWER.number).is_some_and(|number| number.load(Ordering::SeqCst) == before);
            while is_open() {
                self.shared.sleep(ANSWER.number, before, CLIENT_SLEEPS, Some(LOOK_AGAIN));
                // An answer that came while the caller looked for reasons to wait counts: on a busy machine that takes long.
                if is_open() && (self.shared.is_closed() || !is_patient(asked.elapsed())) && is_open() {
                    return Err(LaneError::GivenUp);
                }
            }
        }
        self.shared.take(ANSWER, self.number).ok_or(LaneError::Garbled)
    }

    /// A handle that ends every wait on this lane.
    pub fn closer(&self) -> Closer {
        Closer(self.shared.clone())
    }
}

impl Server {
    /// Takes the file of [`lane`].
    pub fn map(fd: OwnedFd, looks_for: Duration) -> io::Result<Self> {
        Ok(Self { shared: Shared::map(File::from(fd))?, number: 0, looks_for: of_use(looks_for) })
    }

    /// Waits for the next question. `None`: the lane was closed, or the other side does not keep to the layout.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        if !self.shared.look(QUESTION.number, self.number, self.looks_for) {
            while self.shared.word(QUESTION.number)?.load(Ordering::SeqCst) == self.number {
                if self.shared.is_closed() {
                    return None;
                }
                self.shared.sleep(QUESTION.number, self.number, SERVER_SLEEPS, None);
            }
        }
        self.number = self.number.wrapping_add(1);
        self.shared.take(QUESTION, self.number)
    }

    /// Answers the last question. One that is longer than [`MAX_LEN`] is not sent, and is an error.
    pub fn answer(&mut self, answer: &[u8]) -> Result<(), LaneError> {
        if answer.len() > MAX_LEN {
            return Err(LaneError::TooLong(answer.len()));
        }
        self.shared.send(ANSWER, self.number, answer, CLIENT_SLEEPS).ok_or(LaneError::Garbled)
    }
}

impl Closer {
    /// Ends every wait, now and later.
    pub fn close(&self) {
        let Some(is_closed) = self.0.word(IS_CLOSED) else { return };
        is_closed.store(1, Ordering::SeqCst);
        for number in [QUESTION.number, ANSWER.number].into_iter().filter_map(|at| self.0.word(at)) {
            // Nobody need be asleep.
            let _ = futex::wake(number, futex::Flags::empty(), u32::MAX >> 1);
        }
    }
}

impl Shared {
    fn map(file: File) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) || file.metadata()?.len() != FILE_LEN as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no lane, or one that could become shorter"));
        }
        let map = MmapRegion::from_file(FileOffset::new(file, 0), FILE_LEN).map_err(io::Error::other)?;
        Ok(Self(Arc::new(map)))
    }

    /// A word; `None` does not happen: each offset lies in the file and is a multiple of 4.
    fn word(&self, at: usize) -> Option<&AtomicU32> {
        self.0.get_atomic_ref(at).ok()
    }

    fn is_closed(&self) -> bool {
        self.word(IS_CLOSED).is_none_or(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Copies `bytes` in, gives them their number, and wakes whoever sleeps.
    fn send(&self, to: Message, number: u32, bytes: &[u8], sleeps: usize) -> Option<()> {
        self.0.as_volatile_slice().write_slice(bytes, to.bytes).ok()?;
        self.word(to.len)?.store(u32::try_from(bytes.len()).ok()?, Ordering::Relaxed);
        // In one order with the flag, as in `sleep`: either it is seen here that the other side sleeps, or the other side
        // sees the number before it does. Makes what was written above visible, too.
        self.word(to.number)?.store(number, Ordering::SeqCst);
        if self.word(sleeps)?.load(Ordering::SeqCst) != 0 {
            let _ = futex::wake(self.word(to.number)?, futex::Flags::empty(), 1);
        }
        Some(())
    }

    /// Copies out what has the number expected.
    fn take(&self, from: Message, number: u32) -> Option<Vec<u8>> {
        if self.word(from.number)?.load(Ordering::SeqCst) != number {
            return None;
        }
        let len = usize::try_from(self.word(from.len)?.load(Ordering::Relaxed)).ok().filter(|len| *len <= MAX_LEN)?;
        let mut bytes = vec![0; len];
        self.0.as_volatile_slice().read_slice(&mut bytes, from.bytes).ok()?;
        Some(bytes)
    }

    /// Looks until the word is another than `old`, for a while; whether it is.
    fn look(&self, at: usize, old: u32, looks_for: Duration) -> bool {
        let Some(word) = self.word(at) else { return false };
        let begun = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if word.load(Ordering::SeqCst) != old {
                    return true;
                }
                hint::spin_loop();
            }
            if begun.elapsed() >= looks_for {
                return false;
            }
        }
    }

    /// Sleeps until the word is another than `old`, it is woken, or the time is over.
    fn sleep(&self, at: usize, old: u32, sleeps: usize, timeout: Option<Duration>) {
        let (Some(word), Some(sleeps)) = (self.word(at), self.word(sleeps)) else { return };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        sleeps.store(1, Ordering::SeqCst);
        // The kernel looks at the word again before it sleeps. Every way out is a look at the word by the caller.
        let _ = futex::wait(word, futex::Flags::empty(), old, timeout.as_ref());
        sleeps.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const SHORT: Duration = Duration::from_micros(20);

    /// A lane whose other side answers as `answer` says, until it is closed.
    fn served(looks_for: Duration, mut answer: impl FnMut(Vec<u8>) -> Vec<u8> + Send + 'static) -> Client {
        let (client, fd) = lane(looks_for).unwrap();
        let mut server = Server::map(fd, looks_for).unwrap();
        thread::spawn(move || {
            while let Some(question) = server.receive() {
                server.answer(&answer(question)).unwrap();
            }
        });
        client
    }

    #[test]
    fn every_question_gets_its_own_answer_whether_the_sides_look_or_sleep() {
        for looks_for in [Duration::ZERO, SHORT, Duration::from_millis(5)] {
            let mut client = served(looks_for, |question| [&question[..], b"!"].concat());
            for number in 0u32..2000 {
                let question = number.to_le_bytes().repeat(number as usize % 50);
                let answer = client.ask(&question, |_| true).unwrap();
                assert_eq!(answer, [&question[..], b"!"].concat());
            }
            client.closer().close();
        }
    }

    #[test]
    fn the_longest_fits_and_one_byte_more_is_refused() {
        let mut client = served(SHORT, |question| question);
        let longest = vec![7; MAX_LEN];
        assert_eq!(client.ask(&longest, |_| true).unwrap(), longest);
        assert_eq!(client.ask(&vec![7; MAX_LEN + 1], |_| true), Err(LaneError::TooLong(MAX_LEN + 1)));
        assert_eq!(client.ask(b"x", |_| true).unwrap(), b"x", "nothing was sent before");
        client.closer().close();
    }

    #[test]
    fn a_wait_ends_when_the_caller_wants_or_the_lane_is_closed() {
        let (mut client, fd) = lane(SHORT).unwrap();
        let mut waits = 0;
        let given_up = client.ask(b"x", |_| {
            waits += 1;
            waits < 3
        });
        assert_eq!((given_up, waits), (Err(LaneError::GivenUp), 3));
        let mut server = Server::map(fd, SHORT).unwrap();
        let closer = client.closer();
        let waiting = thread::spawn(move || (server.receive(), server.receive()));
        closer.close();
        assert_eq!(waiting.join().unwrap(), (Some(b"x".to_vec()), None));
        assert_eq!(client.ask(b"y", |_| true), Err(LaneError::GivenUp));
    }

    #[test]
    fn an_answer_counts_that_comes_while_the_caller_loses_patience() {
        let (mut client, fd) = lane(Duration::ZERO).unwrap();
        let mut server = Server::map(fd, Duration::ZERO).unwrap();
        let answer = client.ask(b"x", |_| {
            assert_eq!(server.receive().unwrap(), b"x");
            server.answer(b"just in time").unwrap();
            false
        });
        assert_eq!(answer, Ok(b"just in time".to_vec()));
    }

    #[test]
    fn a_side_that_does_not_keep_to_the_layout_is_found_out() {
        let garble = |number: u32, len: u32| {
            let (mut client, fd) = lane(SHORT).unwrap();
            let shared = Shared::map(fd.try_clone().unwrap().into()).unwrap();
            shared.word(ANSWER.len).unwrap().store(len, Ordering::SeqCst);
            shared.word(ANSWER.number).unwrap().store(number, Ordering::SeqCst);
            client.ask(b"x", |_| true)
        };
        assert_eq!(garble(1, 0), Ok(Vec::new()));
        assert_eq!(garble(2, 0), Err(LaneError::Garbled), "the answer to another question");
        for len in [MAX_LEN as u32 + 1, u32::MAX] {
            assert_eq!(garble(1, len), Err(LaneError::Garbled));
        }
    }

    #[test]
    fn no_side_can_make_the_file_shorter_and_no_other_file_is_taken() {
        let (_client, fd) = lane(SHORT).unwrap();
        assert!(rustix::fs::ftruncate(fd.as_fd(), 0).is_err());
        assert!(Server::map(tempfile::tempfile().unwrap().into(), SHORT).is_err());
        assert!(Server::map(super::super::sealed::seal("short", b"x").unwrap(), SHORT).is_err());
    }
}
