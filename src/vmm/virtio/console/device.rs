//! The device: what was typed into the driver's buffers, and what the driver sends to the output. Key type: [`Console`].

use std::io::Write;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::Keyboard;
use super::keyboard::MAX_TYPED;
use crate::model::{DeviceChange, DeviceId, WindowSize};
use crate::vmm::ports::ChangeError;
use crate::vmm::virtio::chain::{self, Chain};
use crate::vmm::virtio::device::{Active, Device, Fault, Identity, Next, Wake};
use crate::vmm::virtio::queue::{Ring, RingFault};

/// Queues of port 0: to the guest, and from it.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Feature (VIRTIO 1.2 §5.3.3): the configuration tells the size of the window.
const F_SIZE: u64 = 1 << 0;
/// Communication controller, other.
const CLASS: u32 = 0x07_80_00;
/// Output that one request may hold, in bytes: as much as is kept of the past. What exceeds it is lost.
const MAX_OUTPUT: u64 = 64 << 10;

/// A console whose output goes to `W`, which must not block.
#[derive(Debug)]
pub struct Console<W> {
    id: DeviceId,
    keyboard: Keyboard,
    output: W,
    window: WindowSize,
}

impl<W: Write> Console<W> {
    /// A console with what is typed on `keyboard`.
    pub fn new(id: DeviceId, keyboard: Keyboard, output: W) -> Self {
        Self { id, keyboard, output, window: WindowSize::default() }
    }

    /// Device configuration: `cols`, then `rows`. What follows is for features that are not on offer.
    fn config(&self) -> Vec<u8> {
        [self.window.columns, self.window.rows].into_iter().flat_map(u16::to_le_bytes).collect()
    }

    /// Gives the guest what was typed, as far as it has buffers.
    fn give(&self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            if self.keyboard.is_empty() {
                next = Next::Wait;
                break;
            }
            match ring.pop(&**memory)? {
                Some(chain) => self.fill(ring, memory, &chain)?,
                None if ring.listen(&**memory)? => {}
                None => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        ring.signal(&**memory)?;
        Ok(next)
    }

    fn fill(&self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<(), Fault> {
        let room = chain::len(&chain.writable).min(MAX_TYPED as u64) as usize;
        if room == 0 || !chain.readable.is_empty() {
            self.note(ring, "buffer for input has no room or is readable");
            return Ok(ring.complete(&**memory, chain.head, 0)?);
        }
        let typed = self.keyboard.take(room);
        chain::write(&**memory, &chain.writable, &typed).ok_or(RingFault::NotMemory)?;
        // At most MAX_TYPED.
        Ok(ring.complete(&**memory, chain.head, typed.len() as u32)?)
    }

    /// Prints what the guest sends.
    fn print(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>) -> Result<Next, Fault> {
        let mut next = Next::Again;
        for _ in 0..ring.size() {
            match ring.pop(&**memory)? {
                Some(chain) => self.print_one(ring, memory, &chain)?,
                None if ring.listen(&**memory)? => {}
                None => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        ring.signal(&**memory)?;
        Ok(next)
    }

    fn print_one(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<(), Fault> {
        let len = chain::len(&chain.readable);
        if !chain.writable.is_empty() || len > MAX_OUTPUT {
            self.note(ring, "output of the guest's is too long or writable");
        }
        let bytes = chain::read(&**memory, &chain.readable, len.min(MAX_OUTPUT)).ok_or(RingFault::NotMemory)?;
        // Output that is lost is lost: the guest must not wait for a console.
        let _ = self.output.write_all(&bytes);
        Ok(ring.complete(&**memory, chain.head, 0)?)
    }

    fn note(&self, ring: &Ring, what: &'static str) {
        let count = ring.count_offence();
        if count.is_power_of_two() {
            tracing::warn!(device = %self.id, count, "{what}");
        }
    }
}

impl<W: Write + Send + 'static> Device for Console<W> {
    fn identity(&self) -> Identity {
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_CONSOLE as u16,
            class: CLASS,
            features: F_SIZE,
            config: self.config(),
            queue_sizes: QUEUE_SIZES.to_vec(),
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        vec![self.keyboard.news()]
    }

    fn run(&mut self, active: &mut Active, _wake: Wake) -> Result<Next, Fault> {
        let memory = active.memory.memory().into_inner();
        let mut next = Next::Wait;
        let [to_guest, from_guest, ..] = active.rings.as_mut_slice() else { return Ok(next) };
        if let Some(ring) = from_guest {
            next = self.print(ring, &memory)?;
        }
        if let Some(ring) = to_guest {
            next = next.or(self.give(ring, &memory)?);
        }
        Ok(next)
    }

    fn change(&mut self, change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        let DeviceChange::Window(window) = change else { return Err(ChangeError::Unsupported) };
        self.window = window;
        Ok(Some(self.config()))
    }

    fn stop(&mut self) {}
}
