//! The NIC whose frames the host's kernel moves (vhost-net). Key type: [`KernelNet`].
//!
//! ```text
//!   driver ready ──▶ owner, features, memory, rings ──▶ backend: the tap      kick ──ioeventfd──▶ kernel ◀──▶ tap
//!   pause, pair not in use ──▶ backend: none; the kernel keeps its place in the ring        kernel ──irqfd──▶ guest
//!   reset ──▶ backend: none; the next driver's rings take the place of this one's
//! ```
//! The device's thread sees no frame: it sets this up, answers the control queue, and hears when a ring is broken. The
//! kernel signals a vector's own eventfd, so that masks are what they are for every device (`vmm/pci/msix.rs`); ISR bits
//! for a driver without MSI-X it does not know. It reaches guest memory through this process' mappings, page by page as
//! it needs them: pages that the balloon gave back come anew, as they do for the guest.
//!
//! Its thread (`vhost_task`, since Linux 6.4) is one of this process, made by the first driver and inheriting the filter of
//! the device's thread, though it never leaves the kernel; it ends when the server is closed. Before that it was a kernel
//! thread in this process' cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::control;
use super::device::TapControl;
use super::front::{Front, Role};
use super::offload;
use crate::model::{DeviceId, MacAddr};
use crate::sys::tap::Offloads;
use crate::sys::vhost_net;
use crate::vmm::ports::GuestMemory;
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::queue::{Ring, RingFault};

/// What the kernel has to know of: all that is on offer of the rings and of how frames lie in them. Offloads are the
/// tap's.
const SERVER_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Queues of a pair, as a server numbers them.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// One of the kernel's servers: a descriptor of vhost-net.
#[derive(Debug)]
struct Server {
    vhost: OwnedFd,
    memory: GuestMemory,
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.vhost.as_raw_fd()
    }
}

impl VhostKernBackend for Server {
    type AS = GuestMemory;

    fn mem(&self) -> &GuestMemory {
        &self.memory
    }

    /// A [`Ring`] was checked when it was taken over. The crate's own check refuses one that ends where memory does.
    fn is_valid(&self, _config: &VringConfigData) -> bool {
        true
    }
}

/// A pair of queues: its server, and its queue of the tap.
#[derive(Debug)]
struct Pair {
    server: Server,
    tap: OwnedFd,
    /// This process has said that it is the server's owner: once in its life.
    is_owned: bool,
    /// The tap's queue is attached.
    is_attached: bool,
    /// By queue: what the kernel signals, and what it is kicked by, once it knows the ring.
    wired: [Option<Wiring>; 2],
}

#[derive(Debug)]
struct Wiring {
    call: Arc<EventFd>,
    kick: Arc<EventFd>,
}

impl Pair {
    /// The server becomes this process', and learns features and memory.
    fn prepare(&mut self, features: u64) -> io::Result<()> {
        if !self.is_owned {
            self.server.set_owner().map_err(failed("take over"))?;
            self.is_owned = true;
        }
        self.server.set_features(features & SERVER_FEATURES).map_err(failed("set the features of"))?;
        // Memory neither grows nor moves while a driver is ready; each start tells of it anew.
        let memory = self.server.memory.memory();
        // The kernel finds it in this process; only a process beside needs a file.
        let described = memory.iter().map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: 0,
            mmap_handle: -1,
        });
        let regions: Vec<_> = described.collect();
        self.server.set_mem_table(&regions).map_err(failed("set the memory of"))?;
        Ok(())
    }

    /// The kernel learns of a ring, from its beginning.
    fn wire(&mut self, queue: usize, ring: &Ring, wiring: Wiring, broken: &EventFd) -> io::Result<()> {
        let geometry = ring.geometry();
        let config = VringConfigData {
            queue_max_size: geometry.size,
            queue_size: geometry.size,
            desc_table_addr: geometry.descriptors,
            avail_ring_addr: geometry.available,
            used_ring_addr: geometry.used,
            ..VringConfigData::default()
        };
        let Self { server, wired, .. } = self;
        server.set_vring_num(queue, geometry.size).map_err(failed("set the size of a ring of"))?;
        server.set_vring_base(queue, 0).map_err(failed("set the beginning of a ring of"))?;
        server.set_vring_addr(queue, &config).map_err(failed("set the place of a ring of"))?;
        server.set_vring_err(queue, broken).map_err(failed("listen to"))?;
        server.set_vring_call(queue, &wiring.call).map_err(failed("be interrupted by"))?;
        server.set_vring_kick(queue, &wiring.kick).map_err(failed("kick"))?;
        if let Some(place) = wired.get_mut(queue) {
            *place = Some(wiring);
        }
        Ok(())
    }

    /// The kernel moves frames, or none: then it has nothing in flight, and keeps its place in the rings.
    fn serve(&self, is_served: bool) -> io::Result<()> {
        for (queue, wiring) in (0..).zip(&self.wired) {
            let Some(wiring) = wiring else { continue };
            let backend = is_served.then(|| self.tap.as_fd());
            vhost_net::set_backend(self.server.vhost.as_fd(), queue, backend)?;
            if is_served {
                // What the driver offered while nobody looked. Fails only when the counter is full of kicks.
                let _ = wiring.kick.write(1);
            }
        }
        Ok(())
    }

    fn attach(&mut self, is_attached: bool, control: TapControl) -> io::Result<()> {
        if self.is_attached != is_attached {
            (control.set_queue)(self.tap.as_fd(), is_attached)?;
            self.is_attached = is_attached;
        }
        Ok(())
    }
}

