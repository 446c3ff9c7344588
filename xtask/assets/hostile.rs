//! A guest that breaks the rules: a kernel of its own, entered by PVH, that finds every virtio device and mistreats each,
//! case after case, in an order that its seed gives. Built by the compiler alone, for no operating system.
//!
//! Command line: `seed=<number> cases=<number>`. It says `hostile: N devices`, `hostile: case N` now and then, and at last
//! `hostile: N cases, M of them wanted a reset`; then it powers off. What it says else is what should not have happened.
//!
//! ```text
//!   0x0020_0000 this program   0x0080_0000 rings, 64 KiB each queue   0x0100_0000 data, 1 MiB     (the VM has 128 MiB)
//! ```
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::ptr::{read_volatile, write_volatile};

// Entered in 32 bits without paging (Xen's PVH): maps the first 4 GiB as they are, with pages of 2 MiB, and goes on in 64.
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long begin
    .popsection
    .pushsection .bss
    .align 4096
tables: .skip 4096 * 6
    .skip 65536
stack:
    .popsection
    .pushsection .rodata
    .align 8
descriptors: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
pointer: .word 23
    .long descriptors, 0
    .popsection
    .pushsection .text
    .code32
    .global begin
begin:
    mov esp, offset stack
    mov ebp, ebx
    mov edi, offset tables
    lea eax, [edi + 4096 + 3]
    mov [edi], eax
    mov ecx, 4
    lea eax, [edi + 8192 + 3]
    lea ebx, [edi + 4096]
1:  mov [ebx], eax
    add eax, 4096
    add ebx, 8
    loop 1b
    mov ecx, 2048
    mov eax, 0x83
    lea ebx, [edi + 8192]
2:  mov [ebx], eax
    add eax, 0x200000
    add ebx, 8
    loop 2b
    mov cr3, edi
    mov eax, 0x620
    mov cr4, eax
    mov ecx, 0xc0000080
    xor edx, edx
    mov eax, 0x100
    wrmsr
    lgdt [pointer]
    mov eax, 0x80000003
    mov cr0, eax
    .byte 0xea
    .long wide
    .word 8
    .code64
wide:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov edi, ebp
    call {main}
3:  hlt
    jmp 3b
    .popsection
    "#,
    main = sym main
);

const COM1: u16 = 0x3f8;
const SLEEP_CONTROL: u16 = 0x600;
/// SLP_EN and S5's type (ACPI 6.5 §4.8.3.7).
const POWER_OFF: u8 = 1 << 5 | 5 << 2;
const SLOTS: u16 = 0x610;
const ECAM: u64 = 0xe000_0000;
const RINGS: u64 = 0x80_0000;
const RING_STEP: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const TABLE: u64 = 0xc000;
const DATA: u64 = 0x100_0000;
const DATA_LEN: u64 = 1 << 20;
const BALLOON: u16 = 0x1045;
/// Bytes of a table of vectors, at most.
const TABLE_LEN: u64 = 0x800;
const QUEUES: u64 = 8;
const ENTRIES: u64 = 64;
/// Looks at a status until a device is given up.
const PATIENCE: u32 = 20_000_000;
/// Addresses that are none, or not a ring's: beyond the RAM, of a BAR, of the interrupt controllers, at the end of all.
const ELSEWHERE: [u64; 8] =
    [0x800_0000, 0x7ff_fff8, 0xc010_0000, 0xe000_0000, 0xfee0_0000, 1 << 40, u64::MAX - 7, u64::MAX & !0xfff];
const LENGTHS: [u32; 10] = [0, 1, 8, 12, 16, 20, 512, 4096, 0x7fff_ffff, u32::MAX];

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().for_each(|byte| out8(COM1, byte));
        Ok(())
    }
}

macro_rules! say {
    ($($what:tt)*) => {{ let _ = writeln!(Serial, $($what)*); }};
}

fn out8(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) }
}

fn out32(port: u16, value: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}

fn in32(port: u16) -> u32 {
    let value;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) }
    value
}

fn get<T>(address: u64) -> T {
    unsafe { read_volatile(address as *const T) }
}

fn set<T>(address: u64, value: T) {
    unsafe { write_volatile(address as *mut T, value) }
}

