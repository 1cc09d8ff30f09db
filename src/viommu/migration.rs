//! A guest that goes on elsewhere: see [`crate::snapshot`].

use super::VIommu;
use crate::backend::{Ats, Backend, FenceScope};
use crate::cmdq::CommandQueue;
use crate::error::{RestoreError, SnapshotError};
use crate::faultq::FaultQueue;
use crate::nest::Barrier;
use crate::progress::Progress;
use crate::regs::file::Setup;
use crate::snapshot::{State, Taker};

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize, const GROUPS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS, GROUPS>
{
    /// The most bytes an image of such a vIOMMU has.
    pub const SNAPSHOT_BYTES: usize = State::<DEVICES, ITAGS, GROUPS>::MAX_BYTES;

    /// Writes what the guest may come to see of its IOMMU to `out`, and gives the number of bytes: see
    /// [`snapshot`](crate::snapshot) for what is in them, and what else a host saves.
    ///
    /// Legal at any time, also where the physical side failed. Orders that are held back go out; guest memory is not
    /// written, and the guest may go on here.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing was written.
    pub fn snapshot(&mut self, out: &mut [u8]) -> Result<usize, SnapshotError> {
        if self.config.is_none() {
            return Err(SnapshotError::NotStarted);
        }
        let nest = self.nest.save(&self.registers, &mut self.backend);
        let standing = self.faults.standing(self.fenced());
        let state = State {
            registers: self.registers.clone(),
            masked: self.signals.masked(),
            fence: self.commands.parked(),
            // The fences that are under way end what it stands for.
            fault: standing.filter(|_| self.nest.is_at_rest()),
            directory: self.directory.as_ref().is_some_and(Barrier::is_issued),
            ats: self.ats.clone(),
            nest,
        };
        state.encode(out)
    }

    /// Becomes the IOMMU that an image is of, whatever it was before: to be called after
    /// [`start`](Self::start) and the attaches. First it is reset; then every device is blocked, invalidated and
    /// fenced, and gets the context the guest's directory has for it now. What the guest began goes on. The guest must
    /// not run before the progress is [`Idle`](Progress::Idle); no device access that it would miss may be under way
    /// before, either.
    ///
    /// The guest sees the `capabilities` it saw before, also after a later [`reset`](Self::reset). Where the source's
    /// physical IOMMU had failed, [`health`](Self::health) is [`Degraded`](crate::Health::Degraded) here, since
    /// hardware is driven anew.
    ///
    /// # Errors
    /// [`RestoreError`] says what is wrong with the image, before any of it is taken. The registers are then as after a
    /// [`reset`](Self::reset), every passthrough device is blocked and stays so, and the health is `Degraded`, until a
    /// `reset` or a `restore` that succeeds: [`run`](Self::run) finishes the blocking.
    pub fn restore(&mut self, image: &[u8]) -> Result<Progress, RestoreError> {
        let Some(config) = self.config else {
            return Err(RestoreError::NotStarted);
        };
        let taker = Taker {
            setup: Setup { capabilities: self.offered, ..*self.registers.setup() },
            host: config.is_nested().then(|| self.backend.capabilities()),
            emulated: |id| {
                self.emulated.named(id).filter(|device| device.ats != Ats::Off).map(|device| device.attachment)
            },
            granted: |id| self.nest.granted(id),
        };
        let state = State::decode(image, &taker);
        self.clear();
        match state.and_then(|state| self.take_over(state)) {
            Ok(()) => Ok(self.run()),
            Err(error) => {
                self.nest.shut();
                let _ = self.run();
                Err(error)
            }
        }
    }

    /// Takes in what was checked, after a reset.
    fn take_over(&mut self, state: State<DEVICES, ITAGS, GROUPS>) -> Result<(), RestoreError> {
        let State { registers, masked, fence, fault, directory, ats, nest } = state;
        self.signals.restore(masked, &registers).map_err(RestoreError::State)?;
        self.faults = FaultQueue::restored(fault, self.fenced());
        self.commands = CommandQueue::restored(fence);
        // The fences of the restore come after the directory is in force.
        let barrier = if directory { Barrier::complete() } else { Barrier::new(FenceScope::ALL) };
        self.directory = registers.ddtp().busy().then_some(barrier);
        self.registers = registers;
        self.ats = ats;
        self.nest.restore(nest);
        Ok(())
    }
}
