//! The policy host: the process that runs plugins, and nothing else. Key type: [`Host`]. Key function: [`run`], the
//! process's own entry.
//!
//! ```text
//!   daemon ── lane, artefacts ─▶ ostler policy-host    thread policy        decisions, one after the other
//!          ── lane, artefacts ─▶                       thread policy-load   loads, settings, replays
//!          ── control: its end ─▶                      main                 waits for the daemon's end
//! ```
//! It gets machine code and questions, and gives answers; it knows no tenant's rights, no device, no key, no file. It
//! confines itself before it sees the first plugin: own namespaces, empty root, a user of its own, no rights, and the
//! system calls of [`calls`]. A plugin that broke out of WebAssembly would find the other plugins' code and questions
//! there, and could answer for them; what it answers the daemon checks like any answer.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Signal};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use serde::{Deserialize, Serialize};
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::model::{
    AdmitRequest, AttachRequest, DetachRequest, ObserveRequest, PlaceRequest, PolicyFault, SelectNvmeRequest,
    SelectVfRequest,
};
use crate::sys::artefact::ArtefactReceiver;
use crate::sys::lane::Server;
use crate::sys::packet::{Connection, Received};
use crate::sys::{cgroup, inherit, namespaces, spawn};
use crate::wire::policy::{self as wire, Hello, Loaded, Refusal, Request, Spoken};

use super::call::{Code, Site};
use super::compiler::MAX_ARTEFACT_LEN;
use super::engine::{self, Sandbox};
use super::hook::Question;
use super::imports::{self, Call};
use super::limits::Limits;
use super::{confine, prepare};

/// The role's name on the command line.
pub const ROLE: &str = "policy-host";
/// The threads that serve, by the names that they have in a process of their own.
pub(super) const DECIDES: &str = "policy";
pub(super) const LOADS: &str = "policy-load";
/// How long a thread looks for the next question before it sleeps: about what waking it up would cost.
pub(super) const LOOKS_FOR: Duration = Duration::from_micros(50);
/// Address space of the process, in bytes: slots of instances (some 500 MiB, hardly any of it in use), and every plugin's
/// code (some 100 KiB each, from Rust).
const MEMORY_BYTES: u64 = 2 << 30;
/// What the process may use together with the kernel on its behalf. The address space ends first, which refuses a plugin;
/// the end of the group's memory would end the process. Threads as of two: that of a daemon before may be about to end.
pub const GROUP: cgroup::Limits =
    cgroup::Limits { memory_bytes: MEMORY_BYTES + (64 << 20), cpus: 2, cpu_weight: 100, tasks: 2 * THREADS };
/// The main thread, two that serve, and the clock.
const THREADS: u64 = 4;
/// Descriptors: a handful, and one artefact per lane while it is loaded.
const DESCRIPTORS: u64 = 32;
/// Longest launch, in bytes.
const MAX_LAUNCH_LEN: usize = 4096;
/// `PAGEMAP_SCAN` (linux/fs.h): which pages of an instance's memory are to be cleared.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// What the daemon starts the process with.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Launch {
    pub limits: Limits,
    /// User and group that it becomes.
    pub user: u32,
    /// Whether missing rights to leave the host are no error: for a daemon that jails nothing.
    pub is_lenient: bool,
}

/// Plugins and the sandbox to run them in.
pub(super) struct Host {
    sandbox: Sandbox,
    linker: Linker<Call>,
    /// Rank: leaf. Guards the codes, by the daemon's numbers; held for a lookup.
    codes: Mutex<HashMap<u64, Arc<Code>>>,
}

impl Host {
    pub(super) fn new(sandbox: Sandbox) -> wasmtime::Result<Self> {
        let linker = imports::linker(sandbox.engine())?;
        Ok(Self { sandbox, linker, codes: Mutex::default() })
    }

