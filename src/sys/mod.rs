//! Safe wrappers of Linux calls, mostly thin over `rustix`. Imports nothing of the project.
//!
//! One of the few folders where `unsafe` may stand (see `tests/tidy.rs`).

#[cfg(test)]
pub mod absence;
#[cfg(feature = "node")]
pub mod artefact;
#[cfg(feature = "node")]
pub mod background;
pub mod beneath;
pub mod cgroup;
#[cfg(feature = "node")]
pub mod confinement;
pub mod counter_page;
pub mod devlink;
pub mod disk_ring;
#[cfg(feature = "node")]
pub mod end_code;
#[cfg(feature = "node")]
pub mod filters;
pub mod guest_buffers;
pub mod guest_ram;
pub mod heap;
pub mod host_use;
pub mod hugepages;
pub mod image;
pub mod inherit;
pub mod kernel_log;
pub mod kick;
pub mod lane;
pub mod memory_use;
pub mod namespaces;
pub mod numa;
pub mod nvme;
pub mod packet;
pub mod proc_text;
pub mod process;
#[cfg(feature = "node")]
pub mod program;
pub mod reclaim;
pub mod rtnl;
pub mod sealed;
pub mod spawn;
pub mod tap;
pub mod vfio;
pub mod vhost_net;
