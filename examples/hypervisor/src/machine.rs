//! The machine as the host's device tree describes it, and what of it is given to guests.

use fdt::Fdt;
use fdt::node::{FdtNode, NodeProperty};
use riscv_viommu::Gpa;

use crate::iommu::VMS;

/// Supervisor external interrupt: how an interrupt controller's node names it.
const SUPERVISOR_EXTERNAL: u32 = 9;

/// Where things are, by physical address.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Registers of the IOMMU.
    pub iommu: u64,
    /// Supervisor interrupt file of hart 0.
    pub imsic: u64,
    /// Bits of the address that select a guest interrupt file of a hart.
    pub guest_index_bits: u32,
    /// Configuration space of PCI bus 0.
    pub ecam: u64,
    /// 32-bit window of PCI memory.
    pub pci_memory: u64,
    /// First address behind RAM.
    pub ram_end: u64,
}

impl Machine {
    /// Reads the device tree.
    ///
    /// # Errors
    /// What this hypervisor needs and does not find.
    pub fn from_device_tree(tree: &Fdt<'_>) -> Result<Self, &'static str> {
        let iommu = tree.find_compatible(&["riscv,iommu"]).ok_or("no riscv,iommu: start QEMU with iommu-sys=on")?;
        let imsic = tree
            .all_nodes()
            .find(|node| is_compatible(*node, "riscv,imsics") && interrupt(*node) == Some(SUPERVISOR_EXTERNAL))
            .ok_or("no supervisor-level riscv,imsics: start QEMU with aia=aplic-imsic,aia-guests=1")?;
        let guest_index_bits = imsic.property("riscv,guest-index-bits").and_then(NodeProperty::as_usize);
        let pci = tree.find_compatible(&["pci-host-ecam-generic"]).ok_or("no pci-host-ecam-generic")?;
        let memory = tree.memory();
        let ram_end =
            memory.regions().map(|region| region.starting_address as u64 + region.size.unwrap_or_default() as u64);
        Ok(Self {
            iommu: base(iommu).ok_or("riscv,iommu has no registers")?,
            imsic: base(imsic).ok_or("riscv,imsics has no registers")?,
            guest_index_bits: guest_index_bits
                .filter(|bits| *bits > 0)
                .ok_or("no guest interrupt files: start QEMU with aia-guests=1")? as u32,
            ecam: base(pci).ok_or("pci-host-ecam-generic has no registers")?,
            pci_memory: memory_window(pci).ok_or("pci-host-ecam-generic has no 32-bit memory window")?,
            ram_end: ram_end.max().ok_or("no memory")?,
        })
    }

    /// Interrupt file of a hart: its own (0) or that of its guest (1).
    #[must_use]
    pub const fn interrupt_file(&self, hart: usize, guest: u64) -> u64 {
        self.imsic + ((hart as u64) << (12 + self.guest_index_bits)) + (guest << 12)
    }
}

fn is_compatible(node: FdtNode<'_, '_>, name: &str) -> bool {
    node.compatible().is_some_and(|compatible| compatible.all().any(|each| each == name))
}

fn base(node: FdtNode<'_, '_>) -> Option<u64> {
    Some(node.reg()?.next()?.starting_address as u64)
}

/// The second cell of the first interrupt: which one of the hart's it is.
fn interrupt(node: FdtNode<'_, '_>) -> Option<u32> {
    cells(node.property("interrupts-extended")?.value).nth(1)
}

/// The host address of the first 32-bit, not prefetchable memory range.
fn memory_window(pci: FdtNode<'_, '_>) -> Option<u64> {
    let mut ranges = cells(pci.property("ranges")?.value);
    loop {
        // Three cells of PCI address, two of host address, two of size.
        let range: [u32; 7] = core::array::from_fn(|_| ranges.next().unwrap_or_default());
        match range[0] >> 24 & 3 {
            0 if range == [0; 7] => return None,
            2 => return Some(u64::from(range[3]) << 32 | u64::from(range[4])),
            _ => {}
        }
    }
}

fn cells(value: &[u8]) -> impl Iterator<Item = u32> + '_ {
    value.chunks_exact(4).filter_map(|cell| Some(u32::from_be_bytes(cell.try_into().ok()?)))
}

/// What a guest finds where: the same for every guest.
pub mod guest {
    use super::Gpa;

