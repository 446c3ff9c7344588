//! What the daemon itself looks at when a plugin is loaded, before and behind the policy host. Key type: [`LoadError`].
//!
//! Runs on the blocking pool: compiling takes tens of milliseconds, and never holds up a decision. In this order: size and
//! kind of the file; compilation, in a process of its own; what the policy host finds (`prepare`); its name; its settings.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::model::{Grant, PluginDigest, PolicyFault, VmName};
use crate::wire::policy::{Loaded, Manifest, Refusal, Spoken};

use super::imports::GRANTED;
use super::limits::{
    Limits, MAX_MESSAGE_BYTES, MAX_SETTING_KEY_BYTES, MAX_SETTING_VALUE_BYTES, MAX_SETTINGS, MAX_SETTINGS_BYTES,
    MAX_SUMMARY_BYTES, MAX_VERSION_BYTES,
};
use super::notes;
use super::plugin::About;
use super::prepare::{HOOKS, SHOWN_IMPORT_BYTES, SHOWN_IMPORTS, spoken};
use super::text::{is_line, to_line};

/// First bytes of every WebAssembly file (core specification §5.5.16).
const MAGIC: &[u8] = b"\0asm";
/// Version and layer that follow the magic in a core module.
const CORE_MODULE: &[u8] = &[1, 0, 0, 0];
/// The same in a component: the layer is 1 (component model, binary format).
const COMPONENT_LAYER: &[u8] = &[1, 0];
/// First bytes of an object file, which is what a serialized component is (System V ABI, ELF header).
const ELF: &[u8] = b"\x7fELF";
/// Why a plugin was not loaded. Each text is for the plugin's author.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// More bytes than the host takes.
    #[error(
        "component has {size_bytes} bytes, at most {limit_bytes} are allowed; strip debug information or build for size"
    )]
    TooLarge {
        /// Size of the refused component.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Does not begin as a WebAssembly file does.
    #[error("this is not a WebAssembly file; load the .wasm component that the plugin's build made")]
    NotWasm,
    /// A core module.
    #[error(
        "this is a WebAssembly core module, not a component; wrap it with `wasm-tools component new` or wit-component"
    )]
    CoreModule,
    /// Machine code, or something else that was compiled already: never taken from anybody.
    #[error("this is compiled already; load the .wasm component that it was made from, the node compiles it itself")]
    Precompiled,
    /// The compiler needed too much time.
    #[error("component takes more than {seconds} s to compile; make it smaller")]
    CompilerTime {
        /// The limit, of processor time.
        seconds: u64,
    },
    /// The compiler needed, or made, too much.
    #[error("component takes more than {limit_bytes} bytes to compile; make it smaller")]
    CompilerMemory {
        /// The limit.
        limit_bytes: u64,
    },
    /// The compiler ended without an answer.
    #[error("the compiler cannot digest this component (it ended {how}); build it for a plainer target")]
    CompilerDied {
        /// In which way.
        how: String,
    },
    /// It compiles, and needs more tables, memories or instances than one call may have.
    #[error("component needs more than an instance may have: {reason}")]
    TooDemanding {
        /// What, on one line.
        reason: String,
    },
    /// The compiler refuses it.
    #[error("component is damaged or uses what this host does not run; build and send it again: {reason}")]
    NotCompiled {
        /// The compiler's words, on one line.
        reason: String,
    },
    /// It wants more than its world grants.
    #[error("component imports what no policy plugin may use: {}; remove them, only {} are granted", .0.join(", "), GRANTED.join(", "))]
    UndeclaredImports(Vec<String>),
    /// It wants more than its binding grants.
    #[error("component imports {0}, which this binding does not grant; if it may, load it with `--grant {0}`")]
    NotGranted(Grant),
    /// It lacks an interface.
    #[error("component does not export {0}; build it for a world of ostler:policy@0.1.0, such as admit or select-vf")]
    MissingExport(String),
    /// It has an interface in a version that this host does not speak.
    #[error(
        "component is built for {interface}, and this host speaks ostler:policy@{spoken}; build it with this host's wit/"
    )]
    WrongVersion {
        /// The interface with its version.
        interface: String,
        /// What would do: `0.1.x`.
        spoken: String,
    },
    /// It has the right interfaces with other types.
    #[error("component was built against another version of the interfaces; build it with this host's wit/: {reason}")]
    WrongTypes {
        /// The first difference, on one line.
        reason: String,
    },
    /// It starts with more memory than it may have.
    #[error(
        "component starts with {wanted_bytes} bytes of memory, at most {limit_bytes} are allowed; make its static data or stack smaller"
    )]
    TooMuchMemory {
        /// Initial size of its memory.
        wanted_bytes: u64,
        /// The cap.
        limit_bytes: usize,
    },
    /// A call at load time failed.
    #[error("{call} of the plugin failed; it must return at once for any settings: {fault}")]
    Faulted {
        /// The exported function.
        call: &'static str,
        /// What happened.
        fault: PolicyFault,
    },
    /// Its description of itself cannot be shown.
    #[error("the plugin's manifest is not valid: {0}")]
    BadManifest(String),
    /// It refuses its settings: key and reason of each.
    #[error("settings are not valid: {}", .0.iter().map(|(key, why)| format!("{key}: {why}")).collect::<Vec<_>>().join("; "))]
    BadSettings(Vec<(String, String)>),
    /// The host cannot load anything now.
    #[error("the policy host cannot load a plugin now: {0}; try again")]
    Unavailable(String),
}

