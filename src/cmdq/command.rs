//! Format of the commands: what each is, which bits are reserved, and which of them this IOMMU knows.

mod ats;
mod bits;

pub use ats::{AtsInval, AtsPrgr, Destination, InvalidationPayload, ResponsePayload};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Gpa, Iova, PAGE_SIZE, join_pages};
use crate::error::{IllegalCommand, Violation, refuse_if};
use crate::id::{DeviceId, Gscid, ProcessId, Pscid};
use crate::regs::{Capabilities, DdtpMode};

use bits::{ATS, AtsBits, Head, IODIR, IOFENCE, IOTINVAL, IodirBits, IofenceBits, IotinvalBits};

/// A command as it is in the queue: 16 bytes, two 64-bit words. Source: "Command-Queue (CQ)".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct RawCommand {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

const _: () = assert!(size_of::<RawCommand>() == 16);

impl RawCommand {
    #[expect(clippy::as_conversions, reason = "widening, and `From` is not const")]
    const fn bits(self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "takes the halves apart")]
    const fn of(bits: u128) -> Self {
        Self { low: bits as u64, high: (bits >> 64) as u64 }
    }

    /// Of two `IOTINVAL`: whether they differ in the page alone, which makes neither more legal than the other.
    #[inline]
    const fn is_alike(self, other: Self) -> bool {
        self.low == other.low && (self.high ^ other.high) & !PAGE == 0
    }

    /// ADDR of an `IOTINVAL`.
    #[inline]
    const fn page(self) -> u64 {
        (self.high & PAGE) >> 10
    }
}

/// Where the upper half of an `IOTINVAL` has `S` and the page number.
const S: u64 = 1 << 9;
const PAGE: u64 = PAGE_NUMBER << 10;

/// A decoded command that is legal. The physical driver of a host may encode its own with [`Command::encode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// `IOTINVAL.VMA`: first-stage translations.
    IotinvalVma(Iotinval),
    /// `IOTINVAL.GVMA`: second-stage translations; its `pscid` is `None`.
    IotinvalGvma(Iotinval),
    /// `IOFENCE.C`.
    IofenceC(IofenceC),
    /// `IODIR.INVAL_DDT`: cached directory entries of one device, or of all.
    IodirInvalDdt(Option<DeviceId>),
    /// `IODIR.INVAL_PDT`: a cached process context.
    IodirInvalPdt(DeviceId, ProcessId),
    /// `ATS.INVAL`: what a function's own cache holds.
    AtsInval(AtsInval),
    /// `ATS.PRGR`: the answer to a group of page requests.
    AtsPrgr(AtsPrgr),
}

/// Operands of `IOTINVAL`. Source: "IOMMU Page-Table cache invalidation commands".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Iotinval {
    /// GSCID, if `GV`; else the spaces without a second stage.
    pub gscid: Option<Gscid>,
    /// PSCID, if `PSCV`.
    pub pscid: Option<Pscid>,
    /// Pages, if `AV`.
    pub range: Option<PageRange>,
}

impl Iotinval {
    /// Everything: no operand valid.
    pub const ALL: Self = Self { gscid: None, pscid: None, range: None };

    /// The same within one second-stage address space.
    #[must_use]
    pub const fn with_gscid(self, gscid: Gscid) -> Self {
        Self { gscid: Some(gscid), ..self }
    }

    /// The same within one first-stage address space.
    #[must_use]
    pub const fn with_pscid(self, pscid: Pscid) -> Self {
        Self { pscid: Some(pscid), ..self }
    }

    /// The same for some pages.
    #[must_use]
    pub const fn with_range(self, range: PageRange) -> Self {
        Self { range: Some(range), ..self }
    }

    /// Makes these operands, decoded from `raw`, one with those of the commands `behind` it that go on where they end or
    /// say the same; how many these are.
    pub(super) fn join(&mut self, raw: RawCommand, behind: &[RawCommand]) -> usize {
        let alike = behind.iter().take_while(|next| raw.is_alike(**next));
        match &mut self.range {
            // Without AV the page is not looked at.
            None => alike.count(),
            Some(range) => {
                let s = raw.high & S != 0;
                alike.take_while(|next| range.join(next.page(), s)).count()
            }
        }
    }
}

/// The pages an `IOTINVAL` with `AV` names: one, or a naturally aligned power of two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    first: Iova,
    last: Iova,
    non_leaf: bool,
}

impl PageRange {
    /// The page that holds `iova`, leaf entries only.
    #[must_use]
    pub const fn page(iova: Iova) -> Self {
        Self { first: iova.page(), last: iova.page(), non_leaf: false }
    }

