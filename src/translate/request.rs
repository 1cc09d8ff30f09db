//! What a device model asks, and what it is told.

use crate::addr::{Gpa, Iova};
use crate::attachment::Attachment;
use crate::backend::Epoch;
use crate::fault::TransactionType;
use crate::id::{ProcessId, Pscid};

/// A DMA access of an emulated device.
///
/// ```
/// # use riscv_viommu::{Attachment, Iova, Request};
/// # fn requests(device: Attachment) {
/// let fetch = Request::read(device, Iova::new(0x1000)).with_length(16);
/// let store = Request::write(device, Iova::new(0x8000)).with_length(4096);
/// let interrupt = Request::msi(device, Iova::new(0x2800_0000), 7);
/// # let _ = (fetch, store, interrupt);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Request {
    /// Who asks.
    pub device: Attachment,
    /// What for: one of the untranslated or translated accesses.
    pub access: TransactionType,
    /// First byte.
    pub iova: Iova,
    /// Number of bytes.
    pub length: u64,
    /// Its `process_id` (PCI: PASID), if it carries one.
    pub process: Option<ProcessId>,
    /// It asks for supervisor privilege; looked at only with a `process_id`.
    pub privileged: bool,
    /// The 4 bytes a write stores, as a little-endian number: an interrupt file in memory needs to see them.
    pub data: Option<u32>,
}

impl Request {
    const fn new(device: Attachment, access: TransactionType, iova: Iova) -> Self {
        Self { device, access, iova, length: 1, process: None, privileged: false, data: None }
    }

    /// A read of one byte.
    #[must_use]
    pub const fn read(device: Attachment, iova: Iova) -> Self {
        Self::new(device, TransactionType::UntranslatedRead, iova)
    }

    /// A write, or an atomic operation, of one byte.
    #[must_use]
    pub const fn write(device: Attachment, iova: Iova) -> Self {
        Self::new(device, TransactionType::UntranslatedWrite, iova)
    }

    /// A read of one byte that is going to be executed.
    #[must_use]
    pub const fn execute(device: Attachment, iova: Iova) -> Self {
        Self::new(device, TransactionType::UntranslatedExecute, iova)
    }

    /// A write of the 4 bytes `data`, a little-endian number: an MSI. One that goes to an interrupt file in memory is
    /// stored there by the vIOMMU ([`Target::Mrif`]).
    #[must_use]
    pub const fn msi(device: Attachment, iova: Iova, data: u32) -> Self {
        Self { length: 4, data: Some(data), ..Self::write(device, iova) }
    }

    /// The same for `length` bytes. With 0, [`translate`](crate::VIommu::translate) asks as for one byte, and
    /// [`pieces`](crate::VIommu::pieces) for nothing.
    #[must_use]
    pub const fn with_length(self, length: u64) -> Self {
        Self { length, ..self }
    }

    /// The same for a process.
    #[must_use]
    pub const fn with_process(self, process: ProcessId, privileged: bool) -> Self {
        Self { process: Some(process), privileged, ..self }
    }

    /// The same with an address that an ATS translation gave. Of a device whose
    /// [`DevicePolicy`](crate::DevicePolicy) has no `ats` it is [`Unsupported`](crate::TranslateError::Unsupported).
    #[must_use]
    pub const fn translated(self) -> Self {
        let access = match self.access {
            TransactionType::UntranslatedExecute => TransactionType::TranslatedExecute,
            TransactionType::UntranslatedWrite => TransactionType::TranslatedWrite,
            TransactionType::UntranslatedRead => TransactionType::TranslatedRead,
            other => other,
        };
        Self { access, ..self }
    }
}

/// Where an access goes.
///
/// It stays right until the guest has it invalidated: [`epoch`](Self::epoch) names it in
/// [`GuestMemory::drain`](crate::GuestMemory::drain), which the guest's fence waits for. A host whose DMA is
/// synchronous ([`Config::with_synchronous_dma`](crate::Config::with_synchronous_dma)) uses it before it calls the
/// vIOMMU again, and not later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Translation {
    /// What the first byte goes to.
    pub target: Target,
    /// So many bytes from the requested address on lie behind each other there; at most as many as were asked for. The
    /// guest may lead them up to the last byte of the 64-bit space: the address behind them need not exist.
    pub length: u64,
    /// The naturally aligned power of two of bytes around the address that is translated alike.
    pub size: u64,
    /// What a host that [remembers](crate::backend#a-host-that-remembers-translations) the translation may allow later
    /// accesses of the same process and privilege.
    pub permissions: Permissions,
    /// The memory type the access has.
    pub memory_type: Pbmt,
    /// When it was handed out.
    pub epoch: Epoch,
    /// Tag of the first-stage address space, which [`Invalidation::AddressSpace`](crate::Invalidation::AddressSpace)
    /// names; `None`: without a first stage.
    pub pscid: Option<Pscid>,
    /// The quality-of-service ids of the access.
    pub qos: QosIds,
}

/// What an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Memory of the VM, or an interrupt file that no MSI page table leads to. The guest may have put in any address:
    /// at what is neither, the access finds nothing.
    Memory(Gpa),
    /// A page of an interrupt file of the VM's: a write is an MSI, to this address.
    InterruptFile(Gpa),
    /// An interrupt file in memory. A write is done: the vIOMMU stored it and sent the notice. A read gives 0.
    Mrif,
}

impl Target {
    /// The address, if there is one: not for an interrupt file in memory, whose access is done.
    #[must_use]
    pub const fn address(self) -> Option<Gpa> {
        match self {
            Self::Memory(at) | Self::InterruptFile(at) => Some(at),
            Self::Mrif => None,
        }
    }
}

/// Leave to read, write and execute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Permissions {
    /// Reads.
    pub read: bool,
    /// Writes; only where D is set, so that none is lost.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

/// Memory type of an access. Source: "Svpbmt".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pbmt {
    /// What the memory is by itself.
    Pma,
    /// Non-cacheable main memory.
    Nc,
    /// I/O.
    Io,
}

impl Pbmt {
    /// The 2-bit encoding.
    #[must_use]
    pub const fn encoding(self) -> u8 {
        match self {
            Self::Pma => 0,
            Self::Nc => 1,
            Self::Io => 2,
        }
    }

    /// The type of both stages: the first decides, if it says anything (rule PB-02). 3 is reserved, no good entry has
    /// it.
    pub(super) const fn resolve(first: u8, second: u8) -> Self {
        match (first, second) {
            (1, _) | (0, 1) => Self::Nc,
            (2, _) | (0, 2) => Self::Io,
            _ => Self::Pma,
        }
    }
}

/// Quality-of-service ids, 12 bits each; 0 where they are not offered. Source: "Quality-of-Service Identifiers".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct QosIds {
    /// Resource-control id.
    pub rcid: u16,
    /// Monitoring-counter id.
    pub mcid: u16,
}
