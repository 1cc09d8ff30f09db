//! Formats of the page request: the message of a device, and the record in the queue.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Iova;
use crate::backend::{PageResponse, ResponseCode};
use crate::id::{DeviceId, Prgi, ProcessId};

/// A page request record: 16 bytes, two 64-bit words. Source: "Page-Request-Queue (PQ)".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the format is the specification's")]
pub struct PageRequestRecord {
    /// Who asks, and how.
    pub head: PageRequestHead,
    /// For what.
    pub payload: PageRequestPayload,
}

const _: () = assert!(size_of::<PageRequestRecord>() == 16);

/// Bits 63:0 of a page request record.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageRequestHead {
    #[bits(12, access = RO)]
    rsvd0: u16,
    /// PASID of the message, if it had one.
    #[bits(20, default = ProcessId::truncate(0))]
    pub pid: ProcessId,
    /// The message had a PASID.
    pub pv: bool,
    /// Privileged mode was requested; only with a PASID.
    pub is_priv: bool,
    /// Execute was requested; only with a PASID.
    pub exec: bool,
    #[bits(5, access = RO)]
    rsvd1: u8,
    /// `device_id` of the function.
    #[bits(24, default = DeviceId::truncate(0))]
    pub did: DeviceId,
}

/// Payload of a Page Request message (64 bits): bytes 8 to 15 of the message, as the number the record holds.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageRequestPayload {
    /// Read access is requested.
    pub r: bool,
    /// Write access is requested.
    pub w: bool,
    /// The last request of its group: the group is to be answered.
    pub l: bool,
    /// Index of the group.
    #[bits(9, default = Prgi::truncate(0))]
    pub prgi: Prgi,
    /// Page number of the address.
    #[bits(52)]
    pub page: u64,
}

impl PageRequestPayload {
    /// Whether this is a Stop Marker: the last of its group, and for no access.
    // UNSPECIFIED: with or without a PASID (rules PRI-05, DISC-Q10).
    #[must_use]
    pub const fn is_stop_marker(self) -> bool {
        self.l() && !self.r() && !self.w()
    }

    /// Whether the message is one that is answered.
    #[must_use]
    pub const fn wants_response(self) -> bool {
        self.l() && !self.is_stop_marker()
    }
}

/// A Page Request message of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PageRequest {
    /// PASID, if the message has one.
    pub process: Option<ProcessId>,
    /// Privileged mode is requested; counts with a PASID only.
    pub privileged: bool,
    /// Execute is requested; counts with a PASID only.
    pub execute: bool,
    /// What is requested.
    pub payload: PageRequestPayload,
}

impl PageRequest {
    /// A message with this payload and no PASID.
    #[must_use]
    pub const fn new(payload: PageRequestPayload) -> Self {
        Self { process: None, privileged: false, execute: false, payload }
    }

    /// A request to read the page that holds `iova`, the last of its group.
    #[must_use]
    pub const fn read(iova: Iova, group: Prgi) -> Self {
        let page = PageRequestPayload::new().with_page(iova.get() >> 12);
        Self::new(page.with_r(true).with_l(true).with_prgi(group))
    }

    /// A request to read and write the page that holds `iova`, the last of its group.
    #[must_use]
    pub const fn write(iova: Iova, group: Prgi) -> Self {
        let read = Self::read(iova, group);
        Self { payload: read.payload.with_w(true), ..read }
    }

    /// The same with a PASID.
    #[must_use]
    pub const fn with_process(self, process: ProcessId, privileged: bool) -> Self {
        Self { process: Some(process), privileged, ..self }
    }

    /// The same with or without a request to execute.
    #[must_use]
    pub const fn with_execute(self, execute: bool) -> Self {
        Self { execute, ..self }
    }

    /// The same as the last of its group, or not.
    #[must_use]
    pub const fn with_last(self, last: bool) -> Self {
        Self { payload: self.payload.with_l(last), ..self }
    }

    /// Reads a record of a physical page-request queue. The physical `device_id` in it is for the host to map.
    #[must_use]
    pub const fn from_record(record: &PageRequestRecord) -> Self {
        let PageRequestRecord { head, payload } = *record;
        let process = if head.pv() { Some(head.pid()) } else { None };
        Self { process, privileged: head.pv() && head.is_priv(), execute: head.pv() && head.exec(), payload }
    }

