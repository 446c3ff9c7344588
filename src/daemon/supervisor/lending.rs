//! Devices of the host that come to a running VM and leave it: the part of its task that is about them. Key types:
//! [`Function`], [`Opened`], [`Reclaims`]. Key function: [`lend`].
//!
//! ```text
//!   attach   record ATTACHING ──▶ lend: claimed, prepared, lease ATTACHED, opened (own task) ──▶ record has the function
//!              ──▶ more memory may be locked ──▶ Attach + descriptors ──▶ Attached ──▶ record ATTACHED
//!   detach   … Detached ──▶ given back: reset, restored, lease FREE (own task) ──▶ record without it, less may be locked
//! ```
//! Any failure on the way gives back what is held, then the record forgets the device: it has it for as long as a lease
//! may name it. When the run ends, what is under way here is waited for before anything else is given back.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::backing::BackingError;
use super::hotplug::{HotplugError, Progress};
use super::vm_task::{Phase, VmTask};
use super::{DevicesError, Shared};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{AttachState, NvmeDevice, VfNic, VmRecord};
use crate::model::{DeviceId, locked_bytes};

/// How long a guest may take to let go of a device that the host wants back, before it is taken.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// A function of the host that a VM has got.
#[derive(Debug)]
pub(super) enum Function {
    /// Of a network card.
    Vf(VfNic),
    /// Behind which an NVMe device lies.
    Nvme(NvmeDevice),
}

/// What was opened for a device.
#[derive(Debug)]
pub(super) struct Opened {
    /// In the order that a vmm takes them.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The function, if it is one.
    pub(super) function: Option<Function>,
}

/// What the host wants back, and when it is taken from the guest. A device that has gone is not wanted any more: the next
/// of its name is another one.
#[derive(Debug, Default)]
pub(super) struct Reclaims(BTreeMap<DeviceId, Instant>);

impl Reclaims {
    /// `id` is taken at `at`, if it is not wanted already.
    fn want(&mut self, id: DeviceId, at: Instant) {
        self.0.entry(id).or_insert(at);
    }

    /// The device has gone.
    pub(super) fn forget(&mut self, id: &DeviceId) {
        self.0.remove(id);
    }

    /// Whether this one is wanted.
    pub(super) fn wants(&self, id: &DeviceId) -> bool {
        self.0.contains_key(id)
    }

    /// All have gone.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// When something is to be taken next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// What is to be taken now.
    fn take_due(&mut self, now: Instant) -> Vec<DeviceId> {
        self.0.extract_if(.., |_, at| *at <= now).map(|(id, _)| id).collect()
    }
}

/// Gives the device `id` of `vm`, which has none yet, a function of the host, and opens it. On an error something may be
/// the VM's already.
pub(super) async fn lend(
    shared: Arc<Shared>,
    vm: VmRecord,
    id: DeviceId,
    operation: Underway,
) -> Result<Opened, HotplugError> {
    let refused = |error: DevicesError| HotplugError::NotLent { id: id.clone(), cause: error.0 };
    let function = if vm.spec.nvmes().iter().any(|nvme| nvme.id == id) {
        let given = shared.devices.claim_nvmes(vm.clone(), operation.clone()).await.map_err(&refused)?;
        given.into_iter().find(|device| device.id == id).map(Function::Nvme)
    } else {
        let given = shared.devices.claim(vm.clone(), operation.clone()).await.map_err(&refused)?;
        given.into_iter().find(|vf| vf.id == id).map(Function::Vf)
    };
    let function = function.ok_or_else(|| refused(DevicesError("nothing was chosen for it".to_owned())))?;
    operation.tell(Step::new("opening the device"));
    shared.devices.attach(vm.uid, id.clone()).await.map_err(&refused)?;
    let opening = tokio::task::spawn_blocking(move || {
        let opened = match &function {
            Function::Vf(vf) => shared.devices.open(vf),
            Function::Nvme(device) => match device.function {
                Some(address) => shared.devices.open_nvme(address),
                None => Err(DevicesError("it has no function".to_owned())),
            },
        };
        opened.map(|descriptors| Opened { descriptors: descriptors.into(), function: Some(function) })
    });
    let opened = opening.await.unwrap_or_else(|error| Err(DevicesError(error.to_string())));
    opened.map_err(refused)
}

impl VmTask {
    /// Has a device of the host lent, while calls are answered.
    pub(super) fn borrow(&mut self, id: DeviceId, operation: &Underway) {
        let (shared, vm, operation) = (Arc::clone(&self.shared), self.vm.clone(), operation.for_telling());
        self.hotplug.begin(async move { Progress::Opened(id.clone(), lend(shared, vm, id, operation).await) });
    }

