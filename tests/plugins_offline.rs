//! What a plugin's author has: the commands that need no daemon, and fixtures made of recorded decisions. Needs no guest.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::assets::plugin;
use crate::support::corpus::corpus;
use crate::support::desk::{Desk, run};
use crate::support::unhurried::unhurried;
use crate::support::{Host, facts, small};
use ostler::api::v1;

/// What is refused: its name, its bytes, its settings.
type Refused = (String, Vec<u8>, &'static [(&'static str, &'static str)]);

/// A question of `admit` about a VM of so many vCPUs.
fn admit(vcpus: u32) -> Value {
    let in_use = json!({"vms": 0, "vcpus": 0, "memory_mib": 0});
    json!({"tenant": "acme", "vm": "web", "vcpus": vcpus, "memory_mib": 128, "disks": 0, "nics": 0, "in_use": in_use})
}

fn limit(vcpus: u32, settings: &Value) -> Value {
    json!({"hook": "admit", "settings": settings, "question": admit(vcpus)})
}

#[test]
fn the_outside_of_a_component_is_shown_and_nothing_of_it_is_run() {
    let desk = Desk::new();
    let seen = desk.ostler(&[&"inspect", &desk.plugin("admission"), &"-o", &"json"]).json();
    assert_eq!((&seen["hooks"], &seen["refused_imports"]), (&json!(["admit", "attach"]), &json!([])));
    assert_eq!(seen["packages"], json!(["ostler:policy@0.1.0"]));
    assert!(seen["exports"].as_array().unwrap().contains(&json!("ostler:policy/lifecycle@0.1.0")), "{seen}");
    let table = desk.ostler(&[&"inspect", &desk.plugin("sriov-net")]);
    assert!(table.out.contains("select-vf") && table.out.contains("sha256:"), "{}", table.out);
    // What would be refused is told, not refused: the import of a clock, and a start that never ends.
    let clock = desk.ostler(&[&"inspect", &desk.plugin("hostile/clock")]);
    assert!(clock.code == Some(0) && clock.out.contains("no plugin may import this"), "{}", clock.out);
    assert_eq!(desk.ostler(&[&"inspect", &desk.plugin("hostile/describe-loop")]).code, Some(0));
    let module = desk.ostler(&[&"inspect", &desk.plugin("hostile/core-module")]);
    assert!(module.code == Some(2) && module.error.contains("code: plugin.core-module"), "{}", module.error);
    assert_eq!(desk.ostler(&[&"inspect", &"missing.wasm"]).code, Some(2));
}

#[test]
fn a_check_says_what_a_daemon_would_say() {
    let desk = Desk::new();
    let host = Host::start();
    let acme = host.tenant("acme");
    let admission = desk.plugin("admission");
    let seen = desk.ostler(&[&"check", &admission, &"--setting", &"max-vcpus=2", &"-o", &"json"]).json();
    let loaded = acme.load("tenants/acme/plugins/own", &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    assert_eq!((&seen["digest"], &seen["version"]), (&json!(loaded.digest), &json!(loaded.version)));
    assert_eq!(seen["hooks"], json!(loaded.hooks));
    let larger = seen["code_bytes"].as_u64().unwrap() > seen["size_bytes"].as_u64().unwrap();
    assert!(larger && seen["took_ns"].as_u64().unwrap() > 0, "{seen}");
    let table = desk.ostler(&[&"check", &admission]);
    assert!(table.code == Some(0) && table.out.contains("of machine code"), "{}", table.out);

    let mut refusals: Vec<Refused> =
        corpus().into_iter().map(|(name, bytes, _)| (name.to_owned(), bytes, &[][..])).collect();
    for name in ["not-wasm", "truncated", "no-hook", "describe-trap", "describe-loop", "large", "bad-name"] {
        refusals.push((name.to_owned(), plugin(&format!("hostile/{name}")), &[]));
    }
    refusals.push(("unknown setting".to_owned(), plugin("admission"), &[("max-cpus", "2")]));
    refusals.push(("bad setting".to_owned(), plugin("admission"), &[("max-vcpus", "many")]));
    for (name, bytes, settings) in refusals {
        let told = facts(&unhurried(|| acme.load("tenants/acme/plugins/own", &bytes, settings)).unwrap_err());
        let file = desk.write("refused.wasm", &bytes);
        let settings: Vec<_> = settings.iter().map(|(key, value)| format!("--setting={key}={value}")).collect();
        let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"check", &file];
        arguments.extend(settings.iter().map(|setting| setting as &dyn AsRef<std::ffi::OsStr>));
        let said = desk.ostler(&arguments);
        assert_eq!(said.code, Some(2), "{name}: {}", said.error);
        assert!(said.error.contains(&format!("error: {}\n", told.message)), "{name}: {told:?} {}", said.error);
        assert!(said.error.contains(&format!("code: {}", told.metadata["code"])), "{name}: {}", said.error);
    }
}

#[test]
fn a_run_shows_the_answer_its_cost_and_what_was_logged() {
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    let fixture = desk.fixture("two.json", &limit(4, &json!({"max-vcpus": "2"})));
    let seen = desk.ostler(&[&"run", &admission, &"--fixture", &fixture, &"-o", &"json"]);
    let (code, seen) = (seen.code, seen.json());
    assert_eq!((code, &seen["said"]["verdict"]["deny"]["code"]), (Some(0), &json!("limit.vcpus")), "{seen}");
    assert_eq!((&seen["outcome"]["deny"]["plugin"], &seen["subject"]), (&json!("admission"), &json!("vms/web")));
    assert!(seen["fuel"].as_u64().unwrap() > 0 && seen["took_ns"].as_u64().unwrap() > 0, "{seen}");
    let table = desk.ostler(&[&"run", &admission, &"--fixture", &fixture, &"--setting", &"max-vcpus=4"]);
    assert!(table.code == Some(0) && table.out.contains("answer:  allow"), "{}{}", table.out, table.error);

    // Candidates are a table, with the reason against each.
    let pf = json!({
        "address": "0000:01:00.0", "name": "eth0", "numa_node": null, "root": null, "link_mbps": 1000,
        "total_vfs": 8, "free_vfs": 2, "own_vfs": 0, "other_tenants": 0,
    });
    let vf = |index: u32, last: &str| {
        let address = format!("0000:01:10.{index}");
        json!({"address": address, "pf": 0, "index": index, "last_tenant": last})
    };
    let question = json!({
        "tenant": "acme", "vm": "web", "vcpus": 1, "memory_mib": 128, "disks": 0, "nics": 1, "nic": "eth0",
        "wish": {"mac": null, "vlan": null}, "pfs": [pf], "candidates": [vf(0, "other"), vf(1, "same")],
    });
    let rows = json!({"hook": "select-vf", "settings": {"last-tenant": "refuse"}, "question": question});
    let fixture = desk.fixture("vf.json", &rows);
    let table = desk.ostler(&[&"run", &desk.plugin("sriov-net"), &"--fixture", &fixture]).out;
    assert!(table.contains("1  0000:01:10.1  250\n"), "{table}");
    assert!(table.contains("-  0000:01:10.0  no: tenant.last-other: another tenant had this VF"), "{table}");

    // A plugin that fails is told with its code, and with what it left in the log until then.
    let fixture = desk.fixture("plain.json", &limit(1, &json!({})));
    let seen = desk.ostler(&[&"run", &desk.plugin("hostile/log-flood"), &"--fixture", &fixture]);
    assert_eq!(seen.code, Some(1));
    assert!(seen.out.contains("warn: all is well") && seen.out.contains("more were dropped"), "{}", seen.out);
    assert!(seen.error.contains("policy.trap"), "{}", seen.error);
    for (name, code) in [("loop", "policy.budget"), ("memory", "policy.memory"), ("widen", "policy.bad-answer")] {
        let seen = desk.ostler(&[&"run", &desk.plugin(&format!("hostile/{name}")), &"--fixture", &fixture]);
        assert!(seen.code == Some(1) && seen.error.contains(code), "{name}: {}{}", seen.out, seen.error);
    }
    // And where it failed: the opcode of `unreachable` (core specification §5.4.1), and the end of the function behind it.
    let trap = desk.plugin("hostile/trap");
    let seen = desk.ostler(&[&"run", &trap, &"--fixture", &fixture, &"-o", &"json"]).json();
    let (function, at) = seen["backtrace"][0].as_str().unwrap().rsplit_once(" at 0x").unwrap();
    let at = usize::from_str_radix(at, 16).unwrap();
    assert_eq!(
        (&std::fs::read(&trap).unwrap()[at..at + 2], seen["backtrace"].as_array().unwrap().len()),
        (&[0, 0x0b][..], 1)
    );
    let text = desk.ostler(&[&"run", &trap, &"--fixture", &fixture]).out;
    assert!(function.starts_with("function ") && text.contains(&format!("failed in: {function} at")), "{text}");
}

/// Where the fixtures of a shipped plugin are.
fn fixtures(plugin: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins").join(plugin).join("fixtures")
}

#[test]
fn every_shipped_plugin_has_fixtures_and_keeps_to_them() {
    let desk = Desk::new();
    let folders = std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins")).unwrap();
    let names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    // The others are for authors; the fixtures of `examples` are asked in four languages (`languages.rs`).
    let mut shipped: Vec<_> = names.filter(|name| !["build", "examples", "sdk"].contains(&name.as_str())).collect();
    shipped.sort();
    for name in &shipped {
        let component = desk.plugin(name);
        let seen = desk.ostler(&[&"test", &component, &fixtures(name)]);
        assert_eq!(seen.code, Some(0), "{name}: {}{}", seen.out, seen.error);
        let hook_of = |file: std::io::Result<std::fs::DirEntry>| {
            let fixture = std::fs::read(file.unwrap().path()).unwrap();
            serde_json::from_slice::<Value>(&fixture).unwrap()["hook"].to_string()
        };
        let asked: BTreeSet<_> = std::fs::read_dir(fixtures(name)).unwrap().map(hook_of).collect();
        let hooks = desk.ostler(&[&"inspect", &component, &"-o", &"json"]).json()["hooks"].clone();
        let hooks: BTreeSet<_> = hooks.as_array().unwrap().iter().map(Value::to_string).collect();
        assert_eq!(asked, hooks, "{name}: each hook that it serves has a fixture");
    }
    assert!(shipped.len() >= 7, "{shipped:?}");
}

#[test]
fn candidates_of_a_placement_are_a_table_with_the_reason_against_each() {
    let desk = Desk::new();
    let placement = desk.plugin("placement");
    let fixtures = fixtures("placement");
    let table = desk.ostler(&[&"run", &placement, &"--fixture", &fixtures.join("reserved.json")]).out;
    assert!(table.contains("1  node 1     -1000\n"), "{table}");
    assert!(table.contains("-  node 0     no: memory.promised: node 0 has 16384 MiB"), "{table}");
    let bench = desk.ostler(&[&"bench", &placement, &"--fixture", &fixtures.join("near.json")]);
    assert_eq!(bench.code, Some(0), "{}", bench.error);
}

#[test]
fn an_observer_is_told_the_fixtures_events_and_what_it_keeps_is_compared() {
    let desk = Desk::new();
    let tally = desk.plugin("tally");
    let fixtures = fixtures("tally");
    let first = fixtures.join("first.json");
    let seen = desk.ostler(&[&"run", &tally, &"--fixture", &first, &"-o", &"json"]).json();
    assert_eq!((&seen["subject"], &seen["outcome"]), (&json!("events/0-2"), &json!({"heard": 3})));
    assert_eq!((&seen["kv"]["wrote"]["failed"], &seen["verdict"]), (&json!("1"), &json!("heard")));
    assert_eq!(seen["log"][0]["line"], json!("web has panicked"), "{seen}");
    assert_eq!(desk.ostler(&[&"bench", &tally, &"--fixture", &first]).code, Some(0));
    // One that traps is said to; what is no event of this contract is refused.
    let seen = desk.ostler(&[&"run", &desk.plugin("hostile/observe-trap"), &"--fixture", &first]);
    assert!(seen.code == Some(1) && seen.error.contains("policy.trap"), "{}{}", seen.out, seen.error);
    let unknown = json!({"tenant": "acme", "events": [{"sequence": 0, "moment_s": 0, "what": {"vm_cloned": "web"}}]});
    let unknown = desk.fixture("unknown.json", &json!({"hook": "observe", "question": unknown}));
    let seen = desk.ostler(&[&"run", &tally, &"--fixture", &unknown]);
    assert!(seen.code == Some(2) && seen.error.contains("no question of the hook observe"), "{}", seen.error);
}

#[test]
fn a_plugin_that_remembers_has_its_memory_from_the_fixture() {
    let desk = Desk::new();
    let rate = desk.plugin("rate");
    let fixtures = fixtures("rate");
    let ran = desk.ostler(&[&"run", &rate, &"--fixture", &fixtures.join("third.json")]).out;
    assert!(ran.contains("{\"count\":\"2\",\"window\":\"2\"}"), "{ran}");
    assert!(ran.contains("{\"count\":\"3\",\"window\":\"2\"}"), "{ran}");
    // What is written and not expected is a difference; nothing is remembered from one fixture to the next.
    let mut other: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures.join("first.json")).unwrap()).unwrap();
    other["writes"] = json!({"count": "7"});
    let dir = desk.fixture("other.json", &other).parent().unwrap().to_owned();
    let seen = desk.ostler(&[&"test", &rate, &dir]);
    assert_eq!(seen.code, Some(1));
    assert!(seen.out.contains("writes.count: expected \"7\", is \"1\""), "{}", seen.out);
    assert!(seen.out.contains("writes.window: not expected"), "{}", seen.out);
    let seen = desk.ostler(&[&"test", &rate, &dir, &"--update"]);
    assert!(seen.code == Some(0) && seen.out.contains("1 updated"), "{}", seen.out);
    // What it must be granted is told before any daemon is asked.
    let seen = desk.ostler(&[&"inspect", &rate]);
    assert!(seen.code == Some(0) && seen.out.contains("kv: what it must be granted"), "{}", seen.out);
    let seen = desk.ostler(&[&"check", &rate]);
    assert!(seen.code == Some(2) && seen.error.contains("code: plugin.not-granted"), "{}", seen.error);
    assert!(seen.error.contains("`--grant kv`"), "{}", seen.error);
    assert_eq!(desk.ostler(&[&"check", &rate, &"--grant", &"kv"]).code, Some(0));
    assert_eq!(desk.ostler(&[&"check", &rate, &"--grant", &"clock"]).code, Some(2));
    let seen = desk.ostler(&[&"inspect", &desk.plugin("admission")]);
    assert!(!seen.out.contains("kv"), "{}", seen.out);
}

