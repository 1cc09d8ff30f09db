//! What was refused last, for who debugs a guest driver or a host.

use core::fmt;

use crate::addr::Gpa;
use crate::backend::Context;
use crate::cmdq::command::RawCommand;
use crate::error::{MemoryFault, Violation};
use crate::fault::{Cause, Fault};
use crate::id::{DeviceId, ProcessId};

/// What was refused last: of what the guest said, or of what the host was ordered. It shows as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastError {
    /// A command stopped the guest's queue with `cmd_ill`.
    IllegalCommand {
        /// Its index in the queue: `cqh`.
        index: u32,
        /// Its words, as numbers in the guest's byte order.
        command: RawCommand,
        /// The field that makes it illegal.
        reason: &'static Violation,
    },
    /// A command stopped the guest's queue with `cqmf`: it can not be read, or what its fence stores can not be
    /// written.
    CommandMemory {
        /// Its index in the queue: `cqh`.
        index: u32,
        /// Where the access went.
        at: Gpa,
        /// What was found there.
        fault: MemoryFault,
    },
    /// The guest's directories do not allow a device what it does, or give it no usable context.
    Context {
        /// The guest's id of the device.
        device: DeviceId,
        /// The process of the request, if it had one.
        process: Option<ProcessId>,
        /// What the device's requests fault with.
        cause: Cause,
        /// The field that is why.
        reason: &'static Violation,
    },
    /// The host refused to give a device this context: it is blocked.
    HostContext {
        /// The guest's id of the device.
        device: DeviceId,
        /// The context.
        context: Context,
    },
    /// The host refused an invalidation, also as one of everything: all devices are blocked until the reset.
    HostInvalidation,
    /// The physical IOMMU failed: all devices are blocked, and the guest's fence stays incomplete until the reset.
    HostFailed,
    /// A device did not answer invalidations of its own cache in time, again and again: it is without ATS until
    /// the host has reset it.
    Quarantine {
        /// The guest's id of the device.
        device: DeviceId,
    },
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IllegalCommand { index, command: RawCommand { low, high }, reason } => {
                write!(f, "command {index} ({low:#018x} {high:#018x}) is illegal: {reason}")
            }
            Self::CommandMemory { index, at, fault } => write!(f, "command {index}: {fault} at {at}"),
            Self::Context { device, process, cause, reason } => {
                write!(f, "device_id {:#x}", device.get())?;
                if let Some(process) = process {
                    write!(f, ", process_id {:#x}", process.get())?;
                }
                write!(f, ", cause {}: {reason}", cause.code())
            }
            Self::HostContext { device, context } => {
                write!(f, "device_id {:#x}: the host refused the context {context:x?}", device.get())
            }
            Self::HostInvalidation => f.write_str("the host refused an invalidation: every device is blocked"),
            Self::HostFailed => f.write_str("the physical IOMMU failed: every device is blocked"),
            Self::Quarantine { device } => {
                write!(
                    f,
                    "device_id {:#x} does not answer invalidations: it is without ATS until it is reset",
                    device.get()
                )
            }
        }
    }
}

impl core::error::Error for LastError {}

/// Where the last error is kept.
#[derive(Debug)]
pub(crate) struct Noted(Option<LastError>);

impl Noted {
    pub(crate) const NOTHING: Self = Self(None);

    pub(crate) const fn last(&self) -> Option<LastError> {
        self.0
    }

    /// Notes why a context is not usable, if that is what the fault is about.
    pub(crate) fn note_context(&mut self, device: DeviceId, process: Option<ProcessId>, fault: &Fault) {
        if let Fault { cause, iotval2: _, reason: Some(reason) } = *fault {
            self.note(LastError::Context { device, process, cause, reason });
        }
    }

    pub(crate) fn note(&mut self, error: LastError) {
        // A guest can come here as often as it likes.
        log::debug!("{error}");
        self.0 = Some(error);
    }
}
