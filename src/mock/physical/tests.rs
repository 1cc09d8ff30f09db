//! That each detector fires, and stays quiet where nothing is wrong.

mod ats;
mod contract;
mod processes;

use super::*;
use crate::addr::{Gpa, Iova, Ppn};
use crate::backend::{Ats, FirstStage, Pages, Processes, ResponseCode};
use crate::fault::{Cause, TransactionType};
use crate::id::{FirstStageMode, Prgi, ProcessDirectoryMode, ProcessId, Pscid, SecondStageMode};
use crate::mock::Memory;
use crate::mock::tables::{FirstStageTable, PageSize, ProcessDirectory, process_ta, pte};
use crate::pageq::PageRequest;
use crate::regs::Capabilities;

const DEVICE: PhysicalDevice = PhysicalDevice(0x10);
const OTHER: PhysicalDevice = PhysicalDevice(0x20);
const IOVA: Iova = Iova::new(0x4020_1000);
const PAGE: Gpa = Gpa::new(0x9000_0000);

/// A VM with one device and a first stage that maps [`IOVA`] to [`PAGE`].
struct Vm {
    memory: Memory,
    table: FirstStageTable,
    physical: Physical,
    ticket: u64,
}

impl Vm {
    fn new(hardware: &Hardware, gscid: u32) -> Self {
        let memory = Memory::new();
        let table = FirstStageTable::new(&memory, FirstStageMode::Sv39);
        table.map(IOVA, PAGE, PageSize::K4, pte::RW);
        let physical = hardware.vm(Gscid::new(gscid).unwrap(), &memory);
        Self { memory, table, physical, ticket: 0 }
    }

    /// With `device` adopted, and translating through the table.
    fn translating(hardware: &Hardware, gscid: u32, device: PhysicalDevice) -> Self {
        let mut vm = Self::new(hardware, gscid);
        vm.adopt(device);
        let context = vm.context(1);
        vm.switch(device, context);
        vm
    }

    fn adopt(&mut self, device: PhysicalDevice) {
        self.physical.adopt(device).unwrap();
        self.switch(device, Context::Blocked);
    }

    fn context(&self, pscid: u32) -> Context {
        Self::using(&self.table, pscid)
    }

    /// The first stage with PSCID 1, and what a device may do besides.
    fn with_ats(&self, ats: Ats) -> Context {
        let Context::FirstStage(stage) = self.context(1) else { unreachable!() };
        Context::FirstStage(FirstStage { ats, ..stage })
    }

    fn using(table: &FirstStageTable, pscid: u32) -> Context {
        Context::FirstStage(FirstStage {
            mode: FirstStageMode::Sv39,
            root: Ppn::truncate(table.root().get() >> 12),
            pscid: Pscid::new(pscid).unwrap(),
            sade: false,
            sbe: false,
            ats: Ats::Off,
        })
    }

    /// Changes the context as the crate does; how many calls it took.
    fn switch(&mut self, device: PhysicalDevice, context: Context) -> u32 {
        let called = |_: &u32| {
            let applied = self.physical.set_context(device, &context).unwrap();
            self.flush(Invalidation::Device(device));
            applied == Applied::Switched
        };
        (1..10).find(called).unwrap()
    }

    fn flush(&mut self, order: Invalidation<PhysicalDevice>) {
        self.physical.invalidate(&[order]).unwrap();
        assert_eq!(self.fence(), Ok(Completion::Done));
    }

    fn fence(&mut self) -> Result<Completion, OrderError> {
        self.ticket = self.ticket.wrapping_add(1);
        self.physical.fence(Ticket::new(self.ticket), FenceScope::ALL)
    }

    fn read(&self) -> Dma {
        self.physical.hardware().dma(DEVICE, None, IOVA, false)
    }
}

/// A page request that waits for an answer, and the answer.
fn request() -> PageRequest {
    PageRequest::write(IOVA, Prgi::truncate(7))
}

fn success() -> PageResponse {
    PageResponse { process: None, group: Prgi::truncate(7), code: ResponseCode::Success }
}

fn one_page(pscid: Option<u32>, non_leaf: bool) -> Invalidation<PhysicalDevice> {
    let pscid = pscid.map(|pscid| Pscid::new(pscid).unwrap());
    Invalidation::Pages(Pages { non_leaf, ..Pages::new(IOVA, IOVA, pscid) })
}

mod caches {
    use super::*;

