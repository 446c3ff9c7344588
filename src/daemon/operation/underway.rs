//! An operation in the hands of whoever works at it. Key types: [`Underway`], [`Step`], [`TimedStep`].
//!
//! ```text
//!   closed ──open──▶ open ──call_off──▶ called off     seal: open ─▶ closed; of what is called off it says so
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};

use super::OperationEnd;

/// Steps of one operation whose times are kept. What is done beyond them counts to the last.
const MAX_STEPS: usize = 32;

/// So much is done of so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Done.
    pub done: u64,
    /// Of so much.
    pub total: u64,
    /// Of what, such as `bytes`.
    pub unit: &'static str,
}

/// What is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In a few words.
    pub text: &'static str,
    /// How far it is, if that can be told.
    pub amount: Option<Amount>,
    /// When it ends at the latest.
    pub deadline: Option<SystemTime>,
}

impl Step {
    /// Of which nothing more is known.
    pub fn new(text: &'static str) -> Self {
        Self { text, amount: None, deadline: None }
    }

    /// That ends at `deadline`.
    pub fn until(text: &'static str, deadline: Option<SystemTime>) -> Self {
        Self { deadline, ..Self::new(text) }
    }

    /// Of which so much is done.
    pub fn of(text: &'static str, done: u64, total: u64, unit: &'static str) -> Self {
        Self { amount: Some(Amount { done, total, unit }), ..Self::new(text) }
    }
}

/// A step with its time. How far it came is told meanwhile only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedStep {
    /// As in [`Step::text`].
    pub text: &'static str,
    /// When it began.
    pub begun: SystemTime,
    /// How long it took, by a clock that nobody sets; `None`: it is under way.
    pub took: Option<Duration>,
}

/// Why something is not called off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCancellable {
    /// It has ended otherwise.
    #[error("the operation has ended: it is {0}")]
    Ended(&'static str),
    /// It cannot be called off at all, or not any more.
    #[error("the operation cannot be called off{}", step_text(.0.as_ref()))]
    PastRecall(Option<Step>),
}

fn step_text(step: Option<&Step>) -> String {
    step.map_or_else(String::new, |step| format!(" while it is at this: {}", step.text))
}

/// How one can call it off.
#[derive(Debug, Default)]
enum Recall {
    /// Not, or not any more.
    #[default]
    Closed,
    /// By waking this.
    Open(Arc<Notify>),
    /// It was.
    CalledOff,
}

#[derive(Debug, Default)]
struct Now {
    step: Option<Step>,
    /// What it was at, with when that began; the last one is what it is at.
    steps: Vec<(Instant, TimedStep)>,
    recall: Recall,
    end: Option<(SystemTime, OperationEnd)>,
}

impl Now {
    /// A step of this text begins, unless it goes on.
    fn begin(&mut self, text: &'static str) {
        let goes_on = self.steps.last().is_some_and(|(_, last)| last.text == text);
        if goes_on || self.steps.len() == MAX_STEPS || self.end.is_some() {
            return;
        }
        let now = Instant::now();
        self.close(now);
        self.steps.push((now, TimedStep { text, begun: SystemTime::now(), took: None }));
    }

    fn close(&mut self, now: Instant) {
        if let Some((since, last)) = self.steps.last_mut() {
            last.took = Some(now.duration_since(*since));
        }
    }
}

/// An operation that somebody works at; or work that is no operation, of which nobody is told anything.
#[derive(Debug, Clone, Default)]
pub struct Underway {
    now: Option<Arc<watch::Sender<Now>>>,
    /// Whoever has it tells what is done, and has no say in whether it is called off.
    is_for_telling: bool,
}

/// How it stands, but for what never changes.
pub(super) struct Glance {
    pub(super) step: Option<Step>,
    pub(super) steps: Vec<TimedStep>,
    pub(super) is_cancellable: bool,
    pub(super) end: Option<(SystemTime, OperationEnd)>,
}

impl Underway {
    /// An operation that begins.
    pub(super) fn begun() -> Self {
        Self::of(Now::default())
    }

    /// One that a daemon before this one began.
    pub(super) fn ended(at: SystemTime, outcome: OperationEnd) -> Self {
        Self::of(Now { end: Some((at, outcome)), ..Now::default() })
    }

