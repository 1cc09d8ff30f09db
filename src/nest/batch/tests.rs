//! What a batch holds is compared as a set of facts: what may no longer be cached once it is carried out.

use proptest::prelude::*;
use std::collections::BTreeSet;

use super::*;
use crate::addr::Iova;
use crate::id::{ProcessId, Pscid};

type Order = Invalidation<u8>;

/// Something a cache may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    /// A leaf or non-leaf entry on the way to a page; global if it has no PSCID.
    FirstStage {
        page: u64,
        pscid: Option<u32>,
        leaf: bool,
    },
    /// The context of a device.
    Device(u8),
    Process(u8, u32),
    SecondStage,
}

const DEVICES: [u8; 2] = [1, 2];
const PSCIDS: [u32; 2] = [0, 5];
const PROCESSES: [u32; 2] = [0, 7];

/// A small space of pages, with both of its ends.
const PAGES: [u64; 10] = [
    0,
    0x1000,
    0x2000,
    0x3000,
    0x4000,
    0x5000,
    0x7fff_ffff_ffff_f000,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_e000,
    0xffff_ffff_ffff_f000,
];

/// What an order drops (rules VMA-01 to VMA-14, and what `Invalidation` says of itself).
fn facts(order: &Order) -> BTreeSet<Fact> {
    let first_stage = |wanted: &dyn Fn(u64, Option<u32>, bool) -> bool| {
        let spaces = [None, Some(PSCIDS[0]), Some(PSCIDS[1])];
        let all = PAGES.into_iter().flat_map(move |page| {
            spaces.into_iter().flat_map(move |pscid| [true, false].map(|leaf| (page, pscid, leaf)))
        });
        all.filter(|&(page, pscid, leaf)| wanted(page, pscid, leaf))
            .map(|(page, pscid, leaf)| Fact::FirstStage { page, pscid, leaf })
            .collect::<BTreeSet<_>>()
    };
    let everything = |devices: &[u8]| {
        let mut facts = first_stage(&|_, _, _| true);
        facts.extend(devices.iter().map(|&device| Fact::Device(device)));
        // The context of a device leads to those of its processes (rule DIR-02).
        facts.extend(devices.iter().flat_map(|&device| PROCESSES.map(|process| Fact::Process(device, process))));
        facts.insert(Fact::SecondStage);
        facts
    };
    match order {
        Invalidation::Everything => everything(&DEVICES),
        Invalidation::Device(device) => everything(&[*device]),
        Invalidation::Process(device, process) => BTreeSet::from([Fact::Process(*device, process.get())]),
        Invalidation::FirstStage => first_stage(&|_, _, _| true),
        Invalidation::AddressSpace(space) => first_stage(&|_, pscid, _| pscid == Some(space.get())),
        Invalidation::Pages(pages) => first_stage(&|page, pscid, leaf| {
            let named = pages.pscid.is_none_or(|space| pscid == Some(space.get()));
            (pages.first.get()..=pages.last.get()).contains(&page) && named && (leaf || pages.non_leaf)
        }),
    }
}

fn held<const BATCH: usize>(batch: &Batch<u8, BATCH>) -> BTreeSet<Fact> {
    batch.orders().iter().flat_map(facts).collect()
}

fn pages(first: u64, last: u64, pscid: Option<u32>, non_leaf: bool) -> Order {
    let pages = Pages::new(Iova::new(first), Iova::new(last), pscid.map(Pscid::truncate));
    Invalidation::Pages(Pages { non_leaf, ..pages })
}

fn page(first: u64) -> Order {
    pages(first, first, None, false)
}

fn space(pscid: u32) -> Order {
    Invalidation::AddressSpace(Pscid::truncate(pscid))
}

fn process(device: u8, number: u32) -> Order {
    Invalidation::Process(device, ProcessId::truncate(number))
}