#[test]
fn a_plugin_that_sees_what_the_tenant_has_sees_that_of_the_fixture() {
    let desk = Desk::new();
    let family = desk.plugin("family");
    let fixtures = fixtures("family");
    let ran = desk.ostler(&[&"run", &family, &"--fixture", &fixtures.join("full.json"), &"-o", &"json"]).json();
    assert_eq!((&ran["inventory"]["revision"], &ran["inventory"]["rest"]), (&json!(12), &json!(0)));
    assert_eq!(ran["inventory"]["vms"]["web-2"]["numa_node"], json!(0));
    // What is misspelt is told, and not taken for nothing.
    let mut odd: Value = serde_json::from_slice(&std::fs::read(fixtures.join("full.json")).unwrap()).unwrap();
    odd["inventory"]["vms"]["web"]["state"] = json!("off");
    let odd = desk.fixture("odd.json", &odd);
    let seen = desk.ostler(&[&"run", &family, &"--fixture", &odd]);
    assert!(seen.code == Some(2) && seen.error.contains("unknown variant `off`"), "{}", seen.error);
    let seen = desk.ostler(&[&"inspect", &family]);
    assert!(seen.code == Some(0) && seen.out.contains("inventory: what it must be granted"), "{}", seen.out);
    let seen = desk.ostler(&[&"check", &family, &"--grant", &"kv"]);
    assert!(seen.code == Some(2) && seen.error.contains("`--grant inventory`"), "{}", seen.error);
    assert_eq!(desk.ostler(&[&"check", &family, &"--grant", &"inventory"]).code, Some(0));
}