    fn of(now: Now) -> Self {
        Self { now: Some(Arc::new(watch::Sender::new(now))), is_for_telling: false }
    }

    /// Work that is nobody's operation.
    pub fn unseen() -> Self {
        Self::default()
    }

    /// The same for a part of the work that is not called off by itself: it can be told of, and is neither opened, nor
    /// sealed, nor left off.
    pub fn for_telling(&self) -> Self {
        Self { now: self.now.clone(), is_for_telling: true }
    }

    fn recallable(&self) -> Option<&watch::Sender<Now>> {
        self.now.as_deref().filter(|_| !self.is_for_telling)
    }

    /// Tells what is being done.
    pub fn tell(&self, step: Step) {
        let Some(now) = &self.now else { return };
        now.send_if_modified(|now| {
            let is_news = now.step.as_ref() != Some(&step);
            now.begin(step.text);
            now.step = Some(step);
            is_news
        });
    }

    /// The same, if nothing has been told yet.
    pub fn tell_first(&self, step: Step) {
        if self.now.as_ref().is_some_and(|now| now.borrow().step.is_none()) {
            self.tell(step);
        }
    }

    /// It may be called off from here on; `wake` is notified then.
    pub fn open(&self, wake: &Arc<Notify>) {
        let Some(now) = self.recallable() else { return };
        now.send_if_modified(|now| match now.recall {
            Recall::Closed => {
                now.recall = Recall::Open(Arc::clone(wake));
                true
            }
            Recall::Open(_) | Recall::CalledOff => false,
        });
    }

    /// It may not be called off from here on; false: it has been already.
    pub fn seal(&self) -> bool {
        let Some(now) = self.recallable() else { return true };
        let mut is_called_off = false;
        now.send_if_modified(|now| match now.recall {
            Recall::Closed => false,
            Recall::Open(_) => {
                now.recall = Recall::Closed;
                true
            }
            Recall::CalledOff => {
                is_called_off = true;
                false
            }
        });
        !is_called_off
    }

    /// Whether it has been called off, and its worker is to leave off.
    pub fn is_called_off(&self) -> bool {
        self.recallable().is_some_and(|now| matches!(now.borrow().recall, Recall::CalledOff))
    }

    /// Calls it off, if that is possible. A second time is like the first.
    pub(super) fn call_off(&self) -> Result<(), NotCancellable> {
        let Some(now) = &self.now else { return Err(NotCancellable::PastRecall(None)) };
        let mut refused = None;
        now.send_if_modified(|now| match (&now.end, &now.recall) {
            (Some((_, OperationEnd::Cancelled(_))), _) => false,
            (Some((_, outcome)), _) => {
                refused = Some(NotCancellable::Ended(outcome.state().name()));
                false
            }
            (None, Recall::CalledOff) => false,
            (None, Recall::Closed) => {
                refused = Some(NotCancellable::PastRecall(now.step.clone()));
                false
            }
            (None, Recall::Open(wake)) => {
                wake.notify_one();
                now.recall = Recall::CalledOff;
                true
            }
        });
        refused.map_or(Ok(()), Err)
    }

    pub(super) fn end(&self, outcome: OperationEnd) {
        let Some(now) = &self.now else { return };
        now.send_if_modified(|now| {
            let is_first = now.end.is_none();
            if is_first {
                now.close(Instant::now());
                now.end = Some((SystemTime::now(), outcome));
            }
            is_first
        });
    }

    pub(super) fn glance(&self) -> Glance {
        let Some(now) = &self.now else {
            return Glance { step: None, steps: Vec::new(), is_cancellable: false, end: None };
        };
        let now = now.borrow();
        let is_open = matches!(now.recall, Recall::Open(_) | Recall::CalledOff);
        let steps = now.steps.iter().map(|(_, step)| step.clone()).collect();
        Glance { step: now.step.clone(), steps, is_cancellable: is_open && now.end.is_none(), end: now.end.clone() }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.now.as_ref().is_none_or(|now| now.borrow().end.is_some())
    }

    /// Waits until it has told what it does, or has ended.
    pub(super) async fn under_way(&self) {
        self.until(|now| now.step.is_some() || now.end.is_some()).await;
    }

    /// Waits until it has ended.
    pub(super) async fn over(&self) {
        self.until(|now| now.end.is_some()).await;
    }

