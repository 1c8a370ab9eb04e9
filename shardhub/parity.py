"""Parity records: what was shown by numbers, for which machines it holds, and how it is described."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import DigestMismatch, FormatError, IntegrityError, ParityFailed
from shardhub.manifest import Manifest, NumericClass, Parity, decode, encode, sha256_hex
from shardhub.regular_files import read_file

PARITY_FOLDER = "parity"
# A record's prompts, and the chunk they are prefilled in: both are longer than that, and one takes three chunks.
PROMPT_LENGTHS = (20, 37)
CHUNK = 16
# Tokens decoded over all prompts.
NUM_TOKENS = 64
# Records beside a manifest; a folder with more is an attack.
MAX_RECORDS = 256
MAX_RECORD_BYTES = 1 << 20
# Stands for a pipeline id before the stage digests are known.
UNKNOWN = "0" * 64
# Characters of the line that a manifest keeps about a mismatch.
_MAX_REMARK = 200
_FILE = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{1,16}-([0-9a-f]{16})\.json")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Values of `chip` that name only an architecture.
_ARCHITECTURES = {"", "arm", "arm64", "aarch64", "i386", "x86_64"}
# The fields of a numeric class, in words.
_FACTS = {
    "mlx": "mlx",
    "backend": "the backend",
    "os": "the operating system",
    "chip": "the chip",
    "cpu": "the processor",
    "blas": "the matrix library",
}
_BACKENDS = {"cpu": "CPU", "metal": "Metal", "cuda": "CUDA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a card says about the stages' numbers.

    Attributes:
        parity: The record, if the stages were compared with the whole model.
        not_run: Why they were not compared.
    """

    parity: Parity | None = None
    not_run: str = ""

    @property
    def line(self) -> str:
        """What was shown, on one line."""
        if self.parity is not None:
            return describe(self.parity)
        return f"proven by graph; not run: {self.not_run}" if self.not_run else "proven by graph; not run"


UNMEASURED = Numbers()


def fixed_prompt(index: int, length: int, vocab_size: int) -> list[int]:
    """Ids of a record's prompt, the same everywhere and without a tokenizer.

    Id `i` of prompt `index` is the first 8 bytes, little-endian, of the sha256 of `shardhub-parity:{index}:{i}`, modulo
    the size of the vocabulary.
    """
    digests = (hashlib.sha256(f"shardhub-parity:{index}:{at}".encode()).digest() for at in range(length))
    return [int.from_bytes(digest[:8], "little") % vocab_size for digest in digests]


def numeric_class(host: Mapping[str, str]) -> NumericClass:
    """A machine's numeric class from its host facts; a missing fact is empty and equals nothing."""
    system = host.get("os", "")
    # Linux's kernel release does not change numbers; macOS brings Metal and Accelerate with its release.
    system = system.partition(" ")[0] if system.startswith("Linux") else system
    facts = {name: host.get(name, "")[:200] for name in ("mlx", "backend", "chip", "cpu", "blas")}
    return NumericClass(**facts, os=system[:200])


def one_class(classes: Iterable[NumericClass]) -> bool:
    """Whether all these machines are promised to give the same numbers."""
    machines = list(classes)
    return len(set(machines)) == 1 and bool(machines[0].mlx and machines[0].backend and names_chip(machines[0]))


def names_chip(numbers: NumericClass) -> bool:
    """Whether a class identifies the processor.

    On a Mac, shardhub up to 0.1 recorded the architecture, which an M1 and an M4 share.
    """
    return numbers.cpu not in _ARCHITECTURES


def difference(one: NumericClass, other: NumericClass) -> str:
    """How two classes differ, for people; empty if they are the same."""
    parts = []
    for name, word in _FACTS.items():
        here, there = getattr(one, name), getattr(other, name)
        if here != there:
            parts.append(f"{word} ({here or 'unknown'} and {there or 'unknown'})")
    if not parts and not names_chip(one):
        parts.append(f"perhaps the chip, which neither record names ({one.cpu or 'unknown'})")
    return ", ".join(parts)


def describe(parity: Parity) -> str:
    """Describe a record for people."""
    numbers = parity.numeric_class
    nan = f", NaN at {parity.num_nan_steps} steps" if parity.num_nan_steps else ""
    return (
        f"{parity.tokens_equal} of {parity.num_tokens} tokens, max |logit difference| "
        f"{parity.max_abs_logit_difference:.6g}{'.0' if parity.max_abs_logit_difference == 0 else ''}{nan}, "
        f"{_DTYPES.get(parity.dtype, parity.dtype)} reference on {describe_class(numbers)}, mlx-lm {parity.mlx_lm}"
    )


def describe_class(numbers: NumericClass) -> str:
    """Describe a numeric class for people."""
    backend = _BACKENDS.get(numbers.backend, numbers.backend)
    chip = numbers.chip if names_chip(numbers) else f"{numbers.chip} (unknown chip)".strip()
    return " ".join(part for part in (numbers.os, chip, backend) if part) + f", mlx {numbers.mlx}"


