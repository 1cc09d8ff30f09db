//! How the host driver rewrites a physical device context, well or badly.

use std::vec::Vec;

use crate::addr::Ppn;
use crate::backend::{Applied, Ats, Context};
use crate::ddt::{Fsc, Iohgatp, Ta, Tc};
use crate::id::Gscid;

use super::PhysicalDevice;
use super::context::{self, Dwords};
use super::machine::Machine;

/// How the host goes from one context to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// Every store leaves a valid context, with an invalidation and fence of the driver's own where one is needed
    /// between two stores. Always answers [`Applied::Switched`].
    #[default]
    Switch,
    /// The same, but leaves it to the caller to let a context that was in use drain: answers [`Applied::Blocked`]
    /// once, then as `Switch`.
    ThroughBlocked,
    /// The same without ever waiting: answers [`Applied::Blocked`] also where the prepared fields have to settle
    /// behind the empty second stage before it goes.
    Stepwise,
    /// Through V = 0, where DMA under way faults with a cause that can not be masked. For tests of the detectors.
    Careless,
    /// Stores one field after the other under a live V. For tests of the detectors.
    Mixed,
}

enum Step {
    /// One store.
    Store(usize, u64),
    /// Invalidation and fence: what was in use has to drain.
    Drain,
    /// Invalidation and fence: what was prepared out of use has to be there before it comes into use.
    Settle,
}

impl Machine {
    /// Rewrites the context of `device`, as far as the strategy goes in one call.
    pub(super) fn rewrite(&mut self, device: PhysicalDevice, gscid: Gscid, wanted: &Context) -> Applied {
        let new = encode(wanted, gscid, self.capabilities_of(device).capabilities.t2gpa());
        let strategy = self.strategy;
        let slot = self.slot(device);
        slot.ask_for(&new);
        let plan = match strategy {
            Strategy::Mixed => stores(slot.dwords(), new, &[context::IOHGATP, context::FSC, context::TA, context::TC]),
            Strategy::Careless => through_invalid(slot.dwords(), new),
            _ => through_blocked(slot.dwords(), new, slot.settled()),
        };
        for step in plan {
            match (step, strategy) {
                (Step::Store(place, value), _) => self.store(device, place, value),
                (Step::Drain, Strategy::ThroughBlocked | Strategy::Stepwise) | (Step::Settle, Strategy::Stepwise) => {
                    return Applied::Blocked;
                }
                (Step::Drain | Step::Settle, _) => self.slot(device).settle(),
            }
        }
        // On the way, behind an empty second stage, there is nothing to keep.
        self.function(device).empty &= wanted.ats() == Ats::Off;
        Applied::Switched
    }
}

/// What the driver wants in memory. The second stage of a VM is a made-up root, one for each GSCID. What a device gets
/// by ATS is guest-physical where the IOMMU can do that.
fn encode(context: &Context, gscid: Gscid, t2gpa: bool) -> Dwords {
    let ats = context.ats();
    let mut tc = Tc::new().with_v(true).with_en_ats(ats != Ats::Off).with_en_pri(ats == Ats::PageRequests);
    tc.set_t2gpa(t2gpa && ats != Ats::Off);
    let (mut ta, mut fsc) = (Ta::new(), Fsc::new());
    let root = Ppn::truncate(0x10_0000 | u64::from(gscid.get()) << 2);
    let mut second_stage = Iohgatp::new().with_mode(8).with_gscid(gscid).with_ppn(root);
    match *context {
        Context::Blocked | Context::Quiesced => second_stage = Iohgatp::from_bits(context::EMPTY),
        Context::SecondStageOnly { process_ids, .. } => tc.set_pdtv(process_ids),
        Context::FirstStage(stage) => {
            tc = tc.with_sade(stage.sade).with_sbe(stage.sbe);
            ta = ta.with_pscid(stage.pscid);
            fsc = fsc.with_mode(stage.mode.encoding()).with_ppn(stage.root);
        }
        Context::Processes(processes) => {
            tc = tc.with_pdtv(true).with_dpe(processes.dpe).with_sade(processes.sade).with_sbe(processes.sbe);
            fsc = fsc.with_mode(processes.mode.encoding()).with_ppn(processes.root);
        }
    }
    [tc.into_bits(), second_stage.into_bits(), ta.into_bits(), fsc.into_bits(), 0, 0, 0, 0]
}

/// Every store leaves a context that is valid, and it is the old one, perhaps with less of ATS, a blocked one or the
/// new one.
fn through_blocked(old: Dwords, new: Dwords, settled: bool) -> Vec<Step> {
    let ([old_tc, old_stage, ..], [new_tc, new_stage, ..]) = (old, new);
    let mut plan = Vec::new();
    if old_stage != context::EMPTY && old != new {
        plan.push(Step::Store(context::IOHGATP, context::EMPTY));
    }
    if new_stage == context::EMPTY {
        // The other fields may stay: behind an empty second stage they mean nothing. ATS is given behind it only.
        let tc = old_tc & !context::TC_ATS | new_tc & context::TC_ATS;
        if new_tc & !old_tc & context::TC_ATS != 0 && !plan.is_empty() {
            plan.push(Step::Settle);
        }
        plan.extend((tc != old_tc).then_some(Step::Store(context::TC, tc)));
        return plan;
    }
    if old == new {
        return plan;
    }
    let mut old = old;
    if old_tc & context::TC_ATS != 0 && !Tc::from_bits(old_tc).t2gpa() {
        // An empty second stage does not hold up what is not translated again.
        let tc = old_tc & !context::TC_ATS;
        plan.push(Step::Store(context::TC, tc));
        old.iter_mut().skip(context::TC).take(1).for_each(|dword| *dword = tc);
    }
    if !plan.is_empty() || !settled {
        plan.push(Step::Drain);
    }
    let [old_tc, ..] = old;
    let groups = if Tc::from_bits(old_tc).pdtv() == Tc::from_bits(new_tc).pdtv() {
        std::vec![stores(old, new, &[context::FSC, context::TA, context::TC])]
    } else {
        // fsc changes its meaning with PDTV: while tc is stored it is Bare, which it can be under both.
        let mut bare = old;
        bare.iter_mut().skip(context::FSC).take(1).for_each(|fsc| *fsc = 0);
        std::vec![
            stores(old, bare, &[context::FSC]),
            stores(bare, new, &[context::TA, context::TC]),
            stores(bare, new, &[context::FSC]),
        ]
    };
    for group in groups.into_iter().filter(|group| !group.is_empty()) {
        plan.extend(group);
        plan.push(Step::Settle);
    }
    plan.push(Step::Store(context::IOHGATP, new_stage));
    plan
}

fn through_invalid(old: Dwords, new: Dwords) -> Vec<Step> {
    let [tc, ..] = new;
    let mut plan = std::vec![Step::Store(context::TC, 0), Step::Settle];
    plan.extend(stores(old, new, &[context::IOHGATP, context::FSC, context::TA]));
    plan.extend([Step::Settle, Step::Store(context::TC, tc)]);
    plan
}

/// A store for every dword that differs, in this order.
fn stores(old: Dwords, new: Dwords, places: &[usize]) -> Vec<Step> {
    let store = |&place: &usize| {
        let value = *new.get(place)?;
        (old.get(place) != Some(&value)).then_some(Step::Store(place, value))
    };
    places.iter().filter_map(store).collect()
}
