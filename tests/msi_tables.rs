//! MSI page tables, and interrupt files in memory: where an access to a virtual interrupt file goes, and what a message
//! to one that is in memory does there.
//!
//! Rule IDs are those of the translation rules; entries are worked out from the specification's figures.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "small numbers, and a failure is a finding"
)]

mod dma_rig;
mod full_guest;

use dma_rig::{everything, head};
use full_guest::{ADDR_MASK, ADDR_PATTERN, FSC, GSCID, Guest, MSIPTP, TC, WINDOW};
use riscv_viommu::mock::guest::{Iotinval, register};
use riscv_viommu::mock::tables::tc::{DTF, EN_ATS, PDTV, SBE, T2GPA};
use riscv_viommu::mock::tables::{PageTable, ProcessDirectory, pte};
use riscv_viommu::mock::{Event, Memory};
use riscv_viommu::{
    AtsCompletion, AtsRequest, Capabilities, Config, FirstStageMode, Gpa, Gscid, Iova, MemoryFault, Pbmt, Post,
    ProcessId, Request, Target, TranslateError, Translation,
};

/// The bits of a page number that select one of the 64 interrupt files of the VM, the first of which is at `WINDOW`.
const MASK: u64 = 0x3f;
/// Where the second stage would send it.
const BESIDE: u64 = 0x5000_0000;
/// A page outside of the window, which the second stage maps to `PLAIN`.
const OUTSIDE: u64 = 0x3000_0000;
const PLAIN: u64 = 0x5100_0000;

/// An entry in basic translate mode: V bit 0, M = 3 in 2:1, PPN in 53:10.
fn flat(page: u64) -> [u64; 2] {
    [page >> 12 << 10 | 0b111, 0]
}

/// An entry in MRIF mode: V, M = 1, address bits 55:9 in 53:7; NID bits 9:0 in 9:0, NPPN in 53:10, NID bit 10 in 60.
fn to_mrif(file: u64, notice: u64, nid: u64) -> [u64; 2] {
    [file >> 9 << 7 | 0b011, notice >> 12 << 10 | nid & 0x3ff | nid >> 10 << 60]
}

/// A device of a VM of the guest's: first stage Bare, a second stage, an MSI page table of 64 entries.
fn vm() -> Guest {
    vm_with(everything(), Memory::new())
}

fn vm_with<const CACHE: usize>(config: Config, memory: Memory) -> Guest<CACHE> {
    let mut vm = Guest::in_memory(config, memory).with_msi_table();
    vm.second.map(WINDOW, BESIDE, 1, pte::RW | pte::X);
    vm.second.map(OUTSIDE, PLAIN, 1, pte::RW | pte::X);
    vm.set(0, [0; 2]);
    vm.change(ADDR_MASK, MASK);
    vm.change(FSC, 0);
    vm
}

impl<const CACHE: usize> Guest<CACHE> {
    fn set(&self, index: u64, entry: [u64; 2]) {
        self.rig.memory.write_words(Gpa::new(self.msi.get() + 16 * index), &entry);
    }

    fn write(&self, iova: u64) -> Request {
        Request::write(self.rig.device, Iova::new(iova))
    }

    fn execute(&self, iova: u64) -> Request {
        Request::execute(self.rig.device, Iova::new(iova))
    }

    fn message(&self, iova: u64, data: u32) -> Request {
        Request::msi(self.rig.device, Iova::new(iova), data)
    }

    fn translate(&mut self, request: Request) -> Result<Translation, TranslateError> {
        self.rig.translate(request)
    }

    /// What a request goes to, or the code of its cause.
    fn target(&mut self, request: Request) -> Result<Target, u16> {
        self.translate(request).map(|translation| translation.target).map_err(|error| match error {
            TranslateError::Fault(cause) => cause.code(),
            other => panic!("{other}"),
        })
    }

    /// The loads of a request, those of the device directory left out.
    fn loads(&mut self, request: Request) -> Vec<(Gpa, usize)> {
        self.rig.forget_accesses();
        let _ = self.rig.translate(request);
        let loads = self.rig.memory.take_loads();
        loads.into_iter().skip(3).collect()
    }

    /// The causes of the records since they were last taken.
    fn causes(&mut self) -> Vec<u64> {
        self.rig.take_faults().into_iter().map(|record| record[0] & 0xfff).collect()
    }
}

const fn file(at: u64) -> Target {
    Target::InterruptFile(Gpa::new(at))
}

const fn memory(at: u64) -> Target {
    Target::Memory(Gpa::new(at))
}

// Which addresses are of interrupt files.

#[test]
fn an_address_that_matches_goes_where_its_entry_says() {
    let mut vm = vm();
    for index in 0..64 {
        vm.set(index, flat(0x4_5600_0000 + (index << 12)));
    }
    for index in 0..64 {
        let to = Ok(file(0x4_5600_0abc + (index << 12)));
        let at = WINDOW + (index << 12) + 0xabc;
        for request in [vm.read(at), vm.write(at)] {
            assert_eq!(vm.target(request), to, "MSI-01, MSI-02, MSI-03, MSI-05, MSI-08, DC-27, DX-32");
        }
    }
    for (address, to) in [(WINDOW - 0x1000, None), (WINDOW + 0x4_0000, Some(BESIDE + 0x4_0000)), (OUTSIDE, Some(PLAIN))]
    {
        let request = vm.write(address);
        assert_eq!(vm.target(request), to.map(memory).ok_or(23), "MSI-03, MSI-04, TR-20: {address:#x}");
    }
}

#[test]
fn without_an_msi_table_the_second_stage_has_the_window() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    vm.change(MSIPTP, vm.msi.get() >> 12);
    let request = vm.write(WINDOW);
    assert_eq!(vm.target(request), Ok(memory(BESIDE)), "MSI-01: MODE Off");
    // Contexts of the base format have no such words, whatever is behind them.
    let mut vm = vm_with::<0>(everything().with_extended_contexts(false), Memory::new());
    let request = vm.write(WINDOW);
    assert_eq!(vm.target(request), Ok(memory(BESIDE)), "MSI-01: MSI_FLAT = 0");
}

