//! Cases and properties of the combination.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::daemon::policy::hook::decides;
use crate::daemon::policy::limits::{MAX_CODE_BYTES, MAX_MESSAGE_BYTES};
use crate::model::{LimitUse, PluginDigest};

fn request() -> AdmitRequest {
    AdmitRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 8,
        memory_mib: 4096,
        disks: 1,
        nics: 1,
        in_use: LimitUse::default(),
        labels: None,
        images: None,
    }
}

/// The verdict if it keeps the contract, as the executor takes it.
fn check(verdict: Verdict, request: &AdmitRequest) -> Result<Verdict, PolicyFault> {
    request.check(&verdict, &PolicyScope::Operator).map_err(PolicyFault::BadAnswer)?;
    Ok(verdict)
}

fn opinion(plugin: &str, scope: PolicyScope, verdict: Result<Verdict, PolicyFault>) -> Opinion {
    let (digest, weight, took) = (PluginDigest([0; 32]), Default::default(), Duration::ZERO);
    Opinion { plugin: plugin.into(), digest, scope, weight, verdict, fuel: 0, took }
}

fn operator(verdict: Verdict) -> Opinion {
    opinion("op", PolicyScope::Operator, Ok(verdict))
}

fn tenant(verdict: Verdict) -> Opinion {
    opinion("own", PolicyScope::Tenant("blue".parse().unwrap()), Ok(verdict))
}

fn denial(message: &str) -> Verdict {
    Verdict::Deny { code: "limit.vcpus".into(), message: message.into() }
}

fn code(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Deny { code, .. } => code,
        Outcome::Allow(_) => "allowed",
    }
}

#[test]
fn denies_when_nobody_has_an_opinion() {
    assert_eq!(code(&combine(&[])), NO_OPINION);
    assert_eq!(code(&combine(&[operator(Verdict::Abstain), tenant(Verdict::Abstain)])), NO_OPINION);
}

#[test]
fn a_tenants_plugin_cannot_admit_without_the_operators() {
    assert_eq!(code(&combine(&[tenant(Verdict::Allow(vec![]))])), NO_OPINION);
    assert_eq!(code(&combine(&[operator(Verdict::Abstain), tenant(Verdict::Allow(vec![]))])), NO_OPINION);
    assert_eq!(combine(&[operator(Verdict::Allow(vec![])), tenant(Verdict::Abstain)]), Outcome::Allow(vec![]));
}

#[test]
fn the_narrowest_cap_of_each_kind_holds() {
    let outcome = combine(&[
        operator(Verdict::Allow(vec![Patch::CapVcpus(4), Patch::CapMemoryMib(100)])),
        tenant(Verdict::Allow(vec![Patch::CapMemoryMib(200), Patch::CapVcpus(2)])),
    ]);
    assert_eq!(outcome, Outcome::Allow(vec![Patch::CapVcpus(2), Patch::CapMemoryMib(100)]));
}

#[test]
fn a_fault_denies_with_its_code_and_plugin() {
    let fault = PolicyFault::Memory { limit_bytes: 8 };
    let outcome =
        combine(&[operator(Verdict::Allow(vec![])), opinion("bad", PolicyScope::Operator, Err(fault.clone()))]);
    let expected =
        Outcome::Deny { code: "policy.memory".into(), message: fault.to_string(), plugin: Some("bad".into()) };
    assert_eq!(outcome, expected);
}

#[test]
fn refuses_answers_that_widen_or_leave_nothing() {
    let request = request();
    for patch in [Patch::CapVcpus(9), Patch::CapVcpus(0), Patch::CapMemoryMib(4097), Patch::CapMemoryMib(0)] {
        let answer = check(Verdict::Allow(vec![patch]), &request);
        assert!(matches!(&answer, Err(PolicyFault::BadAnswer(why)) if why.contains(&patch.to_string())), "{answer:?}");
    }
    assert!(check(Verdict::Allow(vec![Patch::CapVcpus(8), Patch::CapMemoryMib(4096)]), &request).is_ok());
    assert!(check(Verdict::Allow(vec![Patch::CapVcpus(1); MAX_PATCHES + 1]), &request).is_err());
}

