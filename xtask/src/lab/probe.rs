//! Finds out whether this machine's KVM can boot Linux, by running a tiny guest that does what Linux does early.
//!
//! Some `/dev/kvm` emulate the guest's kernel mode and lack instructions that every Linux kernel uses, so that only
//! trying tells. The guest starts in 64-bit mode and reports each stage on port 0x10, the last one on port 0x11. It runs
//! in a child process, so that a guest that never ends can be ended. The verdict holds until the machine is restarted.
#![allow(unsafe_code, reason = "KVM maps guest memory by address")]

use crate::progress::read_lossy;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const LIMIT: Duration = Duration::from_secs(10);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const STAGES: [&str; 7] = [
    "int3 through the IDT",
    "cmpxchg16b",
    "rdmsr and wrmsr of EFER",
    "xsetbv, xsave and xrstor",
    "a page fault that maps the page",
    "control registers and swapgs",
    "",
];
const MEMORY_BYTES: usize = 8 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const CODE: u64 = 0x6000;
const IDT_REGISTER: u64 = 0xa000;
const BREAKPOINT_HANDLER: u64 = CODE + 0xa5;
const PAGE_FAULT_HANDLER: u64 = CODE + 0xaf;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

/// Where things can run, and why.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Verdict {
    boot_id: String,
    /// Whether guests with a stock Linux kernel run on this machine's own KVM.
    pub(crate) can_run_directly: bool,
    /// The reason, in words.
    pub(crate) reason: String,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", if self.can_run_directly { "on this machine" } else { "in the lab" }, self.reason)
    }
}

/// The verdict for this machine: known since its last restart, or found out now.
pub(crate) fn verdict(workspace: &Workspace) -> Result<Verdict> {
    let boot_id = fs::read_to_string(BOOT_ID).context("cannot read the boot id")?.trim().to_owned();
    let path = workspace.lab("probe.json");
    let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Verdict>(&bytes).ok());
    if let Some(known) = known.filter(|known| known.boot_id == boot_id) {
        return Ok(known);
    }
    let failure = match host_facts() {
        Some(missing) => Some(missing),
        None => try_guest()?,
    };
    let can_run_directly = failure.is_none();
    let reason = failure.unwrap_or_else(|| "the probe's guest did on this KVM all that Linux needs".to_owned());
    let verdict = Verdict { boot_id, can_run_directly, reason };
    write_whole(&path, &serde_json::to_vec_pretty(&verdict)?)?;
    Ok(verdict)
}

/// What, besides a KVM that boots Linux, the guest tests need and this machine lacks.
fn host_facts() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root: taps and cgroups cannot be made".to_owned());
    }
    for device in ["/dev/kvm", "/dev/net/tun"] {
        if let Err(error) = File::options().read(true).write(true).open(device) {
            return Some(format!("{device} cannot be opened ({error})"));
        }
    }
    None
}

/// Runs the guest in a child process. `None` if it came to its end, else what stopped it.
fn try_guest() -> Result<Option<String>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("probe-guest")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the probe")?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = read_lossy(child.stdout.take().context("the probe has no output")?);
    let stages: Vec<&str> = said.lines().collect();
    Ok(match stages.last() {
        Some(&"done") => None,
        Some(last) => Some(format!("a Linux kernel cannot run on this KVM: the probe's guest stopped at {last}")),
        None => Some("this KVM cannot run the probe's guest at all".to_owned()),
    })
}

/// The child's part: runs the guest and prints one line for each stage that it enters, then `done`.
pub(crate) fn run_guest() -> Result<()> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    fill(&memory)?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the address and size are those of `memory`, which is dropped after the VM (declared before it) and which
    // nothing else uses while the guest runs.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    enter_long_mode(&vcpu)?;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x10, &[stage]) => {
                println!("{}", STAGES.get(usize::from(stage).wrapping_sub(1)).unwrap_or(&"an unknown stage"));
            }
            VcpuExit::IoOut(0x11, _) => {
                println!("done");
                return Ok(());
            }
            exit => bail!("unexpected exit {exit:?}"),
        }
    }
}

