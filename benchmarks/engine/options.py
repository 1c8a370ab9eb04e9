"""What all benchmarks are told, and what follows from it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.models import smollm2, tiny_model
from benchmarks.engine.processes import Placing
from shardhub.blas import Blas


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line as it was given.

    Attributes:
        rounds: How often everything is measured; None takes the benchmark's own number.
        blas: Of all processes; None takes the benchmark's own choice.
        is_quick: A tiny model and small numbers, to see that everything runs.
        folder: For what is made on the way.
    """

    rounds: int | None
    blas: str | None
    is_quick: bool
    model_folder: Path | None
    folder: Path

    def num_rounds(self, default: int) -> int:
        return self.rounds or (1 if self.is_quick else default)

    def placing(self, default: Blas = Blas.OPENBLAS) -> Placing:
        """A core and a BLAS thread each, the same BLAS on both sides."""
        blas = Blas(self.blas) if self.blas else default
        return Placing(blas=blas, alone_blas=blas)

    def model(self) -> Path:
        """SmolLM2 in float32, unless told otherwise."""
        if self.model_folder is not None:
            return self.model_folder
        if not self.is_quick:
            return smollm2()
        folder = self.folder / "tiny"
        return folder if folder.is_dir() else tiny_model(folder, max_position_embeddings=4096)


AS_INSTALLED = Placing(blas=Blas.AUTO, alone_blas=Blas.REFERENCE, is_pinned=False)


def parse(description: str, benchmarks: dict[str, str], folder: Path) -> tuple[str, bool, Options]:
    """The benchmark that was asked for, whether as JSON, and the options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=description, formatter_class=formatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, help_text in benchmarks.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("--rounds", type=int, help="how often everything is measured")
        command.add_argument("--blas", choices=[Blas.REFERENCE.value, Blas.OPENBLAS.value], help="of all processes")
        command.add_argument("--model", type=Path, metavar="FOLDER", help="instead of SmolLM2-135M-Instruct in float32")
        command.add_argument("--quick", action="store_true", help="a tiny model and small numbers: does it run?")
        command.add_argument("--json", action="store_true", help="print the report as JSON")
    parsed = parser.parse_args()
    options = Options(
        rounds=parsed.rounds, blas=parsed.blas, is_quick=parsed.quick, model_folder=parsed.model, folder=folder
    )
    return parsed.benchmark, parsed.json, options
