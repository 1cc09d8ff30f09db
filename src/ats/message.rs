//! Messages of ATS between the IOMMU and a device.

use bitfield_struct::bitfield;

use crate::backend::PageResponse;
use crate::cmdq::command::{InvalidationPayload, ResponsePayload};
use crate::id::{Itag, ProcessId};

/// A message to an emulated device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceMessage {
    /// The device is to forget translations, and then to say so: [`ats_completion`](crate::VIommu::ats_completion).
    Invalidation(InvalidationRequest),
    /// The guest's answer to page requests.
    PageResponse(PageResponse),
}

/// An Invalidation Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct InvalidationRequest {
    /// What the completion names.
    pub itag: Itag,
    /// PASID whose translations are meant, unless the payload says all.
    pub process: Option<ProcessId>,
    /// Which pages; its [`range`](InvalidationPayload::range) has the first and the last.
    pub payload: InvalidationPayload,
}

/// An Invalidation Completion (64 bits): bytes 8 to 15 of the message, as a number. Source: PCIe,
/// "Invalidate Completion".
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct InvalidationCompletion {
    /// `ITag` vector: bit n is the request of `ITag` n.
    pub itags: u32,
    /// `CC`: how many completions each of the requests has; 0 means 8.
    #[bits(3)]
    pub cc: u8,
    #[bits(29, access = RO)]
    rsvd0: u32,
}

impl InvalidationCompletion {
    /// The only completion of one request.
    #[must_use]
    pub const fn of(itag: Itag) -> Self {
        Self::new().with_itags(1_u32.wrapping_shl(itag.get())).with_cc(1)
    }

    /// How many completions there are: 1 to 8.
    #[must_use]
    pub const fn count(self) -> u8 {
        match self.cc() {
            0 => 8,
            count => count,
        }
    }

    /// Whether this one is of the request of `itag`.
    #[must_use]
    pub const fn completes(self, itag: Itag) -> bool {
        self.itags() & 1_u32.wrapping_shl(itag.get()) != 0
    }
}

impl PageResponse {
    /// The payload of the message.
    #[must_use]
    pub const fn payload(&self) -> ResponsePayload {
        ResponsePayload::new().with_prgi(self.group).with_code(self.code.encoding())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ResponseCode;
    use crate::id::Prgi;

    #[test]
    fn a_completion_is_laid_out_as_specified() {
        assert_eq!(InvalidationCompletion::new().with_itags(u32::MAX).into_bits(), 0xffff_ffff, "ATS-20");
        assert_eq!(InvalidationCompletion::new().with_cc(7).into_bits(), 7 << 32, "ATS-20");
        assert_eq!(InvalidationCompletion::of(Itag::truncate(31)).into_bits(), 0x1_8000_0000, "ATS-20");
        let counts = [0, 1, 7].map(|cc| InvalidationCompletion::from_bits(cc << 32).count());
        assert_eq!(counts, [8, 1, 7], "ATS-20, CQ-24: 0 means 8");
    }

    #[test]
    fn a_response_has_its_group_and_its_code_and_nothing_else() {
        for (code, bits) in
            [(ResponseCode::Success, 0), (ResponseCode::InvalidRequest, 1), (ResponseCode::ResponseFailure, 0xf)]
        {
            let response = PageResponse { process: None, group: Prgi::truncate(0x1ff), code };
            assert_eq!(response.payload().into_bits(), 0x1ff << 32 | bits << 44, "PRI-10, PQ-24, PRG-05, DISC-Q06");
        }
    }
}
