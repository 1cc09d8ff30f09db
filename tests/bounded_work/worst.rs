//! Worst cases, built by hand: bounds that are reached, or how far they are.

use riscv_viommu::mock::guest::{AtsCommand, register};
use riscv_viommu::{
    Cause, Config, DevicePolicy, Gpa, HostFault, Iova, PageRequest, Prgi, ProcessId, Progress, Request, TransactionType,
};

use crate::calls::ignore;
use crate::cost::{Cost, WORDS};
use crate::guest::{DEVICES, GROUPS, Guest, Iommu, Kind, command, context, id, limits, table};
use crate::host::{COMMANDS, CONTEXTS, Host, Manner, region};

const FENCE: u64 = 0;
const INVAL_ALL: u64 = 4;
/// That of device 0.
const INVAL_ONE: u64 = 6;
const IOTINVAL: u64 = 9;
const ILLEGAL: u64 = 15;
const D: u64 = DEVICES as u64;

/// A guest with so many passthrough devices and emulated ones whose contexts are of this kind.
fn guest(units: u64, passthrough: u64, emulated: u64, kind: u64) -> Guest {
    let mut guest = Guest::new(Kind::Nested, false, Manner::default(), units);
    guest.iommu.backend_mut().regions.insert(CONTEXTS, context(kind));
    for number in 0..passthrough {
        guest.call("attach", number);
    }
    for number in 0..emulated {
        guest.call("attach_emulated", 4 + number);
    }
    while guest.iommu.run() == Progress::Runnable {}
    guest
}

impl Guest {
    fn manner(&mut self, manner: Manner) {
        self.iommu.backend_mut().manner = manner;
    }

    fn repeat(&mut self, commands: [u64; 4]) {
        self.fill(commands.map(command));
    }

    /// A fence waits for the host, with a full queue behind it; what comes then takes its turn.
    fn park(&mut self) {
        self.manner(Manner { pends: 1, ..Manner::default() });
        self.repeat([FENCE; 4]);
        self.doorbell();
        self.manner(Manner::default());
    }
}

/// Fences, each with a store, and nothing else.
#[test]
fn a_doorbell_orders_a_fence_for_each_unit_of_the_budget_and_no_more() {
    for units in [1, 32, 240, 256] {
        let mut guest = guest(units, 1, 0, 1);
        guest.manner(Manner { narrow: true, ..Manner::default() });
        guest.repeat([FENCE; 4]);
        let cost = guest.cost("write", Guest::doorbell);
        assert_eq!((cost.fences, cost.posts), (units, units), "T14");
        // Each was read with its neighbours, which failed, and alone; and one more, for which no unit was left. At the
        // end of a page there are fewer neighbours.
        let (loads, bytes) = (2 * (units + 1), 272 * (units + 1));
        assert!(cost.loads <= loads && cost.bytes <= bytes, "T14");
        assert!(units == 256 || (cost.loads, cost.bytes) == (loads, bytes), "the bound is reached");
    }
}

/// The host goes by way of blocked states and never arrives.
#[test]
fn a_context_that_is_read_costs_at_most_six_orders_and_five_fences() {
    let rounds = 60;
    // All devices at once, one after the other, or one alone.
    for (devices, one_by_one) in [(D, true), (D, false), (1, false)] {
        let units = rounds * (devices + 2);
        let mut guest = guest(units, devices, 0, 1);
        guest.manner(Manner { detours: u64::MAX, coarse: true, one_by_one, ..Manner::default() });
        guest.iommu.backend_mut().regions.insert(CONTEXTS, context(4));
        let inval = if devices == 1 { INVAL_ONE } else { INVAL_ALL };
        guest.repeat([inval, FENCE, inval, FENCE]);
        let cost = guest.cost("write", Guest::doorbell);
        let bound = limits(units).goes_on();
        // With room for one order every device that is named has a call of its own, and each is given twice.
        let (fences, invalidates) = if one_by_one { (5 * devices + 1, 6 * devices - 1) } else { (6, 5 * devices) };
        assert_eq!((cost.contexts, cost.fences), (6 * devices * rounds, fences * rounds), "T14");
        assert_eq!(cost.invalidates, 2 * invalidates * rounds, "T14");
        if one_by_one {
            // What is left is for devices that come and go.
            assert!(cost.contexts + 6 * D + 13 * D >= bound.contexts, "the bound is reached");
            assert!(cost.fences + 21 + 14 * D + 3 >= bound.fences, "the bound is reached");
            assert!(10 * cost.invalidates >= 9 * bound.invalidates, "the bound says something");
            assert!(3 * cost.busy >= bound.busy, "the bound says something");
        }
    }
}

