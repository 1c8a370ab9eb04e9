"""Splitting a checkpoint against copying and hashing the same bytes, file by file, in a plain loop.

    python benchmarks/split.py [--size-gb 2] [--runs 3] [--json]

Both read the same made checkpoint, write to the same disk, sync every file, and compute the sha256 of every byte.
Runs alternate, each in a process of its own, with the checkpoint dropped from the page cache before (where the system
lets a process ask for that). The ratio is of the medians of the bytes per second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NUM_LAYERS = 24
_BUFFER_BYTES = 1 << 20
_ROW_BYTES = 4096 * 2


def make_checkpoint(folder: Path, size_bytes: int) -> None:
    """Write a checkpoint of random bytes: 24 layers of seven tensors, an embedding and a head, in one BF16 file."""
    from shardhub.checkpoint.header import encode_header
    from shardhub.tensors import TensorSpec

    rows = max(1, size_bytes // (_ROW_BYTES * (NUM_LAYERS * 7 + 6)))
    shapes = {"model.embed_tokens.weight": (3 * rows, 4096), "lm_head.weight": (3 * rows, 4096)}
    for layer in range(NUM_LAYERS):
        parts = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
        shapes |= {f"model.layers.{layer}.{part}.weight": (rows, 4096) for part in parts}
    specs = [(name, TensorSpec(dtype="BF16", shape=shape)) for name, shape in sorted(shapes.items())]
    noise = os.urandom(_BUFFER_BYTES)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(specs))
        for _, spec in specs:
            left = spec.size_bytes
            while left:
                left -= file.write(noise[: min(left, len(noise))])
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": NUM_LAYERS}))


def run_split(source: Path, out: Path) -> None:
    """Split in two."""
    from shardhub.checkpoint.checkpoint import open_checkpoint
    from shardhub.checkpoint.tensor_names import layer_index
    from shardhub.manifest import Crossing, Source
    from shardhub.splitting.split import ModelContents, StageContents, Versions, split

    checkpoint = open_checkpoint(source)
    layer_of = {name: layer_index(name, NUM_LAYERS) for name in checkpoint.tensors}
    middle = NUM_LAYERS // 2
    crossing = (Crossing(name=f"layer.{middle - 1}", dtype="BF16", shape=("B", "L", 4096)),)
    stages = []
    for start, stop, end in ((0, middle, "model.embed_tokens.weight"), (middle, NUM_LAYERS, "lm_head.weight")):
        own = tuple(name for name, layer in layer_of.items() if layer is not None and start <= layer < stop)
        stages.append(
            StageContents(
                start=start,
                stop=stop,
                tensors=(*own, end),
                crossings_in=crossing if start else (),
                crossings_out=crossing if stop < NUM_LAYERS else (),
                graph_hash=None,
                proof_chunks=(),
            )
        )
    contents = ModelContents(
        num_layers=NUM_LAYERS,
        dtype="BF16",
        stored_names={name: name for name in layer_of},
        layer_of=layer_of,
        versions=Versions(shardhub="", mlx="", mlx_lm="", device=""),
    )
    split(checkpoint, contents, stages, out, name="made", source=Source(repo=None, commit=None))


def run_copy(source: Path, out: Path) -> None:
    """Copy and hash."""
    out.mkdir()
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
    with (
        (source / "model.safetensors").open("rb", buffering=0) as read,
        (out / "copy").open("wb", buffering=0) as write,
    ):
        while count := read.readinto(buffer):
            digest.update(buffer[:count])
            write.write(buffer[:count])
        os.fsync(write.fileno())


_RUNS: dict[str, Callable[[Path, Path], None]] = {"split": run_split, "copy": run_copy}


def measure(kind: str, source: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one run in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    _drop(source / "model.safetensors")
    command = [sys.executable, __file__, "--one", kind, "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads(done.stdout)
    return record["seconds"], record["peak_mb"]


def _drop(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one(kind: str, source: Path, out: Path) -> None:
    """Do one run and print what it took; imports are not in the time."""
    import shardhub.checkpoint.checkpoint
    import shardhub.splitting.split  # noqa: F401

    start = time.monotonic()
    _RUNS[kind](source, out)
    seconds = time.monotonic() - start
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size-gb", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="disk to work on (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=sorted(_RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.source, options.out)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        source = Path(work) / "model"
        source.mkdir()
        make_checkpoint(source, int(options.size_gb * 1e9))
        size = (source / "model.safetensors").stat().st_size
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _RUNS}
        for _ in range(options.runs):
            for kind in _RUNS:
                taken[kind].append(measure(kind, source, Path(work) / kind))
    rows = {
        kind: {
            "mb_per_s": size / 1e6 / statistics.median(seconds for seconds, _ in runs),
            "runs_s": [round(seconds, 3) for seconds, _ in runs],
            "peak_mb": max(peak for _, peak in runs),
        }
        for kind, runs in taken.items()
    }
    ratio = float(rows["split"]["mb_per_s"]) / float(rows["copy"]["mb_per_s"])  # type: ignore[arg-type]
    if options.json:
        print(json.dumps({"size_bytes": size, **rows, "ratio": ratio}))
        return
    print(f"{size / 1e9:.2f} GB, {options.runs} runs each\n\nrun     MB/s   peak MB")
    for kind, row in rows.items():
        print(f"{kind:<6}{row['mb_per_s']:>6.0f}{row['peak_mb']:>10.0f}")
    print(f"\nsplit / copy and hash: {ratio:.2f}")


if __name__ == "__main__":
    main()
