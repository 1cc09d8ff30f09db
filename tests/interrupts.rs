//! Interrupts as a guest sees them: what makes a cause pending, and what messages and wires make of it.
//!
//! Rule IDs are those of the rules of registers, queues and interrupts.

#![expect(clippy::arithmetic_side_effects, clippy::expect_used, reason = "small numbers, and a failure is a finding")]

mod common;

use common::{ILLEGAL, Rig};
use proptest::prelude::*;
use proptest::sample::select;
use riscv_viommu::mock::Event;
use riscv_viommu::mock::guest::register::{
    CIP, CMD_ILL, CMD_TO, CQCSR, CQH, CQT, DDTP, ENABLE, FCTL, FENCE_W_IP, FIP, FQCSR, FQH, FQOF, FQT, ICVEC,
    INTERRUPT_ENABLE, IPSR, MEMORY_FAULT, MSI_CFG_TBL, ON,
};
use riscv_viommu::mock::guest::{CommandRing, FaultRing, Iofence};
use riscv_viommu::{
    Attachment, Cause, Config, FenceOutcome, Gpa, HostFault, InterruptKinds, Iova, MemoryFault, Post, TransactionType,
    Width,
};

const BOTH_ENABLES: u64 = ENABLE | INTERRUPT_ENABLE;

/// Where there is no memory.
const NOWHERE: Gpa = Gpa::new(0x7000_0000);

/// A guest with an attached device in Bare mode and 4 vectors. The causes have vectors of their own: the command
/// queue 1, the fault queue 2. The message of vector n goes to interrupt file n with data 0x40 + n.
struct Guest {
    rig: Rig,
    commands: CommandRing,
    faults: FaultRing,
    attachment: Attachment,
    page: u64,
}

fn file(vector: u64) -> Gpa {
    Gpa::new(0x2800_0000 + (vector << 12))
}

fn entry(vector: u64) -> u64 {
    MSI_CFG_TBL + 16 * vector
}

fn message(vector: u32) -> (Gpa, u32) {
    (file(vector.into()), 0x40 + vector)
}

impl Guest {
    fn new(kinds: InterruptKinds, wires: bool) -> Self {
        Self::of(Config::nested(), kinds, if wires { 2 } else { 0 })
    }

    fn of(config: Config, kinds: InterruptKinds, fctl: u64) -> Self {
        let mut rig = Rig::start(config.with_vectors(4), kinds);
        rig.write(FCTL, fctl);
        rig.write8(DDTP, 1);
        let attachment = rig.attach();
        rig.write8(ICVEC, 0x21);
        for vector in 0..4 {
            rig.memory.interrupt_page(file(vector));
            rig.write8(entry(vector), file(vector).get());
            rig.write(entry(vector) + 8, 0x40 + vector);
        }
        let commands = rig.command_queue(4, ENABLE);
        let faults = rig.fault_queue(2, ENABLE);
        Self { rig, commands, faults, attachment, page: 0 }
    }

    fn with_messages() -> Self {
        Self::new(InterruptKinds::Msi, false)
    }

    fn with_wires() -> Self {
        Self::new(InterruptKinds::Both, true)
    }

    /// Both interrupts enabled.
    fn enabled(mut self) -> Self {
        self.write(CQCSR, BOTH_ENABLES);
        self.write(FQCSR, BOTH_ENABLES);
        self
    }

    fn read(&self, offset: u64) -> u64 {
        self.rig.read(offset)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.rig.write(offset, value);
    }

    fn push(&mut self, command: [u64; 2]) {
        let tail = self.commands.push(command);
        self.write(CQT, tail);
    }

    /// The device faults, in a page of its own each time.
    fn fault(&mut self) {
        self.page += 1;
        let iova = Iova::new(self.page << 12);
        let fault = HostFault::new(Cause::ReadPageFault, TransactionType::UntranslatedRead, iova);
        let _ = self.rig.iommu.report_fault(self.attachment, &fault);
    }

    /// Faults until one does not fit.
    fn overflow(&mut self) {
        for _ in 0..4 {
            self.fault();
        }
    }

    /// The command queue stops at an illegal command.
    fn stop(&mut self) {
        self.push(ILLEGAL);
    }

    fn mask(&mut self, vector: u64, masked: bool) {
        self.write(entry(vector) + 12, masked.into());
    }

    /// The messages that were sent since last asked.
    fn messages(&self) -> Vec<(Gpa, u32)> {
        let posts = self.rig.memory.take_posts();
        posts.into_iter().filter(|(_, _, why)| *why == Post::Interrupt).map(|(at, data, _)| (at, data)).collect()
    }

    fn wires(&self) -> Vec<(u8, bool)> {
        self.rig.wires.take_changes()
    }

