//! The common configuration registers and the status state machine (VIRTIO 1.2 §4.1.4.3, §2.1). Pure.
//! Key type: [`CommonConfig`].
//!
//! ```text
//!        ACKNOWLEDGE|DRIVER      FEATURES_OK (refused: stays clear)        DRIVER_OK
//!   0 ────────────────────▶ … ─────────────────────────────────────▶ … ─────────────▶ Effect::Activate
//!   ▲                                                                                       │ write 0
//!   └──────────── reset is done ◀──────────────── Effect::Reset ◀───────────────────────────┘
//! ```
//! Bits are only ever added, but for a reset. Once a queue is enabled its size and addresses are fixed, once features
//! are accepted they are fixed: nothing that a running device relies on can be rewritten below it. An access of any
//! width is taken apart into the fields that it touches; bytes that it does not touch keep their value.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};

use super::queue::Geometry;
use super::signals::Signals;
use crate::vmm::ports::Effect;

/// Length of the registers in bytes (struct virtio_pci_common_cfg up to queue_device).
pub(super) const COMMON_LEN: u32 = 0x38;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDescriptors,
    QueueAvailable,
    QueueUsed,
}

/// Fields with offset and width in bytes, in order, without gaps.
const FIELDS: [(Field, u64, u64); 16] = [
    (Field::DeviceFeatureSelect, 0x00, 4),
    (Field::DeviceFeature, 0x04, 4),
    (Field::DriverFeatureSelect, 0x08, 4),
    (Field::DriverFeature, 0x0c, 4),
    (Field::ConfigVector, 0x10, 2),
    (Field::NumQueues, 0x12, 2),
    (Field::Status, 0x14, 1),
    (Field::Generation, 0x15, 1),
    (Field::QueueSelect, 0x16, 2),
    (Field::QueueSize, 0x18, 2),
    (Field::QueueVector, 0x1a, 2),
    (Field::QueueEnable, 0x1c, 2),
    (Field::QueueNotifyOff, 0x1e, 2),
    (Field::QueueDescriptors, 0x20, 8),
    (Field::QueueAvailable, 0x28, 8),
    (Field::QueueUsed, 0x30, 8),
];

#[derive(Debug, Clone, Copy)]
struct QueueRegisters {
    max_size: u16,
    geometry: Geometry,
    is_enabled: bool,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, geometry: Geometry { size: max_size, ..Geometry::default() }, is_enabled: false }
    }
}

/// The registers.
#[derive(Debug)]
pub(super) struct CommonConfig {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    is_resetting: bool,
    queue_select: u16,
    /// Counts changes of the device configuration.
    generation: u8,
    queues: Vec<QueueRegisters>,
    /// Vector numbers and `NEEDS_RESET`, which the worker sees too.
    signals: Arc<Signals>,
}

impl CommonConfig {
    /// Registers of a device that offers `features` and has a queue per entry of `queue_sizes`.
    pub(super) fn new(features: u64, queue_sizes: &[u16], signals: Arc<Signals>) -> Self {
        Self {
            offered: features,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            is_resetting: false,
            queue_select: 0,
            generation: 0,
            queues: queue_sizes.iter().map(|&size| QueueRegisters::new(size)).collect(),
            signals,
        }
    }

    /// Whether the driver has asked for a reset that is not done yet.
    pub(super) fn is_resetting(&self) -> bool {
        self.is_resetting
    }

    /// Whether the driver has said `DRIVER_OK` to a device that can still follow.
    pub(super) fn is_ready(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.is_resetting && !self.signals.needs_reset()
    }

    /// The features that the driver accepted.
    pub(super) fn features(&self) -> u64 {
        self.driver_features
    }

    /// By queue: what the driver programmed and the largest size, or `None` if it is not enabled.
    pub(super) fn queues(&self) -> impl Iterator<Item = Option<(Geometry, u16)>> {
        self.queues.iter().map(|queue| queue.is_enabled.then_some((queue.geometry, queue.max_size)))
    }

    /// The device configuration is another from now on.
    pub(super) fn count_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Completes a reset: all registers as at the start; status reads 0 from now on.
    pub(super) fn finish_reset(&mut self) {
        self.signals.reset();
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        let generation = self.generation;
        *self = Self { generation, ..Self::new(self.offered, &sizes, self.signals.clone()) };
    }

