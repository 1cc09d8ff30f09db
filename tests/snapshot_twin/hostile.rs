//! Images that were changed: refused, or those of another guest that could be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use riscv_viommu::mock::guest::register;
use riscv_viommu::{Config, Health};

use crate::begin;
use crate::guest::Guest;
use crate::iommu::{Action, Iommu};
use crate::random::Random;

/// A guest whose image is worth changing.
struct Victim {
    config: Config,
    guest: Guest,
    words: Vec<u64>,
    image: Vec<u8>,
    seed: u64,
}

impl Victim {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (mut guest, config) = begin(seed, &mut random);
        let mut iommu = Iommu::new(&config, guest.nested, guest.memory());
        for step in 0..40 {
            let action = if step == 0 { guest.boot() } else { guest.next(&iommu) };
            let answer = iommu.act(&action);
            guest.note(&answer);
        }
        let image = iommu.image();
        Self { config, guest, words: iommu.host().words.clone(), image, seed }
    }

    /// Whether the changed image is taken; if so, what it makes is one that could be.
    fn takes(&mut self, what: &str, image: &[u8]) -> bool {
        let (seed, words) = (self.seed, self.words.clone());
        let mut iommu = Iommu::new(&self.config, self.guest.nested, words);
        let took = catch_unwind(AssertUnwindSafe(|| self.exercise(&mut iommu, image)));
        took.unwrap_or_else(|_| panic!("T29, seed {seed}: {what}"))
    }

    fn exercise(&self, iommu: &mut Iommu, image: &[u8]) -> bool {
        let before = iommu.registers();
        if iommu.restore(image).is_err() {
            iommu.settle();
            assert_eq!(iommu.registers(), before, "nothing of it was taken");
            assert_eq!(iommu.inner.health(), Health::Degraded, "T19");
            assert!((0..3).all(|device| !iommu.is_open(device)), "T19: every device is blocked");
            return false;
        }
        // What it says of itself now is what a vIOMMU can be, and goes round.
        let own = iommu.image();
        let mut other = Iommu::new(&self.config, self.guest.nested, self.words.clone());
        assert!(other.restore(&own).is_ok(), "T29: its own image is one that can be");
        for (csr, base, index) in [
            (register::CQCSR, register::CQB, register::CQH),
            (register::FQCSR, register::FQB, register::FQT),
            (register::PQCSR, register::PQB, register::PQT),
        ] {
            let entries = 2_u64 << (iommu.read(base) & 0x1f);
            let on = iommu.read(csr) & register::ON != 0;
            assert!(!on || iommu.read(index) < entries, "T29: an index is one of the queue's");
        }
        iommu.settle();
        let mut guest = Guest::new(self.seed, self.guest.nested, true);
        for _ in 0..10 {
            let _ = iommu.act(&guest.next(iommu));
        }
        iommu.settle();
        let _ = iommu.act(&Action::Reset);
        iommu.settle();
        true
    }
}

/// How many were changed, and how many of them taken.
fn change_every_byte(seed: u64, changes: &[u8]) -> (usize, u64) {
    let mut victim = Victim::new(seed);
    let image = victim.image.clone();
    let mut taken = 0;
    for index in 0..image.len() {
        for change in changes {
            let mut other = image.clone();
            other[index] ^= change;
            taken += u64::from(victim.takes(&format!("byte {index} changed by {change:#x}"), &other));
        }
    }
    assert!(victim.takes("the image itself", &image), "what was not changed is taken");
    assert!(taken > 50, "seed {seed}: {taken} changed images are those of other guests");
    (image.len() * changes.len(), taken)
}

#[test]
fn t29_an_image_that_was_cut_off_is_refused() {
    let mut victim = Victim::new(9);
    let mut image = victim.image.clone();
    for length in 0..image.len() {
        assert!(!victim.takes("cut off", &image[..length]), "T29: {length} bytes of {}", image.len());
    }
    image.push(0);
    assert!(!victim.takes("longer", &image), "T29");
}

#[test]
fn t29_an_image_that_was_changed_in_one_bit_is_refused_or_another_guests() {
    for (seed, bit) in (1..9).zip([1, 2, 4, 8, 16, 32, 64, 128]) {
        let _ = change_every_byte(seed, &[bit]);
    }
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn t29_an_image_that_was_changed_in_one_byte_is_refused_or_another_guests() {
    let changes: Vec<u8> = (1..=255).collect();
    for seed in 100..102 {
        let (all, taken) = change_every_byte(seed, &changes);
        eprintln!("{all} changed images from seed {seed}: {taken} are other guests', the others were refused");
    }
}
