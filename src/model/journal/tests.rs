//! Chains that are whole, and everything that can be done to them.

use proptest::prelude::*;
use serde_json::json;

use super::samples::{chain, decision, enforced};
use super::*;

fn verify<'a>(lines: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<BTreeMap<TenantId, ChainEnd>, ChainFault> {
    let mut verifier = ChainVerifier::default();
    lines.into_iter().try_for_each(|line| verifier.line(line))?;
    verifier.finish()
}

fn lines(count: u64) -> Vec<Vec<u8>> {
    let entry = |at| if at % 2 == 0 { decision("web", at % 4 == 0) } else { enforced(at - 1) };
    chain("acme", (0..count).map(entry)).into_iter().map(|(_, line)| line).collect()
}

/// The chain after retention removed what is before `first`.
fn trimmed(count: u64, first: u64) -> Vec<Vec<u8>> {
    let whole = chain("acme", (0..count).map(|_| decision("web", true)));
    let removed = whole[usize::try_from(first).unwrap() - 1].0;
    let (previous, _) = whole[whole.len() - 1];
    let entry = JournalEntry::Checkpoint(CheckpointEntry { first, removed });
    let time_ns = 1_800_000_000_000_000_000;
    let checkpoint = JournalRecord::new("acme".parse().unwrap(), count, time_ns, previous, entry).to_line().unwrap();
    let kept = whole.into_iter().skip(usize::try_from(first).unwrap());
    kept.map(|(_, line)| line).chain([checkpoint.1]).collect()
}

#[test]
fn a_whole_chain_is_verified_and_says_where_it_ends() {
    let lines = lines(9);
    let (hash, last) = JournalRecord::from_line(&lines[8]).unwrap();
    let end = verify(&lines).unwrap()[&last.tenant];
    assert_eq!(end, ChainEnd { sequence: 8, hash, time_ns: last.time_ns, records: 9 });
    assert_eq!(verify(&Vec::<Vec<u8>>::new()).unwrap().len(), 0);
    // Chains of several tenants may be mixed.
    let other: Vec<_> = chain("globex", (0..9).map(|_| decision("db", true))).into_iter().map(|(_, l)| l).collect();
    let mixed: Vec<_> = lines.iter().zip(&other).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(verify(mixed).unwrap().len(), 2);
}

#[test]
fn what_is_missing_moved_or_from_elsewhere_is_found() {
    let whole = lines(6);
    let kind = |lines: &[Vec<u8>]| verify(lines).unwrap_err().kind;
    let without = |at: usize| [&whole[..at], &whole[at + 1..]].concat();
    assert_eq!(kind(&without(2)), FaultKind::Gap);
    assert_eq!(kind(&without(0)), FaultKind::Beheaded);
    let mut swapped = whole.clone();
    swapped.swap(2, 3);
    assert_eq!(kind(&swapped), FaultKind::Gap);
    assert_eq!(kind(&[whole.clone(), whole.clone()].concat()), FaultKind::Unlinked);
    // Another chain's record in the place of one: every number is right, the link is not.
    let mut forged = whole.clone();
    forged[3] = chain("acme", (0..6).map(|_| decision("db", true))).remove(3).1;
    let fault = verify(&forged).unwrap_err();
    assert_eq!((fault.kind, fault.sequence, fault.line), (FaultKind::Unlinked, Some(3), 4));
    assert!(fault.to_string().contains("tenant acme, record 3"), "{fault}");
}

#[test]
fn a_checkpoint_explains_a_later_begin_and_nothing_else_does() {
    let lines = trimmed(10, 4);
    assert_eq!(verify(&lines).unwrap().values().next().unwrap().records, 7);
    // More was taken away than retention took, or the checkpoint with it.
    assert_eq!(verify(&lines[1..]).unwrap_err().kind, FaultKind::Beheaded);
    assert_eq!(verify(&lines[..6]).unwrap_err().kind, FaultKind::Beheaded);
}

