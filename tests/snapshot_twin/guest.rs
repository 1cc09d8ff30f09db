//! A guest that does anything, and its devices.

use crate::random::Random;
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, inval_ddt, inval_pdt, register};
use riscv_viommu::{
    DeviceId, DeviceMessage, FenceOutcome, Gpa, HostFault, Iova, PageRequest, PageRequestPayload, Prgi, ProcessId,
    Pscid, TransactionType, Width,
};

use crate::host::BASE;
use crate::iommu::{Action, Answer, BLOCKED, EMULATED, Inbox, Iommu, OPEN, PASSTHROUGH};

/// Pages of the guest: its queues, its directories, where fences and interrupts write, its tables.
const COMMANDS: u64 = BASE;
const FAULTS: u64 = BASE + 0x1000;
const REQUESTS: u64 = BASE + 0x2000;
const DIRECTORY: u64 = BASE + 0x3000;
const OTHER_DIRECTORY: u64 = BASE + 0x4000;
const DATA: u64 = BASE + 0x5000;
const ROOT: u64 = BASE + 0x6000;
const OTHER_ROOT: u64 = BASE + 0x9000;
const PROCESSES: u64 = BASE + 0xa000;
const MESSAGES: u64 = BASE + 0xb000;
/// Nothing is there.
const NOWHERE: u64 = 0x1_0000_0000;

/// The two pages that are mapped.
const IOVA: u64 = 0x4000_0000;

pub(crate) struct Guest {
    random: Random,
    pub(crate) nested: bool,
    /// It was offered ATS.
    ats: bool,
    /// Binary logarithm of the entries of its queues.
    sizes: [u64; 3],
    inbox: Inbox,
    /// It changed the directory, and the queue may not have come to the command that says so: it takes none back.
    unsaid: bool,
}

impl Guest {
    pub(crate) fn new(seed: u64, nested: bool, ats: bool) -> Self {
        let mut random = Random::new(seed);
        let sizes = [3 + random.below(3), 1 + random.below(3), 1 + random.below(2)];
        Self { random, nested, ats, sizes, inbox: Inbox::new(), unsaid: false }
    }

    /// What is in memory at first.
    pub(crate) fn memory(&mut self) -> Vec<u64> {
        let mut words = vec![0; usize::try_from(crate::host::BYTES / 8).unwrap()];
        let mut put = |at: u64, word: u64| words[usize::try_from((at - BASE) / 8).unwrap()] = word;
        // Two pages of Sv39: V, R, W, X, U, A, D; the second without A and D.
        put(ROOT + 8, (BASE + 0x7000) >> 2 | 1);
        put(BASE + 0x7000, (BASE + 0x8000) >> 2 | 1);
        put(BASE + 0x8000, DATA >> 2 | 0xdf);
        put(BASE + 0x8008, DATA >> 2 | 0x1f);
        for process in 0..4 {
            // V, ENS, SUM; PSCID.
            put(PROCESSES + process * 16, 0b111 | process << 12);
            put(PROCESSES + process * 16 + 8, 8 << 60 | ROOT >> 12);
        }
        let devices: Vec<u32> = PASSTHROUGH.iter().chain(&EMULATED).map(|(id, _)| *id).collect();
        for id in devices {
            let context = self.context();
            for (word, value) in (0..).zip(context) {
                put(DIRECTORY + u64::from(id) * 32 + word * 8, value);
            }
        }
        words
    }

