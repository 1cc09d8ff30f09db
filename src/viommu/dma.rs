//! Translation in software: DMA of emulated devices, ATS translation requests, the debug interface.

use core::iter::FusedIterator;

use super::VIommu;
use crate::addr::{Iova, Ppn, low_bits};
use crate::attachment::Attachment;
use crate::backend::{Ats, Backend, Epoch};
use crate::emulated::Device;
use crate::error::TranslateError;
use crate::fault::{Access, Cause, Fault, TransactionType};
use crate::faultq::Origin;
use crate::hpm::{self, Event, Tags};
use crate::mem::View;
use crate::msi::Destination;
use crate::progress::Progress;
use crate::regs::{DdtpMode, TrResponse};
use crate::translate::{
    Ask, AtsCompletion, AtsRequest, AtsTranslation, Env, Outcome, Refusal, Request, Tally, Target, To, Translation,
    completion_of,
};

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Where an access of an emulated device goes. One that the guest does not allow is recorded in its fault queue.
    ///
    /// The translation covers bytes up to the end of the mapping at most; [`pieces`](Self::pieces) goes on from there.
    /// The address it gives may be any: what is there is the host's to know, and an access that finds nothing ends as
    /// on a real bus, without a word to the IOMMU. It is looked up among RAM and interrupt files only: not the register
    /// page, which would need the vIOMMU's lock, and no device model under its own lock.
    ///
    /// # Errors
    /// [`TranslateError`]; the device model aborts the access. Other than a [`Fault`](TranslateError::Fault) nothing is
    /// recorded.
    #[inline]
    pub fn translate(&mut self, request: &Request) -> Result<Translation, TranslateError> {
        match self.caches.recent.find(request, || self.drains.hand_out()) {
            Some(found) => Ok(found),
            None => self.translate_anew(request),
        }
    }

    #[inline(never)]
    fn translate_anew(&mut self, request: &Request) -> Result<Translation, TranslateError> {
        let granted = self.attached(request.device)?;
        let Request { device, access, iova, length, process, privileged, data } = *request;
        // Addresses from ATS are only a device's that takes part in it; other types are no accesses.
        let is_access = access.is_untranslated() || (access.is_translated() && granted.ats != Ats::Off);
        if !is_access {
            return Err(TranslateError::Unsupported);
        }
        // A fetch has to be said to be one, which takes a process_id (rule FQ-38).
        let access = match (access, process) {
            (TransactionType::TranslatedExecute, None) => TransactionType::TranslatedRead,
            _ => access,
        };
        let origin = Origin { device: device.device(), access, process, privileged, iova };
        let outcome = match self.perform(&origin, Ask::of(access)) {
            Ok(outcome) => outcome,
            Err(refusal) => return Err(self.refuse(refusal, &origin)),
        };
        let target = match outcome.to {
            To::Memory(at) => Target::Memory(at),
            To::Msi(Destination::File(at)) => Target::InterruptFile(at),
            To::Msi(Destination::Mrif(mrif)) => {
                if !mrif.takes(length) {
                    return Err(TranslateError::Unsupported);
                }
                if access.access() == Access::Write {
                    let data = data.ok_or(TranslateError::NeedsData)?;
                    let view = View::of(&self.registers);
                    if let Err(fault) = mrif.store(&mut self.backend, view, data) {
                        return Err(self.refuse(Refusal { fault, dtf: outcome.dtf }, &origin));
                    }
                }
                Target::Mrif
            }
        };
        let mut translation = Translation {
            target,
            length,
            size: low_bits(outcome.shift).saturating_add(1),
            permissions: outcome.permissions,
            memory_type: outcome.memory_type,
            epoch: self.drains.hand_out(),
            pscid: outcome.pscid,
            qos: outcome.qos,
        };
        translation.length = translation.reach(request);
        // With counters every request has events. The ids of one without a context change with a register.
        if self.registers.counters() == 0 && matches!(self.registers.mode(), DdtpMode::Levels(_)) {
            self.caches.recent.insert(request, &translation);
        }
        Ok(translation)
    }

    /// The pieces of a request that is larger than one mapping, in order; the first that fails is the last. Nothing is
    /// translated before it is asked for.
    pub const fn pieces(&mut self, request: Request) -> Pieces<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS> {
        let left = if request.length == 0 { None } else { Some(request) };
        Pieces { iommu: self, left }
    }

    /// Answers an ATS translation request of an emulated device. One that is aborted is recorded in the guest's fault
    /// queue; a page that is not there is a success without permissions, and is not.
    ///
    /// # Errors
    /// [`TranslateError`], if there is nothing to answer.
    pub fn ats_translate(&mut self, request: &AtsRequest) -> Result<AtsCompletion, TranslateError> {
        // Where the guest was not offered ATS its contexts do not enable it, and that is the fault.
        if self.attached(request.device)?.ats == Ats::Off {
            return Err(TranslateError::Unsupported);
        }
        let AtsRequest { device, iova, process, privileged, .. } = *request;
        let access = TransactionType::AtsTranslationRequest;
        let origin = Origin { device: device.device(), access, process, privileged, iova };
        Ok(match self.perform(&origin, request.ask()) {
            Ok(outcome) => AtsCompletion::Success(AtsTranslation::of(&outcome, request)),
            Err(refusal) => {
                let (completion, recorded) = completion_of(&refusal, request);
                if recorded {
                    let _ = self.refuse(refusal, &origin);
                }
                completion
            }
        })
    }

    /// DMA that began in epoch `upto` or before is done: goes on after a [`Pending`](crate::Completion::Pending) answer
    /// of [`GuestMemory::drain`](crate::GuestMemory::drain), with the epoch that was asked for; a later one counts as
    /// that. Where a later epoch than `upto` is waited for, `drain` is asked again, from within this call: no lock that
    /// it takes may be held.
    pub fn drained(&mut self, upto: Epoch) -> Progress {
        self.drains.drained(upto);
        self.run()
    }

    /// Answers the guest's translation request, within the write that makes it (rule DBG-25).
    pub(super) fn translate_for_debug(&mut self) {
        let (iova, ctl) = self.registers.debug_request();
        // UNSPECIFIED: Exe without NW is a write (rule DBG-05).
        let access = match (ctl.nw(), ctl.exe()) {
            (false, _) => TransactionType::UntranslatedWrite,
            (true, true) => TransactionType::UntranslatedExecute,
            (true, false) => TransactionType::UntranslatedRead,
        };
        let process = ctl.pv().then(|| ctl.pid());
        let origin = Origin { device: ctl.did(), access, process, privileged: ctl.is_priv(), iova };
        let result = self.perform(&origin, Ask::of(access)).and_then(|outcome| match outcome.to {
            To::Memory(at) | To::Msi(Destination::File(at)) => Ok((outcome, at)),
            // An interrupt file in memory has no address to tell (rule DBG-23).
            To::Msi(Destination::Mrif(_)) => {
                Err(Refusal { fault: Fault::new(Cause::TransactionTypeDisallowed), dtf: outcome.dtf })
            }
        });
        let response = match result {
            Ok((outcome, at)) => response(&outcome, at.get()),
            Err(refusal) => {
                self.record(refusal.fault, &origin, refusal.dtf);
                TrResponse::new().with_fault(true)
            }
        };
        self.registers.set_debug_response(response);
    }

    /// The emulated device of an attachment.
    fn attached(&mut self, attachment: Attachment) -> Result<Device, TranslateError> {
        if self.config.is_none() {
            return Err(TranslateError::NotStarted);
        }
        self.emulated.attached(attachment).ok_or_else(|| {
            self.stats.count_stale();
            TranslateError::NotAttached
        })
    }

    /// The same, if it takes part in ATS that far and the guest was offered that.
    pub(super) fn attached_with(&mut self, attachment: Attachment, ats: Ats) -> Result<(), TranslateError> {
        let granted = self.attached(attachment)?.ats >= ats && self.registers.capabilities().ats();
        if granted { Ok(()) } else { Err(TranslateError::Unsupported) }
    }

    /// Translates, and counts what that took.
    fn perform(&mut self, origin: &Origin, ask: Ask) -> Result<Outcome, Refusal> {
        let mut env = Env {
            registers: &self.registers,
            memory: &mut self.backend,
            caches: &mut self.caches,
            tally: Tally::default(),
        };
        let result = env.translate(origin, ask);
        let tally = env.tally;
        if tally.loads.dirtied {
            self.caches.recent.clear();
        }
        if self.registers.counters() != 0 {
            self.count(origin, ask, &tally);
            self.finish();
        }
        result
    }

    /// Counts the events of a request (rule HPT-01).
    fn count(&mut self, origin: &Origin, ask: Ask, tally: &Tally) {
        let request = match () {
            () if ask.is_ats => Event::AtsTranslationRequest,
            () if origin.access.is_translated() => Event::TranslatedRequest,
            () => Event::UntranslatedRequest,
        };
        let requested = Tags { device: origin.device, process: origin.process, gscid: None, pscid: None };
        let walked = Tags { process: tally.process, gscid: tally.gscid, pscid: tally.pscid, ..requested };
        let events = [
            (request, 1, &requested),
            (Event::TlbMiss, tally.loads.missed.into(), &walked),
            (Event::DdtWalk, tally.ddt, &requested),
            (Event::PdtWalk, tally.pdt, &walked),
            (Event::FirstStageWalk, tally.loads.first, &walked),
            (Event::SecondStageWalk, tally.implicit, &Tags { pscid: None, ..walked }),
            (Event::SecondStageWalk, tally.loads.second, &walked),
        ];
        for (event, times, tags) in events {
            if times != 0 {
                hpm::count(&mut self.registers, &mut self.signals, event, times, tags);
            }
        }
    }

    /// Records why a request comes to nothing.
    fn refuse(&mut self, refusal: Refusal, origin: &Origin) -> TranslateError {
        self.record(refusal.fault, origin, refusal.dtf);
        self.finish();
        TranslateError::Fault(refusal.fault.cause)
    }
}

