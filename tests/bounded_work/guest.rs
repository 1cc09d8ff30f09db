//! A guest and its host: what is done to a vIOMMU, and which call that is.

use riscv_viommu::cmdq::{Command, IofenceC, Iotinval};
use riscv_viommu::mock::guest::{AtsCommand, register};
use riscv_viommu::{Attachment, Capabilities, Config, DeviceId, Gpa, ProcessId, Pscid, VIommu, Width};

use crate::cost::{Cost, Limits};
use crate::host::{COMMANDS, CONTEXTS, Host, Manner, RECORDS, ROOT, region};

pub(crate) const DEVICES: usize = 4;
pub(crate) const GROUPS: usize = 3;
pub(crate) type Iommu = VIommu<Host, DEVICES, 1, 0, 2, GROUPS>;

pub(crate) fn limits(units: u64) -> Limits {
    Limits { units, devices: DEVICES as u64, groups: GROUPS as u64 }
}

/// A non-leaf entry of the device directory, everywhere.
pub(crate) fn table(number: u64) -> [u64; 8] {
    [region(number) >> 2 | 1; 8]
}

/// A context: V, perhaps ATS and page requests; Bare, Sv39 with a PSCID, or processes.
pub(crate) fn context(kind: u64) -> [u64; 8] {
    let (pdtv, fsc) = match kind % 3 {
        0 => (0, 0),
        1 => (0, 8 << 60 | region(9) >> 12),
        _ => (1 << 5, 3 << 60 | region(10) >> 12),
    };
    let ats = [0, 0b010, 0b110, 0b110][(kind / 3 % 4) as usize];
    [u64::from(kind != 7) | ats | pdtv, 0, kind << 12, fsc, 0, 0, 0, 0]
}

/// The first devices are passthrough, the others emulated.
pub(crate) fn id(number: u64) -> DeviceId {
    DeviceId::truncate((number % (2 * DEVICES as u64)) as u32)
}

pub(crate) fn command(number: u64) -> [u64; 2] {
    let of = number >> 4;
    let to = AtsCommand::to(id(of).get() as u16);
    let command = match number % 16 {
        0..3 => Command::IofenceC(IofenceC::READS_AND_WRITES.with_store(Gpa::new(region(RECORDS)), 1)),
        3 => Command::IofenceC(IofenceC::READS_AND_WRITES),
        4..6 => Command::IodirInvalDdt(None),
        6 | 7 => Command::IodirInvalDdt(Some(id(of))),
        8 => Command::IodirInvalPdt(id(of), ProcessId::truncate(1)),
        9 => Command::IotinvalVma(Iotinval::ALL),
        10 => Command::IotinvalVma(Iotinval::ALL.with_pscid(Pscid::truncate(of as u32))),
        11..14 => return to.inval(0),
        14 => return to.prgr(of as u16, 0),
        _ => return if of == 0 { [u64::MAX; 2] } else { to.prgr(of as u16 % 4, 0) },
    };
    let raw = command.encode();
    [raw.low, raw.high]
}

/// What the guest is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nested,
    /// Emulated devices only, with counters and the debug interface.
    Counting,
}

impl Kind {
    fn config(self) -> Config {
        match self {
            Self::Nested => Config::nested().with_extended_contexts(true).with_mirror(true),
            Self::Counting => Config::emulated()
                .with_capabilities(Capabilities::from_bits(u64::MAX).with_pas(56))
                .with_counters(31)
                .with_debug(true),
        }
    }
}

/// A guest whose queues and directory are on.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) iommu: Iommu,
    /// By id.
    pub(crate) attached: [Option<Attachment>; 2 * DEVICES],
    pub(crate) image: Vec<u8>,
    pub(crate) units: u64,
    /// A restore is not done: a call may have a second budget, that of the devices.
    pub(crate) restoring: bool,
}

impl Guest {
    /// Its messages have a vector for each cause, or it has wires.
    pub(crate) fn new(kind: Kind, wires: bool, manner: Manner, units: u64) -> Self {
        let mut host = Host { manner, ..Host::default() };
        host.regions.extend([(ROOT, table(1)), (1, table(CONTEXTS)), (CONTEXTS, context(1)), (COMMANDS, [0; 8])]);
        host.regions.extend([(10, table(11)), (11, table(12)), (12, [1, 8 << 60, 1, 8 << 60, 1, 8 << 60, 1, 8 << 60])]);
        let mut iommu = Iommu::new(host);
        let config = kind.config().with_budget(units as u32).with_ats(true).with_vectors(16);
        iommu.start(&config).unwrap();
        let mut guest = Self { iommu, attached: [None; 8], image: Vec::new(), units, restoring: false };
        guest.store(register::FCTL, 2 * u64::from(wires));
        for vector in 0..16 {
            guest.store(register::MSI_CFG_TBL + 16 * vector, region(RECORDS) + 4 * vector);
        }
        for counter in 1..=31 {
            guest.store(register::iohpmevt(counter), 1 + counter % 8);
            guest.store(register::iohpmctr(counter), u64::MAX);
        }
        guest.turn_on();
        guest
    }

    pub(crate) fn store(&mut self, register: u64, value: u64) {
        let narrow = [register::FCTL, register::CQT, register::FQH, register::PQH].contains(&register)
            || (register::CQCSR..=register::IOCOUNTINH).contains(&register)
            || (register >= register::MSI_CFG_TBL && register % 16 == 12);
        let _ = self.iommu.write(register, if narrow { Width::U32 } else { Width::U64 }, value);
    }

    pub(crate) fn load(&self, register: u64) -> u64 {
        self.iommu.read(register, Width::U32)
    }

    pub(crate) fn turn_on(&mut self) {
        // Rings of 512 commands and records; each cause has its vector. Enabled, and every error bit cleared.
        for (register, value) in [
            (register::CQB, region(COMMANDS) >> 2 | 8),
            (register::FQB, region(RECORDS) >> 2 | 8),
            (register::PQB, region(RECORDS) >> 2 | 8),
            (register::ICVEC, 0x3210),
            (register::DDTP, region(ROOT) >> 2 | 4),
            (register::FQCSR, 0x303),
            (register::PQCSR, 0x303),
            (register::CQCSR, 0xf03),
        ] {
            self.store(register, value);
        }
    }

    pub(crate) fn fill(&mut self, commands: [[u64; 2]; 4]) {
        let words = commands.concat().try_into().unwrap();
        self.iommu.backend_mut().regions.insert(COMMANDS, words);
    }

    /// The queue is full.
    pub(crate) fn doorbell(&mut self) {
        let behind = self.load(register::CQH).wrapping_sub(1) & 511;
        self.store(register::CQT, behind);
    }

    /// What the next calls cost.
    pub(crate) fn measure(&mut self, what: impl FnOnce(&mut Self)) -> Cost {
        self.iommu.backend().cost.set(Cost::default());
        what(self);
        self.iommu.backend().cost.get()
    }

    /// The same of one call of this name, which keeps to its bound.
    pub(crate) fn cost(&mut self, name: &str, what: impl FnOnce(&mut Self)) -> Cost {
        let bound = self.bound(name);
        let cost = self.measure(what);
        for ((what, spent), (_, allowed)) in cost.counts().into_iter().zip(bound.counts()) {
            assert!(spent <= allowed, "T14: {name} cost {spent} {what}, not {allowed}");
        }
        cost
    }

    /// What `name` may cost now.
    pub(crate) fn bound(&self, name: &str) -> Cost {
        let units = if self.restoring || name == "restore" { 2 * self.units } else { self.units };
        limits(units).of(name).unwrap_or_else(|| panic!("`{name}` has no bound"))
    }
}
