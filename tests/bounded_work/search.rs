//! The search: hostile histories, of which those that cost more are changed further.

use std::collections::BTreeMap;

use riscv_viommu::Progress;

use crate::cost::Cost;
use crate::guest::{Guest, Kind, command, context, limits};
use crate::host::{CONTEXTS, Manner};
use crate::random::Random;

/// What the search calls; what is named twice comes twice as often.
pub(crate) const CALLS: [&str; 58] = [
    "write",
    "write",
    "write",
    "write",
    "write",
    "write",
    "write",
    "write",
    "run",
    "run",
    "attach",
    "attach",
    "attach",
    "attach_emulated",
    "attach_emulated",
    "mmio_write",
    "detach",
    "resync",
    "reset",
    "shutdown",
    "device_reset",
    "invalidate_gpa",
    "host_lost_state",
    "drained",
    "fence_done",
    "fence_done",
    "restore",
    "snapshot",
    "report_fault",
    "ats_completion",
    "ats_timeout",
    "translate",
    "next",
    "ats_translate",
    "page_request",
    "report_page_request",
    "report_page_request",
    "page_request_timeout",
    "add_cycles",
    "report_lost",
    "new",
    "read",
    "mmio_read",
    "health",
    "progress",
    "stats",
    "last_error",
    "backend",
    "backend_mut",
    "pieces",
    "left",
    "next_message",
    "is_gpa_invalidated",
    "guest_wrote",
    "cycles_until_overflow",
    "with_ats",
    "with_trusted_translations",
    "with_response_failure",
];

/// What is done to a vIOMMU.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// The guest's memory becomes this, and what stopped its queue is cleared.
    Commands([u64; 4]),
    Context(u64),
    Manner(Manner),
    /// Counted.
    Call(&'static str, u64),
}

impl Action {
    fn random(random: &mut Random) -> Self {
        match random.below(20) {
            0..2 => Self::Commands([(); 4].map(|()| random.below(256))),
            2..4 => Self::Context(random.below(12)),
            4 => Self::Manner(Manner::random(random)),
            _ => Self::Call(random.pick(&CALLS), random.below(256)),
        }
    }
}

/// The greatest cost of each call that had one budget.
type Worst = BTreeMap<&'static str, Cost>;

const UNITS: u64 = 32;
const LENGTH: usize = 32;

/// Plays a history: the most that any call in it asked for of `aim`, all within their bounds.
fn play(kind: Kind, wires: bool, history: &[Action], aim: usize, worst: &mut Worst) -> u64 {
    let mut guest = Guest::new(kind, wires, Manner::default(), UNITS);
    for number in 0..2 {
        guest.call("attach", number);
        guest.call("attach_emulated", number);
    }
    let mut greatest = 0;
    for action in history {
        match *action {
            Action::Commands(commands) => {
                guest.fill(commands.map(command));
                guest.turn_on();
            }
            Action::Context(number) => {
                guest.iommu.backend_mut().regions.insert(CONTEXTS, context(number));
            }
            Action::Manner(manner) => guest.iommu.backend_mut().manner = manner,
            Action::Call(name, number) => {
                let cost = guest.cost(name, |guest| guest.call(name, number));
                let entry = worst.entry(name).or_default();
                if !guest.restoring {
                    *entry = entry.max(cost);
                }
                guest.restoring &= guest.iommu.progress() != Progress::Idle;
                greatest = greatest.max(cost.counts()[aim].1);
            }
        }
    }
    greatest
}

/// For a longer search.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn no_call_of_a_hostile_history_costs_more_than_its_bound() {
    let mut random = Random::new(setting("BOUNDED_SEED").unwrap_or(1));
    let rounds = setting("BOUNDED_ROUNDS").unwrap_or(8) as usize;
    let mut worst = Worst::new();
    let aims = Cost::default().counts().len();
    for round in 0..rounds * aims {
        let kind = if round % 5 == 4 { Kind::Counting } else { Kind::Nested };
        let (wires, aim) = (random.percent(15), round % aims);
        let mut history: Vec<Action> = (0..LENGTH).map(|_| Action::random(&mut random)).collect();
        let mut best = play(kind, wires, &history, aim, &mut worst);
        // Uphill: what costs no less is kept.
        for _ in 0..60 {
            let mut changed = history.clone();
            for _ in 0..=random.below(3) {
                let at = random.index(LENGTH);
                changed[at] = Action::random(&mut random);
            }
            let cost = play(kind, wires, &changed, aim, &mut worst);
            if cost >= best {
                (history, best) = (changed, cost);
            }
        }
    }
    assert!(CALLS.iter().all(|name| worst.contains_key(name)), "each call was made");
    let bound = limits(UNITS).goes_on();
    let goes_on = worst.iter().filter(|(name, _)| limits(UNITS).of(name) == Some(bound));
    let found = goes_on.fold(worst["write"], |all, (_, cost)| all.max(*cost));
    for ((what, found), (_, bound)) in found.counts().into_iter().zip(bound.counts()) {
        println!("{what}: {found} of {bound}");
    }
    assert_eq!((found.bytes, found.unmapped, found.adopts), (bound.bytes, bound.unmapped, 1), "bounds are reached");
    for (what, found, bound) in [
        ("loads", found.loads, bound.loads),
        ("watches", found.watches, bound.watches),
        ("stores", found.stores, bound.stores),
        ("posts", found.posts, bound.posts),
    ] {
        assert!(10 * found >= 7 * bound, "the search is far from the bound of {what}");
    }
    assert!(found.contexts > UNITS && found.fences > UNITS, "a host that goes by way of blocked states pays more");
}
