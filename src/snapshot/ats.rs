//! ATS in an image: requests that are not complete, and messages that were not taken.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ats::{DeviceMessage, InvalidationRequest, Itags, Outstanding};
use crate::attachment::Attachment;
use crate::backend::{PageResponse, ResponseCode};
use crate::cmdq::command::{InvalidationPayload, ResponsePayload};
use crate::error::RestoreError;
use crate::id::{DeviceId, Itag, ProcessId};
use crate::regs::file::Registers;

use super::{Head, flag, take};

/// An invalidation request that is not complete.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRequest {
    device: U32,
    itag: u8,
    sent: u8,
    seen: u8,
    reserved: u8,
}

/// A message that was not taken.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawMessage {
    device: U32,
    process: U32,
    payload: U64,
    itag: u8,
    response: u8,
    has_process: u8,
    reserved: [u8; 5],
}

impl RawRequest {
    pub(super) fn of(request: &Outstanding) -> Self {
        let Outstanding { itag, to, sent, seen } = *request;
        let device = to.device().get().into();
        Self { device, itag: number(itag), sent: sent.into(), seen, reserved: 0 }
    }
}

impl RawMessage {
    pub(super) fn of(to: Attachment, message: &DeviceMessage) -> Self {
        let (process, payload, itag, response) = match message {
            DeviceMessage::Invalidation(InvalidationRequest { itag, process, payload }) => {
                (process, payload.into_bits(), number(*itag), 0)
            }
            DeviceMessage::PageResponse(response) => (&response.process, response.payload().into_bits(), 0, 1),
        };
        Self {
            device: to.device().get().into(),
            process: process.map_or(0, ProcessId::get).into(),
            payload: payload.into(),
            itag,
            response,
            has_process: process.is_some().into(),
            reserved: [0; 5],
        }
    }

    /// The message, if it is one that a guest's command makes.
    fn decode(&self) -> Option<DeviceMessage> {
        let process = ProcessId::new(self.process.get()).ok()?;
        let process = flag(self.has_process)?.then_some(process);
        let itag = Itag::new(self.itag.into()).ok()?;
        let message = if flag(self.response)? {
            let payload = ResponsePayload::from_bits(self.payload.get());
            let code = ResponseCode::decode(payload.code());
            DeviceMessage::PageResponse(PageResponse { process, group: payload.prgi(), code })
        } else {
            let bits = InvalidationPayload::from_bits(self.payload.get());
            let payload = InvalidationPayload::new().with_g(bits.g()).with_s(bits.s()).with_page(bits.page());
            DeviceMessage::Invalidation(InvalidationRequest { itag, process, payload })
        };
        Some(message)
    }
}

impl Head {
    /// What is under way between the guest and emulated devices.
    pub(super) fn ats<const ITAGS: usize>(
        &self,
        timed_out: bool,
        lists: &mut &[u8],
        registers: &Registers,
        attached: impl Fn(DeviceId) -> Option<Attachment>,
    ) -> Result<Itags<ITAGS>, RestoreError> {
        let wrong = RestoreError::State("an ATS message or request that can not be");
        let full = RestoreError::Capacity("ITAGS");
        let device = |id: U32| {
            let not_attached = RestoreError::NotAttached { device_id: id.get() };
            DeviceId::new(id.get()).ok().and_then(&attached).ok_or(not_attached)
        };
        let mut ats = Itags::new();
        ats.next = Itag::new(self.next_itag.into()).map_err(|_| wrong)?;
        ats.timed_out = timed_out;
        for _ in 0..self.requests {
            let raw: RawRequest = take(lists).ok_or(wrong)?;
            let (Ok(itag), Some(sent), 0) = (Itag::new(raw.itag.into()), flag(raw.sent), raw.reserved) else {
                return Err(wrong);
            };
            let request = Outstanding { itag, to: device(raw.device)?, sent, seen: raw.seen };
            ats.outstanding.push(request).map_err(|_| full)?;
        }
        for _ in 0..self.messages {
            let raw: RawMessage = take(lists).ok_or(wrong)?;
            let (to, message) = (device(raw.device)?, raw.decode().ok_or(wrong)?);
            if RawMessage::of(to, &message).as_bytes() != raw.as_bytes() {
                return Err(wrong);
            }
            ats.outbox.push((to, message)).map_err(|_| full)?;
        }
        let nothing = ats.is_idle() && !ats.timed_out;
        if ats.is_consistent() && (nothing || registers.capabilities().ats()) { Ok(ats) } else { Err(wrong) }
    }
}

/// A number of 5 bits as a byte.
pub(super) fn number(itag: Itag) -> u8 {
    u8::try_from(itag.get()).unwrap_or(0)
}
