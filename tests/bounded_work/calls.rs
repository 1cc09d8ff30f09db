//! The calls that the search makes: one function of the crate by its name, with arguments that a number chooses.

use riscv_viommu::mock::guest::register;
use riscv_viommu::{
    Ats, AtsRequest, Attachment, Cause, DevicePolicy, FenceOutcome, Gpa, HostFault, InvalidationCompletion, Iova, Itag,
    PageRequest, Prgi, ProcessId, Request, SecondStageFault, TransactionType, Width,
};

use crate::guest::{Guest, Iommu, id};
use crate::host::{CONTEXTS, Host, ROOT, region};

pub(crate) fn ignore<T>(_: T) {}

fn fault(number: u64) -> HostFault {
    let of_table = SecondStageFault::new(Gpa::new(region(12))).with_implicit(true);
    let (cause, access) = [
        (Cause::DdtNotValid, TransactionType::UntranslatedWrite),
        (Cause::WritePageFault, TransactionType::UntranslatedWrite),
        (Cause::WriteGuestPageFault, TransactionType::UntranslatedWrite),
        (Cause::TransactionTypeDisallowed, TransactionType::UntranslatedRead),
        (Cause::TransactionTypeDisallowed, TransactionType::AtsTranslationRequest),
    ][(number / 8 % 5) as usize];
    let fault = HostFault::new(cause, access, Iova::new(number << 12)).with_second_stage(of_table);
    let processes = ProcessId::truncate(1);
    if number.is_multiple_of(2) { fault } else { fault.with_process(processes, true) }
}

impl Guest {
    /// A store of the guest to a register that sets something in motion.
    fn access(&mut self, number: u64) -> (u64, u64) {
        let (choice, vector) = (number % 16, number / 16);
        let toggled = |on: u64, register: u64| if self.load(register) & 1 == 0 { on } else { on & !1 };
        match choice {
            0..5 => (register::CQT, self.load(register::CQH).wrapping_sub(1) & 511),
            5 => (
                register::DDTP,
                if self.load(register::DDTP).trailing_zeros() >= 3 { region(ROOT) >> 2 | 4 } else { 0 },
            ),
            6 | 7 => (register::IPSR, 0xf),
            8 => (register::ICVEC, [0x3210, 0x7654, 0, 0xba98][vector as usize % 4]),
            9 => (register::CQCSR, toggled(0xf03, register::CQCSR)),
            10 => (register::FQCSR, toggled(0x303, register::FQCSR)),
            11 => (register::PQCSR, toggled(0x303, register::PQCSR)),
            12 => (register::MSI_CFG_TBL + 16 * (vector % 4) + 12, vector / 4 % 2),
            13 => (register::FQH, self.load(register::FQT)),
            14 => (register::PQH, self.load(register::PQT)),
            _ => (register::TR_REQ_CTL, 1 | u64::from(id(vector).get()) << 40),
        }
    }

    /// Makes the call of this name; `number` chooses how.
    pub(crate) fn call(&mut self, name: &str, number: u64) {
        let known = self.go_on(name, number) || self.ask(name, number) || self.look(name, number);
        assert!(known, "nobody calls `{name}`");
    }

    fn go_on(&mut self, name: &str, number: u64) -> bool {
        let device = id(number);
        let slot = device.get() as usize;
        let mine = self.attached[slot];
        match name {
            "write" => {
                let (at, value) = self.access(number);
                self.store(at, value);
            }
            "mmio_write" => {
                let (at, value) = self.access(number);
                let bytes = if at % 8 == 4 || (72..88).contains(&at) { 4 } else { 8 };
                let _ = self.iommu.mmio_write(at, &value.to_le_bytes()[..bytes]);
            }
            "attach" => {
                let policy = DevicePolicy::default().with_ats(Ats::PageRequests).with_response_failure(true);
                let attached = self.iommu.attach(id(number % 4), u32::from(number as u8 % 6), policy);
                self.attached[slot % 4] = attached.ok().map(|attached| attached.attachment).or(self.attached[slot % 4]);
            }
            "detach" => ignore(self.iommu.detach(device)),
            "run" => ignore(self.iommu.run()),
            "resync" => ignore(self.iommu.resync(device)),
            "shutdown" => ignore(self.iommu.shutdown()),
            "reset" => {
                let _ = self.iommu.reset();
                self.restoring = false;
            }
            "device_reset" => ignore(self.iommu.device_reset(device)),
            "invalidate_gpa" => ignore(self.iommu.invalidate_gpa(Gpa::new(0)..=Gpa::new(0xfff))),
            "host_lost_state" => ignore(self.iommu.host_lost_state()),
            "drained" => {
                if let Some(epoch) = self.iommu.backend().epoch {
                    let _ = self.iommu.drained(epoch);
                }
            }
            "fence_done" => {
                let outcomes = [FenceOutcome::Complete, FenceOutcome::AtsTimeout, FenceOutcome::Failed];
                let outcome = outcomes[(number % 32).saturating_sub(29) as usize];
                if let Some(ticket) = self.iommu.backend().issued {
                    let _ = self.iommu.fence_done(ticket, outcome);
                }
            }
            "restore" => self.restoring = self.iommu.restore(&self.image).is_ok(),
            "snapshot" => {
                self.image = vec![0; Iommu::SNAPSHOT_BYTES];
                let bytes = self.iommu.snapshot(&mut self.image).unwrap();
                self.image.truncate(bytes);
            }
            "report_fault" => {
                if let Some(attached) = mine {
                    let _ = self.iommu.report_fault(attached, &fault(number));
                }
            }
            _ => return self.answer(name, number, mine),
        }
        true
    }

