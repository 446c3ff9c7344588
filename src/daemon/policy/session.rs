//! The daemon's end of one policy host, from its start to its loss. Key type: [`Session`].
//!
//! Whatever goes wrong with a host has one consequence: the session is *condemned*, the process killed, and the keeper
//! starts another. A host is lost when it ends, when it says what is no message, or when it hangs: when no answer came
//! within a plugin's deadline and [`GRACE`], though it was not kept from its work.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use serde::de::DeserializeOwned;

use crate::model::PolicyFault;
use crate::sys::artefact::{Artefact, ArtefactSender};
use crate::sys::lane::{Client, Closer, LaneError};
use crate::sys::packet::Connection;
use crate::sys::process::{End, Process};
use crate::wire::policy::{self as wire, Loaded, Refusal, Request, Spoken};

use super::hook::Question;
use super::limits::Limits;
use super::plugin::{Compiled, Settings};
use super::view::View;

/// How long beyond a plugin's deadline an answer may take.
const GRACE: Duration = Duration::from_millis(60);
/// How long an answer may take of a host that others keep from its work: a machine may be that busy.
const BUSY: Duration = Duration::from_secs(2);
/// Longest that loading a code may take, its own calls not counted.
const LOAD_LIMIT: Duration = Duration::from_secs(5);

/// A host, and how to reach it.
pub(super) struct Session {
    /// What the executor asks through.
    decisions: Mutex<Channel>,
    /// What everything else is asked through.
    background: Mutex<Channel>,
    closers: [Closer; 2],
    end: HostEnd,
    /// Tells engines apart that run different machine code.
    pub(super) compatibility: u64,
    /// Rank: leaf. Guards the numbers of codes that the host has; held for a lookup.
    loaded: Mutex<HashSet<u64>>,
    is_condemned: AtomicBool,
    deadline: Duration,
}

/// One lane. Rank: above the leaves; a request and its answer are one hold.
pub(super) struct Channel {
    pub(super) lane: Client,
    pub(super) artefacts: ArtefactSender,
    /// Name of the host's thread that answers.
    pub(super) thread: &'static str,
}

/// What is there to be ended.
pub(super) enum HostEnd {
    /// A process, and the socket by which it sees our end.
    Process(Process, #[expect(dead_code, reason = "open for as long as the session lasts")] Connection),
    /// Threads of this process, which end with their lanes.
    Threads(Mutex<()>, Condvar),
}

/// Why there is no answer.
enum NoAnswer {
    /// The host is lost.
    Lost,
    /// It is not at fault.
    Unavailable(String),
}

impl Session {
    pub(super) fn new(
        decisions: Channel,
        background: Channel,
        end: HostEnd,
        compatibility: u64,
        limits: &Limits,
    ) -> Self {
        Self {
            closers: [decisions.lane.closer(), background.lane.closer()],
            decisions: Mutex::new(decisions),
            background: Mutex::new(background),
            end,
            compatibility,
            loaded: Mutex::default(),
            is_condemned: AtomicBool::new(false),
            deadline: limits.deadline,
        }
    }

    /// Asks a plugin for a decision.
    pub(super) fn decide<Q: Question>(
        &self,
        compiled: &Compiled,
        settings: &Settings,
        view: View<'_>,
        question: &Q,
    ) -> Result<Spoken<Q::Verdict>, PolicyFault> {
        self.ask(&self.decisions, compiled, settings, view, question)
    }

    /// Asks a plugin beside decisions.
    pub(super) fn rehearse<Q: Question>(
        &self,
        compiled: &Compiled,
        settings: &Settings,
        view: View<'_>,
        question: &Q,
    ) -> Result<Spoken<Q::Verdict>, PolicyFault> {
        self.ask(&self.background, compiled, settings, view, question)
    }

    fn ask<Q: Question>(
        &self,
        channel: &Mutex<Channel>,
        compiled: &Compiled,
        settings: &Settings,
        view: View<'_>,
        question: &Q,
    ) -> Result<Spoken<Q::Verdict>, PolicyFault> {
        let (settings, kv) = (Cow::Borrowed(&**settings), view.kv.map(Cow::Borrowed));
        let inventory = view.inventory.map(Cow::Borrowed);
        let request = Request::Ask { code: compiled.code, settings, kv, inventory, hook: Q::HOOK.into() };
        let bytes = wire::encode_question(&request, question);
        let mut channel = lock(channel);
        self.see_that_it_is_loaded(&mut channel, compiled)?;
        Ok(self.say(&mut channel, &bytes, self.deadline + GRACE)?)
    }

    /// Has a plugin check its settings.
    pub(super) fn validate(
        &self,
        compiled: &Compiled,
        settings: &Settings,
    ) -> Result<Spoken<Vec<(String, String)>>, PolicyFault> {
        let request = Request::Validate { code: compiled.code, settings: Cow::Borrowed(&**settings) };
        let mut channel = lock(&self.background);
        self.see_that_it_is_loaded(&mut channel, compiled)?;
        Ok(self.say(&mut channel, &wire::encode(&request), self.deadline + GRACE)?)
    }