/// A vCPU moves the guest's contexts, none of which is valid, while they are read.
#[test]
fn a_page_that_is_watched_in_vain_costs_a_unit() {
    let units = 32;
    let mut guest = guest(units, 1, 0, 7);
    guest.manner(Manner { moves: true, narrow: true, ..Manner::default() });
    guest.iommu.backend_mut().regions.remove(&COMMANDS);
    let cost = guest.cost("write", Guest::doorbell);
    assert_eq!((cost.loads, cost.watches), (3 * units + 2, 2 * units), "T14: the bound of loads is reached");
    // Each device at its worst, besides.
    assert_eq!(limits(units).goes_on().watches, 2 * units + D);
}

#[test]
fn an_ats_invalidation_is_a_request_and_what_devices_keep_two_more() {
    let units = 32;
    let mut guest = guest(units, D, 0, 9);
    guest.park();
    guest.fill([AtsCommand::to(0).inval(0), AtsCommand::to(1).inval(0)].repeat(2).try_into().unwrap());
    let cost = guest.cost("invalidate_gpa", |guest| guest.call("invalidate_gpa", 0));
    assert_eq!(cost.requests, units + 2 * D, "T14: the bound is reached");
    assert!(cost.fences >= units, "each to another device than the last takes a fence");
}

#[test]
fn a_page_response_takes_a_group_that_waits_for_it() {
    let mut guest = guest(32, 1, 0, 10);
    let _ = guest.iommu.report_page_request(guest.attached[0].unwrap(), &page(0));
    for group in 1..=GROUPS as u32 {
        let _ = guest.iommu.report_page_request(guest.attached[0].unwrap(), &page(group));
    }
    guest.fill([0, 1, 2, 3].map(|group| AtsCommand::to(0).prgr(group, 0)));
    let cost = guest.cost("write", Guest::doorbell);
    assert_eq!(cost.responses, GROUPS as u64, "T14: the bound is reached");
}

fn page(group: u32) -> PageRequest {
    PageRequest::write(Iova::new(0x5000), Prgi::truncate(group))
}

#[test]
fn dma_of_emulated_devices_is_asked_for_once_a_fence_and_told_once_a_command() {
    let units = 32;
    let mut guest = guest(units, 1, 1, 3);
    let device = guest.attached[4].unwrap();
    assert!(guest.iommu.translate(&Request::write(device, Iova::new(0))).is_ok());
    // A fence that waits for an answer of the device, which shutting down does without.
    guest.fill([AtsCommand::to(4).inval(0), command(FENCE), command(FENCE), command(FENCE)]);
    guest.store(register::CQT, 2);
    guest.repeat([FENCE; 4]);
    guest.store(register::CQT, 500);
    let cost = guest.cost("shutdown", |guest| guest.call("shutdown", 0));
    assert_eq!((cost.drains, cost.queries), (units + 2, units + 2), "T14: the bound is reached");

    let mut guest = self::guest(units, 1, 1, 3);
    guest.park();
    // None is one with the next.
    guest.repeat([IOTINVAL, IOTINVAL + 1, IOTINVAL, IOTINVAL + 1]);
    let cost = guest.cost("invalidate_gpa", |guest| guest.call("invalidate_gpa", 0));
    assert_eq!(cost.unmapped, units + 1, "T14: the bound is reached");
}