    async fn until(&self, is_so: impl FnMut(&Now) -> bool) {
        if let Some(now) = &self.now {
            // Its sender is held right here: it does not go away.
            let _ = now.subscribe().wait_for(is_so).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;
    use std::time::Duration;

    /// Before a test that hangs is one that failed.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn called_off() -> OperationEnd {
        OperationEnd::Cancelled(Failure { code: 1, message: "called off".into(), reason: "R".into() })
    }

    #[tokio::test]
    async fn is_called_off_only_while_it_is_open_and_its_worker_is_woken() {
        let (work, wake) = (Underway::begun(), Arc::new(Notify::new()));
        assert!(matches!(work.call_off(), Err(NotCancellable::PastRecall(None))));
        work.tell(Step::new("waiting"));
        work.open(&wake);
        assert!(work.glance().is_cancellable && !work.is_called_off());
        assert_eq!((work.call_off(), work.call_off()), (Ok(()), Ok(())));
        tokio::time::timeout(PATIENCE, wake.notified()).await.expect("its worker sleeps");
        assert!(work.is_called_off() && !work.seal());
        // What was called off does not open again.
        work.open(&wake);
        assert!(work.is_called_off());
        work.end(called_off());
        assert_eq!(work.call_off(), Ok(()));
    }

    #[test]
    fn past_the_point_of_no_return_it_goes_on_and_says_where_it_is() {
        let (work, wake) = (Underway::begun(), Arc::new(Notify::new()));
        work.open(&wake);
        assert!(work.seal());
        work.tell(Step::new("ending the process"));
        let refused = work.call_off().unwrap_err();
        assert!(refused.to_string().contains("ending the process"), "{refused}");
        assert!(!work.is_called_off() && work.seal());
        work.end(OperationEnd::Succeeded);
        assert_eq!(work.call_off(), Err(NotCancellable::Ended("SUCCEEDED")));
        // Its first end counts.
        work.end(called_off());
        assert_eq!(work.glance().end.unwrap().1, OperationEnd::Succeeded);
    }

    #[test]
    fn each_step_has_its_time_and_one_that_goes_on_is_one() {
        let work = Underway::begun();
        work.tell(Step::of("reading", 0, 2, "bytes"));
        work.tell(Step::of("reading", 1, 2, "bytes"));
        let before = SystemTime::now();
        work.tell(Step::new("writing"));
        let steps = work.glance().steps;
        let [reading, writing] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!((reading.text, writing.text), ("reading", "writing"));
        assert!(reading.took.is_some() && reading.begun <= before && before <= writing.begun, "{steps:?}");
        assert_eq!(writing.took, None, "under way");
        work.end(OperationEnd::Succeeded);
        let ended = work.glance().steps;
        assert!(ended[0] == *reading && ended[1].took.is_some(), "{ended:?}");
        // What comes late is no part of it, nor what was only to be the first.
        work.tell_first(Step::new("second"));
        work.tell(Step::new("late"));
        assert_eq!(work.glance().steps, ended);
    }

    #[test]
    fn steps_beyond_the_most_count_to_the_last() {
        let work = Underway::begun();
        for _ in 0..MAX_STEPS {
            work.tell(Step::new("one"));
            work.tell(Step::new("other"));
        }
        let steps = work.glance().steps;
        assert_eq!((steps.len(), steps[MAX_STEPS - 1].took), (MAX_STEPS, None));
    }

    #[test]
    fn a_part_for_telling_is_neither_opened_nor_sealed_nor_left_off() {
        let (work, wake) = (Underway::begun(), Arc::new(Notify::new()));
        let part = work.for_telling();
        part.open(&wake);
        assert!(work.call_off().is_err(), "opened by a part of it");
        work.open(&wake);
        assert!(part.seal() && work.call_off().is_ok());
        assert!(work.is_called_off() && !part.is_called_off() && part.seal());
        part.tell(Step::new("going on"));
        assert_eq!(work.glance().step, Some(Step::new("going on")));
    }

    #[test]
    fn what_nobody_sees_is_never_called_off() {
        let (work, wake) = (Underway::unseen(), Arc::new(Notify::new()));
        work.tell(Step::new("x"));
        work.open(&wake);
        assert!(work.seal() && !work.is_called_off() && work.call_off().is_err());
    }
}
