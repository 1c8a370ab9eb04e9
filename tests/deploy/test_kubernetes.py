"""The manifests for Kubernetes: valid by its schemas, and their commands serve a pipeline."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import jsonschema_rs
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shardhub.gateway.keys import new_key
from shardhub.security.certificates import Role
from tests import cut, nodes, tiny
from tests.security.cluster import Cluster

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
KINDS = {"ConfigMap": "core.v1.ConfigMap", "Service": "core.v1.Service", "Deployment": "apps.v1.Deployment"}


def base() -> list[dict[str, Any]]:
    """The documents of the base, as its kustomization names their files."""
    files = yaml.safe_load((DEPLOY / "base" / "kustomization.yaml").read_text())["resources"]
    return [one for file in files for one in yaml.safe_load_all((DEPLOY / "base" / file).read_text())]


def the(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (only,) = [one for one in documents if one["kind"] == kind and one["metadata"]["name"] == name]
    return only


def faults(document: dict[str, Any]) -> list[str]:
    """What the schemas have against a document."""
    definitions = json.loads((SCHEMAS / "kubernetes.json").read_text())["$defs"]
    schema = {"$ref": f"#/$defs/io.k8s.api.{KINDS.get(document['kind'])}"}
    if document["kind"] == "LeaderWorkerSet":
        schema = json.loads((SCHEMAS / "leaderworkerset.json").read_text())
    validator = jsonschema_rs.validator_for({**schema, "$defs": definitions})
    return [
        f"{document['kind']}: {'/'.join(map(str, error.instance_path))}: {error.message}"[:300]
        for error in validator.iter_errors(document)
    ]


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod templates, by what their pods run."""
    group = the(documents, "LeaderWorkerSet", "shardhub")["spec"]["leaderWorkerTemplate"]
    gateway = the(documents, "Deployment", "shardhub-gateway")["spec"]["template"]
    return {"node": group["workerTemplate"], "gateway": gateway}


def test_manifests_are_valid() -> None:
    """Every document of the base is accepted by the schema of its kind, which refuses unknown fields."""
    assert [fault for document in base() for fault in faults(document)] == []


@pytest.mark.parametrize("kind", ["LeaderWorkerSet", "Deployment"])
def test_misspelt_field_is_a_fault(kind: str) -> None:
    """The schemas tell a wrong manifest: a misspelt field deep in a pod, and a value of the wrong type."""
    document = copy.deepcopy(next(one for one in base() if one["kind"] == kind))
    assert faults(document) == []
    pod = pods([document, *(one for one in base() if one["kind"] != kind)])[
        "node" if kind != "Deployment" else "gateway"
    ]
    pod["spec"]["containers"][0]["readinessProb"] = {}
    assert faults(document)
    del pod["spec"]["containers"][0]["readinessProb"]
    pod["spec"]["terminationGracePeriodSeconds"] = "long"
    assert faults(document)


