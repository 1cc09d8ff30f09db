//! What a fault of the physical IOMMU means to the guest (rules VT-02 to VT-07).

use crate::attachment::Attachment;
use crate::backend::{Ats, Context, GuestMemory, Processes};
use crate::ddt::{Pdtp, Reading, Tc};
use crate::fault::{Access, Cause, Fault, TransactionType};
use crate::faultq::{HostFault, Origin};
use crate::id::ProcessId;
use crate::ioatc::Ioatc;
use crate::mem::{Glass, View};
use crate::pdt::{Process, ProcessDirectory};
use crate::pt::{Extensions, Loads, Walker};
use crate::regs::file::Registers;

use super::slot::{Phase, Reread};
use super::{Gate, Nest};

/// What to do with a host fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The guest is shown this; `dtf` is that of the device's context.
    Report { fault: Fault, origin: Origin, dtf: bool },
    /// The device's context changed, or its hardware context was in transition: nothing is shown, and the directory
    /// is read again.
    Reread,
    /// It comes from an earlier owner of the id, or after the device began to leave.
    NotOurs,
}

impl<D: Copy + Eq, const DEVICES: usize, const BATCH: usize, const ITAGS: usize, const GROUPS: usize>
    Nest<D, DEVICES, BATCH, ITAGS, GROUPS>
{
    /// Judges a fault of an attached device. Reads the guest's directory at most once, and only for a fault of the
    /// context lookup or of a device that is blocked; and the way to one process context, where it has to be known what
    /// hardware met there.
    pub(crate) fn judge(
        &mut self,
        attachment: Attachment,
        fault: &HostFault,
        registers: &Registers,
        memory: &impl GuestMemory,
    ) -> Verdict {
        let Some(slot) =
            self.slots.iter_mut().find(|slot| slot.attachment == attachment && slot.phase != Phase::Leaving)
        else {
            return Verdict::NotOurs;
        };
        let HostFault { cause, access, process, privileged, iova, second_stage: _ } = *fault;
        let origin = Origin { device: slot.id(), access, process, privileged, iova };
        let report = |cause, dtf| Verdict::Report { fault: Fault::new(cause), origin, dtf };
        let way = slot.live.and_then(|live| Way::of(live, fault, registers));
        // A blocked state on the way to the context, or from the last one, has faults of the host's structures too.
        let in_transit = slot.was_blocked && !slot.step.is_final(self.completed);
        match shown_as(fault) {
            // Blocked devices do not have these: one that was open had it then, whatever it has been given since.
            Shown::Guests(cause) if slot.was_open => return report(cause, slot.dtf),
            Shown::Hosts(shown) if slot.is_open() && !in_transit => {
                let in_directory = way.is_some_and(|way| way.stops_in_directory(fault, memory));
                return report(if in_directory { Cause::PdtLoadAccessFault } else { shown }, slot.dtf);
            }
            _ => {}
        }
        // Hardware refused the transaction by its context. Whether the guest's own registers and directory refuse it
        // too decides what the guest is shown, whatever cause the host's context gave it (rule VT-04).
        let reading = Reading::take(registers, memory, slot.id());
        let dtf = reading.dtf().unwrap_or(false);
        if let Some(fault) = reading.refuses(access, process) {
            return Verdict::Report { fault, origin, dtf };
        }
        // A message was no access: on an IOMMU of the guest's own it would be in its queue (rules PRI-02, PRI-03).
        let is_access = access != TransactionType::MessageRequest;
        if cause == Cause::TransactionTypeDisallowed {
            // What its context has and the host did not grant is refused as if the context had it not (rules MRG-02,
            // MRG-04).
            let denied = slot.granted() < needed(access);
            let supervises = way.filter(|_| is_access && privileged && !in_transit);
            if denied || supervises.is_some_and(|way| way.refuses_supervisors(memory)) {
                return report(cause, dtf);
            }
        }
        // The guest's context is good, and the host did not carry it out: it refused, or lost what it was given.
        let lost = !in_transit && slot.live == Some(reading.context(slot.granted())) && !is_the_hosts_alone(cause);
        // UNSPECIFIED: an access that the host failed is shown as one that reached nothing (rule VT-04).
        if is_access && (slot.refused || self.gate != Gate::Open || lost) {
            return report(access.access_fault(), dtf);
        }
        // Not `reread`: a fault is no reason to try a context again that the host refused.
        slot.stale = slot.stale.max(Some(Reread::Unasked));
        Verdict::Reread
    }
}

/// The way to the context of the process that a transaction needs, as hardware goes it.
#[derive(Clone, Copy)]
struct Way<'a> {
    registers: &'a Registers,
    live: Processes,
    process: ProcessId,
    access: Access,
}

