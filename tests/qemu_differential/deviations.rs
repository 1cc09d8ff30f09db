//! Where QEMU is known to be wrong: for which inputs, what it shows instead, and the rule that this breaks.
//!
//! What QEMU shows is worked out from the crate: either the crate's own answer to the input that QEMU takes the real
//! one for, or a change of the crate's answer. So a listed deviation hides nothing else.

mod contexts;
mod requests;
mod shown;
mod tables;
mod v10_0;
mod v11_1;

use std::fmt;

use riscv_viommu::Config;

use crate::case::Case;
use crate::machine::Version;
use crate::observation::Observation;
use crate::ours;

/// A known deviation.
#[derive(Debug)]
pub(crate) struct Deviation {
    /// As a statement about QEMU.
    pub(crate) name: &'static str,
    /// What it breaks.
    pub(crate) rule: &'static str,
    effect: Effect,
}

#[derive(Debug)]
enum Effect {
    /// QEMU takes the case for this one.
    Takes(fn(&mut Case)),
    /// It shows this for the case it is given, instead of what the one that it takes it for leads to.
    Shows(fn(&Case, &Case, &mut Observation)),
}

impl Deviation {
    const fn new(name: &'static str, rule: &'static str, effect: Effect) -> Self {
        Self { name, rule, effect }
    }
}

/// What QEMU has to show, and the deviations that make it differ from what would be right.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) right: Observation,
    pub(crate) shown: Observation,
    pub(crate) fired: Vec<&'static Deviation>,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "right: {:x?}", self.right)?;
        self.fired.iter().try_for_each(|deviation| writeln!(f, "deviation: {} ({})", deviation.name, deviation.rule))
    }
}

/// Every deviation of a version.
pub(crate) fn known(version: Version) -> &'static [Deviation] {
    match version {
        Version::V10_0 => &v10_0::KNOWN,
        Version::V11_1 => &v11_1::KNOWN,
    }
}

/// What QEMU of this version is expected to show.
pub(crate) fn expected<const CACHE: usize>(case: &Case, config: &Config, version: Version) -> Result<Expected, String> {
    let right = ours::run::<CACHE>(case, config)?;
    let mut shown = right.clone();
    let mut taken = case.clone();
    let mut fired = Vec::new();
    for deviation in known(version) {
        if let Effect::Takes(takes) = deviation.effect {
            let before = taken.clone();
            takes(&mut taken);
            if taken != before {
                let mut other = ours::run::<CACHE>(&taken, config)?;
                as_written(case, &right, &mut other);
                turn(&mut shown, other, deviation, &mut fired);
            }
        }
    }
    for deviation in known(version) {
        if let Effect::Shows(shows) = deviation.effect {
            let mut other = shown.clone();
            shows(case, &taken, &mut other);
            turn(&mut shown, other, deviation, &mut fired);
        }
    }
    Ok(Expected { right, shown, fired })
}

fn turn(
    shown: &mut Observation,
    into: Observation,
    deviation: &'static Deviation,
    fired: &mut Vec<&'static Deviation>,
) {
    if *shown != into {
        *shown = into;
        fired.push(deviation);
    }
}

/// What reads back as written, whatever it is taken for: `fctl`, the registers of the debug interface, the address in
/// a record.
fn as_written(case: &Case, right: &Observation, seen: &mut Observation) {
    for offset in [8, 600, 608] {
        seen.copy_register(offset, right);
    }
    for record in &mut seen.records {
        record.iotval = case.request.iova;
    }
}
