//! Plugins that see what the tenant has: the plugin `family`, and hostile ones.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::model::{
    DecisionEntry, DecisionId, Grant, InventoryUsage, InventoryView, InventoryVm, Said, ShadowAnswer, VmStage,
};

/// What tenants have, and how often somebody looked.
#[derive(Debug, Default)]
struct Tenants(Mutex<HashMap<TenantId, InventoryView>>, AtomicUsize);

impl InventorySource for Tenants {
    fn of(&self, tenant: &TenantId) -> InventoryView {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().get(tenant).cloned().unwrap_or_default()
    }
}

impl Tenants {
    /// `tenant` has running VMs of these names from now on.
    fn set<'a>(&self, tenant: &str, names: impl IntoIterator<Item = &'a str>) {
        let (state, memory_mib) = (VmStage::Running, 64);
        let vm = InventoryVm { state, vcpus: 1, memory_mib, numa_node: None, disks: 1, nics: 1, vfs: 0, nvmes: 0 };
        let vms = names.into_iter().map(|name| (name.parse().unwrap(), Some(vm))).collect();
        let mut table = self.0.lock().unwrap();
        let tenant = tenant.parse().unwrap();
        let revision = table.get(&tenant).map_or(0, |view| view.revision) + 1;
        table.insert(tenant, InventoryView::new(revision, InventoryUsage::default(), vms));
    }

    fn looks(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }
}

struct Bench {
    tenants: Arc<Tenants>,
    host: PolicyHost,
    open: LoadedPlugin,
    family: LoadedPlugin,
}

impl Bench {
    /// Two of a family are allowed.
    async fn new() -> Self {
        let tenants = Arc::<Tenants>::default();
        let inventory = Some(Arc::clone(&tenants) as Arc<dyn InventorySource>);
        let host = PolicyHost::start(PolicyConfig { inventory, ..config() }).unwrap();
        let (open, family) = (admission(&host, []).await, family(&host, "2").await);
        Self { tenants, host, open, family }
    }

    fn chain(&self) -> Arc<[Bound]> {
        [bound("open", &self.open), bound("family", &self.family)].into()
    }

    async fn decide(&self, chain: Arc<[Bound]>, request: AdmitRequest) -> (String, DecisionEntry) {
        let unrecorded = self.host.admit(chain, request).await;
        let entry = unrecorded.entry().clone();
        (code(&unrecorded.dry_run()).to_owned(), entry)
    }
}

async fn family(host: &PolicyHost, max_vms: &str) -> LoadedPlugin {
    let settings = settings([("max-vms", max_vms)]);
    host.load_granted(&PolicyScope::Operator, component("family"), settings, [Grant::Inventory].into()).await.unwrap()
}

async fn granted(host: &PolicyHost, name: &str) -> Result<LoadedPlugin, LoadError> {
    host.load_granted(
        &PolicyScope::Operator,
        component(&format!("hostile/{name}")),
        BTreeMap::new(),
        [Grant::Inventory].into(),
    )
    .await
}

fn of(tenant: &str, vm: &str) -> AdmitRequest {
    AdmitRequest { tenant: tenant.parse().unwrap(), vm: vm.parse().unwrap(), ..request() }
}

fn seen(entry: &DecisionEntry, at: usize) -> &InventoryView {
    entry.answers[at].inventory.as_ref().unwrap()
}

#[tokio::test]
async fn what_is_not_granted_is_refused_and_nobody_else_pays_for_it() {
    let bench = Bench::new().await;
    for grants in [BTreeSet::new(), [Grant::Kv].into()] {
        let settings = BTreeMap::new();
        let refused =
            bench.host.load_granted(&PolicyScope::Operator, component("family"), settings, grants).await.unwrap_err();
        assert!(matches!(refused, LoadError::NotGranted(Grant::Inventory)), "{refused}");
        assert!(refused.to_string().contains("--grant inventory"), "{refused}");
    }
    let early = granted(&bench.host, "inventory-early").await.unwrap_err();
    assert!(matches!(early, LoadError::Faulted { fault: PolicyFault::Trap(_), .. }), "{early}");
    // A grant alone shows nothing: what counts is what the plugin wants.
    let all = bench
        .host
        .load_granted(&PolicyScope::Operator, component("admission"), BTreeMap::new(), Grant::ALL.into())
        .await
        .unwrap();
    let (_, entry) = bench.decide([bound("all", &all)].into(), request()).await;
    assert_eq!((&entry.answers[0].inventory, bench.tenants.looks()), (&None, 0));
}

