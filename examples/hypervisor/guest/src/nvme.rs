//! A driver of an NVMe controller that tells its device what addresses it likes.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::console::say;
use crate::csr;
use crate::imsic;
use crate::memory::{PAGE, Pages, Pool};
use crate::mmio::Window;
use crate::pci;
use crate::verdict::{Why, ensure, why};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;
/// Pages the queues take: two of the administrator, two for input and output.
pub(crate) const QUEUE_PAGES: usize = 4;
/// Entries of a queue.
const DEPTH: u16 = 32;
const NAMESPACE: u32 = 1;

const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;
/// Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set; enabled.
const ENABLED: u32 = 4 << 20 | 6 << 16 | 1;
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;

/// What a command is to do; the numbers are the opcodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The device reads memory, the disk is written.
    FromMemory = 1,
    /// The disk is read, the device writes memory.
    ToMemory = 2,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered, with this status; 0 is success.
    Done(u16),
    /// The controller gave up.
    Fatal,
    /// Nothing came.
    Silent,
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    id: u16,
    namespace: u32,
    reserved: u64,
    metadata: u64,
    prp: [u64; 2],
    words: [u32; 6],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Completion {
    result: u64,
    head: u16,
    queue: u16,
    id: u16,
    /// The status above the phase bit.
    status: u16,
}

/// A submission queue and its completion queue.
struct Pair {
    number: usize,
    submissions: Pages,
    completions: Pages,
    tail: u16,
    head: u16,
    phase: u16,
}

impl Pair {
    fn new(number: usize, pages: Pages) -> Self {
        let (submissions, completions) = (pages.page(2 * number), pages.page(2 * number + 1));
        Self { number, submissions, completions, tail: 0, head: 0, phase: 1 }
    }
}

pub(crate) struct Nvme {
    bar: Window,
    /// Offset of the MSI-X table in the BAR.
    table: usize,
    admin: Pair,
    io: Pair,
    /// The hypervisor is to save and restore the IOMMU now and then.
    pub(crate) snapshots: bool,
    transfers: u32,
}

impl Nvme {
    /// Finds the controller, and places its registers at an address in a PCI window.
    pub(crate) fn find(base: u64, pool: &mut Pool) -> Self {
        assert!(pci::class() == Some(0x01_0802), "00:01.0 is no NVMe controller");
        let bar = pci::place(base);
        let pages = pool.pages(QUEUE_PAGES);
        let (admin, io) = (Pair::new(0, pages), Pair::new(1, pages));
        Self { bar, table: pci::enable_msi_x(), admin, io, snapshots: false, transfers: 0 }
    }

    /// Places the registers somewhere else.
    pub(crate) fn place(&mut self, base: u64) {
        self.bar = pci::place(base);
    }

    /// Resets the controller.
    pub(crate) fn stop(&mut self) -> Result<(), Why> {
        self.bar.write32(CC, 0);
        let stopped = csr::within(2000, || self.bar.read32(CSTS) & READY == 0);
        ensure!(stopped, "the controller does not stop, CSTS {:#x}", self.bar.read32(CSTS));
        Ok(())
    }

    /// Resets the controller and starts it with queues that it is to find at `iova`, and an interrupt file at `msi`;
    /// without one its interrupts are masked.
    pub(crate) fn start(&mut self, pages: Pages, iova: u64, msi: Option<u64>) -> Result<(), Why> {
        self.enable(pages, iova, iova + PAGE as u64, msi)?;
        let ready = csr::within(2000, || self.bar.read32(CSTS) & (READY | FATAL) != 0);
        ensure!(ready && !self.has_failed(), "the controller does not start, CSTS {:#x}", self.bar.read32(CSTS));
        let size = u32::from(DEPTH - 1) << 16 | 1;
        let contiguous = 1;
        // An I/O completion queue with interrupts on vector 1, then a submission queue on it.
        self.administer(5, iova + 3 * PAGE as u64, [size, 1 << 16 | 1 << 1 | contiguous])?;
        self.administer(1, iova + 2 * PAGE as u64, [size, 1 << 16 | contiguous])
    }

