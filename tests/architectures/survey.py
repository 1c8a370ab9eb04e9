"""Everything that the table of architectures says about one model module, found by running it."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model

from shardhub.errors import ShardhubError, UnsupportedModel
from shardhub.model.proof import Scenario, prove_chain
from shardhub.model.reach import describe
from tests.architectures import abilities, product
from tests.architectures.matrix import (
    BATCHES,
    CONFIGS,
    LOOPED,
    Specimen,
    Whole,
    boundaries,
    difference,
    random_model,
    reference,
    run,
    token_ids,
)
from tests.architectures.standins import REASONS, standing_in

_QUANTISED = {"group_size": 32, "bits": 4}


def survey(module: str) -> dict[str, Any]:
    """The facts about a module, as the table's JSON holds them."""
    started = time.monotonic()
    facts: dict[str, Any] = {"module": module, "stand_in": REASONS.get(module)}
    with standing_in(module):
        try:
            specimen = Specimen(CONFIGS[module])
        except UnsupportedModel as error:
            return facts | {"status": "refused", "reason": f"{error.what} {error.why}".strip()}
        facts |= {"num_layers": specimen.num_layers, "caches": sorted(set(_cache_classes(specimen)))}
        cuts = _cuts(specimen)
        exact = all(verdict["proven"] and verdict["exact"] for verdict in cuts.values())
        facts |= {"status": "exact" if exact else "not exact", "cuts": cuts, "crossings": _crossings(specimen)}
        if exact:
            whole, chain = Whole(specimen.model), specimen.chain((specimen.num_layers // 2,))
            for ability in (abilities.batch, abilities.trim, abilities.trim_rows, abilities.snapshot):
                facts[ability.__name__] = asdict(ability(whole, chain))
            facts["batch_proof"] = batch_proof(specimen) if facts["batch"]["supported"] else ""
            facts["fixed_bytes"], facts["bytes_per_position"] = abilities.held_bytes(whole)
            facts["quantised"] = _quantised(module)
    return facts | {"seconds": round(time.monotonic() - started, 1)}


def serve(module: str) -> dict[str, Any]:
    """How a module's tiny model does in the product, by use; empty for a module that is refused."""
    facts: dict[str, Any] = {"module": module}
    if module in LOOPED:
        return facts
    with standing_in(module), tempfile.TemporaryDirectory() as folder:
        verdicts = product.serve(CONFIGS[module], random_model(CONFIGS[module]), Path(folder))
    return facts | {"product": {use: asdict(verdict) for use, verdict in verdicts.items()}}


def batch_proof(specimen: Specimen) -> str:
    """`proven` if the graph of two merged sequences is the same through three stages, otherwise the reason."""
    try:
        prove_chain(specimen.blueprint, specimen.anatomy, specimen.cuts(specimen.thirds), Scenario.MERGED)
    except ShardhubError as error:
        return _said(error)
    return "proven"


def _cuts(specimen: Specimen) -> dict[str, dict[str, Any]]:
    """For each cut, by its positions: whether it is proven by graph and exact by numbers, and if not, the reason."""
    expected = {batch: reference(specimen, batch) for batch in BATCHES}
    by_cut: dict[str, dict[str, Any]] = {}
    for positions in boundaries(specimen):
        verdict: dict[str, Any] = {"proven": False, "exact": False}
        by_cut[",".join(map(str, positions))] = verdict
        try:
            verdict["proven"] = specimen.is_proven(positions)
            chain = specimen.chain(positions)
            off = [difference(run(chain, token_ids(batch)), expected[batch]) for batch in BATCHES]
        except Exception as error:  # noqa: BLE001 - one cut must not end the table
            verdict["reason"] = _said(error)
        else:
            verdict["exact"] = not any(off)
            if any(off):
                verdict["reason"] = f"off by {max(off):.2g}"
    return by_cut


def _crossings(specimen: Specimen) -> list[dict[str, Any]]:
    """What crosses some cut beside the hidden states: name, shape, whether it grows with the context, how many cuts."""
    counts: dict[tuple[str, str, bool], int] = {}
    for position in range(1, specimen.num_layers):
        (_, tail) = specimen.cuts((position,))
        labels = {
            (label, str(crossing.dtype), crossing.grows)
            for crossing in describe(tail.crossings_in, specimen.anatomy)
            if (label := _label(crossing.name, position - 1)) is not None
        }
        for key in labels:
            counts[key] = counts.get(key, 0) + 1
    return [
        {"what": what, "dtype": dtype, "grows": grows, "cuts": cuts}
        for (what, dtype, grows), cuts in sorted(counts.items())
    ]


def _label(name: str, last: int) -> str | None:
    """The label of a crossing, without its layer; None for the hidden states of the layer before the cut."""
    _, layer, *rest = name.split(".")
    if rest[:1] == ["cache"]:
        return "new K and V for a later layer"
    if rest in ([], ["0"]):
        return None if int(layer) == last else "output of an earlier layer"
    path = ".".join(re.sub(r"^(kwargs|args)$", "", part) for part in rest).strip(".")
    return f"output {path}" if path[:1].isdigit() else path


def _cache_classes(specimen: Specimen) -> Iterator[str]:
    for entry in Whole(specimen.model).new_caches()[0].view:
        parts = getattr(entry, "caches", None)
        names = [type(part).__name__ for part in parts or [entry]]
        yield f"[{', '.join(names)}]" if parts else names[0]


def _quantised(module: str) -> dict[str, Any]:
    """The tiny model in 4 bits as mlx_lm.convert makes it, cut in three: proven, and exact for one sequence."""
    try:
        model = random_model(CONFIGS[module])
        with redirect_stdout(StringIO()):
            model, config = quantize_model(model, dict(CONFIGS[module]), **_QUANTISED)
    except Exception as error:  # noqa: BLE001 - some architectures define quantised parts that their shapes forbid
        return {"exact": False, "reason": f"upstream cannot quantise it: {_said(error)}"}
    if not any(name.endswith(".scales") for name, _ in _flat(model)):
        return {"exact": False, "reason": "nothing in it can be quantised"}
    try:
        logits = run(Whole(model), token_ids(1))
    except Exception as error:  # noqa: BLE001 - as above
        return {"exact": False, "reason": f"upstream cannot run it: {_said(error)}"}
    try:
        specimen = Specimen(config, model)
        proven = specimen.is_proven(specimen.thirds)
        same = difference(run(specimen.chain(specimen.thirds), token_ids(1)), logits) == 0
    except ShardhubError as error:
        return {"exact": False, "reason": _said(error)}
    return {"exact": proven and same, "reason": "" if proven and same else "not exact"}


def _flat(model: Any) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = tree_flatten(model.parameters())
    return leaves


def _said(error: Exception) -> str:
    if isinstance(error, ShardhubError):
        return f"{error.what} {error.why}".strip()
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
