#!/usr/bin/env python3
"""What .ci/cost counted, held against benches/budgets.toml.

    cost.py --compare FOLDER      fails where an operation costs more than its budget, or one of the two is missing
    cost.py --same FOLDER FOLDER  fails where two runs differ
    cost.py --update FOLDER       writes the budgets, and the table of docs/cost.md
    cost.py --table               prints that table
    cost.py --self-test           changes budgets, and demands that the comparison sees it
"""

import json
import platform
import re
import sys
from pathlib import Path

from budgets import Budgets

ABOUT = "Instructions of each operation of benches/src/lib.rs, as .ci/cost counted them."
# What every count has in it: calling an operation.
NOTHING = "nothing"


def counts(folder):
    """Instructions of each operation, in the order of the list, without those of calling it."""
    names = re.findall(r"^counts::operations::count::(\w+): benchmark$", (folder / "names").read_text(), re.M)
    found = {}
    for file in folder.rglob("summary.json"):
        summary = json.loads(file.read_text())
        [profile] = [profile for profile in summary["profiles"] if profile["tool"] == "Callgrind"]
        found[summary["id"]] = profile["data"]["total"]["metrics"]["Ir"]["values"]["new"]
    if NOTHING not in names or set(names) != set(found):
        COST.fail(f"not every operation was counted, see target/ci-logs/cost-counts.log: {set(names) ^ set(found)}")
    return {name: found[name] - found[NOTHING] for name in names if name != NOTHING}


def times(name):
    """How many things an operation does: the number its name ends in."""
    number = re.search(r"_(\d+)(_of_\d+)?$", name)
    return int(number[1]) if number else 1


def table(instructions):
    yield "| operation | instructions | each |"
    yield "|---|---:|---:|"
    for name, count in instructions.items():
        each = f"{count / times(name):,.1f}" if times(name) > 1 else ""
        yield f"| `{name}` | {count:,} | {each} |"


def same(first, second):
    differ = [f"{name}: {first[name]} and {second.get(name)}" for name in first if first[name] != second.get(name)]
    if differ:
        COST.fail("\n".join(["two runs differ: see to it that benches/src is the same each time", *differ]))
    print(f"   {len(first)} counts are the same to the instruction on two runs")


def copies():
    """What copies memory, which is counted with the crate: the C library, by what the processor can do."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    chosen = [flag for flag in ["avx2", "erms", "fsrm"] if flags and flag in flags[1].split()]
    return {"libc": " ".join(platform.libc_ver()), "processor": " ".join([platform.machine(), *chosen])}


COST = Budgets(".ci/cost", "benches/budgets.toml", "docs/cost.md", "instructions", ABOUT, table, copies)


def main():
    match sys.argv[1:]:
        case ["--compare", folder]:
            COST.check(counts(Path(folder)))
        case ["--same", first, second]:
            same(counts(Path(first)), counts(Path(second)))
        case ["--update", folder]:
            COST.update(counts(Path(folder)))
        case ["--table"]:
            print(COST.whole_table(COST.read()), end="")
        case ["--self-test"]:
            COST.self_test()
        case _:
            sys.exit(__doc__)


main()
