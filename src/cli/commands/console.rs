//! `ostler vm console`: the user's terminal, or a pipe, on a VM's console.
//!
//! ```text
//!   stdin ──thread──▶ requests ──gRPC──▶ guest        ends: Ctrl-] | --until seen | --timeout | input over and quiet
//!   stdout ◀──────── responses ◀──────── guest              | signal | the VM's end
//! ```

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::api::v1::ConsoleResponse;

use super::super::args::ConsoleArgs;
use super::super::client::Client;
use super::super::failure::{Exit, Failure};
use super::super::terminal::RawMode;
use super::super::view::short;
use super::super::{print, show_bytes};
use super::line::{InputEnd, Line, follow_window, read_input};

pub(crate) async fn console(mut client: Client, arguments: ConsoleArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    // Held to the end, so that the call's request side stays open after the input is over.
    let line = Line::open(&mut client, &name).await;
    let Line { requests, mut output } = line.map_err(|status| Failure::from(status).about(&shown))?;
    let (_held, line) = watch::channel(requests);

    let raw = RawMode::enter().map_err(|error| Failure::local("cannot prepare the terminal", &error))?;
    let is_keyboard = raw.is_some();
    if is_keyboard {
        eprint!("[attached to {}, Ctrl-] detaches]\r\n", print::clean(&shown));
    }
    if is_keyboard {
        tokio::spawn(follow_window(line.clone()));
    }
    let input_end = read_input(line, is_keyboard);
    let end = converse(&mut output, input_end, &arguments, is_keyboard).await;
    drop(raw);
    if is_keyboard {
        eprintln!("\n[detached from {}]", print::clean(&shown));
    }
    let hint = || format!("start it with ostler vm start {shown}");
    end.map_err(|failure| failure.about(&shown).hint_for(Exit::WrongState, hint))
}

/// Shows output until something ends the session.
async fn converse(
    output: &mut tonic::Streaming<ConsoleResponse>,
    input_end: oneshot::Receiver<InputEnd>,
    arguments: &ConsoleArgs,
    is_keyboard: bool,
) -> Result<(), Failure> {
    let mut wanted = arguments.until.as_deref().map(Search::new);
    let begin = Instant::now();
    let mut last_output = begin;
    let mut is_input_over = false;
    let mut input_end = std::pin::pin!(input_end);
    let mut stop = std::pin::pin!(stop_signal(is_keyboard));
    loop {
        let quiet = last_output + arguments.linger;
        tokio::select! {
            response = output.message() => {
                let Some(response) = response? else { return at_end(wanted.as_ref()) };
                if !show_bytes(&response.output)? {
                    return Ok(());
                }
                last_output = Instant::now();
                if wanted.as_mut().is_some_and(|wanted| wanted.is_found_in(&response.output)) {
                    return Ok(());
                }
            }
            end = &mut input_end, if !is_input_over => {
                if end == Ok(InputEnd::Detached) {
                    return Ok(());
                }
                is_input_over = true;
                last_output = Instant::now();
            }
            () = tokio::time::sleep_until(quiet), if is_input_over && wanted.is_none() => return Ok(()),
            () = timeout(begin, arguments.timeout) => return at_timeout(wanted.as_ref(), arguments.timeout),
            () = &mut stop => return Ok(()),
        }
    }
}

/// Signals that would end the process with the terminal still raw.
async fn stop_signal(is_keyboard: bool) {
    if !is_keyboard {
        return std::future::pending().await;
    }
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

async fn timeout(begin: Instant, limit: Option<Duration>) {
    match limit.and_then(|limit| begin.checked_add(limit)) {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn at_end(wanted: Option<&Search>) -> Result<(), Failure> {
    match wanted {
        None => Ok(()),
        Some(wanted) => {
            Err(Failure::new(Exit::Refused, format!("the console ended before it printed {:?}", wanted.text())))
        }
    }
}

fn at_timeout(wanted: Option<&Search>, limit: Option<Duration>) -> Result<(), Failure> {
    match wanted {
        None => Ok(()),
        Some(wanted) => {
            let limit = print::duration(limit.unwrap_or_default());
            Err(Failure::new(Exit::TimedOut, format!("the console did not print {:?} within {limit}", wanted.text())))
        }
    }
}

/// Looks for a text in a stream that comes in pieces.
#[derive(Debug)]
struct Search {
    text: Vec<u8>,
    /// The last bytes seen, fewer than the text has.
    tail: Vec<u8>,
}

impl Search {
    fn new(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), tail: Vec::new() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    fn is_found_in(&mut self, piece: &[u8]) -> bool {
        if self.text.is_empty() {
            return true;
        }
        self.tail.extend_from_slice(piece);
        if self.tail.windows(self.text.len()).any(|window| window == self.text) {
            return true;
        }
        let keep = self.tail.len().min(self.text.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wait_that_is_not_fulfilled_is_a_failure_a_plain_session_is_not() {
        let wanted = Search::new("ready");
        assert!(at_end(None).is_ok() && at_timeout(None, None).is_ok());
        assert_eq!(at_end(Some(&wanted)).unwrap_err().exit, Exit::Refused);
        let late = at_timeout(Some(&wanted), Some(Duration::from_secs(3))).unwrap_err();
        assert_eq!(
            (late.exit, late.message.as_str()),
            (Exit::TimedOut, "the console did not print \"ready\" within 3.0 s")
        );
    }

    proptest! {
        #[test]
        fn finds_a_text_however_the_stream_is_cut(
            text in "[ab]{1,4}",
            pieces in prop::collection::vec("[ab]{0,3}", 0..8),
        ) {
            let mut search = Search::new(&text);
            let mut seen = String::new();
            for piece in &pieces {
                seen.push_str(piece);
                let is_found = search.is_found_in(piece.as_bytes());
                prop_assert_eq!(is_found, seen.contains(&text));
                if is_found {
                    break;
                }
            }
        }
    }
}