    /// The fault records that were written since last asked.
    fn records(&mut self) -> Vec<[u64; 4]> {
        let records = self.faults.take(self.read(FQT));
        let head = self.faults.head();
        self.write(FQH, head.into());
        records
    }
}

// What makes a cause pending.

/// A way to a level condition: its name, the csr, the bit, and what happens.
type Level = (&'static str, u64, u64, fn(&mut Guest));

const LEVELS: [Level; 6] = [
    ("cmd_ill", CQCSR, CMD_ILL, Guest::stop),
    ("cqmf of a fetch", CQCSR, MEMORY_FAULT, |guest| {
        guest.rig.memory.fail(guest.commands.entry(0), 16, MemoryFault::Access);
        guest.stop();
    }),
    ("cqmf of a fence", CQCSR, MEMORY_FAULT, |guest| guest.push(Iofence::PLAIN.store(NOWHERE, 1).encode())),
    ("cmd_to", CQCSR, CMD_TO, |guest| {
        guest.rig.hold_fences();
        guest.push(Iofence::PLAIN.encode());
        guest.rig.end_fences(FenceOutcome::AtsTimeout);
    }),
    ("fqof", FQCSR, FQOF, Guest::overflow),
    ("fqmf", FQCSR, MEMORY_FAULT, |guest| {
        guest.rig.memory.read_only(guest.faults.entry(0), 32);
        guest.fault();
    }),
];

fn cause_of(csr: u64) -> (u64, u32) {
    if csr == CQCSR { (CIP, 1) } else { (FIP, 2) }
}

#[test]
fn each_error_makes_its_cause_pending_and_sends_one_message() {
    for (name, csr, bit, happen) in LEVELS {
        let (pending, vector) = cause_of(csr);
        let mut guest = Guest::with_messages().enabled();
        happen(&mut guest);
        assert_eq!(guest.read(csr), ON | BOTH_ENABLES | bit, "{name}");
        assert_eq!(guest.read(IPSR), pending, "IRQ-02, REG-IPSR-01, -02: {name}");
        assert_eq!(guest.messages(), [message(vector)], "IRQ-07, REG-IPSR-13, -14: {name}");
    }
}

#[test]
fn an_error_without_its_enable_is_not_pending_until_it_is_enabled() {
    for (name, csr, bit, happen) in LEVELS {
        let (pending, vector) = cause_of(csr);
        let mut guest = Guest::with_messages();
        happen(&mut guest);
        assert_eq!((guest.read(csr), guest.read(IPSR)), (ON | ENABLE | bit, 0), "IRQ-02: {name}");
        assert_eq!(guest.messages(), [], "{name}");
        // The other queue's enable is not it.
        guest.write(CQCSR + FQCSR - csr, BOTH_ENABLES);
        assert_eq!(guest.read(IPSR), 0, "IRQ-02: {name}");
        guest.write(csr, BOTH_ENABLES);
        assert_eq!(guest.read(IPSR), pending, "REG-IPSR-12, IRQ-05, IRQ-06, DISC-R06: {name}");
        assert_eq!(guest.messages(), [message(vector)], "REG-IPSR-12: {name}");
    }
}

#[test]
fn an_enable_written_with_the_bit_that_clears_the_error_raises_nothing() {
    let mut guest = Guest::with_messages();
    guest.overflow();
    guest.write(FQCSR, BOTH_ENABLES | FQOF);
    guest.write(CQT, 0);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]), "REG-CQCSR-29, IRQ-06: evaluated after the W1C");
}

#[test]
fn a_pending_bit_outlives_its_reason() {
    for (name, csr, bit, happen) in LEVELS {
        let (pending, _) = cause_of(csr);
        let mut guest = Guest::with_messages().enabled();
        happen(&mut guest);
        // Emptied, so that clearing the error does not find it again.
        guest.rig.memory.clear_failures();
        let entry = guest.commands.entry(0);
        guest.rig.memory.write_words(entry, &Iofence::PLAIN.encode());
        let sent = guest.messages();
        for value in [BOTH_ENABLES | bit, ENABLE, 0] {
            guest.write(csr, value);
            assert_eq!(guest.read(IPSR), pending, "REG-IPSR-08, IRQ-04, IRQ-13: {name}, {value:#x}");
        }
        assert_eq!((sent.len(), guest.messages()), (1, vec![]), "REG-IPSR-13: {name}");
        guest.write(IPSR, pending);
        assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]), "REG-IPSR-09: {name}");
    }
}

