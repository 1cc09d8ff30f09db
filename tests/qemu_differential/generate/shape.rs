//! What a case is about before there is any memory: which stages, which directory, which request.

use crate::random::Random;

use crate::scheme::{SV32, SV32X4, SV39, SV39X4, SV48, SV48X4, SV57, SV57X4, Scheme};

/// The legal configurations the generator knows.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are bits of registers and contexts")]
pub(crate) struct Shape {
    /// `fctl.GXL`.
    pub(crate) gxl: bool,
    /// `tc.SXL`.
    pub(crate) sxl: bool,
    /// Of the device directory.
    pub(crate) levels: u8,
    pub(crate) device: u32,
    pub(crate) directory: Processes,
    pub(crate) first: Option<Scheme>,
    pub(crate) second: Option<Scheme>,
    pub(crate) messages: Messages,
    pub(crate) access: Access,
    pub(crate) privileged: bool,
    /// `tc.DTF`.
    pub(crate) quiet: bool,
}

/// Where the first stage comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processes {
    /// The device context.
    None,
    /// A process directory; the request has this `process_id`.
    Process(u32),
    /// A process directory; the request has none and gets 0 (`tc.DPE`).
    Default,
    /// A process directory that is not used, for the request has no `process_id`.
    NoProcess,
    /// PDTV with `pdtp` Bare; whether the request has a `process_id`.
    Bare(Option<u32>),
}

/// Whether MSI translation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    Off,
    /// For other addresses than the request's.
    Elsewhere,
    /// For the request's too.
    Here,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

impl Shape {
    /// `gxl` says whether the guest can choose it.
    pub(crate) fn of(random: &mut Random, gxl: bool) -> Self {
        let gxl = gxl && random.percent(8);
        let sxl = gxl || random.percent(15);
        let levels = random.pick(&[1, 2, 3]);
        let directory = random.weighted(&[
            (62, Processes::None),
            (28, Processes::Process(0)),
            (4, Processes::Default),
            (3, Processes::NoProcess),
            (3, Processes::Bare(None)),
        ]);
        let directory = match directory {
            Processes::Process(_) => Processes::Process(process(random)),
            Processes::Bare(_) => Processes::Bare(random.percent(50).then(|| process(random))),
            other => other,
        };
        let translates = matches!(directory, Processes::None | Processes::Process(_) | Processes::Default);
        let first = translates && random.percent(70);
        let first = first.then(|| if sxl { SV32 } else { random.pick(&[SV39, SV48, SV57]) });
        // QEMU does not look at GXL, so little can be said about Sv32x4.
        let second = random.percent(if gxl { 3 } else { 60 });
        let second = second.then(|| if gxl { SV32X4 } else { random.pick(&[SV39X4, SV48X4, SV57X4]) });
        let messages = if second.is_none() {
            Messages::Off
        } else {
            random.weighted(&[(70, Messages::Off), (28, Messages::Elsewhere), (2, Messages::Here)])
        };
        let has_process = matches!(directory, Processes::Process(_));
        Self {
            gxl,
            sxl,
            levels,
            device: u32::try_from(random.bits([6, 15, 24][usize::from(levels - 1)])).unwrap(),
            directory,
            first,
            second,
            messages,
            access: random.weighted(&[(56, Access::Read), (37, Access::Write), (7, Access::Execute)]),
            privileged: has_process && random.percent(4),
            quiet: random.percent(10),
        }
    }

    /// The fields PV and PID of the request.
    pub(crate) fn process(&self) -> (bool, u32) {
        match self.directory {
            Processes::Process(process) | Processes::Bare(Some(process)) => (true, process),
            _ => (false, 0),
        }
    }

    /// Whether `pdtp` points to a directory.
    pub(crate) fn has_directory(&self) -> bool {
        matches!(self.directory, Processes::Process(_) | Processes::Default | Processes::NoProcess)
    }

    /// Whether the directory is used, and which `process_id` leads through it.
    pub(crate) fn through_directory(&self) -> Option<u32> {
        match self.directory {
            Processes::Process(process) => Some(process),
            Processes::Default => Some(0),
            _ => None,
        }
    }

    /// Bits a guest-physical address may have, where there are any (rules S2-03, DC-14).
    pub(crate) fn guest_bits(&self) -> u32 {
        let width = self.second.map_or(56, Scheme::width);
        if self.sxl { width.min(34) } else { width.min(56) }
    }
}

/// A `process_id` of a one-level directory. 0 is rare, for QEMU can not tell it from none.
fn process(random: &mut Random) -> u32 {
    if random.percent(1) { 0 } else { u32::try_from(random.within(1..=255)).unwrap() }
}
