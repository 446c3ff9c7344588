//! What was typed and the guest has not taken. Key type: [`Keyboard`], shared by control thread and worker.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most input that waits for the guest, in bytes; who types waits beyond that.
pub(super) const MAX_TYPED: usize = 4096;

/// The input of a console. Clones share it.
#[derive(Debug, Clone)]
pub struct Keyboard {
    /// Rank: leaf. Guards at most [`MAX_TYPED`] bytes; held for a copy of them.
    typed: Arc<Mutex<VecDeque<u8>>>,
    /// Wakes the worker: there is something to take.
    news: Arc<EventFd>,
    /// Wakes who types: everything was taken.
    taken: Arc<EventFd>,
}

impl Keyboard {
    /// One that signals `taken` when the guest has taken all input.
    pub fn new(taken: Arc<EventFd>) -> io::Result<Self> {
        Ok(Self { typed: Arc::default(), news: Arc::new(EventFd::new(EFD_NONBLOCK)?), taken })
    }

    /// Types as much of `input` as there is room for; gives how many bytes that was.
    pub fn type_in(&self, input: &[u8]) -> usize {
        let mut typed = self.lock();
        let room = MAX_TYPED.saturating_sub(typed.len()).min(input.len());
        typed.extend(input.iter().take(room));
        drop(typed);
        if room > 0 {
            // A full counter means that the worker has been woken already.
            let _ = self.news.write(1);
        }
        room
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes what was typed first, `most` bytes of it.
    pub(super) fn take(&self, most: usize) -> Vec<u8> {
        let mut typed = self.lock();
        let count = most.min(typed.len());
        let taken: Vec<u8> = typed.drain(..count).collect();
        let is_all = count > 0 && typed.is_empty();
        drop(typed);
        if is_all {
            let _ = self.taken.write(1);
        }
        taken
    }

    /// What becomes ready with each piece of news; never read, since each write is an edge.
    pub(super) fn news(&self) -> RawFd {
        self.news.as_raw_fd()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