#[test]
fn a_pending_bit_cleared_before_its_error_is_set_again_with_another_message() {
    for (name, csr, bit, happen) in LEVELS {
        let (pending, vector) = cause_of(csr);
        let mut guest = Guest::with_messages().enabled();
        happen(&mut guest);
        for _ in 0..3 {
            assert_eq!(guest.messages(), [message(vector)], "REG-IPSR-09, IRQ-08, SYNC-07: {name}");
            guest.write(IPSR, pending);
            assert_eq!(guest.read(IPSR), pending, "REG-IPSR-09, IRQ-08, SYNC-07: {name}");
        }
        // Turning the queue off does not change the level (REG-FQCSR-10).
        guest.write(csr, INTERRUPT_ENABLE);
        let _ = guest.messages();
        guest.write(IPSR, pending);
        assert_eq!((guest.read(IPSR), guest.messages()), (pending, vec![message(vector)]), "REG-FQCSR-10: {name}");
        assert_eq!(guest.read(csr), INTERRUPT_ENABLE | bit, "{name}");
    }
}

#[test]
fn a_further_condition_of_a_pending_cause_sends_nothing() {
    let mut guest = Guest::with_messages().enabled();
    guest.fault();
    assert_eq!(guest.messages(), [message(2)], "IRQ-03");
    guest.overflow();
    assert_eq!((guest.read(IPSR), guest.messages()), (FIP, vec![]), "REG-IPSR-13, IRQ-07");
    guest.write(FQCSR, BOTH_ENABLES | FQOF);
    guest.overflow();
    assert_eq!(guest.messages(), [], "REG-IPSR-13");
}

#[test]
fn a_record_is_an_event_that_is_not_remembered() {
    let mut guest = Guest::with_messages();
    guest.fault();
    guest.write(FQCSR, BOTH_ENABLES);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]), "REG-IPSR-11, REG-IPSR-12");
    guest.fault();
    assert_eq!((guest.read(IPSR), guest.messages()), (FIP, vec![message(2)]), "IRQ-03, FQ-09");
    // The queue is not empty, but nothing new happened.
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]), "REG-IPSR-10, IRQ-09");
    guest.fault();
    assert_eq!((guest.read(IPSR), guest.messages()), (FIP, vec![message(2)]), "REG-IPSR-09");
}

#[test]
fn the_linux_driver_clears_fip_before_it_drains() {
    let mut guest = Guest::with_messages().enabled();
    guest.overflow();
    assert_eq!(guest.messages().len(), 1);
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.messages().len()), (FIP, 1), "GDRV-07");
    assert_eq!(guest.records().len(), 3);
    guest.write(FQCSR, BOTH_ENABLES | MEMORY_FAULT | FQOF);
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.read(FQCSR)), (0, ON | BOTH_ENABLES), "GDRV-07");
}

#[test]
fn clearing_one_pending_bit_leaves_the_other() {
    let mut guest = Guest::with_messages().enabled();
    guest.stop();
    guest.fault();
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![message(1), message(2)]), "IRQ-01, IRQ-07");
    guest.write(IPSR, 0);
    assert_eq!(guest.read(IPSR), CIP | FIP, "ATTR-03");
    guest.write(IPSR, 0xffff_fffc);
    assert_eq!(guest.read(IPSR), CIP | FIP, "ATTR-03");
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![]), "ATTR-03, REG-IPSR-10");
}

#[test]
fn two_causes_that_rise_at_once_send_a_message_each() {
    let mut guest = Guest::with_messages().enabled();
    guest.stop();
    guest.overflow();
    assert_eq!(guest.messages(), [message(1), message(2)], "IRQ-07");
    guest.write(IPSR, CIP | FIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![message(1), message(2)]), "IRQ-08");
    // The first of them fails: the second goes out all the same.
    guest.write(entry(1), NOWHERE.get());
    guest.write(IPSR, CIP | FIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![message(2)]), "IRQ-08, IRQ-14");
}

// Messages.

#[test]
fn each_cause_has_its_own_enable_and_the_monitor_its_overflow_bit() {
    // iohpmcycles is at 96, its OF bit 63, which is also where the counter overflows; pmip is bit 2.
    let (cycles, pmip) = (96, 4);
    let mut rig = Rig::start(Config::emulated().with_counters(1).with_vectors(4), InterruptKinds::Msi);
    rig.memory.interrupt_page(file(3));
    rig.write8(ICVEC, 0x300);
    rig.write8(entry(3), file(3).get());
    rig.write(entry(3) + 8, 0x43);
    // Nothing is on, and cie and fie are 0.
    let mut commands = rig.command_queue(3, ENABLE);
    rig.write(CQT, commands.push(ILLEGAL));
    rig.forget_accesses();
    let posts = |rig: &Rig| rig.memory.take_posts().iter().map(|(at, data, _)| (*at, *data)).collect::<Vec<_>>();
    rig.write8(cycles, (1 << 63) - 1);
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read(IPSR), posts(&rig)), (pmip, vec![message(3)]), "IRQ-15, IRQ-03: no enable holds it back");
    // OF is 1 as long as the guest leaves it, and as long that is all.
    rig.write(IPSR, pmip);
    for _ in 0..2 {
        rig.write8(cycles, u64::MAX);
        let _ = rig.iommu.add_cycles(1);
        assert_eq!((rig.read(IPSR), posts(&rig)), (0, vec![]), "IRQ-15");
    }
    rig.write8(cycles, (1 << 63) - 1);
    let _ = rig.iommu.add_cycles(1);
    assert_eq!((rig.read(IPSR), posts(&rig)), (pmip, vec![message(3)]), "IRQ-15");
    // The error of the command queue was there all the time: its enable is its own, and the only one.
    rig.write(CQCSR, BOTH_ENABLES);
    assert_eq!(rig.read(IPSR), pmip | CIP, "IRQ-15");
}

