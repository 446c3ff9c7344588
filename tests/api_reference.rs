//! `docs/api.md` is made from the comments of `proto/ostler/v1`. Host only.
//!
//! After a change of them: `OSTLER_BLESS=1 cargo xtask test --program api_reference`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use ostler::api::v1;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// In the order of the reference.
const FILES: [&str; 7] = ["vm", "operation", "tenant", "plugin", "decision", "host", "nvme"];

const INTRODUCTION: &str = "# The API\n\n\
    Package `ostler.v1`, gRPC over TLS 1.3 with a client certificate. Made from `proto/ostler/v1` by `tests/api_reference.rs`;\n\
    `cargo xtask test --program api_reference` with `OSTLER_BLESS=1` writes it anew. Reasons of errors are in\n\
    [errors.md](errors.md), who may call what in [access.md](access.md). Reflection is served too.\n";

// Numbers by which a location names what it is about: fields of descriptor.proto.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const SYNTAX: i32 = 12;
const METHOD_OF_SERVICE: i32 = 2;
const FIELD_OF_MESSAGE: i32 = 2;
const MESSAGE_OF_MESSAGE: i32 = 3;
const ENUM_OF_MESSAGE: i32 = 4;
const VALUE_OF_ENUM: i32 = 2;

/// Comments of a file, by the path of what they stand at.
struct Comments(BTreeMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        Self(
            locations
                .map(|location| {
                    let both = [location.leading_comments(), location.trailing_comments()];
                    let lines = both.iter().flat_map(|text| text.lines());
                    // What is said to the linter is none of the reader's business.
                    let lines = lines.filter(|line| !line.trim_start().starts_with("buf:lint:ignore"));
                    let text: Vec<_> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
                    (location.path.clone(), text.join("\n").trim_end().to_owned())
                })
                .collect(),
        )
    }

    fn at(&self, path: &[i32]) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }

    /// In one line, for a cell of a table.
    fn cell(&self, path: &[i32]) -> String {
        self.at(path).split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
    }
}

/// The path of what is the `index`-th of its kind in `parent`.
fn below(parent: &[i32], kind: i32, index: usize) -> Vec<i32> {
    [parent, &[kind, i32::try_from(index).unwrap()]].concat()
}

/// `.ostler.v1.VirtualMachine.State` as a link to its heading; types of Google's by their full names.
fn linked(type_name: &str) -> String {
    match type_name.strip_prefix(".ostler.v1.") {
        Some(own) => format!("[{own}](#{})", own.to_lowercase().replace('.', "")),
        None => type_name.trim_start_matches('.').to_owned(),
    }
}

fn type_of(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    if let Some([key, value]) = entry.map(|entry| entry.field.as_slice()) {
        return format!("map of {} to {}", type_of(key, message), type_of(value, message));
    }
    let name = match field.r#type() {
        Type::Message | Type::Enum => linked(field.type_name()),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("repeated {name}"),
        _ if field.proto3_optional() => format!("optional {name}"),
        _ => name,
    }
}

fn describe_enum(text: &mut String, comments: &Comments, path: &[i32], name: &str, described: &EnumDescriptorProto) {
    write!(text, "\n### {name}\n\n").unwrap();
    paragraph(text, comments.at(path));
    text.push_str("| value | number | meaning |\n| --- | --- | --- |\n");
    for (index, value) in described.value.iter().enumerate() {
        let meaning = comments.cell(&below(path, VALUE_OF_ENUM, index));
        writeln!(text, "| {} | {} | {meaning} |", value.name(), value.number()).unwrap();
    }
}