    /// Everything is turned on.
    pub(crate) fn boot(&mut self) -> Action {
        let wsi = u64::from(self.random.percent(30)) << 1;
        let enable = register::ENABLE | register::INTERRUPT_ENABLE;
        let mut writes = vec![(register::FCTL, Width::U32, wsi)];
        for vector in 0..4 {
            writes.push((register::MSI_CFG_TBL + vector * 16, Width::U64, MESSAGES + vector * 8));
            writes.push((register::MSI_CFG_TBL + vector * 16 + 8, Width::U32, vector + 1));
            writes.push((register::MSI_CFG_TBL + vector * 16 + 12, Width::U32, u64::from(self.random.percent(30))));
        }
        writes.push((register::ICVEC, Width::U64, self.random.pick(&[0x3210, 0, 0x1032])));
        for (base, csr, at, size) in [
            (register::CQB, register::CQCSR, COMMANDS, self.sizes[0]),
            (register::FQB, register::FQCSR, FAULTS, self.sizes[1]),
            (register::PQB, register::PQCSR, REQUESTS, self.sizes[2]),
        ] {
            writes.extend([(base, Width::U64, at >> 2 | (size - 1)), (csr, Width::U32, enable)]);
        }
        if !self.nested {
            // Counters of requests and of entries of the directory that were read; one is about to overflow.
            writes.extend([(register::iohpmevt(1), Width::U64, 1), (register::iohpmevt(2), Width::U64, 5)]);
            writes.push((register::iohpmctr(1), Width::U64, u64::MAX - self.random.below(20)));
            writes.push((register::IOHPMCYCLES, Width::U64, (u64::MAX >> 1) - self.random.below(2000)));
            writes.push((register::IOMMU_QOSID, Width::U32, self.random.bits() & 0xffff_ffff));
        }
        writes.push((register::DDTP, Width::U64, DIRECTORY >> 2 | 2));
        Action::Guest(Vec::new(), writes)
    }

    /// The next thing that happens, `look` being as it is.
    pub(crate) fn next(&mut self, look: &Iommu) -> Action {
        if look.read(register::CQB) == 0 {
            return self.boot();
        }
        self.unsaid = self.owes(look);
        if !look.runs() && self.random.percent(40) {
            return self.recover(look);
        }
        match self.random.below(100) {
            0..30 => self.ring(look),
            30..38 => self.change(look),
            38..50 => self.registers(look),
            50..54 => self.read_records(look),
            54..70 => self.devices(look),
            70..82 => self.take(),
            82..88 => self.end_fences(look),
            88..91 => Action::Pending(self.random.percent(60)),
            91..98 => Action::Run,
            98 => Action::Cycles(self.random.below(500)),
            _ if self.random.percent(20) => Action::Reset,
            _ => Action::Run,
        }
    }

    /// Whether the queue has not come to a command that tells of a change.
    pub(crate) fn owes(&self, look: &Iommu) -> bool {
        self.unsaid && look.has_queued()
    }

    /// A fence and nothing else.
    pub(crate) fn fence_alone(&self, look: &Iommu) -> Action {
        self.queue(look, &[Iofence::PLAIN.encode()], Vec::new())
    }

    /// What brings the queue on.
    pub(crate) fn catch_up(&mut self, look: &Iommu) -> Action {
        if !look.runs() {
            let clear = register::MEMORY_FAULT | register::CMD_TO | register::CMD_ILL | register::ENABLE;
            let at = COMMANDS + look.read(register::CQH) * 16;
            return Action::Guest(vec![(at, 2), (at + 8, 0)], vec![(register::CQCSR, Width::U32, clear)]);
        }
        match self.inbox.pop_front() {
            Some((device, itag)) => Action::Complete(device, 1 << itag, 1),
            None => Action::Take,
        }
    }

    /// What came of it matters to the models of devices.
    pub(crate) fn note(&mut self, answer: &Answer) {
        if let Answer::Message(Some((to, DeviceMessage::Invalidation(request)))) = answer {
            let device = EMULATED.iter().position(|(id, _)| *id == to.get()).unwrap();
            self.inbox.push_back((device, u8::try_from(request.itag.get()).unwrap()));
        }
    }

