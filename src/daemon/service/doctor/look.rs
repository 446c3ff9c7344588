//! One look at store and host. Key type: [`Look`]; key function: [`Node::look`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use super::super::Node;
use crate::daemon::inventory::{AddressPool, Devices, NvmeControllers};
use crate::daemon::record::VmRecord;
use crate::daemon::store::{RecordFault, Snapshot};
use crate::daemon::supervisor::{Standing, Traces};
use crate::model::VmId;

/// How old a file must be to count as left behind: none is written for so long.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// How files that are being written end.
const PARTIAL: &str = "partial";

/// What a VM's task said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskFact {
    /// How it stands.
    Stands(Standing),
    /// Nothing: it is busy.
    Busy,
    /// There is none.
    Lost,
}

/// What one look has shown. What could not be looked at is an error, or in [`Traces::unseen`].
#[derive(Debug)]
pub(super) struct Look {
    /// Records before the host was looked at, and after: what is not the same in both was under way.
    pub(super) before: Arc<Snapshot>,
    pub(super) after: Arc<Snapshot>,
    /// Of the VMs of `before`.
    pub(super) tasks: BTreeMap<VmId, TaskFact>,
    pub(super) traces: Result<Traces, String>,
    pub(super) devices: Result<Devices, String>,
    pub(super) nvme: Result<NvmeControllers, String>,
    pub(super) records: Result<Vec<RecordFault>, String>,
    /// VMs of which an image cannot be opened, with which and why.
    pub(super) images: Vec<(VmId, String)>,
    /// Files that were left behind.
    pub(super) stale: Vec<PathBuf>,
    /// The networks that are this node's to give.
    pub(super) addresses: AddressPool,
}

impl Node {
    /// Looks at everything once.
    pub(super) async fn look(&self) -> Look {
        let before = self.store.snapshot();
        let tasks = self.tasks(&before).await;
        let recorded = before.vms.values().filter_map(|vm| vm.run.as_ref()?.process).collect();
        let traces = self.supervisor.traces(recorded).await.map_err(|error| error.to_string());
        let store = self.store.clone();
        let records = blocking(move || store.check().map_err(|error| error.to_string())).await;
        let (devices, nvme) = (self.devices.shown().await, self.devices.shown_nvme().await);
        let stale = self.stale_files().await;
        let images = self.unusable_images(&before).await;
        let after = self.store.snapshot();
        let addresses = self.addresses.clone();
        Look { before, after, tasks, traces, devices, nvme, records: records.flatten(), images, stale, addresses }
    }

    /// Asks the VMs' tasks, all at once.
    pub(super) async fn tasks(&self, snapshot: &Snapshot) -> BTreeMap<VmId, TaskFact> {
        let mut asked = JoinSet::new();
        let mut tasks = BTreeMap::new();
        for uid in snapshot.vms.keys().copied() {
            match self.handles.get(uid) {
                Some(handle) => drop(asked.spawn(async move { (uid, handle.standing().await) })),
                None => drop(tasks.insert(uid, TaskFact::Lost)),
            }
        }
        while let Some(answer) = asked.join_next().await {
            let Ok((uid, standing)) = answer else { continue };
            let fact = match standing {
                Ok(Some(standing)) => TaskFact::Stands(standing),
                Ok(None) => TaskFact::Busy,
                Err(_gone) => TaskFact::Lost,
            };
            tasks.insert(uid, fact);
        }
        tasks
    }

    async fn unusable_images(&self, snapshot: &Snapshot) -> Vec<(VmId, String)> {
        let vms: Vec<Arc<VmRecord>> = snapshot.vms.values().cloned().collect();
        let files = self.files.clone();
        let check = move || {
            let unusable = |vm: &Arc<VmRecord>| Some((vm.uid, files.check(&vm.tenant, &vm.spec).err()?.to_string()));
            vms.iter().filter_map(unusable).collect()
        };
        blocking(check).await.unwrap_or_default()
    }

    async fn stale_files(&self) -> Vec<PathBuf> {
        let (data, kept) = (self.data.clone(), self.plugins.kept_files());
        blocking(move || stale_files(&data, &kept)).await.unwrap_or_default()
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Files that were not finished, and components that no record names (`kept` are those that some record does).
pub(super) fn stale_files(data: &Path, kept: &[String]) -> Vec<PathBuf> {
    let plugins = data.join("plugins");
    let mut stale = Vec::new();
    for dir in [data, &plugins, &data.join("compiled")] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_partial = path.extension().is_some_and(|extension| extension == PARTIAL);
            let is_component = dir == plugins && path.extension().is_some_and(|extension| extension == "wasm");
            if (is_partial || (is_component && !kept.contains(&name))) && is_old_file(&path) {
                stale.push(path);
            }
        }
    }
    stale.sort();
    stale
}

fn is_old_file(path: &Path) -> bool {
    // Not what a link points to.
    let Ok(found) = std::fs::symlink_metadata(path) else { return false };
    let age = found.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    found.is_file() && age.is_some_and(|age| age > STALE_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_that_nothing_names_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        let write = |name: &str, is_old: bool| {
            let path = dir.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            if is_old {
                file.set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
            }
            path
        };
        write("plugins/new.partial", false);
        write("plugins/kept.wasm", true);
        write("plugins/loading.wasm", false);
        write("store.redb", true);
        write("somebody.wasm", true);
        std::fs::create_dir(plugins.join("dir.partial")).unwrap();
        let expected =
            [write("node.key.partial", true), write("plugins/a.partial", true), write("plugins/b.wasm", true)];
        assert_eq!(stale_files(dir.path(), &["kept.wasm".to_owned()]), expected);
    }
}
