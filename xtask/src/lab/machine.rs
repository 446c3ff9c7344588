//! The emulated machine: its QEMU command line, its run, its end.
//!
//! ```text
//! virtio-blk  vda root.img   vdb payload.img   vdc images.img   vdd out.img (writable)
//! virtio-serial  lab.status exit status   lab.output output of the command   lab.pulse sign of life   hvc0 the shell
//! ttyS0  kernel messages     pcie root ports: igb (7 VFs), NVMe (4 VFs), NVMe, igb     vIOMMU with interrupt remapping
//! ```
//! Output and status go to files, which QEMU writes at once and whole: nothing is lost when the machine powers off.
//! The status has a port of its own, so that no guest's output can be taken for it. The pulse is a line every few
//! seconds: when it stops, the emulated machine itself hangs, whatever runs in it. Backwards through the same port goes a
//! nudge each second: an interrupt. The emulator loses one now and then, when a device raises it while a nested guest
//! exits; a processor that waits for the one that was lost, its timer's, would wait for ever, and the next one brings both.

use super::host::Host;
use crate::packages::Packages;
use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);
/// A lab without a pulse for so long hangs. Boots take seconds; a busy machine slows all of it down.
const PULSE_LIMIT: Duration = Duration::from_secs(120);
/// Between two nudges: longer than an interrupt takes to be handled, far shorter than what tests wait for.
const NUDGE: Duration = Duration::from_secs(1);
/// What QEMU's monitor is asked about a machine that hangs, and how long it may take to answer.
const AUTOPSY: &str = "info lapic\ninfo pic\ninfo registers -a\n";
const AUTOPSY_LIMIT: Duration = Duration::from_secs(3);
/// Lines of the answer that tell the most.
const AUTOPSY_LINES: usize = 60;
/// Guest-physical width of the emulated processor: keeps virtual functions' BARs below 64 GiB, where QEMU maps them whole.
const PHYSICAL_BITS: u32 = 36;
/// Where a processor says that it is quick with `rep stosb` and `rep movsb`, kernels and C libraries clear and copy with
/// them: this one emulates those byte by byte, and is several times as quick without.
const BYTEWISE: &str = ",-erms,-fsrm";
const MEMORY_LIMIT_MIB: u32 = 12 << 10;

/// What the lab host is to look like.
pub(super) struct Shape {
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    /// NUMA nodes: each has a share of the memory, and a CPU if there is more than one.
    pub(super) nodes: u32,
    /// Further words for its kernel.
    pub(super) kernel_words: String,
    /// The clock counts executed instructions instead of time; one CPU.
    pub(super) is_counting: bool,
    /// Standard input and output become the lab's console.
    pub(super) is_shell: bool,
    pub(super) timeout: Option<Duration>,
    /// Stands before each line of output.
    pub(super) label: Option<String>,
}

impl Shape {
    /// A counting clock jumps, and a person may stop a shell's machine: no pulse there.
    fn has_pulse(&self) -> bool {
        !self.is_counting && !self.is_shell
    }
}

/// How a run ended.
pub(super) enum End {
    /// The command's own exit status.
    Exit(u8),
    /// The time was up.
    TimedOut,
    /// The emulated machine stopped running; what it looked like.
    Hung(String),
}

/// One run's files, in a directory of its own.
pub(super) struct Machine<'a> {
    packages: &'a Packages,
    host: &'a Host,
    directory: PathBuf,
}

impl<'a> Machine<'a> {
    /// A machine whose `payload.img` and `out.img` lie in `directory`.
    pub(super) fn new(packages: &'a Packages, host: &'a Host, directory: PathBuf) -> Self {
        Self { packages, host, directory }
    }

