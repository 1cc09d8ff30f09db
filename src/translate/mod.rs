//! "Process to translate an IOVA": what becomes of a request of an emulated device, or of the debug interface.
//!
//! This file is the procedure, in the order of the specification's steps; `request` what a device model asks and is
//! told, `caches` and `recent` what is remembered between requests, `ats` what an ATS translation request is answered.

mod ats;
mod caches;
mod recent;
mod request;

pub(crate) use ats::completion_of;
pub use ats::{AtsCompletion, AtsRequest, AtsTranslation};
pub(crate) use caches::Caches;
pub use request::{Pbmt, Permissions, QosIds, Request, Target, Translation};

use crate::addr::{Gpa, NestedGpa, PAGE_SHIFT};
use crate::backend::GuestMemory;
use crate::ddt::{Checked, FirstStageContext, Iosatp, MsiContext, Reading, Trail};
use crate::error::{MemoryFault, Violation};
use crate::fault::{Access, Cause, Fault, TransactionType};
use crate::faultq::Origin;
use crate::id::{DeviceId, Gscid, ProcessId, Pscid};
use crate::mem::View;
use crate::msi::Destination;
use crate::pdt::ProcessDirectory;
use crate::pt::pte::Pte;
use crate::pt::{Extensions, FirstStage, Implicit, Loads, Mapping, Need, SecondStage, Stop, Walker};
use crate::regs::file::Registers;

/// What a request asks beyond its [`Origin`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// An instruction fetch; of an ATS request, with a `process_id`.
    pub(crate) executes: bool,
    /// A write, or an ATS request without NW.
    pub(crate) writes: bool,
    /// It is told which permissions there are, and needs none.
    pub(crate) is_ats: bool,
}

impl Ask {
    /// What an access asks.
    pub(crate) const fn of(access: TransactionType) -> Self {
        let executes = matches!(access.access(), Access::Execute);
        Self { executes, writes: matches!(access.access(), Access::Write), is_ats: false }
    }

    /// Which of the causes an access has are this one's (rules ACC-04, ACC-07).
    const fn access(self) -> Access {
        match (self.executes, self.writes && !self.is_ats) {
            (true, _) => Access::Execute,
            (false, true) => Access::Write,
            (false, false) => Access::Read,
        }
    }
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) to: To,
    /// The address between the stages.
    pub(crate) gpa: NestedGpa,
    /// The 2^`shift` bytes around the address are translated alike.
    pub(crate) shift: u8,
    pub(crate) permissions: Permissions,
    pub(crate) global: bool,
    pub(crate) memory_type: Pbmt,
    pub(crate) qos: QosIds,
    /// Tag of the first stage.
    pub(crate) pscid: Option<Pscid>,
    /// `T2GPA`.
    pub(crate) t2gpa: bool,
    /// `DTF` of the device's context.
    pub(crate) dtf: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Memory(Gpa),
    /// Through an MSI page table.
    Msi(Destination),
}

/// Why a request comes to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    /// `DTF` of the device's context.
    pub(crate) dtf: bool,
}

/// What the performance monitor counts of a request (rule HPT-01), and the tags it compares.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) ddt: u32,
    pub(crate) pdt: u32,
    /// Second-stage entries for the process directory, which is in no first-stage address space.
    pub(crate) implicit: u32,
    pub(crate) loads: Loads,
    pub(crate) gscid: Option<Gscid>,
    pub(crate) pscid: Option<Pscid>,
    /// With the default `process_id`, where the request had none (rule HPM-39).
    pub(crate) process: Option<ProcessId>,
}

/// What the procedure works on.
#[derive(Debug)]
pub(crate) struct Env<'a, M, const CACHE: usize> {
    pub(crate) registers: &'a Registers,
    pub(crate) memory: &'a mut M,
    pub(crate) caches: &'a mut Caches<CACHE>,
    pub(crate) tally: Tally,
}

