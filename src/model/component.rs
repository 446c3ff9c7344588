//! What a WebAssembly component says of itself in its own bytes, before anything of it is compiled or run. Key type:
//! [`ComponentNames`].

use wasmparser::{BinaryReaderError, Parser, Payload};

/// Imports and exports of a component that are read, of each.
pub const MAX_COMPONENT_NAMES: usize = 64;

/// Names of the imports and exports of a component itself, not of the modules and components within; no more than
/// [`MAX_COMPONENT_NAMES`] of each, and as long as the component has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ComponentNames<'a> {
    /// What it imports, with versions: `ostler:policy/log@0.1.0`.
    pub imports: Vec<&'a str>,
    /// What it exports, with versions.
    pub exports: Vec<&'a str>,
}

/// Bytes that are no component: damaged, cut off, or in a form that is not known here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotAComponent {
    /// What no component has at that place.
    #[error("{0}")]
    Malformed(#[from] BinaryReaderError),
    /// A module or component within that goes on after the last byte: lengths in bytes.
    #[error("it is cut off: what lies within it ends at byte {expected}, and there are {actual}")]
    CutOff {
        /// Where the last byte would have to be.
        expected: usize,
        /// How many there are.
        actual: usize,
    },
}

impl<'a> ComponentNames<'a> {
    /// Reads sections in their order (component model, `design/mvp/Binary.md`), without going into what is nested.
    pub fn read(bytes: &'a [u8]) -> Result<Self, NotAComponent> {
        let (mut names, mut depth) = (Self::default(), 0_usize);
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } => {
                    // The parser takes the end of the bytes for the end of all that is open.
                    if unchecked_range.end > bytes.len() {
                        return Err(NotAComponent::CutOff { expected: unchecked_range.end, actual: bytes.len() });
                    }
                    depth += 1;
                }
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        keep(&mut names.imports, import?.name.name);
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        keep(&mut names.exports, export?.name.name);
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }
}

fn keep<'a>(names: &mut Vec<&'a str>, name: &'a str) {
    if names.len() < MAX_COMPONENT_NAMES {
        names.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Magic, version and layer of a component.
    const HEADER: [u8; 8] = *b"\0asm\x0d\0\x01\0";

    /// A component around what the same bytes are as another's content: a nested component's section is number 4.
    fn within(component: &[u8]) -> Vec<u8> {
        [&HEADER[..], &[4, component.len().try_into().unwrap()], component].concat()
    }

    #[test]
    fn only_the_component_s_own_names_are_read() {
        // An import of a function "f" of a type that comes before: () -> ().
        let import = [&HEADER[..], b"\x07\x05\x01\x40\x00\x01\x00", b"\x0a\x06\x01\x00\x01f\x01\x00"].concat();
        let names = ComponentNames::read(&import).unwrap();
        assert_eq!((names.imports, names.exports.len()), (vec!["f"], 0));
        assert_eq!(ComponentNames::read(&within(&import)).unwrap(), ComponentNames::default());
        for at in HEADER.len() + 1..import.len() {
            let is_between = at == HEADER.len() + 7;
            assert_eq!(ComponentNames::read(&import[..at]).is_ok(), is_between, "cut at {at}");
        }
    }

    #[test]
    fn a_component_that_ends_within_another_is_cut_off() {
        let whole = within(&within(&HEADER));
        assert_eq!(ComponentNames::read(&whole).unwrap(), ComponentNames::default());
        for at in HEADER.len() + 1..whole.len() {
            assert!(ComponentNames::read(&whole[..at]).is_err(), "cut at {at}");
        }
        // Between the sections of what lies within, the parser sees nothing amiss.
        let error = ComponentNames::read(&whole[..18]).unwrap_err();
        assert!(matches!(error, NotAComponent::CutOff { expected: 28, actual: 18 }), "{error}");
    }
}
