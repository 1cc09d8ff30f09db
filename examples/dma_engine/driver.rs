//! The guest of this example: its driver of the IOMMU, with tables in the crate's public formats.

use std::sync::atomic::Ordering::{Acquire, Release};

use riscv_viommu::cmdq::{Command, IofenceC, Iotinval, PageRange};
use riscv_viommu::ddt::{Fsc, Tc};
use riscv_viommu::pdt::ProcessTa;
use riscv_viommu::pt::Pte;
use riscv_viommu::regs::{Cqcsr, Ddtp, DdtpMode, Fqcsr, Ipsr, QueueBase};
use riscv_viommu::{FaultHead, FirstStageMode, Gpa, Iova, MemoryFault, Ppn, Progress, Pscid, Register};

use super::{ENGINE, INTERRUPT_FILE, IOMMU_INTERRUPT, Iommu, Machine, PROCESS, RAM, RAM_SIZE, Result};

/// The driver, with what it has in the guest's memory.
pub(crate) struct Driver<'m> {
    machine: &'m Machine,
    /// Free memory ends here. It is used up from its end: pages that are neighbours to a device are not in memory.
    free: u64,
    /// `cqt`.
    tail: u64,
}

/// Pages of the driver: queues and directories.
const COMMANDS: u64 = RAM;
const FAULTS: u64 = RAM + 0x1000;
const DEVICES: u64 = RAM + 0x2000;
const PROCESSES: u64 = RAM + 0x3000;

/// A page that a device may read and write; A and D are left to the IOMMU.
const PAGE: Pte = Pte::new().with_v(true).with_r(true).with_w(true).with_u(true);

fn page(address: u64) -> Ppn {
    Ppn::truncate(address >> 12)
}

/// What the VMM does with a store of a vCPU to the register page.
fn write(iommu: &mut Iommu<'_>, register: Register, value: u64) -> Progress {
    let mut progress = iommu.write(register.offset().into(), register.width(), value);
    // A guest can keep its queue full: a VMM lets a timer go on behind so many calls.
    for _ in 0..64 {
        if progress != Progress::Runnable {
            break;
        }
        progress = iommu.run();
    }
    progress
}

fn read(iommu: &Iommu<'_>, register: Register) -> u64 {
    iommu.read(register.offset().into(), register.width())
}

impl<'m> Driver<'m> {
    /// Turns the IOMMU on, with a directory that has the engine and a page table for each of two processes.
    pub(crate) fn start(machine: &'m Machine, iommu: &mut Iommu<'_>) -> Result<Self> {
        let mut driver = Self { machine, free: RAM + RAM_SIZE, tail: 0 };
        let queue = |at| QueueBase::new().with_log2sz_minus_1(6).with_ppn(page(at)).into_bits();
        let context = DEVICES + u64::from(ENGINE) * 32;
        // A process directory with 8-bit ids. Requests without a process are of process 0.
        let tc = Tc::new().with_v(true).with_pdtv(true).with_dpe(true).with_sade(true);
        driver.set(context + 24, Fsc::new().with_mode(1).with_ppn(page(PROCESSES)).into_bits())?;
        driver.set(context, tc.into_bits())?;
        for process in [0, PROCESS] {
            let (context, table) = (PROCESSES + u64::from(process) * 16, page(driver.allocate()));
            let fsc = Fsc::new().with_mode(FirstStageMode::Sv39.encoding()).with_ppn(table);
            driver.set(context + 8, fsc.into_bits())?;
            driver.set(context, ProcessTa::new().with_v(true).with_pscid(Pscid::new(process)?).into_bits())?;
        }
        let ddtp = Ddtp::new().with_iommu_mode(DdtpMode::Levels(1).encoding()).with_ppn(page(DEVICES));
        for (register, value) in [
            (Register::MsiAddr(0), INTERRUPT_FILE),
            (Register::MsiData(0), IOMMU_INTERRUPT.into()),
            (Register::Cqb, queue(COMMANDS)),
            (Register::Fqb, queue(FAULTS)),
            (Register::Cqcsr, Cqcsr::new().with_cqen(true).into_bits().into()),
            (Register::Fqcsr, Fqcsr::new().with_fqen(true).with_fie(true).into_bits().into()),
            (Register::Ddtp, ddtp.into_bits()),
        ] {
            assert_eq!(write(iommu, register, value), Progress::Idle);
        }
        Ok(driver)
    }

