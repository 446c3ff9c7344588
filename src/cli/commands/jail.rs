//! `ostler vm inspect-jail`: what a VM's process has and may do, as the kernel shows it.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::Output;
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::{json, short};
use super::super::{print, show};

/// The daemon only reads proc(5).
const LIMIT: Duration = Duration::from_secs(60);
/// Limits that a jail sets, as the kernel names them.
const OWN_LIMITS: [&str; 6] = [
    "Max open files",
    "Max file size",
    "Max core file size",
    "Max locked memory",
    "Max processes",
    "Max msgqueue size",
];

/// A jail; the keys mirror `proto/ostler/v1`.
#[derive(Debug, Serialize)]
struct JailView {
    name: String,
    pid: u32,
    own_pid: u32,
    uids: Vec<u32>,
    gids: Vec<u32>,
    groups: Vec<u32>,
    capability_sets: Vec<SetView>,
    no_new_privileges: bool,
    dumpable: bool,
    environment_bytes: u64,
    namespaces: Vec<NamespaceView>,
    threads: Vec<ThreadView>,
    limits: Vec<LimitView>,
    root: Vec<String>,
    mounts: Vec<MountView>,
    descriptors: Vec<DescriptorView>,
    cgroup: String,
    cgroup_files: Vec<FileView>,
}

#[derive(Debug, Serialize)]
struct SetView {
    name: String,
    bits: u64,
}

#[derive(Debug, Serialize)]
struct NamespaceView {
    kind: String,
    id: u64,
    own: bool,
}

#[derive(Debug, Serialize)]
struct ThreadView {
    id: u32,
    name: String,
    seccomp_mode: u32,
    filters: u32,
    kernel_worker: bool,
    calls: Vec<String>,
    calls_with_some_arguments: Vec<String>,
    calls_unread: String,
}

#[derive(Debug, Serialize)]
struct LimitView {
    name: String,
    soft: String,
    hard: String,
}

#[derive(Debug, Serialize)]
struct MountView {
    path: String,
    kind: String,
    options: String,
}

#[derive(Debug, Serialize)]
struct DescriptorView {
    number: u32,
    target: String,
}

#[derive(Debug, Serialize)]
struct FileView {
    name: String,
    value: String,
}

pub(crate) async fn inspect(mut client: Client, name: &str) -> Result<(), Failure> {
    let name = client.caller.vm(name)?.to_string();
    let shown = short(&name);
    let call = client.vms.inspect_virtual_machine_jail(within(LIMIT, v1::InspectVirtualMachineJailRequest { name }));
    let jail = patiently("asking", call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || format!("start it first: ostler vm start {shown}"))
    })?;
    let view = JailView::from(jail);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}

impl From<v1::VirtualMachineJail> for JailView {
    fn from(jail: v1::VirtualMachineJail) -> Self {
        let sets = jail.capability_sets.into_iter().map(|set| SetView { name: set.name, bits: set.bits });
        let namespaces = jail.namespaces.into_iter();
        let limits = jail.limits.into_iter();
        let mounts = jail.mounts.into_iter();
        let descriptors = jail.descriptors.into_iter();
        Self {
            name: jail.name,
            pid: jail.pid,
            own_pid: jail.own_pid,
            uids: jail.uids,
            gids: jail.gids,
            groups: jail.groups,
            capability_sets: sets.collect(),
            no_new_privileges: jail.no_new_privileges,
            dumpable: jail.dumpable,
            environment_bytes: jail.environment_bytes,
            namespaces: namespaces.map(|n| NamespaceView { kind: n.kind, id: n.id, own: n.own }).collect(),
            threads: jail.threads.into_iter().map(ThreadView::from).collect(),
            limits: limits.map(|l| LimitView { name: l.name, soft: l.soft, hard: l.hard }).collect(),
            root: jail.root,
            mounts: mounts.map(|m| MountView { path: m.path, kind: m.kind, options: m.options }).collect(),
            descriptors: descriptors.map(|d| DescriptorView { number: d.number, target: d.target }).collect(),
            cgroup: jail.cgroup,
            cgroup_files: jail.cgroup_files.into_iter().map(|f| FileView { name: f.name, value: f.value }).collect(),
        }
    }
}

impl From<v1::virtual_machine_jail::Thread> for ThreadView {
    fn from(thread: v1::virtual_machine_jail::Thread) -> Self {
        let v1::virtual_machine_jail::Thread {
            id,
            name,
            seccomp_mode,
            filters,
            kernel_worker,
            calls,
            calls_with_some_arguments,
            calls_unread,
        } = thread;
        Self { id, name, seccomp_mode, filters, kernel_worker, calls, calls_with_some_arguments, calls_unread }
    }
}

