//! The fault queue as a guest sees it: which faults become records, how a record is laid out, and what happens when one
//! can not be written.
//!
//! Rule IDs are those of the rules of registers, queues and interrupts.

#![expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "small numbers, and a failure is a finding")]

mod common;

use common::{DEVICE, FAULTS, ILLEGAL, Rig};
use proptest::prelude::*;
use proptest::sample::select;
use riscv_viommu::mock::guest::register::{
    CMD_ILL, CQCSR, CQH, CQT, DDTP, ENABLE, FCTL, FIP, FQB, FQCSR, FQH, FQOF, FQT, INTERRUPT_ENABLE, IPSR,
    MEMORY_FAULT, ON,
};
use riscv_viommu::mock::guest::{FaultRing, Iofence};
use riscv_viommu::mock::{Event, tables};
use riscv_viommu::{
    Attachment, Cause, Config, DeviceId, FaultRecord, FenceOutcome, Gpa, HostFault, InterruptKinds, Iova, MemoryFault,
    ProcessId, Progress, Quirks, TransactionType, Width,
};

/// `device_id` `0x12_3456`, an untranslated read without `process_id`, cause 13.
const PAGE_FAULT: u64 = 0x1234_5608_0000_000d;

/// A guest with an attached device in Bare mode.
struct Guest {
    rig: Rig,
    faults: FaultRing,
    attachment: Attachment,
}

impl Guest {
    /// With a fault queue of 2^`log2` entries that is on.
    fn new(log2: u8) -> Self {
        Self::of(Config::nested(), log2)
    }

    fn of(config: Config, log2: u8) -> Self {
        let mut rig = Rig::start(config.with_reset_to_bare(true), InterruptKinds::Wired);
        let attachment = rig.attach();
        let faults = rig.fault_queue(log2, ENABLE);
        rig.forget_accesses();
        Self { rig, faults, attachment }
    }

    fn read(&self, offset: u64) -> u64 {
        self.rig.read(offset)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.rig.write(offset, value);
    }

    fn report(&mut self, fault: &HostFault) {
        let _ = self.rig.iommu.report_fault(self.attachment, fault);
    }

    /// A read faults in this page.
    fn fault(&mut self, page: u64) {
        self.report(&HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(page << 12)));
    }

    /// The records between head and tail; they count as read.
    fn records(&mut self) -> Vec<[u64; 4]> {
        let records = self.faults.take(self.read(FQT));
        let head = self.faults.head();
        self.write(FQH, head.into());
        records
    }

    /// The pages of the records between head and tail.
    fn pages(&mut self) -> Vec<u64> {
        self.records().into_iter().map(|[_, _, iotval, _]| iotval >> 12).collect()
    }

    /// Where records were stored since last asked.
    fn stores(&self) -> Vec<Gpa> {
        let store = |event| match event {
            Event::Store(at, _) => Some(at),
            _ => None,
        };
        self.rig.memory.take_events().into_iter().filter_map(store).collect()
    }

    /// `fqcsr` and `fqt`.
    fn state(&self) -> (u64, u64) {
        (self.read(FQCSR), self.read(FQT))
    }
}

fn process(id: u32) -> ProcessId {
    ProcessId::new(id).expect("20 bits")
}

// The record.

#[test]
fn a_record_is_laid_out_as_specified() {
    let read = |cause| HostFault::new(cause, TransactionType::UntranslatedRead, Iova::new(0xfedc_ba98_7654_3210));
    let page_fault = read(Cause::ReadPageFault);
    let mut privileged_without_process = page_fault;
    privileged_without_process.privileged = true;
    for (fault, head, rules) in [
        (page_fault, PAGE_FAULT, "FQ-20, FQ-22, FQ-24, FQ-25"),
        (page_fault.with_process(process(0xa_bcde), false), 0x1234_5609_abcd_e00d, "FQ-21, FQ-22"),
        (page_fault.with_process(process(0xf_ffff), true), 0x1234_560b_ffff_f00d, "FQ-21, FQ-23"),
        (page_fault.with_process(process(0), false), 0x1234_5609_0000_000d, "FQ-22: PASID 0 is one"),
        (privileged_without_process, PAGE_FAULT, "FQ-23, FQ-32"),
        (read(Cause::PtDataCorruption), 0x1234_5608_0000_0112, "FQ-20, FQ-C274"),
    ] {
        let mut guest = Guest::new(3);
        guest.rig.memory.write_words(FAULTS, &[u64::MAX; 8]);
        guest.report(&fault);
        let record = [head, 0, 0xfedc_ba98_7654_3210, 0];
        assert_eq!(guest.rig.memory.read_words(FAULTS, 8)[..4], record, "{rules}, FQ-26 to -29, FQ-53, FQ-60");
        assert_eq!(guest.rig.memory.read_words(FAULTS, 8)[4..], [u64::MAX; 4], "FQ-01: 32 bytes");
        assert_eq!(guest.state(), (ON | ENABLE, 1), "FQ-02");
    }
}

