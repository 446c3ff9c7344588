//! The file of `ostler apply`: TOML, a table `[[vm]]` for each VM. Key types: [`Wanted`], [`Goal`].
//!
//! Beside `name` and `state`, its keys are the options of `ostler vm register`, read by the same definition: what can be said
//! there can be said here, in the same words. An option that may be repeated takes a list, a switch takes `true`.

use clap::{Args, FromArgMatches};
use serde::Deserialize;
use toml::Value;

use crate::api::convert::{spec_from_proto, spec_to_proto};
use crate::api::v1;
use crate::model::TenantId;

use super::super::super::args::SpecArgs;
use super::super::super::failure::{Exit, Failure};
use super::super::super::identity::Caller;
use super::super::spec::spec;

/// A VM as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) tenant: TenantId,
    /// tenants/{tenant}/vms/{vm}
    pub(super) name: String,
    /// As the API would show it.
    pub(super) spec: v1::VirtualMachineSpec,
    /// `None`: however it is.
    pub(super) goal: Option<Goal>,
}

/// The state that a VM is to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Running,
    Paused,
    /// Without a process: never started and failed will do.
    Stopped,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    vm: Vec<toml::Table>,
}

/// Reads a file's text. Names are completed as on the command line; none may occur twice.
pub(super) fn read(text: &str, caller: &Caller) -> Result<Vec<Wanted>, Failure> {
    let invalid = |reason: String| {
        Failure::new(Exit::Usage, reason)
            .hint("docs/cli.md shows what such a file holds; ostler vm register --help, its keys")
    };
    let document: Document = toml::from_str(text).map_err(|error| invalid(error.to_string().trim_end().to_owned()))?;
    let mut wanted: Vec<Wanted> = Vec::new();
    for (index, mut table) in document.vm.into_iter().enumerate() {
        let Some(Value::String(name)) = table.remove("name") else {
            return Err(invalid(format!("the [[vm]] number {} has no name", index + 1)));
        };
        let vm = caller.vm(&name)?;
        let goal = goal(table.remove("state")).map_err(|reason| invalid(format!("{name}: {reason}")))?;
        let spec = read_spec(table).map_err(|reason| invalid(format!("{name}: {reason}")))?;
        let full = vm.to_string();
        if wanted.iter().any(|other| other.name == full) {
            return Err(invalid(format!("{name} occurs twice")));
        }
        wanted.push(Wanted { tenant: vm.tenant, name: full, spec, goal });
    }
    Ok(wanted)
}

fn goal(state: Option<Value>) -> Result<Option<Goal>, String> {
    match state.as_ref().map(Value::as_str) {
        None => Ok(None),
        Some(Some("running")) => Ok(Some(Goal::Running)),
        Some(Some("paused")) => Ok(Some(Goal::Paused)),
        Some(Some("stopped")) => Ok(Some(Goal::Stopped)),
        Some(_) => Err("state: write \"running\", \"paused\" or \"stopped\", or leave it out".to_owned()),
    }
}

fn read_spec(table: toml::Table) -> Result<v1::VirtualMachineSpec, String> {
    let command = clap::Command::new("vm").no_binary_name(true).disable_help_flag(true);
    let command = SpecArgs::augment_args(command);
    let mut line = Vec::new();
    for (key, value) in table {
        line.extend(options(&command, &key, value)?);
    }
    let matches = command.try_get_matches_from(line).map_err(|error| first_words(&error))?;
    let arguments = SpecArgs::from_arg_matches(&matches).map_err(|error| first_words(&error))?;
    let spec = spec(arguments).map_err(|failure| failure.message)?;
    let checked = spec_from_proto(spec).map_err(|error| format!("{}: {}", error.field, error.reason))?;
    Ok(spec_to_proto(&checked))
}

