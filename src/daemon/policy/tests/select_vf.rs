//! The hook `select-vf` with the real plugin, and with hostile ones.

use super::*;
use crate::model::{LastTenant, MacAddr, PfView, VfCandidate, VfOutcome, VfVerdict, VfWish, VlanId};

fn pf(name: &str, bus: u8, link_mbps: Option<u32>, free_vfs: u32) -> PfView {
    PfView {
        address: format!("0000:{bus:02x}:00.0").parse().unwrap(),
        name: name.into(),
        numa_node: Some(u32::from(bus) - 1),
        root: Some("0000:00:03.0".parse().unwrap()),
        link_mbps,
        total_vfs: 8,
        free_vfs,
        own_vfs: 0,
        other_tenants: u32::from(free_vfs < 8),
    }
}

/// Three PFs with one candidate each: eth0 is half full, eth1 is empty, eth2 has no carrier.
pub(super) fn question() -> SelectVfRequest {
    let candidate = |pf: usize| VfCandidate {
        address: format!("0000:0{}:10.0", pf + 1).parse().unwrap(),
        pf,
        index: 0,
        last_tenant: if pf == 1 { LastTenant::Other } else { LastTenant::Nobody },
    };
    SelectVfRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 256,
        disks: 0,
        nics: 1,
        nic: "eth0".parse().unwrap(),
        wish: VfWish::default(),
        pfs: vec![pf("eth0", 1, Some(1000), 4), pf("eth1", 2, Some(1000), 8), pf("eth2", 3, None, 8)],
        candidates: (0..3).map(candidate).collect(),
    }
}

async fn sriov_net<const N: usize>(host: &PolicyHost, entries: [(&str, &str); N]) -> LoadedPlugin {
    host.load(component("sriov-net"), settings(entries)).await.unwrap()
}

fn order(decision: &VfDecision) -> Vec<usize> {
    match &decision.outcome {
        VfOutcome::Select { order, .. } => order.clone(),
        VfOutcome::Deny { .. } => panic!("{decision:?}"),
    }
}

fn denial(decision: &VfDecision) -> (&str, &str) {
    match &decision.outcome {
        VfOutcome::Deny { code, message, .. } => (code, message),
        VfOutcome::Select { .. } => panic!("{decision:?}"),
    }
}

#[tokio::test]
async fn ranks_by_link_load_and_place() {
    let host = host();
    let plain = sriov_net(&host, []).await;
    assert_eq!(plain.hooks(), ["select-vf"]);
    assert_eq!(order(&host.select_vf(chain([&plain]), question()).await.dry_run()), [1, 0]);
    let near = sriov_net(&host, [("numa-node", "0")]).await;
    assert_eq!(order(&host.select_vf(chain([&near]), question()).await.dry_run()), [0, 1]);
    let careful = sriov_net(&host, [("last-tenant", "avoid"), ("require-link", "false")]).await;
    assert_eq!(order(&host.select_vf(chain([&careful]), question()).await.dry_run()), [2, 0, 1]);
    let alone = sriov_net(&host, [("other-tenants", "refuse"), ("last-tenant", "refuse")]).await;
    let decision = host.select_vf(chain([&alone]), question()).await.dry_run();
    let (code, message) = denial(&decision);
    assert_eq!(code, "policy.no-candidate");
    assert!(message.contains("no VF of 3 suits") && message.contains("PF eth0 serves 1 other"), "{message}");
    // Each plugin narrows what the one before it left.
    assert_eq!(order(&host.select_vf(chain([&careful, &near]), question()).await.dry_run()), [0, 1]);
}

#[tokio::test]
async fn grants_wishes_and_settings_within_the_rules() {
    let host = host();
    let rules =
        sriov_net(&host, [("vlans", "100-110"), ("macs", "02:aa"), ("max-tx-mbps", "50"), ("trust", "true")]).await;
    let wish = |mac: &str, vlan| VfWish { mac: Some(mac.parse().unwrap()), vlan: VlanId::new(vlan) };
    let asked = SelectVfRequest { wish: wish("02:aa:00:00:00:01", 105), ..question() };
    let decision = host.select_vf(chain([&rules]), asked).await.dry_run();
    let VfOutcome::Select { settings, .. } = decision.outcome else { panic!("{decision:?}") };
    assert_eq!((settings.mac, settings.vlan), (Some(MacAddr([2, 0xaa, 0, 0, 0, 1])), VlanId::new(105)));
    assert_eq!((settings.max_tx_mbps, settings.is_trusted, settings.checks_spoofing), (Some(50), true, true));

    let asked = SelectVfRequest { wish: wish("02:aa:00:00:00:01", 99), ..question() };
    let decision = host.select_vf(chain([&rules]), asked).await.dry_run();
    assert_eq!(denial(&decision).0, "vlan.not-allowed");
    let asked = SelectVfRequest { wish: wish("02:bb:00:00:00:01", 100), ..question() };
    assert_eq!(denial(&host.select_vf(chain([&rules]), asked).await.dry_run()).0, "mac.not-allowed");
}

