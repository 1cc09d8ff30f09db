//! Two VMs on one host: whatever their guests do, neither reaches or learns anything of the other.
//!
//! Both guests mean harm. They write any register, queue good commands and garbage, and fill their directories and page
//! tables with addresses of the other's, which are host addresses here: the second stage is the identity. Devices and
//! models of devices go from one VM to the other, VMs end and begin under GSCIDs that were another's, are reset, saved
//! and restored, the host is busy, refuses, fails and forgets, and everything that was ever handed out is presented
//! again to either of them. After each step these hold:
//!
//! 1. An order names devices that the host has given this VM, and that it has not released.
//! 2. Hardware translates for a device with the second stage of the VM that has it, or not at all.
//! 3. A vIOMMU reaches no memory and no interrupt file but its own VM's; a device no memory but that of the VM that has
//!    it.
//! 4. A device that changed hands keeps no translation, and is answered from the tables as they are; so is the first
//!    device of a VM with a GSCID that was another's.
//! 5. What is done for one VM shows nowhere in the other: no register, wire, message, store or load, and no order.
//! 6. A handle or ticket that is not this VM's, or not any more, changes nothing and is told nothing.
//! 7. Where only the other guest behaves differently, everything that is seen of a VM is the same.
//!
//! The mock's physical IOMMU checks the contract besides. Seeds are fixed, so that every run is the same;
//! `ISOLATION_SEED` takes another one, `ISOLATION_HISTORIES` more histories. The long run:
//! `cargo test --release --test isolation -- --ignored --nocapture`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    reason = "a failure is a finding"
)]

mod figures;
mod guest;
mod host;
mod vm;
mod world;

#[path = "../random/mod.rs"]
mod random;

use std::time::Instant;

use figures::Figures;
use random::{Random, setting};
use world::World;

/// Says which history it was, whoever found something.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ISOLATION_SEED={} ISOLATION_HISTORIES=1 shows it again", self.0);
        }
    }
}

/// One history; if it is to be compared, what was seen of the first VM after each operation, and of the second at the end.
fn history(seed: u64, rival: u64, traced: bool) -> (Figures, Vec<u64>, u64) {
    let _told = Told(seed);
    let mut random = Random::new(seed ^ 0x5eed_0000_0000);
    let mut world = World::new(seed, rival, traced);
    let mut shown = Vec::new();
    for _ in 0..40 + random.below(60) {
        world.step(Random::new(random.bits()));
        shown.push(world.vms[0].trace);
    }
    let end = world.vms[1].trace;
    (world.into_figures(), shown, end)
}

/// First seed and number of histories.
fn range(first: u64, histories: u64) -> std::ops::Range<u64> {
    let first = setting("ISOLATION_SEED", first);
    first..first + setting("ISOLATION_HISTORIES", histories)
}

/// Statements 1 to 6.
fn run(first: u64, histories: u64) -> Figures {
    let begin = Instant::now();
    let mut figures = Figures::default();
    for seed in range(first, histories) {
        figures.add(&history(seed, 0, false).0);
    }
    eprintln!("{figures}; {:?}", begin.elapsed());
    figures
}

/// Statement 7.
fn compare(first: u64, histories: u64) {
    let (begin, seeds) = (Instant::now(), range(first, histories));
    let (pairs, mut operations, mut differ) = (seeds.end - seeds.start, 0, 0);
    for seed in seeds {
        let _told = Told(seed);
        let ((_, one, end), (_, other, other_end)) = (history(seed, 0, true), history(seed, 0xbad, true));
        let first = (0..one.len()).find(|&step| one[step] != other[step]);
        assert_eq!(first, None, "after this operation the first VM was shown what the second did");
        operations += one.len();
        differ += u64::from(end != other_end);
    }
    assert_eq!(differ, pairs, "the second VM did the same twice");
    eprintln!(
        "{pairs} pairs of histories that differ in the second guest alone, {operations} operations in each: 0 \
         differences in the first; {:?}",
        begin.elapsed()
    );
}

#[test]
fn guests_are_kept_apart() {
    let _ = run(1, 200);
}

#[test]
fn a_guest_can_not_tell_what_the_other_does() {
    compare(1, 40);
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn guests_are_kept_apart_in_eight_thousand_histories() {
    let figures = run(1_000_000, 8000);
    for (name, count) in figures.counts() {
        assert!(count >= 1000, "{count} {name}");
    }
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn a_guest_can_not_tell_what_the_other_does_in_a_thousand_histories() {
    compare(1_000_000, 1000);
}