    /// Registers of its IOMMU.
    pub const IOMMU: Gpa = Gpa::new(0x0301_0000);
    /// Its interrupt file.
    pub const IMSIC: Gpa = Gpa::new(0x2800_0000);
    /// Configuration space of its PCI bus.
    pub const ECAM: Gpa = Gpa::new(0x3000_0000);
    /// Windows of PCI memory: first address and size.
    pub const PCI_WINDOWS: [(u64, u64); 2] = [(0x4000_0000, 0x4000_0000), (0x4_0000_0000, 0x4_0000_0000)];
    /// Its RAM.
    pub const RAM: Gpa = Gpa::new(0x8000_0000);
    /// Bytes at the beginning of RAM that nobody uses: the hypervisor fills them and looks at them in the end.
    pub const CANARY: u64 = 0x10_0000;
    /// Its device tree.
    pub const DEVICE_TREE: Gpa = Gpa::new(0x8010_0000);
    /// Where it begins.
    pub const ENTRY: Gpa = Gpa::new(0x8020_0000);
}

/// RAM of each VM: physical address and size. Whoever starts the machine puts images there.
pub const GUEST_RAM: [(u64, u64); VMS] = [(0x1_0000_0000, 0x2000_0000), (0x1_2000_0000, 0x0400_0000)];

/// What the hypervisor was told on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent options")]
pub struct Options<'a> {
    /// VMs to run.
    pub vms: usize,
    /// What their console lines begin with.
    pub names: [&'a str; VMS],
    /// Whether guests read the registers of their IOMMU from a page, without an exit.
    pub mirror: bool,
    /// Extended-format device contexts for guests.
    pub extended: bool,
    /// The IOMMU reads process directories through the second stage. No register says so: it has to be known.
    pub processes: bool,
    /// Guests' IOMMUs are saved and restored, again and again.
    pub snapshots: bool,
    /// Which negative control this is.
    pub sabotage: crate::backend::Sabotage,
    /// Most exits of a vIOMMU that still pass.
    pub exits: Option<u64>,
}

impl<'a> Options<'a> {
    /// Reads words of the form `name=value`.
    ///
    /// # Errors
    /// The word that is not understood.
    pub fn parse(words: &'a str) -> Result<Self, &'a str> {
        let mut options = Self {
            vms: 1,
            names: ["linux", "guest"],
            mirror: true,
            extended: false,
            processes: false,
            snapshots: false,
            sabotage: crate::backend::Sabotage::None,
            exits: None,
        };
        for word in words.split_whitespace() {
            let sabotages = crate::backend::Sabotage::NAMES;
            match word.split_once('=') {
                Some(("vms", "1")) => options.vms = 1,
                Some(("vms", "2")) => options.vms = 2,
                Some(("name0", name)) => options.names[0] = name,
                Some(("name1", name)) => options.names[1] = name,
                Some(("mirror", "on")) => options.mirror = true,
                Some(("mirror", "off")) => options.mirror = false,
                Some(("contexts", "base")) => options.extended = false,
                Some(("contexts", "extended")) => options.extended = true,
                Some(("processes", "on")) => options.processes = true,
                Some(("processes", "off")) => options.processes = false,
                Some(("snapshots", "on")) => options.snapshots = true,
                Some(("snapshots", "off")) => options.snapshots = false,
                Some(("exits", most)) => options.exits = Some(most.parse().map_err(|_| word)?),
                Some(("sabotage", how)) => {
                    let found = sabotages.iter().find(|(name, _)| *name == how);
                    options.sabotage = found.map(|(_, sabotage)| *sabotage).ok_or(word)?;
                }
                _ => return Err(word),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Sabotage;

    #[test]
    fn options_are_read_and_a_word_not_understood_is_named() {
        let options = Options::parse("vms=2 mirror=off contexts=extended processes=on sabotage=no-gvma exits=4100")
            .expect("parses");
        assert!(options.vms == 2 && !options.mirror && options.extended && options.processes && !options.snapshots);
        assert!(Options::parse("snapshots=on").is_ok_and(|options| options.snapshots));
        assert_eq!((options.sabotage, options.exits), (Sabotage::NoGvma, Some(4100)));
        assert!(Options::parse("").is_ok_and(|options| !options.processes), "an IOMMU nobody vouches for");
        for wrong in ["vms=3", "mirror", "sabotage=none-such", "exits=many"] {
            assert_eq!(Options::parse(wrong), Err(wrong));
        }
    }
}
