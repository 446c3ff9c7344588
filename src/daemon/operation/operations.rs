//! The list of operations. Key type: [`Operations`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::kept::Kept;
use super::underway::Glance;
use super::{Failure, NotCancellable, Operation, OperationEnd, OperationName, Owner, Subject, Ticket, Underway};

/// How long the answer to a call-off waits for the end of the work: it may be somewhere that it cannot be left at once.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(10);

/// What never changes of an operation.
#[derive(Debug, Clone)]
struct About {
    subject: Subject,
    created: SystemTime,
}

/// All operations that are under way, and the last that ended.
#[derive(Debug)]
pub struct Operations {
    /// Rank: leaf, above what an `Underway` holds. Held for a lookup or an insertion.
    kept: Mutex<Kept<About>>,
    /// Counts those that have begun.
    begun: watch::Sender<u64>,
}

impl Default for Operations {
    fn default() -> Self {
        Self { kept: Mutex::default(), begun: watch::Sender::new(0) }
    }
}

impl Operations {
    /// The work of a call begins. `owner`: whose resource it is about. A call that has begun already stays the same.
    pub fn begin(&self, ticket: &Ticket, owner: Owner) -> (OperationName, Underway) {
        ticket.begin(owner, |name| {
            let underway = Underway::begun();
            let Subject { method, target, .. } = ticket.subject();
            tracing::info!(operation = %name, method, target, "an operation begins");
            self.insert(name, underway.clone(), ticket.subject().clone(), SystemTime::now());
            underway
        })
    }

    /// Lists what a daemon before this one began, and did not come to the end of.
    pub fn restore(&self, name: &OperationName, subject: Subject, begun: SystemTime, outcome: OperationEnd) {
        self.insert(name, Underway::ended(SystemTime::now(), outcome), subject, begun);
    }

    fn insert(&self, name: &OperationName, underway: Underway, subject: Subject, created: SystemTime) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(name, underway, About { subject, created });
        drop(kept);
        self.begun.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// One of them.
    pub fn get(&self, name: &OperationName) -> Option<Operation> {
        let (underway, about) = self.find(name)?;
        Some(operation(name.clone(), &underway, about))
    }

    fn find(&self, name: &OperationName) -> Option<(Underway, About)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(name)
    }

    /// Those whose owner is asked for; the host's first, then by tenant; each owner's by age.
    pub fn list(&self, is_asked_for: impl Fn(&Owner) -> bool) -> Vec<Operation> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).of(is_asked_for);
        kept.into_iter().map(|(name, underway, about)| operation(name, &underway, about)).collect()
    }

    /// Waits for its end, for `patience` at most; how it stands then.
    pub async fn wait(&self, name: &OperationName, patience: Duration) -> Option<Operation> {
        let (underway, about) = self.find(name)?;
        let _is_over = tokio::time::timeout(patience, underway.over()).await;
        Some(operation(name.clone(), &underway, about))
    }

    /// Calls it off, and waits a little for its end; how it stands then. `None`: there is none.
    pub async fn cancel(&self, name: &OperationName) -> Option<Result<Operation, NotCancellable>> {
        let (underway, about) = self.find(name)?;
        if let Err(refused) = underway.call_off() {
            return Some(Err(refused));
        }
        let _is_over = tokio::time::timeout(CALL_OFF_PATIENCE, underway.over()).await;
        Some(Ok(operation(name.clone(), &underway, about)))
    }

    /// Waits until `ticket`, or an earlier attempt of the same request, is under way: it has told what it does. Its name;
    /// `None`: it has ended already.
    pub async fn under_way(&self, ticket: &Ticket) -> Option<OperationName> {
        let mut begun = self.begun.subscribe();
        loop {
            if let Some((name, underway)) = self.attempt_of(ticket) {
                underway.under_way().await;
                return (!underway.has_ended()).then_some(name);
            }
            // Its sender is held right here: it does not go away.
            let _ = begun.changed().await;
        }
    }

    /// Whether an earlier attempt of the same request was called off since `ticket`'s call came: what its client was told.
    /// A repetition that has waited for that attempt must not begin it anew.
    pub fn called_off_meanwhile(&self, ticket: &Ticket) -> Option<Failure> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).of(|_| true);
        kept.into_iter().find_map(|(_, underway, about)| match underway.glance().end {
            Some((at, OperationEnd::Cancelled(failure)))
                if at >= ticket.came() && about.subject.is_of_request(ticket.subject()) =>
            {
                Some(failure)
            }
            _ => None,
        })
    }

    fn attempt_of(&self, ticket: &Ticket) -> Option<(OperationName, Underway)> {
        let own = ticket.name();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).of(|_| true);
        let mut attempts = kept.into_iter().filter(|(name, underway, about)| {
            own.as_ref() == Some(name) || !underway.has_ended() && about.subject.is_of_request(ticket.subject())
        });
        attempts.next().map(|(name, underway, _)| (name, underway))
    }
}

