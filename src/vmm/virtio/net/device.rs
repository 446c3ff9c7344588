//! The NIC whose frames this process moves: pairs of queues, the control queue, what was negotiated. Key type: [`Net`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::control;
use super::front::{Front, Role};
use super::offload::{self, MAX_FRAME_LEN};
use super::pair::{Pair, Shared};
use crate::model::{DeviceChange, DeviceId, MacAddr, RateLimits};
use crate::sys::tap::{self, Offloads};
use crate::vmm::ports::ChangeError;
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::limiter::Limiter;
use crate::vmm::virtio::queue::Ring;
use crate::vmm::virtio::stock::Stock;

/// How a tap is told what the guest wants of it.
#[derive(Debug, Clone, Copy)]
pub struct TapControl {
    /// Sets what the host leaves to the guest; for all queues of the tap.
    pub set_offloads: fn(BorrowedFd<'_>, Offloads) -> io::Result<()>,
    /// Attaches or detaches a queue.
    pub set_queue: fn(BorrowedFd<'_>, bool) -> io::Result<()>,
}

impl TapControl {
    /// The kernel's taps.
    pub const KERNEL: Self = Self { set_offloads: tap::set_offloads, set_queue: tap::set_queue };
}

/// virtio-net on a tap.
#[derive(Debug)]
pub struct Net {
    front: Front,
    pairs: Vec<Pair>,
    control: TapControl,
    /// What the driver that runs has taken, once the tap knows of it.
    agreed: Option<Agreed>,
    receives: Limiter,
    transmits: Limiter,
}

#[derive(Debug, Clone, Copy)]
struct Agreed {
    features: u64,
    longest: u64,
}

impl Net {
    /// An interface with address `mac` on the queues of a tap (at least one): opened with `IFF_TAP | IFF_NO_PI |
    /// IFF_VNET_HDR`, set to a header of 12 bytes (`TUNSETVNETHDRSZ`), attached, non-blocking. The tap can do the
    /// offloads `known`. Each direction moves what `limits` allow.
    pub fn new(
        id: DeviceId,
        taps: Vec<OwnedFd>,
        mac: MacAddr,
        known: Offloads,
        limits: RateLimits,
        control: TapControl,
    ) -> io::Result<Self> {
        Self::with_stock(id, taps, mac, known, limits, control, &Stock::default())
    }

    /// The same with timers from `stock`.
    pub fn with_stock(
        id: DeviceId,
        taps: Vec<OwnedFd>,
        mac: MacAddr,
        known: Offloads,
        limits: RateLimits,
        control: TapControl,
        stock: &Stock,
    ) -> io::Result<Self> {
        for tap in &taps {
            if !rustix::fs::fcntl_getfl(tap)?.contains(OFlags::NONBLOCK) {
                let text = format!("tap of interface {id} is blocking, it must be opened with O_NONBLOCK");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        if taps.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("interface {id} has no tap")));
        }
        let limits = roomy(limits);
        let limiter = || Ok::<_, io::Error>(Limiter::with_timer(limits, stock.timer()?));
        let (receives, transmits) = (limiter()?, limiter()?);
        let pairs: Vec<_> = taps.into_iter().map(Pair::new).collect();
        let front = Front { id, mac, pairs: pairs.len() as u16, known };
        Ok(Self { front, pairs, control, agreed: None, receives, transmits })
    }

    /// The first call after a driver has come: the tap learns what was negotiated, and that one pair is in use.
    fn agree(&mut self, features: u64) -> io::Result<Agreed> {
        if let Some(agreed) = self.agreed {
            return Ok(agreed);
        }
        let flags = offload::host_flags(features & offload::offer(self.front.known));
        if self.front.known != Offloads::NONE
            && let Some(first) = self.pairs.first()
        {
            (self.control.set_offloads)(first.tap(), flags)?;
        }
        self.use_pairs(1)?;
        let agreed = Agreed { features, longest: offload::longest_frame(flags) };
        self.agreed = Some(agreed);
        Ok(agreed)
    }

    /// Frames come on the first `count` pairs only (VIRTIO 1.3 §5.1.6.5.5): the host's flows are spread over those.
    fn use_pairs(&mut self, count: usize) -> io::Result<()> {
        for (number, pair) in self.pairs.iter_mut().enumerate() {
            let is_used = number < count;
            if pair.is_attached != is_used {
                (self.control.set_queue)(pair.tap(), is_used)?;
                pair.is_attached = is_used;
            }
        }
        Ok(())
    }

    /// Whether a queue may have work after this wake-up.
    fn has_work(&self, role: Role, number: usize, wake: Wake) -> bool {
        let pairs = self.pairs.len();
        match (wake, role) {
            (Wake::Any, _) => true,
            (Wake::Queue(kicked), Role::Transmit(pair)) => {
                kicked == number && self.pairs.get(pair).is_some_and(|pair| !pair.is_tap_full)
            }
            (Wake::Queue(kicked), _) => kicked == number,
            (Wake::Backend(ready), Role::Receive(pair)) => ready == pair || ready == pairs,
            (Wake::Backend(ready), Role::Transmit(pair)) => {
                ready == pairs + 1 || (ready == pair && self.pairs.get(pair).is_some_and(|pair| pair.is_tap_full))
            }
            (Wake::Backend(_), Role::Control) => false,
        }
    }

    fn serve(&mut self, role: Role, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, to: Agreed) -> Result<Next, Fault> {
        let Self { front, pairs, receives, transmits, .. } = self;
        let Agreed { features, longest } = to;
        let mut shared = Shared { id: &front.id, memory, features, longest, receives, transmits };
        match role {
            Role::Receive(number) => match pairs.get_mut(number).filter(|pair| pair.is_attached) {
                Some(pair) => pair.receive(ring, &mut shared),
                None => Ok(Next::Wait),
            },
            Role::Transmit(number) => match pairs.get_mut(number).filter(|pair| pair.is_attached) {
                Some(pair) => pair.transmit(ring, &mut shared),
                None => Ok(Next::Wait),
            },
            // What was left on the pairs that are used now is looked at anew.
            Role::Control => {
                let is_changed = control::answer(ring, memory, self.front.pairs, |count| self.use_pairs(count.into()))?;
                Ok(if is_changed { Next::Again } else { Next::Wait })
            }
        }
    }
}

/// Limits whose burst holds the longest frame: none has to wait until there is room for one.
fn roomy(limits: RateLimits) -> RateLimits {
    RateLimits { bandwidth: limits.bandwidth.map(|rate| rate.with_burst_of(MAX_FRAME_LEN)), ..limits }
}

impl Device for Net {
    fn identity(&self) -> Identity {
        self.front.identity()
    }

