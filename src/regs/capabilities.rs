//! The `capabilities` register.

use bitfield_struct::bitfield;

/// `capabilities` (offset 0, 64 bits, read-only): what the IOMMU can do. Source: "IOMMU capabilities".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capabilities {
    /// Specification version, major in the high and minor in the low half: 0x10 is 1.0.
    pub version: u8,
    /// First-stage Sv32.
    pub sv32: bool,
    /// First-stage Sv39.
    pub sv39: bool,
    /// First-stage Sv48.
    pub sv48: bool,
    /// First-stage Sv57.
    pub sv57: bool,
    #[bits(2, access = RO)]
    rsvd0: u8,
    /// PTE bits 60:59 are ignored instead of reserved.
    pub svrsw60t59b: bool,
    /// Page-based memory types.
    pub svpbmt: bool,
    /// Second-stage Sv32x4.
    pub sv32x4: bool,
    /// Second-stage Sv39x4.
    pub sv39x4: bool,
    /// Second-stage Sv48x4.
    pub sv48x4: bool,
    /// Second-stage Sv57x4.
    pub sv57x4: bool,
    #[bits(access = RO)]
    rsvd1: bool,
    /// Atomic update of memory-resident interrupt files.
    pub amo_mrif: bool,
    /// MSI page tables in basic mode; also selects the 64-byte device context.
    pub msi_flat: bool,
    /// MSI page tables in MRIF mode.
    pub msi_mrif: bool,
    /// Hardware update of PTE A and D bits.
    pub amo_hwad: bool,
    /// PCIe ATS and page requests.
    pub ats: bool,
    /// ATS translations may answer with guest-physical addresses.
    pub t2gpa: bool,
    /// Both endiannesses: `fctl.BE` is writable.
    pub end: bool,
    /// Interrupt generation support.
    #[bits(2, default = Igs::Msi)]
    pub igs: Igs,
    /// Hardware performance monitor.
    pub hpm: bool,
    /// Translation-request interface.
    pub dbg: bool,
    /// Physical address size in bits.
    #[bits(6)]
    pub pas: u8,
    /// One-level process directory, 8-bit `process_id`.
    pub pd8: bool,
    /// Two-level process directory, 17-bit `process_id`.
    pub pd17: bool,
    /// Three-level process directory, 20-bit `process_id`.
    pub pd20: bool,
    /// Quality-of-service identifiers.
    pub qosid: bool,
    /// Non-leaf invalidation (`IOTINVAL.NL`).
    pub nl: bool,
    /// Address-range invalidation (`IOTINVAL.S`).
    pub s: bool,
    #[bits(12, access = RO)]
    rsvd2: u16,
    #[bits(8, access = RO)]
    custom: u8,
}

impl Capabilities {
    /// Whether Sv57 comes with Sv48 and Sv48 with Sv39, as the privileged architecture has them (rule REG-CAP-40).
    pub(crate) const fn has_ordered_modes(self) -> bool {
        (!self.sv57() || self.sv48()) && (!self.sv48() || self.sv39())
    }

    /// Width in bits of guest-physical addresses (MGPAW): set by the widest second stage, without one by `PAS`.
    #[must_use]
    pub const fn guest_physical_width(self) -> u8 {
        if self.sv57x4() {
            59
        } else if self.sv48x4() {
            50
        } else if self.sv39x4() {
            41
        } else if self.sv32x4() {
            34
        } else {
            self.pas()
        }
    }
}

/// How the IOMMU signals interrupts (`capabilities.IGS`, 2 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Igs {
    /// Message-signalled only.
    Msi,
    /// Wires only.
    Wsi,
    /// Either, chosen by `fctl.WSI`.
    Both,
    /// The encoding the specification reserves.
    Reserved,
}

impl Igs {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Msi,
            1 => Self::Wsi,
            2 => Self::Both,
            _ => Self::Reserved,
        }
    }

    const fn into_bits(self) -> u8 {
        match self {
            Self::Msi => 0,
            Self::Wsi => 1,
            Self::Both => 2,
            Self::Reserved => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals are worked out from the bit diagram of "IOMMU capabilities".
    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let cases: [(Capabilities, u64); 30] = [
            (Capabilities::new().with_version(0x10), 0x10),
            (Capabilities::new().with_sv32(true), 1 << 8),
            (Capabilities::new().with_sv39(true), 1 << 9),
            (Capabilities::new().with_sv48(true), 1 << 10),
            (Capabilities::new().with_sv57(true), 1 << 11),
            (Capabilities::new().with_svrsw60t59b(true), 1 << 14),
            (Capabilities::new().with_svpbmt(true), 1 << 15),
            (Capabilities::new().with_sv32x4(true), 1 << 16),
            (Capabilities::new().with_sv39x4(true), 1 << 17),
            (Capabilities::new().with_sv48x4(true), 1 << 18),
            (Capabilities::new().with_sv57x4(true), 1 << 19),
            (Capabilities::new().with_amo_mrif(true), 1 << 21),
            (Capabilities::new().with_msi_flat(true), 1 << 22),
            (Capabilities::new().with_msi_mrif(true), 1 << 23),
            (Capabilities::new().with_amo_hwad(true), 1 << 24),
            (Capabilities::new().with_ats(true), 1 << 25),
            (Capabilities::new().with_t2gpa(true), 1 << 26),
            (Capabilities::new().with_end(true), 1 << 27),
            (Capabilities::new().with_igs(Igs::Wsi), 1 << 28),
            (Capabilities::new().with_igs(Igs::Both), 2 << 28),
            (Capabilities::new().with_hpm(true), 1 << 30),
            (Capabilities::new().with_dbg(true), 1 << 31),
            (Capabilities::new().with_pas(56), 56 << 32),
            (Capabilities::new().with_pd8(true), 1 << 38),
            (Capabilities::new().with_pd17(true), 1 << 39),
            (Capabilities::new().with_pd20(true), 1 << 40),
            (Capabilities::new().with_qosid(true), 1 << 41),
            (Capabilities::new().with_nl(true), 1 << 42),
            (Capabilities::new().with_s(true), 1 << 43),
            (Capabilities::new(), 0),
        ];
        for (capabilities, literal) in cases {
            assert_eq!(capabilities.into_bits(), literal);
        }
    }

    // What QEMU's physical IOMMU and the recording vIOMMU of tests/traces report.
    #[test]
    fn recorded_registers_decode() {
        let qemu = Capabilities::from_bits(0x0078_e2cf_0f10);
        assert_eq!((qemu.version(), qemu.pas(), qemu.igs()), (0x10, 56, Igs::Both));
        assert!(qemu.sv57x4() && qemu.msi_mrif() && qemu.ats() && qemu.hpm() && qemu.dbg() && qemu.pd8());
        assert!(!qemu.svpbmt() && !qemu.amo_hwad() && !qemu.t2gpa() && !qemu.end() && !qemu.nl() && !qemu.s());
        let recorded = Capabilities::from_bits(0x0c38_0000_0e10);
        assert!(recorded.nl() && recorded.s() && recorded.sv57() && !recorded.msi_flat());
    }
}
