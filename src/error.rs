//! Every error type of the crate.
//!
//! All uses of `thiserror-no-std` are here. Its derive writes `Display`; `core::error::Error` is implemented by hand,
//! because the derive knows only `std::error::Error`, and only when another crate of the build turns on its `std`
//! feature. The private module `std` is what that path then finds.

use thiserror_no_std::Error;

use crate::fault::cause::Cause;

/// Where `std::error::Error` leads inside this module, so that the crate compiles whether or not the derive emits it.
mod std {
    pub(super) mod error {
        #[allow(dead_code, reason = "named by the derive only where some crate enables thiserror-no-std/std")]
        pub(in super::super) trait Error {}
    }
}

/// A number that does not fit an identifier's field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{value:#x} does not fit in {bits:} bits")]
#[non_exhaustive]
pub struct IdError {
    /// The number.
    pub value: u32,
    /// The width of the field.
    pub bits: u32,
}

/// Why guest memory could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MemoryFault {
    /// No memory of this guest is there, or it may not be used so: the specification's PMA/PMP violation.
    #[error("guest memory access fault")]
    Access,
    /// The memory is there but its content is lost (poison).
    #[error("guest memory data corruption")]
    Corruption,
}

/// Why the physical side did not carry out an order. What follows is part of the contract of
/// [`PhysicalIommu`](crate::PhysicalIommu).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OrderError {
    /// Nothing was done; try again when [`run`](crate::VIommu::run) is called next.
    #[error("the physical IOMMU is busy, nothing was done")]
    Busy,
    /// The first `done` orders were carried out, the others will not be.
    #[error("the physical IOMMU refused after {done:} orders")]
    Refused {
        /// How many orders of the batch were carried out.
        done: usize,
    },
    /// The physical IOMMU no longer works for this VM.
    #[error("the physical IOMMU failed")]
    Fatal,
}

/// Why [`start`](crate::VIommu::start) refused a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `start` was called before.
    #[error("the vIOMMU was started before")]
    AlreadyStarted,
    /// The number of interrupt vectors must be 1, 2, 4, 8 or 16.
    #[error("{0:} interrupt vectors: the number must be 1, 2, 4, 8 or 16")]
    Vectors(u8),
    /// The budget must allow at least one unit of work per call.
    #[error("a budget of 0 would let no work be done")]
    Budget,
    /// The physical address size must be 32 to 56 bits.
    #[error("a physical address size of {0:} bits: it must be 32 to 56")]
    Pas(u8),
    /// `Sv57` needs `Sv48`, and `Sv48` needs `Sv39`.
    #[error("Sv57 needs Sv48, and Sv48 needs Sv39")]
    ModeOrder,
    /// There are at most 31 programmable counters.
    #[error("{0:} performance counters: there are at most 31")]
    Counters(u8),
    /// RCID and MCID have at most 12 bits.
    #[error("QoS ids of {0:} bits: they have at most 12")]
    QosBits(u8),
    /// This would not be true of passthrough devices: the vIOMMU does not see what the host's IOMMU does for them.
    #[error("{0:} can only be offered where all devices are emulated")]
    EmulatedOnly(&'static str),
    /// Counters change with every event, and would each time be published.
    #[error("performance counters can not be published to a mirror page")]
    MirroredCounters,
    /// The host's IOMMU honours this PTE bit whether the guest is told or not, so it can not be hidden.
    #[error("{0:} is in the host's IOMMU and can not be hidden from a guest whose tables it walks")]
    MustMatchHost(&'static str),
    /// The host can not nest a guest's tables; the text says which fact is missing.
    #[error("the host can not nest guest tables: {0:} (a host without a physical IOMMU configures emulated devices)")]
    Host(&'static str),
}

/// Why [`attach`](crate::VIommu::attach) or [`attach_emulated`](crate::VIommu::attach_emulated) refused a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// [`start`](crate::VIommu::start) comes first.
    #[error("the vIOMMU has not been started")]
    NotStarted,
    /// The configuration was made for emulated devices only.
    #[error("this vIOMMU was configured without nesting")]
    NotNested,
    /// The guest id has a device already, perhaps one whose detach is not done yet.
    #[error("the device_id is in use")]
    IdInUse,
    /// The host device is attached under another guest id.
    #[error("the host device is attached already")]
    DeviceInUse,
    /// All `DEVICES` places are taken.
    #[error("all places for devices are taken")]
    Full,
    /// The IOMMU this device sits behind can do less than the guest was promised, or than the policy of the device
    /// grants; the text names the capability. `T2GPA`: ATS without it takes
    /// [`with_trusted_translations`](crate::DevicePolicy::with_trusted_translations).
    #[error("the device's IOMMU does not match what the guest was promised or the device was granted: {0:}")]
    Capability(&'static str),
    /// The host did not take the device.
    #[error("the host did not take the device: {0:}")]
    Host(OrderError),
    /// The guest was promised updates of A and D bits, which the host's IOMMU makes; for an emulated device the vIOMMU
    /// has to make them, and the host has no [`compare_exchange`](crate::GuestMemory::compare_exchange).
    #[error("A and D bits are offered, and this host has no compare_exchange to update them")]
    NoCompareExchange,
    /// DMA of emulated devices can not be waited for: the host neither keeps count of it
    /// ([`GuestMemory::counts_dma`](crate::GuestMemory::counts_dma)) nor says that there is nothing to count
    /// ([`Config::with_synchronous_dma`](crate::Config::with_synchronous_dma)).
    #[error(
        "DMA of emulated devices can not be waited for: implement counts_dma and drain, or configure synchronous DMA"
    )]
    NoDrain,
    /// Every device of this vIOMMU is blocked until its [`reset`](crate::VIommu::reset); [`Health`](crate::Health) says
    /// why.
    #[error("the vIOMMU needs a reset before it takes a device")]
    NeedsReset,
}

