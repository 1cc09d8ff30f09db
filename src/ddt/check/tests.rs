//! Contexts are literals of the specification's figures: dwords `tc`, `iohgatp`, `ta`, `fsc`, and in the extended
//! format `msiptp`, `msi_addr_mask`, `msi_addr_pattern` and a reserved one.

use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

use super::*;

type Dwords = [u64; 8];

// Bits of `tc` (DC-01 to DC-12).
const V: u64 = 1;
const EN_ATS: u64 = 1 << 1;
const EN_PRI: u64 = 1 << 2;
const T2GPA: u64 = 1 << 3;
const DTF: u64 = 1 << 4;
const PDTV: u64 = 1 << 5;
const PRPR: u64 = 1 << 6;
const GADE: u64 = 1 << 7;
const SADE: u64 = 1 << 8;
const DPE: u64 = 1 << 9;
const SBE: u64 = 1 << 10;
const SXL: u64 = 1 << 11;

/// `iohgatp` with Sv39x4 and its root at 0.
const SV39X4: u64 = 8 << 60;

/// Everything a context can depend on.
const ALL: Capabilities = Capabilities::new()
    .with_sv32(true)
    .with_sv39(true)
    .with_sv48(true)
    .with_sv57(true)
    .with_sv32x4(true)
    .with_sv39x4(true)
    .with_sv48x4(true)
    .with_sv57x4(true)
    .with_msi_flat(true)
    .with_amo_hwad(true)
    .with_ats(true)
    .with_t2gpa(true)
    .with_end(true)
    .with_pas(56)
    .with_pd8(true)
    .with_pd17(true)
    .with_pd20(true)
    .with_qosid(true);

/// Reserved bits of each dword with Sv57x4, whose guest-physical page numbers have 47 bits (DC-15, DC-23 to DC-31).
const RESERVED: Dwords = [
    0xffff_ffff_00ff_f000,
    0,
    0x0000_00ff_0000_0fff,
    0x0fff_f000_0000_0000,
    0x0fff_f000_0000_0000,
    0xffff_8000_0000_0000,
    0xffff_8000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

fn fault_of(context: Dwords, extended: bool, capabilities: Capabilities, be: bool) -> Result<Checked, Fault> {
    let [tc, iohgatp, ta, fsc, ..] = context;
    let copied = if extended {
        Copied::Extended(zerocopy::transmute!(context))
    } else {
        Copied::Base(zerocopy::transmute!([tc, iohgatp, ta, fsc]))
    };
    copied.judge(&Rules {
        capabilities,
        be,
        gxl: false,
        gxl_writable: false,
        qos_mask: if capabilities.qosid() { 0xfff } else { 0 },
    })
}

/// The cause a context is refused with.
fn judge_as(context: Dwords, extended: bool, capabilities: Capabilities, be: bool) -> Result<Checked, u16> {
    fault_of(context, extended, capabilities, be).map_err(|fault| fault.cause.code())
}

/// The same in both formats, which have to agree: what is not given is 0.
fn judge(context: &[u64], capabilities: Capabilities) -> Result<Checked, u16> {
    let mut dwords = [0; 8];
    dwords[..context.len()].copy_from_slice(context);
    let extended = judge_as(dwords, true, capabilities, false);
    if context.len() == 4 {
        assert_eq!(judge_as(dwords, false, capabilities, false), extended, "{dwords:x?}");
    }
    extended
}

#[track_caller]
fn located(context: &[u64], capabilities: Capabilities, rule: &str) {
    assert!(judge(context, capabilities).is_ok(), "{rule}: {context:x?} is good");
}

#[track_caller]
fn misconfigured(context: &[u64], capabilities: Capabilities, rule: &str) {
    assert_eq!(judge(context, capabilities).err(), Some(259), "{rule}: {context:x?}");
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).map(|bit| 1 << bit).filter(move |bit| mask & bit != 0)
}

