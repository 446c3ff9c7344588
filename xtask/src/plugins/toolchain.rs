//! Sees that there are compilers for plugins: installs Debian's packages when there are none, and it may. Key functions:
//! [`find_or_install`], [`install`]. The user's own toolchain is never changed: the error names the command that would.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use plugin_build::{DEBIAN_PACKAGES, OLDEST, TARGET, Toolchain, find};

/// The first toolchain that can build plugins, or what to install.
pub(super) fn find_or_install() -> Result<Toolchain> {
    if let Some(toolchain) = find() {
        return Ok(toolchain);
    }
    let command = format!("apt-get install -y {}", DEBIAN_PACKAGES.join(" "));
    if install(&DEBIAN_PACKAGES) {
        return find().with_context(|| {
            format!("`{command}` worked, but left no compiler {OLDEST} or newer with its library source and a linker")
        });
    }
    bail!(
        "no Rust compiler with {TARGET} found: run `rustup target add {TARGET}`, \
         or on Debian, as root, `{command}`"
    )
}

/// Installs Debian's packages, if this is Debian's root; whether that worked.
pub(super) fn install(packages: &[&str]) -> bool {
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        return false;
    }
    eprintln!("plugins: installing Debian's packages {}", packages.join(" "));
    // With an old list of packages apt would install an old compiler. Without the network, what is known may do.
    runs("apt-get", &["-q", "update"]);
    runs("apt-get", &[&["install", "-y", "--no-install-recommends"], packages].concat())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    id.is_ok_and(|id| id.stdout == b"0\n")
}

/// Runs a program with its output shown; whether it was there and succeeded.
fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdin(Stdio::null()).status().is_ok_and(|status| status.success())
}
