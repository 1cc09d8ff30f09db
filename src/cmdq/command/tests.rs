//! Every literal is worked out from the command figures of the specification, not with the crate's own formats.

use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

use crate::backend::ResponseCode;

use super::*;
use crate::id::Prgi;

/// Range and non-leaf invalidation, base-format contexts, no process directory.
const GUEST: Legality =
    Legality { capabilities: Capabilities::new().with_nl(true).with_s(true), wsi: true, mode: DdtpMode::Levels(3) };

const VMA: u64 = 0x001;
const GVMA: u64 = 0x081;
const FENCE: u64 = 0x002;
const INVAL_DDT: u64 = 0x003;
const INVAL_PDT: u64 = 0x083;
const ATS_INVAL: u64 = 0x004;
const ATS_PRGR: u64 = 0x084;

// Operand bits of the first word.
const AV: u64 = 1 << 10;
const WSI: u64 = 1 << 11;
const PR: u64 = 1 << 12;
const PW: u64 = 1 << 13;
const PSCV: u64 = 1 << 32;
const GV: u64 = 1 << 33;
const DV: u64 = 1 << 33;
const PV: u64 = 1 << 32;
const DSV: u64 = 1 << 33;
const NL: u64 = 1 << 34;
/// Operand bit of the second word.
const S: u64 = 1 << 9;

fn decode_by(legality: &Legality, low: u64, high: u64) -> Result<Command, IllegalCommand> {
    Command::decode(RawCommand { low, high }, legality)
}

fn decode(low: u64, high: u64) -> Result<Command, IllegalCommand> {
    decode_by(&GUEST, low, high)
}

/// The rule of the first check that fails.
fn rule_by(legality: &Legality, low: u64, high: u64) -> Option<&'static str> {
    decode_by(legality, low, high).err().map(|IllegalCommand(reason)| reason.rule())
}

fn iotinval(gscid: Option<u32>, pscid: Option<u32>, range: Option<PageRange>) -> Iotinval {
    Iotinval { gscid: gscid.map(Gscid::truncate), pscid: pscid.map(Pscid::truncate), range }
}

fn page(address: u64) -> PageRange {
    PageRange::page(Iova::new(address))
}

/// First and last page of the range an IOTINVAL.VMA with S names by this second word.
fn range(high: u64) -> (u64, u64) {
    match decode(VMA | AV, high) {
        Ok(Command::IotinvalVma(Iotinval { range: Some(range), .. })) => (range.first().get(), range.last().get()),
        other => panic!("{high:#x} is {other:?}"),
    }
}

#[test]
fn iotinval_operands_are_decoded() {
    let vma = |low, high| decode(VMA | low, high);
    let is = |gscid, pscid, range| Ok(Command::IotinvalVma(iotinval(gscid, pscid, range)));
    let at = 0x1234_5000 >> 2;
    assert_eq!(vma(0, 0), is(None, None, None), "VMA-01");
    assert_eq!(vma(PSCV | 0xabcd_e000, 0), is(None, Some(0xa_bcde), None), "VMA-02");
    assert_eq!(vma(AV, at), is(None, None, Some(page(0x1234_5000))), "VMA-03");
    assert_eq!(vma(AV | PSCV | 0xffff_f000, at), is(None, Some(0xf_ffff), Some(page(0x1234_5000))), "VMA-04");
    assert_eq!(vma(GV | 0x0abc_d000_0000_0000, 0), is(Some(0xabcd), None, None), "VMA-05");
    assert_eq!(vma(GV | PSCV | 1 << 44 | 1 << 12, 0), is(Some(1), Some(1), None), "VMA-06");
    assert_eq!(vma(GV | AV, at), is(Some(0), None, Some(page(0x1234_5000))), "VMA-07");
    assert_eq!(vma(GV | AV | PSCV, at), is(Some(0), Some(0), Some(page(0x1234_5000))), "VMA-08");
    assert_eq!(vma(AV, 0x3fff_ffff_ffff_fc00), is(None, None, Some(page(0xffff_ffff_ffff_f000))), "CMD-03, QCMD-13");
    let in_no_scheme = is(None, None, Some(page(0x8000_0000_0000_0000)));
    assert_eq!(vma(AV, 0x2000_0000_0000_0000), in_no_scheme, "QCMD-13: not canonical, and legal");
    let non_leaf = Some(page(0x1234_5000).with_non_leaf(true));
    assert_eq!(vma(AV | NL, at), is(None, None, non_leaf), "VMA-13");
}

