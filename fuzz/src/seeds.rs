//! What the fuzzer begins with: the recorded traces of a Linux driver as inputs, and a few made up.

use std::collections::BTreeSet;

use crate::machine::Setup;
use crate::snapshot;

#[path = "../../examples/replay/trace.rs"]
mod trace;

use trace::Trace;

/// The recorded traces.
const TRACES: [&str; 5] = [
    include_str!("../../tests/traces/linux-identity.trace"),
    include_str!("../../tests/traces/linux-identity-extended.trace"),
    include_str!("../../tests/traces/linux-nested.trace"),
    include_str!("../../tests/traces/linux-dma-api.trace"),
    include_str!("../../tests/traces/linux-dma-api-range.trace"),
];

/// Writes what `arbitrary` reads.
#[derive(Clone, Debug, Default)]
struct Input(Vec<u8>);

impl Input {
    fn of(setup: &Setup) -> Self {
        let Setup { nested, extended, ats, big_endian, wires, counted, counters, bare, budget, on } = *setup;
        let flags = [nested, extended, ats, big_endian, wires, counted, counters, bare].map(u8::from);
        Self(flags.into_iter().chain([budget, on.into()]).collect())
    }

    /// The variant `index` of an enum that has `count` of them.
    fn variant(mut self, index: u64, count: u64) -> Self {
        let number = (index << 32).div_ceil(count);
        self.0.extend((number as u32).to_le_bytes());
        self
    }

    fn bool(mut self, value: bool) -> Self {
        self.0.push(value.into());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `Value::Raw`.
    fn value(self, value: u64) -> Self {
        self.variant(0, 7).u64(value)
    }

    /// `mmio::Action::Write(Offset::Any, ..)`.
    fn write(self, offset: u64, wide: bool, value: u64) -> Self {
        self.variant(0, MMIO).variant(3, 4).u64(offset).bool(wide).value(value)
    }

    /// `mmio::Action::Word(Place::At, ..)`.
    fn word(self, at: u64, value: u64) -> Self {
        self.variant(2, MMIO).variant(1, 2).u64(at).value(value)
    }

    /// `commands::Action::Ring(Command::Raw)`.
    fn ring(self, [low, high]: [u64; 2]) -> Self {
        self.variant(2, COMMANDS).variant(8, 9).u64(low).u64(high)
    }

    /// Bytes that look random, the same in every run.
    fn noise(mut self, seed: u64, bytes: usize) -> Self {
        let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1));
        let states = std::iter::successors(Some(seed ^ 0x5eed), next);
        self.0.extend(states.skip(1).take(bytes).map(|state| (state >> 56) as u8));
        self
    }
}

/// Variants of the actions of each target.
const MMIO: u64 = 11;
const COMMANDS: u64 = 15;
const TABLES: u64 = 9;
const HOST_EVENTS: u64 = 33;
const STEPS: u64 = 2;

/// The accesses of a trace, and the memory before them, from the first on.
fn accesses(trace: &Trace) -> Vec<u8> {
    let has = |bit: u32| trace.capabilities >> bit & 1 != 0;
    let setup = Setup { extended: has(22), ats: has(25), wires: false, on: false, ..Setup::usual(true) };
    let writes = trace.steps.iter().flat_map(|step| {
        let access = step.access.is_write.then_some(&step.access);
        let words = step.memory.iter().map(|&(at, word)| Input::default().word(at, word));
        let wide = |access: &trace::Access| access.width == riscv_viommu::Width::U64;
        words.chain(access.map(|access| Input::default().write(access.offset, wide(access), access.value)))
    });
    writes.take(crate::ACTIONS).fold(Input::of(&setup), |input, next| Input([input.0, next.0].concat())).0
}

/// The commands of a trace, each of them once.
fn commands(trace: &Trace) -> Vec<u8> {
    let (mut queue, mut seen) = (0..0, BTreeSet::new());
    for step in &trace.steps {
        if step.access.is_write && step.access.offset == 0x18 {
            let first = (step.access.value & 0x003f_ffff_ffff_fc00) << 2;
            queue = first..first + (32 << (step.access.value & 0x1f));
        }
        for pair in step.memory.windows(2).filter(|pair| pair[0].0 % 16 == 0 && queue.contains(&pair[0].0)) {
            seen.insert([pair[0].1, pair[1].1]);
        }
    }
    let input = Input::of(&Setup { extended: false, ..Setup::usual(true) });
    seen.into_iter().take(crate::ACTIONS).fold(input, Input::ring).0
}

/// A queue that is full of invalidations of everything.
fn full_queue() -> Vec<u8> {
    let setup = Setup { budget: 0, ..Setup::usual(true) };
    let repeat = Input::of(&setup).variant(4, COMMANDS).variant(8, 9).u64(1).u64(0);
    [repeat.0, vec![250]].concat()
}

