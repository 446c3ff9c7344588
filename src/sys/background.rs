//! Has a process leave its processors to whoever else wants them. Key function: [`stand_back`].

#![allow(unsafe_code, reason = "sched_setattr(2), which no library wraps")]

/// How far behind others (nice(2)).
const NICENESS: i32 = 10;
/// How long it may stay on a processor that somebody else has woken up for, in nanoseconds: the least that can be asked for.
/// Kernels before 6.12 have one time for everybody, of some milliseconds.
const SLICE_NS: u64 = 100_000;

/// Has a process that has one thread, and a session of its own, go behind all others: these get more of a processor, and get
/// it at once. Where nobody else wants one, nothing changes. A kernel that does not know one of these ways has the other ones.
pub fn stand_back() {
    stand_back_as_thread();
    // Where sessions are groups of the scheduler, niceness counts within its own only (sched(7)).
    let _ = std::fs::write("/proc/self/autogroup", NICENESS.to_string());
}

/// The calling thread, and those that it makes.
fn stand_back_as_thread() {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_BATCH as u32,
        sched_flags: 0,
        sched_nice: NICENESS,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` is a sched_attr of the size that it names, and is only read.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_those_that_it_makes_stand_back() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let behind = std::thread::spawn(move || {
            stand_back_as_thread();
            // SAFETY: takes a number and gives one.
            let policy = || unsafe { libc::sched_getscheduler(0) };
            let of_its_own = std::thread::spawn(move || (niceness(), policy())).join().unwrap();
            assert_eq!((niceness(), policy()), of_its_own);
            of_its_own
        });
        assert_eq!(behind.join().unwrap(), (NICENESS, libc::SCHED_BATCH));
        assert_eq!(niceness(), own);
    }
}
