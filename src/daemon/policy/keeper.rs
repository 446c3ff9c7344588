//! Keeps a policy host there. Key types: [`Keeper`], [`HostProgram`].
//!
//! ```text
//!   start ─▶ SERVING ──ended, hung, talked nonsense──▶ none: decisions are denied (policy.host-lost)
//!               ▲                                        │ at once; after a short life, after a pause
//!               └────────────────── another ◀────────────┘
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::model::PolicyFault;
use crate::sys::artefact::ArtefactSender;
use crate::sys::lane;
use crate::sys::packet::{Connection, Received};
use crate::sys::process::{End, Process};
use crate::sys::spawn::{self, Isolation};
use crate::wire::policy::{self as wire, Hello};

use super::PolicyStartError;
use super::limits::Limits;
use super::serve::{self, LOOKS_FOR, Launch};
use super::session::{Channel, HostEnd, Session};

/// By what the process is known in a list of processes.
const ARG0: &str = "ostler-policy";
/// Longest that a host may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Longest word of a host at its start, in bytes.
const MAX_HELLO_LEN: usize = 4096;
/// A host that lived less was not replaced with success: the next one waits longer.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// First and longest pause after hosts with short lives, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How a process is made that runs plugins.
#[derive(Debug, Clone)]
pub struct HostProgram {
    /// This program.
    pub program: PathBuf,
    /// User and group that it becomes.
    pub user: u32,
    /// Whether one that cannot leave the host is used all the same.
    pub is_lenient: bool,
    /// The directory of the cgroup that it is born into; else the daemon's.
    pub cgroup: Option<Arc<OwnedFd>>,
}

/// Where the present host is found.
pub(super) struct Keeper {
    program: Option<HostProgram>,
    limits: Limits,
    /// Rank: leaf. Guards the present session; held for a look.
    slot: Mutex<Slot>,
    /// Told when there is another session, or the end.
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    is_closed: bool,
}

