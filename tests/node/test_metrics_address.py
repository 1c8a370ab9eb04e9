"""Where metrics may be answered."""

from __future__ import annotations

import pytest

from shardhub.errors import AddressError
from shardhub.node.metrics import check_metrics


@pytest.mark.parametrize("listen", ["0.0.0.0:9400", "192.0.2.1:0", "[::]:9400"])
def test_metrics_off_loopback_are_refused_unless_told_so(listen: str) -> None:
    """Without TLS or a key nobody else is to read them, except where the user says so."""
    with pytest.raises(AddressError, match="Refusing to answer metrics"):
        check_metrics(listen, insecure=False)
    check_metrics(listen, insecure=True)


@pytest.mark.parametrize("listen", ["9400", "127.0.0.1:9400", "localhost:0", "[::1]:9400"])
def test_metrics_on_loopback_are_answered(listen: str) -> None:
    """On loopback nothing has to be said."""
    check_metrics(listen, insecure=False)
