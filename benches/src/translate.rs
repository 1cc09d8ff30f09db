//! DMA of an emulated device, in a vIOMMU that remembers `CACHE` translations.

use std::hint::black_box;

use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::Iotinval;
use riscv_viommu::mock::tables::{Directory, PageTable, ProcessDirectory, process_ta, pte, tc};
use riscv_viommu::{
    Config, DevicePolicy, FirstStageMode, Gpa, Gscid, Iova, NoPhysical, ProcessId, Request, SecondStageMode, Target,
    Translation,
};

use crate::commands::fence;
use crate::guest::{Guest, device, memory, pscid};
use crate::operation::{Operation, operation};

/// First address that is mapped: no index on the way is 0.
const IOVA: u64 = 0x12_3456_7000;
/// What it is mapped to.
const MEMORY: u64 = 0x9_8765_4000;
/// Pages that are mapped.
const PAGES: u64 = 16;
/// The first of four interrupt files of a VM, and what the first is.
const WINDOW: u64 = 0x2800_0000;
const FILE: u64 = 0x4_5600_0000;

/// How a device's addresses are translated. Directories have all levels they can have.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// By a first stage.
    FirstStage(FirstStageMode),
    /// By Sv39 in Sv39x4.
    Nested,
    /// By Sv39, found by a process directory.
    Process,
    /// By an MSI page table, as an interrupt file.
    Msi,
}

impl Way {
    const fn has_second_stage(self) -> bool {
        matches!(self, Self::Nested | Self::Msi)
    }
}

/// A guest, its device's requests and where they lead.
#[derive(Debug)]
pub struct Dma<const CACHE: usize> {
    guest: Guest<NoPhysical, 16, CACHE>,
    requests: Vec<(Request, Target)>,
}

fn gscid() -> Gscid {
    Gscid::new(1).expect("16 bits")
}

/// A first stage whose tables are where the guest sees them.
fn first_stage(memory: &Memory, mode: FirstStageMode) -> PageTable {
    let table = PageTable::first_stage(memory, mode);
    for page in (0..PAGES).map(|page| page << 12) {
        table.map(IOVA + page, MEMORY + page, 0, pte::RW);
    }
    table
}

impl<const CACHE: usize> Dma<CACHE> {
    /// A device that asks for the first pages of those that are mapped.
    pub fn new(way: Way, pages: u64) -> Self {
        let memory = memory();
        let extended = matches!(way, Way::Msi);
        let directory = Directory::new(&memory, 3, extended);
        let id = device(3, 0);
        let process = ProcessId::new(0x1_2345).expect("20 bits");
        directory.set(id, &context(&memory, way, process));
        let config = Config::emulated()
            .with_synchronous_dma(true)
            .with_second_stage(way.has_second_stage())
            .with_extended_contexts(extended);
        let mut guest = Guest::new(&config, NoPhysical, &memory, &directory);
        let device = guest.iommu.attach_emulated(id, DevicePolicy::default()).expect("room for it");
        let requests = (0..pages).map(|page| page << 12).map(|page| {
            if matches!(way, Way::Msi) {
                let file = Target::InterruptFile(Gpa::new(FILE + page));
                return (Request::msi(device, Iova::new(WINDOW + page), 7), file);
            }
            let request = Request::read(device, Iova::new(IOVA + page));
            let request = if matches!(way, Way::Process) { request.with_process(process, false) } else { request };
            (request, Target::Memory(Gpa::new(MEMORY + page)))
        });
        let requests = requests.collect();
        Self { guest, requests }
    }

    fn run(&mut self) {
        for (request, _) in &self.requests {
            // What a device model looks at: the place, and how far it goes.
            let Ok(Translation { target: Target::Memory(at) | Target::InterruptFile(at), length, .. }) =
                self.guest.iommu.translate(black_box(request))
            else {
                panic!("{request:?} is translated");
            };
            black_box(at.get() ^ length);
        }
    }

    fn check(&mut self) {
        for (request, target) in &self.requests {
            assert_eq!(self.guest.iommu.translate(request).map(|translation| translation.target), Ok(*target));
        }
    }
}

/// The context of a device whose addresses are translated this way, and the tables behind it.
fn context(memory: &Memory, way: Way, process: ProcessId) -> [u64; 8] {
    let ta = u64::from(pscid().get()) << 12;
    let second_stage = || PageTable::second_stage(memory, SecondStageMode::Sv39x4);
    match way {
        Way::FirstStage(mode) => [tc::V, 0, ta, first_stage(memory, mode).iosatp(), 0, 0, 0, 0],
        Way::Nested => {
            let second = second_stage();
            let first = first_stage(memory, FirstStageMode::Sv39);
            // The first stage's tables, and what it leads to: by pages of 4 KiB, as an operating system has them.
            for page in (0..64).map(|page| page << 12) {
                second.map(0x8000_0000 + page, 0x8000_0000 + page, 0, pte::RW);
                second.map(MEMORY + page, MEMORY + page, 0, pte::RW);
            }
            [tc::V, second.iohgatp(gscid()), ta, first.iosatp(), 0, 0, 0, 0]
        }
        Way::Process => {
            let directory = ProcessDirectory::new(memory, 3);
            let first = first_stage(memory, FirstStageMode::Sv39);
            directory.set(process, [process_ta::V | ta, first.iosatp()]);
            let [tc, iohgatp, ta, pdtp] = directory.context(0);
            [tc, iohgatp, ta, pdtp, 0, 0, 0, 0]
        }
        Way::Msi => {
            let (second, table) = (second_stage(), memory.allocate(1));
            for file in 0..PAGES {
                // V, M = 3, PPN in 53:10.
                memory.write(Gpa::new(table.get() + file * 16), (FILE + (file << 12)) >> 12 << 10 | 0b111);
            }
            // MODE Flat in 63:60; mask and pattern of page numbers.
            let msiptp = 1 << 60 | table.get() >> 12;
            [tc::V, second.iohgatp(gscid()), 0, 0, msiptp, PAGES - 1, WINDOW >> 12, 0]
        }
    }
}

/// Translations with all of it remembered, or nothing at all where `CACHE` is 0.
pub fn translate<const CACHE: usize>(way: Way, pages: u64) -> Box<dyn Operation> {
    operation(Dma::<CACHE>::new(way, pages), |_| {}, Dma::run, Dma::check)
}

/// A translation after these commands: the rest is remembered.
fn after(way: Way, commands: Vec<[u64; 2]>) -> Box<dyn Operation> {
    let forget = move |dma: &mut Dma<16>| {
        dma.run();
        dma.guest.order(&commands);
        dma.guest.order(&[fence()]);
    };
    operation(Dma::new(way, 1), forget, Dma::run, Dma::check)
}

/// Contexts are remembered, and no page-table entry.
pub fn miss(way: Way) -> Box<dyn Operation> {
    let vm = Iotinval::ALL.gscid(gscid());
    after(way, if way.has_second_stage() { vec![vm.vma(), vm.gvma()] } else { vec![Iotinval::ALL.vma()] })
}

/// The next page of a buffer: everything is remembered but the last entries of both stages.
pub fn next_page(way: Way) -> Box<dyn Operation> {
    let page = Iotinval::ALL.address(Iova::new(IOVA));
    if way.has_second_stage() {
        let second = Iotinval::ALL.address(Iova::new(MEMORY));
        return after(way, vec![page.gscid(gscid()).vma(), second.gscid(gscid()).gvma()]);
    }
    after(way, vec![page.vma()])
}
