//! Fuzzing of `riscv-viommu`: five targets, each a function of bytes.
//!
//! | target | what the bytes are |
//! |---|---|
//! | [`mmio`] | register accesses, and guest memory between them and under them |
//! | [`tables`] | directories, page tables and MSI page tables of a hostile guest, and what devices ask for meanwhile |
//! | [`commands`] | a command queue: commands that could be, and garbage, for devices of both kinds |
//! | [`host_events`] | the same, with a host that tells anything and answers anything its contract allows |
//! | [`snapshot`] | an image, or a real one with changed bytes, and what is done after it |
//!
//! The bytes become a `Setup` and actions until they are used up. Actions reach the vIOMMU through `Machine::call`,
//! which looks after each that the invariants hold. They are listed in `docs/assurance.md`.
//!
//! A target is a libFuzzer program where cargo-fuzz builds it, and one that replays files everywhere else.
#![forbid(unsafe_code)]

pub mod commands;
mod guest;
pub mod host_events;
mod invariants;
mod machine;
mod meter;
pub mod mmio;
pub mod seeds;
pub mod snapshot;
pub mod tables;

use std::fmt::Debug;

use arbitrary::{Arbitrary, Unstructured};
pub use invariants::looked;
use machine::Machine;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// A target: its name, and the function that takes an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("mmio", mmio::run),
    ("tables", tables::run),
    ("commands", commands::run),
    ("host_events", host_events::run),
    ("snapshot", snapshot::run),
];

/// Most actions of one input: what takes longer teaches nothing new.
const ACTIONS: usize = 160;

/// What every target is: a setup, then actions, with a look at what the guest sees after each; and a host that recovers.
///
/// With `FUZZ_ACTIONS` in the environment they are printed: how an input that fails is read.
fn fuzz<'a, A: Arbitrary<'a> + Debug>(input: &'a [u8], act: impl Fn(&mut Machine, A)) {
    let mut input = Unstructured::new(input);
    let Ok(setup) = input.arbitrary() else { return };
    let shows = std::env::var_os("FUZZ_ACTIONS").is_some();
    if shows {
        eprintln!("{setup:?}");
    }
    let mut machine = Machine::new(setup);
    machine.look(false);
    let next = || if input.is_empty() { None } else { input.arbitrary().ok() };
    for action in std::iter::from_fn(next).take(ACTIONS) {
        if shows {
            eprintln!("{action:?}");
        }
        act(&mut machine, action);
        machine.look(false);
    }
    machine.end();
}

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::$name::run(input));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            std::env::args_os().skip(1).try_for_each(|file| Ok($crate::$name::run(&std::fs::read(file)?)))
        }
    };
}