/// What the debug interface answers: with `S` the size is in the low bits of the page number (rules DBG-15 to DBG-19).
fn response(outcome: &Outcome, at: u64) -> TrResponse {
    let size = low_bits(outcome.shift).saturating_add(1);
    // Half the size, less one: the ones.
    let ones = (size >> 1).saturating_sub(1);
    let page = (at & !low_bits(outcome.shift) | ones) >> 12;
    TrResponse::new().with_pbmt(outcome.memory_type.encoding()).with_s(outcome.shift > 12).with_ppn(Ppn::truncate(page))
}

/// The pieces of a request: see [`VIommu::pieces`].
#[derive(Debug)]
#[must_use = "nothing is translated before it is asked for"]
pub struct Pieces<
    'a,
    B: Backend,
    const DEVICES: usize,
    const BATCH: usize,
    const CACHE: usize,
    const ITAGS: usize,
    const GROUPS: usize,
> {
    iommu: &'a mut VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>,
    /// What has not been translated.
    left: Option<Request>,
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Pieces<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// The host, to make the access of the piece just given.
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.iommu.backend
    }

    /// What is left.
    #[must_use]
    pub const fn left(&self) -> Option<&Request> {
        self.left.as_ref()
    }
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    Iterator for Pieces<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    type Item = Result<Translation, TranslateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let request = self.left.take()?;
        let piece = self.iommu.translate(&request);
        if let Ok(piece) = &piece {
            let length = request.length.saturating_sub(piece.length);
            // UNSPECIFIED: a request goes on at address 0 behind the last one (rule ACC-08).
            let iova = Iova::new(request.iova.get().wrapping_add(piece.length));
            self.left = (length != 0).then_some(Request { iova, length, ..request });
        }
        Some(piece)
    }
}

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    FusedIterator for Pieces<'_, B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
}
