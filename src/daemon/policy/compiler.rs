//! From a component's bytes to machine code, in a process that can do nothing else. Key types: [`Compiler`],
//! [`CompilerConfig`]. Key function: [`run`], the process's own entry.
//!
//! ```text
//!   daemon ── component ─▶ ostler policy-compile   own namespaces, empty root, no rights, limited memory and CPU time,
//!          ◀─ artefact ──                          few system calls; killed when it has answered or is late
//! ```
//!
//! A compiler is a large program that reads a tenant's bytes: whatever it does with them, the daemon's memory and its
//! threads are not concerned. What it makes is kept in files that only this node can have written.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::SeccompAction;
use wasmtime::Engine;

use crate::model::PluginDigest;
use crate::sys::artefact::{self, Artefact, ArtefactKey, CompilerEnd, CompilerProcess, REFUSED};
use crate::sys::process::End;
use crate::sys::{background, end_code, inherit, namespaces, spawn};

use super::confine;
use super::engine;
use super::limits::{Limits, MAX_MESSAGE_BYTES};
use super::load::LoadError;
use super::text::to_line;

/// The role's name on the command line.
pub const ROLE: &str = "policy-compile";
/// Says that missing rights to leave the host are no error: for a daemon that jails nothing.
const LENIENT: &str = "lenient";
/// Longest by the clock: the processor is shared.
const DEADLINE: Duration = Duration::from_secs(180);
/// Longest artefact, in bytes.
pub(super) const MAX_ARTEFACT_LEN: u64 = 256 << 20;
/// `nobody`: owns nothing.
pub(super) const NOBODY: u32 = 65534;
/// How it ends after all of its processor time.
const OUT_OF_TIME: i32 = end_code::of_signal(libc::SIGXCPU);
/// How it ends when there is no more memory (`std::alloc::handle_alloc_error`), for which alone it aborts: panics unwind.
const ABORTED: i32 = end_code::of_signal(libc::SIGABRT);
/// Threads that compile functions of one component, at most: beyond these the linker of what they made is what takes long.
const MAX_THREADS: usize = 4;
/// Of each, in bytes: what the first thread of a process has by default.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// Where and how components are compiled.
#[derive(Debug, Clone)]
pub struct CompilerConfig {
    /// This program.
    pub program: PathBuf,
    /// Where artefacts are kept; `None`: nowhere.
    pub files: Option<ArtefactFiles>,
    /// Whether a compiler that cannot leave the host is used all the same.
    pub is_lenient: bool,
}

/// Where artefacts are kept.
#[derive(Debug, Clone)]
pub struct ArtefactFiles {
    /// Their directory.
    pub cache: PathBuf,
    /// The node's key for them.
    pub key: ArtefactKey,
}

impl CompilerConfig {
    /// With the node's key in `dir`, made at the first start, and the artefacts below `dir`.
    pub fn in_dir(dir: &Path, program: &Path, is_lenient: bool) -> io::Result<Self> {
        let cache = dir.join("compiled");
        std::fs::DirBuilder::new().recursive(true).create(&cache)?;
        let key = ArtefactKey::new(&node_key(&dir.join("node.key"))?);
        Ok(Self { program: program.to_owned(), files: Some(ArtefactFiles { cache, key }), is_lenient })
    }
}

/// Reads the key, or makes it. A crash between leaves no file, or one that is too short: made anew, and with it nothing
/// that was cached is believed.
fn node_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(bytes)
    {
        return Ok(key);
    }
    let mut key = [0; 32];
    rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
    let partial = path.with_added_extension("partial");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    Ok(key)
}

/// Compiles in processes of their own, or, without a configuration, in this one.
#[derive(Debug)]
pub(super) struct Compiler(Option<CompilerConfig>);

impl Compiler {
    pub(super) fn new(config: Option<CompilerConfig>) -> Self {
        Self(config)
    }

    /// What was made of the component with this content before, for engines of this number (see `serve::compatibility`).
    pub(super) fn kept(&self, compatibility: u64, digest: PluginDigest) -> Option<Artefact> {
        CacheFile::of(self.files()?, compatibility, digest).read()
    }

