//! What runs in the guest, one measurement per call. It says what came of it, and nothing else begins so:
//!
//! ```text
//!   in-guest net <host>       devices: <figure> <value>        in-guest fill <disk>
//!   in-guest disk <path>      devices: lost <packets>
//! ```

use std::io::{Error, ErrorKind, Result};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::disk::Disk;
use super::exchange::{Exchange, Kind};
use super::pattern::DISK_LEN;

/// The first argument.
pub const WORD: &str = "in-guest";
/// What its lines begin with.
pub const SAYS: &str = "devices: ";
/// Packets, and reads, of one measurement.
const ROUND_TRIPS: u32 = 400;
const PACKETS: u32 = 4_000;
const READS: usize = 400;
const READS_AT_ONCE: usize = 2_000;
const MICROSECOND: f64 = 1e6;

pub fn run(words: &[String]) -> Result<()> {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["net", host] => net(host.parse().map_err(Error::other)?),
        ["disk", path] => disk(&Disk::open(path)?),
        ["fill", path] => Disk::open(path)?.fill(),
        _ => Err(Error::new(ErrorKind::InvalidInput, "net, disk or fill")),
    }
}

fn say(figure: &str, value: f64) {
    println!("{SAYS}{figure} {value:.3}");
}

fn say_percentiles(figure: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    for percent in [50, 99] {
        let at = took.get(took.len() * percent / 100).copied().unwrap_or_default();
        say(&format!("{figure}_p{percent}"), at.as_secs_f64() * MICROSECOND);
    }
}

fn net(host: Ipv4Addr) -> Result<()> {
    let took = Exchange::ask(host, Kind::Echo, ROUND_TRIPS)?.round_trips()?;
    let mut lost = ROUND_TRIPS - took.len() as u32;
    say_percentiles("round_trip", took);
    let sent = Exchange::ask(host, Kind::ToHost, PACKETS)?.deliver()?;
    say("to_host", sent.rate());
    let came = Exchange::ask(host, Kind::FromHost, PACKETS)?.collect()?;
    say("from_host", came.rate());
    for arrived in [sent, came] {
        lost += PACKETS.saturating_sub(arrived.packets);
    }
    say("lost", f64::from(lost));
    Ok(())
}

fn disk(disk: &Disk) -> Result<()> {
    let took = disk.one_by_one(READS)?;
    let all: Duration = took.iter().sum();
    say("depth_1", READS as f64 / all.as_secs_f64());
    say_percentiles("read", took);
    say("depth_32", READS_AT_ONCE as f64 / disk.many_at_once(READS_AT_ONCE)?.as_secs_f64());
    say("sequence", DISK_LEN as f64 / disk.in_sequence()?.as_secs_f64() / f64::from(1 << 20));
    Ok(())
}