#[test]
fn a_table_shows_scores_and_reasons_of_each_candidate() {
    let rank = |marks: serde_json::Value| {
        json!({"rank": {"marks": marks, "reasons": [["numa.far", "node 1"]], "settings": []}}).into()
    };
    let link = |plugin: &str| ChainLink {
        plugin: plugin.into(),
        scope: PolicyScope::Operator,
        digest: PluginDigest([1; 32]),
        settings: BTreeMap::new(),
        weight: PluginWeight::default(),
    };
    let answer = |said| Answer { said, fuel: 1, took_ns: 1, kv: None, inventory: None, backtrace: Vec::new() };
    let entry = DecisionEntry {
        hook: "select-vf".into(),
        subject: "vms/web/nics/eth0".into(),
        question: json!({"candidates": [{"address": "0000:01:10.0"}, {"address": "0000:01:10.2"}, {}]}).into(),
        chain: vec![link("near"), link("spread"), link("quiet"), link("late")],
        answers: vec![
            answer(Said::Verdict(rank(json!([{"score": 5}, {"score": 7}, {"reject": 0}])))),
            answer(Said::Verdict(rank(json!([{"score": -1}, {"score": 1}, {"score": 1}])))),
            answer(Said::Verdict(json!("abstain").into())),
        ],
        outcome: json!({"select": {"order": [1, 0], "settings": {}}}).into(),
        took_ns: 1,
    };
    let loud = json!([{"score": 100}, {"reject": 0}, {"score": 1}]);
    let shadow = ShadowAnswer { link: link("next"), answer: answer(Said::Verdict(rank(loud))), instead: None };
    let table = entry.explain(&[shadow]);
    assert_eq!(table.plugins, ["near", "spread", "quiet"], "the fourth was not asked");
    let rows: Vec<_> = table.rows.iter().map(|row| (row.candidate.as_str(), row.total, row.rank)).collect();
    assert_eq!(rows, [("0000:01:10.2", 8, Some(1)), ("0000:01:10.0", 4, Some(2)), ("#2", 1, None)]);
    assert_eq!(
        table.rows[2].cells[0],
        Cell { mark: CellMark::Reject, code: "numa.far".into(), message: "node 1".into() }
    );
    assert_eq!(table.rows[0].cells[2].mark, CellMark::Abstain);
    // A shadow has a column, and changes no score.
    assert_eq!((table.shadows, table.rows[0].shadow_cells[0].mark), (vec!["next".into()], CellMark::Reject));
    assert_eq!(entry.answers[0].summary(), ("rank".into(), "2 scored, 1 rejected".into()));
    assert!(entry.is_allowed() && entry.denial().is_none());
    // What a plugin said is shown as it said it; the sum is what was decided by.
    let mut weighed = entry.clone();
    weighed.chain[1].weight = PluginWeight::new(3).unwrap();
    let table = weighed.explain(&[]);
    assert_eq!(table.rows.iter().map(|row| row.total).collect::<Vec<_>>(), [10, 2, 3]);
    assert_eq!(table.rows[0].cells[1].mark, CellMark::Score(1));
}

#[test]
fn a_weight_of_one_is_not_written_and_another_is_found_again() {
    let JournalEntry::Decision(decision) = decision("web", true) else { unreachable!() };
    let text = |link: &ChainLink| serde_json::to_string(link).unwrap();
    let mut link = decision.chain[0].clone();
    let plain = text(&link);
    assert!(!plain.contains("weight"), "{plain}");
    assert_eq!(serde_json::from_str::<ChainLink>(&plain).unwrap(), link);
    link.weight = PluginWeight::new(7).unwrap();
    assert!(text(&link).contains("\"weight\":7"), "{}", text(&link));
    assert_eq!(serde_json::from_str::<ChainLink>(&text(&link)).unwrap(), link);
    assert!(serde_json::from_str::<ChainLink>(&text(&link).replace(":7", ":101")).is_err());
}

#[test]
fn a_denial_is_told_from_an_allowance_whatever_the_hook() {
    let JournalEntry::Decision(denied) = decision("web", false) else { unreachable!() };
    assert_eq!(denied.denial().unwrap().plugin.as_deref(), Some("limits"));
    assert_eq!(denied.answers[0].summary(), ("deny".into(), "limit.vcpus: 4".into()));
    let JournalEntry::Decision(mut odd) = decision("web", true) else { unreachable!() };
    assert!(odd.is_allowed());
    odd.outcome = json!("allow").into();
    assert!(!odd.is_allowed(), "what is not understood is no allowance");
}

proptest! {
    #[test]
    fn any_altered_byte_of_any_record_is_found(line in 0usize..8, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut lines = lines(8);
        let at = at.index(lines[line].len());
        lines[line][at] ^= 1 << bit;
        let fault = verify(&lines).unwrap_err();
        prop_assert_eq!(fault.line, line as u64 + 1, "named as the first bad one");
    }

    #[test]
    fn any_bytes_put_in_or_taken_out_are_found(line in 0usize..8, at in any::<prop::sample::Index>(), more in "[ \t0a,}\"]?") {
        let mut lines = lines(8);
        let at = at.index(lines[line].len());
        if more.is_empty() { lines[line].remove(at); } else { lines[line].insert(at, more.as_bytes()[0]); }
        prop_assert!(verify(&lines).is_err());
    }

    #[test]
    fn retention_leaves_a_chain_that_verifies(count in 2u64..40, first in 1u64..39) {
        prop_assume!(first < count);
        prop_assert!(verify(&trimmed(count, first)).is_ok());
    }

    #[test]
    fn lines_read_back_and_foreign_ones_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
        let _ = JournalRecord::from_line(&bytes);
        let _ = ChainVerifier::default().line(&bytes);
        let _ = ChainVerifier::default().line(format!("{{\"hash\":\"sha256:{text}").as_bytes());
        for line in lines(4) {
            let (hash, record) = JournalRecord::from_line(&line).unwrap();
            prop_assert_eq!(record.to_line().unwrap(), (hash, line));
        }
    }
}