    #[test]
    fn a_translation_stays_until_a_fence_after_its_invalidation_completes() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        assert_eq!(vm.read().access, Access::Translated(PAGE));
        assert!(!vm.read().stale);
        vm.table.map(IOVA, Gpa::new(0xa000_0000), PageSize::K4, pte::RW);
        assert!(vm.read().stale, "nothing was ordered");
        vm.physical.invalidate(&[one_page(Some(1), false)]).unwrap();
        assert!(vm.read().stale, "no fence was ordered");
        vm.physical.set_pending(true);
        assert_eq!(vm.fence(), Ok(Completion::Pending));
        assert!(vm.read().stale, "the fence is not complete");
        assert_eq!(vm.physical.complete_all(), [Ticket::new(vm.ticket)]);
        let now = vm.read();
        assert_eq!((now.access, now.stale), (Access::Translated(Gpa::new(0xa000_0000)), false));
    }

    #[test]
    fn an_invalidation_of_another_page_or_space_does_not_help() {
        for (order, helps) in [
            (one_page(Some(2), false), false),
            (one_page(Some(1), false), true),
            (one_page(None, false), true),
            (Invalidation::Pages(Pages::new(Iova::new(0), Iova::new(0x4020_0000), None)), false),
            (Invalidation::Pages(Pages::new(Iova::new(0), Iova::new(u64::MAX), None)), true),
            (Invalidation::AddressSpace(Pscid::new(2).unwrap()), false),
            (Invalidation::AddressSpace(Pscid::new(1).unwrap()), true),
            (Invalidation::FirstStage, true),
            (Invalidation::Everything, true),
            (Invalidation::Device(DEVICE), true),
        ] {
            let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
            assert!(!vm.read().stale);
            vm.table.unmap(IOVA, PageSize::K4);
            vm.flush(order);
            assert_eq!(vm.read().stale, !helps, "{order:?}");
        }
    }

    #[test]
    fn a_table_stays_unless_non_leaf_entries_are_dropped() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        assert!(!vm.read().stale);
        let other = vm.memory.allocate(1);
        vm.memory.write(vm.table.entry_address(IOVA, 1), other.get() >> 2 | pte::V);
        vm.flush(one_page(Some(1), false));
        assert!(vm.read().stale, "VMA-12");
        vm.flush(one_page(Some(1), true));
        assert_eq!(vm.read().access, Access::Faulted(Cause::ReadPageFault), "VMA-13");
    }

    #[test]
    fn a_global_translation_is_spared_where_an_address_space_is_named() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        vm.table.map(IOVA, PAGE, PageSize::K4, pte::RW | pte::G);
        assert!(!vm.read().stale);
        vm.table.unmap(IOVA, PageSize::K4);
        vm.flush(one_page(Some(1), true));
        vm.flush(Invalidation::AddressSpace(Pscid::new(1).unwrap()));
        assert!(vm.read().stale, "VMA-06, VMA-08");
        vm.flush(one_page(None, false));
        assert!(!vm.read().stale, "VMA-07");
    }

    #[test]
    fn a_context_stays_until_its_invalidation() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        assert!(!vm.read().stale);
        let old = vm.context(1);
        vm.physical.set_context(DEVICE, &Context::Blocked).unwrap();
        let before = vm.read();
        assert_eq!((before.context, before.stale), (Some(old), true));
        vm.flush(Invalidation::Device(DEVICE));
        let after = vm.read();
        assert_eq!((after.access, after.context, after.stale), (Access::Blocked, Some(Context::Blocked), false));
    }

    #[test]
    fn one_vm_never_drops_what_is_anothers() {
        let hardware = Hardware::default();
        let mut first = Vm::translating(&hardware, 1, DEVICE);
        let mut second = Vm::translating(&hardware, 2, OTHER);
        assert!(!first.read().stale);
        first.table.unmap(IOVA, PageSize::K4);
        second.flush(Invalidation::Everything);
        assert!(first.read().stale);
        first.flush(Invalidation::Everything);
        assert!(!first.read().stale);
    }
}

mod accesses {
    use super::*;

    fn ask(vm: &Vm, iova: u64, write: bool) -> Access {
        vm.physical.hardware().dma(DEVICE, None, Iova::new(iova), write).access
    }

    #[test]
    fn are_walked_by_the_rules() {
        let vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        let (table, fault) = (&vm.table, |cause| Access::Faulted(cause));
        table.map(Iova::new(0x8000_0000), Gpa::new(0x40_0000_0000), PageSize::G1, pte::RO);
        assert_eq!(ask(&vm, 0x8123_4567, false), Access::Translated(Gpa::new(0x40_0123_4567)));
        assert_eq!(ask(&vm, 0x8123_4567, true), fault(Cause::WritePageFault));
        table.map(Iova::new(0xc000_0000), Gpa::new(0x20_0000), PageSize::M2, pte::RW & !pte::U);
        assert_eq!(ask(&vm, 0xc000_0000, false), fault(Cause::ReadPageFault), "S1-11");
        table.map(Iova::new(0xc020_0000), Gpa::new(0x20_0000), PageSize::M2, pte::RW & !pte::D);
        assert_eq!(ask(&vm, 0xc020_0000, true), fault(Cause::WritePageFault), "AD-01");
        vm.memory.write(table.entry_address(Iova::new(0xc040_0000), 1), 0x201 << 10 | pte::RW);
        assert_eq!(ask(&vm, 0xc040_0000, false), fault(Cause::ReadPageFault), "PTE-08");
        assert_eq!(ask(&vm, 1 << 38, false), fault(Cause::ReadPageFault), "S1-04");
        vm.memory.unmap(table.root(), 0x1000);
        assert_eq!(ask(&vm, 0x7f_0000_0000, true), fault(Cause::WritePageFault), "S1-04 comes first");
        assert_eq!(ask(&vm, 0x1_0000_0000, true), fault(Cause::WriteAccessFault), "S1-08");
    }

