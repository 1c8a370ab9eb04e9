"""The verdict on every configuration under the first mlx-lm on the path: one JSON line for each module on stdout.

PYTHONPATH=FOLDER:. python -m tests.architectures.upstream_report
"""

from __future__ import annotations

import json

import mlx_lm

from shardhub.errors import ProofFailed, UnsupportedModel
from tests.architectures.config_reads import module_reads
from tests.architectures.matrix import CONFIGS, Specimen, upstream_modules
from tests.architectures.standins import standing_in


def verdict(module: str) -> tuple[str, str]:
    """`proven`, `refused`, `unproven` or `failed` for a cut in three, and the reason."""
    try:
        with standing_in(module):
            specimen = Specimen(CONFIGS[module])
            specimen.prove(specimen.thirds)
    except ProofFailed as error:
        return "unproven", error.why
    except UnsupportedModel as error:
        return "refused", f"{error.what} {error.why}"
    except Exception as error:  # noqa: BLE001 - another upstream may fail anywhere
        return "failed", f"{type(error).__name__}: {error}"
    return "proven", ""


def reads(module: str) -> list[str] | None:
    """Fields of its configuration that the module reads; None if that cannot be determined."""
    try:
        with standing_in(module):
            return module_reads(module, CONFIGS[module])
    except Exception:  # noqa: BLE001 - the verdict on the module says why
        return None


def main() -> None:
    there = set(upstream_modules())
    print(json.dumps({"mlx_lm": mlx_lm.__file__, "modules": sorted(there)}), flush=True)
    for module in sorted(there & CONFIGS.keys()):
        outcome, reason = verdict(module)
        line = {"module": module, "verdict": outcome, "reason": reason, "reads": reads(module)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
