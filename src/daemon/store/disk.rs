//! The database of the store's thread. Key type: [`Disk`].
//!
//! redb does nothing more after a failed read or write of its file: a disk that was full for a moment would take the
//! store away until the daemon's next start. So the file is opened anew for the next write, as after a crash: it is what
//! the last transaction left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use redb::{Builder, Database};

/// Memory for pages, in bytes: records are read once and kept as values, so few are read again.
const CACHE_LEN: usize = 1 << 20;

/// Where the database lies.
pub(super) trait Place: Send + 'static {
    /// Opens what is there; makes it, if `is_new`.
    fn open(&self, is_new: bool) -> Result<Database, redb::DatabaseError>;
}

/// A file.
pub(super) struct InFile(PathBuf);

impl InFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Place for InFile {
    fn open(&self, is_new: bool) -> Result<Database, redb::DatabaseError> {
        let builder = builder();
        // A file that vanished is not begun anew under a daemon that knows what was in it.
        if is_new { builder.create(&self.0) } else { builder.open(&self.0) }
    }
}

pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_LEN);
    builder
}

/// The database, for those who read it while the thread has it open.
#[derive(Debug, Default)]
pub(super) struct Readers(RwLock<Weak<Database>>);

impl Readers {
    /// `None`: it is closed.
    pub(super) fn database(&self) -> Option<Arc<Database>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn set(&self, database: &Arc<Database>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(database);
    }
}

/// What the thread writes to.
pub(super) struct Disk {
    place: Box<dyn Place>,
    database: Option<Arc<Database>>,
    readers: Arc<Readers>,
}

impl Disk {
    /// Opens what is in `place`, or begins there.
    pub(super) fn open(place: impl Place) -> Result<Self, redb::Error> {
        let database = Arc::new(place.open(true)?);
        let readers = Arc::new(Readers::default());
        readers.set(&database);
        Ok(Self { place: Box::new(place), database: Some(database), readers })
    }

    /// For those who read.
    pub(super) fn readers(&self) -> Arc<Readers> {
        Arc::clone(&self.readers)
    }

    /// The database, and whether it has just been opened anew.
    pub(super) fn database(&mut self) -> Result<(&Database, bool), redb::Error> {
        let is_reopened = self.database.is_none();
        if is_reopened {
            let database = Arc::new(self.place.open(false)?);
            self.readers.set(&database);
            tracing::info!("the store is open again");
            self.database = Some(database);
        }
        match &self.database {
            Some(database) => Ok((database, is_reopened)),
            None => unreachable!("opened above"),
        }
    }

    /// Something failed: closes the database, if that means that it does nothing any more.
    pub(super) fn failed(&mut self, error: &redb::Error) {
        if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo) {
            self.database = None;
        }
    }
}
