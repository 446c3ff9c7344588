//! Who has which virtual function. Key types: [`VfLease`], [`LeaseState`] with its pure [`LeaseState::step`].
//!
//! A lease is written before anything changes on the host, and is all that a daemon needs to finish or undo what one
//! before it began. It is keyed by card and number, never by IOMMU group, which may be another after a reboot.
//!
//! ```text
//!            Claim             Prepared            Attached
//!   FREE ─────────▶ CLAIMED ───────────▶ PREPARED ──────────▶ ATTACHED ─┐ Attached (a guest's reset)
//!    ▲                 │                    │                   │   ▲───┘
//!    │ Cleaned         └──────── Release ───┴───────────────────┘
//!    │                               ▼            Unclean
//!    └─────────────────────────── RELEASING ──────────────────▶ QUARANTINED
//!                                  ▲  └─┘ Release (again)            │
//!                                  └───────────── Release ───────────┘
//! ```

use std::fmt;

use crate::model::{Bdf, DeviceId, MacAddr, TenantId, VmId};
use crate::sys::rtnl::VfConfig;

/// Which virtual function: the card, by place and permanent address, and the number on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VfKey {
    /// The physical function.
    pub pf: Bdf,
    /// Its permanent address: another card in the same slot is another key.
    pub pf_mac: MacAddr,
    /// Number on it, from 0.
    pub index: u16,
}

impl fmt::Display for VfKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pf, self.pf_mac, self.index)
    }
}

/// What is known of a virtual function's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfLease {
    /// Which one.
    pub key: VfKey,
    /// Its own address, as of the last claim.
    pub address: Bdf,
    /// Grows by one with each change; the store takes no change that does not follow the last one.
    pub generation: u64,
    /// Who had it last and gave it back clean.
    pub last_tenant: Option<TenantId>,
    /// Where it is.
    pub state: LeaseState,
}

/// Where a virtual function is in its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// Nobody's, clean.
    Free,
    /// To be given to a VM; not everything is set yet, perhaps nothing.
    Claimed(Holder),
    /// Reset, set and bound for it.
    Prepared(Holder),
    /// Handed to its process.
    Attached(Holder),
    /// Being cleaned.
    Releasing(Holder),
    /// Could not be cleaned: nobody gets it until an operator has it released.
    Quarantined {
        /// Who had it.
        holder: Holder,
        /// What went wrong.
        reason: String,
    },
}

/// For whom a virtual function was taken, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The VM.
    pub vm: VmId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The VM's NIC.
    pub nic: DeviceId,
    /// The address that it gets: nobody else may have it.
    pub mac: MacAddr,
    /// Settings to be given back.
    pub original: VfConfig,
}

/// What happens to a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// A VM is to get it.
    Claim(Holder),
    /// It is ready for its VM.
    Prepared,
    /// It goes to the VM's process.
    Attached,
    /// It is to be cleaned.
    Release,
    /// It is clean.
    Cleaned,
    /// It is not, because.
    Unclean(String),
}

/// The event is not legal in this state: somebody else was faster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("virtual function {address} is {state}")]
pub struct LeaseRefused {
    /// Which one.
    pub address: Bdf,
    /// Where it is.
    pub state: &'static str,
}

impl LeaseState {
    /// The state's name, as the API and the command line print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Free => "FREE",
            Self::Claimed(_) => "CLAIMED",
            Self::Prepared(_) => "PREPARED",
            Self::Attached(_) => "ATTACHED",
            Self::Releasing(_) => "RELEASING",
            Self::Quarantined { .. } => "QUARANTINED",
        }
    }

    /// For whom it was taken; `None` if it is free.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Free => None,
            Self::Claimed(holder) | Self::Prepared(holder) | Self::Attached(holder) | Self::Releasing(holder) => {
                Some(holder)
            }
            Self::Quarantined { holder, .. } => Some(holder),
        }
    }

    /// The next state; `None` if the event is not legal in this one.
    pub fn step(&self, event: LeaseEvent) -> Option<Self> {
        use LeaseEvent as E;
        match (self.clone(), event) {
            (Self::Free, E::Claim(holder)) => Some(Self::Claimed(holder)),
            (Self::Claimed(holder), E::Prepared) => Some(Self::Prepared(holder)),
            (Self::Prepared(holder) | Self::Attached(holder), E::Attached) => Some(Self::Attached(holder)),
            (
                Self::Claimed(holder)
                | Self::Prepared(holder)
                | Self::Attached(holder)
                | Self::Releasing(holder)
                | Self::Quarantined { holder, .. },
                E::Release,
            ) => Some(Self::Releasing(holder)),
            (Self::Releasing(_), E::Cleaned) => Some(Self::Free),
            (Self::Releasing(holder), E::Unclean(reason)) => Some(Self::Quarantined { holder, reason }),
            (Self::Free, E::Prepared | E::Attached | E::Release | E::Cleaned | E::Unclean(_))
            | (Self::Claimed(_), E::Claim(_) | E::Attached | E::Cleaned | E::Unclean(_))
            | (Self::Prepared(_) | Self::Attached(_), E::Claim(_) | E::Prepared | E::Cleaned | E::Unclean(_))
            | (Self::Releasing(_), E::Claim(_) | E::Prepared | E::Attached)
            | (Self::Quarantined { .. }, E::Claim(_) | E::Prepared | E::Attached | E::Cleaned | E::Unclean(_)) => None,
        }
    }
}

