//! What a physical IOMMU can do for a guest whose tables it walks, and where that is not what the guest was promised.

use crate::backend::HostCapabilities;
use crate::error::ConfigError;
use crate::id::SecondStageMode;
use crate::regs::Capabilities;

/// `own` and what the host's IOMMU does for a guest whose tables it walks.
pub(super) fn nested(own: Capabilities, offer: Capabilities, host: &HostCapabilities) -> Capabilities {
    let physical = host.capabilities;
    let sv39 = offer.sv39() && physical.sv39();
    let sv48 = offer.sv48() && physical.sv48() && sv39;
    let sv57 = offer.sv57() && physical.sv57() && sv48;
    let stages = own.with_sv39(sv39).with_sv48(sv48).with_sv57(sv57);
    // Hardware reads process contexts unchecked, and honours every scheme it has in them.
    let processes = hidden_scheme(stages, physical).is_none();
    stages
        .with_pd8(offer.pd8() && physical.pd8() && processes)
        .with_pd17(offer.pd17() && physical.pd17() && processes)
        .with_pd20(offer.pd20() && physical.pd20() && processes)
        .with_ats(offer.ats() && physical.ats())
        .with_svpbmt(offer.svpbmt() && physical.svpbmt())
        .with_svrsw60t59b(offer.svrsw60t59b() && physical.svrsw60t59b())
        .with_amo_hwad(offer.amo_hwad() && updates_guest_leaves(host))
        .with_end(offer.end() && physical.end())
        .with_pas(offer.pas().min(host.second_stage.input_width()))
}

/// A first-stage scheme that the IOMMU has and the guest was not promised.
fn hidden_scheme(promised: Capabilities, physical: Capabilities) -> Option<&'static str> {
    let hidden = [
        (physical.sv39() && !promised.sv39(), "Sv39"),
        (physical.sv48() && !promised.sv48(), "Sv48"),
        (physical.sv57() && !promised.sv57(), "Sv57"),
    ];
    hidden.iter().find(|(hidden, _)| *hidden).map(|&(_, name)| name)
}

/// Whether hardware may set A and D bits in guest tables: it can, and the second stage lets it (rule MRG-11).
const fn updates_guest_leaves(host: &HostCapabilities) -> bool {
    host.capabilities.amo_hwad() && host.leaves_dirty
}

/// A way in which an IOMMU does not do what the guest was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It lacks this.
    Lacks(&'static str),
    /// It honours this in the guest's tables although the guest was told it is not there.
    CanNotHide(&'static str),
}

impl Mismatch {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lacks(name) | Self::CanNotHide(name) => name,
        }
    }

    pub(super) const fn into_config_error(self) -> ConfigError {
        match self {
            Self::Lacks(name) => ConfigError::Host(name),
            Self::CanNotHide(name) => ConfigError::MustMatchHost(name),
        }
    }
}

/// The first point in which the IOMMU `host` can not serve a guest that was promised `promised`: it may offer more,
/// but what it honours in guest tables without being asked must be equal (rule MRG-12).
pub(crate) fn mismatch(promised: Capabilities, host: &HostCapabilities) -> Option<Mismatch> {
    let physical = host.capabilities;
    let second_stage = match host.second_stage {
        SecondStageMode::Sv32x4 => physical.sv32x4(),
        SecondStageMode::Sv39x4 => physical.sv39x4(),
        SecondStageMode::Sv48x4 => physical.sv48x4(),
        SecondStageMode::Sv57x4 => physical.sv57x4(),
    };
    let lacks = [
        (host.rv64, "contexts with SXL = 0"),
        (host.little_endian, "contexts with SBE = 0"),
        (second_stage, "the second-stage scheme it states"),
        (host.second_stage.input_width() >= promised.pas(), "the guest's physical address size"),
        (host.svnapot, "Svnapot"),
        (host.coherent, "coherence of non-cacheable device accesses"),
        (!promised.sv39() || physical.sv39(), "Sv39"),
        (!promised.sv48() || physical.sv48(), "Sv48"),
        (!promised.sv57() || physical.sv57(), "Sv57"),
        (!promised.pd8() || physical.pd8(), "PD8"),
        (!promised.pd17() || physical.pd17(), "PD17"),
        (!promised.pd20() || physical.pd20(), "PD20"),
        (!promised.amo_hwad() || updates_guest_leaves(host), "AMO_HWAD"),
        (!promised.end() || physical.end(), "END"),
        (!promised.svpbmt() || physical.svpbmt(), "Svpbmt"),
        (!promised.svrsw60t59b() || physical.svrsw60t59b(), "Svrsw60t59b"),
    ];
    let can_not_hide = [
        (promised.svpbmt() || !physical.svpbmt(), "Svpbmt"),
        (promised.svrsw60t59b() || !physical.svrsw60t59b(), "Svrsw60t59b"),
    ];
    let processes = promised.pd8() || promised.pd17() || promised.pd20();
    let scheme = hidden_scheme(promised, physical).filter(|_| processes);
    let first = |checks: &[(bool, &'static str)]| checks.iter().find(|(holds, _)| !holds).map(|&(_, name)| name);
    first(&lacks).map(Mismatch::Lacks).or_else(|| first(&can_not_hide).or(scheme).map(Mismatch::CanNotHide))
}
