//! QEMU 10.0 (run with 10.0.2). It fetches process directories without the second stage, wherever that leads in a machine
//! full of devices: no case has both.

use super::Effect::{Shows, Takes};
use super::{Deviation, contexts, requests, shown, tables};

pub(super) static KNOWN: [Deviation; 30] = [
    Deviation::new("writing 0 clears error bits", "ATTR-03", Takes(requests::errors_are_cleared)),
    Deviation::new("execution is taken for a read", "DBG-21", Takes(requests::execute_is_read)),
    Deviation::new("process_id 0 is taken for none", "DBG-09", Takes(requests::process_0_is_none)),
    Deviation::new("PV is not looked at", "DBG-08", Takes(requests::any_other_process_is_one)),
    Deviation::new("the high bits of a process_id are not looked at", "TR-10", Takes(requests::narrow_process)),
    Deviation::new("neither privilege nor U is known", "S1-11", Takes(requests::neither_privilege_nor_user)),
    Deviation::new("reserved bits of contexts are not looked at", "DCK-01", Takes(contexts::unchecked)),
    Deviation::new("reserved bits of tc are not looked at", "DC-15", Takes(contexts::control_unchecked)),
    Deviation::new("the root of a second stage need not be aligned", "DCK-17", Takes(contexts::unaligned_root)),
    Deviation::new("A and D are taken for updated", "DCK-18", Takes(contexts::updates_are_taken_for_done)),
    Deviation::new(
        "SXL does not limit what goes through the second stage alone",
        "DC-14",
        Takes(contexts::sxl_of_bare),
    ),
    Deviation::new("MSI tables do without a second stage", "DCK-23", Takes(contexts::messages_without_second_stage)),
    Deviation::new("a pdtp that is not used may be anything", "DCK-08", Takes(contexts::unused_directory)),
    Deviation::new(
        "an unknown mode of iosatp comes after the request, or is no context",
        "DCK-09",
        Takes(contexts::unknown_first_stage),
    ),
    Deviation::new(
        "an unknown mode of pdtp is that of a process context",
        "DCK-08",
        Takes(contexts::unknown_directory),
    ),
    Deviation::new(
        "a scheme of RV64 for a process of RV32 is the device's fault",
        "PCK-02",
        Takes(contexts::wide_process_of_rv32),
    ),
    Deviation::new("D, A, U and N of pointers are not looked at", "PTE-07", Takes(tables::pointer_flags)),
    Deviation::new("Svnapot is not known", "PTE-06", Takes(tables::no_napot)),
    Deviation::new(
        "reserved bits of tables are those of high page numbers",
        "PTE-03",
        Takes(tables::high_page_numbers),
    ),
    Deviation::new("tables are checked for the request's own access", "S2-08", Takes(tables::tables_as_requested)),
    Deviation::new(
        "an address is checked after the first-stage root is found",
        "S1-04",
        Takes(tables::late_canonical_check),
    ),
    Deviation::new(
        "the second stage is checked for what the first allows",
        "S2-06",
        Takes(tables::second_stage_as_the_first_allows),
    ),
    Deviation::new("MSI PTEs are not looked at", "DBG-23", Takes(contexts::messages_unchecked)),
    Deviation::new(
        "an interrupt is forgotten though what caused it is still there",
        "REG-IPSR-09",
        Shows(shown::interrupts_are_forgotten),
    ),
    Deviation::new("a wide address under Sv32 is a guest page fault", "S1-04", Shows(shown::wide_under_sv32)),
    Deviation::new(
        "what is wrong before there are all contexts is said to be a read",
        "ACC-03",
        Shows(shown::lookups_are_reads),
    ),
    Deviation::new("and has no address", "FR-07", Shows(shown::lookups_have_no_address)),
    Deviation::new("every walk is said to be for a write", "ACC-03", Shows(shown::walks_are_writes)),
    Deviation::new("PV is always set", "FR-05", Shows(shown::always_a_process)),
    Deviation::new("the answer's page number is cut off and somewhere else", "DBG-17", Shows(shown::misplaced_page)),
];
