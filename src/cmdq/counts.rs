//! Counts of commands.

use super::command::Command;

/// How many commands of each kind the guest's command queue has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandCounts {
    /// `IOTINVAL.VMA`.
    pub iotinval_vma: u64,
    /// `IOTINVAL.GVMA`.
    pub iotinval_gvma: u64,
    /// `IOFENCE.C`.
    pub iofence_c: u64,
    /// `IODIR.INVAL_DDT`.
    pub iodir_inval_ddt: u64,
    /// `IODIR.INVAL_PDT`.
    pub iodir_inval_pdt: u64,
    /// `ATS.INVAL`.
    pub ats_inval: u64,
    /// `ATS.PRGR`.
    pub ats_prgr: u64,
    /// Commands that stopped the queue with `cmd_ill`.
    pub illegal: u64,
    /// Fences that stored their data.
    pub fence_stores: u64,
}

impl CommandCounts {
    pub(crate) const NONE: Self = Self {
        iotinval_vma: 0,
        iotinval_gvma: 0,
        iofence_c: 0,
        iodir_inval_ddt: 0,
        iodir_inval_pdt: 0,
        ats_inval: 0,
        ats_prgr: 0,
        illegal: 0,
        fence_stores: 0,
    };

    /// Counts commands like this one that the head has passed.
    #[inline]
    pub(super) fn count(&mut self, command: &Command, passed: u32) {
        let counter = match command {
            Command::IotinvalVma(_) => &mut self.iotinval_vma,
            Command::IotinvalGvma(_) => &mut self.iotinval_gvma,
            Command::IofenceC(_) => &mut self.iofence_c,
            Command::IodirInvalDdt(_) => &mut self.iodir_inval_ddt,
            Command::IodirInvalPdt(..) => &mut self.iodir_inval_pdt,
            Command::AtsInval(_) => &mut self.ats_inval,
            Command::AtsPrgr(_) => &mut self.ats_prgr,
        };
        *counter = counter.wrapping_add(passed.into());
    }

    /// Counts a fence that stored its data.
    pub(super) fn count_store(&mut self) {
        self.fence_stores = self.fence_stores.wrapping_add(1);
    }

    /// Counts a command that stopped the queue.
    pub(super) fn count_illegal(&mut self) {
        self.illegal = self.illegal.wrapping_add(1);
    }
}
