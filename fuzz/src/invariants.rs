//! What holds after every call.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::mock::{Order, PhysicalDevice};
use riscv_viommu::{Invalidation, Width};

use crate::machine::{Iommu, PASSTHROUGH};
use crate::meter::{Meter, WORDS};

/// Invariants that only some inputs get to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seldom {
    BlockedBehindFence,
    ImageTaken,
    ImageRefused,
}

static LOOKED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

impl Seldom {
    /// An input got there.
    pub(crate) fn note(self) {
        LOOKED[self as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// How often inputs got to what only some get to, so far: what is never looked at shows nothing.
#[must_use]
pub fn looked() -> [(&'static str, u64); 3] {
    let looked = |of: Seldom| LOOKED[of as usize].load(Ordering::Relaxed);
    [
        ("a device without a context, behind its fence", looked(Seldom::BlockedBehindFence)),
        ("an image that was taken", looked(Seldom::ImageTaken)),
        ("an image that was refused", looked(Seldom::ImageRefused)),
    ]
}

/// The bits of the word at `offset` that are neither reserved nor custom, by the figures of the specification.
fn implemented(offset: u64) -> u32 {
    match offset {
        0 => 0xffef_cfff,
        4 => 0xfff,
        reg::FCTL => 7,
        // Mode or LOG2SZ-1 (and ddtp.busy) in 4:0; PPN in 53:10.
        reg::DDTP | reg::CQB | reg::FQB | reg::PQB => 0xffff_fc1f,
        20 | 28 | 44 | 60 => 0x003f_ffff,
        32..=36 | 48..=52 | 64..=68 => u32::MAX,
        reg::CQCSR => 0x3_0f03,
        reg::FQCSR | reg::PQCSR => 0x3_0303,
        reg::IPSR => 0xf,
        // Overflows, inhibits, counters and events have no reserved bits.
        reg::IOCOUNTOVF..600 => u32::MAX,
        reg::TR_REQ_IOVA => 0xffff_f000,
        604 => u32::MAX,
        reg::TR_REQ_CTL => 0xffff_f00f,
        612 => 0xffff_ff01,
        reg::TR_RESPONSE => 0xffff_ff81,
        620 => 0x003f_ffff,
        reg::IOMMU_QOSID => 0x0fff_0fff,
        reg::ICVEC => 0xffff,
        768..1024 => [0xffff_fffc, 0x00ff_ffff, u32::MAX, 1][(offset / 4 % 4) as usize],
        _ => 0,
    }
}

/// Words of the register page, and which of their bits may be set: worked out once, because looking is most of the work.
type Masks = Vec<(usize, u64)>;

/// All of them.
static PAGE: LazyLock<Masks> =
    LazyLock::new(|| (0..WORDS).map(|index| (index, implemented(4 * index as u64).into())).collect());

/// Those that change by more than a store of the guest to them; the counters, of which there are many, can wait.
static OFTEN: LazyLock<Masks> = LazyLock::new(|| {
    PAGE.iter().copied().filter(|(index, mask)| *mask != 0 && !matches!(index, 22..150 | 208..)).collect()
});

/// Reserved bits are 0, the mirror page shows what is read, and indices are those of the queues.
pub(crate) fn registers(iommu: &Iommu, meter: &Meter, whole: bool, mirrored: bool) {
    for &(index, mask) in if whole { PAGE.iter() } else { OFTEN.iter() } {
        let offset = 4 * index as u64;
        let value = iommu.read(offset, Width::U32);
        let reserved = value & !mask;
        assert!(reserved == 0, "registers: bits {reserved:#x} at {offset:#x} are reserved");
        let shown = meter.published(index);
        assert!(!mirrored || u64::from(shown) == value, "mirror: {shown:#x} at {offset:#x}, which reads {value:#x}");
    }
    let read = |offset| iommu.read(offset, Width::U32);
    for (csr, base, indices) in [
        (reg::CQCSR, reg::CQB, [reg::CQH, reg::CQT]),
        (reg::FQCSR, reg::FQB, [reg::FQH, reg::FQT]),
        (reg::PQCSR, reg::PQB, [reg::PQH, reg::PQT]),
    ] {
        let entries = 2_u64 << (read(base) & 0x1f);
        for index in indices.map(read).into_iter().filter(|_| read(csr) & reg::ON != 0) {
            assert!(index < entries, "queue: index {index:#x} in a queue of {entries:#x} entries ({csr:#x})");
        }
    }
}

/// The devices that the vIOMMU has, by its orders.
#[derive(Debug, Default)]
pub(crate) struct Owned(BTreeSet<PhysicalDevice>);

impl Owned {
    /// No order names a device that was not handed in, or is not attached. (The mock's contract stands beside this: it
    /// panics at orders that are out of place.)
    pub(crate) fn follow(&mut self, orders: &[Order]) {
        for order in orders {
            match order {
                Order::Adopt(device, answer) => {
                    assert!(PASSTHROUGH.iter().any(|(_, handle)| handle == device), "orders: {order:?}, of nobody's");
                    if answer.is_ok() {
                        assert!(self.0.insert(*device), "orders: {order:?}, which is adopted");
                    }
                }
                Order::SetContext(device, ..) | Order::AtsInvalidate(device, ..) | Order::PageResponse(device, ..) => {
                    self.check(*device, order);
                }
                Order::Invalidate(orders, _) => orders.iter().for_each(|what| {
                    if let Invalidation::Device(device) | Invalidation::Process(device, _) = what {
                        self.check(*device, order);
                    }
                }),
                Order::Release(device) => {
                    self.check(*device, order);
                    self.0.remove(device);
                }
                _ => {}
            }
        }
    }

    fn check(&self, device: PhysicalDevice, order: &Order) {
        assert!(self.0.contains(&device), "orders: {order:?}, which is not attached");
    }

    pub(crate) fn has(&self, device: PhysicalDevice) -> bool {
        self.0.contains(&device)
    }
}