/// A first stage, and how it is entered.
struct Entered {
    first: Option<Iosatp>,
    supervisor: bool,
    sum: bool,
}

impl Entered {
    const BARE: Self = Self { first: None, supervisor: false, sum: false };
}

impl<M: GuestMemory, const CACHE: usize> Env<'_, M, CACHE> {
    /// The process, from its first step to its last; the first rule that fails ends it.
    ///
    /// # Errors
    /// [`Refusal`]: any cause but those of the queues.
    pub(crate) fn translate(&mut self, origin: &Origin, ask: Ask) -> Result<Outcome, Refusal> {
        let reading = self.read_context(origin.device);
        self.translate_from(&reading, origin, ask)
    }

    /// The same for a device whose context has been read.
    pub(crate) fn translate_from(&mut self, reading: &Reading, origin: &Origin, ask: Ask) -> Result<Outcome, Refusal> {
        self.tally.process = origin.process;
        // 1-7. The device context, and what it does not allow.
        let dtf = reading.dtf().unwrap_or(false);
        match (reading.refuses(origin.access, origin.process), reading) {
            (Some(fault), _) | (None, &Reading::None(fault)) => Err(Refusal { fault, dtf }),
            // 2. Bare.
            (None, Reading::Bare) => Ok(untranslated(origin, own_ids(self.registers))),
            (None, Reading::Context(dc)) => self.with_context(dc, origin, ask).map_err(|fault| Refusal { fault, dtf }),
        }
    }

    /// What the directory says of a device, or what it said when it was last looked at.
    fn read_context(&mut self, device: DeviceId) -> Reading {
        // Contexts are forgotten with the mode they were found in.
        if let Some(dc) = self.caches.contexts.device(device) {
            return Reading::Context(dc);
        }
        let mut trail = Trail::default();
        let reading = Reading::follow(self.registers, self.memory, device, &mut trail);
        self.tally.ddt = self.tally.ddt.saturating_add(trail.loads);
        if let Reading::Context(dc) = reading {
            self.caches.contexts.insert_device(device, dc);
        }
        reading
    }

    /// Steps 8 to 20.
    fn with_context(&mut self, dc: &Checked, origin: &Origin, ask: Ask) -> Result<Outcome, Fault> {
        let is_translated = origin.access.is_translated();
        self.tally.gscid = dc.second_stage.map(|stage| stage.gscid);
        // 8. A translated request is done, unless its address is a guest-physical one.
        if is_translated && !dc.tc.t2gpa() {
            return Ok(untranslated(origin, qos_ids(dc)));
        }
        // 9-16. The first stage.
        let entered = if is_translated { Entered::BARE } else { self.enter(dc, origin, ask)? };
        self.tally.pscid = entered.first.map(|first| first.pscid);
        let need = need(ask, is_translated, &entered);
        let stop = |stop| fault(stop, ask.access());
        let first = self.first_stage(dc, entered.first);
        let mut walker = self.walker(dc);
        // 17. First stage.
        let first = walker.first_stage(first.as_ref(), origin.iova, need).map_err(stop)?;
        // 18. An interrupt file of a VM, which takes the place of the second stage.
        // UNSPECIFIED: also above the 34 bits that SXL leaves the second stage (rule DC-14).
        if let (Some(msi), Some(stage)) = (dc.msi.filter(|msi| msi.matches(first.to)), dc.second_stage) {
            let destination = self.message(&msi, stage.gscid, first.to, ask)?;
            let second = Mapping::identity(Gpa::new(0));
            let second = Mapping { pte: second.pte.with_x(false), ..second };
            return Ok(Outcome { to: To::Msi(destination), ..outcome(&first, &second, &entered, dc) });
        }
        // 19. Second stage. D is of no use where the first does not allow the write (rule AD-09).
        let need = Need { dirties: need.dirties && first.pte.w(), ..need };
        let second = walker.second_stage(first.to, need).map_err(stop)?;
        // 20. Done.
        let mut shift = first.shift.min(second.shift);
        while shift > PAGE_SHIFT && dc.msi.is_some_and(|msi| msi.overlaps(first.to, shift)) {
            shift = shift.saturating_sub(1);
        }
        Ok(Outcome { shift, ..outcome(&first, &second, &entered, dc) })
    }

    /// Steps 10 to 16: which first stage an untranslated or ATS request goes through.
    fn enter(&mut self, dc: &Checked, origin: &Origin, ask: Ask) -> Result<Entered, Fault> {
        // 10. One for the device. Without a process_id the privilege is User (rule ACC-02).
        let pdtp = match dc.first_stage {
            FirstStageContext::Iosatp(first) => return Ok(Entered { first, ..Entered::BARE }),
            FirstStageContext::Pdtp(pdtp) => pdtp,
        };
        // 11-12. A request of no process is one of process 0, or has no first stage.
        let (process, supervisor) = match origin.process {
            Some(process) => (process, origin.privileged),
            None if dc.tc.dpe() => (ProcessId::truncate(0), false),
            None => return Ok(Entered::BARE),
        };
        self.tally.process = Some(process);
        // 13. None for any process.
        let Some(pdtp) = pdtp else {
            return Ok(Entered::BARE);
        };
        // 14. Locate the process context.
        let context = if let Some(context) = self.caches.contexts.process(origin.device, process) {
            context
        } else {
            let directory = ProcessDirectory {
                pdtp,
                tc: dc.tc,
                view: View::of(self.registers).with_big_endian(dc.tc.sbe()),
                capabilities: self.registers.capabilities(),
            };
            let mut loads = 0;
            let found = directory.locate(&mut self.walker(dc), process, ask.access(), &mut loads);
            self.tally.pdt = loads;
            self.tally.implicit = core::mem::take(&mut self.tally.loads.second);
            let context = found?;
            self.caches.contexts.insert_process(origin.device, process, context);
            context
        };
        // 15. Supervisor requests have to be enabled.
        if supervisor && !context.ens {
            let reason = &Violation("PC.ta.ENS", "is 0, and the request is privileged", "TR-16");
            return Err(Fault::because(Cause::TransactionTypeDisallowed, reason));
        }
        // 16. The first stage of the process.
        Ok(Entered { first: context.first_stage, supervisor, sum: context.sum })
    }

    /// "Process to translate addresses of MSIs".
    fn message(&mut self, msi: &MsiContext, gscid: Gscid, gpa: NestedGpa, ask: Ask) -> Result<Destination, Fault> {
        let ioatc = &mut self.caches.ioatc;
        let pte = if let Some(pte) = ioatc.msi(gscid, gpa) {
            pte
        } else {
            self.tally.loads.missed = true;
            msi.load(self.memory, View::of(self.registers), gpa)?
        };
        let destination = pte.destination(gpa, self.registers.capabilities().msi_mrif())?;
        if let Destination::File(_) = destination {
            ioatc.insert_msi(gscid, gpa, pte);
        }
        // Interrupt files can not be executed (rule MSI-11), and those in memory read as 0.
        // UNSPECIFIED: a read of one in memory is no error (rule MRIF-02).
        match ask.access() {
            Access::Execute if !ask.is_ats => Err(Fault::new(Cause::InstructionAccessFault)),
            _ => Ok(destination),
        }
    }

    fn walker(&mut self, dc: &Checked) -> Walker<'_, M, CACHE> {
        let view = View::of(self.registers);
        let second = dc.second_stage.map(|stage| SecondStage {
            mode: stage.mode,
            root: stage.root,
            gscid: stage.gscid,
            gade: dc.tc.gade(),
            sxl: dc.tc.sxl(),
            view,
        });
        Walker {
            memory: &mut *self.memory,
            ioatc: &mut self.caches.ioatc,
            extensions: Extensions::of(self.registers.capabilities()),
            second,
            loads: &mut self.tally.loads,
        }
    }

    fn first_stage(&self, dc: &Checked, first: Option<Iosatp>) -> Option<FirstStage> {
        first.map(|Iosatp { mode, root, pscid }| FirstStage {
            mode,
            root,
            pscid,
            sade: dc.tc.sade(),
            view: View::of(self.registers).with_big_endian(dc.tc.sbe()),
        })
    }
}

