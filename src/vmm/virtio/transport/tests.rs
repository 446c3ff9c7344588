//! The function as a guest finds it on the bus.

use proptest::prelude::*;

use super::super::testing::*;
use super::*;

#[test]
fn presents_modern_ids_and_regions_that_do_not_overlap() {
    let mut driver = Driver::probe(block(8, false).0);
    assert_eq!(driver.config(0, 4), 0x1042_1af4);
    assert_eq!(driver.config(8, 4), 0x0100_0001);
    assert_eq!(driver.config(0x10, 4), BAR_BASE);
    let mut regions: Vec<_> = driver.regions[1..5].iter().map(|region| (region.offset, region.len)).collect();
    let (table, pending) = (driver.config(driver.msix + 4, 4), driver.config(driver.msix + 8, 4));
    assert_eq!((table & 7, pending & 7), (0, 0), "BAR 0");
    regions.push((table.into(), driver.function.msix.table_len()));
    regions.push((pending.into(), driver.function.msix.pending_len()));
    regions.sort();
    assert!(regions.iter().all(|&(_, len)| len > 0));
    assert!(regions.windows(2).all(|pair| pair[0].0 / 0x1000 < pair[1].0 / 0x1000), "{regions:?}");
    assert!(regions.last().is_some_and(|&(offset, len)| offset + len <= VirtioFunction::BAR_LEN.into()));
    assert_eq!(driver.regions[1].len, 0x38);
    assert_eq!((driver.notify_multiplier, driver.function.vectors().len()), (4, 2));
}

#[test]
fn says_what_moves_and_what_is_rerouted() {
    let mut driver = Driver::probe(net().0);
    let function = &mut driver.function;
    assert_eq!(function.config_write(4, &[0, 0]), Some(Effect::BarsChanged));
    assert!(function.bars().is_empty() && function.doorbells().is_empty());
    assert_eq!(function.config_write(0x10, &0xe100_0000_u32.to_le_bytes()), None, "not decoding");
    assert_eq!(function.config_write(4, &[6, 0]), Some(Effect::BarsChanged));
    assert_eq!(function.bars(), [BarMapping { bar: 0, base: 0xe100_0000, len: 0x8000 }]);
    let addresses: Vec<_> = function.doorbells().iter().map(|doorbell| doorbell.address).collect();
    assert_eq!(addresses, [0xe100_3000, 0xe100_3004]);
    let msix = driver.msix;
    assert_eq!(driver.function.config_write(msix + 2, &[0, 0x80]), None, "all vectors are masked");
    assert_eq!(driver.function.bar_write(0, 0x400c, &[0; 4]), Some(Effect::VectorsChanged));
    assert!(driver.function.vectors()[0].route.is_some());
}

#[test]
fn a_masked_vector_pends_and_is_delivered_later() {
    let mut driver = Driver::probe(rng());
    driver.bring_up(ALL_FEATURES);
    driver.function.bar_write(0, 0x401c, &[1, 0, 0, 0]);
    driver.send(0, &[piece(DATA, 16, WRITE)]);
    assert!(!driver.gives_up(0));
    let mut pending = [0; 8];
    // The used index becomes visible just before the signal.
    let deadline = std::time::Instant::now() + TIMEOUT;
    while pending[0] == 0 && std::time::Instant::now() < deadline {
        driver.function.bar_read(0, 0x5000, &mut pending);
    }
    assert_eq!(u64::from_le_bytes(pending), 0b10);
    assert_eq!(driver.function.bar_write(0, 0x401c, &[0; 4]), Some(Effect::VectorsChanged));
    driver.wait_interrupt(1);
}

