//! The plugin `tally`, and what it has counted. Key functions: [`load_tally`], [`until_tallied`].

use std::collections::BTreeMap;

use ostler::api::v1;
use ostler::api::v1::load_plugin_request::{Header, Part};

use super::Caller;
use super::assets::plugin;
use super::client::wait;
use super::wait::{SOON, until};

/// Loads it under this name.
pub fn load_tally(caller: &Caller, name: &str) -> v1::Plugin {
    let header = Header { name: name.to_owned(), grants: vec!["kv".into()], ..Default::default() };
    let component = plugin("tally");
    let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect()).unwrap()
}

/// What it has counted so far, by kind.
pub fn tallied(caller: &Caller, name: &str, tenant: &str) -> BTreeMap<String, u64> {
    let request = v1::GetPluginKvRequest { name: name.to_owned(), tenant: format!("tenants/{tenant}") };
    let kv = wait(caller.plugins.clone().get_plugin_kv(request)).unwrap().into_inner();
    let number = |value: Vec<u8>| String::from_utf8(value).unwrap().parse().unwrap();
    kv.entries.into_iter().map(|entry| (entry.key, number(entry.value))).collect()
}

/// Where it is among a tenant's events; `None`: there are none.
pub fn observer(caller: &Caller, name: &str, tenant: &str) -> Option<v1::PluginObserver> {
    let plugin = caller.plugins("").unwrap().into_iter().find(|plugin| plugin.name == name)?;
    plugin.observers.into_iter().find(|observer| observer.tenant == format!("tenants/{tenant}"))
}

/// Waits until it was told all there is, and gives what it has counted.
pub fn until_tallied(caller: &Caller, name: &str, tenant: &str) -> BTreeMap<String, u64> {
    until("all is told", SOON, || observer(caller, name, tenant).filter(|observer| observer.waiting == 0));
    tallied(caller, name, tenant)
}