/// A request that goes where it says, unchecked (rules TR-04, TR-11).
fn untranslated(origin: &Origin, qos: QosIds) -> Outcome {
    let gpa = NestedGpa::new(origin.iova.get());
    let identity = Mapping::identity(gpa.untranslated());
    Outcome {
        to: To::Memory(identity.to),
        gpa,
        shift: identity.shift,
        permissions: Permissions { read: true, write: true, execute: true },
        global: false,
        memory_type: Pbmt::Pma,
        qos,
        pscid: None,
        t2gpa: false,
        dtf: false,
    }
}

/// What the request needs of the leaf entries of both stages (rules ACC-05 to ACC-07).
fn need(ask: Ask, is_translated: bool, entered: &Entered) -> Need {
    let bits = match ask.access() {
        _ if ask.is_ats => Pte::new(),
        Access::Read => Pte::new().with_r(true),
        Access::Write => Pte::new().with_w(true),
        // UNSPECIFIED: a fetch needs X, and R as well if it is translated (rule ACC-06).
        Access::Execute => Pte::new().with_x(true).with_r(is_translated),
    };
    Need {
        bits,
        dirties: ask.writes,
        supervisor: entered.supervisor,
        // UNSPECIFIED: an ATS request gets R and W there, without X (rule ATS-11).
        fetches: ask.executes && !ask.is_ats,
        sum: entered.sum,
        implicit: Implicit::No,
    }
}