    /// Gives the host a code that is new to it.
    pub(super) fn load(&self, code: u64, artefact: &Artefact) -> Result<Result<Loaded, Refusal>, PolicyFault> {
        let mut channel = lock(&self.background);
        Ok(self.load_through(&mut channel, code, artefact)?)
    }

    /// Has the host forget codes that nobody asks for any more.
    pub(super) fn forget(&self, codes: Vec<u64>) {
        self.loaded().retain(|code| !codes.contains(code));
        let mut channel = lock(&self.background);
        let request = wire::encode(&Request::Forget { codes: codes.into() });
        // Its answer is empty; without one the host is lost, and its memory with it.
        let patience = self.patience(LOAD_LIMIT, channel.thread);
        if channel.lane.ask(&request, patience).is_err() {
            self.condemn();
        }
    }

    /// After a host was replaced, the new one gets each code when it is asked for first.
    fn see_that_it_is_loaded(&self, channel: &mut Channel, compiled: &Compiled) -> Result<(), NoAnswer> {
        if self.loaded().contains(&compiled.code) {
            return Ok(());
        }
        let loaded = compiled.with_artefact(|artefact| self.load_through(channel, compiled.code, artefact));
        match loaded {
            Some(loaded) => match loaded? {
                Ok(_) => Ok(()),
                Err(refusal) => Err(NoAnswer::Unavailable(format!("the plugin cannot be loaded again: {refusal:?}"))),
            },
            None => Err(NoAnswer::Unavailable("the plugin's machine code is gone; load it again".into())),
        }
    }

    fn load_through(
        &self,
        channel: &mut Channel,
        code: u64,
        artefact: &Artefact,
    ) -> Result<Result<Loaded, Refusal>, NoAnswer> {
        if let Err(error) = channel.artefacts.send(code, artefact) {
            self.condemn();
            tracing::warn!(%error, "the policy host takes no machine code");
            return Err(NoAnswer::Lost);
        }
        let loaded: Result<Loaded, Refusal> = self.say(channel, &wire::encode(&Request::Load { code }), LOAD_LIMIT)?;
        if loaded.is_ok() {
            self.loaded().insert(code);
        }
        Ok(loaded)
    }

    fn say<T: DeserializeOwned>(&self, channel: &mut Channel, bytes: &[u8], limit: Duration) -> Result<T, NoAnswer> {
        let answer = match channel.lane.ask(bytes, self.patience(limit, channel.thread)) {
            Ok(answer) => wire::decode(&answer).map_err(|error| error.to_string()),
            Err(error @ LaneError::TooLong(_)) => return Err(NoAnswer::Unavailable(error.to_string())),
            Err(error) => Err(error.to_string()),
        };
        answer.map_err(|cause| {
            if !self.is_condemned() {
                tracing::warn!(cause, "the policy host is killed");
            }
            self.condemn();
            NoAnswer::Lost
        })
    }

    /// Whether to wait on: not longer than `limit` for a thread that has had its time, or does nothing. Its time counts from
    /// the first time that it is asked for: a quick answer needs no reading of clocks.
    fn patience(&self, limit: Duration, thread: &str) -> impl FnMut(Duration) -> bool {
        let mut at_first = None;
        move |waited| {
            if self.is_condemned() {
                return false;
            }
            let HostEnd::Process(process, _) = &self.end else { return waited < BUSY + limit };
            let Some(thread) = process.thread(thread) else { return waited < limit };
            let has_had = thread.cpu_time.saturating_sub(*at_first.get_or_insert(thread.cpu_time));
            waited < limit || (waited < BUSY.max(limit) && has_had < limit && thread.is_at_work)
        }
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.is_condemned.load(Ordering::Acquire)
    }

    /// Ends the host, and every wait for it.
    pub(super) fn condemn(&self) {
        self.is_condemned.store(true, Ordering::Release);
        match &self.end {
            HostEnd::Process(process, _) => {
                if let Err(error) = process.kill() {
                    tracing::error!(%error, "the policy host cannot be killed");
                }
            }
            HostEnd::Threads(lock, ended) => {
                let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
                ended.notify_all();
            }
        }
        self.closers.iter().for_each(Closer::close);
    }

    /// Waits until the host has ended, ends every wait for it, and tells how it ended.
    pub(super) fn wait(&self) -> End {
        let end = match &self.end {
            HostEnd::Process(process, _) => loop {
                let _ = rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], None);
                if let Some(end) = process.try_reap().unwrap_or(Some(End::Unknown)) {
                    break end;
                }
            },
            HostEnd::Threads(lock, ended) => {
                let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
                drop(ended.wait_while(held, |()| !self.is_condemned()));
                End::Unknown
            }
        };
        self.is_condemned.store(true, Ordering::Release);
        self.closers.iter().for_each(Closer::close);
        end
    }

    /// The process, if it is one.
    pub(super) fn process(&self) -> Option<&Process> {
        match &self.end {
            HostEnd::Process(process, _) => Some(process),
            HostEnd::Threads(..) => None,
        }
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<NoAnswer> for PolicyFault {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Lost => Self::HostLost,
            NoAnswer::Unavailable(cause) => Self::Unavailable(cause),
        }
    }
}

fn lock(channel: &Mutex<Channel>) -> std::sync::MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
