//! What a component says of itself in its own bytes, before anything of it is compiled or run. Key function: [`inspect`].

use crate::model::{ComponentNames, Grant, PluginDigest};

use super::limits::{Limits, MAX_MESSAGE_BYTES};
use super::load::{self, LoadError};
use super::prepare::{HOOKS, is_granted, is_interface, wanted};
use super::text::to_line;

/// Longest name of an import or export that is told, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// The outside of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interfaces {
    /// SHA-256 of its bytes.
    pub digest: PluginDigest,
    /// Their number.
    pub size_bytes: usize,
    /// What it imports, with versions: `ostler:policy/log@0.1.0`.
    pub imports: Vec<String>,
    /// Those among them that no plugin may import.
    pub refused_imports: Vec<String>,
    /// Those that must be granted.
    pub wants: Vec<Grant>,
    /// What it exports, with versions.
    pub exports: Vec<String>,
    /// Hooks among them, in a version that this host speaks.
    pub hooks: Vec<&'static str>,
}

/// Reads a component's outside. What this host would refuse later is told, too.
pub fn inspect(bytes: &[u8]) -> Result<Interfaces, LoadError> {
    load::check_size(bytes.len(), Limits::default().component_bytes)?;
    load::check_kind(bytes)?;
    let names = ComponentNames::read(bytes).map_err(|error| {
        let reason = to_line(&error.to_string(), MAX_MESSAGE_BYTES);
        LoadError::NotCompiled { reason }
    })?;
    let lines = |names: Vec<&str>| names.into_iter().map(|name| to_line(name, MAX_NAME_BYTES)).collect::<Vec<_>>();
    let (imports, exports) = (lines(names.imports), lines(names.exports));
    let refused_imports = imports.iter().filter(|name| !is_granted(name) && wanted(name).is_none()).cloned().collect();
    let wants = imports.iter().filter_map(|name| wanted(name)).collect();
    let exports_hook = |interface| exports.iter().any(|name| is_interface(name, interface));
    let hooks = HOOKS.into_iter().filter(|(_, interface)| exports_hook(interface)).map(|(hook, _)| hook).collect();
    let (digest, size_bytes) = (load::digest(bytes), bytes.len());
    Ok(Interfaces { digest, size_bytes, imports, refused_imports, wants, exports, hooks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Magic, version and layer of a component.
    const HEADER: [u8; 8] = *b"\0asm\x0d\0\x01\0";

    #[test]
    fn a_component_without_anything_is_told_as_that() {
        let found = inspect(&HEADER).unwrap();
        assert_eq!((found.size_bytes, found.hooks.len(), found.imports.len() + found.exports.len()), (8, 0, 0));
        assert!(matches!(inspect(b"\0asm\x01\0\0\0"), Err(LoadError::CoreModule)));
        assert!(matches!(inspect(&[&HEADER[..], &[7]].concat()), Err(LoadError::NotCompiled { .. })));
    }

    proptest! {
        #[test]
        fn whatever_follows_the_header_is_read_or_refused(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = inspect(&[&HEADER[..], &rest].concat());
        }
    }
}