impl<'a> Way<'a> {
    /// `None` if the transaction needs none.
    fn of(live: Context, fault: &HostFault, registers: &'a Registers) -> Option<Self> {
        let Context::Processes(live) = live else {
            return None;
        };
        let process = fault.process.or(live.dpe.then_some(ProcessId::truncate(0)))?;
        Some(Self { registers, live, process, access: fault.access.access() })
    }

    /// Whether the host has nothing where the process directory is, rather than where the page tables or the memory
    /// are. Without a word of where it has nothing, the directory is it if it can not be read here either (rule VT-05).
    fn stops_in_directory(self, fault: &HostFault, memory: &impl GuestMemory) -> bool {
        let is_explicit = fault.second_stage.is_some_and(|stopped| !stopped.implicit);
        let hole = fault.second_stage.map(|stopped| stopped.at);
        let found = || self.walk(&mut Glass { memory, hole });
        !is_explicit
            && is_guest_page_fault(fault.cause)
            && matches!(found(), Err(Fault { cause: Cause::PdtLoadAccessFault, .. }))
    }

    /// Whether the process context does not enable a supervisor's requests (rule TR-16).
    fn refuses_supervisors(self, memory: &impl GuestMemory) -> bool {
        self.walk(&mut Glass { memory, hole: None }).is_ok_and(|process| !process.ens)
    }

    /// Goes it in software: at most three entries.
    fn walk<M: GuestMemory>(self, memory: &mut Glass<'_, M>) -> Result<Process, Fault> {
        let Processes { mode, root, sade, sbe, .. } = self.live;
        let capabilities = self.registers.capabilities();
        let directory = ProcessDirectory {
            pdtp: Pdtp { mode, root },
            tc: Tc::new().with_sade(sade).with_sbe(sbe),
            view: View::of(self.registers).with_big_endian(sbe),
            capabilities,
        };
        let mut walker = Walker {
            memory,
            ioatc: &mut Ioatc::<0>::new(),
            extensions: Extensions::of(capabilities),
            second: None,
            loads: &mut Loads::default(),
        };
        directory.locate(&mut walker, self.process, self.access, &mut 0)
    }
}

/// What a device has to be granted for such a transaction.
const fn needed(access: TransactionType) -> Ats {
    match access {
        TransactionType::MessageRequest => Ats::PageRequests,
        TransactionType::AtsTranslationRequest => Ats::Translations,
        translated if translated.is_translated() => Ats::Translations,
        _ => Ats::Off,
    }
}

const fn is_guest_page_fault(cause: Cause) -> bool {
    matches!(cause, Cause::InstructionGuestPageFault | Cause::ReadGuestPageFault | Cause::WriteGuestPageFault)
}

/// Faults that tell of the host and not of the transaction (rule VT-02).
const fn is_the_hosts_alone(cause: Cause) -> bool {
    matches!(cause, Cause::AllInboundDisallowed | Cause::InternalDataPathError | Cause::MsiWriteAccessFault)
}

/// What a fault is to a guest that has no second stage of its own.
enum Shown {
    /// A fault of the guest's structures, shown as it is.
    Guests(Cause),
    /// A fault of the host's second stage or MSI tables, shown as an access that reaches nothing.
    Hosts(Cause),
    /// A fault of the context lookup.
    Lookup,
}

const fn shown_as(fault: &HostFault) -> Shown {
    match fault.cause {
        // A message goes through no tables (rule PRI-02).
        _ if matches!(fault.access, TransactionType::MessageRequest) => Shown::Lookup,
        // Rule VT-03.
        Cause::InstructionPageFault
        | Cause::ReadPageFault
        | Cause::WritePageFault
        | Cause::InstructionAccessFault
        | Cause::ReadAccessFault
        | Cause::WriteAccessFault
        | Cause::ReadMisaligned
        | Cause::WriteMisaligned
        | Cause::PdtLoadAccessFault
        | Cause::PdtNotValid
        | Cause::PdtMisconfigured
        | Cause::PdtDataCorruption
        | Cause::PtDataCorruption => Shown::Guests(fault.cause),
        // Rules VT-05, VT-06. A real IOMMU would leave the access itself to PMA and PMP checks behind it, and report
        // nothing; a guest that is told can do something about it.
        Cause::InstructionGuestPageFault
        | Cause::ReadGuestPageFault
        | Cause::WriteGuestPageFault
        | Cause::MsiPteLoadAccessFault
        | Cause::MsiPteNotValid
        | Cause::MsiPteMisconfigured
        | Cause::MrifAccessFault
        | Cause::MsiPtDataCorruption
        | Cause::MrifDataCorruption => Shown::Hosts(fault.access.access_fault()),
        _ => Shown::Lookup,
    }
}
