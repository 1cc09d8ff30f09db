//! Making a VM.

use core::sync::atomic::Ordering;

use heapless::Vec;
use hypervisor::backend::context::Host;
use hypervisor::backend::{GuestRam, InterruptFile, Mirror, Sabotage, Sabotaged, VmIommu, Wires};
use hypervisor::frames::{Frames, Table};
use hypervisor::iommu::{PhysicalId, VmId};
use hypervisor::machine::{GUEST_RAM, Machine, Options, guest};
use hypervisor::pci::{self, Function};
use hypervisor::second_stage::{self, Access, MapError, SecondStage};
use riscv_viommu::addr::PAGE_SIZE;
use riscv_viommu::ddt::{Iohgatp, MsiPageBits, Msiptp};
use riscv_viommu::msi::MsiPte;
use riscv_viommu::{Attachment, Config, DeviceId, DevicePolicy, Gscid, Parts, Ppn, VIommu};
use spin::Mutex;

use super::{Driver, Ecam, Exits, Snapshots, Vm, VmViommu};
use crate::canary::Canary;
use crate::console::{Line, say};
use crate::hart::{self, Guest};

/// `msiptp.MODE` of a flat MSI page table.
const MSIPTP_FLAT: u8 = 1;

/// The guest's one device, as its directory has it.
const GUEST_DEVICE: DeviceId = DeviceId::truncate(pci::GUEST_FUNCTION as u32);

/// What all VMs share.
pub(crate) struct Shared {
    pub(crate) machine: Machine,
    pub(crate) options: Options<'static>,
    pub(crate) driver: &'static Driver,
    pub(crate) frames: &'static Mutex<Frames>,
    /// A second stage through which nothing is reached.
    pub(crate) nothing: SecondStage,
}

impl Vm {
    /// Makes VM `id`, for hart `hart`. PCI windows are put at `next_window`, which moves.
    ///
    /// # Errors
    /// What is missing, for whoever starts the machine.
    pub(crate) fn create(id: VmId, hart: usize, shared: &Shared, next_window: &mut u64) -> Result<Self, &'static str> {
        let Shared { machine, options, driver, frames, .. } = shared;
        let (ram, size) = GUEST_RAM[id.index()];
        if ram + size > machine.ram_end {
            return Err("not enough RAM: start QEMU with -m 3G");
        }
        let number = (id.index() as u8 + 1) << 3;
        let function = Function::new(Ecam(machine.ecam), number, next_window).ok_or(
            "no PCI device for the VM: give QEMU an NVMe controller at addr=1, and one at addr=2 for a second VM",
        )?;
        let file = InterruptFile { gpa: guest::IMSIC, hpa: machine.interrupt_file(hart, 1) };
        let tables =
            Tables::new(&mut frames.lock(), id, file, options.mirror).map_err(|_| "page frames are used up")?;
        let device = PhysicalId(DeviceId::truncate(number.into()));
        let blueprint = Blueprint::new(id, device, file, &tables, shared)?;
        let (iommu, attachment) = blueprint.build()?;

        // SAFETY: the beginning of this VM's RAM; images are behind it.
        let canary = unsafe { Table::at(Ppn::truncate(ram / PAGE_SIZE), guest::CANARY as usize / 8) };
        Ok(Self {
            id,
            name: options.names[id.index()],
            iommu,
            attachment,
            blueprint,
            snapshots: Snapshots::default(),
            driver,
            frames,
            hart_stage: tables.hart,
            dma_stage: tables.dma,
            function,
            windows: Vec::new(),
            holes: Vec::new(),
            line: Line::default(),
            silent_until: None,
            canary: Canary::fill(canary.words()),
            exits: Exits::default(),
            verdict: None,
            faults: 0,
            ended: false,
        })
    }

    /// Prepares the hart this runs on for the guest, and gives the guest's first registers.
    pub(crate) fn enter(&mut self) -> Guest {
        hart::prepare(self.hart_stage.root().base().get(), self.id.index() as u64 + 1);
        self.settle();
        Guest::new(guest::ENTRY.get(), 0, guest::DEVICE_TREE.get())
    }
}

/// What is in memory for a VM before it runs.
struct Tables {
    /// What its hart reaches: RAM, interrupt file and the mirror.
    hart: SecondStage,
    /// What its device reaches: RAM.
    dma: SecondStage,
    msi: Table,
    mirror: Option<Mirror>,
}