#[test]
fn the_address_after_the_first_stage_is_compared() {
    let mut vm = vm();
    vm.set(5, flat(0x4_5600_5000));
    let first = PageTable::first_stage(&vm.rig.memory, FirstStageMode::Sv39);
    first.map(0x1000, WINDOW + 0x5000, 0, pte::RW);
    // The IOVA looks like a file, and is another page.
    first.map(WINDOW, OUTSIDE, 0, pte::RW);
    vm.change(FSC, first.iosatp());
    for (iova, to) in [(0x1234, file(0x4_5600_5234)), (WINDOW + 4, memory(PLAIN + 4))] {
        let request = vm.write(iova);
        assert_eq!(vm.target(request), Ok(to), "MSI-02, TR-19");
    }
}

#[test]
fn a_translated_address_of_the_vm_is_compared() {
    let mut vm = vm();
    vm.set(5, flat(0x4_5600_5000));
    // A first stage that maps nothing is not asked.
    let first = PageTable::first_stage(&vm.rig.memory, FirstStageMode::Sv39);
    vm.change(FSC, first.iosatp());
    vm.change(TC, 1 | EN_ATS | T2GPA);
    let request = vm.write(WINDOW + 0x5678).translated();
    assert_eq!(vm.target(request), Ok(file(0x4_5600_5678)), "MSI-02, TR-12");
    let request = vm.read(OUTSIDE).translated();
    assert_eq!(vm.target(request), Ok(memory(PLAIN)), "MSI-02, TR-12");
    // Without T2GPA the address is the VM's own already.
    vm.change(TC, 1 | EN_ATS);
    let request = vm.write(WINDOW + 0x5678).translated();
    assert_eq!(vm.target(request), Ok(memory(WINDOW + 0x5678)), "TR-11");
}

#[test]
fn tables_are_read_through_the_second_stage_even_in_the_window() {
    let mut vm = vm();
    let process = ProcessId::truncate(3);
    let first = PageTable::first_stage(&vm.rig.memory, FirstStageMode::Sv39);
    let processes = ProcessDirectory::new(&vm.rig.memory, 1);
    first.map(0x1000, OUTSIDE, 0, pte::RW);
    first.map(0x2000, first.root().get(), 0, pte::RW);
    processes.set(process, [1, first.iosatp()]);
    vm.change(TC, 1 | PDTV);
    vm.change(FSC, processes.pdtp());
    // The whole gigabyte that holds the tables is one interrupt file, without a valid entry.
    vm.change(ADDR_MASK, 0);
    for tables in [processes.root(), first.root()] {
        vm.change(ADDR_PATTERN, tables.get() >> 12);
        let request = vm.read(0x1000).with_process(process, false);
        assert_eq!(vm.target(request), Ok(memory(PLAIN)), "MSI-02: implicit accesses");
    }
    let request = vm.read(0x2000).with_process(process, false);
    assert_eq!(vm.target(request), Err(262), "MSI-02: the device's own");
}

#[test]
fn all_52_bits_of_the_page_number_are_compared() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    for bit in 12..64 {
        let at = WINDOW ^ 1 << bit;
        let request = vm.write(at);
        if bit < 18 {
            assert_eq!(vm.target(request), Err(262), "MSI-03: bit {bit} selects an entry");
            let _ = vm.rig.take_faults();
            continue;
        }
        // What misses meets the second stage: it maps little, and takes no address of more than 41 bits.
        let expected = match bit {
            18..21 => Ok(memory(BESIDE ^ 1 << bit)),
            31 => Ok(memory(at)),
            _ => Err(23),
        };
        assert_eq!(vm.target(request), expected, "MSI-03, S2-03: bit {bit}");
        if expected.is_err() {
            assert_eq!(vm.rig.take_fault(), [head(23, 3, None), 0, at, at], "MSI-03, S2-07: bit {bit}");
        }
    }
}

#[test]
fn a_window_may_be_anywhere_in_the_widest_guest_physical_space() {
    // Sv57x4 is offered, so that addresses have 59 bits; this device's second stage takes 41.
    let mut vm = vm();
    let window = 0x7ff_dead_b000_0000_u64;
    vm.set(9, flat(0x4_5600_9000));
    vm.change(ADDR_PATTERN, window >> 12);
    let request = vm.write(window + 0x9010);
    assert_eq!(vm.target(request), Ok(file(0x4_5600_9010)), "MSI-03, MSI-04: the second stage is not used");
    let request = vm.write(window + 0x9010 + (1 << 59));
    assert_eq!(vm.target(request), Err(23), "MSI-03");
}

#[test]
fn pattern_bits_under_the_mask_are_ignored() {
    let mut vm = vm();
    vm.set(0x21, flat(0x4_5600_0000));
    for low in 0..64 {
        vm.change(ADDR_PATTERN, WINDOW >> 12 | low);
        let request = vm.write(WINDOW + 0x2_1000);
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "MSI-03, DC-28, DC-29: {low:#x}");
    }
}

#[test]
fn an_entry_that_is_not_valid_does_not_leave_the_page_to_the_second_stage() {
    let mut vm = vm();
    let request = vm.read(WINDOW + 0x3008);
    assert_eq!(vm.target(request), Err(262), "MSI-04");
    assert_eq!(vm.rig.take_fault(), [head(262, 2, None), 0, WINDOW + 0x3008, 0], "MSI-04, FR-07");
    assert_eq!(vm.loads(request), [(Gpa::new(vm.msi.get() + 0x30), 2)], "MSI-04, MSI-06: nothing else");
    let outside = vm.read(OUTSIDE);
    assert_eq!(vm.loads(outside).len(), 2, "MSI-04: two levels down to 2 MiB, and no entry of the MSI table");
}

// Which entry, and where it is.