def mismatch(parity: Parity) -> str | None:
    """How the stages' numbers differ from the whole model's; None if they are identical.

    Both sides ran on one machine in the same shapes, so only the cut can make a difference.
    """
    if parity.tokens_equal == parity.num_tokens and parity.max_abs_logit_difference == 0:
        return None
    return (
        f"{parity.tokens_equal} of {parity.num_tokens} tokens equal, max |logit difference| "
        f"{parity.max_abs_logit_difference:.6g}, {describe_class(parity.numeric_class)}"
    )


def settle(findings: Sequence[str], *, where: str, allow_inexact: bool) -> str | None:
    """Decide whether stages that may not give the whole model's numbers are used.

    Args:
        findings: What was measured, a line for each way in which they differ; empty if they do not.
        where: The model and its cut, for messages.
        allow_inexact: Whether to go on if they differ.

    Returns:
        The line that manifest, cards and nodes show; None if nothing differs.

    Raises:
        ParityFailed: Something differs and `allow_inexact` is false.
    """
    if not findings:
        return None
    if not allow_inexact:
        raise ParityFailed(
            f"The stages of {where} do not give the whole model's numbers.",
            why=f"{'; '.join(findings)}.",
            hint="This run wrote nothing. Try another cut (`shardhub plan` shows where the model can be cut) and "
            "report the model, or add "
            "`allow_inexact`: manifest, cards, nodes and clients will then say that the chain is inexact.",
        )
    line = " ".join("; ".join(findings).encode("ascii", "replace").decode().split())
    return line if len(line) <= _MAX_REMARK else f"{line[: _MAX_REMARK - 3]}..."


def newest_record(folder: Path, pipeline_id: str) -> Parity | None:
    """The newest record beside a manifest on this disk; None without a readable one."""
    try:
        return newest(
            parse_record(name, data, pipeline_id=pipeline_id, where=name)
            for name, data in read_record_files(folder).items()
        )
    except IntegrityError:
        return None


def inexactness(folder: Path, manifest: Manifest, *, only_named: bool = False) -> str | None:
    """What is known to be inexact about a pipeline on this disk.

    Args:
        folder, manifest: The pipeline's folder and manifest.
        only_named: Read only files that the manifest names, and so no records.
    """
    return said_inexact(manifest, None if only_named else newest_record(folder, manifest.pipeline_id))


def said_inexact(manifest: Manifest, record: Parity | None) -> str | None:
    """What the manifest, or else the newest record beside it, says is inexact; None if neither does."""
    if manifest.inexact is not None:
        return manifest.inexact
    return describe(record) if record is not None and not record.is_exact else None


def file_name(parity: Parity) -> str:
    """Path of a record beside its manifest; it ends with a digest of the record's bytes, so that damage shows."""
    stamp = re.sub("[-:]", "", parity.made_at)
    backend = re.sub(r"[^a-z0-9]", "", parity.numeric_class.backend.lower())[:16] or "device"
    return f"{PARITY_FOLDER}/{stamp}-{backend}-{sha256_hex(encode(parity))[:16]}.json"


def parse_record(name: str, data: bytes, *, pipeline_id: str, where: str) -> Parity:
    """Parse a record and check it against its name and its pipeline.

    Args:
        name: File name, without its folder.
        data: Its bytes.
        pipeline_id: The pipeline that the record is beside.
        where: Path, for messages.

    Raises:
        FormatError: The record breaks the specification.
        DigestMismatch: Its bytes do not match its name, or it belongs to another pipeline.
    """
    match = _FILE.fullmatch(name)
    if match is None:
        raise FormatError(
            f"{where} is not the name of a parity record.",
            why="Names are TIME-BACKEND-DIGEST.json.",
            hint="Remove it; make a record with: shardhub verify PIPELINE --reference",
        )
    if (digest := sha256_hex(data)[:16]) != match[1]:
        raise DigestMismatch(
            f"{where} is not the record that was made.",
            why=f"Its sha256 starts with {digest}, but its name says {match[1]}.",
            hint="Download the pipeline again from its publisher.",
        )
    parity = decode(Parity, data, where=where, limit_bytes=MAX_RECORD_BYTES)
    if parity.pipeline_id != pipeline_id:
        raise DigestMismatch(
            f"{where} is the record of another pipeline.",
            why=f"It was made for pipeline {parity.pipeline_id[:16]}..., and this is pipeline {pipeline_id[:16]}....",
            hint="Download the pipeline again from its publisher.",
        )
    return parity


def read_record_files(folder: Path) -> dict[str, bytes]:
    """Bytes of the records beside a manifest on this disk, by file name.

    Raises:
        FormatError: There are more records, or larger ones, than the limits allow.
    """
    place = folder / PARITY_FOLDER
    paths = sorted(path for path in place.iterdir() if path.suffix == ".json") if place.is_dir() else []
    if len(paths) > MAX_RECORDS or any(path.stat().st_size > MAX_RECORD_BYTES for path in paths):
        raise FormatError(
            f"{place} is not a valid folder of parity records.",
            why=f"It may hold at most {MAX_RECORDS} records of at most {MAX_RECORD_BYTES} bytes each.",
        )
    return {path.name: read_file(path) for path in paths}


def newest(records: Iterable[Parity]) -> Parity | None:
    """The record with the latest date."""
    return max(records, key=lambda record: record.made_at, default=None)