/// Why nothing was done for an emulated device. Only a [`Fault`](Self::Fault) is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TranslateError {
    /// [`start`](crate::VIommu::start) comes first.
    #[error("the vIOMMU has not been started")]
    NotStarted,
    /// The attachment is not that of an emulated device, or not any more.
    #[error("no emulated device has this attachment")]
    NotAttached,
    /// The host did not grant this device what it asks for, or does not offer it to the guest; or its target does not
    /// take such an access: an interrupt file in memory takes 4 bytes that are aligned. The access is aborted.
    #[error("the access is not supported")]
    Unsupported,
    /// The write goes to an interrupt file in memory, which has to see the data:
    /// [`Request::msi`](crate::Request::msi). Nothing was stored.
    #[error("the data of the write is needed: it goes to an interrupt file in memory")]
    NeedsData,
    /// The guest's tables, or what they lead to, do not allow it. The access is aborted, and the fault has been
    /// recorded as the guest's registers and tables ask for.
    #[error("the guest does not allow the access: {0:?}")]
    Fault(Cause),
}

/// Why [`detach`](crate::VIommu::detach) did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DetachError {
    /// No device is attached under this id, or its detach is under way.
    #[error("no device is attached under this device_id")]
    NotAttached,
}

/// Why [`snapshot`](crate::VIommu::snapshot) wrote nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// [`start`](crate::VIommu::start) comes first.
    #[error("the vIOMMU has not been started")]
    NotStarted,
    /// The image is larger than the buffer; [`SNAPSHOT_BYTES`](crate::VIommu::SNAPSHOT_BYTES) are always enough.
    #[error("the image needs {needed:} bytes, the buffer has fewer")]
    TooSmall {
        /// Bytes of the image.
        needed: usize,
    },
}

