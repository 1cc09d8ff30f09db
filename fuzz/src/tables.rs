//! Directories, page tables and MSI page tables of a hostile guest, and what devices ask for meanwhile.

use arbitrary::Arbitrary;
use riscv_viommu::mock::guest::{Iotinval, inval_ddt, register as reg};
use riscv_viommu::{AtsRequest, Gpa, Iova, Permissions, Request, Target, TranslateError, Translation};

use crate::commands::Process;
use crate::guest::{Meaning, Place, Value};
use crate::machine::Machine;
use crate::mmio;

/// What a device wants.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
    Message(u32),
}

/// What the guest builds, and what devices ask for.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Action {
    Guest(mmio::Action),
    Word(Place, Value),
    Context(u8, Meaning, u16),
    /// A word of a context.
    Field(u8, u8, Value),
    Translate {
        device: u8,
        access: Access,
        iova: Value,
        length: u64,
        process: Process,
        privileged: bool,
        ats: bool,
    },
    Pieces(u8, Value, u16),
    Ask {
        device: u8,
        iova: Value,
        process: Process,
        privileged: bool,
        execute: bool,
        no_write: bool,
    },
    /// The debug interface.
    Debug(Value, Value),
    /// What is remembered is forgotten.
    Forget,
}

impl Action {
    fn act(self, machine: &mut Machine) {
        match self {
            Self::Guest(action) => action.act(machine),
            Self::Word(at, value) => machine.memory.write(at.get(&machine.memory), value.get()),
            Self::Context(device, meaning, bits) => machine.guest.set_context(device, meaning, u64::from(bits) & 0xffe),
            Self::Field(device, word, value) => {
                let context = machine.guest.context(device);
                machine.memory.write(Gpa::new(context.get() + u64::from(word % 8) * 8), value.get());
            }
            Self::Translate { device, access, iova, length, process, privileged, ats } => {
                let (device, iova) = (machine.emulated(device), iova.iova());
                let request = match access {
                    Access::Read => Request::read(device, iova),
                    Access::Write => Request::write(device, iova),
                    Access::Execute => Request::execute(device, iova),
                    Access::Message(data) => Request::msi(device, iova, data),
                };
                let request = if matches!(access, Access::Message(_)) { request } else { request.with_length(length) };
                let request = process.id().map_or(request, |process| request.with_process(process, privileged));
                translate(machine, if ats { request.translated() } else { request });
            }
            Self::Pieces(device, iova, length) => {
                let mut rest = Request::read(machine.emulated(device), iova.iova()).with_length(length.into());
                // Each piece is a call of its own.
                while let Some(piece) = translate(machine, rest).filter(|piece| piece.length < rest.length) {
                    rest.iova = Iova::new(rest.iova.get().wrapping_add(piece.length));
                    rest.length -= piece.length;
                }
            }
            Self::Ask { device, iova, process, privileged, execute, no_write } => {
                let mut request = AtsRequest::new(machine.emulated(device), iova.iova());
                (request.process, request.privileged) = (process.id(), privileged);
                (request.execute, request.no_write) = (execute, no_write);
                let _ = machine.call(|iommu| iommu.ats_translate(&request));
            }
            Self::Debug(iova, control) => {
                machine.write(reg::TR_REQ_IOVA, iova.get());
                machine.write(reg::TR_REQ_IOVA + 4, iova.get() >> 32);
                machine.write(reg::TR_REQ_CTL + 4, control.get() >> 32);
                machine.write(reg::TR_REQ_CTL, control.get() | 1);
                assert_eq!(machine.read(reg::TR_REQ_CTL) & 1, 0, "the answer comes with the write");
            }
            Self::Forget => {
                let all = [inval_ddt(None), Iotinval::ALL.vma(), Iotinval::ALL.gvma()];
                let tail = machine.guest.commands.push_all(all);
                machine.write(reg::CQT, tail);
            }
        }
    }
}

/// A translation says what can be, and one that fails says so to the guest at most once.
fn translate(machine: &mut Machine, request: Request) -> Option<Translation> {
    let before = machine.read(reg::FQT);
    let answer = machine.call(|iommu| iommu.translate(&request));
    let entries = 2_u64 << (machine.read(reg::FQB) & 0x1f);
    let recorded = machine.read(reg::FQT).wrapping_sub(before) & (entries - 1);
    // A message about the record may be another fault, which is recorded once.
    let most = if matches!(answer, Err(TranslateError::Fault(_))) { 2 } else { 0 };
    assert!(recorded <= most, "translation: {recorded} records of {request:?}, which gets {answer:?}");
    let to = answer.ok()?;
    let Translation { target, length, size, permissions, .. } = to;
    assert!(length <= request.length && (length != 0 || request.length == 0), "translation: {to:?} of {request:?}");
    let aligned = size.is_power_of_two() || size == 0;
    assert!(aligned && (size == 0 || size >= 0x1000), "translation: {to:?} of {request:?}");
    let Permissions { read, write, execute, .. } = permissions;
    assert!(read || write || execute, "translation: {to:?} of {request:?}");
    if let Target::Memory(at) | Target::InterruptFile(at) = target {
        let within = if size == 0 { u64::MAX } else { size - 1 };
        let offset = request.iova.get() & within.min(0xfff);
        assert!(at.get() & within.min(0xfff) == offset, "translation: {to:?} of {request:?}");
    }
    Some(to)
}

/// The target.
pub fn run(input: &[u8]) {
    crate::fuzz(input, |machine, action: Action| action.act(machine));
}
