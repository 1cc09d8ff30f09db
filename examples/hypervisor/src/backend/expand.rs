//! From the crate's typed invalidations to commands of the physical queue.

use heapless::Vec;
use riscv_viommu::addr::PAGE_SIZE;
use riscv_viommu::cmdq::{Command, Iotinval, PageRange};
use riscv_viommu::{Capabilities, Gscid, Invalidation, Iova, Pages};

use crate::iommu::{COMMANDS, PhysicalId};

/// Pages that are named one by one where the IOMMU knows no ranges; more become the whole address space.
const SINGLE_PAGES: u64 = 8;

/// Commands for a batch of at most `BATCH` orders.
pub type Commands = Vec<Command, { COMMANDS as usize - 1 }>;

/// The commands that carry out `orders`, all within one VM: `gscid`, and `blocked` that of its blocked devices, whose
/// MSI page-table entries an IOMMU may keep. `devices` are all that have contexts under these.
///
/// The orders of a batch may be carried out together: what one command drops needs no second. `None` if there are more
/// than the queue ever takes.
pub fn commands(
    orders: &[Invalidation<PhysicalId>],
    [gscid, blocked]: [Gscid; 2],
    devices: impl Iterator<Item = PhysicalId>,
    capabilities: Capabilities,
) -> Option<Commands> {
    let space = Iotinval::ALL.with_gscid(gscid);
    let (mut first_stage, mut second_stage, mut all_devices) = (false, false, false);
    let mut out = Commands::new();
    for order in orders {
        match order {
            Invalidation::Device(device) => {
                push_new(&mut out, Command::IodirInvalDdt(Some(device.0)))?;
                (first_stage, second_stage) = (true, true);
            }
            Invalidation::Process(device, process) => push_new(&mut out, Command::IodirInvalPdt(device.0, *process))?,
            Invalidation::FirstStage => first_stage = true,
            Invalidation::Pages(_) | Invalidation::AddressSpace(_) => {}
            // `Everything`, and what this hypervisor does not know.
            _ => (first_stage, second_stage, all_devices) = (true, true, true),
        }
    }
    if all_devices {
        for device in devices {
            push_new(&mut out, Command::IodirInvalDdt(Some(device.0)))?;
        }
    }
    if first_stage {
        push_new(&mut out, Command::IotinvalVma(space))?;
    } else {
        for order in orders {
            match order {
                Invalidation::AddressSpace(pscid) => {
                    push_new(&mut out, Command::IotinvalVma(space.with_pscid(*pscid)))?;
                }
                Invalidation::Pages(pages) => push_pages(&mut out, space, pages, capabilities)?,
                _ => {}
            }
        }
    }
    if second_stage {
        push_new(&mut out, Command::IotinvalGvma(space))?;
        push_new(&mut out, Command::IotinvalGvma(Iotinval::ALL.with_gscid(blocked)))?;
    }
    Some(out)
}

/// The pages as they are where the IOMMU can, else one by one, else more than was asked for.
fn push_pages(out: &mut Commands, space: Iotinval, pages: &Pages, capabilities: Capabilities) -> Option<()> {
    let space = match pages.pscid {
        Some(pscid) => space.with_pscid(pscid),
        None => space,
    };
    let beyond_first = (pages.last.get() - pages.first.get()) / PAGE_SIZE;
    if pages.non_leaf && !capabilities.nl() {
        push_new(out, Command::IotinvalVma(space))
    } else if beyond_first < SINGLE_PAGES {
        (0..=beyond_first).try_for_each(|page| {
            let range = PageRange::page(Iova::new(pages.first.get() + page * PAGE_SIZE));
            push_new(out, Command::IotinvalVma(space.with_range(range.with_non_leaf(pages.non_leaf))))
        })
    } else if capabilities.s() {
        let range = PageRange::covering(pages.first, pages.last);
        push_new(out, Command::IotinvalVma(space.with_range(range.with_non_leaf(pages.non_leaf))))
    } else {
        push_new(out, Command::IotinvalVma(space))
    }
}

