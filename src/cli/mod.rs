//! The command line: arguments, client calls, printing. Doors: [`parse`], [`run`], [`block_on`].
//!
//! `main.rs` calls [`parse`] unless the process is a vmm, and hands a `serve` over to the daemon. Everything else is a
//! client of the public API, like any other program with a certificate: it imports `api` and `model` only. One group of
//! commands is for plugins' authors, and runs the daemon's policy host here (`commands/author`).
//!
//! ```text
//!   args (what may be written) ──▶ commands (one file per group) ──▶ client ──gRPC/mTLS──▶ daemon
//!     └ units, condition (values)     ├ view, print (what is shown)     └ identity (certificate, names)
//!                                     └ failure (what went wrong, what to do, exit code)
//! ```

mod args;
mod client;
mod commands;
mod condition;
mod failure;
mod identity;
mod print;
mod signals;
mod splice;
mod terminal;
mod units;
mod view;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{
    Arguments, CertsCommand, Command, DecisionCommand, DecisionVerifyArgs, GlobalArgs, HostCommand, NvmeCommand,
    OperationCommand, PluginCommand, TenantCommand, VmCommand,
};
use client::Client;
use failure::{Exit, Failure};

pub use args::ServeArgs;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To be the node's daemon.
    Serve(ServeArgs),
    /// To be a client.
    Client(ClientCommand),
}

/// A client's command, ready to [`run`].
#[derive(Debug)]
pub struct ClientCommand(Arguments);

/// Reads the process's arguments. Help, version and usage errors are printed and end the process (codes 0 and 2).
pub fn parse() -> Invocation {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Serve(serve) => Invocation::Serve(serve),
        _ => Invocation::Client(ClientCommand(arguments)),
    }
}

/// Runs a client's command to its end and gives the exit code; a failure is printed on stderr.
pub fn run(command: ClientCommand) -> ExitCode {
    let done = match single_threaded() {
        Ok(runtime) => runtime.block_on(dispatch(command.0)),
        Err(error) => Err(Failure::local("cannot start", &error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell when stderr is gone too.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Runs the daemon's future on a runtime with a thread per CPU; the error is the runtime's own.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future))
}

fn single_threaded() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    let global = arguments.global;
    let client = || Client::connect(&global);
    match arguments.command {
        Command::Certs(CertsCommand::Init(init)) => commands::certs::init(&init, global.output),
        Command::Certs(CertsCommand::Revoke(revoke)) => commands::certs::revoke(&revoke, global.output),
        Command::ExitCodes => show(&args::after_help()),
        Command::Man { out } => commands::man::write(&out, global.output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ostler", &mut script);
            show(&String::from_utf8_lossy(&script))
        }
        Command::Vm(vm) => on_vms(vm, &global).await,
        Command::Apply(apply) => commands::apply::apply(client().await?, apply).await,
        Command::Top(top) => commands::top::top(client().await?, top).await,
        Command::Events(events) => commands::events::events(client().await?, events).await,
        Command::Plugin(PluginCommand::Load(load)) => {
            let upload = commands::plugin::Upload::prepare(load)?;
            commands::plugin::load(client().await?, upload).await
        }
        Command::Plugin(PluginCommand::Sign(sign)) => commands::sign::sign(&sign, global.output),
        Command::Plugin(PluginCommand::Keygen(keygen)) => commands::sign::keygen(&keygen, global.output),
        Command::Plugin(PluginCommand::Rollback(rollback)) => {
            commands::plugin::roll_back(client().await?, rollback).await
        }
        Command::Plugin(PluginCommand::Alias(alias)) => commands::alias::alias(client().await?, alias).await,
        Command::Plugin(PluginCommand::Promote(promote)) => commands::plugin::promote(client().await?, promote).await,
        Command::Plugin(PluginCommand::Demote(demote)) => commands::plugin::demote(client().await?, demote).await,
        Command::Plugin(PluginCommand::Unload(unload)) => commands::plugin::unload(client().await?, unload).await,
        Command::Plugin(PluginCommand::Kv(kv)) => commands::plugin::kv(client().await?, kv).await,
        Command::Plugin(PluginCommand::Replay(replay)) => commands::replay::replay(client().await?, replay).await,
        Command::Plugin(PluginCommand::Author(author)) => commands::author::author(author, &global).await,
        Command::Plugin(PluginCommand::List(list)) => commands::plugin::list(client().await?, list).await,
        Command::Decision(decision) => match decision {
            DecisionCommand::List(list) => commands::decision::list(client().await?, list).await,
            DecisionCommand::Get(get) => commands::decision::get(client().await?, &get.name).await,
            DecisionCommand::Explain(explain) => commands::decision::explain(client().await?, &explain.name).await,
            DecisionCommand::Verify(DecisionVerifyArgs { file: Some(file), .. }) => {
                commands::decision::verify_file(&file, global.output)
            }
            DecisionCommand::Verify(verify) => commands::decision::verify(client().await?, verify).await,
            DecisionCommand::Export(export) => commands::decision::export(client().await?, export).await,
        },
        Command::Tenant(TenantCommand::Get(get)) => commands::tenant::get(client().await?, get).await,
        Command::Tenant(TenantCommand::List) => commands::tenant::list(client().await?).await,
        Command::Operation(operation) => match operation {
            OperationCommand::List(list) => commands::operation::list(client().await?, list).await,
            OperationCommand::Get(get) => commands::operation::get(client().await?, get).await,
            OperationCommand::Wait(wait) => commands::operation::wait(client().await?, wait).await,
            OperationCommand::Cancel(cancel) => commands::operation::cancel(client().await?, cancel).await,
        },
        Command::Host(HostCommand::Devices) => commands::host::devices(client().await?).await,
        Command::Host(HostCommand::Release(release)) => commands::host::release(client().await?, release).await,
        Command::Host(HostCommand::Nvme(NvmeCommand::Provision(provision))) => {
            commands::host::provision(client().await?, provision).await
        }
        Command::Doctor(doctor) => commands::doctor::doctor(client().await?, doctor).await,
        Command::Serve(_) => Err(Failure::new(Exit::Usage, "serve is not a client's command")),
    }
}

