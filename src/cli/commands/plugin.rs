//! `ostler plugin load|list|rollback|promote|demote|unload|kv`.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio_stream::iter;

use crate::api::v1::end_plugin_canary_request::End;
use crate::api::v1::load_plugin_request::{Header, Part};
use crate::api::v1::plugin::Mode;
use crate::api::{Parent, PluginName, v1};
use crate::model::{PluginId, PluginSignature, PolicyScope, TenantId};

use super::super::args::{
    ChangeArgs, EtagArg, Output, PluginArg, PluginBindingArgs, PluginDemoteArgs, PluginKvArgs, PluginKvClearArgs,
    PluginKvCommand, PluginListArgs, PluginLoadArgs, PluginPromoteArgs, PluginRollbackArgs, PluginUnloadArgs,
};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::identity::Caller;
use super::super::show;
use super::super::view::json;
use super::super::view::plugin::{KvView, PluginView, plugin_table};
use super::component::read;
use super::sign::signatures_for;

/// Bytes per request, as the API has it.
pub(super) const CHUNK_LEN: usize = 64 << 10;
/// Compilation included.
const LOAD: Duration = Duration::from_secs(300);
const QUICK: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct ListView {
    plugins: Vec<PluginView>,
}

/// A component that was read and named, before the daemon is asked.
#[derive(Debug)]
pub(crate) struct Upload {
    binding: PluginBindingArgs,
    plugin: PluginId,
    bytes: Vec<u8>,
    signatures: Vec<PluginSignature>,
}

impl Upload {
    /// Reads the files and finds the plugin's name.
    pub(crate) fn prepare(arguments: PluginLoadArgs) -> Result<Self, Failure> {
        let PluginLoadArgs { file, signatures, binding } = arguments;
        let plugin = plugin_id(binding.name.as_deref(), Some(&file))?;
        let bytes = read(&file)?;
        let signatures = signatures_for(&file, &signatures)?;
        Ok(Self { binding, plugin, bytes, signatures })
    }
}