#[test]
fn what_is_no_fixture_or_does_not_fit_is_told() {
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    let mut other = limit(1, &json!({}));
    other["hook"] = json!("select-vf");
    let mut unknown = other.clone();
    unknown["hook"] = json!("boot");
    let mut lacking = limit(1, &json!({}));
    lacking["question"].as_object_mut().unwrap().remove("vcpus");
    let mut odd = limit(1, &json!({}));
    odd["quesiton"] = json!(1);
    for (fixture, told) in [
        (other, "does not serve the hook select-vf; it serves admit, attach"),
        (unknown, "there is no hook \"boot\""),
        (lacking, "missing field `vcpus`"),
        (odd, "quesiton"),
        (limit(1, &json!({"max-cpus": "1"})), "plugin.bad-settings"),
    ] {
        let fixture = desk.fixture("wrong.json", &fixture);
        let seen = desk.ostler(&[&"run", &admission, &"--fixture", &fixture]);
        assert!(seen.code == Some(2) && seen.error.contains(told), "{told}: {}", seen.error);
    }
}

#[test]
fn fixtures_pass_fail_with_the_difference_and_are_written_on_request() {
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    let mut allows = limit(1, &json!({"max-vcpus": "2"}));
    allows["expect"] = json!({"verdict": {"allow": []}});
    let mut wrong = limit(4, &json!({"max-vcpus": "2", "mode": "cap"}));
    wrong["expect"] = json!({"verdict": {"allow": [{"cap_vcpus": 3}]}});
    wrong["note"] = json!("capped");
    desk.fixture("f/1-allows.json", &allows);
    desk.fixture("f/2-wrong.json", &wrong);
    desk.fixture("f/3-new.json", &limit(1, &json!({})));
    desk.fixture("f/4-settings.json", &limit(1, &json!({"max-vcpus": "many"})));
    desk.write("f/README", b"no fixture");
    let test = |arguments: &[&dyn AsRef<std::ffi::OsStr>]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"test", &admission, &"f"];
        all.extend(arguments);
        desk.ostler(&all)
    };
    let seen = test(&[]);
    assert_eq!(seen.code, Some(1), "{}{}", seen.out, seen.error);
    let lines: Vec<_> = seen.out.lines().collect();
    assert!(lines[0].starts_with("ok      1-allows.json  allow"), "{}", seen.out);
    assert!(lines[1].starts_with("FAILED  2-wrong.json  allow"), "{}", seen.out);
    assert_eq!(lines[2].trim(), "verdict.allow[0].cap_vcpus: expected 3, is 2");
    assert!(lines[3].starts_with("FAILED  3-new.json") && lines[4].contains("--update"), "{}", seen.out);
    assert!(lines[5].starts_with("FAILED  4-settings.json  plugin.bad-settings"), "{}", seen.out);
    assert_eq!(lines[6], "1 passed, 3 failed");

    let seen = test(&[&"--update", &"-o", &"json"]);
    let results: Vec<_> = seen.json()["fixtures"].as_array().unwrap().iter().map(|one| one["result"].clone()).collect();
    assert_eq!((seen.code, results), (Some(1), ["ok", "updated", "updated", "failed"].map(Value::from).to_vec()));
    std::fs::remove_file(desk.path().join("f/4-settings.json")).unwrap();
    let seen = test(&[]);
    assert!(seen.code == Some(0) && seen.out.ends_with("3 passed, 0 failed\n"), "{}{}", seen.out, seen.error);
    let written: Value = serde_json::from_slice(&std::fs::read(desk.path().join("f/2-wrong.json")).unwrap()).unwrap();
    assert_eq!((&written["note"], &written["question"]), (&wrong["note"], &wrong["question"]));
    assert_eq!(written["expect"], json!({"verdict": {"allow": [{"cap_vcpus": 2}]}}));

    // A failure of the plugin can be what is expected.
    let mut fault = limit(1, &json!({}));
    fault["expect"] = json!({"fault": {"budget": {"fuel": 20_000_000}}});
    desk.fixture("loops/loop.json", &fault);
    let seen = desk.ostler(&[&"test", &desk.plugin("hostile/loop"), &"loops"]);
    assert!(seen.code == Some(0) && seen.out.contains("policy.budget"), "{}{}", seen.out, seen.error);
    std::fs::create_dir(desk.path().join("none")).unwrap();
    assert_eq!(desk.ostler(&[&"test", &admission, &"none"]).code, Some(2));
}

