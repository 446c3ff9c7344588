//! `ostler vm run`: a VM for as long as its console is attended. Registers, starts and attaches; at the end, whatever ends
//! it, the VM is stopped and destroyed.
//!
//! ```text
//!   register ─▶ start ─▶ console and watch ─▶ stop ─▶ destroy
//!      │          │          │ power-off, fault, Ctrl-], signal, --timeout, error
//!      ▼          └──────────┴──────▶ the rest of the way, unless --rm never; a further signal: by force, at once
//!   nothing to undo
//! ```
//! How the guest ended comes from the watch, which is opened before there is a VM: the end of a console tells nothing.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::convert::duration_to_proto;
use crate::api::v1;
use crate::api::v1::virtual_machine::State;

use super::super::args::{Output, Removal, RunArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::signals::Signals;
use super::super::splice::Splice;
use super::super::terminal::RawMode;
use super::super::view::{VmView, json, short};
use super::super::{print, show, show_bytes};
use super::follow::Changes;
use super::line::{InputEnd, Line, Requests, follow_window, read_input};
use super::spec::spec;
use super::vm::{QUICK, START, STOP_MARGIN};

/// How long a console that ended stays closed before it is opened anew.
const PAUSE: Duration = Duration::from_millis(100);
/// When what is kept of a console counts as complete, or a guest that ended has nothing more to print.
const QUIET: Duration = Duration::from_millis(500);

/// How attending a VM ended.
#[derive(Debug)]
enum End {
    /// The guest powered off.
    PoweredOff,
    /// A fault ended the run: the VM with its cause.
    Failed(String),
    /// Somebody else destroyed the VM.
    Destroyed,
    /// Ctrl-], or nobody reads the output any more.
    Left,
    /// A signal.
    Signal(Exit),
    /// `--timeout` is over.
    TimedOut(Duration),
}

pub(crate) async fn run(mut client: Client, arguments: RunArgs) -> Result<(), Failure> {
    let made_up = || format!("run-{:.8}", Uuid::new_v4().simple());
    let vm = client.caller.vm(&arguments.name.unwrap_or_else(made_up))?;
    let (parent, name) = (format!("tenants/{}", vm.tenant), vm.to_string());
    let shown = short(&name);
    let mut signals = Signals::take()?;
    let changes = Changes::open(&client, parent, String::new()).await?;
    let vm = v1::VirtualMachine { name: name.clone(), spec: Some(spec(arguments.spec)?), ..Default::default() };
    let request_id = Uuid::new_v4().to_string();
    let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), request_id, validate_only: false };
    let call = client.vms.register_virtual_machine(within(QUICK, request));
    patiently(format_args!("registering {shown}"), call).await?;
    if arguments.detach {
        return detached(&mut client, &name).await;
    }
    let attended = match arguments.timeout {
        None => attend(&mut client, &name, changes, &mut signals).await,
        Some(limit) => tokio::time::timeout(limit, attend(&mut client, &name, changes, &mut signals))
            .await
            .unwrap_or(Ok(End::TimedOut(limit))),
    };
    let removed = match (arguments.rm, &attended) {
        (Removal::Never, _) | (_, Ok(End::Destroyed)) => Ok(()),
        (Removal::Always, end) => {
            let has_ended = matches!(end, Ok(End::PoweredOff | End::Failed(_)));
            remove(&mut client, &name, arguments.grace, has_ended, &mut signals).await
        }
    };
    let outcome = attended.and_then(|end| outcome(end, &shown));
    match (outcome, removed) {
        (Err(mut failure), Err(removal)) => {
            failure.facts.push(("left behind".to_owned(), removal.message));
            failure.hint = removal.hint;
            Err(failure)
        }
        (outcome, removed) => outcome.and(removed),
    }
}

/// Starts the VM and leaves it alone: one that does not start is kept too, for its console.
async fn detached(client: &mut Client, name: &str) -> Result<(), Failure> {
    let shown = short(name);
    let hint = || format!("ostler vm console {shown} shows what it printed, ostler vm destroy {shown} forgets it");
    let vm = start(client, name).await.map_err(|failure| failure.hint_for(Exit::Refused, hint))?;
    match client.output {
        Output::Table => show(&format!("{shown}\n")),
        Output::Json => show(&json(&VmView::from(vm), false)?),
    }
}

async fn start(client: &mut Client, name: &str) -> Result<v1::VirtualMachine, Failure> {
    let request_id = Uuid::new_v4().to_string();
    let request = v1::StartVirtualMachineRequest { name: name.to_owned(), request_id, ..Default::default() };
    let call = client.vms.start_virtual_machine(within(START, request));
    patiently(format_args!("starting {}", short(name)), call).await
}

/// Starts the VM and shows its console until something ends that.
async fn attend(client: &mut Client, name: &str, changes: Changes, signals: &mut Signals) -> Result<End, Failure> {
    tokio::select! {
        started = start(client, name) => started.map(drop)?,
        exit = signals.next() => return Ok(End::Signal(exit)),
    }
    let raw = RawMode::enter().map_err(|error| Failure::local("cannot prepare the terminal", &error))?;
    let is_keyboard = raw.is_some();
    if is_keyboard {
        eprint!("[attached to {}, Ctrl-] ends it]\r\n", print::clean(&short(name)));
    }
    let session = Session { client, name, changes, splice: Splice::default(), line: None, is_running: true };
    let end = session.converse(is_keyboard, signals).await;
    drop(raw);
    if is_keyboard {
        eprintln!();
    }
    end
}

/// A console that outlives the guest's resets and the daemon's restarts.
struct Session<'a> {
    client: &'a mut Client,
    name: &'a str,
    changes: Changes,
    splice: Splice,
    line: Option<Line>,
    is_running: bool,
}

