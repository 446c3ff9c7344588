//! What is under way, and calling it off. Key functions: [`Node::list_operations`], [`Node::cancel_operation`].

use std::time::Duration;

use super::{Node, Principal, ServiceError, Ticket, Whose};
use crate::daemon::operation::{Operation, OperationName};

impl Node {
    /// An operation as it is now.
    pub fn get_operation(&self, principal: &Principal, name: &OperationName) -> Result<Operation, ServiceError> {
        may_see(principal, name)?;
        self.operations.get(name).ok_or(ServiceError::NoSuchOperation)
    }

    /// Operations of whom is asked for; those of the host only if everything is that the caller may see, and it is an
    /// operator.
    pub fn list_operations(&self, principal: &Principal, whose: &Whose) -> Result<Vec<Operation>, ServiceError> {
        let tenant = whose.resolve(principal)?;
        let is_everything = tenant.is_none() && *whose == Whose::Own;
        Ok(self.operations.list(|owner| match (owner, &tenant) {
            (None, _) => is_everything,
            (Some(_), None) => true,
            (Some(owner), Some(tenant)) => owner == tenant,
        }))
    }

    /// Waits for the end of an operation, for `patience` at most; how it stands then.
    pub async fn wait_operation(
        &self,
        principal: &Principal,
        name: &OperationName,
        patience: Duration,
    ) -> Result<Operation, ServiceError> {
        may_see(principal, name)?;
        self.operations.wait(name, patience).await.ok_or(ServiceError::NoSuchOperation)
    }

    /// Calls an operation off. How it stands then: under way still, if what it is at cannot be left at once.
    pub async fn cancel_operation(
        &self,
        principal: &Principal,
        name: &OperationName,
    ) -> Result<Operation, ServiceError> {
        if !principal.may_change() {
            return Err(ServiceError::RoleDenied);
        }
        may_see(principal, name)?;
        let cancelled = self.operations.cancel(name).await.ok_or(ServiceError::NoSuchOperation)?;
        let operation = cancelled?;
        tracing::info!(operation = %name, %principal, state = operation.state().name(), "called off");
        Ok(operation)
    }

    /// Waits until a call's work, or that of an earlier attempt of the same request, is under way; its name, unless it has
    /// ended already.
    pub async fn under_way(&self, ticket: &Ticket) -> Option<OperationName> {
        self.operations.under_way(ticket).await
    }
}

/// What the caller may not see is not there.
fn may_see(principal: &Principal, name: &OperationName) -> Result<(), ServiceError> {
    let may = match (&name.owner, principal) {
        (Some(tenant), principal) => principal.may_see(tenant),
        (None, Principal::Operator(_)) => true,
        (None, Principal::Tenant(_) | Principal::Viewer(_)) => false,
    };
    if may { Ok(()) } else { Err(ServiceError::NoSuchOperation) }
}