#[test]
fn a_masked_message_is_sent_once_when_the_mask_goes() {
    let mut guest = Guest::with_messages().enabled();
    guest.mask(1, true);
    guest.stop();
    // Several edges collapse into one.
    guest.write(IPSR, CIP);
    guest.write(IPSR, CIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![]), "REG-MSI-10, IRQ-10");
    guest.mask(1, true);
    guest.mask(0, false);
    assert_eq!(guest.messages(), [], "REG-MSI-13");
    guest.mask(1, false);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![message(1)]), "REG-MSI-10, IRQ-10");
    guest.mask(1, false);
    guest.mask(1, true);
    guest.mask(1, false);
    assert_eq!(guest.messages(), [], "REG-MSI-13");
}

#[test]
fn a_mask_holds_back_its_own_vector_only() {
    for vector in 0..4_u32 {
        let mut guest = Guest::with_messages().enabled();
        guest.write(ICVEC, u64::from(vector) | 0x20);
        guest.mask(u64::from(vector) ^ 1, true);
        guest.stop();
        assert_eq!(guest.messages(), [message(vector)], "REG-MSI-10, REG-ICVEC-01");
    }
}

#[test]
fn an_unmasked_message_goes_where_the_entry_says_now() {
    let mut guest = Guest::with_messages().enabled();
    guest.mask(1, true);
    guest.stop();
    guest.write(entry(1), file(3).get());
    guest.write(entry(1) + 8, 0x99);
    guest.mask(1, false);
    assert_eq!(guest.messages(), [(file(3), 0x99)], "REG-MSI-11");
}

#[test]
fn clearing_the_pending_bit_does_not_cancel_a_masked_message() {
    let mut guest = Guest::with_messages().enabled();
    guest.mask(2, true);
    guest.fault();
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]));
    guest.mask(2, false);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![message(2)]), "REG-MSI-12");
}

#[test]
fn two_causes_on_one_masked_vector_send_one_message() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(ICVEC, 0x33);
    guest.mask(3, true);
    guest.stop();
    guest.fault();
    guest.mask(3, false);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![message(3)]), "REG-MSI-10, REG-ICVEC-08");
}

#[test]
fn two_causes_on_one_vector_send_a_message_each() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(ICVEC, 0x33);
    guest.stop();
    guest.fault();
    assert_eq!(guest.messages(), [message(3), message(3)], "IRQ-11, REG-ICVEC-08");
}

#[test]
fn a_masked_message_stays_with_the_vector_it_had() {
    let mut guest = Guest::with_messages().enabled();
    guest.mask(1, true);
    guest.stop();
    guest.write(ICVEC, 0x23);
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![]), "REG-ICVEC-10");
    guest.mask(3, true);
    guest.mask(3, false);
    assert_eq!(guest.messages(), [], "REG-ICVEC-10");
    guest.mask(1, false);
    assert_eq!(guest.messages(), [message(1)], "REG-ICVEC-10");
    guest.write(IPSR, CIP);
    assert_eq!(guest.messages(), [message(3)], "REG-IPSR-14: the vector at that moment");
}

#[test]
fn changes_of_vectors_and_entries_make_nothing_pending() {
    let mut guest = Guest::with_messages().enabled();
    guest.stop();
    assert_eq!(guest.messages(), [message(1)]);
    for (offset, value) in [(ICVEC, 0x12), (entry(1), 0x2800_0000), (entry(1) + 8, 7), (entry(2) + 12, 1), (ICVEC, 0)] {
        guest.write(offset, value);
        assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![]), "IRQ-12, REG-ICVEC-10");
    }
    assert_eq!(guest.rig.read8(entry(1)), 0x2800_0000);
}

#[test]
fn message_data_is_in_the_byte_order_of_fctl_be() {
    for (fctl, data) in [(0, 0x1234_5678), (1, 0x7856_3412)] {
        let mut guest = Guest::of(Config::nested().with_big_endian(true), InterruptKinds::Both, fctl);
        guest.write(entry(1) + 8, 0x1234_5678);
        guest.write(CQCSR, BOTH_ENABLES);
        // Opcode 0 in either order.
        guest.stop();
        assert_eq!(guest.messages(), [(file(1), data)], "REG-MSI-14, END-10");
    }
}

