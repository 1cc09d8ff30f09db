//! How the host driver rewrites a physical device context, well or badly.

use std::vec::Vec;

use crate::backend::{Applied, Context};
use crate::id::Gscid;

use super::PhysicalDevice;
use super::context::{self, Dwords};
use super::hardware::Machine;

/// How the host goes from one context to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// By rule UPD-07: every store leaves a valid context, with invalidation and fence of its own where one is needed
    /// between two stores. Always answers [`Applied::Switched`].
    #[default]
    Switch,
    /// By UPD-07, but leaves it to the caller to wait until a context that was in use has drained: answers
    /// [`Applied::Blocked`] once.
    ThroughBlocked,
    /// By UPD-07 without ever waiting: answers [`Applied::Blocked`] at every place where something has to drain.
    Stepwise,
    /// By rule UPD-05, through V = 0: does what UPD-06 warns of. For tests of the detectors.
    Careless,
    /// Stores one field after the other under a live V. For tests of the detectors.
    Mixed,
}

/// A step of a rewrite.
enum Step {
    /// One store.
    Store(usize, u64),
    /// What was in use until now has to drain: an invalidation and a fence.
    Drain,
    /// What was prepared in the shadow of a blocked context has to be there before it comes to light: the same.
    Settle,
}

impl Machine {
    /// Rewrites the context of `device`, as far as the strategy goes in one call.
    pub(super) fn rewrite(&mut self, device: PhysicalDevice, gscid: Gscid, new: &Context) -> Applied {
        let dwords = context::encode(new, gscid);
        self.intend(device, &dwords);
        for step in self.plan(device, &dwords, *new == Context::Blocked) {
            match (step, self.strategy) {
                (Step::Store(place, value), _) => self.store(device, place, value),
                (Step::Drain, Strategy::ThroughBlocked | Strategy::Stepwise) | (Step::Settle, Strategy::Stepwise) => {
                    return Applied::Blocked;
                }
                (Step::Drain | Step::Settle, _) => self.settle(device),
            }
        }
        Applied::Switched
    }

    fn plan(&self, device: PhysicalDevice, new: &Dwords, blocked: bool) -> Vec<Step> {
        let old = self.dwords(device);
        let differing = |places: &[usize]| -> Vec<Step> {
            let store = |&place: &usize| match (old.get(place), new.get(place)) {
                (Some(old), Some(&new)) if *old != new => Some(Step::Store(place, new)),
                _ => None,
            };
            places.iter().filter_map(store).collect()
        };
        let fields = [context::FSC, context::TA, context::TC];
        let mut plan = Vec::new();
        if old == *new {
            return plan;
        }
        let [_, iohgatp, ..] = old;
        let open = iohgatp != context::EMPTY;
        match self.strategy {
            Strategy::Mixed => plan.extend(differing(&[context::IOHGATP, context::FSC, context::TA, context::TC])),
            Strategy::Careless => {
                let [tc, ..] = *new;
                plan.extend([Step::Store(context::TC, 0), Step::Settle]);
                plan.extend(differing(&[context::IOHGATP, context::FSC, context::TA]));
                plan.extend([Step::Settle, Step::Store(context::TC, tc)]);
            }
            _ => {
                if open {
                    plan.push(Step::Store(context::IOHGATP, context::EMPTY));
                }
                if blocked {
                    // The fields of the old context stay where they are: behind an empty second stage they mean
                    // nothing, and the one store is all it takes.
                    return plan;
                }
                if open || !self.settled(device) {
                    plan.push(Step::Drain);
                }
                let stores = differing(&fields);
                if !stores.is_empty() {
                    plan.extend(stores);
                    plan.push(Step::Settle);
                }
                plan.extend([Step::Store(context::IOHGATP, new[context::IOHGATP])]);
            }
        }
        plan
    }
}
