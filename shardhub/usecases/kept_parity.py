"""Parity records that this machine made earlier, kept so that the same stages are compared once."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version

from shardhub.errors import AccessError, DiskFull, FormatError
from shardhub.hub.cache import Cache
from shardhub.manifest import Parity, canonical, config_digest, decode, encode, sha256_hex
from shardhub.parity import MAX_RECORD_BYTES, Numbers, numeric_class
from shardhub.regular_files import read_file
from shardhub.splitting.job import SplitJob
from shardhub.usecases.watcher import Watcher
from shardhub.version import __version__


class KeptParity:
    """The record of one cut of one checkpoint, made on this machine with the present versions.

    It is found by what the weight files are made of, before any is made. The record names the pipeline that was made
    then, so that it is refused for other bytes; see `pipeline_documents`.

    Args:
        cache: The cache.
        job: The split.
    """

    def __init__(self, cache: Cache, job: SplitJob) -> None:
        from shardhub.engine.host import host_facts  # loads MLX, as the comparison does

        self._cache = cache
        self._class = numeric_class(host_facts())
        self._mlx_lm = version("mlx-lm")
        stages = [
            [shard.contents.start, shard.contents.stop, shard.contents.graph_hash, *shard.keys] for shard in job.shards
        ]
        made_with = [__version__, self._mlx_lm, self._class.model_dump(mode="json"), job.contents.dtype]
        key = sha256_hex(canonical([stages, config_digest(dict(job.checkpoint.config)), made_with]))
        self._path = cache.root / "parity" / f"{key}.json"

    def read(self, watcher: Watcher) -> Numbers | None:
        """The kept record; None without one that holds for this machine and its versions."""
        try:
            parity = decode(
                Parity, read_file(self._path, MAX_RECORD_BYTES), where=str(self._path), limit_bytes=MAX_RECORD_BYTES
            )
        except (OSError, FormatError):
            return None
        if (parity.numeric_class, parity.mlx_lm, parity.shardhub) != (self._class, self._mlx_lm, __version__):
            return None
        numbers = Numbers(parity=parity)
        watcher.note(f"parity: {numbers.line}; measured on {parity.made_at[:10]} for the same stages")
        return numbers

    def keep(self, numbers: Numbers, pipeline_id: str) -> None:
        """Keep the record of stages that are complete now."""
        if numbers.parity is not None and not self._path.exists():
            with suppress(AccessError, DiskFull):  # it only saves time
                self._cache.write(self._path, encode(numbers.parity.model_copy(update={"pipeline_id": pipeline_id})))
