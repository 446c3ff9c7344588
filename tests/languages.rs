//! One policy in four languages (`plugins/examples`): built for nothing but Ostler's interfaces, asked within the daemon's
//! limits, of one opinion. Needs no guest.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::desk::{Desk, run};
use crate::support::{Host, assets, small};
use ostler::api::v1;

const LANGUAGES: [&str; 4] = ["rust", "c", "js", "python"];

/// The questions that all are asked, by name.
fn fixtures() -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/examples/fixtures");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())).collect()
}

/// A fixture whose settings no language takes, each for another reason.
fn wrong() -> Value {
    let settings = json!({"cap": "maybe", "max-memory-mib": "many", "max-vcpus": "0", "max-cpus": "1"});
    let mut wrong: Value = serde_json::from_slice(&fixtures()["plain.json"]).unwrap();
    wrong["settings"] = settings;
    wrong
}

#[test]
fn the_same_questions_get_the_same_answers_in_every_language() {
    let desk = Desk::new();
    let fixtures = fixtures();
    for (name, bytes) in &fixtures {
        desk.write(&format!("fixtures/{name}"), bytes);
    }
    desk.fixture("fixtures/wrong.json", &wrong());
    let mut said = BTreeMap::new();
    for language in LANGUAGES {
        let component = assets::example(language);
        let outside = desk.ostler(&[&"inspect", &component, &"-o", &"json"]).json();
        assert_eq!((&outside["hooks"], &outside["refused_imports"]), (&json!(["admit"]), &json!([])), "{language}");
        let seen = desk.ostler(&[&"test", &component, &"fixtures", &"-o", &"json"]).json();
        assert_eq!((&seen["passed"], &seen["failed"]), (&json!(fixtures.len()), &json!(1)), "{language}: {seen:#}");
        let results = seen["fixtures"].as_array().unwrap();
        let answers: Vec<_> =
            results.iter().map(|result| (result["fixture"].clone(), result["said"].clone())).collect();
        let fuel = results.iter().map(|result| result["fuel"].as_u64().unwrap());
        eprintln!("{language}: {} bytes, at most {} fuel", outside["size_bytes"], fuel.max().unwrap());
        said.insert(language, answers);
    }
    let refused = said["rust"].iter().find(|(fixture, _)| fixture == "wrong.json").unwrap().1.as_str().unwrap();
    for key in ["plugin.bad-settings", "cap", "max-memory-mib", "max-vcpus", "max-cpus"] {
        assert!(refused.contains(key), "{refused}");
    }
    for language in LANGUAGES {
        assert_eq!(said[language], said["rust"], "{language}");
    }
}

#[test]
fn a_daemon_asks_each_of_them_and_gets_the_same_decision() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let load = |language: &str, settings: &[(&str, &str)]| {
        let bytes = std::fs::read(assets::example(language)).unwrap();
        operator.load(&format!("operator/plugins/{language}"), &bytes, settings).unwrap()
    };
    for language in LANGUAGES {
        let loaded = load(language, &[("cap", "true"), ("max-vcpus", "2")]);
        assert_eq!((loaded.hooks, loaded.version.as_str()), (vec!["admit".to_owned()], "0.1.0"));
    }
    // All in one chain: what is allowed is asked of each.
    let vm = acme.register("web", v1::VirtualMachineSpec { vcpus: 4, ..small() }).unwrap();
    assert_eq!(vm.spec.unwrap_or_default().vcpus, 2);
    let opinions = vm.admission.unwrap_or_default().opinions;
    let said: Vec<_> = opinions.iter().map(|opinion| (opinion.verdict.as_str(), opinion.detail.as_str())).collect();
    assert_eq!(said, [("allow", "cap vCPUs at 2"); 4], "{opinions:?}");
    let lines = host.daemon_log();
    assert_eq!(lines.matches("web is made smaller").count(), 4, "{lines}");
    // Whoever denies ends the chain: each alone, the others stand aside.
    let aside = [("tenant", "globex")];
    LANGUAGES.iter().for_each(|language| drop(load(language, &aside)));
    for language in LANGUAGES {
        load(language, &[("name-prefix", "acme-")]);
        let denied = acme.register("db", small()).unwrap_err();
        let facts = crate::support::facts(&denied);
        let told = (facts.metadata["plugin"].as_str(), facts.metadata["code"].as_str(), facts.message.as_str());
        assert_eq!((told.0, told.1), (language, "name.prefix"), "{facts:?}");
        assert!(told.2.contains("db does not begin with acme-"), "{facts:?}");
        load(language, &aside);
    }
}

