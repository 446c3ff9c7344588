//! `docs/wit.md` is made from the comments of `wit/`. Host only.
//!
//! After a change of them: `OSTLER_BLESS=1 cargo xtask test --program wit_reference`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use ostler::model::Grant;
use wit_parser::{
    Docs, Function, FunctionKind, Handle, InterfaceId, PackageId, Resolve, Result_, Stability, Type, TypeDefKind,
    TypeId, TypeOwner, World, WorldId, WorldItem,
};

const INTRODUCTION: &str = "# The interfaces of policy plugins\n\n\
    What a plugin imports and exports. Made from `wit/` by `tests/wit_reference.rs`;\n\
    `cargo xtask test --program wit_reference` with `OSTLER_BLESS=1` writes it anew. How a plugin is written, built, tried and\n\
    loaded, and what becomes of its opinion, is in [policy.md](policy.md). What all this is called in Rust, C, JavaScript and\n\
    Python stands [at the end](#in-a-plugins-language).\n\n";

/// What no comment in `wit/` can say.
const LANGUAGES: &str = include_str!("wit_reference/languages.md");

/// Of a heading, as Markdown's readers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn link(name: &str, heading: &str) -> String {
    format!("[{name}](#{})", anchor(heading))
}

/// What things are called, with links to where they are described.
#[derive(Clone, Copy)]
struct Names<'a>(&'a Resolve);

impl<'a> Names<'a> {
    fn interface(self, id: InterfaceId) -> &'a str {
        self.0.interfaces[id].name.as_deref().expect("a world has an interface of its own, which nobody can import")
    }

    fn linked_interface(self, id: InterfaceId) -> String {
        link(self.interface(id), self.interface(id))
    }

    /// `record types.vm`, for a type that has a name.
    fn heading(self, id: TypeId) -> Option<String> {
        let described = &self.0.types[id];
        let name = described.name.as_ref()?;
        let TypeOwner::Interface(owner) = described.owner else { panic!("{name} is no interface's") };
        let kind = match &described.kind {
            TypeDefKind::Type(Type::Id(of)) if self.is_used(id) => return self.heading(*of),
            TypeDefKind::Record(_)
            | TypeDefKind::Variant(_)
            | TypeDefKind::Enum(_)
            | TypeDefKind::Flags(_)
            | TypeDefKind::Resource => described.kind.as_str(),
            _ => "type",
        };
        Some(format!("{kind} {}.{name}", self.interface(owner)))
    }

    /// Whether it is another interface's type, by `use`.
    fn is_used(self, id: TypeId) -> bool {
        let described = &self.0.types[id];
        matches!(described.kind, TypeDefKind::Type(Type::Id(of)) if self.0.types[of].owner != described.owner)
    }

    fn of(self, described: &Type) -> String {
        let Type::Id(id) = *described else { return format!("{described:?}").to_lowercase() };
        match self.heading(id) {
            Some(heading) => link(heading.rsplit('.').next().unwrap(), &heading),
            None => self.of_kind(&self.0.types[id].kind),
        }
    }

    fn of_kind(self, kind: &TypeDefKind) -> String {
        match kind {
            TypeDefKind::Type(of) => self.of(of),
            TypeDefKind::Option(some) => format!("optional {}", self.of(some)),
            TypeDefKind::List(each) => format!("list of {}", self.of(each)),
            TypeDefKind::Tuple(tuple) => {
                format!("({})", tuple.types.iter().map(|part| self.of(part)).collect::<Vec<_>>().join(", "))
            }
            TypeDefKind::Result(Result_ { ok, err }) => {
                let ok = ok.as_ref().map_or("nothing".to_owned(), |ok| self.of(ok));
                let err = err.as_ref().map_or(String::new(), |err| format!(" with {}", self.of(err)));
                format!("{ok}, or fails{err}")
            }
            TypeDefKind::Handle(Handle::Own(resource)) => self.of(&Type::Id(*resource)),
            TypeDefKind::Handle(Handle::Borrow(resource)) => format!("borrowed {}", self.of(&Type::Id(*resource))),
            other => panic!("the reference has no words for a {}", other.as_str()),
        }
    }
}

/// The reference while it is written.
struct Reference<'a> {
    names: Names<'a>,
    text: String,
    /// What is described nowhere.
    lacking: Vec<String>,
}

