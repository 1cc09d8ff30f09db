//! Process directories of passthrough devices: hardware reads the guest's own, and is told what the guest says of them.

mod nesting_rig;

use nesting_rig::{FENCE, IOVA, Rig, id, pscid};
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, inval_pdt, register};
use riscv_viommu::mock::tables::{ProcessDirectory, tc};
use riscv_viommu::mock::{Hardware, Memory, Order};
use riscv_viommu::{
    AttachError, Attachment, Capabilities, Cause, Config, Context, Gpa, Gscid, HostCapabilities, HostFault, Iova,
    PhysicalIommu, Ppn, ProcessDirectoryMode, ProcessId, Processes, SecondStageFault, TransactionType, Width,
};

fn process(number: u32) -> ProcessId {
    ProcessId::truncate(number)
}

/// Hardware with these formats of process directories, in the order PD8, PD17, PD20.
fn host([pd8, pd17, pd20]: [bool; 3]) -> HostCapabilities {
    let host = Hardware::default().vm(Gscid::truncate(9), &Memory::new()).capabilities();
    having(host, host.capabilities.with_pd8(pd8).with_pd17(pd17).with_pd20(pd20))
}

/// The host with another register.
fn having(mut host: HostCapabilities, capabilities: Capabilities) -> HostCapabilities {
    host.capabilities = capabilities;
    host
}

/// A context with a process directory of so many levels, and more bits of `tc`.
fn context(directory: &ProcessDirectory, bits: u64) -> [u64; 4] {
    [tc::V | tc::PDTV | bits, 0, 0, directory.pdtp()]
}

/// Device 0 with a directory of so many levels, in which process 5 has table A under PSCID 1.
fn rig(levels: u8, bits: u64) -> (Rig, ProcessDirectory, Attachment) {
    let mut rig: Rig = Rig::on(host([true; 3]), &Config::nested().with_big_endian(true));
    let directory = ProcessDirectory::new(&rig.memory, levels);
    let [_, _, ta, fsc] = rig.a.context(pscid(1));
    directory.set(process(5), [ta | 1, fsc]);
    rig.directory.set(id(0), &context(&directory, bits));
    let _ = rig.enter();
    let (attachment, _) = rig.attach(0);
    assert!(rig.fence());
    let _ = (rig.orders(), rig.memory.take_loads());
    (rig, directory, attachment)
}

mod contexts {
    use super::*;

    #[test]
    fn a_directory_goes_to_hardware_as_it_is_and_unread() {
        let bits = [(0, false, false, false), (tc::DPE, true, false, false), (tc::SADE | tc::SBE, false, true, true)];
        for mode in [ProcessDirectoryMode::Pd8, ProcessDirectoryMode::Pd17, ProcessDirectoryMode::Pd20] {
            for (bits, dpe, sade, sbe) in bits {
                let mut rig: Rig = Rig::on(host([true; 3]), &Config::nested().with_big_endian(true));
                let root = Gpa::new(0x1234_5000);
                let fsc = u64::from(mode.encoding()) << 60 | root.get() >> 12;
                rig.directory.set(id(0), &[tc::V | tc::PDTV | bits, 0, 0x7_7000, fsc]);
                let _ = rig.enter();
                let _ = rig.attach(0);
                let set = rig.physical.take_orders().into_iter().filter_map(|order| match order {
                    Order::SetContext(_, context, _) if context.is_open() => Some(context),
                    _ => None,
                });
                let root = Ppn::truncate(0x1_2345);
                let mut expected = Processes::new(mode, root);
                (expected.dpe, expected.sade, expected.sbe) = (dpe, sade, sbe);
                assert_eq!(set.collect::<Vec<_>>(), [Context::Processes(expected)], "MRG-06, MRG-15");
                assert!(!rig.memory.take_loads().iter().any(|(at, _)| at.get() >> 12 == 0x1_2345), "MRG-15");
            }
        }
    }

