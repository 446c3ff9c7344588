//! Components that attack the loader, and such as are only large. Key functions: [`corpus`], [`heavy`].

#![allow(dead_code, unreachable_pub, reason = "each program uses another part")]

use super::assets::plugin;

/// A plugin that abstains, with one more core module of these sections (core specification §5.5; component model, binary
/// format): nothing but what is in them can be what is wrong.
fn plugin_with(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    for (id, section) in sections {
        module.push(*id);
        module.extend(leb(section.len()));
        module.extend(section);
    }
    let mut component = plugin("hostile/abstain");
    component.push(1);
    component.extend(leb(module.len()));
    component.extend(module);
    component
}

/// Unsigned LEB128 (core specification §5.2.2).
fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

/// `count` functions with this body, of type `() -> ()`.
fn functions(count: usize, body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let types = vec![1, 0x60, 0, 0];
    let declared = [leb(count), vec![0; count]].concat();
    let code = [leb(body.len() + 1), vec![0], body.to_vec()].concat();
    let code = [leb(count), code.repeat(count)].concat();
    vec![(1, types), (3, declared), (10, code)]
}

/// What is no plugin: what it is, its bytes, the code with which it is refused.
pub fn corpus() -> [(&'static str, Vec<u8>, &'static str); 9] {
    let admission = plugin("admission");
    // A million blocks within each other take more memory than a compiler has.
    let deepest = [[0x02, 0x40].repeat(1_000_000), vec![0x0b; 1_000_001]].concat();
    let table = vec![(4, [vec![1, 0x70, 0], leb(100_000_000)].concat())];
    [
        ("precompiled", [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 4096]].concat(), "plugin.precompiled"),
        ("cut", admission[..admission.len() / 2].to_vec(), "plugin.not-compiled"),
        ("core module", plugin("hostile/core-module"), "plugin.core-module"),
        ("deepest", plugin_with(&functions(1, &deepest)), "plugin.compiler-memory"),
        ("huge table", plugin_with(&table), "plugin.too-demanding"),
        ("noise", [b"\0asm\x0d\0\x01\0".as_slice(), &[0xa5; 1 << 20]].concat(), "plugin.not-compiled"),
        ("imports", plugin("hostile/clock"), "plugin.undeclared-imports"),
        ("wrong types", plugin("hostile/wrong-types"), "plugin.wrong-types"),
        ("wrong version", plugin("hostile/wrong-version"), "plugin.wrong-version"),
    ]
}

/// What is much or odd, and a plugin all the same: 10,000 functions, 5,000 blocks within each other, functions of 600 KB.
pub fn heavy() -> [(&'static str, Vec<u8>); 3] {
    let deep = [[0x02, 0x40].repeat(5_000), vec![0x0b; 5_001]].concat();
    let wide = [[0x41, 1, 0x1a].repeat(200_000), vec![0x0b]].concat();
    [
        ("10,000 functions", plugin_with(&functions(10_000, &[0x0b]))),
        ("deep", plugin_with(&functions(1, &deep))),
        ("wide", plugin_with(&functions(4, &wide))),
    ]
}

/// `count` functions whose work cannot be left out, of some 6 KB and 1,000 operations each.
pub fn laborious(count: usize) -> Vec<u8> {
    // Of the global, which anybody may read afterwards: g = (g * 1_000_003) ^ g.
    let step = [0x23, 0, 0x41, 0xc3, 0x84, 0x3d, 0x6c, 0x23, 0, 0x73, 0x24, 0];
    let [types, declared, code] = functions(count, &[step.repeat(500), vec![0x0b]].concat()).try_into().unwrap();
    let globals = (6, vec![1, 0x7f, 1, 0x41, 1, 0x0b]);
    plugin_with(&[types, declared, globals, code])
}
