//! Shadows beside a chain: they are heard, and decide nothing.

use super::*;
use crate::model::{
    Answer, DecisionEntry, DecisionId, DetachRequest, PolicyScope, Said, ShadowAnswer, VfCandidate, VfOutcome, VmFacts,
};
use PluginMode::{Enforced, Shadow};

/// A chain in this order.
fn mixed(plugins: &[(&str, &LoadedPlugin, PluginMode)]) -> Arc<[Bound]> {
    plugins.iter().map(|(name, plugin, mode)| Bound { mode: *mode, ..bound(name, plugin) }).collect()
}

/// The decision, its record, and what shadows say once it is there.
async fn recorded<D>(unrecorded: Unrecorded<D>) -> (D, DecisionEntry, Vec<ShadowAnswer>) {
    let entry = unrecorded.entry().clone();
    let write = |tenant, _, _| async move { Ok::<_, ()>(DecisionId { tenant, sequence: 0 }) };
    let (_, decision, shadows) = unrecorded.record(write).await.unwrap();
    let said = match shadows {
        Some(shadows) => shadows.ask().await,
        None => Vec::new(),
    };
    (decision, entry, said)
}

/// What makes two answers the same: all but the time.
fn heard(answers: &[Answer]) -> Vec<(Said, u64)> {
    answers.iter().map(|answer| (answer.said.clone(), answer.fuel)).collect()
}

