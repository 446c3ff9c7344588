//! The Debian archive, as the machine's own package sources name it.
//!
//! [`Archive::derive`] reads the machine's apt sources, keeps the Debian ones and writes a private apt configuration
//! with the suites that the lab needs. The machine's configuration and package state are never touched: a private
//! state directory makes apt think of an empty system, so what it resolves is complete and the same everywhere.

use crate::progress::output_of;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release that has both kernels of the tests, and in its backports suite a QEMU with the `igb` device.
const RELEASE: &str = "bookworm";
const RELEASE_NAMES: [&str; 13] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "experimental",
    "buster",
];

/// A private apt root.
pub(crate) struct Archive {
    configuration: PathBuf,
    directory: PathBuf,
}

/// Where packages come from and how they are authenticated: one stanza of apt's deb822 format, without the suites.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    uris: String,
    is_security: bool,
    options: Vec<(String, String)>,
}

impl Archive {
    /// Builds the private apt root in `directory` from the machine's sources in `machine` (usually `/etc/apt`).
    pub(crate) fn derive(machine: &Path, directory: &Path) -> Result<Self> {
        let mut sources = BTreeSet::new();
        for (path, text) in read_sources(machine)? {
            let found = if path.extension().is_some_and(|extension| extension == "sources") {
                parse_stanzas(&text)
            } else {
                parse_lines(&text)
            };
            sources.extend(found);
        }
        if sources.is_empty() {
            bail!(
                "{} names no Debian archive with component main; the lab's packages come from one: add it and try again",
                machine.display()
            );
        }
        for below in ["parts", "lists/partial", "archives/partial", "empty"] {
            fs::create_dir_all(directory.join(below))?;
        }
        fs::write(directory.join("status"), "")?;
        fs::write(directory.join("parts/lab.sources"), sources.iter().map(stanza).collect::<String>())?;
        let configuration = directory.join("apt.conf");
        fs::write(&configuration, configure(directory))?;
        Ok(Self { configuration, directory: directory.to_path_buf() })
    }

    /// Fetches the package lists. Suites that a mirror lacks are no failure here: the missing package will be named.
    pub(crate) fn update(&self) -> Result<()> {
        if let Err(error) = output_of(self.apt("apt-get").arg("update")) {
            eprintln!("   some package lists could not be fetched: {error:#}");
        }
        Ok(())
    }

    /// Downloads packages with everything they depend on, and returns the files.
    pub(crate) fn download_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let suite = format!("{RELEASE}-backports");
        let mut command = self.apt("apt-get");
        output_of(command.args(["install", "--download-only", "--yes", "-t", &suite]).args(packages))?;
        debs_in(&self.directory.join("archives"))
    }

    /// Downloads one package alone and returns its file.
    pub(crate) fn download_alone(&self, package: &str) -> Result<PathBuf> {
        let alone = self.directory.join("alone").join(package);
        if let Ok(files) = debs_in(&alone)
            && let [file] = files.as_slice()
        {
            return Ok(file.clone());
        }
        let unfinished = self.directory.join("alone/unfinished");
        crate::workspace::remove(&unfinished)?;
        fs::create_dir_all(&unfinished)?;
        output_of(self.apt("apt-get").arg("download").arg(package).current_dir(&unfinished))?;
        crate::workspace::remove(&alone)?;
        fs::rename(&unfinished, &alone)?;
        debs_in(&alone)?.pop().with_context(|| format!("apt-get download {package} left no file"))
    }

    /// Downloads the sources of one package as its authors released them, without Debian's changes, and returns the archive.
    pub(crate) fn download_source(&self, package: &str) -> Result<PathBuf> {
        let sources = self.directory.join("sources").join(package);
        if let Ok(file) = released_in(&sources) {
            return Ok(file);
        }
        let unfinished = self.directory.join("sources/unfinished");
        crate::workspace::remove(&unfinished)?;
        fs::create_dir_all(&unfinished)?;
        let mut command = self.apt("apt-get");
        output_of(command.args(["source", "--download-only", "-t", RELEASE, package]).current_dir(&unfinished))?;
        crate::workspace::remove(&sources)?;
        fs::rename(&unfinished, &sources)?;
        released_in(&sources)
    }

    /// The newest package named `prefix`, a version, `suffix`.
    pub(crate) fn newest(&self, prefix: &str, suffix: &str) -> Result<String> {
        let listing = output_of(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        let listing = String::from_utf8_lossy(&listing).into_owned();
        listing
            .lines()
            .filter_map(|name| {
                let version = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
                let is_version =
                    version.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'd' | 'e' | 'b'));
                is_version.then(|| (numbers(version), name))
            })
            .max()
            .map(|(_, name)| name.to_owned())
            .with_context(|| format!("the Debian archive has no package {prefix}…{suffix}; is its mirror complete?"))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Unpacks package files into `directory`, following the links that merge `/bin` and `/lib` into `/usr`.
pub(crate) fn unpack(files: &[PathBuf], directory: &Path) -> Result<()> {
    for merged in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(directory.join("usr").join(merged))?;
        let link = directory.join(merged);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(format!("usr/{merged}"), link)?;
        }
    }
    for file in files {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]).arg(directory);
        crate::progress::pipe(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(file), &mut tar)
            .with_context(|| format!("cannot unpack {}", file.display()))?;
    }
    Ok(())
}

