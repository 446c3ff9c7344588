//! Admits so many VMs of a tenant in a while: the example of a plugin that remembers.
//!
//! | key | meaning |
//! |---|---|
//! | `max-requests` | so many registrations are asked about in one window; 10 |
//! | `window-s` | length of a window, in seconds; 3600 |
//!
//! It counts what it was asked, denied or not: who asks too often waits. Two keys are kept for each tenant: `window`, the
//! number of the present window, and `count`, the requests in it. Beyond its limit it denies, else it abstains: whether a VM
//! is admitted is for other plugins to say.

use ostler_policy::admit::{Admit, AdmitRequest, Verdict};
use ostler_policy::{Error, Policy, Reader, Source, kv, refuse};

const WINDOW: &str = "window";
const COUNT: &str = "count";

struct Rate {
    max_requests: u64,
    window_s: u64,
}

impl Policy for Rate {
    const NAME: &'static str = "rate";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "lets a tenant ask for so many VMs in a while";
    const SETTINGS: &'static [&'static str] = &["max-requests", "window-s"];

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        Self {
            max_requests: settings.number("max-requests", 1..=1_000_000).unwrap_or(10),
            window_s: settings.number("window-s", 1..=31_536_000).unwrap_or(3600),
        }
    }
}

impl Admit for Rate {
    fn admit(&self, _: &AdmitRequest) -> Result<Verdict, Error> {
        let full = |refusal| Error::Internal(format!("cannot remember: {refusal:?}"));
        let window = kv::moment() / self.window_s;
        let is_present = kv::number(WINDOW) == Some(window);
        let count = kv::number(COUNT).filter(|_| is_present).unwrap_or(0) + 1;
        kv::set_number(WINDOW, window).map_err(full)?;
        kv::set_number(COUNT, count).map_err(full)?;
        let Self { max_requests, window_s } = self;
        if count <= *max_requests {
            return Ok(Verdict::Abstain);
        }
        let next_s = (window + 1) * window_s - kv::moment();
        let message = format!(
            "request {count} in {window_s} s, {max_requests} are allowed; the next window begins in {next_s} s"
        );
        Ok(refuse("rate.requests", message).into())
    }
}

ostler_policy::export!(Rate: admit);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use ostler_policy::testing;

    fn ask() -> Option<String> {
        let rate: Rate = testing::read([("max-requests", "2"), ("window-s", "60")]).unwrap();
        match rate.admit(&testing::admit()).unwrap() {
            Verdict::Deny(denial) => Some(denial.message),
            Verdict::Allow(_) | Verdict::Abstain => None,
        }
    }

    #[test]
    fn so_many_in_a_window_and_refusals_count() {
        testing::remember(130, &[]);
        assert_eq!((ask(), ask()), (None, None));
        let denied = ask().unwrap();
        assert!(denied.starts_with("request 3 in 60 s, 2 are allowed; the next window begins in 50 s"), "{denied}");
        assert_eq!(testing::remembered(), [("count", "3"), ("window", "2")].map(|(k, v)| (k.into(), v.into())).into());
        testing::remember(180, &[("count", "3"), ("window", "2")]);
        assert_eq!(ask(), None);
        assert_eq!(testing::remembered()["count"], "1");
    }

    #[test]
    fn what_is_no_number_counts_as_nothing() {
        testing::remember(130, &[("count", "many"), ("window", "2")]);
        assert_eq!(ask(), None);
        assert_eq!(testing::remembered()["count"], "1");
    }
}
