//! Tests of what people and programs read.

use super::plugin::{PluginView, SignerView, plugin_table};
use super::*;
use prost::Message;

fn admission() -> v1::Decision {
    v1::Decision {
        allowed: true,
        opinions: vec![v1::Opinion {
            plugin: "admission".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            scope: "operator".into(),
            verdict: "allow".into(),
            detail: "cap vCPUs at 2".into(),
            fuel: 1234,
            took: Some(prost_types::Duration { seconds: 0, nanos: 41_300 }),
        }],
        took: Some(prost_types::Duration { seconds: 0, nanos: 50_000 }),
        ..Default::default()
    }
}

fn vm() -> v1::VirtualMachine {
    v1::VirtualMachine {
        name: "tenants/acme/vms/web".into(),
        uid: "01J".into(),
        state: v1::virtual_machine::State::Failed.into(),
        failure: "guest triple-faulted".into(),
        spec: Some(v1::VirtualMachineSpec {
            vcpus: 2,
            memory_mib: 1024,
            boot: Some(v1::BootSpec { kernel: "k".into(), ..Default::default() }),
            disks: vec![v1::DiskSpec {
                id: "root".into(),
                volume: "hello.img".into(),
                read_only: true,
                direct: true,
                queues: 2,
                limits: None,
            }],
            nics: vec![v1::NicSpec {
                id: "eth0".into(),
                sriov: Some(v1::SriovNic::default()),
                limits: None,
                queues: 0,
                vhost: false,
            }],
            nvme: vec![v1::NvmeSpec {
                id: "data".into(),
                kind: Some(v1::nvme_spec::Kind::Namespace(v1::NvmeNamespace { min_bytes: 64 << 20 })),
            }],
            labels: [("team".into(), "web".into())].into(),
            ..Default::default()
        }),
        nvme: vec![v1::NvmeStatus { id: "data".into(), namespace_id: 2, size_bytes: 64 << 20, ..Default::default() }],
        nics: vec![v1::NicStatus { id: "eth0".into(), guest_address: "172.30.0.2/30".into(), ..Default::default() }],
        create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
        admission: Some(admission()),
        ..Default::default()
    }
}

#[test]
fn json_keys_mirror_the_proto() {
    let json: serde_json::Value = serde_json::from_str(&json(&VmView::from(vm()), true).unwrap()).unwrap();
    assert_eq!(json["state"], "FAILED");
    assert_eq!(json["spec"]["memory_mib"], 1024);
    assert_eq!(json["spec"]["labels"]["team"], "web");
    assert_eq!(json["spec"]["disks"][0]["read_only"], true);
    assert_eq!(json["create_time"], "1970-01-01T00:00:00Z");
    assert_eq!(json["update_time"], serde_json::Value::Null);
    assert_eq!(json["admission"]["opinions"][0]["took_ns"], 41_300);
    // Every field of the message has its key: one that is added to the proto must be added here.
    let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let messages: Vec<_> = described.file.iter().flat_map(|file| &file.message_type).collect();
    let keys = |json: &serde_json::Value, message: &str| {
        let json = json.as_object().unwrap();
        let message = messages.iter().find(|candidate| candidate.name() == message).unwrap();
        for field in message.field.iter().map(|field| field.name().replace("took", "took_ns")) {
            assert!(json.contains_key(&field), "{} lacks {field}", message.name());
        }
    };
    keys(&json, "VirtualMachine");
    keys(&json["spec"], "VirtualMachineSpec");
    keys(&json["spec"]["boot"], "BootSpec");
    keys(&json["spec"]["disks"][0], "DiskSpec");
    keys(&json["spec"]["nics"][0], "NicSpec");
    keys(&json["spec"]["nics"][0]["sriov"], "SriovNic");
    keys(&json["nics"][0], "NicStatus");
    keys(&json["admission"], "Decision");
    keys(&json["admission"]["opinions"][0], "Opinion");
    keys(&serde_json::to_value(PluginView::from(v1::Plugin::default())).unwrap(), "Plugin");
}

