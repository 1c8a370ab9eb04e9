"""The state of a model's chains, and of all machines, as the page and programs read it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shardhub.chain.chain_status import Reading
from shardhub.chain.local_link import LocalLink
from shardhub.gateway.models import context_of
from shardhub.gateway.served_models import ServedModels
from shardhub.gateway.service import Service

# The name of a machine by the address of a node on it.
MachineName = Callable[[str], str]


async def state_of(models: ServedModels, name: str | None) -> dict[str, Any]:
    """The current state of a model's chains, and of what else is served.

    Args:
        name: The model's name; the first model's state is given if it is None or is not served.
    """
    services = models.named(name if name in models.names else None) if models.names else ()
    readings = await asyncio.gather(*(service.head.membership.readings() for service in services))
    local = [load for service in services for load in service.head.local_loads()]
    problems = [service.head.problem for service in services]
    first = services[0] if services else None
    is_usable = any(problem is None for problem in problems)
    return {
        "time": time.time(),
        "model": (name if name in models.names else first.model_names[0]) if first is not None else None,
        "pipeline_id": first.head.pipeline.manifest.pipeline_id if first is not None else None,
        "context": context_of(services) if services else 0,
        "ready": is_usable and not models.is_draining,
        "problem": None if is_usable else next(map(str, problems), models.reason),
        "inexact": next((text for service in services if (text := service.head.inexact)), None),
        "stages": [row for number, service in enumerate(services) for row in _stages(service, number)],
        "nodes": [
            *(_node(reading) for each in readings for reading in each),
            *({"at": LocalLink.name, "alive": True, "load": load} for load in local),
        ],
        "requests": _requests(services),
        "models": [_model(models.named(each), each) for each in models.names],
        "machines": list(_machines(models.services)),
    }


def machine_name(address: str) -> str:
    """The name of the machine that a node runs on: its address, where no cluster gives names."""
    return address


def _model(services: Sequence[Service], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "context": context_of(services),
        "ready": any(not service.head.gaps for service in services),
        "chains": len(services),
        "answers": sum(service.admission.num for service in services),
    }


def _stages(service: Service, number: int) -> list[dict[str, Any]]:
    """Where the stages of a chain run.

    Args:
        number: Of the chain among those of its model, from 0.
    """
    manifest = service.head.pipeline.manifest
    rows: list[dict[str, Any]] = service.head.describe_stages()
    for row in rows:
        row["chain"] = number
        row["machine"] = machine_name(row["at"])
        row["weight_bytes"] = sum(manifest.stages[index].size_bytes for index in row["stages"])
    return rows


def _machines(services: Sequence[Service]) -> Iterator[dict[str, Any]]:
    """Each machine by name, with the stages that run there."""
    served: dict[str, list[dict[str, Any]]] = {}
    for service in services:
        for row in service.head.describe_stages():
            stages = {"model": service.model_names[0], "stages": row["stages"], "layers": row["layers"]}
            served.setdefault(machine_name(str(row["at"])), []).append(stages)
    for name, stages_there in served.items():
        yield {"name": name, "serves": stages_there}


def _requests(services: Sequence[Service]) -> dict[str, Any]:
    schedulers = [service.head.scheduler for service in services]
    return {
        "answers": sum(service.admission.num for service in services),
        "decoding": sum(scheduler.num_decoding for scheduler in schedulers),
        "waiting": sum(scheduler.num_waiting for scheduler in schedulers),
        "kept_prefixes": sum(len(scheduler.prefixes) for scheduler in schedulers),
        "tokens": sum(service.num_drawn for service in services),
        "tokens_per_s": round(sum(service.rate.per_s for service in services), 2),
        "sent_bytes": sum(scheduler.chain.sent_bytes for scheduler in schedulers),
        "received_bytes": sum(scheduler.chain.received_bytes for scheduler in schedulers),
    }


def _node(reading: Reading) -> dict[str, Any]:
    node: dict[str, Any] = {"at": reading.address, "alive": reading.error is None, "first": reading.first}
    node["last"] = reading.last
    if reading.error is not None:
        # Without the transport's own message, which is long and of no use to a watcher.
        node["error"] = f"{reading.error.what} {reading.error.hint}".strip()
    if (description := reading.description) is not None:
        node |= {
            "host": dict(description.host),
            "load": dict(description.load),
            "sessions": description.num_sessions,
            "max_sessions": description.limits.max_sessions,
            "boot_id": description.boot_id.hex(),
        }
    return node