#[test]
fn a_fence_interrupts_by_its_store_where_messages_are_used() {
    for kinds in [InterruptKinds::Msi, InterruptKinds::Both] {
        let mut guest = Guest::new(kinds, false).enabled();
        guest.push(Iofence::PLAIN.store(file(0), 5).encode());
        assert_eq!(guest.rig.memory.take_posts(), [(file(0), 5, Post::FenceData)], "IRQ-16, CQ-26");
        assert_eq!((guest.read(IPSR), guest.read(CQH)), (0, 1), "IRQ-16");
        guest.push(Iofence::PLAIN.wsi().encode());
        assert_eq!((guest.read(CQCSR), guest.read(CQH)), (ON | BOTH_ENABLES | CMD_ILL, 1), "IRQ-16, QCMD-03");
    }
}

// Messages that fail.

#[test]
fn a_message_that_fails_is_a_fault_record() {
    let mut guest = Guest::with_messages();
    guest.write(CQCSR, BOTH_ENABLES);
    guest.write(entry(1), 0x7000_0124);
    guest.stop();
    let record = [273, 0, 0x7000_0124, 0];
    assert_eq!(guest.records(), [record], "REG-MSI-15, FQ-30, FQ-33, FQ-55, FQ-60, FQ-C273, FLT-11, FR-06");
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP, vec![]), "REG-MSI-15: still pending, the message is lost");
    guest.write(entry(1), file(1).get());
    let _ = guest.rig.iommu.run();
    assert_eq!(guest.messages(), [], "REG-MSI-15: lost");
}

#[test]
fn a_message_into_read_only_or_lost_memory_fails_too() {
    for fault in [MemoryFault::Access, MemoryFault::Corruption] {
        let mut guest = Guest::with_messages();
        guest.write(CQCSR, BOTH_ENABLES);
        let at = guest.rig.memory.allocate(1);
        guest.rig.memory.fail_stores(at, 4, fault);
        guest.write(entry(1), at.get());
        guest.stop();
        assert_eq!(guest.records(), [[273, 0, at.get(), 0]], "REG-MSI-15, DISC-Q12");
    }
}

#[test]
fn a_failing_message_about_a_failing_message_ends() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(entry(1), 0x7000_1000);
    guest.write(entry(2), 0x7000_2000);
    guest.stop();
    assert_eq!(guest.records(), [[273, 0, 0x7000_1000, 0], [273, 0, 0x7000_2000, 0]], "IRQ-14, FR-14");
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![]), "IRQ-14");
    // Each clearing is one more edge, one more message that fails, one more record at most.
    guest.write(IPSR, FIP);
    assert_eq!((guest.read(IPSR), guest.records()), (0x1, vec![]), "REG-IPSR-10");
    guest.write(IPSR, CIP);
    assert_eq!(guest.records().len(), 2, "IRQ-14");
    assert_eq!(guest.read(IPSR), CIP | FIP);
}

#[test]
fn a_failing_message_raises_fip_whose_message_arrives() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(entry(1), 0x7000_1000);
    guest.stop();
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![message(2)]), "IRQ-14, REG-MSI-15");
    assert_eq!(guest.records(), [[273, 0, 0x7000_1000, 0]]);
}

#[test]
fn messages_to_two_addresses_of_one_page_are_two_faults() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(entry(1), 0x7000_1000);
    guest.write(entry(2), 0x7000_1004);
    guest.stop();
    // iotval is msi_addr itself: only an IOVA may be reported without its page offset.
    assert_eq!(guest.records(), [[273, 0, 0x7000_1000, 0], [273, 0, 0x7000_1004, 0]], "FQ-55, FQ-07, FQ-53");
}

#[test]
fn a_failing_message_is_dropped_where_no_record_can_be_written() {
    let mut off = Guest::with_messages().enabled();
    off.write(FQCSR, INTERRUPT_ENABLE);
    off.write(entry(1), NOWHERE.get());
    off.stop();
    assert_eq!((off.read(IPSR), off.read(FQT), off.read(FQCSR)), (CIP, 0, INTERRUPT_ENABLE), "IRQ-14, REG-FQCSR-12");

    let mut full = Guest::with_messages().enabled();
    full.write(FQCSR, ENABLE);
    for _ in 0..3 {
        full.fault();
    }
    full.write(FQCSR, BOTH_ENABLES);
    full.write(entry(1), NOWHERE.get());
    full.stop();
    assert_eq!((full.read(IPSR), full.read(FQT)), (CIP | FIP, 3), "IRQ-14, FQ-02");
    assert_eq!((full.read(FQCSR), full.messages()), (ON | BOTH_ENABLES | FQOF, vec![message(2)]), "FQ-02, IRQ-05");
}

