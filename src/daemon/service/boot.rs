//! From a directory to a node that serves: opens the store, loads plugins, cleans devices, takes over VMs. Key function: [`Node::open`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::decisions;
use super::devices::HostDevices;
use super::holdings::Holdings;
use super::ledger::{Handles, Ledger};
use super::observers::Observers;
use super::plugins::Plugins;
use super::request::Requests;
use super::turns::Turns;
use super::{JailConfig, Node, Places};
use crate::daemon::crash::{self, Point};
use crate::daemon::inventory::{AddressPool, FIRST_USER, HostFacts, Network, USERS, UserPool, UsersExhausted};
use crate::daemon::operation::Operations;
use crate::daemon::policy::{
    CompilerConfig, HOST_GROUP, HostProgram, InventorySource, KvShelf, Limits, PolicyConfig, PolicyHost,
    PolicyStartError,
};
use crate::daemon::record::VmRecord;
use crate::daemon::store::{PluginRecord, Store, StoreError};
use crate::daemon::supervisor::{Devices, Jail, JailError, Supervisor};
use crate::daemon::tenants::{Followed, TenantsFileError, follow};

/// Why a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host.
    #[error("cannot read what this host has")]
    Facts(#[source] io::Error),
    /// The operator's file of tenants.
    #[error(transparent)]
    Tenants(#[from] TenantsFileError),
    /// Nothing to confine VMs with.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// VMs without a user of their own, and none to give them.
    #[error(transparent)]
    Users(#[from] UsersExhausted),
    /// Where compiled plugins are kept.
    #[error("cannot keep compiled plugins")]
    Compiler(#[source] io::Error),
    /// The policy host.
    #[error("cannot start the policy host")]
    Policy(#[from] PolicyStartError),
}

/// The policy host, as the user behind those of VMs and in a cgroup beside theirs.
fn start_policy(
    places: &Places,
    store: &Store,
    tenants: &Followed,
    first_user: u32,
    jail: Option<&Jail>,
) -> Result<PolicyHost, BootError> {
    let is_lenient = jail.is_none();
    let cgroup = jail.map(|jail| jail.make_policy(&HOST_GROUP)).transpose().map_err(JailError::Cgroup)?.map(Arc::new);
    let program = Path::new("/proc/self/exe");
    let compiler = CompilerConfig::in_dir(&places.data, program, is_lenient).map_err(BootError::Compiler)?;
    let user = first_user.saturating_add(USERS);
    let host = HostProgram { program: program.to_owned(), user, is_lenient, cgroup };
    // A unit test is not the program that has this role; `tests/policy_host.rs` runs the program.
    let host = (!cfg!(test)).then_some(host);
    let shelf = Some(Arc::new(store.clone()) as Arc<dyn KvShelf>);
    let holdings = Holdings { store: store.clone(), tenants: tenants.tenants.clone() };
    let inventory = Some(Arc::new(holdings) as Arc<dyn InventorySource>);
    let limits = Limits::default();
    Ok(PolicyHost::start(PolicyConfig { limits, compiler: Some(compiler), host, shelf, inventory })?)
}

/// The plugins that were loaded before; whose signers have changed meanwhile is told.
async fn restore_plugins(
    places: &Places,
    records: Vec<PluginRecord>,
    store: &Store,
    policy: &PolicyHost,
    tenants: &Followed,
) -> Arc<Plugins> {
    let plugins = Plugins::restore(&places.plugins(), records, store.clone(), policy.clone()).await;
    Arc::new(plugins.warned(&tenants.tenants.borrow()))
}

impl Node {
    /// Opens what a daemon before this one left in `places`, or begins anew. When it returns, every VM has its
    /// task again: what runs is taken over, what ended meanwhile is about to be told.
    ///
    /// Without `jail` vmm processes run with the daemon's own rights.
    pub async fn open(places: &Places, network: Network, jail: Option<&JailConfig>) -> Result<Self, BootError> {
        // First of all: a node that cannot confine VMs touches none.
        let first_user = jail.map_or(FIRST_USER, |jail| jail.first_user);
        let jail = jail.map(|jail| Jail::prepare(&jail.cgroup)).transpose()?;
        if jail.is_none() {
            tracing::warn!("VMs run without a jail: with the daemon's rights, and without limits");
        }
        let tenants = follow(&places.tenants())?;
        let path = places.store();
        let opened = tokio::task::spawn_blocking(move || Store::open(&path)).await;
        let (store, mut found) = opened.unwrap_or(Err(StoreError::Closed))?;
        let facts = HostFacts::read().map_err(BootError::Facts)?;
        let policy = start_policy(places, &store, &tenants, first_user, jail.as_ref())?;
        let plugins = restore_plugins(places, found.plugins, &store, &policy, &tenants).await;
        let devices = Arc::new(HostDevices::new(store.clone(), policy.clone(), Arc::clone(&plugins)));
        devices.reconcile(&found.vms, &found.provisions).await;
        crash::reach(Point::BootDevices);
        let taken = found.vms.iter().flat_map(|vm| vm.nics.iter().map(|nic| nic.subnet));
        let addresses = AddressPool::new(network, taken);
        let users = restore_users(first_user, &mut found.vms)?;
        let handles = Handles::default();
        let ledger = Ledger {
            store: store.clone(),
            addresses: addresses.clone(),
            users: users.clone(),
            handles: handles.clone(),
        };
        let files = places.files();
        let supervisor = Arc::new(Supervisor::new(
            files.clone(),
            &places.run,
            &places.data,
            places.vmm.path(),
            jail,
            Arc::new(ledger),
            Arc::clone(&devices) as Arc<dyn Devices>,
        ));
        supervisor.sweep(&found.vms.iter().map(|vm| vm.uid).collect::<Vec<_>>()).await;
        crash::reach(Point::BootSwept);
        resume(&supervisor, &handles, found.vms).await;
        crash::reach(Point::BootResumed);
        let observers = look_after(&store, &policy, &plugins);
        let (requests, operations) = (Requests::new(store.clone(), found.requests), Operations::default());
        requests.list_cut_off(&operations);
        Ok(Self {
            store,
            supervisor,
            handles,
            policy,
            plugins,
            observers,
            devices,
            files,
            facts,
            addresses,
            users,
            turns: Turns::default(),
            inspections: Turns::default(),
            replays: Arc::new(Semaphore::new(1)),
            repairs: Mutex::default(),
            data: places.data.clone(),
            requests,
            operations,
            tenants,
        })
    }

    /// Waits until everything that is known is on disk. The node is of no use afterwards; VMs run on.
    pub async fn close(&self) {
        self.store.close().await;
    }
}

/// The users of `vms`; those that were registered before a VM had one get theirs.
fn restore_users(first_user: u32, vms: &mut [VmRecord]) -> Result<UserPool, BootError> {
    let users = UserPool::new(first_user, vms.iter().map(|vm| vm.user).filter(|user| *user != 0));
    for vm in vms.iter_mut().filter(|vm| vm.user == 0) {
        let lease = users.lease()?;
        vm.user = lease.id();
        lease.commit();
    }
    Ok(users)
}

/// Begins what is done beside requests: old decisions go, and observers are told.
fn look_after(store: &Store, policy: &PolicyHost, plugins: &Arc<Plugins>) -> Arc<Observers> {
    tokio::spawn(decisions::sweep_hourly(store.clone()));
    let observers = Arc::new(Observers::new(store.clone(), policy.clone(), Arc::clone(plugins)));
    tokio::spawn(Arc::clone(&observers).run());
    observers
}

/// Gives every VM its task again.
async fn resume(supervisor: &Arc<Supervisor>, handles: &Handles, vms: Vec<VmRecord>) {
    let (mut resumed, count, begun) = (JoinSet::new(), vms.len(), Instant::now());
    for vm in vms {
        let (supervisor, handles) = (Arc::clone(supervisor), handles.clone());
        // The handle is in the table before the task can want to take it out again.
        resumed.spawn(async move { supervisor.resume(vm, |handle| handles.insert(handle)).await });
    }
    while resumed.join_next().await.is_some() {}
    tracing::info!(vms = count, took = ?begun.elapsed(), "VMs taken over");
}
