//! From one device context to the next, without a moment in which the hardware sees a mixture (rules UPD-05, UPD-07).
//!
//! A context is 64 bytes, and the IOMMU reads 8 at a time. So a live one is changed in place only where a single word
//! differs. Else the device is blocked first, by one store: `iohgatp` becomes an empty table. Once that is in force
//! (the crate invalidates and fences between steps) the other words may change, and the last step opens it again.
//! Blocked contexts are valid ones, so that their faults can be masked (`DTF`) and the queue that all VMs share is not
//! filled.

use core::sync::atomic::{AtomicU64, Ordering};

use riscv_viommu::ddt::{Fsc, Iohgatp, MsiPageBits, Msiptp, Ta, Tc};
use riscv_viommu::{Applied, Ats, Context, FirstStage, Processes};

/// Where each word is.
const TC: usize = 0;
const IOHGATP: usize = 1;
const TA: usize = 2;
const FSC: usize = 3;
const MSIPTP: usize = 4;
const MSI_ADDR_MASK: usize = 5;
const MSI_ADDR_PATTERN: usize = 6;

/// The words of a physical context, as they are in memory.
pub type Words = [AtomicU64; 8];

/// What is the host's in the contexts of one VM.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The DMA second stage, under the VM's GSCID.
    pub open: Iohgatp,
    /// An empty table, under a GSCID that this VM uses for nothing else.
    pub blocked: Iohgatp,
    /// The VM's interrupt files.
    pub msiptp: Msiptp,
    /// Which page number bits select one of them.
    pub mask: MsiPageBits,
    /// What the other bits are.
    pub pattern: MsiPageBits,
}

/// The words that the guest decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guest {
    tc: Tc,
    ta: Ta,
    fsc: Fsc,
}

impl Guest {
    /// `None` for a context this hypervisor does not know, or does not give: no device gets ATS, so that none has
    /// translations to take back (`Quiesced`) either.
    fn of(context: &Context) -> Option<Self> {
        if context.ats() != Ats::Off {
            return None;
        }
        let valid = Tc::new().with_v(true);
        Some(match *context {
            Context::SecondStageOnly { process_ids, .. } => {
                Self { tc: valid.with_pdtv(process_ids), ta: Ta::new(), fsc: Fsc::new() }
            }
            Context::FirstStage(FirstStage { mode, root, pscid, sade, sbe, .. }) => Self {
                tc: valid.with_sade(sade).with_sbe(sbe),
                ta: Ta::new().with_pscid(pscid),
                fsc: Fsc::new().with_mode(mode.encoding()).with_ppn(root),
            },
            Context::Processes(Processes { mode, root, dpe, sade, sbe, .. }) => Self {
                tc: valid.with_pdtv(true).with_dpe(dpe).with_sade(sade).with_sbe(sbe),
                // Those of the processes are in their contexts.
                ta: Ta::new(),
                fsc: Fsc::new().with_mode(mode.encoding()).with_ppn(root),
            },
            _ => return None,
        })
    }

    fn in_memory(words: &Words) -> Self {
        Self {
            tc: Tc::from_bits(load(words, TC)),
            ta: Ta::from_bits(load(words, TA)),
            fsc: Fsc::from_bits(load(words, FSC)),
        }
    }
}

/// Writes a blocked context for a device that had none, or one of another owner: it is not in use.
pub fn block_new(words: &Words, host: &Host) {
    store(words, IOHGATP, host.blocked.into_bits());
    store(words, MSIPTP, Msiptp::new().into_bits());
    store(words, TA, Ta::new().into_bits());
    store(words, FSC, Fsc::new().into_bits());
    store(words, MSI_ADDR_MASK, host.mask.into_bits());
    store(words, MSI_ADDR_PATTERN, host.pattern.into_bits());
    store(words, TC, Tc::new().with_v(true).into_bits());
}

