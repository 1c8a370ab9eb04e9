"""Every model module of mlx-lm cut at every boundary: writes docs/architectures.json, and docs/architectures.md of it.

A tiny instance of each module with random weights is proven by graph and held against the unsplit model bit for bit;
then it goes through the product: split to disk, loaded by engines and served (`--product` runs only that).
What is in the JSON file with the installed mlx and mlx-lm is not run again, so that a run can be interrupted.

    python benchmarks/architectures.py [--modules llama,gemma3n] [--again] [--product] [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "architectures.json"
DOCUMENT = ROOT / "docs" / "architectures.md"

_HEAD = """# Architectures

{headline}

This file is written by `python benchmarks/architectures.py` from `architectures.json`; a test holds the two together.

For each model module of mlx-lm a tiny instance with random float32 weights is cut in two at every layer boundary, and
once in three. Each cut is proven by graph (the chained stages compute what the whole model computes) and by numbers:
every stage runs on a model object whose tensors outside the stage are NaN, everything that crosses goes through bytes,
a prompt of 12 tokens comes in chunks of 7 and 5, six single steps follow, with one sequence and with three. Logits of
every step must equal the unsplit model's bit for bit. Attention windows are 4 to 8 positions, so that all of them move.
A tiny instance takes the branches its configuration takes; `shardhub split` proves the real configuration again.

All of this ran on a CPU. It was not run on Metal.

- **Cuts**: boundaries at which the chain is proven and exact, of those there are.
- **Crosses beside**: what a stage hands on besides hidden states, and at how many boundaries; *grows* means that
  its size grows with the context, so that such a cut costs more the longer the text is.
- **Served**: the same instance through the product: `split` to disk, an engine for each of three stages, real steps.
  Held against mlx-lm on the unsplit folder, log probabilities of the tokens drawn and of the likeliest twenty are
  identical bit for bit: prompts of 1 to 40 ids, sessions forked, parked, sent back, replayed and scored, drafts
  verified; what caches cannot take back is refused.
- **Batch**: what engines do. Up to five sessions of different lengths side by side, which join and leave, give the log
  probabilities of each alone within 1e-3; else why engines take one session a step. The chain's caches do what the
  unsplit model's do bit for bit, and the graph of two merged sequences is proven.
- **8-bit KV**: engines with `--kv-bits 8 --kv-group-size 32` give what mlx-lm gives with such caches; else why they
  refuse to start.
- **Trim**: the caches can go back and on, as if nothing had happened; **by row**: each row of a batch by a number of
  its own. Where a window slides they can until it is full.
- **Snapshot**: what a copy of the caches holds: a fixed part, a part for each position, or both. It shares its
  memory with the original until the next step. In bytes of the tiny instance, all layers, in `architectures.json`.
- **4-bit**: quantised as `mlx_lm.convert` does (affine, group 32), cut in three: proven and exact.

| architecture | cuts | crosses beside | served | batch | 8-bit KV | trim | by row | snapshot | 4-bit | mlx-lm | date |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


