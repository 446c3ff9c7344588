//! The registers as a driver sees them, well-behaved and not.

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

fn registers() -> CommonConfig {
    let vectors = (0..3).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect();
    CommonConfig::new(VERSION_1 | 0b100, &[256, 64], Arc::new(Signals::new(vectors, 2)))
}

fn read<const N: usize>(registers: &CommonConfig, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    registers.read(offset, &mut bytes[..N]);
    u64::from_le_bytes(bytes)
}

fn status(registers: &CommonConfig) -> u64 {
    read::<1>(registers, 0x14)
}

fn negotiate(registers: &mut CommonConfig, features: u64) {
    registers.write(0x14, &[1]);
    registers.write(0x14, &[3]);
    for half in 0..2_u32 {
        registers.write(0x08, &half.to_le_bytes());
        registers.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
    }
    registers.write(0x14, &[11]);
}

#[test]
fn fields_are_in_order_without_gaps() {
    let mut at = 0;
    for (field, offset, width) in FIELDS {
        assert_eq!(offset, at, "{field:?}");
        at += width;
    }
    assert_eq!(at, u64::from(COMMON_LEN));
}

#[test]
fn goes_from_reset_to_driver_ok_and_back() {
    let mut registers = registers();
    assert_eq!((read::<2>(&registers, 0x12), status(&registers)), (2, 0));
    assert_eq!(read::<4>(&registers, 4), 0b100);
    registers.write(0, &1_u32.to_le_bytes());
    assert_eq!(read::<4>(&registers, 4), 1);
    negotiate(&mut registers, VERSION_1 | 0b100);
    assert_eq!(status(&registers), 11);
    assert!(!registers.is_ready());
    assert_eq!(registers.write(0x14, &[15]), Some(Effect::Activate));
    assert!(registers.is_ready());
    assert_eq!(registers.write(0x14, &[15]), None, "once");
    assert_eq!(registers.write(0x14, &[0]), Some(Effect::Reset));
    assert_ne!(status(&registers), 0, "not done yet");
    assert!(registers.is_resetting() && !registers.is_ready());
    assert_eq!(registers.write(0x14, &[1]), None, "ignored until done");
    registers.finish_reset();
    assert_eq!((status(&registers), registers.features()), (0, 0));
}

#[test]
fn refuses_features_that_were_not_offered_and_drivers_of_the_old_kind() {
    for features in [0, 0b100, VERSION_1 | 0b10, VERSION_1 | 1 << 34] {
        let mut registers = registers();
        negotiate(&mut registers, features);
        assert_eq!(status(&registers), 3, "{features:#x}");
    }
}

#[test]
fn driver_ok_without_features_ok_needs_a_reset() {
    let mut registers = registers();
    assert_eq!(registers.write(0x14, &[7]), None);
    assert_eq!(status(&registers), 0x43);
    assert!(!registers.is_ready());
    assert_eq!(registers.write(0x14, &[0]), None, "nothing to stop: reset at once");
    assert_eq!(status(&registers), 0);
}

#[test]
fn what_is_in_use_cannot_be_changed() {
    let mut registers = registers();
    negotiate(&mut registers, VERSION_1);
    registers.write(0x18, &8_u16.to_le_bytes());
    registers.write(0x20, &0x1000_u32.to_le_bytes());
    registers.write(0x24, &1_u32.to_le_bytes());
    registers.write(0x1c, &[1, 0]);
    for offset in [0x18, 0x1c, 0x20, 0x24, 0x28, 0x30] {
        registers.write(offset, &[0; 4]);
    }
    registers.write(0x0c, &[0; 4]);
    let wanted = Geometry { size: 8, descriptors: 0x1_0000_1000, available: 0, used: 0 };
    assert_eq!(registers.queues().collect::<Vec<_>>(), [Some((wanted, 256)), None]);
    assert_eq!(registers.features(), VERSION_1);
    registers.write(0x14, &[15]);
    registers.write(0x16, &[1, 0]);
    registers.write(0x18, &4_u16.to_le_bytes());
    registers.write(0x1c, &[1, 0]);
    assert_eq!(read::<2>(&registers, 0x18), 64, "no queue is added to a running device");
    assert_eq!(registers.queues().flatten().count(), 1);
}

#[test]
fn a_queue_or_vector_that_does_not_exist_is_nothing() {
    let mut registers = registers();
    registers.write(0x1a, &[2, 0]);
    assert_eq!(read::<2>(&registers, 0x1a), 2);
    registers.write(0x1a, &[3, 0]);
    assert_eq!(read::<2>(&registers, 0x1a), 0xffff);
    registers.write(0x10, &[9, 0]);
    assert_eq!(read::<2>(&registers, 0x10), 0xffff);
    for select in [2_u16, 0xffff] {
        registers.write(0x16, &select.to_le_bytes());
        registers.write(0x18, &[0xff; 0x20]);
        assert_eq!(read::<2>(&registers, 0x1a), 0xffff);
        assert_eq!((read::<2>(&registers, 0x18), read::<8>(&registers, 0x20)), (0, 0));
    }
}

#[test]
fn narrow_and_wide_accesses_reach_the_bytes_that_they_name() {
    let mut registers = registers();
    registers.write(0x21, &[0xaa]);
    registers.write(0x26, &[0xbb, 0xcc]);
    assert_eq!(read::<8>(&registers, 0x20), 0xccbb_0000_0000_aa00);
    // Status, generation and queue select in one write.
    registers.write(0x14, &[1, 0xff, 1, 0]);
    assert_eq!(read::<4>(&registers, 0x14), 0x0001_0001);
    assert_eq!(read::<4>(&registers, 0x36), 0, "beyond the end");
}

proptest! {
    #[test]
    fn takes_any_sequence_of_accesses(
        accesses in proptest::collection::vec(
            (prop_oneof![0_u64..0x40, any::<u64>()], proptest::collection::vec(any::<u8>(), 0..17), any::<bool>()), 0..200),
    ) {
        let mut registers = registers();
        for (offset, data, is_done) in accesses {
            let before: Vec<_> = registers.queues().collect();
            let was_running = registers.status & DRIVER_OK != 0;
            let effect = registers.write(offset, &data);
            if was_running {
                prop_assert_eq!(before, registers.queues().collect::<Vec<_>>());
            }
            if effect == Some(Effect::Activate) {
                prop_assert!(registers.are_features_fine());
            }
            if is_done && registers.is_resetting() {
                registers.finish_reset();
                prop_assert_eq!(status(&registers), 0);
            }
            let mut buffer = data.clone();
            registers.read(offset, &mut buffer);
        }
    }
}
