//! Registers a VM: tenant's turn, duplicate check, policy, patches, host checks, addresses, store. Key function:
//! [`Node::register_vm`].

use std::time::SystemTime;

use super::access::require_own;
use super::decisions::{record, told};
use super::{CallError, Node, Principal, ServiceError, Terms};
use crate::daemon::crash::{self, Point};
use crate::daemon::policy::Unrecorded;
use crate::daemon::record::{NicLease, VmRecord, attachments_of, mac_of};
use crate::daemon::tenants::Use;
use crate::model::{
    AdmitRequest, Decision, Enforcement, LimitUse, NicSpec, Outcome, Patch, PolicyFault, SpecError, TenantId, VmId,
    VmImage, VmName, VmSpec, VmState,
};

impl Node {
    /// Asks policy, checks the host, remembers the VM. If it is only to be validated, what comes back is what would be
    /// remembered.
    pub async fn register_vm(
        &self,
        principal: &Principal,
        tenant: TenantId,
        name: VmName,
        spec: VmSpec,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        require_own(principal, &tenant)?;
        require_operator_for_placement(principal, &spec)?;
        spec.nics().iter().try_for_each(|nic| require_operator_for_kernel(principal, nic))?;
        // So that two cannot both see the last free place.
        let turn = self.turns.take(&tenant).await;
        if self.find(&tenant, &name).is_some() {
            return Err(ServiceError::AlreadyRegistered { tenant, name });
        }
        // Both at once, since each waits for another thread; policy's answer counts first.
        let (decided, files) = tokio::join!(self.decide(&tenant, &name, &spec), self.check_files(&tenant, &spec));
        if terms.validate_only {
            return self.admitted(tenant, name, spec, decided.dry_run(), files, terms).await;
        }
        // A denial changes nothing that others would have to see: they need not wait until it is on disk.
        let _turn = matches!(decided.foreseen().outcome, Outcome::Allow { .. }).then_some(turn);
        let (id, mut decision) = record(&self.store, &self.plugins, decided).await?;
        decision.id = Some(id.clone());
        crash::reach(Point::RegisterDecided);
        if let Outcome::Deny { .. } = decision.outcome {
            return Err(ServiceError::Denied { tenant, name, decision: Box::new(decision) });
        }
        let admitted = self.admitted(tenant, name, spec, decision, files, terms).await;
        let enforcement = match &admitted {
            Ok(vm) => Enforcement::Enforced(vm.uid.to_string()),
            Err(error) => Enforcement::Overruled { code: overruled_by(error), message: error.to_string() },
        };
        told(&self.store, id, enforcement).await;
        admitted
    }

    /// Makes of an allowance what it allows, if the core's own checks, that of the `files` among them, find nothing against
    /// it.
    async fn admitted(
        &self,
        tenant: TenantId,
        name: VmName,
        spec: VmSpec,
        decision: Decision,
        files: Result<(), ServiceError>,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        let (spec, admission) = match patched(spec, decision) {
            Ok(admitted) => admitted,
            Err(decision) => return Err(ServiceError::Denied { tenant, name, decision }),
        };
        self.charge(&tenant, &Use::of_vm(&spec))?;
        self.facts.check(&spec)?;
        files?;

        let uid = VmId::new();
        let taps = spec.nics().iter().filter(|nic| nic.vf_wish().is_none());
        let lease = self.addresses.lease(taps.clone().count())?;
        let user = self.users.lease()?;
        let nics = taps.zip(lease.subnets());
        let nics =
            nics.map(|(nic, subnet)| NicLease { id: nic.id.clone(), subnet: *subnet, mac: mac_of(uid, &nic.id) });
        let now = SystemTime::now();
        let vm = VmRecord {
            uid,
            tenant,
            name,
            nics: nics.collect(),
            vfs: Vec::new(),
            nvmes: Vec::new(),
            placement: None,
            devices: attachments_of(&spec),
            spec,
            state: VmState::Registered,
            run: None,
            user: user.id(),
            created: now,
            updated: now,
            admission: Box::new(admission),
        };
        if terms.validate_only {
            return Ok(vm);
        }
        // Before the store publishes it: whoever sees the VM can call it.
        self.handles.insert(self.supervisor.adopt_new(vm.clone()));
        let request = terms.success(&vm);
        if let Err(error) = self.store.insert_vm_for(vm.clone(), request.clone()).await {
            self.handles.remove(uid);
            return Err(error.into());
        }
        crash::reach(Point::RegisterRecorded);
        lease.commit();
        user.commit();
        self.requests.written(request).await;
        tracing::info!(tenant = %vm.tenant, vm = %vm.name, %uid, "registered");
        Ok(vm)
    }

    async fn decide(&self, tenant: &TenantId, name: &VmName, spec: &VmSpec) -> Unrecorded<Decision> {
        let request = AdmitRequest {
            tenant: tenant.clone(),
            vm: name.clone(),
            vcpus: spec.vcpus(),
            memory_mib: spec.memory_mib(),
            // Bounded by the number of PCI slots.
            disks: u32::try_from(spec.disks().len()).unwrap_or(u32::MAX),
            nics: u32::try_from(spec.nics().len()).unwrap_or(u32::MAX),
            in_use: self.in_use(tenant),
            labels: Some(spec.labels().clone()),
            images: Some(VmImage::all_of(spec)),
        };
        self.policy.admit(self.plugins.chain(tenant, name), request).await
    }

