//! `PluginService`: decode, call, encode. Key type: [`PluginRpc`].

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::audit::Audit;
use super::call::caller;
use super::change::Changes;
use super::list::{Field, Filter, Kind, Query, Value, Window};
use super::{encode, status};
use crate::api::v1::end_plugin_canary_request::End;
use crate::api::v1::load_plugin_request::{Header, Part};
use crate::api::v1::plugin::Mode;
use crate::api::v1::plugin_service_server::PluginService;
use crate::api::{Parent, PluginName, v1};
use crate::daemon::service::{
    AliasPlace, CanaryEnd, CanaryPlace, KvOf, PluginPlace, PluginStatus, PluginUpload, PluginView, ServiceError,
    SharedNode, SignatureRefused, Whose,
};
use crate::model::{
    AliasError, CanaryShare, Grant, NoGrant, PluginAlias, PluginDigest, PluginMode, PluginSignature, PluginWeight,
    PolicyScope, SignerKey, SpecError, VersionName,
};

/// Longest component, in bytes, as the public contract says.
pub(super) const MAX_COMPONENT_LEN: usize = 24 << 20;

pub(super) struct PluginRpc {
    node: SharedNode,
    changes: Changes,
}

impl PluginRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { changes: Changes::new(Arc::clone(&node), audit), node }
    }

    /// Shows plugins in the chain of `scope`.
    fn encode(&self, scope: &PolicyScope) -> impl Fn(&PluginView) -> v1::Plugin + Send + Sync + use<> {
        let signers = self.node.chain_signers(scope);
        move |view| encode::plugin(view, &signers)
    }
}

#[tonic::async_trait]
impl PluginService for PluginRpc {
    async fn load_plugin(
        &self,
        request: Request<Streaming<v1::LoadPluginRequest>>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let (header, component) = received(request.into_inner()).await?;
        let place = place_of(&header).map_err(|error| status::bad_field(&error))?;
        let encode = self.encode(place.scope());
        let signatures = signatures(&header.signatures).map_err(|error| status::of(&ServiceError::from(error)))?;
        let digest = PluginDigest(Sha256::digest(&component).into());
        let (resource, settings) = (header.name.clone(), header.settings.clone());
        let grants = grants(&header.grants).map_err(|error| status::bad_field(&error))?;
        let upload = PluginUpload { component, digest, settings, grants, signatures };
        let make = self.changes.make_with(
            principal,
            header,
            &digest.0,
            resource,
            encode,
            |node, principal, terms| async move {
                match place {
                    LoadPlace::Plugin(place) => node.load_plugin(&principal, place, upload, &terms).await,
                    LoadPlace::Alias(place) => node.load_alias(&principal, place, upload, &terms).await,
                    LoadPlace::Canary(place) => node.load_canary(&principal, place, upload, &terms).await,
                }
            },
        );
        make.await
    }

    async fn roll_back_plugin(
        &self,
        request: Request<v1::RollBackPluginRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let PluginName { scope, plugin } =
            PluginName::parse(&request.name).map_err(|error| status::bad_field(&error))?;
        let version = version("digest", &request.digest).map_err(|error| status::bad_field(&error))?;
        let (resource, encode) = (request.name.clone(), self.encode(&scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.roll_back_plugin(&principal, scope, plugin, version, &terms).await
        });
        make.await
    }

    async fn set_plugin_mode(
        &self,
        request: Request<v1::SetPluginModeRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let place = place(&request.name, request.mode).map_err(|error| status::bad_field(&error))?;
        let (resource, is_forced, encode) = (request.name.clone(), request.force, self.encode(&place.scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.set_plugin_mode(&principal, place, is_forced, &terms).await
        });
        make.await
    }

    async fn set_plugin_alias(
        &self,
        request: Request<v1::SetPluginAliasRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let place = alias_place(&request.name, &request.alias).map_err(|error| status::bad_field(&error))?;
        let version = version("version", &request.version).map_err(|error| status::bad_field(&error))?;
        let (resource, encode) = (request.name.clone(), self.encode(&place.scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.set_plugin_alias(&principal, place, version, &terms).await
        });
        make.await
    }

    async fn delete_plugin_alias(
        &self,
        request: Request<v1::DeletePluginAliasRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let place = alias_place(&request.name, &request.alias).map_err(|error| status::bad_field(&error))?;
        let (resource, encode) = (request.name.clone(), self.encode(&place.scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.delete_plugin_alias(&principal, place, &terms).await
        });
        make.await
    }

    async fn follow_plugin_alias(
        &self,
        request: Request<v1::FollowPluginAliasRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let PluginName { scope, plugin } =
            PluginName::parse(&request.name).map_err(|error| status::bad_field(&error))?;
        let alias = Some(&request.alias).filter(|alias| !alias.is_empty()).map(|name| alias(name));
        let alias = alias.transpose().map_err(|error| status::bad_field(&error))?;
        let (resource, encode) = (request.name.clone(), self.encode(&scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.follow_plugin_alias(&principal, scope, plugin, alias, &terms).await
        });
        make.await
    }