impl Reference<'_> {
    /// A comment, which all that there is must have.
    fn comment<'d>(&mut self, path: &str, docs: &'d Docs) -> &'d str {
        let comment = docs.contents.as_deref().unwrap_or_default().trim();
        if comment.is_empty() {
            self.lacking.push(format!("{path}: has no comment"));
        }
        comment
    }

    /// A line of a table; the comment is its last cell.
    fn row(&mut self, path: &str, cells: &[&str], docs: &Docs) {
        let comment = self.comment(path, docs).split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        writeln!(self.text, "| {} | {comment} |", cells.join(" | ")).unwrap();
    }

    fn section(&mut self, depth: usize, heading: &str, docs: &Docs, stability: &Stability) {
        let comment = self.comment(heading, docs);
        write!(self.text, "\n{} {heading}\n\n{comment}\n\n", "#".repeat(depth)).unwrap();
        let (said, deprecated) = match stability {
            Stability::Unknown => return,
            Stability::Stable { since, deprecated } => (format!("Since {since}."), deprecated),
            Stability::Unstable { feature, deprecated } => (format!("Unstable: feature `{feature}`."), deprecated),
        };
        let deprecated = deprecated.as_ref().map_or(String::new(), |version| format!(" Deprecated since {version}."));
        write!(self.text, "{said}{deprecated}\n\n").unwrap();
    }

    /// As [`Self::section`], of what is part of nothing that could say since when it is there.
    fn dated_section(&mut self, heading: &str, docs: &Docs, stability: &Stability) {
        self.section(3, heading, docs, stability);
        if stability.is_unknown() {
            self.lacking.push(format!("{heading}: has neither @since nor @unstable"));
        }
    }

    /// On which terms a plugin may import it.
    fn terms(&self, id: InterfaceId) -> String {
        let name = self.names.interface(id);
        match Grant::ALL.into_iter().find(|grant| grant.name() == name) {
            Some(grant) => format!("granted with `ostler plugin load --grant {grant}`"),
            None if self.names.0.interfaces[id].functions.is_empty() => "types only".to_owned(),
            None => "granted to every plugin".to_owned(),
        }
    }

    fn world(&mut self, id: WorldId) {
        let world = &self.names.0.worlds[id];
        self.dated_section(&world.name, &world.docs, &world.stability);
        for import in imports(world) {
            let (import, terms) = (self.names.linked_interface(import), self.terms(import));
            writeln!(self.text, "- imports {import}: {terms}").unwrap();
        }
        for export in exports(world) {
            writeln!(self.text, "- exports {}", self.names.linked_interface(export)).unwrap();
        }
    }

    /// Links to those that have something.
    fn worlds(&self, has: impl Fn(&World) -> bool) -> String {
        let worlds = self.names.0.worlds.iter().filter(|(_, world)| has(world));
        worlds.map(|(_, world)| link(&world.name, &world.name)).collect::<Vec<_>>().join(", ")
    }

    fn interface(&mut self, id: InterfaceId) {
        let names = self.names;
        let interface = &names.0.interfaces[id];
        let name = names.interface(id);
        self.dated_section(name, &interface.docs, &interface.stability);
        let exporting = self.worlds(|world| exports(world).contains(&id));
        let importing = self.worlds(|world| imports(world).contains(&id));
        match (exporting.as_str(), importing.as_str()) {
            ("", "") => self.lacking.push(format!("{name}: is in no world")),
            ("", importing) => write!(self.text, "Imported by {importing}: {}.\n\n", self.terms(id)).unwrap(),
            (exporting, _) => write!(self.text, "Exported by {exporting}.\n\n").unwrap(),
        }
        for function in interface.functions.values() {
            self.function(name, function);
        }
        for id in interface.types.values().filter(|id| !names.is_used(**id)) {
            self.type_def(*id);
        }
    }

    /// Its first sentence, to find it by.
    fn summary(&mut self, id: InterfaceId) {
        let comment = self.names.0.interfaces[id].docs.contents.as_deref().unwrap_or_default();
        let comment = comment.split_whitespace().collect::<Vec<_>>().join(" ");
        let end = comment
            .match_indices(['.', '?'])
            .map(|(at, _)| at + 1)
            .find(|end| !comment[*end..].starts_with(|c| c != ' '));
        let (name, first) = (self.names.linked_interface(id), &comment[..end.unwrap_or(comment.len())]);
        writeln!(self.text, "| {name} | {first} |").unwrap();
    }

    fn function(&mut self, interface: &str, function: &Function) {
        let kind = match function.kind {
            FunctionKind::Freestanding => "func",
            FunctionKind::Method(_) => "method",
            FunctionKind::Static(_) => "static func",
            FunctionKind::Constructor(_) => "constructor",
            FunctionKind::AsyncFreestanding | FunctionKind::AsyncMethod(_) | FunctionKind::AsyncStatic(_) => {
                panic!("the reference has no words for an async func, as {interface}.{} is", function.name)
            }
        };
        let resource = function.kind.resource().and_then(|id| self.names.0.types[id].name.as_ref());
        let resource = resource.map_or(String::new(), |resource| format!("{resource}."));
        let heading = format!("{kind} {interface}.{resource}{}", function.item_name());
        self.section(4, &heading, &function.docs, &function.stability);
        let comment = function.docs.contents.as_deref().unwrap_or_default();
        let params: Vec<_> = function.params.iter().filter(|param| param.name != "self").collect();
        for param in params.iter().filter(|param| !comment.contains(&format!("`{}`", param.name))) {
            self.lacking.push(format!("{heading}: its comment does not name `{}`", param.name));
        }
        let takes: Vec<_> =
            params.iter().map(|param| format!("`{}`: {}", param.name, self.names.of(&param.ty))).collect();
        let takes = if takes.is_empty() { "nothing".to_owned() } else { takes.join(", ") };
        let gives = function.result.as_ref().map_or("nothing".to_owned(), |result| self.names.of(result));
        write!(self.text, "- takes {takes}\n- gives {gives}\n\n").unwrap();
    }

    fn type_def(&mut self, id: TypeId) {
        let described = &self.names.0.types[id];
        let heading = self.names.heading(id).unwrap();
        self.section(4, &heading, &described.docs, &described.stability);
        let path = heading.rsplit(' ').next().unwrap();
        match &described.kind {
            TypeDefKind::Record(record) => {
                self.text.push_str("| field | type | meaning |\n| --- | --- | --- |\n");
                for field in &record.fields {
                    let cells = [&*field.name, &self.names.of(&field.ty)];
                    self.row(&format!("{path}.{}", field.name), &cells, &field.docs);
                }
            }
            TypeDefKind::Variant(variant) => {
                self.text.push_str("| case | carries | meaning |\n| --- | --- | --- |\n");
                for case in &variant.cases {
                    let carried = case.ty.as_ref().map_or("nothing".to_owned(), |carried| self.names.of(carried));
                    self.row(&format!("{path}.{}", case.name), &[&case.name, &carried], &case.docs);
                }
            }
            TypeDefKind::Enum(cases) => {
                self.text.push_str("| case | meaning |\n| --- | --- |\n");
                for case in &cases.cases {
                    self.row(&format!("{path}.{}", case.name), &[&case.name], &case.docs);
                }
            }
            TypeDefKind::Flags(flags) => {
                self.text.push_str("| flag | meaning |\n| --- | --- |\n");
                for flag in &flags.flags {
                    self.row(&format!("{path}.{}", flag.name), &[&flag.name], &flag.docs);
                }
            }
            // Its functions stand with the interface's.
            TypeDefKind::Resource => {}
            other => write!(self.text, "- is {}\n\n", self.names.of_kind(other)).unwrap(),
        }
    }
}

