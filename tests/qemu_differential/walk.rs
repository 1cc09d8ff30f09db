//! What the specification's process reads for a request, step by step, whether it is legal or not: where the
//! structures of a case are that QEMU takes for others than they are.

use std::collections::BTreeMap;

use crate::case::{Case, Entry, Request};
use crate::scheme::Scheme;

/// An entry of a page table that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) of: Stage,
    pub(crate) level: u8,
    pub(crate) entry: Entry,
    pub(crate) scheme: Scheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    First,
    Second(Use),
}

/// What the second stage translates an address for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The request's own.
    Final,
    /// A first-stage table.
    Table,
    /// The process directory.
    Directory,
}

/// What was read for a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    /// The device context, if the directory leads to one.
    pub(crate) context: Option<u64>,
    /// Where the guest says the process context is.
    pub(crate) process_address: Option<u64>,
    /// Where it is.
    pub(crate) process: Option<u64>,
    /// MODE of the first stage, by whatever context it comes from.
    pub(crate) first_mode: u64,
    pub(crate) visits: Vec<Visit>,
    /// The guest-physical address that the first stage leads to, if it is one of interrupt files: what the second stage
    /// would do with it does not count then.
    pub(crate) message: Option<u64>,
}

impl Visit {
    /// The entry of a leaf that is valid.
    pub(crate) fn is_leaf(value: u64) -> bool {
        value & 1 == 1 && value & 0xe != 0
    }

    /// That of a pointer to the next table.
    pub(crate) fn is_pointer(value: u64) -> bool {
        value & 0xf == 1
    }
}

impl Walk {
    pub(crate) fn of(case: &Case, request: &Request) -> Self {
        let mut walk = Self::default();
        walk.process_of(&Reader { image: &case.image, gxl: case.gxl }, case.ddtp, request);
        walk
    }

    /// Whether nothing is missing on the way.
    fn process_of(&mut self, reader: &Reader<'_>, ddtp: u64, request: &Request) -> Option<()> {
        let context = reader.context(ddtp, request.device)?;
        self.context = Some(context);
        let [tc, iohgatp, _, fsc] = [0, 8, 16, 24].map(|dword| reader.word(context + dword));
        let second = (Scheme::second(iohgatp >> 60, reader.gxl), iohgatp << 12 & 0x00ff_ffff_ffff_ffff);
        let mut first = fsc;
        if tc >> 5 & 1 == 1 {
            let default = (tc >> 9 & 1 == 1).then_some(0);
            first = 0;
            let process = if request.process.0 { Some(request.process.1) } else { default };
            if let (Some(process), true) = (process, fsc >> 60 != 0) {
                let address = (fsc << 12 & 0x00ff_ffff_ffff_ffff) + u64::from(process & 0xff) * 16;
                self.process_address = Some(address);
                let at = self.second_stage(reader, second, address, Use::Directory)?;
                self.process = Some(at);
                first = reader.word(at + 8);
            }
        }
        self.first_mode = first >> 60;
        let guest = match Scheme::first(first >> 60, tc >> 11 & 1 == 1) {
            None => request.iova,
            Some(scheme) => self.first_stage(reader, (scheme, first << 12 & 0x00ff_ffff_ffff_ffff), second, request)?,
        };
        self.message = Some(guest).filter(|&guest| reader.is_message(context, guest));
        self.second_stage(reader, second, guest, Use::Final).map(|_| ())
    }

    fn first_stage(
        &mut self,
        reader: &Reader<'_>,
        (scheme, mut table): (Scheme, u64),
        second: (Option<Scheme>, u64),
        request: &Request,
    ) -> Option<u64> {
        for level in (0..scheme.levels).rev() {
            let address = table + scheme.index(request.iova, level) * scheme.entry_bytes;
            let at = self.second_stage(reader, second, address, Use::Table)?;
            let entry = Entry { at, bytes: scheme.entry_bytes };
            self.visits.push(Visit { of: Stage::First, level, entry, scheme });
            let value = reader.entry(entry)?;
            if value & 0xe != 0 {
                return Some(scheme.leads_to(value, level, request.iova));
            }
            table = scheme.next(value);
        }
        None
    }

    fn second_stage(
        &mut self,
        reader: &Reader<'_>,
        (scheme, mut table): (Option<Scheme>, u64),
        address: u64,
        what: Use,
    ) -> Option<u64> {
        let Some(scheme) = scheme else {
            return Some(address);
        };
        if address >> scheme.width() != 0 {
            return None;
        }
        for level in (0..scheme.levels).rev() {
            let entry =
                Entry { at: table + scheme.index(address, level) * scheme.entry_bytes, bytes: scheme.entry_bytes };
            self.visits.push(Visit { of: Stage::Second(what), level, entry, scheme });
            let value = reader.entry(entry)?;
            if value & 0xe != 0 {
                return Some(scheme.leads_to(value, level, address));
            }
            table = scheme.next(value);
        }
        None
    }
}

#[derive(Debug)]
struct Reader<'a> {
    image: &'a BTreeMap<u64, u64>,
    gxl: bool,
}

impl Reader<'_> {
    fn word(&self, at: u64) -> u64 {
        self.image.get(&at).copied().unwrap_or(0)
    }

    /// A valid entry.
    fn entry(&self, entry: Entry) -> Option<u64> {
        Some(entry.get(self.image)).filter(|value| value & 1 == 1)
    }

    /// Where the context of a device is.
    fn context(&self, ddtp: u64, device: u32) -> Option<u64> {
        let device = u64::from(device);
        let mut page = ddtp << 2 & 0x00ff_ffff_ffff_f000;
        let levels = (ddtp & 0xf).checked_sub(1).filter(|&levels| levels != 0)?;
        for level in (1..levels).rev() {
            let index = device >> (6 + 9 * (level - 1)) & 0x1ff;
            let entry = Entry { at: page + index * 8, bytes: 8 };
            // What has a reserved bit is not followed (rule DDT-11).
            let value = self.entry(entry).filter(|value| value & 0xffc0_0000_0000_03fe == 0)?;
            page = value << 2 & 0x00ff_ffff_ffff_f000;
        }
        let at = page + (device & 0x3f) * 64;
        (self.word(at) & 1 == 1).then_some(at)
    }

    /// Whether an address is one of interrupt files (rule MSI-03).
    fn is_message(&self, context: u64, guest: u64) -> bool {
        let [msiptp, mask, pattern] = [32, 40, 48].map(|dword| self.word(context + dword));
        msiptp >> 60 == 1 && (guest >> 12 ^ pattern) & !mask == 0
    }
}
