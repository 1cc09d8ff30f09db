//! The bench everything is tried on: the IOMMU, the controller behind it, and what is to be expected of both.

mod refusal;

use heapless::Vec;
use riscv_viommu::cmdq::{Command, Iotinval};
use riscv_viommu::ddt::{BaseContext, ExtendedContext};
use riscv_viommu::regs::{Ddtp, DdtpMode};
use riscv_viommu::{DeviceId, FirstStageMode, TransactionType};

use crate::imsic::{self, IMSIC};
use crate::iommu::{self, Iommu};
use crate::memory::{PAGE, POOL_END, Pages, Pool, pattern};
use crate::nvme::{Nvme, Outcome, QUEUE_PAGES, Way};
use crate::start::Orders;
use crate::tables::{self, Directory, Space};
use crate::verdict::{Why, ensure, why};

/// The controller, 00:01.0.
pub(crate) const DEVICE: DeviceId = DeviceId::truncate(0x8);
/// Where the device finds its queues and the buffer behind them, in spaces made by [`Bench::world`].
pub(crate) const QUEUES: u64 = 0x12_3400_0000;
/// Where it finds the interrupt file.
const MESSAGES: u64 = 0x12_3500_0000;
/// Where its BAR is.
const BAR: u64 = 0x4_1230_0000;
/// The block that data passes through.
pub(crate) const PASSING: u64 = 64;
pub(crate) const MODES: [FirstStageMode; 3] = [FirstStageMode::Sv39, FirstStageMode::Sv48, FirstStageMode::Sv57];
const CANARY: fn(usize) -> u64 = |index| !(index as u64);
pub(crate) const READ: TransactionType = TransactionType::UntranslatedRead;
pub(crate) const WRITE: TransactionType = TransactionType::UntranslatedWrite;

pub(crate) struct Bench {
    pub(crate) iommu: Iommu,
    pub(crate) nvme: Nvme,
    pub(crate) pool: Pool,
    /// The IOMMU is QEMU's own: no hypervisor, and thus nothing behind the IOMMU that keeps addresses in.
    pub(crate) native: bool,
    /// First address behind RAM.
    pub(crate) ram_end: u64,
    /// How often a rule was not kept since the check began, and excused.
    pub(crate) excuses: u32,
    /// Pages beside those of the check, which nothing is to happen to.
    canaries: Vec<Pages, 64>,
    /// Queues of the controller, and behind them two pages for its data.
    window: Pages,
    /// Where the device finds the window, and the interrupt file.
    found_at: (u64, Option<u64>),
}

/// A directory and a first stage that are in force.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) directory: Directory,
    pub(crate) space: Space,
}

impl Bench {
    pub(crate) fn new(orders: &Orders) -> Self {
        assert!(orders.ram_end >= POOL_END, "RAM ends at {:#x}", orders.ram_end);
        imsic::enable();
        let mut pool = Pool::new();
        let mut nvme = Nvme::find(BAR, &mut pool);
        nvme.snapshots = orders.get("snapshots").is_some();
        let iommu = Iommu::new(pool.pages(1));
        // Who starts it says where it runs: what it finds is to be checked, not to be believed.
        let native = orders.get("native").is_some();
        let window = pool.pages(1);
        Self {
            iommu,
            nvme,
            pool,
            native,
            ram_end: orders.ram_end,
            excuses: 0,
            canaries: Vec::new(),
            window,
            found_at: (0, None),
        }
    }

    /// Brings everything to where a check begins: IOMMU off, queues on and empty, caches empty, controller stopped.
    pub(crate) fn begin(&mut self) -> Result<(), Why> {
        self.excuses = 0;
        self.canaries.clear();
        self.nvme.stop()?;
        iommu::quiesce()?;
        self.pool.reset();
        self.window = self.pool.pages(QUEUE_PAGES + 2);
        iommu::route_interrupts(IMSIC, false);
        // Room for QEMU's IOMMU, which has a record for each 4 bytes of a transfer that faults.
        let faults = self.pool.aligned(4, 4 * PAGE);
        let commands = self.pool.pages(1);
        self.iommu.start_commands(commands, 6, false)?;
        self.iommu.start_faults(faults, 9, false)?;
        self.iommu.flush()?;
        imsic::drain();
        Ok(())
    }

