"""mlx_lm.server under a given BLAS.

python -m benchmarks.engine.server BLAS [option of mlx_lm.server ...]
"""

from __future__ import annotations

import sys

from shardhub.blas import Blas, use_blas


def main() -> None:
    use_blas(Blas(sys.argv.pop(1)))
    from mlx_lm.server import main as serve

    serve()


if __name__ == "__main__":
    main()
