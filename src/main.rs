//! Picks the role and nothing else.

use std::io::IsTerminal;
use std::process::ExitCode;

use ostler::cli::{self, Invocation, ServeArgs};
use ostler::daemon::{self, JailConfig, ServeConfig};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Before anything else: it starts with as little as can be.
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(ostler::daemon::policy::COMPILER_ROLE) => return ostler::daemon::policy::compile(arguments),
        Some(ostler::daemon::policy::HOST_ROLE) => return ostler::daemon::policy::serve_host(),
        _ => {}
    }
    match cli::parse() {
        Invocation::Serve(arguments) => serve(arguments),
        Invocation::Client(command) => cli::run(command),
    }
}

fn serve(arguments: ServeArgs) -> ExitCode {
    let filter = EnvFilter::try_from_env("OSTLER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr).init();
    daemon::prepare_process();
    let outcome = serve_config(arguments).and_then(|config| {
        cli::block_on(daemon::serve(config)).map_err(|error| chain(&error))?.map_err(|error| chain(&error))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_config(arguments: ServeArgs) -> Result<ServeConfig, String> {
    let network = arguments.network.parse().map_err(|error| format!("--network {}: {error}", arguments.network))?;
    let certificates = arguments.certs_dir.unwrap_or_else(|| arguments.data_dir.join("certs"));
    Ok(ServeConfig {
        listen: arguments.listen,
        run_dir: arguments.run_dir,
        images_dir: arguments.images_dir,
        volumes_dir: arguments.volumes_dir,
        certificate: Some(certificates.join("server.pem")),
        key: Some(certificates.join("server.key")),
        client_ca: Some(certificates.join("ca.pem")),
        client_crl: Some(certificates.join("crl.pem")),
        network,
        trust_domain: arguments.trust_domain,
        vmm: arguments.vmm,
        metrics: arguments.metrics,
        has_public_metrics: arguments.metrics_public,
        data_dir: arguments.data_dir,
        jail: (!arguments.no_jail).then_some(JailConfig { cgroup: arguments.cgroup, first_user: arguments.first_user }),
    })
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