    async fn end_plugin_canary(
        &self,
        request: Request<v1::EndPluginCanaryRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let PluginName { scope, plugin } =
            PluginName::parse(&request.name).map_err(|error| status::bad_field(&error))?;
        let end = match End::try_from(request.end) {
            Ok(End::Promote) => CanaryEnd::Promote,
            Ok(End::Drop) => CanaryEnd::Drop,
            Ok(End::Unspecified) | Err(_) => return Err(bad("end", "say how it ends: PROMOTE or DROP")),
        };
        let (resource, encode) = (request.name.clone(), self.encode(&scope));
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.end_canary(&principal, scope, plugin, end, &terms).await
        });
        make.await
    }

    async fn unload_plugin(
        &self,
        request: Request<v1::UnloadPluginRequest>,
    ) -> Result<Response<v1::UnloadPluginResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let PluginName { scope, plugin } =
            PluginName::parse(&request.name).map_err(|error| status::bad_field(&error))?;
        let (resource, is_forced) = (request.name.clone(), request.force);
        let encode = |(): &()| v1::UnloadPluginResponse {};
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.unload_plugin(&principal, scope, plugin, is_forced, &terms).await
        });
        make.await
    }

    async fn get_plugin_kv(&self, request: Request<v1::GetPluginKvRequest>) -> Result<Response<v1::PluginKv>, Status> {
        let principal = caller(request.extensions())?;
        let v1::GetPluginKvRequest { name, tenant } = request.into_inner();
        let of = kv_of(&name, &tenant).map_err(|error| status::bad_field(&error))?;
        let kv = self.node.plugin_kv(&principal, of).map_err(|error| status::of(&error))?;
        Ok(Response::new(encode::plugin_kv(&kv)))
    }

    async fn clear_plugin_kv(
        &self,
        request: Request<v1::ClearPluginKvRequest>,
    ) -> Result<Response<v1::ClearPluginKvResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let of = kv_of(&request.name, &request.tenant).map_err(|error| status::bad_field(&error))?;
        let resource = request.name.clone();
        let encode = |(): &()| v1::ClearPluginKvResponse {};
        let make = self.changes.make(principal, request, resource, encode, move |node, principal, terms| async move {
            node.clear_plugin_kv(&principal, of, &terms).await
        });
        make.await
    }

    async fn list_plugins(
        &self,
        request: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let window = Window::new(Query {
            method: "ListPlugins",
            caller: &principal.to_string(),
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        });
        let window = window.map_err(|error| status::bad_field(&error))?;
        let filter = Filter::parse(&request.filter, FIELDS).map_err(|error| status::bad_field(&error))?;
        let whose = match Parent::parse(&request.parent).map_err(|error| status::bad_field(&error))? {
            Parent::Own => Some(Whose::Own),
            Parent::All => Some(Whose::All),
            Parent::Tenant(tenant) => Some(Whose::Tenant(tenant)),
            Parent::Operator => None,
        };
        let views = self.node.list_plugins(&principal, whose.as_ref()).map_err(|error| status::of(&error))?;
        let listed = views.into_iter().filter(|listed| filter.matches(|name| field(&listed.view, name)));
        let name = |status: &PluginStatus| encode::plugin_name(&status.view);
        // "operator/…" comes before "tenants/…": by name is the order asked.
        let (plugins, next_page_token) = window.page(listed, name, encode::plugin_status);
        Ok(Response::new(v1::ListPluginsResponse { plugins, next_page_token }))
    }
}

/// The whole upload.
async fn received(mut parts: Streaming<v1::LoadPluginRequest>) -> Result<(Header, Vec<u8>), Status> {
    let first = parts.message().await?.and_then(|request| request.part);
    let Some(Part::Header(header)) = first else {
        return Err(bad("header", "the first request must carry the header"));
    };
    let mut component = Vec::new();
    while let Some(request) = parts.message().await? {
        let Some(Part::Chunk(chunk)) = request.part else {
            return Err(bad("chunk", "every request after the first must carry a chunk"));
        };
        if component.len() + chunk.len() > MAX_COMPONENT_LEN {
            return Err(bad("chunk", &format!("component is longer than {MAX_COMPONENT_LEN} bytes")));
        }
        component.extend_from_slice(&chunk);
    }
    Ok((header, component))
}

/// Where a component goes.
enum LoadPlace {
    Plugin(PluginPlace),
    Alias(AliasPlace),
    Canary(CanaryPlace),
}

impl LoadPlace {
    fn scope(&self) -> &PolicyScope {
        match self {
            Self::Plugin(place) => &place.scope,
            Self::Alias(place) => &place.scope,
            Self::Canary(place) => &place.scope,
        }
    }
}