#[tokio::test]
async fn it_decides_by_what_its_own_tenant_has() {
    let bench = Bench::new().await;
    bench.tenants.set("red", ["web", "web-1", "db"]);
    bench.tenants.set("green", ["web"]);
    let mut codes = Vec::new();
    for (tenant, vm) in [("red", "web-2"), ("red", "db-1"), ("green", "web-2"), ("blue", "web-2")] {
        let (code, entry) = bench.decide(bench.chain(), of(tenant, vm)).await;
        codes.push(code);
        assert_eq!((&entry.answers[0].inventory, seen(&entry, 1).rest), (&None, 0));
        let shown: Vec<_> = seen(&entry, 1).known().map(|(name, _)| name.as_str()).collect();
        let expected = bench.tenants.of(&tenant.parse().unwrap());
        assert_eq!(shown, expected.known().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), "{tenant}");
    }
    assert_eq!(codes, ["family.vms", "allowed", "allowed", "allowed"]);
}

#[tokio::test]
async fn a_choice_of_a_device_or_a_place_is_made_by_what_the_tenant_has() {
    let bench = Bench::new().await;
    bench.tenants.set("blue", ["web", "db"]);
    bench.tenants.set("red", ["other"]);
    let looks = granted(&bench.host, "inventory-devices").await.unwrap();
    let mut rankers = Vec::new();
    for name in ["sriov-net", "nvme", "placement"] {
        rankers.push(bench.host.load(component(name), BTreeMap::new()).await.unwrap());
    }
    let chain: Arc<[_]> = rankers.iter().chain([&looks]).map(|plugin| bound("p", plugin)).collect();
    let vf = bench.host.select_vf(Arc::clone(&chain), select_vf::question()).await;
    let nvme = bench.host.select_nvme(Arc::clone(&chain), select_nvme::question()).await;
    let place = bench.host.place(chain, place::question()).await;
    for entry in [vf.entry(), nvme.entry(), place.entry()] {
        let [ranked, looked] = &entry.answers[..] else { panic!("{entry:?}") };
        assert!(entry.is_allowed() && ranked.inventory.is_none(), "{entry:?}");
        let shown: Vec<_> = looked.inventory.as_ref().unwrap().known().map(|(name, _)| name.as_str()).collect();
        assert_eq!(shown, ["db", "web"], "{}", entry.hook);
    }
    assert_eq!(bench.tenants.looks(), 3);
}

#[tokio::test]
async fn a_decision_sees_one_moment_and_its_shadows_the_same() {
    let bench = Bench::new().await;
    bench.tenants.set("red", ["web", "web-1"]);
    let second = family(&bench.host, "3").await;
    let shadow = Bound { mode: PluginMode::Shadow, ..bound("shadow", &bench.family) };
    let chain: Arc<[_]> = [bound("open", &bench.open), bound("a", &second), bound("b", &second), shadow].into();
    let unrecorded = bench.host.admit(chain, of("red", "web-2")).await;
    let entry = unrecorded.entry().clone();
    // It changes before the shadows are asked.
    bench.tenants.set("red", []);
    let write = |tenant, _, _| async move { Ok::<_, ()>(DecisionId { tenant, sequence: 0 }) };
    let (_, _, shadows) = unrecorded.record(write).await.unwrap();
    let said: Vec<ShadowAnswer> = shadows.unwrap().ask().await;
    assert_eq!(bench.tenants.looks(), 1);
    assert!(matches!(&said[0].answer.said, Said::Verdict(verdict) if verdict.is_variant("deny")), "{said:?}");
    let revisions = [seen(&entry, 1), seen(&entry, 2), said[0].answer.inventory.as_ref().unwrap()];
    assert_eq!(revisions.map(|view| (view.revision, view.vms.len())), [(1, 2); 3]);
    // A chain in which only a shadow sees.
    let shadow = Bound { mode: PluginMode::Shadow, ..bound("shadow", &bench.family) };
    let (_, entry) = bench.decide([bound("open", &bench.open), shadow].into(), of("red", "web-2")).await;
    assert_eq!((entry.answers[0].inventory.is_none(), bench.tenants.looks()), (true, 2));
}