def test_kustomize_renders_base_and_overlay() -> None:
    """Where kubectl is installed, both are rendered and valid; the example changes what it says."""
    program = shutil.which("kubectl")
    if program is None:
        return
    rendered = {}
    for name in ("base", "example"):
        done = subprocess.run([program, "kustomize", str(DEPLOY / name)], capture_output=True, text=True, check=True)
        rendered[name] = list(yaml.safe_load_all(done.stdout))
        assert [fault for document in rendered[name] for fault in faults(document)] == []
    named = [(document["kind"], document["metadata"]["name"]) for document in base()]
    assert [the(rendered["base"], *name) for name in named] == base()
    overlay = rendered["example"]
    assert {document["metadata"]["namespace"] for document in overlay} == {"models"}
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(overlay).values()} == {
        "registry.example.com/shardhub:0.1"
    }
    group = the(overlay, "LeaderWorkerSet", "shardhub")["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 3
    assert group["workerTemplate"]["spec"]["containers"][0]["resources"]["limits"] == {"memory": "24Gi"}


def test_selectors_find_their_pods() -> None:
    """Both Services select the pods they stand for, and the gateway asks the name and port of the nodes' one."""
    documents = base()
    for service, component in (("shardhub-nodes", "node"), ("shardhub-gateway", "gateway")):
        selector = the(documents, "Service", service)["spec"]["selector"]
        assert selector.items() <= pods(documents)[component]["metadata"]["labels"].items()
    assert "dns+shardhub-nodes:50051" in pods(documents)["gateway"]["spec"]["containers"][0]["args"]
    assert the(documents, "Service", "shardhub-nodes")["spec"]["ports"][0]["port"] == 50051


@pytest.mark.parametrize("component", ["node", "gateway"])
def test_pods_are_confined(component: str) -> None:
    """Pods run as a user of their own whose group is private, write to volumes only, and may gain nothing."""
    spec = pods(base())[component]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert len({spec["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}) == 1
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # Certificates mounted by subPath would never be renewed.
    assert all("subPath" not in mount for mount in container["volumeMounts"])
    assert spec["terminationGracePeriodSeconds"] > 30
    assert container["resources"]["limits"]["memory"]


def test_lost_stage_does_not_restart_its_group() -> None:
    """Stages recover one by one."""
    group = the(base(), "LeaderWorkerSet", "shardhub")["spec"]["leaderWorkerTemplate"]
    assert group["restartPolicy"] == "None"
    assert "leaderTemplate" not in group


class Pod:
    """A pod's command as a process of this machine.

    Args:
        template: The pod's template.
        settings: What replaces the values of the ConfigMap, and the variables that the controller sets.
        paths: What is mounted where, by the path in the pod.
    """

    def __init__(self, template: dict[str, Any], settings: dict[str, str], paths: dict[str, Path]) -> None:
        (container,) = template["spec"]["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(paths) <= mounted
        config = the(base(), "ConfigMap", "shardhub")["data"]
        self._paths = paths
        self.env = {one["name"]: self._here(one["value"]) for one in container["env"] if "value" in one}
        self._variables = {**config, **self.env, **settings}
        self.args = [self._here(self._expanded(text)) for text in container["args"]]

    def _expanded(self, text: str) -> str:
        """Kubernetes expands variables of the container in its arguments."""
        return re.sub(r"\$\((\w+)\)", lambda match: self._variables[match[1]], text)

    def _here(self, text: str) -> str:
        for path, folder in self._paths.items():
            if text == path or text.startswith(f"{path}/"):
                return str(folder) + text.removeprefix(path)
        return text

    def run(self, stack: ExitStack, **replaced: str) -> nodes.Announced:
        """Start it, on loopback and with these arguments replaced; the process ends with the stack."""
        replaced |= {"0.0.0.0": "127.0.0.1"}
        command, *args = [replaced.get(text, text) for text in self.args]
        process = nodes.Announced(command, *args, env=self.env)
        stack.callback(nodes.stop_all, [process])
        return process


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_commands_of_the_pods_serve_a_pipeline(tmp_path: Path, stack: ExitStack) -> None:
    """Pod K of the group serves stage K and is ready by Kubernetes' probe; the gateway finds the pods and answers."""
    model = cut.tiny_model(tmp_path / "model")
    tiny.save_tokenizer(model)
    pipeline = cut.cut(model, tmp_path / "out", (2,))
    cluster, keys = Cluster(tmp_path / "cluster"), tmp_path / "keys"
    keys.mkdir()
    key = new_key(keys / "keys")
    templates, settings = pods(base()), {"PIPELINE": str(pipeline.folder)}
    probe = templates["node"]["spec"]["containers"][0]["readinessProbe"]["grpc"]
    # All pods have the same Secret.
    paths = {"/cache": tmp_path / "cache", "/etc/shardhub/tls": cluster.issue("nodes", Role.NODE)}
    started = [
        Pod(templates["node"], {**settings, "LWS_WORKER_INDEX": str(index)}, paths).run(
            stack, **{str(probe["port"]): "0"}
        )
        for index in range(2)
    ]
    ready = [process.wait_ready().ready for process in started]
    assert [one["layers"] for one in ready] == [[stage.start, stage.stop] for stage in pipeline.manifest.stages]
    for one in ready:
        with grpc.insecure_channel(one["health"]) as channel:
            request = health_pb2.HealthCheckRequest(service=probe.get("service", ""))
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    ports = [one["address"].rpartition(":")[2] for one in ready]
    paths = {
        "/cache": tmp_path / "gateway-cache",
        "/etc/shardhub/tls": cluster.issue("gateway", Role.HEAD),
        "/etc/shardhub/keys": keys,
    }
    gateway = Pod(templates["gateway"], settings, paths)
    at = gateway.args.index("dns+shardhub-nodes:50051")
    gateway.args[at : at + 1] = [f"dns+localhost:{ports[0]}", "--node", f"dns+localhost:{ports[1]}"]
    url = gateway.run(stack).wait_ready().ready["url"]
    probes = templates["gateway"]["spec"]["containers"][0]
    for name in ("readinessProbe", "livenessProbe"):
        assert httpx.get(url + probes[name]["httpGet"]["path"], timeout=60).status_code == 200
    answer = httpx.post(
        f"{url}/v1/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": "m", "prompt": "a", "max_tokens": 2},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
