//! virtio-balloon: memory that the guest does without, given back to the host (VIRTIO 1.3 §5.5). Key type: [`Balloon`].
//!
//! ```text
//!   host: keep 128 MiB ─▶ num_pages ─▶ driver ── page numbers ──▶ inflate ─▶ removed from the file of guest memory
//!                                      driver ── page numbers ──▶ deflate      (a page comes back when it is touched)
//!                                      driver ── free ranges ───▶ reporting ─▶ removed, and not held
//!                                      driver ── one buffer ────▶ statistics   kept, and given back to ask for the next
//! ```
//! Parts: `pages` (numbers to runs of pages, pure), `statistics` (the guest's account of its memory), `device` (rings).
//! Whether a page is removed is not decided here but by `sys::reclaim`, which knows of devices of the host: then the balloon
//! is as large as ever for the guest, and what was left alone is counted.
//!
//! What a guest inflates, deflates or reports can be any page of its own, more than once, or one that holds a ring: it
//! then reads zeroes, and that is all. A request is worked on for so many pages, and a call for so many bytes.

mod device;
mod pages;
mod statistics;
#[cfg(test)]
mod tests;

pub use device::Balloon;
