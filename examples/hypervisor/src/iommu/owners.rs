//! Who may name what: devices and GSCIDs belong to VMs, and a VM's vIOMMU names its own.
//!
//! The crate promises that no order of one VM carries another's device or GSCID. This hypervisor does not take its
//! word: it looks at every command on its last step before the hardware, lets no other's pass, and the report says how
//! many it looked at.

use heapless::Vec;
use riscv_viommu::Gscid;
use riscv_viommu::cmdq::Command;

use super::PhysicalId;

/// VMs there may be.
pub const VMS: usize = 2;

/// A VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmId(u8);

impl VmId {
    /// Every VM there may be.
    pub const ALL: [Self; VMS] = [Self(0), Self(1)];

    /// Its number, below [`VMS`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// On whose behalf a command goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// The hypervisor's own.
    Host,
    /// A VM's vIOMMU.
    Vm(VmId),
}

/// The owners of devices and GSCIDs, and what checking them found.
#[derive(Debug, Default)]
pub struct Owners {
    devices: Vec<(PhysicalId, VmId), 16>,
    gscids: Vec<(Gscid, VmId), 16>,
    /// Commands and contexts looked at.
    pub checked: u64,
    /// Those that named a device or a GSCID that is not their issuer's. Never, or something is badly wrong.
    pub violations: u64,
    /// They go to the hardware all the same: for the negative control that needs to be seen there.
    pub lenient: bool,
}

impl Owners {
    /// Gives a GSCID to a VM. `false` if it is taken, or there is no room.
    pub fn grant_gscid(&mut self, gscid: Gscid, vm: VmId) -> bool {
        self.gscids.iter().all(|(taken, _)| *taken != gscid) && self.gscids.push((gscid, vm)).is_ok()
    }

    /// Gives a device to a VM. `false` if it is taken, or there is no room.
    pub fn grant_device(&mut self, device: PhysicalId, vm: VmId) -> bool {
        self.owner_of(device).is_none() && self.devices.push((device, vm)).is_ok()
    }

    /// Takes a device back.
    pub fn revoke_device(&mut self, device: PhysicalId) {
        self.devices.retain(|(owned, _)| *owned != device);
    }

    /// The VM that has this device.
    #[must_use]
    pub fn owner_of(&self, device: PhysicalId) -> Option<VmId> {
        self.devices.iter().find(|(owned, _)| *owned == device).map(|&(_, vm)| vm)
    }

    /// The devices of a VM.
    pub fn devices_of(&self, vm: VmId) -> impl Iterator<Item = PhysicalId> + '_ {
        self.devices.iter().filter(move |(_, owner)| *owner == vm).map(|&(device, _)| device)
    }

    /// Looks at a command on its way to the hardware: whether it may go there.
    pub(super) fn check(&mut self, issuer: Issuer, command: &Command) -> bool {
        match command {
            Command::IotinvalVma(operands) | Command::IotinvalGvma(operands) => {
                self.check_gscid(issuer, operands.gscid)
            }
            Command::IodirInvalDdt(Some(device)) | Command::IodirInvalPdt(device, _) => {
                self.check_device(issuer, PhysicalId(*device))
            }
            // Reaches every VM's devices.
            Command::IodirInvalDdt(None) => self.found(issuer == Issuer::Host),
            // A store to memory would be by physical address.
            Command::IofenceC(fence) => self.found(issuer == Issuer::Host || fence.store.is_none()),
            _ => self.found(false),
        }
    }

    /// Without a GSCID every VM is meant.
    pub(super) fn check_gscid(&mut self, issuer: Issuer, gscid: Option<Gscid>) -> bool {
        let owned = |vm| gscid.is_some_and(|gscid| self.gscids.contains(&(gscid, vm)));
        self.found(match issuer {
            Issuer::Host => true,
            Issuer::Vm(vm) => owned(vm),
        })
    }

    pub(super) fn check_device(&mut self, issuer: Issuer, device: PhysicalId) -> bool {
        self.found(match issuer {
            Issuer::Host => true,
            Issuer::Vm(vm) => self.owner_of(device) == Some(vm),
        })
    }

    fn found(&mut self, legitimate: bool) -> bool {
        self.checked += 1;
        self.violations += u64::from(!legitimate);
        legitimate || self.lenient
    }
}