fn pushed<const BATCH: usize>(orders: &[Order]) -> Batch<u8, BATCH> {
    let mut batch = Batch::new();
    for &order in orders {
        assert!(batch.push(order), "room for {order:?} in {batch:?}");
    }
    batch
}

#[test]
fn adjacent_and_overlapping_pages_become_one_range() {
    let cases: [(&[Order], Order); 6] = [
        (&[page(0x1000), page(0x2000)], pages(0x1000, 0x2000, None, false)),
        (&[page(0x2000), page(0x1000)], pages(0x1000, 0x2000, None, false)),
        (&[page(0x1000), page(0x3000), page(0x2000)], pages(0x1000, 0x3000, None, false)),
        (&[pages(0, 0x3000, None, true), pages(0x2000, 0x5000, None, true)], pages(0, 0x5000, None, true)),
        (&[page(0x1000), page(0x1000)], page(0x1000)),
        (
            &[page(0xffff_ffff_ffff_f000), page(0xffff_ffff_ffff_e000)],
            pages(0xffff_ffff_ffff_e000, 0xffff_ffff_ffff_f000, None, false),
        ),
    ];
    for (orders, merged) in cases {
        assert_eq!(pushed::<4>(orders).orders(), [merged], "VC-25");
    }
}

#[test]
fn what_differs_in_any_operand_is_kept_apart() {
    let cases = [
        [page(0x1000), page(0x3000)],
        [page(0), page(0xffff_ffff_ffff_f000)],
        [page(0x1000), pages(0x2000, 0x2000, Some(5), false)],
        [pages(0x1000, 0x1000, Some(0), false), pages(0x2000, 0x2000, Some(5), false)],
        [page(0x1000), pages(0x2000, 0x2000, None, true)],
        [pages(0, 0x5000, None, false), pages(0x2000, 0x2000, None, true)],
        [pages(0, 0x5000, Some(5), false), page(0x2000)],
        // An address space leaves global entries (VC-26).
        [space(5), page(0x2000)],
        [space(5), pages(0x2000, 0x2000, Some(0), false)],
        [space(5), space(0)],
        [Invalidation::Device(1), Invalidation::Device(2)],
        [process(1, 0), process(1, 7)],
        [process(1, 0), process(2, 0)],
        [Invalidation::Device(1), process(2, 0)],
        // Between the two, hardware could walk from the old process context (SWG-06).
        [Invalidation::FirstStage, process(1, 0)],
    ];
    for orders in cases {
        assert_eq!(pushed::<4>(&orders).orders(), orders, "VC-25, VC-26");
    }
}

#[test]
fn the_wider_order_absorbs_the_narrower_in_either_order() {
    let narrow = [
        (space(5), pages(0x1000, 0x2000, Some(5), true)),
        (space(5), space(5)),
        (Invalidation::FirstStage, space(5)),
        (Invalidation::FirstStage, page(0x1000)),
        (pages(0, 0x5000, None, true), pages(0x1000, 0x2000, Some(5), false)),
        (pages(0, 0x5000, None, false), pages(0x1000, 0x2000, Some(5), false)),
        (pages(0, 0x5000, None, true), pages(0x1000, 0x2000, Some(5), true)),
        (Invalidation::Device(1), Invalidation::FirstStage),
        (Invalidation::Device(1), pages(0, 0x1000, None, true)),
        (Invalidation::Everything, Invalidation::Device(2)),
        (Invalidation::Everything, process(2, 7)),
        (Invalidation::Device(1), process(1, 7)),
        (process(1, 7), process(1, 7)),
    ];
    for (wide, narrow) in narrow {
        assert_eq!(pushed::<2>(&[wide, narrow]).orders(), [wide], "VC-25");
        assert_eq!(pushed::<2>(&[narrow, wide]).orders(), [wide], "VC-25");
    }
}

