//! The placer with the real plugin on a host that is described in a directory. Needs `cargo xtask plugins`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::task::JoinSet;

use super::super::super::plugins::PluginView;
use super::*;
use crate::daemon::inventory::node_samples;
use crate::daemon::operation::Underway;
use crate::daemon::policy::{Limits, PolicyConfig};
use crate::daemon::record::samples;
use crate::daemon::store::{DecisionQuery, PluginRecord, StoredDecision};
use crate::model::{PluginId, PolicyScope};

/// Two nodes of four CPUs and 1 GiB each.
struct Bench {
    host: tempfile::TempDir,
    _data: tempfile::TempDir,
    placer: Arc<Placer>,
}

impl Bench {
    async fn new() -> Self {
        let (host, nodes) = node_samples::described(&[(1024, "0-3"), (1024, "4-7")]);
        let data = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&data.path().join("store.redb")).unwrap();
        // Threads, no process: this is not the program that has that role.
        let policy =
            PolicyHost::start(PolicyConfig { limits: Limits::unhurried(), ..PolicyConfig::default() }).unwrap();
        let plugins = Plugins::restore(data.path(), vec![], store.clone(), policy.clone()).await;
        let placer = Arc::new(Placer::new(store, policy, Arc::new(plugins), nodes));
        Self { host, _data: data, placer }
    }

    /// Binds a component.
    async fn bind(&self, component: &str, settings: &[(&str, &str)], scope: PolicyScope, mode: PluginMode) {
        let built = std::env::var_os("OSTLER_PLUGINS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plugins"), PathBuf::from);
        let path = built.join(format!("{component}.wasm"));
        let bytes =
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask plugins`", path.display()));
        let settings: BTreeMap<_, _> =
            settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let plugin = self.placer.policy.load(bytes, settings.clone()).await.unwrap();
        let record = PluginRecord {
            scope,
            name: component.parse::<PluginId>().unwrap(),
            digest: plugin.digest(),
            settings,
            signatures: vec![],
            grants: Default::default(),
            mode,
            weight: Default::default(),
            loaded: SystemTime::UNIX_EPOCH,
            previous: vec![],
            canary: None,
            aliases: Default::default(),
        };
        self.placer.plugins.bind(PluginView { record, plugin, canary: None });
    }

    async fn placing(settings: &[(&str, &str)]) -> Self {
        let bench = Self::new().await;
        bench.bind("placement", settings, PolicyScope::Operator, PluginMode::Enforced).await;
        bench
    }

    async fn place(&self, vm: &VmRecord) -> Result<Option<u32>, String> {
        let placed = self.placer.place(vm, &Underway::unseen()).await.map_err(|error| error.to_string())?;
        Ok(placed.map(|placed| {
            assert!(placed.decision.is_some());
            assert_eq!(placed.cpus.to_string(), ["0-3", "4-7"][placed.node as usize]);
            placed.node
        }))
    }

    /// Decisions on record, the first first.
    fn decisions(&self) -> Vec<StoredDecision> {
        let query = DecisionQuery { limit: 100, ..DecisionQuery::default() };
        let mut page = self.placer.store.chains().unwrap().page(&query).unwrap().decisions;
        page.reverse();
        page
    }
}

/// 2 vCPUs, 256 MiB, not started yet.
fn vm(name: &str) -> VmRecord {
    samples::running("acme", name)
}

#[tokio::test]
async fn without_a_plugin_that_has_a_say_nothing_is_asked_and_nothing_read() {
    let bench = Bench::new().await;
    std::fs::remove_dir_all(bench.host.path().join("devices")).unwrap();
    bench.bind("admission", &[], PolicyScope::Operator, PluginMode::Enforced).await;
    assert_eq!(bench.place(&vm("web")).await, Ok(None));
    assert_eq!(bench.placer.rehearse(&vm("web")).await, Ok(None));
    assert!(bench.decisions().is_empty());
    bench.bind("placement", &[], PolicyScope::Operator, PluginMode::Enforced).await;
    assert!(bench.place(&vm("web")).await.unwrap_err().contains("core.no-node"), "it is read then");
}

#[tokio::test]
async fn each_start_sees_those_before_it_and_an_end_makes_room() {
    for (mode, expected) in [("spread", [0, 1, 0, 1]), ("pack", [0, 0, 1, 0])] {
        let bench = Bench::placing(&[("mode", mode)]).await;
        let vms = ["a", "b", "c"].map(vm);
        let mut nodes = [0; 3];
        for (vm, node) in vms.iter().zip(&mut nodes) {
            let tried = bench.placer.rehearse(vm).await.unwrap().unwrap();
            *node = bench.place(vm).await.unwrap().unwrap();
            assert_eq!((tried.node, tried.decision), (*node, None), "{mode}");
        }
        // The third would have six vCPUs on four CPUs.
        assert_eq!(nodes, expected[..3], "{mode}");
        bench.placer.release(vms[1].uid);
        assert_eq!(bench.place(&vm("d")).await, Ok(Some(expected[3])), "{mode}");
        let decisions = bench.decisions();
        assert_eq!(decisions.len(), 4, "what is only tried is on no record");
        assert!(decisions.iter().all(|one| one.entry.hook == "place" && one.entry.subject.starts_with("vms/")));
    }
}

#[tokio::test]
async fn of_many_starts_at_once_no_node_is_given_more_than_it_has() {
    let bench = Bench::placing(&[]).await;
    node_samples::set_free(&bench.host, 0, 1024, 600);
    let mut starting = JoinSet::new();
    for number in 0..8 {
        let (placer, vm) = (Arc::clone(&bench.placer), samples::running(&format!("tenant{number}"), "web"));
        starting.spawn(async move { placer.place(&vm, &Underway::unseen()).await.map(|placed| placed.unwrap().node) });
    }
    let mut placed = [0; 2];
    let mut refused = 0;
    while let Some(result) = starting.join_next().await {
        match result.unwrap() {
            Ok(node) => placed[node as usize] += 1,
            Err(error) => {
                refused += 1;
                assert!(!error.0.contains("tenant"), "{error}");
            }
        }
    }
    // 600 MiB hold two, 1024 hold four.
    assert_eq!((placed, refused), ([2, 4], 2));
}

#[tokio::test]
async fn a_denial_names_plugin_and_code_and_a_shadow_s_opinion_places_nothing() {
    let bench = Bench::placing(&[("reserve-mib", "900")]).await;
    let error = bench.place(&vm("web")).await.unwrap_err();
    assert!(error.contains("policy plugin placement gives VM web no NUMA node"), "{error}");
    assert!(error.contains("(policy.no-candidate)") && error.contains("(memory.promised)"), "{error}");
    assert_eq!(bench.placer.rehearse(&vm("web")).await.unwrap_err().to_string(), error);
    let shadowed = Bench::new().await;
    shadowed.bind("placement", &[("reserve-mib", "900")], PolicyScope::Operator, PluginMode::Shadow).await;
    assert_eq!(shadowed.place(&vm("web")).await, Ok(None));
    std::fs::remove_dir_all(shadowed.host.path().join("devices")).unwrap();
    assert_eq!(shadowed.place(&vm("web")).await, Ok(None), "nor does it refuse what no node can hold");
    let [decision] = &shadowed.decisions()[..] else { panic!() };
    assert!(decision.entry.is_allowed() && decision.entry.answers.is_empty(), "{decision:?}");
    // A tenant's plugin alone is nobody who could choose.
    let own = Bench::new().await;
    own.bind("placement", &[], PolicyScope::Tenant("acme".parse().unwrap()), PluginMode::Enforced).await;
    assert!(own.place(&vm("web")).await.unwrap_err().contains("policy.no-opinion"));
    assert_eq!(own.place(&samples::running("globex", "web")).await, Ok(None));
}
