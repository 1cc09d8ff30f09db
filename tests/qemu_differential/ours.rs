//! The crate.

use riscv_viommu::mock::Wires;
use riscv_viommu::{Capabilities, Config, Gxl, InterruptKinds, NoPhysical, Parts, Progress, VIommu, Width};

use crate::case::{Case, Step};
use crate::observation::{Observation, REGISTERS, Record, Response};
use crate::ram::Ram;

/// What of `capabilities` can not be made equal: QEMU updates interrupt files in memory without an atomic operation, the
/// crate not at all then (`AMO_MRIF`).
const UNEQUAL: u64 = 1 << 21;

/// Everything that QEMU offers, and a `fctl.GXL` that may be written (rule REG-FCTL-03: no capability says so).
pub(crate) fn config(capabilities: u64) -> Result<Config, String> {
    let config = Config::emulated()
        .with_capabilities(Capabilities::from_bits(capabilities))
        .with_gxl(Gxl::Writable)
        .with_ats(true)
        .with_debug(true)
        .with_counters(31)
        .with_synchronous_dma(true);
    let iommu = start::<0>(&config, Ram::default())?;
    let offered = iommu.read(0, Width::U64);
    match (offered ^ capabilities) & !UNEQUAL {
        0 => Ok(config),
        bits => Err(format!("the crate offers {offered:#x}, QEMU {capabilities:#x}: {bits:#x} is not as it should be")),
    }
}

fn start<const CACHE: usize>(config: &Config, memory: Ram) -> Result<Iommu<CACHE>, String> {
    let interrupts = Wires::new(InterruptKinds::Both);
    let mut iommu = VIommu::new(Parts { memory, interrupts, physical: NoPhysical });
    iommu.start(config).map_err(|why| format!("the crate does not take the capabilities of QEMU: {why}"))?;
    Ok(iommu)
}

type Iommu<const CACHE: usize> = VIommu<Parts<Ram, Wires, NoPhysical>, 16, 16, CACHE>;

/// What a fresh vIOMMU with a cache of this size shows after the case; the memory looked at is the case's mailboxes, and
/// wherever the crate has stored.
pub(crate) fn run<const CACHE: usize>(case: &Case, config: &Config) -> Result<Observation, String> {
    let memory = Ram::default();
    let mut iommu = start::<CACHE>(config, memory.clone())?;
    case.image.iter().for_each(|(&at, &word)| memory.put(at, word));
    let mut seen = Observation::default();
    for step in &case.steps {
        let progress = match *step {
            Step::Write { offset, width, value } => iommu.write(offset, width, value),
            Step::Read { offset, width } => {
                seen.reads.push(iommu.read(offset, width));
                Progress::Idle
            }
            Step::Store { at, value } => {
                memory.put(at, value);
                Progress::Idle
            }
            Step::Translate => {
                let _ = iommu.write(600, Width::U64, case.request.iova);
                let progress = iommu.write(608, Width::U64, case.request.control());
                seen.responses.push(Response::of(iommu.read(616, Width::U64), &case.request));
                progress
            }
        };
        if progress != Progress::Idle {
            return Err(format!("the crate has not finished {step:x?}: {progress:?}"));
        }
    }
    seen.registers = REGISTERS.iter().map(|&(offset, width, _)| iommu.read(offset, width)).collect();
    if let Some((at, _)) = case.faults {
        let words = |record| [0, 8, 16, 24].map(|word| memory.get(at + record * 32 + word));
        seen.records = (0..*seen.register(52)).map(|record| Record::of(words(record))).collect();
    }
    let stored = memory.stored().into_iter().filter(|at| !is_record(case, *at));
    seen.mailboxes = case.mailboxes.iter().copied().chain(stored).map(|at| (at, memory.get(at))).collect();
    Ok(seen)
}

/// Records are compared field by field.
fn is_record(case: &Case, at: u64) -> bool {
    case.faults.is_some_and(|(queue, entries)| (queue..queue + u64::from(entries) * 32).contains(&at))
}
