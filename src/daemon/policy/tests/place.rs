//! The hook `place` with the real plugin, and with hostile ones.

use super::*;
use crate::model::{DecisionId, PageSize, PlaceCandidate, PlaceOutcome, PlaceVerdict};

fn node(node: u32, placed_mib: u64, own_devices: u32) -> PlaceCandidate {
    PlaceCandidate {
        node,
        cpus: format!("{}-{}", node * 4, node * 4 + 3).parse().unwrap(),
        memory_mib: 16 << 10,
        available_mib: 12 << 10,
        two_mib_pages: 0,
        one_gib_pages: 0,
        vms: u32::from(placed_mib > 0),
        own_vms: 0,
        placed_vcpus: 0,
        placed_mib,
        own_devices,
        free_vfs: 0,
    }
}

/// A VM of 4 GiB with a device: a node that is half full, an empty one, one near the device with 10 GiB promised.
pub(super) fn question() -> PlaceRequest {
    PlaceRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 2,
        memory_mib: 4 << 10,
        disks: 0,
        nics: 1,
        pages: PageSize::Small,
        devices: 1,
        candidates: vec![node(0, 8 << 10, 0), node(1, 0, 0), node(2, 10 << 10, 1)],
    }
}

async fn placement<const N: usize>(host: &PolicyHost, entries: [(&str, &str); N]) -> LoadedPlugin {
    host.load(component("placement"), settings(entries)).await.unwrap()
}

fn order(decision: &PlaceDecision) -> Vec<usize> {
    match &decision.outcome {
        PlaceOutcome::Select { order } => order.clone(),
        other => panic!("{other:?}"),
    }
}

