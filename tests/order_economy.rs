//! As few orders as say all that was asked, and as few calls to the host as there are devices (design, "Cost").

#![expect(clippy::arithmetic_side_effects, reason = "a failure is a finding")]

mod nesting_rig;

use nesting_rig::{FENCE, OFF, Rig, id, pscid};
use proptest::prelude::*;
use riscv_viommu::mock::guest::{Iotinval, inval_ddt};
use riscv_viommu::mock::{Order, PhysicalDevice};
use riscv_viommu::{Gscid, Invalidation, Iova, Pages, Progress};

/// The invalidations that went out before a fence, which is the last order; one list for each call.
fn before_fence(orders: Vec<Order>) -> Vec<Vec<Invalidation<PhysicalDevice>>> {
    let mut orders = orders;
    assert!(matches!(orders.pop(), Some(Order::Fence(..))), "the fence is last");
    let calls = orders.into_iter().map(|order| match order {
        Order::Invalidate(orders, Ok(())) => orders,
        other => unreachable!("{other:?}"),
    });
    calls.collect()
}

mod unmapping_512_pages_one_doorbell_each {
    use super::*;

    const FIRST: u64 = 0x4020_1000;
    const PAGES: u64 = 512;

    fn page(number: u64) -> Iova {
        Iova::new(FIRST + (number << 12))
    }

    fn all(space: u32) -> Invalidation<PhysicalDevice> {
        Invalidation::Pages(Pages::new(page(0), page(PAGES - 1), Some(pscid(space))))
    }

    /// What goes out for these pages and spaces and a fence.
    fn orders<const BATCH: usize>(pages: impl Iterator<Item = (u64, u32)>) -> Vec<Vec<Invalidation<PhysicalDevice>>> {
        let mut rig = Rig::<16, BATCH>::sized().translating();
        for (number, space) in pages {
            let command = Iotinval::ALL.address(page(number)).pscid(pscid(space)).vma();
            assert_eq!(rig.ring([command]), Progress::Idle);
        }
        assert!(rig.fence());
        before_fence(rig.physical.take_orders())
    }

    #[test]
    fn gives_one_order_that_is_the_range_forwards_and_backwards() {
        assert_eq!(orders::<16>((0..PAGES).map(|number| (number, 1))), [[all(1)]], "VC-25");
        assert_eq!(orders::<16>((0..PAGES).rev().map(|number| (number, 1))), [[all(1)]], "VC-25");
        assert_eq!(orders::<1>((0..PAGES).map(|number| (number, 1))), [[all(1)]], "with room for one order");
        assert_eq!(orders::<1>((0..PAGES).rev().map(|number| (number, 1))), [[all(1)]], "with room for one order");
    }

    #[test]
    fn gives_one_order_for_each_space_where_two_take_turns() {
        let both = || (0..PAGES).flat_map(|number| [(number, 1), (number, 2)]);
        for orders in [orders::<16>(both()), orders::<2>(both())] {
            let [orders] = orders.as_slice() else { unreachable!("one call, not {orders:?}") };
            assert_eq!(orders.len(), 2, "VC-25");
            assert!(orders.contains(&all(1)) && orders.contains(&all(2)), "VC-25");
        }
        let alone = orders::<1>(both()).concat();
        let single = both().map(|(number, space)| Pages::new(page(number), page(number), Some(pscid(space))));
        assert_eq!(alone, single.map(Invalidation::Pages).collect::<Vec<_>>(), "a batch of one can not hold two");
    }

    #[test]
    fn gives_one_order_also_where_the_two_ends_grow_towards_each_other() {
        let inwards = (0..PAGES / 2).flat_map(|number| [(number, 1), (PAGES - 1 - number, 1)]);
        assert_eq!(orders::<2>(inwards), [[all(1)]], "VC-25");
    }
}

/// What of a first stage a cache may hold: leaf and non-leaf entries of a page, of one space or global.
mod coverage {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    struct Entry {
        page: u64,
        /// `None`: global.
        space: Option<u32>,
        leaf: bool,
    }

