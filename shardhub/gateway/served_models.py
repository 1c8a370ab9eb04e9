"""The models that a gateway serves: each name leads to one chain or to several, which come and go while it runs."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from shardhub.errors import ShardhubError
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.response_store import ResponseStore
from shardhub.gateway.service import ANY_MODEL, Service
from shardhub.gateway.settings import GatewaySettings
from shardhub.manifest import Manifest

# A refusal's code for a model that is not served, as OpenAI writes it.
MODEL_NOT_FOUND = "model_not_found"
# Most models that a message lists.
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentChain:
    """A chain that is to be served once its nodes are there.

    Attributes:
        name: The model's name.
        reason: What is missing.
    """

    name: str
    reason: str


class ServedModels:
    """The chains of a gateway, by the names of their models.

    Args:
        settings: The gateway's settings.

    Attributes:
        answers: The stored answers of the Responses API, whichever model gave them.
        absent: The chains that are waited for, by their names.
        is_draining: Whether the gateway is shutting down.
        machine_names: Names of machines by the addresses of nodes on them, where a cluster gives names.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.answers = ResponseStore()
        self.absent: dict[str, AbsentChain] = {}
        self.is_draining = False
        self.machine_names: Mapping[str, str] = {}
        self._served: list[Service] = []
        self._leaving: list[Service] = []
        self._num_chosen = 0
        self._chosen_at: dict[Service, int] = {}
        self._observers: list[Callable[[Service], None]] = []

    def machine_name(self, address: str) -> str:
        """The name of the machine that a node runs on; its address where it has none."""
        return self.machine_names.get(address, address)

    @property
    def services(self) -> tuple[Service, ...]:
        """The chains that take requests, in order."""
        return tuple(self._served)

    @property
    def all_services(self) -> tuple[Service, ...]:
        """The chains that take requests, then those that finish their last answers."""
        return (*self._served, *self._leaving)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models, each once, in the order of the chains."""
        return tuple(dict.fromkeys(name for service in self._served for name in service.model_names))

    def watch(self, came: Callable[[Service], None]) -> None:
        """Call a function with each chain: those that are served now, then each that is added."""
        self._observers.append(came)
        for service in self._served:
            came(service)

    def add(self, service: Service) -> None:
        """Serve one more chain. If its model's name is another model's, it gets a name with its pipeline's id.

        A chain that only finishes its last answers holds no name.
        """
        own = service.head.pipeline.manifest
        others = [other for other in self._served if not is_same_model(own, other.head.pipeline.manifest)]
        taken = {name for other in others for name in other.model_names}
        service.model_names = tuple(
            f"{name}@{own.pipeline_id[:8]}" if name in taken else name for name in service.model_names
        )
        service.admission.is_draining = self.is_draining
        bisect.insort(self._served, service, key=lambda each: each.order)
        for came in self._observers:
            came(service)

    async def remove(self, service: Service) -> None:
        """Take no more requests for a chain, and wait until those that use it are answered."""
        if service not in self._served:
            return
        self._served.remove(service)
        self._leaving.append(service)
        try:
            await service.uses.ended()
        finally:
            self._leaving.remove(service)
            self._chosen_at.pop(service, None)

    def drain(self) -> None:
        """Take no more requests."""
        self.is_draining = True
        for service in self.all_services:
            service.admission.is_draining = True

    async def idle(self) -> None:
        """Wait until no answer is in progress."""
        for service in self.all_services:
            await service.admission.idle()

    def named(self, name: str | None) -> tuple[Service, ...]:
        """The chains that serve a model, in order.

        Args:
            name: The model's name as a client gives it; None is the first model.

        Raises:
            Refusal: It is not served, or not yet. Nothing is ever fetched for a client.
        """
        if not self._served:
            raise self._nothing_served()
        if name is not None:
            if services := tuple(service for service in self._served if name in service.model_names):
                return services
            self._check_absent(name)
            if ANY_MODEL not in self.settings.model_names:
                raise Refusal(
                    404,
                    f"The model {name[:200]!r} does not exist here; this gateway serves {_listed(self.names)}.",
                    param="model",
                    code=MODEL_NOT_FOUND,
                )
        first = self._served[0].model_names[0]
        return tuple(service for service in self._served if first in service.model_names)

    def choose(self, name: str | None) -> Service:
        """The chain for the next request: one with a free session and the fewest requests, and of equals each in turn.

        Chains without nodes for a stage come last.

        Raises:
            Refusal: As `named`.
        """
        chosen = min(self.named(name), key=self._preference)
        self._num_chosen += 1
        self._chosen_at[chosen] = self._num_chosen
        return chosen

    @property
    def reason(self) -> str:
        """Why no model is served, if none is."""
        return " ".join(dict.fromkeys(chain.reason for chain in self.absent.values())) or "No model is served now."

    def _preference(self, service: Service) -> tuple[bool, bool, int, int]:
        """Orders the chains of a model: the one to be chosen next has the least value."""
        is_broken = service.head.problem is not None
        return is_broken, service.is_full, service.num_running, self._chosen_at.get(service, 0)

    def _check_absent(self, name: str) -> None:
        reasons = [chain.reason for chain in self.absent.values() if chain.name == name]
        if reasons:
            raise _unavailable(f"The model {name!r} is not served yet: {' '.join(reasons)}")

    def _nothing_served(self) -> Refusal:
        if self.is_draining:
            return _unavailable("The gateway is shutting down.", code="draining")
        return _unavailable(self.reason)


def models_of(request: Request) -> ServedModels:
    """The models that the gateway of a request serves."""
    models: ServedModels = request.app.state.models
    return models


def service_of(request: Request, model: str | None = None) -> Service:
    """The service that handles a request, which counts as used until the request is answered.

    Args:
        model: The model's name as the client gives it; None is the first model.

    Raises:
        Refusal: The model is not served.
    """
    service = models_of(request).choose(model)
    uses: ExitStack = request.scope["state"]["uses"]
    uses.enter_context(service.uses.enter())
    return service


class EndOfUses:
    """An application whose requests use chains until they are answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with ExitStack() as uses:
            scope.setdefault("state", {})["uses"] = uses
            await self._app(scope, receive, send)


def reason_of(error: ShardhubError) -> str:
    """What is missing, in the words of an error."""
    return f"{error.what} {error.why}".strip()


def is_same_model(one: Manifest, other: Manifest) -> bool:
    """Whether two pipelines are cuts of the same model. Of a model in a folder only the same cut is known to be so."""
    if one.pipeline_id == other.pipeline_id:
        return True
    has_source = one.source.repo is not None and one.source.commit is not None
    return has_source and (one.source, one.config_digest) == (other.source, other.config_digest)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    if len(shown) > _SHOWN:
        shown[_SHOWN:] = [f"{len(shown) - _SHOWN} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _unavailable(message: str, *, code: str = "unavailable") -> Refusal:
    return Refusal(503, message, code=code, headers={"Retry-After": str(RETRY_AFTER_S)})