#[test]
fn the_masked_bits_select_the_entry_in_their_order() {
    let mut vm = vm();
    // Bits abcdefgh of a page number, of which a, c, f and g select; and one far above them.
    vm.change(ADDR_MASK, 1 << 20 | 0b1010_0110);
    vm.change(ADDR_PATTERN, WINDOW >> 12 | 0b0101_1001);
    for index in 0..32_u64 {
        let bit = |n: u64| index >> n & 1;
        let page = bit(4) << 20 | bit(3) << 7 | bit(2) << 5 | bit(1) << 2 | bit(0) << 1 | 0b0101_1001;
        let request = vm.write(WINDOW + (page << 12));
        let expected = [(Gpa::new(vm.msi.get() + 16 * index), 2)];
        assert_eq!(vm.loads(request), expected, "MSI-05, MSI-06: {page:#b}");
    }
}

#[test]
fn the_table_has_as_many_entries_as_the_mask_has_bits_for() {
    let mut vm = vm();
    let table = vm.rig.memory.allocate(4);
    vm.change(MSIPTP, 1 << 60 | table.get() >> 12);
    vm.change(ADDR_MASK, 0x3ff);
    let request = vm.write(WINDOW + 0x3f_f000);
    assert_eq!(vm.loads(request), [(Gpa::new(table.get() + 0x3ff0), 2)], "MSI-06");
    // Not aligned to its 16 KiB, base and offset are ORed.
    vm.change(MSIPTP, 1 << 60 | table.get() >> 12 | 1);
    for (index, offset) in [(0x100, 0x1000), (0x201, 0x3010)] {
        let request = vm.write(WINDOW + (index << 12));
        assert_eq!(vm.loads(request), [(Gpa::new(table.get() + offset), 2)], "MSI-06, UNSPECIFIED");
    }
}

#[test]
fn a_table_of_one_entry_needs_no_mask() {
    let mut vm = vm();
    vm.change(ADDR_MASK, 0);
    vm.set(0, flat(0x4_5600_0000));
    let request = vm.write(WINDOW + 0xff8);
    assert_eq!(vm.target(request), Ok(file(0x4_5600_0ff8)), "MSI-05, MSI-06");
    let request = vm.write(WINDOW + 0x1000);
    assert_eq!(vm.target(request), Ok(memory(BESIDE + 0x1000)), "MSI-03");
}

// The steps of the entry.

#[test]
fn an_entry_that_can_not_be_read_is_an_access_fault_or_corruption() {
    let mut vm = vm();
    vm.set(1, flat(0x4_5600_0000));
    let at = Gpa::new(vm.msi.get() + 16);
    for (fault, cause) in [(MemoryFault::Access, 261), (MemoryFault::Corruption, 270)] {
        // Either half of it, whether it is looked at or not.
        for half in [0, 8] {
            vm.rig.memory.fail(Gpa::new(at.get() + half), 8, fault);
            for (request, ttyp) in
                [(vm.read(WINDOW + 0x1004), 2), (vm.write(WINDOW + 0x1004), 3), (vm.execute(WINDOW + 0x1004), 1)]
            {
                assert_eq!(vm.target(request), Err(cause), "MSI-07");
                let expected = [head(cause, ttyp, None), 0, WINDOW + 0x1004, 0];
                assert_eq!(vm.rig.take_fault(), expected, "MSI-07, FR-07");
            }
            vm.rig.memory.clear_failures();
        }
    }
}

#[test]
fn an_entry_beyond_the_physical_address_size_is_an_access_fault() {
    let mut vm = vm_with::<0>(everything().with_pas(40), Memory::new());
    for (table, expected) in [(0xff_ffff_f000, Ok(file(0x4_5600_0000))), (0x100_0000_0000, Err(261))] {
        vm.rig.memory.map(Gpa::new(table), 4096);
        vm.msi = Gpa::new(table);
        vm.set(0, flat(0x4_5600_0000));
        vm.change(MSIPTP, 1 << 60 | table >> 12);
        let request = vm.write(WINDOW);
        assert_eq!(vm.target(request), expected, "MSI-07: {table:#x}");
    }
}

#[test]
fn the_first_step_that_fails_decides() {
    let mut vm = vm();
    let good = 0x4_5600_0000_u64 >> 2;
    // V, M in 2:1, C in 63; everything else that could be wrong is as well.
    for (entry, cause, why) in [
        (0, 262, "nothing at all"),
        (u64::MAX ^ 1, 262, "V = 0 before C, M and what is reserved"),
        (1 << 63 | good | 0b111, 263, "C = 1: no custom use, UNSPECIFIED"),
        (1 << 63 | good | 0b011, 263, "C = 1 in MRIF mode"),
        (1 << 63 | 0x3f8 | 0b111, 263, "C = 1 and reserved bits"),
        (good | 0b001, 263, "M = 0"),
        (good | 0b101, 263, "M = 2"),
    ] {
        vm.set(0, [entry, 0]);
        for request in [vm.read(WINDOW), vm.write(WINDOW), vm.execute(WINDOW)] {
            assert_eq!(vm.target(request), Err(cause), "MSI-07: {why}");
        }
        let causes = vm.causes();
        assert!(causes.iter().all(|&recorded| recorded == u64::from(cause)) && !causes.is_empty(), "MSI-07: {why}");
    }
}

#[test]
fn reserved_bits_of_a_basic_entry_are_a_misconfiguration_and_its_second_word_is_nothing() {
    let mut vm = vm();
    let [good, _] = flat(0x4_5600_0000);
    for bit in 0..64 {
        vm.set(0, [good ^ 1 << bit, u64::MAX]);
        let expected = match bit {
            0 => Err(262),
            1..10 | 54..64 => Err(263),
            _ => Ok(file((0x4_5600_0000 ^ 1 << bit << 2) + 0x123)),
        };
        let request = vm.write(WINDOW + 0x123);
        assert_eq!(vm.target(request), expected, "MSI-08: bit {bit}");
        let _ = vm.rig.take_faults();
    }
    vm.set(0, [0x003f_ffff_ffff_fc07, u64::MAX]);
    let request = vm.write(WINDOW + 0xfff);
    assert_eq!(vm.target(request), Ok(file(0x00ff_ffff_ffff_ffff)), "MSI-08: any page, of 44 bits");
}

