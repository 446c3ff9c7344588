//! The WebAssembly engine and its clock. Key types: [`Sandbox`], [`Clock`].
//!
//! Instances come from a pool of memory slots. A plugin is stopped by fuel (deterministic, the usual way) or when it has had
//! its processor time (the backstop), which is looked at with the epoch. Time in which others keep it from the processor is
//! not the plugin's: a busy host would deny what is in order, and open breakers. Everything that would make a decision depend
//! on the machine or the moment is off: threads, relaxed SIMD, NaN bits.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig, Store, UpdateDeadline,
    WasmBacktraceDetails,
};

use super::imports::Call;
use super::limits::{Limits, MAX_FRAMES};

/// Core modules in one component: a plugin in Python has 38. They cost nothing before they are instantiated.
const CORE_INSTANCES: u32 = 64;
/// The engine's bookkeeping of one instance, in bytes: some 24 for each of its functions, of which an engine of JavaScript has
/// ten thousand. What an instance does not need of it is not allocated.
const INSTANCE_BYTES: usize = 2 << 20;
/// How often the epoch moves while a plugin runs.
const TICK: Duration = Duration::from_millis(1);
/// When a plugin's processor time is looked at first: what is done by then needs no reading of clocks. From there on its time
/// counts, and is looked at with each tick: those of a busy machine are long ones. A call is cut some 10 ms late at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Stack of a plugin, in bytes; overflow is a trap.
const STACK_BYTES: usize = 256 << 10;
/// Instances at the same time: one decision, a few loads, and room for slots being cleared.
const INSTANCES: u32 = 8;
/// Memory of a slot that is cleared by writing zeros instead of by unmapping (no system call for small plugins).
const KEEP_RESIDENT_BYTES: usize = 1 << 20;
/// Resource handles of one instance; no interface of ours has any.
const MAX_HANDLES: usize = 64;

/// An engine with its clock and its limits: makes the store for each call. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sandbox {
    engine: Engine,
    clock: Arc<Clock>,
    limits: Limits,
}

impl Sandbox {
    /// With an engine of [`config`] for the same limits. Starts a thread.
    pub(super) fn start(engine: Engine, limits: Limits) -> std::io::Result<Self> {
        let clock = Arc::new(Clock::start(engine.weak())?);
        // The first look at a clock finds the vDSO, by a system call that the policy host gives up next.
        had_time();
        Ok(Self { engine, clock, limits })
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A store for one call, and the guard that keeps the clock running meanwhile.
    pub(super) fn store(&self, call: Call) -> wasmtime::Result<(Store<Call>, Running)> {
        let mut store = Store::new(&self.engine, call);
        store.limiter(|call| call);
        store.set_fuel(self.limits.fuel)?;
        let (deadline, mut begin) = (self.limits.deadline, None);
        store.set_epoch_deadline(ticks(FIRST_LOOK.min(deadline)));
        store.epoch_deadline_callback(move |_| {
            let had = had_time();
            let has_had = had.saturating_sub(*begin.get_or_insert(had));
            Ok(if has_had < deadline { UpdateDeadline::Continue(1) } else { UpdateDeadline::Interrupt })
        });
        store.set_hostcall_fuel(self.limits.host_call_bytes);
        store.set_max_component_handles(MAX_HANDLES);
        let running = Running::begin(Arc::clone(&self.clock));
        Ok((store, running))
    }
}

/// Processor time that this thread has had.
fn had_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is negative.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Moves of the epoch after which so much time has passed. The first may come at once.
fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).saturating_add(1)
}

