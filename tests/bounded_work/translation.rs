//! Translation: it has no budget, since its tables have levels.

use riscv_viommu::mock::guest::register;
use riscv_viommu::{Capabilities, Config, DeviceId, DevicePolicy, Iova, ProcessId, Request, Width};

use crate::cost::{Cost, Limits};
use crate::guest::{Iommu, table};
use crate::host::{CONTEXTS, Host, ROOT, region};

/// Everything at its longest: three levels of contexts, of process contexts, five of either stage, every entry of the
/// second under the first, and a vCPU that is faster seven times at each update.
#[test]
fn a_translation_costs_what_its_tables_have_levels_and_no_more() {
    // The second stage: regions 16 to 19, then a leaf for the region that an address names in bits 20:12.
    let mut host = Host { leaves: Some(20), ..Host::default() };
    host.regions.extend((16..20).map(|number| (number, table(number + 1))));
    // Process directory and first stage, at addresses of the guest's own VM.
    let nested = |number: u64| number << 12 >> 2 | 1;
    host.regions.extend([(5, [nested(6); 8]), (6, [nested(7); 8])]);
    let satp = 10 << 60 | 8;
    host.regions.insert(7, [1, satp, 1, satp, 1, satp, 1, satp]);
    host.regions.extend((8..12).map(|number| (number, [nested(number + 1); 8])));
    host.regions.insert(12, [13 << 12 >> 2 | 0x1f; 8]);
    // tc: V, GADE, SADE, PDTV; iohgatp Sv57x4; pdtp PD20; no MSI page table.
    let tc = 1 | 1 << 5 | 1 << 7 | 1 << 8;
    let dc = [tc, 10 << 60 | region(16) >> 12, 0, 3 << 60 | 5, 0, 0, 0, 0];
    host.regions.extend([(ROOT, table(1)), (1, table(CONTEXTS)), (CONTEXTS, dc)]);
    let mut iommu = Iommu::new(host);
    let offered = Capabilities::from_bits(u64::MAX).with_pas(56);
    let config = Config::emulated().with_capabilities(offered).with_synchronous_dma(true).with_debug(true);
    iommu.start(&config).unwrap();
    let device = iommu.attach_emulated(DeviceId::truncate(1), DevicePolicy::default()).unwrap();
    let _ = iommu.write(register::DDTP, Width::U64, region(ROOT) >> 2 | 4);
    let of_levels = |cost: Cost| (cost.loads, cost.exchanges, cost.bytes);
    let bound = of_levels(Limits::translates());
    let request = Request::write(device, Iova::new(0)).with_process(ProcessId::truncate(1), false);
    iommu.backend().cost.take();
    assert!(iommu.translate(&request).is_ok());
    assert_eq!(of_levels(iommu.backend().cost.take()), bound, "T14: the bound is reached");
    assert!(iommu.pieces(request).next().unwrap().is_ok());
    assert_eq!(of_levels(iommu.backend().cost.take()), bound, "T14: the bound is reached");
    // The same by a register: process 1, and Go.
    let _ = iommu.write(register::TR_REQ_CTL, Width::U64, 1 << 40 | 1 << 32 | 1 << 12 | 1);
    assert_eq!(of_levels(iommu.backend().cost.take()), bound, "T14: the bound is reached");
}
