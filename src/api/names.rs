//! Resource names of the public contract. Key types: [`VmRef`], [`Parent`], [`PluginName`].
//!
//! `daemon/rpc` reads them from requests and writes them into responses; `cli` builds them from what a user typed.
//!
//! ```text
//! VmRef       tenants/{tenant}/vms/{vm}
//! Parent      "" (the caller's own) | tenants/- (all) | tenants/{tenant} | operator (plugins only)
//! PluginName  operator/plugins/{plugin} | tenants/{tenant}/plugins/{plugin}
//! DecisionId  tenants/{tenant}/decisions/{sequence}
//! operation   tenants/{tenant}/operations/{id} | operations/{id} (the host's)
//! ```

use std::fmt;
use std::str::FromStr;

use crate::model::{DecisionId, IdError, PluginId, PolicyScope, SpecError, TenantId, VmName};

/// A VM, named across tenants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmRef {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name within the tenant.
    pub vm: VmName,
}

impl VmRef {
    /// Reads `tenants/{tenant}/vms/{vm}`; the error's field is `name`.
    pub fn parse(name: &str) -> Result<Self, SpecError> {
        match name.split('/').collect::<Vec<_>>()[..] {
            ["tenants", tenant, "vms", vm] => Ok(Self { tenant: label(tenant)?, vm: label(vm)? }),
            _ => Err(malformed(name, "tenants/{tenant}/vms/{vm}")),
        }
    }
}

impl fmt::Display for VmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenants/{}/vms/{}", self.tenant, self.vm)
    }
}

/// Whose resources a List or a Watch is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The caller's own; for an operator, all.
    Own,
    /// Every tenant's (`tenants/-`): operators only.
    All,
    /// One tenant's.
    Tenant(TenantId),
    /// The operator's own chain of plugins; no VMs live there.
    Operator,
}

impl Parent {
    /// Reads the parent of a list; the error's field is `parent`.
    pub fn parse(parent: &str) -> Result<Self, SpecError> {
        match parent.split('/').collect::<Vec<_>>()[..] {
            [""] => Ok(Self::Own),
            ["operator"] => Ok(Self::Operator),
            ["tenants", "-"] => Ok(Self::All),
            ["tenants", tenant] => {
                tenant.parse().map(Self::Tenant).map_err(|e: IdError| SpecError::new("parent", e.to_string()))
            }
            _ => Err(SpecError::new(
                "parent",
                format!("{:?} is not of the form tenants/{{tenant}} or tenants/-", shorten(parent)),
            )),
        }
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => Ok(()),
            Self::All => f.write_str("tenants/-"),
            Self::Tenant(tenant) => write!(f, "tenants/{tenant}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// A plugin bound in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginName {
    /// Whose chain it is in.
    pub scope: PolicyScope,
    /// Its name within that chain.
    pub plugin: PluginId,
}

impl PluginName {
    /// Reads `operator/plugins/{plugin}` or `tenants/{tenant}/plugins/{plugin}`; the error's field is `name`.
    pub fn parse(name: &str) -> Result<Self, SpecError> {
        match name.split('/').collect::<Vec<_>>()[..] {
            ["operator", "plugins", plugin] => Ok(Self { scope: PolicyScope::Operator, plugin: label(plugin)? }),
            ["tenants", tenant, "plugins", plugin] => {
                Ok(Self { scope: PolicyScope::Tenant(label(tenant)?), plugin: label(plugin)? })
            }
            _ => Err(malformed(name, "operator/plugins/{plugin} or tenants/{tenant}/plugins/{plugin}")),
        }
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/plugins/{}", scope_name(&self.scope), self.plugin)
    }
}

/// A decision on record: `tenants/{tenant}/decisions/{sequence}`.
pub fn decision_name(id: &DecisionId) -> String {
    format!("tenants/{}/decisions/{}", id.tenant, id.sequence)
}

/// Reads what [`decision_name`] writes; the error's field is `name`.
pub fn parse_decision_name(name: &str) -> Result<DecisionId, SpecError> {
    let malformed = || malformed(name, "tenants/{tenant}/decisions/{sequence}");
    match name.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "decisions", number] => {
            let sequence = number.parse().map_err(|_| malformed())?;
            let id = DecisionId { tenant: label(tenant)?, sequence };
            // One name for each: no signs, no leading zeros.
            if id.sequence.to_string() == number { Ok(id) } else { Err(malformed()) }
        }
        _ => Err(malformed()),
    }
}

/// The forms that an operation's name may have.
const OPERATION_FORM: &str = "tenants/{tenant}/operations/{ulid} or operations/{ulid}";

