//! Sleep control and reset registers of a hardware-reduced ACPI machine (ACPI 6.5 §4.8.3.6, §4.8.3.7), and the reset
//! line that a PC's keyboard controller drives, which stock kernels pull first; and the port by which a kernel tells
//! that it panicked (pvpanic). Pure.

use crate::vmm::ports::PowerRequest;

/// Sleep control register: `SLP_EN`, and where `SLP_TYP` stands.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// 8042 command: pulse output line 0 low.
const KEYBOARD_PULSE_RESET: u8 = 0xfe;

/// pvpanic's events (linux/pvpanic.h): the kernel panicked and is about to stop; or it goes on into a crash kernel, which
/// writes a dump and then powers off or resets as ever.
const PANICKED: u8 = 1;
const CRASH_KERNEL_LOADED: u8 = 2;
/// What a read of the port says that it understands.
pub const PANIC_EVENTS: u8 = PANICKED | CRASH_KERNEL_LOADED;

/// Code for the real-mode reset vector, where a firmware would stand: a kernel that knows no better way to reset jumps
/// there. `mov al, 0xfe; out 0x64, al; hlt; jmp -1`.
pub const RESET_VECTOR_CODE: [u8; 7] = [0xb0, KEYBOARD_PULSE_RESET, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// What a write to the sleep control register asks for; `s5_type` is what the DSDT's `\_S5` says.
pub fn sleep_control(value: u8, s5_type: u8) -> Option<PowerRequest> {
    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
    (value & SLEEP_ENABLE != 0 && sleep_type == s5_type).then_some(PowerRequest::PowerOff)
}

/// What a write to the reset register asks for.
pub fn reset(value: u8, reset_value: u8) -> Option<PowerRequest> {
    (value == reset_value).then_some(PowerRequest::Reset)
}

/// What a command to the keyboard controller asks for (8042: pulse output line 0, which is the processor's reset).
pub fn keyboard_controller(command: u8) -> Option<PowerRequest> {
    (command == KEYBOARD_PULSE_RESET).then_some(PowerRequest::Reset)
}

/// What a write to pvpanic's port asks for.
pub fn panicked(events: u8) -> Option<PowerRequest> {
    (events & PANICKED != 0).then_some(PowerRequest::Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_enabled_s5_powers_off() {
        assert_eq!(sleep_control(SLEEP_ENABLE | 5 << 2, 5), Some(PowerRequest::PowerOff));
        for value in (0..=255).filter(|value| *value & 0x3c != 0x34) {
            assert_eq!(sleep_control(value, 5), None, "{value:#x}");
        }
        assert_eq!(reset(1, 1), Some(PowerRequest::Reset));
        assert_eq!(reset(0, 1), None);
        assert_eq!(keyboard_controller(0xfe), Some(PowerRequest::Reset));
        assert_eq!(keyboard_controller(0xff), None);
        assert_eq!(panicked(PANICKED), Some(PowerRequest::Panicked));
        assert_eq!(panicked(CRASH_KERNEL_LOADED), None, "the crash kernel is to run");
    }
}
