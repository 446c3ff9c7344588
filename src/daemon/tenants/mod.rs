//! Who belongs to which tenant, as what, how much each may have, and who signs its plugins: the operator's file
//! `tenants.toml`. Key types: [`Tenants`], [`Quota`], [`Use`], [`ChainSigners`].
//!
//! ```text
//!   SPIFFE id ── [[members]] of the file, else the path: /tenant/<name>, /operator/<name> ──▶ Identity
//!   tenant    ── [tenants.<name>], else [defaults] ──▶ Quota
//! ```
//!
//! Pure but for [`follow`], which reads the file anew when it changes. Nothing is counted here: what is in use is worked
//! out from the store each time, so that it cannot drift.

mod follow;
mod signers;

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::daemon::authn::{AuthnError, Identity, Principal, parse_spiffe_id};
use crate::model::{PolicyScope, TenantId, VmSpec};
pub use follow::{Followed, TenantsFileError, follow};
pub use signers::{ChainSigners, Unsigned};
use signers::{Keys, Signers};

/// Longest file, in bytes.
const MAX_FILE_LEN: usize = 4 << 20;
/// Machine code of a tenant's plugins, in MiB, where the file says nothing: two plugins with an interpreter (46 MiB with one
/// of JavaScript, 41 with one of Python) and a version of the latter that is tried beside them, or some hundreds in Rust. All
/// tenants share the 2 GiB of the policy host, which a dozen can fill so, and not two.
const DEFAULT_PLUGIN_MEMORY_MIB: u64 = 128;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tenants {
    members: HashMap<String, Principal>,
    quotas: BTreeMap<TenantId, Quota>,
    defaults: Quota,
    signers: Signers,
    /// Of every identity.
    pub limits: Limits,
}

/// The most that a tenant may have of each; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Registered VMs.
    pub vms: Option<u64>,
    /// Their vCPUs, added up.
    pub vcpus: Option<u64>,
    /// Their memory in MiB, added up.
    pub memory_mib: Option<u64>,
    /// Their disks.
    pub disks: Option<u64>,
    /// Devices of the host that they may be given.
    pub devices: Option<u64>,
    /// Policy plugins.
    pub plugins: Option<u64>,
    /// Their machine code in MiB, added up.
    pub plugin_memory_mib: u64,
    /// The component of each, in MiB; `None`: the node's own limit.
    pub plugin_size_mib: Option<u64>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            vms: None,
            vcpus: None,
            memory_mib: None,
            disks: None,
            devices: None,
            plugins: None,
            plugin_memory_mib: DEFAULT_PLUGIN_MEMORY_MIB,
            plugin_size_mib: None,
        }
    }
}

/// What a tenant has, or asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "as in Quota")]
pub struct Use {
    pub vms: u64,
    pub vcpus: u64,
    pub memory_mib: u64,
    pub disks: u64,
    pub devices: u64,
    pub plugins: u64,
    pub plugin_memory_mib: u64,
}

/// A quota that would not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// As the API names it: `memory_mib`.
    pub resource: &'static str,
    /// The most that is allowed.
    pub limit: u64,
    /// In use already.
    pub used: u64,
    /// Asked for beside that.
    pub asked: u64,
}

/// Bounds of what one identity may do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Calls per second, in the long run; at least 1.
    pub requests_per_second: u32,
    /// Calls at once after a pause; at least 1.
    pub burst: u32,
    /// Connections at the same time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_second: 1000, burst: 2000, connections: 64 }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    signers: BTreeMap<String, String>,
    #[serde(default)]
    operator: OperatorSection,
    #[serde(default)]
    defaults: TenantSection,
    #[serde(default)]
    tenants: BTreeMap<String, TenantSection>,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct OperatorSection {
    required_signers: Option<signers::Written>,
}

/// As in [`Quota`], and whose signatures the tenant's plugins must bear. It repeats the quota's fields, for serde can
/// either flatten or refuse what it does not know, not both.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct TenantSection {
    vms: Option<u64>,
    vcpus: Option<u64>,
    memory_mib: Option<u64>,
    disks: Option<u64>,
    devices: Option<u64>,
    plugins: Option<u64>,
    plugin_memory_mib: Option<u64>,
    plugin_size_mib: Option<u64>,
    required_signers: Option<signers::Written>,
}

