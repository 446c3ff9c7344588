//! The house rules that a machine can check: layers, sizes, headers, where `unsafe` and `tokio` may stand. Host only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may import with `use crate::…`, besides itself and what lies below it. The longest prefix counts.
const MAY_IMPORT: [(&str, &[&str]); 38] = [
    ("lib", &[]),
    ("model", &[]),
    ("sys", &[]),
    ("wire", &["model"]),
    ("api", &["model"]),
    ("cli", &["api", "model"]),
    // A plugin's author asks it as a daemon would: by the daemon's own code.
    ("cli/commands/author", &["cli", "api", "model", "daemon/policy"]),
    // The control plane: rpc -> service -> parts that do not know each other -> the daemon's own vocabulary.
    ("daemon", &["daemon", "model", "wire", "sys", "api"]),
    (
        "daemon/rpc",
        &[
            "daemon/service",
            "daemon/authn",
            "daemon/record",
            "daemon/trace",
            "daemon/operation",
            "model",
            "wire",
            "sys",
            "api",
        ],
    ),
    ("daemon/metrics", &["daemon/service", "daemon/record", "model", "wire", "sys"]),
    ("daemon/service", &["daemon", "model", "wire", "sys"]),
    ("daemon/authn", &["model"]),
    // Gives identities their tenants.
    ("daemon/tenants", &["daemon/authn", "model"]),
    ("daemon/policy", &["model", "wire", "sys"]),
    ("daemon/inventory", &["daemon/record", "model", "sys"]),
    ("daemon/hostdev", &["daemon/crash", "daemon/operation", "model", "sys"]),
    ("daemon/store", &["daemon/crash", "daemon/record", "model", "sys"]),
    (
        "daemon/supervisor",
        &["daemon/record", "daemon/files", "daemon/trace", "daemon/operation", "daemon/crash", "model", "wire", "sys"],
    ),
    ("daemon/crash", &[]),
    ("daemon/trace", &[]),
    ("daemon/operation", &["daemon/trace", "model"]),
    ("daemon/record", &["model", "sys"]),
    ("daemon/files", &["model", "sys"]),
    // Pick a role, and nothing else.
    ("bin", &["jail", "vmm"]),
    // Takes everything from itself, then becomes the vmm.
    ("jail", &["model", "sys"]),
    // One virtual machine: control -> machine -> devices, KVM and boot -> ports.
    ("vmm", &["vmm", "model", "wire", "sys"]),
    (
        "vmm/machine",
        &[
            "vmm/virtio",
            "vmm/pci",
            "vmm/legacy",
            "vmm/console",
            "vmm/kvm",
            "vmm/boot",
            "vmm/counters",
            "vmm/ports",
            "model",
            "wire",
            "sys",
        ],
    ),
    // A virtio device sits on PCI: its transport is a PCI function.
    ("vmm/virtio", &["vmm/pci", "vmm/ports", "model", "sys"]),
    ("vmm/vfio", &["vmm/pci", "vmm/ports", "model", "sys"]),
    ("vmm/pci", &["vmm/ports", "model", "sys"]),
    ("vmm/legacy", &["vmm/ports", "model", "sys"]),
    ("vmm/console", &["vmm/ports", "model", "wire", "sys"]),
    ("vmm/confine", &["sys"]),
    ("vmm/counters", &["vmm/ports", "wire", "sys"]),
    ("vmm/kvm", &["vmm/ports", "model", "sys"]),
    ("vmm/boot", &["vmm/ports", "model", "sys"]),
    ("vmm/ports", &["model", "sys"]),
    ("main", &["cli", "daemon", "jail", "vmm"]),
];

/// Files that may hold `unsafe` blocks, functions or implementations, with their number. It may go down freely (and
/// must then be lowered here), and up only with a reviewed line here.
const UNSAFE: [(&str, usize); 19] = [
    ("src/sys/artefact.rs", 1),
    ("src/sys/background.rs", 2),
    ("src/sys/disk_ring.rs", 1),
    ("src/sys/end_code.rs", 1),
    ("src/sys/filters.rs", 1),
    ("src/sys/guest_buffers.rs", 5),
    ("src/sys/guest_ram.rs", 3),
    ("src/sys/heap.rs", 1),
    ("src/sys/inherit.rs", 2),
    ("src/sys/kick.rs", 1),
    ("src/sys/namespaces.rs", 2),
    ("src/sys/numa.rs", 1),
    ("src/sys/nvme/mod.rs", 1),
    ("src/sys/spawn.rs", 3),
    ("src/sys/tap.rs", 8),
    ("src/sys/vfio.rs", 11),
    ("src/sys/vhost_net.rs", 1),
    ("src/vmm/kvm/mod.rs", 1),
    ("src/vmm/kvm/vm.rs", 3),
];

