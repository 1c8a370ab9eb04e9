"""`shardhub prune`."""

from __future__ import annotations

import json
from pathlib import Path

from shardhub.cli.flags import Output
from shardhub.cli.options import CacheFlags
from shardhub.sizes import size_text


def prune(cache: CacheFlags, output: Output) -> int:
    """Delete from the cache what no shard or pipeline in it needs."""
    return _prune(cache.cache_dir, as_json=output.as_json)


def _prune(cache_dir: Path | None, *, as_json: bool) -> int:
    from shardhub.usecases.cache import prune as delete

    return _freed(delete(cache_dir), as_json=as_json)


def _freed(num_bytes: int, *, as_json: bool) -> int:
    print(json.dumps({"freed_bytes": num_bytes}) if as_json else f"{size_text(num_bytes)} freed")
    return 0
