//! What every plugin says of itself. Key type: [`Policy`].

use crate::{Invalid, Reader, Source};

/// A plugin: its settings as it understands them. The hooks' traits are implemented on the same type.
pub trait Policy: Sized {
    /// 1 to 63 bytes of `a-z`, `0-9` and inner `-`.
    const NAME: &'static str;
    /// Semantic version, at most 64 bytes: `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;
    /// One line for people, at most 256 bytes.
    const SUMMARY: &'static str;
    /// Every key that it knows; others are refused.
    const SETTINGS: &'static [&'static str];

    /// Reads the settings. The reader keeps what is wrong with them: the plugin is not loaded then, and the value that
    /// is returned here is not used.
    fn read(settings: &mut Reader<'_, impl Source>) -> Self;
}

/// The plugin with the settings of `source`, or everything that is wrong with them.
pub fn read<P: Policy>(source: &impl Source) -> Result<P, Vec<Invalid>> {
    let mut reader = Reader::new(source, P::SETTINGS);
    let policy = P::read(&mut reader);
    reader.finish(policy)
}