fn imports(world: &World) -> Vec<InterfaceId> {
    world.imports.values().map(interface).collect()
}

fn exports(world: &World) -> Vec<InterfaceId> {
    world.exports.values().map(interface).collect()
}

fn interface(item: &WorldItem) -> InterfaceId {
    match item {
        WorldItem::Interface { id, .. } => *id,
        WorldItem::Function(_) | WorldItem::Type { .. } => panic!("the reference has no words for a world's {item:?}"),
    }
}

/// The reference, and what it lacks to be complete.
fn reference(resolve: &Resolve, package: PackageId) -> (String, Vec<String>) {
    let package = &resolve.packages[package];
    let mut whole = Reference { names: Names(resolve), text: INTRODUCTION.to_owned(), lacking: Vec::new() };
    let comment = whole.comment("the package", &package.docs);
    write!(whole.text, "## Package {}\n\n{comment}\n\n## Worlds\n", package.name).unwrap();
    for world in package.worlds.values() {
        whole.world(*world);
    }
    let exported =
        |id: &InterfaceId| package.worlds.values().any(|world| exports(&resolve.worlds[*world]).contains(id));
    let (exported, imported): (Vec<_>, Vec<_>) = package.interfaces.values().partition(|id| exported(id));
    for (title, ids) in [("Exported interfaces", exported), ("Imported interfaces", imported)] {
        write!(whole.text, "\n## {title}\n\n| interface | about |\n| --- | --- |\n").unwrap();
        for id in &ids {
            whole.summary(*id);
        }
        for id in ids {
            whole.interface(id);
        }
    }
    let mut text = whole.text + LANGUAGES;
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    (format!("{}\n", text.trim_end()), whole.lacking)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Of `wit/`, with what is unstable.
fn own() -> (String, Vec<String>) {
    let mut resolve = Resolve { all_features: true, ..Resolve::default() };
    let (package, _) = resolve.push_dir(root().join("wit")).unwrap();
    reference(&resolve, package)
}

/// Of a package that nobody has.
fn made_up(wit: &str) -> (String, Vec<String>) {
    let mut resolve = Resolve { all_features: true, ..Resolve::default() };
    let package = resolve.push_str("made-up.wit", wit).unwrap();
    reference(&resolve, package)
}

#[test]
fn the_reference_is_in_the_docs() {
    let path = root().join("docs/wit.md");
    let (text, _) = own();
    if std::env::var_os("OSTLER_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "{} is old: run this test with OSTLER_BLESS=1", path.display());
}

#[test]
fn all_of_the_package_has_its_comment() {
    let (_, lacking) = own();
    assert!(lacking.is_empty(), "wit/ lacks:\n{}", lacking.join("\n"));
}

/// By its text, not by what reads it for the reference.
#[test]
fn all_of_the_package_is_in_the_reference() {
    let (text, _) = own();
    let section = |heading: &str| {
        let rest = text.split_once(&format!("# {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
        rest.split("\n#").next().unwrap()
    };
    let name = |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap().to_owned();
    let mut rows = 0;
    for file in fs::read_dir(root().join("wit")).unwrap() {
        let mut within: Vec<String> = Vec::new();
        for line in fs::read_to_string(file.unwrap().path()).unwrap().lines().map(str::trim) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("" | "///" | "package" | "use" | "import" | "export", _) => {}
                (attribute, _) if attribute.starts_with('@') => {}
                ("}", _) => drop(within.pop()),
                ("interface" | "world", rest) => within.push(name(rest)),
                (kind, rest) if rest.ends_with('{') => within.push(format!("{kind} {}.{}", within[0], name(rest))),
                (of, rest) if rest.starts_with("func(") => drop(section(&format!("func {}.{}", within[0], name(of)))),
                (of, _) => {
                    let (heading, row) = (within.last().unwrap(), format!("\n| {} |", name(of)));
                    assert!(section(heading).contains(&row), "{heading} has no row of {}", name(of));
                    rows += 1;
                }
            }
            if let Some(heading) = within.last() {
                section(heading);
            }
        }
    }
    assert!(rows > 100, "{rows} fields and cases were looked for");
}

#[test]
fn links_lead_somewhere_and_grants_are_told() {
    let (text, _) = own();
    let headings = text.lines().filter_map(|line| line.split_once("# ")).map(|(_, heading)| anchor(heading));
    let mut anchors = BTreeSet::new();
    for heading in headings {
        assert!(anchors.insert(heading.clone()), "two headings are #{heading}");
    }
    let guide = fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let links = text.split("](#").skip(1).chain(guide.split("](wit.md#").skip(1));
    for to in links.map(|rest| rest.split(')').next().unwrap()) {
        assert!(anchors.contains(to), "a link leads to #{to}, which is nowhere");
    }
    for grant in Grant::ALL {
        let said = format!("- imports [{grant}](#{grant}): granted with `ostler plugin load --grant {grant}`\n");
        assert!(text.contains(&said), "no world says that {grant} must be granted");
    }
}

#[test]
fn what_has_no_comment_is_named_and_every_kind_of_type_has_its_words() {
    let (text, lacking) = made_up(
        "/// Made up.
        package made:up@1.2.0;
        /// Things. And more.
        @since(version = 1.0.0)
        @deprecated(version = 1.2.0)
        interface things {
            /// Of a thing.
            flags colours { red, /// As grass|leaves.
                green }
            /// Keeps.
            resource bucket {
                constructor(size: u32);
                /// Puts `what` there.
                put: func(what: list<tuple<u8, string>>) -> option<bool>;
                /// Of two one.
                join: static func(other: borrow<bucket>) -> bucket;
            }
            /// Many.
            type names = list<string>;
        }
        /// Others.
        @unstable(feature = x)
        interface others {
            use things.{names};
            /// Of everything.
            all: func() -> result<names>;
        }
        interface alone {}
        /// All.
        @unstable(feature = x)
        world whole { import others; }",
    );
    let lacks = [
        "constructor things.bucket.constructor: has no comment",
        "constructor things.bucket.constructor: its comment does not name `size`",
        "static func things.bucket.join: its comment does not name `other`",
        "things.colours.red: has no comment",
        "alone: has no comment",
        "alone: has neither @since nor @unstable",
        "alone: is in no world",
    ];
    assert_eq!(lacking, lacks);
    for said in [
        "## Package made:up@1.2.0\n\nMade up.\n",
        "| [things](#things) | Things. |\n",
        "Since 1.0.0. Deprecated since 1.2.0.\n\nImported by [whole](#whole): granted to every plugin.\n",
        "Unstable: feature `x`.\n",
        "| flag | meaning |\n| --- | --- |\n| red |  |\n| green | As grass\\|leaves. |\n",
        "#### method things.bucket.put\n\nPuts `what` there.\n\n- takes `what`: list of (u8, string)\n- gives optional bool\n",
        "- takes `other`: borrowed [bucket](#resource-thingsbucket)\n- gives [bucket](#resource-thingsbucket)\n",
        "#### type things.names\n\nMany.\n\n- is list of string\n",
        "- takes nothing\n- gives [names](#type-thingsnames), or fails\n",
    ] {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }
}