#[test]
fn every_transaction_type_has_its_code() {
    for (access, head, rule) in [
        (TransactionType::UntranslatedExecute, 0x1234_5604_0000_000d_u64, "FQ-34"),
        (TransactionType::UntranslatedRead, 0x1234_5608_0000_000d, "FQ-35"),
        (TransactionType::UntranslatedWrite, 0x1234_560c_0000_000d, "FQ-36"),
        (TransactionType::TranslatedExecute, 0x1234_5614_0000_000d, "FQ-38"),
        (TransactionType::TranslatedRead, 0x1234_5618_0000_000d, "FQ-39"),
        (TransactionType::TranslatedWrite, 0x1234_561c_0000_000d, "FQ-40"),
        (TransactionType::AtsTranslationRequest, 0x1234_5620_0000_000d, "FQ-41"),
        (TransactionType::MessageRequest, 0x1234_5624_0000_0104, "FQ-42"),
    ] {
        let mut guest = Guest::new(3);
        // A message goes through no tables: in Bare mode it is of a type that is disallowed.
        let is_message = access == TransactionType::MessageRequest;
        let cause = if is_message { Cause::TransactionTypeDisallowed } else { Cause::ReadPageFault };
        guest.report(&HostFault::new(cause, access, Iova::new(0x4)));
        assert_eq!(guest.records(), [[head, 0, 4, 0]], "ACC-03, {rule}, FQ-53, FQ-54");
    }
}

#[test]
fn every_cause_is_shown_as_the_guest_could_have_caused_it() {
    // Code, and what it is shown as for execute, read and write in Bare mode, where the guest has nothing that could be
    // wrong, unless the fault is of the tables or the process directory it had before; 0 where nothing is shown.
    let mut cases = vec![];
    cases.extend([1, 4, 5, 6, 7, 12, 13, 15, 265, 266, 267, 269, 274].map(|code| (code, [code; 3])));
    cases.extend([20, 21, 23, 261, 262, 263, 264, 270, 271].map(|code| (code, [1, 5, 7])));
    cases.extend([257, 258, 259, 260, 268].map(|code| (code, [1, 5, 7])));
    cases.extend([256, 272, 273].map(|code| (code, [0; 3])));
    assert_eq!(cases.len(), (0..4096).filter_map(Cause::decode).count(), "every cause, FQ-45, DISC-Q03");
    let accesses =
        [TransactionType::UntranslatedExecute, TransactionType::UntranslatedRead, TransactionType::UntranslatedWrite];
    for (code, shown) in cases {
        for (access, shown) in accesses.into_iter().zip(shown) {
            let mut guest = Guest::new(3);
            guest.report(&HostFault::new(Cause::decode(code).unwrap(), access, Iova::new(0x1000)));
            let head = 0x1234_5600_0000_0000 | u64::from(access.code()) << 34 | u64::from(shown);
            let expected = if shown == 0 { vec![] } else { vec![[head, 0, 0x1000, 0]] };
            assert_eq!(guest.records(), expected, "FQ-C{code:03}, FQ-48, FQ-52, VT-02 to -06: {access:?}");
        }
    }
}

#[test]
fn a_physical_record_keeps_nothing_of_the_host_but_the_transaction() {
    let mut guest = Guest::new(3);
    let head = 0xffff_ff0b_abcd_e015;
    let physical: FaultRecord = record([head, u64::MAX, 0x7000, 0x8000_1003]);
    let fault = HostFault::from_record(&physical, Quirks::default()).expect("a transaction");
    guest.report(&fault);
    assert_eq!(guest.records(), [[0x1234_560b_abcd_e005, 0, 0x7000, 0]], "FQ-26, FQ-27, FQ-52, FQ-60, T22");
}

