//! Whether a chain has room for a plugin, and its owner for the component and the machine code. Key functions:
//! `Node::require_room`, `Node::require_memory`, `Node::require_size`.
//!
//! The policy host runs the plugins of all tenants in one address space: what one of them may fill there has a limit, so that
//! the others' loads do not fail. What counts is what that process holds for longer than a call: the code of plugins that are
//! bound, and of their canaries. Versions that are merely kept, under an alias or for going back, are files.

use std::collections::BTreeMap;

use super::plugins::{PluginView, Plugins};
use super::{Node, ServiceError};
use crate::daemon::policy::LoadError;
use crate::daemon::tenants::Use;
use crate::model::{PluginId, PolicyScope};

/// Plugins of one chain's owner: each is asked in each decision, and stands in its record.
const MAX_PLUGINS: u64 = 16;
const MIB: u64 = 1 << 20;

impl PluginView {
    /// Numbers and sizes of the machine code that it has in the policy host.
    fn codes(&self) -> impl Iterator<Item = (u64, u64)> {
        let canary = self.canary.as_ref().and_then(|canary| canary.plugin.machine_code());
        self.plugin.machine_code().into_iter().chain(canary)
    }
}

impl Plugins {
    /// How many are bound in `scope`; a canary is one more.
    pub(super) fn count(&self, scope: &PolicyScope) -> u64 {
        let table = self.table();
        let bound = table.iter().filter(|((bound, _), _)| bound == scope);
        bound.map(|(_, view)| 1 + u64::from(view.canary.is_some())).sum()
    }

    /// Machine code of the plugins in `scope`, with `next` in the place of what has its name, in MiB, rounded up. What several
    /// share counts once.
    pub(super) fn code_mib(&self, scope: &PolicyScope, next: Option<&PluginView>) -> u64 {
        let table = self.table();
        let is_replaced = |name: &PluginId| next.is_some_and(|next| next.record.name == *name);
        let stay = table.iter().filter(|((bound, name), _)| bound == scope && !is_replaced(name));
        let codes: BTreeMap<_, _> = stay.map(|(_, view)| view).chain(next).flat_map(PluginView::codes).collect();
        codes.into_values().fold(0, u64::saturating_add).div_ceil(MIB)
    }
}

impl Node {
    /// That the chain, and its owner's quota, have room for one plugin more. The caller has the turn.
    pub(super) fn require_room(&self, scope: &PolicyScope) -> Result<(), ServiceError> {
        if self.plugins.count(scope) >= MAX_PLUGINS {
            return Err(ServiceError::TooManyPlugins { limit: MAX_PLUGINS });
        }
        match scope {
            PolicyScope::Operator => Ok(()),
            PolicyScope::Tenant(tenant) => self.charge(tenant, &Use { plugins: 1, ..Use::default() }),
        }
    }

    /// That its owner's quota has room for the machine code of `next`, which is about to be bound. The operator's own has no
    /// limit but the policy host's. The caller has the turn.
    pub(super) fn require_memory(&self, next: &PluginView) -> Result<(), ServiceError> {
        let scope = &next.record.scope;
        let PolicyScope::Tenant(tenant) = scope else { return Ok(()) };
        let (used, wanted) = (self.plugins.code_mib(scope, None), self.plugins.code_mib(scope, Some(next)));
        self.charge(tenant, &Use { plugin_memory_mib: wanted.saturating_sub(used), ..Use::default() })
    }

    /// That its owner may have a component of so many bytes. The node's own limit is the policy host's.
    pub(super) fn require_size(&self, scope: &PolicyScope, size_bytes: usize) -> Result<(), ServiceError> {
        let PolicyScope::Tenant(tenant) = scope else { return Ok(()) };
        let Some(limit) = self.tenants.tenants.borrow().quota(tenant).plugin_size_mib else { return Ok(()) };
        let limit_bytes = usize::try_from(limit.saturating_mul(MIB)).unwrap_or(usize::MAX);
        if size_bytes <= limit_bytes {
            return Ok(());
        }
        Err(ServiceError::Plugin { scope: scope.clone(), source: LoadError::TooLarge { size_bytes, limit_bytes } })
    }
}
