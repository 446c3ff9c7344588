//! `ostler plugin alias list|set|remove|follow`: names of a plugin's versions.

use std::time::Duration;

use super::super::args::{
    ChangeArgs, Output, PluginAliasCommand, PluginAliasFollowArgs, PluginAliasRemoveArgs, PluginAliasSetArgs, PluginArg,
};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::json;
use super::super::view::plugin::AliasesView;
use super::plugin::full_name;
use crate::api::v1;

/// A version that is bound is made ready first; its machine code may have to be made anew.
const BIND: Duration = Duration::from_secs(300);
const QUICK: Duration = Duration::from_secs(60);

pub(crate) async fn alias(client: Client, command: PluginAliasCommand) -> Result<(), Failure> {
    match command {
        PluginAliasCommand::List(plugin) => list(client, &plugin).await,
        PluginAliasCommand::Set(arguments) => set(client, arguments).await,
        PluginAliasCommand::Remove(arguments) => remove(client, arguments).await,
        PluginAliasCommand::Follow(arguments) => follow(client, arguments).await,
    }
}

async fn list(mut client: Client, plugin: &PluginArg) -> Result<(), Failure> {
    let name = full_name(&client.caller, plugin)?;
    let parent = name.rsplit_once("/plugins/").map(|(parent, _)| parent).unwrap_or_default().to_owned();
    let filter = format!("name = \"{name}\"");
    let request = v1::ListPluginsRequest { parent, filter, ..Default::default() };
    let answer = patiently("asking", client.plugins.list_plugins(within(QUICK, request))).await?;
    let plugin = answer.plugins.into_iter().next();
    let plugin = plugin.ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no {name} that you may see")))?;
    shown(&client, &AliasesView::from(plugin), None)
}

async fn set(mut client: Client, arguments: PluginAliasSetArgs) -> Result<(), Failure> {
    let PluginAliasSetArgs { plugin, alias, version, change, etag } = arguments;
    let ChangeArgs { request_id, validate_only } = change;
    let (name, etag) = (full_name(&client.caller, &plugin)?, etag.etag);
    let done = format!("the alias {alias} of {name} can be set");
    let what = format!("setting the alias {alias} of {name}");
    let request = v1::SetPluginAliasRequest { name, alias, version, request_id, etag, validate_only };
    let plugin = patiently(what, client.plugins.set_plugin_alias(within(BIND, request))).await?;
    shown(&client, &AliasesView::from(plugin), validate_only.then_some(done))
}

async fn remove(mut client: Client, arguments: PluginAliasRemoveArgs) -> Result<(), Failure> {
    let PluginAliasRemoveArgs { plugin, alias, change, etag } = arguments;
    let ChangeArgs { request_id, validate_only } = change;
    let (name, etag) = (full_name(&client.caller, &plugin)?, etag.etag);
    let done = format!("the alias {alias} of {name} can be removed");
    let what = format!("removing the alias {alias} of {name}");
    let request = v1::DeletePluginAliasRequest { name, alias, request_id, etag, validate_only };
    let plugin = patiently(what, client.plugins.delete_plugin_alias(within(QUICK, request))).await?;
    shown(&client, &AliasesView::from(plugin), validate_only.then_some(done))
}

async fn follow(mut client: Client, arguments: PluginAliasFollowArgs) -> Result<(), Failure> {
    let PluginAliasFollowArgs { plugin, alias, none: _, change, etag } = arguments;
    let ChangeArgs { request_id, validate_only } = change;
    let (name, etag) = (full_name(&client.caller, &plugin)?, etag.etag);
    let alias = alias.unwrap_or_default();
    let done = format!("{name} can follow it");
    let what = format!("having {name} follow an alias");
    let request = v1::FollowPluginAliasRequest { name, alias, request_id, etag, validate_only };
    let plugin = patiently(what, client.plugins.follow_plugin_alias(within(BIND, request))).await?;
    shown(&client, &AliasesView::from(plugin), validate_only.then_some(done))
}

/// The aliases as they are now, or would be if something `can` be done that is only validated.
fn shown(client: &Client, view: &AliasesView, can: Option<String>) -> Result<(), Failure> {
    match (client.output, can) {
        (Output::Table, Some(can)) => show(&format!("{can}: nothing was changed\n{}", view.text())),
        (Output::Table, None) => show(&view.text()),
        (Output::Json, _) => show(&json(view, false)?),
    }
}
