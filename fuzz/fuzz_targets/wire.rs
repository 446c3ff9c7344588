//! The daemon's and the vmm's messages: what decodes is written the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::wire::{FromVmm, ToVmm, decode_ended, decode_launch, encode_launch};

fuzz_target!(|input: &[u8]| {
    if let Ok(message) = ToVmm::decode(input) {
        assert_eq!(ToVmm::decode(&message.encode()).ok().as_ref(), Some(&message));
    }
    if let Ok(message) = FromVmm::decode(input) {
        assert_eq!(FromVmm::decode(&message.encode()).ok().as_ref(), Some(&message));
    }
    if let Ok(launch) = decode_launch(input) {
        assert_eq!(decode_launch(&encode_launch(&launch)).ok().as_ref(), Some(&launch));
    }
    let _ = decode_ended(input);
});
