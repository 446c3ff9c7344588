//! A guest's console: what it prints, and a shell to ask it. Key type: [`Console`].

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ostler::api::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::client::{Caller, spawn, wait};
use super::wait::{BOOT, SOON};

/// The last bytes of the console that a failed wait shows.
const SHOWN_LEN: usize = 3000;

/// A console that is read in the background.
pub struct Console {
    shared: Arc<Shared>,
    input: mpsc::Sender<v1::ConsoleRequest>,
    /// Bytes that earlier waits have passed.
    cursor: usize,
    /// Numbers the shell's commands, so that each has an end of its own.
    commands: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    output: Vec<u8>,
    end: Option<Result<(), Status>>,
}

impl Console {
    pub fn attach(caller: &Caller, vm: &str) -> Self {
        let (input, requests) = mpsc::channel(16);
        input.try_send(v1::ConsoleRequest { name: caller.name(vm), ..Default::default() }).unwrap();
        let stream = wait(caller.vms.clone().console(ReceiverStream::new(requests)));
        let shared = Arc::new(Shared::default());
        let reader = shared.clone();
        match stream {
            Ok(stream) => spawn(async move {
                let mut stream = stream.into_inner();
                loop {
                    let message = stream.message().await;
                    let mut state = reader.state.lock().unwrap();
                    match message {
                        Ok(Some(response)) => state.output.extend(response.output),
                        Ok(None) => state.end = Some(Ok(())),
                        Err(status) => state.end = Some(Err(status)),
                    }
                    reader.changed.notify_all();
                    if state.end.is_some() {
                        break;
                    }
                }
            }),
            Err(status) => shared.state.lock().unwrap().end = Some(Err(status)),
        }
        Self { shared, input, cursor: 0, commands: 0 }
    }

    /// Waits until the guest has printed `text` after what earlier waits saw; gives everything up to its line's end.
    pub fn expect_within(&mut self, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state.lock().unwrap();
        // No `text` begins before this.
        let mut from = self.cursor;
        loop {
            let found = state.output[from..].windows(text.len()).position(|w| w == text.as_bytes());
            from = found.map_or(state.output.len().saturating_sub(text.len() - 1).max(from), |at| from + at);
            if found.is_some()
                && let Some(line) = state.output[from..].iter().position(|&byte| byte == b'\n')
            {
                let end = from + line + 1;
                let seen = String::from_utf8_lossy(&state.output[self.cursor..end]).into_owned();
                self.cursor = end;
                return seen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.end.is_some() || left.is_zero() {
                let unseen = &state.output[self.cursor..];
                let shown = String::from_utf8_lossy(&unseen[unseen.len().saturating_sub(SHOWN_LEN)..]);
                assert!(state.end.is_none(), "console ended ({:?}) before {text:?}:\n{shown}", state.end);
                panic!("console did not print {text:?} within {limit:?}:\n{shown}");
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits as long as a boot may take.
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_within(text, BOOT)
    }

    /// Waits for the guest's shell.
    pub fn expect_ready(&mut self) -> String {
        self.expect("ostler-guest: ready")
    }

    /// Types a line and does not wait.
    pub fn type_line(&mut self, line: &str) {
        let request = v1::ConsoleRequest { input: format!("{line}\n").into_bytes(), ..Default::default() };
        wait(self.input.send(request)).expect("the console is closed");
    }

    /// Says how large its window is.
    pub fn resize(&self, columns: u32, rows: u32) {
        let request = v1::ConsoleRequest { window: Some(v1::WindowSize { columns, rows }), ..Default::default() };
        wait(self.input.send(request)).expect("the console is closed");
    }

    /// Runs a command in the guest's shell and gives what it printed, its echo included.
    pub fn run(&mut self, command: &str) -> String {
        self.commands += 1;
        let number = 1000 + self.commands;
        // The echo of this line holds "$((", only the output holds the number.
        self.type_line(&format!("{command}; echo end-$(({number}-0))-$?"));
        self.expect_within(&format!("end-{number}-"), BOOT)
    }

    /// Runs a command that prints `key=<number>.`, and gives the number.
    pub fn number(&mut self, key: &str, command: &str) -> u64 {
        let printed = self.run(&format!("echo {key}=$({command})."));
        let find = |part: &str| part.split_once('.').and_then(|(number, _)| number.trim().parse().ok());
        printed.split(&format!("{key}=")).find_map(find).unwrap_or_else(|| panic!("no {key} in {printed:?}"))
    }

    /// Waits for the console's end; gives what it printed and how it ended.
    pub fn end(self) -> (String, Result<(), Status>) {
        let deadline = Instant::now() + SOON;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&state.output).into_owned();
            if let Some(end) = state.end.take() {
                return (text, end);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "console did not end:\n{text}");
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}
