"""Addresses at which metrics may be served."""

from __future__ import annotations

import pytest

from shardhub.errors import AddressError
from shardhub.node.metrics import check_metrics


@pytest.mark.parametrize("listen", ["0.0.0.0:9400", "192.0.2.1:0", "[::]:9400"])
def test_metrics_off_loopback_need_an_option(listen: str) -> None:
    """Metrics have neither TLS nor a key, so that an address off loopback needs the user's explicit consent."""
    with pytest.raises(AddressError, match="Refusing to answer metrics"):
        check_metrics(listen, insecure=False)
    check_metrics(listen, insecure=True)


@pytest.mark.parametrize("listen", ["9400", "127.0.0.1:9400", "localhost:0", "[::1]:9400"])
def test_metrics_on_loopback_are_answered(listen: str) -> None:
    """Metrics on loopback need no further option."""
    check_metrics(listen, insecure=False)
