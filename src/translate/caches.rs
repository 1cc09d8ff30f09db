//! Everything translation remembers: contexts by device and process, translations by address space.

use crate::cmdq::command::Iotinval;
use crate::ddt::Checked;
use crate::id::{DeviceId, ProcessId};
use crate::ioatc::{Ioatc, Set};
use crate::pdt::Process;

use super::recent::Recent;

/// `N` entries of each kind, 0 for none. Contexts and translations are forgotten by commands of their own (rule CA-11).
#[derive(Debug)]
pub(crate) struct Caches<const N: usize> {
    /// In front of the others.
    pub(crate) recent: Recent<N>,
    pub(super) ioatc: Ioatc<N>,
    pub(super) contexts: Contexts<N>,
}

/// Contexts that were found good.
#[derive(Debug)]
pub(super) struct Contexts<const N: usize> {
    devices: Set<(DeviceId, Checked), N>,
    processes: Set<(DeviceId, ProcessId, Process), N>,
}

impl<const N: usize> Contexts<N> {
    pub(super) fn device(&self, device: DeviceId) -> Option<Checked> {
        self.devices.iter().find(|entry| entry.0 == device).map(|entry| entry.1)
    }

    pub(super) fn insert_device(&mut self, device: DeviceId, context: Checked) {
        self.devices.insert((device, context), |old| old.0 == device);
    }

    pub(super) fn process(&self, device: DeviceId, process: ProcessId) -> Option<Process> {
        self.processes.iter().find(|entry| entry.0 == device && entry.1 == process).map(|entry| entry.2)
    }

    pub(super) fn insert_process(&mut self, device: DeviceId, process: ProcessId, context: Process) {
        self.processes.insert((device, process, context), |old| old.0 == device && old.1 == process);
    }
}

impl<const N: usize> Caches<N> {
    pub(crate) const fn new() -> Self {
        Self {
            recent: Recent::new(),
            ioatc: Ioatc::new(),
            contexts: Contexts { devices: Set::new(), processes: Set::new() },
        }
    }

    /// `IODIR.INVAL_DDT`: contexts of one device, or of all, with those of their processes (rules DIR-01, DIR-02).
    pub(crate) fn forget_device(&mut self, device: Option<DeviceId>) {
        self.recent.clear();
        self.contexts.devices.forget(|entry| device.is_none_or(|device| entry.0 == device));
        self.contexts.processes.forget(|entry| device.is_none_or(|device| entry.0 == device));
    }

    /// `IODIR.INVAL_PDT`: the context of one process (rule DIR-03).
    pub(crate) fn forget_process(&mut self, device: DeviceId, process: ProcessId) {
        self.recent.clear();
        self.contexts.processes.forget(|entry| entry.0 == device && entry.1 == process);
    }

    /// `IOTINVAL.VMA`.
    pub(crate) fn forget_first_stage(&mut self, operands: &Iotinval) {
        self.recent.clear();
        self.ioatc.forget_first(operands.gscid, operands.pscid, operands.range);
    }

    /// `IOTINVAL.GVMA`.
    pub(crate) fn forget_second_stage(&mut self, operands: &Iotinval) {
        self.recent.clear();
        self.ioatc.forget_second(operands.gscid, operands.range);
    }

    /// After a reset nothing is remembered (rule REG-RST-02).
    pub(crate) fn clear(&mut self) {
        self.ioatc.clear();
        self.forget_device(None);
    }
}
