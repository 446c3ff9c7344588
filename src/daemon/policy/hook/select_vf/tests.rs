//! Cases and properties of the selection.

use std::time::Duration;

use proptest::prelude::*;

use super::super::NO_OPINION;
use super::super::ranking::NO_CANDIDATE;
use super::*;
use crate::model::{PluginDigest, VfCandidate};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

fn request() -> SelectVfRequest {
    let pf = PfView {
        address: "0000:01:00.0".parse().unwrap(),
        name: "eth0".into(),
        numa_node: None,
        root: None,
        link_mbps: Some(1000),
        total_vfs: 7,
        free_vfs: 3,
        own_vfs: 0,
        other_tenants: 0,
    };
    let candidate = |index: u16| VfCandidate {
        address: format!("0000:01:10.{}", index * 2).parse().unwrap(),
        pf: 0,
        index,
        last_tenant: LastTenant::Nobody,
    };
    SelectVfRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 256,
        disks: 0,
        nics: 1,
        nic: "eth0".parse().unwrap(),
        wish: VfWish { mac: None, vlan: Some(vlan(7)) },
        pfs: vec![pf],
        candidates: (0..3).map(candidate).collect(),
    }
}

fn opinion(plugin: &str, scope: PolicyScope, verdict: Result<VfVerdict, PolicyFault>) -> Opinion<VfVerdict> {
    let (digest, weight, took) = (PluginDigest([0; 32]), Default::default(), Duration::ZERO);
    Opinion { plugin: plugin.into(), digest, scope, weight, verdict, fuel: 0, took }
}

fn operator(verdict: VfVerdict) -> Opinion<VfVerdict> {
    opinion("op", PolicyScope::Operator, Ok(verdict))
}

fn tenant(verdict: VfVerdict) -> Opinion<VfVerdict> {
    opinion("own", PolicyScope::Tenant("blue".parse().unwrap()), Ok(verdict))
}

/// Scores, where `None` rejects for the only reason.
fn ranking(scores: [Option<i32>; 3], settings: &[VfSetting]) -> VfRanking {
    VfRanking {
        marks: scores.map(|score| score.map_or(Mark::Reject(0), Mark::Score)).to_vec(),
        reasons: vec![("link.down".into(), "PF eth0 has no carrier".into())],
        settings: settings.to_vec(),
    }
}

fn rank(scores: [Option<i32>; 3], settings: &[VfSetting]) -> VfVerdict {
    VfVerdict::Rank(ranking(scores, settings))
}

fn outcome(opinions: &[Opinion<VfVerdict>]) -> VfOutcome {
    combine(opinions, request().wish, 3)
}

fn order(opinions: &[Opinion<VfVerdict>]) -> Vec<usize> {
    match outcome(opinions) {
        VfOutcome::Select { order, .. } => order,
        VfOutcome::Deny { code, message, .. } => panic!("{code}: {message}"),
    }
}

fn settings(opinions: &[Opinion<VfVerdict>]) -> VfSettings {
    match outcome(opinions) {
        VfOutcome::Select { settings, .. } => settings,
        VfOutcome::Deny { code, message, .. } => panic!("{code}: {message}"),
    }
}

fn code(outcome: &VfOutcome) -> &str {
    match outcome {
        VfOutcome::Deny { code, .. } => code,
        VfOutcome::Select { .. } => "selected",
    }
}

const EQUAL: [Option<i32>; 3] = [Some(0); 3];

#[test]
fn the_best_score_of_all_plugins_comes_first_and_ties_keep_their_order() {
    assert_eq!(order(&[operator(rank(EQUAL, &[]))]), [0, 1, 2]);
    assert_eq!(order(&[operator(rank([Some(-1), Some(5), Some(5)], &[]))]), [1, 2, 0]);
    let opinions = [operator(rank([Some(1), Some(2), Some(3)], &[])), tenant(rank([Some(9), Some(0), Some(0)], &[]))];
    assert_eq!(order(&opinions), [0, 2, 1]);
    let extremes = [Some(i32::MAX), Some(i32::MIN), Some(0)];
    assert_eq!(order(&[operator(rank(extremes, &[])), tenant(rank(extremes, &[]))]), [0, 2, 1]);
}

