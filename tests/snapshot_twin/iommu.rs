//! One vIOMMU, and what is done to it.

use std::collections::VecDeque;

use riscv_viommu::mock::guest::register;
use riscv_viommu::{
    Ats, AtsCompletion, AtsRequest, Attachment, Cause, Config, DeviceId, DeviceMessage, DevicePolicy, FenceOutcome,
    HostFault, InvalidationCompletion, Iova, Itag, PageRequest, PageRequestOutcome, PageResponse, Pbmt, Permissions,
    ProcessId, Progress, QosIds, Register, Request, RestoreError, Target, TransactionType, TranslateError, VIommu,
    Width,
};

use crate::host::{BASE, Event, Host, Order};

pub(crate) type Inner = VIommu<Host, 4, 4, 0, 3>;

/// Guest ids of passthrough and emulated devices, and what the latter are granted.
pub(crate) const PASSTHROUGH: [(u32, Ats); 3] = [(1, Ats::PageRequests), (2, Ats::Translations), (4, Ats::Off)];
pub(crate) const EMULATED: [(u32, Ats); 3] = [(8, Ats::PageRequests), (9, Ats::Translations), (10, Ats::Off)];

/// What happens to a vIOMMU.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// The guest writes words of memory, then registers.
    Guest(Vec<(u64, u64)>, Vec<(u64, Width, u64)>),
    /// Hardware faults a device.
    Fault(usize, HostFault),
    Lost,
    /// An emulated device accesses memory.
    Access(usize, TransactionType, u64, Option<(u32, bool)>),
    /// It asks for a translation.
    Ask(usize, u64, Option<(u32, bool)>),
    /// It asks for a page.
    PageRequest(usize, PageRequest),
    /// A passthrough device does.
    Report(usize, PageRequest),
    /// The host takes a message, if there is one.
    Take,
    /// A device completes the requests with these numbers, so many times each.
    Complete(usize, u32, u8),
    TimeOut(usize, u8),
    Cycles(u64),
    Resync(usize),
    Run,
    Reset,
    /// Fences of the host's stay pending from now on, or not.
    Pending(bool),
    /// The pending ones end.
    Fences(FenceOutcome),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done(Progress),
    Access(Result<(Target, u64, u64, Permissions, Pbmt, QosIds), TranslateError>),
    Ask(Result<AtsCompletion, TranslateError>),
    PageRequest(Result<Option<PageResponse>, TranslateError>),
    Report(PageRequestOutcome),
    Message(Option<(DeviceId, DeviceMessage)>),
}

impl Answer {
    /// Whether they differ at most in what is left to be done.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Done(_), Self::Done(_))) || self == other
    }
}

pub(crate) struct Iommu {
    pub(crate) inner: Inner,
    passthrough: Vec<Attachment>,
    emulated: Vec<Attachment>,
}

impl Iommu {
    pub(crate) fn new(config: &Config, nested: bool, words: Vec<u64>) -> Self {
        let mut inner = Inner::new(Host::with_words(words));
        inner.start(config).unwrap();
        let emulate =
            |(id, ats)| inner.attach_emulated(DeviceId::truncate(id), DevicePolicy::default().with_ats(ats)).unwrap();
        let emulated = EMULATED.map(emulate).to_vec();
        let mut passthrough = Vec::new();
        if nested {
            let attach = |(id, ats)| {
                let policy = DevicePolicy::default().with_ats(ats);
                inner.attach(DeviceId::truncate(id), id, policy).unwrap().attachment
            };
            passthrough = PASSTHROUGH.map(attach).to_vec();
        }
        Self { inner, passthrough, emulated }
    }

