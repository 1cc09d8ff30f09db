//! The orders a [`PhysicalIommu`](super::PhysicalIommu) is given, and its answers.

use crate::addr::{Iova, Ppn};
use crate::id::{FirstStageMode, ProcessDirectoryMode, ProcessId, Pscid};

use super::Ats;

/// How the hardware is to treat a device's requests. Host-owned fields (GSCID, `iohgatp`, MSI table, QoS, `GADE`,
/// `DTF`, custom bits) are not in it: the host puts its own in.
///
/// A driver that meets a variant it does not know blocks the device and answers
/// [`Refused`](crate::OrderError::Refused).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Context {
    /// No access reaches memory, and a Page Request is answered with Invalid Request.
    ///
    /// In a physical device context: `V` = 1, `PDTV` = `EN_ATS` = `EN_PRI` = `PRPR` = `T2GPA` = 0, `fsc` Bare, `msiptp`
    /// Off, and `iohgatp` an empty root table of the host's under a GSCID that is used for nothing else. Not `V` = 0:
    /// its faults (258) can not be masked by `DTF` and crowd other tenants' out of the queue, and a Page Request is
    /// answered with Response Failure, which turns the interface off for all functions that share it.
    ///
    /// Its faults are those of the context lookup (257 to 260) or of a second stage (20, 21, 23);
    /// [`report_fault`](crate::VIommu::report_fault) turns them into what the guest's own IOMMU would say.
    Blocked,
    /// As [`Blocked`](Self::Blocked), for a device that may still hold translations in a cache of its own: `EN_ATS` and
    /// `T2GPA` are 1, so that they lead nowhere and the device can complete
    /// [`ats_invalidate`](super::PhysicalIommu::ats_invalidate), which with `EN_ATS` = 0 it can not (rule SWG-21). Only
    /// for devices whose IOMMU has `T2GPA`, and followed by `Blocked`.
    Quiesced,
    /// The host's second stage alone translates.
    SecondStageOnly {
        /// Requests that carry a `process_id` are translated too (`PDTV = 1`, `pdtp` Bare); else they are disallowed
        /// (`PDTV = 0`, `iosatp` Bare).
        process_ids: bool,
        /// What the device may do besides.
        ats: Ats,
    },
    /// The guest's first stage, nested under the host's second stage (`PDTV = 0`).
    FirstStage(FirstStage),
    /// The guest's process directory, whose contexts hardware reads, nested under the host's second stage
    /// (`PDTV = 1`).
    Processes(Processes),
}

impl Context {
    /// What the device may do besides untranslated requests: `EN_ATS` and `EN_PRI`.
    #[must_use]
    pub const fn ats(&self) -> Ats {
        match self {
            Self::Blocked => Ats::Off,
            Self::Quiesced => Ats::Translations,
            Self::SecondStageOnly { ats, .. } => *ats,
            Self::FirstStage(stage) => stage.ats,
            Self::Processes(processes) => processes.ats,
        }
    }

    /// Whether accesses of the device get anywhere.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self, Self::Blocked | Self::Quiesced)
    }
}

/// A guest's first stage: the fields of a device context that may come from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FirstStage {
    /// `iosatp.MODE`.
    pub mode: FirstStageMode,
    /// `iosatp.PPN`, a guest-physical page: the second stage translates it.
    pub root: Ppn,
    /// `ta.PSCID`.
    pub pscid: Pscid,
    /// `tc.SADE`: hardware updates A and D bits of the guest's tables.
    pub sade: bool,
    /// `tc.SBE`: the guest's tables are big-endian.
    pub sbe: bool,
    /// What the device may do besides.
    pub ats: Ats,
}

impl FirstStage {
    /// A little-endian first stage whose A and D bits hardware leaves alone, without ATS.
    #[must_use]
    pub const fn new(mode: FirstStageMode, root: Ppn, pscid: Pscid) -> Self {
        Self { mode, root, pscid, sade: false, sbe: false, ats: Ats::Off }
    }
}

/// A guest's process directory: the fields of a device context with `PDTV` = 1 that may come from the guest. Its
/// entries and the process contexts are checked by hardware, which reads them in the guest's memory (rule MRG-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Processes {
    /// `pdtp.MODE`.
    pub mode: ProcessDirectoryMode,
    /// `pdtp.PPN`, a guest-physical page: the second stage translates it.
    pub root: Ppn,
    /// `tc.DPE`: requests without a `process_id` are those of process 0; else they are translated by the second stage
    /// alone.
    pub dpe: bool,
    /// `tc.SADE`: hardware updates A and D bits of the guest's tables.
    pub sade: bool,
    /// `tc.SBE`: the guest's directory and tables are big-endian.
    pub sbe: bool,
    /// What the device may do besides.
    pub ats: Ats,
}

impl Processes {
    /// A little-endian directory without a default process, whose tables' A and D bits hardware leaves alone, without
    /// ATS.
    #[must_use]
    pub const fn new(mode: ProcessDirectoryMode, root: Ppn) -> Self {
        Self { mode, root, dpe: false, sade: false, sbe: false, ats: Ats::Off }
    }
}

