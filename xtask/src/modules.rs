//! Kernel modules: which files a set of module names needs, in loading order, unpacked.
//!
//! Reads `modules.dep` (one line per module: its file, then the files it needs, nearest first) and `modules.builtin`.
//! Signatures are taken off: these kernels do not insist on them, and checking one costs a guest in the lab 60 million
//! instructions, several times what loading the module does.

use crate::kernel::unxz;
use crate::packages::Kernel;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;

/// What ends a signed module (`linux/include/linux/module_signature.h`).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// Size of the record before the mark; its last four bytes are the signature's length, big-endian.
const SIGNATURE_RECORD_LEN: usize = 12;

/// A module file, unpacked and without its signature.
pub(crate) struct Module {
    /// The path below the modules' directory, without any `.xz`.
    pub(crate) path: String,
    /// The ELF object.
    pub(crate) content: Vec<u8>,
}

/// The modules named, and all that they need, each after what it needs. Those built into the kernel are left out.
pub(crate) fn closure(kernel: &Kernel, names: &[&str]) -> Result<Vec<Module>> {
    let directory = kernel.modules();
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    order(&read("modules.dep")?, &read("modules.builtin")?, names)
        .with_context(|| format!("kernel {}", kernel.release))?
        .into_iter()
        .map(|path| {
            let packed = fs::read(directory.join(&path)).with_context(|| format!("cannot read module {path}"))?;
            let (path, signed) = match path.strip_suffix(".xz") {
                Some(unpacked) => (unpacked.to_owned(), unxz(&packed)?),
                None => (path, packed),
            };
            Ok(Module { path, content: without_signature(signed) })
        })
        .collect()
}

/// Cuts off the signature, if there is one.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    let Some(signed) = module.strip_suffix(SIGNATURE_MARK) else { return module };
    let Some(&length) = signed.last_chunk::<4>() else { return module };
    let length = u32::from_be_bytes(length) as usize + SIGNATURE_RECORD_LEN;
    if let Some(end) = signed.len().checked_sub(length) {
        module.truncate(end);
    }
    module
}

fn order(dependencies: &str, builtin: &str, names: &[&str]) -> Result<Vec<String>> {
    let table: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            Some((module_name(path), (path, needs.split_whitespace().collect())))
        })
        .collect();
    let mut ordered: Vec<String> = Vec::new();
    for name in names {
        let Some((path, needs)) = table.get(&name.replace('-', "_")) else {
            if builtin.lines().any(|line| module_name(line) == name.replace('-', "_")) {
                continue;
            }
            bail!("there is no module {name}, neither as a file nor built in");
        };
        for path in needs.iter().rev().chain([path]) {
            if !ordered.iter().any(|known| known == path) {
                ordered.push((*path).to_owned());
            }
        }
    }
    Ok(ordered)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str =
        "kernel/net/a-b.ko.xz: kernel/c.ko.xz kernel/d.ko.xz\nkernel/c.ko.xz: kernel/d.ko.xz\nkernel/d.ko.xz:\n";

    #[test]
    fn loads_what_is_needed_first_and_once() {
        let order = order(DEPENDENCIES, "kernel/in.ko\n", &["a_b", "c", "in"]).unwrap();
        assert_eq!(order, ["kernel/d.ko.xz", "kernel/c.ko.xz", "kernel/net/a-b.ko.xz"]);
    }

    #[test]
    fn takes_a_signature_off_and_nothing_else() {
        let record = [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        let signed = [b"module", &b"sig"[..], &record, SIGNATURE_MARK].concat();
        assert_eq!(without_signature(signed.clone()), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        let lying = [b"x", &record[..], SIGNATURE_MARK].concat();
        assert_eq!(without_signature(lying.clone()), lying);
    }

    #[test]
    fn names_a_module_that_is_nowhere() {
        let error = order(DEPENDENCIES, "", &["none"]).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