/// Reads `tenants/{tenant}/operations/{id}`, or `operations/{id}` of the host: whose, and its id. The error's field is `name`.
pub fn parse_operation_name(name: &str) -> Result<(Option<TenantId>, String), SpecError> {
    let (owner, id) = match name.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "operations", id] => (Some(label(tenant)?), id),
        ["operations", id] => (None, id),
        _ => return Err(malformed(name, OPERATION_FORM)),
    };
    // A ULID: 26 digits and upper-case letters.
    let is_id = id.len() == 26 && id.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    if is_id { Ok((owner, id.to_owned())) } else { Err(malformed(name, OPERATION_FORM)) }
}

/// A chain's owner as the API names it: `operator` or `tenants/{tenant}`.
pub fn scope_name(scope: &PolicyScope) -> String {
    match scope {
        PolicyScope::Operator => "operator".to_owned(),
        PolicyScope::Tenant(tenant) => format!("tenants/{tenant}"),
    }
}

fn label<T: FromStr<Err = IdError>>(text: &str) -> Result<T, SpecError> {
    text.parse().map_err(|error: IdError| SpecError::new("name", bounded_reason(text, &error)))
}

/// The error's text, without repeating a name that is long.
fn bounded_reason(text: &str, error: &IdError) -> String {
    match error {
        IdError::Empty | IdError::NotAnId { .. } | IdError::NotAUuid | IdError::BadCharacter { .. } => {
            error.to_string()
        }
        IdError::TooLong { .. } => format!("{error}: {:?}", shorten(text)),
    }
}

fn malformed(name: &str, form: &str) -> SpecError {
    SpecError::new("name", format!("{:?} is not of the form {form}", shorten(name)))
}

/// At most 40 characters of a refused text: the error goes into logs and terminals.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_it_writes() {
        for name in ["tenants/acme/vms/web", "tenants/a/vms/0"] {
            assert_eq!(VmRef::parse(name).unwrap().to_string(), name);
        }
        for name in ["operator/plugins/admission", "tenants/acme/plugins/p-1"] {
            assert_eq!(PluginName::parse(name).unwrap().to_string(), name);
        }
        for parent in ["", "tenants/-", "tenants/acme", "operator"] {
            assert_eq!(Parent::parse(parent).unwrap().to_string(), parent);
        }
    }

    #[test]
    fn refuses_other_forms_and_says_which_is_right() {
        for name in ["", "web", "tenants/acme", "tenants/acme/vms/", "tenants/acme/vms/a/b", "/tenants/acme/vms/a"] {
            let error = VmRef::parse(name).unwrap_err();
            assert_eq!(error.field, "name");
        }
        assert!(VmRef::parse("web").unwrap_err().reason.contains("tenants/{tenant}/vms/{vm}"));
        assert!(VmRef::parse("tenants/-/vms/web").is_err());
        assert!(Parent::parse("tenants/").is_err());
        assert!(Parent::parse("acme").unwrap_err().reason.contains("tenants/-"));
        assert!(PluginName::parse("tenants/acme/vms/web").is_err());
        assert_eq!(parse_decision_name("tenants/acme/decisions/7").unwrap().to_string(), "acme/7");
        for name in ["tenants/acme/decisions/07", "tenants/acme/decisions/+7", "tenants/acme/decisions/", "acme/7"] {
            assert!(parse_decision_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_operation_is_a_tenant_s_or_the_host_s() {
        let id = "01M86QW9WBP2NZC87A485E1H8E";
        let own = parse_operation_name(&format!("tenants/acme/operations/{id}")).unwrap();
        assert_eq!(own, (Some("acme".parse().unwrap()), id.to_owned()));
        assert_eq!(parse_operation_name(&format!("operations/{id}")).unwrap(), (None, id.to_owned()));
        for name in ["", id, "operations/", "operations/7", "tenants/-/operations/01M86QW9WBP2NZC87A485E1H8E"] {
            assert_eq!(parse_operation_name(name).unwrap_err().field, "name", "{name}");
        }
    }

    #[test]
    fn does_not_repeat_a_name_without_end() {
        let error = VmRef::parse(&format!("tenants/acme/vms/{}", "x".repeat(300))).unwrap_err();
        assert!(error.reason.contains("300 bytes"), "{error}");
        assert!(error.reason.len() < 200);
    }

    proptest! {
        #[test]
        fn never_panics_and_what_it_accepts_round_trips(text in "((tenants|operator|vms|plugins)?/?(-|[a-z0-9-]{0,4}|é)?/?(vms|plugins)?/?[a-zA-Z0-9-]{0,4}|\\PC{0,30})") {
            if let Ok(name) = VmRef::parse(&text) {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Ok(name) = PluginName::parse(&text) {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Ok(id) = parse_decision_name(&text) {
                prop_assert_eq!(decision_name(&id), text.clone());
            }
            if let Ok(parent) = Parent::parse(&text) {
                prop_assert_eq!(parent.to_string(), text);
            }
        }
    }
}
