//! Changes of devices that run, sent to the vmm and answered by it in order. Key types: [`Change`], [`Changes`].

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::CallError;
use super::link::Link;
use crate::daemon::record::VmRecord;
use crate::model::{DeviceChange, DeviceId, VmSpec};
use crate::wire::ToVmm;

/// A change of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) device: DeviceId,
    pub(super) what: DeviceChange,
    /// Bytes of the longest file that the vmm has to write afterwards.
    pub(super) file_bytes: u64,
}

impl Change {
    /// The spec that it leaves behind, if it is to stay; why it cannot be made.
    pub(super) fn kept_in(&self, spec: &VmSpec) -> Result<Option<VmSpec>, String> {
        match self.what {
            DeviceChange::Resized | DeviceChange::Window(_) => Ok(None),
            DeviceChange::Limits(limits) => {
                let limited = spec.clone().with_limits(&self.device, limits);
                let none = || format!("the VM has no disk and no NIC on a tap named {}", self.device);
                limited.map(Some).ok_or_else(none)
            }
            DeviceChange::Balloon { keep_mib } => {
                spec.clone().with_kept(keep_mib).map(Some).map_err(|error| error.to_string())
            }
        }
    }
}

type Reply = oneshot::Sender<Result<VmRecord, CallError>>;

/// What was sent and not answered. Replies that are dropped with it tell their callers that the run is over.
#[derive(Debug, Default)]
pub(super) struct Changes(VecDeque<(DeviceId, Reply)>);

impl Changes {
    /// Sends a change.
    pub(super) fn send(&mut self, link: Option<&Link>, change: Change, reply: Reply) {
        let message = ToVmm::DeviceChange { device: change.device.clone(), change: change.what };
        match link.map(|link| link.send(&message, &[])) {
            Some(Ok(())) => self.0.push_back((change.device, reply)),
            // Nobody waits for the answer any more: fine.
            Some(Err(error)) => drop(reply.send(Err(CallError::ChangeFailed(error.to_string())))),
            None => drop(reply.send(Err(CallError::ChangeFailed("the vmm does not listen".to_owned())))),
        }
    }

    /// The vmm has answered the oldest.
    pub(super) fn answered(&mut self, device: &DeviceId, error: Option<String>, vm: &VmRecord) {
        if self.0.front().is_none_or(|(asked, _)| asked != device) {
            return tracing::warn!(uid = %vm.uid, %device, "a vmm answers what was not asked");
        }
        if let Some((_, reply)) = self.0.pop_front() {
            let answer = error.map_or_else(|| Ok(vm.clone()), |error| Err(CallError::ChangeFailed(error)));
            drop(reply.send(answer));
        }
    }
}