impl TenantSection {
    /// The quota, and whose signatures. What protects the node from a tenant's plugins is that of `defaults` where the section
    /// says nothing of it.
    fn split(self, defaults: &Quota) -> (Quota, Option<signers::Written>) {
        let Self { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib, plugin_size_mib, .. } = self;
        let plugin_memory_mib = plugin_memory_mib.unwrap_or(defaults.plugin_memory_mib);
        let plugin_size_mib = plugin_size_mib.or(defaults.plugin_size_mib);
        let quota = Quota { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib, plugin_size_mib };
        (quota, self.required_signers)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Member {
    id: String,
    tenant: Option<String>,
    role: Role,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    Operator,
    Admin,
    Viewer,
}

impl Tenants {
    /// Reads the file's text; the error says where it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_FILE_LEN {
            return Err(format!("{} bytes, at most {MAX_FILE_LEN} are allowed", text.len()));
        }
        let Written { signers, operator, defaults, tenants, members, limits } =
            toml::from_str(text).map_err(|error| error.to_string().trim().replace('\n', " "))?;
        if limits.requests_per_second == 0 || limits.burst == 0 || limits.connections == 0 {
            return Err("[limits]: requests-per-second, burst and connections are at least 1".to_owned());
        }
        let (defaults, signers_of_all) = defaults.split(&Quota::default());
        let (mut quotas, mut signers_of) = (BTreeMap::new(), Vec::new());
        for (name, section) in tenants {
            let tenant: TenantId = name.parse().map_err(|error| format!("[tenants.{name:?}]: {error}"))?;
            let (quota, signers) = section.split(&defaults);
            signers_of.extend(signers.map(|signers| (tenant.clone(), signers)));
            quotas.insert(tenant, quota);
        }
        let keys = Keys::parse(signers)?;
        let signers = Signers::new(&keys, operator.required_signers, signers_of_all, signers_of)?;
        let mut known = HashMap::new();
        for member in members {
            let principal = member.principal()?;
            if known.insert(member.id.clone(), principal).is_some() {
                return Err(format!("[[members]]: {:?} is there twice", member.id));
            }
        }
        Ok(Self { members: known, quotas, defaults, signers, limits })
    }

    /// Whom the id of a verified certificate names within `trust_domain`.
    pub fn identify(&self, id: &str, trust_domain: &str) -> Result<Identity, AuthnError> {
        match self.members.get(id) {
            Some(principal) => Ok(Identity { principal: principal.clone(), member: Some(id.to_owned()) }),
            None => Ok(Identity { principal: parse_spiffe_id(id, trust_domain)?, member: None }),
        }
    }

    /// The most that `tenant` may have.
    pub fn quota(&self, tenant: &TenantId) -> Quota {
        self.quotas.get(tenant).copied().unwrap_or(self.defaults)
    }

    /// Whose signatures plugins in the chain of `scope` must bear.
    pub fn signers(&self, scope: &PolicyScope) -> &ChainSigners {
        self.signers.of(scope)
    }

    /// Tenants that the file names.
    pub fn named(&self) -> impl Iterator<Item = &TenantId> {
        let members = self.members.values().filter_map(Principal::tenant);
        self.quotas.keys().chain(members)
    }
}