#[tokio::test]
async fn a_plugin_that_floods_traps_or_lists_without_end_ends_and_what_it_saw_is_on_record() {
    let bench = Bench::new().await;
    let names: Vec<String> = (0..300).map(|at| format!("web-{at}")).collect();
    bench.tenants.set("red", names.iter().map(String::as_str).chain(["web"]));
    for (name, expected) in [("inventory-flood", "256 calls of inventory"), ("inventory-trap", "unreachable")] {
        let hostile = granted(&bench.host, name).await.unwrap();
        let (code, entry) = bench.decide(chain([&hostile]), of("red", "x")).await;
        assert_eq!(code, "policy.trap", "{name}");
        let Said::Fault(PolicyFault::Trap(why)) = &entry.answers[0].said else { panic!("{entry:?}") };
        assert!(why.contains(expected), "{why}");
        let seen = seen(&entry, 0);
        assert_eq!((seen.vms.len(), seen.known().count(), seen.rest), (1, 1, 300), "{name}");
    }
    // A page is never longer than it may be.
    let lists = granted(&bench.host, "inventory-list").await.unwrap();
    let request = AdmitRequest { vcpus: 1000, ..of("red", "x") };
    let decision = bench.host.admit(chain([&lists]), request).await;
    assert_eq!((seen(decision.entry(), 0).vms.len(), seen(decision.entry(), 0).rest), (301, 0));
    assert_eq!(decision.dry_run().outcome, Outcome::Allow(vec![Patch::CapVcpus(128)]));
}

#[tokio::test]
async fn of_a_tenant_with_too_many_vms_nothing_is_made_up_and_no_breaker_opens() {
    let bench = Bench::new().await;
    let names: Vec<String> = (0..1025).map(|at| format!("web-{at}")).collect();
    bench.tenants.set("red", names.iter().map(String::as_str));
    for _ in 0..10 {
        let (code, entry) = bench.decide(bench.chain(), of("red", "web")).await;
        assert_eq!(code, "policy.unavailable");
        let Said::Fault(PolicyFault::Unavailable(why)) = &entry.answers[1].said else { panic!("{entry:?}") };
        assert!(why.contains("1025 VMs of the tenant are not shown"), "{why}");
        assert_eq!((seen(&entry, 1).vms.len(), seen(&entry, 1).rest), (0, 1025));
    }
}

#[tokio::test]
async fn what_was_seen_is_answered_from_the_record_bit_by_bit() {
    let bench = Bench::new().await;
    let trap = granted(&bench.host, "inventory-trap").await.unwrap();
    let (mut entries, mut trapped) = (Vec::new(), Vec::new());
    for at in 0..200 {
        let names = ["db", "web", "web-1", "web-7"];
        bench.tenants.set("blue", names.into_iter().take(at % 5));
        entries.push(bench.decide(bench.chain(), of("blue", ["web-2", "db-3"][at % 2])).await.1);
    }
    for at in 0..4 {
        bench.tenants.set("blue", ["db", "web"].into_iter().take(at % 3));
        trapped.push(bench.decide([bound("family", &trap)].into(), request()).await.1);
    }
    // What there is now is of no account.
    bench.tenants.set("blue", []);
    let looks = bench.tenants.looks();
    let replayer = |plugin: &LoadedPlugin| {
        Replayer::new(bench.host.clone(), plugin.clone(), "family".into(), PolicyScope::Operator, None)
    };
    let mut same = replayer(&bench.family);
    for entry in &entries {
        let replayed = same.again(entry).unwrap();
        assert_eq!(replayed.change, Change::Same, "{replayed:?}");
        let (before, after) = (&replayed.before, &replayed.after);
        assert_eq!((&after.said, after.fuel, &after.inventory), (&before.said, before.fuel, &before.inventory));
    }
    let denied = entries.iter().filter(|entry| !entry.is_allowed()).count();
    assert!(denied > 30 && denied < 170, "{denied}");
    for entry in &trapped {
        assert_eq!(replayer(&trap).again(entry).unwrap().change, Change::Same);
    }
    assert_eq!(bench.tenants.looks(), looks);

    // Other VMs than there were are seen; what is not on record is not made up.
    let mut altered = entries[3].clone();
    altered.answers[1].inventory.as_mut().unwrap().vms.clear();
    assert_eq!(same.again(&altered).unwrap().change, Change::NotDeterministic);
    altered.answers[1].inventory.as_mut().unwrap().rest = 3;
    assert_eq!(same.again(&altered), None);
    altered.answers[1].inventory = None;
    assert_eq!(same.again(&altered), None);
    // A version that would list what another only looked up is not asked.
    let mut other = replayer(&bench.family);
    assert!(seen(&trapped[2], 0).rest > 0);
    assert_eq!(other.again(&trapped[2]), None);
}
