//! Translation: it has no budget, since its tables have levels.

use riscv_viommu::mock::guest::register;
use riscv_viommu::{Capabilities, Config, DeviceId, DevicePolicy, Iova, ProcessId, Request, Width};

use crate::cost::{Cost, Limits};
use crate::guest::{Iommu, table};
use crate::host::{CONTEXTS, Host, Manner, ROOT, region};

/// Everything at its longest: three levels of contexts, of process contexts, five of either stage, and every entry of
/// the second under the first.
fn host(faster: u8) -> Host {
    // The second stage: regions 16 to 19, then a leaf for the region that an address names in bits 20:12.
    let manner = Manner { faster, ..Manner::default() };
    let mut host = Host { leaves: Some(20), manner, ..Host::default() };
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
    host
}

/// Loads, bytes and exchanges of a translation, of a piece of one, and of one by the debug interface.
fn costs(faster: u8) -> [[u64; 3]; 3] {
    let mut iommu = Iommu::new(host(faster));
    let offered = Capabilities::from_bits(u64::MAX).with_pas(56);
    let config = Config::emulated().with_capabilities(offered).with_synchronous_dma(true).with_debug(true);
    iommu.start(&config).unwrap();
    let device = iommu.attach_emulated(DeviceId::truncate(1), DevicePolicy::default()).unwrap();
    let _ = iommu.write(register::DDTP, Width::U64, region(ROOT) >> 2 | 4);
    let request = Request::write(device, Iova::new(0)).with_process(ProcessId::truncate(1), false);
    let taken = |iommu: &Iommu| of(iommu.backend().cost.take());
    taken(&iommu);
    let _ = iommu.translate(&request);
    let translation = taken(&iommu);
    let _ = iommu.pieces(request).next();
    let piece = taken(&iommu);
    // Process 1 of device 1, and Go.
    let _ = iommu.write(register::TR_REQ_CTL, Width::U64, 1 << 40 | 1 << 32 | 1 << 12 | 1);
    [translation, piece, taken(&iommu)]
}

fn of(cost: Cost) -> [u64; 3] {
    [cost.loads, cost.bytes, cost.exchanges]
}

#[test]
fn a_translation_costs_what_its_tables_have_levels_and_no_more() {
    let bound = of(Limits::translates());
    assert_eq!(costs(7), [bound; 3], "T14: a vCPU that is faster seven times makes it reach the bound");
    // One that is faster more often makes it fail.
    for faster in 0..20 {
        assert!(
            costs(faster).iter().flatten().zip([bound; 3].as_flattened()).all(|(cost, bound)| cost <= bound),
            "T14"
        );
    }
}
