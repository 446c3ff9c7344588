//! A plugin's instance that is used again and again: what no tenant's plugin gets here, since nothing could then be said of
//! what it remembers. Key type: [`Warm`].

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store};

use bindings::SelectVf;
use bindings::exports::ostler::policy::select_vf_hook as wit;
use bindings::ostler::policy::{log, settings, types};

#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "select-vf" });
}

/// Calls before an instance is made anew, untimed: our plugins never give memory back.
const CALLS: usize = 8;
const FUEL: u64 = 1 << 40;

/// A component with an instance.
pub struct Warm {
    engine: Engine,
    component: Component,
    question: wit::SelectVfRequest,
    instance: Option<(Store<NoSettings>, SelectVf)>,
    calls: usize,
}

impl Warm {
    /// Of these bytes, to be asked about so many candidates of four cards.
    pub fn new(component: &[u8], candidates: usize) -> wasmtime::Result<Self> {
        // What the daemon's engine also has, of that which costs time in a call.
        let mut config = Config::new();
        config.consume_fuel(true).epoch_interruption(true).cranelift_nan_canonicalization(true);
        let engine = Engine::new(&config)?;
        let component = Component::new(&engine, component)?;
        Ok(Self { engine, component, question: question(candidates), instance: None, calls: 0 })
    }

    /// Makes the next call one of a warm instance.
    pub fn prepare(&mut self) -> wasmtime::Result<()> {
        if self.instance.is_none() || self.calls == CALLS {
            let mut linker = Linker::new(&self.engine);
            SelectVf::add_to_linker::<_, HasSelf<NoSettings>>(&mut linker, |state| state)?;
            let mut store = Store::new(&self.engine, NoSettings);
            store.set_fuel(FUEL)?;
            store.set_epoch_deadline(u64::MAX / 2);
            let instance = SelectVf::instantiate(&mut store, &self.component, &linker)?;
            self.instance = Some((store, instance));
            self.calls = 0;
            self.ask()?;
        }
        Ok(())
    }

    /// Asks; the number of marks.
    pub fn ask(&mut self) -> wasmtime::Result<usize> {
        let Some((store, instance)) = &mut self.instance else { return Ok(0) };
        self.calls += 1;
        match instance.ostler_policy_select_vf_hook().call_select_vf(store, &self.question)? {
            Ok(wit::Verdict::Rank(ranking)) => Ok(ranking.marks.len()),
            _ => Ok(0),
        }
    }
}

struct NoSettings;

impl log::Host for NoSettings {
    fn emit(&mut self, _: log::Level, _: String) {}
}

impl settings::Host for NoSettings {
    fn keys(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn get_string(&mut self, _: String) -> Option<String> {
        None
    }

    fn get_u64(&mut self, _: String) -> Result<Option<u64>, settings::Malformed> {
        Ok(None)
    }

    fn get_bool(&mut self, _: String) -> Result<Option<bool>, settings::Malformed> {
        Ok(None)
    }
}

impl types::Host for NoSettings {}

/// As that of `question`.
fn question(candidates: usize) -> wit::SelectVfRequest {
    let pf = |at: usize| wit::Pf {
        address: format!("0000:{:02x}:00.0", 0x10 + at),
        name: format!("eth{at}"),
        numa_node: Some(u32::from(at >= 2)),
        root: None,
        link_mbps: Some(25_000),
        total_vfs: 256,
        free_vfs: 256,
        own_vfs: 0,
        other_tenants: 0,
    };
    let column = |value: fn(usize) -> usize| (0..candidates).map(|at| value(at) as u16).collect();
    wit::SelectVfRequest {
        tenant: "acme".into(),
        vm: types::Vm { name: "web".into(), vcpus: 4, memory_mib: 1024, disks: 1, nics: 1 },
        nic: "eth0".into(),
        wish: wit::VfWish { mac: None, vlan: None },
        pfs: (0..4).map(pf).collect(),
        candidates: wit::VfTable {
            pf: column(|at| at % 4),
            index: column(|at| at / 4),
            last_tenant: vec![wit::LastTenant::Nobody; candidates],
        },
    }
}