/// xorshift64*.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Mostly data, else something that a device must not touch.
    fn address(&mut self) -> u64 {
        if self.one_in(6) { ELSEWHERE[self.below(8) as usize] } else { DATA + self.below(DATA_LEN - 0x2000) }
    }

    fn len(&mut self) -> u32 {
        if self.one_in(3) { LENGTHS[self.below(10) as usize] } else { self.below(0x2000) as u32 }
    }
}

/// A virtio function: its configuration space, and where in BAR 0 things are.
#[derive(Clone, Copy)]
struct Device {
    config: u64,
    id: u16,
    bar: u64,
    common: u64,
    notify: u64,
    notify_step: u64,
    specific: u64,
    table: u64,
}

impl Device {
    /// What is in a slot, switched on.
    fn find(slot: u64) -> Option<Self> {
        let config = ECAM + (slot << 15);
        if get::<u16>(config) != 0x1af4 {
            return None;
        }
        set::<u16>(config + 4, 6);
        let bar = u64::from(get::<u32>(config + 0x10) & !0xf);
        let mut device =
            Self { config, id: get(config + 2), bar, common: 0, notify: 0, notify_step: 0, specific: 0, table: 0 };
        let mut at = u64::from(get::<u8>(config + 0x34));
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let here = config + at;
            let offset = bar + u64::from(get::<u32>(here + 8));
            match (get::<u8>(here), get::<u8>(here + 3)) {
                (0x11, _) => device.table = bar + u64::from(get::<u32>(here + 4) & !7),
                (9, 1) => device.common = offset,
                (9, 2) => (device.notify, device.notify_step) = (offset, get::<u32>(here + 16).into()),
                (9, 4) => device.specific = offset,
                _ => {}
            }
            at = get::<u8>(here + 1).into();
        }
        Some(device)
    }

    fn status(&self) -> u8 {
        get(self.common + 0x14)
    }

    fn set_status(&self, status: u8) {
        set(self.common + 0x14, status);
    }

    /// Whether it came back.
    fn reset(&self) -> bool {
        self.set_status(0);
        (0..PATIENCE).any(|_| self.status() == 0)
    }

    /// Accepts what is offered, but for features that `without` has. Whether the device agrees.
    fn negotiate(&self, without: u64) -> bool {
        self.set_status(1);
        self.set_status(3);
        for half in 0..2_u32 {
            set(self.common, half);
            let offer: u32 = get(self.common + 4);
            set(self.common + 8, half);
            set(self.common + 12, offer & !((without >> (32 * half)) as u32));
        }
        self.set_status(11);
        self.status() & 8 != 0
    }

    fn queues(&self) -> u64 {
        u64::from(get::<u16>(self.common + 0x12)).min(QUEUES)
    }

    fn enable(&self, queue: u64, rings: [u64; 3], vector: u16) {
        set(self.common + 0x16, queue as u16);
        set(self.common + 0x18, ENTRIES as u16);
        set(self.common + 0x1a, vector);
        for (register, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            set(self.common + register, address as u32);
            set(self.common + register + 4, (address >> 32) as u32);
        }
        set(self.common + 0x1c, 1_u16);
    }

    fn kick(&self, queue: u64) {
        set(self.common + 0x16, queue as u16);
        let place: u16 = get(self.common + 0x1e);
        set(self.notify + u64::from(place) * self.notify_step, queue as u16);
    }
}

/// A descriptor (VIRTIO 1.2 §2.7.5).
fn describe(at: u64, address: u64, len: u32, flags: u16, next: u16) {
    set(at, address);
    set(at + 8, len);
    set(at + 12, flags);
    set(at + 14, next);
}

fn rings(queue: u64) -> [u64; 3] {
    let base = RINGS + queue * RING_STEP;
    [base, base + AVAIL, base + USED]
}

/// A table of random descriptors: loops, tables in tables, ends that are none.
fn describe_nonsense(at: u64, noise: &mut Noise, table: u64) {
    for entry in 0..ENTRIES {
        let (mut address, mut len, mut flags) = (noise.address(), noise.len(), noise.below(4) as u16);
        if noise.one_in(5) {
            (address, len, flags) = (table, [16, 32, 1024, 24, 0, u32::MAX][noise.below(6) as usize], flags | 4);
        }
        if noise.one_in(20) {
            flags = noise.next() as u16;
        }
        let next = if noise.one_in(8) { noise.next() as u16 } else { noise.below(ENTRIES) as u16 };
        describe(at + entry * 16, address, len, flags, next);
    }
}