    /// Machine code of the component. Blocks.
    pub(super) fn compile(&self, limits: &Limits, bytes: &[u8]) -> Result<Artefact, LoadError> {
        match &self.0 {
            Some(config) => compile(config, limits, bytes),
            None => {
                let engine = Engine::new(&engine::config(limits));
                let made = engine.and_then(|engine| Artefact::compile(&engine, bytes));
                made.map_err(|error| not_compiled(&format!("{error:#}")))
            }
        }
    }

    /// Keeps what was made; whether it can be had again with [`kept`](Self::kept).
    pub(super) fn keep_one(&self, compatibility: u64, digest: PluginDigest, artefact: &Artefact) -> bool {
        let Some(files) = self.files() else { return false };
        let file = CacheFile::of(files, compatibility, digest);
        let written = file.write(artefact);
        if let Err(error) = &written {
            tracing::warn!(%error, "a compiled plugin is not kept: {}", file.path.display());
        }
        written.is_ok()
    }

    fn files(&self) -> Option<&ArtefactFiles> {
        self.0.as_ref()?.files.as_ref()
    }

    /// Forgets artefacts of all components but these.
    pub(super) fn keep(&self, digests: &[PluginDigest]) {
        let Some(files) = self.files() else { return };
        let Ok(entries) = std::fs::read_dir(&files.cache) else { return };
        let kept: Vec<_> = digests.iter().map(|digest| hex(*digest)).collect();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !kept.iter().any(|digest| name.to_string_lossy().starts_with(digest.as_str())) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn compile(config: &CompilerConfig, limits: &Limits, bytes: &[u8]) -> Result<Artefact, LoadError> {
    let numbers = [limits.memory_bytes as u64, limits.compiler_bytes, limits.compiler_seconds].map(|n| n.to_string());
    let mut arguments = vec![OsStr::new(ROLE)];
    arguments.extend(numbers.iter().map(OsStr::new));
    if config.is_lenient {
        arguments.push(OsStr::new(LENIENT));
    }
    let (program, max_len) = (config.program.as_path(), MAX_ARTEFACT_LEN);
    let child = CompilerProcess { program, arguments: &arguments, deadline: DEADLINE, max_len };
    Artefact::by_child(child, bytes).map_err(|end| match end {
        CompilerEnd::Refused(reason) => not_compiled(&reason),
        CompilerEnd::Late | CompilerEnd::Ended(End::Exited(OUT_OF_TIME)) => {
            LoadError::CompilerTime { seconds: limits.compiler_seconds }
        }
        CompilerEnd::Ended(End::Exited(ABORTED)) => LoadError::CompilerMemory { limit_bytes: limits.compiler_bytes },
        CompilerEnd::TooLarge => LoadError::CompilerMemory { limit_bytes: MAX_ARTEFACT_LEN },
        // Our own kill found it alive but silent: it has closed its socket without a word.
        CompilerEnd::Ended(End::Signal(libc::SIGKILL)) => LoadError::CompilerDied { how: "without an answer".into() },
        CompilerEnd::Ended(end) => LoadError::CompilerDied { how: format!("{end:?}") },
        CompilerEnd::Io(error) => LoadError::Unavailable(format!("the compiler cannot be run: {error}")),
    })
}

fn not_compiled(reason: &str) -> LoadError {
    LoadError::NotCompiled { reason: to_line(reason, MAX_MESSAGE_BYTES) }
}

/// An artefact's file. Its name says what it was made from, and for which engine; both are authenticated with it.
struct CacheFile<'a> {
    path: PathBuf,
    name: String,
    key: &'a ArtefactKey,
}

impl<'a> CacheFile<'a> {
    fn of(files: &'a ArtefactFiles, compatibility: u64, digest: PluginDigest) -> Self {
        let name = format!("{}-{compatibility:016x}", hex(digest));
        Self { path: files.cache.join(&name), name, key: &files.key }
    }

    fn read(&self) -> Option<Artefact> {
        let bytes = std::fs::read(&self.path).ok()?;
        let artefact = Artefact::unseal(self.key, self.name.as_bytes(), bytes);
        if artefact.is_none() {
            tracing::warn!("{} is not what this node has written; the plugin is compiled anew", self.path.display());
        }
        artefact
    }