    /// Both ends of the address space, of its halves, and a few pages in a row.
    const PLACES: [u64; 12] = [
        0,
        0x1000,
        0x2000,
        0x3000,
        0x4000,
        0x5000,
        0x8000,
        0x7fff_ffff_ffff_f000,
        0x8000_0000_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_ffff_e000,
        0xffff_ffff_ffff_f000,
    ];
    const SPACES: [u32; 3] = [0, 1, 5];

    fn entries() -> impl Iterator<Item = Entry> {
        let spaces = || SPACES.map(Some).into_iter().chain([None]);
        PLACES
            .into_iter()
            .flat_map(move |page| spaces().flat_map(move |space| [true, false].map(|leaf| Entry { page, space, leaf })))
    }

    /// A command as the specification has it: a range is 2^`log2` pages.
    #[derive(Clone, Copy, Debug)]
    struct Command {
        place: Option<(u64, u32)>,
        space: Option<u32>,
        non_leaf: bool,
        guests_own: bool,
    }

    impl Command {
        fn encode(self) -> [u64; 2] {
            let mut command = Iotinval::ALL;
            command = match self.place {
                None => command,
                Some((page, 0)) => command.address(Iova::new(page)),
                Some((page, log2)) => command.range(Iova::new(page), log2),
            };
            command = self.space.map_or(command, |space| command.pscid(pscid(space)));
            command = if self.non_leaf { command.non_leaf() } else { command };
            let gscid = self.guests_own.then(|| Gscid::new(7)).and_then(Result::ok);
            gscid.map_or(command, |gscid| command.gscid(gscid)).vma()
        }

        /// Rules VMA-01 to VMA-14. Of a VM of the guest's own passthrough devices have nothing (rule VC-22).
        fn drops(self, entry: &Entry) -> bool {
            let here = self.place.is_none_or(|(page, log2)| page >> 12 >> log2 == entry.page >> 12 >> log2);
            let space = self.space.is_none_or(|space| entry.space == Some(space));
            let leaf = entry.leaf || self.non_leaf || self.place.is_none();
            here && space && leaf && !self.guests_own
        }
    }

