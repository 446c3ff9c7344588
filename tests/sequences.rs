//! Random calls on one VM: of one client, each as a model of the states says; of two at once, so that what becomes of the
//! VM is a way through that model and no call is answered twice or forgotten. Boots guests (feature `lab`).

use std::collections::BTreeMap;

use ostler::api::v1::virtual_machine::State;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tonic::{Code, Status};

use crate::support::crash::{Footprint, assert_consistent};
use crate::support::guest::linux;
use crate::support::{Caller, Host, facts};

/// What a client asks for. Stops and reboots are by force: a guest that is not up yet hears no button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Register,
    Start,
    Pause,
    Resume,
    Stop,
    Reboot,
    Destroy { force: bool },
}

impl Call {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            3 => Just(Self::Register),
            4 => Just(Self::Start),
            2 => Just(Self::Pause),
            2 => Just(Self::Resume),
            2 => Just(Self::Stop),
            1 => Just(Self::Reboot),
            1 => any::<bool>().prop_map(|force| Self::Destroy { force }),
        ]
    }

    fn make(self, caller: &Caller) -> Result<(), Status> {
        match self {
            Self::Register => caller.register("web", linux()).map(drop),
            Self::Start => caller.start("web").map(drop),
            Self::Pause => caller.pause("web").map(drop),
            Self::Resume => caller.resume("web").map(drop),
            Self::Stop => caller.stop("web", Some(0)).map(drop),
            Self::Reboot => caller.reboot("web", Some(0)).map(drop),
            Self::Destroy { force } => caller.destroy("web", force),
        }
    }

    /// What comes of it for a VM in `state`, `None` if there is none.
    fn model(self, state: Option<State>) -> Result<Option<State>, Code> {
        let runs = matches!(state, Some(State::Running | State::Paused));
        match (self, state) {
            (Self::Register, None) => Ok(Some(State::Registered)),
            (Self::Register, Some(_)) => Err(Code::AlreadyExists),
            (_, None) => Err(Code::NotFound),
            (Self::Start, Some(State::Registered | State::Stopped)) => Ok(Some(State::Running)),
            (Self::Pause, _) if runs => Ok(Some(State::Paused)),
            (Self::Resume | Self::Reboot, _) if runs => Ok(Some(State::Running)),
            (Self::Stop, _) if runs => Ok(Some(State::Stopped)),
            (Self::Destroy { force }, _) if force || !runs => Ok(None),
            _ => Err(Code::FailedPrecondition),
        }
    }
}

/// States that follow each other, as a watch tells them.
const STEPS: [(State, &[State]); 7] = [
    (State::Registered, &[State::Starting, State::Destroying]),
    (State::Starting, &[State::Running, State::Stopping, State::Destroying]),
    (State::Running, &[State::Paused, State::Stopping, State::Destroying]),
    (State::Paused, &[State::Running, State::Stopping, State::Destroying]),
    (State::Stopping, &[State::Stopped, State::Starting, State::Destroying]),
    (State::Stopped, &[State::Starting, State::Destroying]),
    (State::Destroying, &[State::Destroyed]),
];

/// Runs `test` with random values, as often as `cases` says.
fn each<S: Strategy>(cases: u32, values: &S, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 32, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let run = |value| {
        test(value);
        Ok(())
    };
    if let Err(error) = runner.run(values, run) {
        panic!("{error}");
    }
}

#[test]
fn whatever_one_client_calls_comes_to_what_the_model_says() {
    let mut host = Host::with_guests();
    let before = Footprint::of_fresh(&mut host);
    let acme = host.tenant("acme");
    each(12, &prop::collection::vec(Call::any(), 1..24), |calls| {
        // Of a case that failed, while a shorter one is looked for.
        let _ = acme.destroy("web", true);
        let mut state = None;
        for (at, call) in calls.iter().enumerate() {
            let told = call.make(&acme).map_err(|status| status.code());
            let due = call.model(state);
            assert_eq!(told, due.map(drop), "call {at} of {calls:?}, of a VM that is {state:?}");
            state = due.unwrap_or(state);
            let is = acme.get("web").ok().map(|vm| vm.state());
            assert_eq!(is, state, "after call {at} of {calls:?}");
            let processes = host.vmm_processes().len();
            assert_eq!(processes, usize::from(matches!(is, Some(State::Running | State::Paused))), "{calls:?}");
        }
        assert_consistent(&host, "after a sequence");
        let _ = acme.destroy("web", true);
    });
    before.expect_again(&mut host, "after all sequences");
}

