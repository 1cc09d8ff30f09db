//! The traces of `tests/traces` through `examples/replay`, and that its checker lets nothing pass: calls are taken
//! out of the record, moved and changed before they are judged.

#![expect(clippy::arithmetic_side_effects, reason = "a test may stop at an overflow")]

#[path = "../examples/replay/mod.rs"]
mod replay;

use std::collections::BTreeMap;
use std::fmt::Write;

use replay::command::{Pages, Scope};
use replay::directory::Mapping;
use replay::host::{Call, Fences, Order};
use replay::report::Report;
use replay::trace::Trace;
use replay::{Change, Outcome};

const IDENTITY: &str = include_str!("traces/linux-identity.trace");
const EXTENDED: &str = include_str!("traces/linux-identity-extended.trace");
const NESTED: &str = include_str!("traces/linux-nested.trace");
const DMA_API: &str = include_str!("traces/linux-dma-api.trace");
const RANGES: &str = include_str!("traces/linux-dma-api-range.trace");

/// Replays with a record that `tamper` changes.
fn tampered(trace: &Trace, fences: Fences, mut tamper: impl FnMut(&mut Vec<Call>)) -> Outcome {
    replay::replay(trace, fences, &mut tamper).unwrap_or_else(|error| unreachable!("{error}"))
}

fn parsed(text: &str) -> Trace {
    text.parse().unwrap_or_else(|error| unreachable!("{error}"))
}

/// That nothing differs and nothing is wrong, whenever fences complete.
fn good(text: &str) -> Outcome {
    let trace = parsed(text);
    let [at_once, late] = [Fences::AtOnce, Fences::Late].map(|fences| tampered(&trace, fences, |_| {}));
    let report = Report { name: "trace", at_once: &at_once, late: &late }.to_string();
    for outcome in [&at_once, &late] {
        assert!(outcome.mismatches.is_empty() && outcome.violations.is_empty(), "{report}");
    }
    let contexts = |outcome: &Outcome| outcome.changes.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(contexts(&at_once), contexts(&late));
    assert_eq!(at_once.commands, late.commands);
    at_once
}

#[test]
fn recorded_traces_come_out_as_recorded() {
    // Accesses and commands as counted where they were recorded; the context when the guest shuts down.
    let cases = [
        (IDENTITY, 52, [3, 3, 3], "SecondStageOnly"),
        (EXTENDED, 52, [3, 3, 3], "SecondStageOnly"),
        (NESTED, 62, [5, 5, 5], "Sv57 root 0x83b72000 PSCID 1"),
        (DMA_API, 6886, [6222, 208, 3], "Sv57 root 0x80b44000 PSCID 2"),
        (RANGES, 872, [208, 208, 3], "Sv57 root 0x80b43000 PSCID 2"),
    ];
    for (text, accesses, [vma, fence, inval_ddt], live) in cases {
        let outcome = good(text);
        assert_eq!(outcome.reads + outcome.writes, accesses);
        let counted = [("IOTINVAL.VMA", vma), ("IOFENCE.C", fence), ("IODIR.INVAL_DDT", inval_ddt)];
        assert_eq!(outcome.commands, BTreeMap::from(counted));
        let Some(Change { cause: Some((_, access)), old: Some(old), new }) = outcome.changes.last() else {
            panic!("no context was set");
        };
        assert_eq!((access.offset, access.value), (0x10, 1), "ddtp Bare");
        assert_eq!((old.to_string().as_str(), *new), (live, Mapping::SecondStageOnly { process_ids: true }));
    }
}