#[test]
fn people_see_the_decision_with_plugin_digest_time_and_patch() {
    let text = VmView::from(vm()).text();
    assert!(text.contains("admitted by: admission sha256:abababababab in 41.3 µs, allow: cap vCPUs at 2\n"), "{text}");
    assert!(text.contains("state:       FAILED (guest triple-faulted)\n"), "{text}");
    assert!(text.contains("memory:      1GiB\n"), "{text}");
    assert!(text.contains("labels:      team=web\n"), "{text}");
}

#[test]
fn tables_show_short_names_and_the_first_address() {
    let table = vm_table(&[VmView::from(vm())]);
    let line = table.lines().nth(1).unwrap();
    assert_eq!(line, "acme/web  FAILED  2      1GiB    172.30.0.2/30  guest triple-faulted");
}

#[test]
fn a_moment_outside_the_calendar_is_left_out() {
    assert_eq!(moment(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    assert_eq!(nanos(Some(prost_types::Duration { seconds: -1, nanos: 0 })), 0);
}

#[test]
fn a_plugin_shows_who_signed_it_and_whether_that_is_enough() {
    let signer = |name: &str| v1::PluginSigner { key: format!("sha256:{}", "ab".repeat(32)), name: name.into() };
    let cell = |signers: Vec<v1::PluginSigner>, code: &str| {
        let signers: Vec<_> = signers.into_iter().map(SignerView::from).collect();
        SignerView::cell(&signers, code)
    };
    assert_eq!(cell(vec![], ""), "");
    assert_eq!(cell(vec![signer("release"), signer("")], ""), "release sha256:abababababab");
    assert_eq!(cell(vec![], "signature.missing"), "(missing)");
    assert_eq!(cell(vec![signer("")], "signature.unknown-signer"), "sha256:abababababab (unknown-signer)");
    let plugin = v1::Plugin { signers: vec![signer("release")], ..Default::default() };
    assert!(plugin_table(&[PluginView::from(plugin)]).contains("release"));
}

#[test]
fn a_weight_is_shown_beside_the_name_and_the_score_as_it_was_given() {
    use v1::decision_explanation::{Cell, Row, cell::Mark};
    let link =
        |plugin: &str, weight| v1::DecisionLink { plugin: plugin.into(), weight, asked: true, ..Default::default() };
    let decision = v1::DecisionRecord {
        question: r#"{"candidates":[{}]}"#.into(),
        links: vec![link("near", 1), link("spread", 3), link("late", 5)],
        shadows: vec![v1::DecisionShadow { link: Some(link("next", 2)), ..Default::default() }],
        ..Default::default()
    };
    let cell = |score| Cell { mark: Mark::Score.into(), score, ..Default::default() };
    let (cells, shadow_cells) = (vec![cell(5), cell(-2)], vec![cell(9)]);
    let row = Row { candidate: "node 0".into(), cells, shadow_cells, total_score: -1, rank: 1 };
    let plugins = vec!["near".into(), "spread".into()];
    let (shadows, decision) = (vec!["next".into()], Some(decision));
    let table =
        super::decision::ExplanationView::from(v1::DecisionExplanation { decision, plugins, rows: vec![row], shadows })
            .text();
    let lines: Vec<Vec<_>> = table
        .lines()
        .skip(1)
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(lines[0], ["#", "CANDIDATE", "SCORE", "near", "spread ×3", "next ×2 (shadow)"], "{table}");
    assert_eq!(lines[1], ["1", "node 0", "-1", "5", "-2", "9"], "{table}");
    let plugin = |weight| plugin_table(&[PluginView::from(v1::Plugin { weight, mode: 1, ..Default::default() })]);
    assert!(plugin(3).contains("enforced ×3") && !plugin(1).contains('×'));
}

#[test]
fn a_plugin_that_cannot_be_loaded_again_says_so_in_place_of_its_summary() {
    let plugin = v1::Plugin { summary: "admits VMs".into(), ..Default::default() };
    assert!(plugin_table(&[PluginView::from(plugin.clone())]).contains("admits VMs"));
    let broken = v1::Plugin { failure: "component is damaged".into(), ..plugin };
    assert!(plugin_table(&[PluginView::from(broken)]).contains("BROKEN: component is damaged"));
}
