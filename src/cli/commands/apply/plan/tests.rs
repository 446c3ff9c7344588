//! Plans, from what is wanted and what there is.

use super::*;
use proptest::prelude::*;

fn disk(id: &str, volume: &str, operations_per_second: u64) -> v1::DiskSpec {
    let limits = v1::RateLimits { operations_per_second, ..Default::default() };
    let limits = (operations_per_second > 0).then_some(limits);
    v1::DiskSpec { id: id.into(), volume: volume.into(), queues: 1, limits, ..Default::default() }
}

fn nic(id: &str) -> v1::NicSpec {
    v1::NicSpec { id: id.into(), queues: 1, ..Default::default() }
}

fn spec(disks: Vec<v1::DiskSpec>, nics: Vec<v1::NicSpec>) -> v1::VirtualMachineSpec {
    let boot = v1::BootSpec { kernel: "k".into(), ..Default::default() };
    v1::VirtualMachineSpec { vcpus: 2, memory_mib: 256, boot: Some(boot), disks, nics, ..Default::default() }
}

fn wanted(spec: v1::VirtualMachineSpec, goal: Option<Goal>) -> Wanted {
    Wanted { tenant: "acme".parse().unwrap(), name: "tenants/acme/vms/web".into(), spec, goal }
}

fn vm(spec: v1::VirtualMachineSpec, state: State) -> v1::VirtualMachine {
    let name = "tenants/acme/vms/web".into();
    v1::VirtualMachine { name, spec: Some(spec), state: state.into(), etag: "\"7\"".into(), ..Default::default() }
}

/// The steps in words.
fn steps(wanted: &Wanted, actual: Option<&v1::VirtualMachine>) -> Vec<String> {
    let plan = plan(wanted, actual);
    assert_eq!(plan.obstacles, [""; 0]);
    plan.steps.iter().map(|step| format!("{} {}", step.action(), step.detail()).trim().to_owned()).collect()
}

#[test]
fn what_is_not_there_is_registered_and_brought_into_its_state() {
    let spec = || spec(vec![disk("root", "a.img", 0)], vec![nic("eth0")]);
    let register = "register 2 vCPUs, 256MiB, k, disk root (a.img), nic eth0";
    assert_eq!(steps(&wanted(spec(), None), None), [register]);
    assert_eq!(steps(&wanted(spec(), Some(Goal::Stopped)), None), [register]);
    assert_eq!(steps(&wanted(spec(), Some(Goal::Paused)), None), [register, "start", "pause"]);
}

#[test]
fn an_nvme_device_comes_and_goes_and_its_data_with_it() {
    let nvme = |id: &str| v1::NvmeSpec { id: id.into(), ..Default::default() };
    let with = |id: &str| v1::VirtualMachineSpec { nvme: vec![nvme(id)], ..spec(vec![], vec![]) };
    let wanted = wanted(with("new"), Some(Goal::Running));
    let actual = vm(with("old"), State::Running);
    assert_eq!(steps(&wanted, Some(&actual)), ["detach old", "attach nvme new"]);
    let notes = plan(&wanted, Some(&actual)).notes;
    assert_eq!(notes, ["nvme old: its data is erased"]);
}

#[test]
fn devices_go_before_others_come_and_limits_change_in_place() {
    let has = spec(vec![disk("root", "a.img", 0), disk("old", "o.img", 0)], vec![nic("eth0")]);
    let wants = spec(vec![disk("root", "a.img", 500), disk("new", "n.img", 0)], vec![nic("eth1")]);
    let devices =
        ["detach old", "detach eth0", "limit root (500 operations/s)", "attach disk new (n.img)", "attach nic eth1"];
    let actual = vm(has.clone(), State::Running);
    assert_eq!(steps(&wanted(wants.clone(), Some(Goal::Running)), Some(&actual)), devices);
    // Asked for while there is no guest to ask, where that can be.
    let stopped = steps(&wanted(wants.clone(), Some(Goal::Stopped)), Some(&actual));
    assert_eq!(stopped, [&["stop"][..], &devices].concat());
    let actual = vm(has, State::Failed);
    assert_eq!(steps(&wanted(wants, Some(Goal::Running)), Some(&actual)), [&devices[..], &["start"]].concat());
    let unlimited = wanted(spec(vec![disk("root", "a.img", 0)], vec![]), None);
    let limited = vm(spec(vec![disk("root", "a.img", 9)], vec![]), State::Running);
    assert_eq!(steps(&unlimited, Some(&limited)), ["limit root (none)"]);
}

#[test]
fn what_is_fixed_says_so() {
    let has = spec(vec![disk("root", "a.img", 0)], vec![]);
    let other = v1::VirtualMachineSpec {
        vcpus: 4,
        boot: Some(v1::BootSpec { kernel: "k2".into(), ..Default::default() }),
        memory: Some(v1::MemorySpec { prefault: true, ..Default::default() }),
        disks: vec![disk("root", "b.img", 0)],
        labels: [("team".into(), "db".into()), ("tier".into(), "1".into())].into(),
        ..has.clone()
    };
    let has = v1::VirtualMachineSpec { labels: [("team".into(), "web".into())].into(), ..has };
    let plan = plan(&wanted(other, None), Some(&vm(has, State::Running)));
    assert_eq!(plan.obstacles.len(), 6, "{plan:?}");
    assert!(plan.obstacles.iter().all(|obstacle| obstacle.contains("cannot be changed in place")), "{plan:?}");
    assert!(plan.obstacles[0].starts_with("vcpus 2 -> 4"), "{plan:?}");
    assert!(plan.obstacles.iter().any(|obstacle| obstacle.starts_with("kernel \"k\" -> \"k2\"")), "{plan:?}");
    for label in ["label team \"web\" -> \"db\": cannot", "label tier none -> \"1\": cannot"] {
        assert!(plan.obstacles.iter().any(|obstacle| obstacle.starts_with(label)), "{plan:?}");
    }
}