    fn allocate(&mut self) -> u64 {
        self.free -= 0x1000;
        self.free
    }

    fn get(&self, at: u64) -> Result<u64, MemoryFault> {
        Ok(self.machine.word(at)?.load(Acquire))
    }

    fn set(&self, at: u64, value: u64) -> Result<(), MemoryFault> {
        self.machine.word(at)?.store(value, Release);
        Ok(())
    }

    /// Where the leaf entry for an address of a process is; makes the way to it.
    fn leaf(&mut self, process: u32, iova: u64) -> Result<u64> {
        let mut table = Fsc::from_bits(self.get(PROCESSES + u64::from(process) * 16 + 8)?).ppn();
        for shift in [30, 21] {
            let at = table.base().get() + (iova >> shift & 0x1ff) * 8;
            if !Pte::from_bits(self.get(at)?).v() {
                let below = page(self.allocate());
                self.set(at, Pte::new().with_v(true).with_ppn(below).into_bits())?;
            }
            table = Pte::from_bits(self.get(at)?).ppn();
        }
        Ok(table.base().get() + (iova >> 12 & 0x1ff) * 8)
    }

    /// The leaf entry for an address of a process.
    pub(crate) fn entry(&mut self, process: u32, iova: u64) -> Result<Pte> {
        let at = self.leaf(process, iova)?;
        Ok(Pte::from_bits(self.get(at)?))
    }

    /// Gives a process a page at `iova`, with `bytes` from there on; where that is in memory.
    pub(crate) fn map(&mut self, process: u32, iova: u64, bytes: &[u8]) -> Result<Gpa> {
        let at = Gpa::new(self.allocate() | iova & 0xfff);
        self.machine.write(at, bytes)?;
        self.map_to(process, iova, at.get())?;
        Ok(at)
    }

    /// Maps what is there at `to`.
    pub(crate) fn map_to(&mut self, process: u32, iova: u64, to: u64) -> Result<()> {
        let at = self.leaf(process, iova)?;
        Ok(self.set(at, PAGE.with_ppn(page(to)).into_bits())?)
    }

    pub(crate) fn unmap(&mut self, process: u32, iova: u64) -> Result<()> {
        let at = self.leaf(process, iova)?;
        Ok(self.set(at, 0)?)
    }

    /// Writes a list for the engine at `iova`.
    pub(crate) fn write_list(&mut self, iova: u64, entries: &[(u64, u64)]) -> Result<()> {
        let words = entries.iter().flat_map(|(iova, length)| [iova, length]);
        let bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        self.map(0, iova, &bytes).map(drop)
    }

    /// Tells the IOMMU that the entry for an address of a process is another one now, and to finish what used the old.
    pub(crate) fn invalidate(&mut self, process: u32, iova: u64, iommu: &mut Iommu<'_>) -> Result<Progress> {
        let page = Iotinval::ALL.with_pscid(Pscid::new(process)?).with_range(PageRange::page(Iova::new(iova)));
        for command in [Command::IotinvalVma(page), Command::IofenceC(IofenceC::READS_AND_WRITES)] {
            let raw = command.encode();
            self.set(COMMANDS + self.tail * 16, raw.low)?;
            self.set(COMMANDS + self.tail * 16 + 8, raw.high)?;
            self.tail = (self.tail + 1) % 128;
        }
        Ok(write(iommu, Register::Cqt, self.tail))
    }

    /// Whether every command is carried out.
    pub(crate) fn is_done(&self, iommu: &Iommu<'_>) -> bool {
        read(iommu, Register::Cqh) == self.tail
    }

    /// The one fault that has been recorded: its head and the address.
    pub(crate) fn take_fault(&self, iommu: &mut Iommu<'_>) -> Result<(FaultHead, u64)> {
        let (head, tail) = (read(iommu, Register::Fqh), read(iommu, Register::Fqt));
        assert_eq!((head + 1) % 128, tail, "one record");
        let record = (FaultHead::from_bits(self.get(FAULTS + head * 32)?), self.get(FAULTS + head * 32 + 16)?);
        let _idle = write(iommu, Register::Fqh, tail);
        let _idle = write(iommu, Register::Ipsr, Ipsr::new().with_fip(true).into_bits().into());
        Ok(record)
    }
}