#[test]
fn what_the_iommu_can_not_do_is_misconfigured() {
    let cases = [
        ("DCK-02", ALL.with_ats(false), [V | EN_ATS, 0, 0, 0]),
        ("DCK-02", ALL.with_ats(false), [V | EN_ATS | EN_PRI, 0, 0, 0]),
        ("DCK-02", ALL.with_ats(false), [V | EN_ATS | EN_PRI | PRPR, 0, 0, 0]),
        ("DCK-06", ALL.with_t2gpa(false), [V | EN_ATS | T2GPA, SV39X4, 0, 0]),
        ("DCK-08", ALL.with_pd8(false), [V | PDTV, 0, 0, 1 << 60]),
        ("DCK-08", ALL.with_pd17(false), [V | PDTV, 0, 0, 2 << 60]),
        ("DCK-08", ALL.with_pd20(false), [V | PDTV, 0, 0, 3 << 60]),
        ("DCK-10", ALL.with_sv39(false), [V, 0, 0, 8 << 60]),
        ("DCK-10", ALL.with_sv48(false), [V, 0, 0, 9 << 60]),
        ("DCK-10", ALL.with_sv57(false), [V, 0, 0, 10 << 60]),
        ("DCK-14, DCK-15", ALL.with_sv39x4(false), [V, 8 << 60, 0, 0]),
        ("DCK-14", ALL.with_sv48x4(false), [V, 9 << 60, 0, 0]),
        ("DCK-14", ALL.with_sv57x4(false), [V, 10 << 60, 0, 0]),
        ("DCK-18", ALL.with_amo_hwad(false), [V | SADE, 0, 0, 0]),
        ("DCK-18", ALL.with_amo_hwad(false), [V | GADE, 0, 0, 0]),
        ("DCK-22", ALL.with_qosid(false), [V, 0, 1 << 40, 0]),
        ("DCK-22", ALL.with_qosid(false), [V, 0, 1 << 51, 0]),
        ("DCK-22", ALL.with_qosid(false), [V, 0, 1 << 52, 0]),
        ("DCK-22", ALL.with_qosid(false), [V, 0, 1 << 63, 0]),
    ];
    for (rule, without, context) in cases {
        misconfigured(&context, without, rule);
        located(&context, ALL, rule);
    }
}

#[test]
fn what_one_field_asks_of_another_is_checked() {
    let cases: [(&str, &[u64], &[u64]); 13] = [
        ("DCK-03", &[V | T2GPA, SV39X4, 0, 0], &[V | T2GPA | EN_ATS, SV39X4, 0, 0]),
        ("DCK-04", &[V | EN_PRI, 0, 0, 0], &[V | EN_PRI | EN_ATS, 0, 0, 0]),
        ("DCK-05", &[V | PRPR | EN_ATS, 0, 0, 0], &[V | PRPR | EN_PRI | EN_ATS, 0, 0, 0]),
        ("DCK-07", &[V | EN_ATS | T2GPA, 0, 0, 0], &[V | EN_ATS | T2GPA, SV39X4, 0, 0]),
        ("DCK-12", &[V | DPE, 0, 0, 0], &[V | DPE | PDTV, 0, 0, 0]),
        ("DCK-12", &[V | DPE, 0, 0, 8 << 60], &[V, 0, 0, 8 << 60]),
        ("DCK-17", &[V, SV39X4 | 1, 0, 0], &[V, SV39X4 | 4, 0, 0]),
        ("DCK-17", &[V, SV39X4 | 2, 0, 0], &[V, 2, 0, 0]),
        ("DCK-20", &[V | SXL, 0, 0, 0], &[V, 0, 0, 0]),
        ("DCK-11, DCK-20", &[V | SXL, 0, 0, 8 << 60], &[V, 0, 0, 8 << 60]),
        ("DCK-20", &[V | SXL | PDTV, 0, 0, 1 << 60], &[V | PDTV, 0, 0, 1 << 60]),
        ("DCK-23", &[V, 0, 0, 0, 1 << 60], &[V, SV39X4, 0, 0, 1 << 60]),
        ("DCK-23", &[V, 0x0fff << 44, 0, 0, 1 << 60], &[V, 0x0fff << 44, 0, 0, 0x0fff]),
    ];
    for (rule, bad, good) in cases {
        misconfigured(bad, ALL, rule);
        located(good, ALL, rule);
    }
    located(&[V | EN_ATS | EN_PRI | PRPR, 0, 0, 0], Capabilities::new().with_ats(true), "DCK-25");
}

#[test]
fn only_the_defined_modes_are_good() {
    for mode in 0..16_u64 {
        let cases: [(&str, &[u64], &[u64]); 5] = [
            ("DCK-08", &[V | PDTV, 0, 0, mode << 60], &[0, 1, 2, 3]),
            ("DCK-09", &[V, 0, 0, mode << 60], &[0, 8, 9, 10]),
            ("DCK-13", &[V, mode << 60, 0, 0], &[0, 8, 9, 10]),
            ("DCK-16", &[V, SV39X4, 0, 0, mode << 60], &[0, 1]),
            ("DCK-20", &[V | SXL, 0, 0, mode << 60], &[]),
        ];
        for (rule, context, good) in cases {
            let verdict = if good.contains(&mode) { located } else { misconfigured };
            verdict(context, ALL, rule);
        }
    }
}

