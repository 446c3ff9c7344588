//! From machine code to code that can be asked, in the policy host. Key function: [`prepare`].
//!
//! In this order: the engine; versions; imports; exports; memory; types; what it says about itself. The daemon has looked at
//! the component's bytes before (`load`), and looks at what is said here once more.

use wasmtime::component::{Component, Linker};

use crate::model::{
    AdmitRequest, AttachRequest, DetachRequest, Grant, ObserveRequest, PlaceRequest, SelectNvmeRequest, SelectVfRequest,
};
use crate::sys::artefact::Artefact;
use crate::wire::policy::{Loaded, Manifest, Refusal, Settings};

use super::call::{Code, Site};
use super::engine::Sandbox;
use super::hook::Question;
use super::imports::bindings::exports::ostler::policy::{
    admit_hook, attach_hook, detach_hook, lifecycle, observe_hook, place_hook, select_nvme_hook, select_vf_hook,
};
use super::imports::{Call, GRANTABLE, GRANTED};
use super::limits::MAX_MESSAGE_BYTES;
use super::text::to_line;

/// What every plugin exports.
const LIFECYCLE: &str = "ostler:policy/lifecycle";
/// Hooks and the interfaces that carry them: a plugin exports at least one.
pub(super) const HOOKS: [(&str, &str); 7] = [
    (AdmitRequest::HOOK, "ostler:policy/admit-hook"),
    (SelectVfRequest::HOOK, "ostler:policy/select-vf-hook"),
    (SelectNvmeRequest::HOOK, "ostler:policy/select-nvme-hook"),
    (AttachRequest::HOOK, "ostler:policy/attach-hook"),
    (DetachRequest::HOOK, "ostler:policy/detach-hook"),
    (PlaceRequest::HOOK, "ostler:policy/place-hook"),
    (ObserveRequest::HOOK, "ostler:policy/observe-hook"),
];
/// The package version that this host speaks; later patches of it too.
const VERSION: (u64, u64) = (0, 1);
/// WebAssembly page (core specification §4.2.8).
const PAGE_BYTES: u64 = 64 << 10;
/// Names of undeclared imports that an error shows, and their length in bytes.
pub(super) const SHOWN_IMPORTS: usize = 8;
pub(super) const SHOWN_IMPORT_BYTES: usize = 128;

/// Links the code, and asks it for its name.
pub(super) fn prepare(
    sandbox: &Sandbox,
    linker: &Linker<Call>,
    artefact: &Artefact,
) -> Result<(Code, Loaded), Refusal> {
    let line = |error: wasmtime::Error| to_line(&format!("{error:#}"), MAX_MESSAGE_BYTES);
    let component = artefact.component(sandbox.engine()).map_err(|error| Refusal::Unusable(line(error)))?;
    let (hooks, wants) = check_interfaces(sandbox, &component)?;
    let wanted_pages = component.resources_required().and_then(|needs| needs.max_initial_memory_size).unwrap_or(0);
    let wanted_bytes = wanted_pages.saturating_mul(PAGE_BYTES);
    if wanted_bytes > sandbox.limits().memory_bytes as u64 {
        return Err(Refusal::TooMuchMemory(wanted_bytes));
    }
    let code = link(linker, &component, &hooks).map_err(|error| Refusal::WrongTypes(line(error)))?;
    let none = std::sync::Arc::new(Settings::new());
    if let Some(difference) = Site::new(sandbox, &code, &none).different_types() {
        return Err(Refusal::WrongTypes(to_line(&difference, MAX_MESSAGE_BYTES)));
    }
    let site = Site::new(sandbox, &code, &none);
    let said = site.describe();
    let said =
        said.map(|manifest| Manifest { name: manifest.name, version: manifest.version, summary: manifest.summary });
    let manifest = site.spoken(said);
    Ok((code, Loaded { hooks: hooks.into_iter().map(str::to_owned).collect(), wants, manifest }))
}

fn link(linker: &Linker<Call>, component: &Component, hooks: &[&str]) -> wasmtime::Result<Code> {
    let instance = linker.instantiate_pre(component)?;
    let serves = |hook| hooks.contains(&hook);
    Ok(Code {
        lifecycle: lifecycle::GuestIndices::new(&instance)?,
        admit: serves(AdmitRequest::HOOK).then(|| admit_hook::GuestIndices::new(&instance)).transpose()?,
        select_vf: serves(SelectVfRequest::HOOK).then(|| select_vf_hook::GuestIndices::new(&instance)).transpose()?,
        select_nvme: serves(SelectNvmeRequest::HOOK)
            .then(|| select_nvme_hook::GuestIndices::new(&instance))
            .transpose()?,
        attach: serves(AttachRequest::HOOK).then(|| attach_hook::GuestIndices::new(&instance)).transpose()?,
        detach: serves(DetachRequest::HOOK).then(|| detach_hook::GuestIndices::new(&instance)).transpose()?,
        place: serves(PlaceRequest::HOOK).then(|| place_hook::GuestIndices::new(&instance)).transpose()?,
        observe: serves(ObserveRequest::HOOK).then(|| observe_hook::GuestIndices::new(&instance)).transpose()?,
        instance,
    })
}

