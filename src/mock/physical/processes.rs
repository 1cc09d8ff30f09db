//! The process directory as the modelled IOMMU walks it (rules PDT-01 to PDT-16, PCK-01 to PCK-03), and what it keeps
//! of it. The second stage is the identity: what is not memory of the VM is an access fault.

use std::collections::BTreeMap;

use crate::addr::{Gpa, Ppn};
use crate::backend::{FirstStage, Processes};
use crate::error::MemoryFault;
use crate::fault::Cause;
use crate::id::{FirstStageMode, ProcessDirectoryMode, ProcessId, Pscid};
use crate::mock::memory::Memory;
use crate::regs::Capabilities;

use super::context::{field, first_stage_mode};

/// A process context.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessContext {
    /// Supervisor requests are allowed.
    pub(super) ens: bool,
    /// They may touch user pages.
    pub(super) sum: bool,
    /// `None`: Bare.
    pub(super) stage: Option<FirstStage>,
}

/// What hardware keeps of the directory of one device, dropped by nothing but commands (rules CA-02, CA-03).
#[derive(Debug, Default)]
pub(super) struct PdtCache {
    contexts: BTreeMap<u32, ProcessContext>,
    /// The page an entry of this level points to, for the process ids that begin so.
    tables: BTreeMap<(u32, u32), Gpa>,
}

impl PdtCache {
    /// An `INVAL_PDT` was executed: the context goes, the entries on the way to it stay (rule DIR-03).
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.contexts.remove(&process.get());
    }
}

/// Where a directory is, and what may be in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pdt<'a> {
    pub(super) memory: &'a Memory,
    pub(super) processes: &'a Processes,
    pub(super) capabilities: Capabilities,
}

impl Pdt<'_> {
    /// The context of a process as it is in memory now.
    pub(super) fn fresh(self, process: ProcessId) -> Result<ProcessContext, Cause> {
        self.walk(process, &mut PdtCache::default())
    }

    /// The context of a process, from the cache as far as possible, and fills it.
    pub(super) fn cached(self, process: ProcessId, cache: &mut PdtCache) -> Result<ProcessContext, Cause> {
        let found = match cache.contexts.get(&process.get()) {
            Some(context) => *context,
            None => self.walk(process, cache)?,
        };
        cache.contexts.insert(process.get(), found);
        Ok(found)
    }

    fn walk(self, process: ProcessId, cache: &mut PdtCache) -> Result<ProcessContext, Cause> {
        let mut table = self.processes.root.base();
        for level in (1..levels(self.processes.mode)).rev() {
            let prefix = process.get().wrapping_shr(shift(level));
            table = match cache.tables.get(&(level, prefix)) {
                Some(next) => *next,
                None => self.follow(table.or(u64::from(prefix & 0x1ff) << 3))?,
            };
            cache.tables.insert((level, prefix), table);
        }
        self.context(table.or(u64::from(process.get() & 0xff) << 4))
    }

    /// A non-leaf entry: V in bit 0, PPN in 53:10.
    fn follow(self, at: Gpa) -> Result<Gpa, Cause> {
        let entry = self.load(at)?;
        match entry {
            _ if entry & 1 == 0 => Err(Cause::PdtNotValid),
            _ if entry & 0xffc0_0000_0000_03fe != 0 => Err(Cause::PdtMisconfigured),
            _ => Ok(Gpa::new((entry & 0x003f_ffff_ffff_fc00) << 2)),
        }
    }

    /// A process context: `ta` and `fsc`.
    fn context(self, at: Gpa) -> Result<ProcessContext, Cause> {
        let (ta, fsc) = (self.load(at)?, self.load(at.or(8))?);
        if ta & 1 == 0 {
            return Err(Cause::PdtNotValid);
        }
        let mode = first_stage_mode(fsc).filter(|mode| mode.is_none_or(|mode| self.has(mode)));
        let reserved = ta & 0xffff_ffff_0000_0ff8 != 0 || fsc & 0x0fff_f000_0000_0000 != 0;
        let mode = mode.filter(|_| !reserved).ok_or(Cause::PdtMisconfigured)?;
        let Processes { sade, sbe, ats, .. } = *self.processes;
        let (root, pscid) = (Ppn::truncate(fsc), Pscid::truncate(field(ta, 12)));
        let stage = mode.map(|mode| FirstStage { mode, root, pscid, sade, sbe, ats });
        Ok(ProcessContext { ens: ta & 2 != 0, sum: ta & 4 != 0, stage })
    }

    fn load(self, at: Gpa) -> Result<u64, Cause> {
        let word = self.memory.hardware_load(at).map_err(|fault| match fault {
            MemoryFault::Access => Cause::PdtLoadAccessFault,
            MemoryFault::Corruption => Cause::PdtDataCorruption,
        })?;
        Ok(if self.processes.sbe { word.swap_bytes() } else { word })
    }

    const fn has(self, mode: FirstStageMode) -> bool {
        match mode {
            FirstStageMode::Sv32 => false,
            FirstStageMode::Sv39 => self.capabilities.sv39(),
            FirstStageMode::Sv48 => self.capabilities.sv48(),
            FirstStageMode::Sv57 => self.capabilities.sv57(),
        }
    }
}

const fn levels(mode: ProcessDirectoryMode) -> u32 {
    match mode {
        ProcessDirectoryMode::Pd8 => 1,
        ProcessDirectoryMode::Pd17 => 2,
        ProcessDirectoryMode::Pd20 => 3,
    }
}

/// Whether a process id is within the width of a directory (rule TR-10).
pub(super) const fn holds(mode: ProcessDirectoryMode, process: ProcessId) -> bool {
    process.get().wrapping_shr(shift(levels(mode))) == 0
}

/// The lowest bit of the index of this level: PDI[0] is bits 7:0, PDI[1] 16:8, PDI[2] 19:17.
const fn shift(level: u32) -> u32 {
    match level {
        0 => 0,
        1 => 8,
        2 => 17,
        _ => 20,
    }
}
