//! What one order to a `FanOut` costs its IOMMUs together.

use riscv_viommu::{
    Ats, AtsInvalidation, Behind, Context, FanOut, FenceScope, Invalidation, Iova, PageRequest, Pages, PhysicalIommu,
    Prgi, Pscid, ResponseCode, Ticket,
};

use crate::calls::ignore;
use crate::cost::Cost;
use crate::host::Host;

type Both = FanOut<Host, 2, 4>;

/// What both are asked meanwhile.
fn cost(both: &mut Both, order: impl FnOnce(&mut Both)) -> [Cost; 2] {
    let taken = |both: &Both| [0, 1].map(|index| both.iommu(index).unwrap().cost.take());
    taken(both);
    order(both);
    taken(both)
}

#[test]
fn an_order_to_several_iommus_costs_each_one_call_and_each_16_invalidations_one_more() {
    let mut both = Both::new([(); 2].map(|()| Host::default()));
    let [one, other] = [0, 1].map(|iommu| Behind { iommu, device: 1 });
    let all = |cost: Cost| [cost; 2];
    let first = |cost: Cost| [cost, Cost::default()];
    let none = Cost::default();
    assert_eq!(cost(&mut both, |both| ignore(both.capabilities())), all(Cost { queries: 1, ..none }), "T14");
    assert_eq!(cost(&mut both, |both| ignore(both.adopt(one))), first(Cost { adopts: 1, ..none }), "T14");
    let _ = both.adopt(other);
    let open = Context::SecondStageOnly { process_ids: false, ats: Ats::Off };
    let _ = both.set_context(other, &open);
    assert_eq!(
        cost(&mut both, |both| ignore(both.set_context(one, &open))),
        first(Cost { contexts: 1, ..none }),
        "T14"
    );
    // Orders that can not be merged, and go to both.
    for orders in 0..=48 {
        let page = |n| Iova::new(n << 13);
        let pages = |n: u64| Pages::new(page(n), page(n), Some(Pscid::truncate(n as u32)));
        let batch: Vec<_> = (0..orders).map(|n| Invalidation::Pages(pages(n))).collect();
        let invalidates = orders.div_ceil(16);
        assert_eq!(cost(&mut both, |both| both.invalidate(&batch).unwrap()), all(Cost { invalidates, ..none }), "T14");
    }
    let fence = |both: &mut Both| ignore(both.fence(Ticket::new(1), FenceScope::ALL));
    assert_eq!(cost(&mut both, fence), all(Cost { fences: 1, ..none }), "T14");
    let request = |both: &mut Both| both.ats_invalidate(one, &AtsInvalidation::ALL).unwrap();
    assert_eq!(cost(&mut both, request), first(Cost { requests: 1, ..none }), "T14");
    let response = PageRequest::read(Iova::new(0), Prgi::truncate(1)).response(ResponseCode::Success);
    let respond = |both: &mut Both| both.page_response(one, &response).unwrap();
    assert_eq!(cost(&mut both, respond), first(Cost { responses: 1, ..none }), "T14");
    assert_eq!(cost(&mut both, |both| both.release(one)), first(Cost { releases: 1, ..none }), "T14");
}