impl Keeper {
    /// Starts the first host, on the thread that replaces it later. Without a program it is threads of this process.
    pub(super) fn start(program: Option<HostProgram>, limits: Limits) -> Result<Arc<Self>, PolicyStartError> {
        let keeper = Arc::new(Self { program, limits, slot: Mutex::default(), changed: Condvar::new() });
        let kept = Arc::clone(&keeper);
        let (report, first) = mpsc::channel();
        // A host ends with the thread that started it (`PR_SET_PDEATHSIG`): this one lasts.
        let thread = thread::Builder::new().name("policy-keeper".into()).spawn(move || match kept.start_host() {
            Ok(session) => {
                kept.slot().session = Some(Arc::clone(&session));
                // Whoever started us waits for it.
                let _ = report.send(Ok(()));
                kept.keep(session);
            }
            Err(error) => drop(report.send(Err(error))),
        });
        thread.map_err(PolicyStartError::Thread)?;
        match first.recv() {
            Ok(started) => started.map(|()| keeper),
            Err(gone) => Err(PolicyStartError::Thread(io::Error::other(gone))),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The present host, if there is one: not one that is about to be replaced.
    pub(super) fn now(&self) -> Option<Arc<Session>> {
        self.slot().session.clone().filter(|session| !session.is_condemned())
    }

    /// Has `ask` ask the present host or, if there is none or it is lost meanwhile, the next one, once.
    pub(super) fn in_background<T>(
        &self,
        mut ask: impl FnMut(&Session) -> Result<T, PolicyFault>,
    ) -> Result<T, PolicyFault> {
        let mut answer = Err(PolicyFault::HostLost);
        for _ in 0..2 {
            let Some(session) = self.soon() else { break };
            answer = ask(&session);
            if !matches!(answer, Err(PolicyFault::HostLost)) {
                break;
            }
        }
        answer
    }

    /// The present host, or the next one if it comes within the limits' patience.
    fn soon(&self) -> Option<Arc<Session>> {
        let is_none =
            |slot: &mut Slot| !slot.is_closed && slot.session.as_ref().is_none_or(|session| session.is_condemned());
        let waited = self.changed.wait_timeout_while(self.slot(), self.limits.patience, is_none);
        let (slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        slot.session.clone().filter(|session| !session.is_condemned())
    }

    /// No more hosts; the present one ends.
    pub(super) fn close(&self) {
        let mut slot = self.slot();
        slot.is_closed = true;
        let session = slot.session.take();
        drop(slot);
        self.changed.notify_all();
        if let Some(session) = session {
            session.condemn();
        }
    }

    /// Waits for the end of each host, and starts the next.
    fn keep(&self, first: Arc<Session>) {
        let (mut session, mut begun, mut pause) = (first, Instant::now(), Duration::ZERO);
        loop {
            let end = session.wait();
            let mut slot = self.slot();
            slot.session = None;
            if slot.is_closed {
                return;
            }
            drop(slot);
            let lived = begun.elapsed();
            tracing::warn!(?end, ?lived, "the policy host is lost; decisions are denied until there is another");
            pause = if lived < SHORT_LIFE { (pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE) } else { Duration::ZERO };
            session = loop {
                if !self.pause(pause) {
                    return;
                }
                begun = Instant::now();
                match self.start_host() {
                    Ok(next) => break next,
                    Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "no policy host"),
                }
                pause = (pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
            };
            let mut slot = self.slot();
            if slot.is_closed {
                drop(slot);
                session.condemn();
                continue;
            }
            slot.session = Some(Arc::clone(&session));
            drop(slot);
            self.changed.notify_all();
            tracing::info!(after = ?begun.elapsed(), "another policy host serves");
        }
    }

    /// Waits; whether another host is wanted still.
    fn pause(&self, pause: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.slot(), pause, |slot| !slot.is_closed);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    fn start_host(&self) -> Result<Arc<Session>, PolicyStartError> {
        let engine = |error: io::Error| PolicyStartError::Engine { reason: error.to_string() };
        let channel = |thread| {
            let (lane, theirs) = lane::lane(LOOKS_FOR)?;
            let (artefacts, their_artefacts) = ArtefactSender::new()?;
            Ok((Channel { lane, artefacts, thread }, (theirs, their_artefacts)))
        };
        let (decisions, theirs) = channel(serve::DECIDES).map_err(engine)?;
        let (background, their_background) = channel(serve::LOADS).map_err(engine)?;
        let lanes = [theirs, their_background];
        let (end, compatibility) = match &self.program {
            Some(program) => {
                let (process, control, compatibility) = spawn_host(program, self.limits, &lanes)?;
                (HostEnd::Process(process, control), compatibility)
            }
            None => {
                let launch = Launch { limits: self.limits, user: 0, is_lenient: true };
                let compatibility = serve::in_process(launch, lanes).map_err(engine)?;
                (HostEnd::Threads(Mutex::default(), Condvar::new()), compatibility)
            }
        };
        Ok(Arc::new(Session::new(decisions, background, end, compatibility, &self.limits)))
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the process, and waits until it is confined and ready.
fn spawn_host(
    program: &HostProgram,
    limits: Limits,
    lanes: &[(OwnedFd, OwnedFd); 2],
) -> Result<(Process, Connection, u64), PolicyStartError> {
    let (control, theirs) = Connection::pair().map_err(PolicyStartError::Process)?;
    let cgroup = program.cgroup.as_ref().map(|group| group.as_fd());
    let isolation = Isolation { cgroup, has_own_pids: rustix::process::geteuid().is_root() };
    let log = File::options().write(true).open("/dev/null").map_err(PolicyStartError::Process)?;
    let theirs = theirs.into_fd();
    let arguments = [OsStr::new(serve::ROLE)];
    let process = spawn::isolated(&program.program, ARG0, &arguments, theirs.as_fd(), log, isolation)
        .map_err(PolicyStartError::Process)?;
    drop(theirs);
    match greet(&control, program, limits, lanes) {
        Ok(Hello::Ready(compatibility)) => Ok((process, control, compatibility)),
        other => {
            let end = end(&process);
            Err(match other {
                Ok(Hello::Failed(reason)) => PolicyStartError::Confined { reason },
                Ok(Hello::Ready(_)) => unreachable!("taken above"),
                Err(error) => PolicyStartError::Silent { end, source: error },
            })
        }
    }
}

fn greet(
    control: &Connection,
    program: &HostProgram,
    limits: Limits,
    lanes: &[(OwnedFd, OwnedFd); 2],
) -> io::Result<Hello> {
    let launch = Launch { limits, user: program.user, is_lenient: program.is_lenient };
    let fds: Vec<_> = lanes.iter().flat_map(|(lane, artefacts)| [lane.as_fd(), artefacts.as_fd()]).collect();
    control.send(&wire::encode(&launch), &fds)?;
    let limit = Timespec::try_from(START_LIMIT).map_err(io::Error::other)?;
    if rustix::event::poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&limit))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match control.receive(MAX_HELLO_LEN)? {
        Received::Packet(hello, _) => wire::decode(&hello).map_err(io::Error::other),
        Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Kills a process that did not come to serve, and tells how it ended.
fn end(process: &Process) -> End {
    let _ = process.kill();
    let _ = rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], None);
    process.try_reap().ok().flatten().unwrap_or(End::Unknown)
}
