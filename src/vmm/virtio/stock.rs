//! What devices need that cannot be made once system calls are restricted, made ahead: disk rings, and timers of rate
//! limits. Key type: [`Stock`]. Threads are in `workers`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::block::DEPTH;
use crate::sys::disk_ring::DiskRings;

/// Timers that a device takes at most: a NIC has one for each direction.
const TIMERS_PER_DEVICE: usize = 2;

/// Where devices get rings and timers: made as they are needed until [`Stock::fill`], from a bounded stock afterwards.
/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stock {
    pub(super) rings: DiskRings,
    /// Rank: leaf. `None` until they are made ahead.
    timers: Arc<Mutex<Option<Vec<TimerFd>>>>,
}

impl Stock {
    /// Makes what `devices` need that come later, and is the end of making any.
    pub fn fill(&self, devices: usize) -> io::Result<()> {
        self.rings.stock(devices, DEPTH)?;
        let timers = (0..devices * TIMERS_PER_DEVICE).map(|_| TimerFd::new().map_err(io::Error::from));
        let timers = timers.collect::<io::Result<_>>()?;
        *self.timers.lock().unwrap_or_else(PoisonError::into_inner) = Some(timers);
        Ok(())
    }

    /// Whether no more can be made.
    pub(super) fn is_filled(&self) -> bool {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A timer, new or of the stock, to which it then returns; without one it is `StorageFull`.
    pub(super) fn timer(&self) -> io::Result<Timer> {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(spares) = timers.as_mut() else { return Timer::new() };
        let none = || io::Error::new(io::ErrorKind::StorageFull, "no timer is free: detach another device first");
        Ok(Timer { timer: Some(spares.pop().ok_or_else(none)?), home: Some(self.clone()) })
    }
}

/// A timer that goes home when it is dropped, if it has one. It may still fire for whoever had it before.
#[derive(Debug)]
pub(super) struct Timer {
    /// `None` only within the drop.
    timer: Option<TimerFd>,
    home: Option<Stock>,
}

impl Timer {
    /// One that has no home.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { timer: Some(TimerFd::new().map_err(io::Error::from)?), home: None })
    }

    /// Fires once after `wait`, which is not zero.
    pub(super) fn fire_after(&mut self, wait: Duration) -> io::Result<()> {
        match &mut self.timer {
            Some(timer) => timer.reset(wait, None).map_err(io::Error::from),
            None => unreachable!("it is taken in the drop only"),
        }
    }
}

#[cfg(test)]
impl Timer {
    /// Waits until it fires.
    pub(super) fn wait(&mut self) -> io::Result<u64> {
        match &mut self.timer {
            Some(timer) => timer.wait().map_err(io::Error::from),
            None => unreachable!("it is taken in the drop only"),
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let (Some(timer), Some(home)) = (self.timer.take(), &self.home)
            && let Some(spares) = home.timers.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            spares.push(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_timers_and_gets_them_back() {
        let stock = Stock::default();
        let _own = stock.timer().unwrap();
        stock.fill(1).unwrap();
        assert!(stock.is_filled());
        let (first, mut second) = (stock.timer().unwrap(), stock.timer().unwrap());
        assert_eq!(stock.timer().unwrap_err().kind(), io::ErrorKind::StorageFull);
        second.fire_after(Duration::from_secs(60)).unwrap();
        drop(first);
        assert!(stock.timer().is_ok());
        drop(second);
        let _both = (stock.timer().unwrap(), stock.timer().unwrap());
        assert!(stock.timer().is_err(), "the one from before has no home");
    }
}
