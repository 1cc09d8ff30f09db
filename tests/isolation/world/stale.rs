//! What is not a VM's, or not any more, is presented to it.

use riscv_viommu::{
    Cause, FenceOutcome, HostFault, InvalidationCompletion, Iova, Itag, PageRequest, PageRequestOutcome, Prgi,
    ProcessId, Progress, Request, TransactionType, TranslateError,
};

use super::World;
use crate::guest::IOVA;
use crate::host::Who;
use crate::random::Random;

impl World {
    /// Something presents what is not the VM's, or not any more: nobody sees anything of it.
    pub(super) fn stale(&mut self, who: Who, random: &mut Random) -> &'static str {
        let of = random.index(2);
        while self.vms[who].iommu.run() == Progress::Runnable {}
        self.check(Some(who));
        let (handles, tickets) = (&self.handles[of], &self.tickets[of]);
        if handles.is_empty() || tickets.is_empty() {
            return "nothing stale";
        }
        let (handle, ticket) = (random.pick(handles), random.pick(tickets));
        let vm = &self.vms[who];
        let ignores = vm.iommu.progress() == Progress::Idle && !vm.awaits(ticket);
        let at = self.at();
        let iommu = &mut self.vms[who].iommu;
        if ignores {
            let outcome = random.pick(&[FenceOutcome::Complete, FenceOutcome::AtsTimeout, FenceOutcome::Failed]);
            let _ = iommu.fence_done(ticket, outcome);
            self.figures.stale += 1;
            self.check(None);
        }
        if self.vms[who].knows(handle) {
            self.figures.alike += 1;
            return "alike";
        }
        let iommu = &mut self.vms[who].iommu;
        let iova = Iova::new(IOVA);
        let request = PageRequest::read(iova, Prgi::truncate(1)).with_last(true);
        let cause = random.pick(&[Cause::WritePageFault, Cause::DdtNotValid, Cause::WriteGuestPageFault]);
        let _ = iommu.report_fault(handle, &HostFault::new(cause, TransactionType::UntranslatedWrite, iova));
        let outcome = iommu.report_page_request(handle, &request);
        assert_eq!(outcome, PageRequestOutcome::NotAttached, "{at}: {handle:?}");
        for process in [None, Some(ProcessId::truncate(0)), Some(ProcessId::truncate(1))] {
            let timeouts = [0, 1, 2].map(|group| iommu.page_request_timeout(handle, Prgi::truncate(group), process));
            assert_eq!(timeouts, [None; 3], "{at}: {handle:?}");
        }
        let translated = iommu.translate(&Request::write(handle, iova));
        assert_eq!(translated, Err(TranslateError::NotAttached), "{at}: {handle:?}");
        assert_eq!(iommu.page_request(handle, &request), Err(TranslateError::NotAttached), "{at}: {handle:?}");
        let _ = iommu.ats_completion(handle, InvalidationCompletion::new().with_itags(u32::MAX).with_cc(1));
        let _ = iommu.ats_timeout(handle, Itag::truncate(0));
        self.figures.stale += 7;
        self.check(None);
        "stale"
    }

    /// The host tells of a fault that it drained long ago, of whoever has the device by now.
    pub(super) fn tell_late(&mut self, who: Who, random: &mut Random) -> &'static str {
        let number = random.bits();
        let late = &mut self.late[who];
        if late.is_empty() {
            return "nothing late";
        }
        let (handle, fault) = late.swap_remove(usize::try_from(number % u64::try_from(late.len()).unwrap()).unwrap());
        let is_known = self.vms[who].knows(handle);
        let _ = self.vms[who].iommu.report_fault(handle, &fault);
        self.figures.stale += u64::from(!is_known);
        self.check(is_known.then_some(who));
        "late"
    }
}
