//! Does away with what a comparison has found to be nobody's. Each step looks once more at what it is about to remove.

use super::super::{Node, Principal};
use super::finding::{Finding, FindingState, Remedy};
use super::look::{TaskFact, blocking, stale_files};
use crate::daemon::supervisor::CallError;
use crate::model::VmId;
use crate::sys::process::Identity;

/// The VM has come to be, or to run, since it was looked at.
const CHANGED: &str = "it has changed meanwhile";

impl Node {
    /// Does what the finding says is to be done, and notes what came of it.
    pub(super) async fn repair(&self, finding: &mut Finding, principal: &Principal) {
        let done = match &finding.remedy {
            Remedy::Person(_) => return,
            Remedy::Kill(vm, identity) => self.kill(*vm, *identity).await,
            Remedy::RemoveCgroup(vm) if self.is_vm(*vm) => Err(CHANGED.to_owned()),
            Remedy::RemoveCgroup(vm) => text(self.supervisor.remove_stray_cgroup(*vm).await),
            Remedy::RemoveDir(vm, _) if self.is_vm(*vm) => Err(CHANGED.to_owned()),
            Remedy::RemoveDir(vm, kind) => text(self.supervisor.remove_stray_dir(*vm, *kind).await),
            Remedy::Tidy(vm) => self.tidy(*vm).await,
            Remedy::RemoveTap(name) => text(self.supervisor.remove_stray_tap(name.clone()).await),
            Remedy::CleanVf(key, generation) => self.devices.clean_stray(*key, *generation).await,
            Remedy::CleanNvme(key, generation) => self.devices.clean_stray_nvme(key, *generation).await,
            Remedy::Unbind(key, address) => self.devices.unbind_stray(*key, *address).await,
            Remedy::RemoveFile(path) => {
                // Plugins are written under this lock only.
                let _turn = self.plugins.turn().await;
                let (data, kept, path) = (self.data.clone(), self.plugins.kept_files(), path.clone());
                let remove = move || match stale_files(&data, &kept).contains(&path) {
                    true => text(std::fs::remove_file(&path)),
                    false => Err(CHANGED.to_owned()),
                };
                blocking(remove).await.flatten()
            }
        };
        let Finding { kind, object, detail, remedy, .. } = &*finding;
        match &done {
            Ok(()) => tracing::warn!(?kind, object, detail, %remedy, %principal, "repaired"),
            Err(error) => tracing::error!(?kind, object, detail, %remedy, %principal, error, "not repaired"),
        }
        finding.state = done.map_or_else(FindingState::NotRepaired, |()| FindingState::Repaired);
    }

    /// Whether there is such a VM, or is about to be.
    fn is_vm(&self, uid: VmId) -> bool {
        self.store.snapshot().vms.contains_key(&uid) || self.handles.get(uid).is_some()
    }

    async fn kill(&self, vm: VmId, identity: Identity) -> Result<(), String> {
        let look = self.tasks(&self.store.snapshot()).await;
        let is_watched =
            |task: &TaskFact| matches!(task, TaskFact::Stands(standing) if standing.process == Some(identity));
        let snapshot = self.store.snapshot();
        let recorded = |uid| snapshot.vms.get(&uid).and_then(|vm| vm.run.as_ref()?.process) == Some(identity);
        let is_settled = match look.get(&vm) {
            None => !self.is_vm(vm),
            Some(TaskFact::Stands(standing)) => standing.is_settled,
            Some(TaskFact::Busy | TaskFact::Lost) => false,
        };
        if !is_settled || look.values().any(is_watched) || snapshot.vms.keys().copied().any(recorded) {
            return Err(CHANGED.to_owned());
        }
        text(self.supervisor.kill_stray(vm, identity).await)
    }

    async fn tidy(&self, vm: VmId) -> Result<(), String> {
        let handle = self.handles.get(vm).ok_or_else(|| CHANGED.to_owned())?;
        match handle.tidy().await {
            Ok(true) => Ok(()),
            Ok(false) | Err(CallError::Gone) => Err(CHANGED.to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn text(done: std::io::Result<()>) -> Result<(), String> {
    done.map_err(|error| error.to_string())
}
