//! What a vIOMMU offers its guest: an allow-list of configuration, this crate, and the host.

mod host;

pub(crate) use host::{Mismatch, mismatch};

use host::nested;

use crate::backend::{HostCapabilities, InterruptKinds};
use crate::error::ConfigError;
use crate::regs::file::Setup;
use crate::regs::{Capabilities, DdtpMode, Gxl};

/// How [`start`](crate::VIommu::start) sets a vIOMMU up, once and for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent choices")]
pub struct Config {
    nesting: bool,
    ats: bool,
    offer: Capabilities,
    vectors: u8,
    reset_mode: DdtpMode,
    debug: bool,
    counters: u8,
    qos_bits: u8,
    gxl: Gxl,
    /// Asked for by name, not only within a whole `capabilities` register.
    second_stage: bool,
    pub(crate) synchronous_dma: bool,
    pub(crate) budget: u32,
    pub(crate) mirror: bool,
}

/// What the crate implements and offers unless told otherwise.
const DEFAULT_OFFER: Capabilities = Capabilities::new()
    .with_version(0x10)
    .with_sv32(true)
    .with_sv39(true)
    .with_sv48(true)
    .with_sv57(true)
    .with_svrsw60t59b(true)
    .with_svpbmt(true)
    .with_amo_mrif(true)
    .with_msi_mrif(true)
    .with_amo_hwad(true)
    .with_ats(true)
    .with_t2gpa(true)
    .with_hpm(true)
    .with_dbg(true)
    .with_pas(56)
    .with_pd8(true)
    .with_pd17(true)
    .with_pd20(true)
    .with_qosid(true)
    .with_nl(true)
    .with_s(true);

impl Config {
    /// For passthrough devices: the guest's first stage nested under the host's second stage.
    ///
    /// Offers what the host's IOMMU can nest, range and non-leaf invalidation, base-format device contexts and 4
    /// interrupt vectors; after reset the IOMMU is Off. Emulated devices beside them are offered the same, and no more.
    #[must_use]
    pub const fn nested() -> Self {
        Self {
            nesting: true,
            offer: DEFAULT_OFFER,
            ats: false,
            vectors: 4,
            reset_mode: DdtpMode::Off,
            debug: false,
            counters: 0,
            qos_bits: 0,
            gxl: Gxl::Zero,
            second_stage: false,
            synchronous_dma: false,
            budget: 256,
            mirror: false,
        }
    }

    /// For a host whose devices are all emulated.
    ///
    /// | offered | with |
    /// |---|---|
    /// | Sv39, Sv48, Sv57, Svnapot, Svpbmt, Svrsw60t59b, process directories, range and non-leaf invalidation | |
    /// | updates of A and D bits | [`compare_exchange`](crate::GuestMemory::compare_exchange) |
    /// | a second stage of the guest's own | [`with_second_stage`](Self::with_second_stage) |
    /// | MSI page tables | that, and [`with_extended_contexts`](Self::with_extended_contexts) |
    /// | interrupt files in memory | both, and [`compare_exchange`](crate::GuestMemory::compare_exchange) |
    /// | ATS and page requests | [`with_ats`](Self::with_ats) |
    /// | RV32 | [`with_gxl`](Self::with_gxl) |
    /// | big-endian structures | [`with_big_endian`](Self::with_big_endian) |
    /// | debug interface, performance monitor, quality-of-service ids | [`with_debug`](Self::with_debug), [`with_counters`](Self::with_counters), [`with_qos_bits`](Self::with_qos_bits) |
    ///
    /// 4 interrupt vectors, base-format contexts and a reset to Off are as for [`nested`](Self::nested). A device can
    /// be attached only if the host keeps count of its DMA
    /// ([`GuestMemory::counts_dma`](crate::GuestMemory::counts_dma) and [`drain`](crate::GuestMemory::drain)) or [has
    /// none](Self::with_synchronous_dma) that could be counted.
    #[must_use]
    pub const fn emulated() -> Self {
        Self { nesting: false, ..Self::nested() }
    }

    /// Offers at most what is set in `capabilities`, a `capabilities` register: `MSI_FLAT` selects extended-format
    /// contexts, `PAS` is an upper bound; fields the crate does not implement are ignored. `DBG`, `HPM` and `QOSID`
    /// take [`with_debug`](Self::with_debug), [`with_counters`](Self::with_counters) and
    /// [`with_qos_bits`](Self::with_qos_bits) as well, `ATS` and `T2GPA` [`with_ats`](Self::with_ats), `Sv32` and
    /// `Sv32x4` [`with_gxl`](Self::with_gxl).
    #[must_use]
    pub const fn with_capabilities(self, capabilities: Capabilities) -> Self {
        Self { offer: capabilities, ..self }
    }

    /// Extended-format (64-byte) device contexts instead of base-format ones.
    #[must_use]
    pub const fn with_extended_contexts(self, extended: bool) -> Self {
        Self { offer: self.offer.with_msi_flat(extended), ..self }
    }