    /// Boots, copies the command's output to standard output while it runs, and returns its exit status.
    pub(super) fn run(&self, shape: &Shape) -> Result<End> {
        if shape.memory_mib > MEMORY_LIMIT_MIB {
            bail!("a lab of {} MiB is too large: at most {MEMORY_LIMIT_MIB} MiB", shape.memory_mib);
        }
        if shape.nodes > 1 && (shape.is_counting || !shape.memory_mib.is_multiple_of(shape.nodes)) {
            bail!("{} nodes: the memory is to be a multiple of that, and the clock does not count then", shape.nodes);
        }
        let started = Instant::now();
        for file in ["output", "status", "console"] {
            File::create(self.directory.join(file))?;
        }
        let mut pulse = if shape.has_pulse() { Some(Pulse::make(&self.directory)?) } else { None };
        let mut qemu = self.spawn(shape)?;
        let mut output = Output::open(&self.directory.join("output"), shape.label.clone())?;
        loop {
            let is_over = qemu.try_wait()?.is_some();
            output.copy_available()?;
            if is_over {
                output.end()?;
                return self.status();
            }
            let is_hung = pulse.as_mut().is_some_and(Pulse::has_stopped);
            if is_hung || shape.timeout.is_some_and(|timeout| started.elapsed() > timeout) {
                let autopsy = is_hung.then(|| self.autopsy(&mut qemu));
                qemu.kill().context("cannot stop QEMU")?;
                qemu.wait()?;
                output.copy_available()?;
                output.end()?;
                return Ok(autopsy.map_or(End::TimedOut, End::Hung));
            }
            std::thread::sleep(POLL);
        }
    }

    /// What QEMU says of the processor of a machine that hangs, and the last words of its kernel.
    fn autopsy(&self, qemu: &mut Child) -> String {
        let is_asked = qemu.stdin.as_mut().is_some_and(|monitor| monitor.write_all(AUTOPSY.as_bytes()).is_ok());
        if is_asked {
            std::thread::sleep(AUTOPSY_LIMIT);
        }
        let answer = fs::read(self.directory.join("monitor")).unwrap_or_default();
        let answer: String = String::from_utf8_lossy(&answer).lines().take(AUTOPSY_LINES).fold(String::new(), line);
        format!("{answer}and its kernel:\n{}", self.last_words("console"))
    }

    fn status(&self) -> Result<End> {
        let status = fs::read_to_string(self.directory.join("status"))?;
        if let Ok(status) = status.trim().parse() {
            return Ok(End::Exit(status));
        }
        let (qemu, kernel) = (self.last_words("qemu"), self.last_words("console"));
        bail!("the lab ended without a status; QEMU said:\n{qemu}\nand its kernel:\n{kernel}")
    }