#[test]
fn reserved_bits_of_an_mrif_entry_are_a_misconfiguration() {
    let mut vm = vm();
    let page = vm.rig.memory.allocate(1).get();
    let good = to_mrif(page, page, 0);
    // 6:3 and 62:54 of the first word, C; 59:54 and 63:61 of the second.
    for bit in 0..64 {
        let mut entry = good;
        entry[0] |= if bit == 2 { 0 } else { 1 << bit };
        vm.set(0, entry);
        // With bit 2 it is in basic translate mode.
        let misconfigured = matches!(bit, 3..=6 | 54..=63);
        let request = vm.read(WINDOW).with_length(4);
        let expected = if misconfigured { Err(263) } else { Ok(Target::Mrif) };
        assert_eq!(vm.target(request), expected, "MSI-09: bit {bit} of the first word");
        let mut entry = good;
        entry[1] |= 1 << bit;
        vm.set(0, entry);
        let misconfigured = matches!(bit, 54..=59 | 61..=63);
        let expected = if misconfigured { Err(263) } else { Ok(Target::Mrif) };
        assert_eq!(vm.target(request), expected, "MSI-09: bit {bit} of the second word");
        let _ = vm.rig.take_faults();
    }
}

#[test]
fn where_mrif_mode_is_not_offered_its_entries_are_misconfigured() {
    let offer = Capabilities::from_bits(u64::MAX).with_pas(56).with_msi_mrif(false);
    let mut vm = vm_with::<0>(everything().with_capabilities(offer), Memory::new());
    assert_eq!(vm.rig.read8(register::CAPABILITIES) >> 21 & 0b111, 0b010, "REG-CAP-14 to -16");
    let page = vm.rig.memory.allocate(1).get();
    vm.set(0, to_mrif(page, page, 1));
    let mut both = to_mrif(page, page, 1);
    both[0] |= 0x78;
    vm.set(1, both);
    vm.set(2, flat(0x4_5600_0000));
    vm.rig.forget_accesses();
    for (at, expected) in [(0, Err(263)), (0x1000, Err(263)), (0x2000, Ok(file(0x4_5600_0000)))] {
        let request = vm.message(WINDOW + at, 7);
        assert_eq!(vm.target(request), expected, "MSI-09, MSI-10");
    }
    assert_eq!(vm.causes(), [263, 263], "MSI-10");
    assert!(vm.rig.memory.take_events().iter().all(|event| matches!(event, Event::Store(..))), "MSI-10: records only");
}

#[test]
fn a_host_without_atomic_exchange_offers_no_interrupt_files_in_memory() {
    let memory = Memory::new();
    memory.without_compare_exchange();
    let mut vm = vm_with::<0>(everything(), memory);
    assert_eq!(vm.rig.read8(register::CAPABILITIES) >> 21 & 0b111, 0b010, "MRIF-06, REG-CAP-14, -15, -16");
    let page = vm.rig.memory.allocate(1).get();
    vm.set(0, to_mrif(page, page, 1));
    let request = vm.message(WINDOW, 7);
    assert_eq!(vm.target(request), Err(263), "MSI-09, MSI-10");
    assert_eq!(vm.rig.memory.read(Gpa::new(page)), 0, "MRIF-06");
}

#[test]
fn entries_are_in_the_byte_order_of_fctl_and_not_of_the_device() {
    for (sbe, why) in [(0, "SBE = 0"), (SBE, "SBE = 1")] {
        let mut vm = vm();
        vm.change(TC, 1 | sbe);
        vm.set(0, flat(0x4_5600_0000));
        let request = vm.write(WINDOW);
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "MSI-06, DX-31: BE = 0, {why}");
        let mut vm = big_endian();
        vm.change(TC, 1 | sbe);
        let table = vm.msi;
        vm.rig.memory.big_endian().write_words(table, &flat(0x4_5600_0000));
        let request = vm.write(WINDOW);
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "MSI-06, DX-31: BE = 1, {why}");
        vm.rig.memory.write_words(table, &flat(0x4_5600_0000));
        assert_eq!(vm.target(request), Err(262), "MSI-06, DX-31: V is in the last byte, {why}");
    }
}

/// The same VM with `fctl.BE` = 1; entries of its MSI table are for the test to swap.
fn big_endian() -> Guest {
    let memory = Memory::new();
    let mut vm = vm_with(everything(), memory.big_endian());
    vm.rig.set_fctl(1);
    vm.rig.memory = memory;
    vm
}

// What an access may do there.

#[test]
fn interrupt_files_can_be_read_and_written_and_never_executed() {
    let mut vm = vm();
    let page = vm.rig.memory.allocate(1).get();
    vm.set(0, flat(0x4_5600_0000));
    vm.set(1, to_mrif(page, page, 1));
    vm.rig.forget_accesses();
    let read = vm.read(WINDOW);
    let translation = vm.translate(read).expect("a basic entry");
    let permissions = translation.permissions;
    assert_eq!((permissions.read, permissions.write, permissions.execute), (true, true, false), "MSI-11, AD-11");
    for at in [WINDOW, WINDOW + 0x1000] {
        let request = vm.execute(at).with_length(4);
        assert_eq!(vm.target(request), Err(1), "MSI-11");
        assert_eq!(vm.rig.take_fault(), [head(1, 1, None), 0, at, 0], "MSI-11, ACC-04");
    }
    // Only after the checks of the entry.
    for (entry, cause) in [(0, 262), (0b001, 263), (0x3f8 | 0b111, 263)] {
        vm.set(2, [entry, 0]);
        let request = vm.execute(WINDOW + 0x2000);
        assert_eq!(vm.target(request), Err(cause), "MSI-11, MSI-07");
    }
    let stores_only = vm.rig.memory.take_events().iter().all(|event| matches!(event, Event::Store(..)));
    assert!(stores_only, "MSI-11, AD-11: no entry is marked");
}

