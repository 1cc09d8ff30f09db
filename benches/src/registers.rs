//! Accesses to registers that no command follows.

use std::hint::black_box;

use riscv_viommu::Width;
use riscv_viommu::mock::guest::register;

use crate::guest::Guest;
use crate::host::NoOp;
use crate::operation::{Operation, operation};

/// A guest with one device, and what it read last.
type Reader = (Guest<NoOp, 16, 0>, u64);

fn reader() -> Reader {
    (Guest::nested(3, 1), 0)
}

/// Nothing: what an operation costs that does not call the crate.
pub fn nothing() -> Box<dyn Operation> {
    operation((), |()| {}, |()| {}, |()| {})
}

/// A load of 4 bytes: `cqcsr`, as a driver polls it.
pub fn read_u32() -> Box<dyn Operation> {
    let run =
        |(guest, value): &mut Reader| *value = guest.iommu.read(black_box(register::CQCSR), black_box(Width::U32));
    operation(reader(), |_| {}, run, |(_, value)| assert_eq!(*value, register::ON | register::ENABLE))
}

/// A load of 8 bytes: `ddtp`.
pub fn read_u64() -> Box<dyn Operation> {
    let run = |(guest, value): &mut Reader| *value = guest.iommu.read(black_box(register::DDTP), black_box(Width::U64));
    operation(reader(), |_| {}, run, |(_, value)| assert_eq!(*value & 0xf, 4, "three levels"))
}

/// A store to a register that can only be read: `capabilities`.
pub fn write_nothing() -> Box<dyn Operation> {
    let run = |(guest, _): &mut Reader| guest.set(black_box(register::CAPABILITIES), black_box(Width::U64), 0);
    let check = |(guest, _): &mut Reader| assert_ne!(guest.get(register::CAPABILITIES), 0);
    operation(reader(), |_| {}, run, check)
}
