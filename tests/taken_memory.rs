//! Memory taken from a guest whose devices keep host addresses: a device that is trusted with ATS behind an IOMMU
//! without `T2GPA` (rules VC-75, SWG-18, T31). What it was not made to forget, it has no ATS to use.

mod nesting_rig;

use nesting_rig::{IOVA, PAGE_A, PAGE_B, Rig, id, pscid};
use riscv_viommu::mock::guest::inval_ddt;
use riscv_viommu::mock::tables::{pte, tc::EN_ATS};
use riscv_viommu::mock::{Access, Hardware, Memory};
use riscv_viommu::{
    Applied, Ats, Completion, Config, DevicePolicy, Gpa, Gscid, HostCapabilities, OrderError, PhysicalIommu,
};

fn host() -> HostCapabilities {
    let mut host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    host.capabilities = host.capabilities.with_ats(true).with_t2gpa(false);
    host
}

fn policy() -> DevicePolicy {
    DevicePolicy::default().with_ats(Ats::PageRequests).with_trusted_translations(true)
}

/// A device with these bits that translates, and keeps the page that is to be taken if it has ATS.
fn rig(bits: u64) -> Rig {
    let mut rig: Rig = Rig::on(host(), &Config::nested().with_ats(true));
    let [tc, iohgatp, ta, fsc] = rig.a.context(pscid(1));
    rig.directory.set(id(0), &[tc | bits, iohgatp, ta, fsc]);
    let _ = rig.enter();
    let _ = rig.attach_with(0, policy());
    assert!(rig.fence());
    let _ = rig.physical.hardware().dma_through_atc(rig.device(0), None, IOVA, true);
    rig.memory.write(rig.a.entry_address(IOVA, 0), PAGE_B.get() >> 2 | pte::RW);
    let _ = rig.orders();
    rig
}

/// The guest's next context, with table B and these bits.
fn next(rig: &mut Rig, bits: u64) {
    let [tc, iohgatp, ta, fsc] = rig.b.context(pscid(2));
    rig.directory.set(id(0), &[tc | bits, iohgatp, ta, fsc]);
    let _ = rig.ring([inval_ddt(Some(id(0)))]);
}

fn take(rig: &mut Rig) {
    let _ = rig.iommu.invalidate_gpa(PAGE_A..=Gpa::new(PAGE_A.get() | 0xfff));
}

/// Everything that waits is done, and the guest's directory in force.
fn settle(rig: &mut Rig) {
    for _ in 0..6 {
        let _ = rig.complete();
        let _ = rig.iommu.run();
    }
}

/// Whether the device still reaches the page that was taken.
fn reaches(rig: &Rig) -> bool {
    assert!(rig.iommu.is_gpa_invalidated(), "T31: the host goes by this");
    let dma = rig.physical.hardware().dma_through_atc(rig.device(0), None, IOVA, true);
    matches!(dma.access, Access::Unchecked(at) if at >> 12 == PAGE_A.get() >> 12)
}

#[test]
fn a_context_that_was_wanted_before_does_not_bring_ats_back() {
    let mut detour = rig(EN_ATS);
    detour.physical.set_pending(true);
    detour.physical.answer_next_set_context(Ok(Applied::Blocked));
    next(&mut detour, EN_ATS);
    take(&mut detour);
    settle(&mut detour);
    assert!(!reaches(&detour), "T31, VC-75: {:?}", detour.orders());
    assert_eq!(detour.context(0), "B/2");

    let mut busy = rig(EN_ATS);
    next(&mut busy, 0);
    assert!(busy.fence());
    busy.physical.answer_next_set_context(Err(OrderError::Busy));
    next(&mut busy, EN_ATS);
    take(&mut busy);
    settle(&mut busy);
    assert!(!reaches(&busy), "T31, VC-75: {:?}", busy.orders());
}

type Event = (&'static str, fn(&mut Rig));

#[test]
fn a_device_that_was_being_told_to_forget_may_still_keep_it() {
    let events: [Event; 3] = [
        ("the host lost its state", |rig| {
            rig.physical.set_pending(true);
            take(rig);
            rig.physical.lose_state();
            let _ = rig.iommu.host_lost_state();
        }),
        ("the guest was reset", |rig| {
            rig.physical.set_pending(true);
            take(rig);
            let _ = rig.iommu.reset();
        }),
        ("the host refused to invalidate", |rig| {
            rig.physical.answer_next_invalidate(Err(OrderError::Refused { done: 0 }));
            take(rig);
            let _ = rig.iommu.reset();
        }),
    ];
    for (what, event) in events {
        let mut rig = rig(EN_ATS);
        event(&mut rig);
        settle(&mut rig);
        rig.turn_on();
        let _ = rig.enter();
        settle(&mut rig);
        assert!(!reaches(&rig), "T31, SWG-18: {what}: {:?}", rig.orders());
        assert_eq!(rig.context(0), "A/1", "{what}");
    }
}

#[test]
fn an_answer_to_half_of_what_it_is_to_forget_is_none() {
    // The first of both is refused by the driver, or ends with a timeout under a fence of its own.
    let mut refused = rig(EN_ATS);
    refused.physical.answer_next_ats_invalidate(Err(OrderError::Refused { done: 0 }));
    take(&mut refused);
    assert!(!reaches(&refused) && refused.context(0) == "A/1", "T31, T41: {:?}", refused.orders());
    let mut late = rig(EN_ATS);
    for answer in [Completion::Done, Completion::AtsTimeout] {
        late.physical.answer_next_fence(Ok(answer));
    }
    take(&mut late);
    assert_eq!(late.context(0), "A/1", "T31, T41: {:?}", late.orders());
}

#[test]
fn a_device_gets_ats_only_after_the_iommu_has_forgotten() {
    let in_order = |orders: &[String]| {
        let at = |what: &str| orders.iter().position(|order| order.starts_with(what));
        at("inv All") < at("0=") && at("fence") < at("0=")
    };
    let mut turned_on = rig(0);
    turned_on.physical.answer_next_set_context(Err(OrderError::Busy));
    next(&mut turned_on, EN_ATS);
    let _ = turned_on.orders();
    take(&mut turned_on);
    settle(&mut turned_on);
    let orders = turned_on.orders();
    assert!(in_order(&orders), "T31, SWG-18: {orders:?}");
}