    fn last_words(&self, file: &str) -> String {
        let text = fs::read(self.directory.join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn spawn(&self, shape: &Shape) -> Result<Child> {
        let qemu = self.packages.tool("qemu-system-x86_64")?;
        // QEMU must not outlive this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu.get_program()).args(qemu.get_args());
        for (name, value) in qemu.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        self.describe(&mut command, shape);
        command.stderr(File::create(self.directory.join("qemu"))?);
        if !shape.is_shell {
            // QEMU's monitor: kept open, used for an autopsy only.
            command.stdin(Stdio::piped()).stdout(File::create(self.directory.join("monitor"))?);
        }
        command.spawn().context("cannot run setpriv (package util-linux) to start QEMU")
    }

    fn describe(&self, command: &mut Command, shape: &Shape) {
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.packages.tree().join(data));
        }
        let without = if shape.is_counting { "" } else { BYTEWISE };
        command.args(["-M", "q35,kernel-irqchip=split", "-cpu", &format!("max,phys-bits={PHYSICAL_BITS}{without}")]);
        if shape.is_counting {
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"]);
        } else {
            // One after the other where each node has its own: at once they disturb nested guests (`CPUS`).
            let threads = if shape.nodes > 1 { "single" } else { "multi" };
            let accelerator = format!("tcg,thread={threads},tb-size=1024");
            command.args(["-accel", &accelerator, "-smp", &shape.cpus.max(shape.nodes).to_string()]);
        }
        for number in (0..shape.nodes).filter(|_| shape.nodes > 1) {
            let mib = shape.memory_mib / shape.nodes;
            command.arg("-object").arg(format!("memory-backend-ram,id=node{number},size={mib}M"));
            command.arg("-numa").arg(format!("node,nodeid={number},cpus={number},memdev=node{number}"));
        }
        command.args([
            "-m",
            &shape.memory_mib.to_string(),
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-monitor",
            if shape.is_shell { "none" } else { "stdio" },
        ]);
        command.args(["-device", "intel-iommu,intremap=on,caching-mode=on,snoop-control=on"]);
        let payload = self.directory.join("payload.img");
        for (image, writable) in [(&self.host.root, false), (&payload, false), (&self.host.images, false)] {
            drive(command, image, writable);
        }
        drive(command, &self.directory.join("out.img"), true);
        command.args(["-device", "virtio-serial-pci"]);
        let pulse = shape.has_pulse().then_some(("pulse", "pipe"));
        for (number, (name, kind)) in (1..).zip([("status", "file"), ("output", "file")].into_iter().chain(pulse)) {
            let path = self.directory.join(name);
            command.arg("-chardev").arg(format!("{kind},id={name},path={}", escaped(&path)));
            command.arg("-device").arg(format!("virtserialport,chardev={name},nr={number},name=lab.{name}"));
        }
        if shape.is_shell {
            command.args(["-chardev", "stdio,id=shell,signal=off", "-device", "virtio-serial-pci"]);
            command.args(["-device", "virtconsole,chardev=shell"]);
        }
        command.arg("-serial").arg(format!("file:{}", self.directory.join("console").display()));
        command.args(["-device", "pcie-root-port,id=rp0,chassis=1,slot=1", "-netdev", "user,id=n0,restrict=on"]);
        command.args([
            "-device",
            "igb,bus=rp0,netdev=n0,romfile=",
            "-device",
            "pcie-root-port,id=rp1,chassis=2,slot=2",
        ]);
        command.args(["-device", "nvme-subsys,id=ss0", "-device"]);
        command.arg("nvme,id=nv0,serial=LAB,bus=rp1,subsys=ss0,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=16,msix_qsize=16");
        command.args(["-device", "pcie-root-port,id=rp2,chassis=3,slot=3"]);
        for disk in &NVME_DISKS {
            let image = escaped(&self.directory.join(disk.file()));
            command.arg("-drive").arg(format!("if=none,id={},format=raw,file={image}", disk.name));
            command.arg("-device").arg(disk.device());
        }
        // A second card below a port that keeps its functions apart from nothing: all of them are one IOMMU group.
        command.args(["-device", "pcie-root-port,id=rp3,chassis=4,slot=4,disable-acs=on", "-device"]);
        command.arg("igb,bus=rp3,romfile=");
        command.arg("-kernel").arg(&self.host.kernel).arg("-initrd").arg(&self.host.boot);
        // On a busy machine the emulated timer is late for the kernel's test of it, which then panics.
        let words = "console=ttyS0 reboot=t panic=-1 intel_iommu=on no_timer_check quiet";
        command.arg("-append").arg(format!("{words} {}", shape.kernel_words));
    }
}

/// A disk behind NVMe.
pub(super) struct NvmeDisk {
    name: &'static str,
    pub(super) mib: u64,
    place: NvmePlace,
}

enum NvmePlace {
    /// The first namespace of the SR-IOV controller, private to it: QEMU attaches a shared one to a secondary controller
    /// by itself, whenever a guest enables that.
    Attached,
    /// A namespace of this id of the same, attached to nothing.
    Detached(u32),
    /// All that another controller of this serial number has.
    Alone(&'static str),
}

/// What the lab host finds behind its NVMe controllers; the devices of a machine in their order.
pub(super) const NVME_DISKS: [NvmeDisk; 6] = [
    NvmeDisk { name: "nvme", mib: 256, place: NvmePlace::Attached },
    NvmeDisk { name: "nvme-16", mib: 16, place: NvmePlace::Detached(2) },
    NvmeDisk { name: "nvme-64a", mib: 64, place: NvmePlace::Detached(3) },
    NvmeDisk { name: "nvme-64b", mib: 64, place: NvmePlace::Detached(4) },
    NvmeDisk { name: "nvme-96", mib: 96, place: NvmePlace::Detached(5) },
    NvmeDisk { name: "nvme-alone", mib: 32, place: NvmePlace::Alone("ALONE") },
];

impl NvmeDisk {
    /// Its image, in the run's directory.
    pub(super) fn file(&self) -> String {
        format!("{}.img", self.name)
    }

