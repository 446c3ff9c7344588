//! `ostler doctor`: whether the node is as the daemon remembers it.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Do away with what can be done away with safely, then look again
    #[arg(long)]
    pub(crate) repair: bool,
    /// A UUID that names this repair: repeated with it, the command gives the first answer and changes nothing
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true, requires = "repair")]
    pub(crate) request_id: String,
}