impl Tables {
    fn new(pool: &mut Frames, id: VmId, file: InterruptFile, mirror: bool) -> Result<Self, MapError> {
        let (ram, size) = GUEST_RAM[id.index()];
        let tables = Self {
            hart: SecondStage::new(pool).ok_or(MapError::OutOfFrames)?,
            dma: SecondStage::new(pool).ok_or(MapError::OutOfFrames)?,
            msi: msi_table(pool, file).ok_or(MapError::OutOfFrames)?,
            mirror: if mirror { Some(pool.take(1).ok_or(MapError::OutOfFrames)?) } else { None },
        };
        tables.hart.map(pool, guest::RAM, ram, size, Access::All)?;
        tables.dma.map(pool, guest::RAM, ram, size, Access::All)?;
        tables.hart.map(pool, file.gpa, file.hpa, PAGE_SIZE, Access::All)?;
        if let Some(page) = tables.mirror {
            tables.hart.map(pool, guest::IOMMU, page.address(), PAGE_SIZE, Access::ReadOnly)?;
        }
        Ok(tables)
    }
}

/// What a VM's vIOMMU is made by, as often as it is made.
pub(super) struct Blueprint {
    id: VmId,
    device: PhysicalId,
    file: InterruptFile,
    mirror: Option<Mirror>,
    host: Host,
    pub(super) options: Options<'static>,
    driver: &'static Driver,
    frames: &'static Mutex<Frames>,
}

impl Blueprint {
    fn new(
        id: VmId,
        device: PhysicalId,
        file: InterruptFile,
        tables: &Tables,
        shared: &Shared,
    ) -> Result<Self, &'static str> {
        let Shared { options, driver, frames, nothing, .. } = shared;
        let gscids = gscids(id, options.sabotage);
        // That a GSCID is taken is an error, but for the sabotage that wants one for all and see what comes of it.
        driver.lock().owners_mut().lenient = options.sabotage == Sabotage::SharedGscid;
        let granted = gscids.iter().all(|gscid| driver.lock().owners_mut().grant_gscid(*gscid, id));
        if !granted && options.sabotage != Sabotage::SharedGscid {
            return Err("a GSCID is taken");
        }
        let iohgatp = Iohgatp::new().with_mode(second_stage::MODE.encoding());
        let host = Host {
            open: iohgatp.with_gscid(gscids[0]).with_ppn(tables.dma.root()),
            blocked: iohgatp.with_gscid(gscids[1]).with_ppn(nothing.root()),
            msiptp: Msiptp::new().with_mode(MSIPTP_FLAT).with_ppn(tables.msi.ppn()),
            mask: MsiPageBits::new().with_page(0),
            pattern: MsiPageBits::new().with_page(file.gpa.get() / PAGE_SIZE),
        };
        Ok(Self { id, device, file, mirror: tables.mirror, host, options: *options, driver, frames })
    }

    /// The vIOMMU, started, with the device.
    pub(super) fn build(&self) -> Result<(VmViommu, Attachment), &'static str> {
        let Self { id, device, file, mirror, host, options, driver, frames } = *self;
        let (ram, size) = GUEST_RAM[id.index()];
        // SAFETY: this RAM and this file are of this VM alone.
        let memory = unsafe { GuestRam::new(guest::RAM, ram, size, file, mirror) };
        let physical = VmIommu::new(driver, frames, id, host, options.sabotage).with_slow_fences(options.snapshots);
        let physical = Sabotaged::new(physical, options.sabotage);
        let mut iommu = VIommu::new(Parts { memory, interrupts: Wires::default(), physical });
        let config = Config::nested().with_mirror(options.mirror).with_extended_contexts(options.extended);
        iommu.start(&config).map_err(|error| {
            say!("hypervisor: the vIOMMU: {error}");
            "the IOMMU can not be nested: QEMU 10.0 or newer has one that can"
        })?;
        let attached = iommu.attach(GUEST_DEVICE, device, DevicePolicy::default()).map_err(|error| {
            say!("hypervisor: the vIOMMU: {error}");
            "the vIOMMU did not take the device"
        })?;
        Ok((iommu, attached.attachment))
    }
}

/// The GSCID of a VM's second stage, and that of its blocked devices.
fn gscids(id: VmId, sabotage: Sabotage) -> [Gscid; 2] {
    let vm = if sabotage == Sabotage::SharedGscid { 0 } else { id.index() as u32 };
    [Gscid::truncate(2 * vm + 1), Gscid::truncate(2 * vm + 2)]
}

/// The MSI page table of a VM: its one interrupt file.
fn msi_table(pool: &mut Frames, file: InterruptFile) -> Option<Table> {
    let table = pool.take(1)?;
    let words: [u64; 2] = zerocopy::transmute!(MsiPte::flat(Ppn::truncate(file.hpa / PAGE_SIZE)));
    for (place, word) in table.words().iter().zip(words) {
        place.store(word, Ordering::Release);
    }
    Some(table)
}
