//! Lists page by page, filtered and in order. Key types: [`Window`], [`Filter`].
//!
//! ```text
//!   what the caller may see ── Filter ── by name ── from the page token on ──▶ a page, and the token of the next
//! ```
//!
//! A page goes on behind the last name of the one before, whatever was added or removed meanwhile: what is there all the
//! time is seen exactly once.

mod filter;
mod page;

pub(super) use filter::{Field, Filter, Kind, Value};
pub(super) use page::{Query, Window};