/// Every kind of action once, with anything in it, and noise.
fn made_up(actions: u64) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for nested in [true, false] {
        let input = || Input::of(&Setup::usual(nested));
        let noise = |input: Input, index| input.variant(index, actions).noise(index, 24);
        seeds.push((0..actions).fold(input(), noise).0);
        seeds.extend((0..4).map(|seed| input().noise(seed, 600).0));
    }
    seeds
}

/// An image with one register changed beyond what it can be, for each of the first.
fn spoilt() -> impl Iterator<Item = Vec<u8>> {
    // The register page begins at byte 80.
    (80_u16..80 + 104).step_by(4).map(|register| {
        let changed = Input::of(&Setup::usual(true)).variant(1, STEPS).variant(0, 3).bool(true);
        let [low, high] = (register + 3).to_le_bytes();
        [changed.0, vec![low, high, 0x40, 0]].concat()
    })
}

/// An image that comes back as it was, after a little and after a lot; and the bytes of one.
fn images() -> Vec<Vec<u8>> {
    let unchanged = |input: Input| input.variant(1, STEPS).variant(0, 3).bool(false);
    let act = |input: Input, index| input.variant(0, STEPS).variant(index, HOST_EVENTS).noise(index, 24);
    let mut seeds = Vec::new();
    for nested in [true, false] {
        let setup = Setup::usual(nested);
        seeds.push(unchanged(Input::of(&setup)).0);
        seeds.push((0..HOST_EVENTS).fold(Input::of(&setup), |input, index| unchanged(act(input, index))).0);
        let bytes = Input::of(&setup).variant(1, STEPS).variant(2, 3);
        seeds.push(
            snapshot::image(setup).into_iter().fold(bytes, |input, byte| Input([input.0, vec![1, byte]].concat())).0,
        );
    }
    seeds
}

/// The seeds of a target.
///
/// # Panics
/// If a trace of the repository can not be read.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let traces = TRACES.map(|text| text.parse::<Trace>().expect("a trace of the repository is one"));
    let recorded = |seed: fn(&Trace) -> Vec<u8>| traces.iter().map(seed);
    match target {
        "mmio" => recorded(accesses).chain(made_up(MMIO)).collect(),
        "commands" => recorded(commands).chain([full_queue()]).chain(made_up(COMMANDS)).collect(),
        "tables" => made_up(TABLES),
        "host_events" => made_up(HOST_EVENTS),
        "snapshot" => images().into_iter().chain(spoilt()).chain(made_up(STEPS)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbitrary::{Arbitrary, Unstructured};
    use std::fmt::Debug;

    /// The text of the action that an input begins with.
    fn text<'a, A: Arbitrary<'a> + Debug>(input: &'a Input) -> String {
        let mut bytes = Unstructured::new(&input.0);
        let action = A::arbitrary(&mut bytes).map(|action| format!("{action:?}"));
        assert!(bytes.is_empty(), "{bytes:?} is left behind {action:?}");
        action.unwrap_or_default()
    }

    #[test]
    fn inputs_are_read_as_they_were_meant() {
        let input = Input::default();
        let write = input.clone().write(0x18, true, 0x1f);
        assert_eq!(text::<crate::mmio::Action>(&write), "Write(Any(24), true, Raw(31))");
        let word = input.clone().word(0x8000_0000, 3);
        assert_eq!(text::<crate::mmio::Action>(&word), "Word(At(2147483648), Raw(3))");
        assert_eq!(text::<crate::commands::Action>(&input.clone().ring([1, 2])), "Ring(Raw([1, 2]))");
        let setup = Input::of(&Setup { big_endian: true, budget: 9, ..Setup::usual(false) });
        let expected = Setup { big_endian: true, budget: 9, ..Setup::usual(false) };
        assert_eq!(text::<Setup>(&setup), format!("{expected:?}"));
        // The last of each enum: there are as many as are counted here.
        let last = |count, zeros: usize| Input([input.clone().variant(count - 1, count).0, vec![0; zeros]].concat());
        assert_eq!(text::<crate::mmio::Action>(&last(MMIO, 8)), "Cycles(0)");
        assert_eq!(text::<crate::commands::Action>(&last(COMMANDS, 19)), "Word(Word(0, 0), Raw(0))");
        assert_eq!(text::<crate::tables::Action>(&last(TABLES, 0)), "Forget");
        assert_eq!(text::<crate::host_events::Action>(&last(HOST_EVENTS, 1)), "Drained(0)");
    }

    #[test]
    fn the_traces_have_accesses_and_commands() {
        for text in TRACES {
            let trace: Trace = text.parse().expect("a trace");
            assert!(accesses(&trace).len() > 1000);
            assert!(commands(&trace).len() > 50);
        }
    }
}