fn denial(decision: &PlaceDecision) -> (&str, &str) {
    match &decision.outcome {
        PlaceOutcome::Deny { code, message, .. } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ranks_by_devices_then_packs_or_spreads_within_what_is_kept() {
    let host = host();
    let spread = placement(&host, []).await;
    assert_eq!((spread.hooks(), spread.places()), (&["place"][..], true));
    assert_eq!(order(&host.place(chain([&spread]), question()).await.dry_run()), [2, 1, 0]);
    let pack = placement(&host, [("mode", "pack")]).await;
    assert_eq!(order(&host.place(chain([&pack]), question()).await.dry_run()), [2, 0, 1]);
    let kept = placement(&host, [("reserve-mib", "3072")]).await;
    assert_eq!(order(&host.place(chain([&kept]), question()).await.dry_run()), [1, 0]);
    // Each plugin narrows what the one before it left.
    assert_eq!(order(&host.place(chain([&pack, &kept]), question()).await.dry_run()), [0, 1]);
    let full = placement(&host, [("reserve-mib", "13000")]).await;
    let decision = host.place(chain([&full]), question()).await.dry_run();
    let (code, message) = denial(&decision);
    assert_eq!(code, "policy.no-candidate");
    assert!(message.contains("no NUMA node of 3 suits") && message.contains("(memory.promised)"), "{message}");
}

#[tokio::test]
async fn the_heavier_of_two_that_disagree_has_its_way() {
    let host = host();
    let (spread, pack) = (placement(&host, []).await, placement(&host, [("mode", "pack")]).await);
    let weighed = async |spread_weight: u32, pack_weight: u32| {
        let of = |plugin, weight: u32| Bound { weight: weight.try_into().unwrap(), ..bound("p", plugin) };
        let decided = host.place(Arc::from([of(&spread, spread_weight), of(&pack, pack_weight)]), question()).await;
        let weights: Vec<_> = decided.entry().chain.iter().map(|link| link.weight.get()).collect();
        assert_eq!(weights, [spread_weight, pack_weight]);
        let explained: Vec<_> = decided.entry().explain(&[]).rows.iter().map(|row| row.total).collect();
        assert!(explained.is_sorted_by(|more, less| more >= less), "{explained:?}");
        order(&decided.dry_run())
    };
    // As large as each other they come to nothing, and the table's order holds.
    assert_eq!(weighed(1, 1).await, [2, 0, 1]);
    assert_eq!(weighed(2, 1).await, [2, 1, 0]);
    assert_eq!(weighed(100, 99).await, [2, 1, 0]);
    assert_eq!(weighed(99, 100).await, [2, 0, 1]);
}

#[tokio::test]
async fn a_shadow_would_have_counted_with_its_own_weight() {
    let host = host();
    let (spread, pack) = (placement(&host, []).await, placement(&host, [("mode", "pack")]).await);
    for (weight, would_differ) in [(1, false), (3, true)] {
        let decides = Bound { weight: 2.try_into().unwrap(), ..bound("p", &pack) };
        let shadow = Bound { weight: weight.try_into().unwrap(), mode: PluginMode::Shadow, ..bound("q", &spread) };
        let decided = host.place(Arc::from([decides, shadow]), question()).await;
        let write = |tenant, _, _| async move { Ok::<_, ()>(DecisionId { tenant, sequence: 0 }) };
        let (_, decision, shadows) = decided.record(write).await.unwrap();
        assert_eq!(order(&decision), [2, 0, 1]);
        let answers = shadows.unwrap().ask().await;
        assert_eq!((answers[0].instead.is_some(), answers[0].link.weight.get()), (would_differ, weight));
    }
}

#[tokio::test]
async fn who_has_no_say_is_not_asked_and_where_nobody_has_it_is_no_denial() {
    let host = host();
    let (admits, places) = (admission(&host, []).await, placement(&host, []).await);
    let decision = host.place(chain([&admits, &places]), question()).await.dry_run();
    assert_eq!((order(&decision), decision.opinions.len()), (vec![2, 1, 0], 1));
    assert!(!admits.places());
    assert_eq!(host.place(chain([&admits]), question()).await.dry_run().outcome, PlaceOutcome::Anywhere {});
    let scope = PolicyScope::Tenant("blue".parse().unwrap());
    let own = Bound { scope, ..bound("own", &places) };
    assert_eq!(denial(&host.place(Arc::from([own]), question()).await.dry_run()).0, "policy.no-opinion");
    let broken = LoadedPlugin::broken("lost", admits.digest(), "its file is gone");
    assert!(broken.places(), "nobody knows what it would have said");
    assert_eq!(denial(&host.place(chain([&places, &broken]), question()).await.dry_run()).0, "policy.unavailable");
}

#[tokio::test]
async fn every_way_to_fail_denies_with_its_own_code() {
    let host = host();
    let good = placement(&host, []).await;
    for (name, expected, text) in [
        ("place-trap", "policy.trap", "unreachable"),
        ("place-short", "policy.bad-answer", "1 marks for 3 candidates"),
        ("place-long", "policy.bad-answer", "1025 marks for 3 candidates"),
        ("place-million", "policy.bad-answer", "too much data is being copied"),
        ("place-reason", "policy.bad-answer", "reason 5 of 0"),
        ("place-code", "policy.bad-answer", "belongs to the host"),
    ] {
        let plugin = hostile(&host, name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let scope = PolicyScope::Tenant("blue".parse().unwrap());
        let behind = Bound { scope, ..bound("own", &plugin) };
        let decision = host.place(Arc::from([bound("good", &good), behind]), question()).await.dry_run();
        let (code, message) = denial(&decision);
        assert_eq!(code, expected, "{name}: {decision:?}");
        assert!(message.contains(text) && text::is_line(message, 700), "{name}: {message}");
        assert_eq!(order(&host.place(chain([&good]), question()).await.dry_run()), [2, 1, 0], "after {name}");
    }
}

#[tokio::test]
async fn a_table_of_a_thousand_nodes_is_within_every_limit() {
    let host = host();
    let plugin = placement(&host, []).await;
    let nodes = (0..1024).map(|number| PlaceCandidate { node: number, ..node(0, u64::from(number) % 7, 0) });
    let question = PlaceRequest { candidates: nodes.collect(), ..question() };
    let decision = host.place(chain([&plugin]), question).await.dry_run();
    assert_eq!(order(&decision).len(), PlaceRequest::MAX_CANDIDATES);
    let Ok(PlaceVerdict::Rank(ranking)) = &decision.opinions[0].verdict else { panic!("{decision:?}") };
    assert_eq!((ranking.marks.len(), ranking.reasons.len()), (1024, 0));
    println!("1,024 nodes: {:?}, {} fuel", decision.opinions[0].took, decision.opinions[0].fuel);
}
