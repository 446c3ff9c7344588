//! The peers: each is given the same kernel, initrd and command line, and as few devices as it can do with.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cache, Contender, Disk, Guest, MEMORY_MIB, Nic, Ready, Server, VCPUS};

/// Those whose binaries the environment names.
pub fn from_env() -> Vec<Box<dyn Contender>> {
    let kinds = [("FIRECRACKER", Kind::Firecracker), ("CLOUD_HYPERVISOR", Kind::CloudHypervisor), ("QEMU", Kind::Qemu)];
    let peer = |(name, kind)| {
        let binary = std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists())?;
        Some(Box::new(Peer { kind, binary }) as Box<dyn Contender>)
    };
    kinds.into_iter().filter_map(peer).collect()
}

/// The guest's words, behind those that a hypervisor adds itself: say when userspace is there, do what the guest is for,
/// then end by `ending`.
pub fn cmdline(guest: &Guest, ending: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 {} ostler.exec={ending}", guest.words)
}

enum Kind {
    Qemu,
    Firecracker,
    CloudHypervisor,
}

struct Peer {
    kind: Kind,
    binary: PathBuf,
}

impl Contender for Peer {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Qemu => "qemu-microvm",
            Kind::Firecracker => "firecracker",
            Kind::CloudHypervisor => "cloud-hypervisor",
        }
    }

    fn has_disk(&self, cache: Cache) -> bool {
        match self.kind {
            Kind::Qemu | Kind::CloudHypervisor => true,
            Kind::Firecracker => cache == Cache::Used,
        }
    }

    fn has_nic(&self, server: Server) -> bool {
        match self.kind {
            Kind::Qemu => true,
            Kind::Firecracker | Kind::CloudHypervisor => server == Server::Process,
        }
    }

    fn makes_taps(&self) -> bool {
        false
    }

    fn ready<'a>(&'a self, guest: &'a Guest, dir: &'a Path) -> io::Result<Ready<'a>> {
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Qemu => qemu(&mut command, guest),
            Kind::Firecracker => firecracker(&mut command, guest, dir)?,
            Kind::CloudHypervisor => cloud_hypervisor(&mut command, guest),
        }
        Ok(Ready::Peer(Box::new(command)))
    }
}

fn qemu(command: &mut Command, guest: &Guest) {
    // PCI, where its devices have vectors of their own and vhost-net needs no help, only for those who move data by it.
    let pcie = if guest.disks.is_empty() && guest.nics.is_empty() { "off" } else { "on" };
    command
        // Without an RTC a stock kernel waits seconds for one.
        .args(["-M", &format!("microvm,x-option-roms=off,rtc=on,pit=off,pic=off,isa-serial=on,pcie={pcie}")])
        .args(["-accel", "kvm", "-cpu", "host"])
        .args(["-smp", &VCPUS.to_string(), "-m", &MEMORY_MIB.to_string()])
        // The firmware for it, which QEMU does not choose itself when option ROMs are off.
        .args(["-bios", "qboot.rom"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"])
        // Output only: nothing is typed.
        .args(["-serial", "file:/proc/self/fd/1"])
        .args(["-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng"])
        .arg("-kernel")
        .arg(&guest.kernel)
        // Without ACPI power-off the machine ends by a reset, which -no-reboot turns into an exit.
        .args(["-append", &format!("{} reboot=t", cmdline(guest, "poweroff"))]);
    if let Some(initrd) = &guest.initrd {
        command.arg("-initrd").arg(initrd);
    }
    for (number, disk) in guest.disks.iter().enumerate() {
        qemu_disk(command, number, disk);
    }
    for (number, nic) in guest.nics.iter().enumerate() {
        qemu_nic(command, number, nic);
    }
    // Where its firmware lies when QEMU was not installed but unpacked.
    if let Some(firmware) = std::env::var_os("QEMU_FIRMWARE") {
        command.arg("-L").arg(firmware);
    }
}

fn qemu_disk(command: &mut Command, number: usize, disk: &Disk) {
    let cache = match disk.cache {
        Cache::Used => "writeback",
        Cache::Bypassed => "none",
    };
    let path = disk.path.display();
    command
        .args(["-object", &format!("iothread,id=worker{number}")])
        .args(["-drive", &format!("if=none,id=disk{number},file={path},format=raw,cache={cache},aio=io_uring")])
        .args(["-device", &format!("virtio-blk-pci,drive=disk{number},iothread=worker{number}")]);
}

fn qemu_nic(command: &mut Command, number: usize, nic: &Nic) {
    let vhost = match nic.server {
        Server::Process => "off",
        Server::Kernel => "on",
    };
    let tap = &nic.tap;
    command
        .args(["-netdev", &format!("tap,id=net{number},ifname={tap},script=no,downscript=no,vhost={vhost}")])
        .args(["-device", &format!("virtio-net-pci,netdev=net{number},mac={},romfile=", nic.mac())]);
}

fn firecracker(command: &mut Command, guest: &Guest, dir: &Path) -> io::Result<()> {
    let disk = |(number, disk): (usize, &Disk)| {
        serde_json::json!({
            "drive_id": format!("disk{number}"),
            "path_on_host": disk.path,
            "is_root_device": false,
            "is_read_only": false,
            "cache_type": "Writeback",
            "io_engine": "Async",
        })
    };
    let nic = |nic: &Nic| serde_json::json!({ "iface_id": nic.tap, "guest_mac": nic.mac(), "host_dev_name": nic.tap });
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initrd,
            // It ends at a reset only, not at a power-off.
            "boot_args": format!("{} reboot=k", cmdline(guest, "reboot")),
        },
        "drives": guest.disks.iter().enumerate().map(disk).collect::<Vec<_>>(),
        "network-interfaces": guest.nics.iter().map(nic).collect::<Vec<_>>(),
        "machine-config": { "vcpu_count": VCPUS, "mem_size_mib": MEMORY_MIB },
        "entropy": {},
    });
    let path = dir.join("firecracker.json");
    std::fs::write(&path, config.to_string())?;
    command.arg("--no-api").arg("--config-file").arg(path);
    Ok(())
}

fn cloud_hypervisor(command: &mut Command, guest: &Guest) {
    command
        .arg("--kernel")
        .arg(&guest.kernel)
        .args(["--cmdline", &cmdline(guest, "poweroff"), "--cpus", &format!("boot={VCPUS}")])
        .args(["--memory", &format!("size={MEMORY_MIB}M")])
        .args(["--serial", "tty", "--console", "off", "--rng", "src=/dev/urandom"]);
    if let Some(initrd) = &guest.initrd {
        command.arg("--initramfs").arg(initrd);
    }
    for disk in &guest.disks {
        let direct = match disk.cache {
            Cache::Used => "off",
            Cache::Bypassed => "on",
        };
        // Without its type the first sector of an image is read-only.
        command.arg("--disk").arg(format!("path={},image_type=raw,direct={direct}", disk.path.display()));
    }
    for nic in &guest.nics {
        command.arg("--net").arg(format!("tap={},mac={}", nic.tap, nic.mac()));
    }
}
