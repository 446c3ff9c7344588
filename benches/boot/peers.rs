//! The peers: each is given the same kernel, initrd and command line, and as few devices as it can do with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::vmm::wait_for;
use super::{CMDLINE, Contender, Images, MEMORY_MIB, Sample, USERSPACE, VCPUS, memory};

/// Those whose binaries the environment names.
pub fn from_env() -> Vec<Box<dyn Contender>> {
    let binary = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
    let mut peers: Vec<Box<dyn Contender>> = Vec::new();
    if let Some(path) = binary("QEMU") {
        peers
            .push(Box::new(Peer { name: "qemu-microvm", command: Box::new(move |images, _| Ok(qemu(&path, images))) }));
    }
    if let Some(path) = binary("FIRECRACKER") {
        let command = move |images: &Images, dir: &Path| firecracker(&path, images, dir);
        peers.push(Box::new(Peer { name: "firecracker", command: Box::new(command) }));
    }
    if let Some(path) = binary("CLOUD_HYPERVISOR") {
        let command = move |images: &Images, _: &Path| Ok(cloud_hypervisor(&path, images));
        peers.push(Box::new(Peer { name: "cloud-hypervisor", command: Box::new(command) }));
    }
    peers
}

type CommandFor = dyn Fn(&Images, &Path) -> std::io::Result<Command>;

struct Peer {
    name: &'static str,
    command: Box<CommandFor>,
}

impl Contender for Peer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn boot(&self, images: &Images) -> Result<Sample, String> {
        let dir = std::env::temp_dir().join(format!("peer-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let run = || {
            std::fs::create_dir_all(&dir)?;
            let mut command = (self.command)(images, &dir)?;
            // An input that stays open: at its end, a peer may spin on its serial port.
            run(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()))
        };
        let sample = run().map_err(|error: std::io::Error| error.to_string());
        let _ = std::fs::remove_dir_all(&dir);
        sample
    }
}

fn run(command: &mut Command) -> std::io::Result<Sample> {
    let started = Instant::now();
    let mut child = command.spawn()?;
    let mut output = child.stdout.take().ok_or_else(|| std::io::Error::other("no output"))?;
    let measured = (|| -> std::io::Result<_> {
        wait_for(&mut output, USERSPACE, &mut Vec::new())?;
        let userspace_ns = started.elapsed().as_nanos() as u64;
        let memory = memory::usage(child.id(), MEMORY_MIB << 10).map_err(std::io::Error::other)?;
        std::io::copy(&mut output, &mut std::io::sink())?;
        Ok((userspace_ns, memory))
    })();
    let _ = child.kill();
    child.wait()?;
    let (userspace_ns, memory) = measured?;
    Ok(Sample { userspace_ns, power_off_ns: started.elapsed().as_nanos() as u64, memory })
}

fn qemu(binary: &Path, images: &Images) -> Command {
    let mut command = Command::new(binary);
    command
        .args([
            "-M",
            // Without an RTC a stock kernel waits seconds for one.
            "microvm,x-option-roms=off,rtc=on,pit=off,pic=off,isa-serial=on",
            "-accel",
            "kvm",
            "-cpu",
            "host",
        ])
        .args(["-smp", &VCPUS.to_string(), "-m", &MEMORY_MIB.to_string()])
        // The firmware for it, which QEMU does not choose itself when option ROMs are off.
        .args(["-bios", "qboot.rom"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"])
        // Output only: nothing is typed.
        .args(["-serial", "file:/proc/self/fd/1"])
        .args(["-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng"])
        .arg("-kernel")
        .arg(&images.vmlinux)
        .arg("-initrd")
        .arg(&images.initrd)
        // Without ACPI power-off the machine ends by a reset, which -no-reboot turns into an exit.
        .args(["-append", &format!("{CMDLINE} reboot=t")]);
    // Where its firmware lies when QEMU was not installed but unpacked.
    if let Some(firmware) = std::env::var_os("QEMU_FIRMWARE") {
        command.arg("-L").arg(firmware);
    }
    command
}

fn firecracker(binary: &Path, images: &Images, dir: &Path) -> std::io::Result<Command> {
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": images.vmlinux,
            "initrd_path": images.initrd,
            // It ends at a reset only, not at a power-off.
            "boot_args": format!("{} reboot=k", CMDLINE.replace("poweroff", "reboot")),
        },
        "drives": [],
        "machine-config": { "vcpu_count": VCPUS, "mem_size_mib": MEMORY_MIB },
        "entropy": {},
    });
    let path = dir.join("firecracker.json");
    std::fs::File::create(&path)?.write_all(config.to_string().as_bytes())?;
    let mut command = Command::new(binary);
    command.arg("--no-api").arg("--config-file").arg(path);
    Ok(command)
}

fn cloud_hypervisor(binary: &Path, images: &Images) -> Command {
    let mut command = Command::new(binary);
    command
        .arg("--kernel")
        .arg(&images.vmlinux)
        .arg("--initramfs")
        .arg(&images.initrd)
        .args(["--cmdline", CMDLINE, "--cpus", &format!("boot={VCPUS}"), "--memory", &format!("size={MEMORY_MIB}M")])
        .args(["--serial", "tty", "--console", "off", "--rng", "src=/dev/urandom"]);
    command
}
