//! Times of requests and responses: durations, moments, and how long a client may have somebody wait.

use std::time::{Duration, SystemTime};

use crate::model::SpecError;

/// How long a guest may take to power off when the client does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// How long a guest may take to let a device go when the client does not say.
pub const DEFAULT_UNPLUG: Duration = Duration::from_secs(10);
/// How long a client waits for the end of an operation if it does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// The longest of these that a client may ask for.
pub const MAX_GRACE: Duration = Duration::from_secs(600);

/// A duration for a response. One that protobuf cannot say (longer than 10,000 years) becomes the longest that it can.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    // duration.proto: at most 315,576,000,000 s.
    const MOST: u64 = 315_576_000_000;
    let seconds = i64::try_from(duration.as_secs().min(MOST)).unwrap_or(i64::MAX);
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or(0);
    prost_types::Duration { seconds, nanos }
}

/// A duration from a request; `field` names it in the error. Negative or denormal ones are refused.
pub fn duration_from_proto(field: &str, duration: prost_types::Duration) -> Result<Duration, SpecError> {
    let refuse = || {
        let shown = format!("{} s and {} ns", duration.seconds, duration.nanos);
        SpecError::new(field, format!("{shown} is not a duration of zero or more"))
    };
    let seconds = u64::try_from(duration.seconds).map_err(|_| refuse())?;
    match u32::try_from(duration.nanos) {
        Ok(nanos) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(refuse()),
    }
}

/// The grace of a stop: [`DEFAULT_GRACE`] if unset, zero for "by force at once", at most [`MAX_GRACE`].
pub fn grace_from_proto(grace: Option<prost_types::Duration>) -> Result<Duration, SpecError> {
    patience_from_proto("grace", grace, DEFAULT_GRACE)
}

/// How long a guest may take to let a device go: [`DEFAULT_UNPLUG`] if unset, at most [`MAX_GRACE`].
pub fn unplug_timeout_from_proto(timeout: Option<prost_types::Duration>) -> Result<Duration, SpecError> {
    patience_from_proto("timeout", timeout, DEFAULT_UNPLUG)
}

/// How long a client waits for an operation: [`DEFAULT_WAIT`] if unset, at most [`MAX_GRACE`].
pub fn wait_from_proto(timeout: Option<prost_types::Duration>) -> Result<Duration, SpecError> {
    patience_from_proto("timeout", timeout, DEFAULT_WAIT)
}

fn patience_from_proto(
    field: &str,
    patience: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, SpecError> {
    let Some(patience) = patience else { return Ok(default) };
    let patience = duration_from_proto(field, patience)?;
    if patience > MAX_GRACE {
        let most = MAX_GRACE.as_secs();
        return Err(SpecError::new(field, format!("{} s, at most {most} s are allowed", patience.as_secs())));
    }
    Ok(patience)
}

/// A moment for a response: to the millisecond, which is what the store keeps, so that it is the same after a restart.
pub fn timestamp_to_proto(moment: SystemTime) -> prost_types::Timestamp {
    let mut timestamp = prost_types::Timestamp::from(moment);
    timestamp.nanos -= timestamp.nanos.rem_euclid(1_000_000);
    timestamp
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_client_has_somebody_wait_has_a_default_and_an_end() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let kinds: [(&str, fn(_) -> _, Duration); 3] = [
            ("grace", grace_from_proto, DEFAULT_GRACE),
            ("timeout", unplug_timeout_from_proto, DEFAULT_UNPLUG),
            ("timeout", wait_from_proto, DEFAULT_WAIT),
        ];
        for (field, from_proto, default) in kinds {
            assert_eq!(from_proto(None), Ok(default));
            assert_eq!(from_proto(seconds(0)), Ok(Duration::ZERO));
            assert_eq!(from_proto(seconds(600)), Ok(MAX_GRACE));
            for patience in [seconds(601), seconds(-1), Some(prost_types::Duration { seconds: 0, nanos: -1 })] {
                assert_eq!(from_proto(patience).unwrap_err().field, field);
            }
        }
    }

    proptest! {
        #[test]
        fn durations_round_trip(seconds in 0u64..=315_576_000_000, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(duration_from_proto("f", duration_to_proto(duration)), Ok(duration));
        }

        #[test]
        fn durations_of_any_kind_are_read_or_refused(seconds in any::<i64>(), nanos in any::<i32>()) {
            let _ = duration_from_proto("f", prost_types::Duration { seconds, nanos });
            let _ = duration_to_proto(Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs() % 1_000_000_000));
        }
    }
}