#[test]
fn one_rejection_is_enough() {
    let opinions = [operator(rank([None, Some(1), Some(2)], &[])), tenant(rank([Some(99), Some(0), None], &[]))];
    assert_eq!(order(&opinions), [1]);
    let opinions = [operator(rank([None, Some(1), None], &[])), tenant(rank([Some(0), None, Some(0)], &[]))];
    let VfOutcome::Deny { code, message, plugin } = outcome(&opinions) else { panic!("selected") };
    assert_eq!((code.as_str(), plugin.as_deref()), (NO_CANDIDATE, Some("op")));
    assert!(message.contains("no VF of 3") && message.contains("no carrier (link.down)"), "{message}");
}

#[test]
fn only_a_plugin_of_the_operator_selects() {
    assert_eq!(code(&outcome(&[])), NO_OPINION);
    assert_eq!(code(&outcome(&[tenant(rank(EQUAL, &[]))])), NO_OPINION);
    assert_eq!(code(&outcome(&[operator(VfVerdict::Abstain), tenant(rank(EQUAL, &[]))])), NO_OPINION);
    assert_eq!(order(&[operator(rank(EQUAL, &[])), tenant(VfVerdict::Abstain)]), [0, 1, 2]);
}

#[test]
fn a_denial_and_a_fault_deny() {
    let denial = VfVerdict::Deny { code: "vlan.not-allowed".into(), message: "VLAN 7".into() };
    assert_eq!(code(&outcome(&[operator(rank(EQUAL, &[])), tenant(denial)])), "vlan.not-allowed");
    let fault = opinion("op", PolicyScope::Operator, Err(PolicyFault::Trap("unreachable".into())));
    assert_eq!(code(&outcome(&[fault])), "policy.trap");
}

#[test]
fn settings_narrow_and_must_agree() {
    let plain =
        VfSettings { mac: None, vlan: Some(vlan(7)), max_tx_mbps: None, is_trusted: false, checks_spoofing: true };
    assert_eq!(settings(&[operator(rank(EQUAL, &[]))]), plain);
    let granted = [VfSetting::Trust(true), VfSetting::SpoofCheck(false), VfSetting::MaxTxMbps(100)];
    let more = [VfSetting::MaxTxMbps(200), VfSetting::Mac(MAC)];
    assert_eq!(
        settings(&[operator(rank(EQUAL, &granted)), tenant(rank(EQUAL, &more))]),
        VfSettings { mac: Some(MAC), max_tx_mbps: Some(100), is_trusted: true, checks_spoofing: false, ..plain }
    );
    let withdrawn = [VfSetting::Trust(false), VfSetting::SpoofCheck(true), VfSetting::MaxTxMbps(50)];
    assert_eq!(
        settings(&[operator(rank(EQUAL, &granted)), tenant(rank(EQUAL, &withdrawn))]),
        VfSettings { max_tx_mbps: Some(50), ..plain }
    );
    assert_eq!(settings(&[operator(rank(EQUAL, &[VfSetting::Vlan(vlan(9))]))]).vlan, Some(vlan(9)));
    let mac = |mac| rank(EQUAL, &[VfSetting::Mac(mac)]);
    assert_eq!(settings(&[operator(mac(MAC)), tenant(mac(MAC))]).mac, Some(MAC));
    let VfOutcome::Deny { code, message, plugin } = outcome(&[operator(mac(MAC)), tenant(mac(OTHER_MAC))]) else {
        panic!("selected")
    };
    assert_eq!((code.as_str(), plugin.as_deref()), (CONFLICT, Some("own")));
    assert!(message.contains("own wants") && message.contains("op before"), "{message}");
}

