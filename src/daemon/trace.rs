//! One id per call, in every line that the call causes: in this log, in the jail's and in the vmm's. Key type:
//! [`CallId`].
//!
//! It goes with the task, and with what is spawned by [`spawn`]; `supervisor` carries it over to a VM's own task.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Longest id that a client may give, in bytes.
const MAX_LEN: usize = 64;

tokio::task_local! {
    static CURRENT: CallId;
}

/// The id of a call: the client's, if it gave one, else one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallId(Arc<str>);

impl CallId {
    /// Takes what the client said, if it is fit for a log: at most 64 letters, digits, `-`, `_` and `.`.
    pub fn new(wish: Option<&str>) -> Self {
        let is_fit = |text: &&str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(is_plain)
        };
        Self(wish.filter(is_fit).map_or_else(|| ulid::Ulid::generate().to_string().into(), Into::into))
    }

    /// Of the call that this task works for.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Does `work` for this call.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        let span = tracing::info_span!("call", id = %self);
        CURRENT.scope(self, work.instrument(span)).await
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Spawns `work` for the same call.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    match CallId::current() {
        Some(id) => tokio::spawn(id.scope(work)),
        None => tokio::spawn(work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_id_is_taken_only_if_it_cannot_forge_a_line() {
        assert_eq!(CallId::new(Some("a-1_b.C")).to_string(), "a-1_b.C");
        for bad in ["", "a b", "a\nb", "ä", &"x".repeat(65)] {
            let made = CallId::new(Some(bad)).to_string();
            assert!(made != bad && made.len() == 26, "{bad:?}: {made}");
        }
        assert_ne!(CallId::new(None), CallId::new(None));
    }

    #[tokio::test]
    async fn what_is_spawned_works_for_the_same_call() {
        assert_eq!(CallId::current(), None);
        let id = CallId::new(Some("one"));
        let seen = id.clone().scope(async { spawn(async { CallId::current() }).await.unwrap() }).await;
        assert_eq!(seen, Some(id));
        assert_eq!(spawn(async { CallId::current() }).await.unwrap(), None);
    }
}