#[test]
fn a_fixture_of_a_recorded_decision_gives_the_recorded_answer_for_the_same_fuel() {
    let host = Host::without_policy();
    host.operator().load("operator/plugins/admission", &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    let big = v1::VirtualMachineSpec { vcpus: 4, ..small() };
    let denied = facts(&acme.register("big", big).unwrap_err()).metadata["decision"].clone();
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    let export = desk.write("acme.jsonl", &acme.export("").unwrap());
    let records = acme.decisions(v1::ListDecisionsRequest::default()).unwrap();
    assert_eq!(records.len(), 2);
    for record in &records {
        let number = record.name.rsplit('/').next().unwrap();
        let made = run(host.command("tenant-acme").args(["plugin", "fixture", number]));
        assert_eq!(made.code, Some(0), "{}", made.error);
        let again = desk.ostler(&[&"fixture", &format!("acme/{number}"), &"--file", &export]);
        assert_eq!((again.code, &again.out), (Some(0), &made.out), "{}", again.error);
        let fixture = desk.write(&format!("f/{number}.json"), made.out.as_bytes());
        let seen = desk.ostler(&[&"run", &admission, &"--fixture", &fixture, &"-o", &"json"]).json();
        let link = &record.links[0];
        assert_eq!((&seen["verdict"], &seen["detail"]), (&json!(link.verdict), &json!(link.detail)));
        assert_eq!((&seen["fuel"], &seen["digest"]), (&json!(link.fuel), &json!(link.digest)));
        let outcome: Value = serde_json::from_str(&record.outcome).unwrap();
        assert_eq!(seen["outcome"], outcome);
    }
    let seen = desk.ostler(&[&"test", &admission, &"f"]);
    assert!(seen.code == Some(0) && seen.out.ends_with("2 passed, 0 failed\n"), "{}{}", seen.out, seen.error);
    assert!(seen.out.contains("deny: limit.vcpus"), "{}", seen.out);
    // Another plugin in its place shows itself.
    let seen = desk.ostler(&[&"test", &desk.plugin("hostile/abstain"), &"f"]);
    assert!(seen.code == Some(1) && seen.out.contains("0 passed, 2 failed"), "{}", seen.out);

    let fixture = |identity: &str, arguments: &[&str]| {
        run(host.command(identity).args(["plugin", "fixture"]).args(arguments)).code
    };
    assert_eq!(fixture("operator-admin", &[&denied]), Some(0));
    assert_eq!(fixture("tenant-acme", &[&denied, "--name", "other"]), Some(4));
    assert_eq!(fixture("tenant-acme", &["99"]), Some(4));
    assert_eq!(fixture("tenant-globex", &[&denied]), Some(1), "another tenant's are not to be had");
}

#[test]
fn a_bench_calls_a_plugin_as_often_as_asked_and_tells_what_it_costs() {
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    let fixture = desk.fixture("two.json", &limit(1, &json!({"max-vcpus": "2"})));
    let ran = desk.ostler(&[&"run", &admission, &"--fixture", &fixture, &"-o", &"json"]).json();
    let seen = desk.ostler(&[&"bench", &admission, &"--fixture", &fixture, &"--calls", &"50", &"-o", &"json"]).json();
    assert_eq!((&seen["fuel"], &seen["calls"], &seen["verdict"]), (&ran["fuel"], &json!(50), &json!("allow")));
    let times = ["p50_ns", "p99_ns", "longest_ns"].map(|key| seen[key].as_u64().unwrap());
    assert!(times.is_sorted() && times[0] > 0, "{seen}");
    let table = desk.ostler(&[&"bench", &admission, &"--fixture", &fixture, &"--calls", &"5"]);
    assert!(table.code == Some(0) && table.out.contains("the same each time"), "{}{}", table.out, table.error);
    let seen = desk.ostler(&[&"bench", &desk.plugin("hostile/trap"), &"--fixture", &fixture, &"--setting", &"a=b"]);
    assert!(seen.code == Some(1) && seen.error.contains("policy.trap"), "{}", seen.error);
}

#[test]
fn the_fuel_of_fixtures_is_shown_compared_and_limited() {
    let desk = Desk::new();
    let admission = desk.plugin("admission");
    for (name, vcpus) in [("one", 1), ("two", 2)] {
        desk.fixture(&format!("fixtures/{name}.json"), &limit(vcpus, &json!({"max-vcpus": "1"})));
    }
    let fuel = |more: &[&dyn AsRef<std::ffi::OsStr>]| {
        let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"fuel", &admission, &"fixtures"];
        arguments.extend(more);
        desk.ostler(&arguments)
    };
    let seen = fuel(&[&"-o", &"json"]).json();
    let fixture = desk.path().join("fixtures/one.json");
    let ran = desk.ostler(&[&"run", &admission, &"--fixture", &fixture, &"-o", &"json"]).json();
    assert_eq!((&seen["fixtures"][0]["fixture"], &seen["fixtures"][0]["fuel"]), (&json!("one.json"), &ran["fuel"]));
    assert_eq!(seen["fixtures"][1]["fixture"], "two.json");
    // The same code with another digest takes the same.
    let again = desk.write("again.wasm", &crate::support::assets::rebuilt("admission"));
    let table = fuel(&[&"--than", &again]);
    assert!(table.code == Some(0) && table.out.matches("the same").count() == 2, "{}{}", table.out, table.error);
    let most = ran["fuel"].as_u64().unwrap() - 1;
    let refused = fuel(&[&"--most", &most.to_string()]);
    assert!(refused.code == Some(1) && refused.error.contains(&format!("take more than {most}")), "{}", refused.error);
    let trap = desk.ostler(&[&"fuel", &desk.plugin("hostile/trap"), &"fixtures"]);
    assert!(trap.code == Some(1) && trap.error.contains("one.json"), "{}", trap.error);
}