    fn device(&self) -> String {
        let name = self.name;
        match self.place {
            NvmePlace::Attached => format!("nvme-ns,drive={name},bus=nv0,nsid=1,shared=off"),
            NvmePlace::Detached(nsid) => {
                format!(
                    "nvme-ns,drive={name},bus=nv0,nsid={nsid},shared=on,detached=on,eui64=0x52540000000000{nsid:02x}"
                )
            }
            NvmePlace::Alone(serial) => format!("nvme,id=nv1,serial={serial},bus=rp2,drive={name}"),
        }
    }
}

fn drive(command: &mut Command, image: &Path, writable: bool) {
    let id = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let readonly = if writable { "off,cache=unsafe" } else { "on" };
    command.arg("-drive").arg(format!("if=none,id={id},format=raw,readonly={readonly},file={}", escaped(image)));
    command.arg("-device").arg(format!("virtio-blk-pci,drive={id},serial={id}"));
}

/// In QEMU's option lists a comma in a value is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn line(text: String, line: &str) -> String {
    text + line + "\n"
}

/// The lab's sign of life, through two pipes that are QEMU's `pulse.in` and `pulse.out`.
struct Pulse {
    to_lab: File,
    from_lab: File,
    felt: Instant,
    nudged: Instant,
}

impl Pulse {
    fn make(directory: &Path) -> Result<Self> {
        let open = |name: &str| -> Result<File> {
            let path = directory.join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .context("cannot make a pipe for the lab")?;
            // For both directions, so that neither end waits for the other.
            let file = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
            Ok(file.context("cannot open a pipe of the lab")?.into())
        };
        let (to_lab, from_lab) = (open("pulse.in")?, open("pulse.out")?);
        Ok(Self { to_lab, from_lab, felt: Instant::now(), nudged: Instant::now() })
    }

    fn has_stopped(&mut self) -> bool {
        if matches!(self.from_lab.read(&mut [0; 1024]), Ok(1..)) {
            self.felt = Instant::now();
        }
        if self.nudged.elapsed() > NUDGE {
            // A pipe that is full has nudges enough.
            let _ = self.to_lab.write(b".");
            self.nudged = Instant::now();
        }
        self.felt.elapsed() > PULSE_LIMIT
    }
}

/// What the lab prints, on its way to our standard output: as it comes, or in whole lines behind a label.
struct Output {
    from: File,
    label: Option<String>,
    /// The beginning of a line that has not ended yet.
    line: Vec<u8>,
}

impl Output {
    fn open(path: &Path, label: Option<String>) -> Result<Self> {
        Ok(Self { from: File::open(path)?, label, line: Vec::new() })
    }

    fn copy_available(&mut self) -> Result<()> {
        let mut buffer = [0; 16 << 10];
        let mut stdout = std::io::stdout();
        loop {
            let length = self.from.read(&mut buffer)?;
            let Some(label) = self.label.as_deref().filter(|_| length > 0) else {
                stdout.write_all(&buffer[..length])?;
                stdout.flush()?;
                if length == 0 {
                    return Ok(());
                }
                continue;
            };
            for byte in &buffer[..length] {
                self.line.push(*byte);
                if *byte == b'\n' {
                    stdout.write_all(&[label.as_bytes(), &self.line].concat())?;
                    self.line.clear();
                }
            }
        }
    }

    /// A last line that never ended.
    fn end(&mut self) -> Result<()> {
        if let Some(label) = self.label.as_deref().filter(|_| !self.line.is_empty()) {
            println!("{label}{}", String::from_utf8_lossy(&self.line));
        }
        Ok(())
    }
}