/// Goes as far towards `context` as is possible without waiting. `None` for a context this hypervisor does not know.
pub fn step(words: &Words, host: &Host, context: &Context) -> Option<Applied> {
    let now = Guest::in_memory(words);
    if matches!(context, Context::Blocked) {
        // What is left in the other words leads nowhere; `tidy` takes it away later.
        store(words, IOHGATP, host.blocked.into_bits());
        store(words, MSIPTP, Msiptp::new().into_bits());
        // Faults of a device that stays blocked are the guest's to see.
        store(words, TC, now.tc.with_v(true).with_dtf(false).into_bits());
        return Some(Applied::Switched);
    }
    let wanted = Guest::of(context)?;
    let silent = wanted.tc.with_dtf(true);
    Some(if load(words, IOHGATP) == host.open.into_bits() {
        if (now.tc, now.ta) == (wanted.tc, wanted.ta) {
            store(words, FSC, wanted.fsc.into_bits());
            return Some(Applied::Switched);
        }
        // Masked first: a fault on the way is neither the old context's nor the new one's. MSIs go on to the guest's
        // own interrupt files, as before and after.
        store(words, TC, now.tc.with_v(true).with_dtf(true).into_bits());
        store(words, IOHGATP, host.blocked.into_bits());
        Applied::Blocked
    } else if now.tc.pdtv() != wanted.tc.pdtv() {
        // `PDTV` decides what `fsc` means: it changes while `fsc` is Bare, which is valid in both meanings.
        if now.fsc == Fsc::new() {
            store(words, TC, silent.into_bits());
            store(words, TA, wanted.ta.into_bits());
        } else {
            store(words, FSC, Fsc::new().into_bits());
        }
        Applied::Blocked
    } else if (now.tc, now.ta, now.fsc) != (silent, wanted.ta, wanted.fsc)
        || load(words, MSIPTP) != host.msiptp.into_bits()
    {
        store(words, TC, silent.into_bits());
        store(words, TA, wanted.ta.into_bits());
        store(words, FSC, wanted.fsc.into_bits());
        store(words, MSIPTP, host.msiptp.into_bits());
        Applied::Blocked
    } else {
        // One store opens; until the other is seen too, faults are masked.
        store(words, IOHGATP, host.open.into_bits());
        store(words, TC, wanted.tc.into_bits());
        Applied::Switched
    })
}

/// Takes the first stage out of a context that stays blocked, once that is in force: an IOMMU that looks at an address
/// before it reads a table would else report faults of the old first stage. Whether the context changed.
pub fn tidy(words: &Words, host: &Host) -> bool {
    let fsc = Fsc::new().into_bits();
    // On the way to another context faults are masked.
    let stays = load(words, IOHGATP) == host.blocked.into_bits() && !Guest::in_memory(words).tc.dtf();
    let owed = stays && load(words, FSC) != fsc;
    if owed {
        store(words, FSC, fsc);
    }
    owed
}

/// Sets or clears `V`: what a host fault would do, for the scenarios that need one.
pub fn set_valid(words: &Words, valid: bool) {
    let tc = Tc::from_bits(load(words, TC));
    store(words, TC, tc.with_v(valid).into_bits());
}

fn load(words: &Words, word: usize) -> u64 {
    words[word].load(Ordering::Relaxed)
}

