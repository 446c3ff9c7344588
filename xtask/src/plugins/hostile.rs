//! Components that misbehave, for the tests: from `tests/plugins/` to `<out>/hostile/*.wasm`.
//!
//! Most are text of a core module plus shared parts, wrapped as a component; a few are no component at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::{componentize, write};

/// The worlds of real plugins.
const ADMIT: &str = "ostler:policy/admit@0.1.0";
const ATTACH: &str = "ostler:policy/attach@0.1.0";
const DETACH: &str = "ostler:policy/detach@0.1.0";
const SELECT_VF: &str = "ostler:policy/select-vf@0.1.0";
const SELECT_NVME: &str = "ostler:policy/select-nvme@0.1.0";
const PLACE: &str = "ostler:policy/place@0.1.0";
const OBSERVE: &str = "ostler:policy/observe@0.1.0";
const REMEMBERS: &str = "test:hostile/remembers";
const SEES: &str = "test:hostile/sees";

/// A fixture: name of its text and of the output, its world, the parts that it shares.
struct Fixture(&'static str, &'static str, &'static [&'static str]);

/// A well-behaved beginning: what a misbehaving hook needs around it.
const LOADS: &[&str] = &["admit-type", "memory", "lifecycle"];
/// For a misbehaving lifecycle.
const DECIDES: &[&str] = &["admit-type", "memory", "abstains"];
/// What a misbehaving selection needs around it.
const SELECTS: &[&str] = &["select-vf-type", "memory", "lifecycle"];
/// The same for devices that come, and that go.
const ATTACHES: &[&str] = &["attach-type", "memory", "lifecycle"];
const DETACHES: &[&str] = &["detach-type", "memory", "lifecycle"];
/// For one that is told.
const OBSERVES: &[&str] = &["observe-type", "memory", "lifecycle"];
/// For one that is asked about all of it.
const DEVICES: &[&str] = &["attach-type", "detach-type", "select-vf-type", "memory", "lifecycle"];
/// For one without a hook of this contract.
const BARE: &[&str] = &["memory", "lifecycle"];
const ALL: &[&str] = &["admit-type", "memory", "lifecycle", "abstains"];

