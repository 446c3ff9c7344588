//! `ostler plugin new|build|inspect|check|run|test|bench|fuel|fixture|push`: for who writes plugins.
//!
//! The one place where a client runs the daemon's own code: the policy host and the compiler are started as the daemon
//! starts them, with the same limits, so that what holds here holds there. A plugin runs in their processes, not in this.

mod bench;
mod build;
mod differ;
mod fixture;
mod fuel;
mod load;
mod new;
mod push;
mod run;
mod suite;

use super::super::args::{AuthorCommand, GlobalArgs};
use super::super::client::Client;
use super::super::failure::Failure;

/// Runs the command.
pub(crate) async fn author(command: AuthorCommand, global: &GlobalArgs) -> Result<(), Failure> {
    let output = global.output;
    match command {
        AuthorCommand::New(arguments) => new::new(&arguments),
        AuthorCommand::Build(arguments) => build::build(&arguments),
        AuthorCommand::Inspect(arguments) => load::inspect(&arguments.file, output),
        AuthorCommand::Check(arguments) => load::check(arguments, output).await,
        AuthorCommand::Run(arguments) => run::run(arguments, output).await,
        AuthorCommand::Test(arguments) => suite::test(&arguments, output).await,
        AuthorCommand::Bench(arguments) => bench::bench(arguments, output).await,
        AuthorCommand::Fuel(arguments) => fuel::fuel(&arguments, output).await,
        AuthorCommand::Push(arguments) => push::push(arguments, global).await,
        AuthorCommand::Fixture(arguments) => match arguments.file.clone() {
            Some(file) => fixture::from_file(&file, &arguments),
            None => fixture::from_daemon(Client::connect(global).await?, &arguments).await,
        },
    }
}
