//! Carries a plan out. Key function: [`apply`]. Every step is fatal: a half-built jail never runs a vmm.

use std::io;

use rustix::process::{Rlimit, setrlimit};

use super::plan::{HOSTNAME, Step};
use crate::sys::namespaces;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}{}", hint(step))]
pub(super) struct StepFailed {
    step: Step,
    source: io::Error,
}

/// What to do about it, where that is known.
fn hint(step: &Step) -> &'static str {
    match step {
        Step::LeaveHost => "; the daemon needs CAP_SYS_ADMIN and a kernel with namespaces",
        Step::EmptyRoot => "; the daemon's root must be a mount of its own, not an initial RAM file system",
        Step::OwnUsers(_) => "; allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_*)",
        Step::Execute => "; the ostler program must be readable and executable by every user",
        _ => "",
    }
}

/// Performs the steps; the last one turns this process into the program with these `arguments`. Returns on failure only.
pub(super) fn apply(steps: &[Step], arguments: &[String]) -> StepFailed {
    let failed = |step, source| StepFailed { step, source };
    let kept = match namespaces::keep() {
        Ok(kept) => kept,
        Err(source) => return failed(Step::Execute, source),
    };
    for step in steps {
        let done = match *step {
            Step::LeaveHost => namespaces::leave_host(),
            Step::EmptyRoot => namespaces::empty_root(),
            Step::Hostname => namespaces::set_hostname(HOSTNAME),
            Step::Limit(limit, value) => {
                let both = Rlimit { current: Some(value), maximum: Some(value) };
                setrlimit(limit.resource(), both).map_err(io::Error::from)
            }
            Step::Identity(id) => namespaces::become_user(id),
            Step::OwnUsers(id) => namespaces::own_users(&kept, id),
            Step::DropBoundingSet(last) => namespaces::drop_bounding_set(last),
            Step::DropCapabilities => namespaces::drop_capabilities(),
            Step::GainNoPrivileges => namespaces::gain_no_privileges(),
            Step::Execute => Err(namespaces::execute(&kept, arguments)),
        };
        if let Err(source) = done {
            return failed(*step, source);
        }
    }
    failed(Step::Execute, io::Error::other("it is not part of the plan"))
}