#[test]
fn translated_reads_for_execution_of_a_file_fail_with_a_process_alone() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    let processes = ProcessDirectory::new(&vm.rig.memory, 1);
    vm.change(TC, 1 | EN_ATS | T2GPA | PDTV);
    vm.change(FSC, processes.pdtp());
    let request = vm.execute(WINDOW).translated();
    assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "ACC-06, UNSPECIFIED: it counts as a read");
    let request = request.with_process(ProcessId::truncate(1), false);
    assert_eq!(vm.target(request), Err(1), "MSI-11, ACC-06");
    // PV in 32, PID in 31:12.
    assert_eq!(vm.rig.take_fault(), [head(1, 5, Some((1, false))), 0, WINDOW, 0], "MSI-11, ACC-03");
}

#[test]
fn a_page_the_first_stage_keeps_read_only_keeps_messages_away() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    let first = PageTable::first_stage(&vm.rig.memory, FirstStageMode::Sv39);
    first.map(0x1000, WINDOW, 0, pte::RO);
    first.map(0x2000, WINDOW, 0, pte::RW & !pte::D);
    vm.change(FSC, first.iosatp());
    for iova in [0x1000, 0x2000] {
        let request = vm.message(iova, 7);
        assert_eq!(vm.target(request), Err(15), "MSI-12, TR-18");
        let loads = vm.loads(request);
        assert!(!loads.iter().any(|load| load.0 == vm.msi), "MSI-12: its entry is not even read");
        let request = vm.read(iova);
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "MSI-12");
    }
}

#[test]
fn the_first_stage_alone_has_a_say_in_the_memory_type_and_the_entry_in_the_size() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    // 1 GiB of the first stage holds the window; the second stage says IO (PBMT 2 in 62:61).
    let first = PageTable::first_stage(&vm.rig.memory, FirstStageMode::Sv39);
    vm.second.map(WINDOW, BESIDE, 1, pte::RW | 2 << 61);
    let cases = [(0, Pbmt::Pma), (1, Pbmt::Nc), (2, Pbmt::Io)];
    for (encoding, memory_type) in cases {
        first.map(0x40_0000_0000 - 0x4000_0000, 0, 2, pte::RW | encoding << 61);
        vm.change(FSC, first.iosatp());
        let request = vm.write(0x3f_c000_0000 + WINDOW + 0xff0).with_length(64);
        let translation = vm.translate(request).expect("a basic entry");
        assert_eq!(translation.target, file(0x4_5600_0ff0), "MSI-08");
        assert_eq!((translation.size, translation.length), (4096, 16), "SZ-05");
        assert_eq!(translation.memory_type, memory_type, "PB-01, PB-04");
        let request = vm.write(0x3f_c000_0000 + WINDOW + 0x10_0000);
        let beside = vm.translate(request).expect("the second stage maps it").memory_type;
        assert_eq!(beside, if encoding == 0 { Pbmt::Io } else { memory_type }, "PB-02");
    }
}

#[test]
fn a_range_beside_the_window_does_not_reach_into_it() {
    let mut vm = vm();
    // 2 MiB of the second stage: files in the first 256 KiB of it.
    for (offset, size) in [(0x4_0000, 0x4_0000), (0x8_0000, 0x8_0000), (0x1f_ffff, 0x10_0000)] {
        let request = vm.read(WINDOW + offset);
        let translation = vm.translate(request).expect("mapped");
        assert_eq!((translation.target, translation.size), (memory(BESIDE + offset), size), "SZ-04");
    }
    let request = vm.read(OUTSIDE);
    assert_eq!(vm.translate(request).expect("mapped").size, 0x20_0000, "SZ-01, SZ-04");
}

#[test]
fn a_basic_entry_takes_accesses_of_any_size_and_place() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    for (offset, length) in [(0, 1), (0, 8), (1, 4), (3, 2), (0xff0, 16), (0xffd, 3), (0, 4096)] {
        for request in [vm.read(WINDOW + offset), vm.write(WINDOW + offset)] {
            let translation = vm.translate(request.with_length(length)).expect("a basic entry");
            assert_eq!((translation.target, translation.length), (file(0x4_5600_0000 + offset), length), "MSI-14");
        }
        let message = vm.message(WINDOW + offset, 7).with_length(length);
        assert_eq!(vm.target(message), Ok(file(0x4_5600_0000 + offset)), "MSI-14: the host makes the access");
    }
}

// Caching.

/// An IOTINVAL.GVMA of the VM, for one page of it if there is one.
fn gvma(page: Option<u64>) -> [u64; 2] {
    let vm = Iotinval::ALL.gscid(GSCID);
    page.map_or(vm, |page| vm.address(Iova::new(page))).gvma()
}

#[test]
fn entries_are_remembered_until_the_second_stage_is_invalidated() {
    let mut vm = vm_with::<16>(everything(), Memory::new());
    let other = Gscid::truncate(0x78);
    vm.set(1, flat(0x4_5600_0000));
    vm.set(2, flat(0x4_5700_0000));
    let request = vm.write(WINDOW + 0x1000);
    let beside = vm.write(WINDOW + 0x2000);
    let kept = [
        Iotinval::ALL.vma(),
        Iotinval::ALL.gscid(GSCID).vma(),
        Iotinval::ALL.gscid(GSCID).address(Iova::new(WINDOW + 0x1000)).vma(),
        Iotinval::ALL.gscid(other).gvma(),
        Iotinval::ALL.gscid(other).address(Iova::new(WINDOW + 0x1000)).gvma(),
        gvma(Some(WINDOW)),
        gvma(Some(WINDOW + 0x2000)),
    ];
    let forgotten = [gvma(Some(WINDOW + 0x1000)), gvma(None), Iotinval::ALL.gvma()];
    for (command, forgets) in
        kept.map(|command| (command, false)).into_iter().chain(forgotten.map(|command| (command, true)))
    {
        vm.set(1, flat(0x4_5600_0000));
        let _ = vm.rig.run([Iotinval::ALL.gvma()]);
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)));
        assert!(vm.target(beside).is_ok());
        vm.set(1, flat(0x4_5800_0000));
        assert_eq!(vm.target(request), Ok(file(0x4_5600_0000)), "MSI-13, CA-06: remembered");
        let _ = vm.rig.run([command]);
        let expected = if forgets { 0x4_5800_0000 } else { 0x4_5600_0000 };
        assert_eq!(vm.target(request), Ok(file(expected)), "MSI-13, CA-03: {command:x?}");
    }
}

