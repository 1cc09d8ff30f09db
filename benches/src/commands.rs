//! Doorbells, and what the commands behind them do.
//!
//! Every doorbell finds the vIOMMU at rest: before it, a fence has sent all that was held back.

use riscv_viommu::cmdq::{self, Command, PageRange, RawCommand};
use riscv_viommu::mock::guest::{Iofence, Iotinval};
use riscv_viommu::mock::tables::Directory;
use riscv_viommu::{Answers, Config, Iova, NoPhysical, OrderCounts, PhysicalIommu};

use crate::guest::{DONE, Guest, memory, pscid};
use crate::host::NoOp;
use crate::operation::{Operation, operation};

/// First address that is unmapped.
const IOVA: u64 = 0x12_3456_7000;
const PAGE: u64 = 0x1000;

/// A guest with one device.
pub fn nested() -> Guest<NoOp, 16, 0> {
    Guest::nested(3, 1)
}

/// A guest whose devices are all emulated, in a vIOMMU that remembers nothing.
pub fn emulated() -> Guest<NoPhysical, 16, 0> {
    let memory = memory();
    let directory = Directory::new(&memory, 3, false);
    Guest::new(&Config::emulated().with_synchronous_dma(true), NoPhysical, &memory, &directory)
}

/// An address space, again and again.
pub fn space(count: u64) -> Vec<[u64; 2]> {
    pages(count, 0).iter().map(|_| Iotinval::ALL.pscid(pscid()).vma()).collect()
}

/// Pages of one address space, each so many bytes after the one before.
pub fn pages(count: u64, step: u64) -> Vec<[u64; 2]> {
    let page = |number| Iotinval::ALL.pscid(pscid()).address(Iova::new(IOVA + number * step)).vma();
    (0..count).map(page).collect()
}

/// Pages that lie behind each other.
pub fn adjacent(count: u64) -> Vec<[u64; 2]> {
    pages(count, PAGE)
}

/// Ranges of 16 pages (S) that lie behind each other.
pub fn ranges(count: u64) -> Vec<[u64; 2]> {
    let range = |number| {
        let first = IOVA / (16 * PAGE) * (16 * PAGE) + number * 16 * PAGE;
        let pages = PageRange::covering(Iova::new(first), Iova::new(first + 15 * PAGE));
        let operands = cmdq::Iotinval::ALL.with_pscid(pscid()).with_range(pages);
        let RawCommand { low, high } = Command::IotinvalVma(operands).encode();
        [low, high]
    };
    (0..count).map(range).collect()
}

/// Pages with a page between them.
pub fn apart(count: u64) -> Vec<[u64; 2]> {
    pages(count, 2 * PAGE)
}

/// A fence without AV.
pub fn fence() -> [u64; 2] {
    Iofence::PLAIN.encode()
}

/// A fence with AV.
pub fn storing() -> [u64; 2] {
    Iofence::PLAIN.store(DONE, 7).encode()
}

/// One doorbell for these commands.
pub fn doorbell<P: PhysicalIommu + 'static, const DEVICES: usize>(
    guest: Guest<P, DEVICES, 0>,
    commands: Vec<[u64; 2]>,
) -> Box<dyn Operation> {
    let stored = if commands.contains(&storing()) { 7 } else { 0 };
    let has_devices = guest.iommu.stats().orders.adopt != Answers::default();
    let is_ordered = has_devices && ![storing(), fence()].contains(&commands[0]);
    let prepare = move |(guest, invalidations): &mut (Guest<P, DEVICES, 0>, u64)| {
        guest.order(&[fence()]);
        guest.memory().write(DONE, &[0]);
        *invalidations = guest.iommu.stats().orders.invalidations;
        guest.push(&commands);
    };
    let check = move |(guest, invalidations): &mut (Guest<P, DEVICES, 0>, u64)| {
        guest.check_commands();
        assert_eq!(guest.memory().read(DONE), stored);
        guest.order(&[fence()]);
        assert_eq!(guest.iommu.stats().orders.invalidations > *invalidations, is_ordered);
    };
    operation((guest, 0), prepare, |(guest, _)| guest.ring(), check)
}

/// A doorbell behind which there is nothing.
pub fn empty_doorbell() -> Box<dyn Operation> {
    operation(nested(), |_| {}, Guest::ring, |guest| guest.check_commands())
}

/// Pages that lie behind each other and a fence, each rung by itself, as a guest does that unmaps a buffer.
pub fn unmap(count: u64) -> Box<dyn Operation> {
    type Rig = (Guest<NoOp, 16, 0>, OrderCounts);
    let prepare = move |(guest, before): &mut Rig| {
        guest.order(&[fence()]);
        *before = guest.iommu.stats().orders;
        guest.push(&adjacent(count));
        guest.push(&[fence()]);
    };
    let check = |(guest, before): &mut Rig| {
        guest.check_commands();
        let orders = guest.iommu.stats().orders;
        assert!(orders.invalidations > before.invalidations && orders.fence.done == before.fence.done + 1);
        eprintln!("{}", orders.invalidations - before.invalidations);
    };
    operation((nested(), OrderCounts::default()), prepare, move |(guest, _)| guest.ring_each(count + 1), check)
}