/// Each message is lost, and each record asks for another.
#[test]
fn a_lost_message_costs_a_record_and_each_cause_is_lost_once() {
    let mut guest = guest(4, 0, 1, 9);
    guest.repeat([ILLEGAL; 4]);
    guest.doorbell();
    guest.manner(Manner { full: 1, ..Manner::default() });
    let _ = guest.iommu.page_request(guest.attached[4].unwrap(), &page(0));
    guest.manner(Manner { mute: true, ..Manner::default() });
    // Both conditions hold still, and have their message anew.
    let cost = guest.cost("write", |guest| guest.store(register::IPSR, 0xf));
    assert_eq!((cost.stores, cost.posts), (3, 3), "T14: the bound is reached");

    // One that waited for its mask.
    let mut guest = self::guest(4, 0, 0, 9);
    guest.store(register::MSI_CFG_TBL + 12, 1);
    guest.repeat([ILLEGAL; 4]);
    assert_eq!(guest.cost("write", Guest::doorbell).posts, 0);
    guest.manner(Manner { mute: true, ..Manner::default() });
    let cost = guest.cost("write", |guest| guest.store(register::MSI_CFG_TBL + 12, 0));
    assert_eq!((cost.stores, cost.posts), (2, 2), "T14: it and the record's");

    // Fences that store, and then nothing to read.
    let units = 16;
    let mut guest = self::guest(units, 0, 0, 9);
    guest.manner(Manner { mute: true, ..Manner::default() });
    guest.repeat([FENCE; 4]);
    guest.iommu.backend_mut().end = Some(region(COMMANDS) + 16 * units);
    let cost = guest.cost("write", Guest::doorbell);
    assert_eq!((cost.stores, cost.posts), (2, units + 2), "T14: the bound is reached");

    let mut guest = Guest::new(Kind::Counting, false, Manner { mute: true, ..Manner::default() }, 4);
    guest.call("attach_emulated", 4);
    let request = Request::read(guest.attached[4].unwrap(), Iova::new(0));
    let cost = guest.cost("translate", |guest| ignore(guest.iommu.translate(&request)));
    assert_eq!((cost.stores, cost.posts), (3, 2), "T14: the bound is reached");

    let mut guest = Guest::new(Kind::Counting, false, Manner { mute: true, ..Manner::default() }, 4);
    guest.iommu.backend_mut().regions.insert(CONTEXTS, context(9));
    guest.call("attach_emulated", 4);
    let device = guest.attached[4].unwrap();
    let cost = guest.cost("page_request", |guest| ignore(guest.iommu.page_request(device, &page(0))));
    assert_eq!((cost.stores, cost.posts, cost.loads), (4, 3, 3), "T14: the bound is reached");
    let cost = guest.cost("add_cycles", |guest| guest.call("add_cycles", 0));
    assert_eq!(cost, Cost::default(), "what is pending is not said again");
}

#[test]
fn every_cause_has_a_wire_that_falls_and_one_that_rises() {
    let mut guest = Guest::new(Kind::Counting, true, Manner::default(), 4);
    guest.iommu.backend_mut().regions.insert(CONTEXTS, context(9));
    guest.call("attach_emulated", 4);
    let device = guest.attached[4].unwrap();
    let _ = guest.iommu.page_request(device, &page(0));
    guest.iommu.backend_mut().regions.insert(CONTEXTS, context(7));
    let _ = guest.iommu.translate(&Request::write(device, Iova::new(0)));
    guest.repeat([ILLEGAL; 4]);
    guest.doorbell();
    assert_eq!(guest.load(register::IPSR), 0xf);
    let cost = guest.cost("write", |guest| guest.store(register::ICVEC, 0x7654));
    assert_eq!(cost, Cost { wires: 8, ..Cost::default() }, "T14: the bound is reached");
}