fn record([head, custom, iotval, iotval2]: [u64; 4]) -> FaultRecord {
    FaultRecord { head: head.into(), custom, iotval, iotval2 }
}

#[test]
fn in_off_and_bare_the_guest_sees_what_its_mode_forbids() {
    let read = TransactionType::UntranslatedRead;
    let lookup = |access, iova| HostFault::new(Cause::TransactionTypeDisallowed, access, Iova::new(iova));
    let mut guest = Guest::new(3);
    guest.report(&lookup(TransactionType::TranslatedRead, 0x5000));
    guest.report(&lookup(TransactionType::AtsTranslationRequest, 0x5000));
    guest.report(&lookup(TransactionType::MessageRequest, 0x04));
    let expected = [
        [0x1234_5618_0000_0104, 0, 0x5000, 0],
        [0x1234_5620_0000_0104, 0, 0x5000, 0],
        [0x1234_5624_0000_0104, 0, 0x04, 0],
    ];
    assert_eq!(guest.records(), expected, "FQ-C260, REG-DDTP-16, FQ-54, PQ-11, PQ-28");
    guest.rig.write8(DDTP, 0);
    for cause in [Cause::TransactionTypeDisallowed, Cause::ReadGuestPageFault, Cause::DdtNotValid] {
        guest.report(&HostFault::new(cause, read, Iova::new(0x6000)));
        assert_eq!(guest.records(), [[0x1234_5608_0000_0100, 0, 0x6000, 0]], "FQ-C256, REG-DDTP-14, FQ-50");
    }
    // No blocked state has a page fault: it is one of the time before.
    guest.report(&HostFault::new(Cause::ReadPageFault, read, Iova::new(0x6000)));
    assert_eq!(guest.records(), [[0x1234_5608_0000_000d, 0, 0x6000, 0]], "VT-03");
}

// What stands for what (FQ-07).

#[test]
fn a_completed_fence_ends_what_a_record_stands_for() {
    let mut guest = Guest::new(3);
    guest.fault(1);
    guest.fault(1);
    assert_eq!(guest.rig.iommu.stats().faults_coalesced, 1);
    // Every directory written is fenced.
    guest.rig.write8(DDTP, 0);
    guest.rig.write8(DDTP, 1);
    guest.fault(1);
    assert_eq!(
        guest.rig.iommu.stats().faults_coalesced,
        1,
        "FQ-07, FR-12: the guest may have mended what the first was about"
    );
    assert_eq!(guest.records().len(), 2);
}

#[test]
fn a_guest_that_turns_its_interrupt_on_is_told_of_the_next_fault() {
    let mut guest = Guest::new(3);
    guest.fault(1);
    guest.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    guest.fault(1);
    assert_eq!(
        (guest.rig.read(IPSR) & FIP, guest.records().len()),
        (FIP, 2),
        "REG-IPSR-02: a record for the interrupt"
    );
}

// DTF.

