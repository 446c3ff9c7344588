//! Leases of virtual functions as JSON documents. Key functions: [`encode_lease`], [`decode_lease`].

use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, text, to_json};
use crate::daemon::record::{Holder, LeaseState, VfKey, VfLease};
use crate::model::MacAddr;
use crate::sys::rtnl::{LinkState, VfConfig, VfVlanConfig};

#[derive(Serialize, Deserialize)]
struct StoredLease {
    format: u32,
    pf: String,
    pf_mac: String,
    index: u16,
    address: String,
    generation: u64,
    last_tenant: Option<String>,
    state: StoredLeaseState,
    holder: Option<StoredHolder>,
    #[serde(default)]
    reason: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredLeaseState {
    Free,
    Claimed,
    Prepared,
    Attached,
    Releasing,
    Quarantined,
}

#[derive(Serialize, Deserialize)]
struct StoredHolder {
    vm: String,
    tenant: String,
    nic: String,
    mac: String,
    original: StoredConfig,
}

#[derive(Serialize, Deserialize)]
struct StoredConfig {
    mac: String,
    vlan: u16,
    vlan_qos: u8,
    vlan_service_tag: bool,
    min_tx_mbps: u32,
    max_tx_mbps: u32,
    spoof_check: bool,
    trust: bool,
    link_state: StoredLinkState,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredLinkState {
    Auto,
    Enable,
    Disable,
}

pub(super) fn encode_lease(lease: &VfLease) -> Vec<u8> {
    let (state, reason) = match &lease.state {
        LeaseState::Free => (StoredLeaseState::Free, ""),
        LeaseState::Claimed(_) => (StoredLeaseState::Claimed, ""),
        LeaseState::Prepared(_) => (StoredLeaseState::Prepared, ""),
        LeaseState::Attached(_) => (StoredLeaseState::Attached, ""),
        LeaseState::Releasing(_) => (StoredLeaseState::Releasing, ""),
        LeaseState::Quarantined { reason, .. } => (StoredLeaseState::Quarantined, reason.as_str()),
    };
    to_json(&StoredLease {
        format: FORMAT,
        pf: lease.key.pf.to_string(),
        pf_mac: lease.key.pf_mac.to_string(),
        index: lease.key.index,
        address: lease.address.to_string(),
        generation: lease.generation,
        last_tenant: lease.last_tenant.as_ref().map(ToString::to_string),
        state,
        holder: lease.state.holder().map(store_holder),
        reason: reason.to_owned(),
    })
}

pub(super) fn decode_lease(bytes: &[u8]) -> Result<VfLease, Unusable> {
    let lease: StoredLease = from_json(bytes)?;
    let holder = lease.holder.map(load_holder).transpose()?;
    let held = |state: fn(Holder) -> LeaseState| {
        holder.clone().map(state).ok_or_else(|| "it is held, and names no holder".to_owned())
    };
    let reason = lease.reason;
    let state = match lease.state {
        StoredLeaseState::Free => LeaseState::Free,
        StoredLeaseState::Claimed => held(LeaseState::Claimed)?,
        StoredLeaseState::Prepared => held(LeaseState::Prepared)?,
        StoredLeaseState::Attached => held(LeaseState::Attached)?,
        StoredLeaseState::Releasing => held(LeaseState::Releasing)?,
        StoredLeaseState::Quarantined => match holder {
            Some(holder) => LeaseState::Quarantined { holder, reason },
            None => return Err("it is quarantined, and names no holder".to_owned()),
        },
    };
    Ok(VfLease {
        key: VfKey {
            pf: lease.pf.parse().map_err(text)?,
            pf_mac: lease.pf_mac.parse().map_err(text)?,
            index: lease.index,
        },
        address: lease.address.parse().map_err(text)?,
        generation: lease.generation,
        last_tenant: lease.last_tenant.map(|tenant| tenant.parse()).transpose().map_err(text)?,
        unique_id: None,
        state,
    })
}

fn store_holder(holder: &Holder) -> StoredHolder {
    let VfConfig { mac, vlan, min_tx_mbps, max_tx_mbps, checks_spoofing, is_trusted, link_state } = holder.original;
    StoredHolder {
        vm: holder.vm.to_string(),
        tenant: holder.tenant.to_string(),
        nic: holder.nic.to_string(),
        mac: holder.mac.to_string(),
        original: StoredConfig {
            mac: MacAddr(mac).to_string(),
            vlan: vlan.id,
            vlan_qos: vlan.qos,
            vlan_service_tag: vlan.is_service_tag,
            min_tx_mbps,
            max_tx_mbps,
            spoof_check: checks_spoofing,
            trust: is_trusted,
            link_state: match link_state {
                LinkState::Auto => StoredLinkState::Auto,
                LinkState::Enable => StoredLinkState::Enable,
                LinkState::Disable => StoredLinkState::Disable,
            },
        },
    }
}

fn load_holder(holder: StoredHolder) -> Result<Holder, Unusable> {
    let original = holder.original;
    Ok(Holder {
        vm: holder.vm.parse().map_err(text)?,
        tenant: holder.tenant.parse().map_err(text)?,
        nic: holder.nic.parse().map_err(text)?,
        mac: holder.mac.parse().map_err(text)?,
        original: VfConfig {
            mac: original.mac.parse::<MacAddr>().map_err(text)?.0,
            vlan: VfVlanConfig { id: original.vlan, qos: original.vlan_qos, is_service_tag: original.vlan_service_tag },
            min_tx_mbps: original.min_tx_mbps,
            max_tx_mbps: original.max_tx_mbps,
            checks_spoofing: original.spoof_check,
            is_trusted: original.trust,
            link_state: match original.link_state {
                StoredLinkState::Auto => LinkState::Auto,
                StoredLinkState::Enable => LinkState::Enable,
                StoredLinkState::Disable => LinkState::Disable,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::lease_samples as samples;
    use proptest::prelude::*;

    #[test]
    fn every_state_round_trips() {
        let holder = samples::holder("acme");
        let states = [
            LeaseState::Free,
            LeaseState::Claimed(holder.clone()),
            LeaseState::Prepared(holder.clone()),
            LeaseState::Attached(holder.clone()),
            LeaseState::Releasing(holder.clone()),
            LeaseState::Quarantined { holder, reason: "reset failed".into() },
        ];
        for state in states {
            let lease =
                VfLease { state, generation: 7, last_tenant: Some("globex".parse().unwrap()), ..samples::unheld(3) };
            assert_eq!(decode_lease(&encode_lease(&lease)), Ok(lease));
        }
    }

    #[test]
    fn refuses_a_held_one_without_its_holder() {
        let claimed = VfLease { state: LeaseState::Claimed(samples::holder("acme")), ..samples::unheld(3) };
        let mut json: serde_json::Value = serde_json::from_slice(&encode_lease(&claimed)).unwrap();
        json["holder"] = serde_json::Value::Null;
        assert!(decode_lease(json.to_string().as_bytes()).unwrap_err().contains("names no holder"));
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_lease(&bytes);
        }
    }
}
