//! A host whose devices are all emulated, whole: its memory, the model of one device, and a guest that uses it.
//!
//! `cargo run --example dma_engine`
//!
//! The device is a DMA engine. It gathers bytes from wherever a list says, scatters them to wherever it says next, and
//! ends with an MSI. Each of its addresses goes through the vIOMMU. What happens is `main`: a copy across pages; one
//! for a process that faults, is repaired by the guest's driver and is tried again; one that a fence of the guest waits
//! for.
//!
//! Nothing here is a mock. `Machine` and `Engine` are what a VMM writes, `driver` is in the guest. What is printed is
//! asserted too.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "numbers and ranges that are chosen or checked here"
)]

#[path = "dma_engine/driver.rs"]
mod driver;

use std::error::Error;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use riscv_viommu::{
    Attachment, Cause, Completion, Config, DeviceId, DevicePolicy, Epoch, Gpa, GuestMemory, InterruptKinds, Interrupts,
    Iova, MemoryFault, NoPhysical, Parts, Post, ProcessId, Progress, Request, Target, TranslateError, VIommu, Width,
};
use zerocopy::little_endian::U64;

use driver::Driver;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// `device_id` of the engine; the process that one of its channels works for; what the guest tells interrupts by.
const ENGINE: u32 = 0x10;
const PROCESS: u32 = 5;
const IOMMU_INTERRUPT: u32 = 1;
const ENGINE_INTERRUPT: u32 = 2;

fn main() -> Result<()> {
    println!("The host gives the guest a vIOMMU, and a DMA engine as device_id {ENGINE:#x}. The guest turns both on.");
    let machine = Machine::new();
    let mut iommu: Iommu<'_> = VIommu::new(Parts { memory: &machine, interrupts: &machine, physical: NoPhysical });
    iommu.start(&Config::emulated())?;
    let device = iommu.attach_emulated(DeviceId::new(ENGINE)?, DevicePolicy::default())?;
    let engine = Engine { machine: &machine, device };
    let mut driver = Driver::start(&machine, &mut iommu)?;

    println!("It has 24 bytes at three places copied to one that two pages share:");
    driver.map_to(0, 0x1000, INTERRUPT_FILE)?;
    driver.map(0, 0x1_0ff8, b"gathered")?;
    driver.map(0, 0x1_1000, b" from two")?;
    driver.map(0, 0x1_8010, b" places")?;
    let (first, second) = (driver.map(0, 0x2_0ffc, b"")?, driver.map(0, 0x2_1000, b"")?);
    driver.write_list(0x2000, &[(0x1_0ff8, 17), (0x1_8010, 7), (0x2_0ffc, SCATTER + 24)])?;
    let mut channel = Channel { list: 0x2000, process: None, message: (0x1000, ENGINE_INTERRUPT) };
    engine.work(&channel, &mut iommu)?;
    assert_eq!(machine.text(first, 4)? + &machine.text(second, 20)?, "gathered from two places");
    assert_eq!(machine.take_interrupts(), 1 << ENGINE_INTERRUPT);

    println!("For process {PROCESS} the same addresses are others, and one page of its buffer is not there:");
    driver.map(PROCESS, 0x1_0ff8, b"somebody")?;
    driver.map(PROCESS, 0x1_1000, b" else's b")?;
    driver.map(PROCESS, 0x1_8010, b"ytes...")?;
    let first = driver.map(PROCESS, 0x2_0ffc, b"")?;
    channel.process = Some(ProcessId::new(PROCESS)?);
    let Err(error) = engine.work(&channel, &mut iommu) else { return Err("a page fault is expected".into()) };
    println!("  engine: stopped, {error}");
    assert_eq!(error.downcast_ref(), Some(&TranslateError::Fault(Cause::WritePageFault)));

    println!("The driver is interrupted and reads its fault queue:");
    assert_eq!(machine.take_interrupts(), 1 << IOMMU_INTERRUPT);
    let (fault, iova) = driver.take_fault(&mut iommu)?;
    let (device_id, process) = (fault.did().get(), fault.pid().get());
    println!("  driver: cause {}, device_id {device_id:#x}, process {process}, IOVA {iova:#x}", fault.cause());
    assert_eq!((fault.cause(), device_id, fault.pv(), process, iova), (15, ENGINE, true, PROCESS, 0x2_1000));

    println!("It maps the page, invalidates, fences, and has the engine try again:");
    let second = driver.map(PROCESS, iova, b"")?;
    assert_eq!(driver.invalidate(PROCESS, iova, &mut iommu)?, Progress::Idle);
    engine.work(&channel, &mut iommu)?;
    assert_eq!(machine.text(first, 4)? + &machine.text(second, 20)?, "somebody else's bytes...");
    assert_eq!(machine.take_interrupts(), 1 << ENGINE_INTERRUPT);
    let entry = driver.entry(PROCESS, iova)?;
    println!("  driver: the entry has A {}, D {}", entry.a(), entry.d());
    assert!(entry.a() && entry.d(), "set by the IOMMU");

    println!("The driver takes the page back while the engine is about to write there:");
    let request = Request::write(device, Iova::new(iova)).with_process(ProcessId::new(PROCESS)?, false).with_length(4);
    let Target::Memory(at) = iommu.translate(&request)?.target else { return Err("memory is expected".into()) };
    // From here on another thread may have it.
    machine.copies.fetch_add(1, AcqRel);
    driver.unmap(PROCESS, iova)?;
    let progress = driver.invalidate(PROCESS, iova, &mut iommu)?;
    println!("  driver: the fence is not complete: {progress:?}");
    assert!(progress == Progress::Waiting && !driver.is_done(&iommu));
    machine.write(at, b"late")?;
    machine.copies.fetch_sub(1, AcqRel);
    let progress = iommu.drained(Epoch::new(machine.awaited.load(Acquire)));
    println!("  driver: the engine has written, the fence is complete: {progress:?}");
    assert!(progress == Progress::Idle && driver.is_done(&iommu) && machine.text(second, 4)? == "late");
    assert_eq!(iommu.translate(&request), Err(TranslateError::Fault(Cause::WritePageFault)));

    println!("The host takes the engine away. What its model asks now is refused, and no fault of the guest's:");
    let recorded = iommu.stats().faults_recorded;
    assert_eq!(iommu.detach(device.device())?, Progress::Idle);
    let Err(error) = iommu.translate(&request) else { return Err("a refusal is expected".into()) };
    println!("  engine: {error}");
    assert_eq!((error, iommu.stats().faults_recorded), (TranslateError::NotAttached, recorded));
    Ok(())
}