#[test]
fn a_message_that_fails_at_its_unmasking_is_lost_but_what_it_raises_is_kept() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(ICVEC, 0x31);
    guest.mask(1, true);
    guest.mask(3, true);
    guest.stop();
    guest.write(entry(1), 0x7000_1000);
    guest.mask(1, false);
    assert_eq!(guest.records(), [[273, 0, 0x7000_1000, 0]], "REG-MSI-15, REG-MSI-17");
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![]), "the message of fip is masked");
    guest.mask(3, false);
    assert_eq!(guest.messages(), [message(3)], "REG-MSI-17");
    // Not sent again.
    guest.write(entry(1), file(1).get());
    guest.mask(1, true);
    guest.mask(1, false);
    assert_eq!(guest.messages(), [], "REG-MSI-17");
}

#[test]
fn a_message_that_fails_on_the_vector_of_its_own_fault_ends() {
    let mut guest = Guest::with_messages().enabled();
    guest.write(ICVEC, 0x11);
    guest.mask(1, true);
    guest.stop();
    guest.write(entry(1), 0x7000_1000);
    guest.mask(1, false);
    // The second message, of fip, fails in the same way; identical records that are not read may be one.
    assert_eq!(guest.records(), [[273, 0, 0x7000_1000, 0]], "IRQ-14, REG-MSI-17, FQ-07");
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![]), "IRQ-14");
}

// Wires.

#[test]
fn a_wire_has_the_level_of_its_cause() {
    for kinds in [InterruptKinds::Wired, InterruptKinds::Both] {
        let mut guest = Guest::new(kinds, true).enabled();
        guest.stop();
        assert_eq!((guest.wires(), guest.rig.wires.levels()), (vec![(1, true)], 0b10), "REG-WSI-01, IRQ-19");
        guest.fault();
        assert_eq!(guest.wires(), [(2, true)], "REG-WSI-01, IRQ-19");
        // The level holds: no change, and no message.
        guest.write(IPSR, CIP | FIP);
        assert_eq!((guest.read(IPSR), guest.wires()), (CIP, vec![(2, false)]), "IRQ-08, REG-IPSR-14");
        guest.write(CQCSR, ENABLE);
        assert_eq!(guest.wires(), [], "REG-IPSR-08");
        guest.write(IPSR, CIP);
        assert_eq!((guest.wires(), guest.rig.wires.levels()), (vec![(1, false)], 0), "REG-WSI-01");
        assert_eq!(guest.messages(), [], "REG-IPSR-14");
    }
}

#[test]
fn a_wire_shared_by_two_causes_is_their_or() {
    let mut guest = Guest::with_wires().enabled();
    guest.write(ICVEC, 0x33);
    guest.stop();
    guest.fault();
    assert_eq!(guest.wires(), [(3, true)], "REG-WSI-01, IRQ-11, REG-ICVEC-08");
    guest.write(IPSR, FIP);
    assert_eq!(guest.wires(), [], "REG-WSI-01");
    guest.write(CQCSR, 0);
    guest.write(IPSR, CIP);
    assert_eq!(guest.wires(), [(3, false)], "REG-WSI-01");
}

#[test]
fn wires_follow_icvec_while_causes_are_pending() {
    let mut guest = Guest::with_wires().enabled();
    guest.stop();
    guest.fault();
    let _ = guest.wires();
    guest.write(ICVEC, 0x02);
    assert_eq!((guest.rig.wires.levels(), guest.read(IPSR)), (0b101, CIP | FIP), "REG-ICVEC-10, IRQ-12");
    assert_eq!(guest.wires(), [(0, true), (1, false)], "REG-ICVEC-10: wire 2 is kept high");
    guest.write(ICVEC + 4, 0x33);
    assert_eq!(guest.wires(), [], "REG-ICVEC-09");
}

#[test]
fn masks_have_no_effect_on_wires() {
    let mut guest = Guest::with_wires().enabled();
    guest.mask(1, true);
    guest.stop();
    assert_eq!(guest.wires(), [(1, true)], "REG-WSI-02");
    guest.mask(1, false);
    assert_eq!((guest.wires(), guest.messages()), (vec![], vec![]), "REG-WSI-02");
}

#[test]
fn every_wire_can_be_chosen() {
    for vectors in [1_u8, 2, 4, 8, 16] {
        for vector in 0..vectors {
            let mut rig = Rig::start(Config::emulated().with_vectors(vectors), InterruptKinds::Wired);
            rig.write(ICVEC, 0xfff0 | u64::from(vector));
            rig.command_queue(2, BOTH_ENABLES);
            rig.write(CQT, 1);
            assert_eq!(rig.wires.take_changes(), [(vector, true)], "REG-WSI-01, IRQ-19");
        }
    }
}