/// What Linux did not do when it was recorded, but may: a small ring that wraps, a large one filled beyond the budget,
/// other devices, half-register accesses, a second directory.
fn unusual() -> String {
    let mut trace = "
        read 000 8 c3800000e10
        write 018 4 20000001
        write 01c 4 0
        read 018 8 20000001
        write 048 4 1
        read 048 4 10001
        read 034 4 0
        read 050 4 0
        read 054 4 0
        # Off: every device, everything, a fence.
        mem 80000000 3 0 1 0 3002 0
        write 024 4 3
        read 020 4 3
        # Two levels: Sv39 root 82000000 PSCID 5. Then a non-leaf range of 16 pages and a fence that stores.
        mem 81000000 20400401
        mem 81001100 1 0 5000 8000000000082000
        write 010 8 20400003
        read 010 4 20400003
        read 014 4 0
        mem 80000030 500005401 9e00
        mem 80000000 700001402 20800000
        write 024 4 1
        read 024 4 1
        read 020 4 1
        # Only another device and a guest's VM are named; the device's own context changed and is told next.
        mem 81001100 1 0 6000 8000000000082000
        mem 80000010 1230200000003 0 200000001 0
        mem 80000030 3002 0
        write 024 4 0
        mem 80000000 80200000003 0
        write 024 4 1
        mem 80000010 3002 0
        write 024 4 2
        read 020 4 2
        # Off, then one level.
        write 010 8 0
        read 010 8 0
        mem 83000100 11 0 0 0
        write 010 4 20c00002
        read 010 8 20c00002
        # A larger queue.
        write 048 4 0
        read 048 4 0
        write 018 8 21000009
        write 048 4 1
        read 020 4 0"
        .to_owned();
    for index in 0..300 {
        // Every other page of PSCID 5: no two ranges touch.
        let (at, operand) = (0x8400_0000_u64 + index * 16, index << 11);
        let _ = write!(trace, "\nmem {at:x} 100005401 {operand:x}");
    }
    trace
        + "\nmem 840012c0 100006001 0 3002 0\nwrite 024 4 12e\nread 020 4 12e\nmem 840012e0 1 0 3002 0\nwrite 024 4 130\nread 048 4 10001\nwrite 010 8 1\nread 010 8 1"
}

#[test]
fn what_linux_did_not_do_comes_out_too() {
    let outcome = good(&unusual());
    let contexts: Vec<String> = outcome.changes.iter().map(|change| change.new.to_string()).collect();
    assert_eq!(
        contexts,
        [
            "Blocked",
            "Sv39 root 0x82000000 PSCID 5",
            "Sv39 root 0x82000000 PSCID 6",
            "Blocked",
            "SecondStageOnly",
            "SecondStageOnly (process_ids too)",
        ]
    );
    assert_eq!(outcome.commands.values().sum::<u64>(), 3 + 2 + 5 + 302 + 2);
}

#[test]
fn a_read_that_differs_is_a_mismatch() {
    let outcome = tampered(&parsed(&NESTED.replace("read 020 4 c", "read 020 4 b")), Fences::AtOnce, |_| {});
    assert_eq!((outcome.mismatches.len(), outcome.violations.len()), (1, 0));
    let report = Report { name: "nested", at_once: &outcome, late: &outcome }.to_string();
    assert!(report.contains("line 77: 020 cqh: recorded b, answered c"), "{report}");
    // A guest that puts an illegal command in stops the queue; the checker sees that that is right.
    let outcome = tampered(&parsed(&NESTED.replace("0000000100001001", "0000000100001801")), Fences::Late, |_| {});
    assert!(!outcome.mismatches.is_empty() && outcome.violations.is_empty());
}

/// Applies `change` to the calls of this trace one at a time, until there is none left for which it has a use, and
/// looks that each time something is violated. How often that was.
fn each(text: &str, fences: Fences, spared: usize, change: impl Fn(&mut Vec<Call>, usize) -> bool) -> usize {
    let trace = parsed(text);
    for chosen in spared.. {
        let (mut met, mut done) = (0, false);
        let outcome = tampered(&trace, fences, |calls| {
            let mut index = 0;
            while index < calls.len() && !done {
                let mut probe = calls.clone();
                if change(&mut probe, index) {
                    if met == chosen {
                        *calls = probe;
                        done = true;
                    }
                    met += 1;
                }
                index += 1;
            }
        });
        if !done {
            return chosen - spared;
        }
        assert!(!outcome.violations.is_empty(), "{fences:?}: call {chosen} is not missed");
    }
    0
}

