//! The report: what a person wants to know of a replay.

use std::fmt::{self, Display, Formatter};

use riscv_viommu::{Register, Width};

use super::trace::Access;
use super::{Change, Outcome};

/// Lines shown of a list that should be empty or short.
const SHOWN: usize = 10;

/// One trace, replayed with fences that are complete at once and with fences that are complete late.
pub(crate) struct Report<'a> {
    pub(crate) name: &'a str,
    pub(crate) at_once: &'a Outcome,
    pub(crate) late: &'a Outcome,
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Outcome { reads, writes, mismatches: _, changes, calls, commands, violations: _ } = self.at_once;
        writeln!(f, "{}", self.name)?;
        writeln!(f, "  accesses  {reads} reads, {writes} writes")?;
        writeln!(f, "  commands  {}", counts(commands))?;
        writeln!(f, "  calls     {}", counts(calls))?;
        writeln!(f, "  contexts of device 0x8")?;
        list(f, changes.iter().map(ToString::to_string))?;
        judgement(f, self.at_once, "fences complete at once")?;
        judgement(f, self.late, "fences complete late")
    }
}

fn judgement(f: &mut Formatter<'_>, outcome: &Outcome, how: &str) -> fmt::Result {
    let Outcome { mismatches, violations, .. } = outcome;
    writeln!(f, "  {how}: {} reads differ, the checker finds {} violations", mismatches.len(), violations.len())?;
    list(
        f,
        mismatches.iter().map(|mismatch| {
            let Access { offset, value, .. } = mismatch.recorded;
            let name = register(offset);
            format!("line {}: {offset:03x} {name}: recorded {value:x}, answered {:x}", mismatch.line, mismatch.answered)
        }),
    )?;
    list(f, violations.iter().cloned())
}

fn list(f: &mut Formatter<'_>, lines: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    let more = lines.len().saturating_sub(SHOWN);
    for line in lines.take(SHOWN) {
        writeln!(f, "    {line}")?;
    }
    if more == 0 { Ok(()) } else { writeln!(f, "    and {more} more") }
}

fn counts<N: Display>(counts: &std::collections::BTreeMap<&'static str, N>) -> String {
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.cause {
            None => write!(f, "attached: ")?,
            Some((line, Access { offset, value, .. })) => write!(f, "line {line}, {} = {value:x}: ", register(offset))?,
        }
        match self.old {
            None => write!(f, "{}", self.new),
            Some(old) => write!(f, "{old} -> {}", self.new),
        }
    }
}

/// The name of what is at `offset` of the register page.
fn register(offset: u64) -> String {
    let upper_half = |low: &Register| low.width() == Width::U64;
    match (Register::at(offset), offset.checked_sub(4).and_then(Register::at).filter(upper_half)) {
        (Some(register), _) => register.to_string(),
        (None, Some(register)) => format!("{register}[63:32]"),
        (None, None) => "(no register)".to_owned(),
    }
}