fn fault(answer: &ShadowAnswer) -> &str {
    match &answer.answer.said {
        Said::Fault(fault) => fault.code(),
        Said::Verdict(_) => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn no_shadow_changes_what_a_chain_comes_to_wherever_it_stands() {
    let host = host();
    let (open, cap) = (admission(&host, []).await, admission(&host, [("max-vcpus", "3"), ("mode", "cap")]).await);
    let strict = admission(&host, [("max-vcpus", "2")]).await;
    let mut shadows = vec![strict.clone(), open.clone()];
    for name in ["trap", "loop", "memory", "log-flood", "forge", "undecided", "abstain"] {
        shadows.push(hostile(&host, name).await.unwrap());
    }
    for chain in [&[&open, &cap][..], &[&open, &strict], &[]] {
        let enforced: Vec<_> =
            ["a", "m"].into_iter().zip(chain).map(|(name, plugin)| (name, *plugin, Enforced)).collect();
        let (alone, entry, none) = recorded(host.admit(mixed(&enforced), request()).await).await;
        assert!(none.is_empty());
        for shadow in &shadows {
            for place in 0..=enforced.len() {
                let mut with = enforced.clone();
                with.insert(place, ("s", shadow, Shadow));
                let (decision, with_entry, said) = recorded(host.admit(mixed(&with), request()).await).await;
                assert_eq!(decision.outcome, alone.outcome, "{shadow:?}");
                assert_eq!((&with_entry.chain, &with_entry.outcome), (&entry.chain, &entry.outcome), "{shadow:?}");
                assert_eq!(heard(&with_entry.answers), heard(&entry.answers), "{shadow:?}");
                assert_eq!((said.len(), said[0].link.plugin.as_str()), (1, "s"));
            }
        }
    }
    // The chain was never left alone for what they did; they are, apart from it.
    let trap = hostile(&host, "trap").await.unwrap();
    let breakers = |mode| host.breakers(&PolicyScope::Operator, "s", &trap, mode);
    assert!(breakers(Enforced).is_empty());
    assert_eq!(breakers(Shadow).len(), 1);
}

#[tokio::test]
async fn a_shadow_says_what_there_would_have_been_with_it_alone() {
    let host = host();
    let open = admission(&host, []).await;
    let cap = admission(&host, [("max-vcpus", "2"), ("mode", "cap")]).await;
    let (strict, abstain) = (admission(&host, [("max-vcpus", "2")]).await, hostile(&host, "abstain").await.unwrap());
    let trap = hostile(&host, "trap").await.unwrap();
    let with = [("cap", &cap, Shadow), ("open", &open, Enforced), ("strict", &strict, Shadow), ("trap", &trap, Shadow)];
    let (decision, _, said) = recorded(host.admit(mixed(&with), request()).await).await;
    assert_eq!(decision.outcome, Outcome::Allow(vec![]));
    let instead: Vec<_> = said.iter().map(|shadow| shadow.instead.as_ref().unwrap().to_value()).collect();
    assert_eq!(instead[0], serde_json::json!({"allow": [{"cap_vcpus": 2}]}), "no other shadow has a part in it");
    assert_eq!((&instead[1]["deny"]["code"], &instead[1]["deny"]["plugin"]), (&"limit.vcpus".into(), &"strict".into()));
    assert_eq!((&instead[2]["deny"]["code"], fault(&said[2])), (&"policy.trap".into(), "policy.trap"));

    // What is denied stays denied, whoever stands before or behind it.
    let with = [("a", &open, Shadow), ("strict", &strict, Enforced), ("b", &trap, Shadow), ("c", &open, Shadow)];
    let (decision, _, said) = recorded(host.admit(mixed(&with), request()).await).await;
    assert_eq!(code(&decision), "limit.vcpus");
    assert_eq!(said.iter().map(|shadow| &shadow.instead).collect::<Vec<_>>(), [&None; 3]);
    assert_eq!(said[0].answer.said, Said::Verdict(serde_json::json!({"allow": []}).into()));
    // The chain came to nothing, and an operator's shadow would have allowed. One without an opinion changes nothing.
    let with = [("a", &abstain, Enforced), ("b", &open, Shadow), ("c", &abstain, Shadow)];
    let (decision, _, said) = recorded(host.admit(mixed(&with), request()).await).await;
    assert_eq!(code(&decision), "policy.no-opinion");
    assert_eq!(
        (said[0].instead.clone(), said[1].instead.clone()),
        (Some(serde_json::json!({"allow": []}).into()), None)
    );
}

#[tokio::test]
async fn shadows_alone_are_an_empty_chain() {
    let host = host();
    let open = admission(&host, []).await;
    let (decision, entry, said) = recorded(host.admit(mixed(&[("a", &open, Shadow)]), request()).await).await;
    assert_eq!(code(&decision), "policy.no-opinion");
    assert!(entry.chain.is_empty() && entry.answers.is_empty());
    assert_eq!(said[0].instead, Some(serde_json::json!({"allow": []}).into()));
    // A veto that nobody has.
    let keeps = hostile(&host, "detach-keep").await.unwrap();
    let vm = VmFacts {
        name: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 64,
        disks: 1,
        nics: 0,
        is_running: true,
        labels: None,
        images: None,
    };
    let (tenant, device) = ("blue".parse().unwrap(), "data".parse().unwrap());
    let request = DetachRequest { tenant, vm, device, is_forced: false };
    let (decision, _, said) = recorded(host.detach(mixed(&[("a", &keeps, Shadow)]), request).await).await;
    assert_eq!(code(&decision), "allowed");
    assert_eq!(said[0].instead.as_ref().unwrap().to_value()["deny"]["code"], "device.kept");
}

#[tokio::test]
async fn a_shadow_chooses_no_function() {
    let host = host();
    let load = |entries: Vec<(&'static str, &'static str)>| {
        let settings = entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        host.load(component("sriov-net"), settings)
    };
    let (plain, near) = (load(vec![]).await.unwrap(), load(vec![("numa-node", "0")]).await.unwrap());
    let question = super::select_vf::question();
    let candidates: Vec<VfCandidate> = question.candidates.clone();
    let chain = mixed(&[("a", &near, Shadow), ("b", &plain, Enforced)]);
    let (decision, entry, said) = recorded(host.select_vf(chain, question).await).await;
    let VfOutcome::Select { order, .. } = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!(order, &[1, 0]);
    assert_eq!(said[0].instead.as_ref().unwrap().to_value()["select"]["order"], serde_json::json!([0, 1]));
    let table = entry.explain(&said);
    assert_eq!((table.plugins, table.shadows), (vec!["b".to_owned()], vec!["a".to_owned()]));
    assert!(table.rows.len() == candidates.len() && table.rows.iter().all(|row| row.shadow_cells.len() == 1));
}

#[tokio::test]
async fn of_whom_nobody_asked_nobody_knows() {
    let host = host_with(|limits| limits.queue_depth = 0);
    let open = admission(&host, []).await;
    let chain = mixed(&[("a", &open, Enforced), ("b", &open, Shadow), ("c", &open, Shadow)]);
    let (decision, _, said) = recorded(host.admit(chain, request()).await).await;
    assert_eq!(code(&decision), "policy.unavailable");
    assert_eq!(said.iter().map(fault).collect::<Vec<_>>(), ["policy.unavailable"; 2]);
    assert!(said.iter().all(|shadow| shadow.instead.is_none()));
    // One that did not load again after a restart neither.
    let host = self::host();
    let open = admission(&host, []).await;
    let broken = LoadedPlugin::broken("b", open.digest(), "gone");
    let chain = mixed(&[("a", &open, Enforced), ("b", &broken, Shadow)]);
    let (decision, _, said) = recorded(host.admit(chain, request()).await).await;
    assert_eq!((code(&decision), fault(&said[0])), ("allowed", "policy.unavailable"));
    assert_eq!(said[0].instead, None);
}

#[tokio::test]
async fn nobody_asks_a_shadow_of_what_is_only_tried() {
    let host = host();
    let (open, trap) = (admission(&host, []).await, hostile(&host, "trap").await.unwrap());
    for _ in 0..8 {
        let chain = mixed(&[("a", &open, Enforced), ("s", &trap, Shadow)]);
        assert_eq!(code(&host.admit(chain, request()).await.dry_run()), "allowed");
    }
    assert!(host.breakers(&PolicyScope::Operator, "s", &trap, Shadow).is_empty());
}

#[tokio::test]
async fn a_shadow_that_is_asked_again_answers_the_same() {
    let host = host();
    let (open, strict) = (admission(&host, []).await, admission(&host, [("max-vcpus", "2")]).await);
    let chain = mixed(&[("a", &open, Enforced), ("s", &strict, Shadow)]);
    let (_, entry, said) = recorded(host.admit(chain, request()).await).await;
    let replayer = |name: &str, plugin: &LoadedPlugin| {
        Replayer::new(host.clone(), plugin.clone(), name.into(), PolicyScope::Operator, None)
    };
    assert_eq!(replayer("a", &open).again(&entry).unwrap().change, Change::Same);
    assert_eq!(replayer("s", &strict).again(&entry), None, "it was not in the chain");
    let again = replayer("s", &strict).again_as_shadow(&entry, &said).unwrap();
    assert_eq!((again.change, again.after.fuel), (Change::Same, said[0].answer.fuel));
    let mut other = said.clone();
    other[0].answer.fuel += 1;
    assert_eq!(replayer("s", &strict).again_as_shadow(&entry, &other).unwrap().change, Change::NotDeterministic);
}