    /// Lets pass that a rule is not kept, if the IOMMU is QEMU's; the excuses are counted.
    pub(crate) fn excused(&mut self) -> bool {
        self.excuses += u32::from(self.native);
        self.native
    }

    /// A page for data, between two that are watched.
    pub(crate) fn page(&mut self) -> Pages {
        let pages = self.pool.pages(3);
        for canary in [pages.page(0), pages.page(2)] {
            canary.fill(CANARY);
            self.canaries.push(canary).expect("room for the canaries of a check");
        }
        pages.page(1)
    }

    /// Nothing happened to the pages beside those of the check.
    pub(crate) fn canaries_live(&self) -> Result<(), Why> {
        match self.canaries.iter().find(|canary| !canary.holds(PAGE, CANARY)) {
            None => Ok(()),
            Some(canary) => Err(why!("the page at {:#x} was changed", canary.gpa())),
        }
    }

    pub(crate) fn extended(&self) -> bool {
        self.iommu.capabilities.msi_flat()
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, levels: u8) -> Directory {
        Directory::new(&mut self.pool, levels, self.iommu.capabilities.msi_flat(), DEVICE)
    }

    /// A first stage with the controller's window and the interrupt file.
    pub(crate) fn space(&mut self, mode: FirstStageMode, pscid: u32) -> Space {
        let space = Space::new(&mut self.pool, mode, pscid);
        space.map_all(&mut self.pool, QUEUES, self.window);
        space.map(&mut self.pool, MESSAGES, IMSIC);
        space
    }

    /// A directory and a first stage, in force, and the controller started in it.
    pub(crate) fn world(&mut self, levels: u8, mode: FirstStageMode) -> Result<World, Why> {
        let (directory, space) = (self.directory(levels), self.space(mode, 5));
        directory.set_base(space.context());
        self.enter(directory.ddtp())?;
        self.start(QUEUES, Some(MESSAGES))?;
        Ok(World { directory, space })
    }

    /// The usual one.
    pub(crate) fn sv39(&mut self) -> Result<World, Why> {
        self.world(2, FirstStageMode::Sv39)
    }

    /// Puts a directory in force that no cache knows anything of.
    pub(crate) fn enter(&mut self, ddtp: Ddtp) -> Result<(), Why> {
        iommu::set_ddtp(iommu::OFF)?;
        self.iommu.flush()?;
        iommu::set_ddtp(ddtp)
    }

    /// Lets the device's addresses through, and starts the controller.
    pub(crate) fn bare(&mut self) -> Result<(), Why> {
        self.enter(Ddtp::new().with_iommu_mode(DdtpMode::Bare.encoding()))?;
        self.start_untranslated()
    }

    /// A directory that lets the device's addresses through, in force, and the controller started.
    pub(crate) fn identity(&mut self, levels: u8) -> Result<Directory, Why> {
        let directory = self.directory(levels);
        directory.set_base(tables::identity());
        self.enter(directory.ddtp())?;
        self.start_untranslated()?;
        Ok(directory)
    }

    /// Starts the controller, whose addresses of its queues and of the interrupt file are these.
    pub(crate) fn start(&mut self, queues: u64, messages: Option<u64>) -> Result<(), Why> {
        self.found_at = (queues, messages);
        self.restart()
    }

    /// Starts the controller, whose addresses are those of memory.
    pub(crate) fn start_untranslated(&mut self) -> Result<(), Why> {
        self.start(self.window.gpa(), Some(IMSIC))
    }

    /// Starts it again, where it was.
    pub(crate) fn restart(&mut self) -> Result<(), Why> {
        self.nvme.start(self.window.part(0, QUEUE_PAGES), self.found_at.0, self.found_at.1)
    }

    /// Gives the device another context, by way of an invalid one (rules UPD-02, SWG-01 to SWG-04).
    pub(crate) fn set_context(&mut self, directory: &Directory, context: ExtendedContext) -> Result<(), Why> {
        let invalidate = [Command::IodirInvalDdt(Some(DEVICE)), Command::IotinvalVma(Iotinval::ALL)];
        directory.set_word(0, 0);
        self.iommu.run(&invalidate)?;
        directory.set(context);
        self.iommu.run(&invalidate)
    }