impl Member {
    fn principal(&self) -> Result<Principal, String> {
        if !self.id.starts_with("spiffe://") || self.id.len() > 2048 {
            return Err(format!("[[members]]: {:?} is no SPIFFE id: spiffe://<trust domain>/<path>", self.id));
        }
        let tenant = self.tenant.as_ref().map(|tenant| {
            tenant.parse::<TenantId>().map_err(|error| format!("[[members]]: the tenant of {:?}: {error}", self.id))
        });
        match (self.role, tenant.transpose()?) {
            (Role::Admin, Some(tenant)) => Ok(Principal::Tenant(tenant)),
            (Role::Viewer, Some(tenant)) => Ok(Principal::Viewer(tenant)),
            (Role::Operator, None) => {
                // For the audit log, which names the whole id beside it.
                let last = self.id.rsplit('/').next().and_then(|name| name.parse().ok());
                last.map(Principal::Operator).ok_or_else(|| {
                    format!(
                        "[[members]]: the last part of an operator's id must be a name of a-z, 0-9 and -: {:?}",
                        self.id
                    )
                })
            }
            (Role::Operator, Some(_)) => Err(format!("[[members]]: {:?}: an operator has no tenant", self.id)),
            (Role::Admin | Role::Viewer, None) => Err(format!("[[members]]: {:?} has no tenant", self.id)),
        }
    }
}

impl Use {
    /// What a VM of this spec counts for.
    pub fn of_vm(spec: &VmSpec) -> Self {
        let count = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
        Self {
            vms: 1,
            vcpus: spec.vcpus().into(),
            memory_mib: spec.memory_mib(),
            disks: count(spec.disks().len()),
            devices: count(spec.nics().iter().filter(|nic| nic.vf_wish().is_some()).count() + spec.nvmes().len()),
            plugins: 0,
            plugin_memory_mib: 0,
        }
    }

    /// What this is more than `other`.
    #[must_use]
    pub fn beyond(self, other: Self) -> Self {
        Self {
            vms: self.vms.saturating_sub(other.vms),
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disks: self.disks.saturating_sub(other.disks),
            devices: self.devices.saturating_sub(other.devices),
            plugins: self.plugins.saturating_sub(other.plugins),
            plugin_memory_mib: self.plugin_memory_mib.saturating_sub(other.plugin_memory_mib),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vms: self.vms.saturating_add(other.vms),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disks: self.disks.saturating_add(other.disks),
            devices: self.devices.saturating_add(other.devices),
            plugins: self.plugins.saturating_add(other.plugins),
            plugin_memory_mib: self.plugin_memory_mib.saturating_add(other.plugin_memory_mib),
        }
    }
}