    /// The smallest range one command can name that holds all pages from that of `first` to that of `last`, leaf
    /// entries only. More than one page needs `capabilities.S`.
    #[must_use]
    pub const fn covering(first: Iova, last: Iova) -> Self {
        let differ = (first.get() ^ last.get()) >> 12;
        // Every page number bit from the highest that differs on is inside the range.
        let within = match PAGE_NUMBER.checked_shr(differ.leading_zeros().saturating_sub(12)) {
            Some(within) => within,
            None => 0,
        };
        Self::of(first.get() >> 12, within, false)
    }

    /// The same pages with `NL` set to `non_leaf`.
    #[must_use]
    pub const fn with_non_leaf(self, non_leaf: bool) -> Self {
        Self { non_leaf, ..self }
    }

    /// First byte of the first page.
    #[must_use]
    pub const fn first(self) -> Iova {
        self.first
    }

    /// First byte of the last page.
    #[must_use]
    pub const fn last(self) -> Iova {
        self.last
    }

    /// `NL`: entries of every level, not leaf entries only.
    #[must_use]
    pub const fn non_leaf(self) -> bool {
        self.non_leaf
    }

    const fn of(page: u64, within: u64, non_leaf: bool) -> Self {
        let first = (page & !within & PAGE_NUMBER).wrapping_mul(PAGE_SIZE);
        let last = ((page | within) & PAGE_NUMBER).wrapping_mul(PAGE_SIZE);
        Self { first: Iova::new(first), last: Iova::new(last), non_leaf }
    }

    /// These pages and those behind the operand of another command with the same `S` and `NL`, if both together are one
    /// range.
    #[inline]
    fn join(&mut self, page: u64, s: bool) -> bool {
        let other = Self::decode(page, s, self.non_leaf);
        let union = join_pages((self.first, self.last), (other.first, other.last));
        union.map(|(first, last)| (self.first, self.last) = (first, last)).is_some()
    }

    /// The range an operand names: one page, or with `S` a naturally aligned power of two of them, whose size the
    /// lowest 0 bit of the page number tells (rule VMA-14).
    const fn decode(page: u64, s: bool, non_leaf: bool) -> Self {
        let within = if s { page ^ page.wrapping_add(1) } else { 0 };
        // UNSPECIFIED: all ones name every page, as all ones but the top bit do (rules VMA-14, QCMD-14).
        Self::of(page, within, non_leaf)
    }
}

/// The 52 bits of a page number.
const PAGE_NUMBER: u64 = u64::MAX >> 12;

/// Operands of `IOFENCE.C`. Source: "IOMMU Command-queue Fence commands".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct IofenceC {
    /// With `AV`: where to store which 4 bytes when the fence is complete.
    pub store: Option<(Gpa, u32)>,
    /// `WSI`: set `fence_w_ip`.
    pub wsi: bool,
    /// `PR`: earlier device reads are globally ordered.
    pub pr: bool,
    /// `PW`: earlier device writes are globally visible.
    pub pw: bool,
}

impl IofenceC {
    /// A fence that orders reads and writes and stores nothing.
    pub const READS_AND_WRITES: Self = Self { store: None, wsi: false, pr: true, pw: true };

    /// The same with a store of `data` to `at`, a multiple of 4, when it is complete.
    #[must_use]
    pub const fn with_store(self, at: Gpa, data: u32) -> Self {
        Self { store: Some((at, data)), ..self }
    }
}

/// What legality depends on beyond the command itself: the registers the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Legality {
    /// `capabilities`.
    pub capabilities: Capabilities,
    /// `fctl.WSI`.
    pub wsi: bool,
    /// `ddtp.iommu_mode`.
    pub mode: DdtpMode,
}

impl Legality {
    /// What a guest sees that reads this `capabilities`, wrote this `fctl.WSI` and this `ddtp.iommu_mode`.
    #[must_use]
    pub const fn new(capabilities: Capabilities, wsi: bool, mode: DdtpMode) -> Self {
        Self { capabilities, wsi, mode }
    }
}

