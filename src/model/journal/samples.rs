//! Chains as a daemon would write them.

use serde_json::json;

use super::*;
/// A decision of `admit` about the VM `vm`.
pub fn decision(vm: &str, is_allowed: bool) -> JournalEntry {
    let verdict =
        if is_allowed { json!({"allow": []}) } else { json!({"deny": {"code": "limit.vcpus", "message": "4"}}) };
    let denial = json!({"deny": {"code": "limit.vcpus", "message": "4", "plugin": "limits"}});
    JournalEntry::Decision(Box::new(DecisionEntry {
        hook: "admit".into(),
        subject: format!("vms/{vm}"),
        question: json!({"tenant": "acme", "vm": vm, "vcpus": 4}).into(),
        chain: vec![ChainLink {
            plugin: "limits".into(),
            scope: PolicyScope::Operator,
            digest: PluginDigest([9; 32]),
            settings: BTreeMap::from([("max-vcpus".into(), "2".into())]),
            weight: Default::default(),
        }],
        answers: vec![Answer {
            said: Said::Verdict(verdict.into()),
            fuel: 1234,
            took_ns: 9000,
            kv: None,
            inventory: None,
            backtrace: Vec::new(),
        }],
        outcome: if is_allowed { json!({"allow": []}) } else { denial }.into(),
        took_ns: 20_000,
    }))
}

/// What was done about decision `decision`.
pub fn enforced(decision: u64) -> JournalEntry {
    JournalEntry::Enforcement(EnforcementEntry { decision, enforcement: Enforcement::Enforced("vm".into()) })
}

/// A chain of `entries` for `tenant` from its start: lines with their hashes.
pub fn chain(tenant: &str, entries: impl IntoIterator<Item = JournalEntry>) -> Vec<(RecordHash, Vec<u8>)> {
    let mut previous = RecordHash::START;
    let mut lines = Vec::new();
    for (sequence, entry) in (0..).zip(entries) {
        let time_ns = 1_700_000_000_000_000_000 + sequence * 1000;
        let record = JournalRecord::new(tenant.parse().unwrap(), sequence, time_ns, previous, entry);
        let (hash, line) = record.to_line().unwrap();
        previous = hash;
        lines.push((hash, line));
    }
    lines
}