/// What [`PhysicalIommu::set_context`](super::PhysicalIommu::set_context) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Applied {
    /// The new context is in place.
    Switched,
    /// The device is blocked; the new context needs another call after an invalidation and a fence.
    Blocked,
}

/// What is to be dropped from the physical IOMMU's caches, all within this VM's own GSCID; and, with the guest's ids
/// for devices, from what a host remembers for emulated ones ([`GuestMemory::unmapped`](super::GuestMemory::unmapped)).
///
/// A driver that meets a variant it does not know does as for [`Everything`](Self::Everything).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Invalidation<D> {
    /// All of one device: `IODIR.INVAL_DDT` for it, `IOTINVAL.VMA` and `IOTINVAL.GVMA` for the whole GSCID.
    ///
    /// It may stand for orders about translations that came before or after it in the same batch: where this VM has
    /// devices behind other IOMMUs too, it is [`FirstStage`](Self::FirstStage) for those.
    Device(D),
    /// The context of one process of a device: `IODIR.INVAL_PDT`. No translations.
    Process(D, ProcessId),
    /// First-stage translations of a range of pages.
    Pages(Pages),
    /// First-stage translations of one PSCID, except global ones: `IOTINVAL.VMA` with PSCV = 1, AV = 0.
    AddressSpace(Pscid),
    /// All first-stage translations, global ones included: `IOTINVAL.VMA` with PSCV = 0, AV = 0.
    FirstStage,
    /// All of the above for every device of this VM, and the second stage (`IOTINVAL.GVMA`). The driver knows which
    /// devices it has adopted; `IODIR.INVAL_DDT` with `DV` = 0 would reach other tenants.
    Everything,
}

/// A range of first-stage pages: `IOTINVAL.VMA` with AV = 1.
///
/// The guest chooses its length, up to the whole address space. A driver whose IOMMU has no range operand
/// (`capabilities.S`) issues at most a few commands of one page each, and beyond that an
/// [`AddressSpace`](Invalidation::AddressSpace) or [`FirstStage`](Invalidation::FirstStage); without a non-leaf operand
/// (`NL`) a `non_leaf` range becomes one of these too. With `S`,
/// [`PageRange::covering`](crate::cmdq::PageRange::covering) gives the one command that holds the range; where that is
/// much wider than the range, several are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pages {
    /// First byte of the first page.
    pub first: Iova,
    /// First byte of the last page; the range includes this page.
    pub last: Iova,
    /// Only this address space, except global translations; `None`: every one, global translations included.
    pub pscid: Option<Pscid>,
    /// Non-leaf entries on the way to these pages too.
    pub non_leaf: bool,
}

impl Pages {
    /// The pages from the one that holds `first` to the one that holds `last`, leaf entries only.
    #[must_use]
    pub const fn new(first: Iova, last: Iova, pscid: Option<Pscid>) -> Self {
        Self { first: first.page(), last: last.page(), pscid, non_leaf: false }
    }
}

/// When a DMA of an emulated device began: those of one epoch are drained together. The first one is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    pub(crate) const FIRST: Self = Self(0);

    /// The number, for a host that stores it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The epoch with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The epoch that begins when this one is asked for.
    #[must_use]
    pub const fn next(self) -> Self {
        // 2^64 fences do not happen.
        Self(self.0.wrapping_add(1))
    }
}

/// Names one fence. The crate counts them up, from [`new`](crate::VIommu::new) on and across resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

impl Ticket {
    /// Before all fences there are.
    pub(crate) const FIRST: Self = Self(0);
    /// Behind all of them.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// The number, for a host that stores it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The ticket with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn next(self) -> Self {
        // 2^64 fences do not happen.
        Self(self.0.wrapping_add(1))
    }

    pub(crate) const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Which device accesses a fence makes globally visible, beyond completing the orders before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FenceScope {
    /// `PR`: reads.
    pub reads: bool,
    /// `PW`: writes.
    pub writes: bool,
}

impl FenceScope {
    /// Reads and writes.
    pub const ALL: Self = Self { reads: true, writes: true };

    /// The scope of an IOFENCE.C with these `PR` and `PW` bits.
    #[must_use]
    pub const fn new(reads: bool, writes: bool) -> Self {
        Self { reads, writes }
    }
}

/// What [`PhysicalIommu::fence`](super::PhysicalIommu::fence) found; for
/// [`GuestMemory::drain`](super::GuestMemory::drain) it is about DMA instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Completion {
    /// Everything before the fence is complete.
    Done,
    /// As `Done`, but a device did not answer an ATS invalidation in time.
    AtsTimeout,
    /// [`fence_done`](crate::VIommu::fence_done) will be called; for [`GuestMemory::drain`](super::GuestMemory::drain)
    /// [`drained`](crate::VIommu::drained).
    Pending,
}

/// How a pending fence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FenceOutcome {
    /// Everything before the fence is complete.
    Complete,
    /// As `Complete`, but a device did not answer an ATS invalidation in time: the guest's next fence reports a
    /// timeout (`cmd_to`).
    AtsTimeout,
    /// It can not be told whether the orders before the fence are complete; as
    /// [`OrderError::Fatal`](crate::OrderError::Fatal).
    Failed,
}