    pub(crate) fn act(&mut self, action: &Action) -> Answer {
        let process = |process: Option<(u32, bool)>| process.map(|(id, is_priv)| (ProcessId::truncate(id), is_priv));
        let progress = match action {
            Action::Guest(memory, writes) => {
                for &(at, word) in memory {
                    self.inner.backend_mut().words[usize::try_from((at - BASE) / 8).unwrap()] = word;
                }
                for &(offset, width, value) in writes {
                    let _ = self.inner.write(offset, width, value);
                }
                self.inner.progress()
            }
            Action::Fault(device, fault) => self.inner.report_fault(self.passthrough[*device], fault),
            Action::Lost => self.inner.report_lost(1),
            Action::Access(device, access, at, id) => {
                let mut request = Request::read(self.emulated[*device], Iova::new(*at)).with_length(0x2000);
                request.access = *access;
                if let Some((id, privileged)) = process(*id) {
                    request = request.with_process(id, privileged);
                }
                let to = self.inner.translate(&request);
                return Answer::Access(
                    to.map(|to| (to.target, to.length, to.size, to.permissions, to.memory_type, to.qos)),
                );
            }
            Action::Ask(device, at, id) => {
                let mut request = AtsRequest::new(self.emulated[*device], Iova::new(*at));
                if let Some((id, privileged)) = process(*id) {
                    request = request.with_process(id, privileged);
                }
                return Answer::Ask(self.inner.ats_translate(&request));
            }
            Action::PageRequest(device, request) => {
                return Answer::PageRequest(self.inner.page_request(self.emulated[*device], request));
            }
            Action::Report(device, request) => {
                return Answer::Report(self.inner.report_page_request(self.passthrough[*device], request));
            }
            Action::Take => {
                let message = self.inner.next_message();
                return Answer::Message(message.map(|(to, message)| (to.device(), message)));
            }
            Action::Complete(device, itags, count) => {
                let completion = InvalidationCompletion::new().with_itags(*itags).with_cc(*count);
                self.inner.ats_completion(self.emulated[*device], completion)
            }
            Action::TimeOut(device, itag) => {
                self.inner.ats_timeout(self.emulated[*device], Itag::truncate((*itag).into()))
            }
            Action::Cycles(cycles) => self.inner.add_cycles(*cycles),
            Action::Resync(device) => self.inner.resync(DeviceId::truncate(PASSTHROUGH[*device].0)),
            Action::Run => self.inner.run(),
            // The guest does not run before that is done.
            Action::Reset => {
                let _ = self.inner.reset();
                self.settle();
                self.inner.progress()
            }
            Action::Pending(pending) => {
                self.inner.backend_mut().pending = *pending;
                self.inner.progress()
            }
            Action::Fences(outcome) => self.end_fences(*outcome),
        };
        Answer::Done(progress)
    }

    fn end_fences(&mut self, outcome: FenceOutcome) -> Progress {
        let host = self.inner.backend_mut();
        let fences = std::mem::take(&mut host.fences);
        host.asked &= fences.is_empty();
        if let Some(last) = fences.last() {
            let _ = self.inner.fence_done(*last, outcome);
        }
        self.inner.progress()
    }

    /// The host does what it has to until nothing is left that is its own to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.end_fences(FenceOutcome::Complete) != Progress::Runnable && self.inner.backend().fences.is_empty() {
                return;
            }
            let _ = self.inner.run();
        }
        panic!("the queue does not end: {:?}", self.inner.progress());
    }

    pub(crate) fn image(&mut self) -> Vec<u8> {
        let mut image = vec![0xa5; Inner::SNAPSHOT_BYTES];
        let length = self.inner.snapshot(&mut image).unwrap();
        image.truncate(length);
        image
    }

    pub(crate) fn restore(&mut self, image: &[u8]) -> Result<Progress, RestoreError> {
        self.inner.restore(image)
    }

    pub(crate) fn read(&self, offset: u64) -> u64 {
        self.inner.read(offset, Width::U32)
    }

    /// Every register.
    pub(crate) fn registers(&self) -> Vec<u64> {
        (0..1024).step_by(4).map(|offset| self.read(offset)).collect()
    }

    pub(crate) fn host(&self) -> &Host {
        self.inner.backend()
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.inner.backend_mut().events)
    }

    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.inner.backend_mut().orders)
    }

    /// Whether a passthrough device translates, as hardware sees it.
    pub(crate) fn is_open(&self, device: usize) -> bool {
        self.host().contexts.get(&PASSTHROUGH[device].0).is_some_and(riscv_viommu::Context::is_open)
    }

    /// That the mirror page shows what is read.
    pub(crate) fn check_mirror(&self) {
        for (&offset, &value) in &self.host().mirror {
            let shown = self.read(offset.into());
            assert_eq!(u64::from(value), shown, "the mirror page shows register {:?}", Register::at(offset.into()));
        }
    }

    /// Whether there are commands that were not carried out.
    pub(crate) fn has_queued(&self) -> bool {
        !self.runs() || self.read(register::CQH) != self.read(register::CQT)
    }

    /// Whether the command queue goes on by itself.
    pub(crate) fn runs(&self) -> bool {
        let stops = register::MEMORY_FAULT | register::CMD_TO | register::CMD_ILL | register::BUSY;
        let csr = self.read(register::CQCSR);
        csr & register::ENABLE != 0 && csr & stops == 0
    }
}

/// Messages that the models of devices have, and have not completed.
pub(crate) type Inbox = VecDeque<(usize, u8)>;

/// Causes that hardware gives for a device it translates for, and for one it blocks.
pub(crate) const OPEN: [Cause; 4] =
    [Cause::ReadPageFault, Cause::WritePageFault, Cause::ReadAccessFault, Cause::PtDataCorruption];
pub(crate) const BLOCKED: [Cause; 3] =
    [Cause::DdtNotValid, Cause::TransactionTypeDisallowed, Cause::WriteGuestPageFault];
