//! fio in a guest: writes blocks with checksums past the guest's caches, and reads them back. Key functions: [`disk`],
//! [`verifies`], [`reads_whole`].

use std::fs;

use ostler::api::v1;

use super::console::Console;
use super::guest;
use super::{Host, assets};

const NAME: &str = "fio";
const VOLUME: &str = "fio.img";
/// Of what `verifies` writes and `reads_whole` reads, in MiB.
pub const LEN_MIB: u64 = 2;

/// The disk that is the program, for a guest of the tenant; none where its sources could not be had.
pub fn disk(host: &Host, tenant: &str) -> Option<v1::DiskSpec> {
    host.add_volume(tenant, VOLUME, &fs::read(assets::images().join(VOLUME)).ok()?);
    Some(guest::disk(NAME, VOLUME, true))
}

/// Writes [`LEN_MIB`] from `from_mib` on in random order and checks them: `Err` has what fio says.
pub fn verifies(console: &mut Console, device: &str, from_mib: u64) -> Result<(), String> {
    fio(console, device, from_mib, "--rw=randwrite --do_verify=1")
}

/// Checks what an earlier [`verifies`] left there.
pub fn reads_whole(console: &mut Console, device: &str, from_mib: u64) -> Result<(), String> {
    fio(console, device, from_mib, "--rw=read")
}

fn fio(console: &mut Console, device: &str, from_mib: u64, words: &str) -> Result<(), String> {
    let copy = "for of in /sys/block/vd*; do [ \"$(cat $of/serial)\" = fio ] && cat /dev/${of##*/} >/tmp/fio; done";
    let printed = console.run(&format!("[ -x /tmp/fio ] || {{ {copy}; chmod +x /tmp/fio; }}; /tmp/fio --version"));
    assert!(printed.contains("\nfio-"), "{printed}");
    // A thread instead of a process, which would want shared memory.
    let common = "--thread --ioengine=io_uring --iodepth=16 --direct=1 --bs=4k --verify=crc32c --verify_fatal=1";
    let place = format!("--filename={device} --offset={from_mib}M --size={LEN_MIB}M");
    let printed = console.run(&format!("/tmp/fio --name=whole {place} {common} {words} && echo fio-is-content"));
    if printed.contains("\nfio-is-content") { Ok(()) } else { Err(printed) }
}