#[test]
fn endianness_is_free_only_where_it_can_be_chosen() {
    for (end, be, sbe) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
        let context = [V | if sbe { SBE } else { 0 }, 0, 0, 0, 0, 0, 0, 0];
        let verdict = judge_as(context, false, ALL.with_end(end), be);
        assert_eq!(verdict.is_ok(), end || sbe == be, "DCK-19, DCK-21, DISC-R19: END {end}, BE {be}, SBE {sbe}");
        assert_eq!(judge_as(context, true, ALL.with_end(end), be), verdict, "DCK-19");
    }
}

#[test]
fn every_reserved_bit_is_misconfigured() {
    let starts = [
        [V, 0, 0, 0, 0, 0, 0, 0],
        [V | PDTV, 0, 0, 0, 0, 0, 0, 0],
        [V, SV39X4, 0, 8 << 60, 1 << 60, 0, 0, 0],
        [V | PDTV, SV39X4, 0, 3 << 60, 1 << 60, 0, 0, 0],
    ];
    for start in starts {
        for (dword, mask) in RESERVED.into_iter().enumerate() {
            for bit in bits(mask) {
                let mut context = start;
                context[dword] |= bit;
                let context = if dword < 4 {
                    [context[0], context[1], context[2], context[3]].to_vec()
                } else {
                    context.to_vec()
                };
                misconfigured(&context, ALL, "DCK-01, DC-31");
            }
        }
    }
}

#[test]
fn what_no_rule_checks_may_hold_anything() {
    let free: [(&str, Dwords, Dwords); 6] = [
        ("DC-16", [V, 0, 0, 0, 0, 0, 0, 0], [0xff00_0000 | DTF, 0, 0, 0, 0, 0, 0, 0]),
        ("DC-20", [V, 0, 0, 0, 0, 0, 0, 0], [0, 0x0fff_ffff_ffff_ffff, 0, 0, 0, 0, 0, 0]),
        ("DC-17, DC-18, DDT-14", [V, SV39X4, 0, 0, 0, 0, 0, 0], [0, 0x0fff_ffff_ffff_fffc, 0, 0, 0, 0, 0, 0]),
        ("DC-21, DC-22", [V, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0xffff_ff00_ffff_f000, 0, 0, 0, 0, 0]),
        ("DC-24, DDT-14", [V, 0, 0, 8 << 60, 0, 0, 0, 0], [0, 0, 0, 0x0fff_ffff_ffff, 0, 0, 0, 0]),
        // Mask and pattern values with msiptp Off.
        (
            "DC-27 to DC-29",
            [V, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0x0fff_ffff_ffff, 0x7fff_ffff_ffff, 0x7fff_ffff_ffff, 0],
        ),
    ];
    for (rule, start, mask) in free {
        let with = |bits: Dwords| std::array::from_fn::<u64, 8, _>(|dword| start[dword] | bits[dword]);
        located(&with(mask), ALL, rule);
        for dword in 0..8 {
            for bit in bits(mask[dword]) {
                let mut one = [0; 8];
                one[dword] = bit;
                located(&with(one), ALL, &(rule.to_string() + ", DCK-24"));
            }
        }
    }
    // A Bare first stage does not look at its root, and a small PAS at none.
    located(&[V, 0, 0, 0x0fff_ffff_ffff], ALL, "DCK-24");
    located(&[V | PDTV, 0, 0, 0x0fff_ffff_ffff], ALL, "DCK-24");
    located(&[V, 0, 0, 8 << 60 | 0x0fff_ffff_ffff], ALL.with_pas(32), "DDT-14");
}

