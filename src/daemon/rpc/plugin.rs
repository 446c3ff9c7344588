//! `PluginService`: decode, call, encode. Key type: [`PluginRpc`].

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::audit::{Audit, Change};
use super::call::{audited, caller};
use super::{encode, status};
use crate::api::v1::load_plugin_request::{Header, Part};
use crate::api::v1::plugin_service_server::PluginService;
use crate::api::{Parent, PluginName, v1};
use crate::daemon::service::{SharedNode, Whose};
use crate::model::{DigestError, SpecError};

/// Longest component, in bytes, as the public contract says.
pub(super) const MAX_COMPONENT_LEN: usize = 16 << 20;

pub(super) struct PluginRpc {
    node: SharedNode,
    audit: Arc<Audit>,
}

impl PluginRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { node, audit }
    }
}

#[tonic::async_trait]
impl PluginService for PluginRpc {
    async fn load_plugin(
        &self,
        request: Request<Streaming<v1::LoadPluginRequest>>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|request| request.part);
        let Some(Part::Header(Header { name, settings })) = first else {
            return Err(bad("header", "the first request must carry the header"));
        };
        let PluginName { scope, plugin } = PluginName::parse(&name).map_err(|error| status::bad_field(&error))?;
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
        let node = Arc::clone(&self.node);
        let settings = settings.into_iter().collect();
        let change = Change::new(&principal, "LoadPlugin", name);
        let work = async move { node.load_plugin(&principal, scope, plugin, component, settings).await };
        let view = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::plugin(&view)))
    }

    async fn roll_back_plugin(
        &self,
        request: Request<v1::RollBackPluginRequest>,
    ) -> Result<Response<v1::Plugin>, Status> {
        let principal = caller(request.extensions())?;
        let v1::RollBackPluginRequest { name, digest } = request.into_inner();
        let PluginName { scope, plugin } = PluginName::parse(&name).map_err(|error| status::bad_field(&error))?;
        let digest = Some(digest).filter(|digest| !digest.is_empty()).map(|digest| digest.parse());
        let digest = digest.transpose().map_err(|error: DigestError| bad("digest", &error.to_string()))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "RollBackPlugin", name);
        let work = async move { node.roll_back_plugin(&principal, scope, plugin, digest).await };
        let view = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::plugin(&view)))
    }

    async fn unload_plugin(
        &self,
        request: Request<v1::UnloadPluginRequest>,
    ) -> Result<Response<v1::UnloadPluginResponse>, Status> {
        let principal = caller(request.extensions())?;
        let v1::UnloadPluginRequest { name, force } = request.into_inner();
        let PluginName { scope, plugin } = PluginName::parse(&name).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "UnloadPlugin", name);
        let work = async move { node.unload_plugin(&principal, scope, plugin, force).await };
        audited(&self.audit, change, work).await?;
        Ok(Response::new(v1::UnloadPluginResponse {}))
    }

    async fn list_plugins(
        &self,
        request: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let whose = match Parent::parse(&request.get_ref().parent).map_err(|error| status::bad_field(&error))? {
            Parent::Own => Some(Whose::Own),
            Parent::All => Some(Whose::All),
            Parent::Tenant(tenant) => Some(Whose::Tenant(tenant)),
            Parent::Operator => None,
        };
        let views = self.node.list_plugins(&principal, whose.as_ref()).map_err(|error| status::of(&error))?;
        Ok(Response::new(v1::ListPluginsResponse { plugins: views.iter().map(encode::plugin_status).collect() }))
    }
}

fn bad(field: &str, reason: &str) -> Status {
    status::bad_field(&SpecError::new(field, reason))
}