/// What the guest's directory does to the device, and the cause it is shown.
type Directory = (&'static str, u64, fn(&Rig, &tables::Directory));

#[test]
fn dtf_hides_what_a_context_decides_and_nothing_before_it() {
    let device = DeviceId::new(DEVICE).unwrap();
    let dc = |directory: &tables::Directory, tc: u64| directory.set(DeviceId::truncate(DEVICE), &[tc, 0, 0, 0]);
    for dtf in [0, 1 << 4] {
        let reported: [Directory; 4] = [
            ("FQ-C257, no memory", 257, |rig, directory| {
                let at = directory.entry_address(DeviceId::truncate(DEVICE));
                rig.memory.fail(at, 32, MemoryFault::Access);
            }),
            ("FQ-C258, V = 0", 258, |_, directory| directory.invalidate(DeviceId::truncate(DEVICE))),
            ("FQ-C259, a reserved bit", 259, |rig, directory| {
                let at = directory.entry_address(DeviceId::truncate(DEVICE));
                rig.memory.write(at, rig.memory.read(at) | 1 << 12);
            }),
            ("FQ-C268, poison", 268, |rig, directory| {
                let at = directory.entry_address(DeviceId::truncate(DEVICE));
                rig.memory.fail(at, 32, MemoryFault::Corruption);
            }),
        ];
        for (name, cause, spoil) in reported {
            let mut guest = Guest::new(3);
            let directory = tables::Directory::new(&guest.rig.memory, 3, false);
            dc(&directory, 1 | dtf);
            spoil(&guest.rig, &directory);
            guest.rig.write8(DDTP, directory.ddtp());
            guest.report(&HostFault::new(Cause::DdtNotValid, TransactionType::UntranslatedRead, Iova::new(0x1000)));
            let expected = [[0x1234_5608_0000_0000 | cause, 0, 0x1000, 0]];
            assert_eq!(guest.records(), expected, "FQ-46, FQ-47, {name}, tc {dtf:#x}");
        }
        // A context that is as it should be: what follows from it is hidden if it says so.
        for code in [1, 4, 5, 6, 7, 12, 13, 15, 20, 21, 23, 260, 261, 262, 263, 264, 270, 271, 274] {
            let mut guest = Guest::new(3);
            let directory = tables::Directory::new(&guest.rig.memory, 3, false);
            dc(&directory, 1 | dtf);
            guest.rig.write8(DDTP, directory.ddtp());
            let fault =
                HostFault::new(Cause::decode(code).unwrap(), TransactionType::UntranslatedRead, Iova::new(1 << 12));
            // 260 because PDTV = 0.
            guest.report(&if code == 260 { fault.with_process(process(1), false) } else { fault });
            let hidden = u64::from(dtf != 0);
            let count = u64::try_from(guest.records().len()).unwrap();
            assert_eq!(count, 1 - hidden, "FQ-46, FQ-C{code:03}, tc {dtf:#x}");
            assert_eq!(guest.rig.iommu.stats().faults_withheld, hidden, "FQ-C{code:03}");
        }
    }
    assert_eq!(device.get(), DEVICE);
}

#[test]
fn a_device_id_too_wide_for_the_directory_has_no_dtf() {
    let mut guest = Guest::new(3);
    let directory = tables::Directory::new(&guest.rig.memory, 1, false);
    guest.rig.write8(DDTP, directory.ddtp());
    guest.report(&HostFault::new(Cause::DdtNotValid, TransactionType::UntranslatedRead, Iova::new(0x1000)));
    assert_eq!(guest.records(), [[0x1234_5608_0000_0104, 0, 0x1000, 0]], "FQ-C260, FQ-47, REG-DDTP-18");
}

#[test]
fn a_hidden_fault_does_not_overflow_the_queue() {
    let mut guest = Guest::new(1);
    guest.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    let directory = tables::Directory::new(&guest.rig.memory, 3, false);
    guest.fault(1);
    directory.set(guest.attachment.device(), &[1 | 1 << 4, 0, 0, 0]);
    guest.rig.write8(DDTP, directory.ddtp());
    guest.write(IPSR, FIP);
    guest.fault(2);
    assert_eq!(guest.state(), (ON | ENABLE | INTERRUPT_ENABLE, 1), "FQ-02 step 4 comes before step 5");
    assert_eq!(guest.read(IPSR), 0, "FQ-02");
}

// The queue.

#[test]
fn a_queue_of_n_entries_holds_one_less_and_then_overflows() {
    for log2 in [1_u8, 2, 3, 7, 8] {
        let mut guest = Guest::new(log2);
        let last = (1_u64 << log2) - 1;
        for page in 1..=last {
            guest.fault(page);
            assert_eq!(guest.state(), (ON | ENABLE, page), "Q-02, FQ-02 with 2^{log2}");
        }
        guest.fault(last + 1);
        assert_eq!(guest.state(), (ON | ENABLE | FQOF, last), "Q-02, FQ-03, REG-FQCSR-05, DX-45, DISC-Q11");
        assert_eq!(guest.pages(), (1..=last).collect::<Vec<_>>(), "FQ-03: nothing is overwritten");
        assert_eq!(guest.rig.iommu.stats().faults_recorded, last);
    }
}

#[test]
fn records_are_written_in_order_around_the_end() {
    let mut guest = Guest::new(2);
    for page in 1..=40 {
        guest.fault(page);
        assert_eq!(guest.read(FQT), page % 4, "Q-04");
        let slot = Gpa::new(FAULTS.get() + (page - 1) % 4 * 32);
        assert_eq!(guest.stores(), [slot], "Q-03, Q-04");
        assert_eq!(guest.pages(), [page]);
    }
    assert_eq!(guest.read(FQCSR), ON | ENABLE);
}

#[test]
fn an_overflow_lasts_until_it_is_cleared() {
    let mut guest = Guest::new(1);
    guest.fault(1);
    guest.fault(2);
    assert_eq!(guest.pages(), [1]);
    guest.fault(3);
    assert_eq!((guest.state(), guest.pages()), ((ON | ENABLE | FQOF, 1), vec![]), "FQ-02, FQ-04, REG-QI-10");
    guest.write(FQCSR, ENABLE | FQOF);
    guest.fault(4);
    assert_eq!((guest.state(), guest.pages()), ((ON | ENABLE, 0), vec![4]), "FQ-04");
    // Cleared without making room: the next one sets it again.
    guest.fault(5);
    guest.fault(6);
    guest.write(FQCSR, ENABLE | FQOF);
    assert_eq!(guest.read(FQCSR), ON | ENABLE);
    guest.fault(7);
    assert_eq!((guest.state(), guest.pages()), ((ON | ENABLE | FQOF, 1), vec![5]), "FQ-04");
}

#[test]
fn a_fault_that_overflowed_is_recorded_when_there_is_room() {
    let mut guest = Guest::new(2);
    for page in 1..=4 {
        guest.fault(page);
    }
    guest.write(FQH, 1);
    guest.write(FQCSR, ENABLE | FQOF);
    guest.fault(4);
    assert_eq!(guest.state(), (ON | ENABLE, 0), "FQ-04, FQ-07: nothing unread stands for it");
    assert_eq!(guest.rig.memory.read(Gpa::new(FAULTS.get() + 3 * 32 + 16)), 4 << 12);
}

#[test]
fn a_record_that_can_not_be_stored_stops_reporting_until_it_is_cleared() {
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        let mut guest = Guest::new(2);
        guest.fault(1);
        guest.rig.memory.fail_stores(guest.faults.entry(1), 32, fault);
        guest.fault(2);
        assert_eq!(guest.state(), (ON | ENABLE | MEMORY_FAULT, 1), "FQ-02, REG-FQCSR-04");
        assert_eq!(guest.rig.memory.read_words(guest.faults.entry(1), 4), [0; 4], "FQ-02");
        guest.rig.memory.clear_failures();
        let _ = guest.stores();
        guest.fault(3);
        assert_eq!((guest.state(), guest.stores()), ((ON | ENABLE | MEMORY_FAULT, 1), vec![]), "FQ-02, FQ-05");
        guest.write(FQCSR, ENABLE | MEMORY_FAULT);
        // The record that was lost was not written: nothing unread stands for it.
        guest.fault(2);
        assert_eq!((guest.state(), guest.pages()), ((ON | ENABLE, 2), vec![1, 2]), "FQ-05, FQ-07");
    }
}