#[test]
fn a_stranger_gets_from_nothing_to_a_component() {
    let desk = Desk::new();
    let mut path = assets::tools();
    for language in ["c", "js", "python"] {
        let name = format!("my-{language}");
        let made = desk.ostler(&[&"new", &name, &"--lang", &language]);
        assert!(made.code == Some(0) && made.out.contains("README.md"), "{}{}", made.out, made.error);
        if language == "js" {
            let lacking = desk.ostler_with(&path, &[&"build", &name, &"--out", &"x.wasm"]);
            let told =
                lacking.error.contains("no @bytecodealliance/componentize-js") && lacking.error.contains("npm install");
            assert!(lacking.code == Some(1) && told, "{}", lacking.error);
            std::os::unix::fs::symlink(assets::node_modules(), desk.path().join(&name).join("node_modules")).unwrap();
        }
        let component = desk.path().join(format!("{name}.wasm"));
        let built = desk.ostler_with(&path, &[&"build", &name, &"--out", &component]);
        assert_eq!(built.code, Some(0), "{}{}", built.out, built.error);
        let outside = desk.ostler(&[&"inspect", &component, &"-o", &"json"]).json();
        assert_eq!((&outside["hooks"], &outside["refused_imports"]), (&json!(["admit"]), &json!([])), "{language}");
    }
    let tested = desk.ostler(&[&"test", &"my-c.wasm", &"my-c/fixtures"]);
    assert!(tested.code == Some(0) && tested.out.contains(" 0 failed"), "{}{}", tested.out, tested.error);
    let seen = desk.ostler(&[&"run", &"my-c.wasm", &"--fixture", &"my-c/fixtures/small.json", &"-o", &"json"]).json();
    assert_eq!(seen["plugin"], "my-c");
    // What the compiler says of a mistake is shown.
    desk.write("my-c/plugin.c", b"#include \"admit.h\"\nint x = ;\n");
    let broken = desk.ostler_with(&path, &[&"build", &"my-c", &"--out", &"x.wasm"]);
    assert!(broken.code == Some(1) && broken.error.contains("plugin.c:2:9"), "{}", broken.error);
    // What is missing is named, with what to install.
    path.clear();
    for (language, tool, install) in [
        ("c", "clang", "apt-get install clang lld"),
        ("js", "node", "apt-get install nodejs npm"),
        ("python", "componentize-py", "pip install"),
    ] {
        let lacking = desk.ostler_with(&path, &[&"build", &format!("my-{language}"), &"--out", &"x.wasm"]);
        let told = lacking.error.contains(&format!("no {tool} is found")) && lacking.error.contains(install);
        assert!(lacking.code == Some(1) && told, "{}", lacking.error);
    }
    assert!(!desk.path().join("x.wasm").exists());
}

#[test]
fn a_strangers_crate_becomes_a_component_too() {
    let desk = Desk::new();
    assert_eq!(desk.ostler(&[&"new", &"mine"]).code, Some(0));
    // With all of the author's environment: cargo has to find what the crate depends on.
    let build = || {
        let mut command = Command::new(assets::binary());
        run(command.current_dir(desk.path()).args(["plugin", "build", "mine", "--out", "mine.wasm", "--quick"]))
    };
    let built = build();
    assert_eq!(built.code, Some(0), "{}{}", built.out, built.error);
    let tested = desk.ostler(&[&"test", &"mine.wasm", &"mine/fixtures"]);
    assert!(tested.code == Some(0) && tested.out.contains(" 0 failed"), "{}{}", tested.out, tested.error);
    desk.write("mine/src/lib.rs", b"fn plugin() -> u32 {\n    missing\n}\n");
    let broken = build();
    assert!(broken.code == Some(1) && broken.error.contains("src/lib.rs:2:5"), "{}", broken.error);
}

#[test]
fn an_edit_decides_next_with_one_command_unless_something_is_wrong_with_it() {
    let (desk, host) = (Desk::new(), Host::start());
    let acme = host.tenant("acme");
    assert_eq!(desk.ostler(&[&"new", &"my-c", &"--lang", &"c"]).code, Some(0));
    let push = |more: &[&str]| {
        let mut command = host.command("tenant-acme");
        let path = std::env::join_paths(assets::tools()).unwrap();
        command.env("PATH", path).args(["plugin", "push"]).arg(desk.path().join("my-c")).args(more);
        run(&mut command)
    };
    let first = push(&["--setting", "max-vcpus=2"]);
    assert_eq!(first.code, Some(0), "{}{}", first.out, first.error);
    let told = ["my-c.wasm", "12 fixtures passed", "loaded"];
    assert!(told.iter().all(|word| first.error.contains(word)), "{}", first.error);
    let denied = |code: &str| {
        let facts =
            crate::support::facts(&acme.register("web", v1::VirtualMachineSpec { vcpus: 4, ..small() }).unwrap_err());
        assert_eq!((facts.metadata["plugin"].as_str(), facts.metadata["code"].as_str()), ("my-c", code), "{facts:?}");
        facts.metadata["digest"].clone()
    };
    let before = denied("limit.vcpus");

    // What the fixtures do not expect is not loaded, and neither is what is no C.
    let source = std::fs::read_to_string(desk.path().join("my-c/plugin.c")).unwrap();
    let edited = source.replace("limit.vcpus", "too.many");
    assert_ne!(edited, source);
    desk.write("my-c/plugin.c", edited.as_bytes());
    let failed = push(&["--setting", "max-vcpus=2"]);
    let told = failed.error.contains("fixtures failed") && failed.error.contains("FAILED  large.json");
    assert!(failed.code == Some(1) && told, "{}", failed.error);
    desk.write("my-c/plugin.c", b"int x = ;\n");
    assert_eq!(push(&["--setting", "max-vcpus=2"]).code, Some(1));
    assert_eq!(denied("limit.vcpus"), before);

    // Without fixtures it is what its author says it is; with a key it is signed.
    desk.write("my-c/plugin.c", edited.as_bytes());
    std::fs::remove_dir_all(desk.path().join("my-c/fixtures")).unwrap();
    let key = desk.path().join("key.pem");
    assert_eq!(desk.ostler(&[&"keygen", &key]).code, Some(0));
    let pushed = push(&["--setting", "max-vcpus=2", "--key", key.to_str().unwrap()]);
    assert!(pushed.code == Some(0) && pushed.error.contains("no fixtures are in"), "{}", pushed.error);
    assert_ne!(denied("too.many"), before);
    assert!(desk.path().join("my-c/target/my-c.wasm.sig").is_file());
}