#[test]
fn without_msix_the_isr_register_tells_and_forgets() {
    let mut driver = Driver::probe(rng());
    driver.negotiate(ALL_FEATURES);
    driver.clear_rings(0);
    driver.set_up_queue(0, SIZE, Driver::rings(0));
    driver.driver_ok();
    driver.send(0, &[piece(DATA, 16, WRITE)]);
    assert!(!driver.gives_up(0));
    let isr = driver.regions[3].offset;
    let mut data = [0];
    let deadline = std::time::Instant::now() + TIMEOUT;
    while data[0] == 0 && std::time::Instant::now() < deadline {
        driver.function.bar_read(0, isr, &mut data);
    }
    assert_eq!(data, [1]);
    driver.function.bar_read(0, isr, &mut data);
    assert_eq!(data, [0]);
}

#[test]
fn the_configuration_window_reaches_the_bar_and_nothing_else() {
    let mut driver = Driver::probe(block(8, false).0);
    let window = driver.regions[5].capability;
    let mut set = |bar: u8, offset: u32, len: u32| {
        driver.function.config_write(window + 4, &[bar]);
        driver.function.config_write(window + 8, &offset.to_le_bytes());
        driver.function.config_write(window + 12, &len.to_le_bytes());
    };
    set(0, 0x2000, 4);
    assert_eq!(driver.config(window + 16, 4), 8, "capacity");
    for (bar, offset, len) in
        [(0, 0x2001, 4), (1, 0x2000, 4), (0, 0x8000, 4), (0, u32::MAX - 3, 4), (0, 0x2000, 8), (0, 0, u32::MAX)]
    {
        driver.function.config_write(window + 4, &[bar]);
        driver.function.config_write(window + 8, &u32::to_le_bytes(offset));
        driver.function.config_write(window + 12, &u32::to_le_bytes(len));
        driver.function.config_write(window + 16, &[0x5a; 4]);
        assert_eq!(driver.config(window + 16, 4), 0x5a5a_5a5a, "a plain register: {bar} {offset:#x} {len}");
    }
    driver.function.config_write(window + 4, &[0]);
    driver.function.config_write(window + 8, &0x14_u32.to_le_bytes());
    driver.function.config_write(window + 12, &1_u32.to_le_bytes());
    driver.function.config_write(window + 16, &[3, 0, 0, 0]);
    assert_eq!(driver.status(), 3);
    driver.function.config_write(window + 8, &0x3000_u32.to_le_bytes());
    driver.function.config_write(window + 12, &4_u32.to_le_bytes());
    driver.function.config_write(window + 16, &[0, 0, 0, 0]);
}

#[test]
fn a_queue_against_the_rules_needs_a_reset_and_tells_the_driver() {
    let good = Driver::rings(0);
    let hole = 2 << 20;
    let cases: &[(&str, u16, [u64; 3])] = &[
        ("size 0", 0, good),
        ("not a power of two", 12, good),
        ("above the maximum", 128, good),
        ("descriptors in a hole", SIZE, [hole, good[1], good[2]]),
        ("available ring in a hole", SIZE, [good[0], hole, good[2]]),
        ("used ring in a hole", SIZE, [good[0], good[1], hole]),
        ("used ring over the end of memory", SIZE, [good[0], good[1], (5 << 20) - 8]),
        ("address overflow", SIZE, [!0xf, good[1], good[2]]),
        ("descriptors unaligned", SIZE, [good[0] + 8, good[1], good[2]]),
        ("available ring unaligned", SIZE, [good[0], good[1] + 1, good[2]]),
        ("used ring unaligned", SIZE, [good[0], good[1], good[2] + 2]),
        ("all zero", SIZE, [0; 3]),
    ];
    let mut driver = Driver::probe(rng());
    for (number, &(name, size, rings)) in cases.iter().enumerate() {
        driver.negotiate(ALL_FEATURES);
        driver.enable_interrupts();
        driver.set_up_queue(0, size, rings);
        driver.driver_ok();
        assert_eq!(driver.status(), 0x4f, "{name}");
        driver.wait_interrupt(0);
        assert_eq!(driver.function.faults(), number as u64 + 1, "{name}");
        driver.kick(0);
        driver.reset();
    }
    driver.bring_up(ALL_FEATURES);
    driver.send(0, &[piece(DATA, 16, WRITE)]);
    assert_eq!(driver.wait_used(0), (0, 16));
}