#[test]
fn a_register_is_published_once_a_call_and_what_a_lost_message_changes_again() {
    let mut iommu = Iommu::new(Host::default());
    iommu.start(&Config::nested().with_mirror(true)).unwrap();
    assert_eq!(iommu.backend().cost.get(), limits(1).of("start").unwrap(), "T14: the bound is reached");

    let mut guest = guest(200, 1, 0, 1);
    guest.store(register::DDTP, 0);
    guest.manner(Manner { busy: 1, ..Manner::default() });
    guest.store(register::DDTP, region(0) >> 2 | 4);
    guest.manner(Manner { mute: true, ..Manner::default() });
    guest.fill([3, 3, 3, ILLEGAL].map(command));
    let cost = guest.cost("write", Guest::doorbell);
    assert_eq!((cost.publishes, cost.posts, cost.stores), (9, 2, 2), "T14: the bound is reached");
    let cost = guest.cost("reset", |guest| guest.call("reset", 0));
    assert_eq!(cost.publishes, WORDS, "T14");
}

#[test]
fn a_device_that_leaves_is_released_once() {
    let mut guest = guest(32, D, 0, 9);
    let cost = guest.cost("shutdown", |guest| guest.call("shutdown", 0));
    assert_eq!((cost.releases, cost.requests, cost.contexts), (D, 2 * D, 2 * D), "T14");
    assert_eq!(guest.iommu.progress(), Progress::Idle);
    let policy = DevicePolicy::default();
    let cost = guest.cost("attach", |guest| ignore(guest.iommu.attach(id(0), 0, policy)));
    assert_eq!(cost.adopts, 1, "T14: the bound is reached");
}

/// A supervisor's access with a process id is refused, and the guest's context has changed since.
#[test]
fn a_fault_costs_two_ways_through_tables_before_it_is_judged() {
    let mut guest = guest(32, 1, 0, 2);
    let supervised = [1 | 1 << 1, 8 << 60].repeat(4).try_into().unwrap();
    guest.iommu.backend_mut().regions.insert(12, supervised);
    let mut changed = context(2);
    changed[3] = changed[3] & !0xfff | region(11) >> 12;
    guest.iommu.backend_mut().regions.insert(CONTEXTS, changed);
    let fault = HostFault::new(Cause::TransactionTypeDisallowed, TransactionType::UntranslatedRead, Iova::new(0));
    let fault = fault.with_process(ProcessId::truncate(1), true);
    let device = guest.attached[0].unwrap();
    let cost = guest.cost("report_fault", |guest| ignore(guest.iommu.report_fault(device, &fault)));
    // And the directory once more.
    assert_eq!((cost.loads, cost.bytes), (6 + 3, 112 + 80), "T14: the bound of the judgement is reached");
}

#[test]
fn a_page_request_costs_one_translation_and_the_directory_once_more() {
    let mut guest = guest(32, 1, 0, 8);
    let root = |number: u64| 10 << 60 | region(number) >> 12;
    let tables = (13..17).map(|number| (number, table(number + 1)));
    guest.iommu.backend_mut().regions.extend(tables);
    guest.iommu.backend_mut().regions.insert(17, [0; 8]);
    guest.iommu.backend_mut().regions.insert(12, [1, root(13)].repeat(4).try_into().unwrap());
    let request = page(1).with_process(ProcessId::truncate(1), false);
    let device = guest.attached[0].unwrap();
    let cost = guest.cost("report_page_request", |guest| ignore(guest.iommu.report_page_request(device, &request)));
    assert_eq!((cost.loads, cost.bytes, cost.stores), (14, 232, 1), "T14: the bound is reached");
    let cost = guest.cost("invalidate_gpa", |guest| ignore(guest.iommu.invalidate_gpa(Gpa::new(0)..=Gpa::new(0))));
    assert_eq!(cost.requests, 2, "T14");
}
