//! What commands mean to devices: `ATS.INVAL` and `ATS.PRGR`, and what emulated ones are to forget.

use super::{AtsInval, AtsPrgr, Env};
use crate::ats::Full;
use crate::backend::{Ats, Backend, Invalidation};
use crate::id::DeviceId;
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Env<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Emulated devices are to forget translations, too: those in use are waited for by the next fence. Of a device
    /// that is none of them nothing is told.
    pub(super) fn forget_dma(&mut self, what: &Invalidation<DeviceId>) {
        self.drains.invalidate();
        let concerns_one = match what {
            Invalidation::Device(id) => self.emulated.named(*id).is_some(),
            _ => !self.emulated.is_empty(),
        };
        if concerns_one {
            self.backend.unmapped(what);
        }
    }

    /// `ATS.INVAL`, to a device that takes part in ATS. Other functions have none: no timeout is made up for them
    /// (rules VC-11, VC-71).
    // UNSPECIFIED: where no ITag is free the head stays on the command (rules ATC-03, CQ-24).
    pub(super) fn invalidate_at_device(&mut self, operands: &AtsInval) -> Result<(), Progress> {
        match self.emulated.named(operands.destination.device()) {
            None => self.nest.ats_invalidate(operands, self.registers, self.backend, self.budget),
            Some(device) if device.ats == Ats::Off => Ok(()),
            Some(device) => self.ats.invalidate(device.attachment, operands).map_err(|Full| Progress::Waiting),
        }
    }

    /// `ATS.PRGR`, to a device that makes page requests; others are none the wiser.
    pub(super) fn respond_to_device(&mut self, operands: &AtsPrgr) -> Result<(), Progress> {
        match self.emulated.named(operands.destination.device()) {
            None => self.nest.respond(operands, self.backend),
            Some(device) if device.ats < Ats::PageRequests => Ok(()),
            Some(device) => self.ats.respond(device.attachment, operands).map_err(|Full| Progress::Waiting),
        }
    }
}