#[test]
fn gvma_operands_are_decoded() {
    let is = |gscid, range| Ok(Command::IotinvalGvma(iotinval(gscid, None, range)));
    assert_eq!(decode(GVMA, 0), is(None, None), "GVM-01");
    assert_eq!(decode(GVMA | AV | NL, 0x3fff_ffff_ffff_fe00), is(None, None), "GVM-01");
    assert_eq!(decode(GVMA | GV | 0x0fff_f000_0000_0000, 0), is(Some(0xffff), None), "GVM-02");
    assert_eq!(decode(GVMA | GV | AV, 0x400), is(Some(0), Some(page(0x1000))), "GVM-03");
    for low in [GVMA | PSCV, GVMA | PSCV | GV, GVMA | PSCV | GV | AV] {
        assert_eq!(rule_by(&GUEST, low, 0), Some("CMD-06"), "QCMD-02: {low:#x}");
    }
}

#[test]
fn fence_operands_are_decoded() {
    let fence = |store, wsi, pr, pw| Ok(Command::IofenceC(IofenceC { store, wsi, pr, pw }));
    assert_eq!(decode(FENCE, 0), fence(None, false, false, false), "QCMD-03");
    assert_eq!(decode(FENCE | PR, 0), fence(None, false, true, false), "CMD-08");
    assert_eq!(decode(FENCE | PW, 0), fence(None, false, false, true), "CMD-08");
    assert_eq!(decode(FENCE | WSI, 0), fence(None, true, false, false), "CMD-08");
    let store = |at, data| fence(Some((Gpa::new(at), data)), false, false, false);
    assert_eq!(decode(FENCE | AV | 0x8765_4321 << 32, 0x2000_0001), store(0x8000_0004, 0x8765_4321), "CMD-08");
    // All 62 bits of the address, two of which the reference model loses.
    assert_eq!(decode(FENCE | AV, 0x3fff_ffff_ffff_ffff), store(0xffff_ffff_ffff_fffc, 0), "DX-42");
}

#[test]
fn directory_operands_are_decoded() {
    let device = DeviceId::truncate;
    assert_eq!(decode(INVAL_DDT, 0), Ok(Command::IodirInvalDdt(None)), "DIR-01");
    assert_eq!(decode(INVAL_DDT | DV, 0), Ok(Command::IodirInvalDdt(Some(device(0)))), "DIR-02");
    let low = INVAL_DDT | DV | 0xabcd_ef00_0000_0000;
    assert_eq!(decode(low, 0), Ok(Command::IodirInvalDdt(Some(device(0xab_cdef)))), "CMD-10");
    let pdt = |did, pid| Ok(Command::IodirInvalPdt(device(did), ProcessId::truncate(pid)));
    assert_eq!(decode(INVAL_PDT | DV | 0xabcd_ef00_000f_f000, 0), pdt(0xab_cdef, 0xff), "CMD-10, DIR-03");
    assert_eq!(rule_by(&GUEST, INVAL_PDT | 0x0000_0100_0000_1000, 0), Some("CMD-12"), "QCMD-05");
    assert_eq!(rule_by(&GUEST, INVAL_PDT, 0), Some("CMD-12"), "CMD-12");
}