    #[test]
    fn formats_are_offered_as_the_configuration_and_the_host_have_them() {
        let offer = |all: Capabilities| [all.pd8(), all.pd17(), all.pd20()];
        for bits in 0..8 {
            let has = [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
            let rig: Rig = Rig::on(host(has), &Config::nested());
            let shown = Capabilities::from_bits(rig.iommu.read(register::CAPABILITIES, Width::U64));
            assert_eq!(offer(shown), has, "MRG-12");
        }
        // Hardware would take Sv57 in a process context, whatever the guest was told.
        let all = host([true; 3]).capabilities;
        let without = Config::nested().with_capabilities(all.with_sv57(false));
        let rig: Rig = Rig::on(host([true; 3]), &without);
        let shown = Capabilities::from_bits(rig.iommu.read(register::CAPABILITIES, Width::U64));
        assert_eq!((shown.sv48(), shown.sv57(), offer(shown)), (true, false, [false; 3]), "MRG-12");
    }

    #[test]
    fn a_device_behind_an_iommu_that_differs_is_not_taken() {
        let all = host([true; 3]);
        let lesser = |capabilities| having(all, capabilities);
        for (own, lacks) in [
            (lesser(all.capabilities.with_pd8(false)), Some("PD8")),
            (lesser(all.capabilities.with_pd17(false)), Some("PD17")),
            (lesser(all.capabilities.with_pd20(false)), Some("PD20")),
            (all, None),
        ] {
            let mut rig: Rig = Rig::on(all, &Config::nested());
            rig.physical.hardware().set_capabilities_of(rig.device(0), own);
            let refused = rig.try_attach(0).err();
            assert_eq!(refused, lacks.map(AttachError::Capability), "MRG-12");
        }
        // More schemes than promised are as bad, where processes are.
        let sv48 = lesser(all.capabilities.with_sv57(false));
        for (host, refused) in [(sv48, Some(AttachError::Capability("Sv57"))), (all, None)] {
            let mut rig: Rig = Rig::on(host, &Config::nested());
            rig.physical.hardware().set_capabilities_of(rig.device(0), all);
            assert_eq!(rig.try_attach(0).err(), refused, "MRG-12");
        }
        let without = host([false; 3]).capabilities.with_sv57(false);
        let mut rig: Rig = Rig::on(lesser(without), &Config::nested());
        rig.physical.hardware().set_capabilities_of(rig.device(0), all);
        assert!(rig.try_attach(0).is_ok(), "MRG-12: without processes more may be there");
    }

    #[test]
    fn a_format_that_was_not_offered_blocks_the_device() {
        for (levels, offered) in [(1, true), (2, false), (3, false)] {
            let mut rig: Rig = Rig::on(host([true, false, false]), &Config::nested());
            let directory = ProcessDirectory::new(&rig.memory, levels);
            rig.directory.set(id(0), &context(&directory, 0));
            let _ = rig.enter();
            let _ = rig.attach(0);
            let opened = rig.orders().iter().any(|order| order == "0=Pd8");
            assert_eq!(opened, offered, "DCK-08, VC-50");
        }
    }

    #[test]
    fn a_context_that_is_the_same_is_invalidated_and_not_written() {
        let (mut rig, _, _) = rig(3, 0);
        let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv D0", "fence"], "VC-51");
    }
}

mod invalidations {
    use super::*;

    #[test]
    fn of_a_process_go_to_the_guests_own_device_and_to_no_other() {
        let (mut rig, _, _) = rig(3, 0);
        let _ = rig.ring([inval_pdt(id(0), process(0xa_bcde)), inval_pdt(id(1), process(5))]);
        assert!(rig.orders().is_empty(), "VC-62: held until a fence");
        let unread = rig.memory.take_loads().len() <= 2;
        assert!(unread, "VC-83: the commands, and nothing of the directory");
        rig.physical.set_pending(true);
        assert!(!rig.fence(), "VC-62");
        assert_eq!(rig.orders(), ["inv P0:703710", "fence.."], "VC-60, VC-61");
        let _ = rig.complete();
        assert!(rig.passed());
    }