    /// Puts the function of a device on record and lets the vmm lock the memory that its DMA may reach. The intent must
    /// be kept: a vmm with a device that no record names could not be taken over.
    pub(super) async fn record_function(&mut self, function: Function) -> Result<(), HotplugError> {
        let mut next = self.vm.clone();
        match function {
            Function::Vf(vf) => next.vfs.push(vf),
            Function::Nvme(device) => next.nvmes.push(device),
        }
        let before = std::mem::replace(&mut self.vm, next);
        self.vm.updated = SystemTime::now();
        if let Err(error) = self.shared.journal.update(self.vm.clone()).await {
            self.vm = before;
            return Err(error.into());
        }
        crash::reach(Point::FunctionRecorded);
        self.limit_locked()
            .map_err(|error| BackingError::Host { what: "the limit of locked memory", cause: error.to_string() }.into())
    }

    /// Has what the host lent for a device given back, then forgets the device. `failed`: why it was not attached.
    pub(super) fn give_back(&mut self, id: DeviceId, failed: Option<HotplugError>) {
        // A second word of the vmm about the same device: it is on its way.
        if !self.hotplug.returning.insert(id.clone()) {
            return;
        }
        let (shared, uid) = (Arc::clone(&self.shared), self.vm.uid);
        self.hotplug.tell(&id, "giving back what the device held");
        // Of several calls the first is told more than that.
        let operation = self.hotplug.first_about(&id).for_telling();
        self.hotplug.begin(async move {
            shared.devices.give_back(uid, id.clone(), operation).await;
            Progress::GivenBack(id, failed)
        });
    }

    /// Nobody holds anything of the device any more.
    pub(super) async fn given_back(&mut self, id: &DeviceId, failed: Option<HotplugError>) {
        crash::reach(Point::FunctionReturned);
        self.hotplug.returning.remove(id);
        self.forget_device(id, failed).await;
        if let Err(error) = self.limit_locked() {
            tracing::warn!(uid = %self.vm.uid, %error, "the process may lock more memory than it needs");
        }
    }

    /// The host wants a device back: the guest is asked for it, and has it taken if it does not let go.
    pub(super) async fn reclaim(&mut self, id: DeviceId) {
        if self.vm.attachment(&id).is_none_or(|attachment| attachment.state == AttachState::Attaching) {
            return;
        }
        tracing::warn!(uid = %self.vm.uid, device = %id, "the host wants the device back: it is detached");
        match self.detach_running(&id, false).await {
            Ok(()) => self.hotplug.reclaims.want(id, Instant::now() + RECLAIM_TIMEOUT),
            Err(error) => tracing::error!(uid = %self.vm.uid, device = %id, %error, "not detached"),
        }
    }

    /// Takes what the host wants back and the guest has not let go.
    pub(super) async fn take_reclaimed(&mut self, now: Instant) {
        for id in self.hotplug.reclaims.take_due(now) {
            if let Err(error) = self.detach_running(&id, true).await {
                tracing::error!(uid = %self.vm.uid, device = %id, %error, "not taken");
            }
        }
    }

    /// A vmm of an earlier daemon does not have these devices of the host, whatever the record says: what is held for
    /// them goes back.
    pub(super) fn give_back_absent(&mut self, present: &[DeviceId]) {
        for id in self.vm.devices_of_host().into_iter().filter(|id| !present.contains(id)) {
            self.vm.set_device(&id, AttachState::Detaching);
            self.give_back(id, None);
        }
    }

    /// Lets the process lock the memory that its devices of the host need, and no more.
    fn limit_locked(&self) -> std::io::Result<()> {
        let Phase::Live(live) = &self.phase else { return Ok(()) };
        if self.shared.jail.is_none() {
            return Ok(());
        }
        let nvmes = self.vm.nvmes.iter().filter(|device| device.function.is_some());
        // Bounded by the number of PCI slots.
        let count = u32::try_from(self.vm.vfs.len() + nvmes.count()).unwrap_or(u32::MAX);
        live.process.get_ref().limit_locked(locked_bytes(self.vm.spec.memory_bytes(), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_is_not_taken_and_what_is_wanted_twice_is_taken_when_it_was_wanted_first() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let id = |name: &str| -> DeviceId { name.parse().unwrap() };
        let mut reclaims = Reclaims::default();
        reclaims.want(id("net1"), after(1));
        reclaims.want(id("net2"), after(2));
        reclaims.want(id("net2"), after(9));
        reclaims.forget(&id("net1"));
        assert_eq!(reclaims.next(), Some(after(2)));
        assert!(reclaims.take_due(after(1)).is_empty());
        assert_eq!(reclaims.take_due(after(2)), [id("net2")]);
        assert!(reclaims.next().is_none() && reclaims.take_due(after(99)).is_empty());
    }
}
