//! The guest's memory: its structures, and numbers that have a meaning among them.

use arbitrary::Arbitrary;
use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::{CommandRing, FaultRing, PageRequestRing};
use riscv_viommu::mock::tables::{Directory, PageTable, ProcessDirectory, process_ta, pte, tc};
use riscv_viommu::{DeviceId, FirstStageMode, Gpa, Gscid, Iova, ProcessId, Pscid, SecondStageMode};

use crate::machine::{EMULATED, PASSTHROUGH};

/// Where its memory begins, and how many pages the fuzzer reaches by number.
const RAM: u64 = 0x8000_0000;
const PAGES: u64 = 64;

/// A page that its tables map to [`BUFFER`], for [`PSCID`] and for [`PROCESS`].
pub(crate) const IOVA: u64 = 0x4020_0000;
pub(crate) const BUFFER: u64 = RAM + 0x3f000;
pub(crate) const PSCID: Pscid = Pscid::truncate(5);
pub(crate) const PROCESS: ProcessId = ProcessId::truncate(3);
/// Entries of the command queue.
pub(crate) const COMMANDS_LOG2: u8 = 8;
const GSCID: Gscid = Gscid::truncate(7);
/// A page of a VM of the guest's own that is an interrupt file, and one that is an interrupt file in memory.
const FILES: u64 = 0x2800_0000;

/// A number: any, or one that leads somewhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Value {
    Raw(u64),
    Small(u8),
    Bit(u8),
    /// An address in memory.
    Address(u8, u16),
    /// An address the devices use.
    Iova(u8, u16),
    /// A page number from bit 10 on, as in queue bases, directory and page-table entries, with bits below.
    Pointer(u8, u16),
    /// A page number from bit 0 on and a mode from bit 60 on, as in the fields of a context.
    Root(u8, u8),
}

impl Value {
    pub(crate) fn get(self) -> u64 {
        match self {
            Self::Raw(value) => value,
            Self::Small(value) => value.into(),
            Self::Bit(bit) => 1 << (bit % 64),
            Self::Address(page, low) => frame(page) | u64::from(low & 0xfff),
            Self::Iova(page, low) => IOVA + (u64::from(page % 4) << 12) + u64::from(low & 0xfff),
            Self::Pointer(page, low) => frame(page) >> 2 | u64::from(low & 0x3ff),
            Self::Root(page, mode) => u64::from(mode) << 60 | frame(page) >> 12,
        }
    }

    pub(crate) fn iova(self) -> Iova {
        Iova::new(self.get())
    }
}

/// A word of memory: of a page by number, or anywhere, where there is memory then.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Place {
    Word(u8, u16),
    At(u64),
}

impl Place {
    pub(crate) fn get(self, memory: &Memory) -> Gpa {
        match self {
            Self::Word(page, word) => Gpa::new(frame(page) | u64::from(word & 0x1ff) << 3),
            Self::At(at) => {
                let at = Gpa::new(at & !7);
                memory.map(at, 8);
                at
            }
        }
    }
}

/// The address of a page by number.
pub(crate) fn frame(page: u8) -> u64 {
    RAM + ((u64::from(page) % PAGES) << 12)
}

/// What a context may be made to say.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Meaning {
    NotValid,
    Bare,
    FirstStage,
    Processes,
    /// Both stages, a process directory and an MSI page table.
    Everything,
}

/// The structures of a guest that is in order.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    pub(crate) directory: Directory,
    pub(crate) commands: CommandRing,
    pub(crate) cqb: u64,
    pub(crate) faults: FaultRing,
    pub(crate) requests: PageRequestRing,
    words: usize,
    first: PageTable,
    second: PageTable,
    processes: ProcessDirectory,
    messages: Gpa,
    ways: Vec<Way>,
}

/// The way to the context of a device.
#[derive(Debug)]
struct Way {
    id: DeviceId,
    /// Two entries, and what the guest put there.
    entries: [(Gpa, u64); 2],
    context: Gpa,
}