#[test]
fn every_reserved_bit_is_illegal() {
    let wide = Legality { capabilities: GUEST.capabilities.with_pd20(true).with_ats(true), ..GUEST };
    let cases: [(&str, u64, [u64; 2]); 8] = [
        ("CMD-04, QCMD-01", VMA, [0xf000_0ff8_0000_0800, 0xc000_0000_0000_01ff]),
        ("CMD-04, QCMD-01", VMA | GV | AV | PSCV, [0xf000_0ff8_0000_0800, 0xc000_0000_0000_01ff]),
        ("CMD-04, QCMD-02", GVMA | GV, [0xf000_0ff8_0000_0800, 0xc000_0000_0000_01ff]),
        ("CMD-08, QCMD-03", FENCE | AV, [0x0000_0000_ffff_c000, 0xc000_0000_0000_0000]),
        // PID is reserved too (CMD-11).
        ("CMD-10, CMD-11, QCMD-04", INVAL_DDT | DV, [0x0000_00fd_ffff_fc00, u64::MAX]),
        ("CMD-10, QCMD-05", INVAL_PDT | DV, [0x0000_00fd_0000_0c00, u64::MAX]),
        ("CMD-15, CMD-16, QCMD-06", ATS_INVAL, [0x0000_00fc_0000_0c00, 0]),
        ("CMD-15, CMD-16, QCMD-07", ATS_PRGR, [0x0000_00fc_0000_0c00, 0]),
    ];
    for (rule, low, reserved) in cases {
        assert!(decode_by(&wide, low, 0).is_ok(), "{low:#x}");
        // Two at once do not make up for each other.
        let mask = u128::from(reserved[0]) | u128::from(reserved[1]) << 64;
        let bits = (0..128).map(|n| 1_u128 << n).filter(|bit| mask & bit != 0);
        for (one, other) in bits.clone().flat_map(|one| bits.clone().map(move |other| (one, other))) {
            let words = u128::from(low) ^ (one | other);
            let (low, high) =
                (u64::try_from(words & u128::from(u64::MAX)).unwrap(), u64::try_from(words >> 64).unwrap());
            let broken = rule_by(&wide, low, high);
            assert!(broken.is_some_and(|broken| rule.contains(broken)), "{rule}: {low:#x} {high:#x} {broken:?}");
        }
        for bit in 10..128 {
            let [mut words, mask] = [[low, 0], reserved];
            let (word, bit) = (usize::from(bit >= 64), 1_u64 << (bit % 64));
            words[word] ^= bit;
            let [low, high] = words;
            if mask[word] & bit != 0 {
                let broken = rule_by(&wide, low, high);
                assert!(broken.is_some_and(|broken| rule.contains(broken)), "{rule}: {low:#x} {high:#x} {broken:?}");
            } else if ![(GVMA | GV, PSCV), (INVAL_PDT | DV, DV)].contains(&(words[word] ^ bit, bit)) {
                assert!(decode_by(&wide, low, high).is_ok(), "{rule}: {low:#x} {high:#x}");
            }
        }
    }
}

#[test]
fn every_other_opcode_and_func3_is_illegal() {
    let everything = Legality { capabilities: Capabilities::from_bits(u64::MAX), ..GUEST };
    for head in 0..1 << 10 {
        let known = [VMA, GVMA, FENCE, INVAL_DDT, INVAL_PDT, ATS_INVAL, ATS_PRGR].contains(&head);
        // INVAL_PDT needs DV, which is a don't-care of a right kind elsewhere: GV, or DATA.
        let decoded = decode_by(&everything, head | DV, 0);
        assert_eq!(decoded.is_ok(), known, "CMD-01, QCMD-08, QCMD-09: {head:#x}");
    }
}

#[test]
fn an_illegal_command_says_which_field_breaks_which_rule() {
    let nothing = Legality { capabilities: Capabilities::new(), wsi: false, mode: DdtpMode::Levels(1) };
    let cases = [
        (0x7f, 0, "opcode is reserved or custom (CMD-01)"),
        (FENCE | 1 << 7, 0, "func3 is one the opcode does not have (CMD-01)"),
        (VMA | WSI, 0, "IOTINVAL has a reserved bit that is 1 (CMD-04)"),
        (VMA | NL, 0, "IOTINVAL.NL needs capabilities.NL (CMD-04)"),
        (VMA | NL, S, "IOTINVAL.NL needs capabilities.NL (CMD-04)"),
        (GVMA | PSCV, S, "IOTINVAL.S needs capabilities.S (CMD-04)"),
        (GVMA | PSCV, 0, "IOTINVAL.GVMA.PSCV is 1 (CMD-06)"),
        (FENCE | WSI, 1 << 62, "IOFENCE.C has a reserved bit that is 1 (CMD-08)"),
        (FENCE | WSI, 0, "IOFENCE.C.WSI needs fctl.WSI (CMD-09)"),
        (INVAL_DDT, 1, "IODIR has a reserved bit that is 1 (CMD-10)"),
        (INVAL_DDT | DV | 0x80 << 40, 0, "IODIR.DID is wider than ddtp.iommu_mode takes (CMD-13)"),
        (INVAL_DDT | 1 << 12, 0, "IODIR.INVAL_DDT.PID is reserved and not 0 (CMD-11)"),
        (INVAL_PDT, 0, "IODIR.INVAL_PDT.DV is 0 (CMD-12)"),
        (INVAL_PDT | DV | 0x100 << 12, 0, "IODIR.INVAL_PDT.PID is wider than any process directory takes (CMD-14)"),
        (ATS_INVAL, 0, "ATS needs capabilities.ATS (CMD-15)"),
    ];
    for (low, high, expected) in cases {
        let error = decode_by(&nothing, low, high).map_err(|error| error.to_string());
        assert_eq!(error, Err(std::format!("illegal or unsupported command: {expected}")), "CMD-02");
    }
}