    /// A second stage of the guest's own, so that it can give its emulated devices to VMs of its own: Sv39x4, Sv48x4
    /// and Sv57x4, and Sv32x4 where there is [RV32](Self::with_gxl). With
    /// [`with_extended_contexts`](Self::with_extended_contexts) MSI page tables come with it.
    ///
    /// Not together with [`nested`](Self::nested): hardware has two stages, and the second is the host's.
    #[must_use]
    pub const fn with_second_stage(self, second_stage: bool) -> Self {
        let offer = self.offer.with_sv32x4(second_stage).with_sv39x4(second_stage);
        Self { offer: offer.with_sv48x4(second_stage).with_sv57x4(second_stage), second_stage, ..self }
    }

    /// RV32 contexts (`SXL` = 1) with Sv32, and with Sv32x4 where there is a
    /// [second stage](Self::with_second_stage): whether `fctl.GXL` is 0, 1, or the guest's to write. 0 unless said;
    /// not together with [`nested`](Self::nested). With 0 there is no RV32.
    #[must_use]
    pub const fn with_gxl(self, gxl: Gxl) -> Self {
        Self { gxl, ..self }
    }

    /// States that every DMA of an emulated device is done under the lock its [`Translation`](crate::Translation) was
    /// asked for under: there is never one to wait for. Other hosts implement
    /// [`GuestMemory::counts_dma`](crate::GuestMemory::counts_dma) and [`drain`](crate::GuestMemory::drain); [one of
    /// the two](crate::backend#dma-of-emulated-devices) has to be.
    #[must_use]
    pub const fn with_synchronous_dma(self, synchronous: bool) -> Self {
        Self { synchronous_dma: synchronous, ..self }
    }

    /// Lets the guest choose big-endian structures (`capabilities.END`); with [`nested`](Self::nested) where the host's
    /// IOMMU can.
    #[must_use]
    pub const fn with_big_endian(self, end: bool) -> Self {
        Self { offer: self.offer.with_end(end), ..self }
    }

    /// Offers ATS and page requests, where each device's [`DevicePolicy`](crate::DevicePolicy) grants them; with
    /// [`nested`](Self::nested) where the host's IOMMU has ATS. For emulated devices there are
    /// [`next_message`](crate::VIommu::next_message) and [`page_request`](crate::VIommu::page_request), for passthrough
    /// devices [`ats_invalidate`](crate::PhysicalIommu::ats_invalidate) and
    /// [`report_page_request`](crate::VIommu::report_page_request).
    #[must_use]
    pub const fn with_ats(self, ats: bool) -> Self {
        Self { ats, ..self }
    }

    /// Number of interrupt vectors: 1, 2, 4, 8 or 16; at most as many as the guest is told of in its device tree.
    #[must_use]
    pub const fn with_vectors(self, vectors: u8) -> Self {
        Self { vectors, ..self }
    }

    /// Largest physical address size in bits, 32 to 56. With [`nested`](Self::nested) the host's second stage may lower
    /// it further.
    #[must_use]
    pub const fn with_pas(self, pas: u8) -> Self {
        match Capabilities::new().with_pas_checked(pas) {
            Ok(_) => Self { offer: self.offer.with_pas(pas), ..self },
            // Too wide for the field: keep a value that `start` refuses.
            Err(()) => Self { offer: self.offer.with_pas(0x3f), ..self },
        }
    }

    /// Whether the IOMMU resets to Bare instead of Off, for guests whose firmware does DMA before a driver starts.
    #[must_use]
    pub const fn with_reset_to_bare(self, bare: bool) -> Self {
        Self { reset_mode: if bare { DdtpMode::Bare } else { DdtpMode::Off }, ..self }
    }

    /// Most units of work one call does: commands, re-walks of a device. What is left waits for
    /// [`run`](crate::VIommu::run). A translation is none: it is bounded by its tables.
    #[must_use]
    pub const fn with_budget(self, budget: u32) -> Self {
        Self { budget, ..self }
    }

    /// Whether registers are published to a page the guest may read without a trap
    /// ([`GuestMemory::publish`](crate::GuestMemory::publish)).
    #[must_use]
    pub const fn with_mirror(self, mirror: bool) -> Self {
        Self { mirror, ..self }
    }

    /// Lets the guest ask for translations through registers (`capabilities.DBG`); only where all devices are emulated.
    #[must_use]
    pub const fn with_debug(self, debug: bool) -> Self {
        Self { debug, ..self }
    }

    /// A performance monitor (`capabilities.HPM`) with this many programmable counters, 1 to 31, 7 are recommended; 0
    /// for none. Only where all devices are emulated and without a mirror. The host supplies the clock:
    /// [`add_cycles`](crate::VIommu::add_cycles).
    #[must_use]
    pub const fn with_counters(self, counters: u8) -> Self {
        Self { counters, ..self }
    }