#[test]
fn msi_page_bits_end_with_the_guest_physical_width() {
    let none = Capabilities::new();
    let cases = [
        (none.with_sv57x4(true).with_sv48x4(true).with_sv39x4(true), 47),
        (none.with_sv48x4(true).with_sv39x4(true).with_sv32x4(true), 38),
        (none.with_sv39x4(true).with_sv32x4(true).with_pas(56), 29),
        (none.with_sv32x4(true).with_pas(56), 22),
        (none.with_pas(56), 44),
        (none.with_pas(32), 20),
    ];
    for (capabilities, width) in cases {
        let capabilities = capabilities.with_msi_flat(true);
        for dword in [5, 6] {
            let msiptps: &[[u64; 2]] = if capabilities.sv39x4() { &[[0, 0], [SV39X4, 1 << 60]] } else { &[[0, 0]] };
            for [iohgatp, msiptp] in msiptps {
                let mut context = [V, *iohgatp, 0, 0, *msiptp, 0, 0, 0];
                context[dword] = (1 << width) - 1;
                located(&context, capabilities, "DC-30, REG-CAP-41");
                context[dword] = 1 << width;
                misconfigured(&context, capabilities, "DC-30, DX-02");
                context[dword] = 1 << 51;
                misconfigured(&context, capabilities, "DC-30");
            }
        }
    }
}

#[test]
fn a_misconfigured_context_says_which_field_breaks_which_rule() {
    let none = Capabilities::new().with_msi_flat(true);
    let cases: [(Capabilities, Dwords, &str); 26] = [
        (ALL, [V | 1 << 63, 0, 0, 0, 0, 0, 0, 0], "DC.tc has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 1, 0, 0, 0, 0, 0], "DC.ta has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 0, 1 << 44, 0, 0, 0, 0], "DC.fsc has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 0, 0, 1 << 44, 0, 0, 0], "DC.msiptp has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 0, 0, 0, 1 << 52, 0, 0], "DC.msi_addr_mask has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 0, 0, 0, 0, 1 << 47, 0], "DC.msi_addr_pattern has a reserved bit that is 1 (DCK-01)"),
        (ALL, [V, 0, 0, 0, 0, 0, 0, 1], "DC has a reserved bit that is 1 (DCK-01)"),
        (none, [V | EN_ATS, 0, 0, 0, 0, 0, 0, 0], "DC.tc.EN_ATS needs capabilities.ATS (DCK-02)"),
        (none, [V | EN_PRI, 0, 0, 0, 0, 0, 0, 0], "DC.tc.EN_PRI needs capabilities.ATS (DCK-02)"),
        (none, [V | PRPR, 0, 0, 0, 0, 0, 0, 0], "DC.tc.PRPR needs capabilities.ATS (DCK-02)"),
        (ALL, [V | T2GPA, 0, 0, 0, 0, 0, 0, 0], "DC.tc.T2GPA needs EN_ATS (DCK-03)"),
        (ALL, [V | EN_PRI, 0, 0, 0, 0, 0, 0, 0], "DC.tc.EN_PRI needs EN_ATS (DCK-04)"),
        (ALL, [V | PRPR, 0, 0, 0, 0, 0, 0, 0], "DC.tc.PRPR needs EN_PRI (DCK-05)"),
        (
            none.with_ats(true),
            [V | EN_ATS | T2GPA, 0, 0, 0, 0, 0, 0, 0],
            "DC.tc.T2GPA needs capabilities.T2GPA (DCK-06)",
        ),
        (ALL, [V | EN_ATS | T2GPA, 0, 0, 0, 0, 0, 0, 0], "DC.tc.T2GPA needs a second stage in iohgatp (DCK-07)"),
        (none, [V | PDTV, 0, 0, 1 << 60, 0, 0, 0, 0], "DC.fsc.pdtp.MODE is not one that capabilities has (DCK-08)"),
        (none, [V, 0, 0, 8 << 60, 0, 0, 0, 0], "DC.fsc.iosatp.MODE is not one that capabilities has (DCK-09 to -11)"),
        (ALL, [V | DPE, 0, 0, 0, 0, 0, 0, 0], "DC.tc.DPE needs PDTV (DCK-12)"),
        (none, [V, SV39X4, 0, 0, 0, 0, 0, 0], "DC.iohgatp.MODE is not one that capabilities has (DCK-13 to -15)"),
        (ALL, [V, SV39X4, 0, 0, 2 << 60, 0, 0, 0], "DC.msiptp.MODE is neither Off nor Flat (DCK-16)"),
        (ALL, [V, SV39X4 | 2, 0, 0, 0, 0, 0, 0], "DC.iohgatp.PPN is not a multiple of 4 (DCK-17)"),
        (none, [V | SADE, 0, 0, 0, 0, 0, 0, 0], "DC.tc.SADE needs capabilities.AMO_HWAD (DCK-18)"),
        (none, [V | SBE, 0, 0, 0, 0, 0, 0, 0], "DC.tc.SBE differs from fctl.BE without capabilities.END (DCK-19)"),
        (ALL, [V | SXL, 0, 0, 0, 0, 0, 0, 0], "DC.tc.SXL is 1 although fctl.GXL can only be 0 (DCK-20)"),
        (none, [V, 0, 1 << 40, 0, 0, 0, 0, 0], "DC.ta.RCID is too wide (DCK-22)"),
        (ALL, [V, 0, 0, 0, 1 << 60, 0, 0, 0], "DC.msiptp.MODE needs a second stage in iohgatp (DCK-23)"),
    ];
    for (capabilities, context, expected) in cases {
        let reason = fault_of(context, true, capabilities, false).unwrap_err().reason;
        assert_eq!(reason.map(ToString::to_string).as_deref(), Some(expected));
    }
}

