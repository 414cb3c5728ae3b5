"""The Kubernetes manifests: what KubeRay and Kubernetes would refuse or drop, and what they would let through."""

import copy
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster import doctor
from data.errors import RecipeError
from data.settings import read_section
from data.simulate_settings import SimulateSettings
from modeling.settings import ModelSettings
from serve.app import APPLICATION, AppArguments, app
from serve.haproxy import haproxy_environment
from tests.manifests import (
    CLUSTER_SPEC,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Document,
    cluster_specs,
    containers,
    groups,
    of_kind,
    one,
    pods,
    ray_validator,
    rendered,
    selects,
    unknown_keys,
)
from trainer.settings import TrainSettings

KUBERNETES_VERSION = "1.34"
SECRET_NAME = re.compile(r"KEY$|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"://[^/\s\"']*:[^/\s\"']*@")
GIB = 2**30

# What the pipeline says itself.
OF_THE_DAY = {"dataset": "of the day", "run_dir": "of the day"}

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def serve_config(overlay: str) -> Document:
    config: Document = yaml.safe_load(one(overlay, "RayService")["spec"]["serveConfigV2"])
    return config


def arguments(overlay: str) -> Document:
    [application] = serve_config(overlay)["applications"]
    args: Document = application["args"]
    return args


def serve_problems(config: Document) -> list[str]:
    """What is wrong with a Serve config: for Serve, of what Serve lets through, and for our application."""
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        return [str(error)]
    found = unknown_keys(ServeDeploySchema, config)
    for application in config["applications"]:
        try:
            app(AppArguments.model_validate(application["args"]))
        except (ValidationError, RecipeError) as error:
            found.append(str(error))
    return found


def cpus(container: Document) -> float:
    said = container["resources"]["limits"]["cpu"]
    return float(said.removesuffix("m")) / 1000 if said.endswith("m") else float(said)


@pytest.mark.parametrize("kind", CLUSTER_SPEC)
def test_ray_kinds_are_as_kuberay_defines_them(overlay: str, kind: str) -> None:
    validator = ray_validator(kind)
    documents = of_kind(overlay, kind)
    assert documents or (kind == "RayCronJob" and overlay == "dev")
    for document in documents:
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
        assert not problems
        assert set(document["metadata"]) <= {"name", "namespace", "labels", "annotations"}


@pytest.mark.parametrize(
    ("kind", "path", "misspelt"),
    [
        ("RayCluster", ("spec", "authOptions"), ("secretName", "secretname")),
        ("RayCluster", ("spec", "workerGroupSpecs", 0), ("maxReplicas", "maxReplica")),
        ("RayJob", ("spec",), ("backoffLimit", "backOffLimit")),
        ("RayJob", ("spec", "submitterPodTemplate", "spec", "containers", 0), ("resources", "resource")),
        ("RayService", ("spec",), ("excludeHeadPodFromServeSvc", "excludeHeadPodFromServeService")),
        (
            "RayService",
            ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "securityContext"),
            ("runAsNonRoot", "runAsNonroot"),
        ),
    ],
)
def test_a_misspelt_field_of_a_ray_kind_is_caught(
    overlay: str, kind: str, path: tuple[str | int, ...], misspelt: tuple[str, str]
) -> None:
    validator, document = ray_validator(kind), copy.deepcopy(one(overlay, kind))
    place: Any = document
    for name in path:
        place = place[name]
    place[misspelt[1]] = place.pop(misspelt[0])
    assert any(misspelt[1] in error.message for error in validator.iter_errors(document))


def test_other_kinds_are_as_kubernetes_defines_them(overlay: str) -> None:
    documents = [document for document in rendered(overlay) if document["kind"] not in CLUSTER_SPEC]
    assert {document["kind"] for document in documents} >= {"Namespace", "NetworkPolicy", "PodDisruptionBudget"}
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_field_of_another_kind_is_caught(overlay: str) -> None:
    for kind, old, new in [
        ("PodDisruptionBudget", "maxUnavailable", "maxUnavailible"),
        ("PersistentVolumeClaim", "accessModes", "accessMode"),
    ]:
        document = copy.deepcopy(one(overlay, kind))
        document["spec"][new] = document["spec"].pop(old)
        with pytest.raises(kubernetes_validate.ValidationError, match=new):
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_the_serve_config_is_one_that_serve_and_our_application_take(overlay: str) -> None:
    config = serve_config(overlay)
    assert serve_problems(config) == []
    [application] = config["applications"]
    assert application["name"] == APPLICATION, "or farsight deploy would not find it"
    assert application["import_path"] == f"{app.__module__}:{app.__name__}"


