//! COM1: a 16550 whose output goes to the console and whose interrupt is an irqfd. Key type: [`Serial`].
//!
//! Registers are written by vCPU threads, input is typed by the control thread; both under the machine's lock.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Raises the UART's interrupt.
struct IrqTrigger(EventFd);

impl Trigger for IrqTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the control thread that the guest took the input, so that more can be typed.
struct InputTaken(Arc<EventFd>);

impl SerialEvents for InputTaken {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // A full counter means that the control thread has been told already.
        let _ = self.0.write(1);
    }
}

/// The UART.
pub struct Serial<W: Write>(Uart<IrqTrigger, InputTaken, W>);

impl<W: Write> Serial<W> {
    /// `irq`: signalled to interrupt the guest; `input_taken`: signalled when the guest has read all input; `output`
    /// must not block.
    pub fn new(irq: EventFd, input_taken: Arc<EventFd>, output: W) -> Self {
        Self(Uart::with_events(IrqTrigger(irq), InputTaken(input_taken), output))
    }

    /// Register read; `offset` is 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// Register write. Output that is lost is lost: the guest must not wait for a console.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.0.write(offset, value);
    }

    /// Types as much of `input` as the FIFO takes; gives how many bytes that was.
    pub fn type_in(&mut self, input: &[u8]) -> usize {
        let room = self.0.fifo_capacity().min(input.len());
        let Some(input) = input.get(..room).filter(|input| !input.is_empty()) else { return 0 };
        // In loopback mode the UART takes nothing and says so.
        self.0.enqueue_raw_bytes(input).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_no_more_than_the_fifo_takes_and_says_when_it_is_empty() {
        let taken = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut serial = Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), Arc::clone(&taken), Vec::new());
        let typed = serial.type_in(&[b'x'; 200]);
        assert_eq!(typed, 64);
        assert_eq!(serial.type_in(b"y"), 0);
        for _ in 0..typed {
            assert_eq!(serial.read(0), b'x');
        }
        assert_eq!(taken.read().unwrap(), 1);
        assert_eq!(serial.type_in(b"y"), 1);
    }

    #[test]
    fn output_reaches_the_console() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut serial = Serial::new(event(), Arc::new(event()), Vec::new());
        serial.write(0, b'h');
        serial.write(0, b'i');
        assert_eq!(serial.0.writer(), b"hi");
    }
}