    pub(super) fn in_use(&self, tenant: &TenantId) -> LimitUse {
        let snapshot = self.store.snapshot();
        let own = snapshot.vms.values().filter(|vm| vm.tenant == *tenant);
        own.fold(LimitUse::default(), |sum, vm| LimitUse {
            vms: sum.vms.saturating_add(1),
            vcpus: sum.vcpus.saturating_add(vm.spec.vcpus()),
            memory_mib: sum.memory_mib.saturating_add(vm.spec.memory_mib()),
        })
    }

    pub(super) async fn check_host(&self, tenant: &TenantId, spec: &VmSpec) -> Result<(), ServiceError> {
        self.facts.check(spec)?;
        self.check_files(tenant, spec).await
    }

    /// Whether images and volumes are there. No patch changes which.
    async fn check_files(&self, tenant: &TenantId, spec: &VmSpec) -> Result<(), ServiceError> {
        let (files, tenant, spec) = (self.files.clone(), tenant.clone(), spec.clone());
        let checked = tokio::task::spawn_blocking(move || files.check(&tenant, &spec)).await;
        match checked {
            Ok(result) => Ok(result?),
            Err(_ended) => Err(ServiceError::Ending),
        }
    }
}

/// Reserved pages, nodes and CPUs of the host are not a tenant's to take: policy is not asked about them yet.
fn require_operator_for_placement(principal: &Principal, spec: &VmSpec) -> Result<(), ServiceError> {
    let (memory, cpus) = (spec.memory(), spec.cpus());
    let is_placed = memory.pages.is_huge() || memory.numa_node.is_some() || cpus.host_cpus.is_some();
    match principal {
        Principal::Tenant(_) | Principal::Viewer(_) if is_placed => Err(ServiceError::NotAllowed {
            needs: "hugepages, NUMA nodes and CPUs of the host are given by an operator, who registers the VM",
        }),
        Principal::Tenant(_) | Principal::Viewer(_) | Principal::Operator(_) => Ok(()),
    }
}

/// The kernel of the host reads the rings of such a NIC itself: which guests it may meet there is not a tenant's to say, and
/// policy is not asked about it yet.
pub(super) fn require_operator_for_kernel(principal: &Principal, nic: &NicSpec) -> Result<(), ServiceError> {
    match principal {
        Principal::Tenant(_) | Principal::Viewer(_) if nic.is_kernel_served() => Err(ServiceError::NotAllowed {
            needs: "a NIC with vhost is given by an operator, who registers the VM or attaches the NIC",
        }),
        Principal::Tenant(_) | Principal::Viewer(_) | Principal::Operator(_) => Ok(()),
    }
}

/// What stood against an allowance, as a stable code.
pub(super) fn overruled_by(error: &ServiceError) -> String {
    match error {
        ServiceError::Denied { decision, .. } => match &decision.outcome {
            Outcome::Deny { code, .. } => return code.clone(),
            Outcome::Allow(_) => "core.denied",
        },
        ServiceError::BadField(_) => "core.bad-field",
        ServiceError::Quota { .. } => "core.quota",
        ServiceError::Addresses(_) => "core.addresses",
        ServiceError::Users(_) => "core.users",
        ServiceError::Store(_) => "core.store",
        ServiceError::Call(CallError::Device(_)) => "core.device",
        _ => "core.failed",
    }
    .to_owned()
}

/// The VM as policy admits it, or the denial. A patch may only narrow; one that asks for more changes nothing, and one
/// that leaves no valid VM denies it.
fn patched(mut spec: VmSpec, mut decision: Decision) -> Result<(VmSpec, Decision), Box<Decision>> {
    let Outcome::Allow(patches) = &decision.outcome else { return Err(Box::new(decision)) };
    for patch in patches {
        let narrowed: Result<VmSpec, SpecError> = match *patch {
            Patch::CapVcpus(vcpus) if vcpus < spec.vcpus() => spec.clone().with_vcpus(vcpus),
            Patch::CapMemoryMib(mib) if mib < spec.memory_mib() => spec.clone().with_memory_mib(mib),
            Patch::CapVcpus(_) | Patch::CapMemoryMib(_) => Ok(spec.clone()),
        };
        match narrowed {
            Ok(narrowed) => spec = narrowed,
            Err(error) => {
                let fault = PolicyFault::BadAnswer(format!("{patch} leaves no valid VM: {error}"));
                let (code, message) = (fault.code().to_owned(), fault.to_string());
                decision.outcome = Outcome::Deny { code, message, plugin: None };
                return Err(Box::new(decision));
            }
        }
    }
    Ok((spec, decision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::samples;

    fn after(patches: Vec<Patch>) -> Result<(u32, u64), String> {
        let vm = samples::running("acme", "web"); // 2 vCPUs, 256 MiB
        let decision = Decision { outcome: Outcome::Allow(patches), ..*vm.admission };
        match patched(vm.spec, decision) {
            Ok((spec, _)) => Ok((spec.vcpus(), spec.memory_mib())),
            Err(denied) => match denied.outcome {
                Outcome::Deny { code, .. } => Err(code),
                Outcome::Allow(_) => unreachable!("a refusal that allows"),
            },
        }
    }

    #[test]
    fn patches_only_narrow() {
        assert_eq!(after(vec![]), Ok((2, 256)));
        assert_eq!(after(vec![Patch::CapVcpus(1), Patch::CapMemoryMib(128)]), Ok((1, 128)));
        assert_eq!(after(vec![Patch::CapVcpus(64), Patch::CapMemoryMib(1 << 20)]), Ok((2, 256)));
        assert_eq!(after(vec![Patch::CapVcpus(0)]), Err("policy.bad-answer".into()));
        assert_eq!(after(vec![Patch::CapMemoryMib(1)]), Err("policy.bad-answer".into()));
    }
}