#[test]
fn both_errors_must_be_cleared() {
    let mut guest = Guest::new(2);
    guest.rig.memory.read_only(FAULTS, 32);
    guest.fault(1);
    let _ = guest.rig.iommu.report_lost(1);
    guest.rig.memory.clear_failures();
    for (cleared, left) in [(FQOF, MEMORY_FAULT), (0, MEMORY_FAULT), (MEMORY_FAULT, 0)] {
        guest.write(FQCSR, ENABLE | cleared);
        guest.fault(2);
        assert_eq!(guest.read(FQCSR), ON | ENABLE | left, "FQ-05");
        assert_eq!(guest.read(FQT), u64::from(left == 0), "FQ-05");
    }
}

#[test]
fn a_queue_that_is_off_takes_nothing_and_says_nothing() {
    let mut guest = Guest::new(2);
    guest.write(FQCSR, INTERRUPT_ENABLE);
    guest.fault(1);
    assert_eq!((guest.state(), guest.read(IPSR)), ((INTERRUPT_ENABLE, 0), 0), "REG-FQCSR-07, -12, FQ-02");
    assert_eq!(guest.stores(), [], "SYNC-05");
    assert_eq!(guest.rig.iommu.stats().faults_withheld, 1, "FQ-06");
    guest.write(FQCSR, ENABLE);
    assert_eq!(guest.state(), (ON | ENABLE, 0), "FQ-06: lost");
    guest.fault(1);
    assert_eq!(guest.pages(), [1]);
}