/// `ostler vm …`.
async fn on_vms(command: VmCommand, global: &GlobalArgs) -> Result<(), Failure> {
    let client = || Client::connect(global);
    match command {
        VmCommand::Register(register) => commands::vm::register(client().await?, register).await,
        VmCommand::Run(run) => commands::run::run(client().await?, run).await,
        VmCommand::Start(start) => commands::vm::start(client().await?, start).await,
        VmCommand::Stop(stop) => commands::vm::stop(client().await?, stop).await,
        VmCommand::Reboot(reboot) => commands::power::reboot(client().await?, reboot).await,
        VmCommand::Pause(pause) => commands::power::pause(client().await?, pause).await,
        VmCommand::Resume(resume) => commands::power::resume(client().await?, resume).await,
        VmCommand::PowerButton(button) => commands::power::press_button(client().await?, button).await,
        VmCommand::Nmi(nmi) => commands::power::nmi(client().await?, nmi).await,
        VmCommand::Destroy(destroy) => commands::vm::destroy(client().await?, destroy).await,
        VmCommand::Get(get) => commands::vm::get(client().await?, &get.name).await,
        VmCommand::ResizeDisk(resize) => commands::tune::resize(client().await?, resize).await,
        VmCommand::Limit(limit) => commands::tune::limit(client().await?, limit).await,
        VmCommand::Balloon(balloon) => commands::tune::balloon(client().await?, balloon).await,
        VmCommand::Stats(stats) => commands::stats::stats(client().await?, stats).await,
        VmCommand::InspectJail(inspect) => commands::jail::inspect(client().await?, &inspect.name).await,
        VmCommand::List(list) => commands::vm::list(client().await?, list).await,
        VmCommand::Attach(attach) => commands::device::attach(client().await?, attach).await,
        VmCommand::Detach(detach) => commands::device::detach(client().await?, detach).await,
        VmCommand::Watch(watch) => commands::watch::watch(client().await?, watch).await,
        VmCommand::Wait(wait) => commands::wait::wait(client().await?, wait).await,
        VmCommand::Console(console) => commands::console::console(client().await?, console).await,
    }
}

/// Prints a result. A reader that went away (`| head`) is no failure.
fn show(text: &str) -> Result<(), Failure> {
    show_bytes(text.as_bytes()).map(drop)
}

/// Prints a part of a stream; false when the reader went away.
fn show_bytes(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::local("cannot write to stdout", &error)),
    }
}
