//! What devices and their models do, and who is told of it.

use riscv_viommu::mock::Access;
use riscv_viommu::{Context, Gpa, Iova, PageRequest, PageRequestOutcome, Prgi, ProcessId, Request, ResponseCode};

use super::World;
use crate::guest::{IOVA, IOVA_PAGES, PROCESSES_THERE};
use crate::host::{PAGES, Who, owner, page};
use crate::random::Random;
use crate::vm::{DEVICES, MODELS, physical};

impl World {
    /// A device makes an access, and the host tells whoever has it what came of it.
    pub(super) fn device(&mut self, device: usize, random: &mut Random) -> &'static str {
        let (handle, write) = (physical(device), random.percent(40));
        let iova = Iova::new(IOVA + random.below(IOVA_PAGES) * 0x1000);
        // With a second stage alone it names memory itself, the other's too.
        let named = Gpa::new(page(random.index(2), random.below(PAGES)));
        let process = self.process(device, random);
        let access = match random.below(9) {
            0..3 => self.hardware.dma(handle, process, iova, write).access,
            3 => self.hardware.dma(handle, process, Iova::new(named.get()), write).access,
            4 | 5 => self.hardware.dma_through_atc(handle, process, iova, write).access,
            6 => self.hardware.translated(handle, process, named, write),
            _ => return self.page_request(device, process, random),
        };
        self.land(device, access);
        self.drain_faults(random.percent(25));
        "device"
    }

    /// A process, where the device has any, or not.
    pub(super) fn process(&self, device: usize, random: &mut Random) -> Option<ProcessId> {
        let has_processes = matches!(self.hardware.context(physical(device)), Some(Context::Processes(_)));
        let number = ProcessId::truncate(u32::try_from(random.below(PROCESSES_THERE + 1)).unwrap());
        (has_processes == random.percent(85)).then_some(number)
    }

    /// Where an access of a device ends: the second stage is that of whom hardware takes the device for.
    pub(super) fn land(&mut self, device: usize, access: Access) {
        let Access::Translated(at) = access else {
            assert!(!matches!(access, Access::Unchecked(_)), "{}: nothing checks {access:?}", self.at());
            return;
        };
        let met = self.hardware.meets(physical(device));
        let stage = (0..2).find(|&who| Some(self.vms[who].gscid) == met);
        if owner(at.get()) != stage {
            self.figures.kept_out += 1;
            return;
        }
        self.figures.dma += 1;
        assert_eq!(stage, self.hands[device], "{}: device {device} reaches {at}", self.at());
    }

    /// The host takes what is in the physical fault queue, and tells now or later.
    pub(super) fn drain_faults(&mut self, later: bool) {
        for (from, fault) in self.hardware.take_faults() {
            let device = (0..DEVICES).find(|&index| physical(index) == from).unwrap();
            let Some(who) = self.hands[device] else { continue };
            let Some(handle) = self.vms[who].devices[device] else { continue };
            if later {
                self.late[who].push((handle, fault));
            } else {
                let _ = self.vms[who].iommu.report_fault(handle, &fault);
            }
            self.check(Some(who));
        }
    }

    pub(super) fn page_request(
        &mut self,
        device: usize,
        process: Option<ProcessId>,
        random: &mut Random,
    ) -> &'static str {
        let group = Prgi::truncate(u32::try_from(random.below(3)).unwrap());
        let iova = Iova::new(IOVA + random.below(2 * IOVA_PAGES) * 0x1000);
        let request = PageRequest::read(iova, group).with_last(random.percent(60));
        let request = process.map_or(request, |process| request.with_process(process, false));
        let _ = self.hardware.page_request(physical(device), &request);
        for (from, request) in self.hardware.take_page_requests() {
            let who = self.hands[device].unwrap();
            assert_eq!(from, physical(device), "{}: nobody else asked", self.at());
            let code = match self.vms[who].devices[device] {
                None => ResponseCode::InvalidRequest,
                Some(handle) => match self.vms[who].iommu.report_page_request(handle, &request) {
                    PageRequestOutcome::Queued => {
                        let group = (process, group);
                        self.groups[device].extend(request.payload.wants_response().then_some(group));
                        continue;
                    }
                    PageRequestOutcome::HostPage => ResponseCode::Success,
                    PageRequestOutcome::Discarded(Some(response)) => response.code,
                    _ => ResponseCode::InvalidRequest,
                },
            };
            if request.payload.wants_response() {
                self.hardware.answer_page_request(from, &request, code);
            }
        }
        self.check(self.hands[device]);
        self.drain_faults(false);
        let _ = self.hardware.take_page_responses(physical(device));
        "page request"
    }

    /// The model of a device makes an access.
    pub(super) fn model(&mut self, who: Who, random: &mut Random) -> &'static str {
        let vm = &mut self.vms[who];
        let Some(handle) = vm.models[random.index(MODELS)] else { return "no model" };
        let iova = Iova::new(IOVA + random.below(IOVA_PAGES) * 0x1000);
        let request = if random.percent(50) { Request::read(handle, iova) } else { Request::write(handle, iova) };
        let process = ProcessId::truncate(u32::try_from(random.below(PROCESSES_THERE)).unwrap());
        let request = if random.percent(40) { request.with_process(process, false) } else { request };
        if random.percent(20) {
            let request = PageRequest::read(iova, Prgi::truncate(1)).with_last(true);
            let _ = vm.iommu.page_request(handle, &request);
        } else if let Ok(translation) = vm.iommu.translate(&request) {
            let reached = translation.target.address().map(|at| vm.iommu.backend().memory.at(at));
            self.figures.dma += u64::from(reached.is_some_and(|reached| reached.is_ok()));
        }
        self.check(Some(who));
        "model"
    }

    /// The guest did not answer.
    pub(super) fn give_up(&mut self, who: Who, random: &mut Random) -> &'static str {
        let device = random.index(DEVICES);
        let (Some(handle), Some((process, group))) = (self.vms[who].devices[device], self.groups[device].pop()) else {
            return "nothing to give up";
        };
        if let Some(response) = self.vms[who].iommu.page_request_timeout(handle, group, process) {
            let request = PageRequest::read(Iova::new(0), group).with_last(true);
            let request = process.map_or(request, |process| request.with_process(process, false));
            self.hardware.answer_page_request(physical(device), &request, response.code);
        }
        self.check(Some(who));
        "give up"
    }
}