    #[test]
    fn of_a_process_that_the_directory_does_not_take_are_dropped() {
        for (levels, widest) in [(1, 0xff), (2, 0x1_ffff), (3, 0xf_ffff)] {
            let (mut rig, _, _) = rig(levels, 0);
            let _ = rig.ring([inval_pdt(id(0), process(widest)), FENCE.encode()]);
            assert_eq!(rig.orders(), [format!("inv P0:{widest}"), "fence".into()], "VC-61");
            if levels < 3 {
                let _ = rig.ring([inval_pdt(id(0), process(widest + 1)), FENCE.encode()]);
                assert_eq!(rig.orders(), ["fence"], "VC-61");
            }
        }
    }

    #[test]
    fn of_a_process_find_nothing_where_the_device_has_no_directory() {
        let mut rig: Rig = Rig::on(host([true; 3]), &Config::nested()).translating();
        let _ = rig.ring([inval_pdt(id(0), process(5)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["fence"], "VC-60");
        // Not on its way out either: the order for the device comes with the change.
        let (mut rig, _, _) = self::rig(1, 0);
        rig.directory.set(id(0), &rig.a.context(pscid(1)));
        let _ = rig.ring([inval_ddt(Some(id(0))), inval_pdt(id(0), process(5)), FENCE.encode()]);
        let orders = rig.orders();
        let last = orders.iter().rposition(|order| order.contains("D0"));
        assert!(last > orders.iter().position(|order| order == "0=A/1"), "VC-50, VC-60: {orders:?}");
    }

    #[test]
    fn of_translations_stay_behind_that_of_the_process() {
        let (mut rig, _, _) = rig(1, 0);
        let page = |iova: u64| Iotinval::ALL.address(Iova::new(iova)).vma();
        let _ = rig.ring([page(0x1000), inval_pdt(id(0), process(5)), page(0x1000), page(0x2000), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv 1-1 P0:5 1-2", "fence"], "SWG-06, VC-60");
        let space = Iotinval::ALL.pscid(pscid(1)).vma();
        let _ = rig.ring([space, inval_pdt(id(0), process(5)), space, inval_pdt(id(0), process(5)), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv S1 P0:5 S1", "fence"], "SWG-06");
        // That of the device has all of it.
        let _ = rig.ring([inval_pdt(id(0), process(5)), inval_ddt(Some(id(0))), FENCE.encode()]);
        assert_eq!(rig.orders(), ["inv D0", "fence"], "DIR-02");
    }

    #[test]
    fn are_not_left_out_after_the_context_changed_from_one_directory_to_another() {
        let (mut rig, first, _) = rig(1, 0);
        let second = ProcessDirectory::new(&rig.memory, 1);
        for directory in [&second, &first] {
            rig.directory.set(id(0), &context(directory, 0));
            let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
            let _ = rig.orders();
            let _ = rig.ring([inval_pdt(id(0), process(7)), FENCE.encode()]);
            assert_eq!(rig.orders(), ["inv P0:7", "fence"], "VC-60");
        }
    }
}

mod faults {
    use super::*;
    use Cause::{PdtDataCorruption, PdtLoadAccessFault, PdtMisconfigured, PdtNotValid, ReadGuestPageFault};
    use TransactionType::{UntranslatedRead as Read, UntranslatedWrite as Write};

    /// The cause the guest is shown.
    fn shown(rig: &mut Rig, attachment: Attachment, fault: &HostFault) -> Option<u64> {
        let _ = rig.iommu.report_fault(attachment, fault);
        rig.records().first().map(|[head, ..]| head & 0xfff)
    }

    #[test]
    fn in_the_directory_are_the_guests_own() {
        for (cause, code) in
            [(PdtLoadAccessFault, 265), (PdtNotValid, 266), (PdtMisconfigured, 267), (PdtDataCorruption, 269)]
        {
            let (mut rig, _, attachment) = rig(2, 0);
            let fault = HostFault::new(cause, Read, IOVA).with_process(process(5), false);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(code), "VT-03, MRG-15");
            assert!(rig.memory.take_loads().len() <= 1, "VT-03: as it is");
        }
    }

    #[test]
    fn of_the_hosts_second_stage_are_told_by_the_way_they_were_met_on() {
        let (rig, directory, _) = rig(3, 0);
        let non_leaf = |level| directory.non_leaf_address(process(5), level);
        let table = rig.a.entry_address(IOVA, 1);
        let cases = [
            (directory.entry_address(process(5)), true, 265),
            (non_leaf(1), true, 265),
            (non_leaf(2), true, 265),
            (table, true, 7),
            (directory.entry_address(process(5)), false, 7),
            (Gpa::new(0x9999_0000), true, 7),
        ];
        for (at, implicit, code) in cases {
            let (mut rig, same, attachment) = self::rig(3, 0);
            assert_eq!(same.root(), directory.root());
            let fault = HostFault::new(Cause::WriteGuestPageFault, Write, IOVA).with_process(process(5), false);
            let fault = fault.with_second_stage(SecondStageFault::new(at).with_implicit(implicit));
            assert_eq!(shown(&mut rig, attachment, &fault), Some(code), "VT-05: {at}, implicit {implicit}");
            assert!(rig.memory.take_loads().len() <= 3 + 1, "VT-05, T22: one way");
        }
    }

    #[test]
    fn of_the_second_stage_without_a_word_where_are_told_by_what_the_vm_can_not_read() {
        for (unreadable, code) in [(false, 5), (true, 265)] {
            let (mut rig, directory, attachment) = rig(2, 0);
            if unreadable {
                let pdte = directory.non_leaf_address(process(5), 1);
                rig.memory.write(pdte, 0x7fff_ffff << 10 | 1);
            }
            let fault = HostFault::new(ReadGuestPageFault, Read, IOVA).with_process(process(5), false);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(code), "VT-05, FR-08");
            // The host's MSI page tables are on the way to no process context.
            let fault = HostFault::new(Cause::MsiPteNotValid, Read, IOVA).with_process(process(5), false);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(5), "VT-06");
        }
    }

    #[test]
    fn of_requests_without_a_process_go_the_way_of_process_0_where_that_is_the_default() {
        for (bits, code) in [(0, 5), (tc::DPE, 265)] {
            let (mut rig, directory, attachment) = rig(1, bits);
            let fault = HostFault::new(ReadGuestPageFault, Read, IOVA);
            let hole = SecondStageFault::new(directory.entry_address(process(0))).with_implicit(true);
            assert_eq!(shown(&mut rig, attachment, &fault.with_second_stage(hole)), Some(code), "VT-05, TR-14");
        }
    }

    #[test]
    fn of_supervisor_requests_that_the_process_context_does_not_enable_are_260() {
        // ENS is bit 1 of the process context's ta.
        for (ens, code) in [(0, 260), (2, 5)] {
            let (mut rig, directory, attachment) = rig(1, 0);
            let [_, _, ta, fsc] = rig.a.context(pscid(1));
            directory.set(process(5), [ta | 1 | ens, fsc]);
            let fault = HostFault::new(Cause::TransactionTypeDisallowed, Read, IOVA).with_process(process(5), true);
            assert_eq!(shown(&mut rig, attachment, &fault), Some(code), "VT-04, TR-16");
            let of_a_user = fault.with_process(process(5), false);
            assert_eq!(shown(&mut rig, attachment, &of_a_user), Some(5), "VT-04, TR-16: ENS is nothing to a user");
        }
    }
}