#[test]
fn a_component_comes_from_an_oci_image_layout_too() {
    let (desk, host) = (Desk::new(), Host::start());
    let admission = plugin("admission");
    let blob = |bytes: &[u8]| {
        let digest = sha256(bytes);
        desk.write(&format!("layout/blobs/sha256/{digest}"), bytes);
        json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let typed = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = kind.into();
        descriptor
    };
    let layer = typed(blob(&admission), "application/wasm");
    let config = typed(blob(b"{}"), "application/vnd.wasm.config.v0+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let mut image = typed(blob(manifest.as_bytes()), "application/vnd.oci.image.manifest.v1+json");
    image["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    desk.write("layout/index.json", json!({"schemaVersion": 2, "manifests": [image]}).to_string().as_bytes());
    desk.write("layout/oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

    let place = format!("oci:{}:v1", desk.path().join("layout").display());
    let seen = desk.ostler(&[&"check", &place, &"-o", &"json"]).json();
    let mut load = host.command("tenant-acme");
    let loaded = run(load.args(["plugin", "load", &place, "--name", "own", "-o", "json"])).json();
    assert_eq!(
        (&seen["digest"], &seen["digest"]),
        (&loaded["digest"], &json!(format!("sha256:{}", sha256(&admission))))
    );
    let unknown = desk.ostler(&[&"inspect", &place.replace(":v1", ":v2")]);
    assert!(unknown.code == Some(2) && unknown.error.contains("no image \"v2\", but v1"), "{}", unknown.error);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_new_plugin_has_everything_and_nothing_is_overwritten() {
    let desk = Desk::new();
    let made = desk.ostler(&[&"new", &"size-limit"]);
    assert!(made.code == Some(0) && made.out.contains("size-limit/README.md"), "{}{}", made.out, made.error);
    let text = |path: &str| std::fs::read_to_string(desk.path().join("size-limit").join(path)).unwrap();
    assert!(text("Cargo.toml").contains("name = \"size-limit\"") && text("README.md").contains("size-limit.wasm"));
    // The SDK looks for the interfaces two directories above itself.
    assert!(
        text("ostler/sdk/src/host.rs").contains("path: \"../../wit\"") && text("wit/types.wit").contains("record vm")
    );
    // Its fixtures are fixtures: another plugin with this setting says the same, in its own words.
    let seen = desk.ostler(&[&"test", &desk.plugin("admission"), &"size-limit/fixtures"]);
    assert!(seen.out.contains("ok      small.json") && seen.out.contains("FAILED  large.json"), "{}", seen.out);
    assert!(seen.out.contains("verdict.deny.message: expected \"3 vCPUs are asked for"), "{}", seen.out);

    let again = desk.ostler(&[&"new", &"size-limit"]);
    assert!(again.code == Some(1) && again.error.contains("File exists"), "{}", again.error);
    assert_eq!(desk.ostler(&[&"new", &"Size/Limit"]).code, Some(2));
    let nothing = desk.ostler(&[&"build", &"f", &"--out", &"x.wasm"]);
    assert!(nothing.code == Some(1) && !desk.path().join("x.wasm").exists(), "{}", nothing.error);
}
