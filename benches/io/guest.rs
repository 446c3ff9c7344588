//! What runs in the guest, as `/bin/io`: moves data through the devices that the kernel's command line names, checks
//! each page, and says what each phase took.
//!
//! ```text
//!   io.disk=<name>    the next of /dev/vda, /dev/vdb      io: begins
//!   io.nic=<name>     the next of eth0, eth1              io: <figure> <bytes> <nanoseconds>
//!                                                         io: over <nanoseconds>
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use super::pattern::{
    ACCESSES, AT_ONCE, Buffer, DISK_LEN, PAGE, PIECE, is_noise, is_stamped, places, stamp, stamps_at_the_end,
};
use super::stream::{self, Direction, STREAM_LEN};

/// Does everything, and says so.
pub fn run() -> Result<()> {
    let words = std::fs::read_to_string("/proc/cmdline")?;
    let named = |key: &'static str| words.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(key));
    println!("io: begins");
    let started = Instant::now();
    for (name, letter) in named("io.disk=").zip('a'..) {
        disk(name, &format!("/dev/vd{letter}"))?;
    }
    for (name, number) in named("io.nic=").zip(0..) {
        nic(name, number)?;
    }
    println!("io: over {}", started.elapsed().as_nanos());
    Ok(())
}

/// Measures `work` with so many bytes.
fn measured(figure: &str, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    work()?;
    println!("io: {figure} {bytes} {}", started.elapsed().as_nanos());
    Ok(())
}

fn check(is_right: bool, what: &str) -> Result<()> {
    if is_right { Ok(()) } else { Err(Error::other(format!("{what}: not what was written"))) }
}

fn disk(name: &str, path: &str) -> Result<()> {
    // Past the guest's own cache.
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut piece = Buffer::new(PIECE);
    let starts = || (0..DISK_LEN).step_by(PIECE);
    measured(&format!("block_{name}_write"), DISK_LEN, || {
        starts().try_for_each(|at| {
            piece.stamp(1, at / PAGE as u64);
            disk.write_all_at(piece.bytes(), at)
        })
    })?;
    let noise = Buffer::new(PAGE);
    for at in starts() {
        disk.read_exact_at(piece.bytes_mut(), at)?;
        check(is_noise(piece.bytes(), &noise), path)?;
    }
    measured(&format!("block_{name}_read"), DISK_LEN, || {
        starts().try_for_each(|at| {
            disk.read_exact_at(piece.bytes_mut(), at)?;
            check(is_stamped(piece.bytes(), (at / PAGE as u64..).map(|page| stamp(1, page))), path)
        })
    })?;
    measured(&format!("block_{name}_random_write"), ACCESSES * PAGE as u64, || {
        at_once(|thread| {
            let mut page = Buffer::new(PAGE);
            places(thread).try_for_each(|place| {
                page.stamp(2, place);
                disk.write_all_at(page.bytes(), place * PAGE as u64)
            })
        })
    })?;
    let due = stamps_at_the_end();
    measured(&format!("block_{name}_random_read"), ACCESSES * PAGE as u64, || {
        at_once(|thread| {
            let mut page = Buffer::new(PAGE);
            places(thread).try_for_each(|place| {
                disk.read_exact_at(page.bytes_mut(), place * PAGE as u64)?;
                check(is_stamped(page.bytes(), due.get(place as usize).copied().into_iter()), path)
            })
        })
    })?;
    File::sync_all(&disk)
}

/// Does `work` in [`AT_ONCE`] threads, each with its number.
fn at_once(work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                scope.spawn({
                    let work = &work;
                    move || work(number)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| Error::other("a thread panicked"))?)
    })
}

fn nic(name: &str, number: u8) -> Result<()> {
    for (direction, what) in [(Direction::ToHost, "to_host"), (Direction::FromHost, "from_host")] {
        // A first one is checked whole, and opens the windows.
        for is_counted in [false, true] {
            let len = if is_counted { STREAM_LEN } else { STREAM_LEN / 8 };
            let mut host = TcpStream::connect((stream::host(number), stream::PORT))?;
            let mut move_it = || {
                stream::ask(&mut host, direction, len, !is_counted)?;
                match direction {
                    Direction::ToHost => stream::send(&mut host, len)?,
                    Direction::FromHost => stream::receive(&mut host, len, !is_counted)?,
                }
                // The host has seen the last page, and says so; or hears of it.
                let mut end = [0];
                if direction == Direction::ToHost { host.read_exact(&mut end) } else { host.write_all(&end) }
            };
            if is_counted { measured(&format!("net_{name}_{what}"), len, move_it)? } else { move_it()? }
        }
    }
    Ok(())
}