#[test]
fn a_full_batch_takes_what_it_can_merge_and_refuses_the_rest_whole() {
    let mut batch = pushed::<2>(&[page(0x1000), page(0x4000)]);
    assert!(!batch.push(space(5)), "no room");
    assert_eq!(batch.orders(), [page(0x1000), page(0x4000)], "VC-80: nothing is lost");
    assert!(batch.push(page(0x2000)));
    assert!(batch.push(page(0x3000)), "it joins the two");
    assert_eq!(batch.orders(), [pages(0x1000, 0x4000, None, false)]);
    assert!(batch.push(space(5)), "which made room");
}

#[test]
fn the_widest_order_replaces_all() {
    let mut batch = pushed::<2>(&[page(0x1000), Invalidation::Device(1)]);
    assert!(!batch.is_widest());
    batch.widen();
    assert_eq!(batch.orders(), [Invalidation::Everything], "T21");
    assert!(batch.is_widest());
    batch.clear();
    assert!(batch.orders().is_empty() && !batch.is_widest());
}

fn orders() -> impl Strategy<Value = Order> {
    let page = || prop::sample::select(&PAGES[..]);
    let pscid = || prop::option::of(prop::sample::select(&PSCIDS[..]));
    prop_oneof![
        12 => (page(), page(), pscid(), any::<bool>(), any::<bool>()).prop_map(|(a, b, pscid, non_leaf, single)| {
            pages(a.min(b), if single { a.min(b) } else { a.max(b) }, pscid, non_leaf)
        }),
        4 => prop::sample::select(&PSCIDS[..]).prop_map(space),
        1 => Just(Invalidation::FirstStage),
        1 => prop::sample::select(&DEVICES[..]).prop_map(Invalidation::Device),
        2 => (prop::sample::select(&DEVICES[..]), prop::sample::select(&PROCESSES[..]))
            .prop_map(|(device, number)| process(device, number)),
    ]
}

/// What is held covers exactly what was taken in, whatever the room.
fn exactly_what_was_pushed<const BATCH: usize>(orders: &[Order]) -> Result<(), TestCaseError> {
    let mut batch = Batch::<u8, BATCH>::new();
    let mut asked = BTreeSet::new();
    for order in orders {
        let before = batch.orders().to_vec();
        if batch.push(*order) {
            asked.extend(facts(order));
            // Hardware may walk from an old process context until the last order for one.
            let last = batch.orders().iter().rposition(|held| matches!(held, Invalidation::Process(..)));
            let behind: BTreeSet<Fact> =
                batch.orders().iter().skip(last.map_or(0, |last| last.saturating_add(1))).flat_map(facts).collect();
            let walks =
                matches!(order, Invalidation::FirstStage | Invalidation::AddressSpace(_) | Invalidation::Pages(_));
            prop_assert!(!walks || facts(order).is_subset(&behind), "SWG-06: {:?} in {:?}", order, batch.orders());
        } else {
            prop_assert_eq!(batch.orders(), before.as_slice(), "refused, {:?} changes nothing", order);
            prop_assert_eq!(before.len(), BATCH, "refused with room left");
        }
        prop_assert_eq!(held(&batch), asked.clone(), "after {:?}", order);
        let apart = batch.orders().iter().enumerate().all(|(index, order)| {
            let held = batch.orders();
            let between = |other: usize| {
                held.iter()
                    .skip(index.min(other))
                    .take(index.abs_diff(other))
                    .any(|held| matches!(held, Invalidation::Process(..)))
            };
            let mut others = held.iter().enumerate().filter(|&(other, _)| other != index && !between(other));
            others.all(|(_, other)| !covers(other, order))
        });
        prop_assert!(apart, "one order covers another: {:?}", batch.orders());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_batch_says_exactly_what_was_asked(orders in prop::collection::vec(orders(), 0..24)) {
        exactly_what_was_pushed::<1>(&orders)?;
        exactly_what_was_pushed::<3>(&orders)?;
        exactly_what_was_pushed::<16>(&orders)?;
    }
}
