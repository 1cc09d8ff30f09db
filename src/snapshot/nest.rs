//! Passthrough devices in an image: ATS invalidations they did not answer, and page requests the guest did not.

use heapless::Vec;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::backend::Ats;
use crate::error::RestoreError;
use crate::id::{DeviceId, Prgi, ProcessId};
use crate::nest::{Saved, SavedDevice, SavedGroup};

use super::{Flags, Head, flag, take};

/// A device of which there is something to tell.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawDevice {
    device: U32,
    timeouts: u8,
    requests: u8,
    had_ats: u8,
    reserved: u8,
}

/// A group of page requests that the guest has not answered.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawGroup {
    device: U32,
    process: U32,
    index: U16,
    whole: u8,
    has_process: u8,
    reserved: U32,
}

impl RawDevice {
    pub(super) fn of(device: SavedDevice) -> Self {
        let SavedDevice { id, timeouts, requests, had_ats } = device;
        Self { device: id.get().into(), timeouts, requests, had_ats: had_ats.into(), reserved: 0 }
    }

    fn decode(self) -> Option<SavedDevice> {
        let Self { device, timeouts, requests, had_ats, reserved: _ } = self;
        let id = DeviceId::new(device.get()).ok()?;
        let device = SavedDevice { id, timeouts, requests, had_ats: flag(had_ats)? };
        (device.is_told() && timeouts <= SavedDevice::MAX_TIMEOUTS).then_some(device)
    }
}

impl RawGroup {
    pub(super) fn of(group: &SavedGroup) -> Self {
        let SavedGroup { device, index, process, whole } = *group;
        Self {
            device: device.get().into(),
            process: process.map_or(0, ProcessId::get).into(),
            index: u16::try_from(index.get()).unwrap_or(0).into(),
            whole: whole.into(),
            has_process: process.is_some().into(),
            reserved: 0.into(),
        }
    }

    fn decode(&self) -> Option<SavedGroup> {
        let process = ProcessId::new(self.process.get()).ok()?;
        Some(SavedGroup {
            device: DeviceId::new(self.device.get()).ok()?,
            index: Prgi::new(self.index.get().into()).ok()?,
            process: flag(self.has_process)?.then_some(process),
            whole: flag(self.whole)?,
        })
    }
}

impl Head {
    /// What passthrough devices are driven anew from. `itags`: how many of their requests there is room for.
    pub(super) fn nest<const DEVICES: usize, const GROUPS: usize>(
        &self,
        flags: Flags,
        lists: &mut &[u8],
        itags: usize,
        granted: impl Fn(DeviceId) -> Option<Ats>,
    ) -> Result<Saved<DEVICES, GROUPS>, RestoreError> {
        let wrong = RestoreError::State("an ATS request or page request that can not be");
        let has = |id: DeviceId, least| {
            let not_attached = RestoreError::NotAttached { device_id: id.get() };
            granted(id).filter(|granted| *granted >= least).map(drop).ok_or(not_attached)
        };
        let (mut devices, mut groups, mut requests) = (Vec::new(), Vec::new(), 0_usize);
        for _ in 0..self.devices.get() {
            let raw: RawDevice = take(lists).ok_or(wrong)?;
            let device = raw.decode().ok_or(wrong)?;
            let twice = devices.iter().any(|other: &SavedDevice| other.id == device.id);
            if twice || RawDevice::of(device).as_bytes() != raw.as_bytes() {
                return Err(wrong);
            }
            has(device.id, Ats::Translations)?;
            requests = requests.saturating_add(device.requests.into());
            devices.push(device).map_err(|_| RestoreError::Capacity("DEVICES"))?;
        }
        if requests > itags {
            return Err(RestoreError::Capacity("ITAGS"));
        }
        for _ in 0..self.groups.get() {
            let raw: RawGroup = take(lists).ok_or(wrong)?;
            let group = raw.decode().ok_or(wrong)?;
            let is_same = |other: &SavedGroup| SavedGroup { whole: group.whole, ..*other } == group;
            if groups.iter().any(is_same) || RawGroup::of(&group).as_bytes() != raw.as_bytes() {
                return Err(wrong);
            }
            has(group.device, Ats::PageRequests)?;
            groups.push(group).map_err(|_| RestoreError::Capacity("GROUPS"))?;
        }
        Ok(Saved {
            residue: flags.residue(),
            timed_out: flags.nest_timed_out(),
            degraded: flags.degraded(),
            probed: self.probed.get().into(),
            devices,
            groups,
        })
    }
}