impl Quota {
    /// Whether `asked` may be had beside `used`: every limit that would be exceeded. What is not asked for is not
    /// looked at: a quota that was lowered below what is in use takes nothing away.
    pub fn check(&self, used: &Use, asked: &Use) -> Vec<Exceeded> {
        let rows = [
            ("vms", self.vms, used.vms, asked.vms),
            ("vcpus", self.vcpus, used.vcpus, asked.vcpus),
            ("memory_mib", self.memory_mib, used.memory_mib, asked.memory_mib),
            ("disks", self.disks, used.disks, asked.disks),
            ("devices", self.devices, used.devices, asked.devices),
            ("plugins", self.plugins, used.plugins, asked.plugins),
            ("plugin_memory_mib", Some(self.plugin_memory_mib), used.plugin_memory_mib, asked.plugin_memory_mib),
        ];
        let exceeded = rows.into_iter().filter_map(|(resource, limit, used, asked)| {
            let limit = limit.filter(|limit| asked > 0 && used.saturating_add(asked) > *limit)?;
            Some(Exceeded { resource, limit, used, asked })
        });
        exceeded.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = r#"
        [defaults]
        vms = 3
        [tenants.acme]
        vms = 1
        memory-mib = 512
        [tenants.globex]
        plugin-memory-mib = 64
        plugin-size-mib = 2
        [[members]]
        id = "spiffe://elsewhere.example/ci/build"
        tenant = "acme"
        role = "viewer"
        [[members]]
        id = "spiffe://ostler.local/tenant/globex"
        tenant = "acme"
        role = "admin"
        [[members]]
        id = "spiffe://ostler.local/people/alice"
        role = "operator"
        [limits]
        burst = 5
    "#;

    #[test]
    fn members_come_before_the_convention() {
        let tenants = Tenants::parse(FILE).unwrap();
        let who = |id: &str| tenants.identify(id, "ostler.local").map(|identity| identity.to_string());
        assert_eq!(who("spiffe://ostler.local/tenant/acme").unwrap(), "tenant/acme");
        assert_eq!(
            who("spiffe://ostler.local/tenant/globex").unwrap(),
            "tenant/acme as spiffe://ostler.local/tenant/globex"
        );
        let viewer = "viewer/acme as spiffe://elsewhere.example/ci/build";
        assert_eq!(who("spiffe://elsewhere.example/ci/build").unwrap(), viewer);
        assert!(who("spiffe://ostler.local/people/alice").unwrap().starts_with("operator/alice as"));
        assert!(who("spiffe://elsewhere.example/tenant/acme").is_err());
        let quota = |name: &str| tenants.quota(&name.parse().unwrap());
        assert_eq!((quota("acme").vms, quota("acme").memory_mib, quota("other").vms), (Some(1), Some(512), Some(3)));
        // Whether or not there is a section: machine code is bounded where nothing is said of it.
        let plugins = |name: &str| (quota(name).plugin_memory_mib, quota(name).plugin_size_mib);
        assert_eq!((plugins("acme"), plugins("other"), plugins("globex")), ((128, None), (128, None), (64, Some(2))));
        let low = Tenants::parse("[defaults]\nplugin-memory-mib = 32\nplugin-size-mib = 1\n[tenants.acme]\nvms = 1\n")
            .unwrap();
        let acme = low.quota(&"acme".parse().unwrap());
        assert_eq!((acme.vms, acme.plugin_memory_mib, acme.plugin_size_mib), (Some(1), 32, Some(1)));
        assert_eq!((tenants.limits.burst, tenants.limits.connections), (5, 64));
        assert_eq!(Tenants::parse("").unwrap(), Tenants::default());
    }

    /// Public keys, as `openssl pkey -pubout` writes them between its lines.
    const KEYS: [&str; 2] = [
        "MCowBQYDK2VwAyEA3wspJS/fkDgWWFc/ZyCDDKOYN4tO9HTKyDPCgKZr4N0=",
        "MCowBQYDK2VwAyEA3wspJS/fkDgWWFc/ZyCDDKOYN4tO9HTKyDPCgKZr4N4=",
    ];

    #[test]
    fn signers_are_the_chains_own_or_those_of_all_tenants() {
        let [release, acme] = KEYS;
        let text = format!(
            "[signers]\nacme = \"{acme}\"\nrelease = \"\"\"-----BEGIN PUBLIC KEY-----\n{release}\n-----END PUBLIC KEY-----\"\"\"\n\
             [operator]\nrequired-signers = [\"release\"]\n[defaults]\nvms = 2\nrequired-signers = [\"release\"]\n\
             [tenants.acme]\nrequired-signers = [\"acme\", \"release\"]\n\
             [tenants.globex]\nvms = 1\n[tenants.free]\nrequired-signers = []\n"
        );
        let tenants = Tenants::parse(&text).unwrap();
        let of = |scope: PolicyScope| {
            tenants.signers(&scope).iter().map(|(name, key)| (name.to_string(), key.to_string())).collect::<Vec<_>>()
        };
        let tenant = |name: &str| of(PolicyScope::Tenant(name.parse().unwrap()));
        let (release, acme) = (("release".to_owned(), release.to_owned()), ("acme".to_owned(), acme.to_owned()));
        assert_eq!(of(PolicyScope::Operator), std::slice::from_ref(&release));
        assert_eq!(tenant("acme"), [acme, release.clone()]);
        // A quota of its own lifts nothing, a list of its own does.
        assert_eq!((tenant("globex"), tenant("other")), (vec![release.clone()], vec![release]));
        assert_eq!(tenant("free"), []);
        assert_eq!(Tenants::default().signers(&PolicyScope::Operator), &ChainSigners::default());
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        let member = |rest: &str| format!("[[members]]\nid = \"spiffe://a/b\"\n{rest}");
        for (text, part) in [
            ("[tenants.acme]\nvm = 1".to_owned(), "unknown field"),
            ("[tenants.acme]\nvms = -1".to_owned(), "vms"),
            ("[tenants.Acme]\nvms = 1".to_owned(), "Acme"),
            ("[quotas]".to_owned(), "unknown field"),
            ("[signers]\nci = \"MCow\"".to_owned(), "\"ci\": this is no public Ed25519 key"),
            (format!("[signers]\n\"C I\" = {:?}", KEYS[0]), "C I"),
            (format!("[signers]\na = {:?}\nb = {:?}", KEYS[0], KEYS[0]), "\"b\" has the key of \"a\""),
            (
                "[operator]\nrequired-signers = [\"ci\"]".to_owned(),
                "[operator]: required-signers: \"ci\" is not in [signers]",
            ),
            ("[tenants.acme]\nrequired-signers = [\"ci\"]".to_owned(), "[tenants.acme]: required-signers"),
            ("[defaults]\nrequired-signers = \"ci\"".to_owned(), "invalid type"),
            ("[operator]\nvms = 1".to_owned(), "unknown field"),
            ("[limits]\nburst = 0".to_owned(), "at least 1"),
            ("[limits".to_owned(), "line"),
            (member("role = \"admin\""), "has no tenant"),
            (member("role = \"operator\"\ntenant = \"acme\""), "an operator has no tenant"),
            (member("role = \"root\""), "unknown variant"),
            (member("role = \"viewer\"\ntenant = \"A B\""), "the tenant of"),
            ("[[members]]\nid = \"alice\"\nrole = \"operator\"".to_owned(), "is no SPIFFE id"),
            (["", ""].map(|_| member("role = \"admin\"\ntenant = \"acme\"")).join("\n"), "there twice"),
        ] {
            let error = Tenants::parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    fn any_use() -> impl Strategy<Value = Use> {
        (0u64..3, 0u64..9, 0u64..999, 0u64..4, 0u64..3, 0u64..3, 0u64..99).prop_map(
            |(vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib)| Use {
                vms,
                vcpus,
                memory_mib,
                disks,
                devices,
                plugins,
                plugin_memory_mib,
            },
        )
    }

    proptest! {
        /// A model that counts: whatever is asked for and given back in whatever order, nothing is ever above its limit,
        /// nothing is refused that would fit, and all that is given back can be had again.
        #[test]
        fn charges_and_releases_exactly(
            limit in any_use(),
            steps in prop::collection::vec((any_use(), any::<bool>(), any::<prop::sample::Index>()), 0..40),
        ) {
            let quota = Quota {
                vms: Some(limit.vms * 4),
                vcpus: Some(limit.vcpus * 4),
                memory_mib: Some(limit.memory_mib * 4),
                disks: Some(limit.disks * 4),
                devices: Some(limit.devices * 4),
                plugins: None,
                plugin_memory_mib: limit.plugin_memory_mib * 4,
                plugin_size_mib: None,
            };
            let mut held: Vec<Use> = Vec::new();
            for (asked, is_release, which) in steps {
                if is_release && !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                    continue;
                }
                let used = held.iter().copied().fold(Use::default(), Use::plus);
                let sum = |of: fn(&Use) -> u64| held.iter().map(of).sum::<u64>() + of(&asked);
                let fits = |of: fn(&Use) -> u64, limit: Option<u64>| of(&asked) == 0 || limit.is_none_or(|l| sum(of) <= l);
                let is_wanted = fits(|u| u.vms, quota.vms)
                    && fits(|u| u.vcpus, quota.vcpus)
                    && fits(|u| u.memory_mib, quota.memory_mib)
                    && fits(|u| u.disks, quota.disks)
                    && fits(|u| u.devices, quota.devices)
                    && fits(|u| u.plugin_memory_mib, Some(quota.plugin_memory_mib));
                let exceeded = quota.check(&used, &asked);
                prop_assert_eq!(exceeded.is_empty(), is_wanted, "{:?}", exceeded);
                if exceeded.is_empty() {
                    held.push(asked);
                }
            }
        }

        #[test]
        fn never_panics_on_foreign_text(text in "\\PC{0,200}|(\\[|\\]|tenants|members|id|=|\"|\\.|\n| |[a-z0-9]){0,40}") {
            let _ = Tenants::parse(&text);
        }
    }
}