    /// Clears errors as a driver does, or turns the queue on again.
    fn recover(&mut self, look: &Iommu) -> Action {
        let bits = register::MEMORY_FAULT | register::CMD_TO | register::CMD_ILL | register::FENCE_W_IP;
        let mut writes = vec![(register::CQCSR, Width::U32, bits | register::ENABLE | self.random.below(2) << 1)];
        if self.random.percent(70) && look.read(register::CQCSR) & (register::CMD_ILL | register::MEMORY_FAULT) != 0 {
            // Over the command that stopped it.
            let at = COMMANDS + look.read(register::CQH) * 16;
            return Action::Guest(vec![(at, 2), (at + 8, 0)], writes);
        }
        if self.random.percent(30) && !self.unsaid && look.read(register::CQCSR) & register::BUSY == 0 {
            writes.push((register::CQT, Width::U32, look.read(register::CQH)));
        }
        Action::Guest(Vec::new(), writes)
    }

    /// The tail, and how many commands there is room for.
    fn room(&self, look: &Iommu) -> (u64, u64) {
        let (head, tail, size) = (look.read(register::CQH), look.read(register::CQT), 1 << self.sizes[0]);
        (tail, (head.wrapping_sub(tail).wrapping_sub(1)) & (size - 1))
    }

    /// Queues commands, and tells.
    fn queue(&self, look: &Iommu, commands: &[[u64; 2]], mut memory: Vec<(u64, u64)>) -> Action {
        let (mut tail, room) = self.room(look);
        for [low, high] in commands.iter().take(usize::try_from(room).unwrap()) {
            memory.extend([(COMMANDS + tail * 16, *low), (COMMANDS + tail * 16 + 8, *high)]);
            tail = (tail + 1) & ((1 << self.sizes[0]) - 1);
        }
        Action::Guest(memory, vec![(register::CQT, Width::U32, tail)])
    }

    fn ring(&mut self, look: &Iommu) -> Action {
        let count = 1 + self.random.below(6);
        let mut commands: Vec<_> = (0..count).map(|_| self.command()).collect();
        if self.random.percent(50) {
            commands.push(self.fence());
        }
        self.queue(look, &commands, Vec::new())
    }

    fn fence(&mut self) -> [u64; 2] {
        let fence = Iofence::PLAIN.accesses(self.random.percent(70), self.random.percent(70));
        let at = match self.random.below(20) {
            0 => NOWHERE,
            _ => DATA + self.random.below(64) * 4,
        };
        let data = u32::try_from(self.random.bits() & 0xffff_ffff).unwrap();
        let fence = if self.random.percent(60) { fence.store(Gpa::new(at), data) } else { fence };
        if self.random.percent(10) { fence.wsi().encode() } else { fence.encode() }
    }

    fn command(&mut self) -> [u64; 2] {
        let page = Iova::new(IOVA + self.random.below(8) * 0x1000);
        let pscid = Pscid::truncate(u32::try_from(self.random.below(3)).unwrap());
        let id = self.device();
        let device = DeviceId::truncate(id);
        let process = ProcessId::truncate(u32::try_from(self.random.below(5)).unwrap());
        match self.random.below(40) {
            0..5 => Iotinval::ALL.address(page).pscid(pscid).vma(),
            5..8 => Iotinval::ALL.address(page).vma(),
            8..10 => Iotinval::ALL.pscid(pscid).vma(),
            10 => Iotinval::ALL.vma(),
            11 => Iotinval::ALL.gvma(),
            12..14 => Iotinval::ALL.range(page, 2).non_leaf().vma(),
            14..17 => inval_ddt(Some(device)),
            17 => inval_ddt(None),
            18 => inval_pdt(device, process),
            19..29 => {
                let to = AtsCommand::to(u16::try_from(id).unwrap());
                let to = if self.random.percent(40) { to.process(process) } else { to };
                to.inval(page.get() | self.random.below(2) << 11 | self.random.below(2))
            }
            29..32 => {
                let to = AtsCommand::to(u16::try_from(id).unwrap());
                to.prgr(u16::try_from(self.random.below(4)).unwrap(), self.random.pick(&[0, 1, 15]))
            }
            32 => [self.random.bits(), self.random.bits()],
            _ => self.fence(),
        }
    }