#[test]
fn a_fence_with_wsi_raises_the_wire_until_both_bits_are_cleared() {
    let mut guest = Guest::with_wires().enabled();
    guest.push(Iofence::PLAIN.wsi().encode());
    assert_eq!((guest.read(CQCSR), guest.read(CQH)), (ON | BOTH_ENABLES | FENCE_W_IP, 1), "CQ-21, IRQ-16");
    assert_eq!((guest.read(IPSR), guest.wires()), (CIP, vec![(1, true)]), "IRQ-02, IRQ-16");
    guest.write(IPSR, CIP);
    assert_eq!((guest.read(IPSR), guest.wires()), (CIP, vec![]), "IRQ-17");
    // Another one while the bit is 1 completes and changes nothing.
    guest.push(Iofence::PLAIN.wsi().encode());
    assert_eq!((guest.read(CQH), guest.wires()), (2, vec![]), "CQ-21");
    guest.write(CQCSR, BOTH_ENABLES | FENCE_W_IP);
    assert_eq!((guest.read(IPSR), guest.wires()), (CIP, vec![]), "IRQ-17, REG-IPSR-08");
    guest.write(IPSR, CIP);
    assert_eq!((guest.read(IPSR), guest.wires()), (0, vec![(1, false)]), "IRQ-17");
    guest.push(Iofence::PLAIN.encode());
    assert_eq!((guest.read(CQCSR), guest.read(IPSR)), (ON | BOTH_ENABLES, 0), "without WSI");
}

#[test]
fn fence_w_ip_without_its_enable_is_not_pending_until_it_is_enabled() {
    let mut guest = Guest::with_wires();
    guest.push(Iofence::PLAIN.wsi().encode());
    assert_eq!((guest.read(CQCSR), guest.read(IPSR), guest.wires()), (ON | ENABLE | FENCE_W_IP, 0, vec![]), "IRQ-02");
    guest.write(CQCSR, BOTH_ENABLES);
    assert_eq!((guest.read(IPSR), guest.wires()), (CIP, vec![(1, true)]), "REG-IPSR-12");
}

#[test]
fn a_change_of_wsi_moves_levels_but_sends_no_messages() {
    let mut guest = Guest::new(InterruptKinds::Both, false).enabled();
    guest.stop();
    guest.fault();
    assert_eq!(guest.messages(), [message(1), message(2)]);
    guest.write(CQCSR, 0);
    guest.write(FQCSR, 0);
    guest.write(DDTP, 0);
    guest.write(FCTL, 2);
    assert_eq!((guest.read(IPSR), guest.wires()), (CIP | FIP, vec![(1, true), (2, true)]), "IRQ-20, REG-WSI-01");
    guest.write(FCTL, 0);
    assert_eq!(guest.wires(), [(1, false), (2, false)], "IRQ-20, REG-WSI-01: all low without WSI");
    assert_eq!((guest.read(IPSR), guest.messages()), (CIP | FIP, vec![]), "IRQ-20: not converted");
}

#[test]
fn fence_w_ip_and_its_level_go_with_wsi() {
    let mut guest = Guest::with_wires().enabled();
    guest.push(Iofence::PLAIN.wsi().encode());
    guest.write(CQCSR, INTERRUPT_ENABLE);
    guest.write(FQCSR, 0);
    guest.write(DDTP, 0);
    guest.write(FCTL, 0);
    assert_eq!((guest.read(FCTL), guest.read(CQCSR)), (0, INTERRUPT_ENABLE), "REG-CQCSR-07");
    assert_eq!(guest.read(IPSR), CIP, "REG-IPSR-08");
    guest.write(IPSR, CIP);
    assert_eq!((guest.read(IPSR), guest.messages()), (0, vec![]), "REG-CQCSR-07: its level term too");
}

// Order, and reset.

#[test]
fn what_an_interrupt_announces_is_there_before_it() {
    let mut guest = Guest::with_messages().enabled();
    guest.rig.forget_accesses();
    guest.fault();
    let events = guest.rig.memory.take_events();
    assert!(matches!(events[..], [Event::Store(..), Event::Post(_, 0x42, Post::Interrupt)]), "IRQ-18: {events:?}");

    let mut guest = Guest::with_wires().enabled();
    guest.rig.forget_accesses();
    guest.push(Iofence::PLAIN.store(file(0), 5).wsi().encode());
    let events = guest.rig.memory.take_events();
    assert_eq!(events, [Event::Post(file(0), 5, Post::FenceData), Event::Wire(1, true)], "IRQ-18");
}