impl JailView {
    fn text(&self) -> String {
        let list = |numbers: &[u32]| match numbers {
            [] => "none".to_owned(),
            // Real, effective, saved and file system id: usually one.
            [first, rest @ ..] if rest.iter().all(|number| number == first) => first.to_string(),
            _ => numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        };
        let yes = |is_so: bool| if is_so { "yes" } else { "no" }.to_owned();
        let lines = |lines: Vec<String>| if lines.is_empty() { "none".to_owned() } else { lines.join("\n") };
        let own = |namespace: &NamespaceView| if namespace.own { "own" } else { "THE DAEMON'S" };
        print::facts(&[
            ("name", short(&self.name)),
            ("pid", format!("{} ({} in its own namespace)", self.pid, self.own_pid)),
            ("uid", list(&self.uids)),
            ("gid", list(&self.gids)),
            ("groups", list(&self.groups)),
            ("capabilities", lines(self.capability_sets.iter().map(SetView::text).collect())),
            ("no new privileges", yes(self.no_new_privileges)),
            ("dumpable", yes(self.dumpable)),
            ("environment", format!("{} bytes", self.environment_bytes)),
            ("namespaces", lines(self.namespaces.iter().map(|n| format!("{} {}", n.kind, own(n))).collect())),
            ("mounts", lines(self.mounts.iter().map(|m| format!("{} {} {}", m.path, m.kind, m.options)).collect())),
            ("in its root", lines(self.root.clone())),
            ("threads", lines(self.threads.iter().map(ThreadView::text).collect())),
            ("limits", lines(self.limits.iter().filter(|limit| limit.is_shown()).map(LimitView::text).collect())),
            ("cgroup", self.cgroup.clone()),
            ("cgroup files", lines(self.cgroup_files.iter().map(|f| format!("{} {}", f.name, f.value)).collect())),
            ("descriptors", lines(self.descriptors.iter().map(|d| format!("{} {}", d.number, d.target)).collect())),
        ])
    }
}

impl SetView {
    fn text(&self) -> String {
        if self.bits == 0 { format!("{} none", self.name) } else { format!("{} {:#x}", self.name, self.bits) }
    }
}

impl ThreadView {
    fn text(&self) -> String {
        let calls = match self.seccomp_mode {
            _ if self.kernel_worker => "none: the kernel's worker".to_owned(),
            0 => "ANY SYSTEM CALL".to_owned(),
            _ if !self.calls_unread.is_empty() => format!("filtered, by what could not be read: {}", self.calls_unread),
            // A daemon from before they were read.
            _ if self.calls.is_empty() && self.calls_with_some_arguments.is_empty() => {
                "filtered system calls".to_owned()
            }
            _ => {
                let some: Vec<_> = self.calls_with_some_arguments.iter().map(|call| format!("{call}(…)")).collect();
                [self.calls.as_slice(), some.as_slice()].concat().join(" ")
            }
        };
        format!("{} {}: {calls}", self.id, self.name)
    }
}

impl LimitView {
    fn is_shown(&self) -> bool {
        OWN_LIMITS.contains(&self.name.as_str())
    }

    fn text(&self) -> String {
        let Self { name, soft, hard } = self;
        if soft == hard { format!("{name} {soft}") } else { format!("{name} {soft}, at most {hard}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jail() -> v1::VirtualMachineJail {
        use v1::virtual_machine_jail::{CapabilitySet, Limit, Namespace, Thread};
        let thread = |id, seccomp_mode| Thread { id, name: format!("t{id}"), seccomp_mode, ..Default::default() };
        v1::VirtualMachineJail {
            name: "tenants/acme/vms/web".into(),
            uids: vec![7; 4],
            capability_sets: vec![
                CapabilitySet { name: "effective".into(), bits: 0 },
                CapabilitySet { name: "bounding".into(), bits: 0x21 },
            ],
            namespaces: vec![
                Namespace { kind: "net".into(), id: 1, own: true },
                Namespace { kind: "mnt".into(), id: 2, own: false },
            ],
            threads: vec![thread(1, 2), thread(2, 0)],
            limits: vec![
                Limit { name: "Max open files".into(), soft: "64".into(), hard: "64".into() },
                Limit { name: "Max cpu time".into(), soft: "unlimited".into(), hard: "unlimited".into() },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_confined_stands_out() {
        let text = JailView::from(jail()).text();
        for line in ["effective none", "bounding 0x21", "net own", "mnt THE DAEMON'S", "2 t2: ANY SYSTEM CALL"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.contains("Max open files 64\n") && !text.contains("cpu time"), "{text}");
        assert!(text.contains("uid:               7\n"), "{text}");
    }

    #[test]
    fn programs_get_every_limit_and_exact_bits() {
        let json = serde_json::to_value(JailView::from(jail())).unwrap();
        assert_eq!(json["limits"].as_array().unwrap().len(), 2);
        assert_eq!(json["capability_sets"][1]["bits"], 0x21);
    }
}
