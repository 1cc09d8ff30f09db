//! The randomised twin test: what is remembered changes no answer.
//!
//! A guest with several devices, of processes and of VMs of its own, changes whatever there is in its tables. Two vIOMMUs
//! have the same guest, each in a memory of its own; one remembers entries, the other reads its tables each time.
//!
//! * Where every change is followed by the smallest invalidation that covers it, in one of the forms there are, each
//!   answer, fault record and all, is the other's, and so is all of memory after it.
//! * Where changes are used before they are invalidated, each answer is one that a vIOMMU without a memory gives if each
//!   entry it reads is one that stood there since the last invalidation: all of these are tried until one gives it.
//!
//! Seeds are fixed, so that every run is the same; `TWIN_SEED` takes another one, `TWIN_OPERATIONS` more operations.
//! The long runs: `cargo test --release --test ioatc_twin -- --ignored --nocapture`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    reason = "a failure is a finding"
)]

mod change;
mod contexts;
mod cover;
mod drive;
mod guest;
mod ram;

#[path = "../random/mod.rs"]
mod random;

use std::time::Instant;

use drive::{Answer, Ask, Iommu};
use guest::Guest;
use ram::{Lens, Ram};
use random::{Random, setting};

/// The entries on the way to a device context.
const CONTEXT_LOADS: u64 = 3;

/// Of what the first changes leave the requests begin.
const CHANGES_BEFORE: usize = 2000;

/// Requests that were good lately.
#[derive(Debug, Default)]
struct Recent(Vec<Ask>);

impl Recent {
    /// The next change is about one of them, perhaps.
    fn set_focus(&self, guest: &mut Guest) {
        if !self.0.is_empty() {
            let ask = guest.random.pick(&self.0);
            guest.look_at(&ask);
        }
    }

    fn note(&mut self, ask: Ask, answer: &Answer, loads: u64, random: &mut Random) {
        if !answer.is_good() || (loads <= CONTEXT_LOADS && random.percent(80)) {
            // What was refused is seldom asked for again.
            self.0.retain(|recent| !recent.is_like(&ask) || random.percent(15));
        } else if self.0.len() < 8 {
            self.0.push(ask);
        } else if random.percent(15) {
            let index = random.index(self.0.len());
            self.0[index] = ask;
        }
    }
}

#[derive(Debug, Default)]
struct Figures {
    operations: u64,
    requests: u64,
    good: u64,
    /// Requests that need more than the three entries of the device directory, and those of them that read nothing.
    walks: u64,
    hits: u64,
    changes: u64,
    commands: usize,
    /// Answers that were tried, where there was more than one possibility.
    tried: u64,
    old: u64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        let Self { operations, requests, good, walks, hits, changes, commands, tried, old } = other;
        self.operations += operations;
        self.requests += requests;
        self.good += good;
        self.walks += walks;
        self.hits += hits;
        self.changes += changes;
        self.commands += commands;
        self.tried += tried;
        self.old += old;
    }

    fn print(&self, what: &str, seed: u64, begin: Instant) {
        let Self { operations, requests, good, walks, hits, changes, commands, tried, old } = self;
        eprintln!(
            "{what}, from seed {seed}: {operations} operations, {changes} of them changes with {commands} commands; \
             {requests} requests, {good} good, {walks} with a walk, {hits} of these without a load ({}.{} %); {old} \
             answers older than memory, {tried} tried; 0 differences; {:?}",
            hits * 100 / walks,
            hits * 1000 / walks % 10,
            begin.elapsed()
        );
        assert!(hits * 2 >= *walks, "half of the requests find everything remembered");
    }
}

/// Several guests one after another, `operations` in all.
fn run(what: &str, seed: u64, guests: &[fn(u64, u64) -> Figures], operations: u64) {
    let (begin, mut all) = (Instant::now(), Figures::default());
    let (seed, operations) = (setting("TWIN_SEED", seed), setting("TWIN_OPERATIONS", operations));
    for (guest, seed) in guests.iter().zip(seed..) {
        all.add(&guest(seed, operations.div_ceil(u64::try_from(guests.len()).unwrap())));
    }
    all.print(what, seed, begin);
}

fn populate(guest: &mut Guest) {
    for _ in 0..CHANGES_BEFORE {
        guest.change();
    }
    guest.owed.clear();
    guest.paid();
}

