//! Remembered requests as JSON documents. Key functions: [`encode_request`], [`decode_request`].

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, from_ms, text, to_json, to_ms};
use crate::daemon::record::{Before, BegunWork, Progress, RequestKey, RequestRecord};

#[derive(Serialize, Deserialize)]
struct StoredRequest {
    format: u32,
    caller: String,
    id: String,
    /// Base64, as everything here that is bytes.
    fingerprint: String,
    begun_ms: u64,
    progress: StoredProgress,
    /// Absent from records of daemons that had no operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    work: Option<StoredWork>,
}

#[derive(Serialize, Deserialize)]
struct StoredWork {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    operation: String,
    method: String,
    target: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredProgress {
    Done { answer: String },
    BegunVm { uid: String, etag: String },
    BegunLease { address: String, generation: u64 },
}

pub(super) fn request_key(key: &RequestKey) -> String {
    format!("{} {}", key.caller, key.id)
}

pub(super) fn encode_request(request: &RequestRecord) -> Vec<u8> {
    to_json(&StoredRequest {
        format: FORMAT,
        caller: request.key.caller.clone(),
        id: request.key.id.to_string(),
        fingerprint: BASE64_STANDARD.encode(request.fingerprint),
        begun_ms: to_ms(request.begun),
        progress: match &request.progress {
            Progress::Done { answer } => StoredProgress::Done { answer: BASE64_STANDARD.encode(answer) },
            Progress::Begun(Before::Vm { uid, etag }) => {
                StoredProgress::BegunVm { uid: uid.to_string(), etag: etag.clone() }
            }
            Progress::Begun(Before::Lease { address, generation }) => {
                StoredProgress::BegunLease { address: address.to_string(), generation: *generation }
            }
        },
        work: request.work.as_ref().map(|work| StoredWork {
            tenant: work.owner.as_ref().map(ToString::to_string),
            operation: work.operation.clone(),
            method: work.method.clone(),
            target: work.target.clone(),
        }),
    })
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<RequestRecord, Unusable> {
    let request: StoredRequest = from_json(bytes)?;
    let fingerprint = BASE64_STANDARD.decode(&request.fingerprint).map_err(text)?;
    Ok(RequestRecord {
        key: RequestKey { caller: request.caller, id: request.id.parse().map_err(text)? },
        fingerprint: fingerprint.try_into().map_err(|_| "its fingerprint has not 32 bytes".to_owned())?,
        begun: from_ms(request.begun_ms)?,
        progress: match request.progress {
            StoredProgress::Done { answer } => {
                Progress::Done { answer: BASE64_STANDARD.decode(&answer).map_err(text)? }
            }
            StoredProgress::BegunVm { uid, etag } => {
                Progress::Begun(Before::Vm { uid: uid.parse().map_err(text)?, etag })
            }
            StoredProgress::BegunLease { address, generation } => {
                Progress::Begun(Before::Lease { address: address.parse().map_err(text)?, generation })
            }
        },
        work: request.work.map(work_of).transpose()?,
    })
}

fn work_of(work: StoredWork) -> Result<BegunWork, Unusable> {
    let StoredWork { tenant, operation, method, target } = work;
    let owner = tenant.map(|tenant| tenant.parse().map_err(text)).transpose()?;
    Ok(BegunWork { owner, operation, method, target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmId;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_progress_round_trips() {
        let kinds = [
            Progress::Done { answer: vec![0, 255, 7] },
            Progress::Begun(Before::Vm { uid: VmId::new(), etag: "\"ab\"".into() }),
            Progress::Begun(Before::Lease { address: "0000:01:10.1".parse().unwrap(), generation: 9 }),
        ];
        let work = |owner| BegunWork {
            owner,
            operation: "01M86QW9WBP2NZC87A485E1H8E".into(),
            method: "StopVirtualMachine".into(),
            target: "tenants/acme/vms/web".into(),
        };
        let works = [None, Some(work(None)), Some(work(Some("acme".parse().unwrap())))];
        for (progress, work) in kinds.into_iter().zip(works) {
            let request = RequestRecord {
                key: RequestKey {
                    caller: "tenant/acme".into(),
                    id: "123e4567-e89b-42d3-a456-426614174000".parse().unwrap(),
                },
                fingerprint: [3; 32],
                begun: std::time::UNIX_EPOCH + std::time::Duration::from_millis(77),
                progress,
                work,
            };
            assert_eq!(decode_request(&encode_request(&request)), Ok(request));
        }
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_request(&bytes);
        }
    }
}