/// Changes the orders of an `invalidate`.
fn orders(change: impl Fn(Order) -> Option<Vec<Order>>) -> impl Fn(&mut Vec<Call>, usize) -> bool {
    move |calls, index| match calls.get_mut(index) {
        Some(Call::Invalidate(orders)) => orders.first().copied().and_then(&change).is_some_and(|changed| {
            orders.splice(..1, changed);
            true
        }),
        _ => false,
    }
}

/// Changes the pages of the orders that have some.
fn pages(change: impl Fn(Option<u32>, Pages) -> Scope) -> impl Fn(&mut Vec<Call>, usize) -> bool {
    orders(move |order| match order {
        Order::Translations(Scope { pscid, pages: Some(pages) }) => {
            Some(vec![Order::Translations(change(pscid, pages))])
        }
        _ => None,
    })
}

#[test]
fn every_order_is_missed() {
    let translations = orders(|order| matches!(order, Order::Translations(_)).then(Vec::new));
    assert_eq!(each(RANGES, Fences::Late, 0, translations), 205);
    for fences in [Fences::AtOnce, Fences::Late] {
        // The first belongs to attaching the device, which is not the guest's doing.
        let device = |order| matches!(order, Order::Device).then(Vec::new);
        assert_eq!(each(NESTED, fences, 1, orders(device)), 5);
        assert_eq!(each(EXTENDED, fences, 1, orders(device)), 3);
        assert_eq!(each(&unusual(), fences, 1, orders(device)), 6);
    }
}

#[test]
fn an_order_that_says_less_or_more_than_asked_is_seen() {
    let scope = |pscid, pages| Scope { pscid, pages: Some(pages) };
    let trace = unusual();
    let tamper = |change: fn(Pages) -> Pages| {
        each(&trace, Fences::Late, 0, pages(move |pscid, pages| scope(pscid, change(pages))))
    };
    let all = tamper(|pages| Pages { first: pages.first + 1, ..pages });
    assert!(all > 0);
    assert_eq!(tamper(|pages| Pages { last: pages.last.wrapping_sub(1), ..pages }), all);
    assert_eq!(tamper(|pages| Pages { last: pages.last + 1, ..pages }), all);
    assert_eq!(tamper(|pages| Pages { non_leaf: !pages.non_leaf, ..pages }), all);
    let change = |change: fn(Option<u32>, Pages) -> Scope| each(&trace, Fences::Late, 0, pages(change));
    assert_eq!(change(|_, pages| Scope { pscid: None, pages: Some(pages) }), all);
    assert_eq!(change(|_, pages| Scope { pscid: Some(9), pages: Some(pages) }), all);
    assert_eq!(change(|pscid, _| Scope { pscid, pages: None }), all);
    let also = |more| {
        each(
            &trace,
            Fences::Late,
            0,
            orders(move |order| match order {
                Order::Translations(_) => Some(vec![order, more]),
                _ => None,
            }),
        )
    };
    // The batch of FirstStage has no pages.
    assert_eq!(also(Order::Device), all + 1);
    assert_eq!(also(Order::Everything), all + 1);
}

#[test]
fn a_fence_that_is_missing_or_weak_is_seen() {
    let weak = |calls: &mut Vec<Call>, index: usize| match calls.get_mut(index) {
        Some(Call::Fence { writes, .. }) => std::mem::take(writes),
        _ => false,
    };
    let missing = |calls: &mut Vec<Call>, index: usize| {
        let is_fence = matches!(calls[index], Call::Fence { .. });
        if is_fence {
            calls.remove(index);
        }
        is_fence
    };
    let incomplete = |calls: &mut Vec<Call>, index: usize| {
        let is_complete = matches!(calls[index], Call::Complete { .. });
        if is_complete {
            calls.remove(index);
        }
        is_complete
    };
    for fences in [Fences::AtOnce, Fences::Late] {
        // One belongs to attaching the device.
        assert_eq!(each(NESTED, fences, 1, weak), 7);
        assert_eq!(each(NESTED, fences, 1, missing), 7);
        assert_eq!(each(NESTED, fences, 1, incomplete), 7);
    }
}