#[test]
fn turned_on_again_it_starts_at_entry_0_against_the_head_it_finds() {
    let mut guest = Guest::new(2);
    guest.fault(1);
    guest.fault(2);
    guest.write(FQH, 2);
    guest.write(FQCSR, 0);
    guest.write(FQCSR, ENABLE);
    // The guest did not put its head back: entries 2 and 3 look unread.
    guest.fault(3);
    guest.fault(4);
    assert_eq!(guest.state(), (ON | ENABLE | FQOF, 1), "REG-FQCSR-01, -11, FQ-03");
    assert_eq!(guest.rig.memory.read(Gpa::new(FAULTS.get() + 16)), 3 << 12, "REG-FQCSR-01");
}

#[test]
fn a_full_queue_does_not_stop_commands() {
    let mut guest = Guest::new(1);
    guest.fault(1);
    guest.fault(2);
    let mut commands = guest.rig.command_queue(2, ENABLE);
    guest.write(CQT, commands.push(Iofence::PLAIN.encode()));
    assert_eq!((guest.read(CQH), guest.read(CQCSR)), (1, ON | ENABLE), "FQ-08, Q-08");
    assert_eq!(guest.rig.iommu.progress(), Progress::Idle);
}

#[test]
fn neither_a_stopped_command_queue_nor_one_that_waits_stops_records() {
    let mut guest = Guest::new(2);
    let mut commands = guest.rig.command_queue(2, ENABLE);
    guest.rig.hold_fences();
    guest.write(CQT, commands.push_all([Iofence::PLAIN.encode(), ILLEGAL]));
    guest.fault(1);
    assert_eq!((guest.read(CQH), guest.pages()), (0, vec![1]), "Q-08");
    guest.rig.end_fences(FenceOutcome::Complete);
    guest.fault(2);
    assert_eq!((guest.read(CQCSR), guest.pages()), (ON | ENABLE | CMD_ILL, vec![2]), "Q-08");
}

#[test]
fn records_are_in_the_byte_order_of_fctl_be() {
    let mut rig = Rig::start(Config::nested().with_big_endian(true), InterruptKinds::Msi);
    rig.write(FCTL, 1);
    let attachment = rig.attach();
    rig.write8(DDTP, 1);
    rig.fault_queue(2, ENABLE);
    let iova = Iova::new(0x0123_4567_89ab_cdef);
    let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, iova);
    let _ = rig.iommu.report_fault(attachment, &fault.with_process(process(0xa_bcde), true));
    let raw = [0x0de0_cdab_0b56_3412, 0, 0xefcd_ab89_6745_2301, 0];
    assert_eq!(rig.memory.read_words(FAULTS, 4), raw, "FQ-01, END-07, END-13");
    let swapped = [0x1234_560b_abcd_e00d, 0, iova.get(), 0].map(u64::swap_bytes);
    assert_eq!(swapped, raw, "the little-endian record, swapped by doublewords");
}

// Identical faults.

#[test]
fn an_identical_fault_is_not_recorded_while_the_last_record_is_unread() {
    let mut guest = Guest::new(2);
    for _ in 0..10 {
        guest.fault(1);
    }
    // The offset within a page need not be reported.
    guest.report(&HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(0x1fff)));
    assert_eq!(guest.state(), (ON | ENABLE, 1), "FQ-07, FQ-53: no overflow either");
    let stats = guest.rig.iommu.stats();
    assert_eq!((stats.faults_recorded, stats.faults_coalesced), (1, 10), "FQ-07");
    assert_eq!(guest.pages(), [1]);
    // Read: a new one is news.
    guest.fault(1);
    assert_eq!(guest.pages(), [1], "FQ-07: at least one of those that follow");
}

#[test]
fn only_the_last_record_stands_for_others() {
    let mut guest = Guest::new(3);
    for page in [1, 2, 1, 1, 2] {
        guest.fault(page);
    }
    assert_eq!(guest.pages(), [1, 2, 1, 2], "FQ-07");
}

