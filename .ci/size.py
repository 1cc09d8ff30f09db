#!/usr/bin/env python3
"""What .ci/size measured, held against .ci/size.toml.

    size.py --compare STATE PROFILE=PROGRAM...  fails where something takes more than its budget
    size.py --update STATE PROFILE=PROGRAM...   writes the budgets, and the table of docs/size.md
    size.py --table                             prints that table
    size.py --self-test                         changes budgets, and demands that the comparison sees it
"""

import collections
import re
import struct
import sys
from pathlib import Path

import no_panic
from budgets import Budgets

ABOUT = "Bytes of state, code and stack, as .ci/size measured them."
# 16 devices and no IOATC fit into a page.
MINIMAL, PAGE = "VIommu<_, 16, 1, 0, 1, 0>", 4096
DEFAULT = "VIommu<_, 16, 16, 0, 2, 8>"
ONE_MORE = {
    "DEVICES": "VIommu<_, 17, 16, 0, 2, 8>",
    "BATCH": "VIommu<_, 16, 17, 0, 2, 8>",
    "CACHE": "VIommu<_, 16, 16, 1, 2, 8>",
    "ITAGS": "VIommu<_, 16, 16, 0, 3, 8>",
    "GROUPS": "VIommu<_, 16, 16, 0, 2, 9>",
}
NEW = "riscv_viommu::viommu::VIommu::new"


def state(file):
    """A line for each type: its bytes, and what it is."""
    return {name: int(size) for size, name in (line.split(" ", 1) for line in file.read_text().splitlines())}


def sections(program):
    """Offset in the file and length of each section."""
    line = re.compile(r"\s*\[\s*\d+\]\s+(\S+)\s+\S+\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)\s")
    found = (line.match(text) for text in no_panic.lines("readelf", "-SW", program))
    return {match[1]: (int(match[2], 16), int(match[3], 16)) for match in found if match}


def frames(program):
    """Bytes of stack of each function, by address: 8 bytes, and a number of 7 bits a byte."""
    offset, length = sections(program)[".stack_sizes"]
    data, at, found = Path(program).read_bytes()[offset : offset + length], 0, {}
    while at < length:
        (address,) = struct.unpack_from("<Q", data, at)
        at, shift, size = at + 8, 0, 0
        while True:
            byte = data[at]
            size, shift, at = size | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                break
        found[address] = size
    return found


def deepest(program):
    """The path from a call of the host's on which most stack is taken: functions of the crate and below it."""
    names, sizes = no_panic.functions(program), frames(program)
    callees = collections.defaultdict(set)
    for callee, places in no_panic.references(program, names).items():
        for _, caller in places:
            callees[caller].add(callee)
    known, open_calls = {}, []

    def path(function):
        if function in open_calls:
            SIZE.fail(f"{names[function]} calls itself: the stack it takes has no bound")
        if function not in known:
            open_calls.append(function)
            below = max((path(callee) for callee in callees[function]), default=(0, []))
            open_calls.pop()
            # What was written without the compiler, or compiled before, has no entry: what copies and clears memory.
            if function not in sizes and no_panic.is_own(names[function]):
                SIZE.fail(f"{names[function]} has no entry in .stack_sizes")
            known[function] = sizes.get(function, 0) + below[0], [function, *below[1]]
        return known[function]

    # `new` has the whole state on its stack, where it is not made part of its caller.
    own = [address for address, name in names.items() if no_panic.is_own(name) and short(name) != NEW]
    if not own:
        SIZE.fail(f"{program} has nothing of the crate: nothing was measured")
    size, functions = max(path(function) for function in own)
    return size, [(sizes.get(function, 0), names[function]) for function in functions]


def short(name):
    """Without the types it is about."""
    name = name.replace("->", "")
    while (less := re.sub(r"(?<=\w)(?:::)?<[^<>]*>|<impl [^<>]*>::", "", name)) != name:
        name = less
    return re.sub(r"<([^<>]*?)(?: as [^<>]*)?>", r"\1", name)


def measure(file, programs):
    found = {f"state of `{name}`": size for name, size in state(file).items()}
    if found[f"state of `{MINIMAL}`"] > PAGE:
        SIZE.fail(f"{MINIMAL} takes {found[f'state of `{MINIMAL}`']} bytes; {PAGE} are promised in docs/size.md")
    for given in programs:
        profile, program = given.split("=", 1)
        level = {"release": "3", "small": '"s"'}[profile]
        found[f"code, opt-level = {level}".replace('"', "'")] = sections(program)[".text"][1]
        size, path = deepest(program)
        found[f"stack, opt-level = {level}".replace('"', "'")] = size
        print(f"   deepest path, opt-level = {level}: {size} bytes")
        for frame, name in path:
            print(f"      {frame:5} {short(name)}")
    return found


def table(sizes):
    yield "| what | bytes |"
    yield "|---|---:|"
    for name, size in sizes.items():
        yield f"| {name} | {size:,} |"
    yield from ("", "| one more of | bytes |", "|---|---:|")
    for parameter, more in ONE_MORE.items():
        yield f"| `{parameter}` | {sizes[f'state of `{more}`'] - sizes[f'state of `{DEFAULT}`']:,} |"


SIZE = Budgets(".ci/size", ".ci/size.toml", "docs/size.md", "bytes", ABOUT, table)


def main():
    match sys.argv[1:]:
        case ["--compare", file, *programs]:
            SIZE.check(measure(Path(file), programs))
        case ["--update", file, *programs]:
            SIZE.update(measure(Path(file), programs))
        case ["--table"]:
            print(SIZE.whole_table(SIZE.read()), end="")
        case ["--self-test"]:
            SIZE.self_test()
        case _:
            sys.exit(__doc__)


main()