/// Names that a specification gives, though they would say nothing here.
const NAMES_OF_SPECIFICATIONS: [&str; 1] = [
    // VIRTIO 1.3 §4.1.4.3: the common configuration structure.
    "src/vmm/virtio/mod.rs: common",
];

/// Folders in which such a file may lie at all.
const UNSAFE_FOLDERS: [&str; 2] = ["src/sys/", "src/vmm/kvm/"];

/// Folders that may name the asynchronous runtime.
const TOKIO_FOLDERS: [&str; 2] = ["src/daemon/", "src/cli/"];

/// Code lines of a file; tests at its end, comments and blank lines are not counted.
const MAX_FILE_LINES: usize = 600;
/// Lines of a function, from its signature to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;
/// Lines of ARCHITECTURE.md.
const MAX_ARCHITECTURE_LINES: usize = 250;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `folder`, with their paths from the root and their text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push((relative(&entry), fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// Everything that is compiled into something of this project.
fn all_sources() -> Vec<(String, String)> {
    ["src", "tests", "xtask", "plugins", "benches", "fuzz"].into_iter().flat_map(sources).collect()
}

/// `src/daemon/rpc/tls.rs` as `daemon/rpc/tls`, `src/daemon/mod.rs` as `daemon`.
fn module_of(file: &str) -> String {
    let module = file.trim_start_matches("src/").trim_end_matches(".rs");
    module.trim_end_matches("/mod").to_owned()
}

/// The text without comments, strings and character literals: each is blanked, lines stay where they are.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = literal_len(rest, code.chars().next_back());
        if len > 0 {
            code.extend(rest[..len].chars().filter(|&c| c == '\n'));
            code.push(' ');
            rest = &rest[len..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// Length of the comment or literal that `text` begins with; 0 if it begins with code.
fn literal_len(text: &str, before: Option<char>) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |end| end + 2);
    }
    let raw = text.strip_prefix('b').unwrap_or(text);
    if let Some(hashes) = raw.strip_prefix('r').filter(|_| !before.is_some_and(is_word)) {
        let count = hashes.bytes().take_while(|&byte| byte == b'#').count();
        if hashes[count..].starts_with('"') {
            let start = text.len() - hashes.len() + count + 1;
            let end = format!("\"{}", "#".repeat(count));
            return text[start..].find(&end).map_or(text.len(), |at| start + at + end.len());
        }
    }
    if text.starts_with('"') {
        return quoted_len(text, '"');
    }
    // A character, not a lifetime: a quote closes it after one character or an escape.
    let mut characters = text.chars();
    if characters.next() == Some('\'') {
        let is_character = match characters.next() {
            Some('\\') => true,
            Some(_) => characters.next() == Some('\''),
            None => false,
        };
        return if is_character { quoted_len(text, '\'') } else { 0 };
    }
    0
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The code before the file's own tests.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |at| &code[..at])
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/") || file.starts_with("tests/")
}

/// Modules that a file names from `crate::`, as `daemon/service/register`; groups are taken apart.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in after(code, "crate::") {
        paths(rest, "", &mut found);
    }
    found
}

/// Modules that the code of `module` names from `super::`.
fn relative_imports(code: &str, module: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for mut rest in after(code, "super::") {
        let mut parent = module;
        loop {
            parent = parent.rsplit_once('/').map_or("", |(parent, _)| parent);
            match rest.strip_prefix("super::") {
                Some(further) => rest = further,
                None => break,
            }
        }
        paths(rest, parent, &mut found);
    }
    found
}

/// What follows each path that begins with `word`.
fn after<'a>(code: &'a str, word: &str) -> Vec<&'a str> {
    let begins = |at: &usize| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    code.match_indices(word).map(|(at, _)| at).filter(begins).map(|at| &code[at + word.len()..]).collect()
}

