//! QEMU's IOMMU.

use riscv_viommu::Width;

use crate::case::{Case, Step};
use crate::machine::{self, IOMMU, Version};
use crate::observation::{Observation, REGISTERS, Record, Response};
use crate::qtest::{Qtest, Script};

/// The machine, its IOMMU as after a reset.
#[derive(Debug)]
pub(crate) struct Theirs {
    qtest: Qtest,
    pub(crate) version: Version,
    pub(crate) capabilities: u64,
}

/// Where the commands are that put it back: a page at the end of no case's.
const HOUSEKEEPING: u64 = 0xbfff_f000;

/// `IODIR.INVAL_DDT`, `IOTINVAL.VMA` and `IOTINVAL.GVMA` of everything.
const FORGET: [[u64; 2]; 3] = [[3, 0], [1, 0], [1 | 1 << 7, 0]];

impl Theirs {
    pub(crate) fn start() -> Result<Self, String> {
        let (mut qtest, version) = machine::start()?;
        let mut script = Script::default();
        script.read(IOMMU, Width::U64);
        script.write_words(HOUSEKEEPING, FORGET.as_flattened());
        let capabilities = qtest.run(&script)?.number()?;
        Ok(Self { qtest, version, capabilities })
    }

    /// Runs the case; of memory, these words are looked at besides.
    pub(crate) fn run(&mut self, case: &Case, mailboxes: &[u64]) -> Result<Observation, String> {
        let mut script = Script::default();
        fill(&mut script, case);
        for step in &case.steps {
            match *step {
                Step::Write { offset, width, value } => script.write(IOMMU + offset, width, value),
                Step::Read { offset, width } => script.read(IOMMU + offset, width),
                Step::Store { at, value } => script.write_words(at, &[value]),
                Step::Translate => {
                    script.write(IOMMU + 600, Width::U64, case.request.iova);
                    script.write(IOMMU + 608, Width::U64, case.request.control());
                    script.read(IOMMU + 616, Width::U64);
                }
            }
        }
        for (offset, width, _) in REGISTERS {
            script.read(IOMMU + offset, width);
        }
        let entries = case.faults.map_or(0, |(_, entries)| usize::try_from(entries).unwrap());
        if let Some((at, _)) = case.faults {
            script.read_words(at, entries * 4);
        }
        for &at in mailboxes {
            script.read_words(at, 1);
        }
        put_back(&mut script, case);

        let mut answers = self.qtest.run(&script)?;
        let mut seen = Observation::default();
        for step in &case.steps {
            match step {
                Step::Translate => seen.responses.push(Response::of(answers.number()?, &case.request)),
                Step::Read { .. } => seen.reads.push(answers.number()?),
                Step::Write { .. } | Step::Store { .. } => {}
            }
        }
        for _ in REGISTERS {
            seen.registers.push(answers.number()?);
        }
        if entries != 0 {
            let records = answers.words(entries * 4)?;
            let tail = usize::try_from(*seen.register(52)).unwrap();
            let words = records.chunks_exact(4).take(tail);
            seen.records = words.map(|words| Record::of(words.try_into().unwrap())).collect();
        }
        for &at in mailboxes {
            seen.mailboxes.insert(at, answers.words(1)?[0]);
        }
        match answers.number()? {
            3 => Ok(seen),
            head => Err(format!("QEMU was not put back: its command queue stands at {head}")),
        }
    }
}

/// Fills the memory, words that follow each other together.
fn fill(script: &mut Script, case: &Case) {
    let mut run: (u64, Vec<u64>) = (0, Vec::new());
    for (&at, &word) in &case.image {
        if !run.1.is_empty() && run.0 + 8 * u64::try_from(run.1.len()).unwrap() == at {
            run.1.push(word);
        } else {
            if !run.1.is_empty() {
                script.write_words(run.0, &run.1);
            }
            run = (at, vec![word]);
        }
    }
    if !run.1.is_empty() {
        script.write_words(run.0, &run.1);
    }
}

/// Leaves nothing of a case: caches are invalidated, which takes a command queue, indices run through 0, registers
/// and memory are cleared. The answer is `cqh`, which tells whether it was heard.
fn put_back(script: &mut Script, case: &Case) {
    let mut write = |offset, width, value| script.write(IOMMU + offset, width, value);
    for (csr, errors) in [(72, 0x700), (76, 0x300), (80, 0x300)] {
        write(csr, Width::U32, errors);
    }
    write(16, Width::U64, 0);
    write(24, Width::U64, HOUSEKEEPING >> 2 | 1);
    write(72, Width::U32, 1);
    write(36, Width::U32, 3);
    script.read(IOMMU + 32, Width::U32);
    let mut write = |offset, width, value| script.write(IOMMU + offset, width, value);
    for csr in [72, 72, 76, 80] {
        write(csr, Width::U32, 0);
        write(csr, Width::U32, 1);
        write(csr, Width::U32, 0);
    }
    for base in [24, 40, 56, 600, 608, 760, 768, 776, 784, 792, 800, 808, 816, 824] {
        write(base, Width::U64, 0);
    }
    write(84, Width::U32, 0xf);
    write(8, Width::U32, 0);
    let (at, bytes) = case.arena;
    script.clear(at, bytes);
}