    fn write(&self, artefact: &Artefact) -> io::Result<()> {
        // Not synced: half a file is not believed, and made anew.
        let partial = self.path.with_added_extension("partial");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&artefact.seal(self.key, self.name.as_bytes()))?;
        std::fs::rename(&partial, &self.path)
    }
}

fn hex(digest: PluginDigest) -> String {
    digest.to_string().trim_start_matches("sha256:").to_owned()
}

/// The compiler process, from its arguments behind the role's name to its end: confines itself, reads a component from
/// descriptor 3 to its end, and answers there.
pub fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
    let numbers = (number(), number(), number());
    let is_lenient = arguments.next().as_deref() == Some(LENIENT);
    let (Some(memory_bytes), Some(compiler_bytes), Some(compiler_seconds)) = numbers else { return ExitCode::from(2) };
    let Some(socket) = inherit::descriptor(spawn::INHERITED_FD) else { return ExitCode::from(2) };
    let mut socket = UnixStream::from(socket);
    let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
    let limits = Limits { memory_bytes, compiler_bytes, compiler_seconds, ..Limits::default() };
    let answer = match confined_engine(&limits, is_lenient) {
        Ok(engine) => answer(&engine, &mut socket),
        Err(error) => refusal(&format!("the compiler cannot be confined: {error}")),
    };
    // A daemon that is gone needs no answer.
    match socket.write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(engine: &Engine, socket: &mut UnixStream) -> Vec<u8> {
    let mut component = Vec::new();
    if let Err(error) = socket.read_to_end(&mut component) {
        if error.kind() == io::ErrorKind::OutOfMemory {
            std::process::abort();
        }
        return refusal(&format!("cannot read the component: {error}"));
    }
    match engine.precompile_component(&component) {
        Ok(artefact) => artefact::made(&artefact),
        Err(error) => refusal(&format!("{error:#}")),
    }
}

fn refusal(text: &str) -> Vec<u8> {
    [&[REFUSED], to_line(text, MAX_MESSAGE_BYTES).as_bytes()].concat()
}

/// The engine that artefacts are for, in a process that has given everything else up.
fn confined_engine(limits: &Limits, is_lenient: bool) -> io::Result<Engine> {
    end_code::end_with_codes(&[libc::SIGXCPU, libc::SIGABRT])?;
    // A second more for the hard limit, which kills without a word: the soft one says why.
    let seconds = limits.compiler_seconds;
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds.saturating_add(1)) })?;
    confine::limit(Resource::As, limits.compiler_bytes)?;
    confine::limit(Resource::Core, 0)?;
    confine::limit(Resource::Fsize, 0)?;
    confine::limit(Resource::Nofile, 16)?;
    // Whoever decides, or runs a guest, goes first.
    background::stand_back();
    // Made before rights and calls are given up: it looks at the processor.
    let engine = Engine::new(&engine::config(limits)).map_err(io::Error::other)?;
    // The handlers of the engine and of Rust's own runtime would abort, which is how it ends without memory.
    end_code::end_with_codes(&[libc::SIGSEGV])?;
    match confine::leave(NOBODY) {
        Err(error) if !is_lenient => return Err(error),
        Ok(()) | Err(_) => {}
    }
    namespaces::gain_no_privileges()?;
    // Threads have the rights of the thread that makes them: made now, and none later.
    make_threads()?;
    confine::limit(Resource::Nproc, 0)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = confine::filter(Vec::new(), refused)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)?;
    Ok(engine)
}

/// Those that wasmtime compiles on, one for each processor that this process may use; returns when all have begun.
fn make_threads() -> io::Result<()> {
    let count = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).stack_size(THREAD_STACK_BYTES);
    pool.build_global().map_err(io::Error::other)?;
    rayon::broadcast(|_| ());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = node_key(&path).unwrap();
        assert_eq!(node_key(&path).unwrap(), key);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert_ne!(node_key(&path).unwrap(), key);
    }
}