const FIXTURES: [Fixture; 61] = [
    Fixture("abstain", ADMIT, ALL),
    Fixture("attach-abstain", ATTACH, ATTACHES),
    Fixture("attach-forge", ATTACH, ATTACHES),
    Fixture("attach-loop", ATTACH, ATTACHES),
    Fixture("attach-trap", ATTACH, ATTACHES),
    Fixture("bad-name", ADMIT, DECIDES),
    Fixture("bad-utf8", ADMIT, LOADS),
    Fixture("clock", "test:hostile/clock", LOADS),
    Fixture("describe-loop", ADMIT, DECIDES),
    Fixture("describe-trap", ADMIT, DECIDES),
    Fixture("detach-keep", DETACH, DETACHES),
    Fixture("detach-trap", DETACH, DETACHES),
    Fixture("escape", ADMIT, LOADS),
    Fixture("far-away", ADMIT, LOADS),
    Fixture("fill", ADMIT, LOADS),
    Fixture("forge", ADMIT, LOADS),
    Fixture("inventory-devices", "test:hostile/sees-devices", DEVICES),
    Fixture("inventory-early", SEES, DECIDES),
    Fixture("inventory-flood", SEES, LOADS),
    Fixture("inventory-list", SEES, LOADS),
    Fixture("inventory-trap", SEES, LOADS),
    Fixture("kv-early", REMEMBERS, DECIDES),
    Fixture("kv-flood", REMEMBERS, LOADS),
    Fixture("kv-forge", REMEMBERS, LOADS),
    Fixture("kv-trap", REMEMBERS, LOADS),
    Fixture("large", ADMIT, &["admit-type", "lifecycle", "abstains"]),
    Fixture("log-flood", ADMIT, LOADS),
    Fixture("loop", ADMIT, LOADS),
    Fixture("memory", ADMIT, LOADS),
    Fixture("no-hook", "test:hostile/no-hook", BARE),
    Fixture("nvme-code", SELECT_NVME, SELECTS),
    Fixture("nvme-reason", SELECT_NVME, SELECTS),
    Fixture("nvme-short", SELECT_NVME, SELECTS),
    Fixture("nvme-trap", SELECT_NVME, SELECTS),
    Fixture("observe-trap", OBSERVE, OBSERVES),
    Fixture("place-code", PLACE, SELECTS),
    Fixture("place-long", PLACE, SELECTS),
    Fixture("place-million", PLACE, SELECTS),
    Fixture("place-reason", PLACE, SELECTS),
    Fixture("place-short", PLACE, SELECTS),
    Fixture("place-trap", PLACE, SELECTS),
    Fixture("ramble", ADMIT, LOADS),
    Fixture("recursion", ADMIT, LOADS),
    Fixture("shout", ADMIT, LOADS),
    Fixture("start-loop", ADMIT, ALL),
    Fixture("subject-early", ADMIT, DECIDES),
    Fixture("trap", ADMIT, LOADS),
    Fixture("undecided", ADMIT, LOADS),
    Fixture("vf-extremes", SELECT_VF, SELECTS),
    Fixture("vf-long", SELECT_VF, SELECTS),
    Fixture("vf-mac", SELECT_VF, SELECTS),
    Fixture("vf-million", SELECT_VF, SELECTS),
    Fixture("vf-reason", SELECT_VF, SELECTS),
    Fixture("vf-short", SELECT_VF, SELECTS),
    Fixture("vf-trap", SELECT_VF, SELECTS),
    Fixture("vf-trust", SELECT_VF, SELECTS),
    Fixture("vf-vlan", SELECT_VF, SELECTS),
    Fixture("widen", ADMIT, LOADS),
    Fixture("wrong-types", "test:hostile/wrong-types", BARE),
    Fixture("wrong-version", "test:hostile/wrong-version", BARE),
    Fixture("zero", ADMIT, LOADS),
];

/// Fixtures that are not made from text.
const RAW: [&str; 3] = ["core-module", "not-wasm", "truncated"];

/// Every file that [`build`] writes.
pub(super) fn outputs(out: &Path) -> Vec<PathBuf> {
    FIXTURES.iter().map(|fixture| fixture.0).chain(RAW).map(|name| path(out, name)).collect()
}

fn path(out: &Path, name: &str) -> PathBuf {
    out.join("hostile").join(format!("{name}.wasm"))
}

/// Writes all fixtures; `component` is a good plugin, of which one fixture is a part.
pub(super) fn build(root: &Path, out: &Path, component: &Path) -> Result<()> {
    let sources = root.join("tests/plugins");
    let mut resolve = Resolve::default();
    resolve.push_dir(root.join("wit")).context("cannot read wit/")?;
    let worlds = sources.join("worlds.wit");
    let (hostile, _) = resolve.push_path(&worlds).with_context(|| format!("cannot read {}", worlds.display()))?;
    for Fixture(name, world, parts) in &FIXTURES {
        let make = || -> Result<Vec<u8>> {
            // The fixture first: its imports must stand before the parts' definitions.
            let mut text = format!("(module\n{}", fs::read_to_string(sources.join(format!("hostile/{name}.wat")))?);
            for part in *parts {
                text.push_str(&fs::read_to_string(sources.join(format!("parts/{part}.wat")))?);
            }
            text.push(')');
            let mut module = wat::parse_str(&text)?;
            let world = resolve.select_world(&[hostile], Some(world))?;
            embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
            componentize(&module)
        };
        write(&path(out, name), &make().with_context(|| format!("cannot build the hostile fixture {name}"))?)?;
    }
    let whole = fs::read(component).with_context(|| format!("cannot read {}", component.display()))?;
    write(&path(out, "core-module"), &wat::parse_str("(module (func (export \"admit-vm\")))")?)?;
    write(&path(out, "not-wasm"), b"#!/bin/sh\necho this is not WebAssembly\n")?;
    write(&path(out, "truncated"), whole.get(..whole.len() / 2).unwrap_or_default())
}