#[test]
fn faults_that_differ_in_anything_are_each_recorded() {
    let base = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, Iova::new(0x1000));
    let mut other_access = base;
    other_access.access = TransactionType::UntranslatedWrite;
    let mut other_cause = base;
    other_cause.cause = Cause::ReadAccessFault;
    let mut far = base;
    far.iova = Iova::new(0x8000_0000_0000_1000);
    let mut next = base;
    next.iova = Iova::new(0x2000);
    let with_process = base.with_process(process(0), false);
    let faults = [
        base,
        with_process,
        base.with_process(process(0), true),
        base.with_process(process(1), false),
        other_access,
        other_cause,
        far,
        next,
    ];
    for a in faults {
        for b in faults {
            let mut guest = Guest::new(3);
            guest.report(&a);
            guest.report(&b);
            assert_eq!(guest.read(FQT), if a == b { 1 } else { 2 }, "FQ-07: {a:?}, {b:?}");
        }
    }
}

#[test]
fn a_record_of_an_earlier_life_of_the_queue_stands_for_nothing() {
    let mut guest = Guest::new(2);
    guest.fault(1);
    guest.write(FQCSR, 0);
    guest.write(FQH, 3);
    guest.write(FQCSR, ENABLE);
    // Head and tail differ, but nothing was written yet.
    guest.fault(1);
    assert_eq!((guest.state(), guest.stores().len()), ((ON | ENABLE, 1), 2), "FQ-07, REG-FQCSR-01");

    let mut guest = Guest::new(2);
    guest.fault(1);
    let _ = guest.rig.iommu.reset();
    guest.faults = guest.rig.fault_queue(2, ENABLE);
    guest.write(FQH, 3);
    guest.fault(1);
    assert_eq!(guest.state(), (ON | ENABLE, 1), "REG-RST-07");
}

#[test]
fn a_fault_of_two_devices_is_two() {
    let mut guest = Guest::new(2);
    let other = guest.rig.iommu.attach(DeviceId::truncate(1), 8, riscv_viommu::DevicePolicy::default());
    let first = guest.attachment;
    guest.fault(1);
    guest.attachment = other.unwrap().attachment;
    guest.fault(1);
    guest.attachment = first;
    assert_eq!(guest.records(), [[PAGE_FAULT, 0, 0x1000, 0], [0x0000_0108_0000_000d, 0, 0x1000, 0]], "FQ-25, FQ-07");
}

// Lost and foreign faults.

#[test]
fn faults_the_host_lost_are_an_overflow() {
    let mut guest = Guest::new(2);
    guest.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    let _ = guest.rig.iommu.report_lost(0);
    assert_eq!((guest.read(FQCSR), guest.read(IPSR)), (ON | ENABLE | INTERRUPT_ENABLE, 0), "none was lost");
    let _ = guest.rig.iommu.report_lost(5);
    assert_eq!((guest.read(FQCSR), guest.read(IPSR)), (ON | ENABLE | INTERRUPT_ENABLE | FQOF, FIP), "IRQ-02, FQ-09");
    guest.fault(1);
    assert_eq!(guest.read(FQT), 0, "REG-FQCSR-05");
    guest.write(FQCSR, ENABLE | FQOF);
    guest.fault(1);
    assert_eq!(guest.state(), (ON | ENABLE, 1), "FQ-04");
    assert_eq!(guest.rig.iommu.stats().faults_lost, 5);
}

#[test]
fn faults_lost_while_the_queue_is_off_are_nothing_to_the_guest() {
    let mut guest = Guest::new(2);
    guest.write(FQCSR, INTERRUPT_ENABLE);
    let _ = guest.rig.iommu.report_lost(5);
    assert_eq!((guest.read(FQCSR), guest.read(IPSR)), (INTERRUPT_ENABLE, 0), "REG-FQCSR-12, FQ-02 step 1");
}

#[test]
fn a_fault_of_an_earlier_attachment_is_dropped() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.rig.iommu.detach(guest.attachment.device()), Ok(Progress::Idle));
    guest.fault(1);
    let _ = guest.rig.attach();
    guest.fault(1);
    assert_eq!((guest.state(), guest.rig.iommu.stats().stale_events), ((ON | ENABLE, 0), 2), "T34");
}

