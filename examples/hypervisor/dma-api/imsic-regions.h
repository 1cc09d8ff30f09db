/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Included by the kernel's drivers/iommu/riscv/iommu.c, where `edit` puts it.
 *
 * A device is told to send its MSIs to the physical address of a hart's interrupt file, and its
 * IOMMU translates that address like every other one. Each DMA domain therefore has to map the
 * interrupt files to themselves. The IOMMU core does so for regions reserved as "direct", and hands
 * out no IOVA inside them.
 */
#include <linux/cpumask.h>
#include <linux/irqchip/riscv-imsic.h>
#include <linux/percpu.h>

static void riscv_iommu_imsic_regions(struct device *dev, struct list_head *regions)
{
	const struct imsic_global_config *imsic = imsic_get_global_config();
	const int prot = IOMMU_READ | IOMMU_WRITE | IOMMU_NOEXEC | IOMMU_MMIO;
	struct iommu_resv_region *region;
	unsigned int cpu;

	if (!imsic)
		return;

	for_each_possible_cpu(cpu) {
		phys_addr_t file = per_cpu_ptr(imsic->local, cpu)->msi_pa;

		/* A hart without an interrupt file gets no MSIs. */
		if (!file)
			continue;

		region = iommu_alloc_resv_region(file, IMSIC_MMIO_PAGE_SZ, prot,
						 IOMMU_RESV_DIRECT, GFP_KERNEL);
		if (!region) {
			dev_warn(dev, "no memory to map the IMSIC at %pa\n", &file);
			return;
		}
		list_add_tail(&region->list, regions);
	}
}