impl LoadError {
    /// Whether the same load may succeed a little later: nothing is wrong with the plugin.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// A stable, machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "plugin.too-large",
            Self::NotWasm => "plugin.not-wasm",
            Self::CoreModule => "plugin.core-module",
            Self::Precompiled => "plugin.precompiled",
            Self::CompilerTime { .. } => "plugin.compiler-time",
            Self::CompilerMemory { .. } => "plugin.compiler-memory",
            Self::CompilerDied { .. } => "plugin.compiler-died",
            Self::TooDemanding { .. } => "plugin.too-demanding",
            Self::NotCompiled { .. } => "plugin.not-compiled",
            Self::UndeclaredImports(_) => "plugin.undeclared-imports",
            Self::NotGranted(_) => "plugin.not-granted",
            Self::MissingExport(_) => "plugin.missing-export",
            Self::WrongVersion { .. } => "plugin.wrong-version",
            Self::WrongTypes { .. } => "plugin.wrong-types",
            Self::TooMuchMemory { .. } => "plugin.too-much-memory",
            Self::Faulted { .. } => "plugin.faulted",
            Self::BadManifest(_) => "plugin.bad-manifest",
            Self::BadSettings(_) => "plugin.bad-settings",
            Self::Unavailable(_) => "plugin.unavailable",
        }
    }
}

/// Content address of `bytes`.
pub(super) fn digest(bytes: &[u8]) -> PluginDigest {
    PluginDigest(Sha256::digest(bytes).into())
}

/// What the plugin says about itself, of what the host found in it.
pub(super) fn about(loaded: Loaded, digest: PluginDigest, size_bytes: u64) -> Result<About, LoadError> {
    let Spoken { said, notes, dropped, .. } = loaded.manifest;
    notes::write("(loading)", notes, dropped);
    let manifest = said.map_err(|fault| LoadError::Faulted { call: "describe", fault: notes::shown(fault) })?;
    check_manifest(&manifest).map_err(LoadError::BadManifest)?;
    let hooks = HOOKS.iter().map(|(hook, _)| *hook).filter(|hook| loaded.hooks.iter().any(|one| one == hook));
    let hooks: Vec<_> = hooks.collect();
    let wants = Grant::ALL.into_iter().filter(|grant| loaded.wants.contains(grant)).collect();
    let Manifest { name, version, summary } = manifest;
    Ok(About { name, version, summary, hooks, wants, digest, size_bytes })
}

/// Why the host does not take the code.
pub(super) fn refused(refusal: Refusal, limits: &Limits) -> LoadError {
    let line = |text: String| to_line(&text, MAX_MESSAGE_BYTES);
    match refusal {
        Refusal::Unusable(reason) => LoadError::TooDemanding { reason: line(reason) },
        Refusal::UndeclaredImports(names) => LoadError::UndeclaredImports(
            names.iter().take(SHOWN_IMPORTS).map(|name| to_line(name, SHOWN_IMPORT_BYTES)).collect(),
        ),
        Refusal::MissingExport(name) => LoadError::MissingExport(line(name)),
        Refusal::WrongVersion(interface) => LoadError::WrongVersion { interface: line(interface), spoken: spoken() },
        Refusal::WrongTypes(reason) => LoadError::WrongTypes { reason: line(reason) },
        Refusal::TooMuchMemory(wanted_bytes) => {
            LoadError::TooMuchMemory { wanted_bytes, limit_bytes: limits.memory_bytes }
        }
        Refusal::Failed(reason) => LoadError::Unavailable(line(reason)),
    }
}

/// Whether all that the plugin wants is granted.
pub(super) fn check_grants(wants: &[Grant], grants: &BTreeSet<Grant>) -> Result<(), LoadError> {
    wants.iter().find(|grant| !grants.contains(grant)).map_or(Ok(()), |grant| Err(LoadError::NotGranted(*grant)))
}

