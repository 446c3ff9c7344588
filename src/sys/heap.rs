//! How the process's heap grows (mallopt(3)). Key function: [`keep_together`].

#![allow(unsafe_code, reason = "one call of the C library that no crate wraps")]

/// All threads take from one heap. By default each gets its own, and what one of them freed is of no use to the others: a
/// burst of calls would cost a daemon its memory once per thread, and a vmm has a page of a heap for each thread that never
/// allocates. Each thread has a cache in front of it, so they seldom meet there.
pub fn keep_together() {
    // SAFETY: it takes two numbers and returns one, and may be called at any time; where it changes nothing, more memory is
    // used than need be.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
