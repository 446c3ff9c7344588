//! The /30 networks between host and NICs. Key types: [`AddressPool`], [`Lease`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::daemon::record::Subnet;

/// An IPv4 network from which /30s are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: Ipv4Addr,
    prefix_len: u8,
}

/// A text is not such a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 network of prefix length 8 to 30, such as 172.30.0.0/16")]
pub struct NetworkError {
    text: String,
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = || NetworkError { text: text.to_owned() };
        let (base, prefix_len) = text.split_once('/').ok_or_else(error)?;
        let base: Ipv4Addr = base.parse().map_err(|_| error())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| error())?;
        if !(8..=30).contains(&prefix_len) || u32::from(base) & (u32::MAX >> prefix_len) != 0 {
            return Err(error());
        }
        Ok(Self { base, prefix_len })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_len)
    }
}

impl Default for Network {
    /// 172.30.0.0/16: 16,384 NICs.
    fn default() -> Self {
        Self { base: Ipv4Addr::new(172, 30, 0, 0), prefix_len: 16 }
    }
}

impl Network {
    /// Whether `subnet` is cut from it.
    fn contains(self, subnet: Subnet) -> bool {
        let mask = u32::MAX.checked_shl(u32::from(32 - self.prefix_len)).unwrap_or(0);
        u32::from(subnet.network()) & mask == u32::from(self.base)
    }

    fn subnets(self) -> impl Iterator<Item = Subnet> {
        let base = u32::from(self.base);
        let count = 1u32 << (Subnet::PREFIX_LEN - self.prefix_len);
        (0..count).filter_map(move |index| Subnet::new(Ipv4Addr::from(base + index * 4)))
    }
}

/// Every network of the pool is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all addresses of the node's network {network} are in use")]
pub struct PoolExhausted {
    network: Network,
}

/// Which /30s are taken. A handle: clones share the pool.
#[derive(Debug, Clone)]
pub struct AddressPool {
    network: Network,
    /// Rank: leaf. Guards the taken networks; held for a lookup only.
    taken: Arc<Mutex<BTreeSet<Subnet>>>,
}

impl AddressPool {
    /// A pool of `network` of which `taken` is in use already (and may lie outside, after a change of configuration).
    pub fn new(network: Network, taken: impl IntoIterator<Item = Subnet>) -> Self {
        Self { network, taken: Arc::new(Mutex::new(taken.into_iter().collect())) }
    }

    /// Reserves `count` networks, the lowest free ones. They are free again when the lease is dropped uncommitted.
    pub fn lease(&self, count: usize) -> Result<Lease, PoolExhausted> {
        let mut taken = self.taken();
        let free: Vec<_> = self.network.subnets().filter(|subnet| !taken.contains(subnet)).take(count).collect();
        if free.len() < count {
            return Err(PoolExhausted { network: self.network });
        }
        taken.extend(&free);
        Ok(Lease { pool: self.clone(), subnets: free })
    }

    /// Whether `subnet` is one that it gives, taken or not.
    pub fn has(&self, subnet: Subnet) -> bool {
        self.network.contains(subnet)
    }

    /// Gives a network back.
    pub fn release(&self, subnet: Subnet) {
        self.taken().remove(&subnet);
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<Subnet>> {
        // Every holder leaves the set whole, whatever happens.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Networks reserved for a VM that is about to be registered.
#[derive(Debug)]
pub struct Lease {
    pool: AddressPool,
    subnets: Vec<Subnet>,
}

impl Lease {
    /// The networks, in the order of the NICs.
    pub fn subnets(&self) -> &[Subnet] {
        &self.subnets
    }

    /// Keeps them: the VM's record holds them from here on.
    pub fn commit(mut self) {
        self.subnets.clear();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for subnet in self.subnets.drain(..) {
            self.pool.release(subnet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str) -> AddressPool {
        AddressPool::new(network.parse().unwrap(), [])
    }

    #[test]
    fn gives_the_lowest_free_networks_and_takes_them_back() {
        let pool = pool("172.30.0.0/16");
        let first = pool.lease(2).unwrap();
        assert_eq!(first.subnets()[1].host(), Ipv4Addr::new(172, 30, 0, 5));
        assert_eq!(first.subnets()[1].guest(), Ipv4Addr::new(172, 30, 0, 6));
        drop(first);
        let again = pool.lease(1).unwrap();
        assert_eq!(again.subnets()[0].network(), Ipv4Addr::new(172, 30, 0, 0));
        let kept = again.subnets()[0];
        again.commit();
        assert_ne!(pool.lease(1).unwrap().subnets()[0], kept);
        pool.release(kept);
        assert_eq!(pool.lease(1).unwrap().subnets()[0], kept);
    }

    #[test]
    fn knows_which_networks_are_its_own() {
        let subnet = |text: &str| Subnet::new(text.parse().unwrap()).unwrap();
        let pool = pool("172.30.0.0/16");
        assert!(pool.has(subnet("172.30.0.0")) && pool.has(subnet("172.30.255.252")));
        assert!(!pool.has(subnet("172.31.0.0")) && !pool.has(subnet("172.29.255.252")));
    }

    #[test]
    fn refuses_more_than_it_has_and_takes_nothing_then() {
        let pool = pool("10.0.0.0/29");
        assert!(pool.lease(3).is_err());
        assert!(pool.lease(2).is_ok());
    }

    #[test]
    fn refuses_texts_that_are_no_network() {
        for text in ["", "172.30.0.0", "172.30.0.1/16", "172.30.0.0/31", "0.0.0.0/0", "x/16", "172.30.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