fn configure(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{directory}/parts\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{directory}/empty\";\n\
         Dir::State \"{directory}\";\nDir::State::status \"{directory}/status\";\nDir::State::lists \"{directory}/lists\";\n\
         Dir::Cache \"{directory}\";\nDir::Cache::archives \"{directory}/archives\";\n\
         APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Install-Recommends \"false\";\n\
         APT::Sandbox::User \"root\";\nAPT::Keep-Downloaded-Packages \"true\";\nAcquire::Retries \"5\";\n\
         Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
    )
}

fn debs_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    files.sort();
    Ok(files)
}

fn released_in(directory: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains(".orig.tar.") && path.extension().is_none_or(|kind| kind != "asc"))
        .with_context(|| format!("there is no released source in {}", directory.display()))
}

fn read_sources(machine: &Path) -> Result<Vec<(PathBuf, String)>> {
    let parts = machine.join("sources.list.d");
    let mut paths = vec![machine.join("sources.list")];
    if let Ok(entries) = fs::read_dir(&parts) {
        paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    paths.retain(|path| {
        path.is_file() && path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    });
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path, text))
        })
        .collect()
}

/// Reads apt's deb822 format: stanzas of `Field: value`, continued on indented lines.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            sources.extend(source_from(std::mem::take(&mut fields)));
        } else if line.starts_with('#') {
            continue;
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

/// Reads apt's one-line format: `deb [option=value …] uri suite component…`.
fn parse_lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(|line| source_from(fields_of_line(line)?)).collect()
}

fn fields_of_line(line: &str) -> Option<Vec<(String, String)>> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut fields = vec![("Types".to_owned(), "deb".to_owned())];
    if let Some(opened) = rest.strip_prefix('[') {
        let (options, after) = opened.split_once(']')?;
        for option in options.split_whitespace() {
            let (name, value) = option.split_once('=')?;
            let name = if name.eq_ignore_ascii_case("signed-by") { "Signed-By" } else { name };
            fields.push((name.to_owned(), value.replace(',', " ")));
        }
        rest = after.trim_start();
    }
    let mut words = rest.split_whitespace();
    fields.push(("URIs".to_owned(), words.next()?.to_owned()));
    fields.push(("Suites".to_owned(), words.next()?.to_owned()));
    fields.push(("Components".to_owned(), words.collect::<Vec<_>>().join(" ")));
    Some(fields)
}

fn source_from(fields: Vec<(String, String)>) -> Option<Source> {
    let value = |wanted: &str| {
        fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map_or("", |(_, value)| value.as_str())
    };
    let has = |field: &str, wanted: &str| value(field).split_whitespace().any(|word| word == wanted);
    let is_off = value("Enabled").eq_ignore_ascii_case("no");
    if is_off || !has("Types", "deb") || !has("Components", "main") || value("URIs").is_empty() {
        return None;
    }
    let kinds: Vec<SuiteKind> = value("Suites").split_whitespace().filter_map(suite_kind).collect();
    let is_security = *kinds.first()? == SuiteKind::Security;
    let kept = ["Signed-By", "Trusted", "Check-Valid-Until", "Check-Date", "Allow-Insecure"];
    let options =
        fields.iter().filter(|(name, _)| kept.iter().any(|kept| name.eq_ignore_ascii_case(kept))).cloned().collect();
    Some(Source { uris: value("URIs").to_owned(), is_security, options })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SuiteKind {
    Main,
    Security,
}

/// Tells Debian's own suites from those of other archives.
fn suite_kind(suite: &str) -> Option<SuiteKind> {
    let (name, rest) = suite.split_at(suite.find(['-', '/']).unwrap_or(suite.len()));
    match rest {
        _ if !RELEASE_NAMES.contains(&name) => None,
        "" | "-updates" | "-backports" | "-proposed-updates" => Some(SuiteKind::Main),
        "-security" | "/updates" => Some(SuiteKind::Security),
        _ => None,
    }
}

fn stanza(source: &Source) -> String {
    let suites = if source.is_security {
        format!("{RELEASE}-security")
    } else {
        format!("{RELEASE} {RELEASE}-updates {RELEASE}-backports")
    };
    let options: String = source.options.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("Types: deb deb-src\nURIs: {}\nSuites: {suites}\nComponents: main\n{options}\n", source.uris)
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_from_both_formats_the_same_source() {
        let stanzas = "# comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\n\
                       Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://other.example\nSuites: nodistro\nComponents: main\n";
        let lines = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib # text\n\
                     deb-src http://mirror.example/debian trixie main\ndeb http://other.example trixie-pgdg main\n";
        let expected = Source {
            uris: "http://mirror.example/debian".into(),
            is_security: false,
            options: vec![("Signed-By".into(), "/k.gpg".into())],
        };
        assert_eq!(parse_stanzas(stanzas), std::slice::from_ref(&expected));
        assert_eq!(parse_lines(lines), [expected]);
    }

    #[test]
    fn asks_the_security_archive_for_the_security_suite_only() {
        let sources = parse_lines("deb http://mirror.example/security bookworm-security main\n");
        let text = stanza(&sources[0]);
        assert!(text.contains("Suites: bookworm-security\n"), "{text}");
    }

    #[test]
    fn leaves_disabled_sources_out() {
        let text = "Types: deb\nEnabled: no\nURIs: http://mirror.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(parse_stanzas(text), []);
    }

    #[test]
    fn orders_versions_by_number() {
        assert!(numbers("6.12.117+deb12") > numbers("6.12.95+deb12"));
        assert!(numbers("6.12.90+deb12.1") > numbers("6.12.90+deb12"));
    }
}