    pub(crate) fn set_base_context(&mut self, directory: &Directory, base: BaseContext) -> Result<(), Why> {
        self.set_context(directory, ExtendedContext { base, ..ExtendedContext::default() })
    }

    /// The pages data passes through on its way to and from the disk, which the device finds behind its queues.
    pub(crate) fn buffer(&self) -> (Pages, [u64; 2]) {
        let iova = self.found_at.0 + (QUEUE_PAGES * PAGE) as u64;
        (self.window.part(QUEUE_PAGES, 2), [iova, iova + PAGE as u64])
    }

    /// Puts a pattern on the disk.
    pub(crate) fn stage(&mut self, bytes: usize, seed: u64) -> Result<(), Why> {
        let (buffer, iova) = self.buffer();
        buffer.fill(pattern(seed));
        let outcome = self.nvme.transfer(Way::FromMemory, PASSING, bytes, iova);
        ensure!(outcome == Outcome::Done(0), "to the disk: {outcome:?}, {}", self.next_fault());
        Ok(())
    }

    /// Brings what is on the disk into the buffer.
    pub(crate) fn collect(&mut self, bytes: usize) -> Result<Pages, Why> {
        let (buffer, iova) = self.buffer();
        buffer.fill(|_| !0);
        let outcome = self.nvme.transfer(Way::ToMemory, PASSING, bytes, iova);
        ensure!(outcome == Outcome::Done(0), "from the disk: {outcome:?}, {}", self.next_fault());
        Ok(buffer)
    }

    /// The device writes a pattern to its addresses.
    pub(crate) fn deliver(&mut self, prp: [u64; 2], bytes: usize, seed: u64) -> Result<Outcome, Why> {
        self.stage(bytes, seed)?;
        Ok(self.nvme.transfer(Way::ToMemory, PASSING, bytes, prp))
    }

    /// The device reads from its addresses; then the buffer has what it read.
    pub(crate) fn fetch(&mut self, prp: [u64; 2], bytes: usize) -> Result<Pages, Why> {
        let outcome = self.nvme.transfer(Way::FromMemory, PASSING, bytes, prp);
        ensure!(outcome == Outcome::Done(0), "reading {prp:x?}: {outcome:?}, {}", self.next_fault());
        self.collect(bytes)
    }

    /// The device's page at `iova` is that page of memory, both ways, to the byte, and nothing else happens.
    pub(crate) fn leads(&mut self, iova: u64, page: Pages, seed: u64) -> Result<(), Why> {
        self.transfers([iova, 0], page, PAGE, seed)?;
        self.no_fault()
    }

    /// The beginning of pages is what the device's addresses lead to, both ways.
    pub(crate) fn transfers(&mut self, prp: [u64; 2], pages: Pages, bytes: usize, seed: u64) -> Result<(), Why> {
        let before = pattern(seed ^ 0xbef0);
        pages.fill(before);
        let outcome = self.deliver(prp, bytes, seed)?;
        ensure!(outcome == Outcome::Done(0), "writing {prp:x?}: {outcome:?}, {}", self.next_fault());
        let arrived = pages.holds(bytes, pattern(seed));
        ensure!(arrived, "what was written to {prp:x?} is not at {:#x}", pages.gpa());
        let kept = (bytes / 8..pages.len() / 8).all(|index| pages.word(index) == before(index));
        ensure!(kept, "{bytes} bytes written to {prp:x?} changed others at {:#x}", pages.gpa());
        pages.fill(pattern(seed + 1));
        let read = self.fetch(prp, bytes)?;
        ensure!(read.holds(bytes, pattern(seed + 1)), "what was read from {prp:x?} is not from {:#x}", pages.gpa());
        Ok(())
    }

    /// What the device reads at `iova` is the pattern of this page.
    pub(crate) fn reads(&mut self, iova: u64, seed: u64) -> Result<(), Why> {
        let read = self.fetch([iova, 0], PAGE)?;
        ensure!(read.holds(PAGE, pattern(seed)), "{iova:#x} does not lead to the page of pattern {seed}");
        Ok(())
    }

    /// Starts the controller again if it gave up.
    pub(crate) fn revive(&mut self) -> Result<(), Why> {
        if self.nvme.has_failed() { self.restart() } else { Ok(()) }
    }
}