/// How often each call was done, and how often it was accepted and then cut short by another one.
#[derive(Debug, Default)]
struct Told {
    done: BTreeMap<Call, usize>,
    cut_short: BTreeMap<Call, usize>,
}

impl Told {
    fn by(caller: &Caller, calls: &[Call]) -> Self {
        let mut told = Self::default();
        for call in calls {
            match call.make(caller) {
                Ok(()) => *told.done.entry(*call).or_default() += 1,
                Err(status) => {
                    let facts = facts(&status);
                    match (facts.code, facts.reason.as_str()) {
                        (Code::NotFound, "VM_NOT_FOUND")
                        | (Code::AlreadyExists, "VM_EXISTS")
                        | (Code::FailedPrecondition, "WRONG_STATE") => {}
                        (Code::Aborted, "INTERRUPTED") => *told.cut_short.entry(*call).or_default() += 1,
                        _ => panic!("{call:?}: {facts:?}"),
                    }
                }
            }
        }
        told
    }

    fn done(all: &[Self], is_it: impl Fn(Call) -> bool) -> usize {
        all.iter().flat_map(|told| &told.done).filter(|(call, _)| is_it(**call)).map(|(_, times)| times).sum()
    }

    fn cut_short(all: &[Self], call: Call) -> usize {
        all.iter().filter_map(|told| told.cut_short.get(&call)).sum()
    }
}

#[test]
fn whatever_two_clients_call_at_once_is_one_way_through_the_model() {
    let mut host = Host::with_guests();
    let before = Footprint::of_fresh(&mut host);
    let acme = host.tenant("acme");
    let sequences = || prop::collection::vec(Call::any(), 8..32);
    each(8, &(sequences(), sequences()), |(one, other)| {
        let _ = acme.destroy("web", true);
        let mut watch = acme.watch("").unwrap();
        while !watch.next_message().bookmark {}
        let clients = [host.tenant("acme"), host.tenant("acme")];
        let told = std::thread::scope(|scope| {
            let [first, second] = &clients;
            let other = scope.spawn(|| Told::by(second, &other));
            [Told::by(first, &one), other.join().unwrap()]
        });
        assert_consistent(&host, "after two clients");
        assert!(host.vmm_processes().len() <= 1);
        let destroyed_at_last = acme.destroy("web", true).is_ok();
        // A last change, which ends what is read.
        acme.register("end", linux()).unwrap();
        let mut states: Vec<(String, State)> = Vec::new();
        loop {
            let vm = watch.next().virtual_machine.unwrap();
            if vm.name.ends_with("/end") {
                break;
            }
            let now = (vm.uid.clone(), vm.state());
            if states.last() != Some(&now) {
                states.push(now);
            }
        }
        acme.destroy("end", false).unwrap();
        let told_and_seen = format!("{told:?}\n{states:?}");
        let is_step = |from: State, to: State| STEPS.iter().any(|(state, next)| *state == from && next.contains(&to));
        for pair in states.windows(2) {
            let [(uid, from), (next_uid, to)] = pair else { unreachable!() };
            let is_right = if uid == next_uid {
                is_step(*from, *to)
            } else {
                (*from, *to) == (State::Destroyed, State::Registered)
            };
            assert!(is_right, "from {from:?} to {to:?}: {told_and_seen}");
        }
        let seen = |state: State| states.iter().filter(|(_, seen)| *seen == state).count();
        let done = |call: Call| Told::done(&told, |it| it == call);
        assert_eq!(done(Call::Register), seen(State::Registered), "{told_and_seen}");
        let destroyed = Told::done(&told, |it| matches!(it, Call::Destroy { .. })) + usize::from(destroyed_at_last);
        assert_eq!(
            (destroyed, seen(State::Destroying)),
            (seen(State::Destroyed), seen(State::Destroyed)),
            "{told_and_seen}"
        );
        // Each start that was not refused began one run; reboots began the others.
        let is_start = |pair: &&[(String, State)]| pair[1].1 == State::Starting && pair[0].1 != State::Stopping;
        let starts = states.windows(2).filter(is_start).count();
        assert_eq!(done(Call::Start) + Told::cut_short(&told, Call::Start), starts, "{told_and_seen}");
    });
    before.expect_again(&mut host, "after all clients");
}
