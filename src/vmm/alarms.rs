//! What the host may have to tell of devices that are passed through, by number: the control thread watches their events
//! under it. Key type: [`Alarms`].

use std::collections::BTreeMap;

use super::ports::Alarm;
use crate::model::DeviceId;

/// The alarms of all devices.
#[derive(Debug, Default)]
pub struct Alarms {
    /// The next number. None is given twice: an event that was reported may be looked at after its device has gone.
    next: u32,
    known: BTreeMap<u32, Alarm>,
}

impl Alarms {
    /// Keeps an alarm, and gives its number.
    pub fn add(&mut self, alarm: Alarm) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.known.insert(number, alarm);
        number
    }

    /// The alarm of that number, unless its device has gone.
    pub fn get(&self, number: u32) -> Option<&Alarm> {
        self.known.get(&number)
    }

    /// All of them, each with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Alarm)> {
        self.known.iter().map(|(number, alarm)| (*number, alarm))
    }

    /// The device has gone. Its events are closed, with which epoll forgets them.
    pub fn forget(&mut self, device: &DeviceId) {
        self.known.retain(|_, alarm| alarm.device != *device);
    }
}

impl FromIterator<Alarm> for Alarms {
    fn from_iter<T: IntoIterator<Item = Alarm>>(alarms: T) -> Self {
        let mut kept = Self::default();
        for alarm in alarms {
            kept.add(alarm);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::ports::AlarmKind;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn a_number_never_comes_to_mean_another_device() {
        let alarm = |id: &str| Alarm {
            device: id.parse().unwrap(),
            kind: AlarmKind::Request,
            event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        };
        let mut alarms: Alarms = [alarm("a"), alarm("b"), alarm("b")].into_iter().collect();
        alarms.forget(&"b".parse().unwrap());
        assert!(alarms.get(0).is_some() && alarms.get(1).is_none() && alarms.get(2).is_none());
        assert_eq!(alarms.add(alarm("c")), 3);
        assert_eq!(
            alarms.iter().map(|(number, alarm)| (number, alarm.device.as_str())).collect::<Vec<_>>(),
            [(0, "a"), (3, "c")]
        );
    }
}