#[test]
fn entries_that_are_not_valid_and_those_of_mrif_mode_are_looked_at_each_time() {
    let mut vm = vm_with::<16>(everything(), Memory::new());
    let page = vm.rig.memory.allocate(1).get();
    let request = vm.read(WINDOW).with_length(4);
    for (entry, expected) in [
        ([0, 0], Err(262)),
        ([0b001, 0], Err(263)),
        (to_mrif(page, page, 1), Ok(Target::Mrif)),
        (flat(0x4_5600_0000), Ok(file(0x4_5600_0000))),
        // Remembered from now on, without a command.
        ([0, 0], Ok(file(0x4_5600_0000))),
    ] {
        vm.set(0, entry);
        assert_eq!(vm.target(request), expected, "MSI-13, CA-02");
    }
}

#[test]
fn a_remembered_entry_allows_no_more_than_one_that_is_read() {
    let mut vm = vm_with::<16>(everything(), Memory::new());
    vm.set(0, flat(0x4_5600_0000));
    let (write, execute) = (vm.write(WINDOW + 8), vm.execute(WINDOW + 8));
    assert_eq!(vm.target(write), Ok(file(0x4_5600_0008)));
    assert_eq!(vm.target(execute), Err(1), "MSI-11, CA-07");
    let read = vm.read(WINDOW + 0xffc);
    assert_eq!(vm.target(read), Ok(file(0x4_5600_0ffc)), "MSI-08: the offset is the access's own");
}

// Interrupt files in memory.

/// A VM whose file 0 is in memory: 512 bytes in the middle of a page, with notice `nid` to a page of its own.
fn mrif(nid: u64) -> (Guest, u64, u64) {
    let vm = vm();
    let (file, notice) = (vm.rig.memory.allocate(1).get() + 0x400, vm.rig.memory.allocate(1).get());
    vm.set(0, to_mrif(file, notice, nid));
    vm.rig.forget_accesses();
    (vm, file, notice)
}

/// The events of a message: the pending word changes, then the notice is sent.
fn delivered(at: u64, old: u64, new: u64, notice: u64, nid: u32) -> [Event; 2] {
    [Event::Exchange(Gpa::new(at), old, new), Event::Post(Gpa::new(notice), nid, Post::Notice)]
}

#[test]
fn every_identity_has_its_bit() {
    let (mut vm, file, notice) = mrif(0x123);
    let mut pending = [0_u64; 32];
    for identity in 0..2048_u32 {
        let request = vm.message(WINDOW, identity);
        assert_eq!(vm.target(request), Ok(Target::Mrif));
        let (word, bit) = (u64::from(identity / 64), identity % 64);
        let place = &mut pending[usize::try_from(word).expect("small")];
        let (old, new) = (*place, *place | 1 << bit);
        *place = new;
        let expected = delivered(file + 16 * word, old, new, notice, 0x123);
        assert_eq!(vm.rig.memory.take_events(), expected, "MRIF-05, MRIF-07, MRIF-08: {identity}");
    }
    for k in 0..32 {
        let pair = vm.rig.memory.read_words(Gpa::new(file + 16 * k), 2);
        assert_eq!(pair, [u64::MAX, 0], "MRIF-08: pending is full, enable untouched");
    }
    let page = file & !0xfff;
    assert!(vm.rig.memory.read_words(Gpa::new(page), 128).iter().all(|&word| word == 0), "MRIF-08: before it");
    assert!(vm.rig.memory.read_words(Gpa::new(page + 0x600), 320).iter().all(|&word| word == 0), "MRIF-08: behind it");
}

#[test]
fn only_the_4_bytes_at_the_start_of_the_page_and_those_after_them_are_doorbells() {
    let (mut vm, file, notice) = mrif(0x7ff);
    // D = 0x45: bit 5 of the second pending word. Little-endian at A[2] = 0.
    let request = vm.message(WINDOW, 0x45);
    assert_eq!(vm.target(request), Ok(Target::Mrif));
    assert_eq!(vm.rig.memory.take_events(), delivered(file + 16, 0, 1 << 5, notice, 0x7ff), "MRIF-03");
    // The bytes 00 00 00 46, at A[2] = 1: big-endian.
    let request = vm.message(WINDOW + 4, 0x4600_0000);
    assert_eq!(vm.target(request), Ok(Target::Mrif));
    assert_eq!(
        vm.rig.memory.take_events(),
        delivered(file + 16, 1 << 5, 3 << 5, notice, 0x7ff),
        "MRIF-03, UNSPECIFIED"
    );
    // Everything else is taken, and nothing comes of it.
    let elsewhere = (8..0x1000).step_by(4).map(|offset| (offset, 0x45_u32));
    let too_large = (11..32).flat_map(|bit| [(0, 1 << bit), (4, (1_u32 << bit).swap_bytes()), (0, 1 << bit | 0x45)]);
    let turned = [(0, 0x4500_0000), (4, 0x45), (0, u32::MAX), (4, u32::MAX), (0, 2048)];
    for (offset, data) in elsewhere.chain(too_large).chain(turned) {
        let request = vm.message(WINDOW + offset, data);
        assert_eq!(vm.target(request), Ok(Target::Mrif), "MRIF-04: {data:#x} at {offset:#x}");
        assert_eq!(vm.rig.memory.take_events(), [], "MRIF-04: {data:#x} at {offset:#x}");
    }
    assert_eq!(vm.rig.take_faults(), [[0; 4]; 0], "MRIF-04");
}

