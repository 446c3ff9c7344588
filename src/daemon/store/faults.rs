//! Disks that tear what was not flushed, or are full. Key type: [`Medium`], a file of which every write is remembered.
//!
//! A crash may lose any of the writes since the last flush, tear one, and bring the others in whatever order; nothing
//! before. So of each moment a file can be made that a daemon may find.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use redb::{Database, StorageBackend};

use super::disk::{Place, builder};
use super::{Found, Retention, Store, StoreError};
use crate::daemon::record::{NvmeProvision, VmRecord, samples};
use crate::model::{Bdf, VmState};

/// What a disk writes in one piece, in bytes.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Resize(usize),
    Flush,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Everything that was done to it, from the beginning.
    steps: Vec<Step>,
    /// Bytes that it may have.
    room: Option<usize>,
}

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Medium(Arc<Mutex<Content>>);

impl Medium {
    fn with<T>(&self, work: impl FnOnce(&mut Content) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    fn steps(&self) -> usize {
        self.with(|content| content.steps.len())
    }

    /// The file as it may be found after a crash between step `at` and the next: of what was not flushed, `fates` tell
    /// how much of each write is there.
    fn after_crash(&self, at: usize, mut fates: impl FnMut() -> Fate) -> Self {
        let steps = self.with(|content| content.steps[..at].to_vec());
        let flushed = steps.iter().rposition(|step| matches!(step, Step::Flush)).map_or(0, |flush| flush + 1);
        let mut bytes = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let fate = if number < flushed { Fate::Whole } else { fates() };
            match (step, fate) {
                (Step::Flush, _) | (_, Fate::Lost) => {}
                // A file's length is the file system's, whose journal tears nothing.
                (Step::Resize(len), Fate::Whole | Fate::Torn(_)) => bytes.resize(len, 0),
                (Step::Write(offset, data), Fate::Whole) => put(&mut bytes, offset, &data),
                (Step::Write(offset, data), Fate::Torn(sectors)) => {
                    put(&mut bytes, offset, &data[..data.len().min(sectors * SECTOR)]);
                }
            }
        }
        Self(Arc::new(Mutex::new(Content { bytes, ..Content::default() })))
    }

