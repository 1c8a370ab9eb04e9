"""A checkpoint that is quantised while it is read: the model that mlx_lm.convert would write, a layer at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import NoReturn

import mlx.core as mx

from shardhub.checkpoint.checkpoint import Checkpoint, check_unchanged
from shardhub.checkpoint.header import ByteSource, Header, StoredTensor
from shardhub.checkpoint.quantisation import Quantisation
from shardhub.errors import UnsupportedModel
from shardhub.model.arrays import from_raw, to_raw
from shardhub.model.build import spec_of
from shardhub.model.conversion import Conversion
from shardhub.model.quantiser import Quantiser
from shardhub.splitting.weight_copy import check_finite
from shardhub.tensors import RawTensor, TensorSpec

_CONVERT_FIRST = "Convert it once, then split the result: mlx_lm.convert --hf-path MODEL --mlx-path FOLDER -q"


def quantise(checkpoint: Checkpoint, quantisation: Quantisation, *, check_weights: bool = False) -> Checkpoint:
    """The checkpoint that mlx_lm.convert would write, decided from headers; its tensors are computed as they are read.

    A layer's tensors are computed together, so its floats and its result are in memory at once. Whoever reads must stay
    in one thread.

    Args:
        checkpoint: A checkpoint of floats.
        quantisation: How to quantise it.
        check_weights: Whether to check the floats for NaN and infinity as they are read: quantising hides them.

    Raises:
        UnsupportedModel: It is quantised already, or cannot be quantised that way.
    """
    quantiser = Quantiser(checkpoint, quantisation.record)
    reading = Conversion(quantiser.config, quantiser.tensors)
    if reading.specs:
        raise UnsupportedModel(
            f"{checkpoint.where} cannot be quantised while it is split.",
            why=f"mlx-lm computes {min(reading.specs)} of its quantised tensors each time it loads them.",
            hint=_CONVERT_FIRST,
        )
    files = quantiser.headers()
    computing = _Computing(checkpoint, quantiser, files, check_weights=check_weights)
    return replace(
        checkpoint.with_config(quantiser.config),
        files=files,
        tensors={name: tensor for header in files.values() for name, tensor in header.tensors.items()},
        open_file=computing.open_file,
        local_file=_refuse_local_file,
        notes=quantiser.notes,
        is_virtual=True,
    )


class _Computing:
    """Computes the weight files of a quantised checkpoint; the tensors of one file at a time are in memory.

    Args:
        checkpoint: The checkpoint of floats.
        quantiser: What is made of it.
        files: The headers of what is made.
        check_weights: As `quantise`.
    """

    def __init__(
        self, checkpoint: Checkpoint, quantiser: Quantiser, files: Mapping[str, Header], *, check_weights: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._check_weights = check_weights
        self._quantiser = quantiser
        self._files = files
        # The file of the tensors in memory, and those that have not been read yet.
        self._file = ""
        self._pending: dict[str, mx.array] = {}
        # Tensors that were computed before they are written, by file and name.
        self._kept: dict[tuple[str, str], mx.array] = {}

    def open_file(self, name: str) -> ByteSource:
        """Open a file of the quantised checkpoint."""
        return _ComputedFile(name, self._files[name], self.take)

    def take(self, file: str, name: str, *, keep: bool = False) -> mx.array:
        """Compute a tensor of a file, unless it was kept; it is forgotten then, or kept for the next call."""
        if (kept := self._kept.pop((file, name), None)) is None:
            kept = self._compute(file, name)
        if keep:
            self._kept[file, name] = kept
        return kept

    def _compute(self, file: str, name: str) -> mx.array:
        if self._file != file or name not in self._pending:
            self._pending = {}
            self._pending = self._quantiser.compute(file, self._read(self._quantiser.sources(file)))
            self._file = file
        array = self._pending.pop(name)
        if (spec := spec_of(array)) != (expected := self._files[file].tensors[name].spec):
            raise UnsupportedModel(
                f"mlx-lm produces another {name} from the tensors than from their headers.",
                why=f"{spec.dtype} {list(spec.shape)} instead of {expected.dtype} {list(expected.shape)}.",
                hint=_CONVERT_FIRST,
            )
        array = mx.contiguous(array)
        mx.eval(array)
        mx.clear_cache()
        return array

    def _read(self, names: Collection[str]) -> dict[str, mx.array]:
        """Read tensors of the source, in the order of its files."""
        tensors = self._checkpoint.tensors
        arrays = {}
        ordered = sorted(names, key=lambda name: (tensors[name].file, tensors[name].start))
        for file, group in groupby(ordered, key=lambda name: tensors[name].file):
            members = list(group)
            with closing(self._checkpoint.open_file(file)) as source:
                check_unchanged(source, self._checkpoint.files[file])
                run_stop = 0
                for index, name in enumerate(members):
                    if tensors[name].start != run_stop:
                        run_stop = _run_stop([tensors[other] for other in members[index:]])
                        source.read_ahead(tensors[name].start, run_stop)
                    data = _read(source, tensors[name])
                    if self._check_weights:
                        check_finite(name, tensors[name], 0, data)
                    arrays[name] = _array(tensors[name].spec, data)
        return arrays


class _ComputedFile:
    """A weight file whose tensors are computed when they are read, as a `ByteSource`."""

    def __init__(self, name: str, header: Header, take: Callable[..., mx.array]) -> None:
        self.name = name
        self.size_bytes = header.size_bytes
        self.version = header.version
        self._take = take
        self._tensors = list(header.tensors.items())
        self._starts = [tensor.start for _, tensor in self._tensors]
        self._index = -1
        self._data = memoryview(b"")

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing: the source's own bytes are announced when they are read."""

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on; the last tensor read stays in memory."""
        done = 0
        while done < len(buffer):
            index = bisect_right(self._starts, start + done) - 1
            if index != self._index:
                self._index, self._data = -1, memoryview(b"")
                self._data = memoryview(to_raw(self._take(self.name, self._tensors[index][0])).data)
                self._index = index
            piece = self._data[start + done - self._starts[index] :][: len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def array(self, name: str, *, keep: bool) -> mx.array:
        """Compute a tensor; a tensor that is kept is not computed again when its bytes are read."""
        return self._take(self.name, name, keep=keep)

    def close(self) -> None:
        """Free the last tensor."""
        self._index, self._data = -1, memoryview(b"")


def read_arrays(checkpoint: Checkpoint, names: Collection[str], *, keep: bool = False) -> dict[str, mx.array]:
    """Compute tensors of a quantised checkpoint, file by file.

    Args:
        checkpoint: The result of `quantise`.
        names: Names of the tensors, all of which are in memory then.
        keep: Whether to keep them until they are read again, so that the source is read once.
    """
    arrays = {}
    ordered = sorted(names, key=lambda name: (checkpoint.tensors[name].file, checkpoint.tensors[name].start))
    for file, group in groupby(ordered, key=lambda name: checkpoint.tensors[name].file):
        with closing(checkpoint.open_file(file)) as source:
            assert isinstance(source, _ComputedFile)
            for name in group:
                arrays[name] = source.array(name, keep=keep)
    return arrays


def _read(source: ByteSource, tensor: StoredTensor) -> memoryview:
    data = memoryview(bytearray(tensor.stop - tensor.start))
    source.read_into(tensor.start, data)
    return data


def _array(spec: TensorSpec, data: memoryview) -> mx.array:
    return from_raw(RawTensor(dtype=spec.dtype, shape=spec.shape, data=data))


def _run_stop(tensors: list[StoredTensor]) -> int:
    """Where the bytes end that follow each other from the first tensor on."""
    stop = tensors[0].start
    for tensor in tensors:
        if tensor.start != stop:
            break
        stop = tensor.stop
    return stop


def _refuse_local_file(name: str, header: Header) -> NoReturn:
    raise AssertionError(f"{name} has {header.size_bytes} bytes that are computed as they are read, in no file")
