//! The report: what a person wants to know of a replay.

use std::fmt::{self, Display, Formatter};

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
    const NAMES: [(u64, &str); 20] = [
        (0x000, "capabilities"),
        (0x004, "capabilities[63:32]"),
        (0x008, "fctl"),
        (0x010, "ddtp"),
        (0x014, "ddtp[63:32]"),
        (0x018, "cqb"),
        (0x01c, "cqb[63:32]"),
        (0x020, "cqh"),
        (0x024, "cqt"),
        (0x028, "fqb"),
        (0x02c, "fqb[63:32]"),
        (0x030, "fqh"),
        (0x034, "fqt"),
        (0x048, "cqcsr"),
        (0x04c, "fqcsr"),
        (0x050, "pqcsr"),
        (0x054, "ipsr"),
        (0x2f8, "icvec"),
        (0x2fc, "icvec[63:32]"),
        (0x300, "msi_addr_0"),
    ];
    let vector = (offset & 0xff) >> 4;
    match (offset, offset & 0xc) {
        (0x300..0x400, 0) => format!("msi_addr_{vector}"),
        (0x300..0x400, 4) => format!("msi_addr_{vector}[63:32]"),
        (0x300..0x400, 8) => format!("msi_data_{vector}"),
        (0x300..0x400, _) => format!("msi_vec_ctl_{vector}"),
        _ => NAMES.iter().find(|(at, _)| *at == offset).map_or("(no name here)", |(_, name)| name).to_owned(),
    }
}
