//! A plugin's component, as a tenant sends it: what the daemon itself reads of it is bounded, and hangs on nothing but what the
//! component imports and exports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::model::{ComponentNames, MAX_COMPONENT_NAMES};

/// Magic, version and layer of a component (component model, `design/mvp/Binary.md`).
const HEADER: [u8; 8] = *b"\0asm\x0d\0\x01\0";
/// A custom section, which says nothing: its number, its length, the name "x".
const CUSTOM: [u8; 4] = [0, 2, 1, b'x'];

fn read(bytes: &[u8]) {
    let Ok(names) = ComponentNames::read(bytes) else { return };
    assert!(names.imports.len() <= MAX_COMPONENT_NAMES && names.exports.len() <= MAX_COMPONENT_NAMES);
    let more = [bytes, &CUSTOM].concat();
    assert_eq!(ComponentNames::read(&more).ok().as_ref(), Some(&names));
}

fuzz_target!(|input: &[u8]| {
    read(input);
    read(&[&HEADER, input].concat());
});