#[test]
fn a_fault_raises_fip_after_its_record() {
    let mut guest = Guest::new(2);
    guest.write(FQCSR, ENABLE | INTERRUPT_ENABLE);
    guest.rig.forget_accesses();
    guest.fault(1);
    let events = guest.rig.memory.take_events();
    assert!(matches!(events[..], [Event::Store(FAULTS, _), Event::Wire(0, true)]), "FQ-10, IRQ-18: {events:?}");
    assert_eq!((guest.read(IPSR), guest.rig.wires.levels()), (FIP, 1), "FQ-09, IRQ-03");
}

// Bad input.

#[test]
fn a_queue_of_2_to_the_32_entries_is_full_where_the_head_says() {
    let mut guest = Guest::new(2);
    guest.write(FQCSR, 0);
    guest.rig.write8(FQB, FAULTS.get() >> 2 | 0x1f);
    guest.write(FQCSR, ENABLE);
    guest.write(FQH, 0xffff_ffff);
    guest.fault(1);
    guest.write(FQH, 2);
    guest.fault(2);
    assert_eq!(guest.state(), (ON | ENABLE | FQOF, 1), "FQ-03, REG-QB-01, REG-QI-03");
    guest.write(FQH, 0);
    guest.write(FQCSR, ENABLE | FQOF);
    for page in 2..=200 {
        guest.fault(page);
    }
    // The guest has one page there.
    assert_eq!(guest.state(), (ON | ENABLE | MEMORY_FAULT, 128), "Q-06, REG-FQCSR-04");
}

#[test]
fn a_fault_queue_at_the_end_of_the_physical_address_space_ends_there() {
    let mut guest = Guest::of(Config::nested().with_pas(32), 2);
    let last = Gpa::new(0xffff_f000);
    guest.rig.memory.map(last, 0x3000);
    guest.write(FQCSR, 0);
    // 256 entries, misaligned by a page: base and offset are ORed, so the second half is the first again.
    guest.rig.write8(FQB, last.get() >> 2 | 7);
    guest.write(FQCSR, ENABLE);
    for page in 1..=255 {
        guest.fault(page);
    }
    assert_eq!(guest.state(), (ON | ENABLE, 255), "REG-QB-06, REG-CAP-46");
    assert!(guest.stores().iter().all(|at| at.get() >= last.get() && at.get() <= 0xffff_ffe0), "REG-CAP-46");
    assert_eq!(guest.rig.read8(FQB), last.get() >> 2 | 7);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_fault_queue_of_any_size_anywhere_takes_what_it_can(
        page in select(vec![0, 1, 0x8_2000, 0x8_2001, 0xf_ffff, 0xfff_ffff_ffff_u64]),
        log2 in 0..32_u64,
        heads in proptest::collection::vec(any::<u32>(), 1..12),
        mapped in any::<bool>(),
    ) {
        let mut guest = Guest::of(Config::nested().with_pas(32), 1);
        let base = (page << 12) & 0xffff_f000;
        if mapped {
            guest.rig.memory.map(Gpa::new(base), 0x1000);
        } else {
            guest.rig.memory.unmap(Gpa::new(base), 0x1000);
        }
        guest.write(FQCSR, 0);
        guest.rig.write8(FQB, page << 10 | log2);
        guest.write(FQCSR, ENABLE);
        let mask = (1_u64 << (log2 + 1)) - 1;
        for (number, head) in heads.into_iter().enumerate() {
            let _ = guest.rig.iommu.write(FQH, Width::U32, head.into());
            prop_assert_eq!(guest.read(FQH), u64::from(head) & mask, "REG-QI-03");
            let tail = guest.read(FQT);
            let full = (tail + 1) & mask == u64::from(head) & mask;
            guest.fault(u64::try_from(number).unwrap() + 1);
            let at = base | (tail * 32);
            let (stores, state) = (guest.stores(), guest.state());
            if mapped && !full {
                prop_assert_eq!((stores, state), (vec![Gpa::new(at)], (ON | ENABLE, (tail + 1) & mask)), "FQ-02, Q-03");
            } else {
                let error = if full { FQOF } else { MEMORY_FAULT };
                prop_assert_eq!((stores, state), (vec![], (ON | ENABLE | error, tail)), "FQ-02, FQ-03");
                guest.write(FQCSR, ENABLE | FQOF | MEMORY_FAULT);
            }
        }
    }
}