/// virtio-net on a tap, served by the host's kernel.
#[derive(Debug)]
pub struct KernelNet {
    front: Front,
    pairs: Vec<Pair>,
    control: TapControl,
    /// Pairs in use, once the driver that runs is known to kernel and tap.
    in_use: Option<u16>,
    /// Signalled by the kernel when it cannot follow a ring.
    broken: EventFd,
    /// Signalled instead of a vector that the driver has not chosen; nobody hears.
    nowhere: Arc<EventFd>,
}

impl KernelNet {
    /// An interface with address `mac` on `descriptors`: the queues of a tap as for [`Net`](super::Net), and behind them
    /// as many open of `/dev/vhost-net`, which nobody owns. The tap can do the offloads `known`.
    pub fn new(
        id: DeviceId,
        mut descriptors: Vec<OwnedFd>,
        mac: MacAddr,
        known: Offloads,
        memory: &GuestMemory,
        control: TapControl,
    ) -> io::Result<Self> {
        let servers = descriptors.split_off(descriptors.len() / 2);
        if servers.is_empty() || servers.len() != descriptors.len() {
            let text = format!("interface {id} needs a server for each of its taps, and at least one");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let pairs = descriptors.into_iter().zip(servers).map(|(tap, vhost)| {
            let server = Server { vhost, memory: memory.clone() };
            let knows = server.get_features().map_err(failed("ask for the features of"))?;
            if knows & SERVER_FEATURES != SERVER_FEATURES {
                let text =
                    format!("the host's vhost-net knows the features {knows:#x}, {SERVER_FEATURES:#x} are needed");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            Ok(Pair { server, tap, is_owned: false, is_attached: true, wired: [const { None }; 2] })
        });
        let pairs = pairs.collect::<io::Result<Vec<_>>>()?;
        let front = Front { id, mac, pairs: pairs.len() as u16, known };
        let (broken, nowhere) = (EventFd::new(EFD_NONBLOCK)?, Arc::new(EventFd::new(EFD_NONBLOCK)?));
        Ok(Self { front, pairs, control, in_use: None, broken, nowhere })
    }

    /// The first call after a driver has come: tap and kernel learn what it wants. One pair is in use.
    fn begin(&mut self, active: &Active) -> io::Result<()> {
        if self.in_use.is_some() {
            return Ok(());
        }
        // Of the driver before.
        let _ = self.broken.read();
        let flags = offload::host_flags(active.features & offload::offer(self.front.known));
        if self.front.known != Offloads::NONE
            && let Some(first) = self.pairs.first()
        {
            (self.control.set_offloads)(first.tap.as_fd(), flags)?;
        }
        for pair in &mut self.pairs {
            pair.prepare(active.features)?;
        }
        for (number, (ring, kick)) in active.rings.iter().zip(&active.kicks).enumerate() {
            let (pair, queue) = match self.front.role(number, active.features) {
                Some(Role::Receive(pair)) => (pair, RECEIVE),
                Some(Role::Transmit(pair)) => (pair, TRANSMIT),
                Some(Role::Control) | None => continue,
            };
            let (Some(ring), Some(pair)) = (ring, self.pairs.get_mut(pair)) else { continue };
            let call = ring.interrupt().unwrap_or_else(|| Arc::clone(&self.nowhere));
            pair.wire(queue, ring, Wiring { call, kick: Arc::clone(kick) }, &self.broken)?;
        }
        self.use_pairs(1)
    }

    /// Frames come and go on the first `count` pairs only (VIRTIO 1.3 §5.1.6.5.5).
    fn use_pairs(&mut self, count: u16) -> io::Result<()> {
        for (number, pair) in (0..).zip(&mut self.pairs) {
            // The kernel has no business with a queue that is not attached.
            if number < count {
                pair.attach(true, self.control)?;
                pair.serve(true)?;
            } else {
                pair.serve(false)?;
                pair.attach(false, self.control)?;
            }
        }
        self.in_use = Some(count);
        Ok(())
    }

    /// The kernel signals the vectors that the driver has chosen by now.
    fn follow_vectors(&mut self, active: &Active) -> io::Result<()> {
        for (number, ring) in active.rings.iter().enumerate() {
            let Some(ring) = ring else { continue };
            let Some(pair) = self.pairs.get_mut(number / 2) else { continue };
            let Some(Some(wiring)) = pair.wired.get_mut(number % 2) else { continue };
            let call = ring.interrupt().unwrap_or_else(|| Arc::clone(&self.nowhere));
            if !Arc::ptr_eq(&call, &wiring.call) {
                pair.server.set_vring_call(number % 2, &call).map_err(failed("be interrupted by"))?;
                // What came meanwhile went to the vector before. Fails only when the counter is full.
                let _ = call.write(1);
                wiring.call = call;
            }
        }
        Ok(())
    }

    /// Nothing moves any more. The only failure that there could be is one of this process' own.
    fn halt(&self) -> io::Result<()> {
        self.pairs.iter().try_for_each(|pair| pair.serve(false))
    }
}

impl Device for KernelNet {
    fn identity(&self) -> Identity {
        self.front.identity()
    }

    /// What the kernel has to complain of.
    fn backends(&self) -> Vec<RawFd> {
        vec![self.broken.as_raw_fd()]
    }

    /// The control queue alone: which number it has is for the driver to say.
    fn serves(&self, queue: usize) -> bool {
        self.front.may_be_control(queue)
    }

    fn run(&mut self, active: &mut Active, wake: Wake) -> Result<Next, Fault> {
        self.begin(active)?;
        // At any wake: what was told when the device was about to rest woke nobody.
        if self.broken.read().is_ok() {
            return Err(RingFault::Unfollowed.into());
        }
        if wake == Wake::Any {
            self.follow_vectors(active)?;
            // After a rest; otherwise it is so already.
            self.use_pairs(self.in_use.unwrap_or(1))?;
        }
        let memory = active.memory.memory();
        let number = (0..active.rings.len()).find(|n| self.front.role(*n, active.features) == Some(Role::Control));
        if let Some(ring) = number.and_then(|number| active.rings.get_mut(number)).and_then(Option::as_mut) {
            control::answer(ring, &memory, self.front.pairs, |count| self.use_pairs(count))?;
        }
        Ok(Next::Wait)
    }

    fn rest(&mut self, _active: &mut Active) -> Result<(), Fault> {
        Ok(self.halt()?)
    }

    fn stop(&mut self) {
        if let Err(error) = self.halt() {
            tracing::error!(device = %self.front.id, %error, "the host's kernel does not let go of the rings");
        }
        self.in_use = None;
        for pair in &mut self.pairs {
            pair.wired = [const { None }; 2];
        }
    }
}

/// What could not be done with a server.
fn failed(what: &'static str) -> impl FnOnce(vhost::Error) -> io::Error {
    move |error| {
        let text = format!("cannot {what} the host's vhost-net: {error}");
        match error {
            vhost::Error::IoctlError(cause) => io::Error::new(cause.kind(), text),
            _ => io::Error::other(text),
        }
    }
}

#[cfg(test)]
mod tests;