/// Where the guest has its RAM, and the page of its interrupt file.
const RAM: u64 = 0x8000_0000;
const RAM_SIZE: u64 = 0x4_0000;
const INTERRUPT_FILE: u64 = 0x2800_0000;

/// The VM as its devices see it. Its vCPUs use the memory at the same time: every access is atomic.
struct Machine {
    ram: Vec<AtomicU64>,
    /// Interrupts that are pending, one bit each.
    interrupts: AtomicU64,
    /// DMA that goes on when the vIOMMU is not held any more, and the epoch that the vIOMMU waits for.
    copies: AtomicU64,
    awaited: AtomicU64,
}

/// Room for one device, for one order held back (there is none without passthrough), and for 64 contexts and
/// translations of each kind to be remembered.
type Iommu<'m> = VIommu<Parts<&'m Machine, &'m Machine, NoPhysical>, 1, 1, 64>;

impl Machine {
    fn new() -> Self {
        let ram = (0..RAM_SIZE / 8).map(|_| AtomicU64::new(0)).collect();
        let [interrupts, copies, awaited] = [0; 3].map(AtomicU64::new);
        Self { ram, interrupts, copies, awaited }
    }

    fn words(&self, at: u64, count: usize) -> Result<&[AtomicU64], MemoryFault> {
        let first = usize::try_from(at.wrapping_sub(RAM) / 8).map_err(|_| MemoryFault::Access)?;
        self.ram.get(first..).and_then(|words| words.get(..count)).ok_or(MemoryFault::Access)
    }

    fn word(&self, at: u64) -> Result<&AtomicU64, MemoryFault> {
        self.words(at, 1)?.first().ok_or(MemoryFault::Access)
    }

    /// Makes of the `bytes` bytes at `at` what `change` says, in one atomic operation; whether it said anything.
    fn update(&self, at: u64, bytes: u8, change: impl Fn(u64) -> Option<u64>) -> Result<bool, MemoryFault> {
        let shift = at % 8 * 8;
        let mask = (u64::MAX >> (64 - bytes * 8)) << shift;
        let changed = |word| change((word & mask) >> shift).map(|new| word & !mask | new << shift);
        Ok(self.word(at)?.fetch_update(AcqRel, Acquire, changed).is_ok())
    }

    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        for (at, byte) in (0..).map(|index| at.get().wrapping_add(index)).zip(bytes) {
            *byte = (self.word(at)?.load(Acquire) >> (at % 8 * 8)).to_le_bytes()[0];
        }
        Ok(())
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryFault> {
        for (at, &byte) in (0..).map(|index| at.get().wrapping_add(index)).zip(bytes) {
            self.update(at, 1, |_| Some(byte.into()))?;
        }
        Ok(())
    }

    /// A write of 4 bytes: an MSI, where the interrupt file is.
    fn write_word(&self, at: Gpa, data: u32) -> Result<(), MemoryFault> {
        if at.get() == INTERRUPT_FILE {
            self.interrupts.fetch_or(1_u64.checked_shl(data).unwrap_or(0), Release);
        } else {
            self.update(at.get(), 4, |_| Some(data.into()))?;
        }
        Ok(())
    }

    fn take_interrupts(&self) -> u64 {
        self.interrupts.swap(0, Acquire)
    }

    fn text(&self, at: Gpa, bytes: usize) -> Result<String> {
        let mut text = vec![0; bytes];
        self.read(at, &mut text)?;
        Ok(String::from_utf8(text)?)
    }
}

