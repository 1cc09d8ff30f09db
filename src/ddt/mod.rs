//! The guest's device directory: locating a device context and judging it.
//!
//! [`entry`] is the layout, `check` the configuration checks, this file the walk. Source: "Device-directory-table",
//! "Process to locate the Device-context".

pub(crate) mod check;
pub mod entry;
mod reading;

pub(crate) use check::{Checked, FirstStageContext, Iosatp, MsiContext, Pdtp, iosatp, iosatp_mode_offered};
pub use entry::{BaseContext, DdtEntry, ExtendedContext, Fsc, Iohgatp, MsiPageBits, Msiptp, Ta, Tc};
pub(crate) use reading::Reading;

use crate::addr::{Gpa, Ppn};
use crate::backend::GuestMemory;
use crate::error::Violation;
use crate::fault::{Cause, Fault};
use crate::id::DeviceId;
use crate::mem::View;
use crate::regs::file::Registers;
use crate::regs::{DdtpMode, Gxl};

use check::{Copied, Rules};

/// Where the directory is and how it is to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory {
    levels: u8,
    root: Ppn,
    /// Whether all its contexts are of the extended format (rule DDT-01).
    extended: bool,
    view: View,
    rules: Rules,
}

/// How far the way to a context went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// Entries read.
    pub(crate) loads: u32,
    /// The last of them.
    pub(crate) last: Option<Gpa>,
}

impl Trail {
    const fn step(&mut self, to: Gpa) {
        self.loads = self.loads.saturating_add(1);
        self.last = Some(to);
    }
}

/// Most bits of `device_id` a non-leaf level takes.
const NON_LEAF_BITS: u32 = 9;

impl Directory {
    /// The directory the registers point to, `None` in Off and Bare.
    pub(crate) fn of(registers: &Registers) -> Option<Self> {
        let DdtpMode::Levels(levels) = registers.mode() else {
            return None;
        };
        let capabilities = registers.capabilities();
        Some(Self {
            levels,
            root: registers.ddtp().ppn(),
            extended: capabilities.msi_flat(),
            view: View::of(registers),
            rules: Rules {
                capabilities,
                be: registers.fctl().be(),
                gxl: registers.fctl().gxl(),
                gxl_writable: registers.setup().gxl == Gxl::Writable,
                qos_mask: registers.qos_mask(),
            },
        })
    }

    /// Bits of `device_id` that a directory of so many levels takes (rule DDT-04).
    const fn width(&self, levels: u8) -> u32 {
        DdtpMode::Levels(levels).device_id_width(self.extended)
    }

    /// Part of the `device_id` that selects the entry at `level`, 0 being the last (rule DDT-02).
    fn index(&self, id: DeviceId, level: u8) -> u64 {
        let (below, bits) = match level {
            0 => (0, self.width(1)),
            _ => (self.width(level), NON_LEAF_BITS),
        };
        u64::from(id.get().wrapping_shr(below) & !u32::MAX.wrapping_shl(bits))
    }

    /// Finds and checks the context of a device: "Process to locate the Device-context".
    ///
    /// # Errors
    /// 260 if the id is too wide, 257, 258, 259 and 268 as each entry fails; the first failing step decides.
    pub(crate) fn locate(&self, memory: &impl GuestMemory, id: DeviceId, trail: &mut Trail) -> Result<Checked, Fault> {
        // TR-06: before any entry is read.
        if !id.fits(self.width(self.levels)) {
            let reason = &Violation("device_id", "is wider than ddtp.iommu_mode takes", "TR-06");
            return Err(Fault::because(Cause::TransactionTypeDisallowed, reason));
        }
        // 1. a is the root page, i counts the levels down.
        let mut table = self.root.base();
        for level in (1..self.levels).rev() {
            // 2-4. Load the non-leaf entry.
            let at = entry(table, self.index(id, level), 8);
            trail.step(at);
            let ddte: DdtEntry = self.view.load_new(memory, at).map_err(Fault::of_ddt_load)?;
            // 5. Not valid: nothing else in it may be looked at.
            if !ddte.v() {
                return Err(Fault::because(Cause::DdtNotValid, &Violation("ddte.V", "is 0", "DDT-11")));
            }
            // 6. Reserved bits.
            if ddte.rsvd0() != 0 || ddte.rsvd1() != 0 {
                let reason = &Violation("ddte", "has a reserved bit that is 1", "DDT-11");
                return Err(Fault::because(Cause::DdtMisconfigured, reason));
            }
            // 7. Descend.
            table = ddte.ppn().base();
        }
        // 8. Load the context, whole, once.
        let index = self.index(id, 0);
        let at = entry(table, index, if self.extended { 64 } else { 32 });
        trail.step(at);
        let context = if self.extended {
            Copied::Extended(self.view.load_new(memory, at).map_err(Fault::of_ddt_load)?)
        } else {
            Copied::Base(self.view.load_new(memory, at).map_err(Fault::of_ddt_load)?)
        };
        // 9-10. Valid, and configured as the capabilities allow.
        context.judge(&self.rules)
    }
}

/// Address of an entry: tables are pages, so base and offset do not overlap.
const fn entry(table: Gpa, index: u64, bytes: u64) -> Gpa {
    table.or(index.wrapping_mul(bytes))
}

#[cfg(test)]
mod tests;