    /// Resets and enables the controller, with its first queues wherever.
    pub(crate) fn enable(&mut self, pages: Pages, asq: u64, acq: u64, msi: Option<u64>) -> Result<(), Why> {
        self.stop()?;
        pages.fill(|_| 0);
        (self.admin, self.io) = (Pair::new(0, pages), Pair::new(1, pages));
        for vector in 0..2 {
            let entry = self.table + vector * 16;
            self.bar.write32(entry, msi.unwrap_or(0) as u32);
            self.bar.write32(entry + 4, (msi.unwrap_or(0) >> 32) as u32);
            self.bar.write32(entry + 8, u32::from(imsic::NVME) + vector as u32);
            self.bar.write32(entry + 12, u32::from(msi.is_none()));
        }
        self.bar.write32(AQA, u32::from(DEPTH - 1) << 16 | u32::from(DEPTH - 1));
        self.bar.write64(ASQ, asq);
        self.bar.write64(ACQ, acq);
        self.bar.write32(CC, ENABLED);
        Ok(())
    }

    fn administer(&mut self, opcode: u8, prp: u64, words: [u32; 2]) -> Result<(), Why> {
        let command =
            Submission { opcode, prp: [prp, 0], words: [words[0], words[1], 0, 0, 0, 0], ..Default::default() };
        submit(self.bar, &mut self.admin, command);
        match self.answer(Self::admin) {
            Outcome::Done(0) => Ok(()),
            outcome => Err(why!("administrator's command {opcode}: {outcome:?}")),
        }
    }

    /// Blocks of the disk, and bytes of a block; `buffer` is what `iova` leads to.
    pub(crate) fn identify(&mut self, iova: u64, buffer: Pages) -> Result<(u64, usize), Why> {
        let prp = [iova, 0];
        submit(self.bar, &mut self.admin, Submission { opcode: 6, namespace: NAMESPACE, prp, ..Default::default() });
        let outcome = self.answer(Self::admin);
        ensure!(outcome == Outcome::Done(0), "identify: {outcome:?}");
        let format = buffer.get::<[u8; 32]>(0)[26] & 0xf;
        let format = buffer.get::<[u8; 64]>(128)[usize::from(format) * 4 + 2];
        Ok((buffer.word(0), 1 << format))
    }

    /// Begins a transfer of up to 8 KiB.
    pub(crate) fn submit(&mut self, way: Way, block: u64, bytes: usize, prp: [u64; 2]) {
        let words = [block as u32, (block >> 32) as u32, (bytes / BLOCK - 1) as u32, 0, 0, 0];
        let command = Submission { opcode: way as u8, namespace: NAMESPACE, prp, words, ..Default::default() };
        submit(self.bar, &mut self.io, command);
    }

    /// Tells the controller of a command in its first queue, whatever that queue is.
    pub(crate) fn poke(&mut self) {
        self.bar.write32(DOORBELLS, 1);
    }

    /// Waits for the next answer to a transfer.
    pub(crate) fn wait(&mut self) -> Outcome {
        self.answer(|nvme| &mut nvme.io)
    }

    /// Transfers up to 8 KiB. Nothing may be under way before.
    pub(crate) fn transfer(&mut self, way: Way, block: u64, bytes: usize, prp: [u64; 2]) -> Outcome {
        self.transfers += 1;
        if self.snapshots && self.transfers.is_multiple_of(7) {
            say!("@hv snapshot");
        }
        self.submit(way, block, bytes, prp);
        self.wait()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.bar.read32(CSTS) & FATAL != 0
    }

    fn admin(&mut self) -> &mut Pair {
        &mut self.admin
    }

    fn answer(&mut self, pair: impl Fn(&mut Self) -> &mut Pair) -> Outcome {
        let mut outcome = Outcome::Silent;
        csr::within(3000, || {
            let bar = self.bar;
            if let Some(status) = take(bar, pair(self)) {
                outcome = Outcome::Done(status);
            } else if self.has_failed() {
                outcome = Outcome::Fatal;
            }
            outcome != Outcome::Silent
        });
        outcome
    }
}

fn submit(bar: Window, pair: &mut Pair, command: Submission) {
    let command = Submission { id: pair.tail, ..command };
    pair.submissions.put(usize::from(pair.tail) * size_of::<Submission>(), &command);
    pair.tail = (pair.tail + 1) % DEPTH;
    bar.write32(DOORBELLS + pair.number * 8, pair.tail.into());
}

/// The status of the next completion, if there is one.
fn take(bar: Window, pair: &mut Pair) -> Option<u16> {
    let at = usize::from(pair.head) * size_of::<Completion>();
    // The phase is in the word the controller writes last.
    if (pair.completions.word(at / 8 + 1) >> 48) as u16 & 1 != pair.phase {
        return None;
    }
    let completion: Completion = pair.completions.get(at);
    pair.head = (pair.head + 1) % DEPTH;
    pair.phase ^= u16::from(pair.head == 0);
    bar.write32(DOORBELLS + pair.number * 8 + 4, pair.head.into());
    Some(completion.status >> 1)
}
