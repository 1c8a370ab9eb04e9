"""Machines to plan for: how much of a machine's memory a stage may take, and which layers go where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shardhub.errors import DoesNotFit, PlanError, UsageError
from shardhub.manifest import MAX_STAGES
from shardhub.planning.balance import balance
from shardhub.planning.borders import Borders, unchecked
from shardhub.planning.cutting import GROWING_NOTE
from shardhub.planning.plan import ModelCosts, Plan, StagePlan
from shardhub.sizes import parse_size, size_text

# Least share of installed memory that Metal recommends as a working set: two thirds up to 32 GiB, three quarters above.
# Logs of Macs show 10923 MiB of 16 GiB, 16384 of 24, 21845 of 32 and 73728 of 96. Newer systems recommend more: macOS
# 26 12124 MiB of 16 GiB and 110100 of 128. A running node asks Metal for the real figure.
_SMALL_MAC_BYTES = 32 << 30
_SMALL_SHARE = (2, 3)
_LARGE_SHARE = (3, 4)
# Share of that which is kept free for allocator slack, the interpreter and buffers in transit.
HEADROOM_SHARE = (10, 100)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine to plan for.

    Attributes:
        ram_bytes: Installed memory.
    """

    name: str
    ram_bytes: int

    @property
    def working_set_bytes(self) -> int:
        """Bytes that weights, KV cache and buffers may take together."""
        return recommended_working_set(self.ram_bytes) * (HEADROOM_SHARE[1] - HEADROOM_SHARE[0]) // HEADROOM_SHARE[1]


def recommended_working_set(ram_bytes: int) -> int:
    """Bytes that Metal lets a process use on a Mac with this much memory, unless `iogpu.wired_limit_mb` is set there.

    Other machines are planned for alike: a plan does not know their systems.
    """
    share, whole = _SMALL_SHARE if ram_bytes <= _SMALL_MAC_BYTES else _LARGE_SHARE
    return ram_bytes * share // whole


def parse_machine(text: str) -> Machine:
    """Parse `NAME=RAM`, such as `studio=64GB` or `mini=16GiB`; a plain number is in GB.

    Raises:
        PlanError: The text has another form.
    """
    name, equals, ram = text.partition("=")
    refused = PlanError(
        f"`machines` {text[:80]!r} is not NAME=RAM.",
        why="RAM is a positive number with GB, GiB, MB, MiB, TB, TiB or nothing (GB); "
        "a name has letters, digits, '.', '_' and '-'.",
        hint="Write for instance: `machines` studio=64GB `machines` mini=16GB",
    )
    if not equals or not _NAME.fullmatch(name.strip()):
        raise refused
    try:
        return Machine(name=name.strip(), ram_bytes=parse_size(ram))
    except UsageError as error:
        raise refused from error


def cut_for_machines(
    costs: ModelCosts, machines: Sequence[Machine], *, context: int, borders: Borders | None = None
) -> Plan:
    """Cut so that every stage fits its machine and the slowest stage is as fast as possible.

    The first machine gets the first layers. A machine that is too small for any layer, or for which none is left, is
    left out, and a note says so. If one machine fits the whole model, the first note says that. Cuts where what
    crosses grows with the context are used only if there is no alternative, and a note says so.

    Args:
        costs: The model's costs.
        machines: Machines in the order of the stages.
        context: Positions per session.
        borders: Where the model can be cut; None allows every cut.

    Raises:
        PlanError: There are no machines, two have the same name, or `context` is below 1.
        DoesNotFit: The model does not fit the machines.
    """
    _check_names(machines)
    if context < 1:
        raise PlanError(f"A context cannot have {context} positions.", hint="Give `context` 1 or more.")
    num = costs.num_layers
    reads = list(accumulate((layer.read_bytes for layer in costs.layers), initial=0))
    held = list(accumulate((layer.size_bytes + layer.kv_bytes(context) for layer in costs.layers), initial=0))
    budgets = [_budget(machine, costs) for machine in machines]

    def read_bytes(start: int, stop: int) -> int:
        return reads[stop] - reads[start] + (costs.head_bytes if stop == num else 0)

    def fits(index: int, start: int, stop: int) -> bool:
        first, last = start == 0, stop == num
        ends = first * costs.embedding_bytes + last * costs.head_bytes - (first and last) * costs.tied_bytes
        return held[stop] - held[start] + ends <= budgets[index]

    borders = borders or unchecked(num)
    ranges = None
    for grows in (False, True):
        cuts = borders.possible if grows else borders.steady
        for may_skip in (False, True):
            ranges = ranges or balance(
                num,
                len(machines),
                read_bytes,
                cuts=cuts,
                fits=fits,
                may_skip=may_skip,
                toll=borders.toll,
                toll_first=grows,
            )
    if ranges is None:
        raise _does_not_fit(costs, machines, budgets, context, len(borders.possible))
    used = {part.index for part in ranges}
    notes = [
        f"The whole model fits on {machine.name} alone: splitting it will be slower."
        for index, machine in enumerate(machines)
        if fits(index, 0, num)
    ][:1]
    notes += [
        f"{machine.name} is left out: in this order of machines, it cannot be given any layers."
        for index, machine in enumerate(machines)
        if index not in used
    ]
    if any(part.start not in (0, *borders.steady) for part in ranges):
        notes.append(f"Stages for these machines {GROWING_NOTE}")
    stages = tuple(
        StagePlan(
            start=part.start,
            stop=part.stop,
            machine=machines[part.index].name,
            budget_bytes=budgets[part.index],
        )
        for part in ranges
    )
    return borders.check(Plan(num_layers=num, stages=stages, notes=(*notes, *costs.notes)))


def _budget(machine: Machine, costs: ModelCosts) -> int:
    """Bytes that weights and KV cache may take on a machine."""
    return max(0, machine.working_set_bytes - costs.prefill_bytes)


def _check_names(machines: Sequence[Machine]) -> None:
    if not machines:
        raise PlanError("No machine was given to plan for.", hint="Give at least one, such as `machines` studio=64GB")
    if len(machines) > MAX_STAGES:
        raise PlanError(f"{len(machines)} machines are too many.", why=f"A plan has at most {MAX_STAGES} stages.")
    names = [machine.name for machine in machines]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise PlanError(f"The machine {twice!r} is named twice.", hint="Give each machine a name of its own.")


def _does_not_fit(
    costs: ModelCosts, machines: Sequence[Machine], budgets: Sequence[int], context: int, num_cuts: int
) -> DoesNotFit:
    num = costs.num_layers
    weights, kv = costs.size_bytes(0, num), costs.kv_bytes(0, num, context)
    need = weights + kv + (costs.tied_bytes if len(machines) > 1 else 0)
    have = sum(budgets)
    each = ", ".join(
        f"{machine.name} {size_text(budget)} of {size_text(machine.ram_bytes)}"
        for machine, budget in zip(machines[:8], budgets[:8], strict=True)
    )
    each += f" and {len(machines) - 8} more" if len(machines) > 8 else ""
    lacking = f"{size_text(need - have)} more is needed"
    if have >= need:
        lacking = f"together that is enough, but it does not fit with any cut at the {num_cuts} possible layer borders"
    return DoesNotFit(
        f"The model does not fit on {len(machines)} machine{'s' if len(machines) > 1 else ''}.",
        why=f"It needs {size_text(weights)} of weights and {size_text(kv)} of KV for {context} positions, "
        f"{size_text(need)} in all. Available: {each}; {lacking}.",
        hint="Add a machine, shorten `context`, or quantise the model to fewer bits.",
    )