    fn drops(order: &Invalidation<PhysicalDevice>, entry: &Entry) -> bool {
        match order {
            Invalidation::Everything | Invalidation::Device(_) | Invalidation::FirstStage => true,
            Invalidation::AddressSpace(space) => entry.space == Some(space.get()),
            Invalidation::Pages(pages) => {
                (pages.first.get()..=pages.last.get()).contains(&entry.page)
                    && pages.pscid.is_none_or(|space| entry.space == Some(space.get()))
                    && (entry.leaf || pages.non_leaf)
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn commands() -> impl Strategy<Value = Command> {
        let size = prop_oneof![6 => Just(0), 3 => 1..5_u32, 1 => 50..52_u32];
        let place = (prop::sample::select(&PLACES[..]), size);
        let space = prop::option::weighted(0.7, prop::sample::select(&SPACES[..]));
        (prop::option::weighted(0.85, place), space, prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(place, space, non_leaf, guests_own)| Command { place, space, non_leaf, guests_own })
    }

    /// Doorbells, and a fence behind the last one.
    fn covers_all<const BATCH: usize>(rig: &mut Rig<16, BATCH>, doorbells: &[Vec<Command>]) {
        // What went out with each doorbell; an order helps commands that were rung for by then.
        let mut sent: Vec<Vec<_>> = Vec::new();
        let invalidations = |orders: Vec<Order>| {
            let lists = orders.into_iter().filter_map(|order| match order {
                Order::Invalidate(orders, Ok(())) => Some(orders),
                Order::Fence(..) => None,
                other => unreachable!("{other:?}"),
            });
            lists.flatten().collect::<Vec<_>>()
        };
        for commands in doorbells {
            let progress = rig.ring(commands.iter().map(|command| command.encode()));
            assert_eq!((progress, rig.passed()), (Progress::Idle, true));
            sent.push(invalidations(rig.physical.take_orders()));
        }
        assert!(rig.fence());
        sent.push(before_fence(rig.physical.take_orders()).concat());
        for (index, commands) in doorbells.iter().enumerate() {
            let later: Vec<_> = sent.iter().skip(index).flatten().collect();
            for command in commands {
                let left =
                    entries().find(|entry| command.drops(entry) && !later.iter().any(|order| drops(order, entry)));
                assert!(left.is_none(), "VC-25: {command:?} left {left:x?} of {later:x?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_command_is_carried_out_before_the_fence_however_it_is_rung_and_whatever_the_room(
            stretches in prop::collection::vec(prop::collection::vec(prop::collection::vec(commands(), 0..6), 0..8), 1..4),
        ) {
            let (mut one, mut two) = (Rig::<16, 1>::sized().translating(), Rig::<16, 2>::sized().translating());
            let mut many = Rig::<16, 16>::sized().translating();
            for doorbells in &stretches {
                covers_all(&mut one, doorbells);
                covers_all(&mut two, doorbells);
                covers_all(&mut many, doorbells);
            }
        }
    }
}

/// What becomes of devices that stay as they are, and what it costs where there is room for more.
mod devices {
    use super::*;

    #[test]
    fn one_whose_context_did_not_change_is_still_made_to_forget() {
        let mut rig = Rig::new().translating();
        assert!({
            let _ = rig.ring([inval_ddt(Some(id(0)))]);
            rig.fence()
        });
        assert_eq!(rig.orders(), ["inv D0", "fence"], "VC-51: ordered, and its context not set again");
    }

    const ROOM: usize = 256;
    const BATCH: usize = 16;

    /// Calls to the host: directory loads, and orders by kind.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Calls {
        loads: usize,
        contexts: usize,
        invalidates: usize,
        fences: usize,
        /// The orders in `invalidates`.
        invalidations: usize,
    }

    fn calls(rig: &Rig<ROOM, BATCH>) -> Calls {
        let mut calls = Calls { loads: rig.memory.take_loads().len(), ..Calls::default() };
        for order in rig.physical.take_orders() {
            match order {
                Order::SetContext(..) => calls.contexts += 1,
                Order::Invalidate(orders, _) => {
                    calls.invalidates += 1;
                    calls.invalidations += orders.len();
                }
                Order::Fence(..) => calls.fences += 1,
                other => unreachable!("{other:?}"),
            }
        }
        calls
    }

    /// So many devices in a directory of three levels, each with a context.
    fn attached(count: u32) -> Rig<ROOM, BATCH> {
        let mut rig = Rig::<ROOM, BATCH>::sized();
        for n in 0..count {
            rig.directory.set(id(n), &rig.a.context(pscid(1)));
            assert_eq!(rig.attach(n).1, Progress::Idle);
        }
        let _ = (rig.memory.take_loads(), rig.orders());
        rig
    }

    #[test]
    fn named_or_moved_all_at_once_cost_what_is_attached_and_not_what_there_is_room_for() {
        for count in [1, 16, 64, 256] {
            let devices = usize::try_from(count).unwrap_or_default();
            let mut rig = attached(count);
            // Three loads for the path of each, one order, and a call for as many orders as a batch holds.
            let walk = Calls {
                loads: 3 * devices,
                contexts: devices,
                invalidates: devices.div_ceil(BATCH),
                fences: 1,
                invalidations: devices,
            };
            let settle = |rig: &mut Rig<ROOM, BATCH>| {
                let _ = rig.drain();
                calls(rig)
            };
            let _ = rig.enter();
            assert_eq!(settle(&mut rig), walk, "Off to a directory, {count} devices");
            // Two loads of the ring: the command, and the fence.
            let _ = rig.ring([inval_ddt(None)]);
            let _ = rig.ring([FENCE.encode()]);
            assert_eq!(
                settle(&mut rig),
                Calls { loads: walk.loads + 2, contexts: 0, ..walk },
                "DV = 0, {count} devices"
            );
            let _ = rig.ddtp(OFF);
            assert_eq!(settle(&mut rig), Calls { loads: 0, ..walk }, "a directory to Off, {count} devices");
        }
    }
}