/// The hooks that the component exports and what it wants to be granted, if it imports nothing else.
fn check_interfaces(sandbox: &Sandbox, component: &Component) -> Result<(Vec<&'static str>, Vec<Grant>), Refusal> {
    let ty = component.component_type();
    let imported: Vec<_> = ty.imports(sandbox.engine()).map(|(name, _)| name).collect();
    let exported: Vec<_> = ty.exports(sandbox.engine()).map(|(name, _)| name).collect();
    if let Some(name) = foreign(&exported).or_else(|| foreign(&imported)) {
        return Err(Refusal::WrongVersion(to_line(name, SHOWN_IMPORT_BYTES)));
    }
    let undeclared: Vec<String> = imported
        .iter()
        .filter(|name| !is_granted(name) && wanted(name).is_none())
        .take(SHOWN_IMPORTS)
        .map(|name| to_line(name, SHOWN_IMPORT_BYTES))
        .collect();
    if !undeclared.is_empty() {
        return Err(Refusal::UndeclaredImports(undeclared));
    }
    let exports = |wanted: &str| exported.iter().any(|name| is_interface(name, wanted));
    if !exports(LIFECYCLE) {
        return Err(Refusal::MissingExport(format!("{LIFECYCLE}@{}", spoken())));
    }
    let hooks: Vec<_> = HOOKS.iter().filter(|(_, interface)| exports(interface)).map(|(hook, _)| *hook).collect();
    if hooks.is_empty() {
        let any = HOOKS.map(|(_, interface)| format!("{interface}@{}", spoken())).join(", ");
        return Err(Refusal::MissingExport(format!("any hook ({any})")));
    }
    let wants = imported.iter().filter_map(|name| wanted(name)).collect();
    Ok((hooks, wants))
}

/// The first of these names that is an interface of the contract in versions alone that this host does not speak. What a
/// component offers in such a one nobody would ask, and its author would not know.
fn foreign<'a>(names: &[&'a str]) -> Option<&'a str> {
    let hooks = HOOKS.iter().map(|(_, interface)| *interface);
    let imports = GRANTED.into_iter().chain(GRANTABLE.map(|(_, interface)| interface));
    let known = std::iter::once(LIFECYCLE).chain(hooks).chain(imports);
    let mut lacking = known.filter(|known| !names.iter().any(|name| is_interface(name, known)));
    lacking.find_map(|known| names.iter().find(|name| name.split('@').next() == Some(known)).copied())
}

/// The versions that this host speaks, for people.
pub(super) fn spoken() -> String {
    format!("{}.{}.x", VERSION.0, VERSION.1)
}

/// What a binding must grant to a plugin that imports this.
pub(super) fn wanted(name: &str) -> Option<Grant> {
    GRANTABLE.into_iter().find(|(_, interface)| is_interface(name, interface)).map(|(grant, _)| grant)
}

/// Whether every plugin may import what has this name.
pub(super) fn is_granted(name: &str) -> bool {
    GRANTED.iter().any(|granted| is_interface(name, granted))
}

/// Whether `name` is `interface` in a version that this host speaks.
pub(super) fn is_interface(name: &str, interface: &str) -> bool {
    let Some((base, version)) = name.split_once('@') else { return false };
    let mut numbers = version.split('.').map(str::parse);
    let is_version = numbers.next() == Some(Ok(VERSION.0)) && numbers.next() == Some(Ok(VERSION.1));
    base == interface && is_version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_interface_in_compatible_versions_only() {
        assert!(is_interface("ostler:policy/log@0.1.0", "ostler:policy/log"));
        assert!(is_interface("ostler:policy/log@0.1.7", "ostler:policy/log"));
        for name in ["ostler:policy/log", "ostler:policy/log@0.2.0", "ostler:policy/log@1.1.0", "x:y/log@0.1.0"] {
            assert!(!is_interface(name, "ostler:policy/log"), "{name}");
        }
    }

    #[test]
    fn an_interface_in_another_version_alone_is_foreign() {
        let (here, later, bare) =
            ("ostler:policy/admit-hook@0.1.3", "ostler:policy/admit-hook@0.2.0", "ostler:policy/admit-hook");
        assert_eq!(foreign(&["wasi:x/y@0.2.0", later]), Some(later));
        assert_eq!(foreign(&["ostler:policy/place-hook@0.1.0", bare]), Some(bare));
        // It is there for hosts of both versions; and what nobody knows in this version is another error.
        assert_eq!(foreign(&[later, here]), None);
        assert_eq!(foreign(&["ostler:policy/clock@0.1.0", "wasi:x/y@0.2.0"]), None);
    }
}
