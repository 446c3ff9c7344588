//! Start, stop, pause, reboot, destroy: find the VM, ask its task. No policy here but for devices: it decides grants,
//! never releases.
//!
//! A call that is repeated after a crash is not made again if the VM has come to where the call would have brought it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::record::{Before, VmRecord};
use crate::daemon::store::vm_etag;
use crate::daemon::supervisor::{CallError, OnlyIf, VmHandle};
use crate::model::{Event, FailureCause, Placement, Refused, TenantId, VmExit, VmId, VmName, VmState, step};

/// Where a VM is that an earlier attempt was about.
enum Settled {
    /// Where it was: nothing has happened.
    Unchanged,
    /// It has changed, and is not on its way to anywhere.
    At(Arc<VmRecord>),
    /// It is not there any more.
    Gone,
}

impl Node {
    /// Starts the VM; returns once its vCPUs run, or with why they do not.
    pub async fn start_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            // A VM that is off by now did run.
            Settled::At(vm) if matches!(vm.state, VmState::Running | VmState::Stopped) => {
                return Ok(VmRecord::clone(&vm));
            }
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        let Some(handle) = self.prepare(&vm, terms, &Event::Start).await? else {
            let placement = self.rehearse_start(&vm).await?;
            return Ok(VmRecord { placement: placement.map(Box::new), ..VmRecord::clone(&vm) });
        };
        Ok(handle.start().await?)
    }

    /// Stops the VM, by force once `grace` is over; returns when it is stopped.
    pub async fn stop_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        grace: Duration,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if vm.state == VmState::Stopped => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Stop { grace }).await? {
            Some(handle) => Ok(handle.stop(grace).await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Powers the VM off, by force once `grace` is over, and starts it again; returns once its vCPUs run.
    pub async fn reboot_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        grace: Duration,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if vm.state == VmState::Running => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Reboot { grace }).await? {
            Some(handle) => Ok(handle.reboot(grace).await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Makes the VM's vCPUs and devices stand still; returns when they do.
    pub async fn pause_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if vm.state == VmState::Paused => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Pause).await? {
            Some(handle) => Ok(handle.pause().await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Lets the VM go on.
    pub async fn resume_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if vm.state == VmState::Running => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Resume).await? {
            Some(handle) => Ok(handle.resume().await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Presses the VM's power button; what the guest makes of it is its own affair. Nothing tells whether an attempt that
    /// was cut off pressed it: it is pressed again, unless the VM is off by now.
    pub async fn press_power_button(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if vm.state == VmState::Stopped => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::PowerButton).await? {
            Some(handle) => Ok(handle.press_power_button().await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Gives every vCPU of the VM a non-maskable interrupt. After an attempt that was cut off it gets one more, unless the
    /// first has ended it.
    pub async fn inject_nmi(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        match self.left_by(terms).await? {
            Settled::At(vm) if !vm.state.has_process() => return Ok(VmRecord::clone(&vm)),
            Settled::Unchanged | Settled::At(_) | Settled::Gone => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Nmi).await? {
            Some(handle) => Ok(handle.inject_nmi().await?),
            None => Ok(VmRecord::clone(&vm)),
        }
    }

    /// Forgets the VM, and kills it first if it runs and `is_forced`.
    pub async fn destroy_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        is_forced: bool,
        terms: &Terms<()>,
    ) -> Result<(), ServiceError> {
        match self.left_by(terms).await? {
            Settled::Gone => return Ok(()),
            Settled::Unchanged | Settled::At(_) => {}
        }
        let vm = self.get(principal, tenant, name)?;
        match self.prepare(&vm, terms, &Event::Destroy { is_forced }).await? {
            Some(handle) => handle.destroy(is_forced).await.map(drop).map_err(ServiceError::from),
            None => Ok(()),
        }
    }

    /// Checks what `terms` ask and that `event` is legal; then remembers that it is about to happen and gives the VM's
    /// task, which checks both again. `None` if nothing may happen: the terms say "validate only".
    async fn prepare<T>(
        &self,
        vm: &VmRecord,
        terms: &Terms<T>,
        event: &Event,
    ) -> Result<Option<VmHandle>, ServiceError> {
        self.prepare_if(vm, terms, || step(&vm.state, event).map(drop)).await
    }

    /// The same for a call whose legality `is_legal` tells.
    pub(super) async fn prepare_if<T>(
        &self,
        vm: &VmRecord,
        terms: &Terms<T>,
        is_legal: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<Option<VmHandle>, ServiceError> {
        let etag = vm_etag(vm);
        if terms.etag.as_ref().is_some_and(|seen| *seen != etag) {
            return Err(CallError::Changed.into());
        }
        is_legal().map_err(CallError::from)?;
        if terms.validate_only {
            return Ok(None);
        }
        let handle = self.handles.get(vm.uid).ok_or(ServiceError::NoSuchVm)?;
        let operation = self.begin(terms, Some(vm.tenant.clone()), Before::Vm { uid: vm.uid, etag }).await?;
        let only_if = terms.etag.clone().map(|seen| OnlyIf::new(move |vm| vm_etag(vm) == seen));
        Ok(Some(handle.only_if(only_if).part_of(operation)))
    }

    /// What became of the VM since an attempt that was cut off; waits until it is not on its way any more.
    async fn left_by<T>(&self, terms: &Terms<T>) -> Result<Settled, ServiceError> {
        match terms.left() {
            Some(Before::Vm { uid, etag }) => self.settled(*uid, etag).await,
            Some(Before::Lease { .. }) | None => Ok(Settled::Unchanged),
        }
    }

    async fn settled(&self, uid: VmId, before: &str) -> Result<Settled, ServiceError> {
        loop {
            let (snapshot, mut changes) = self.store.watch();
            let Some(vm) = snapshot.vms.get(&uid) else { return Ok(Settled::Gone) };
            if vm_etag(vm) == before {
                return Ok(Settled::Unchanged);
            }
            if !matches!(vm.state, VmState::Starting | VmState::Stopping | VmState::Rebooting | VmState::Destroying) {
                return Ok(Settled::At(Arc::clone(vm)));
            }
            loop {
                match changes.recv().await {
                    Ok(change) if change.vm.uid == uid => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Err(ServiceError::Ending),
                }
            }
        }
    }

    /// Whether a start would get what it needs of the host, as far as that can be told without taking it; and where the VM
    /// would run.
    async fn rehearse_start(&self, vm: &VmRecord) -> Result<Option<Placement>, ServiceError> {
        let failed = |cause: String| CallError::StartFailed(FailureCause(VmExit::LaunchFailed(cause)));
        match self.check_host(&vm.tenant, &vm.spec).await {
            Err(ServiceError::BadField(error)) => return Err(failed(error.to_string()).into()),
            other => other?,
        }
        self.devices.rehearse(vm).await.map_err(|error| failed(error.0))?;
        self.devices.rehearse_place(vm).await.map_err(|error| failed(error.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Claim, Node, Places};
    use super::*;
    use crate::daemon::inventory::Network;
    use crate::daemon::record::{RequestKey, samples};
    use crate::sys::program::Program;
    use std::path::Path;

    /// A node whose VMs are only records: without a task, every call that is really made fails (`NoSuchVm`).
    async fn node() -> (tempfile::TempDir, Arc<Node>) {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        let (data, run, images) = (place("data"), place("run"), place("images"));
        for path in [&data, &run, &images] {
            std::fs::create_dir(path).unwrap();
        }
        let vmm = Program::open(Path::new("/bin/false")).unwrap();
        let places = Places { data, run, images, volumes: place("volumes"), vmm };
        let node = Node::open(&places, Network::default(), None).await.unwrap();
        (dir, Arc::new(node))
    }

    /// Of a request that was cut off while the VM had `etag`.
    fn left<T>(uid: VmId, etag: String) -> Terms<T> {
        let id = "123e4567-e89b-42d3-a456-426614174000".parse().unwrap();
        let claim = Claim {
            key: RequestKey { caller: "operator/admin".into(), id },
            fingerprint: [0; 32],
            encode: Arc::new(|_| vec![]),
            left: Some(Before::Vm { uid, etag }),
        };
        Terms { etag: None, validate_only: false, claim: Some(claim), ticket: None }
    }

    #[tokio::test]
    async fn a_call_that_was_cut_off_is_made_again_only_if_it_did_not_happen() {
        let (_dir, node) = node().await;
        let operator = Principal::Operator("admin".parse().unwrap());
        let tenant: TenantId = "acme".parse().unwrap();
        let failed = VmState::Failed(FailureCause(VmExit::TripleFault));
        // State, whether it changed since, and whether a start and a stop have happened.
        let cases = [
            (VmState::Running, true, true, false),
            (VmState::Stopped, true, true, true),
            (failed, true, false, false),
            (VmState::Registered, true, false, false),
            (VmState::Stopped, false, false, false),
        ];
        for (at, (state, has_changed, is_started, is_stopped)) in cases.into_iter().enumerate() {
            let vm = VmRecord { state, ..samples::running("acme", &format!("vm{at}")) };
            node.store.insert_vm(vm.clone()).await.unwrap();
            let before = if has_changed { "\"before\"".to_owned() } else { vm_etag(&vm) };
            let start = node.start_vm(&operator, &tenant, &vm.name, &left(vm.uid, before.clone())).await;
            assert_eq!(start.is_ok(), is_started, "{vm:?}: {start:?}");
            let terms = left(vm.uid, before.clone());
            let stop = node.stop_vm(&operator, &tenant, &vm.name, Duration::ZERO, &terms).await;
            assert_eq!(stop.is_ok(), is_stopped, "{vm:?}: {stop:?}");
            let destroy = node.destroy_vm(&operator, &tenant, &vm.name, true, &left(vm.uid, before)).await;
            assert!(destroy.is_err(), "{vm:?}");
        }
        let name: VmName = "gone".parse().unwrap();
        node.destroy_vm(&operator, &tenant, &name, true, &left(VmId::new(), String::new())).await.unwrap();
        node.close().await;
    }

    #[tokio::test]
    async fn a_repeated_call_waits_for_a_vm_that_is_on_its_way() {
        let (_dir, node) = node().await;
        let operator = Principal::Operator("admin".parse().unwrap());
        let tenant: TenantId = "acme".parse().unwrap();
        let vm = VmRecord { state: VmState::Starting, ..samples::running("acme", "web") };
        node.store.insert_vm(vm.clone()).await.unwrap();
        let terms = left(vm.uid, "\"before\"".into());
        let start = node.start_vm(&operator, &tenant, &vm.name, &terms);
        tokio::pin!(start);
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(start.as_mut().poll(cx).is_pending())).await);
        let running = VmRecord { state: VmState::Running, ..vm.clone() };
        node.store.update_vm(running.clone()).await.unwrap();
        assert_eq!(start.await.unwrap(), running);
    }
}