impl Session<'_> {
    async fn converse(mut self, is_keyboard: bool, signals: &mut Signals) -> Result<End, Failure> {
        let first = Line::open(self.client, self.name).await?;
        let (keyboard, to) = watch::channel(first.requests.clone());
        self.line = Some(first);
        if is_keyboard {
            tokio::spawn(follow_window(to.clone()));
        }
        let mut input_end = std::pin::pin!(read_input(to, is_keyboard));
        let mut is_input_over = false;
        // What the watch said of the guest's end; what it printed before comes first.
        let mut end = None;
        let mut quiet_since = Instant::now();
        loop {
            if self.line.is_none() && end.is_some() {
                return Ok(end.unwrap_or(End::Left));
            }
            let is_quiet = tokio::time::sleep_until(quiet_since + QUIET);
            tokio::select! {
                output = next_output(&mut self.line) => {
                    quiet_since = Instant::now();
                    let output = match output {
                        Some(output) => self.splice.take(&output),
                        None => {
                            self.line = None;
                            self.splice.settle()
                        }
                    };
                    if !show_bytes(&output)? {
                        return Ok(End::Left);
                    }
                }
                message = self.changes.next() => {
                    end = self.hear(message?).or(end);
                    quiet_since = Instant::now();
                }
                typed = &mut input_end, if !is_input_over => {
                    is_input_over = true;
                    if typed == Ok(InputEnd::Detached) {
                        return Ok(End::Left);
                    }
                }
                exit = signals.next() => return Ok(End::Signal(exit)),
                () = tokio::time::sleep(PAUSE), if self.line.is_none() && self.is_running => self.reopen(&keyboard).await,
                () = is_quiet, if self.splice.is_unsettled() || end.is_some() => {
                    if !show_bytes(&self.splice.settle())? {
                        return Ok(End::Left);
                    }
                    if let Some(end) = end {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// What a message of the watch says of the VM's end.
    fn hear(&mut self, message: v1::WatchVirtualMachinesResponse) -> Option<End> {
        let vm = message.virtual_machine.filter(|vm| vm.name == self.name)?;
        self.is_running = matches!(vm.state(), State::Running | State::Paused | State::Stopping);
        match vm.state() {
            State::Stopped => Some(End::PoweredOff),
            State::Failed => Some(End::Failed(VmView::from(vm).state_text())),
            State::Destroyed => Some(End::Destroyed),
            _ => None,
        }
    }

    /// Tries once; the next attempt comes after the next pause.
    async fn reopen(&mut self, keyboard: &watch::Sender<Requests>) {
        if let Ok(line) = Line::open(self.client, self.name).await {
            keyboard.send_replace(line.requests.clone());
            self.splice.reopened();
            self.line = Some(line);
        }
    }
}

/// The next output; `None` once the line is broken. Waits for ever while there is no line.
async fn next_output(line: &mut Option<Line>) -> Option<Vec<u8>> {
    match line {
        None => std::future::pending().await,
        Some(line) => line.output.message().await.ok().flatten().map(|response| response.output),
    }
}

/// Stops the VM unless it has ended, and destroys it; by force once the guest had its time, or at a further signal.
async fn remove(
    client: &mut Client,
    name: &str,
    grace: Duration,
    has_ended: bool,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let shown = short(name);
    if !has_ended {
        let request = v1::StopVirtualMachineRequest {
            name: name.to_owned(),
            grace: Some(duration_to_proto(grace)),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let call = client.vms.stop_virtual_machine(within(grace + STOP_MARGIN, request));
        let stopping = format!("stopping {shown}");
        tokio::select! {
            // Whatever came of it: what follows does not ask the guest.
            _ = patiently(&stopping, call) => {}
            _ = signals.next() => {}
        }
    }
    let request_id = Uuid::new_v4().to_string();
    let name = name.to_owned();
    let request = v1::DestroyVirtualMachineRequest { name, force: true, request_id, ..Default::default() };
    let call = client.vms.destroy_virtual_machine(within(QUICK, request));
    match patiently(format_args!("destroying {shown}"), call).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.exit == Exit::NotFound => Ok(()),
        Err(failure) => Err(failure.hint(format!("{shown} may be left: ostler vm destroy {shown} --force"))),
    }
}

/// What the command comes to.
fn outcome(end: End, shown: &str) -> Result<(), Failure> {
    let failure = |exit, message| Err(Failure::new(exit, message));
    match end {
        End::PoweredOff | End::Left => Ok(()),
        End::Failed(state) => failure(Exit::GuestFailed, format!("{shown} is {state}")),
        End::Destroyed => failure(Exit::NotFound, format!("{shown} was destroyed by somebody else")),
        End::Signal(exit) => failure(exit, format!("a signal ended {shown}")),
        End::TimedOut(limit) => {
            failure(Exit::TimedOut, format!("{shown} did not end within {}", print::duration(limit)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_how_the_guest_ended() {
        let exit = |end| outcome(end, "acme/web").map_err(|failure| (failure.exit as u8, failure.message));
        assert_eq!(exit(End::PoweredOff), Ok(()));
        assert_eq!(exit(End::Left), Ok(()));
        let failed = exit(End::Failed("FAILED (guest kernel panicked)".into()));
        assert_eq!(failed, Err((9, "acme/web is FAILED (guest kernel panicked)".into())));
        assert_eq!(exit(End::Signal(Exit::Terminated)).unwrap_err().0, 143);
        assert_eq!(exit(End::TimedOut(Duration::from_secs(3))).unwrap_err().0, 7);
        assert_eq!(exit(End::Destroyed).unwrap_err().0, 4);
    }
}