/// The cause of a walk that stopped on the way to the final address (rules FLT-04 to FLT-06).
fn fault(stop: Stop, access: Access) -> Fault {
    match stop {
        Stop::PageFault => Fault::new(access.page_fault()),
        // UNSPECIFIED: offsets in the page are told, in `iotval` and in `iotval2` (rules FQ-53, FQ-56).
        Stop::GuestPageFault(iotval2) => Fault { iotval2, ..Fault::new(access.guest_page_fault()) },
        Stop::Memory(MemoryFault::Access) => Fault::new(access.access_fault()),
        Stop::Memory(MemoryFault::Corruption) => Fault::new(Cause::PtDataCorruption),
    }
}

/// What both stages together allow.
fn outcome(first: &Mapping<NestedGpa>, second: &Mapping<Gpa>, entered: &Entered, dc: &Checked) -> Outcome {
    let both = Pte::from_bits(first.pte.into_bits() & second.pte.into_bits());
    Outcome {
        to: To::Memory(second.to),
        gpa: first.to,
        shift: PAGE_SHIFT,
        permissions: Permissions {
            read: both.r(),
            write: both.w() && both.d(),
            execute: both.x() && !(entered.supervisor && first.pte.u()),
        },
        global: first.global,
        memory_type: Pbmt::resolve(first.pte.pbmt(), second.pte.pbmt()),
        qos: qos_ids(dc),
        pscid: entered.first.map(|first| first.pscid),
        t2gpa: dc.tc.t2gpa(),
        dtf: dc.tc.dtf(),
    }
}

/// The ids of requests that no context is looked up for (rule REG-DDTP-17).
fn own_ids(registers: &Registers) -> QosIds {
    QosIds { rcid: registers.qosid().rcid(), mcid: registers.qosid().mcid() }
}

fn qos_ids(dc: &Checked) -> QosIds {
    QosIds { rcid: dc.ta.rcid(), mcid: dc.ta.mcid() }
}
