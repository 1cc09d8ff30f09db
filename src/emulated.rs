//! The devices the host emulates: which guest ids they have, and what they are granted.

use heapless::Vec;

use crate::attachment::{Attachment, Generations};
use crate::backend::Ats;
use crate::id::DeviceId;
use crate::list;

/// A device the host emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) attachment: Attachment,
    /// How far its model takes part in ATS: it answers invalidation requests, and may send page requests.
    pub(crate) ats: Ats,
}

#[derive(Debug)]
pub(crate) struct Emulated<const DEVICES: usize> {
    devices: Vec<Device, DEVICES>,
}

impl<const DEVICES: usize> Emulated<DEVICES> {
    pub(crate) const fn new() -> Self {
        Self { devices: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Takes a device in, if there is room.
    pub(crate) fn attach(&mut self, id: DeviceId, ats: Ats, generations: &mut Generations) -> Option<Attachment> {
        if self.devices.is_full() {
            return None;
        }
        let attachment = generations.attach(id);
        self.devices.push(Device { attachment, ats }).ok().map(|()| attachment)
    }

    /// Takes the device of this id out.
    pub(crate) fn detach(&mut self, id: DeviceId) -> Option<Device> {
        let index = self.devices.iter().position(|device| device.attachment.device() == id)?;
        list::swap_take(&mut self.devices, index)
    }

    /// Takes every device out.
    pub(crate) fn detach_all(&mut self) {
        self.devices.clear();
    }

    /// The device of this id.
    pub(crate) fn named(&self, id: DeviceId) -> Option<Device> {
        self.devices.iter().find(|device| device.attachment.device() == id).copied()
    }

    /// The device of this attachment, unless that is an old one.
    pub(crate) fn attached(&self, attachment: Attachment) -> Option<Device> {
        self.named(attachment.device()).filter(|device| device.attachment == attachment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_attachment_is_not_that_of_the_device_now() {
        let (mut generations, mut table) = (Generations::new(), Emulated::<1>::new());
        let id = DeviceId::truncate(8);
        let old = table.attach(id, Ats::Off, &mut generations).unwrap();
        assert!(
            table.attach(DeviceId::truncate(9), Ats::Off, &mut generations).is_none() && table.attached(old).is_some()
        );
        assert_eq!(table.detach(id).map(|device| device.attachment), Some(old));
        let new = table.attach(id, Ats::Translations, &mut generations).unwrap();
        assert_eq!(
            (table.attached(old), table.attached(new).map(|device| device.ats)),
            (None, Some(Ats::Translations)),
            "T34"
        );
        assert_eq!((table.named(id), table.named(DeviceId::truncate(9))), (table.attached(new), None));
    }
}
