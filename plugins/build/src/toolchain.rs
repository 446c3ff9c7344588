//! Finds a Rust compiler for `wasm32-unknown-unknown`, the target without any system interface. Key type: [`Toolchain`].
//!
//! In this order: the user's own compiler if it has the target; Debian's `rustc-web`, whose library source cargo compiles
//! (`-Zbuild-std`). Nothing is installed here.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Its core modules import nothing but what their WIT world grants.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The workspace's `rust-version`.
pub const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The compiler, its cargo, its library source, and a linker.
pub const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// What cargo needs for `-Zbuild-std`, below the compiler's sysroot.
const LIBRARY_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// How to call cargo for plugins.
pub struct Toolchain {
    /// For people: which compiler, and how it gets its library.
    pub description: String,
    cargo: PathBuf,
    /// Set when the library has to be compiled too: the compiler, and a linker for it.
    build_std: Option<(PathBuf, PathBuf)>,
}

impl Toolchain {
    /// Cargo, free of what the calling cargo and the user's shell set for the host's own build.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            if leaks_into_the_build(&name) {
                cargo.env_remove(name);
            }
        }
        if let Some((rustc, linker)) = &self.build_std {
            cargo
                .env("RUSTC", rustc)
                // -Z flags on a stable compiler.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                .arg("-Zbuild-std=std,panic_abort");
        }
        cargo
    }
}

/// Flags and wrappers for the host's compiler. The root `.cargo/config.toml` needs no such care: `--target` overrides
/// its `build.target`, and its flags are for the host's target only.
fn leaks_into_the_build(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*name)
        || name.starts_with("CARGO_BUILD_")
        || name.starts_with("CARGO_TARGET_")
        || name.starts_with("CARGO_PROFILE_")
}

/// The first toolchain that can build plugins.
pub fn find() -> Option<Toolchain> {
    // A compiler takes longer to say who it is than an edit may wait: both are asked at once.
    thread::scope(|scope| {
        let debian = scope.spawn(debian_version);
        let own = Own::find();
        if let Some(own) = own.as_ref().filter(|own| own.has_target()) {
            return Some(own.toolchain());
        }
        debian_toolchain(debian.join().ok()??, own)
    })
}

/// The compiler that the user builds Ostler with.
struct Own {
    sysroot: PathBuf,
    /// The library of its own host, beside which it has its tools.
    host_library: PathBuf,
}

impl Own {
    fn find() -> Option<Self> {
        let paths = output("rustc", &["--print", "sysroot", "--print", "target-libdir"])?;
        let mut paths = paths.lines().map(PathBuf::from);
        Some(Self { sysroot: paths.next()?, host_library: paths.next()? })
    }

    fn has_target(&self) -> bool {
        self.sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
    }

    fn toolchain(&self) -> Toolchain {
        Toolchain {
            description: format!("{} and its {TARGET} library", version("rustc").unwrap_or_default()),
            cargo: "cargo".into(),
            build_std: None,
        }
    }

    fn linker(&self) -> Option<PathBuf> {
        Some(self.host_library.parent()?.join("bin/rust-lld"))
    }
}

/// Of Debian's newer compiler for web browsers, if its library source is there.
fn debian_version() -> Option<String> {
    let is_there = [DEBIAN_RUSTC, DEBIAN_CARGO, LIBRARY_SOURCE].iter().all(|path| Path::new(path).exists());
    is_there.then(|| version(DEBIAN_RUSTC)).flatten()
}

/// That compiler, if it is of this `version` and there is a linker: `rust-lld` of the user's own, else Debian's `wasm-ld`.
fn debian_toolchain(version: String, own: Option<Own>) -> Option<Toolchain> {
    if !is_new_enough(&version) {
        return None;
    }
    let debian = ["/usr/bin/wasm-ld", "/usr/bin/wasm-ld-19", "/usr/bin/wasm-ld-14"].map(PathBuf::from);
    let linker = own.and_then(|own| own.linker()).into_iter().chain(debian).find(|path| path.exists())?;
    Some(Toolchain {
        description: format!("{version} (Debian), library from source, linker {}", linker.display()),
        cargo: DEBIAN_CARGO.into(),
        build_std: Some((DEBIAN_RUSTC.into(), linker)),
    })
}

/// Whether `rustc 1.96.0 (…)` compiles this workspace.
fn is_new_enough(version: &str) -> bool {
    let numbers = |text: &str| text.split('.').map_while(|part| part.parse().ok()).collect::<Vec<u32>>();
    let version = version.split_whitespace().nth(1).map(numbers).unwrap_or_default();
    version >= numbers(OLDEST)
}

/// `rustc 1.96.0 (…)`.
fn version(rustc: &str) -> Option<String> {
    Some(output(rustc, &["--version"])?.lines().next()?.to_owned())
}

/// A program's output, if it was there and succeeded.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_compiler_will_not_do() {
        let outcomes = ["rustc 1.85.0 (Debian 1)", "rustc 1.96.0 (x)", "rustc 2.0.0", "rustc", "rustc nonsense"];
        assert_eq!(outcomes.map(is_new_enough), [false, true, true, false, false]);
    }
}