#[tokio::test]
async fn each_hook_asks_the_plugins_that_have_it() {
    let host = host();
    let (admits, selects) = (admission(&host, []).await, sriov_net(&host, []).await);
    let both = chain([&admits, &selects]);
    let decision = host.admit(Arc::clone(&both), request()).await.dry_run();
    assert_eq!((code(&decision), decision.opinions.len()), ("allowed", 1));
    let decision = host.select_vf(both, question()).await.dry_run();
    assert_eq!((order(&decision), decision.opinions.len()), (vec![1, 0], 1));
    assert_eq!(code(&host.admit(chain([&selects]), request()).await.dry_run()), "policy.no-opinion");
    assert_eq!(denial(&host.select_vf(chain([&admits]), question()).await.dry_run()).0, "policy.no-opinion");
    // What could not be loaded again may have had any hook.
    let broken = LoadedPlugin::broken("lost", admits.digest(), "its file is gone");
    assert_eq!(denial(&host.select_vf(chain([&selects, &broken]), question()).await.dry_run()).0, "policy.unavailable");
}

#[tokio::test]
async fn every_way_to_fail_denies_with_its_own_code() {
    let host = host();
    let good = sriov_net(&host, []).await;
    let tenant = PolicyScope::Tenant("blue".parse().unwrap());
    for (name, expected, text) in [
        ("vf-trap", "policy.trap", "unreachable"),
        ("vf-short", "policy.bad-answer", "1 marks for 3 candidates"),
        ("vf-long", "policy.bad-answer", "4 marks for 3 candidates"),
        ("vf-million", "policy.bad-answer", "too much data is being copied"),
        ("vf-reason", "policy.bad-answer", "reason 5 of 0"),
        ("vf-trust", "policy.bad-answer", "only a plugin of the operator"),
        ("vf-vlan", "policy.bad-answer", "4095"),
        ("vf-mac", "policy.bad-answer", "01:00:5e:00:00:01"),
    ] {
        let plugin = hostile(&host, name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let behind = Bound { scope: tenant.clone(), ..bound("own", &plugin) };
        let decision = host.select_vf(Arc::from([bound("good", &good), behind]), question()).await.dry_run();
        let (code, message) = denial(&decision);
        assert_eq!(code, expected, "{name}: {decision:?}");
        assert!(message.contains(text) && text::is_line(message, 700), "{name}: {message}");
        assert_eq!(order(&host.select_vf(chain([&good]), question()).await.dry_run()), [1, 0], "after {name}");
    }
}

#[tokio::test]
async fn scores_at_both_ends_add_up_without_wrapping() {
    let host = host();
    let (good, extreme) =
        (sriov_net(&host, [("require-link", "false")]).await, hostile(&host, "vf-extremes").await.unwrap());
    assert_eq!(order(&host.select_vf(chain([&good]), question()).await.dry_run()), [1, 2, 0]);
    // Above the highest score, and below the lowest: the first candidate stays first, and the second last.
    let chain = chain([&good, &extreme, &extreme, &extreme]);
    assert_eq!(order(&host.select_vf(chain, question()).await.dry_run()), [0, 2, 1]);
}

#[tokio::test]
async fn a_table_of_a_thousand_candidates_is_within_every_limit() {
    let host = host();
    let plugin = sriov_net(&host, [("other-tenants", "avoid")]).await;
    let mut question = question();
    let first = question.candidates[0];
    let all = (0..SelectVfRequest::MAX_CANDIDATES).map(|at| VfCandidate { pf: at % 3, ..first });
    question.candidates = all.collect();
    let decision = host.select_vf(chain([&plugin]), question).await.dry_run();
    assert_eq!(order(&decision).len(), 683);
    let Ok(VfVerdict::Rank(ranking)) = &decision.opinions[0].verdict else { panic!("{decision:?}") };
    assert_eq!((ranking.marks.len(), ranking.reasons.len()), (1024, 1));
    println!("1,024 candidates: {:?}", decision.opinions[0].took);
}
