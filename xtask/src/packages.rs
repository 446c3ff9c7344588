//! The Debian packages that the lab is made of, unpacked under `target/lab` and used from there.
//!
//! `tree/` is a small Debian system of its own (QEMU, busybox, iproute2, e2fsprogs, kmod and every library they need):
//! its programs run through its own dynamic loader, so that the machine's release does not matter, and the same tree
//! is the lab host's root file system. `kernels/` holds kernel packages, which are only unpacked.

use crate::debian::{Archive, unpack};
use crate::progress::{output_of, step};
use crate::workspace::{Workspace, remove, unfinished, write_whole};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages with what they depend on. A change here makes the next run fetch anew.
const TREE: [&str; 13] = [
    "qemu-system-x86",
    "busybox-static",
    "bash",
    "dash",
    "kmod",
    "iproute2",
    "e2fsprogs",
    "ethtool",
    "util-linux",
    // For script(1), which gives a program a terminal.
    "bsdutils",
    // The Python client's interpreter, what installs its packages, and what they are linked with.
    "python3",
    "python3-pip-whl",
    "libstdc++6",
];

/// The package whose sources are built for guests.
const FIO: &str = "fio";

/// Links from a name to its file; more are taken for a loop.
const MAX_LINKS: usize = 8;

/// Options of `cargo xtask setup`.
#[derive(Args)]
pub(crate) struct SetupArguments {
    /// Fetch again, and the newest versions, even if everything is there
    #[arg(long)]
    refresh: bool,
}

/// Everything that `setup` provides.
#[derive(Serialize, Deserialize)]
pub(crate) struct Packages {
    wanted: Vec<String>,
    tree: PathBuf,
    /// The lab host's kernel: the full one, with KVM, VFIO, SR-IOV and NVMe modules.
    pub(crate) host: Kernel,
    /// The sources of fio, an archive, if the machine's archives have sources.
    pub(crate) fio: Option<PathBuf>,
    /// Guest kernels, by the name under which tests and configuration know them.
    pub(crate) guests: Vec<Kernel>,
}

/// An unpacked kernel package.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// The short name: `linux-6.12`.
    pub(crate) name: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// The directory with `boot/` and `usr/lib/modules/`.
    pub(crate) directory: PathBuf,
}

impl Kernel {
    /// The kernel image as the distribution ships it.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The directory with `modules.dep`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("usr/lib/modules").join(&self.release)
    }
}

impl Packages {
    /// The root of the unpacked system.
    pub(crate) fn tree(&self) -> &Path {
        &self.tree
    }

    /// The static busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.tree.join("usr/bin/busybox")
    }

    /// A command that runs a program of the tree with the tree's own loader and libraries.
    pub(crate) fn tool(&self, name: &str) -> Result<Command> {
        let found = ["usr/bin", "usr/sbin"].into_iter().find_map(|at| file_in(&self.tree, &Path::new(at).join(name)));
        let Some(program) = found else {
            bail!("{name} is not in {}: run `cargo xtask setup --refresh`", self.tree.display());
        };
        let library = self.tree.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(self.tree.join("usr/lib64/ld-linux-x86-64.so.2"));
        // Some programs are one file with several names, and look at the one they are called by.
        command.args(["--argv0", name, "--library-path"]).arg(&library).arg(program);
        command.env("QEMU_MODULE_DIR", library.join("qemu"));
        Ok(command)
    }
}

/// The file that `path` names in the system below `root`, whose absolute links mean places below `root`.
fn file_in(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut path = root.join(path);
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { return path.is_file().then_some(path) };
        path = match target.strip_prefix("/") {
            Ok(absolute) => root.join(absolute),
            Err(_) => path.parent()?.join(target),
        };
    }
    None
}

/// Runs the chore: fetches what is missing.
pub(crate) fn setup(workspace: &Workspace, arguments: &SetupArguments) -> Result<Packages> {
    let _lock = workspace.lock()?;
    let manifest = workspace.lab("packages.json");
    if arguments.refresh {
        remove(&manifest)?;
    } else if let Some(packages) = read(&manifest) {
        return Ok(packages);
    }
    for program in ["apt-get", "dpkg-deb", "tar"] {
        output_of(Command::new(program).arg("--version"))
            .with_context(|| format!("the lab is made of Debian packages; {program} is needed to fetch them"))?;
    }
    let packages = fetch(workspace)?;
    write_whole(&manifest, &serde_json::to_vec_pretty(&packages)?)?;
    Ok(packages)
}

