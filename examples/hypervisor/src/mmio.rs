//! Trapped loads and stores.
//!
//! `htinst` holds the instruction that met an unmapped guest-physical address, in the transformed form of the
//! privileged architecture: bits 1:0 are 1x for what was a 32-bit instruction and 01 for a compressed one, which is
//! shown as the 32-bit instruction it stands for.

/// A load or store, as far as who carries it out has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// 1, 2, 4 or 8 bytes.
    pub width: u8,
    /// What is done.
    pub kind: AccessKind,
    /// Bytes of the instruction, 2 or 4.
    pub length: u64,
}

/// What a load or store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// To register `rd`, sign-extended or not.
    Load {
        /// Number of the destination register.
        rd: usize,
        /// Whether the value is sign-extended.
        signed: bool,
    },
    /// From register `rs2`.
    Store {
        /// Number of the source register.
        rs2: usize,
    },
}

const LOAD: u64 = 0x03;
const STORE: u64 = 0x23;

impl MemoryAccess {
    /// Reads `htinst`. `None` for what is no plain load or store: atomics, floating point, page-table walks.
    #[must_use]
    pub const fn decode(htinst: u64) -> Option<Self> {
        // Bit 0 is 0 for pseudoinstructions (page-table walks), and the whole is 0 where the hart gave none.
        if htinst & 1 == 0 {
            return None;
        }
        // How far into a misaligned access the fault was: such an access is not of one register.
        if htinst >> 15 & 0x1f != 0 {
            return None;
        }
        let length = if htinst & 2 == 0 { 2 } else { 4 };
        let funct3 = htinst >> 12 & 7;
        let width = 1 << (funct3 & 3);
        let (rd, rs2) = ((htinst >> 7 & 0x1f) as usize, (htinst >> 20 & 0x1f) as usize);
        match ((htinst | 3) & 0x7f, funct3) {
            (LOAD, 0..=6) => Some(Self { width, kind: AccessKind::Load { rd, signed: funct3 < 4 }, length }),
            (STORE, 0..=3) => Some(Self { width, kind: AccessKind::Store { rs2 }, length }),
            _ => None,
        }
    }

    /// What a load of `value` leaves in the register.
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let unused = 64 - 8 * self.width as u32;
        let top = value << unused;
        match self.kind {
            AccessKind::Load { signed: true, .. } => (top.cast_signed() >> unused).cast_unsigned(),
            _ => top >> unused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(width: u8, rd: usize, signed: bool, length: u64) -> MemoryAccess {
        MemoryAccess { width, kind: AccessKind::Load { rd, signed }, length }
    }

    // Encodings are an assembler's, with the address register cleared as the transformed form has it.
    #[test]
    fn loads_and_stores_are_what_the_instruction_says() {
        assert_eq!(MemoryAccess::decode(0x0000_2503), Some(load(4, 10, true, 4)), "lw a0");
        assert_eq!(MemoryAccess::decode(0x0000_6503), Some(load(4, 10, false, 4)), "lwu a0");
        assert_eq!(MemoryAccess::decode(0x0000_3583), Some(load(8, 11, true, 4)), "ld a1");
        assert_eq!(MemoryAccess::decode(0x0000_4783), Some(load(1, 15, false, 4)), "lbu a5");
        assert_eq!(MemoryAccess::decode(0x0000_2501), Some(load(4, 10, true, 2)), "c.lw a0");
        let store = MemoryAccess { width: 8, kind: AccessKind::Store { rs2: 12 }, length: 4 };
        assert_eq!(MemoryAccess::decode(0x00c0_3023), Some(store), "sd a2");
    }

    #[test]
    fn what_is_no_plain_load_or_store_is_not_taken_for_one() {
        for htinst in [0, 0x0002_2503, 0x3000, 0x3020, 0x00c5_202f, 0x0000_2507, 0x0000_7003, 0x0000_4023] {
            assert_eq!(MemoryAccess::decode(htinst), None, "{htinst:#x}");
        }
    }

    #[test]
    fn a_load_extends_as_its_instruction_does() {
        let signed = MemoryAccess::decode(0x0000_2503).expect("lw");
        assert_eq!(signed.extend(0x8000_0000), 0xffff_ffff_8000_0000);
        let unsigned = MemoryAccess::decode(0x0000_6503).expect("lwu");
        assert_eq!(unsigned.extend(0xffff_ffff_8000_0000), 0x8000_0000);
        let word = MemoryAccess::decode(0x0000_3583).expect("ld");
        assert_eq!(word.extend(u64::MAX), u64::MAX);
    }
}
