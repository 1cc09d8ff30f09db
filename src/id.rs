//! Identifiers: one type for each, none convertible into another by accident.

use crate::error::IdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl $name {
            /// Width in bits.
            pub const BITS: u32 = $bits;

            /// Checks that `value` fits the width.
            ///
            /// # Errors
            /// [`IdError`] if a bit above [`Self::BITS`] is set.
            pub const fn new(value: u32) -> Result<Self, IdError> {
                if value >> Self::BITS == 0 {
                    Ok(Self(value))
                } else {
                    Err(IdError { value, bits: Self::BITS })
                }
            }

            /// Takes the low [`Self::BITS`] bits and drops the rest: for fields that have the width already.
            #[must_use]
            pub const fn truncate(value: u32) -> Self {
                Self(value & (u32::MAX >> (32_u32.saturating_sub(Self::BITS))))
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0
            }

            /// Whether the number fits in `bits` bits.
            #[must_use]
            pub const fn fits(self, bits: u32) -> bool {
                match self.0.checked_shr(bits) {
                    Some(above) => above == 0,
                    None => true,
                }
            }

            #[allow(dead_code, reason = "for ids that are a field of a format; not all are")]
            pub(crate) const fn from_bits(value: u32) -> Self {
                Self::truncate(value)
            }

            /// Truncated once more: the compiler sees that the field has room, and keeps no panic for it.
            #[allow(dead_code, reason = "as above")]
            pub(crate) const fn into_bits(self) -> u32 {
                Self::truncate(self.0).0
            }
        }
    };
}

id! {
    /// `device_id` as the **guest** knows it: 24 bits, for PCI the segment and the requester ID.
    ///
    /// It selects a device context in the guest's directory. What it means on the host is decided by
    /// [`attach`](crate::VIommu::attach) alone. Source: "Device Directory Table".
    DeviceId, 24
}

id! {
    /// `process_id` (PCI: PASID): 20 bits. Source: "Process Directory Table".
    ProcessId, 20
}

id! {
    /// `PSCID`, the guest's tag of a first-stage address space: 20 bits.
    ///
    /// Hardware tags first-stage translations with (GSCID, PSCID); the GSCID is the host's alone, so the guest's
    /// PSCID needs no rewriting. Source: "Translation attributes (ta)".
    Pscid, 20
}

id! {
    /// `GSCID`, the tag of a second-stage address space: 16 bits.
    ///
    /// Only format types carry it. No order to the host does: a guest's GSCID names nothing on the host.
    Gscid, 16
}

id! {
    /// Index of a page request group (PCI: PRGI): 9 bits. Source: "Page-Request-Queue (PQ)".
    Prgi, 9
}

id! {
    /// `ITag`, the number an ATS invalidation request has until it is completed (PCI): 5 bits.
    Itag, 5
}

/// First-stage translation schemes: `iosatp.MODE`, whose encodings `tc.SXL` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FirstStageMode {
    /// `SXL = 1`: 32-bit virtual addresses, two levels of 4-byte entries.
    Sv32,
    /// 39-bit virtual addresses, three levels.
    Sv39,
    /// 48-bit virtual addresses, four levels.
    Sv48,
    /// 57-bit virtual addresses, five levels.
    Sv57,
}

impl FirstStageMode {
    /// The value of the 4-bit MODE field. Source: "Encodings of iosatp.MODE field".
    #[must_use]
    pub const fn encoding(self) -> u8 {
        match self {
            Self::Sv32 | Self::Sv39 => 8,
            Self::Sv48 => 9,
            Self::Sv57 => 10,
        }
    }

    /// Number of table levels.
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Sv32 => 2,
            Self::Sv39 => 3,
            Self::Sv48 => 4,
            Self::Sv57 => 5,
        }
    }
}

/// Process-directory formats: `pdtp.MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ProcessDirectoryMode {
    /// One level, `process_id` of 8 bits.
    Pd8,
    /// Two levels, `process_id` of 17 bits.
    Pd17,
    /// Three levels, `process_id` of 20 bits.
    Pd20,
}

impl ProcessDirectoryMode {
    /// The value of the 4-bit MODE field. Source: "Encodings of pdtp.MODE field".
    #[must_use]
    pub const fn encoding(self) -> u8 {
        self.levels()
    }

    /// Number of directory levels.
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Pd8 => 1,
            Self::Pd17 => 2,
            Self::Pd20 => 3,
        }
    }

    /// Bits of `process_id` a directory takes (rule PDT-02).
    #[must_use]
    pub const fn width(self) -> u32 {
        match self {
            Self::Pd8 => 8,
            Self::Pd17 => 17,
            Self::Pd20 => 20,
        }
    }
}

/// Second-stage translation schemes: `iohgatp.MODE`, whose encodings `fctl.GXL` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SecondStageMode {
    /// `GXL = 1`: 34-bit guest-physical addresses.
    Sv32x4,
    /// 41-bit guest-physical addresses.
    Sv39x4,
    /// 50-bit guest-physical addresses.
    Sv48x4,
    /// 59-bit guest-physical addresses.
    Sv57x4,
}

impl SecondStageMode {
    /// The value of the 4-bit MODE field. Source: "Encodings of iohgatp.MODE field".
    #[must_use]
    pub const fn encoding(self) -> u8 {
        match self {
            Self::Sv32x4 | Self::Sv39x4 => 8,
            Self::Sv48x4 => 9,
            Self::Sv57x4 => 10,
        }
    }

    /// Width in bits of the guest-physical addresses it takes.
    #[must_use]
    pub const fn input_width(self) -> u8 {
        match self {
            Self::Sv32x4 => 34,
            Self::Sv39x4 => 41,
            Self::Sv48x4 => 50,
            Self::Sv57x4 => 59,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_wider_than_its_field_is_refused() {
        assert_eq!(DeviceId::new(0xff_ffff).map(DeviceId::get), Ok(0xff_ffff));
        assert_eq!(DeviceId::new(0x100_0000), Err(IdError { value: 0x100_0000, bits: 24 }));
        assert!(ProcessId::new(0x10_0000).is_err());
        assert!(Pscid::new(0xf_ffff).is_ok());
        assert!(Gscid::new(0x1_0000).is_err());
    }

    #[test]
    fn fits_compares_the_whole_number_with_the_width() {
        let id = DeviceId::truncate(0x40);
        assert!(!id.fits(6));
        assert!(id.fits(7));
        assert!(DeviceId::truncate(u32::MAX).fits(32));
        assert_eq!(DeviceId::truncate(u32::MAX).get(), 0xff_ffff);
    }
}