/// A key with its value as it stands on a command line.
fn options(command: &clap::Command, key: &str, value: Value) -> Result<Vec<String>, String> {
    use clap::ArgAction;
    let option = command.get_arguments().find(|option| option.get_long() == Some(key));
    let option = option.ok_or_else(|| format!("{key}: there is no such key"))?;
    let one = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{key}={text}")),
        Value::Integer(number) => Ok(format!("--{key}={number}")),
        _ => Err(format!("{key}: write a text or a number")),
    };
    match (option.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => Ok(vec![format!("--{key}")]),
        (ArgAction::SetTrue, Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("{key}: write true or false")),
        (ArgAction::Append, Value::Array(values)) => values.iter().map(one).collect(),
        (_, value) => one(&value).map(|option| vec![option]),
    }
}

/// What clap says, without its hints about usage.
fn first_words(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let words: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acme() -> Caller {
        Caller::Tenant("acme".parse().unwrap())
    }

    #[test]
    fn keys_are_the_options_of_a_registration() {
        let text = r#"
            [[vm]]
            name = "web"
            state = "running"
            vcpus = 2
            memory = "1G"
            kernel = "linux/vmlinux"
            cmdline = "--quiet"
            prefault = true
            disk = ["id=root,volume=hello.img,ro,iops=500", "id=data,volume=data.img"]
            nic = "id=eth0"
            label = ["team=web", "tier="]

            [[vm]]
            name = "globex/db"
            kernel = "linux/vmlinux"
        "#;
        let [web, db] = read(text, &acme()).unwrap().try_into().unwrap();
        assert_eq!((web.name.as_str(), web.goal), ("tenants/acme/vms/web", Some(Goal::Running)));
        assert_eq!((web.spec.vcpus, web.spec.memory_mib, web.spec.disks.len(), web.spec.nics.len()), (2, 1024, 2, 1));
        assert_eq!(web.spec.boot.as_ref().unwrap().cmdline, "--quiet");
        assert!(web.spec.memory.unwrap().prefault);
        assert_eq!(web.spec.labels, [("team".into(), "web".into()), ("tier".into(), String::new())].into());
        // Bursts are named, as the API names them.
        assert_eq!(web.spec.disks[0].limits.unwrap().operations_burst, 50);
        assert_eq!((db.name.as_str(), db.goal, db.spec.vcpus), ("tenants/globex/vms/db", None, 1));
        assert_eq!(read("", &acme()).unwrap(), []);
    }

    #[test]
    fn says_which_vm_and_which_key_is_wrong() {
        let vm = |rest: &str| format!("[[vm]]\nname = \"web\"\nkernel = \"k\"\n{rest}");
        for (text, words) in [
            ("vm = 3".to_owned(), "vm = 3"),
            ("[[vn]]".to_owned(), "vn"),
            ("[[vm]]\nkernel = \"k\"".to_owned(), "number 1 has no name"),
            ("[[vm]]\nname = \"web\"".to_owned(), "web: the following required arguments were not provided: --kernel"),
            (vm("vcpu = 3"), "web: vcpu: there is no such key"),
            (vm("vcpus = \"x\""), "web: invalid value 'x' for '--vcpus"),
            (vm("vcpus = 1000"), "web: spec.vcpus"),
            (vm("memory = 256"), "unit is missing"),
            (vm("prefault = 1"), "web: prefault: write true or false"),
            (vm("nic = [true]"), "web: nic: write a text"),
            (vm("label = \"team\""), "is not a label: write KEY=VALUE"),
            (vm("label = [\"a=1\", \"a=2\"]"), "web: label \"a\" is given twice"),
            (vm("label = \"A=1\""), "web: spec.labels: \"A\" is no key"),
            (vm("state = \"failed\""), "web: state: write"),
            (vm("name = \"b\""), "duplicate key"),
            (format!("{}\n{}", vm(""), vm("")), "web occurs twice"),
        ] {
            let failure = read(&text, &acme()).unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.message.contains(words), "{text}: {failure}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(key in "[a-z-]{1,12}|disk|nic|vcpus|help", value in "\"[^\"\\\\]{0,12}\"|-?[0-9]{1,6}|true|\\[\\]") {
            let _ = read(&format!("[[vm]]\nname = \"web\"\nkernel = \"k\"\n{key} = {value}\n"), &acme());
        }
    }
}
