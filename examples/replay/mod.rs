//! Replays the register accesses a guest's driver made against a vIOMMU, and judges the answers and the orders.

pub(crate) mod checker;
pub(crate) mod command;
pub(crate) mod directory;
pub(crate) mod host;
pub(crate) mod report;
pub(crate) mod trace;

use std::collections::BTreeMap;
use std::fmt;

use riscv_viommu::{
    AttachError, Capabilities, Config, ConfigError, DeviceId, DevicePolicy, FenceOutcome, Progress, VIommu, Width,
};

use checker::{Checker, Registers};
use directory::{DEVICE, Mapping};
use host::{Call, Device, Fences, Host, Order};
use trace::{Access, Step, Trace};

/// What came of a replay.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) mismatches: Vec<Mismatch>,
    pub(crate) changes: Vec<Change>,
    pub(crate) calls: BTreeMap<&'static str, usize>,
    pub(crate) commands: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
}

/// A read that was answered differently.
#[derive(Debug)]
pub(crate) struct Mismatch {
    pub(crate) line: usize,
    pub(crate) recorded: Access,
    pub(crate) answered: u64,
}

/// The device's context was set.
#[derive(Debug)]
pub(crate) struct Change {
    /// The access that made it so; `None`: attaching the device.
    pub(crate) cause: Option<(usize, Access)>,
    /// `None`: not known.
    pub(crate) old: Option<Mapping>,
    pub(crate) new: Mapping,
}

/// Why there is no vIOMMU to replay against.
#[derive(Debug)]
pub(crate) enum SetupError {
    Start(ConfigError),
    Attach(AttachError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => write!(f, "no vIOMMU can have the recorded capabilities: {error}"),
            Self::Attach(error) => write!(f, "the device can not be attached: {error}"),
        }
    }
}

/// Most times a vIOMMU may go on by itself after one access: a million commands, or 4096 fences that are late.
const ROUNDS: usize = 1 << 12;

/// The vIOMMU does not come to rest: nothing that follows would mean anything.
struct Restless;

struct Replay<'a> {
    iommu: VIommu<Host>,
    checker: Checker,
    outcome: Outcome,
    tamper: &'a mut dyn FnMut(&mut Vec<Call>),
    /// The access that is being replayed.
    cause: Option<(usize, Access)>,
}

/// Replays `trace`. `tamper` may change the calls before they are judged, so that a test can see that it would show.
pub(crate) fn replay(
    trace: &Trace,
    fences: Fences,
    tamper: &mut dyn FnMut(&mut Vec<Call>),
) -> Result<Outcome, SetupError> {
    let mut iommu = VIommu::new(Host::new(trace.capabilities, fences));
    let config = Config::nested().with_capabilities(Capabilities::from_bits(trace.capabilities));
    iommu.start(&config).map_err(SetupError::Start)?;
    let attached =
        iommu.attach(DeviceId::truncate(DEVICE), Device, DevicePolicy::default()).map_err(SetupError::Attach)?;
    let checker = Checker::new(trace.capabilities);
    let mut replay = Replay { iommu, checker, outcome: Outcome::default(), tamper, cause: None };
    // What stopped it early is among the violations.
    let _: Result<(), Restless> =
        replay.settle(attached.progress).and_then(|()| trace.steps.iter().try_for_each(|step| replay.step(step)));
    let Replay { checker, outcome, .. } = replay;
    Ok(Outcome { commands: checker.commands, violations: checker.violations, ..outcome })
}

impl Replay<'_> {
    fn step(&mut self, step: &Step) -> Result<(), Restless> {
        let Step { line, ref memory, access } = *step;
        let Access { is_write, offset, width, value } = access;
        for &(at, word) in memory {
            self.iommu.backend_mut().memory.put(at, word);
        }
        self.checker.line = line;
        self.cause = Some((line, access));
        if is_write {
            self.outcome.writes = self.outcome.writes.wrapping_add(1);
            self.checker.written(&access);
            let progress = self.iommu.write(offset, width, value);
            self.settle(progress)
        } else {
            self.outcome.reads = self.outcome.reads.wrapping_add(1);
            let answered = self.iommu.read(offset, width);
            if answered != value {
                self.outcome.mismatches.push(Mismatch { line, recorded: access, answered });
            }
            Ok(())
        }
    }

    /// Lets the vIOMMU go on until nothing is left, and looks at it after every step.
    fn settle(&mut self, mut progress: Progress) -> Result<(), Restless> {
        for _ in 0..ROUNDS {
            self.look();
            progress = match progress {
                Progress::Runnable => self.iommu.run(),
                _ => match self.iommu.backend_mut().complete_one() {
                    Some(ticket) => self.iommu.fence_done(ticket, FenceOutcome::Complete),
                    None if progress == Progress::Idle => {
                        self.checker.at_rest();
                        return Ok(());
                    }
                    None => break,
                },
            };
        }
        self.checker.blame("the vIOMMU does not come to rest");
        Err(Restless)
    }

    fn look(&mut self) {
        let mut calls = self.iommu.backend_mut().take_calls();
        for call in &calls {
            self.note(call);
        }
        (self.tamper)(&mut calls);
        let read = |offset, width| self.iommu.read(offset, width);
        let registers = Registers {
            fctl: read(0x8, Width::U32),
            ddtp: read(0x10, Width::U64),
            cqh: read(0x20, Width::U32),
            cqcsr: read(0x48, Width::U32),
        };
        self.checker.look(registers, &calls, &self.iommu.backend().memory);
    }

    /// For the report.
    fn note(&mut self, call: &Call) {
        let mut count = |name, by: usize| {
            let calls = self.outcome.calls.entry(name).or_default();
            *calls = calls.wrapping_add(by);
        };
        match call {
            Call::Load { words } => {
                count("load", 1);
                count("word loaded", *words);
            }
            Call::Store => count("store", 1),
            Call::FenceData { .. } => count("post of fence data", 1),
            Call::Interrupt => count("post of interrupt", 1),
            Call::Wire => count("set_wire", 1),
            Call::Adopt => count("adopt", 1),
            Call::SetContext(new) => {
                count("set_context", 1);
                let old = self.outcome.changes.last().map(|change| change.new);
                self.outcome.changes.push(Change { cause: self.cause, old, new: *new });
            }
            Call::Invalidate(orders) => {
                count("invalidate", 1);
                for order in orders {
                    count(order.name(), 1);
                }
            }
            Call::Fence { .. } => count("fence", 1),
            Call::Complete { .. } => {}
            Call::Release => count("release", 1),
        }
    }
}

impl Order {
    const fn name(&self) -> &'static str {
        match self {
            Self::Device => "order Device",
            Self::Everything => "order Everything",
            Self::Translations(scope) => match (scope.pages, scope.pscid) {
                (Some(_), _) => "order Pages",
                (None, Some(_)) => "order AddressSpace",
                (None, None) => "order FirstStage",
            },
        }
    }
}