/// Page tables (the first 2 MiB), descriptor tables and code.
fn fill(memory: &GuestMemoryMmap) -> Result<()> {
    let put = |value: u64, at: u64| memory.write_obj(value.to_le(), GuestAddress(at));
    // Present and writable; the last level is a 2 MiB page. Virtual 4 MiB is left for the guest to map.
    put(PDPT | 3, PML4)?;
    put(DIRECTORY | 3, PDPT)?;
    put(0x83, DIRECTORY)?;
    // Flat 64-bit code and data segments, as in the architecture manual.
    put(0x00af_9b00_0000_ffff, GDT + u64::from(CODE_SELECTOR))?;
    put(0x00cf_9300_0000_ffff, GDT + u64::from(DATA_SELECTOR))?;
    for (vector, handler) in [(3, BREAKPOINT_HANDLER), (14, PAGE_FAULT_HANDLER)] {
        // A present 64-bit interrupt gate; the handlers lie below 64 KiB, so that the upper parts of the offset are 0.
        put(handler | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32, IDT + vector * 16)?;
    }
    memory.write_obj(0x0fff_u16.to_le(), GuestAddress(IDT_REGISTER))?;
    put(IDT, IDT_REGISTER + 2)?;
    memory.write_slice(&GUEST, GuestAddress(CODE))?;
    Ok(())
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<()> {
    let mut special = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: !0,
        selector: CODE_SELECTOR,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        limit: !0,
        selector: DATA_SELECTOR,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    (special.cs, special.ds, special.es, special.ss, special.fs, special.gs) = (code, data, data, data, data, data);
    (special.gdt.base, special.gdt.limit) = (GDT, 23);
    special.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
    // PE, MP, ET, NE, WP, PG.
    special.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    // LME, LMA.
    special.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    (general.rip, general.rflags) = (CODE, 2);
    Ok(vcpu.set_regs(&general)?)
}

/// The guest. Offsets of the two handlers are named above.
#[rustfmt::skip]
const GUEST: [u8; 200] = [
    0xbc, 0x00, 0x90, 0x00, 0x00,                               // mov esp, 0x9000
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0xa0, 0x00, 0x00,             // lidt [0xa000]
    0xb0, 0x01, 0xe6, 0x10,                                     // stage 1
    0xcc,                                                       // int3
    0x48, 0x83, 0x3c, 0x25, 0x00, 0xa1, 0x00, 0x00, 0x01,       // cmp qword [0xa100], 1
    0x0f, 0x85, 0x81, 0x00, 0x00, 0x00,                         // jne stop
    0xb0, 0x02, 0xe6, 0x10,                                     // stage 2
    0x31, 0xc0, 0x31, 0xd2,                                     // xor eax, eax; xor edx, edx
    0xbb, 0x07, 0x00, 0x00, 0x00,                               // mov ebx, 7
    0xb9, 0x05, 0x00, 0x00, 0x00,                               // mov ecx, 5
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0xa2, 0x00, 0x00, // lock cmpxchg16b [0xa200]
    0x75, 0x63,                                                 // jne stop
    0x83, 0x3c, 0x25, 0x08, 0xa2, 0x00, 0x00, 0x05,             // cmp dword [0xa208], 5
    0x75, 0x59,                                                 // jne stop
    0xb0, 0x03, 0xe6, 0x10,                                     // stage 3
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30,       // mov ecx, EFER; rdmsr; wrmsr
    0xf6, 0xc4, 0x04, 0x74, 0x47,                               // test ah, LMA; jz stop
    0xb0, 0x04, 0xe6, 0x10,                                     // stage 4
    0x31, 0xc9, 0x31, 0xd2, 0xb8, 0x03, 0x00, 0x00, 0x00,       // ecx = 0, edx:eax = x87 and SSE
    0x0f, 0x01, 0xd1,                                           // xsetbv
    0x48, 0x0f, 0xae, 0x24, 0x25, 0x00, 0x70, 0x00, 0x00,       // xsave64 [0x7000]
    0x48, 0x0f, 0xae, 0x2c, 0x25, 0x00, 0x70, 0x00, 0x00,       // xrstor64 [0x7000]
    0xb0, 0x05, 0xe6, 0x10,                                     // stage 5
    0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00,             // mov rax, [0x400000]
    0xb0, 0x06, 0xe6, 0x10,                                     // stage 6
    0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0,             // flip CR4.PGE
    0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8,                         // reload CR3
    0x0f, 0x01, 0xf8,                                           // swapgs
    0xb0, 0x07, 0xe6, 0x11,                                     // done
    0xf4, 0xeb, 0xfd,                                           // stop: hlt; jmp stop
    0x48, 0xff, 0x04, 0x25, 0x00, 0xa1, 0x00, 0x00, 0x48, 0xcf, // breakpoint: inc qword [0xa100]; iretq
    0x48, 0x83, 0xc4, 0x08, 0x50,                               // page fault: drop the error code; push rax
    0xc7, 0x04, 0x25, 0x10, 0x30, 0x00, 0x00, 0x83, 0x00, 0x00, 0x00, // mov dword [0x3010], 0x83
    0x0f, 0x20, 0xd0, 0x0f, 0x01, 0x38, 0x58, 0x48, 0xcf,       // mov rax, cr2; invlpg [rax]; pop rax; iretq
];
