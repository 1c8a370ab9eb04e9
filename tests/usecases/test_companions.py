"""What runs beside a resident."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.security.certificates import Role
from shardhub.security.identity import DESK_FILE, store_desk
from shardhub.usecases.companions import CompanySettings, company
from shardhub.usecases.resident import RunningResident
from tests.resident.network import Machine, Network
from tests.security.cluster import Cluster
from tests.security.loop import in_loop
from tests.waiting import until


@in_loop
async def test_the_search_for_the_authority_survives_a_damaged_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on in the next round, after a file that cannot be read and after a text that is not an address."""
    trust = Cluster(tmp_path / "cluster").trust("mini", Role.MEMBER)
    mini = Machine(Network(), tmp_path, "mini").start()
    running = RunningResident(name="mini", address="127.0.0.1:50047", resident=mini.resident, trust=trust)
    settings = CompanySettings(authority=tmp_path / "none", is_discovered=False, look_s=0.002)
    (trust.folder / DESK_FILE).write_bytes(b"{")

    async def is_said(text: str) -> bool:
        return any("was not looked for" in line and text in line for line in caplog.messages)

    try:
        async with company(settings)(running):
            await until(lambda: is_said("breaks the format"), timeout_s=20)
            store_desk(trust.folder, "127.0.0.1:99999")
            await until(lambda: is_said("not HOST:PORT"), timeout_s=20)
    finally:
        await mini.stop()
