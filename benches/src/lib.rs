//! What guests and devices do to a vIOMMU: counted by `benches/counts.rs`, timed by `benches/times.rs`, described in `docs/cost.md`.

mod commands;
mod guest;
mod host;
mod operation;
mod registers;
mod translate;

pub use operation::{Operation, warm};

/// Hands the names of all operations, and how each is made, to a macro. A name that ends in a number does so many
/// things.
#[macro_export]
macro_rules! operations {
    ($to:ident) => {
        $to! {
            nothing: registers::nothing();
            read_u32: registers::read_u32();
            read_u64: registers::read_u64();
            write_nothing: registers::write_nothing();
            vma_space_1: doorbell(nested(), space(1));
            vma_space_255: doorbell(nested(), space(255));
            vma_apart_255: doorbell(nested(), apart(255));
            vma_adjacent_255: doorbell(nested(), adjacent(255));
            emulated_vma_space_255: doorbell(emulated(), space(255));
            fence_1: doorbell(nested(), vec![fence()]);
            fence_255: doorbell(nested(), vec![fence(); 255]);
            fence_store_1: doorbell(nested(), vec![storing()]);
            fence_store_255: doorbell(nested(), vec![storing(); 255]);
            hit: translate::<16>(FirstStage(Sv39), 1);
            hit_16: translate::<16>(FirstStage(Sv39), 16);
            sv39: with_context(FirstStage(Sv39));
            sv39_cold: translate::<0>(FirstStage(Sv39), 1);
            nested: with_context(Nested);
            nested_cold: translate::<0>(Nested, 1);
            process: with_context(Process);
            process_cold: translate::<0>(Process, 1);
            msi: with_context(Msi);
            msi_cold: translate::<0>(Msi, 1);
        }
    };
}

macro_rules! table {
    ($($name:ident: $make:expr;)*) => {
        /// An operation, by its name.
            pub fn named(name: &str) -> Box<dyn Operation> {
            match name {
                $(stringify!($name) => $make,)*
                _ => unreachable!("the names are those of the table"),
            }
        }

        /// The names of all operations.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

use commands::{adjacent, apart, doorbell, emulated, fence, nested, space, storing};
use riscv_viommu::FirstStageMode::Sv39;
use translate::Way::{FirstStage, Msi, Nested, Process};
use translate::{translate, with_context};
operations!(table);