fn operation(name: OperationName, underway: &Underway, about: About) -> Operation {
    let Glance { step, steps, is_cancellable, end } = underway.glance();
    let About { subject, created } = about;
    Operation { name, subject, created, step, steps, is_cancellable, end }
}

#[cfg(test)]
mod tests {
    use super::super::{OperationState, Step};
    use super::*;

    fn ticket(request: Option<&str>) -> Ticket {
        Ticket::new(Subject { request: request.map(|id| id.parse().unwrap()), ..Subject::sample() })
    }

    fn acme() -> Owner {
        Some("acme".parse().unwrap())
    }

    const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

    #[tokio::test]
    async fn a_waiter_sees_the_end_and_one_without_patience_what_is_so_far() {
        let operations = Operations::default();
        let ticket = ticket(None);
        assert!(ticket.name().is_none() && operations.list(|_| true).is_empty());
        let (name, _work) = operations.begin(&ticket, acme());
        assert_eq!(ticket.name().as_ref(), Some(&name));
        let so_far = operations.wait(&name, Duration::ZERO).await.unwrap();
        assert_eq!((so_far.state(), so_far.end), (OperationState::Running, None));
        let waiting = operations.wait(&name, Duration::from_secs(60));
        let (ended, ()) = tokio::join!(waiting, async { ticket.end(|| OperationEnd::Succeeded) });
        assert_eq!(ended.unwrap().state(), OperationState::Succeeded);
        assert_eq!(operations.list(|owner| owner.is_none()).len(), 0);
        assert_eq!(operations.list(|owner| *owner == acme()).len(), 1);
        let other = OperationName { owner: None, id: name.id };
        assert!(operations.get(&other).is_none() && operations.cancel(&other).await.is_none());
    }

    #[tokio::test]
    async fn a_repetition_finds_the_attempt_that_is_under_way_and_no_other_request_does() {
        let operations = Operations::default();
        let first = ticket(Some(ID));
        let (name, work) = operations.begin(&first, acme());
        work.tell(Step::new("waiting"));
        assert_eq!(operations.under_way(&ticket(Some(ID))).await, Some(name.clone()));
        assert_eq!(operations.under_way(&first).await, Some(name));
        for other in [ticket(None), ticket(Some("123e4567-e89b-42d3-a456-426614174001"))] {
            let waited = tokio::time::timeout(Duration::ZERO, operations.under_way(&other)).await;
            assert!(waited.is_err());
        }
        work.end(OperationEnd::Succeeded);
        assert_eq!(operations.under_way(&first).await, None);
        assert!(tokio::time::timeout(Duration::ZERO, operations.under_way(&ticket(Some(ID)))).await.is_err());
    }

    #[test]
    fn a_repetition_that_came_before_its_request_was_called_off_is_told_and_one_that_came_after_is_not() {
        let operations = Operations::default();
        let first = ticket(Some(ID));
        operations.begin(&first, acme());
        let (waiting, other) = (ticket(Some(ID)), ticket(None));
        assert_eq!(operations.called_off_meanwhile(&waiting), None);
        let failure = Failure { code: 1, message: "called off".into(), reason: "R".into() };
        first.end(|| OperationEnd::Cancelled(failure.clone()));
        assert_eq!(operations.called_off_meanwhile(&waiting), Some(failure));
        assert_eq!(operations.called_off_meanwhile(&other), None);
        assert_eq!(operations.called_off_meanwhile(&ticket(Some(ID))), None);
    }
}