    fn device(&mut self) -> u32 {
        let all: Vec<u32> = PASSTHROUGH.iter().chain(&EMULATED).map(|(id, _)| *id).collect();
        self.random.pick(&all)
    }

    /// Words of a device context.
    fn context(&mut self) -> [u64; 4] {
        let first = |root: u64| 8 << 60 | root >> 12;
        let pscid = self.random.below(3) << 12;
        // EN_ATS, EN_PRI; T2GPA needs a second stage.
        let ats = self.random.pick(&[0, 0b10, 0b110, 0b110, 0b110]);
        let ats = if self.ats { ats } else { 0 };
        let dtf = u64::from(self.random.percent(10)) << 4;
        let sade = u64::from(self.random.percent(30)) << 8;
        match self.random.below(12) {
            0 => [0; 4],
            // A reserved bit.
            1 => [1 | 1 << 30, 0, 0, 0],
            2 => [1 | ats | dtf, 0, 0, 0],
            3 => [1 | ats, 0, pscid, first(NOWHERE)],
            4..6 => [1 | ats | dtf, 0, pscid, first(OTHER_ROOT)],
            6..8 => [1 | ats | 1 << 5 | self.random.below(2) << 9, 0, 0, 1 << 60 | PROCESSES >> 12],
            _ => [1 | ats | dtf | sade, 0, pscid, first(ROOT)],
        }
    }

    /// Changes the directory and says so, if the queue has room and goes on.
    fn change(&mut self, look: &Iommu) -> Action {
        if !look.runs() || self.room(look).1 < 2 {
            return Action::Run;
        }
        let (id, context) = (self.device(), self.context());
        let entry = DIRECTORY + u64::from(id) * 32;
        let memory = (0..).zip(context).map(|(word, value)| (entry + word * 8, value)).collect();
        self.unsaid = true;
        let all = self.random.percent(20);
        let mut commands = vec![inval_ddt((!all).then(|| DeviceId::truncate(id)))];
        if self.random.percent(60) {
            commands.push(self.fence());
        }
        self.queue(look, &commands, memory)
    }

    /// Writes registers, some of them without sense.
    fn registers(&mut self, look: &Iommu) -> Action {
        let csrs = [register::FQCSR, register::PQCSR, register::CQCSR];
        let csr = self.random.pick(if self.unsaid { &csrs[..2] } else { &csrs });
        let vector = self.random.below(4);
        let entry = register::MSI_CFG_TBL + vector * 16;
        let writes = match self.random.below(26) {
            // On or off, interrupts or not, this error cleared or that.
            0..3 => vec![(csr, Width::U32, self.random.bits() & 0xf03 | u64::from(self.random.percent(90)))],
            3..6 => vec![(register::IPSR, Width::U32, self.random.bits() & 0xf)],
            6..10 => vec![(entry + 12, Width::U32, u64::from(self.random.percent(65)))],
            10 => vec![(entry, Width::U64, self.random.pick(&[NOWHERE, MESSAGES, MESSAGES + 64]))],
            11 => vec![(entry + 8, Width::U32, self.random.bits())],
            12 => vec![(register::ICVEC, Width::U64, self.random.bits())],
            13..17 => {
                let directory = self.random.pick(&[DIRECTORY, DIRECTORY, DIRECTORY, OTHER_DIRECTORY]);
                let modes: &[u64] = &[0, 1, directory >> 2 | 2, directory >> 2 | 2, directory >> 2 | 2, 9];
                vec![(register::DDTP, Width::U64, self.random.pick(modes))]
            }
            // Over no command that is under way.
            17 if !look.has_queued() => vec![(register::CQT, Width::U32, self.random.below(1 << self.sizes[0]))],
            18 if look.read(csr) & register::ON == 0 => {
                vec![(register::FCTL, Width::U32, self.random.bits()), (csr, Width::U32, 3)]
            }
            // The debug interface.
            19 => vec![
                (register::TR_REQ_IOVA, Width::U64, IOVA + self.random.below(3) * 0x1000),
                (register::TR_REQ_CTL, Width::U64, 1 | u64::from(self.device()) << 40 | self.random.below(16)),
            ],
            20 => vec![(register::IOCOUNTINH, Width::U32, self.random.bits())],
            21 => vec![(register::iohpmevt(1 + self.random.below(4)), Width::U64, self.random.bits())],
            22 if !self.unsaid => {
                vec![(self.random.below(256) * 4, self.random.pick(&[Width::U32, Width::U64]), self.random.bits())]
            }
            _ => vec![(csr, Width::U32, register::ENABLE | register::INTERRUPT_ENABLE)],
        };
        Action::Guest(Vec::new(), writes)
    }