    #[test]
    fn set_accessed_and_dirty_where_the_guest_wants_it() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        vm.table.map(IOVA, PAGE, PageSize::K4, pte::RW & !(pte::A | pte::D));
        let Context::FirstStage(stage) = vm.context(1) else { unreachable!() };
        vm.switch(DEVICE, Context::FirstStage(FirstStage { sade: true, ..stage }));
        let pte = vm.table.entry_address(IOVA, 0);
        assert_eq!(ask(&vm, IOVA.get(), false), Access::Translated(PAGE));
        assert_eq!(vm.memory.read(pte) & pte::RW, pte::RW & !pte::D);
        assert_eq!(ask(&vm, IOVA.get(), true), Access::Translated(PAGE), "CA-08");
        assert_eq!(vm.memory.read(pte) & pte::RW, pte::RW);
    }

    #[test]
    fn with_a_process_id_need_a_context_for_them() {
        let mut vm = Vm::new(&Hardware::default(), 1);
        vm.adopt(DEVICE);
        let process = ProcessId::new(0).ok();
        for (process_ids, access) in [
            (true, Access::Translated(Gpa::new(IOVA.get()))),
            (false, Access::Faulted(Cause::TransactionTypeDisallowed)),
        ] {
            vm.switch(DEVICE, Context::SecondStageOnly { process_ids, ats: Ats::Off });
            assert_eq!(vm.physical.hardware().dma(DEVICE, process, IOVA, false).access, access, "TR-09");
        }
        let faults = vm.physical.hardware().take_faults();
        assert_eq!(faults.iter().map(|(_, fault)| fault.cause).collect::<Vec<_>>(), [Cause::TransactionTypeDisallowed]);
    }
}

mod strategies {
    use super::*;

    /// Goes from one first stage to another under traffic: calls, mixtures, Response Failures, lost faults.
    fn rewrite(strategy: Strategy) -> (u32, u64, u64, u64) {
        let hardware = Hardware::default();
        let mut bystander = Vm::new(&hardware, 2);
        bystander.adopt(OTHER);
        let mut vm = Vm::translating(&hardware, 1, DEVICE);
        let other = FirstStageTable::new(&vm.memory, FirstStageMode::Sv39);
        hardware.set_strategy(strategy);
        hardware.set_traffic(Some(Traffic::new(IOVA).with_bystander(OTHER, IOVA)));
        let calls = vm.switch(DEVICE, Vm::using(&other, 2));
        assert_eq!(hardware.context(DEVICE), Some(Vm::using(&other, 2)));
        (calls, hardware.mixtures(), hardware.response_failures(), hardware.lost_faults(OTHER))
    }

    #[test]
    fn through_blocked_contexts_harm_nobody() {
        assert_eq!(rewrite(Strategy::Switch), (1, 0, 0, 0));
        assert_eq!(rewrite(Strategy::ThroughBlocked), (2, 0, 0, 0));
        assert_eq!(rewrite(Strategy::Stepwise), (3, 0, 0, 0));
    }

    #[test]
    fn through_an_invalid_context_harms_the_function_and_other_tenants() {
        let (_, mixtures, response_failures, lost) = rewrite(Strategy::Careless);
        assert_eq!(mixtures, 0);
        assert!(response_failures > 0 && lost > 0, "UPD-06");
    }

    #[test]
    fn stores_under_a_live_context_mix_two() {
        assert!(rewrite(Strategy::Mixed).1 > 0, "UPD-02");
    }

    #[test]
    fn a_blocked_context_that_is_still_draining_is_not_built_upon() {
        let mut vm = Vm::translating(&Hardware::default(), 1, DEVICE);
        let other = FirstStageTable::new(&vm.memory, FirstStageMode::Sv39);
        vm.physical.hardware().set_strategy(Strategy::Stepwise);
        assert_eq!(vm.physical.set_context(DEVICE, &Context::Blocked), Ok(Applied::Switched));
        let new = Vm::using(&other, 1);
        assert_eq!(vm.physical.set_context(DEVICE, &new), Ok(Applied::Blocked), "no fence since");
        vm.flush(Invalidation::Device(DEVICE));
        assert_eq!(vm.switch(DEVICE, new), 2);
        assert_eq!(vm.physical.hardware().mixtures(), 0);
    }
}