#[test]
fn operands_that_are_ignored_may_hold_anything() {
    let pscid = 0xffff_f000;
    let gscid = 0x0fff_f000_0000_0000;
    let address = 0x3fff_ffff_ffff_fe00;
    let vma = |operands| Ok(Command::IotinvalVma(operands));
    let all = Ok(Command::IotinvalVma(Iotinval::ALL));
    assert_eq!(decode(VMA | pscid, 0), all, "CMD-07");
    assert_eq!(decode(VMA | gscid, 0), all, "CMD-07");
    assert_eq!(decode(VMA | NL, address), all, "CMD-05, CMD-07, QCMD-10");
    assert_eq!(decode(VMA | PSCV | NL | gscid, address), vma(iotinval(None, Some(0), None)), "CMD-07");
    assert_eq!(decode(GVMA | pscid | gscid | AV | NL, address), Ok(Command::IotinvalGvma(Iotinval::ALL)), "CMD-07");
    let fence = IofenceC { store: None, wsi: false, pr: false, pw: false };
    let junk = 0x3fff_ffff_ffff_ffff;
    assert_eq!(decode(FENCE | 0xffff_ffff << 32, junk), Ok(Command::IofenceC(fence)), "CQ-26, QCMD-10");
    assert_eq!(decode(INVAL_DDT | 0xffff_ff00_0000_0000, 0), Ok(Command::IodirInvalDdt(None)), "CMD-11");
    let one_level = Legality { mode: DdtpMode::Levels(1), ..GUEST };
    assert!(decode_by(&one_level, INVAL_DDT | 0xffff_ff00_0000_0000, 0).is_ok(), "CMD-11, QCMD-10");
}

#[test]
fn what_is_not_offered_is_illegal_whether_used_or_not() {
    let with = |nl, s| Legality { capabilities: Capabilities::new().with_nl(nl).with_s(s), ..GUEST };
    for (nl, s) in [(false, false), (false, true), (true, false), (true, true)] {
        for low in [VMA, VMA | AV, GVMA, GVMA | GV | AV] {
            assert_eq!(decode_by(&with(nl, s), low | NL, 0).is_ok(), nl, "CMD-04, CMD-05: {low:#x}");
            assert_eq!(decode_by(&with(nl, s), low, S).is_ok(), s, "CMD-04, CMD-05, REG-CAP-30: {low:#x}");
        }
    }
    for low in [FENCE | WSI, FENCE | WSI | AV | PR | PW] {
        assert_eq!(rule_by(&Legality { wsi: false, ..GUEST }, low, 0), Some("CMD-09"), "CMD-09");
        assert!(decode_by(&GUEST, low, 0).is_ok(), "CMD-09");
    }
    let ats = Legality { capabilities: GUEST.capabilities.with_ats(false), ..GUEST };
    for low in [ATS_INVAL, ATS_PRGR] {
        assert_eq!(rule_by(&ats, low, 0), Some("CMD-15"), "QCMD-06, QCMD-07");
    }
}

/// Decodes with ATS.
fn decode_ats(low: u64, high: u64) -> Command {
    let ats = Legality { capabilities: GUEST.capabilities.with_ats(true), ..GUEST };
    decode_by(&ats, low, high).unwrap()
}