    /// The guest reads what was recorded.
    fn read_records(&mut self, look: &Iommu) -> Action {
        let [from, to, csr, ip] = self.random.pick(&[
            [register::FQT, register::FQH, register::FQCSR, register::FIP],
            [register::PQT, register::PQH, register::PQCSR, register::PIP],
        ]);
        let on = register::ENABLE | register::INTERRUPT_ENABLE;
        let writes = [(register::IPSR, ip), (csr, on | register::MEMORY_FAULT | register::FQOF), (to, look.read(from))];
        Action::Guest(Vec::new(), writes.map(|(offset, value)| (offset, Width::U32, value)).to_vec())
    }

    /// The fences end, and perhaps a device has not answered what they waited for.
    fn end_fences(&mut self, look: &Iommu) -> Action {
        let timed_out = look.host().asked && self.random.percent(30);
        Action::Fences(if timed_out { FenceOutcome::AtsTimeout } else { FenceOutcome::Complete })
    }

    fn devices(&mut self, look: &Iommu) -> Action {
        let at = IOVA + self.random.below(3) * 0x1000 + self.random.below(0x1000);
        let process = self.random.percent(40).then(|| (u32::try_from(self.random.below(5)).unwrap(), false));
        let device = usize::try_from(self.random.below(3)).unwrap();
        match self.random.below(20) {
            0..7 if self.nested => {
                let causes: &[_] = if look.is_open(device) { &OPEN } else { &BLOCKED };
                let access = self.random.pick(&[TransactionType::UntranslatedRead, TransactionType::UntranslatedWrite]);
                Action::Fault(device, HostFault::new(self.random.pick(causes), access, Iova::new(at & !0xfff)))
            }
            7 if self.nested => Action::Resync(device),
            8 if self.random.percent(20) => Action::Lost,
            9..12 => Action::Ask(device, at & !0xfff, process),
            12..16 => {
                let payload = PageRequestPayload::from_bits(at & !0xfff | self.random.below(8));
                let request = PageRequest::new(payload.with_prgi(Prgi::truncate(device.try_into().unwrap())));
                let process = process.map(|(id, _)| ProcessId::truncate(id));
                let request = process.map_or(request, |id| request.with_process(id, false));
                if self.nested && self.random.percent(70) {
                    Action::Report(device, request)
                } else {
                    Action::PageRequest(device, request)
                }
            }
            _ => {
                let access = self.random.pick(&[
                    TransactionType::UntranslatedRead,
                    TransactionType::UntranslatedWrite,
                    TransactionType::UntranslatedWrite,
                    TransactionType::TranslatedRead,
                ]);
                Action::Access(device, access, at, process)
            }
        }
    }

    /// The host takes a message, or a device answers one.
    fn take(&mut self) -> Action {
        match self.random.below(10) {
            0..4 => Action::Take,
            4 => Action::Complete(0, 1 << self.random.below(32), 1),
            _ => match self.inbox.pop_front() {
                None => Action::Take,
                Some((device, itag)) if self.random.percent(20) => Action::TimeOut(device, itag),
                Some((device, itag)) if self.random.percent(20) => {
                    // The first of two completions.
                    self.inbox.push_back((device, itag));
                    Action::Complete(device, 1 << itag, 2)
                }
                Some((device, itag)) => Action::Complete(device, 1 << itag, 1),
            },
        }
    }
}
