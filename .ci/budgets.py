"""Figures held against a file of budgets, and shown in a page: what .ci/cost.py and .ci/size.py share."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What may be too much or too little, of 100.
TOLERANCE = 3
HEAD = """\
# {}
# With this toolchain more than {} % above is too much; other toolchains only report. Written by {} --update.
"""


def toolchain():
    """What compiles; the same figures are only to be expected of the same."""
    version = subprocess.run(["rustc", "-vV"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(": ", 1) for line in version.splitlines() if ": " in line)
    return {"rustc": version.splitlines()[0], "llvm": f"LLVM {fields['LLVM version']}", "host": fields["host"]}


class Budgets:
    """`unit` names the figures, in the file and in messages; `about` says what they are; `table` shows them; `besides`
    is what they depend on beside the compiler."""

    def __init__(self, tool, file, page, unit, about, table, besides=dict):
        self.tool, self.unit, self.about, self.table, self.besides = tool, unit, about, table, besides
        self.file, self.page = ROOT / file, ROOT / page

    def fail(self, message):
        sys.exit(f"{self.tool}: {message}")

    def read(self):
        if not self.file.exists():
            self.fail(f"there is no {self.file.relative_to(ROOT)}: bash {self.tool} --update")
        return tomllib.loads(self.file.read_text())

    def compare(self, counted, wanted, here):
        """What is wrong, and what is only to be said."""
        wrong, said = [], []
        ceilings, is_named = wanted[self.unit], wanted["toolchain"] == here
        if not is_named:
            said.append(f"with {' '.join(here.values())}; budgets are of {' '.join(wanted['toolchain'].values())}")
        for name in [*counted, *(name for name in ceilings if name not in counted)]:
            if name not in ceilings:
                wrong.append(f"{name} has no budget: bash {self.tool} --update")
                continue
            if name not in counted:
                wrong.append(f"{name} has a budget, and there is no such thing: bash {self.tool} --update")
                continue
            count, ceiling = counted[name], ceilings[name]
            line = f"{name}: {count} {self.unit}, budget {ceiling} ({100 * (count - ceiling) / ceiling:+.1f} %)"
            if 100 * count > (100 + TOLERANCE) * ceiling:
                why = f": make it less, or say in the commit why it may be more and run bash {self.tool} --update"
                (wrong if is_named else said).append(line + (why if is_named else ""))
            elif 100 * count < (100 - TOLERANCE) * ceiling:
                said.append(line + (f": lower the budget with bash {self.tool} --update" if is_named else ""))
        return wrong, said

    def whole_page(self, wanted):
        """The page with this table in it."""
        begin, end = f"<!-- {self.tool} --table -->\n", "<!-- end -->\n"
        text = self.page.read_text()
        if text.count(begin) != 1 or text.count(end) != 1:
            self.fail(f"{self.page.name} has no place for the table: a line {begin.strip()} and a line {end.strip()}")
        return text[: text.index(begin)] + begin + self.whole_table(wanted) + text[text.index(end) :]

    def whole_table(self, wanted):
        return "\n".join([f"{', '.join(wanted['toolchain'].values())}:", "", *self.table(wanted[self.unit]), ""])

    def update(self, counted):
        wanted = {"toolchain": toolchain() | self.besides(), self.unit: counted}
        lines = [HEAD.format(self.about, TOLERANCE, self.tool), "[toolchain]"]
        lines += [f'{key} = "{value}"' for key, value in wanted["toolchain"].items()]
        lines += ["", f"[{self.unit}]", *(f'"{name}" = {count}' for name, count in counted.items()), ""]
        self.file.write_text("\n".join(lines))
        self.page.write_text(self.whole_page(wanted))

    def check(self, counted):
        wanted = self.read()
        wrong, said = self.compare(counted, wanted, toolchain() | self.besides())
        print("\n".join(f"   {line}" for line in said), end="\n" if said else "")
        if wrong:
            self.fail("\n".join([f"{len(wrong)} of {len(counted)} figures are not as budgeted:", *wrong]))
        if self.page.read_text() != self.whole_page(wanted):
            self.fail(f"the table of {self.page.name} is not that of {self.file.name}: bash {self.tool} --update")
        print(f"   {len(counted)} figures within their budgets")

    def self_test(self):
        """Changes budgets, and demands that the comparison sees it."""
        wanted = self.read()
        here, real = wanted["toolchain"], wanted[self.unit]
        name = max(real, key=real.get)

        def outcome(budgets, toolchain=here):
            wrong, said = self.compare(real, {"toolchain": toolchain, self.unit: budgets}, here)
            return len(wrong), len(said)

        for what, got, expected in [
            ("the budgets themselves", outcome(real), (0, 0)),
            ("a budget that is lowered by 10 %", outcome(real | {name: real[name] * 9 // 10}), (1, 0)),
            ("a budget that is lowered by 2 %", outcome(real | {name: real[name] * 98 // 100}), (0, 0)),
            ("a budget that is raised by 10 %", outcome(real | {name: real[name] * 11 // 10}), (0, 1)),
            ("another toolchain", outcome(real | {name: real[name] * 9 // 10}, here | {"llvm": "0"}), (0, 2)),
            ("a figure without a budget", outcome({key: real[key] for key in real if key != name}), (1, 0)),
            ("a budget without a figure", outcome(real | {"none": 1}), (1, 0)),
        ]:
            if got != expected:
                self.fail(f"self-test: {what}: {got[0]} wrong and {got[1]} said, not {expected[0]} and {expected[1]}")