#[test]
fn reset_lowers_wires_and_forgets_masked_messages() {
    let mut guest = Guest::with_wires().enabled();
    guest.stop();
    guest.fault();
    assert_eq!(guest.wires().len(), 2);
    let _ = guest.rig.iommu.reset();
    assert_eq!((guest.rig.wires.levels(), guest.read(IPSR)), (0, 0), "REG-RST-07, REG-WSI-01");

    let mut guest = Guest::with_messages().enabled();
    guest.mask(1, true);
    guest.stop();
    // Reset unmasks every vector and clears its address.
    guest.rig.memory.interrupt_page(Gpa::new(0));
    let _ = guest.rig.iommu.reset();
    assert_eq!(guest.messages(), [], "REG-RST-07");
    guest.rig.write8(entry(1), file(1).get());
    guest.mask(1, true);
    guest.mask(1, false);
    assert_eq!(guest.messages(), [], "REG-RST-07, DISC-R17");
}

// Anything, in any order.

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Fault,
    Command([u64; 2]),
    Lost,
}

fn step() -> impl Strategy<Value = Step> {
    let csr = select(vec![
        0,
        INTERRUPT_ENABLE,
        ENABLE,
        BOTH_ENABLES,
        BOTH_ENABLES | MEMORY_FAULT | CMD_TO | CMD_ILL | FENCE_W_IP,
        INTERRUPT_ENABLE | FQOF,
        FENCE_W_IP | CMD_ILL,
    ]);
    let command =
        select(vec![ILLEGAL, Iofence::PLAIN.encode(), Iofence::PLAIN.wsi().encode(), [0x402, NOWHERE.get() >> 2]]);
    prop_oneof![
        (select(vec![CQCSR, FQCSR]), csr).prop_map(|(offset, value)| Step::Write(offset, value)),
        (0..4_u64).prop_map(|value| Step::Write(IPSR, value)),
        (0..0x100_u64).prop_map(|value| Step::Write(ICVEC, value)),
        (0..4_u64, 0..2_u64).prop_map(|(vector, masked)| Step::Write(entry(vector) + 12, masked)),
        (0..4_u64, select(vec![NOWHERE, file(0), file(3)]))
            .prop_map(|(vector, at)| Step::Write(entry(vector), at.get())),
        (0..4_u64).prop_map(|value| Step::Write(FCTL, value)),
        (0..2_u64).prop_map(|value| Step::Write(DDTP, value)),
        (0..4_u64).prop_map(|value| Step::Write(FQH, value)),
        Just(Step::Fault),
        command.prop_map(Step::Command),
        Just(Step::Lost),
    ]
}

/// Which levels hold: cip, fip (IRQ-02).
fn conditions(guest: &Guest) -> u64 {
    let (cqcsr, fqcsr) = (guest.read(CQCSR), guest.read(FQCSR));
    let cip = cqcsr & INTERRUPT_ENABLE != 0 && cqcsr & (MEMORY_FAULT | CMD_TO | CMD_ILL | FENCE_W_IP) != 0;
    let fip = fqcsr & INTERRUPT_ENABLE != 0 && fqcsr & (MEMORY_FAULT | FQOF) != 0;
    u64::from(cip) | u64::from(fip) << 1
}

/// The levels of the wires (REG-WSI-01).
fn levels(guest: &Guest) -> u16 {
    if guest.read(FCTL) & 2 == 0 {
        return 0;
    }
    let (ipsr, icvec) = (guest.read(IPSR), guest.read(ICVEC));
    let wire = |cause: u64| if ipsr >> cause & 1 == 0 { 0 } else { 1 << (icvec >> (4 * cause) & 0xf) };
    wire(0) | wire(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn levels_pending_bits_wires_and_messages_agree_after_anything(
        kinds in select(vec![InterruptKinds::Msi, InterruptKinds::Wired, InterruptKinds::Both]),
        steps in proptest::collection::vec(step(), 1..64),
    ) {
        let mut guest = Guest::new(kinds, false);
        for step in steps {
            let (before, wires) = (guest.read(IPSR), guest.read(FCTL) & 2 != 0);
            let cleared = if let Step::Write(IPSR, value) = step { value } else { 0 };
            match step {
                Step::Write(offset, value) => {
                    let _ = guest.rig.iommu.write(offset, Width::U32, value);
                }
                Step::Fault => guest.fault(),
                Step::Command(command) => guest.push(command),
                Step::Lost => {
                    let _ = guest.rig.iommu.report_lost(1);
                }
            }
            let after = guest.read(IPSR);
            prop_assert_eq!(conditions(&guest) & !after, 0, "IRQ-05");
            prop_assert_eq!(before & !cleared & !after, 0, "IRQ-04");
            prop_assert_eq!(guest.rig.wires.levels(), levels(&guest), "REG-WSI-01");
            let messages = guest.messages().len();
            prop_assert!(!wires || messages == 0, "REG-IPSR-14: no message while wires are used");
            // Both causes may rise, and the unmasking of a vector may let one more go.
            prop_assert!(messages <= 3, "IRQ-07, REG-IPSR-13");
        }
    }
}
