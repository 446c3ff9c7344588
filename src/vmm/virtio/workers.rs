//! Threads for devices: made as they are needed until system calls are restricted, from a bounded reserve afterwards.
//! Key type: [`Workers`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::worker::Worker;
use crate::vmm::ports::Confine;

/// Where devices get their threads. Clones share it.
#[derive(Debug, Clone)]
pub struct Workers {
    confine: Confine,
    /// Rank: leaf. Guards the free threads; held for a lookup only.
    reserve: Arc<Mutex<Reserve>>,
}

#[derive(Debug, Default)]
struct Reserve {
    free: Vec<Worker>,
    /// No thread can be made any more.
    is_sealed: bool,
}

impl Workers {
    /// Threads that begin with `confine`. None is made yet.
    pub fn new(confine: Confine) -> Self {
        Self { confine, reserve: Arc::default() }
    }

    /// Makes `count` free threads, and is the end of making any.
    pub fn seal(&self, count: usize) -> io::Result<()> {
        let spares = (0..count).map(|number| Worker::spawn(&format!("spare{number}"), self.confine));
        let spares = spares.collect::<io::Result<Vec<_>>>()?;
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        reserve.free.extend(spares);
        reserve.is_sealed = true;
        Ok(())
    }

    /// A free thread: a new one, named after `device`, or one of the reserve. Without one it is `StorageFull`.
    pub(super) fn take(&self, device: &str) -> io::Result<Worker> {
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        match reserve.free.pop() {
            Some(worker) => Ok(worker),
            None if reserve.is_sealed => {
                let text =
                    "no device thread is free: detach another device first, or attach this one while the VM is stopped";
                Err(io::Error::new(io::ErrorKind::StorageFull, text))
            }
            None => Worker::spawn(device, self.confine),
        }
    }

    /// Takes a thread back, whose device has left.
    pub(super) fn put_back(&self, worker: Worker) {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner).free.push(worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_threads_until_it_is_sealed_and_lends_the_reserve_afterwards() {
        let workers = Workers::new(|| Ok(()));
        let early = workers.take("early").unwrap();
        workers.seal(1).unwrap();
        let spare = workers.take("late").unwrap();
        assert_eq!(workers.take("late").unwrap_err().kind(), io::ErrorKind::StorageFull);
        workers.put_back(early);
        workers.put_back(spare);
        let _both = (workers.take("a").unwrap(), workers.take("b").unwrap());
        assert!(workers.take("c").is_err());
    }
}