/// The packages, fetched now if they were not before.
pub(crate) fn ready(workspace: &Workspace) -> Result<Packages> {
    setup(workspace, &SetupArguments { refresh: false })
}

fn read(manifest: &Path) -> Option<Packages> {
    let packages: Packages = serde_json::from_slice(&fs::read(manifest).ok()?).ok()?;
    let is_whole = packages.wanted == wanted()
        && packages.tree.is_dir()
        && packages.fio.as_ref().is_none_or(|archive| archive.is_file())
        && packages.host.image().is_file();
    (is_whole && packages.guests.iter().all(|kernel| kernel.image().is_file())).then_some(packages)
}

fn wanted() -> Vec<String> {
    TREE.iter().chain([&FIO]).map(ToString::to_string).collect()
}

fn without_fio(error: anyhow::Error) -> Option<PathBuf> {
    eprintln!("   {error:#}\n   tests that need fio will be skipped; `cargo xtask setup --refresh` tries again");
    None
}

fn fetch(workspace: &Workspace) -> Result<Packages> {
    let archive = Archive::derive(Path::new("/etc/apt"), &workspace.lab("apt"))?;
    step("fetching package lists", || archive.update())?;
    let files = step("fetching QEMU and tools (about 55 MB)", || archive.download_closure(&TREE))?;
    let tree = workspace.lab("tree");
    step("unpacking QEMU and tools", || {
        let unfinished = unfinished(&tree);
        unpack(&files, &unfinished)?;
        remove(&tree)?;
        Ok(fs::rename(&unfinished, &tree)?)
    })?;
    let mut packages = Packages {
        wanted: wanted(),
        tree,
        fio: step("fetching the sources of fio (6 MB)", || archive.download_source(FIO)).map_or_else(without_fio, Some),
        host: Kernel { name: String::new(), release: String::new(), directory: PathBuf::new() },
        guests: Vec::new(),
    };
    packages.host = kernel(workspace, &archive, &packages, "host", ("linux-image-6.12.", "-amd64"))?;
    for (name, prefix) in [("linux-6.12", "linux-image-6.12."), ("linux-6.1", "linux-image-6.1.0-")] {
        let guest = kernel(workspace, &archive, &packages, name, (prefix, "-cloud-amd64"))?;
        packages.guests.push(guest);
    }
    Ok(packages)
}

fn kernel(
    workspace: &Workspace,
    archive: &Archive,
    packages: &Packages,
    name: &str,
    (prefix, suffix): (&str, &str),
) -> Result<Kernel> {
    let package = archive.newest(prefix, suffix)?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let directory = workspace.lab("kernels").join(&release);
    let kernel = Kernel { name: name.to_owned(), release, directory };
    if kernel.modules().join("modules.dep").is_file() {
        return Ok(kernel);
    }
    let file = step(&format!("fetching {package}"), || archive.download_alone(&package))?;
    step(&format!("unpacking {package}"), || {
        let unfinished = unfinished(&kernel.directory);
        unpack(&[file], &unfinished)?;
        output_of(packages.tool("depmod")?.arg("--basedir").arg(&unfinished).arg(&kernel.release))?;
        remove(&kernel.directory)?;
        Ok(fs::rename(&unfinished, &kernel.directory)?)
    })?;
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn follows_links_within_the_unpacked_system() {
        let root = std::env::temp_dir().join(format!("xtask-links-{}", std::process::id()));
        for directory in ["usr/bin", "usr/sbin"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("usr/bin/only-in-the-tree"), "").unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/bin/only-in-the-tree", root.join("usr/sbin/absolute")).unwrap();
        symlink("absolute", root.join("usr/sbin/relative")).unwrap();
        symlink("/bin/loop", root.join("usr/bin/loop")).unwrap();
        let found = |name: &str| file_in(&root, Path::new(name));
        let file = Some(root.join("bin/only-in-the-tree"));
        let outcomes =
            [found("usr/sbin/absolute"), found("usr/sbin/relative"), found("usr/bin/loop"), found("usr/bin")];
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(outcomes, [file.clone(), file, None, None]);
    }
}