pub(crate) async fn load(mut client: Client, upload: Upload) -> Result<(), Failure> {
    let Upload { binding, plugin, bytes, signatures } = upload;
    let scope = scope(&client.caller, binding.operator, binding.tenant.as_deref())?;
    let name = PluginName { scope, plugin }.to_string();
    let is_validation = binding.change.validate_only;
    let header = Header { signatures: signatures.iter().map(sent).collect(), ..header(&name, binding)? };
    let parts = parts(header, &bytes);
    let call = client.plugins.load_plugin(within(LOAD, iter(parts)));
    let view = PluginView::from(patiently(format_args!("loading {name}"), call).await?);
    match client.output {
        Output::Table if is_validation => {
            show(&format!("{name} could be loaded: nothing was changed\n{}", plugin_table(&[view])))
        }
        Output::Table => show(&plugin_table(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn list(mut client: Client, arguments: PluginListArgs) -> Result<(), Failure> {
    let parent =
        if arguments.operator { Parent::Operator } else { client.caller.parent(arguments.tenant.as_deref())? };
    let mut request = v1::ListPluginsRequest { parent: parent.to_string(), ..Default::default() };
    let mut plugins = Vec::new();
    loop {
        let call = client.plugins.list_plugins(within(QUICK, request.clone()));
        let page = patiently("asking", call).await?;
        plugins.extend(page.plugins);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let view = ListView { plugins: plugins.into_iter().map(PluginView::from).collect() };
    match client.output {
        Output::Table => show(&plugin_table(&view.plugins)),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn roll_back(mut client: Client, arguments: PluginRollbackArgs) -> Result<(), Failure> {
    let name = full_name(&client.caller, &arguments.plugin)?;
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let (digest, etag) = (arguments.to, arguments.etag.etag);
    let request = v1::RollBackPluginRequest { name: name.clone(), digest, request_id, etag, validate_only };
    let call = client.plugins.roll_back_plugin(within(LOAD, request));
    let view = PluginView::from(patiently(format_args!("rolling back {name}"), call).await?);
    match client.output {
        Output::Table if validate_only => {
            show(&format!("{name} can be rolled back: nothing was changed\n{}", plugin_table(&[view])))
        }
        Output::Table => show(&plugin_table(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn promote(client: Client, arguments: PluginPromoteArgs) -> Result<(), Failure> {
    if arguments.canary {
        return end_canary(client, &arguments.plugin, End::Promote, arguments.change, arguments.etag).await;
    }
    let request = mode_request(&client.caller, &arguments.plugin, Mode::Enforced, arguments.change, arguments.etag)?;
    set_mode(client, request, "be promoted").await
}

pub(crate) async fn demote(client: Client, arguments: PluginDemoteArgs) -> Result<(), Failure> {
    if arguments.canary {
        return end_canary(client, &arguments.plugin, End::Drop, arguments.change, arguments.etag).await;
    }
    let request = mode_request(&client.caller, &arguments.plugin, Mode::Shadow, arguments.change, arguments.etag)?;
    let request = v1::SetPluginModeRequest { force: arguments.force, ..request };
    set_mode(client, request, "become a shadow")
        .await
        .map_err(|failure| failure.hint_for(Exit::WrongState, || "--force does it all the same".to_owned()))
}

async fn end_canary(
    mut client: Client,
    plugin: &PluginArg,
    end: End,
    change: ChangeArgs,
    etag: EtagArg,
) -> Result<(), Failure> {
    let (ChangeArgs { request_id, validate_only }, EtagArg { etag }) = (change, etag);
    let name = full_name(&client.caller, plugin)?;
    let request = v1::EndPluginCanaryRequest { name: name.clone(), end: end.into(), request_id, etag, validate_only };
    let call = client.plugins.end_plugin_canary(within(QUICK, request));
    let view = PluginView::from(patiently(format_args!("ending the canary of {name}"), call).await?);
    match client.output {
        Output::Table if validate_only => {
            show(&format!("the canary of {name} can be ended: nothing was changed\n{}", plugin_table(&[view])))
        }
        Output::Table => show(&plugin_table(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}

fn mode_request(
    caller: &Caller,
    plugin: &PluginArg,
    mode: Mode,
    change: ChangeArgs,
    etag: EtagArg,
) -> Result<v1::SetPluginModeRequest, Failure> {
    let (ChangeArgs { request_id, validate_only }, EtagArg { etag }) = (change, etag);
    let (name, mode) = (full_name(caller, plugin)?, mode.into());
    Ok(v1::SetPluginModeRequest { name, mode, force: false, request_id, etag, validate_only })
}

async fn set_mode(mut client: Client, request: v1::SetPluginModeRequest, what: &str) -> Result<(), Failure> {
    let (name, is_validation) = (request.name.clone(), request.validate_only);
    let call = client.plugins.set_plugin_mode(within(QUICK, request));
    let view = PluginView::from(patiently(format_args!("setting the mode of {name}"), call).await?);
    match client.output {
        Output::Table if is_validation => {
            show(&format!("{name} can {what}: nothing was changed\n{}", plugin_table(&[view])))
        }
        Output::Table => show(&plugin_table(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn unload(mut client: Client, arguments: PluginUnloadArgs) -> Result<(), Failure> {
    let name = full_name(&client.caller, &arguments.plugin)?;
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let (force, etag) = (arguments.force, arguments.etag.etag);
    let request = v1::UnloadPluginRequest { name: name.clone(), force, request_id, etag, validate_only };
    let call = client.plugins.unload_plugin(within(QUICK, request));
    patiently(format_args!("unloading {name}"), call)
        .await
        .map_err(|failure| failure.hint_for(Exit::WrongState, || "--force unloads it all the same".to_owned()))?;
    let said = if validate_only { "can be unloaded: nothing was changed" } else { "is unloaded" };
    show(&format!("{name} {said}\n"))
}

pub(crate) async fn kv(client: Client, command: PluginKvCommand) -> Result<(), Failure> {
    match command {
        PluginKvCommand::List(arguments) => list_kv(client, &arguments).await,
        PluginKvCommand::Clear(arguments) => clear_kv(client, arguments).await,
    }
}

/// The plugin's name and the tenant's.
fn kv_names(caller: &Caller, arguments: &PluginKvArgs) -> Result<(String, String), Failure> {
    let name = full_name(caller, &arguments.plugin)?;
    if arguments.about.is_empty() {
        let failure = || Failure::new(Exit::Usage, "an operator's plugin remembers each tenant for itself".to_owned());
        let is_operators = name.starts_with("operator/");
        return if is_operators { Err(failure().hint("name one with --about")) } else { Ok((name, String::new())) };
    }
    let tenant = arguments.about.parse::<TenantId>();
    let tenant = tenant.map_err(|error| Failure::new(Exit::Usage, format!("--about: {error}")))?;
    Ok((name, Parent::Tenant(tenant).to_string()))
}

async fn list_kv(mut client: Client, arguments: &PluginKvArgs) -> Result<(), Failure> {
    let (name, tenant) = kv_names(&client.caller, arguments)?;
    let call = client.plugins.get_plugin_kv(within(QUICK, v1::GetPluginKvRequest { name, tenant }));
    let view = KvView::from(patiently("asking", call).await?);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}

async fn clear_kv(mut client: Client, arguments: PluginKvClearArgs) -> Result<(), Failure> {
    let (name, tenant) = kv_names(&client.caller, &arguments.kv)?;
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::ClearPluginKvRequest { name: name.clone(), tenant, request_id, validate_only };
    let call = client.plugins.clear_plugin_kv(within(QUICK, request));
    patiently(format_args!("clearing what {name} remembers"), call).await?;
    let said = if validate_only { "can forget: nothing was changed" } else { "has forgotten it all" };
    show(&format!("{name} {said}\n"))
}

pub(super) fn full_name(caller: &Caller, plugin: &PluginArg) -> Result<String, Failure> {
    let scope = scope(caller, plugin.operator, plugin.tenant.as_deref())?;
    Ok(PluginName { scope, plugin: plugin_id(Some(&plugin.name), None)? }.to_string())
}

/// The name that was asked for, else the file's without its ending.
pub(super) fn plugin_id(name: Option<&str>, file: Option<&Path>) -> Result<PluginId, Failure> {
    let stem = file.and_then(Path::file_stem);
    let stem = stem.map(|stem| stem.to_string_lossy().to_ascii_lowercase().replace('_', "-"));
    let name = name.map(str::to_owned).or(stem).unwrap_or_default();
    name.parse().map_err(|error| {
        Failure::new(Exit::Usage, format!("{name:?} cannot name a plugin: {error}")).hint("name it with --name")
    })
}

/// The chain that was asked for, else the caller's own.
pub(super) fn scope(caller: &Caller, is_operator: bool, tenant: Option<&str>) -> Result<PolicyScope, Failure> {
    match (is_operator, tenant, caller) {
        (true, _, _) | (false, None, Caller::Operator(_)) => Ok(PolicyScope::Operator),
        (false, None, Caller::Tenant(tenant)) => Ok(PolicyScope::Tenant(tenant.clone())),
        (false, Some(tenant), _) => tenant
            .parse::<TenantId>()
            .map(PolicyScope::Tenant)
            .map_err(|error| Failure::new(Exit::Usage, format!("--tenant: {error}"))),
    }
}

fn header(name: &str, binding: PluginBindingArgs) -> Result<Header, Failure> {
    let mut header = Header {
        name: name.to_owned(),
        request_id: binding.change.request_id,
        etag: binding.etag.etag,
        validate_only: binding.change.validate_only,
        mode: if binding.shadow { Mode::Shadow } else { Mode::Enforced }.into(),
        canary_percent: binding.canary.unwrap_or_default(),
        alias: binding.alias,
        weight: binding.weight.unwrap_or_default(),
        grants: binding.grants.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    for (key, value) in binding.settings {
        if header.settings.insert(key.clone(), value).is_some() {
            return Err(Failure::new(Exit::Usage, format!("setting {key:?} is given twice")));
        }
    }
    Ok(header)
}

fn sent(signature: &PluginSignature) -> v1::PluginSignature {
    v1::PluginSignature { public_key: signature.key.spki(), signature: signature.bytes().to_vec() }
}

/// Header first, then the component in pieces.
fn parts(header: Header, bytes: &[u8]) -> Vec<v1::LoadPluginRequest> {
    let chunks = bytes.chunks(CHUNK_LEN).map(|chunk| Part::Chunk(chunk.to_vec()));
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    parts.map(|part| v1::LoadPluginRequest { part: Some(part) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(file: &str, name: Option<&str>) -> Result<PluginId, Failure> {
        plugin_id(name, Some(Path::new(file)))
    }

    fn with(settings: Vec<(String, String)>) -> PluginBindingArgs {
        PluginBindingArgs {
            operator: false,
            tenant: None,
            name: None,
            settings,
            grants: Vec::new(),
            shadow: false,
            canary: None,
            weight: None,
            alias: String::new(),
            change: Default::default(),
            etag: Default::default(),
        }
    }

    #[test]
    fn names_a_plugin_after_its_file() {
        assert_eq!(named("target/plugins/My_plugin.wasm", None).unwrap().as_str(), "my-plugin");
        assert_eq!(named("x.wasm", Some("limits")).unwrap().as_str(), "limits");
        assert!(named("a b.wasm", None).unwrap_err().hint.unwrap().contains("--name"));
    }

    #[test]
    fn binds_to_the_callers_own_chain_unless_told_otherwise() {
        let tenant = |name: &str| PolicyScope::Tenant(name.parse().unwrap());
        let (acme, admin) = (Caller::Tenant("acme".parse().unwrap()), Caller::Operator("admin".into()));
        assert_eq!(scope(&acme, false, None).unwrap(), tenant("acme"));
        assert_eq!(scope(&admin, false, None).unwrap(), PolicyScope::Operator);
        assert_eq!(scope(&admin, false, Some("globex")).unwrap(), tenant("globex"));
        assert_eq!(scope(&acme, true, None).unwrap(), PolicyScope::Operator);
        assert!(scope(&admin, false, Some("A/B")).is_err());
    }

    #[test]
    fn sends_the_header_first_and_all_bytes_in_order() {
        let bytes: Vec<u8> = (0..CHUNK_LEN * 2 + 7).map(|n| n as u8).collect();
        let given = with(vec![("a".into(), "1".into())]);
        let parts = parts(header("operator/plugins/x", given).unwrap(), &bytes);
        let mut sent = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            match part.part.unwrap() {
                Part::Header(header) => {
                    assert_eq!((index, header.name.as_str()), (0, "operator/plugins/x"));
                    assert_eq!(header.settings["a"], "1");
                }
                Part::Chunk(chunk) => {
                    assert!(index > 0 && chunk.len() <= CHUNK_LEN);
                    sent.extend(chunk);
                }
            }
        }
        assert_eq!(sent, bytes);
    }

    #[test]
    fn refuses_a_setting_that_is_given_twice() {
        let settings = vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert_eq!(header("n", with(settings)).unwrap_err().exit, Exit::Usage);
    }
}
