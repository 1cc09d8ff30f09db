//! What guests and devices do to a vIOMMU: counted by `benches/counts.rs`, timed by `benches/times.rs`, described in
//! `docs/cost.md`.

mod commands;
mod devices;
mod guest;
pub mod host;
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
            nothing: nothing();
            read_u32: read_u32();
            read_u64: read_u64();
            write_nothing: write_nothing();
            doorbell_empty: empty_doorbell();
            vma_space_1: doorbell(nested(), space(1));
            vma_space_16: doorbell(nested(), space(16));
            vma_space_255: doorbell(nested(), space(255));
            vma_page_1: doorbell(nested(), adjacent(1));
            vma_adjacent_16: doorbell(nested(), adjacent(16));
            vma_adjacent_255: doorbell(nested(), adjacent(255));
            vma_range_1: doorbell(nested(), ranges(1));
            vma_range_16: doorbell(nested(), ranges(16));
            vma_range_255: doorbell(nested(), ranges(255));
            vma_apart_16: doorbell(nested(), apart(16));
            vma_apart_255: doorbell(nested(), apart(255));
            fence_1: doorbell(nested(), vec![fence()]);
            fence_255: doorbell(nested(), vec![fence(); 255]);
            fence_store_1: doorbell(nested(), vec![storing()]);
            fence_store_255: doorbell(nested(), vec![storing(); 255]);
            vma_page_and_fence: doorbell(nested(), [adjacent(1), vec![storing()]].concat());
            unmap_512: unmap(512);
            emulated_vma_space_1: doorbell(emulated(), space(1));
            emulated_vma_space_16: doorbell(emulated(), space(16));
            emulated_vma_space_255: doorbell(emulated(), space(255));
            emulated_vma_page_1: doorbell(emulated(), adjacent(1));
            emulated_vma_adjacent_16: doorbell(emulated(), adjacent(16));
            emulated_vma_adjacent_255: doorbell(emulated(), adjacent(255));
            emulated_vma_apart_16: doorbell(emulated(), apart(16));
            emulated_vma_apart_255: doorbell(emulated(), apart(255));
            emulated_fence_1: doorbell(emulated(), vec![fence()]);
            emulated_fence_255: doorbell(emulated(), vec![fence(); 255]);
            emulated_fence_store_1: doorbell(emulated(), vec![storing()]);
            emulated_fence_store_255: doorbell(emulated(), vec![storing(); 255]);
            emulated_vma_page_and_fence: doorbell(emulated(), [adjacent(1), vec![storing()]].concat());
            ddt_one_level_1: invalidate_context(1, 1);
            ddt_one_level_255: invalidate_context(1, 255);
            ddt_two_levels_1: invalidate_context(2, 1);
            ddt_two_levels_255: invalidate_context(2, 255);
            ddt_three_levels_1: invalidate_context(3, 1);
            ddt_three_levels_255: invalidate_context(3, 255);
            ddt_all_16: invalidate_all::<16>(16);
            ddt_all_64: invalidate_all::<64>(64);
            ddt_all_256: invalidate_all::<256>(256);
            ddt_all_16_of_256: invalidate_all::<256>(16);
            ddtp_16: change_directory::<16>(16);
            ddtp_64: change_directory::<64>(64);
            ddtp_256: change_directory::<256>(256);
            ddtp_16_of_256: change_directory::<256>(16);
            report_fault: report_fault();
            snapshot: snapshot();
            hit: translate::<16>(FirstStage(Sv39), 1);
            hit_16: translate::<16>(FirstStage(Sv39), 16);
            next_sv39: next_page(FirstStage(Sv39));
            next_nested: next_page(Nested);
            miss_sv39: miss(FirstStage(Sv39));
            miss_sv48: miss(FirstStage(Sv48));
            miss_sv57: miss(FirstStage(Sv57));
            miss_nested: miss(Nested);
            miss_process: miss(Process);
            miss_msi: miss(Msi);
            cold_sv39: translate::<0>(FirstStage(Sv39), 1);
            cold_sv48: translate::<0>(FirstStage(Sv48), 1);
            cold_sv57: translate::<0>(FirstStage(Sv57), 1);
            cold_nested: translate::<0>(Nested, 1);
            cold_process: translate::<0>(Process, 1);
            cold_msi: translate::<0>(Msi, 1);
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

use commands::{adjacent, apart, doorbell, empty_doorbell, emulated, fence, nested, ranges, space, storing, unmap};
use devices::{change_directory, invalidate_all, invalidate_context, report_fault, snapshot};
use registers::{nothing, read_u32, read_u64, write_nothing};
use riscv_viommu::FirstStageMode::{Sv39, Sv48, Sv57};
use translate::Way::{FirstStage, Msi, Nested, Process};
use translate::{miss, next_page, translate};

operations!(table);
