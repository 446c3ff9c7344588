//! A VM's line: the console call, the keyboard (or pipe) that types into it, and the window that shows it. Key types:
//! [`Line`], [`InputEnd`].

use std::io::{self, Read};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::api::v1::{ConsoleRequest, ConsoleResponse, WindowSize};

use super::super::client::Client;
use super::super::terminal::{Escape, Screen, escape};

/// Bytes of input per request.
const CHUNK_LEN: usize = 4096;
/// Requests under way; a pipe waits when the guest does not read.
const MAX_REQUESTS: usize = 16;

/// Where input goes.
pub(super) type Requests = mpsc::Sender<ConsoleRequest>;

/// An open console. The call's request side stays open as long as this, also when the input is over.
#[derive(Debug)]
pub(super) struct Line {
    /// Takes what is typed.
    pub(super) requests: Requests,
    /// Gives what is kept of the past, then what the guest prints.
    pub(super) output: Streaming<ConsoleResponse>,
}

impl Line {
    /// Opens the console of the VM of this full name.
    pub(super) async fn open(client: &mut Client, name: &str) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(MAX_REQUESTS);
        // The channel is empty: this cannot wait.
        let _ = requests.send(ConsoleRequest { name: name.to_owned(), ..Default::default() }).await;
        let output = client.vms.console(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, output })
    }
}

/// Why no more input comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The file or pipe is over.
    Eof,
    /// The user pressed the escape key.
    Detached,
}

/// Tells whatever line there is how large the terminal is: each new one, and each time that it changes.
pub(super) async fn follow_window(mut line: watch::Receiver<Requests>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        let requests = line.borrow_and_update().clone();
        let window = Screen::window().map(|(rows, columns)| WindowSize { columns: columns.into(), rows: rows.into() });
        if window.is_some() {
            // A line that has ended is followed by another.
            let _ = requests.send(ConsoleRequest { window, ..Default::default() }).await;
        }
        tokio::select! {
            _ = changed.recv() => {}
            next = line.changed() => if next.is_err() { return },
        }
    }
}

/// Passes stdin on from a thread of its own (reading it cannot be cancelled; the thread ends with the process) to whatever
/// line there is at the time. What is typed while there is none is lost, as on a wire.
pub(super) fn read_input(line: watch::Receiver<Requests>, is_keyboard: bool) -> oneshot::Receiver<InputEnd> {
    let (report, end) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; CHUNK_LEN];
        let end = loop {
            let len = match io::stdin().read(&mut buffer) {
                Ok(0) => break InputEnd::Eof,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break InputEnd::Eof,
            };
            let (typed, end) = match escape(&buffer[..len], is_keyboard) {
                Escape::Typed(typed) => (typed, None),
                Escape::Detach(typed) => (typed, Some(InputEnd::Detached)),
            };
            if !typed.is_empty() {
                let requests = line.borrow().clone();
                let _ = requests.blocking_send(ConsoleRequest { input: typed.to_vec(), ..Default::default() });
            }
            if let Some(end) = end {
                break end;
            }
        };
        // The console may have ended first.
        let _ = report.send(end);
    });
    end
}