impl VfLease {
    /// The lease of a virtual function that nobody ever had: not recorded before its first claim.
    pub fn unheld(key: VfKey, address: Bdf) -> Self {
        Self { key, address, generation: 0, last_tenant: None, state: LeaseState::Free }
    }

    /// The lease after `event`.
    pub fn after(&self, event: LeaseEvent) -> Result<Self, LeaseRefused> {
        let refused = || LeaseRefused { address: self.address, state: self.state.name() };
        let state = self.state.step(event).ok_or_else(refused)?;
        let last_tenant = match (&state, self.state.holder()) {
            (LeaseState::Free, Some(holder)) => Some(holder.tenant.clone()),
            _ => self.last_tenant.clone(),
        };
        Ok(Self { generation: self.generation + 1, last_tenant, state, ..self.clone() })
    }
}

/// A VM's NIC that is a virtual function, while the VM has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfNic {
    /// The NIC.
    pub id: DeviceId,
    /// The virtual function.
    pub address: Bdf,
    /// Its card's network interface.
    pub pf_interface: String,
    /// The guest's address.
    pub mac: MacAddr,
}

/// Leases for tests.
#[cfg(test)]
pub mod samples {
    use super::*;
    use crate::sys::rtnl::{LinkState, VfVlanConfig};

    /// The lease of a VF that nobody ever had.
    pub fn unheld(index: u16) -> VfLease {
        let pf_mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        let key = VfKey { pf: Bdf::new(0, 1, 0, 0).unwrap(), pf_mac, index };
        VfLease::unheld(key, Bdf::new(0, 1, 0x10 + (index / 8) as u8, (index % 8) as u8).unwrap())
    }

    /// A VM of `tenant` that takes one.
    pub fn holder(tenant: &str) -> Holder {
        let original = VfConfig {
            mac: [0x02, 0, 0, 0, 0, 7],
            vlan: VfVlanConfig { id: 12, qos: 3, is_service_tag: true },
            min_tx_mbps: 1,
            max_tx_mbps: 100,
            checks_spoofing: true,
            is_trusted: true,
            link_state: LinkState::Enable,
        };
        let mac = MacAddr([0x02, 0, 0, 0, 0, 8]);
        Holder { vm: VmId::new(), tenant: tenant.parse().unwrap(), nic: "eth0".parse().unwrap(), mac, original }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn remembers_who_had_it_last_only_when_it_came_back_clean() {
        let mut lease = samples::unheld(0);
        for event in [LeaseEvent::Claim(samples::holder("acme")), LeaseEvent::Release, LeaseEvent::Unclean("x".into())]
        {
            lease = lease.after(event).unwrap();
        }
        assert_eq!((lease.state.name(), &lease.last_tenant, lease.generation), ("QUARANTINED", &None, 3));
        let refused = lease.after(LeaseEvent::Claim(samples::holder("globex"))).unwrap_err();
        assert!(refused.to_string().contains("QUARANTINED"), "{refused}");
        lease = lease.after(LeaseEvent::Release).unwrap().after(LeaseEvent::Cleaned).unwrap();
        assert_eq!((lease.state, lease.last_tenant), (LeaseState::Free, Some("acme".parse().unwrap())));
    }

    fn any_event() -> impl Strategy<Value = LeaseEvent> {
        prop_oneof![
            prop_oneof![Just("acme"), Just("globex")].prop_map(|tenant| LeaseEvent::Claim(samples::holder(tenant))),
            Just(LeaseEvent::Prepared),
            Just(LeaseEvent::Attached),
            Just(LeaseEvent::Release),
            Just(LeaseEvent::Cleaned),
            Just(LeaseEvent::Unclean("reset failed".into())),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: an owner changes only through FREE, FREE is only reached by cleaning, and
        /// the settings to give back are never lost.
        #[test]
        fn never_has_two_owners_and_is_never_free_unclean(events in proptest::collection::vec(any_event(), 0..64)) {
            let mut lease = samples::unheld(0);
            for event in events {
                let Ok(next) = lease.after(event.clone()) else { continue };
                prop_assert_eq!(next.generation, lease.generation + 1);
                match (lease.state.holder(), next.state.holder()) {
                    (Some(before), Some(after)) => prop_assert_eq!(before, after),
                    (Some(_), None) => prop_assert_eq!(event, LeaseEvent::Cleaned),
                    (None, Some(_)) => prop_assert!(matches!(event, LeaseEvent::Claim(_))),
                    (None, None) => prop_assert!(false, "FREE leads only to a claim"),
                }
                lease = next;
            }
        }
    }
}