impl GuestMemory for &Machine {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        let words = self.words(at.get(), out.len())?;
        out.iter_mut().zip(words).for_each(|(out, word)| *out = word.load(Acquire));
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        let memory = self.words(at.get(), words.len())?;
        memory.iter().zip(words).for_each(|(memory, &word)| memory.store(word, Release));
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, _why: Post) -> Result<(), MemoryFault> {
        self.write_word(at, data)
    }

    /// With it the IOMMU sets A and D bits.
    fn has_compare_exchange(&self) -> bool {
        true
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        self.update(at.get(), width.bytes(), |now| (now == old).then_some(new))
    }

    /// A host whose DMA is over when it lets go of the vIOMMU says `Config::with_synchronous_dma` instead.
    fn counts_dma(&self) -> bool {
        true
    }

    /// One that has DMA under way all the time counts it by epoch.
    fn drain(&mut self, upto: Epoch) -> Completion {
        self.awaited.store(upto.get(), Release);
        if self.copies.load(Acquire) == 0 { Completion::Done } else { Completion::Pending }
    }
}

impl Interrupts for &Machine {
    fn kinds(&self) -> InterruptKinds {
        InterruptKinds::Msi
    }

    fn set_wire(&mut self, _vector: u8, _level: bool) {}
}

/// The model of the DMA engine.
struct Engine<'m> {
    machine: &'m Machine,
    device: Attachment,
}

/// What the guest tells one channel of it.
struct Channel {
    /// A list of addresses and lengths, 8 bytes each. What has `SCATTER` in its length is written; 0 is the end.
    list: u64,
    /// Whose addresses are on the list. The list itself and the message are the driver's.
    process: Option<ProcessId>,
    /// Where to write which 4 bytes at the end.
    message: (u64, u32),
}

const SCATTER: u64 = 1 << 63;

impl Engine<'_> {
    /// Does what the list says. What goes wrong ends it; the IOMMU tells the driver why.
    fn work(&self, channel: &Channel, iommu: &mut Iommu<'_>) -> Result<()> {
        // Read once, and bounded in number and lengths: the guest may have written anything there.
        let mut list = [0; 256];
        self.read(Request::read(self.device, Iova::new(channel.list)), &mut list, iommu)?;
        let list: [[U64; 2]; 16] = zerocopy::transmute!(list);
        let mut gathered = Vec::new();
        for [iova, length] in list.map(|entry| entry.map(U64::get)) {
            if length == 0 {
                return self.signal(channel.message, iommu);
            }
            let (scatters, bytes, iova) = (length & SCATTER != 0, usize::try_from(length & 0xffff)?, Iova::new(iova));
            let mut request =
                if scatters { Request::write(self.device, iova) } else { Request::read(self.device, iova) };
            request.process = channel.process;
            if scatters {
                let now: Vec<u8> = gathered.drain(..bytes.min(gathered.len())).collect();
                self.write(request, &now, iommu)?;
            } else {
                let start = gathered.len();
                gathered.resize(start + bytes, 0);
                self.read(request, &mut gathered[start..], iommu)?;
            }
        }
        Err("the list has no end".into())
    }

    fn read(&self, request: Request, bytes: &mut [u8], iommu: &mut Iommu<'_>) -> Result<()> {
        access(request, bytes.len(), iommu, |at, range| {
            println!("  engine: reads {} bytes at {at}", range.len());
            self.machine.read(at, &mut bytes[range])
        })
    }

    fn write(&self, request: Request, bytes: &[u8], iommu: &mut Iommu<'_>) -> Result<()> {
        access(request, bytes.len(), iommu, |at, range| {
            println!("  engine: writes {} bytes at {at}", range.len());
            self.machine.write(at, &bytes[range])
        })
    }

    /// An MSI: a write of 4 bytes to where the guest's tables lead.
    fn signal(&self, (address, data): (u64, u32), iommu: &mut Iommu<'_>) -> Result<()> {
        match iommu.translate(&Request::msi(self.device, Iova::new(address), data))?.target {
            Target::Memory(at) | Target::InterruptFile(at) => {
                println!("  engine: sends message {data} to {at}");
                Ok(self.machine.write_word(at, data)?)
            }
            // Target::Mrif: the vIOMMU has stored it.
            _ => Ok(()),
        }
    }
}

/// An access of any length, which `transfer` does piece by piece, to where the guest's tables lead.
fn access(
    request: Request,
    bytes: usize,
    iommu: &mut Iommu<'_>,
    mut transfer: impl FnMut(Gpa, Range<usize>) -> Result<(), MemoryFault>,
) -> Result<()> {
    let mut done = 0;
    for piece in iommu.pieces(request.with_length(u64::try_from(bytes)?)) {
        let piece = piece?;
        let Target::Memory(at) = piece.target else { return Err("no memory is there".into()) };
        let end = done + usize::try_from(piece.length)?;
        transfer(at, done..end)?;
        done = end;
    }
    Ok(())
}