#[test]
fn ats_operands_are_decoded() {
    // RID in 55:40, DSEG in 63:56.
    let rid = 0xabcd << 40;
    let to = Destination::new(0xabcd);
    let inval =
        |destination, payload| Command::AtsInval(AtsInval::new(destination, InvalidationPayload::from_bits(payload)));
    assert_eq!(decode_ats(ATS_INVAL | rid, 0), inval(to, 0), "CMD-15, ATC-01");
    let process = ProcessId::truncate(0x1_2345);
    assert_eq!(decode_ats(ATS_INVAL | rid | PV | 0x1234_5000, 0), inval(to.with_process(process), 0), "ATC-01");
    assert_eq!(decode_ats(ATS_INVAL | rid | DSV | 0x12 << 56, 0), inval(to.with_segment(0x12), 0), "ATC-01");
    assert_eq!(decode_ats(ATS_INVAL | rid | 0xff << 56 | 0xffff_f000, 0), inval(to, 0), "ATC-01, QCMD-10: ignored");
    let devices = [to, to.with_segment(0), to.with_segment(0x12)].map(|to| to.device().get());
    assert_eq!(devices, [0xabcd, 0xabcd, 0x12_abcd], "PRI-01, PQ-07");
    let prgr = Command::AtsPrgr(AtsPrgr::new(to, ResponsePayload::new().with_code(0xf)));
    assert_eq!(decode_ats(ATS_PRGR | rid, 0xf << 44), prgr, "PRG-01");
}

#[test]
fn payloads_are_where_the_specification_puts_them() {
    let bits = |payload: InvalidationPayload| payload.into_bits();
    assert_eq!(bits(InvalidationPayload::new().with_g(true)), 1, "CMD-18");
    assert_eq!(bits(InvalidationPayload::new().with_s(true)), 1 << 11, "CMD-18");
    assert_eq!(bits(InvalidationPayload::new().with_page(u64::MAX >> 12)), u64::MAX << 12, "CMD-18");
    let bits = |payload: ResponsePayload| payload.into_bits();
    assert_eq!(bits(ResponsePayload::new().with_prgi(Prgi::truncate(0x1ff))), 0x1ff << 32, "CMD-18");
    assert_eq!(bits(ResponsePayload::new().with_code(0xf)), 0xf << 44, "CMD-18");
    // Bits that mean nothing neither matter nor get any further.
    for (payload, kept) in [(u64::MAX, u64::MAX << 12 | 0x801), (0x7fe, 0)] {
        let expected = AtsInval::new(Destination::new(0), InvalidationPayload::from_bits(kept));
        assert_eq!(decode_ats(ATS_INVAL, payload), Command::AtsInval(expected), "CMD-16, VC-72");
    }
    for (payload, kept) in [(u64::MAX, 0xf1ff << 32), (0xffff_0e00_ffff_ffff, 0)] {
        let expected = AtsPrgr::new(Destination::new(0), ResponsePayload::from_bits(kept));
        assert_eq!(decode_ats(ATS_PRGR, payload), Command::AtsPrgr(expected), "CMD-16, PRG-05");
    }
}

#[test]
fn an_invalidation_payload_names_a_page_or_an_aligned_range() {
    let named = |payload: u64| {
        let range = InvalidationPayload::from_bits(payload).range();
        (range.first().get(), range.last().get())
    };
    assert_eq!(named(0x1234_5001), (0x1234_5000, 0x1234_5000), "CMD-18: one page");
    assert_eq!(named(0x1234_4800), (0x1234_4000, 0x1234_5000), "CMD-18: 8 KiB");
    assert_eq!(named(0x1234_3800), (0x1234_0000, 0x1234_7000), "CMD-18: 32 KiB");
    assert_eq!(named(0x7fff_ffff_ffff_f800), (0, u64::MAX << 12), "CMD-18: the whole space");
    assert_eq!(named(0xffff_ffff_ffff_f800), (0, u64::MAX << 12), "CMD-18: all ones");
}

#[test]
fn a_response_code_that_is_not_defined_is_a_failure() {
    for code in 0..16 {
        let expected = match code {
            0 => ResponseCode::Success,
            1 => ResponseCode::InvalidRequest,
            _ => ResponseCode::ResponseFailure,
        };
        assert_eq!(ResponseCode::decode(code), expected, "PRG-02, PRI-15");
    }
    let codes = [ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::ResponseFailure];
    assert_eq!(codes.map(ResponseCode::encoding), [0, 1, 0xf], "PRG-02");
}

