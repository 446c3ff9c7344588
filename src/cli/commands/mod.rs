//! One file per group of commands: complete names, call, show.

pub(crate) mod certs;
pub(crate) mod console;
pub(crate) mod host;
pub(crate) mod jail;
pub(crate) mod plugin;
pub(crate) mod tenant;
pub(crate) mod vm;
pub(crate) mod watch;
