#!/usr/bin/env python3
"""What .ci/cost counted, held against benches/budgets.toml.

    cost.py --compare FOLDER      fails where an operation costs more than its budget, or one of the two is missing
    cost.py --same FOLDER FOLDER  fails where two runs differ
    cost.py --update FOLDER       writes the budgets, and the table of docs/cost.md
    cost.py --table               prints that table
    cost.py --self-test           changes budgets, and demands that the comparison sees it
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = ROOT / "benches" / "budgets.toml"
PAGE = ROOT / "docs" / "cost.md"
BEGIN, END = "<!-- .ci/cost --table -->\n", "<!-- end -->\n"
# What may be too much or too little, of 100.
TOLERANCE = 3
# What every count has in it: calling an operation.
NOTHING = "nothing"
HEAD = """\
# Instructions of each operation of benches/src/lib.rs, as .ci/cost counted them with this toolchain. With it more than
# {} % above is too much; other toolchains only report. Written by .ci/cost --update.
"""


def fail(message):
    sys.exit(f".ci/cost: {message}")


def toolchain():
    """What compiles the benches; the same instructions are only to be expected of the same."""
    version = subprocess.run(["rustc", "-vV"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(": ", 1) for line in version.splitlines() if ": " in line)
    return {"rustc": version.splitlines()[0], "llvm": fields["LLVM version"], "host": fields["host"]}


def counts(folder):
    """Instructions of each operation, in the order of the list, without those of calling it."""
    names = re.findall(r"^counts::operations::count::(\w+): benchmark$", (folder / "names").read_text(), re.M)
    found = {}
    for file in folder.rglob("summary.json"):
        summary = json.loads(file.read_text())
        [profile] = [profile for profile in summary["profiles"] if profile["tool"] == "Callgrind"]
        found[summary["id"]] = profile["data"]["total"]["metrics"]["Ir"]["values"]["new"]
    if NOTHING not in names or set(names) != set(found):
        fail(f"not every operation was counted, see target/ci-logs/cost-counts.log: {sorted(set(names) ^ set(found))}")
    return {name: found[name] - found[NOTHING] for name in names if name != NOTHING}


def budgets():
    if not BUDGETS.exists():
        fail("there is no benches/budgets.toml: bash .ci/cost --update")
    return tomllib.loads(BUDGETS.read_text())


def compare(counted, wanted, here):
    """What is wrong, and what is only to be said."""
    wrong, said = [], []
    ceilings, is_named = wanted["instructions"], wanted["toolchain"] == here
    if not is_named:
        said.append(f"counted with {' '.join(here.values())}, budgets are of {' '.join(wanted['toolchain'].values())}")
    for name in [*counted, *(name for name in ceilings if name not in counted)]:
        if name not in ceilings:
            wrong.append(f"{name} has no budget: bash .ci/cost --update")
            continue
        if name not in counted:
            wrong.append(f"{name} has a budget, and is no operation: bash .ci/cost --update")
            continue
        count, ceiling = counted[name], ceilings[name]
        line = f"{name}: {count} instructions, budget {ceiling} ({100 * (count - ceiling) / ceiling:+.1f} %)"
        if 100 * count > (100 + TOLERANCE) * ceiling:
            why = ": make it cheaper, or say in the commit why it may cost more and run bash .ci/cost --update"
            (wrong if is_named else said).append(line + (why if is_named else ""))
        elif 100 * count < (100 - TOLERANCE) * ceiling:
            said.append(line + (": lower the budget with bash .ci/cost --update" if is_named else ""))
    return wrong, said


def times(name):
    """How many things an operation does: the number its name ends in."""
    number = re.search(r"_(\d+)(_of_\d+)?$", name)
    return int(number[1]) if number else 1


def table(wanted):
    lines = ["| operation | instructions | each |", "|---|---:|---:|"]
    for name, count in wanted["instructions"].items():
        each = f"{count / times(name):,.1f}" if times(name) > 1 else ""
        lines.append(f"| `{name}` | {count:,} | {each} |")
    rustc, llvm, host = wanted["toolchain"].values()
    return "\n".join([f"{rustc}, LLVM {llvm}, {host}:", "", *lines, ""])


def page(wanted):
    """docs/cost.md with this table in it."""
    text = PAGE.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        fail(f"docs/cost.md has no place for the table: a line {BEGIN.strip()} and a line {END.strip()}")
    return text[: text.index(BEGIN)] + BEGIN + table(wanted) + text[text.index(END) :]


def update(counted):
    wanted = {"toolchain": toolchain(), "instructions": counted}
    lines = [HEAD.format(TOLERANCE), "[toolchain]"]
    lines += [f'{key} = "{value}"' for key, value in wanted["toolchain"].items()]
    lines += ["", "[instructions]", *(f"{name} = {count}" for name, count in counted.items()), ""]
    BUDGETS.write_text("\n".join(lines))
    PAGE.write_text(page(wanted))


def check(counted):
    wanted = budgets()
    wrong, said = compare(counted, wanted, toolchain())
    print("\n".join(f"   {line}" for line in said), end="\n" if said else "")
    if wrong:
        fail("\n".join([f"{len(wrong)} of {len(counted)} operations are not as budgeted:", *wrong]))
    if PAGE.read_text() != page(wanted):
        fail("the table of docs/cost.md is not that of benches/budgets.toml: bash .ci/cost --update")
    print(f"   {len(counted)} operations within their budgets")


def same(first, second):
    differ = [f"{name}: {first[name]} and {second.get(name)}" for name in first if first[name] != second.get(name)]
    if differ:
        fail("\n".join(["two runs differ: see to it that benches/src is the same each time", *differ]))
    print(f"   {len(first)} counts are the same to the instruction on two runs")


def self_test():
    wanted = budgets()
    here, real = wanted["toolchain"], wanted["instructions"]
    name = max(real, key=real.get)

    def outcome(instructions, toolchain=here):
        wrong, said = compare(real, {"toolchain": toolchain, "instructions": instructions}, here)
        return len(wrong), len(said)

    for what, got, expected in [
        ("the budgets themselves", outcome(real), (0, 0)),
        ("a budget that is lowered by 10 %", outcome(real | {name: real[name] * 9 // 10}), (1, 0)),
        ("a budget that is lowered by 2 %", outcome(real | {name: real[name] * 98 // 100}), (0, 0)),
        ("a budget that is raised by 10 %", outcome(real | {name: real[name] * 11 // 10}), (0, 1)),
        ("another toolchain", outcome(real | {name: real[name] * 9 // 10}, here | {"llvm": "0"}), (0, 2)),
        ("an operation without a budget", outcome({key: real[key] for key in real if key != name}), (1, 0)),
        ("a budget without an operation", outcome(real | {"none": 1}), (1, 0)),
    ]:
        if got != expected:
            fail(f"self-test: {what}: {got[0]} wrong and {got[1]} said, not {expected[0]} and {expected[1]}")


def main():
    match sys.argv[1:]:
        case ["--compare", folder]:
            check(counts(Path(folder)))
        case ["--same", first, second]:
            same(counts(Path(first)), counts(Path(second)))
        case ["--update", folder]:
            update(counts(Path(folder)))
        case ["--table"]:
            print(table(budgets()), end="")
        case ["--self-test"]:
            self_test()
        case _:
            sys.exit(__doc__)


main()
