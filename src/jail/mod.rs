//! The role `ostler-vmm jail`: takes everything from itself that a vmm does not need, then becomes the vmm.
//!
//! ```text
//!   serve ── clone3: own pid namespace, in the VM's cgroup ──▶ ostler-vmm jail <facts> root, one thread
//!                                                               plan: facts → steps    pure
//!                                                               apply: step by step
//!                                                               ▼ execveat, empty environment
//!                                                             ostler-vmm vmm           own uid, no rights, empty root
//! ```
//! Key functions: [`run`], the role's entry; [`plan::plan`]. What fails ends the process with [`JAIL_FAILED`] and a line on
//! stderr, the VM's log, which the daemon passes on.

mod apply;
pub mod plan;

use std::process::ExitCode;

use crate::model::{JAIL_FAILED, JailFacts};
use plan::HostFacts;

/// What the line on stderr begins with.
const PREFIX: &str = "jail: ";

/// The role's entry, with the arguments after its name. Returns on failure only.
pub fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    let mut arguments = arguments.peekable();
    // For whom: it stands behind whatever there is to say.
    let request = arguments.next_if(|argument| argument.starts_with("request=")).unwrap_or_default();
    let outcome = JailFacts::from_args(arguments).map_err(|error| error.to_string()).and_then(|facts| {
        let host = HostFacts::read().map_err(|error| format!("cannot read what this host has: {error}"))?;
        let steps = plan::plan(&facts, host).map_err(|error| error.to_string())?;
        // The vmm keeps the name by which a restarted daemon finds it.
        Err(apply::apply(&steps, &[name, "vmm".to_owned()]).to_string())
    });
    let cause = match outcome {
        Ok(()) => unreachable!("the plan ends in another program"),
        Err(cause) => cause,
    };
    let behind = if request.is_empty() { request } else { format!(" ({request})") };
    eprintln!("{PREFIX}{cause}{behind}");
    ExitCode::from(JAIL_FAILED)
}
