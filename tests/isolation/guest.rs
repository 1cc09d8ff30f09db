//! A guest that means harm: it names whatever is its neighbour's wherever something can be named.

use crate::random::Random;
use riscv_viommu::mock::guest::{AtsCommand, Iofence, Iotinval, inval_ddt, inval_pdt, register};
use riscv_viommu::{DeviceId, Gpa, Gscid, Iova, ProcessId, Pscid, Width};

use crate::host::{FILE, PAGES, Who, page};
use crate::vm::Iommu;

/// Pages of a guest, by number.
const COMMANDS: u64 = 0;
const FAULTS: u64 = 1;
const REQUESTS: u64 = 2;
const DIRECTORY: u64 = 3;
const UPPER_DIRECTORY: u64 = 4;
const PROCESSES: u64 = 5;
const TABLES: [[u64; 3]; 2] = [[6, 7, 8], [9, 10, 11]];
const DATA: u64 = 12;

/// Binary logarithm of the entries of the command queue, and of the other two.
const COMMANDS_LOG2: u64 = 5;
const RECORDS_LOG2: u64 = 3;

/// Ids under which devices are given to a guest, the same ones to both.
pub(crate) const IDS: [u32; 3] = [8, 9, 10];
pub(crate) const EMULATED_IDS: [u32; 2] = [12, 13];

/// What devices access.
pub(crate) const IOVA: u64 = 0x4000_0000;
pub(crate) const IOVA_PAGES: u64 = 8;
pub(crate) const PROCESSES_THERE: u64 = 2;

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Stores a word in its memory.
    Store(u64, u64),
    /// Writes a register.
    Write(u64, Width, u64),
}

#[derive(Debug)]
pub(crate) struct Guest {
    random: Random,
    own: Who,
    ats: bool,
}

impl Guest {
    pub(crate) fn new(own: Who, seed: u64, ats: bool) -> Self {
        Self { random: Random::new(seed), own, ats }
    }

    fn page(&self, number: u64) -> u64 {
        page(self.own, number)
    }

    /// A page: its own, the other's, or none of anybody.
    fn any_page(&mut self) -> u64 {
        let number = self.random.below(PAGES + 1);
        match self.random.below(20) {
            0..10 => self.page(number),
            10..18 => page(1 - self.own, number),
            18 => page(1 - self.own, FILE),
            _ => self.random.pick(&[0, 0x7000_0000, 0xff_ffff_f000, 0xffff_ffff_ffff_f000]),
        }
    }

    /// Its own page of this number, or any.
    fn mostly(&mut self, number: u64) -> u64 {
        if self.random.percent(80) { self.page(number) } else { self.any_page() }
    }

    /// What is in memory at first, in the order in which it is stored.
    pub(crate) fn memory(&mut self) -> Vec<Act> {
        let mut acts = vec![Act::Store(self.page(UPPER_DIRECTORY), self.page(DIRECTORY) >> 2 | 1)];
        for [root, middle, leaves] in TABLES {
            acts.push(Act::Store(self.page(root) + 8, self.page(middle) >> 2 | 1));
            acts.push(Act::Store(self.page(middle), self.page(leaves) >> 2 | 1));
            for index in 0..IOVA_PAGES {
                acts.push(Act::Store(self.page(leaves) + index * 8, self.leaf()));
            }
        }
        for process in 0..PROCESSES_THERE {
            acts.extend(self.process(process));
        }
        for id in IDS.into_iter().chain(EMULATED_IDS) {
            acts.extend(self.context(id));
        }
        acts
    }

    /// Everything is turned on.
    pub(crate) fn boot(&mut self) -> Vec<Act> {
        let mut acts = vec![Act::Write(register::FCTL, Width::U32, self.random.below(2) << 1)];
        for vector in 0..4 {
            let entry = register::MSI_CFG_TBL + vector * 16;
            acts.push(Act::Write(entry, Width::U64, self.mostly(FILE) + vector * 4));
            acts.push(Act::Write(entry + 8, Width::U32, vector + 1));
            acts.push(Act::Write(entry + 12, Width::U32, 0));
        }
        acts.push(Act::Write(register::ICVEC, Width::U64, 0x3210));
        for (base, csr, number, log2) in [
            (register::CQB, register::CQCSR, COMMANDS, COMMANDS_LOG2),
            (register::FQB, register::FQCSR, FAULTS, RECORDS_LOG2),
            (register::PQB, register::PQCSR, REQUESTS, RECORDS_LOG2),
        ] {
            acts.push(Act::Write(base, Width::U64, self.page(number) >> 2 | (log2 - 1)));
            acts.push(Act::Write(csr, Width::U32, register::ENABLE | register::INTERRUPT_ENABLE));
        }
        acts.push(self.turn_on());
        acts
    }

    fn turn_on(&mut self) -> Act {
        let (mode, root) = self.random.pick(&[(2, DIRECTORY), (2, DIRECTORY), (3, UPPER_DIRECTORY)]);
        Act::Write(register::DDTP, Width::U64, self.page(root) >> 2 | mode)
    }