/// Requests of a plausible shape, so that a device gets as far as their content.
fn describe_requests(at: u64, noise: &mut Noise) {
    for first in (0..ENTRIES).step_by(4) {
        let base = DATA + first * 0x2000;
        for word in 0..8 {
            set(base + word * 8, if noise.one_in(2) { noise.below(16) } else { noise.next() });
        }
        let count = 1 + noise.below(4);
        for piece in 0..count {
            let flags = u16::from(piece + 1 < count) | if noise.one_in(2) { 2 } else { 0 };
            let len = if piece == 0 { [8, 12, 16, 44, 1526][noise.below(5) as usize] } else { noise.len() };
            describe(at + (first + piece) * 16, base + piece * 0x1000, len, flags, (first + piece + 1) as u16);
        }
    }
}

/// Fills the available ring, and says how many are in it.
fn offer(at: u64, noise: &mut Noise, is_wild: bool) {
    for entry in 0..ENTRIES {
        let head = if is_wild && noise.one_in(8) { noise.next() as u16 } else { noise.below(ENTRIES / 4) as u16 * 4 };
        set(at + 4 + entry * 2, head);
    }
    set::<u16>(at, noise.one_in(4).into());
    let count = if is_wild { [1, 64, 65, 0x8000, 0xffff, 0][noise.below(6) as usize] } else { 1 + noise.below(32) };
    set(at + 2, count as u16);
}

/// Rings with nonsense in them, or requests of some shape; kicked more than once, indices going backward meanwhile.
fn break_rings(device: &Device, noise: &mut Noise) {
    if device.id == BALLOON {
        // What a disk left there could name pages of this program as those to give away.
        unsafe { memset(DATA as *mut u8, 0, DATA_LEN as usize) };
    }
    let without = if noise.one_in(3) { 1 << 28 | 1 << 29 } else { 0 };
    if !device.negotiate(without) {
        say!("hostile: device {:#x} refuses its own offer", device.id);
    }
    let is_wild = !noise.one_in(3);
    for queue in 0..device.queues() {
        let mut places = rings(queue);
        let table = places[0] + TABLE;
        if is_wild {
            describe_nonsense(places[0], noise, table);
            describe_nonsense(table, noise, table);
        } else {
            describe_requests(places[0], noise);
        }
        offer(places[1], noise, is_wild);
        set::<u32>(places[2], 0);
        if noise.one_in(10) {
            places[noise.below(3) as usize] = noise.address();
        }
        device.enable(queue, places, 0xffff);
    }
    device.set_status(15);
    for _ in 0..3 {
        for queue in 0..device.queues() {
            device.kick(queue);
            let index = rings(queue)[1] + 2;
            set(index, get::<u16>(index).wrapping_add([1, 0xffff, 0x100][noise.below(3) as usize]));
        }
    }
}

/// Registers in every state: of the common structure, the device's own, and whatever else is in the BAR.
fn break_registers(device: &Device, noise: &mut Noise) {
    for _ in 0..64 {
        let at = match noise.below(4) {
            0 => device.specific + noise.below(64),
            1 => device.bar + noise.below(0x8000),
            _ => device.common + noise.below(64),
        };
        // An interrupt's message can be one that resets this processor: those have a case of their own.
        if (device.table..device.table + TABLE_LEN).contains(&at) {
            continue;
        }
        match noise.below(5) {
            0 => set(at, noise.next() as u8),
            1 => set(at & !1, noise.next() as u16),
            2 => set(at & !3, noise.next() as u32),
            3 => set(at & !7, noise.next()),
            _ => drop(get::<u32>(at & !3)),
        }
        if noise.one_in(8) {
            device.set_status([0, 1, 3, 11, 15, 0x80, 0x4f, 0xff][noise.below(8) as usize]);
        }
    }
}