    fn answer(&mut self, name: &str, number: u64, mine: Option<Attachment>) -> bool {
        let itag = Itag::truncate(number as u32 / 8);
        match (name, mine) {
            ("ats_completion", Some(device)) => {
                let _ = self.iommu.ats_completion(device, InvalidationCompletion::of(itag));
            }
            ("ats_timeout", Some(device)) => ignore(self.iommu.ats_timeout(device, itag)),
            ("ats_completion" | "ats_timeout", None) => {}
            _ => return false,
        }
        true
    }

    /// What is answered at once.
    fn ask(&mut self, name: &str, number: u64) -> bool {
        let device = id(number);
        let iova = Iova::new(number << 12);
        let group = Prgi::truncate(number as u32 / 8 % 4);
        let page = PageRequest::write(iova, group).with_last(!number.is_multiple_of(5));
        let with = |device: Attachment| {
            let request = Request::write(device, iova).with_length(1 << 14);
            if number.is_multiple_of(3) { request.with_process(ProcessId::truncate(1), false) } else { request }
        };
        match (name, self.attached[device.get() as usize]) {
            ("attach_emulated", _) => {
                let policy = DevicePolicy::default().with_ats(Ats::PageRequests);
                let device = id(4 + number % 4);
                let attached = self.iommu.attach_emulated(device, policy).ok();
                let slot = &mut self.attached[device.get() as usize];
                *slot = attached.or(*slot);
            }
            ("translate", Some(device)) => ignore(self.iommu.translate(&with(device))),
            ("next", Some(device)) => ignore(self.iommu.pieces(with(device)).next()),
            ("ats_translate", Some(device)) => {
                let request = AtsRequest::new(device, iova).with_process(ProcessId::truncate(1), false);
                let _ = self.iommu.ats_translate(&request);
            }
            ("page_request", Some(device)) => ignore(self.iommu.page_request(device, &page)),
            ("report_page_request", Some(device)) => {
                let page =
                    if number.is_multiple_of(2) { page } else { page.with_process(ProcessId::truncate(1), true) };
                let _ = self.iommu.report_page_request(device, &page);
            }
            ("page_request_timeout", Some(device)) => ignore(self.iommu.page_request_timeout(device, group, None)),
            (
                "translate"
                | "next"
                | "ats_translate"
                | "page_request"
                | "report_page_request"
                | "page_request_timeout",
                None,
            ) => {}
            ("add_cycles", _) => ignore(self.iommu.add_cycles(u64::MAX >> (number % 3))),
            ("report_lost", _) => ignore(self.iommu.report_lost(number % 2)),
            _ => return false,
        }
        true
    }

    /// What asks the host for nothing.
    fn look(&mut self, name: &str, number: u64) -> bool {
        let policy = DevicePolicy::default();
        match name {
            "new" => ignore(Iommu::new(Host::default())),
            "read" => ignore(self.iommu.read(number * 4, Width::U64)),
            "mmio_read" => self.iommu.mmio_read(number * 4, &mut [0; 4]),
            "health" => ignore(self.iommu.health()),
            "progress" => ignore(self.iommu.progress()),
            "stats" => ignore(self.iommu.stats()),
            "last_error" => ignore(self.iommu.last_error()),
            "backend" => ignore(self.iommu.backend().epoch),
            "backend_mut" => ignore(self.iommu.backend_mut().epoch),
            "pieces" | "left" => {
                for device in self.attached.into_iter().flatten() {
                    let _ = self.iommu.pieces(Request::read(device, Iova::new(0))).left();
                }
            }
            "next_message" => ignore(self.iommu.next_message()),
            "is_gpa_invalidated" => ignore(self.iommu.is_gpa_invalidated()),
            "guest_wrote" => {
                for page in [ROOT, 1, CONTEXTS] {
                    let _ = self.iommu.guest_wrote(Gpa::new(region(page)));
                }
            }
            "cycles_until_overflow" => ignore(self.iommu.cycles_until_overflow()),
            "with_ats" => ignore(policy.with_ats(Ats::Off)),
            "with_trusted_translations" => ignore(policy.with_trusted_translations(true)),
            "with_response_failure" => ignore(policy.with_response_failure(true)),
            _ => return false,
        }
        true
    }
}
