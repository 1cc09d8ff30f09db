//! What the devices the host emulates have beyond translation: ATS and page requests.

use super::{DevicePolicy, VIommu};
use crate::addr::Iova;
use crate::ats::{DeviceMessage, InvalidationCompletion};
use crate::attachment::Attachment;
use crate::backend::{Ats, Backend, PageResponse};
use crate::error::{AttachError, TranslateError};
use crate::fault::TransactionType;
use crate::faultq::Origin;
use crate::hpm::{self, Event, Tags};
use crate::id::{DeviceId, Itag};
use crate::pageq::{self, Admission, PageRequest};
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// Gives the guest a device as `id` that the host emulates. Its model presents the attachment with every
    /// [`Request`](crate::Request).
    ///
    /// # Errors
    /// [`AttachError`]; the device is then not attached.
    pub fn attach_emulated(&mut self, id: DeviceId, policy: DevicePolicy) -> Result<Attachment, AttachError> {
        let DevicePolicy { ats, trusted_translations: _, response_failure: _ } = policy;
        let Some(config) = self.config else {
            return Err(AttachError::NotStarted);
        };
        if !config.synchronous_dma && !self.backend.counts_dma() {
            return Err(AttachError::NoDrain);
        }
        // A nested vIOMMU may offer what only the host's IOMMU does.
        if self.registers.capabilities().amo_hwad() && !self.backend.has_compare_exchange() {
            return Err(AttachError::NoCompareExchange);
        }
        if self.nest.has(id) || self.emulated.named(id).is_some() {
            return Err(AttachError::IdInUse);
        }
        self.emulated.attach(id, ats, &mut self.generations).ok_or(AttachError::Full)
    }

    /// The next message for an emulated device, which the host delivers: to be asked for after every call until there
    /// is none, in whichever thread made the call. `ITAGS` messages are held at once. Where a command waits for room,
    /// taking one makes the [`progress`](Self::progress) [`Runnable`](Progress::Runnable), and what then runs may bring
    /// more:
    ///
    /// ```
    /// # use riscv_viommu::{Attachment, Backend, DeviceMessage, Progress, VIommu};
    /// # fn settle<B: Backend>(iommu: &mut VIommu<B>, inbox: &mut Vec<(Attachment, DeviceMessage)>) {
    /// loop {
    ///     while iommu.progress() == Progress::Runnable {
    ///         let _ = iommu.run();
    ///     }
    ///     let Some((device, message)) = iommu.next_message() else { break };
    ///     inbox.push((device, message));
    /// }
    /// # }
    /// ```
    ///
    /// A host bounds how often that goes round, as it does for `run` alone: a guest can keep its queue full.
    ///
    /// An [`Invalidation`](DeviceMessage::Invalidation) is answered by [`ats_completion`](Self::ats_completion) once
    /// the device has forgotten what it names and no longer uses it, or by [`ats_timeout`](Self::ats_timeout) if it
    /// does not answer in the time PCIe gives it; the guest's fence waits for either.
    #[must_use = "the guest's fence waits for the device's answer"]
    pub fn next_message(&mut self) -> Option<(Attachment, DeviceMessage)> {
        let message = self.ats.take_message()?;
        if self.progress == Progress::Waiting {
            self.progress = Progress::Runnable;
        }
        Some(message)
    }

    /// An emulated device completed invalidation requests. Completions nobody waits for are ignored.
    pub fn ats_completion(&mut self, attachment: Attachment, completion: InvalidationCompletion) -> Progress {
        let known = self.emulated.attached(attachment).map(|_| self.ats.complete(attachment, completion));
        self.invalidated(known)
    }

    /// An emulated device did not complete this invalidation request in time: the guest's next fence says so.
    pub fn ats_timeout(&mut self, attachment: Attachment, itag: Itag) -> Progress {
        let known = self.emulated.attached(attachment).map(|_| self.ats.time_out(attachment, itag));
        self.invalidated(known)
    }

    /// Goes on after what a device said of invalidation requests: `None` if it is not attached, else whether it had
    /// them.
    fn invalidated(&mut self, known: Option<bool>) -> Progress {
        match known {
            None => {
                self.stats.count_stale();
                self.progress
            }
            Some(known) => {
                if !known {
                    self.stats.unexpected_completions = self.stats.unexpected_completions.wrapping_add(1);
                }
                self.run()
            }
        }
    }

    /// A Page Request of an emulated device: goes into the guest's queue, or gets the response of the IOMMU itself.
    /// `None`: the guest will answer, or nobody, if the request wants no response.
    ///
    /// # Errors
    /// [`TranslateError`], if the guest is shown nothing of it.
    pub fn page_request(
        &mut self,
        attachment: Attachment,
        request: &PageRequest,
    ) -> Result<Option<PageResponse>, TranslateError> {
        self.attached_with(attachment, Ats::PageRequests)?;
        let id = attachment.device();
        let received =
            pageq::receive(id, request, Admission::Granted, &mut self.registers, &mut self.signals, &mut self.backend);
        self.stats.count_page_request(received.queued);
        let PageRequest { process, privileged, .. } = *request;
        if received.loads != 0 {
            let tags = Tags { device: id, process, gscid: None, pscid: None };
            hpm::count(&mut self.registers, &mut self.signals, Event::DdtWalk, received.loads, &tags);
        }
        if let Some((fault, dtf)) = received.fault {
            let iova = Iova::new(pageq::MESSAGE_CODE);
            let access = TransactionType::MessageRequest;
            self.record(fault, &Origin { device: id, access, process, privileged, iova }, dtf);
        }
        self.finish();
        Ok(received.response)
    }
}
