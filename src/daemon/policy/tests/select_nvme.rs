//! The hook `select-nvme` with the real plugin, and with hostile ones.

use super::*;
use crate::model::{LastTenant, NvmeCandidate, NvmeControllerView, NvmeOutcome, NvmeVerdict, NvmeWish};

fn controller(bus: u8, free: u32, wear_percent: u8) -> NvmeControllerView {
    NvmeControllerView {
        address: format!("0000:{bus:02x}:00.0").parse().unwrap(),
        serial: format!("S{bus}"),
        model: "QEMU NVMe Ctrl".into(),
        numa_node: Some(u32::from(bus) - 1),
        root: Some("0000:00:03.0".parse().unwrap()),
        wear_percent: Some(wear_percent),
        online: 4,
        free,
        own: 0,
        other_tenants: u32::from(free < 4),
    }
}

/// 64, 96 and 64 MiB for a wish of 64: the first on a controller that others use, the last on an empty, worn one.
pub(super) fn question() -> SelectNvmeRequest {
    let candidate = |controller, nsid, mib: u64, last_tenant| NvmeCandidate {
        controller,
        nsid,
        size_bytes: mib << 20,
        block_bytes: 512,
        last_tenant,
    };
    SelectNvmeRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 256,
        disks: 0,
        nics: 0,
        device: "data".parse().unwrap(),
        wish: NvmeWish::Namespace { min_bytes: 64 << 20 },
        controllers: vec![controller(1, 2, 5), controller(2, 4, 90)],
        candidates: vec![
            candidate(0, 2, 64, LastTenant::Nobody),
            candidate(0, 3, 96, LastTenant::Same),
            candidate(1, 2, 64, LastTenant::Other),
        ],
    }
}

async fn nvme<const N: usize>(host: &PolicyHost, entries: [(&str, &str); N]) -> LoadedPlugin {
    host.load(component("nvme"), settings(entries)).await.unwrap()
}

fn order(decision: &NvmeDecision) -> Vec<usize> {
    match &decision.outcome {
        NvmeOutcome::Select { order } => order.clone(),
        NvmeOutcome::Deny { .. } => panic!("{decision:?}"),
    }
}

fn denial(decision: &NvmeDecision) -> (&str, &str) {
    match &decision.outcome {
        NvmeOutcome::Deny { code, message, .. } => (code, message),
        NvmeOutcome::Select { .. } => panic!("{decision:?}"),
    }
}

#[tokio::test]
async fn ranks_by_size_wear_place_and_tenants() {
    let host = host();
    let plain = nvme(&host, []).await;
    assert_eq!(plain.hooks(), ["select-nvme"]);
    assert_eq!(order(&host.select_nvme(chain([&plain]), question()).await.dry_run()), [2, 0, 1]);
    let exact = nvme(&host, [("size-slack", "0"), ("max-wear", "50")]).await;
    assert_eq!(order(&host.select_nvme(chain([&exact]), question()).await.dry_run()), [0]);
    let near = nvme(&host, [("numa-node", "0"), ("last-tenant", "avoid")]).await;
    assert_eq!(order(&host.select_nvme(chain([&near]), question()).await.dry_run()), [0, 1, 2]);
    let alone = nvme(&host, [("other-tenants", "refuse"), ("last-tenant", "refuse")]).await;
    let decision = host.select_nvme(chain([&alone]), question()).await.dry_run();
    let (code, message) = denial(&decision);
    assert_eq!(code, "policy.no-candidate");
    assert!(message.contains("no candidate of 3 suits") && message.contains("serves 1 other"), "{message}");
    // Each plugin narrows what the one before it left.
    assert_eq!(order(&host.select_nvme(chain([&plain, &exact]), question()).await.dry_run()), [0]);
}

#[tokio::test]
async fn sizes_and_whole_controllers_are_the_operators_to_allow() {
    let host = host();
    let small = nvme(&host, [("max-mib", "32")]).await;
    let decision = host.select_nvme(chain([&small]), question()).await.dry_run();
    assert_eq!(denial(&decision), ("size.not-allowed", "64 MiB are asked for, at most 32 are allowed"));
    let mut whole = question();
    whole.wish = NvmeWish::Controller;
    whole.candidates.iter_mut().for_each(|candidate| candidate.nsid = 0);
    let plain = nvme(&host, []).await;
    assert_eq!(denial(&host.select_nvme(chain([&plain]), whole.clone()).await.dry_run()).0, "controller.not-allowed");
    let one = nvme(&host, [("whole", "S2")]).await;
    assert_eq!(order(&host.select_nvme(chain([&one]), whole).await.dry_run()), [2]);
}

#[tokio::test]
async fn each_hook_asks_the_plugins_that_have_it() {
    let host = host();
    let (admits, selects) = (admission(&host, []).await, nvme(&host, []).await);
    let decision = host.select_nvme(chain([&admits, &selects]), question()).await.dry_run();
    assert_eq!((order(&decision), decision.opinions.len()), (vec![2, 0, 1], 1));
    assert_eq!(denial(&host.select_nvme(chain([&admits]), question()).await.dry_run()).0, "policy.no-opinion");
    let broken = LoadedPlugin::broken("lost", admits.digest(), "its file is gone");
    assert_eq!(
        denial(&host.select_nvme(chain([&selects, &broken]), question()).await.dry_run()).0,
        "policy.unavailable"
    );
}

#[tokio::test]
async fn every_way_to_fail_denies_with_its_own_code() {
    let host = host();
    let good = nvme(&host, []).await;
    for (name, expected, text) in [
        ("nvme-trap", "policy.trap", "unreachable"),
        ("nvme-short", "policy.bad-answer", "1 marks for 3 candidates"),
        ("nvme-reason", "policy.bad-answer", "reason 5 of 0"),
        ("nvme-code", "policy.bad-answer", "belongs to the host"),
    ] {
        let plugin = hostile(&host, name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let scope = PolicyScope::Tenant("blue".parse().unwrap());
        let behind = Bound { scope, ..bound("own", &plugin) };
        let decision = host.select_nvme(Arc::from([bound("good", &good), behind]), question()).await.dry_run();
        let (code, message) = denial(&decision);
        assert_eq!(code, expected, "{name}: {decision:?}");
        assert!(message.contains(text) && text::is_line(message, 700), "{name}: {message}");
        assert_eq!(order(&host.select_nvme(chain([&good]), question()).await.dry_run()), [2, 0, 1], "after {name}");
    }
}

#[tokio::test]
async fn a_table_of_a_thousand_candidates_is_within_every_limit() {
    let host = host();
    let plugin = nvme(&host, [("last-tenant", "avoid")]).await;
    let mut question = question();
    let first = question.candidates[0];
    let all = (1..).take(SelectNvmeRequest::MAX_CANDIDATES);
    question.candidates = all.map(|nsid| NvmeCandidate { nsid, controller: nsid as usize % 2, ..first }).collect();
    let decision = host.select_nvme(chain([&plugin]), question).await.dry_run();
    assert_eq!(order(&decision).len(), 1024);
    let Ok(NvmeVerdict::Rank(ranking)) = &decision.opinions[0].verdict else { panic!("{decision:?}") };
    assert_eq!((ranking.marks.len(), ranking.reasons.len()), (1024, 0));
    println!("1,024 candidates: {:?}", decision.opinions[0].took);
}