/// Takes `a::{b, c::{d, e}}` apart into `a/b`, `a/c/d`, `a/c/e`; stops at what is no path.
fn paths(text: &str, prefix: &str, found: &mut BTreeSet<String>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let mut depth = 0usize;
        let mut start = 0;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    paths(&group[start..at], prefix, found);
                    return;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    paths(&group[start..at], prefix, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let len = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let name = &text[..len];
    let is_module = name.chars().next().is_some_and(|c| c.is_lowercase());
    let path = match (is_module, prefix) {
        (true, "") => name.to_owned(),
        (true, _) => format!("{prefix}/{name}"),
        (false, _) => prefix.to_owned(),
    };
    match text[len..].strip_prefix("::") {
        Some(rest) if is_module => paths(rest, &path, found),
        _ => {
            found.insert(path);
        }
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The row of the table for a module: the longest prefix.
fn rule_of(module: &str) -> Option<(&'static str, &'static [&'static str])> {
    MAY_IMPORT.into_iter().filter(|(prefix, _)| is_below(module, prefix)).max_by_key(|(prefix, _)| prefix.len())
}

/// The last module name of an import may be a function or a constant: it counts as its parent.
fn is_allowed(import: &str, own: &str, allowed: &[&str]) -> bool {
    if is_below(import, own) {
        return true;
    }
    // A row that names a folder allows what no longer row claims for itself, unless it is that row's target.
    allowed.iter().any(|folder| is_below(import, folder))
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let module = module_of(&file);
        let Some((own, allowed)) = rule_of(&module) else {
            wrong.push(format!("{file}: no row of MAY_IMPORT is about it"));
            continue;
        };
        let code = code_only(&text);
        // Unit tests keep to the same layers. Their own `super` is this module, and is not looked at.
        let mut imported = imports(&code);
        imported.extend(relative_imports(without_tests(&code), &module));
        for import in imported {
            if !is_allowed(&import, own, allowed) {
                wrong.push(format!("{file}: imports crate::{}", import.replace('/', "::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_table_names_roles() {
    let folders: BTreeSet<_> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let known = ["api", "bin", "cli", "daemon", "jail", "model", "sys", "vmm", "wire"].map(str::to_owned);
    assert_eq!(folders, BTreeSet::from(known), "a new role needs its rows in MAY_IMPORT");
}

#[test]
fn every_file_begins_with_a_header() {
    let lacking: Vec<_> = all_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! ") && !text.starts_with("#![doc = "))
        .map(|(file, _)| file)
        .collect();
    assert!(lacking.is_empty(), "files without a //! header:\n{}", lacking.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let mut long = Vec::new();
    for (file, text) in all_sources() {
        let code = code_only(&text);
        let code = if is_test_file(&file) { &code } else { without_tests(&code) };
        let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
        if lines > MAX_FILE_LINES {
            long.push(format!("{file}: {lines} code lines, at most {MAX_FILE_LINES}"));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Functions of a file with the number of lines that each takes.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at..];
        let name: String = rest[3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // A declaration without a body, or a function type.
        let Some(open) = rest.find('{').filter(|open| !name.is_empty() && !rest[..*open].contains(';')) else {
            continue;
        };
        let mut depth = 0usize;
        let end = rest[open..].char_indices().find_map(|(at, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(open + at)
        });
        found.push((name, rest[..end.map_or(rest.len(), |end| end + 1)].lines().count()));
    }
    found
}

#[test]
fn no_function_is_too_long() {
    let mut long = Vec::new();
    for (file, text) in all_sources() {
        for (name, lines) in functions(&code_only(&text)) {
            if lines > MAX_FUNCTION_LINES {
                long.push(format!("{file}: {name} has {lines} lines, at most {MAX_FUNCTION_LINES}"));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// How often a file says `unsafe` in code.
fn unsafe_count(text: &str) -> usize {
    let code = code_only(text);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("unsafe")
        .filter(|(at, word)| {
            let after = code[at + word.len()..].chars().next();
            !code[..*at].chars().next_back().is_some_and(is_word) && !after.is_some_and(is_word)
        })
        .count()
}

#[test]
fn unsafe_stands_only_where_it_is_counted() {
    let found: BTreeMap<_, _> = sources("src")
        .into_iter()
        .map(|(file, text)| (file, unsafe_count(&text)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let listed: BTreeMap<_, _> = UNSAFE.into_iter().map(|(file, count)| (file.to_owned(), count)).collect();
    assert_eq!(found, listed, "left: what is there, right: the table UNSAFE of this file");
    for file in found.keys() {
        assert!(UNSAFE_FOLDERS.iter().any(|folder| file.starts_with(folder)), "{file} may hold no unsafe code");
    }
}

#[test]
fn only_daemon_and_cli_know_the_async_runtime() {
    let knows = |text: &str| {
        let code = code_only(text);
        ["tokio::", "tokio_stream::", "tokio_rustls::", "async fn", "async move", ".await"]
            .iter()
            .any(|word| code.contains(word))
    };
    let wrong: Vec<_> = sources("src")
        .into_iter()
        .filter(|(file, text)| !TOKIO_FOLDERS.iter().any(|folder| file.starts_with(folder)) && knows(text))
        .map(|(file, _)| file)
        .collect();
    assert!(wrong.is_empty(), "asynchronous code outside {TOKIO_FOLDERS:?}:\n{}", wrong.join("\n"));
}

#[test]
fn no_name_says_nothing() {
    let vague = ["Manager", "Helper", "Util", "Common"];
    let mut wrong = Vec::new();
    for (file, text) in all_sources() {
        let code = code_only(&text);
        for word in ["struct ", "enum ", "trait ", "mod "] {
            for (at, _) in code.match_indices(word) {
                let name: String =
                    code[at + word.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_vague = |vague: &&str| {
                    name.ends_with(*vague)
                        || name == vague.to_lowercase()
                        || name == format!("{}s", vague.to_lowercase())
                };
                let found = format!("{file}: {name}");
                if vague.iter().any(is_vague) && !NAMES_OF_SPECIFICATIONS.contains(&found.as_str()) {
                    wrong.push(found);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "names without meaning:\n{}", wrong.join("\n"));
}

#[test]
fn sleeping_and_ignoring_are_no_tests() {
    let mut wrong = Vec::new();
    for (file, text) in all_sources() {
        let code = code_only(&text);
        if code.contains("#[ignore") {
            wrong.push(format!("{file}: ignores a test"));
        }
        // One place waits for conditions.
        if is_test_file(&file) && code.contains("thread::sleep") && file != "tests/support/wait.rs" {
            wrong.push(format!("{file}: sleeps instead of waiting for a condition"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names of the modules of a test program.
fn test_modules(program: &str) -> BTreeSet<String> {
    let code = code_only(&fs::read_to_string(root().join("tests").join(program)).unwrap());
    let modules = after(&code, "\nmod ").into_iter().map(|rest| rest.split(';').next().unwrap().to_owned());
    modules.filter(|name| name != "support").collect()
}

#[test]
fn every_test_is_in_a_program_and_those_that_boot_guests_are_listed_for_the_lab() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let list = manifest.split("[package.metadata.lab]").nth(1).expect("no [package.metadata.lab]");
    let list = list.split('[').nth(1).and_then(|list| list.split(']').next()).unwrap();
    let listed = list.split(',').map(|name| name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty());
    let listed: BTreeSet<_> = listed.collect();
    let programs = ["host", "guests", "tidy"];
    let (mut boots, mut others) = (BTreeSet::new(), BTreeSet::new());
    for path in fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "rs") || programs.contains(&name.as_str()) {
            continue;
        }
        let code = code_only(&fs::read_to_string(&path).unwrap());
        let is_guest = code.contains("Host::with_guests()") || code.contains("DirectVmm::launch(");
        if is_guest {
            boots.insert(name)
        } else {
            others.insert(name)
        };
    }
    assert_eq!(boots, test_modules("guests.rs"), "left: files in tests/ that boot guests, right: tests/guests.rs");
    assert_eq!(others, test_modules("host.rs"), "left: other files in tests/, right: tests/host.rs");
    assert_eq!(boots, listed, "left: tests that boot guests, right: [package.metadata.lab] tests");
}

#[test]
fn the_architecture_is_described_in_bounds() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= MAX_ARCHITECTURE_LINES, "ARCHITECTURE.md has {lines} lines, at most {MAX_ARCHITECTURE_LINES}");
    let folders = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path());
    for folder in folders.filter(|path: &PathBuf| path.is_dir()) {
        let name = folder.file_name().unwrap().to_string_lossy();
        assert!(text.contains(&format!("- `{name}/`")), "the code map of ARCHITECTURE.md has no line about {name}/");
    }
}

#[test]
fn the_checks_themselves_see_what_they_look_for() {
    let text = "use crate::{model::{VmId, step}, wire};\n// use crate::cli;\nlet s = \"crate::sys\"; let c = '\"'; let r = r#\"crate::vmm\"#;\nfn a<'a>() { crate::api::convert::f() }\n";
    let found: Vec<_> = imports(&code_only(text)).into_iter().collect();
    assert_eq!(found, ["api/convert/f", "model", "model/step", "wire"]);
    let found: Vec<_> =
        relative_imports("use super::b::C;\nuse super::super::{store, d::E};", "daemon/rpc/vm").into_iter().collect();
    assert_eq!(found, ["daemon/d", "daemon/rpc/b", "daemon/store"]);
    assert!(!is_allowed("wire", "model", &[]));
    assert!(is_allowed("model/step", "wire", &["model"]));
    assert_eq!(rule_of("daemon/rpc/tls").unwrap().0, "daemon/rpc");
    assert_eq!(unsafe_count("unsafe { } // unsafe\n\"unsafe\" unsafe_code unsafe fn x() {}"), 2);
    assert_eq!(
        functions(&code_only("fn a() {\n  if x { }\n}\ntrait T { fn b(); }\nlet f: fn (u8);")),
        [("a".to_owned(), 3)]
    );
    assert_eq!(without_tests("a\n#[cfg(test)]\nb"), "a\n");
}