    /// Answers what comes through the lane until it is closed.
    pub(super) fn serve(&self, lane: &mut Server, artefacts: &ArtefactReceiver) {
        while let Some(request) = lane.receive() {
            // A fault of our own, like a request that the daemon cannot have meant, gets no answer that could be mistaken
            // for one: the daemon starts anew with another process.
            let answer = catch_unwind(AssertUnwindSafe(|| self.answer(&request, artefacts)));
            let answer = answer.ok().flatten().unwrap_or_default();
            if lane.answer(&answer).is_err() {
                let fault = PolicyFault::BadAnswer("the answer is too long".into());
                let spoken = Spoken::<()> {
                    said: Err(fault),
                    fuel: 0,
                    notes: Vec::new(),
                    dropped: 0,
                    kv: None,
                    inventory: None,
                    backtrace: Vec::new(),
                };
                let _ = lane.answer(&wire::encode(&spoken));
            }
        }
    }

    fn answer(&self, request: &[u8], artefacts: &ArtefactReceiver) -> Option<Vec<u8>> {
        let (request, question) = wire::decode_request(request).ok()?;
        Some(match request {
            Request::Load { code } => wire::encode(&self.load(code, artefacts)),
            Request::Validate { code, settings } => {
                let code = self.code(code)?;
                let settings = Arc::new(settings.into_owned());
                let site = Site::new(&self.sandbox, &code, &settings);
                let said = site.validate_settings();
                let pairs = said.map(|errors| errors.into_iter().map(|e| (e.key, e.message)).collect::<Vec<_>>());
                wire::encode(&site.spoken(pairs))
            }
            Request::Ask { code, settings, kv, inventory, hook } => {
                let (code, settings) = (self.code(code)?, Arc::new(settings.into_owned()));
                let site = Site::new(&self.sandbox, &code, &settings);
                let site = site.seeing(kv.map(Cow::into_owned), inventory.map(Cow::into_owned));
                ask_at(&hook, site, question)?
            }
            Request::Forget { codes } => {
                let mut table = self.codes();
                codes.iter().for_each(|code| drop(table.remove(code)));
                Vec::new()
            }
        })
    }

    fn load(&self, number: u64, artefacts: &ArtefactReceiver) -> Result<Loaded, Refusal> {
        let max_len = usize::try_from(MAX_ARTEFACT_LEN).unwrap_or(usize::MAX);
        let artefact = match artefacts.receive(max_len) {
            Ok((sent, artefact)) if sent == number => artefact,
            Ok(_) => return Err(Refusal::Failed("another artefact came".into())),
            Err(error) => return Err(Refusal::Failed(format!("no artefact came: {error}"))),
        };
        let (code, loaded) = prepare::prepare(&self.sandbox, &self.linker, &artefact)?;
        self.codes().insert(number, Arc::new(code));
        Ok(loaded)
    }

    fn code(&self, number: u64) -> Option<Arc<Code>> {
        self.codes().get(&number).cloned()
    }

