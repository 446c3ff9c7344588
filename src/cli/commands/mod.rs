//! One file per group of commands: complete names, call, show.

pub(crate) mod apply;
pub(crate) mod author;
pub(crate) mod certs;
pub(crate) mod console;
pub(crate) mod decision;
pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod events;
mod follow;
pub(crate) mod host;
pub(crate) mod jail;
mod line;
pub(crate) mod man;
pub(crate) mod operation;
pub(crate) mod plugin;
pub(crate) mod power;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod sign;
mod spec;
pub(crate) mod stats;
pub(crate) mod tenant;
pub(crate) mod top;
pub(crate) mod tune;
pub(crate) mod vm;
pub(crate) mod wait;
pub(crate) mod watch;