#[test]
fn what_is_not_4_aligned_bytes_is_not_supported() {
    let (mut vm, ..) = mrif(1);
    for (offset, length) in
        [(0, 1), (0, 2), (0, 3), (0, 5), (0, 8), (0, 16), (1, 4), (2, 4), (3, 4), (5, 4), (0, 4096), (0xffe, 4)]
    {
        let at = WINDOW + offset;
        for request in [vm.read(at), vm.write(at), vm.message(at, 7)] {
            let result = vm.translate(request.with_length(length));
            assert_eq!(result, Err(TranslateError::Unsupported), "MRIF-01: {length} bytes at {offset:#x}");
        }
    }
    assert_eq!(vm.rig.memory.take_events(), [], "MRIF-01");
    assert_eq!(vm.rig.take_faults(), [[0; 4]; 0], "MRIF-01");
}

#[test]
fn a_read_of_a_file_in_memory_is_a_read_of_zeros() {
    let (mut vm, file, _) = mrif(1);
    vm.rig.memory.write(Gpa::new(file), u64::MAX);
    vm.rig.memory.fail(Gpa::new(file), 512, MemoryFault::Corruption);
    for offset in [0, 4, 8, 0xffc] {
        let request = vm.read(WINDOW + offset).with_length(4);
        let translation = vm.translate(request).expect("4 aligned bytes");
        assert_eq!((translation.target, translation.length), (Target::Mrif, 4), "MRIF-02");
        assert_eq!(translation.size, 4096, "SZ-05");
    }
    assert_eq!(vm.rig.memory.take_events(), [], "MRIF-02: no notice");
}

#[test]
fn a_write_without_its_data_is_asked_for_again() {
    let (mut vm, file, notice) = mrif(1);
    let request = vm.write(WINDOW).with_length(4);
    assert_eq!(vm.translate(request), Err(TranslateError::NeedsData), "MRIF-03");
    assert_eq!((vm.rig.memory.take_events(), vm.rig.take_faults().len()), (vec![], 0), "MRIF-03");
    let request = vm.message(WINDOW, 2);
    assert_eq!(vm.target(request), Ok(Target::Mrif));
    assert_eq!(vm.rig.memory.take_events(), delivered(file, 0, 4, notice, 1), "MRIF-03");
}

#[test]
fn the_notice_is_sent_whether_or_not_the_bit_was_new_or_is_enabled() {
    for (pending, enabled) in [(0, 0), (0, u64::MAX), (1 << 7, 0), (u64::MAX, u64::MAX)] {
        let (mut vm, file, notice) = mrif(0x400);
        vm.rig.memory.write_words(Gpa::new(file), &[pending, enabled]);
        let request = vm.message(WINDOW, 7);
        assert_eq!(vm.target(request), Ok(Target::Mrif));
        let expected = delivered(file, pending, pending | 1 << 7, notice, 0x400);
        assert_eq!(vm.rig.memory.take_events(), expected, "MRIF-07, MRIF-06");
        // NID is zero-extended to the 4 bytes of the notice.
        assert_eq!(vm.rig.memory.read(Gpa::new(notice)), 0x400, "MRIF-07, MRIF-10: plain memory takes it, too");
    }
}

#[test]
fn identity_0_is_an_identity() {
    let (mut vm, file, notice) = mrif(0);
    for offset in [0, 4] {
        let request = vm.message(WINDOW + offset, 0);
        assert_eq!(vm.target(request), Ok(Target::Mrif));
        let old = offset >> 2;
        assert_eq!(vm.rig.memory.take_events(), delivered(file, old, 1, notice, 0), "MRIF-05");
    }
}

#[test]
fn files_and_notices_are_little_endian_always() {
    let mut vm = big_endian();
    let (file, notice) = (vm.rig.memory.allocate(1).get(), vm.rig.memory.allocate(1).get());
    vm.rig.memory.big_endian().write_words(vm.msi, &to_mrif(file, notice, 0x456));
    for sbe in [0, SBE] {
        vm.change(TC, 1 | sbe);
        vm.rig.memory.write(Gpa::new(file + 16), 0);
        vm.rig.forget_accesses();
        let request = vm.message(WINDOW, 0x41);
        assert_eq!(vm.target(request), Ok(Target::Mrif));
        assert_eq!(vm.rig.memory.take_events(), delivered(file + 16, 0, 2, notice, 0x456), "MRIF-03, MRIF-05, MRIF-07");
    }
}

#[test]
fn a_file_may_be_anywhere_and_its_notice_may_go_anywhere() {
    let (mut vm, ..) = mrif(1);
    // Address bits 55:9, all of them; NPPN outside of every memory but an interrupt file's.
    let (file, notice) = (0x00ff_ffff_ffff_fe00, 0x00ff_ffff_ffff_e000);
    vm.rig.memory.map(Gpa::new(file), 512);
    vm.rig.memory.interrupt_page(Gpa::new(notice));
    vm.set(0, to_mrif(file, notice, 0x2aa));
    let request = vm.message(WINDOW, 2047);
    assert_eq!(vm.target(request), Ok(Target::Mrif));
    let expected = delivered(file + 0x1f0, 0, 1 << 63, notice, 0x2aa);
    assert_eq!(vm.rig.memory.take_events(), expected, "MSI-09, DX-27, MRIF-08, MRIF-10");
}

#[test]
fn bits_that_others_set_meanwhile_are_kept() {
    let (mut vm, file, notice) = mrif(1);
    // Another word each time the update is about to happen, seven times; the eighth attempt succeeds.
    let others: Vec<u64> = (1..8).map(|n| 1 << (n + 40)).collect();
    vm.rig.memory.on_exchange(Gpa::new(file), others);
    let request = vm.message(WINDOW, 3);
    assert_eq!(vm.target(request), Ok(Target::Mrif));
    assert_eq!(vm.rig.memory.take_events(), delivered(file, 1 << 47, 1 << 47 | 1 << 3, notice, 1), "MRIF-06");
    assert_eq!(vm.rig.memory.take_loads().iter().filter(|load| load.0 == Gpa::new(file)).count(), 8, "MRIF-06");
}