#[test]
fn of_a_context_that_is_not_valid_nothing_else_is_looked_at() {
    for extended in [false, true] {
        for dword in 0..if extended { 8 } else { 4 } {
            for bit in bits(if dword == 0 { !V } else { u64::MAX }) {
                let mut context = [0; 8];
                context[dword] = bit;
                let verdict = judge_as(context, extended, Capabilities::new(), false);
                assert_eq!(verdict.err(), Some(258), "DDT-13: {context:x?}");
            }
        }
        let ones = [!V, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX];
        assert_eq!(judge_as(ones, extended, ALL, true).err(), Some(258), "DDT-12, DDT-13");
    }
}

#[test]
fn a_base_context_has_no_msi_fields() {
    let beyond = [V, 0, 0, 0, u64::MAX, u64::MAX, u64::MAX, u64::MAX];
    assert!(judge_as(beyond, false, ALL, false).is_ok(), "DDT-18");
    assert_eq!(judge_as(beyond, true, ALL, false).err(), Some(259));
}

#[test]
fn a_good_context_says_what_its_first_stage_is() {
    let root = 0x1234_5678;
    let page = Ppn::truncate(root);
    let iosatp = |mode| FirstStageContext::Iosatp(Some(Iosatp { mode, root: page, pscid: Pscid::truncate(0xa_bcde) }));
    let pdtp = |mode| FirstStageContext::Pdtp(Some(Pdtp { mode, root: page }));
    let cases = [
        (V, 0, FirstStageContext::Iosatp(None)),
        (V, 8 << 60 | root, iosatp(FirstStageMode::Sv39)),
        (V, 9 << 60 | root, iosatp(FirstStageMode::Sv48)),
        (V, 10 << 60 | root, iosatp(FirstStageMode::Sv57)),
        (V | PDTV, root, FirstStageContext::Pdtp(None)),
        (V | PDTV, 1 << 60 | root, pdtp(ProcessDirectoryMode::Pd8)),
        (V | PDTV, 2 << 60 | root, pdtp(ProcessDirectoryMode::Pd17)),
        (V | PDTV, 3 << 60 | root, pdtp(ProcessDirectoryMode::Pd20)),
    ];
    for (tc, fsc, first_stage) in cases {
        let checked = judge(&[tc | SADE, SV39X4 | 4, 0xabcd_e000, fsc], ALL).unwrap();
        assert_eq!(checked.first_stage, first_stage, "DC-06, DC-21, DC-24, DC-25, DX-04");
        assert_eq!(checked.tc.into_bits(), tc | SADE);
        let second_stage =
            SecondStageContext { mode: SecondStageMode::Sv39x4, root: Ppn::truncate(4), gscid: Gscid::truncate(0) };
        assert_eq!(checked.second_stage, Some(second_stage), "DC-17, DC-19");
    }
}

