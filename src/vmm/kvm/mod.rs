//! KVM made total: the few calls that the machine needs, each with its name in the error. Nothing else lives here.
//!
//! Key types: [`Hypervisor`] (`/dev/kvm`), [`Vm`], [`Vcpu`]. `vmm/machine` is the only caller.

#![allow(unsafe_code, reason = "memory slots and a descriptor that is passed in")]

mod cpuid;
mod vcpu;
mod vm;

use std::os::fd::{IntoRawFd, OwnedFd};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

pub use vcpu::{EntryPoint, Exit, Kicker, Vcpu};
pub use vm::{MsiRoute, Vm};

/// A KVM call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct KvmError {
    /// The ioctl's name.
    pub call: &'static str,
    /// What the kernel said.
    #[source]
    pub source: kvm_ioctls::Error,
}

/// Names the call in an error.
trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, KvmError>;
}

impl<T> Named<T> for Result<T, kvm_ioctls::Error> {
    fn named(self, call: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError { call, source })
    }
}

/// What the host's KVM lacks.
#[derive(Debug, thiserror::Error)]
#[error("this host's KVM lacks {0}")]
pub struct Lacks(&'static str);

/// `/dev/kvm`, opened by the daemon.
pub struct Hypervisor(Kvm);

impl Hypervisor {
    /// Takes the descriptor and checks that this KVM has what the machine is built on.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Lacks> {
        // SAFETY: the descriptor is owned and handed over; that it is KVM is checked next by its API version.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(fd.into_raw_fd()) };
        if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
            return Err(Lacks("API version 12 (is the descriptor /dev/kvm?)"));
        }
        let needed = [
            (Cap::Irqchip, "an in-kernel interrupt controller"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::Irqfd, "irqfd"),
            (Cap::IrqRouting, "interrupt routing"),
            (Cap::UserMemory, "user memory slots"),
            (Cap::ImmediateExit, "immediate exit"),
        ];
        match needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some((_, name)) => Err(Lacks(name)),
            None => Ok(Self(kvm)),
        }
    }

    /// Most vCPUs that one VM may have here.
    pub fn max_vcpus(&self) -> usize {
        self.0.get_max_vcpus()
    }
}
