//! The host with real components: the admission plugin and the hostile fixtures. Needs `cargo xtask plugins`. With `OSTLER_BIN`
//! (`cargo xtask test` sets it) plugins run in the process that they run in, confined as ever; else in threads.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::model::{LimitUse, Outcome, Patch, PolicyScope, Verdict};

mod devices;
mod inventory;
mod kv;
mod observe;
mod place;
mod replay;
mod select_nvme;
mod select_vf;
mod shadow;
mod subject;

/// A built component, or the advice to build it.
fn component(name: &str) -> Vec<u8> {
    let built = std::env::var_os("OSTLER_PLUGINS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/plugins"), PathBuf::from);
    let path = built.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask plugins`", path.display()))
}

/// How long a plugin may take in tests in which it loops and has fuel without end: some times as long as one that does not
/// loop takes on a busy machine.
const CUT: Duration = Duration::from_millis(250);

fn config() -> PolicyConfig {
    let program = std::env::var_os("OSTLER_BIN").map(PathBuf::from);
    let host = program.map(|program| HostProgram { program, user: 65534, is_lenient: true, cgroup: None });
    PolicyConfig { host, limits: Limits::unhurried(), ..PolicyConfig::default() }
}

fn host() -> PolicyHost {
    host_with(|_| {})
}

fn host_with(change: impl FnOnce(&mut Limits)) -> PolicyHost {
    let mut config = config();
    change(&mut config.limits);
    PolicyHost::start(config).unwrap()
}

/// Only the clock ends a plugin.
fn without_fuel(limits: &mut Limits) {
    (limits.fuel, limits.deadline) = (u64::MAX, CUT);
}

fn settings<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

async fn admission<const N: usize>(host: &PolicyHost, entries: [(&str, &str); N]) -> LoadedPlugin {
    host.load(component("admission"), settings(entries)).await.unwrap()
}

async fn hostile(host: &PolicyHost, name: &str) -> Result<LoadedPlugin, LoadError> {
    host.load(component(&format!("hostile/{name}")), BTreeMap::new()).await
}

fn bound(name: &str, plugin: &LoadedPlugin) -> Bound {
    let (scope, mode) = (PolicyScope::Operator, PluginMode::Enforced);
    Bound { name: name.into(), scope, plugin: plugin.clone(), mode, weight: Default::default() }
}

fn chain<const N: usize>(plugins: [&LoadedPlugin; N]) -> Arc<[Bound]> {
    plugins.iter().enumerate().map(|(at, plugin)| bound(&format!("p{at}"), plugin)).collect()
}

fn request() -> AdmitRequest {
    AdmitRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 4,
        memory_mib: 1024,
        disks: 1,
        nics: 1,
        in_use: LimitUse { vms: 2, vcpus: 6, memory_mib: 3000 },
        labels: None,
        images: None,
    }
}

fn code(decision: &Decision) -> &str {
    match &decision.outcome {
        Outcome::Deny { code, .. } => code,
        Outcome::Allow(_) => "allowed",
    }
}

#[tokio::test]
async fn a_plugin_describes_itself_and_its_content() {
    let host = host();
    let plugin = admission(&host, [("max-vms", "3")]).await;
    let bytes = component("admission");
    assert_eq!(plugin.name(), "admission");
    assert_eq!(plugin.version(), env!("CARGO_PKG_VERSION"));
    assert_eq!(plugin.hooks(), ["admit", "attach"]);
    assert!(!plugin.summary().is_empty());
    assert_eq!(plugin.size_bytes(), bytes.len() as u64);
    assert_eq!(plugin.digest(), load::digest(&bytes));
    assert_eq!(plugin.settings(), &settings([("max-vms", "3")]));
}

#[tokio::test]
async fn admits_denies_and_caps_by_the_tenants_limits() {
    let host = host();
    let open = admission(&host, []).await;
    assert_eq!(host.admit(chain([&open]), request()).await.dry_run().outcome, Outcome::Allow(vec![]));

    let strict = admission(&host, [("max-vcpus", "2")]).await;
    let decision = host.admit(chain([&open, &strict]), request()).await.dry_run();
    let Outcome::Deny { message, plugin, .. } = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!((code(&decision), plugin.as_deref()), ("limit.vcpus", Some("p1")));
    assert!(message.contains("4 vCPUs, 2 are allowed"), "{message}");
    assert_eq!(decision.opinions.len(), 2);
    assert_eq!(decision.opinions[0].verdict, Ok(Verdict::Allow(vec![])));
    assert_eq!(decision.opinions[1].digest, strict.digest());

    let cap = admission(&host, [("max-vcpus", "2"), ("max-memory-mib", "512"), ("mode", "cap")]).await;
    let outcome = host.admit(chain([&cap]), request()).await.dry_run().outcome;
    assert_eq!(outcome, Outcome::Allow(vec![Patch::CapVcpus(2), Patch::CapMemoryMib(512)]));

    let full = admission(&host, [("max-vms", "2")]).await;
    assert_eq!(code(&host.admit(chain([&full]), request()).await.dry_run()), "limit.vms");
}

#[tokio::test]
async fn the_plugin_refuses_settings_that_it_does_not_know() {
    let host = host();
    let wrong = settings([("max-vm", "3"), ("max-vcpus", "-1"), ("mode", "warn")]);
    let error = host.load(component("admission"), wrong).await.unwrap_err();
    let LoadError::BadSettings(wrong) = &error else { panic!("{error}") };
    let keys: Vec<_> = wrong.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["max-vm", "max-vcpus", "mode"]);
    assert!(error.to_string().contains("\"-1\" is not a number"), "{error}");
}

#[tokio::test]
async fn one_component_with_two_settings_is_compiled_once() {
    let host = host();
    let (one, other) = (admission(&host, [("max-vms", "1")]).await, admission(&host, [("max-vms", "9")]).await);
    let code_of = |plugin: &LoadedPlugin| std::ptr::from_ref(plugin.code().unwrap().0);
    assert_eq!(code_of(&one), code_of(&other));
    assert_eq!(code(&host.admit(chain([&one]), request()).await.dry_run()), "limit.vms");
    assert_eq!(code(&host.admit(chain([&other]), request()).await.dry_run()), "allowed");
}

#[tokio::test]
async fn refuses_what_is_no_plugin_and_says_what_to_do() {
    let host = host_with(|limits| limits.component_bytes = 256 << 10);
    let refuse = async |name: &str| hostile(&host, name).await.expect_err(name);
    type Case = (&'static str, fn(&LoadError) -> bool, &'static str);
    let cases: [Case; 13] = [
        ("not-wasm", |e| matches!(e, LoadError::NotWasm), "load the .wasm component"),
        ("core-module", |e| matches!(e, LoadError::CoreModule), "wrap it"),
        ("truncated", |e| matches!(e, LoadError::NotCompiled { .. }), "build and send it again"),
        ("clock", |e| matches!(e, LoadError::UndeclaredImports(_)), "wasi:clocks/monotonic-clock@0.2.0"),
        ("no-hook", |e| matches!(e, LoadError::MissingExport(_)), "any hook (ostler:policy/admit-hook"),
        (
            "wrong-version",
            |e| matches!(e, LoadError::WrongVersion { .. }),
            "admit-hook@0.2.0, and this host speaks ostler:policy@0.1.x",
        ),
        ("wrong-types", |e| matches!(e, LoadError::WrongTypes { .. }), "this host's wit/"),
        ("large", |e| matches!(e, LoadError::TooMuchMemory { wanted_bytes: 25_165_824, .. }), "16777216"),
        ("describe-trap", |e| matches!(e, LoadError::Faulted { fault: PolicyFault::Trap(_), .. }), "describe"),
        ("describe-loop", |e| matches!(e, LoadError::Faulted { .. }), "describe"),
        ("start-loop", |e| matches!(e, LoadError::Faulted { .. }), "describe"),
        ("bad-name", |e| matches!(e, LoadError::BadManifest(_)), "../x"),
        ("abstain", |e| matches!(e, LoadError::TooLarge { .. }), "at most 16"),
    ];
    for (name, is_expected, text) in cases {
        let error = if name == "abstain" {
            let small = host_with(|limits| limits.component_bytes = 16);
            hostile(&small, name).await.expect_err(name)
        } else {
            refuse(name).await
        };
        assert!(is_expected(&error), "{name}: {error:?}");
        assert!(error.to_string().contains(text), "{name}: {error}");
    }
    assert!(matches!(host.load(Vec::new(), BTreeMap::new()).await, Err(LoadError::NotWasm)));
}

#[tokio::test]
async fn damaged_components_are_refused_wherever_they_are_cut() {
    let host = host();
    let whole = component("hostile/abstain");
    for at in (0..whole.len()).step_by(37) {
        // What ends between two sections is a component still, without its exports.
        let cut = host.load(whole[..at].to_vec(), BTreeMap::new()).await.unwrap_err();
        assert!(!matches!(cut, LoadError::Unavailable(_)), "cut at {at}: {cut:?}");
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        // May still be a valid component (a changed text, say); must not panic, which would end the loading early.
        let damaged = host.load(damaged, BTreeMap::new()).await;
        assert!(!matches!(damaged, Err(LoadError::Unavailable(_))), "damaged at {at}: {damaged:?}");
    }
}

#[tokio::test]
async fn every_way_to_fail_denies_with_its_own_code() {
    let host = host();
    let good = admission(&host, []).await;
    for (name, expected) in [
        ("trap", "policy.trap"),
        ("recursion", "policy.trap"),
        ("log-flood", "policy.trap"),
        ("loop", "policy.budget"),
        ("memory", "policy.memory"),
        ("undecided", "policy.refused"),
        ("widen", "policy.bad-answer"),
        ("zero", "policy.bad-answer"),
        ("shout", "policy.bad-answer"),
        ("ramble", "policy.bad-answer"),
        ("escape", "policy.bad-answer"),
        ("bad-utf8", "policy.bad-answer"),
        ("forge", "policy.bad-answer"),
        ("far-away", "policy.bad-answer"),
        ("abstain", "policy.no-opinion"),
    ] {
        let plugin = hostile(&host, name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let decision = host.admit(chain([&plugin]), request()).await.dry_run();
        assert_eq!(code(&decision), expected, "{name}: {decision:?}");
        let Outcome::Deny { message, plugin: by, .. } = &decision.outcome else { unreachable!() };
        assert!(text::is_line(message, 700), "{name}: {message:?}");
        assert_eq!(by.is_some(), expected != "policy.no-opinion", "{name}");
        // A failure behind a plugin that allows denies too, and the next decision is as if nothing had been.
        if expected != "policy.no-opinion" {
            assert_eq!(code(&host.admit(chain([&good, &plugin]), request()).await.dry_run()), expected, "{name}");
        }
        assert_eq!(code(&host.admit(chain([&good]), request()).await.dry_run()), "allowed", "after {name}");
    }
}

#[tokio::test]
async fn a_plugin_that_loops_is_cut_at_its_deadline() {
    let host = host_with(without_fuel);
    let good = admission(&host, []).await;
    for name in ["loop", "fill"] {
        let plugin = hostile(&host, name).await.unwrap();
        let decision = host.admit(chain([&plugin]), request()).await.dry_run();
        assert_eq!(code(&decision), "policy.deadline", "{decision:?}");
        assert!(decision.took >= CUT, "{name} was cut after {:?}", decision.took);
        assert_eq!(code(&host.admit(chain([&good]), request()).await.dry_run()), "allowed", "after {name}");
    }
}

#[tokio::test]
async fn a_denial_ends_the_chain() {
    let host = host();
    let (strict, trap) = (admission(&host, [("max-vms", "0")]).await, hostile(&host, "trap").await.unwrap());
    let decision = host.admit(chain([&strict, &trap]), request()).await.dry_run();
    assert_eq!((code(&decision), decision.opinions.len()), ("limit.vms", 1));
}

#[tokio::test]
async fn a_plugin_that_could_not_be_loaded_again_denies() {
    let host = host();
    let good = admission(&host, []).await;
    let broken = LoadedPlugin::broken("lost", good.digest(), "its file is gone");
    let decision = host.admit(chain([&good, &broken]), request()).await.dry_run();
    let Outcome::Deny { message, plugin, .. } = &decision.outcome else { panic!("{decision:?}") };
    assert_eq!((code(&decision), plugin.as_deref()), ("policy.unavailable", Some("p1")));
    assert!(message.contains("its file is gone"), "{message}");
    assert_eq!(
        (broken.broken_cause(), broken.name(), broken.digest()),
        (Some("its file is gone"), "lost", good.digest())
    );
}

#[tokio::test]
async fn a_full_queue_denies_at_once() {
    let host = host_with(|limits| {
        limits.queue_depth = 1;
        without_fuel(limits);
    });
    let slow = hostile(&host, "loop").await.unwrap();
    let asks = (0..8).map(|_| {
        let (host, chain) = (host.clone(), chain([&slow]));
        tokio::spawn(async move { host.admit(chain, request()).await.dry_run() })
    });
    let mut codes = Vec::new();
    for ask in asks.collect::<Vec<_>>() {
        codes.push(code(&ask.await.unwrap()).to_owned());
    }
    assert!(codes.contains(&"policy.deadline".to_owned()), "{codes:?}");
    assert!(codes.iter().filter(|code| *code == "policy.unavailable").count() >= 5, "{codes:?}");
}

#[tokio::test]
async fn a_decision_that_waited_too_long_is_denied() {
    let host = host_with(|limits| {
        without_fuel(limits);
        // Patience is over when the first one is cut, and some time before the executor counts as gone.
        limits.deadline = Duration::from_millis(100);
        limits.patience = Duration::from_millis(60);
    });
    let slow = hostile(&host, "loop").await.unwrap();
    let asks = (0..4).map(|_| {
        let (host, chain) = (host.clone(), chain([&slow]));
        tokio::spawn(async move { host.admit(chain, request()).await.dry_run() })
    });
    let mut last = None;
    for ask in asks.collect::<Vec<_>>() {
        last = Some(ask.await.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(code(&last), "policy.unavailable");
    let Err(PolicyFault::Unavailable(cause)) = &last.opinions[0].verdict else { panic!("{last:?}") };
    assert!(cause.contains("waited longer"), "{cause}");
}

#[tokio::test]
async fn a_tenant_that_floods_waits_behind_itself() {
    let host = host_with(without_fuel);
    let (slow, good) = (hostile(&host, "loop").await.unwrap(), admission(&host, []).await);
    let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..40 {
        let (host, chain, done) = (host.clone(), chain([&slow]), Arc::clone(&done));
        tokio::spawn(async move {
            drop(host.admit(chain, request()).await);
            done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
    }
    tokio::task::yield_now().await;
    let other = AdmitRequest { tenant: "green".parse().unwrap(), ..request() };
    assert_eq!(code(&host.admit(chain([&good]), other).await.dry_run()), "allowed");
    let before = done.load(std::sync::atomic::Ordering::Relaxed);
    assert!(before <= 3, "{before} of the flood went first");
}

#[tokio::test]
async fn decisions_go_on_while_a_plugin_is_being_loaded() {
    let host = host_with(|limits| limits.load_patience = Duration::from_secs(1));
    let good = admission(&host, []).await;
    let compiling = host.0.loads.take(&PolicyScope::Tenant("green".parse().unwrap()), CUT).await.unwrap();
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { hostile(&host, "abstain").await }
    });
    assert_eq!(code(&host.admit(chain([&good]), request()).await.dry_run()), "allowed");
    let refused = waiting.await.unwrap();
    assert!(matches!(refused, Err(LoadError::Unavailable(_))), "{refused:?}");
    drop(compiling);
    assert!(hostile(&host, "abstain").await.is_ok());
}

/// Set in the child that measures: other tests of this process would disturb its memory.
const CHILD: &str = "OSTLER_TEST_POLICY_CHILD";

#[test]
fn two_thousand_decisions_leave_memory_flat() {
    if std::env::var_os(CHILD).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(decide_two_thousand_times());
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::policy::tests::two_thousand_decisions_leave_memory_flat", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    println!("{text}");
    assert!(child.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&child.stderr));
}

async fn decide_two_thousand_times() {
    let host = host();
    let started = Instant::now();
    let good = admission(&host, [("max-vcpus", "2"), ("mode", "cap")]).await;
    println!("load, compilation included: {:?}", started.elapsed());
    let bad = [hostile(&host, "memory").await.unwrap(), hostile(&host, "shout").await.unwrap()];
    let mut took = Vec::new();
    let mut before = 0;
    for round in 0..2200 {
        // The first tenth warms the pool and the allocator.
        if round == 200 {
            before = resident_bytes(&host);
            took.clear();
        }
        let decision = host.admit(chain([&good]), request()).await.dry_run();
        assert_eq!(code(&decision), "allowed");
        took.push((decision.opinions[0].took, decision.took));
        if round % 10 == 0 {
            for plugin in &bad {
                assert_ne!(code(&host.admit(chain([plugin]), request()).await.dry_run()), "allowed");
            }
        }
    }
    let grown = resident_bytes(&host).saturating_sub(before);
    for (what, mut times) in [
        ("plugin, fresh instance", took.iter().map(|t| t.0).collect::<Vec<_>>()),
        ("decision, queue included", took.iter().map(|t| t.1).collect()),
    ] {
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    println!("resident memory grew by {} KiB", grown >> 10);
    assert!(grown < 1 << 20, "grew by {grown} bytes");
}

/// Resident sets of this process and of the one that runs plugins, from `/proc/<pid>/statm` (second field, pages of 4 KiB).
fn resident_bytes(host: &PolicyHost) -> u64 {
    let pids = std::iter::once(std::process::id()).chain(host.process_id());
    let pages = |pid| {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    pids.map(pages).sum::<u64>() << 12
}
