//! `ostler certs`: certificates for development.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CERTS_DIR;

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make a development CA and certificates; what exists already is kept
    Init(CertsInitArgs),
    /// Revoke certificates of the development CA: adds them to crl.pem, which a daemon follows
    Revoke(CertsRevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CertsRevokeArgs {
    /// Certificates to revoke, such as tenant-acme.pem; none: the list is only renewed
    #[arg(value_name = "FILE")]
    pub(crate) certificates: Vec<PathBuf>,
    /// Directory of ca.pem, ca.key and crl.pem
    #[arg(long, default_value = CERTS_DIR)]
    pub(crate) dir: PathBuf,
    /// Days until the list expires: from then on the daemon refuses everybody, until it is renewed
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CertsInitArgs {
    /// Directory for ca.pem, server.pem, operator-NAME.pem, tenant-NAME.pem and their keys
    #[arg(long, default_value = CERTS_DIR)]
    pub(crate) dir: PathBuf,
    /// A tenant to make a certificate for (may be repeated)
    #[arg(long = "tenant", value_name = "TENANT")]
    pub(crate) tenants: Vec<String>,
    /// An operator to make a certificate for (may be repeated)
    #[arg(long = "operator", value_name = "NAME", default_value = "admin")]
    pub(crate) operators: Vec<String>,
    /// Host name or address of the daemon, beside localhost (may be repeated)
    #[arg(long = "server-name", value_name = "NAME")]
    pub(crate) server_names: Vec<String>,
    /// Days until new certificates expire
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}