/// A command once is enough.
fn push_new(out: &mut Commands, command: Command) -> Option<()> {
    if out.contains(&command) { Some(()) } else { out.push(command).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use riscv_viommu::{DeviceId, ProcessId, Pscid};

    const GSCID: Gscid = Gscid::truncate(3);
    const BLOCKED: Gscid = Gscid::truncate(4);
    const SPACE: Iotinval = Iotinval::ALL.with_gscid(GSCID);
    const DEVICE: PhysicalId = PhysicalId(DeviceId::truncate(8));
    const OTHER: PhysicalId = PhysicalId(DeviceId::truncate(16));

    fn expand(orders: &[Invalidation<PhysicalId>], capabilities: Capabilities) -> Commands {
        commands(orders, [GSCID, BLOCKED], [DEVICE, OTHER].into_iter(), capabilities).expect("few")
    }

    fn pages(first: u64, last: u64) -> Pages {
        Pages::new(Iova::new(first), Iova::new(last), Some(Pscid::truncate(1)))
    }

    #[test]
    fn a_device_takes_its_context_and_both_stages_of_its_gscid_with_it() {
        let ddt = Command::IodirInvalDdt(Some(DEVICE.0));
        let blocked = Command::IotinvalGvma(Iotinval::ALL.with_gscid(BLOCKED));
        let expected = [ddt, Command::IotinvalVma(SPACE), Command::IotinvalGvma(SPACE), blocked];
        let orders = [Invalidation::Device(DEVICE), Invalidation::AddressSpace(Pscid::truncate(1))];
        assert_eq!(expand(&orders, Capabilities::new()), expected);
    }

    #[test]
    fn a_process_takes_its_context_alone_with_it_and_goes_before_translations() {
        let process = ProcessId::truncate(7);
        let context = Command::IodirInvalPdt(DEVICE.0, process);
        let order = Invalidation::Process(DEVICE, process);
        assert_eq!(expand(&[order, order], Capabilities::new()), [context]);
        let space = Command::IotinvalVma(SPACE.with_pscid(Pscid::truncate(1)));
        let orders = [Invalidation::AddressSpace(Pscid::truncate(1)), order];
        assert_eq!(expand(&orders, Capabilities::new()), [context, space]);
    }

    #[test]
    fn everything_reaches_all_devices_of_the_vm_and_no_others() {
        let everything = expand(&[Invalidation::Everything], Capabilities::new());
        for device in [DEVICE, OTHER] {
            assert!(everything.contains(&Command::IodirInvalDdt(Some(device.0))));
        }
        assert!(!everything.contains(&Command::IodirInvalDdt(None)));
        assert_eq!(everything.len(), 5);
    }

    #[test]
    fn a_few_pages_are_named_one_by_one_and_many_become_their_address_space() {
        let few = expand(&[Invalidation::Pages(pages(0x1000, 0x3000))], Capabilities::new());
        let space = SPACE.with_pscid(Pscid::truncate(1));
        let page = |at| Command::IotinvalVma(space.with_range(PageRange::page(Iova::new(at))));
        assert_eq!(few, [page(0x1000), page(0x2000), page(0x3000)]);
        assert_eq!(expand(&[Invalidation::Pages(pages(0x1000, 0x8000))], Capabilities::new()).len(), 8);
        let nine = [Invalidation::Pages(pages(0x1000, 0x9000))];
        assert_eq!(expand(&nine, Capabilities::new()), [Command::IotinvalVma(space)]);
        let many = [Invalidation::Pages(pages(0, u64::MAX))];
        assert_eq!(expand(&many, Capabilities::new()), [Command::IotinvalVma(space)]);
        let ranges = Capabilities::new().with_s(true);
        let range = PageRange::covering(Iova::new(0), Iova::new(u64::MAX));
        assert_eq!(expand(&many, ranges), [Command::IotinvalVma(space.with_range(range))]);
    }

    #[test]
    fn non_leaf_entries_go_with_their_address_space_where_they_can_not_be_named() {
        let mut tables = pages(0x1000, 0x1000);
        tables.non_leaf = true;
        let space = SPACE.with_pscid(Pscid::truncate(1));
        assert_eq!(expand(&[Invalidation::Pages(tables)], Capabilities::new()), [Command::IotinvalVma(space)]);
        tables.last = Iova::new(0x10_0000);
        let able = Capabilities::new().with_s(true).with_nl(true);
        let range = PageRange::covering(tables.first, tables.last).with_non_leaf(true);
        assert_eq!(expand(&[Invalidation::Pages(tables)], able), [Command::IotinvalVma(space.with_range(range))]);
    }

    #[test]
    fn what_one_command_drops_needs_no_second() {
        let space = Invalidation::AddressSpace(Pscid::truncate(1));
        let page = Invalidation::Pages(pages(0x1000, 0x1000));
        assert_eq!(expand(&[page, page, space, space], Capabilities::new()).len(), 2);
        let all = [page, space, Invalidation::FirstStage];
        assert_eq!(expand(&all, Capabilities::new()), [Command::IotinvalVma(SPACE)]);
    }
}