    /// Opens a store in it.
    fn open(&self) -> Result<(Store, Found), StoreError> {
        Store::open_in(self.clone(), Path::new("memory"), Retention::default())
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Whole,
    Lost,
    /// So many sectors of it are there.
    Torn(usize),
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(offset + data.len()), 0);
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl Place for Medium {
    fn open(&self, _is_new: bool) -> Result<Database, redb::DatabaseError> {
        builder().create_with_backend(self.clone())
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.bytes.len()) as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.with(|content| match content.bytes.get(offset..offset + out.len()) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.with(|content| {
            if content.room.is_some_and(|room| len > room) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            content.bytes.resize(len, 0);
            content.steps.push(Step::Resize(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|content| content.steps.push(Step::Flush));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.with(|content| {
            put(&mut content.bytes, offset, data);
            content.steps.push(Step::Write(offset, data.to_vec()));
        });
        Ok(())
    }
}

fn provision(vfs: u16) -> NvmeProvision {
    let controller = Bdf::new(0, 2, 0, 0).unwrap();
    NvmeProvision { controller, serial: "S".into(), vfs, queues: 2, interrupts: 1 }
}

/// A life of a store: the medium, and after how many steps it was to hold what.
async fn life() -> (Medium, Vec<(usize, Found)>) {
    let medium = Medium::default();
    let (store, mut known) = medium.open().unwrap();
    let mut moments = vec![(medium.steps(), known.clone())];
    let mut web = samples::running("acme", "web");
    // Large enough for the file to grow.
    let wide = |name: &str| {
        let mut vm = samples::running("acme", name);
        vm.admission.opinions = vec![vm.admission.opinions[0].clone(); 400];
        vm
    };
    let set = |known: &mut Found, vm: &VmRecord| {
        known.vms.retain(|other| other.uid != vm.uid);
        known.vms.push(vm.clone());
        known.vms.sort_by_key(|vm| vm.uid.to_string());
    };
    store.insert_vm(web.clone()).await.unwrap();
    set(&mut known, &web);
    moments.push((medium.steps(), known.clone()));
    for number in 0..6 {
        let vm = wide(&format!("wide{number}"));
        store.insert_vm(vm.clone()).await.unwrap();
        set(&mut known, &vm);
        moments.push((medium.steps(), known.clone()));
    }
    web.state = VmState::Stopped;
    web.run = None;
    store.update_vm(web.clone()).await.unwrap();
    set(&mut known, &web);
    moments.push((medium.steps(), known.clone()));
    store.put_provision(provision(2)).await.unwrap();
    known.provisions = vec![provision(2)];
    moments.push((medium.steps(), known.clone()));
    store.remove_vm(web.clone()).await.unwrap();
    known.vms.retain(|vm| vm.uid != web.uid);
    moments.push((medium.steps(), known.clone()));
    store.forget_provision(provision(2).controller).await.unwrap();
    known.provisions.clear();
    moments.push((medium.steps(), known.clone()));
    (medium, moments)
}

/// What a crash after `at` steps may leave: what was answered by then, or that and the change after it.
fn expect_old_or_new(moments: &[(usize, Found)], at: usize, found: &Found) {
    let answered = moments.iter().rposition(|(steps, _)| *steps <= at);
    let old = answered.map_or_else(Found::default, |index| moments[index].1.clone());
    let new = moments.get(answered.map_or(0, |index| index + 1)).map(|(_, known)| known);
    assert!(*found == old || Some(found) == new, "after {at} steps:\n{found:?}\nold {old:?}\nnew {new:?}");
}

#[tokio::test]
async fn whatever_was_flushed_when_the_host_died_the_store_holds_the_old_or_the_new() {
    let (medium, moments) = life().await;
    let (first, last) = (moments[0].0, medium.steps());
    for at in first..=last {
        for fate in [Fate::Lost, Fate::Whole, Fate::Torn(1)] {
            let (store, found) = medium.after_crash(at, || fate).open().unwrap();
            expect_old_or_new(&moments, at, &found);
            // It is of use.
            store.insert_vm(samples::running("acme", "later")).await.unwrap();
        }
    }
}

#[test]
fn a_disk_that_tears_and_reorders_what_was_not_flushed_costs_nothing_that_was_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (medium, moments) = runtime.block_on(life());
    let (first, last) = (moments[0].0, medium.steps());
    let fate = prop_oneof![Just(Fate::Whole), Just(Fate::Lost), (0usize..9).prop_map(Fate::Torn)];
    let crash = (first..=last, proptest::collection::vec(fate, 64));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(128));
    let tried = runner.run(&crash, |(at, fates)| {
        let mut fates = fates.into_iter().cycle();
        let found = medium.after_crash(at, || fates.next().unwrap_or(Fate::Lost));
        let (_store, found) = found.open().map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        expect_old_or_new(&moments, at, &found);
        Ok(())
    });
    tried.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_is_of_use_again_when_it_has_room() {
    let medium = Medium::default();
    let (store, _) = medium.open().unwrap();
    let mut web = samples::running("acme", "web");
    store.insert_vm(web.clone()).await.unwrap();
    medium.with(|content| content.room = Some(content.bytes.len()));
    let mut wide = samples::running("acme", "wide");
    wide.admission.opinions = vec![wide.admission.opinions[0].clone(); 20_000];
    assert!(matches!(store.insert_vm(wide.clone()).await, Err(StoreError::Io(_))));
    assert_eq!(store.snapshot().vms.len(), 1, "what is not on disk does not exist");
    // A fact is one all the same; it may be small enough for what room there is.
    web.state = VmState::Stopped;
    web.admission.opinions = wide.admission.opinions.clone();
    assert!(store.update_vm(web.clone()).await.is_err());
    assert_eq!(store.snapshot().vms[&web.uid].state, VmState::Stopped);

    // Without a restart; and with it goes what could not be written before.
    medium.with(|content| content.room = None);
    store.insert_vm(wide.clone()).await.unwrap();
    store.close().await;
    let (_, found) = medium.open().unwrap();
    let mut expected = [web, wide];
    expected.sort_by_key(|vm| vm.uid.to_string());
    assert_eq!(found.vms, expected);
}