impl Command {
    /// Decodes a command and judges it by what the guest was shown.
    ///
    /// Operands that the command ignores may hold anything.
    ///
    /// # Errors
    /// [`IllegalCommand`] for everything the guest gets `cmd_ill` for.
    #[inline]
    pub fn decode(raw: RawCommand, legality: &Legality) -> Result<Self, IllegalCommand> {
        let bits = raw.bits();
        let capabilities = legality.capabilities;
        let head = Head::from_bits(bits);
        match (head.opcode(), head.func3()) {
            (IOTINVAL, func3 @ (0 | 1)) => {
                let command = IotinvalBits::from_bits(bits);
                command.check(capabilities)?;
                let operands = Iotinval {
                    gscid: command.gv().then(|| command.gscid()),
                    pscid: command.pscv().then(|| command.pscid()),
                    range: command.av().then(|| PageRange::decode(command.page(), command.s(), command.nl())),
                };
                if func3 == 0 {
                    return Ok(Self::IotinvalVma(operands));
                }
                refuse_if(command.pscv(), &Violation("IOTINVAL.GVMA.PSCV", "is 1", "CMD-06"))?;
                // Without GV every VM is meant and no address is looked at (rule GVM-01).
                Ok(Self::IotinvalGvma(if command.gv() { operands } else { Iotinval::ALL }))
            }
            (IOFENCE, 0) => {
                let command = IofenceBits::from_bits(bits);
                command.check(legality.wsi)?;
                let store = command.av().then(|| (Gpa::new(command.addr() << 2), command.data()));
                Ok(Self::IofenceC(IofenceC { store, wsi: command.wsi(), pr: command.pr(), pw: command.pw() }))
            }
            (IODIR, func3 @ (0 | 1)) => {
                let command = IodirBits::from_bits(bits);
                // UNSPECIFIED: an id that is too wide makes the command illegal (rule QCMD-11); in Off and Bare no
                // width is defined, and every device_id is accepted.
                command.check(legality.mode.device_id_width(capabilities.msi_flat()))?;
                if func3 == 0 {
                    command.check_ddt()?;
                    return Ok(Self::IodirInvalDdt(command.dv().then(|| command.did())));
                }
                command.check_pdt(process_id_width(capabilities))?;
                Ok(Self::IodirInvalPdt(command.did(), command.pid()))
            }
            (ATS, func3 @ (0 | 1)) => {
                let command = AtsBits::from_bits(bits);
                command.check(capabilities)?;
                Ok(if func3 == 0 {
                    Self::AtsInval(AtsInval::decode(command))
                } else {
                    Self::AtsPrgr(AtsPrgr::decode(command))
                })
            }
            (IOTINVAL | IOFENCE | IODIR | ATS, _) => {
                Err(IllegalCommand(&Violation("func3", "is one the opcode does not have", "CMD-01")))
            }
            _ => Err(IllegalCommand(&Violation("opcode", "is reserved or custom", "CMD-01"))),
        }
    }

    /// The 16 bytes of this command.
    #[must_use]
    pub fn encode(self) -> RawCommand {
        RawCommand::of(match self {
            Self::IotinvalVma(operands) => encode_iotinval(0, operands),
            Self::IotinvalGvma(operands) => encode_iotinval(1, operands),
            Self::IofenceC(fence) => {
                let (at, data) = fence.store.unwrap_or((Gpa::new(0), 0));
                IofenceBits::new()
                    .with_opcode(IOFENCE)
                    .with_av(fence.store.is_some())
                    .with_wsi(fence.wsi)
                    .with_pr(fence.pr)
                    .with_pw(fence.pw)
                    .with_data(data)
                    .with_addr(at.get() >> 2)
                    .into_bits()
            }
            Self::IodirInvalDdt(device) => IodirBits::new()
                .with_opcode(IODIR)
                .with_dv(device.is_some())
                .with_did(device.unwrap_or(DeviceId::truncate(0)))
                .into_bits(),
            Self::IodirInvalPdt(device, process) => IodirBits::new()
                .with_opcode(IODIR)
                .with_func3(1)
                .with_dv(true)
                .with_did(device)
                .with_pid(process)
                .into_bits(),
            Self::AtsInval(operands) => operands.encode(),
            Self::AtsPrgr(operands) => operands.encode(),
        })
    }
}

fn encode_iotinval(func3: u8, operands: Iotinval) -> u128 {
    let bits = IotinvalBits::new()
        .with_opcode(IOTINVAL)
        .with_func3(func3)
        .with_pscv(operands.pscid.is_some())
        .with_pscid(operands.pscid.unwrap_or(Pscid::truncate(0)))
        .with_gv(operands.gscid.is_some())
        .with_gscid(operands.gscid.unwrap_or(Gscid::truncate(0)));
    let Some(range) = operands.range else {
        return bits.into_bits();
    };
    let (first, last) = (range.first.get() >> 12, range.last.get() >> 12);
    // The bits that differ, less the highest, are the ones below the 0 that tells the size.
    let below = (first ^ last) >> 1;
    bits.with_av(true).with_nl(range.non_leaf).with_s(first != last).with_page(first | below).into_bits()
}

/// Widest `process_id` that any process directory takes (rule CMD-14).
// UNSPECIFIED: where none is offered, 8 bits (QCMD-12).
fn process_id_width(capabilities: Capabilities) -> u32 {
    if capabilities.pd20() {
        20
    } else if capabilities.pd17() {
        17
    } else {
        8
    }
}

#[cfg(test)]
mod tests;