/// The signatures of a header; whether they are good is seen later.
fn signatures(sent: &[v1::PluginSignature]) -> Result<Vec<PluginSignature>, SignatureRefused> {
    PluginSignature::check_count(sent.len())?;
    let read = |sent: &v1::PluginSignature| {
        PluginSignature::new(SignerKey::from_spki(&sent.public_key)?, &sent.signature).map_err(Into::into)
    };
    sent.iter().map(read).collect()
}

/// What a header grants.
fn grants(sent: &[String]) -> Result<BTreeSet<Grant>, SpecError> {
    let read = |grant: &String| grant.parse().map_err(|error: NoGrant| SpecError::new("grants", error.to_string()));
    sent.iter().map(read).collect()
}

/// Which plugin's memory of whom is meant.
fn kv_of(name: &str, tenant: &str) -> Result<KvOf, SpecError> {
    let PluginName { scope, plugin: name } = PluginName::parse(name)?;
    let tenant = match (Parent::parse(tenant), &scope) {
        (Ok(Parent::Tenant(tenant)), _) => tenant,
        (Ok(Parent::Own), PolicyScope::Tenant(owner)) => owner.clone(),
        _ => return Err(SpecError::new("tenant", format!("{tenant:?} is none: tenants/{{tenant}}"))),
    };
    Ok(KvOf { scope, name, tenant })
}

fn place_of(header: &Header) -> Result<LoadPlace, SpecError> {
    let weight = Some(header.weight).filter(|weight| *weight != 0).map(PluginWeight::new).transpose()?;
    if weight.is_some() && (header.canary_percent != 0 || !header.alias.is_empty()) {
        let why = "a canary, and what is kept under an alias, has the weight of the plugin: leave it out";
        return Err(SpecError::new("weight", why));
    }
    let place = PluginPlace { weight, ..place(&header.name, header.mode)? };
    let wrong = |what: &str| Err(SpecError::new("alias", format!("{what}: leave one of the two out")));
    match (header.alias.is_empty(), header.canary_percent, place.mode) {
        (true, 0, _) => return Ok(LoadPlace::Plugin(place)),
        (true, ..) => {}
        (false, 0, PluginMode::Enforced) => return Ok(LoadPlace::Alias(alias_place(&header.name, &header.alias)?)),
        (false, 0, PluginMode::Shadow) => return wrong("what is kept under an alias is in no mode of its own"),
        (false, ..) => return wrong("what is kept under an alias has no share; name the canary afterwards"),
    }
    let PluginPlace { scope, name, mode, .. } = place;
    match mode {
        PluginMode::Enforced => {
            Ok(LoadPlace::Canary(CanaryPlace { scope, name, share: CanaryShare::new(header.canary_percent)? }))
        }
        PluginMode::Shadow => Err(SpecError::new(
            "canary_percent",
            "a shadow decides nothing, so it has no share: leave one of the two out",
        )),
    }
}

/// A text that names a version; none if it is empty.
fn version(field: &str, text: &str) -> Result<Option<VersionName>, SpecError> {
    let version = Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose();
    version.map_err(|error: AliasError| SpecError::new(field, error.to_string()))
}

fn alias(text: &str) -> Result<PluginAlias, SpecError> {
    text.parse().map_err(|error: AliasError| SpecError::new("alias", error.to_string()))
}

/// An alias of a plugin.
fn alias_place(name: &str, text: &str) -> Result<AliasPlace, SpecError> {
    let PluginName { scope, plugin: name } = PluginName::parse(name)?;
    Ok(AliasPlace { scope, name, alias: alias(text)? })
}

/// What a plugin of this name and mode is bound as.
fn place(name: &str, mode: i32) -> Result<PluginPlace, SpecError> {
    let PluginName { scope, plugin } = PluginName::parse(name)?;
    let unknown = |_| SpecError::new("mode", format!("{mode} is none: ENFORCED or SHADOW"));
    let mode = match Mode::try_from(mode).map_err(unknown)? {
        Mode::Unspecified | Mode::Enforced => PluginMode::Enforced,
        Mode::Shadow => PluginMode::Shadow,
    };
    Ok(PluginPlace { scope, name: plugin, mode, weight: None })
}

/// What a filter of plugins may ask about.
const FIELDS: &[Field] = &[
    Field { name: "name", kind: Kind::Text },
    Field { name: "digest", kind: Kind::Text },
    Field { name: "version", kind: Kind::Text },
    Field { name: "failure", kind: Kind::Text },
    Field { name: "mode", kind: Kind::Choice(&["ENFORCED", "SHADOW"]) },
];

fn field(view: &PluginView, name: &str) -> Option<Value> {
    Some(Value::Text(match name {
        "name" => encode::plugin_name(view),
        "digest" => view.record.digest.to_string(),
        "version" => view.plugin.version().to_owned(),
        "mode" => encode::plugin_mode(view.record.mode).as_str_name().to_owned(),
        "failure" => view.plugin.broken_cause().unwrap_or_default().to_owned(),
        _ => return None,
    }))
}

fn bad(field: &str, reason: &str) -> Status {
    status::bad_field(&SpecError::new(field, reason))
}