#[test]
fn an_update_that_never_succeeds_is_given_up() {
    let (mut vm, file, _) = mrif(1);
    vm.rig.memory.on_exchange(Gpa::new(file), (1..100).map(|n| n << 8));
    let request = vm.message(WINDOW, 3);
    assert_eq!(vm.target(request), Err(264), "MRIF-06, MRIF-09, UNSPECIFIED: VT-13");
    assert_eq!(vm.rig.memory.take_posts(), [], "MRIF-07: no notice");
    assert_eq!(vm.rig.memory.take_loads().iter().filter(|load| load.0 == Gpa::new(file)).count(), 8, "VT-13");
    assert_eq!(vm.rig.take_fault(), [head(264, 3, None), 0, WINDOW, 0], "MRIF-09");
}

#[test]
fn a_file_that_can_not_be_updated_is_an_access_fault_or_corruption() {
    for (fault, cause) in [(MemoryFault::Access, 264), (MemoryFault::Corruption, 271)] {
        for stores in [false, true] {
            let (mut vm, file, _) = mrif(1);
            // Only the word that is meant.
            let at = Gpa::new(file + 0x10);
            if stores {
                vm.rig.memory.fail_stores(at, 8, fault);
            } else {
                vm.rig.memory.fail(at, 8, fault);
            }
            let request = vm.message(WINDOW, 64);
            assert_eq!(vm.target(request), Err(cause), "MRIF-09");
            assert_eq!(vm.rig.take_fault(), [head(cause, 3, None), 0, WINDOW, 0], "MRIF-09, FR-07");
            assert_eq!((vm.rig.memory.read(at), vm.rig.memory.take_posts()), (0, vec![]), "MRIF-07: no notice");
            let request = vm.message(WINDOW, 63);
            assert_eq!(vm.target(request), Ok(Target::Mrif), "MRIF-09");
            // DTF hides the record, not the fault.
            vm.change(TC, 1 | DTF);
            let request = vm.message(WINDOW, 64);
            assert_eq!((vm.target(request), vm.causes()), (Err(cause), vec![]), "MRIF-09, FR-03");
        }
    }
}

#[test]
fn a_file_outside_of_memory_or_of_the_address_size_is_an_access_fault() {
    let mut vm = vm_with::<0>(everything().with_pas(40), Memory::new());
    let notice = vm.rig.memory.allocate(1).get();
    vm.rig.memory.map(Gpa::new(0xff_ffff_f000), 4096);
    vm.rig.memory.map(Gpa::new(0x100_0000_0000), 4096);
    for (file, expected) in [(0xff_ffff_fe00, Ok(Target::Mrif)), (0x100_0000_0000, Err(264)), (0x1000, Err(264))] {
        vm.set(0, to_mrif(file, notice, 1));
        let request = vm.message(WINDOW, 3);
        assert_eq!(vm.target(request), expected, "MRIF-09: {file:#x}");
    }
    assert_eq!(vm.causes(), [264], "MRIF-09, FR-12: the second is the same as the first");
}

#[test]
fn a_notice_that_can_not_be_stored_is_lost_and_nothing_is_said_of_it() {
    let mut vm = vm_with::<0>(everything().with_pas(40), Memory::new());
    let file = vm.rig.memory.allocate(1).get();
    let read_only = vm.rig.memory.allocate(1).get();
    vm.rig.memory.read_only(Gpa::new(read_only), 4096);
    vm.rig.memory.map(Gpa::new(0x100_0000_0000), 4096);
    for notice in [read_only, 0x1000, 0x100_0000_0000] {
        vm.set(0, to_mrif(file, notice, 1));
        vm.rig.memory.write(Gpa::new(file), 0);
        vm.rig.forget_accesses();
        let request = vm.message(WINDOW, 3);
        assert_eq!(vm.target(request), Ok(Target::Mrif), "MRIF-09, UNSPECIFIED: {notice:#x}");
        let expected = [Event::Exchange(Gpa::new(file), 0, 8)];
        assert_eq!(vm.rig.memory.take_events(), expected, "MRIF-09: no 273 for it");
    }
    assert_eq!(vm.rig.take_faults(), [[0; 4]; 0], "MRIF-09, FR-14");
}

#[test]
fn a_translated_message_reaches_a_file_in_memory() {
    let (mut vm, file, notice) = mrif(1);
    vm.change(TC, 1 | EN_ATS | T2GPA);
    let request = vm.message(WINDOW, 3).translated();
    assert_eq!(vm.target(request), Ok(Target::Mrif), "MSI-02, TR-12");
    assert_eq!(vm.rig.memory.take_events(), delivered(file, 0, 8, notice, 1), "MRIF-05");
    vm.rig.memory.read_only(Gpa::new(file), 8);
    assert_eq!(vm.target(request), Err(264), "MRIF-09");
    assert_eq!(vm.rig.take_fault(), [head(264, 7, None), 0, WINDOW, 0], "MRIF-09, ACC-03");
}

#[test]
fn asking_for_a_translation_of_a_file_in_memory_stores_nothing_there() {
    let (mut vm, file, _) = mrif(1);
    vm.change(TC, 1 | EN_ATS);
    let request = AtsRequest::new(vm.rig.device, Iova::new(WINDOW));
    let completion = vm.rig.iommu.ats_translate(&request).expect("offered");
    assert!(matches!(completion, AtsCompletion::Success(answer) if answer.untranslated_only), "ATS-14");
    assert_eq!((vm.rig.memory.take_events(), vm.rig.memory.read(Gpa::new(file))), (vec![], 0), "MRIF-07");
}

#[test]
fn pieces_of_a_request_end_at_the_file() {
    let mut vm = vm();
    vm.set(0, flat(0x4_5600_0000));
    vm.set(1, [0, 0]);
    let request = vm.write(WINDOW + 0xff0).with_length(0x48);
    let pieces: Vec<_> = vm.rig.iommu.pieces(request).collect();
    let first = pieces[0].expect("the first file");
    assert_eq!((first.target, first.length), (file(0x4_5600_0ff0), 0x10), "SZ-05, ACC-08");
    assert!(matches!(pieces[1], Err(TranslateError::Fault(cause)) if cause.code() == 262), "ACC-08, MSI-04");
    assert_eq!((pieces.len(), vm.rig.take_fault()[2]), (2, WINDOW + 0x1000), "ACC-08");
}
