//! Requests that a client may repeat. Key types: [`RequestRecord`], [`Progress`].
//!
//! ```text
//!   (nothing) ──first effect is about to happen──▶ BEGUN(before) ──success──▶ DONE(answer)
//!        └──effect and answer are one write────────────────────────────────────▲
//! ```
//!
//! A failure forgets the request. One that is BEGUN when it is repeated was cut off by the daemon's end: what the
//! resource has become since `before` tells whether its effect has happened.

use std::time::SystemTime;

use crate::model::{Bdf, RequestId, TenantId, VmId};

/// Whose request it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey {
    /// The identity, as the audit log names it.
    pub caller: String,
    /// Made up by the client.
    pub id: RequestId,
}

/// A request that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Whose, and which.
    pub key: RequestKey,
    /// SHA-256 of method and message, without the id.
    pub fingerprint: [u8; 32],
    /// When it came first.
    pub begun: SystemTime,
    /// How far it got.
    pub progress: Progress,
    /// What it is at, while it is BEGUN.
    pub work: Option<BegunWork>,
}

/// What a request has begun: the operation that a daemon lists which finds it cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunWork {
    /// Whose it is; `None`: the host's.
    pub owner: Option<TenantId>,
    /// The operation's id.
    pub operation: String,
    /// The call.
    pub method: String,
    /// Name of the resource that it is about.
    pub target: String,
}

/// How far a request got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Its effect may have happened.
    Begun(Before),
    /// It succeeded.
    Done {
        /// The encoded response.
        answer: Vec<u8>,
    },
}

/// What a request is about, as it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// A VM.
    Vm {
        /// Which.
        uid: VmId,
        /// Its etag.
        etag: String,
    },
    /// A virtual function's lease.
    Lease {
        /// Which.
        address: Bdf,
        /// Its generation.
        generation: u64,
    },
}