/// Why [`restore`](crate::VIommu::restore) took nothing of an image. Every attached device is then blocked until the
/// next [`reset`](crate::VIommu::reset), or a restore that succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// [`start`](crate::VIommu::start) comes first; no device is attached, and none was blocked.
    #[error("the vIOMMU has not been started")]
    NotStarted,
    /// The bytes do not begin as an image does.
    #[error("not an image of a vIOMMU")]
    NotAnImage,
    /// The image has another format.
    #[error("an image of format {0:}, which is not known here")]
    Version(u32),
    /// The image is cut off, or something follows it.
    #[error("the image has {stated:} bytes, {found:} were given")]
    Length {
        /// What the image says, or has to have at least.
        stated: usize,
        /// What was given.
        found: usize,
    },
    /// The guest was promised something else than this vIOMMU was configured for; the text names it.
    #[error("the image's guest was promised otherwise: {0:}")]
    Promise(&'static str),
    /// The guest was promised these bits of `capabilities`, which this vIOMMU does not offer or can not hide.
    #[error("the image's guest was promised other capabilities: bits {0:#x}")]
    Capabilities(u64),
    /// Registers do not hold this, or not together with the others.
    #[error("the registers can not hold {value:#x} at offset {offset:}")]
    Register {
        /// Offset in the register page, a multiple of 4.
        offset: u16,
        /// The 4 bytes in the image.
        value: u32,
    },
    /// State that no register shows can not be as the image says; the text names it.
    #[error("the image is not that of a vIOMMU: {0:}")]
    State(&'static str),
    /// The image holds more than this vIOMMU has room for; the text names the parameter that is too small.
    #[error("there is no room for what the image holds: {0:} is too small")]
    Capacity(&'static str),
    /// Something is under way for this `device_id`, and no device that takes part in it is attached.
    #[error("nothing is attached as {device_id:#x} that could go on with what is under way")]
    NotAttached {
        /// The guest's id of the device.
        device_id: u32,
    },
}

/// Which field of a command or a context is not as the specification has it, said so that who debugs a guest driver can
/// find it.
///
/// It shows as the field, what is wrong with it, and the rule: `DC.tc.EN_PRI needs EN_ATS (DCK-04)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("{0:} {1:} ({2:})")]
pub struct Violation(pub(crate) &'static str, pub(crate) &'static str, pub(crate) &'static str);

impl Violation {
    /// The field, in the specification's words: `DC.tc.EN_PRI`.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.0
    }

    /// What is wrong with it: `needs EN_ATS`.
    #[must_use]
    pub const fn problem(&self) -> &'static str {
        self.1
    }

    /// The name this crate's tests and comments have for the rule: `DCK-04`.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        self.2
    }
}

/// `violation`, if it is `broken`: checks stand one below the other, and the first that fails is the answer.
#[inline]
pub(crate) const fn refuse_if(broken: bool, violation: &'static Violation) -> Result<(), &'static Violation> {
    if broken { Err(violation) } else { Ok(()) }
}

/// A command this IOMMU does not carry out: a reserved encoding, a reserved bit that is 1, or one it does not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("illegal or unsupported command: {0:}")]
#[non_exhaustive]
pub struct IllegalCommand(
    /// The first field that makes it so.
    pub &'static Violation,
);

impl From<&'static Violation> for IllegalCommand {
    fn from(reason: &'static Violation) -> Self {
        Self(reason)
    }
}

impl core::error::Error for IdError {}
impl core::error::Error for MemoryFault {}
impl core::error::Error for OrderError {}
impl core::error::Error for ConfigError {}
impl core::error::Error for AttachError {}
impl core::error::Error for TranslateError {}
impl core::error::Error for DetachError {}
impl core::error::Error for SnapshotError {}
impl core::error::Error for RestoreError {}
impl core::error::Error for Violation {}
impl core::error::Error for IllegalCommand {}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: &dyn core::error::Error) -> heapless::String<160> {
        let mut text = heapless::String::new();
        core::fmt::Write::write_fmt(&mut text, format_args!("{error}")).expect("fits");
        text
    }

    #[test]
    fn messages_say_what_is_wrong() {
        assert_eq!(message(&IdError { value: 0x100, bits: 8 }), "0x100 does not fit in 8 bits");
        assert_eq!(message(&ConfigError::Vectors(3)), "3 interrupt vectors: the number must be 1, 2, 4, 8 or 16");
        assert_eq!(message(&OrderError::Refused { done: 3 }), "the physical IOMMU refused after 3 orders");
        let short = "the image needs 1136 bytes, the buffer has fewer";
        assert_eq!(message(&SnapshotError::TooSmall { needed: 1136 }), short);
    }
}
