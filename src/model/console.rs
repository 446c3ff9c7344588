//! By which device a guest speaks with its console, and how large its window is. Key types: [`ConsoleSpec`], [`WindowSize`].

use std::sync::LazyLock;

use super::DeviceId;

/// Id of the virtio device.
static ID: LazyLock<DeviceId> = LazyLock::new(|| "console".parse().unwrap_or_else(|_| unreachable!("a DNS label")));

/// A VM's console: it has one, from its registration to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConsoleSpec {
    /// COM1, a 16550 (`ttyS0`).
    #[default]
    Serial,
    /// A virtio console (`hvc0`); there is no COM1 then.
    Virtio,
}

impl ConsoleSpec {
    /// The device's name, always the same, if it is one on the PCI bus.
    pub fn id(self) -> Option<&'static DeviceId> {
        match self {
            Self::Serial => None,
            Self::Virtio => Some(&ID),
        }
    }

    /// The word of a kernel's command line that names it.
    pub fn kernel_word(self) -> &'static str {
        match self {
            Self::Serial => "console=ttyS0",
            Self::Virtio => "console=hvc0",
        }
    }
}

/// What a terminal shows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Characters in a line; 0: not known.
    pub columns: u16,
    /// Lines; 0: not known.
    pub rows: u16,
}