    /// The tap's queues, then the timers of the receive and of the transmit limits.
    fn backends(&self) -> Vec<RawFd> {
        let taps = self.pairs.iter().map(|pair| pair.tap().as_raw_fd());
        taps.chain([self.receives.as_raw_fd(), self.transmits.as_raw_fd()]).collect()
    }

    fn run(&mut self, active: &mut Active, wake: Wake) -> Result<Next, Fault> {
        let to = self.agree(active.features)?;
        let memory = active.memory.memory().into_inner();
        let mut next = Next::Wait;
        for number in 0..active.rings.len() {
            if let Some(role) = self.front.role(number, active.features)
                && self.has_work(role, number, wake)
                && let Some(ring) = active.rings.get_mut(number).and_then(Option::as_mut)
                && self.serve(role, ring, &memory, to)? == Next::Again
            {
                next = Next::Again;
            }
        }
        Ok(next)
    }

    fn change(&mut self, change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        let DeviceChange::Limits(limits) = change else { return Err(ChangeError::Unsupported) };
        self.receives.set(roomy(limits));
        self.transmits.set(roomy(limits));
        Ok(None)
    }

    fn stop(&mut self) {
        self.agreed = None;
        self.receives.forget();
        self.transmits.forget();
        self.pairs.iter_mut().for_each(Pair::forget);
    }
}