#[test]
fn a_fence_after_the_head_has_moved_is_seen() {
    for fences in [Fences::AtOnce, Fences::Late] {
        // Every call is told one look too late.
        let mut held = Vec::new();
        let outcome = tampered(&parsed(IDENTITY), fences, |calls| std::mem::swap(calls, &mut held));
        // Each of the three guest fences and the two changes of ddtp.
        assert!(outcome.violations.len() >= 5, "{fences:?}: {:?}", outcome.violations);
    }
}

#[test]
fn a_context_the_directory_does_not_give_is_seen() {
    let wrong: [fn(Mapping) -> Option<Mapping>; 4] = [
        |new| match new {
            Mapping::FirstStage { mode, root, pscid, sade, sbe } => {
                Some(Mapping::FirstStage { mode, root: root + 0x1000, pscid, sade, sbe })
            }
            _ => None,
        },
        |new| match new {
            Mapping::FirstStage { mode, root, pscid, sade, sbe } => {
                Some(Mapping::FirstStage { mode, root, pscid: pscid + 1, sade, sbe })
            }
            _ => None,
        },
        |new| (new != Mapping::Blocked).then_some(Mapping::Blocked),
        |new| (new == Mapping::Blocked).then_some(Mapping::SecondStageOnly { process_ids: false }),
    ];
    for (change, count) in wrong.into_iter().zip([1, 1, 3, 2]) {
        let set = |calls: &mut Vec<Call>, index: usize| match calls.get_mut(index) {
            Some(Call::SetContext(new)) => change(*new).map(|wrong| *new = wrong).is_some(),
            _ => false,
        };
        assert_eq!(each(NESTED, Fences::Late, 0, set), count);
    }
}

#[test]
fn a_line_that_is_not_understood_is_named() {
    let first = "read 000 8 3800000e10\n# a comment\n\n";
    let cases = [
        ("", "line 0: the first read should be that of capabilities"),
        ("write 010 8 0\nread 010 8 0", "line 2: the first read should be that of capabilities"),
        ("write 010 8 0", "line 1: the first read should be that of capabilities"),
        ("wrote 010 8 0", "line 1: \"wrote\" should be `read`, `write`, `mem` or `#`"),
        ("read 010 8", "line 1: \"read 010 8\" should be an offset, a size and a value"),
        ("read 010 8 0 0", "line 1: \"read 010 8 0 0\" should be an offset, a size and a value"),
        ("read 010 2 0", "line 1: the size \"2\" should be 4 or 8"),
        ("read 1000 4 0", "line 1: the offset \"1000\" should be below 1000"),
        ("read 0x10 4 0", "line 1: \"0x10\" should be a hexadecimal number"),
        ("read +10 4 0", "line 1: \"+10\" should be a hexadecimal number"),
        ("write 010 8 10000000000000000", "line 1: \"10000000000000000\" should be a hexadecimal number"),
        ("write 024 4 100000000", "line 1: the value \"100000000\" should fit the size of 4 bytes"),
        ("mem 80000000", "line 1: `mem 80000000` should be a multiple of 8 and the words"),
        ("mem 80000004 0", "line 1: `mem 80000004` should be a multiple of 8 and the words"),
        ("mem 80000000 g", "line 1: \"g\" should be a hexadecimal number"),
    ];
    for (text, message) in cases {
        let error = text.parse::<Trace>().expect_err(text).to_string();
        assert!(error.starts_with(message), "{text:?}: {error}");
    }
    let error = format!("{first}read").parse::<Trace>().expect_err("a bare word");
    assert_eq!(error.line, 4);
    assert_eq!(parsed(first).steps.len(), 1);
    // The top of the address space, and capabilities nobody can have.
    let trace = parsed("mem fffffffffffffff8 1 2\nread 000 8 0");
    let error = replay::replay(&trace, Fences::AtOnce, &mut |_| {}).expect_err("PAS is 0");
    assert!(error.to_string().contains("physical address size of 0 bits"), "{error}");
}