#[test]
fn a_device_id_must_fit_the_directory() {
    let cases = [
        (DdtpMode::Levels(1), false, 7),
        (DdtpMode::Levels(2), false, 16),
        (DdtpMode::Levels(3), false, 24),
        (DdtpMode::Levels(1), true, 6),
        (DdtpMode::Levels(2), true, 15),
        (DdtpMode::Levels(3), true, 24),
        // No width is defined.
        (DdtpMode::Off, false, 24),
        (DdtpMode::Bare, true, 24),
    ];
    for (mode, extended, width) in cases {
        let legality = Legality { capabilities: Capabilities::new().with_msi_flat(extended), mode, ..GUEST };
        for bit in 0..24_u64 {
            for low in [INVAL_DDT | DV, INVAL_PDT | DV] {
                let decoded = decode_by(&legality, low | 1 << (40 + bit), 0);
                assert_eq!(decoded.is_ok(), bit < width, "CMD-13, QCMD-11, DX-40: {mode:?}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_process_id_must_fit_the_widest_process_directory() {
    let none = Capabilities::new();
    let cases = [
        (none, 8),
        (none.with_pd8(true), 8),
        (none.with_pd8(true).with_pd17(true), 17),
        (none.with_pd17(true), 17),
        (none.with_pd20(true), 20),
        (none.with_pd8(true).with_pd17(true).with_pd20(true), 20),
    ];
    for (capabilities, width) in cases {
        for bit in 0..20_u64 {
            let decoded = decode_by(&Legality { capabilities, ..GUEST }, INVAL_PDT | DV | 1 << (12 + bit), 0);
            assert_eq!(decoded.is_ok(), bit < width, "CMD-14, QCMD-12: {width} bits, bit {bit}");
        }
    }
}

#[test]
fn the_lowest_zero_of_the_address_tells_the_size_of_the_range() {
    // ADDR[63:12] is in bits 61:10 of the second word.
    let named = |page_number: u64| range(page_number << 10 | S);
    assert_eq!(range(0x12345 << 10), (0x1234_5000, 0x1234_5000), "one page without S");
    assert_eq!(named(0x12344), (0x1234_4000, 0x1234_5000), "VMA-14: 8 KiB");
    assert_eq!(named(0x12345), (0x1234_4000, 0x1234_7000), "VMA-14: 16 KiB");
    assert_eq!(named(0x12343), (0x1234_0000, 0x1234_7000), "VMA-14: 32 KiB");
    assert_eq!(named(0x120ff), (0x1200_0000, 0x121f_f000), "VMA-14: 2 MiB");
    assert_eq!(named(0x7_ffff_ffff_ffff), (0, 0xffff_ffff_ffff_f000), "VMA-14, QCMD-14: the whole space");
    assert_eq!(named(0x3_ffff_ffff_ffff), (0, 0x7fff_ffff_ffff_f000), "VMA-14: half of it");
    assert_eq!(named(0xb_ffff_ffff_ffff), (0x8000_0000_0000_0000, 0xffff_ffff_ffff_f000), "VMA-14: the other half");
    assert_eq!(named(0xf_ffff_ffff_ffff), (0, 0xffff_ffff_ffff_f000), "VMA-14, QCMD-14: all ones, everything");
    for log2 in 1..52 {
        let ones = (1 << (log2 - 1)) - 1;
        assert_eq!(named(ones), (0, (1 << log2 << 12) - 0x1000), "VMA-14: 2^{log2} pages");
    }
    let non_leaf = decode(VMA | AV | NL, 1 << 10 | S);
    let range = PageRange::covering(Iova::new(0), Iova::new(0x3000)).with_non_leaf(true);
    assert_eq!(non_leaf, Ok(Command::IotinvalVma(iotinval(None, None, Some(range)))), "VMA-14: NL is for the range");
}

#[test]
fn commands_are_encoded_as_the_figures_say() {
    let function = Destination::new(0xbeef).with_segment(0x5a).with_process(ProcessId::truncate(0xf_ffff));
    let cases: [(Command, [u64; 2]); 12] = [
        (Command::IotinvalVma(Iotinval::ALL), [0x001, 0]),
        (
            Command::IotinvalVma(iotinval(Some(0xabcd), Some(0x1_2345), Some(page(0x1234_5678)))),
            [0x0abc_d003_1234_5401, 0x048d_1400],
        ),
        (Command::IotinvalGvma(iotinval(Some(1), None, None)), [0x0000_1002_0000_0081, 0]),
        (
            Command::IotinvalVma(iotinval(
                None,
                None,
                Some(PageRange::covering(Iova::new(0x5000), Iova::new(0x6fff)).with_non_leaf(true)),
            )),
            // 16 KiB at 0x4000: page number 0b101.
            [0x0000_0004_0000_0401, 5 << 10 | S],
        ),
        (
            Command::IofenceC(IofenceC { store: Some((Gpa::new(0x8000_0004), 7)), wsi: true, pr: true, pw: true }),
            [0x0000_0007_0000_3c02, 0x2000_0001],
        ),
        (Command::IofenceC(IofenceC::READS_AND_WRITES), [0x3002, 0]),
        (Command::IodirInvalDdt(None), [0x003, 0]),
        (Command::IodirInvalDdt(Some(DeviceId::truncate(0xab_cdef))), [0xabcd_ef02_0000_0003, 0]),
        (Command::IodirInvalPdt(DeviceId::truncate(1), ProcessId::truncate(0xf_ffff)), [0x0000_0102_ffff_f083, 0]),
        (
            Command::AtsInval(AtsInval::new(function, InvalidationPayload::from_bits(0x1234_5801))),
            [0x5abe_ef03_ffff_f004, 0x1234_5801],
        ),
        (Command::AtsInval(AtsInval::new(Destination::new(1), InvalidationPayload::new())), [0x0000_0100_0000_0004, 0]),
        (
            Command::AtsPrgr(AtsPrgr::new(function, ResponsePayload::new().with_code(1).with_prgi(Prgi::truncate(2)))),
            [0x5abe_ef03_ffff_f084, 0x1002 << 32],
        ),
    ];
    for (command, [low, high]) in cases {
        assert_eq!(command.encode(), RawCommand { low, high }, "CMD-03, CMD-08, CMD-10, CMD-15: {command:?}");
    }
}

/// Random commands of which about half are legal: heads that exist, operands anywhere, sometimes a reserved bit.
fn commands() -> impl Strategy<Value = [u64; 2]> {
    let operands = [
        (VMA, [0x0fff_f007_ffff_f400, 0x3fff_ffff_ffff_fe00]),
        (GVMA, [0x0fff_f006_ffff_f400, 0x3fff_ffff_ffff_fe00]),
        (FENCE, [0xffff_ffff_0000_3c00, 0x3fff_ffff_ffff_ffff]),
        (INVAL_DDT, [0xffff_ff02_0000_0000, 0]),
        (INVAL_PDT, [0xffff_ff02_ffff_f000, 0]),
        (ATS_INVAL, [0xffff_ff03_ffff_f000, u64::MAX]),
        (ATS_PRGR, [0xffff_ff03_ffff_f000, u64::MAX]),
    ];
    let stray = prop::option::weighted(0.25, 0..128_u32);
    (prop::sample::select(operands.to_vec()), any::<[u64; 4]>(), stray).prop_map(|((head, masks), words, stray)| {
        // Few zeros, so that ranges of every size come up.
        let mut words = [head | words[0] & masks[0], (words[1] | words[2] | words[3]) & masks[1]];
        if let Some(bit) = stray {
            words[usize::from(bit >= 64)] ^= 1 << (bit & 63);
        }
        words
    })
}

/// The smallest naturally aligned power of two of pages that holds both, by trying them all.
fn smallest_range(first: u64, last: u64) -> (u64, u64) {
    let sizes: Vec<u64> = (0..=52).rev().map(|shift| u64::MAX >> shift).collect();
    let within = sizes.into_iter().find(|within| first & !within == last & !within).unwrap();
    (first & !within, (last | within) & !0xfff)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_decoded_command_survives_encoding([low, high] in commands(), mode in 0..5_u8) {
        let capabilities = GUEST.capabilities.with_pd20(true).with_ats(true);
        let legality = Legality { capabilities, mode: DdtpMode::decode(mode).unwrap(), ..GUEST };
        if let Ok(command) = decode_by(&legality, low, high) {
            let RawCommand { low, high } = command.encode();
            prop_assert_eq!(decode_by(&legality, low, high), Ok(command));
        }
    }

    #[test]
    fn no_command_panics(low: u64, high: u64, caps: u64, wsi: bool, mode in 0..5_u8) {
        let capabilities = Capabilities::from_bits(caps);
        let legality = Legality { capabilities, wsi, mode: DdtpMode::decode(mode).unwrap() };
        let _ = decode_by(&legality, low, high);
    }

    #[test]
    fn a_covering_range_is_the_smallest_there_is(first: u64, differ: u64, shift in 0..64_u32) {
        let last = first ^ differ >> shift;
        let range = PageRange::covering(Iova::new(first), Iova::new(last));
        prop_assert_eq!((range.first().get(), range.last().get()), smallest_range(first, last));
        prop_assert!(!range.non_leaf());
        let command = Command::IotinvalVma(iotinval(None, None, Some(range)));
        let RawCommand { low, high } = command.encode();
        prop_assert_eq!(decode(low, high), Ok(command), "VMA-14");
    }
}

/// The range that becomes of a command and those behind it, and how many of these it took in.
fn joined(commands: &[[u64; 2]]) -> (Option<(u64, u64)>, usize) {
    let raw: Vec<RawCommand> = commands.iter().map(|&[low, high]| RawCommand { low, high }).collect();
    let (Command::IotinvalVma(mut operands) | Command::IotinvalGvma(mut operands)) =
        Command::decode(raw[0], &GUEST).unwrap()
    else {
        panic!("{commands:x?}")
    };
    let joined = operands.join(raw[0], &raw[1..]);
    (operands.range.map(|range| (range.first().get() >> 12, range.last().get() >> 12)), joined)
}

#[test]
fn an_invalidation_takes_in_those_behind_it_that_go_on_where_it_ends_or_say_the_same() {
    let vma = |page: u64| [VMA | AV | PSCV | 7 << 12, page << 10];
    assert_eq!(joined(&[vma(4), vma(5), vma(6), vma(8)]), (Some((4, 6)), 2), "VC-25");
    assert_eq!(joined(&[vma(4), vma(3), vma(3), vma(4), vma(2)]), (Some((2, 4)), 4), "VC-25");
    // With S: 4 to 7, 8 to 15.
    let range = |bits: u64| [VMA | AV | PSCV | 7 << 12, bits << 10 | S];
    assert_eq!(joined(&[range(0b101), range(0b1011)]), (Some((4, 15)), 1), "VC-25, VMA-14");
    assert_eq!(joined(&[range(0b101), vma(8)]), (Some((4, 7)), 0), "what differs in more than the page stays apart");
    let last = PAGE_NUMBER;
    assert_eq!(joined(&[vma(last), vma(0), vma(last)]), (Some((last, last)), 0), "nothing follows the last page");
    // Without AV the page is not looked at (VMA-05).
    let all = |pscid: u64, page: u64| [VMA | PSCV | pscid << 12, page << 10];
    assert_eq!(joined(&[all(7, 1), all(7, 9), all(7, 1), all(8, 1)]), (None, 2), "VC-25");
    assert_eq!(joined(&[[GVMA, 0], [GVMA, 0], [VMA, 0]]), (None, 1), "VC-25");
    for other in [[VMA | AV | PSCV | 8 << 12, 5 << 10], [VMA | AV | PSCV | NL | 7 << 12, 5 << 10], [VMA | AV, 5 << 10]]
    {
        assert_eq!(joined(&[vma(4), other]).1, 0, "{other:x?}");
    }
    for reserved in [[0, 1], [0, 1 << 62], [1 << 11, 0]] {
        let [low, high] = vma(5);
        assert_eq!(joined(&[vma(4), [low | reserved[0], high | reserved[1]]]).1, 0, "CMD-03: {reserved:x?}");
    }
}

#[test]
fn operands_are_told_one_by_one() {
    let space = (Gscid::truncate(3), Pscid::truncate(5));
    let range = page(0x7000);
    let all = Iotinval::ALL.with_gscid(space.0).with_pscid(space.1).with_range(range);
    assert_eq!(all, Iotinval { gscid: Some(space.0), pscid: Some(space.1), range: Some(range) });
}