    fn codes(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Code>>> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask_at(hook: &str, site: Site<'_>, question: &[u8]) -> Option<Vec<u8>> {
    match hook {
        AdmitRequest::HOOK => ask::<AdmitRequest>(site, question),
        SelectVfRequest::HOOK => ask::<SelectVfRequest>(site, question),
        SelectNvmeRequest::HOOK => ask::<SelectNvmeRequest>(site, question),
        AttachRequest::HOOK => ask::<AttachRequest>(site, question),
        DetachRequest::HOOK => ask::<DetachRequest>(site, question),
        PlaceRequest::HOOK => ask::<PlaceRequest>(site, question),
        ObserveRequest::HOOK => ask::<ObserveRequest>(site, question),
        _ => None,
    }
}

fn ask<Q: Question>(site: Site<'_>, question: &[u8]) -> Option<Vec<u8>> {
    let mut question: Q = wire::decode(question).ok()?;
    let site = site.about(question.take_vm());
    let said = question.ask(&site);
    Some(wire::encode(&site.spoken(said)))
}

/// Tells engines apart that run different machine code.
pub(super) fn compatibility(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// The process, from its start to its end: confines itself, says so on descriptor 3, and serves.
pub fn run() -> ExitCode {
    let Some(socket) = inherit::descriptor(spawn::INHERITED_FD) else { return ExitCode::from(2) };
    let control = Connection::from_fd(socket);
    let started = start(&control);
    let hello = match &started {
        Ok((compatibility, _)) => Hello::Ready(*compatibility),
        Err(error) => Hello::Failed(error.to_string()),
    };
    let is_told = control.send(&wire::encode(&hello), &[]).is_ok();
    let Ok((_, ready)) = started else { return ExitCode::FAILURE };
    if is_told {
        ready.wait();
        // Nothing is ever sent any more: what comes is the daemon's end.
        let _ = control.receive(1);
    }
    ExitCode::SUCCESS
}

/// Builds the host and its threads, which serve from the barrier's next turn on, and gives up everything else.
fn start(control: &Connection) -> io::Result<(u64, Arc<Barrier>)> {
    let Received::Packet(launch, fds) = control.receive(MAX_LAUNCH_LEN)? else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let launch: Launch = wire::decode(&launch).map_err(io::Error::other)?;
    let fds = <[OwnedFd; 4]>::try_from(fds).map_err(|_| io::Error::other("not the descriptors of two lanes"))?;
    let [decisions, decision_artefacts, background, background_artefacts] = fds;
    for (resource, value) in [
        (Resource::As, MEMORY_BYTES),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Nofile, DESCRIPTORS),
    ] {
        confine::limit(resource, value)?;
    }
    // Made before rights and calls are given up: it looks at the processor, and at its own page map.
    let engine = Engine::new(&engine::config(&launch.limits)).map_err(io::Error::other)?;
    let compatibility = compatibility(&engine);
    match confine::leave(launch.user) {
        Err(error) if !launch.is_lenient => return Err(error),
        Ok(()) | Err(_) => {}
    }
    namespaces::gain_no_privileges()?;
    // The daemon's end is seen on the control socket, too; but not by a process that was stopped.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Threads have the rights of the thread that makes them: made now, and none later. Their start takes more calls than
    // they have afterwards, so the filter waits until all have begun.
    let host = Arc::new(Host::new(Sandbox::start(engine, launch.limits)?).map_err(io::Error::other)?);
    let ready = Arc::new(Barrier::new(3));
    for (name, lane, artefacts) in [(DECIDES, decisions, decision_artefacts), (LOADS, background, background_artefacts)]
    {
        let mut lane = Server::map(lane, LOOKS_FOR)?;
        let artefacts = ArtefactReceiver::from_fd(artefacts);
        let (host, ready) = (Arc::clone(&host), Arc::clone(&ready));
        thread::Builder::new().name(name.into()).spawn(move || {
            ready.wait(); // It has begun,
            ready.wait(); // and all are confined.
            host.serve(&mut lane, &artefacts);
        })?;
    }
    ready.wait();
    confine::limit(Resource::Nproc, 0)?;
    let filter = confine::filter(calls()?, SeccompAction::KillProcess)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)?;
    Ok((compatibility, ready))
}

/// Calls beside those of every process that is confined so: the lanes' and the clock's.
fn calls() -> io::Result<Vec<(i64, Vec<SeccompRule>)>> {
    let only = |number, argument, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(io::Error::other)?;
        Ok::<_, io::Error>((number, vec![rule]))
    };
    let any =
        [libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_lseek, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall];
    let mut calls: Vec<_> = any.map(|number| (number, Vec::new())).into();
    calls.push(only(libc::SYS_fcntl, 1, u64::from(libc::F_GET_SEALS.unsigned_abs()))?);
    calls.push(only(libc::SYS_ioctl, 1, PAGEMAP_SCAN)?);
    Ok(calls)
}

/// A host as threads of this process, for tests of the daemon's side and for measuring what a process of its own costs.
pub(super) fn in_process(launch: Launch, lanes: [(OwnedFd, OwnedFd); 2]) -> io::Result<u64> {
    let engine = Engine::new(&engine::config(&launch.limits)).map_err(io::Error::other)?;
    let compatibility = compatibility(&engine);
    let host = Arc::new(Host::new(Sandbox::start(engine, launch.limits)?).map_err(io::Error::other)?);
    for (lane, artefacts) in lanes {
        let mut lane = Server::map(lane, LOOKS_FOR)?;
        let (host, artefacts) = (Arc::clone(&host), ArtefactReceiver::from_fd(artefacts));
        thread::Builder::new().name("policy-host".into()).spawn(move || host.serve(&mut lane, &artefacts))?;
    }
    Ok(compatibility)
}