    /// Reads registers; bytes beyond them read as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (field, start, width) in FIELDS {
            let value = self.get(field).to_le_bytes();
            for (place, byte) in overlap(offset, data.len(), start, width) {
                if let (Some(to), Some(&from)) = (data.get_mut(place), value.get(byte)) {
                    *to = from;
                }
            }
        }
    }

    /// Writes registers, ignoring what the driver may not change now.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let mut effect = None;
        for (field, start, width) in FIELDS {
            let mut value = self.get(field).to_le_bytes();
            let mut is_touched = false;
            for (place, byte) in overlap(offset, data.len(), start, width) {
                if let (Some(to), Some(&from)) = (value.get_mut(byte), data.get(place)) {
                    *to = from;
                    is_touched = true;
                }
            }
            if is_touched {
                effect = self.set(field, u64::from_le_bytes(value)).or(effect);
            }
        }
        effect
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn get(&self, field: Field) -> u64 {
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let queue = self.selected();
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select.into(),
            Field::DeviceFeature => half(self.offered, self.device_feature_select),
            Field::DriverFeatureSelect => self.driver_feature_select.into(),
            Field::DriverFeature => half(self.driver_features, self.driver_feature_select),
            Field::ConfigVector => self.signals.config_vector().into(),
            Field::NumQueues => self.queues.len() as u64,
            Field::Status => (self.status | if self.signals.needs_reset() { NEEDS_RESET } else { 0 }).into(),
            Field::Generation => self.generation.into(),
            Field::QueueSelect => self.queue_select.into(),
            Field::QueueSize => queue.map_or(0, |queue| queue.geometry.size.into()),
            Field::QueueVector => self.signals.queue_vector(self.queue_select.into()).into(),
            Field::QueueEnable => queue.map_or(0, |queue| queue.is_enabled.into()),
            Field::QueueNotifyOff => queue.map_or(0, |_| self.queue_select.into()),
            Field::QueueDescriptors => queue.map_or(0, |queue| queue.geometry.descriptors),
            Field::QueueAvailable => queue.map_or(0, |queue| queue.geometry.available),
            Field::QueueUsed => queue.map_or(0, |queue| queue.geometry.used),
        }
    }

    /// `value` has no bits beyond the field's width.
    fn set(&mut self, field: Field, value: u64) -> Option<Effect> {
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select = value as u32,
            Field::DriverFeatureSelect => self.driver_feature_select = value as u32,
            Field::DriverFeature => self.accept_features(value),
            Field::ConfigVector => self.signals.set_config_vector(value as u16),
            Field::Status => return self.set_status(value as u8),
            Field::QueueSelect => self.queue_select = value as u16,
            Field::QueueVector => self.signals.set_queue_vector(self.queue_select.into(), value as u16),
            Field::QueueEnable if value == 1 => self.program(|queue| queue.is_enabled = true),
            Field::QueueSize => self.program(|queue| queue.geometry.size = value as u16),
            Field::QueueDescriptors => self.program(|queue| queue.geometry.descriptors = value),
            Field::QueueAvailable => self.program(|queue| queue.geometry.available = value),
            Field::QueueUsed => self.program(|queue| queue.geometry.used = value),
            // Read-only, or a queue that cannot be disabled but by a reset.
            Field::DeviceFeature
            | Field::NumQueues
            | Field::Generation
            | Field::QueueEnable
            | Field::QueueNotifyOff => {}
        }
        None
    }

    fn accept_features(&mut self, half: u64) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | half,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | half << 32,
            // Bits that no device has: a driver that wants them must not see FEATURES_OK. Zero is harmless.
            _ => {}
        }
    }

    /// Changes the selected queue, unless it is in use.
    fn program(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        let is_running = self.status & DRIVER_OK != 0;
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select))
            && !queue.is_enabled
            && !is_running
        {
            change(queue);
        }
    }

    fn set_status(&mut self, value: u8) -> Option<Effect> {
        if self.is_resetting {
            return None;
        }
        if value == 0 {
            if self.status & DRIVER_OK == 0 {
                // Nobody else holds anything of the device: done at once.
                self.finish_reset();
                return None;
            }
            self.is_resetting = true;
            return Some(Effect::Reset);
        }
        let mut added = value & !self.status & !NEEDS_RESET;
        if added & FEATURES_OK != 0 && !self.are_features_fine() {
            added &= !FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && (self.status | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
            self.signals.fail(false);
        }
        self.status |= added;
        (added & DRIVER_OK != 0).then_some(Effect::Activate)
    }

    fn are_features_fine(&self) -> bool {
        self.driver_features & !self.offered == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }
}

/// Where an access of `len` bytes at `offset` and a field meet: (index into the access, index into the field).
fn overlap(offset: u64, len: usize, start: u64, width: u64) -> impl Iterator<Item = (usize, usize)> {
    (0..width).filter_map(move |byte| {
        let place = usize::try_from((start + byte).checked_sub(offset)?).ok()?;
        (place < len).then_some((place, byte as usize))
    })
}

#[cfg(test)]
mod tests;
