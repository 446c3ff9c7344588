//! Decisions of one tenant while the plugin that makes them is replaced, and while another tenant's plugin misbehaves or is
//! none. A test looks at each answer, a bench at the time that it took. Key types: [`Versions`], [`Neighbour`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ostler::api::v1;

use super::client::{facts, wait};
use super::corpus::corpus;
use super::{Caller, assets, small};

const PLUGIN: &str = "operator/plugins/admission";
/// The neighbour's.
const OWN: &str = "tenants/globex/plugins/own";
/// vCPUs that are asked for …
const ASKED: u32 = 4;
/// … and what each version allows: an answer tells by whose settings it was given.
const ALLOWED: [u32; 2] = [2, 3];
/// What a plugin can do wrong, each with a content of its own.
const MISBEHAVIOUR: [&str; 4] = ["hostile/loop", "hostile/memory", "hostile/trap", "hostile/log-flood"];
/// What does nothing.
const BEHAVIOUR: &str = "hostile/abstain";
/// Two versions of the operator's plugin that differ in content and in settings.
pub struct Versions([Version; 2]);

struct Version {
    bytes: Vec<u8>,
    digest: String,
    allowed: u32,
}

impl Versions {
    /// Loads both; the second one decides.
    pub fn load(operator: &Caller) -> Self {
        let [first, second] = ALLOWED;
        let version = |bytes: Vec<u8>, allowed| {
            let digest = bind(operator, &bytes, allowed).digest;
            Version { bytes, digest, allowed }
        };
        Self([version(assets::plugin("admission"), first), version(assets::rebuilt("admission"), second)])
    }

    /// Has the other one decide, for odd and even `count`.
    pub fn swap(&self, operator: &Caller, count: usize) {
        let version = &self.0[count % 2];
        bind(operator, &version.bytes, version.allowed);
    }

    /// A decision, on record; which version made it. An error if none did, or some of each.
    pub async fn decide(&self, caller: &Caller) -> Result<usize, String> {
        let request = request(caller, v1::VirtualMachineSpec { vcpus: ASKED, ..small() });
        let denied = match caller.vms.clone().register_virtual_machine(request).await {
            Ok(vm) => return Err(format!("{ASKED} vCPUs are allowed: {vm:?}")),
            Err(status) => facts(&status),
        };
        let (code, digest) = (denied.metadata.get("code"), denied.metadata.get("digest"));
        let made_it = |version: &Version| {
            let of_its_settings = format!("{ASKED} vCPUs, {} are allowed", version.allowed);
            digest == Some(&version.digest) && denied.message.contains(&of_its_settings)
        };
        let version = self.0.iter().position(made_it).filter(|_| code.is_some_and(|code| code == "limit.vcpus"));
        version.ok_or_else(|| format!("{denied:?}"))
    }
}

fn bind(operator: &Caller, bytes: &[u8], allowed: u32) -> v1::Plugin {
    operator.load(PLUGIN, bytes, &[("max-vcpus", &allowed.to_string())]).unwrap()
}

fn request(caller: &Caller, spec: v1::VirtualMachineSpec) -> v1::RegisterVirtualMachineRequest {
    let vm = v1::VirtualMachine { name: caller.name("storm"), spec: Some(spec), ..Default::default() };
    v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() }
}

/// Whether it would be registered: a plugin that allows it, or has no opinion, leaves nothing behind.
async fn is_allowed(caller: &Caller) -> Result<(), tonic::Status> {
    let request = v1::RegisterVirtualMachineRequest { validate_only: true, ..request(caller, small()) };
    caller.vms.clone().register_virtual_machine(request).await.map(drop)
}

/// The code of a denial or a refusal; `done` if there was none.
fn code<T>(outcome: Result<T, tonic::Status>, done: &str) -> String {
    match outcome.map_err(|status| facts(&status)) {
        Ok(_) => done.to_owned(),
        Err(facts) => facts.metadata.get("code").cloned().unwrap_or(facts.reason),
    }
}

/// How a neighbour's plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Quiet,
    Hostile,
}

/// Another tenant, which asks its own plugin again and again, and replaces it by the next.
pub struct Neighbour {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, usize>>,
}

impl Neighbour {
    /// Asks each plugin so many `questions`, with a `pause` behind each, until it is stopped.
    pub fn start(caller: Caller, manner: Manner, questions: usize, pause: Duration) -> Self {
        Self::busy(move |is_stopped| {
            let mut came = BTreeMap::new();
            for name in MISBEHAVIOUR.iter().cycle() {
                let name = if manner == Manner::Quiet { BEHAVIOUR } else { name };
                caller.load(OWN, &assets::plugin(name), &[]).unwrap();
                for _ in 0..questions {
                    if is_stopped.load(Ordering::Relaxed) {
                        return came;
                    }
                    *came.entry(code(wait(is_allowed(&caller)), "allowed")).or_default() += 1;
                    wait(async { tokio::time::sleep(pause).await });
                }
            }
            came
        })
    }

    /// Loads components that attack the loader, with a `pause` behind each, until it is stopped.
    pub fn attacking(caller: Caller, pause: Duration) -> Self {
        Self::busy(move |is_stopped| {
            let mut came = BTreeMap::new();
            for (_, component, _) in corpus().iter().cycle() {
                if is_stopped.load(Ordering::Relaxed) {
                    break;
                }
                *came.entry(code(caller.load(OWN, component, &[]), "loaded")).or_default() += 1;
                wait(async { tokio::time::sleep(pause).await });
            }
            came
        })
    }

    fn busy(work: impl FnOnce(&AtomicBool) -> BTreeMap<String, usize> + Send + 'static) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&is_over);
        Self { is_over, thread: std::thread::spawn(move || work(&is_stopped)) }
    }

    /// How often what came of its requests.
    pub fn stop(self) -> BTreeMap<String, usize> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
