//! Who gets a device, and what it brings along.

use riscv_viommu::{Ats, AttachError, Context, DeviceId, DevicePolicy, Gpa, Health, Iova};

use super::World;
use crate::guest::{EMULATED_IDS, IDS, IOVA, IOVA_PAGES};
use crate::host::Who;
use crate::random::Random;
use crate::vm::{MODELS, physical};

impl World {
    /// A device goes to a VM, from whoever has it.
    pub(super) fn give(&mut self, device: usize, who: Who, random: &mut Random) -> &'static str {
        if self.hands[device] == Some(who) && self.vms[who].devices[device].is_some() {
            return "has it";
        }
        self.make_free(device, random);
        let clean = random.percent(60);
        if clean {
            // What the guest itself left stale is gone.
            let _ = self.vms[who].iommu.invalidate_gpa(Gpa::new(0)..=Gpa::new(u64::MAX));
            self.settle(who);
        }
        self.attach(device, who, random);
        if clean {
            self.settle(who);
            self.probe(device, who, random);
        }
        "give"
    }

    /// The device is nobody's, and keeps nothing of whoever had it and used it to the last.
    pub(super) fn make_free(&mut self, device: usize, random: &mut Random) {
        let (mut last_use, resets) = (Random::new(random.bits()), random.percent(20));
        if let Some(holder) = self.hands[device] {
            for _ in 0..6 {
                let _ = self.device(device, &mut last_use);
            }
            self.let_go(device, holder);
        }
        let handle = physical(device);
        if self.dirty[device] || resets {
            self.hardware.reset_function(handle);
            self.dirty[device] = false;
        }
        assert_eq!(self.hardware.kept(handle), [], "{}: device {device} remembers its last owner", self.at());
    }

    /// The host takes a device from a VM, and waits.
    fn let_go(&mut self, device: usize, holder: Who) {
        if let Some(handle) = self.vms[holder].devices[device].take() {
            let _ = self.vms[holder].iommu.detach(handle.device()).unwrap();
        }
        self.settle(holder);
        assert_eq!(self.hands[device], None, "{}: VM {holder} does not let go", self.at());
    }

    pub(super) fn attach(&mut self, device: usize, who: Who, random: &mut Random) {
        let id = DeviceId::truncate(random.pick(&IDS));
        let ats = random.pick(&[Ats::Off, Ats::Translations, Ats::PageRequests, Ats::PageRequests]);
        self.hands[device] = Some(who);
        match self.vms[who].iommu.attach(id, physical(device), DevicePolicy::default().with_ats(ats)) {
            Ok(attached) => {
                self.vms[who].devices[device] = Some(attached.attachment);
                self.handles[who].push(attached.attachment);
                let last = self.last[device].replace((who, self.lives[who]));
                self.figures.handed_over += u64::from(last.is_some_and(|last| last != (who, self.lives[who])));
                self.check(Some(who));
            }
            Err(error) => {
                self.check(Some(who));
                self.hands[device] = None;
                if error == AttachError::NeedsReset {
                    self.reset(who);
                }
            }
        }
    }

    /// Nothing that a device is told is of another time. What comes of it is told nobody, as it could write in tables;
    /// and only one address space is asked for, as a guest may call two by the same PSCID.
    pub(super) fn probe(&mut self, device: usize, who: Who, random: &mut Random) {
        let vm = &self.vms[who];
        let is_good = vm.iommu.health() == Health::Good && vm.iommu.is_gpa_invalidated();
        let updates = match self.hardware.context(physical(device)) {
            Some(Context::FirstStage(stage)) => stage.sade,
            Some(Context::Processes(processes)) => processes.sade,
            _ => false,
        };
        if !is_good || updates || self.hands[device] != Some(who) {
            return;
        }
        let handle = physical(device);
        let process = self.process(device, random);
        for number in 0..IOVA_PAGES {
            let iova = Iova::new(IOVA + number * 0x1000);
            for dma in [
                self.hardware.dma(handle, process, iova, false),
                self.hardware.dma_through_atc(handle, process, iova, false),
            ] {
                assert!(!dma.stale, "{}: device {device}, {process:?}: {dma:?}", self.at());
                self.land(device, dma.access);
                self.figures.probes += 1;
            }
            let _ = self.hardware.take_faults();
        }
    }

    /// The host begins to take a device from a VM.
    pub(super) fn take(&mut self, device: usize, who: Who) -> &'static str {
        if let Some(handle) = self.vms[who].devices[device].take() {
            let _ = self.vms[who].iommu.detach(handle.device()).unwrap();
            self.check(Some(who));
        }
        "take"
    }

    /// A model goes to a VM, or from it.
    pub(super) fn swap_model(&mut self, who: Who, random: &mut Random) -> &'static str {
        let (model, id) = (random.index(MODELS), DeviceId::truncate(random.pick(&EMULATED_IDS)));
        let vm = &mut self.vms[who];
        if let Some(handle) = vm.models[model].take() {
            let _ = vm.iommu.detach(handle.device()).unwrap();
        } else {
            let policy = DevicePolicy::default().with_ats(if vm.ats { Ats::PageRequests } else { Ats::Off });
            vm.models[model] = vm.iommu.attach_emulated(id, policy).ok();
            self.handles[who].extend(vm.models[model]);
        }
        self.check(Some(who));
        "model goes"
    }

    /// A device answers nothing any more, or is reset by the host.
    pub(super) fn device_quirk(&mut self, device: usize, random: &mut Random) -> &'static str {
        let handle = physical(device);
        if random.percent(50) {
            self.hardware.set_unresponsive(handle, true);
            self.dirty[device] = true;
            return "silent";
        }
        let holder = self.hands[device];
        let attached = holder.and_then(|who| self.vms[who].devices[device].map(|handle| (who, handle)));
        if let Some((who, attached)) = attached {
            self.hardware.reset_function(handle);
            let _ = self.vms[who].iommu.device_reset(attached.device());
            self.check(Some(who));
        }
        "device reset"
    }
}