/// Interrupts of any vector (of the fixed delivery mode) to anywhere, masked, unmasked and moved while there is something to
/// tell.
fn break_vectors(device: &Device, noise: &mut Noise) {
    break_rings(device, noise);
    for _ in 0..32 {
        let entry = device.table + noise.below(8) * 16;
        set(entry, noise.next() as u32);
        set(entry + 4, if noise.one_in(2) { 0 } else { noise.next() as u32 });
        set(entry + 8, noise.below(256) as u32);
        set(entry + 12, noise.below(2) as u32);
        set(device.common + 0x16, noise.below(4) as u16);
        set(device.common + 0x1a, noise.next() as u16 & 0x800f);
        device.kick(noise.below(QUEUES));
    }
}

/// BAR 0 goes elsewhere while requests are under way, and comes back.
fn move_bar(device: &Device, noise: &mut Noise) {
    break_rings(device, noise);
    let places = [0, 0x20_0000, 0xc000_0000, device.bar as u32 + 0x8000, 0xe000_0000, 0xfee0_0000, 0xffff_f000];
    for _ in 0..4 {
        set(device.config + 0x10, places[noise.below(7) as usize]);
        if noise.one_in(3) {
            set(device.config + 4, noise.next() as u16 & 0x407);
        }
        set(device.config + 4, 6_u16);
    }
    restore(device);
    device.kick(0);
}

/// All of the configuration space, at every width.
fn break_config(device: &Device, noise: &mut Noise) {
    for _ in 0..64 {
        let len = if noise.one_in(2) { 0x100 } else { 0x1000 };
        let at = device.config + noise.below(len);
        match noise.below(4) {
            0 => set(at, noise.next() as u8),
            1 => set(at & !1, noise.next() as u16),
            2 => set(at & !3, noise.next() as u32),
            _ => drop(get::<u64>(at & !7)),
        }
    }
    restore(device);
}

/// Ports of the hotplug slots: nothing is there to be let go.
fn break_slots(noise: &mut Noise) {
    for _ in 0..16 {
        out32(SLOTS + noise.below(6) as u16 * 4, noise.next() as u32);
        in32(SLOTS + noise.below(6) as u16 * 4);
    }
}

fn restore(device: &Device) {
    set::<u16>(device.config + 4, 0);
    set(device.config + 0x10, device.bar as u32);
    set::<u32>(device.config + 0x14, 0);
    set::<u16>(device.config + 4, 6);
}

/// The number behind `name` on the command line.
fn argument(info: u64, name: &[u8]) -> u64 {
    let line: u64 = get(info + 24);
    let mut matched = 0;
    for at in line..line + 2048 {
        let byte: u8 = get(at);
        if byte == 0 {
            break;
        }
        if matched == name.len() {
            let digits = (at..).map(get::<u8>).take_while(u8::is_ascii_digit);
            return digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        }
        matched = if byte == name[matched] { matched + 1 } else { usize::from(byte == name[0]) };
    }
    0
}

extern "C" fn main(info: u64) {
    let (seed, cases) = (argument(info, b"seed="), argument(info, b"cases="));
    let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut devices = [None; 32];
    let mut count = 0;
    for device in (0..32).filter_map(Device::find) {
        devices[count] = Some(device);
        count += 1;
    }
    say!("hostile: {count} devices");
    let mut gave_up = 0;
    for case in 0..cases {
        let Some(device) = devices[noise.below(count as u64) as usize] else { break };
        let kind = noise.below(8);
        match kind {
            0..3 => break_rings(&device, &mut noise),
            3 => break_registers(&device, &mut noise),
            4 => break_vectors(&device, &mut noise),
            5 => move_bar(&device, &mut noise),
            6 => break_config(&device, &mut noise),
            _ => break_slots(&mut noise),
        }
        restore(&device);
        gave_up += u64::from(device.status() & 0x40 != 0);
        if !device.reset() {
            say!("hostile: case {case} of kind {kind}: device {:#x} does not come back from its reset", device.id);
        }
        if case % 100 == 99 {
            say!("hostile: case {}", case + 1);
        }
    }
    for device in devices.into_iter().flatten() {
        if !device.negotiate(0) || !device.reset() {
            say!("hostile: device {:#x} is not what it was", device.id);
        }
    }
    say!("hostile: {cases} cases, {gave_up} of them wanted a reset");
    out8(SLEEP_CONTROL, POWER_OFF);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("hostile: {info}");
    loop {
        unsafe { asm!("cli; hlt") }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _, options(nostack)) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack)) }
    to
}

/// The core library was built to unwind, which nothing here does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
