"""A machine's name: its chip, not its architecture."""

from __future__ import annotations

import pytest

from shardhub.engine.host import Chip, Reading, host_facts, name_chip, processor_name
from shardhub.manifest import NumericClass
from shardhub.parity import describe_class, difference, names_chip, numeric_class, one_class

ARM_LINUX = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd4f\n"


@pytest.mark.parametrize(
    ("reading", "chip"),
    [
        (
            Reading(system="Darwin", architecture="arm64", brand="Apple M1", gpu="Apple M1"),
            Chip(chip="Apple M1", cpu="Apple M1"),
        ),
        (
            Reading(system="Darwin", architecture="arm64", brand="Apple M4 Max", gpu="Apple M4 Max"),
            Chip(chip="Apple M4 Max", cpu="Apple M4 Max"),
        ),
        (Reading(system="Darwin", architecture="arm64", gpu="Apple M2"), Chip(chip="Apple M2", cpu="Apple M2")),
        (
            Reading(system="Darwin", architecture="x86_64", brand="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"),
            Chip(chip="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", cpu="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"),
        ),
        (Reading(system="Darwin", architecture="arm64"), Chip(chip="", cpu="")),
        (
            Reading(system="Linux", architecture="x86_64", cpuinfo="vendor_id: x\nmodel name\t: AMD EPYC 7B13\n"),
            Chip(chip="x86_64", cpu="AMD EPYC 7B13"),
        ),
        (
            Reading(system="Linux", architecture="aarch64", cpuinfo=ARM_LINUX),
            Chip(chip="aarch64", cpu="ARM 0x41 part 0xd4f"),
        ),
        (Reading(system="Linux", architecture="x86_64"), Chip(chip="x86_64", cpu="")),
    ],
)
def test_chip_is_named(reading: Reading, chip: Chip) -> None:
    """An M1 and an M4 have different names, as have different processors under Linux."""
    assert name_chip(reading) == chip


def mac(chip: str, cpu: str) -> NumericClass:
    facts = {"mlx": "0.32.4", "backend": "metal", "chip": chip, "cpu": cpu, "blas": "Accelerate", "os": "Darwin 24.1.0"}
    return numeric_class(facts)


def test_macs_of_two_chips_are_two_classes() -> None:
    """Only Macs with the same chip promise the same numbers."""
    old, new = mac("Apple M1", "Apple M1"), mac("Apple M4", "Apple M4")
    assert one_class([old, mac("Apple M1", "Apple M1")])
    assert not one_class([old, new])
    assert "the chip (Apple M1 and Apple M4)" in difference(old, new)


def test_old_record_of_a_mac_has_an_unknown_chip() -> None:
    """A record that names only the architecture promises nothing, and says that the chip is unknown."""
    record = mac("arm", "arm")
    assert not names_chip(record)
    assert not one_class([record, record])
    assert "(unknown chip)" in describe_class(record)
    assert "perhaps the chip" in difference(record, record)


def test_this_machine_names_its_processor() -> None:
    """A node reports a numeric class that equals itself."""
    own = numeric_class(host_facts())
    assert one_class([own, own])


def test_the_processor_is_named_without_mlx():
    """The name that people see is that of the facts."""
    facts = host_facts()
    assert processor_name() == (facts["cpu"] or facts["chip"])
