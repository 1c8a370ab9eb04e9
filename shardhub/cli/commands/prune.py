"""`shardhub prune`."""

from __future__ import annotations

import json

from shardhub.cli.flags import Output
from shardhub.cli.options import CacheFlags
from shardhub.sizes import size_text


def prune(cache: CacheFlags, output: Output) -> int:
    """Delete files from the cache that no shard or pipeline in it needs."""
    from shardhub.usecases.cache import prune as delete

    freed_bytes = delete(cache.cache_dir)
    print(json.dumps({"freed_bytes": freed_bytes}) if output.as_json else f"{size_text(freed_bytes)} freed")
    return 0
