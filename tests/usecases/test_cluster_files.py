"""What machines say of the files that they read for others."""

from __future__ import annotations

import pytest

from shardhub.clock import SYSTEM_CLOCK
from shardhub.errors import WireError
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.reading import ReadReport
from shardhub.splitting.file_order import FileOrder, OrderedFile
from shardhub.usecases.cluster_files import read_on_machines
from tests.resident.network import Machine, MemoryLink, MemoryResidents, Network
from tests.security.loop import in_loop

ORDERED, OTHER, SHA = "a" * 64, "b" * 64, "c" * 64


class ReadingLink(MemoryLink):
    """A machine that answers an order to read with digests."""

    digests: dict[str, str]

    async def read_files(self, order, access):
        yield ReadReport(doing="reading")
        yield ReadReport(digests=self.digests)


@in_loop
async def test_digests_count_only_for_the_files_that_a_machine_was_to_read(tmp_path):
    """One for another machine's file is refused, with this machine's name, and none of its digests is taken."""
    network = Network()
    box = Machine(network, tmp_path, "box").start()
    try:
        link = ReadingLink(network, box, box.address)
        order = FileOrder.model_construct(files=(OrderedFile.model_construct(key=ORDERED),))
        given = (link, MemoryResidents(network, box), {"box": order}, lambda name, report: None, SYSTEM_CLOCK)
        access = HubAccess(endpoint="https://hub.example")
        link.digests = {ORDERED: SHA}
        assert await read_on_machines(*given, access=access) == {ORDERED: SHA}
        link.digests = {ORDERED: SHA, OTHER: SHA}
        with pytest.raises(WireError, match="box could not read its layers: 1 digests are of files"):
            await read_on_machines(*given, access=access)
    finally:
        await box.stop()
