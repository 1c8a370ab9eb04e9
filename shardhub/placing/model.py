"""The model that is placed: what a range of its layers holds, reads, sends on, and has to fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardhub.placing.cluster import Machine
from shardhub.placing.wishes import Wishes
from shardhub.planning.borders import Borders
from shardhub.planning.plan import ModelCosts

# A token id on the wire.
ID_BYTES = 4
# Bytes of a number of the hidden states, if the tensors that cross are not known.
_HIDDEN_WIDTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A weight file of the model.

    Attributes:
        holds: Index of the layer whose tensors it holds, or `embedding` or `head`.
    """

    sha256: str
    size_bytes: int
    holds: int | Literal["embedding", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model to place.

    Attributes:
        costs: Costs of its layers, embedding and head.
        borders: Where it can be cut; None allows every cut.
        files: Its weight files; empty if it is not split yet.
    """

    costs: ModelCosts
    borders: Borders | None = None
    files: tuple[ModelFile, ...] = ()

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.costs.num_layers

    @property
    def cuts(self) -> list[int]:
        """Layers before which the model can be cut."""
        return list(range(1, self.num_layers)) if self.borders is None else self.borders.possible

    def held_bytes(self, start: int, stop: int, wishes: Wishes) -> int:
        """Bytes of weights, of the wished sessions' KV caches, and of one session more on the stage [start, stop)."""
        kv = self.costs.kv_bytes(start, stop, wishes.context)
        return self.costs.size_bytes(start, stop) + (wishes.sessions + 1) * kv

    def spare_bytes(self, machine: Machine, start: int, stop: int, wishes: Wishes) -> int:
        """Bytes that a machine has left beside the stage [start, stop), the wished sessions and a prefill chunk."""
        kv = wishes.sessions * self.costs.kv_bytes(start, stop, wishes.context)
        return self.room_bytes(machine) - self.costs.size_bytes(start, stop) - kv

    def room_bytes(self, machine: Machine) -> int:
        """Bytes that weights and KV cache may take on a machine."""
        return max(0, machine.budget_bytes - self.costs.prefill_bytes)

    def layer_read_bytes(self, layer: int, wishes: Wishes) -> int:
        """Bytes of weights and KV cache that a step reads in one layer."""
        costs = self.costs.layers[layer]
        return costs.read_bytes + wishes.step_sessions * costs.kv_bytes(wishes.kv_positions)

    def crossing_bytes(self, cut: int, wishes: Wishes) -> int:
        """Bytes that a step sends from the layer before `cut` to the next machine: ids and hidden states."""
        toll = self.borders.toll(cut) if self.borders is not None else 0
        return wishes.step_sessions * (ID_BYTES + (toll or self.costs.hidden_size * _HIDDEN_WIDTH))

    def fetch_bytes(self, machine: Machine, start: int, stop: int) -> int:
        """Bytes of the stage [start, stop) that are not on a machine's disk.

        If the model's weight files are known, those whose sha256 the machine does not have; otherwise the weights of
        the layers it does not have.
        """
        if not self.files:
            return self._fetch_layer_bytes(machine, start, stop)
        last = stop == self.num_layers
        needs_embedding = start == 0 or (last and self.costs.tied_bytes > 0)
        missing = {
            file.sha256: file.size_bytes
            for file in self.files
            if file.sha256 not in machine.files
            and (
                (file.holds == "embedding" and needs_embedding)
                or (file.holds == "head" and last)
                or (isinstance(file.holds, int) and start <= file.holds < stop)
            )
        }
        return sum(missing.values())

    def _fetch_layer_bytes(self, machine: Machine, start: int, stop: int) -> int:
        costs, last_layer = self.costs, self.num_layers - 1
        is_last, is_tied = stop > last_layer, costs.tied_bytes > 0
        layers = sum(costs.layers[layer].size_bytes for layer in range(start, stop) if layer not in machine.layers)
        has_head = last_layer in machine.layers
        has_embedding = 0 in machine.layers or (has_head and is_tied)
        needs_embedding = start == 0 or (is_last and is_tied)
        embedding = costs.embedding_bytes if needs_embedding and not has_embedding else 0
        head = costs.head_bytes - costs.tied_bytes if is_last and not has_head else 0
        return layers + embedding + head