_GOOD = ("exact", "right", "refused")
# What a reader is told of a refusal.
_REASONS = (
    (r"A cache of class (\w+) cannot be merged", r"\1"),
    (r"When the model was split", "upstream is wrong"),
    (r"does not get its own \S+ it is off by (\S+) ", r"upstream is wrong by \1"),
    (r"forward fails with sequences side by side: (\w+)", r"upstream raises \1"),
    (r"cannot be traced.*? (\w+Error)", r"upstream raises \1"),
    (r"crosses with a size that differs", "what crosses differs in size"),
    (r"mlx-lm has no quantised form", "no quantised cache"),
    (r"Layers of other stages attend", "K and V shared across stages"),
    (r"mlx-lm's forward does not accept it: \[quantize\]", "its rows are no multiple of 32 here"),
    (r"mlx-lm's forward does not accept it", "upstream's forward does not accept it"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", help="only these, separated by commas")
    parser.add_argument("--again", action="store_true", help="run also what the JSON file has")
    parser.add_argument(
        "--product",
        action="store_true",
        help="run only what goes through engines, of modules whose other facts are there",
    )
    parser.add_argument(
        "--check", action="store_true", help="run nothing; fail if the document is not what the data give"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child.split(","), product=options.product)
        return
    surveyed: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    if options.check:
        if DOCUMENT.read_text() != render(surveyed):
            sys.exit(
                "docs/architectures.md is not what docs/architectures.json gives: python benchmarks/architectures.py"
            )
        return
    sys.path.insert(0, str(ROOT))
    from tests.architectures.matrix import upstream_modules

    installed = {"mlx": version("mlx"), "mlx_lm": version("mlx-lm")}
    everything = upstream_modules()
    chosen = options.modules.split(",") if options.modules else everything
    surveyed = {module: facts for module, facts in surveyed.items() if module in everything}
    today = {"date": datetime.now(UTC).date().isoformat()}
    if not options.product:
        modules = [module for module in chosen if options.again or not _is_current(surveyed.get(module), installed)]
        for done, (module, facts) in enumerate(_surveyed(modules), 1):
            surveyed[module] = facts | installed | today
            DATA.write_text(_json(surveyed))
            _tell(f"{done}/{len(modules)} {module}: {facts['status']} ({facts.get('seconds', 0)} s)")
    exact = [module for module in chosen if surveyed.get(module, {}).get("status") == "exact"]
    modules = [module for module in exact if options.again or "product" not in surveyed[module]]
    for done, (module, facts) in enumerate(_surveyed(modules, product=True), 1):
        uses = facts.get("product") or {"served": {"outcome": "failed", "note": facts["reason"]}}
        surveyed[module] |= {"product": uses} | today
        DATA.write_text(_json(surveyed))
        _tell(f"{done}/{len(modules)} {module}: {_served(surveyed[module])}, batch {_batch(surveyed[module])}")
    DOCUMENT.write_text(render(surveyed))
    print(headline(surveyed))


def headline(surveyed: dict[str, Any]) -> str:
    """One sentence: how many modules are exact, and which are not."""
    exact = [module for module, facts in surveyed.items() if facts["status"] == "exact"]
    served = [module for module in exact if _served(surveyed[module]) == "exact"]
    together = [module for module in served if _batch(surveyed[module]) == "yes"]
    sentence = (
        f"{len(exact)} of {len(surveyed)} model modules of mlx-lm are exact at every boundary; {len(served)} are so "
        f"through engines, {len(together)} of them with sessions side by side"
    )
    others = [
        f"{module} is {facts['status']} ({facts.get('reason') or _worst(facts)})"
        for module, facts in sorted(surveyed.items())
        if facts["status"] != "exact"
    ]
    return "; ".join([sentence, *others]) + "."


def render(surveyed: dict[str, Any]) -> str:
    """The document's text."""
    rows = [_row(module, facts) for module, facts in sorted(surveyed.items(), key=lambda item: item[0].lower())]
    notes = [f"- {module}: {facts['stand_in']}." for module, facts in sorted(surveyed.items()) if facts["stand_in"]]
    tail = "\nReplaced for these runs, because a CPU has no such kernel or upstream needs an optional package:\n\n"
    return (
        _HEAD.format(headline=headline(surveyed))
        + "\n".join(rows)
        + "\n"
        + (tail + "\n".join(notes) + "\n" if notes else "")
    )


def _row(module: str, facts: dict[str, Any]) -> str:
    name = f"{module} \\*" if facts["stand_in"] else module
    checked = [facts["mlx_lm"], facts["date"]]
    if "cuts" not in facts:
        return "| " + " | ".join([name, facts["status"], *[""] * 8, *checked]) + " |"
    in_two = [verdict for cut, verdict in facts["cuts"].items() if "," not in cut]
    good = [verdict for verdict in in_two if verdict["proven"] and verdict["exact"]]
    cells = [name, f"{len(good)} of {len(in_two)}", _crossings(facts)]
    if facts["status"] == "exact":
        quantised = facts["quantised"]
        cells += [_served(facts), _batch(facts), _kv(facts)]
        cells += [_ability(facts[ability]) for ability in ("trim", "trim_rows")]
        cells += [_snapshot(facts), "exact" if quantised["exact"] else quantised["reason"]]
    else:
        cells += [""] * 7
    return "| " + " | ".join([*cells, *checked]) + " |"


def _crossings(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{crossing['what']} at {crossing['cuts']}{' (grows)' if crossing['grows'] else ''}"
        for crossing in facts["crossings"]
    )


def _served(facts: dict[str, Any]) -> str:
    """Whether all uses of engines come out as upstream alone, or what does not."""
    uses = facts.get("product")
    if not uses:
        return "not run"
    bad = [f"{use} {v['outcome']} ({v['note']})" for use, v in uses.items() if v["outcome"] not in _GOOD]
    return "; ".join(bad) or "exact"


def _batch(facts: dict[str, Any]) -> str:
    """Whether engines run sessions side by side, rightly."""
    if any(facts[ability]["exact"] is False for ability in ("batch",)):
        return "CHAIN DIFFERS"
    verdict = facts.get("product", {}).get("batched", {"outcome": "not run", "note": ""})
    return "yes" if verdict["outcome"] == "right" else f"no: {_short(verdict['note'] or verdict['outcome'])}"


def _kv(facts: dict[str, Any]) -> str:
    verdict = facts.get("product", {}).get("kv_bits", {"outcome": "not run", "note": ""})
    return verdict["outcome"] if verdict["outcome"] != "refused" else f"no: {_short(verdict['note'])}"


def _short(note: str) -> str:
    """The reason in a few words."""
    for pattern, words in _REASONS:
        if match := re.search(pattern, note):
            return match.expand(words)
    return note.replace("|", "/")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ability(answer: dict[str, Any]) -> str:
    if answer["exact"] is False:
        return "CHAIN DIFFERS"
    if not answer["supported"]:
        lacking = re.match(r"A cache of class (\w+) cannot", answer["note"])
        return f"no: {lacking[1] if lacking else answer['note']}"
    return "yes" if not answer["note"] or answer["note"].startswith("within") else answer["note"]


def _snapshot(facts: dict[str, Any]) -> str:
    if not facts["snapshot"]["exact"]:
        return "DIFFERS"
    parts = ["fixed"] * bool(facts["fixed_bytes"]) + ["each position"] * bool(facts["bytes_per_position"])
    return " + ".join(parts)


def _worst(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{cut}: {v.get('reason', 'not proven')}" for cut, v in facts.get("cuts", {}).items() if not v["exact"]
    )


def _is_current(facts: dict[str, Any] | None, installed: dict[str, str]) -> bool:
    return facts is not None and all(facts.get(package) == there for package, there in installed.items())


def _json(surveyed: dict[str, Any]) -> str:
    """One module a line, so that a difference can be read."""
    lines = [f"{json.dumps(module)}: {json.dumps(surveyed[module], sort_keys=True)}" for module in sorted(surveyed)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _surveyed(modules: list[str], *, product: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Survey modules in a process of their own, and in another after one that ended it."""
    left = list(modules)
    while left:
        command = [sys.executable, __file__, "--child", ",".join(left), *["--product"] * product]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield left.pop(0), json.loads(line)
        if left:
            reason = f"the process ended with {process.returncode}"
            yield (module := left.pop(0)), {"module": module, "stand_in": None, "status": "crashed", "reason": reason}


def _child(modules: list[str], *, product: bool) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.architectures.survey import serve, survey

    for module in modules:
        print(json.dumps(serve(module) if product else survey(module)), flush=True)


if __name__ == "__main__":
    main()
