//! What has to hold after a storm: DMA works, and only in the guest's own memory.

use rand::Rng;
use riscv_viommu::cmdq::{Command, Iotinval, PageRange};
use riscv_viommu::{Cause, Iova};

use super::{Hostile, IOVAS, LIVE, MARK};
use crate::bench::{MODES, PASSING, QUEUES, READ, WRITE};
use crate::csr;
use crate::iommu;
use crate::memory::{PAGE, pattern};
use crate::nvme::{BLOCK, Outcome, Way};
use crate::tables::Space;
use crate::verdict::{Why, ensure, why};

impl Hostile<'_> {
    /// After all that: memory of the guest's own is reached, to the byte, and no other.
    pub(super) fn trial(&mut self) -> Result<(), Why> {
        self.bench.begin()?;
        let levels = self.rng.random_range(1..=3);
        let space = match self.rng.random_range(0..5) {
            0 => self.bench.bare().map(|()| None)?,
            1 => self.bench.identity(levels).map(|_| None)?,
            scheme => {
                let (directory, space) = (self.bench.directory(levels), self.space(MODES[scheme - 2]));
                directory.set_base(space.context());
                self.bench.enter(directory.ddtp())?;
                self.bench.start(QUEUES, None)?;
                Some(space)
            }
        };
        for index in 0..3 {
            let gpa = self.outside();
            let iova = self.map(space, index, gpa)?;
            self.reach_out(iova, gpa)?;
        }
        let page = self.page();
        let iova = self.map(space, 3, page.gpa())?;
        let seed = self.rng.random_range(0..1 << 40);
        self.bench.transfers([iova, 0], page, PAGE, seed)?;
        self.counts.inside += 1;
        if space.is_some() {
            // The page the device has just used is another.
            let gpa = self.outside();
            let iova = self.map(space, 3, gpa)?;
            self.reach_out(iova, gpa)?;
        }
        self.close()
    }

    /// An address that leads there now: without a first stage the same.
    fn map(&mut self, space: Option<Space>, index: u64, gpa: u64) -> Result<u64, Why> {
        let Some(space) = space else {
            return Ok(gpa);
        };
        let iova = IOVAS + (LIVE + index) * PAGE as u64;
        space.map(&mut self.bench.pool, iova, gpa);
        let page = PageRange::page(Iova::new(iova));
        self.bench.iommu.run(&[Command::IotinvalVma(Iotinval::ALL.with_range(page))])?;
        Ok(iova)
    }

    /// A transfer from or to what is not the guest's: a fault, and no data.
    fn reach_out(&mut self, iova: u64, gpa: u64) -> Result<(), Why> {
        let way = if self.rng.random() { Way::FromMemory } else { Way::ToMemory };
        // Records can get lost where another guest has many.
        for _ in 0..20 {
            if self.is_told(way, iova).map_err(|why| why!("leak {way:?} {gpa:#x}: {why}"))? {
                return Ok(());
            }
            self.counts.lost += 1;
        }
        Err(why!("{way:?} {gpa:#x}: records are lost again and again"))
    }

    /// Once; whether there is a record and not only word of lost ones.
    fn is_told(&mut self, way: Way, iova: u64) -> Result<bool, Why> {
        let (buffer, marked) = self.bench.buffer();
        buffer.fill(|_| MARK);
        let outcome = self.bench.nvme.transfer(Way::FromMemory, PASSING, BLOCK, marked);
        ensure!(outcome == Outcome::Done(0), "to the disk: {outcome:?}, {}", self.bench.next_fault());
        let outcome = self.bench.nvme.transfer(way, PASSING, BLOCK, [iova, 0]);
        let quiet = matches!(outcome, Outcome::Done(1..)) && !csr::within(20, || self.bench.iommu.has_fault());
        // A quiet refusal is the controller's own, which does not like the address of its registers.
        self.counts.outside += u64::from(!quiet);
        if self.bench.native || quiet {
            return Ok(true);
        }
        let told = match way {
            Way::ToMemory => self.bench.finds(Cause::WriteAccessFault, WRITE, iova)?,
            Way::FromMemory => self.bench.finds(Cause::ReadAccessFault, READ, iova)?,
        };
        self.bench.revive()?;
        let read = self.bench.collect(BLOCK)?;
        let leaked = (0..BLOCK / 8).find(|&index| ![0, MARK].contains(&read.word(index)));
        ensure!(leaked.is_none(), "data {:#x}", read.word(leaked.unwrap_or(0)));
        Ok(told)
    }

    /// Shut out, the device gets at nothing.
    fn close(&mut self) -> Result<(), Why> {
        iommu::set_ddtp(iommu::OFF)?;
        let (buffer, iova) = self.bench.buffer();
        buffer.fill(pattern(1));
        let outcome = self.bench.nvme.transfer(Way::ToMemory, PASSING, BLOCK, iova);
        ensure!(outcome == Outcome::Fatal, "shut out, the device answers {outcome:?}");
        ensure!(buffer.holds(BLOCK, pattern(1)), "shut out, the device wrote");
        Ok(())
    }
}
