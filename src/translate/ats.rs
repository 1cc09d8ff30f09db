//! PCIe ATS: what a translation request of a device's own cache is answered. Source: "PCIe ATS translation request
//! handling".

use crate::addr::Iova;
use crate::attachment::Attachment;
use crate::fault::Cause;
use crate::id::ProcessId;
use crate::msi::Destination;

use super::{Ask, Outcome, Pbmt, Refusal, To};

/// An ATS translation request of an emulated device, for one translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "the bits of a request")]
pub struct AtsRequest {
    /// Who asks.
    pub device: Attachment,
    /// An address in the page that is asked for.
    pub iova: Iova,
    /// PASID, if there is one.
    pub process: Option<ProcessId>,
    /// Privileged Mode Requested; looked at only with a PASID.
    pub privileged: bool,
    /// Execute Requested; looked at only with a PASID.
    pub execute: bool,
    /// `NW`: no write is going to happen.
    pub no_write: bool,
    /// The device is a CXL type 1 or 2 one, which can be told to use CXL.io.
    pub cxl: bool,
}

impl AtsRequest {
    /// A request for a page, without a PASID, to read and write.
    #[must_use]
    pub const fn new(device: Attachment, iova: Iova) -> Self {
        Self { device, iova, process: None, privileged: false, execute: false, no_write: false, cxl: false }
    }

    /// The same with a PASID.
    #[must_use]
    pub const fn with_process(self, process: ProcessId, privileged: bool) -> Self {
        Self { process: Some(process), privileged, ..self }
    }

    /// The same with Execute Requested.
    #[must_use]
    pub const fn with_execute(self, execute: bool) -> Self {
        Self { execute, ..self }
    }

    /// The same with `NW`.
    #[must_use]
    pub const fn with_no_write(self, no_write: bool) -> Self {
        Self { no_write, ..self }
    }

    /// The same of a CXL type 1 or 2 device.
    #[must_use]
    pub const fn with_cxl(self, cxl: bool) -> Self {
        Self { cxl, ..self }
    }

    const fn is_privileged(&self) -> bool {
        self.process.is_some() && self.privileged
    }

    pub(crate) const fn ask(&self) -> Ask {
        Ask { executes: self.execute && self.process.is_some(), writes: !self.no_write, is_ats: true }
    }
}

/// The answer to a translation request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtsCompletion {
    /// Success: perhaps with no permission at all, which is how a page that is not there is told.
    Success(AtsTranslation),
    /// Unsupported Request (UR); a fault was recorded.
    UnsupportedRequest,
    /// Completer Abort (CA); a fault was recorded.
    CompleterAbort,
}

/// The fields of a successful completion; with no permission only `size` and `privileged` are not 0. `N` and `AMA` are
/// 0 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "the bits of a completion")]
pub struct AtsTranslation {
    /// First byte of what the range is translated to: an address of the VM, with `T2GPA` one of the guest's own VM. 0
    /// with `untranslated_only`.
    pub address: u64,
    /// Bytes in the range: a power of two from 4096 on, naturally aligned.
    pub size: u64,
    /// `R`.
    pub read: bool,
    /// `W`.
    pub write: bool,
    /// `Exe`.
    pub execute: bool,
    /// `Priv`: the permissions are those of privileged accesses.
    pub privileged: bool,
    /// `Global`: the same for every PASID.
    pub global: bool,
    /// `U`: the range can be accessed by untranslated requests only.
    pub untranslated_only: bool,
    /// `CXL.io`: the range has to be accessed through CXL.io.
    pub cxl_io: bool,
}

impl AtsTranslation {
    /// The address field of the completion, with `S`: bits 63:12, and for more than 4 KiB below them a 0 after as many
    /// 1s as the size tells, and whether `S` is set.
    #[must_use]
    pub const fn napot(&self) -> (u64, bool) {
        // Half the size, less one: the ones.
        let ones = (self.size >> 1).saturating_sub(1) & !0xfff;
        (self.address | ones, self.size > 4096)
    }

    /// No permission.
    // UNSPECIFIED: the address; a device learns nothing from 0 (rule ATS-04). CXL.io, where no memory type is known
    // (ATS-13).
    const fn nothing(request: &AtsRequest) -> Self {
        Self {
            address: 0,
            size: 4096,
            read: false,
            write: false,
            execute: false,
            privileged: request.is_privileged(),
            global: false,
            untranslated_only: false,
            cxl_io: false,
        }
    }

    /// What a good outcome is told as (rules ATS-06 to ATS-16).
    pub(crate) fn of(outcome: &Outcome, request: &AtsRequest) -> Self {
        let (is_msi, is_mrif, address) = match outcome.to {
            To::Memory(at) => (false, false, at.get()),
            To::Msi(Destination::File(at)) => (true, false, at.get()),
            To::Msi(Destination::Mrif(_)) => (true, true, 0),
        };
        let size = 1_u64.wrapping_shl(outcome.shift.into());
        let address = if outcome.t2gpa && !is_mrif { outcome.gpa.get() } else { address };
        let (read, write) = (outcome.permissions.read, outcome.permissions.write);
        let execute = outcome.permissions.execute && read && request.ask().executes;
        if !read && !write {
            return Self::nothing(request);
        }
        Self {
            address: address & !size.wrapping_sub(1),
            size,
            read,
            // UNSPECIFIED: with the request that sets D already, not from the next one on (rule ATS-08).
            write,
            execute,
            privileged: request.is_privileged(),
            // UNSPECIFIED: a range without a first stage is not global (rule ATS-12).
            global: request.process.is_some() && outcome.global && !is_msi,
            untranslated_only: is_mrif,
            cxl_io: request.cxl && (is_msi || outcome.t2gpa || outcome.memory_type != Pbmt::Pma),
        }
    }
}

/// How a fault is told to the device, and whether it is recorded (rules ATS-01 to ATS-04).
pub(crate) const fn completion_of(refusal: &Refusal, request: &AtsRequest) -> (AtsCompletion, bool) {
    match refusal.fault.cause {
        Cause::AllInboundDisallowed
        | Cause::DdtLoadAccessFault
        | Cause::DdtNotValid
        | Cause::DdtMisconfigured
        | Cause::TransactionTypeDisallowed => (AtsCompletion::UnsupportedRequest, true),
        Cause::InstructionPageFault
        | Cause::ReadPageFault
        | Cause::WritePageFault
        | Cause::InstructionGuestPageFault
        | Cause::ReadGuestPageFault
        | Cause::WriteGuestPageFault
        | Cause::MsiPteNotValid
        | Cause::PdtNotValid => (AtsCompletion::Success(AtsTranslation::nothing(request)), false),
        // UNSPECIFIED: for lost memory, and what an MSI page table is wrong with, too (rules ATS-03, DISC-Q08).
        _ => (AtsCompletion::CompleterAbort, true),
    }
}
