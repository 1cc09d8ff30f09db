//! The guest driver's half of ATS: its commands.

use crate::id::ProcessId;

/// Operands of the ATS commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AtsCommand {
    /// RID.
    pub rid: u16,
    /// DSV and DSEG.
    pub segment: Option<u8>,
    /// PV and PID.
    pub process: Option<ProcessId>,
}

impl AtsCommand {
    /// To this function.
    #[must_use]
    pub const fn to(rid: u16) -> Self {
        Self { rid, segment: None, process: None }
    }

    /// In this segment.
    #[must_use]
    pub const fn segment(self, segment: u8) -> Self {
        Self { segment: Some(segment), ..self }
    }

    /// With this PASID.
    #[must_use]
    pub const fn process(self, process: ProcessId) -> Self {
        Self { process: Some(process), ..self }
    }

    /// ATS.INVAL: opcode 4, func3 0. In the payload G is bit 0, S bit 11, the address 63:12.
    #[must_use]
    pub fn inval(self, payload: u64) -> [u64; 2] {
        [self.encode(0x004), payload]
    }

    /// ATS.PRGR: opcode 4, func3 1. In the payload PRGI is 40:32, the response code 47:44.
    #[must_use]
    pub fn prgr(self, group: u16, code: u8) -> [u64; 2] {
        [self.encode(0x084), u64::from(group) << 32 | u64::from(code) << 44]
    }

    // PID 31:12, PV 32, DSV 33, RID 55:40, DSEG 63:56.
    fn encode(self, function: u64) -> u64 {
        let process = self.process.map_or(0, |process| 1 << 32 | u64::from(process.get()) << 12);
        let segment = self.segment.map_or(0, |segment| 1 << 33 | u64::from(segment) << 56);
        function | process | segment | u64::from(self.rid) << 40
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ats_commands_are_the_figures_of_the_specification() {
        let to = AtsCommand::to(0xbeef).segment(0x5a).process(ProcessId::new(0xf_ffff).unwrap());
        assert_eq!(to.inval(0x1234_5801), [0x5abe_ef03_ffff_f004, 0x1234_5801]);
        assert_eq!(AtsCommand::to(1).prgr(0x1ff, 0xf), [0x0000_0100_0000_0084, 0xf1ff << 32]);
    }
}