/// The checks a context breaks, in their order, on plain numbers: the table of the rules once more, for contexts at
/// random.
fn broken(context: Dwords, extended: bool, caps: Capabilities, be: bool) -> Vec<&'static str> {
    let [tc, iohgatp, ta, fsc, msiptp, mask, pattern, last] = context;
    let is = |bit: u64| tc & bit != 0;
    let (hg, fs, msi) = (iohgatp >> 60, fsc >> 60, if extended { msiptp >> 60 } else { 0 });
    // MGPAW less the 12 bits within a page.
    let width = match caps.into_bits() >> 16 & 0xf {
        0 => (caps.into_bits() >> 32 & 0x3f).saturating_sub(12),
        1 => 22,
        2..=3 => 29,
        4..=7 => 38,
        _ => 47,
    };
    let page = |bits: u64| bits >> width != 0;
    let cap = |bit: u32| caps.into_bits() >> bit & 1 == 1;
    let offered = |mode: u64, list: &[(u64, u32)]| {
        mode == 0 || list.iter().any(|&(encoding, capability)| encoding == mode && cap(capability))
    };
    let first_stages: &[_] = if is(SXL) { &[(8, 8)] } else { &[(8, 9), (9, 10), (10, 11)] };
    let reserved = tc & RESERVED[0] | ta & RESERVED[2] | fsc & RESERVED[3];
    let reserved_msi = extended && (msiptp & RESERVED[4] | last != 0 || page(mask) || page(pattern));
    let ats = cap(25);
    let all = [
        ("DCK-01", reserved != 0 || reserved_msi),
        ("DCK-02", !ats && (is(EN_ATS) || is(EN_PRI) || is(PRPR))),
        ("DCK-03", !is(EN_ATS) && is(T2GPA)),
        ("DCK-04", !is(EN_ATS) && is(EN_PRI)),
        ("DCK-05", !is(EN_PRI) && is(PRPR)),
        ("DCK-06", !cap(26) && is(T2GPA)),
        ("DCK-07", is(T2GPA) && hg == 0),
        ("DCK-08", is(PDTV) && !offered(fs, &[(1, 38), (2, 39), (3, 40)])),
        ("DCK-09 to -11", !is(PDTV) && !offered(fs, first_stages)),
        ("DCK-12", !is(PDTV) && is(DPE)),
        ("DCK-13 to -15", !offered(hg, &[(8, 17), (9, 18), (10, 19)])),
        ("DCK-16", msi > 1),
        ("DCK-17", hg != 0 && iohgatp & 3 != 0),
        ("DCK-18", !cap(24) && (is(SADE) || is(GADE))),
        ("DCK-19", !cap(27) && is(SBE) != be),
        ("DCK-20", is(SXL)),
        // Without QOSID they are reserved.
        ("DCK-22", !cap(41) && ta >> 40 != 0),
        ("DCK-23", hg == 0 && msi != 0),
    ];
    all.into_iter().filter(|(_, broken)| *broken).map(|(rule, _)| rule).collect()
}

/// Numbers with few ones.
fn sparse() -> impl Strategy<Value = u64> {
    any::<[u64; 3]>().prop_map(|[a, b, c]| a & b & c)
}

/// Values of a MODE field, mostly defined ones.
fn modes() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 6 => 8..11_u64, 2 => 1..4_u64, 1 => 0..16_u64]
}

prop_compose! {
    /// Contexts of which about one in four is good, and one in four has a reserved bit set.
    fn contexts()(
        tc in sparse(),
        modes in [modes(), modes()],
        msi in prop_oneof![8 => 0..2_u64, 1 => 2..16_u64],
        ppns in any::<[u64; 3]>(),
        ta in any::<u64>(),
        stray in prop::option::weighted(0.25, (0..8_usize, 0..64_u32)),
    ) -> Dwords {
        let page = |ppn: u64| ppn & 0x0fff_ffff_ffff;
        let mut context = [
            V | tc & 0xff00_0fff,
            modes[0] << 60 | page(ppns[0]) & !(ppns[1] & 3),
            ta & 0xffff_ff00_ffff_f000,
            modes[1] << 60 | page(ppns[1]),
            msi << 60 | page(ppns[2]),
            ppns[0] >> 44,
            ppns[1] >> 44,
            0,
        ];
        if let Some((dword, bit)) = stray {
            context[dword] ^= 1 << bit;
        }
        context
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_context_is_good_exactly_if_it_breaks_no_rule_and_else_the_first_is_named(
        context in contexts(),
        extended: bool,
        be: bool,
        caps in any::<[u64; 2]>(),
        pas in 32..=56_u8,
    ) {
        let caps = Capabilities::from_bits(caps[0] | caps[1]).with_pas(pas);
        let rules = broken(context, extended, caps, be);
        let expected = match (context[0] & V, rules.first()) {
            (0, _) => Err((258, Some("DDT-12"))),
            (_, Some(first)) => Err((259, Some(*first))),
            (_, None) => Ok(()),
        };
        let judged = fault_of(context, extended, caps, be).map(|_| ());
        let judged = judged.map_err(|fault| (fault.cause.code(), fault.reason.map(Violation::rule)));
        prop_assert_eq!(judged, expected, "{:?}", rules);
    }
}