fn store(words: &Words, word: usize, value: u64) {
    words[word].store(value, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use riscv_viommu::{FirstStageMode, Gscid, Ppn, ProcessDirectoryMode, Pscid};

    const HOST: Host = Host {
        open: Iohgatp::new().with_mode(8).with_gscid(Gscid::truncate(1)).with_ppn(Ppn::truncate(0x8_0100)),
        blocked: Iohgatp::new().with_mode(8).with_gscid(Gscid::truncate(2)).with_ppn(Ppn::truncate(0x8_0200)),
        msiptp: Msiptp::new().with_mode(1).with_ppn(Ppn::truncate(0x8_0300)),
        mask: MsiPageBits::new().with_page(0x7),
        pattern: MsiPageBits::new().with_page(0x2_8000),
    };

    fn first_stage(root: u64, pscid: u32) -> Context {
        let root = Ppn::truncate(root);
        Context::FirstStage(FirstStage::new(FirstStageMode::Sv39, root, Pscid::truncate(pscid)))
    }

    fn processes(root: u64, dpe: bool) -> Context {
        let mut processes = Processes::new(ProcessDirectoryMode::Pd8, Ppn::truncate(root));
        processes.dpe = dpe;
        Context::Processes(processes)
    }

    fn values(words: &Words) -> [u64; 8] {
        core::array::from_fn(|word| load(words, word))
    }

    /// Every state on the way, the last of which is there.
    fn way(words: &Words, to: &Context) -> Vec<[u64; 8]> {
        let mut states = Vec::new();
        loop {
            let applied = step(words, &HOST, to).expect("a known context");
            states.push(values(words));
            match applied {
                Applied::Blocked => assert!(states.len() < 5, "the crate gives up here"),
                _ => return states,
            }
        }
    }

    #[test]
    fn words_other_than_the_root_change_only_while_the_device_is_blocked() {
        let bare = Context::SecondStageOnly { process_ids: false, ats: Ats::Off };
        let bare_process = Context::SecondStageOnly { process_ids: true, ats: Ats::Off };
        let spaces = [first_stage(0x8_1000, 1), first_stage(0x8_2000, 2)];
        let directories = [processes(0x8_3000, false), processes(0x8_3000, true), processes(0x8_4000, true)];
        let all = [&[Context::Blocked, bare, bare_process], &spaces[..], &directories].concat();
        for from in &all {
            for to in &all {
                let words = Words::default();
                block_new(&words, &HOST);
                way(&words, from);
                let mut before = values(&words);
                for after in way(&words, to) {
                    let open = |state: &[u64; 8]| state[IOHGATP] == HOST.open.into_bits();
                    let changed = (0..8).filter(|&word| before[word] != after[word]);
                    // Of `tc` only `DTF`, and MSIs are switched off for good only.
                    let opens_or_closes =
                        |&word: &usize| [TC, IOHGATP].contains(&word) || word == MSIPTP && *to == Context::Blocked;
                    match (open(&before), open(&after)) {
                        (true, true) => assert!(changed.count() <= 1, "{from:?} -> {to:?}"),
                        (false, false) => {
                            let pdtv = |state: &[u64; 8]| Tc::from_bits(state[TC]).pdtv();
                            assert!(pdtv(&before) == pdtv(&after) || (before[FSC], after[FSC]) == (0, 0));
                        }
                        _ => {
                            assert!(changed.filter(|word| !opens_or_closes(word)).count() == 0, "{from:?} -> {to:?}");
                            let unmasked = |state: &[u64; 8]| state[TC] & !Tc::new().with_dtf(true).into_bits();
                            assert_eq!(unmasked(&before), unmasked(&after), "{from:?} -> {to:?}");
                        }
                    }
                    before = after;
                }
            }
        }
    }

    #[test]
    fn a_new_root_in_the_same_address_space_takes_one_store() {
        for [from, to] in [
            [first_stage(0x8_1000, 1), first_stage(0x8_2000, 1)],
            [0x8_3000, 0x8_4000].map(|root| processes(root, true)),
        ] {
            let words = Words::default();
            block_new(&words, &HOST);
            way(&words, &from);
            let before = values(&words);
            assert_eq!(step(&words, &HOST, &to), Some(Applied::Switched));
            let after = values(&words);
            assert_eq!((0..8).filter(|&word| before[word] != after[word]).collect::<Vec<_>>(), [FSC]);
        }
    }

    #[test]
    fn an_open_context_has_the_words_of_the_specification() {
        let words = Words::default();
        block_new(&words, &HOST);
        way(&words, &first_stage(0x8_1000, 1));
        let expected = [1, 0x8000_1000_0008_0100, 0x1000, 0x8000_0000_0008_1000, 0x1000_0000_0008_0300, 7, 0x2_8000, 0];
        assert_eq!(values(&words), expected);
    }

    #[test]
    fn what_the_guest_decides_and_nothing_else_comes_from_it() {
        let words = |context: &Context| {
            let words = Words::default();
            block_new(&words, &HOST);
            way(&words, context);
            let [tc, iohgatp, ta, fsc, ..] = values(&words);
            assert_eq!(iohgatp, HOST.open.into_bits());
            [tc, ta, fsc]
        };
        assert_eq!(words(&Context::SecondStageOnly { process_ids: false, ats: Ats::Off }), [0x1, 0, 0]);
        assert_eq!(words(&Context::SecondStageOnly { process_ids: true, ats: Ats::Off }), [0x21, 0, 0]);
        let mut stage = FirstStage::new(FirstStageMode::Sv57, Ppn::truncate(0x8_1000), Pscid::truncate(5));
        stage.sade = true;
        assert_eq!(words(&Context::FirstStage(stage)), [0x101, 0x5000, 0xa000_0000_0008_1000]);
        (stage.sade, stage.sbe) = (false, true);
        assert_eq!(words(&Context::FirstStage(stage))[0], 0x401);
        assert_eq!(words(&processes(0x8_3000, false)), [0x21, 0, 0x1000_0000_0008_3000]);
        assert_eq!(words(&processes(0x8_3000, true)), [0x221, 0, 0x1000_0000_0008_3000]);
    }

    #[test]
    fn contexts_with_ats_are_refused_and_change_nothing() {
        let mut ats = Processes::new(ProcessDirectoryMode::Pd8, Ppn::truncate(0x8_3000));
        ats.ats = Ats::Translations;
        let second_stage = Context::SecondStageOnly { process_ids: false, ats: Ats::Translations };
        let words = Words::default();
        block_new(&words, &HOST);
        way(&words, &first_stage(0x8_1000, 1));
        let before = values(&words);
        for context in [Context::Quiesced, Context::Processes(ats), second_stage] {
            assert_eq!(step(&words, &HOST, &context), None, "{context:?}");
            assert_eq!(values(&words), before, "{context:?}");
        }
    }

    #[test]
    fn a_device_that_stays_blocked_keeps_neither_msis_nor_its_first_stage() {
        let words = Words::default();
        block_new(&words, &HOST);
        way(&words, &first_stage(0x8_1000, 1));
        assert!(!tidy(&words, &HOST), "it is open");
        step(&words, &HOST, &first_stage(0x8_2000, 2));
        step(&words, &HOST, &first_stage(0x8_2000, 2));
        assert!(!tidy(&words, &HOST), "it is on its way");
        set_valid(&words, false);
        step(&words, &HOST, &Context::Blocked);
        let [tc, iohgatp, _, fsc, msiptp, ..] = values(&words);
        assert_eq!((tc, iohgatp, msiptp), (1, HOST.blocked.into_bits(), 0));
        assert_ne!(fsc, 0, "it is not in force yet");
        assert!(tidy(&words, &HOST) && !tidy(&words, &HOST));
        assert_eq!(load(&words, FSC), 0);
    }

    #[test]
    fn faults_are_masked_on_the_way_and_shown_of_a_device_that_stays_blocked() {
        let words = Words::default();
        block_new(&words, &HOST);
        way(&words, &first_stage(0x8_1000, 1));
        let dtf = |words: &Words| Tc::from_bits(load(words, TC)).dtf();
        assert_eq!(step(&words, &HOST, &first_stage(0x8_2000, 2)), Some(Applied::Blocked));
        assert!(dtf(&words));
        assert_eq!(step(&words, &HOST, &Context::Blocked), Some(Applied::Switched));
        assert!(!dtf(&words));
    }
}