#[test]
fn what_policy_made_smaller_is_no_difference() {
    let has = spec(vec![], vec![]);
    let more = v1::VirtualMachineSpec { vcpus: 8, ..has.clone() };
    let opinion = v1::Opinion { verdict: "allow".into(), detail: "cap vCPUs at 2".into(), ..Default::default() };
    let admission = v1::Decision { allowed: true, opinions: vec![opinion], ..Default::default() };
    let capped = v1::VirtualMachine { admission: Some(admission), ..vm(has, State::Registered) };
    let capped = plan(&wanted(more, None), Some(&capped));
    assert_eq!((capped.steps.len(), capped.obstacles.len()), (0, 0), "{capped:?}");
    assert_eq!(capped.notes, ["vcpus 2: policy allows no more"]);
}

#[test]
fn what_is_under_way_is_waited_for_and_what_is_pruned_is_stopped_first() {
    let spec = || spec(vec![], vec![]);
    let plan = plan(&wanted(spec(), Some(Goal::Running)), Some(&vm(spec(), State::Stopping)));
    assert!(plan.obstacles[0].contains("STOPPING"), "{plan:?}");
    assert_eq!(removal(&vm(spec(), State::Running)).steps, [Step::Stop, Step::Destroy]);
    assert_eq!(removal(&vm(spec(), State::Failed)).steps, [Step::Destroy]);
}

fn balloon(keep_mib: u64) -> v1::VirtualMachineSpec {
    let memory = v1::MemorySpec { balloon: Some(v1::BalloonSpec { keep_mib }), ..Default::default() };
    v1::VirtualMachineSpec { memory: Some(memory), ..spec(vec![], vec![]) }
}

#[test]
fn what_a_guest_keeps_changes_in_place_and_that_it_has_a_balloon_does_not() {
    let running = |keep_mib| vm(balloon(keep_mib), State::Running);
    assert_eq!(steps(&wanted(balloon(128), None), Some(&running(0))), ["balloon keep 128MiB"]);
    assert_eq!(steps(&wanted(balloon(0), None), Some(&running(128))), ["balloon keep all"]);
    assert_eq!(steps(&wanted(balloon(128), None), Some(&running(128))), [""; 0]);
    // Policy left the VM less than was to be kept.
    assert_eq!(steps(&wanted(balloon(512), None), Some(&running(0))), [""; 0]);
    let without = vm(spec(vec![], vec![]), State::Running);
    let [obstacle] = plan(&wanted(balloon(0), None), Some(&without)).obstacles.try_into().unwrap();
    assert!(obstacle.starts_with("pages, NUMA node or balloon differ"), "{obstacle}");
}

fn any_spec() -> impl Strategy<Value = v1::VirtualMachineSpec> {
    let disks = prop::collection::btree_map("[ab]", 0u64..3, 0..3);
    let nics = prop::collection::btree_set("[cd]", 0..3);
    (disks, nics).prop_map(|(disks, nics)| {
        spec(disks.iter().map(|(id, rate)| disk(id, "x.img", *rate)).collect(), nics.iter().map(|id| nic(id)).collect())
    })
}

/// What the daemon would make of the steps.
fn applied(mut spec: v1::VirtualMachineSpec, mut state: State, steps: &[Step]) -> (v1::VirtualMachineSpec, State) {
    for step in steps {
        match step {
            Step::Register(new) => (spec, state) = ((**new).clone(), State::Registered),
            Step::Start | Step::Resume => state = State::Running,
            Step::Pause => state = State::Paused,
            Step::Stop => state = State::Stopped,
            Step::Destroy => state = State::Destroyed,
            Step::Detach(id) => {
                spec.disks.retain(|disk| disk.id != *id);
                spec.nics.retain(|nic| nic.id != *id);
                spec.nvme.retain(|nvme| nvme.id != *id);
            }
            Step::Keep(keep_mib) => spec.memory = balloon(*keep_mib).memory,
            Step::Attach(Device::Disk(disk)) => spec.disks.push(disk.clone()),
            Step::Attach(Device::Nic(nic)) => spec.nics.push(nic.clone()),
            Step::Attach(Device::Nvme(nvme)) => spec.nvme.push(nvme.clone()),
            Step::Limit(id, limits) => {
                spec.disks.iter_mut().filter(|disk| disk.id == *id).for_each(|disk| disk.limits = *limits);
            }
        }
    }
    (spec, state)
}

proptest! {
    #[test]
    fn a_second_plan_is_empty(
        has in any_spec(),
        wants in any_spec(),
        state in prop::sample::select(vec![State::Registered, State::Running, State::Paused, State::Stopped, State::Failed]),
        goal in prop::sample::select(vec![None, Some(Goal::Running), Some(Goal::Paused), Some(Goal::Stopped)]),
        is_there in any::<bool>(),
    ) {
        let wanted = wanted(wants, goal);
        let actual = vm(has.clone(), state);
        let first = plan(&wanted, is_there.then_some(&actual));
        prop_assert!(first.obstacles.is_empty(), "{:?}", first);
        let (spec, state) = applied(has, state, &first.steps);
        let second = plan(&wanted, Some(&vm(spec, state)));
        prop_assert!(second.steps.is_empty() && second.obstacles.is_empty(), "{:?} then {:?}", first, second);
    }
}
