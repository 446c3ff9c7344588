//! `ostler top`: what the host, tenants and VMs take; a live page on a terminal, tables or JSON elsewhere.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use super::super::args::{Output, TopArgs, TopOrder};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::signals::Signals;
use super::super::terminal::Screen;
use super::super::view::json;
use super::super::view::top::{Look, TopView};
use super::super::{print, show_bytes};
use super::vm::{PAGE_LEN, QUICK};
use crate::api::v1;

/// Between two looks at least: what the kernel counts goes up in steps of 10 ms.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Keys that wait to be looked at.
const MAX_KEYS: usize = 16;

/// What is asked for, and of whom.
struct Watcher {
    client: Client,
    parent: String,
    /// Looks are told apart by the time since then.
    begin: Instant,
    /// False once the daemon has said that it is not for this caller.
    sees_host: bool,
}

pub(crate) async fn top(client: Client, arguments: TopArgs) -> Result<(), Failure> {
    if arguments.interval < MIN_INTERVAL {
        let message = format!("--interval is {} at least", print::duration(MIN_INTERVAL));
        return Err(Failure::new(Exit::Usage, message));
    }
    let parent = client.caller.parent(arguments.tenant.as_deref())?.to_string();
    let is_live = arguments.count.is_none() && client.output == Output::Table && io::stdout().is_terminal();
    let mut watcher = Watcher { client, parent, begin: Instant::now(), sees_host: true };
    if is_live {
        return watcher.live(arguments.interval, arguments.sort).await;
    }
    watcher.tables(arguments.interval, arguments.sort, arguments.count.unwrap_or(1)).await
}

impl Watcher {
    /// Prints so many of them, each with the rates of the interval before it.
    async fn tables(&mut self, interval: Duration, order: TopOrder, count: u64) -> Result<(), Failure> {
        let mut before = self.look().await?;
        for number in 0..count {
            tokio::time::sleep(interval).await;
            let after = self.look().await?;
            let view = TopView::between(Some(&before), &after, order);
            let text = match self.client.output {
                Output::Table if number + 1 < count => view.text() + "\n",
                Output::Table => view.text(),
                Output::Json => json(&view, true)?,
            };
            if !show_bytes(text.as_bytes())? {
                return Ok(());
            }
            before = after;
        }
        Ok(())
    }

    /// Draws until a key or a signal ends it. A daemon that does not answer for a while is waited for.
    async fn live(&mut self, interval: Duration, mut order: TopOrder) -> Result<(), Failure> {
        let mut signals = Signals::take()?;
        // The first one fails as any command does, before the page hides it.
        let mut looks = (None, self.look().await?);
        let failed = |error: io::Error| Failure::local("cannot use the terminal", &error);
        let screen = Screen::enter().map_err(failed)?;
        let mut keys = screen.has_keyboard().then(keyboard);
        let mut trouble = None;
        let mut next = Instant::now() + interval;
        loop {
            let (before, after) = &looks;
            let view = TopView::between(before.as_ref(), after, order);
            screen.draw(&page(&view, order, trouble.as_deref())).map_err(failed)?;
            tokio::select! {
                _ending = signals.next() => return Ok(()),
                key = pressed(&mut keys) => match action(key) {
                    Action::Leave => return Ok(()),
                    Action::Order(wanted) => order = wanted,
                    Action::Nothing => {}
                },
                () = tokio::time::sleep_until(next) => {
                    next = Instant::now() + interval;
                    match self.look().await {
                        Ok(look) => {
                            looks = (Some(looks.1), look);
                            trouble = None;
                        }
                        Err(failure) if failure.exit == Exit::Unreachable => trouble = Some(failure.message),
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
    }

    async fn look(&mut self) -> Result<Look, Failure> {
        let host = self.host().await?;
        let mut request = v1::ListVirtualMachineUsagesRequest {
            parent: self.parent.clone(),
            page_size: PAGE_LEN,
            ..Default::default()
        };
        let mut vms = Vec::new();
        loop {
            let call = self.client.vms.list_virtual_machine_usages(within(QUICK, request.clone()));
            let page = patiently("asking", call).await?;
            vms.extend(page.usages);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        Ok(Look { at: self.begin.elapsed(), time, host, vms })
    }

    async fn host(&mut self) -> Result<Option<v1::HostUsage>, Failure> {
        if !self.sees_host {
            return Ok(None);
        }
        match self.client.host.get_host_usage(within(QUICK, v1::GetHostUsageRequest {})).await {
            Ok(usage) => Ok(Some(usage.into_inner())),
            Err(status) if status.code() == Code::PermissionDenied => {
                self.sees_host = false;
                Ok(None)
            }
            Err(status) => Err(status.into()),
        }
    }
}

/// What a key means.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Leave,
    Order(TopOrder),
    Nothing,
}

fn action(key: Option<u8>) -> Action {
    match key {
        // The keyboard is gone, Ctrl-C, Ctrl-D.
        None | Some(b'q' | b'Q' | 0x03 | 0x04) => Action::Leave,
        Some(b'c') => Action::Order(TopOrder::Cpu),
        Some(b'm') => Action::Order(TopOrder::Memory),
        Some(b'd') => Action::Order(TopOrder::Disk),
        Some(b'n') => Action::Order(TopOrder::Net),
        Some(b'a') => Action::Order(TopOrder::Name),
        Some(_) => Action::Nothing,
    }
}

/// The page with its first line: what can be pressed, or what is wrong.
fn page(view: &TopView, order: TopOrder, trouble: Option<&str>) -> String {
    let first = match trouble {
        Some(trouble) => format!("{}; trying again", print::clean(trouble).replace('\n', " ")),
        None => {
            let word = match order {
                TopOrder::Cpu => "cpu",
                TopOrder::Memory => "memory",
                TopOrder::Disk => "disk",
                TopOrder::Net => "net",
                TopOrder::Name => "name",
            };
            format!("by {word}   c cpu  m memory  d disk  n net  a name  q quit")
        }
    };
    format!("{first}\n{}", view.text())
}

/// Keys, from a thread of its own: reading them cannot be cancelled. It ends with the process.
fn keyboard() -> mpsc::Receiver<u8> {
    let (sender, keys) = mpsc::channel(MAX_KEYS);
    std::thread::spawn(move || {
        let mut key = [0];
        while io::stdin().read_exact(&mut key).is_ok() {
            if sender.blocking_send(key[0]).is_err() {
                return;
            }
        }
    });
    keys
}

/// The next key; `None` if there will be no more. Waits for ever without a keyboard.
async fn pressed(keys: &mut Option<mpsc::Receiver<u8>>) -> Option<u8> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_and_end_it() {
        assert_eq!(action(Some(b'm')), Action::Order(TopOrder::Memory));
        assert_eq!(action(Some(b'x')), Action::Nothing);
        for key in [None, Some(b'q'), Some(3), Some(4)] {
            assert_eq!(action(key), Action::Leave);
        }
    }

    #[test]
    fn trouble_takes_the_first_line_and_cannot_move_the_cursor() {
        let look = Look { at: Duration::ZERO, time: String::new(), host: None, vms: vec![] };
        let view = TopView::between(None, &look, TopOrder::Cpu);
        assert!(page(&view, TopOrder::Disk, None).starts_with("by disk   c cpu"));
        let text = page(&view, TopOrder::Cpu, Some("gone\n\x1b[2J"));
        assert!(text.starts_with("gone \u{fffd}[2J; trying again\n"), "{text}");
    }
}
