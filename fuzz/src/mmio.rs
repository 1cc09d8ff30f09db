//! Register accesses, and guest memory between them and under them.

use arbitrary::Arbitrary;
use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::{Gpa, MemoryFault, Width};

use crate::guest::{Place, Value, frame};
use crate::machine::{Iommu, Machine};

/// Registers that a write does something to, and one of each kind of the others.
const REGISTERS: [u64; 32] = [
    reg::CAPABILITIES,
    reg::FCTL,
    reg::DDTP,
    reg::CQB,
    reg::CQH,
    reg::CQT,
    reg::FQB,
    reg::FQH,
    reg::FQT,
    reg::PQB,
    reg::PQH,
    reg::PQT,
    reg::CQCSR,
    reg::FQCSR,
    reg::PQCSR,
    reg::IPSR,
    reg::IOCOUNTOVF,
    reg::IOCOUNTINH,
    reg::IOHPMCYCLES,
    reg::iohpmctr(1),
    reg::iohpmevt(1),
    reg::TR_REQ_IOVA,
    reg::TR_REQ_CTL,
    reg::TR_RESPONSE,
    reg::IOMMU_QOSID,
    reg::ICVEC,
    reg::MSI_CFG_TBL,
    reg::MSI_CFG_TBL + 8,
    reg::MSI_CFG_TBL + 12,
    reg::MSI_CFG_TBL + 16,
    reg::MSI_CFG_TBL + 24,
    reg::MSI_CFG_TBL + 28,
];

/// Where an access goes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Offset {
    Register(u8),
    High(u8),
    At(u16),
    Any(u64),
}

impl Offset {
    fn get(self) -> u64 {
        let register = |index| REGISTERS[usize::from(index) % REGISTERS.len()];
        match self {
            Self::Register(index) => register(index),
            Self::High(index) => register(index) + 4,
            Self::At(offset) => offset.into(),
            Self::Any(offset) => offset,
        }
    }
}

/// What the guest does.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Action {
    Write(Offset, bool, Value),
    /// Accesses of any size.
    Bytes(u64, u8, [u8; 12]),
    Word(Place, Value),
    /// A store just before the next load of the word.
    Race(Place, Value),
    /// The same before the next exchange.
    Exchange(Place, Value),
    Unreadable(u8, bool),
    Unwritable(u8, bool),
    Sound,
    TurnOn,
    Run,
    Cycles(u64),
}

impl Action {
    pub(crate) fn act(self, machine: &mut Machine) {
        let memory = machine.memory.clone();
        match self {
            Self::Write(offset, wide, value) => {
                let width = if wide { Width::U64 } else { Width::U32 };
                let _ = machine.call(|iommu| iommu.write(offset.get(), width, value.get()));
            }
            Self::Bytes(offset, length, bytes) => {
                let length = usize::from(length) % (bytes.len() + 1);
                let _ = machine.call(|iommu| iommu.mmio_write(offset, &bytes[..length]));
                let mut read = bytes;
                machine.iommu.mmio_read(offset, &mut read[..length]);
                assert!(matches!(length, 4 | 8) || read[..length].iter().all(|byte| *byte == 0), "no legal access");
            }
            Self::Word(at, value) => memory.write(at.get(&memory), value.get()),
            Self::Race(at, value) => {
                memory.on_load(at.get(&memory), [value.get()]);
                machine.raced = true;
            }
            Self::Exchange(at, value) => {
                memory.on_exchange(at.get(&memory), [value.get()]);
                machine.raced = true;
            }
            Self::Unreadable(page, corrupt) => memory.fail(Gpa::new(frame(page)), 0x1000, failure(corrupt)),
            Self::Unwritable(page, corrupt) => memory.fail_stores(Gpa::new(frame(page)), 0x1000, failure(corrupt)),
            Self::Sound => memory.clear_failures(),
            Self::TurnOn => machine.turn_on(),
            Self::Run => drop(machine.call(Iommu::run)),
            Self::Cycles(cycles) => drop(machine.call(|iommu| iommu.add_cycles(cycles))),
        }
    }
}

const fn failure(corrupt: bool) -> MemoryFault {
    if corrupt { MemoryFault::Corruption } else { MemoryFault::Access }
}

/// The target.
pub fn run(input: &[u8]) {
    crate::fuzz(input, |machine, action: Action| action.act(machine));
}