fn describe_message(text: &mut String, comments: &Comments, path: &[i32], name: &str, message: &DescriptorProto) {
    write!(text, "\n### {name}\n\n").unwrap();
    paragraph(text, comments.at(path));
    if message.field.is_empty() {
        text.push_str("Has no fields.\n");
    } else {
        text.push_str("| field | type | number | meaning |\n| --- | --- | --- | --- |\n");
    }
    for (index, field) in message.field.iter().enumerate() {
        let mut meaning = comments.cell(&below(path, FIELD_OF_MESSAGE, index));
        if let Some(choice) = field.oneof_index.filter(|_| !field.proto3_optional()) {
            let choice = message.oneof_decl[usize::try_from(choice).unwrap()].name();
            meaning = format!("One of `{choice}`. {meaning}");
        }
        let kind = type_of(field, message);
        writeln!(text, "| {} | {kind} | {} | {} |", field.name(), field.number(), meaning.trim_end()).unwrap();
    }
    for (index, nested) in message.enum_type.iter().enumerate() {
        let name = format!("{name}.{}", nested.name());
        describe_enum(text, comments, &below(path, ENUM_OF_MESSAGE, index), &name, nested);
    }
    for (index, nested) in message.nested_type.iter().enumerate() {
        if !nested.options.as_ref().is_some_and(|options| options.map_entry()) {
            let name = format!("{name}.{}", nested.name());
            describe_message(text, comments, &below(path, MESSAGE_OF_MESSAGE, index), &name, nested);
        }
    }
}

fn describe_file(text: &mut String, file: &FileDescriptorProto) {
    let comments = Comments::of(file);
    let header = comments.at(&[SYNTAX]);
    // Laid out by hand: taken as it stands.
    write!(text, "\n## {}\n\n```text\n{header}\n```\n", file.name().rsplit('/').next().unwrap()).unwrap();
    for (index, service) in file.service.iter().enumerate() {
        let path = below(&[], SERVICE, index);
        write!(text, "\n### {}\n\n", service.name()).unwrap();
        paragraph(text, comments.at(&path));
        for (index, method) in service.method.iter().enumerate() {
            let stream = |is_stream: bool| if is_stream { "stream of " } else { "" };
            let (takes, gives) = (linked(method.input_type()), linked(method.output_type()));
            let takes = format!("{}{takes}", stream(method.client_streaming()));
            let gives = format!("{}{gives}", stream(method.server_streaming()));
            write!(text, "#### {}\n\nTakes {takes}, gives {gives}.\n\n", method.name()).unwrap();
            paragraph(text, comments.at(&below(&path, METHOD_OF_SERVICE, index)));
        }
    }
    for (index, message) in file.message_type.iter().enumerate() {
        describe_message(text, &comments, &below(&[], MESSAGE, index), message.name(), message);
    }
    for (index, described) in file.enum_type.iter().enumerate() {
        describe_enum(text, &comments, &below(&[], ENUM, index), described.name(), described);
    }
}

fn paragraph(text: &mut String, comment: &str) {
    if !comment.is_empty() {
        write!(text, "{comment}\n\n").unwrap();
    }
}

/// The whole reference, without blank lines at its end or two in a row.
fn reference() -> String {
    let described = FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let own: Vec<_> = described.file.iter().filter(|file| file.package() == "ostler.v1").collect();
    assert_eq!(own.len(), FILES.len(), "FILES of tests/api_reference.rs lacks one");
    let mut text = INTRODUCTION.to_owned();
    for name in FILES {
        let path = format!("ostler/v1/{name}.proto");
        describe_file(&mut text, own.iter().find(|file| file.name() == path).unwrap());
    }
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    format!("{}\n", text.trim_end())
}

#[test]
fn the_reference_is_in_the_docs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    let text = reference();
    if std::env::var_os("OSTLER_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "{} is old: run this test with OSTLER_BLESS=1", path.display());
}

#[test]
fn everything_of_the_package_is_in_the_reference() {
    let text = reference();
    let described = FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    for file in described.file.iter().filter(|file| file.package() == "ostler.v1") {
        for method in file.service.iter().flat_map(|service| &service.method) {
            assert!(text.contains(&format!("\n#### {}\n", method.name())), "{}", method.name());
        }
        for message in &file.message_type {
            assert!(text.contains(&format!("\n### {}\n", message.name())), "{}", message.name());
            for field in &message.field {
                let row = format!("\n| {} |", field.name());
                assert!(text.contains(&row), "{}.{}", message.name(), field.name());
            }
        }
    }
    // Comments of each kind, before what they are about and behind it.
    for said in ["Presses the ACPI power button, kills", "MiB, 64 to 4194304.", "its vCPUs run", "page_token     "] {
        assert!(text.contains(said), "{said}");
    }
    assert!(!text.contains("buf:lint"), "the linter is spoken to");
}