    /// The next thing it does.
    pub(crate) fn next(&mut self, look: &Iommu) -> Vec<Act> {
        if look.read(register::CQB, Width::U64) == 0 {
            return self.boot();
        }
        match self.random.below(100) {
            0..40 => self.ring(look),
            40..52 => self.change(look),
            52..60 => take_records(look),
            60..80 => self.recover(look),
            80..86 => vec![self.turn_on()],
            86..93 => vec![self.register()],
            _ => vec![self.garbage()],
        }
    }

    fn leaf(&mut self) -> u64 {
        // V, R, W, U, A, D and less of them; G.
        let bits = self.random.pick(&[0xd7, 0xd7, 0xd7, 0x53, 0x17, 0x13, 0xf7, 0]);
        let to = if self.random.percent(50) { self.page(DATA) } else { self.any_page() };
        (to & 0x00ff_ffff_ffff_f000) >> 2 | bits
    }

    /// A first stage in `iosatp` and `fsc`.
    fn stage(&mut self) -> u64 {
        let [root, ..] = self.random.pick(&TABLES);
        8 << 60 | self.mostly(root) >> 12 & 0xfff_ffff_ffff
    }

    fn process(&mut self, process: u64) -> [Act; 2] {
        let at = self.page(PROCESSES) + process * 16;
        let (ta, fsc) = (self.random.below(8) | self.random.below(3) << 12, self.stage());
        [Act::Store(at + 8, fsc), Act::Store(at, ta)]
    }

    fn context(&mut self, id: u32) -> [Act; 4] {
        let ats = if self.ats { self.random.pick(&[0, 0b10, 0b110, 0b110]) } else { 0 };
        let pscid = self.random.below(3) << 12;
        let sade = self.random.below(2) << 8;
        let context = match self.random.below(16) {
            0 => [0; 4],
            // Second stages, GSCIDs and MSI tables of the neighbour's, and reserved bits.
            1 => [1 | 1 << 30, 0, 0, 0],
            2 => [1, 8 << 60 | 2 << 44 | self.any_page() >> 12, pscid, self.stage()],
            3 => [1 | ats | 0b1000, 0, pscid, self.stage()],
            4 | 5 => [1 | ats, 0, 0, 0],
            6..11 => [1 | ats | 1 << 5 | self.random.below(2) << 9, 0, 0, 1 << 60 | self.mostly(PROCESSES) >> 12],
            _ => [1 | ats | sade, 0, pscid, self.stage()],
        };
        let entry = self.page(DIRECTORY) + u64::from(id) * 32;
        [3, 2, 1, 0].map(|word: usize| Act::Store(entry + 8 * u64::try_from(word).unwrap(), context[word]))
    }

    fn id(&mut self) -> u32 {
        let any = u32::try_from(self.random.below(1 << 24)).unwrap();
        // Physical ids, too.
        self.random.pick(&[8, 8, 9, 9, 10, 12, 13, 0x101, 0x102, 0x103, any])
    }

    fn command(&mut self) -> [u64; 2] {
        let at = Iova::new(IOVA + self.random.below(IOVA_PAGES) * 0x1000);
        let pscid = Pscid::truncate(u32::try_from(self.random.below(4)).unwrap());
        let gscid = Gscid::truncate(u32::try_from(self.random.below(5)).unwrap());
        let process = ProcessId::truncate(u32::try_from(self.random.below(PROCESSES_THERE + 1)).unwrap());
        let (id, all) = (self.id(), self.random.percent(20));
        let device = DeviceId::truncate(id);
        let function = AtsCommand::to(u16::try_from(id & 0xffff).unwrap());
        let function = if self.random.percent(40) { function.process(process) } else { function };
        match self.random.below(26) {
            0..3 => Iotinval::ALL.address(at).pscid(pscid).vma(),
            3 => Iotinval::ALL.vma(),
            4 => Iotinval::ALL.gscid(gscid).vma(),
            5 => Iotinval::ALL.gscid(gscid).gvma(),
            6..10 => inval_ddt((!all).then_some(device)),
            10 => inval_pdt(device, process),
            11..14 => function.inval(if all { 0x7fff_ffff_ffff_f800 } else { at.get() }),
            14..16 => function.prgr(u16::try_from(self.random.below(4)).unwrap(), self.random.pick(&[0, 1, 15])),
            16 => [self.random.bits(), self.random.bits()],
            17..20 => {
                let to = self.mostly(DATA) | self.random.below(512) << 3;
                Iofence::PLAIN.accesses(true, true).store(Gpa::new(to), 0xfe7c_e000).encode()
            }
            20 => Iofence::PLAIN.accesses(true, true).wsi().encode(),
            _ => Iofence::PLAIN.accesses(true, true).encode(),
        }
    }

