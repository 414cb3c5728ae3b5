"""The manifests of `cluster/kubernetes` as kustomize renders them, and schemas to hold them against; all offline."""

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "cluster" / "kubernetes"
OVERLAYS = ("dev", "prod")
# Where a kind of Ray has the specification of a cluster.
CLUSTER_SPEC = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}

Document = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Document, ...]:
    """All documents of an overlay; skips where there is no kustomize."""
    folder = str(KUBERNETES / "overlays" / overlay)
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", folder]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", folder]
    else:
        pytest.skip("neither kubectl nor kustomize is installed, so overlays cannot be rendered")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr, "kustomize warns"
    return tuple(yaml.load_all(ran.stdout, yaml.CSafeLoader))


def of_kind(overlay: str, *kinds: str) -> list[Document]:
    """The documents of some kinds."""
    return [document for document in rendered(overlay) if document["kind"] in kinds]


def one(overlay: str, kind: str, name: str | None = None) -> Document:
    """The document of a kind, and of a name if there are several."""
    [found] = [document for document in of_kind(overlay, kind) if name in (None, document["metadata"]["name"])]
    return found


def cluster_specs(overlay: str) -> list[tuple[str, Document]]:
    """Kind and specification of every Ray cluster."""
    found = []
    for document in of_kind(overlay, *CLUSTER_SPEC):
        spec: Any = document
        for name in CLUSTER_SPEC[document["kind"]]:
            spec = spec[name]
        found.append((document["kind"], spec))
    return found


def groups(spec: Document) -> Iterator[tuple[str, Document]]:
    """Name and specification of a cluster's head and of its groups of workers."""
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group


def pods(overlay: str) -> list[tuple[str, Document]]:
    """What every pod is made from, by a name to tell it by, with the labels that KubeRay adds to those of Ray."""
    found = []
    for kind, spec in cluster_specs(overlay):
        for name, group in groups(spec):
            template = group["template"]
            node_type = "head" if name == "head" else "worker"
            labels = {**template["metadata"]["labels"], "ray.io/node-type": node_type}
            found.append((f"{kind} {name}", {**template, "metadata": {**template["metadata"], "labels": labels}}))
    for job in of_kind(overlay, "RayJob"):
        found.append(("submitter", job["spec"]["submitterPodTemplate"]))
    for cron_job in of_kind(overlay, "RayCronJob"):
        found.append(("scheduled submitter", cron_job["spec"]["jobTemplate"]["submitterPodTemplate"]))
    for deployment in of_kind(overlay, "Deployment"):
        found.append((deployment["metadata"]["name"], deployment["spec"]["template"]))
    return found


def containers(overlay: str) -> list[tuple[str, Document]]:
    """Every container, by the name of its pod and its own."""
    return [
        (f"{name}: {container['name']}", container)
        for name, template in pods(overlay)
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]
    ]


def selects(selector: Document, template: Document) -> bool:
    """Whether a selector means a pod; of expressions there are none."""
    assert set(selector) <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= template["metadata"]["labels"].items()


@functools.cache
def ray_validator(kind: str) -> Draft202012Validator:
    """Of a kind of KubeRay, from its custom resource definition; skips where there are none."""
    folder = os.environ.get("FARSIGHT_KUBERAY_CRDS")
    if not folder:
        pytest.skip("FARSIGHT_KUBERAY_CRDS is not set: set it to the folder with KubeRay's ray.io_*.yaml")
    definition = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    [schema] = [
        version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"
    ]
    return Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """A schema that knows no other fields than those it names, and does not ask for those that have a default: the API
    server drops the former without a word and fills in the latter.
    """
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _strict(part) for name, part in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
        found["required"] = [name for name in schema.get("required", ()) if "default" not in properties[name]]
    return found


def unknown_keys(model: type[BaseModel], content: Mapping[str, Any], path: str = "") -> list[str]:
    """Keys that a model of pydantic has no field for, which models of Ray Serve take without a word."""
    found = []
    for name, value in content.items():
        if name not in model.model_fields:
            found.append(f"{path}{name}")
            continue
        inner = _model_in(model.model_fields[name].annotation)
        if inner is not None:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    found += unknown_keys(inner, part, f"{path}{name}.")
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