/// Each change is invalidated at once.
fn twins<const CACHE: usize>(seed: u64, operations: u64) -> Figures {
    let mut figures = Figures::default();
    let rams = [Ram::new(false), Ram::new(false)];
    let mut guest = Guest::new(Random::new(seed), rams.to_vec(), false);
    populate(&mut guest);
    let mut remembering = Iommu::<_, CACHE>::new(rams[0].clone(), &guest);
    let mut plain = Iommu::<_, 0>::new(rams[1].clone(), &guest);
    let (mut recent, mut tail, mut turned) = (Recent::default(), 0, false);
    while figures.operations < operations {
        figures.operations += 1;
        if guest.random.percent(9) {
            figures.changes += 1;
            recent.set_focus(&mut guest);
            guest.change();
            let commands = guest.pay(&mut tail);
            figures.commands += commands;
            remembering.ring(commands);
            plain.ring(commands);
        } else if turned || guest.random.below(2000) == 0 {
            // Through Bare and back: no request is answered with what is remembered in between (rule CA-12).
            turned = !turned;
            remembering.turn(&guest, !turned);
            plain.turn(&guest, !turned);
        }
        let ask = guest.ask(&recent.0);
        let _ = [0, 1].map(|twin: usize| rams[twin].take_loads());
        let answers = (remembering.perform(&ask), plain.perform(&ask));
        let [loads, walked] = [0, 1].map(|twin: usize| rams[twin].take_loads());
        let records = (rams[0].take_record(), rams[1].take_record());
        let at = figures.operations;
        assert!(
            answers.0 == answers.1 && records.0 == records.1,
            "CA-06, seed {seed}, operation {at}, {CACHE} entries: {ask:x?}\n  with {loads} loads {:x?} {:x?}\n  \
             without a memory {:x?} {:x?}",
            answers.0,
            records.0,
            answers.1,
            records.1
        );
        figures.requests += 1;
        figures.walks += u64::from(walked > CONTEXT_LOADS);
        figures.hits += u64::from(walked > CONTEXT_LOADS && loads == 0);
        figures.good += u64::from(answers.0.is_good());
        recent.note(ask, &answers.0, walked, &mut guest.random);
        if at % 8192 == 0 || at == operations {
            assert_eq!(rams[0].difference(&rams[1]), None, "CA-09, seed {seed}, operation {at}: memory differs");
        }
    }
    figures
}

/// Changes are invalidated some time later.
fn late<const CACHE: usize>(seed: u64, operations: u64) -> Figures {
    let mut figures = Figures::default();
    let ram = Ram::new(true);
    let lens = Lens::new(&ram);
    let mut guest = Guest::new(Random::new(seed), vec![ram.clone()], true);
    populate(&mut guest);
    let mut remembering = Iommu::<_, CACHE>::new(ram.clone(), &guest);
    let mut plain = Iommu::<_, 0>::new(lens.clone(), &guest);
    let (mut recent, mut tail, mut changes) = (Recent::default(), 0, 0);
    while figures.operations < operations {
        figures.operations += 1;
        if guest.random.percent(7) {
            figures.changes += 1;
            changes += 1;
            recent.set_focus(&mut guest);
            guest.change();
        }
        if changes == 4 || (changes > 0 && guest.random.percent(4)) || guest.owed.len() > 200 {
            changes = 0;
            let commands = guest.pay(&mut tail);
            figures.commands += commands;
            remembering.ring(commands);
        }
        let ask = guest.ask(&recent.0);
        ram.take_loads();
        let answer = (remembering.perform(&ask), ram.take_record());
        let loads = ram.take_loads();
        lens.begin();
        let mut tried = 0_u64;
        loop {
            tried += 1;
            let possible = (plain.perform(&ask), lens.take_record());
            if possible == answer {
                break;
            }
            let at = figures.operations;
            assert!(
                lens.advance(),
                "CA-06, seed {seed}, operation {at}, {CACHE} entries: {ask:x?}\n  with {loads} loads {:x?} {:x?} is \
                 none of {tried} that can be, the last of which is {:x?} {:x?}",
                answer.0,
                answer.1,
                possible.0,
                possible.1
            );
        }
        figures.tried += tried;
        figures.old += u64::from(tried > 1);
        figures.requests += 1;
        figures.walks += u64::from(lens.loads() > CONTEXT_LOADS);
        figures.hits += u64::from(lens.loads() > CONTEXT_LOADS && loads == 0);
        figures.good += u64::from(answer.0.is_good());
        recent.note(ask, &answer.0, lens.loads(), &mut guest.random);
    }
    figures
}

#[test]
fn what_is_remembered_changes_no_answer() {
    run("invalidated at once", 1, &[twins::<8>, twins::<16>, twins::<64>], 60_000);
}

#[test]
fn what_was_not_invalidated_is_old_or_new() {
    run("invalidated late", 1, &[late::<8>, late::<16>, late::<64>], 60_000);
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn what_is_remembered_changes_no_answer_in_a_million_operations() {
    run("invalidated at once", 100, &[twins::<8>, twins::<16>, twins::<32>, twins::<64>].repeat(10), 1_000_000);
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn what_was_not_invalidated_is_old_or_new_in_a_million_operations() {
    run("invalidated late", 200, &[late::<8>, late::<16>, late::<32>, late::<64>].repeat(10), 1_000_000);
}