    /// Quality-of-service ids (`capabilities.QOSID`) of this many bits, 1 to 12, at least as many as the vCPUs have; 0
    /// for none. Only where all devices are emulated.
    #[must_use]
    pub const fn with_qos_bits(self, bits: u8) -> Self {
        Self { qos_bits: bits, ..self }
    }

    pub(crate) const fn is_nested(&self) -> bool {
        self.nesting
    }

    /// The registers' part of the configuration, with `capabilities` as the guest will read them: configuration and
    /// crate and host (rule MRG-12).
    pub(crate) fn setup(
        &self,
        kinds: InterruptKinds,
        atomic: bool,
        host: &HostCapabilities,
    ) -> Result<Setup, ConfigError> {
        if !matches!(self.vectors, 1 | 2 | 4 | 8 | 16) {
            return Err(ConfigError::Vectors(self.vectors));
        }
        if self.budget == 0 {
            return Err(ConfigError::Budget);
        }
        let offer = self.offer;
        if !(32..=56).contains(&offer.pas()) {
            return Err(ConfigError::Pas(offer.pas()));
        }
        if !offer.has_ordered_modes() {
            return Err(ConfigError::ModeOrder);
        }
        self.check_emulated_only()?;
        let own = Capabilities::new()
            .with_version(0x10)
            .with_igs(kinds.igs())
            .with_msi_flat(offer.msi_flat())
            .with_nl(offer.nl())
            .with_s(offer.s());
        let capabilities = if self.nesting {
            let nested = nested(own, offer.with_ats(offer.ats() && self.ats), host);
            if let Some(missing) = mismatch(nested, host) {
                return Err(missing.into_config_error());
            }
            nested
        } else {
            self.emulated_capabilities(own, atomic)
        };
        Ok(Setup {
            capabilities,
            vectors: self.vectors,
            reset_mode: self.reset_mode,
            gxl: if self.nesting { Gxl::Zero } else { self.gxl },
            counters: self.counters,
            qos_bits: self.qos_bits,
        })
    }

    /// `own` and what the crate does for devices whose requests it translates itself. What could not be reached is not
    /// shown (rules REG-CAP-48, REG-CAP-49, REG-CAP-54).
    fn emulated_capabilities(&self, own: Capabilities, atomic: bool) -> Capabilities {
        let offer = self.offer;
        let rv32 = self.gxl != Gxl::Zero;
        let rv64 = self.gxl != Gxl::One;
        let sv64x4 = (offer.sv39x4() || offer.sv48x4() || offer.sv57x4()) && rv64;
        let second_stage = (offer.sv32x4() && rv32) || sv64x4;
        let ats = offer.ats() && self.ats;
        let mrif = offer.msi_mrif() && offer.msi_flat() && second_stage && atomic;
        own.with_sv32(offer.sv32() && rv32)
            .with_sv39(offer.sv39() && rv64)
            .with_sv48(offer.sv48() && rv64)
            .with_sv57(offer.sv57() && rv64)
            .with_svrsw60t59b(offer.svrsw60t59b())
            .with_svpbmt(offer.svpbmt())
            .with_sv32x4(offer.sv32x4() && rv32)
            .with_sv39x4(offer.sv39x4() && rv64)
            .with_sv48x4(offer.sv48x4() && rv64)
            .with_sv57x4(offer.sv57x4() && rv64)
            .with_msi_mrif(mrif)
            .with_amo_mrif(mrif)
            .with_amo_hwad(offer.amo_hwad() && atomic)
            .with_ats(ats)
            .with_t2gpa(offer.t2gpa() && ats && second_stage)
            .with_end(offer.end())
            .with_hpm(offer.hpm() && self.counters != 0)
            .with_dbg(offer.dbg() && self.debug)
            .with_pas(offer.pas())
            .with_pd8(offer.pd8())
            .with_pd17(offer.pd17())
            .with_pd20(offer.pd20())
            .with_qosid(offer.qosid() && self.qos_bits != 0)
    }

    /// What passthrough devices can not have, and what has limits of its own.
    fn check_emulated_only(&self) -> Result<(), ConfigError> {
        let asked = [
            (self.second_stage, "a second stage of the guest's own"),
            (self.gxl != Gxl::Zero, "RV32"),
            (self.debug, "DBG"),
            (self.counters != 0, "HPM"),
            (self.qos_bits != 0, "QOSID"),
        ];
        if let (true, Some(&(_, name))) = (self.nesting, asked.iter().find(|(asked, _)| *asked)) {
            return Err(ConfigError::EmulatedOnly(name));
        }
        if self.counters > 31 {
            return Err(ConfigError::Counters(self.counters));
        }
        if self.qos_bits > 12 {
            return Err(ConfigError::QosBits(self.qos_bits));
        }
        if self.counters != 0 && self.mirror {
            return Err(ConfigError::MirroredCounters);
        }
        Ok(())
    }
}