#[test]
fn refuses_denials_that_cannot_be_shown() {
    let request = request();
    for (code, message) in [
        ("", "m"),
        ("Limit", "m"),
        ("a b", "m"),
        (&*"c".repeat(MAX_CODE_BYTES + 1), "m"),
        ("policy.trap", "m"),
        ("limit.vms", ""),
        ("limit.vms", "two\nlines"),
        ("limit.vms", &*"m".repeat(MAX_MESSAGE_BYTES + 1)),
    ] {
        let verdict = Verdict::Deny { code: code.into(), message: message.into() };
        assert!(matches!(check(verdict, &request), Err(PolicyFault::BadAnswer(_))), "{code:?} {message:?}");
    }
    assert!(check(denial("8 vCPUs, 4 are allowed"), &request).is_ok());
}

fn any_patch() -> impl Strategy<Value = Patch> {
    prop_oneof![(0..20u32).prop_map(Patch::CapVcpus), (0..9000u64).prop_map(Patch::CapMemoryMib)]
}

fn any_verdict() -> impl Strategy<Value = Result<Verdict, PolicyFault>> {
    prop_oneof![
        4 => prop::collection::vec(any_patch(), 0..4).prop_map(|patches| Ok(Verdict::Allow(patches))),
        2 => Just(Ok(Verdict::Abstain)),
        1 => Just(Ok(denial("no"))),
        1 => Just(Err(PolicyFault::Trap("unreachable".into()))),
    ]
}

/// Opinions as the executor makes them: each answer checked, later ones kept too.
fn any_opinions() -> impl Strategy<Value = Vec<Opinion>> {
    let one = (any::<bool>(), any_verdict()).prop_map(|(is_operator, verdict)| {
        let scope = if is_operator { PolicyScope::Operator } else { PolicyScope::Tenant("blue".parse().unwrap()) };
        opinion("p", scope, verdict.and_then(|verdict| check(verdict, &request())))
    });
    prop::collection::vec(one, 0..6)
}

/// vCPUs and memory that an outcome leaves of the request; nothing when denied.
fn left(outcome: &Outcome) -> Option<(u32, u64)> {
    let Outcome::Allow(patches) = outcome else { return None };
    let asked = request();
    Some(patches.iter().fold((asked.vcpus, asked.memory_mib), |(vcpus, mib), patch| match *patch {
        Patch::CapVcpus(cap) => (cap, mib),
        Patch::CapMemoryMib(cap) => (vcpus, cap),
    }))
}

proptest! {
    #[test]
    fn one_more_plugin_of_the_tenant_never_widens(opinions in any_opinions(), more in any_verdict()) {
        let before = left(&combine(&opinions));
        let mut longer = opinions;
        let checked = more.and_then(|verdict| check(verdict, &request()));
        longer.push(opinion("own", PolicyScope::Tenant("blue".parse().unwrap()), checked));
        match (before, left(&combine(&longer))) {
            (None, after) => prop_assert_eq!(after, None),
            (Some(_), None) => {}
            (Some((vcpus, mib)), Some((vcpus_after, mib_after))) => {
                prop_assert!(vcpus_after <= vcpus && mib_after <= mib);
            }
        }
    }

    #[test]
    fn the_first_denial_or_fault_decides_and_nothing_else_denies(opinions in any_opinions()) {
        let outcome = combine(&opinions);
        match opinions.iter().find(|opinion| decides::<AdmitRequest>(opinion)) {
            Some(first) => {
                let expected = match &first.verdict {
                    Ok(Verdict::Deny { code, .. }) => code.clone(),
                    Err(fault) => fault.code().to_owned(),
                    Ok(other) => return Err(TestCaseError::fail(format!("{other:?} decides nothing"))),
                };
                prop_assert_eq!(code(&outcome), expected);
            }
            None => prop_assert!(["allowed", NO_OPINION].contains(&code(&outcome))),
        }
    }

    #[test]
    fn what_is_left_is_something_and_within_every_cap(opinions in any_opinions()) {
        let asked = request();
        if let Some((vcpus, mib)) = left(&combine(&opinions)) {
            prop_assert!(1 <= vcpus && vcpus <= asked.vcpus && 1 <= mib && mib <= asked.memory_mib);
            for opinion in &opinions {
                if let Ok(Verdict::Allow(patches)) = &opinion.verdict {
                    for patch in patches {
                        let is_kept = match *patch {
                            Patch::CapVcpus(cap) => vcpus <= cap,
                            Patch::CapMemoryMib(cap) => mib <= cap,
                        };
                        prop_assert!(is_kept);
                    }
                }
            }
        }
    }
}
