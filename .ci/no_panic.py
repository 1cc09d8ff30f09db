#!/usr/bin/env python3
"""no_panic.py PROGRAM SOURCE: what of the crate is in a program linked with --emit-relocs, and how it reaches a panic.

Prints the probes that SOURCE names and the functions of the crate, and fails, naming a way to it, where the program has
the function that every panic ends in. Fails too where SOURCE leaves a method of `VIommu` out.
"""

import bisect
import collections
import re
import subprocess
import sys
from pathlib import Path

END = re.compile(r"rust_begin_unwind|panic_impl|core::panicking::")


def lines(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def is_own(name):
    return "riscv_viommu::" in name and not name.startswith(("no_panic_probe::", "<no_panic_probe::"))


def functions(program):
    """The functions by address, with their names as one reads them."""
    found = {}
    for line in lines("readelf", "-sW", program):
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[3] == "FUNC" and fields[6] != "UND":
            found[int(fields[1], 16)] = fields[7]
    # Without the hashes of the crates.
    readable = (re.sub(r"\[[0-9a-f]+\]", "", name) for name in lines("c++filt", text="\n".join(found.values())))
    return dict(sorted(zip(found, readable, strict=True)))


def references(program, by_address):
    """Who refers to each function: the place and the function it is in."""
    starts = list(by_address)
    to = collections.defaultdict(list)
    for line in lines("readelf", "-rW", program):
        fields = line.split()
        if len(fields) < 5 or not fields[2].startswith("R_RISCV") or not re.fullmatch("[0-9a-f]{16}", fields[0]):
            continue
        at, callee = int(fields[0], 16), int(fields[3], 16)
        index = bisect.bisect_right(starts, at) - 1
        if index >= 0 and callee in by_address and callee != starts[index]:
            to[callee].append((at, starts[index]))
    return to


def places(program, panics, to, by_address):
    """What code of the crate calls to panic, and the lines that do, those they are inlined into last."""
    seen, queue = set(panics), collections.deque(panics)
    while queue:
        callee = queue.popleft()
        for at, caller in to[callee]:
            if "riscv_viommu::" in by_address[caller] or "no_panic_probe::" in by_address[caller]:
                way = lines("addr2line", "-ie", program, hex(at))
                own = (re.search(r"/((?:src|\.ci)/[^/].*)", place) for place in way if "/library/" not in place)
                yield by_address[callee], [place[1] for place in own if place and "heapless" not in place.string]
            elif caller not in seen:
                seen.add(caller)
                queue.append(caller)


def methods(source):
    """The public methods of `VIommu`, and of what they return, in the crate that SOURCE is in."""
    src = Path(source).resolve().parents[3] / "src"
    files = [src / "viommu.rs", *sorted((src / "viommu").glob("*.rs"))]
    of_iommu = re.compile(r"\n    VIommu<B.*?\n}\n|\n    Pieces<'_.*?\n}\n", re.DOTALL)
    bodies = (body for file in files for body in of_iommu.findall(file.read_text()))
    return {name for body in bodies for name in re.findall(r"^    pub (?:const )?fn (\w+)", body, re.MULTILINE)}


def main(program, source):
    by_address = functions(program)
    with open(source, encoding="utf-8") as file:
        text = file.read()
    calls = re.findall(r"^    (\w+) => ", text, re.MULTILINE)
    all_methods = methods(source)
    if left_out := sorted(name for name in all_methods if not re.search(rf"\b{name}\(", text)):
        sys.exit(f"{source} does not call {', '.join(left_out)}: nothing is known of it")
    own = sorted({name for name in by_address.values() if is_own(name)})
    if not calls or not own or not all_methods:
        sys.exit(f"{program} has nothing of the crate: nothing was looked at")
    print("calls:", *calls, sep="\n  ")
    print("functions of the crate that were not made part of their callers:", *own, sep="\n  ")
    panics = [address for address, name in by_address.items() if END.search(name)]
    if panics:
        for callee, way in places(program, panics, references(program, by_address), by_address):
            print(f"{callee}, called at", *way, sep="\n    ", file=sys.stderr)
        sys.exit(f"a panic can be reached: {', '.join(by_address[address] for address in panics)}")
    print(f"no panic in {len(calls)} calls and the {len(own)} functions of the crate behind them")


if __name__ == "__main__":
    main(*sys.argv[1:])