/// Whether `size_bytes` may be loaded.
pub(super) fn check_size(size_bytes: usize, limit_bytes: usize) -> Result<(), LoadError> {
    if size_bytes > limit_bytes { Err(LoadError::TooLarge { size_bytes, limit_bytes }) } else { Ok(()) }
}

pub(super) fn check_kind(bytes: &[u8]) -> Result<(), LoadError> {
    match bytes.strip_prefix(MAGIC) {
        Some(rest) if rest.starts_with(CORE_MODULE) => Err(LoadError::CoreModule),
        Some(rest) if rest.get(2..4) == Some(COMPONENT_LAYER) => Ok(()),
        None if bytes.starts_with(ELF) => Err(LoadError::Precompiled),
        _ => Err(LoadError::NotWasm),
    }
}

fn check_manifest(manifest: &Manifest) -> Result<(), String> {
    // Plugins are named as VMs are: one DNS label.
    if let Err(error) = manifest.name.parse::<VmName>() {
        return Err(to_line(&error.to_string(), MAX_MESSAGE_BYTES));
    }
    if !is_line(&manifest.version, MAX_VERSION_BYTES) {
        return Err(format!("version must have 1 to {MAX_VERSION_BYTES} bytes without control characters"));
    }
    if !manifest.summary.is_empty() && !is_line(&manifest.summary, MAX_SUMMARY_BYTES) {
        return Err(format!("summary must have at most {MAX_SUMMARY_BYTES} bytes without control characters"));
    }
    Ok(())
}

/// What the plugin found wrong with its settings.
pub(super) fn settings_taken(spoken: Spoken<Vec<(String, String)>>, name: &str) -> Result<(), LoadError> {
    notes::write(name, spoken.notes, spoken.dropped);
    let fault = |fault| LoadError::Faulted { call: "validate-settings", fault: notes::shown(fault) };
    let errors = spoken.said.map_err(fault)?;
    if errors.is_empty() {
        return Ok(());
    }
    let shown = errors.into_iter().take(MAX_SETTINGS);
    Err(LoadError::BadSettings(
        shown.map(|(key, why)| (to_line(&key, MAX_SETTING_KEY_BYTES), to_line(&why, MAX_MESSAGE_BYTES))).collect(),
    ))
}

/// Whether the settings are within bounds.
pub(super) fn check_setting_bounds(settings: &BTreeMap<String, String>) -> Result<(), LoadError> {
    if settings.len() > MAX_SETTINGS {
        let why = format!("{} settings, at most {MAX_SETTINGS} are allowed", settings.len());
        return Err(LoadError::BadSettings(vec![("settings".into(), why)]));
    }
    let len: usize = settings.iter().map(|(key, value)| key.len() + value.len()).sum();
    if len > MAX_SETTINGS_BYTES {
        let why = format!("{len} bytes together, at most {MAX_SETTINGS_BYTES} are allowed");
        return Err(LoadError::BadSettings(vec![("settings".into(), why)]));
    }
    let wrong = settings.iter().filter_map(|(key, value)| {
        let why = if !is_line(key, MAX_SETTING_KEY_BYTES) {
            format!("key has {} bytes, 1 to {MAX_SETTING_KEY_BYTES} without control characters are allowed", key.len())
        } else if value.len() > MAX_SETTING_VALUE_BYTES {
            format!("value has {} bytes, at most {MAX_SETTING_VALUE_BYTES} are allowed", value.len())
        } else {
            return None;
        };
        Some((to_line(key, MAX_SETTING_KEY_BYTES), why))
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(LoadError::BadSettings(wrong)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_settings_before_the_plugin_sees_them() {
        let refused = |settings: BTreeMap<String, String>| match check_setting_bounds(&settings) {
            Err(LoadError::BadSettings(wrong)) => wrong[0].0.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused((0..65).map(|i| (i.to_string(), String::new())).collect()), "settings");
        assert_eq!(refused([("k".into(), "v".repeat(5000))].into()), "k");
        assert_eq!(refused((0..5).map(|i| (i.to_string(), "v".repeat(4000))).collect()), "settings");
        assert_eq!(refused([(String::new(), "v".into())].into()), "");
        assert!(check_setting_bounds(&[("k".into(), "v".repeat(4096))].into()).is_ok());
    }

    #[test]
    fn refuses_manifests_that_cannot_be_shown() {
        let manifest = |name: &str, version: &str, summary: &str| {
            check_manifest(&Manifest { name: name.into(), version: version.into(), summary: summary.into() }).is_ok()
        };
        assert!(manifest("a", "1", ""));
        assert!(!manifest("a/b", "1", ""));
        assert!(!manifest("a", "", ""));
        assert!(!manifest("a", "1", "\x1b[2J"));
        assert!(!manifest("a", "1", &"s".repeat(300)));
    }
}
