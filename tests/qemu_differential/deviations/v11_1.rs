//! QEMU 11.1 (run with 11.1.3).

use super::Effect::{Shows, Takes};
use super::{Deviation, contexts, requests, shown, tables};

pub(super) static KNOWN: [Deviation; 28] = [
    Deviation::new("fctl.GXL is not looked at", "REG-FCTL-03", Takes(requests::gxl_is_0)),
    Deviation::new("writing 0 clears error bits", "ATTR-03", Takes(requests::errors_are_cleared)),
    Deviation::new("execution is taken for a read", "DBG-21", Takes(requests::execute_is_read)),
    Deviation::new("process_id 0 is taken for none", "DBG-09", Takes(requests::process_0_is_none)),
    Deviation::new("PV is not looked at", "DBG-08", Takes(requests::any_other_process_is_one)),
    Deviation::new("the high bits of a process_id are not looked at", "TR-10", Takes(requests::narrow_process)),
    Deviation::new("privilege is not known", "S1-11", Takes(requests::no_privilege)),
    Deviation::new("reserved bits of contexts are not looked at", "DCK-01", Takes(contexts::unchecked)),
    Deviation::new(
        "SXL does not limit what goes through the second stage alone",
        "DC-14",
        Takes(contexts::sxl_of_bare),
    ),
    Deviation::new("MSI tables do without a second stage", "DCK-23", Takes(contexts::messages_without_second_stage)),
    Deviation::new("a stage that is Bare may update A and D", "DCK-18", Takes(contexts::updates_of_bare)),
    Deviation::new("a pdtp that is not used may be anything", "DCK-08", Takes(contexts::unused_directory)),
    Deviation::new(
        "an unknown mode of iohgatp shows first at the process directory",
        "DCK-13",
        Takes(contexts::unknown_second_stage),
    ),
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
    Deviation::new("MSI PTEs are not looked at", "DBG-23", Takes(contexts::messages_unchecked)),
    Deviation::new("D, A, U and N of pointers are not looked at", "PTE-07", Takes(tables::pointer_flags)),
    Deviation::new("bits 60:59 are reserved in spite of Svrsw60t59b", "PTE-04", Takes(tables::bits_60_59_are_reserved)),
    Deviation::new("tables are checked for the request's own access", "S2-08", Takes(tables::tables_as_requested)),
    Deviation::new("no permission is needed on a process directory", "PDT-09", Takes(tables::directories_unchecked)),
    Deviation::new(
        "an address is checked after the first-stage root is found",
        "S1-04",
        Takes(tables::late_canonical_check),
    ),
    Deviation::new(
        "a guest page fault at the process directory is an access fault",
        "PDT-10",
        Shows(shown::directory_fault),
    ),
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
    Deviation::new(
        "a record of a walk has PV where the context has a directory, another where there is a process_id",
        "FR-05",
        Shows(shown::processes),
    ),
    Deviation::new("a page within a larger one is answered with the first", "SZ-02", Shows(shown::first_page)),
];