#[test]
fn effects_that_arrive_late_or_twice_do_nothing() {
    let mut driver = Driver::probe(rng());
    driver.function.apply(Effect::Activate);
    driver.function.apply(Effect::Reset);
    driver.kick(0);
    driver.bring_up(ALL_FEATURES);
    driver.send(0, &[piece(DATA, 16, WRITE)]);
    assert_eq!(driver.wait_used(0), (0, 16));
    driver.write(DATA, &[0; 16]);
    driver.function.apply(Effect::Activate);
    driver.function.apply(Effect::Reset);
    driver.send(0, &[piece(DATA + 0x1000, 17, WRITE)]);
    assert_eq!(driver.wait_used(0), (1, 17), "the ring goes on where it was");
    assert_eq!(driver.read(DATA, 16), [0; 16], "what is done is not done again");
    // A reset is asked for, and the activation of before arrives in between.
    assert_eq!(driver.function.bar_write(0, 0x14, &[0]), Some(Effect::Reset));
    driver.function.apply(Effect::Activate);
    assert_ne!(driver.status(), 0);
    driver.function.apply(Effect::Reset);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_reset_device_leaves_guest_memory_alone() {
    let mut driver = Driver::probe(rng());
    driver.bring_up(ALL_FEATURES);
    driver.reset();
    driver.send(0, &[piece(DATA, 16, WRITE)]);
    assert!(!driver.has_interrupt(1, Duration::from_millis(50)));
    assert_eq!((driver.used_index(0), driver.read(DATA, 16)), (0, vec![0; 16]));
}

#[test]
fn ends_its_thread_when_dropped_and_lets_go_of_memory() {
    let mut driver = Driver::probe(block(64, false).0);
    driver.bring_up(ALL_FEATURES);
    driver.send(0, &[piece(DATA, 16, 0), piece(DATA + 512, 512, WRITE), piece(DATA + 1024, 1, WRITE)]);
    let memory = driver.memory_map();
    drop(driver);
    assert_eq!(Arc::strong_count(&memory), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every register, in every width, in every state: no panic, and the geometry of a running queue stays.
    #[test]
    fn takes_any_sequence_of_accesses(
        accesses in proptest::collection::vec((
            prop_oneof![
                3 => (0_u64..0x40).prop_map(|at| (true, at)), 2 => (0_u64..0x9000).prop_map(|at| (true, at)),
                1 => any::<u64>().prop_map(|at| (true, at)), 2 => (0_u64..0x100).prop_map(|at| (false, at)),
            ],
            prop_oneof![Just(1_usize), Just(2), Just(4), Just(8), 0_usize..17], any::<u64>(), any::<bool>(),
        ), 1..300),
        is_up in any::<bool>(),
    ) {
        let mut driver = Driver::probe(rng());
        if is_up {
            driver.bring_up(ALL_FEATURES);
        }
        for ((is_bar, offset), len, value, is_applied) in accesses {
            let mut data: Vec<u8> = value.to_le_bytes().into_iter().cycle().take(len).collect();
            let effect = if is_bar {
                driver.function.bar_write(0, offset, &data)
            } else {
                driver.function.config_write(offset as u16, &data)
            };
            if let Some(effect) = effect && is_applied {
                driver.function.apply(effect);
            }
            driver.function.bar_read(0, offset, &mut data);
            driver.function.config_read(offset as u16, &mut data);
            prop_assert_eq!(driver.function.vectors().len(), 2);
        }
        // Whatever happened, a reset brings the device back (an unapplied one included).
        driver.function.config_write(4, &[6, 0]);
        driver.function.config_write(0x10, &BAR_BASE.to_le_bytes());
        driver.function.apply(Effect::Reset);
        driver.reset();
        driver.bring_up(ALL_FEATURES);
        while driver.has_interrupt(1, Duration::ZERO) {}
        driver.send(0, &[piece(DATA, 16, WRITE)]);
        prop_assert!(!driver.gives_up(0));
        prop_assert_eq!(driver.take_used(0), (0, 16));
    }
}