    /// The response with this code to the group of this request: what a host sends that answers by itself.
    pub const fn response(&self, code: ResponseCode) -> PageResponse {
        PageResponse { process: self.process, group: self.payload.prgi(), code }
    }

    /// The record of this message of a device.
    #[must_use]
    pub fn record(&self, device: DeviceId) -> PageRequestRecord {
        let Self { process, privileged, execute, payload } = *self;
        let head = PageRequestHead::new()
            .with_pid(process.unwrap_or(ProcessId::truncate(0)))
            .with_pv(process.is_some())
            .with_is_priv(process.is_some() && privileged)
            .with_exec(process.is_some() && execute)
            .with_did(device);
        PageRequestRecord { head, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        let bits = |head: PageRequestHead| head.into_bits();
        assert_eq!(bits(PageRequestHead::new().with_pid(ProcessId::truncate(0xf_ffff))), 0xffff_f000, "PQ-02");
        assert_eq!(bits(PageRequestHead::new().with_pv(true)), 1 << 32, "PQ-03");
        assert_eq!(bits(PageRequestHead::new().with_is_priv(true)), 1 << 33, "PQ-04");
        assert_eq!(bits(PageRequestHead::new().with_exec(true)), 1 << 34, "PQ-05");
        assert_eq!(bits(PageRequestHead::new().with_did(DeviceId::truncate(0xff_ffff))), 0xff_ffff << 40, "PQ-07");
        let bits = |payload: PageRequestPayload| payload.into_bits();
        assert_eq!(bits(PageRequestPayload::new().with_r(true)), 1, "PQ-08, PRI-13");
        assert_eq!(bits(PageRequestPayload::new().with_w(true)), 2, "PQ-08, PRI-13");
        assert_eq!(bits(PageRequestPayload::new().with_l(true)), 4, "PQ-08, PRI-13");
        assert_eq!(bits(PageRequestPayload::new().with_prgi(Prgi::truncate(0x1ff))), 0xff8, "PQ-08, PRI-13");
        assert_eq!(bits(PageRequestPayload::new().with_page(u64::MAX >> 12)), u64::MAX << 12, "PQ-08, PRI-13");
        let record =
            PageRequestRecord { head: PageRequestHead::from_bits(1), payload: PageRequestPayload::from_bits(2) };
        let words: [u64; 2] = zerocopy::transmute!(record);
        assert_eq!(words, [1, 2], "PQ-08");
    }

    #[test]
    fn a_message_comes_back_from_its_record() {
        let read = PageRequest::read(Iova::new(0x5123), Prgi::truncate(0x1ff));
        let messages = [
            read,
            PageRequest::write(Iova::new(0x7000), Prgi::truncate(3)).with_last(false),
            read.with_process(ProcessId::truncate(0xf_ffff), true).with_execute(true),
            read.with_process(ProcessId::truncate(0), false),
        ];
        for message in messages {
            let record = message.record(DeviceId::truncate(0xff_ffff));
            assert_eq!(PageRequest::from_record(&record), message, "PQ-02 to -08");
        }
        let unasked = PageRequestHead::new().with_pid(ProcessId::truncate(7)).with_is_priv(true).with_exec(true);
        let record = PageRequestRecord { head: unasked, payload: read.payload };
        assert_eq!(PageRequest::from_record(&record), read, "PQ-02, -04, -05: without PV they say nothing");
    }

    #[test]
    fn a_response_is_to_the_group_of_its_request() {
        let request = PageRequest::read(Iova::new(0), Prgi::truncate(9)).with_process(ProcessId::truncate(3), false);
        let expected = PageResponse {
            process: Some(ProcessId::truncate(3)),
            group: Prgi::truncate(9),
            code: ResponseCode::InvalidRequest,
        };
        assert_eq!(request.response(ResponseCode::InvalidRequest), expected, "PRG-05");
    }

    #[test]
    fn a_stop_marker_is_no_request_for_a_response() {
        for (bits, stop, response) in [
            (0b000, false, false),
            (0b011, false, false),
            (0b100, true, false),
            (0b101, false, true),
            (0b110, false, true),
        ] {
            let payload = PageRequestPayload::from_bits(bits);
            assert_eq!(
                (payload.is_stop_marker(), payload.wants_response()),
                (stop, response),
                "PRI-05, PQ-21: {bits:b}"
            );
        }
    }
}