impl Guest {
    pub(crate) fn new(memory: &Memory, extended: bool) -> Self {
        let directory = Directory::new(memory, 3, extended);
        let first = PageTable::first_stage(memory, FirstStageMode::Sv39);
        let second = PageTable::second_stage(memory, SecondStageMode::Sv39x4);
        let processes = ProcessDirectory::new(memory, 1);
        let messages = memory.allocate(1);
        let mut commands = CommandRing::new(memory, COMMANDS_LOG2, memory.allocate(1));
        let faults = FaultRing::new(memory, 3, memory.allocate(1));
        let requests = PageRequestRing::new(memory, 3, memory.allocate(1));
        first.map(IOVA, BUFFER, 0, pte::RW | pte::X);
        first.map(IOVA + 0x1000, FILES, 0, pte::RW);
        first.map(IOVA + 0x2000, FILES + 0x1000, 0, pte::RW);
        // Memory is where it is for the VM, too.
        second.map(RAM, RAM, 2, pte::RW | pte::X);
        processes.set(PROCESS, [process_ta::V | u64::from(PSCID.get()) << 12, first.iosatp()]);
        // V in 0, M in 2:1 (3 basic, 1 MRIF), PPN in 53:10 or the address of the file in 53:7; NID, NPPN in 53:10.
        let file = memory.allocate(1).get();
        memory.write_words(messages, &[BUFFER >> 2 | 7, 0, file >> 9 << 7 | 3, BUFFER >> 2 | 0x2a]);
        let ids = PASSTHROUGH.map(|(id, _)| id).into_iter().chain(EMULATED.map(|(id, _)| id));
        let way = |id| {
            let context = directory.entry_address(id);
            let entries = [2, 1].map(|level| directory.non_leaf_address(id, level));
            Way { id, entries: entries.map(|at| (at, memory.read(at))), context }
        };
        let ways = ids.map(way).collect();
        memory.map(Gpa::new(RAM), PAGES << 12);
        let (memory, words) = (memory.clone(), if extended { 8 } else { 4 });
        Self {
            memory,
            directory,
            cqb: commands.cqb(),
            commands,
            faults,
            requests,
            words,
            first,
            second,
            processes,
            messages,
            ways,
        }
    }

    /// Writes the context of a device, with these bits of `tc` besides.
    pub(crate) fn set_context(&self, device: u8, meaning: Meaning, bits: u64) {
        let (iohgatp, pdtp) = (self.second.iohgatp(GSCID), self.processes.pdtp());
        let pscid = u64::from(PSCID.get()) << 12;
        let context = match meaning {
            Meaning::NotValid => [0; 8],
            Meaning::Bare => [tc::V, 0, 0, 0, 0, 0, 0, 0],
            Meaning::FirstStage => [tc::V, 0, pscid, self.first.iosatp(), 0, 0, 0, 0],
            Meaning::Processes => [tc::V | tc::PDTV, 0, 0, pdtp, 0, 0, 0, 0],
            Meaning::Everything => {
                let msiptp = 1 << 60 | self.messages.get() >> 12;
                [tc::V | tc::PDTV, iohgatp, 0, pdtp, msiptp, 3, FILES >> 12, 0]
            }
        };
        let at = self.context(device).get();
        for (at, word) in (at..).step_by(8).zip(context).take(self.words).skip(1) {
            self.memory.write(Gpa::new(at), word);
        }
        self.memory.write(Gpa::new(at), context[0] | if context[0] == 0 { 0 } else { bits });
    }

    /// Where the context of a device is.
    pub(crate) fn context(&self, device: u8) -> Gpa {
        self.way(device).context
    }

    /// The id of a device, if its context is still found where [`context`](Self::context) says.
    pub(crate) fn found(&self, device: u8) -> Option<DeviceId> {
        let Way { id, entries, .. } = self.way(device);
        entries.iter().all(|&(at, word)| self.memory.read(at) == word).then_some(*id)
    }

    fn way(&self, device: u8) -> &Way {
        &self.ways[usize::from(device) % self.ways.len()]
    }
}
