//! Who has which device of the host. Key types: [`Lease`], [`LeaseState`] with its pure [`LeaseState::step`].
//!
//! A lease is written before anything changes on the host, and is all that a daemon needs to finish or undo what one
//! before it began. It is keyed by place and identity, never by IOMMU group, which may be another after a reboot. What
//! network functions and NVMe have of their own (key `K`, holder `H`) is in `vf` and `nvme`.
//!
//! ```text
//!            Claim             Prepared            Attached
//!   FREE ─────────▶ CLAIMED ───────────▶ PREPARED ──────────▶ ATTACHED ─┐ Attached (a guest's reset, another run)
//!    ▲                 │                    │                   │   ▲───┘
//!    │ Cleaned         └──────── Release ───┴───────────────────┘
//!    │                               ▼            Unclean
//!    └─────────────────────────── RELEASING ──────────────────▶ QUARANTINED
//!                                  ▲  └─┘ Release (again)            │
//!                                  └───────────── Release ───────────┘
//! ```

use super::vf::Holder;
use crate::model::{Bdf, TenantId, VmId};

/// For whom a device was taken.
pub trait HeldFor: Clone {
    /// The VM.
    fn vm(&self) -> VmId;
    /// Whose it is.
    fn tenant(&self) -> &TenantId;
}

/// What is known of a device's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease<K, H> {
    /// Which one.
    pub key: K,
    /// Its PCI address, or that of the controller through which it is reached, as of the last claim.
    pub address: Bdf,
    /// Grows by one with each change; the store takes no change that does not follow the last one.
    pub generation: u64,
    /// Who had it last and gave it back clean.
    pub last_tenant: Option<TenantId>,
    /// What the device itself said that it is when it was claimed or cleaned, where the key does not tell: of NVMe, a
    /// namespace that was deleted, and another made with its number.
    pub unique_id: Option<String>,
    /// Where it is.
    pub state: LeaseState<H>,
}

/// Where a device is in its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState<H = Holder> {
    /// Nobody's, clean.
    Free,
    /// To be given to a VM; not everything is set yet, perhaps nothing.
    Claimed(H),
    /// Reset, set and bound for it.
    Prepared(H),
    /// Handed to its process.
    Attached(H),
    /// Being cleaned.
    Releasing(H),
    /// Could not be cleaned: nobody gets it until an operator has it released.
    Quarantined {
        /// Who had it.
        holder: H,
        /// What went wrong.
        reason: String,
    },
}

/// What happens to a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent<H = Holder> {
    /// A VM is to get it.
    Claim(H),
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
#[error("device {address} is {state}")]
pub struct LeaseRefused {
    /// Which one.
    pub address: Bdf,
    /// Where it is.
    pub state: &'static str,
}

impl<H: HeldFor> LeaseState<H> {
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
    pub fn holder(&self) -> Option<&H> {
        match self {
            Self::Free => None,
            Self::Claimed(holder) | Self::Prepared(holder) | Self::Attached(holder) | Self::Releasing(holder) => {
                Some(holder)
            }
            Self::Quarantined { holder, .. } => Some(holder),
        }
    }

    /// The next state; `None` if the event is not legal in this one.
    pub fn step(&self, event: LeaseEvent<H>) -> Option<Self> {
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

impl<K: Clone, H: HeldFor> Lease<K, H> {
    /// The lease of a device that nobody ever had: not recorded before its first claim.
    pub fn unheld(key: K, address: Bdf) -> Self {
        Self { key, address, generation: 0, last_tenant: None, unique_id: None, state: LeaseState::Free }
    }

    /// The lease, of a device that says it is `unique_id`. Who had another one does not count, and of a device that does not
    /// say which it is nobody can know.
    pub fn of_device(self, unique_id: Option<String>) -> Self {
        let is_the_same = unique_id.is_some() && unique_id == self.unique_id;
        Self { last_tenant: self.last_tenant.filter(|_| is_the_same), unique_id, ..self }
    }

    /// The lease after `event`.
    pub fn after(&self, event: LeaseEvent<H>) -> Result<Self, LeaseRefused> {
        let refused = || LeaseRefused { address: self.address, state: self.state.name() };
        let state = self.state.step(event).ok_or_else(refused)?;
        let last_tenant = match (&state, self.state.holder()) {
            (LeaseState::Free, Some(holder)) => Some(holder.tenant().clone()),
            _ => self.last_tenant.clone(),
        };
        Ok(Self { generation: self.generation + 1, last_tenant, state, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{VfLease, lease_samples as samples};
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

    #[test]
    fn what_another_device_of_the_same_key_was_says_nothing_of_this_one() {
        let known = |unique_id: Option<&str>| VfLease {
            last_tenant: Some("acme".parse().unwrap()),
            unique_id: unique_id.map(str::to_owned),
            ..samples::unheld(0)
        };
        let found = |lease: VfLease, unique_id: Option<&str>| lease.of_device(unique_id.map(str::to_owned)).last_tenant;
        assert!(found(known(Some("eui64:1")), Some("eui64:1")).is_some());
        assert!(found(known(Some("eui64:1")), Some("eui64:2")).is_none());
        assert!(found(known(Some("eui64:1")), None).is_none());
        assert!(found(known(None), Some("eui64:1")).is_none(), "on record from before that was asked");
        assert!(found(known(None), None).is_none());
        assert_eq!(known(None).of_device(Some("eui64:1".into())).unique_id.as_deref(), Some("eui64:1"));
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
