//! The guest's process directories: locating a process context and judging it.
//!
//! [`entry`] is the layout, this file the walk and the checks. Source: "Process-directory-table", "Process to locate
//! the Process-context".

pub mod entry;

pub use entry::{PdtEntry, ProcessContext, ProcessTa};

use zerocopy::{FromBytes, IntoBytes};

use crate::addr::{NestedGpa, Ppn};
use crate::backend::GuestMemory;
use crate::ddt::entry::Tc;
use crate::ddt::{Iosatp, Pdtp, iosatp, iosatp_mode_offered};
use crate::error::{MemoryFault, Violation, refuse_if};
use crate::fault::{Access, Cause, Fault};
use crate::id::ProcessId;
use crate::mem::View;
use crate::pt::{Need, Stop, Walker};
use crate::regs::Capabilities;

/// A process context that was found valid and well configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// `ENS`: supervisor requests are allowed.
    pub(crate) ens: bool,
    /// `SUM`: supervisor accesses may touch user pages.
    pub(crate) sum: bool,
    /// `None`: Bare.
    pub(crate) first_stage: Option<Iosatp>,
}

/// Where a process directory is and how it is to be read: all of it from the device context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessDirectory {
    pub(crate) pdtp: Pdtp,
    pub(crate) tc: Tc,
    /// Byte order of the directory (`SBE`).
    pub(crate) view: View,
    pub(crate) capabilities: Capabilities,
}

impl ProcessDirectory {
    /// Finds and checks the context of a process: "Process to locate the Process-context". `access` is the device's
    /// own, whose cause a guest-page fault on the way has (rule PDT-10); `loads` counts the entries read.
    ///
    /// # Errors
    /// 265, 266, 267 and 269 as each entry fails, 20, 21 or 23 where the second stage does.
    pub(crate) fn locate<M: GuestMemory, const CACHE: usize>(
        &self,
        walker: &mut Walker<'_, M, CACHE>,
        process: ProcessId,
        access: Access,
        loads: &mut u32,
    ) -> Result<Process, Fault> {
        // 1. a is the root page, i counts the levels down.
        let mut table = self.pdtp.root;
        for level in (1..self.pdtp.mode.levels()).rev() {
            // 2-6. Translate the entry's address and load it.
            let pdte: PdtEntry = self.load(walker, table, index(process, level), access, loads)?;
            // 7. Not valid: nothing else in it may be looked at.
            if !pdte.v() {
                return Err(Fault::because(Cause::PdtNotValid, &Violation("pdte.V", "is 0", "PDT-07")));
            }
            // 8. Reserved bits.
            if pdte.rsvd0() != 0 || pdte.rsvd1() != 0 {
                let reason = &Violation("pdte", "has a reserved bit that is 1", "PDT-07");
                return Err(Fault::because(Cause::PdtMisconfigured, reason));
            }
            // 9. Descend.
            table = pdte.ppn();
        }
        // 10. Load the context, whole, once.
        let context: ProcessContext = self.load(walker, table, index(process, 0), access, loads)?;
        // 11-12. Valid, and configured as the capabilities allow.
        self.judge(context)
    }

    /// Loads the entry at `index` of a table, through the second stage as an implicit read (rules PDT-06 to PDT-09).
    fn load<T: FromBytes + IntoBytes, M: GuestMemory, const CACHE: usize>(
        &self,
        walker: &mut Walker<'_, M, CACHE>,
        table: Ppn,
        index: u64,
        access: Access,
        loads: &mut u32,
    ) -> Result<T, Fault> {
        let bytes = u64::try_from(size_of::<T>()).unwrap_or_default();
        let at = NestedGpa::new(table.base().or(index.wrapping_mul(bytes)).get());
        let place = walker.second_stage(at, Need::IMPLICIT_READ).map_err(|stop| fault(stop, access))?;
        *loads = loads.saturating_add(1);
        self.view.load_new(walker.memory, place.to).map_err(|stop| fault(Stop::Memory(stop), access))
    }

    fn judge(&self, context: ProcessContext) -> Result<Process, Fault> {
        let ProcessContext { ta, fsc } = context;
        refuse_if(!ta.v(), &Violation("PC.ta.V", "is 0", "PDT-08"))
            .map_err(|reason| Fault::because(Cause::PdtNotValid, reason))?;
        self.check(context).map_err(|reason| Fault::because(Cause::PdtMisconfigured, reason))?;
        Ok(Process { ens: ta.ens(), sum: ta.sum(), first_stage: iosatp(fsc, self.tc, ta.pscid()) })
    }

    /// "Process-context configuration checks", in the order of the specification.
    fn check(&self, context: ProcessContext) -> Result<(), &'static Violation> {
        let ProcessContext { ta, fsc } = context;
        // 1.
        let reserved = ta.rsvd0() != 0 || ta.rsvd1() != 0;
        refuse_if(reserved, &Violation("PC.ta", "has a reserved bit that is 1", "PCK-01"))?;
        refuse_if(fsc.rsvd0() != 0, &Violation("PC.fsc", "has a reserved bit that is 1", "PCK-01"))?;
        // 2-4.
        let offered = iosatp_mode_offered(fsc, self.tc, self.capabilities);
        refuse_if(!offered, &Violation("PC.fsc.MODE", "is not one that capabilities has", "PCK-02 to -04"))
    }
}

/// Part of the `process_id` that selects the entry at `level`, 0 being the last (rule PDT-01).
fn index(process: ProcessId, level: u8) -> u64 {
    let (below, bits) = match level {
        0 => (0, 8),
        1 => (8, 9),
        _ => (17, 3),
    };
    u64::from(process.get().wrapping_shr(below) & !u32::MAX.wrapping_shl(bits))
}

/// What ended the way to an entry (rules PDT-10, PDT-11).
fn fault(stop: Stop, access: Access) -> Fault {
    match stop {
        Stop::GuestPageFault(iotval2) => Fault { iotval2, ..Fault::new(access.guest_page_fault()) },
        Stop::Memory(MemoryFault::Corruption) => Fault::because(
            Cause::PdtDataCorruption,
            &Violation("the way to the process context", "leads to memory whose content is lost", "PDT-07, -08, -11"),
        ),
        // There is no first stage on the way to a directory entry.
        Stop::Memory(MemoryFault::Access) | Stop::PageFault => Fault::because(
            Cause::PdtLoadAccessFault,
            &Violation("the way to the process context", "leads to where the guest has no memory", "PDT-07, -08, -11"),
        ),
    }
}