#[test]
fn answers_that_break_the_contract_are_refused() {
    let refused = |ranking: VfRanking, scope: &PolicyScope| request().check(&VfVerdict::Rank(ranking), scope).is_err();
    let operator = PolicyScope::Operator;
    let tenant = PolicyScope::Tenant("blue".parse().unwrap());
    assert!(!refused(ranking([None, Some(1), Some(2)], &[]), &operator));
    let short = VfRanking { marks: vec![Mark::Score(1)], ..ranking(EQUAL, &[]) };
    assert!(refused(short, &operator));
    let unknown = VfRanking { marks: vec![Mark::Reject(1); 3], ..ranking(EQUAL, &[]) };
    assert!(refused(unknown, &operator));
    let reserved = VfRanking { reasons: vec![("policy.trap".into(), "no".into())], ..ranking(EQUAL, &[]) };
    assert!(refused(reserved, &operator));
    let reason = ("a".to_owned(), "b".to_owned());
    assert!(refused(VfRanking { reasons: vec![reason; 17], ..ranking(EQUAL, &[]) }, &operator));
    assert!(refused(ranking(EQUAL, &[VfSetting::Trust(false); MAX_VF_SETTINGS + 1]), &operator));
    for setting in [VfSetting::Mac(MacAddr([1; 6])), VfSetting::Mac(MacAddr([0; 6])), VfSetting::MaxTxMbps(0)] {
        assert!(refused(ranking(EQUAL, &[setting]), &operator), "{setting}");
    }
    for setting in [VfSetting::Trust(true), VfSetting::SpoofCheck(false), VfSetting::Vlan(vlan(8))] {
        assert!(refused(ranking(EQUAL, &[setting]), &tenant), "{setting}");
        assert!(!refused(ranking(EQUAL, &[setting]), &operator), "{setting}");
    }
    // The wish itself may be confirmed.
    assert!(!refused(ranking(EQUAL, &[VfSetting::Vlan(vlan(7)), VfSetting::Mac(MAC)]), &tenant));
}

fn any_setting() -> impl Strategy<Value = VfSetting> {
    prop_oneof![
        Just(VfSetting::Mac(MAC)),
        Just(VfSetting::Mac(OTHER_MAC)),
        (6u16..9).prop_map(|number| VfSetting::Vlan(vlan(number))),
        (0u32..4).prop_map(VfSetting::MaxTxMbps),
        any::<bool>().prop_map(VfSetting::Trust),
        any::<bool>().prop_map(VfSetting::SpoofCheck),
    ]
}

fn any_ranking() -> impl Strategy<Value = VfRanking> {
    let score = prop_oneof![Just(None), any::<i32>().prop_map(Some)];
    (prop::array::uniform3(score), prop::collection::vec(any_setting(), 0..4))
        .prop_map(|(scores, settings)| ranking(scores, &settings))
}

proptest! {
    #[test]
    fn a_plugin_of_the_tenant_never_widens(first in any_ranking(), own in any_ranking()) {
        let own_scope = PolicyScope::Tenant("blue".parse().unwrap());
        prop_assume!(request().check(&VfVerdict::Rank(first.clone()), &PolicyScope::Operator).is_ok());
        prop_assume!(request().check(&VfVerdict::Rank(own.clone()), &own_scope).is_ok());
        let before = outcome(&[operator(VfVerdict::Rank(first.clone()))]);
        let after = outcome(&[operator(VfVerdict::Rank(first)), tenant(VfVerdict::Rank(own))]);
        if let VfOutcome::Select { order, settings } = after {
            let VfOutcome::Select { order: all, settings: wide } = before else { panic!("the tenant selected") };
            prop_assert!(order.iter().all(|index| all.contains(index)));
            prop_assert!(!settings.is_trusted || wide.is_trusted);
            prop_assert!(settings.checks_spoofing || !wide.checks_spoofing);
            prop_assert_eq!(settings.vlan, wide.vlan);
            prop_assert!(wide.max_tx_mbps.is_none_or(|cap| settings.max_tx_mbps.is_some_and(|own| own <= cap)));
        }
    }
}
