//! What the host's IOMMU can do.

use crate::id::SecondStageMode;
use crate::regs::Capabilities;

/// What the physical side can do for nested translation.
///
/// `capabilities` is the physical register; the rest no register shows. What is not stated is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about the host")]
pub struct HostCapabilities {
    /// The physical IOMMU's `capabilities` register. Only fields on the crate's allow-list are looked at.
    pub capabilities: Capabilities,
    /// The scheme of the second stage that the host puts under this VM's devices. Its input width bounds the
    /// physical address size the guest is shown.
    pub second_stage: SecondStageMode,
    /// 64-KiB NAPOT leaf entries work. They are mandatory in every IOMMU, but some silently mistranslate them.
    pub svnapot: bool,
    /// The contexts the host builds have `SXL = 0`: `fctl.GXL` is 0.
    pub rv64: bool,
    /// The contexts the host builds may have `SBE = 0`: its `fctl.BE` is 0, or it has `END`.
    pub little_endian: bool,
    /// Leaf entries of the second stage that hold guest tables are writable with A and D set (or `GADE` is on), so
    /// that the IOMMU may update A and D bits in them.
    pub leaves_dirty: bool,
    /// Device accesses that bypass the caches (a first-stage memory type, PCIe No Snoop) can not see stale memory of
    /// another tenant: the interconnect is coherent for them, or the host flushes pages on entering and leaving a VM.
    pub coherent: bool,
}

impl HostCapabilities {
    /// A host whose physical register reads `capabilities` and that uses `second_stage`, with nothing else stated
    /// but RV64 and little-endian contexts.
    #[must_use]
    pub const fn new(capabilities: Capabilities, second_stage: SecondStageMode) -> Self {
        Self {
            capabilities,
            second_stage,
            svnapot: false,
            rv64: true,
            little_endian: true,
            leaves_dirty: false,
            coherent: false,
        }
    }

    /// What both can do: the capabilities of several IOMMUs that devices of one VM may sit behind.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (own, others) = (self.capabilities, other.capabilities);
        let narrower = if self.second_stage.input_width() <= other.second_stage.input_width() { self } else { other };
        Self {
            capabilities: Capabilities::from_bits(own.into_bits() & others.into_bits())
                .with_version(own.version().min(others.version()))
                .with_pas(own.pas().min(others.pas())),
            second_stage: narrower.second_stage,
            svnapot: self.svnapot && other.svnapot,
            rv64: self.rv64 && other.rv64,
            little_endian: self.little_endian && other.little_endian,
            leaves_dirty: self.leaves_dirty && other.leaves_dirty,
            coherent: self.coherent && other.coherent,
        }
    }

    /// States [`svnapot`](Self::svnapot).
    #[must_use]
    pub const fn with_svnapot(self, svnapot: bool) -> Self {
        Self { svnapot, ..self }
    }

    /// States [`rv64`](Self::rv64).
    #[must_use]
    pub const fn with_rv64(self, rv64: bool) -> Self {
        Self { rv64, ..self }
    }

    /// States [`little_endian`](Self::little_endian).
    #[must_use]
    pub const fn with_little_endian(self, little_endian: bool) -> Self {
        Self { little_endian, ..self }
    }

    /// States [`leaves_dirty`](Self::leaves_dirty).
    #[must_use]
    pub const fn with_leaves_dirty(self, leaves_dirty: bool) -> Self {
        Self { leaves_dirty, ..self }
    }

    /// States [`coherent`](Self::coherent).
    #[must_use]
    pub const fn with_coherent(self, coherent: bool) -> Self {
        Self { coherent, ..self }
    }
}