    /// Puts commands at the tail, as far as there is room, and tells.
    fn queue(&self, look: &Iommu, commands: &[[u64; 2]]) -> Vec<Act> {
        let size = 1 << COMMANDS_LOG2;
        let (head, mut tail) = (look.read(register::CQH, Width::U32), look.read(register::CQT, Width::U32));
        let room = head.wrapping_sub(tail).wrapping_sub(1) & (size - 1);
        let mut acts = Vec::new();
        for [low, high] in commands.iter().take(usize::try_from(room).unwrap()) {
            let at = self.page(COMMANDS) + (tail & (size - 1)) * 16;
            acts.extend([Act::Store(at, *low), Act::Store(at + 8, *high)]);
            tail = (tail + 1) & (size - 1);
        }
        acts.push(Act::Write(register::CQT, Width::U32, tail));
        acts
    }

    fn ring(&mut self, look: &Iommu) -> Vec<Act> {
        let commands: Vec<_> = (0..=self.random.below(6)).map(|_| self.command()).collect();
        self.queue(look, &commands)
    }

    /// Changes a table, and says so or not.
    fn change(&mut self, look: &Iommu) -> Vec<Act> {
        let id = self.random.pick(&[8, 9, 10, 12, 13]);
        let (mut acts, said) = match self.random.below(4) {
            0 | 1 => (self.context(id).to_vec(), inval_ddt(Some(DeviceId::truncate(id)))),
            2 => {
                let process = self.random.below(PROCESSES_THERE);
                (self.process(process).to_vec(), inval_ddt(None))
            }
            _ => {
                let [.., leaves] = self.random.pick(&TABLES);
                let at = self.page(leaves) + self.random.below(IOVA_PAGES) * 8;
                (vec![Act::Store(at, self.leaf())], Iotinval::ALL.vma())
            }
        };
        if self.random.percent(60) {
            acts.extend(self.queue(look, &[said, Iofence::PLAIN.encode()]));
        }
        acts
    }

    /// Clears what stops the command queue, over the command that did.
    fn recover(&mut self, look: &Iommu) -> Vec<Act> {
        let csr = look.read(register::CQCSR, Width::U32);
        let bits = register::MEMORY_FAULT | register::CMD_TO | register::CMD_ILL | register::FENCE_W_IP;
        let clear = Act::Write(register::CQCSR, Width::U32, bits | register::ENABLE | register::INTERRUPT_ENABLE);
        if csr & register::ON == 0 {
            // The base may be anywhere now.
            let base = self.page(COMMANDS) >> 2 | (COMMANDS_LOG2 - 1);
            return vec![Act::Write(register::CQB, Width::U64, base), clear];
        }
        let at = self.page(COMMANDS) + (look.read(register::CQH, Width::U32) & ((1 << COMMANDS_LOG2) - 1)) * 16;
        let stopped = csr & (register::CMD_ILL | register::MEMORY_FAULT) != 0;
        let mut acts = if stopped { vec![Act::Store(at, 2), Act::Store(at + 8, 0)] } else { Vec::new() };
        acts.push(clear);
        acts
    }

    /// A register, and any value; bases of queues and directories anywhere.
    fn register(&mut self) -> Act {
        let at = self.any_page() >> 2;
        match self.random.below(10) {
            0 => Act::Write(register::DDTP, Width::U64, at | self.random.below(6)),
            1 => {
                let csr = self.random.pick(&[register::CQCSR, register::FQCSR, register::PQCSR]);
                Act::Write(csr, Width::U32, self.random.below(4))
            }
            2 | 3 => {
                let base = self.random.pick(&[register::CQB, register::FQB, register::PQB]);
                Act::Write(base, Width::U64, at | self.random.below(8))
            }
            4 => Act::Write(register::MSI_CFG_TBL + self.random.below(4) * 16, Width::U64, at << 2),
            5 => Act::Write(register::CQT, Width::U32, self.random.below(1 << COMMANDS_LOG2)),
            6 => Act::Write(self.random.below(0x1000), self.random.pick(&[Width::U32, Width::U64]), self.random.bits()),
            _ => {
                let offset = self.random.below(128) * 8;
                Act::Write(offset, self.random.pick(&[Width::U32, Width::U64]), self.random.bits())
            }
        }
    }

    /// Any word of its memory, which gets any value.
    fn garbage(&mut self) -> Act {
        let number = self.random.below(DATA + 1);
        let at = self.page(number) | self.random.below(32) << 3;
        let pointer = (self.any_page() & 0x00ff_ffff_ffff_f000) >> 2 | self.random.below(256);
        let bits = self.random.bits();
        Act::Store(at, self.random.pick(&[0, pointer, pointer, bits]))
    }
}

/// Takes what is in its queues.
fn take_records(look: &Iommu) -> Vec<Act> {
    let (faults, requests) = (look.read(register::FQT, Width::U32), look.read(register::PQT, Width::U32));
    let errors = register::ENABLE | register::INTERRUPT_ENABLE | register::MEMORY_FAULT | register::FQOF;
    vec![
        Act::Write(register::FQH, Width::U32, faults),
        Act::Write(register::PQH, Width::U32, requests),
        Act::Write(register::FQCSR, Width::U32, errors),
        Act::Write(register::PQCSR, Width::U32, errors),
        Act::Write(register::IPSR, Width::U32, 0xf),
    ]
}