def _rename(place: Document, old: str, new: str) -> None:
    place[new] = place.pop(old)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda config: _rename(config, "http_options", "http_option"), "http_option"),
        (lambda config: _rename(config["http_options"], "port", "prot"), "http_options.prot"),
        (lambda config: _rename(config["applications"][0], "route_prefix", "prefix"), "applications.prefix"),
        (
            lambda config: config["applications"][0].update(deployments=[{"name": "endpoint", "num_replica": 2}]),
            "applications.deployments.num_replica",
        ),
        (lambda config: _rename(config["applications"][0]["args"], "release", "relase"), "relase"),
        (lambda config: _rename(config["applications"][0]["args"]["serve"], "replicas", "replica"), "serve.replica"),
        (lambda config: config["applications"][0]["args"]["serve"].update(access={}), "whoever reaches the port"),
        (lambda config: config["applications"][0]["args"]["serve"].update(port=8000), "serve.port: is said elsewhere"),
    ],
)
def test_a_mistake_in_a_serve_config_is_caught(overlay: str, change: Callable[[Document], None], problem: str) -> None:
    config = serve_config(overlay)
    change(config)
    assert any(problem in found for found in serve_problems(config))


def test_every_container_says_what_it_needs_and_has_no_privileges(overlay: str) -> None:
    found = [*containers(overlay)]
    found += [("autoscaler", spec["autoscalerOptions"]) for _, spec in cluster_specs(overlay)]
    for name, container in found:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests) & set(limits), name
        assert requests["memory"] == limits["memory"], f"{name}: memory that is promised and not there kills pods"
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert name.startswith("farsight-redis") or "/tmp" in {
            mount["mountPath"] for mount in container["volumeMounts"]
        }
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not context.get("privileged"), name
    for name, template in pods(overlay):
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec.get("volumes", [])), name
        # Ray's autoscaler, beside the head, asks for pods; nothing else asks Kubernetes for anything.
        assert name.endswith("head") or spec["automountServiceAccountToken"] is False, name
    assert one(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_one_image_of_this_version_everywhere(overlay: str) -> None:
    ours = {container["image"] for name, container in containers(overlay) if not name.startswith("farsight-redis")}
    assert len(ours) == 1, ours
    [image] = ours
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert re.fullmatch(rf".*farsight:{re.escape(version[1])}-(cpu|gpu)", image)
    ray = doctor.tested_versions((ROOT / "constraints.txt").read_text())["ray"]
    assert {spec["rayVersion"] for _, spec in cluster_specs(overlay)} == {ray}


def test_what_ray_counts_is_what_its_containers_may_use(overlay: str) -> None:
    for kind, spec in cluster_specs(overlay):
        for name, group in groups(spec):
            [container] = group["template"]["spec"]["containers"]
            params, limits = group["rayStartParams"], container["resources"]["limits"]
            # What is not said KubeRay takes from the limits.
            expected = "0" if name == "head" else str(int(cpus(container)))
            assert params.get("num-cpus", expected) == expected, f"{kind} {name}"
            assert name != "head" or "num-cpus" in params, f"{kind}: work would be put on the head"
            assert name == "head" or cpus(container) == int(cpus(container)) >= 1, f"{kind} {name}"
            gpus = limits.get("nvidia.com/gpu")
            assert params.get("num-gpus", gpus) == gpus, f"{kind} {name}"
            assert ("memory" in params) is False, f"{kind} {name}"


def test_jobs_and_replicas_fit_the_pods_that_are_there_for_them(overlay: str) -> None:
    job, spec = one(overlay, "RayJob")["spec"], one(overlay, "RayService")["spec"]["rayClusterConfig"]
    data = dict(groups(job["rayClusterSpec"]))["data"]["template"]["spec"]["containers"][0]
    assert 0 < job["entrypointNumCpus"] < cpus(data), "or the process of the job would run on the head, or nowhere"
    recipe = yaml.safe_load(one(overlay, "ConfigMap")["data"]["nightly.yaml"])
    workers = read_section({"train": {**recipe["train"], **OF_THE_DAY}}, "train", TrainSettings).workers
    gpu = dict(groups(job["rayClusterSpec"])).get("gpu")
    assert workers.use_gpu is (gpu is not None)
    if gpu is not None:
        [container] = gpu["template"]["spec"]["containers"]
        assert workers.num_workers <= gpu["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
        assert workers.num_workers * workers.cpus_per_worker <= gpu["maxReplicas"] * cpus(container)
    group = dict(groups(spec))["replicas"]
    replicas = AppArguments.model_validate(arguments(overlay)).serve.replicas
    per_pod = int(cpus(group["template"]["spec"]["containers"][0]) // replicas.num_cpus)
    assert per_pod == 1
    assert group["minReplicas"] == group["replicas"] == replicas.min_replicas
    assert group["maxReplicas"] >= 2 * replicas.max_replicas, "a new release starts beside the old one"
    assert replicas.torch_threads <= replicas.num_cpus


def test_haproxy_holds_back_what_the_settings_say(overlay: str) -> None:
    settings = AppArguments.model_validate(arguments(overlay)).serve
    expected = haproxy_environment(settings.queueing)
    for name, group in groups(one(overlay, "RayService")["spec"]["rayClusterConfig"]):
        found = {entry["name"]: entry.get("value") for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert expected.items() <= found.items(), name


def test_no_secret_stands_in_clear_text_and_all_are_written_about(overlay: str) -> None:
    assert not of_kind(overlay, "Secret")
    text = yaml.safe_dump_all(rendered(overlay))
    assert not PASSWORD_IN_URL.search(text)
    for name, container in containers(overlay):
        for entry in container.get("env", []):
            assert not SECRET_NAME.search(entry["name"]) or "secretKeyRef" in entry["valueFrom"], (name, entry["name"])
    redis = one(overlay, "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert set(redis) == {"valueFrom"}
    named = set(re.findall(r"secretName: (\S+)", text)) | set(
        re.findall(r"secretKeyRef:\s+key: \S+\s+name: (\S+)", text)
    )
    assert named >= {"farsight-ray-token", "farsight-tokens", "farsight-redis", "farsight-wandb"}
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert all(f" {secret} " in page for secret in named), "docs/kubernetes.md says how each secret is made"


def test_the_dashboard_is_reached_from_inside_and_with_a_token_alone(overlay: str) -> None:
    for kind, spec in cluster_specs(overlay):
        assert spec["authOptions"] == {"mode": "token", "secretName": "farsight-ray-token"}, kind
        head = spec["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP", kind
        assert not head.get("enableIngress"), kind
        assert "headService" not in head, kind
    service = one(overlay, "RayService")["spec"]["serveService"]
    for spec in [service["spec"], *(found["spec"] for found in of_kind(overlay, "Service"))]:
        assert spec.get("type", "ClusterIP") == "ClusterIP"
    assert [port["port"] for port in service["spec"]["ports"]] == [8000]
    for ingress in of_kind(overlay, "Ingress"):
        assert ingress["spec"]["tls"]
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "serve"}}


def test_the_network_is_closed_but_for_what_is_named(overlay: str) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")}
    assert policies.pop("farsight-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        assert any(selects(policy["podSelector"], template) for _, template in pods(overlay)), f"{name} means no pod"
        assert set(policy["policyTypes"]) == {kind.title() for kind in ("ingress", "egress") if kind in policy}, name
        for rule in policy.get("ingress", []):
            assert rule["from"], f"{name} lets everyone in"
            for origin in rule["from"]:
                assert set(origin) <= {"podSelector", "namespaceSelector"}, name
                assert origin.get("namespaceSelector") != {}, f"{name} lets all namespaces in"
                assert "namespaceSelector" not in origin or rule.get("ports"), f"{name} opens every port"
        for rule in policy.get("egress", []):
            assert rule["to"], f"{name} lets everything out"
            assert "ports" in rule or all("ipBlock" not in target for target in rule["to"]), name
    # Ray's own ports, where a token is all that keeps code from being run.
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            ports = {port["port"] for port in rule.get("ports", [])}
            outside = {
                origin["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                for origin in rule["from"]
                if "namespaceSelector" in origin
            }
            assert 8265 not in ports or outside <= {"kuberay-operator"}, name
            assert not ports & {6379, 10001} or not outside, name


def test_budgets_and_services_mean_pods_that_are_there(overlay: str) -> None:
    [budget] = of_kind(overlay, "PodDisruptionBudget")
    meant = [name for name, template in pods(overlay) if selects(budget["spec"]["selector"], template)]
    assert meant == ["RayService replicas"]
    assert budget["spec"]["maxUnavailable"] == 1
    for service in of_kind(overlay, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        assert [name for name, template in pods(overlay) if selects(selector, template)] == [
            service["metadata"]["name"]
        ]


def test_every_volume_and_claim_that_is_mounted_is_there(overlay: str) -> None:
    claims = {claim["metadata"]["name"] for claim in of_kind(overlay, "PersistentVolumeClaim")}
    maps = {found["metadata"]["name"]: found["data"] for found in of_kind(overlay, "ConfigMap")}
    for name, template in pods(overlay):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        mounted = {mount["name"] for found in template["spec"]["containers"] for mount in found.get("volumeMounts", [])}
        assert mounted == set(volumes), name
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "farsight-storage") in claims, name
            assert volume.get("configMap", {}).get("name", "farsight-nightly") in maps, name
    assert set(maps["farsight-nightly"]) == {"nightly.sh", "nightly.yaml"}


def test_every_path_of_the_shared_storage_is_below_its_mount(overlay: str) -> None:
    for name, container in containers(overlay):
        for entry in container.get("env", []):
            if entry["name"] == "FARSIGHT_STORAGE":
                paths = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "storage"}
                assert paths == {entry["value"]} == {"/farsight"}, name
    recipe = yaml.safe_load(one(overlay, "ConfigMap")["data"]["nightly.yaml"])
    recipe["train"] |= OF_THE_DAY
    for section, settings in (("simulate", SimulateSettings), ("model", ModelSettings), ("train", TrainSettings)):
        read_section(recipe, section, settings)
    assert all(recipe["pipeline"][name].startswith("/farsight/") for name in ("dir", "log", "marker", "registry"))
    assert arguments(overlay)["release"] == recipe["pipeline"]["registry"], "or the endpoint serves other releases"
    mounts = {
        mount["mountPath"]
        for _, group in groups(one(overlay, "RayService")["spec"]["rayClusterConfig"])
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    serve = arguments(overlay)["serve"]
    files = [serve["access"]["tokens_file"], serve["histories"]["password_file"], serve["updates"]["password_file"]]
    assert {str(Path(file).parent) for file in files} <= mounts


def test_the_nightly_job_has_the_cluster_that_stands_and_the_schedule_the_job(overlay: str) -> None:
    job = one(overlay, "RayJob")["spec"]
    assert job["suspend"] is True
    assert "runtimeEnvYAML" not in job, "what a job needs is in the image"
    assert job["rayClusterSpec"] == one(overlay, "RayCluster")["spec"]
    for scheduled in of_kind(overlay, "RayCronJob"):
        assert scheduled["spec"]["jobTemplate"] == {**job, "suspend": False}


def test_gpu_workers_are_on_spot_and_heads_are_not(overlay: str) -> None:
    for kind, spec in cluster_specs(overlay):
        for name, group in groups(spec):
            capacity = group["template"]["spec"].get("nodeSelector", {}).get("farsight.example.com/capacity")
            gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
            assert (gpus is None) is (name != "gpu"), f"{kind} {name}"
            if overlay == "prod":
                expected = {"head": "on-demand", "data": "on-demand", "gpu": "spot", "replicas": None}[name]
                assert capacity == expected, f"{kind} {name}"
        assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"] if kind != "RayService"), kind


def test_the_endpoint_is_told_of_a_release_that_it_never_had_and_of_no_other(overlay: str, tmp_path: Path) -> None:
    (tmp_path / "nightly.sh").write_text(one(overlay, "ConfigMap")["data"]["nightly.sh"])
    called, releases = tmp_path / "called", tmp_path / "releases.json"
    for program in ("farsight", "ray", "getent"):
        stand_in = tmp_path / "bin" / program
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(
            f'#!/bin/sh\n[ "$1" = releases ] && exec cat {releases}\necho {program} "$@" >> {called}\n'
            f'exit "${{{program.upper()}_EXITS:-0}}"\n'
        )
        stand_in.chmod(0o755)

    def night(deployed: float | None = None, **exits: str) -> tuple[int, list[str]]:
        called.write_text("")
        listed = [
            {"release_id": "new", "names": ["latest"], "added": 2.0, "deployed": deployed},
            {"release_id": "old", "names": ["current"], "added": 1.0, "deployed": 1.5},
        ]
        releases.write_text(json.dumps({"registry": "r", "added": None, "removed": [], "releases": listed}))
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "FARSIGHT_STORAGE": "/farsight", **exits}
        ran = subprocess.run(["bash", str(tmp_path / "nightly.sh")], env=environment, check=False, capture_output=True)
        return ran.returncode, called.read_text().splitlines()

    pipeline, look, deploy = (
        f"farsight pipeline run {tmp_path}/nightly.yaml",
        "getent hosts farsight-endpoint-head-svc",
        "ray job submit --address http://farsight-endpoint-head-svc:8265 -- farsight deploy /farsight/releases/new",
    )
    assert night() == (0, [pipeline, look, deploy])
    assert night(FARSIGHT_EXITS="8") == (8, [pipeline]), "held back"
    assert night(deployed=1.7) == (0, [pipeline]), "taken back"
    assert night(GETENT_EXITS="2") == (0, [pipeline, look]), "no endpoint yet"
    assert night(RAY_EXITS="1") == (1, [pipeline, look, deploy]), "not deployed"


def test_the_overlays_are_the_ones_that_are_tested(overlay: str) -> None:
    assert sorted(place.name for place in (KUBERNETES / "overlays").iterdir()) == sorted(OVERLAYS)