/// The policy host's and the compiler's: what one makes fits no other.
pub(super) fn config(limits: &Limits) -> Config {
    // Somewhat more than the cap, so that the limiter refuses and can say so.
    let slot_bytes = limits.memory_bytes.saturating_mul(2);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(INSTANCES)
        .total_core_instances(INSTANCES * CORE_INSTANCES)
        .total_memories(INSTANCES)
        .total_tables(INSTANCES * 4)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(1)
        .max_tables_per_component(4)
        .max_component_instance_size(INSTANCE_BYTES)
        .max_core_instance_size(INSTANCE_BYTES)
        .table_elements(10_000)
        .max_memory_size(slot_bytes)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(INSTANCES)
        .decommit_batch_size(1)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(Some(MAX_FRAMES))
        .native_unwind_info(false)
        // Data is copied in: an image would be a memfd per plugin, and nothing bounds what such files take.
        .memory_init_cow(false)
        .guard_before_linear_memory(true)
        // A reservation below 4 GiB: explicit bounds checks, which the compiler masks against speculation.
        .memory_reservation(slot_bytes as u64)
        .memory_guard_size(64 << 10)
        .memory_may_move(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// The thread that moves the epoch, asleep while no plugin runs.
struct Clock {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Calls under way. The increment in [`Running::begin`] pairs with the load in [`tick`], the unpark with its park.
    running: AtomicUsize,
    /// Set when the clock is dropped; the unpark behind it makes [`tick`] see it.
    is_over: AtomicBool,
}

impl Clock {
    fn start(engine: EngineWeak) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let begun = Arc::new(Barrier::new(2));
        let begins = Arc::clone(&begun);
        let thread = thread::Builder::new().name("policy-clock".into()).spawn(move || {
            begins.wait();
            tick(&seen, &engine);
        })?;
        // The policy host gives up system calls next, those of a thread's start among them.
        begun.wait();
        Ok(Self { shared, thread })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

fn tick(shared: &Shared, engine: &EngineWeak) {
    while !shared.is_over.load(Ordering::Acquire) {
        if shared.running.load(Ordering::Acquire) == 0 {
            thread::park();
            continue;
        }
        thread::sleep(TICK);
        match engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
    }
}

/// Keeps the clock running while a call is under way.
pub(super) struct Running(Arc<Clock>);

impl Running {
    fn begin(clock: Arc<Clock>) -> Self {
        if clock.shared.running.fetch_add(1, Ordering::AcqRel) == 0 {
            clock.thread.thread().unpark();
        }
        Self(clock)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::{Linker, Module, Trap};

    const DEADLINE: Duration = Duration::from_millis(20);
    /// Exports a function "r" that calls the import "h" "s" until it returns zero.
    const CALLS: &[u8] = b"\0asm\x01\0\0\0\x01\x08\x02\x60\0\x01\x7f\x60\0\0\x02\x07\x01\x01h\x01s\0\0\
        \x03\x02\x01\x01\x07\x05\x01\x01r\0\x01\x0a\x0b\x01\x09\0\x03\x40\x10\0\x0d\0\x0b\x0b";

    /// How a plugin ends that does `work` ten times.
    fn run(work: impl Fn() + Send + Sync + 'static) -> wasmtime::Result<()> {
        let limits = Limits { deadline: DEADLINE, ..Limits::default() };
        let engine = Engine::new(&config(&limits)).unwrap();
        let sandbox = Sandbox::start(engine, limits).unwrap();
        let module = Module::new(sandbox.engine(), CALLS).unwrap();
        let (mut linker, left) = (Linker::new(sandbox.engine()), AtomicUsize::new(10));
        let call = move || {
            work();
            i32::from(left.fetch_sub(1, Ordering::Relaxed) > 1)
        };
        linker.func_wrap("h", "s", call).unwrap();
        let (mut store, _running) = sandbox.store(Call::new(Arc::default(), limits.memory_bytes)).unwrap();
        let instance = linker.instantiate(&mut store, &module).unwrap();
        instance.get_typed_func::<(), ()>(&mut store, "r").unwrap().call(&mut store, ())
    }

    #[test]
    fn a_plugin_is_cut_when_it_has_had_its_time_and_not_for_what_others_took_of_it() {
        run(|| thread::sleep(DEADLINE)).unwrap();
        let cut = run(|| {
            let begin = had_time();
            while had_time() - begin < DEADLINE {}
        });
        assert_eq!(cut.unwrap_err().downcast_ref::<Trap>(), Some(&Trap::Interrupt));
    }
}
