"""deploy/kubernetes, built by Kustomize itself: every object meets Kubernetes' schema, every pod the standard
`restricted`, and what compose says too is the same here."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess

import compose_file
import kubernetes_validate
import pytest
import yaml
from daemon_settings import DEPLOY, client_variables, parsed, prefix

from edge_node.health import LINK_SERVICE

FOLDER = DEPLOY / "kubernetes"
BUILDS = ("base", "overlays/external", "overlays/gpu")
VERSIONS = ("1.29", "1.31", kubernetes_validate.latest_version())
"""K3s' channels go back some releases; the newest schema there is, too."""
WORKLOADS = ("StatefulSet", "DaemonSet")

pytestmark = pytest.mark.skipif(
    not shutil.which("kubectl") and not shutil.which("kustomize"),
    reason="neither kubectl nor kustomize is here; either builds the objects: https://kubernetes.io/docs/tasks/tools",
)


@functools.cache
def _build(folder):
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run([*command, str(FOLDER / folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # deprecations
    return list(yaml.safe_load_all(done.stdout))


def build(folder):
    """The objects of a kustomization, for the caller to change as it likes."""
    return copy.deepcopy(_build(folder))


def named(objects, kind, name):
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def workloads(objects):
    return [o for o in objects if o["kind"] in WORKLOADS]


def pod(workload):
    return workload["spec"]["template"]["spec"]


def containers(workload):
    return pod(workload).get("initContainers", []) + pod(workload)["containers"]


def settings(objects, workload):
    """Variables of a workload's container."""
    (container,) = pod(workload)["containers"]
    (source,) = container["envFrom"]
    found = dict(named(objects, "ConfigMap", source["configMapRef"]["name"])["data"])
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value", "machine-1")  # else of the pod itself
    return found


def program(workload):
    return "edge-node" if workload["kind"] == "DaemonSet" else "edge-aggregator"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", BUILDS)
def test_every_object_meets_the_schema(folder, version):
    objects = build(folder)
    assert {o["kind"] for o in objects} >= {
        "Namespace",
        "StatefulSet",
        "DaemonSet",
        "Service",
        "NetworkPolicy",
    }
    for item in objects:
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("replicas",), "one"), (("template", "spec", "hostPIDs"), True), (("selector",), None)],
)
def test_the_schema_refuses_what_is_wrong(path, value):
    item = named(build("base"), "StatefulSet", "edge-aggregator")
    at = item["spec"]
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", BUILDS)
def test_everything_is_in_the_namespace_and_what_is_referred_to_exists(folder):
    objects = build(folder)
    have = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for item in objects:
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "edge-attention"
    for workload in workloads(objects):
        assert ("ServiceAccount", pod(workload)["serviceAccountName"]) in have
        volumes = {v["name"] for v in pod(workload)["volumes"]}
        volumes |= {c["metadata"]["name"] for c in workload["spec"].get("volumeClaimTemplates", [])}
        for container in containers(workload):
            assert {m["name"] for m in container["volumeMounts"]} <= volumes
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in have


@pytest.mark.parametrize("folder", BUILDS)
def test_selectors_choose_their_own_pods_and_no_others(folder):
    objects = build(folder)
    for workload in workloads(objects):
        wanted = workload["spec"]["selector"]["matchLabels"].items()
        chosen = [
            o for o in workloads(objects) if wanted <= o["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert chosen == [workload]
    service = named(objects, "Service", "edge-aggregator")
    chosen = [
        o
        for o in workloads(objects)
        if service["spec"]["selector"].items() <= o["spec"]["template"]["metadata"]["labels"].items()
    ]
    assert [o["kind"] for o in chosen] == ["StatefulSet"]
    ports = {p["name"]: p["containerPort"] for p in pod(chosen[0])["containers"][0]["ports"]}
    assert all(p["port"] == ports[p["targetPort"]] for p in service["spec"]["ports"])


@pytest.mark.parametrize("folder", BUILDS)
def test_pods_meet_the_standard_restricted_but_for_what_is_named(folder):
    """The exceptions are those of namespace.yaml."""
    for workload in workloads(build(folder)):
        spec = pod(workload)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(workload):
            context = spec["securityContext"] | container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"]
            if container["name"] == "own":
                assert context["capabilities"]["add"] == ["CHOWN"]
            else:
                assert "add" not in context["capabilities"]
                assert context["runAsNonRoot"] is True
                assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)
        hosts = [v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v]
        assert hosts == (["/var/lib/edge-attention-node"] if workload["kind"] == "DaemonSet" else [])


@pytest.mark.parametrize("folder", BUILDS)
def test_the_daemons_take_what_they_are_given(folder, monkeypatch):
    objects = build(folder)
    for workload in workloads(objects):
        given = settings(objects, workload)
        with monkeypatch.context() as patch:
            parameters = parsed(program(workload), [], given, patch)
        others = {name for name in given if not name.startswith(prefix(program(workload)))}
        assert others <= client_variables()
        if program(workload) == "edge-node":
            host, port = parameters["aggregator"]
            assert port == named(objects, "Service", host)["spec"]["ports"][0]["port"]
            assert parameters["name"] == "machine-1"


def test_the_certificate_has_the_names_the_service_is_called_by():
    for folder in BUILDS:
        objects = build(folder)
        given = settings(objects, named(objects, "StatefulSet", "edge-aggregator"))
        host = settings(objects, named(objects, "DaemonSet", "edge-node"))["EDGE_NODE_AGGREGATOR"].split(":")[
            0
        ]
        full = f"{host}.edge-attention.svc.cluster.local"
        assert {host, full} <= set(given["EDGE_AGGREGATOR_TLS_NAME"].split())


def test_policies_let_nodes_reach_the_aggregator_and_nobody_reach_a_node():
    objects = build("base")
    deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    node = named(objects, "NetworkPolicy", "edge-node")["spec"]
    aggregator = named(objects, "NetworkPolicy", "edge-aggregator")["spec"]
    labels = {
        name: named(objects, kind, name)["spec"]["template"]["metadata"]["labels"]
        for kind, name in (("DaemonSet", "edge-node"), ("StatefulSet", "edge-aggregator"))
    }
    assert node["ingress"] == []
    assert aggregator["egress"] == []
    assert node["podSelector"]["matchLabels"].items() <= labels["edge-node"].items()
    assert aggregator["podSelector"]["matchLabels"].items() <= labels["edge-aggregator"].items()
    out, into = node["egress"][0], aggregator["ingress"][0]
    assert out["to"][0]["podSelector"]["matchLabels"].items() <= labels["edge-aggregator"].items()
    assert into["from"][0]["podSelector"]["matchLabels"].items() <= labels["edge-node"].items()
    assert out["ports"] == into["ports"] == [{"port": 50051, "protocol": "TCP"}]


def test_nodes_with_and_without_a_gpu_share_no_machine():
    objects = build("overlays/gpu")
    gpu = pod(named(objects, "DaemonSet", "edge-node-gpu"))
    cpu = pod(named(objects, "DaemonSet", "edge-node"))
    assert gpu["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert "affinity" not in gpu
    (term,) = cpu["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [
        {"key": "nvidia.com/gpu.present", "operator": "NotIn", "values": ["true"]}
    ]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert settings(objects, named(objects, "DaemonSet", "edge-node-gpu"))["EDGE_NODE_PROVIDER"] == "cuda"


# What compose says too.

PAIRS = {"edge-aggregator": ("StatefulSet", "aggregator"), "edge-node": ("DaemonSet", "edge-node")}
# Names differ by where one is, and a replica of compose has a folder by its number. Compose hands a volume
# over; here the files stay with the state.
ELSEWHERE = {
    "EDGE_NODE_AGGREGATOR",
    "EDGE_AGGREGATOR_TLS_NAME",
    "EDGE_NODE_NAME",
    "EDGE_NODE_STORE",
    "EDGE_AGGREGATOR_BOOTSTRAP",
    "EDGE_ATTENTION_TOKEN_FILE",
}


@pytest.mark.parametrize("name", PAIRS)
def test_settings_are_those_of_compose(name):
    kind, service = PAIRS[name]
    objects = build("base")
    workload = named(objects, kind, name)
    compose = compose_file.services()[service]
    here, there = settings(objects, workload), compose_file.environment(compose)
    assert set(here) - ELSEWHERE == set(there) - ELSEWHERE
    assert {k: v for k, v in here.items() if k not in ELSEWHERE} == {
        k: v for k, v in there.items() if k not in ELSEWHERE
    }
    (container,) = pod(workload)["containers"]
    assert compose_file.size(container["resources"]["limits"]["memory"]) == compose_file.size(
        compose["mem_limit"]
    )
    assert pod(workload)["terminationGracePeriodSeconds"] == compose_file.span(compose["stop_grace_period"])
    assert container["image"] == compose["image"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is compose["read_only"]
    assert container["securityContext"]["capabilities"]["drop"] == compose["cap_drop"]
    published = [int(str(port).rsplit(":", 1)[-1]) for port in compose.get("ports", [])]
    assert published == [port["containerPort"] for port in container.get("ports", [])]


def dockerfile(name):
    return (DEPLOY / f"{name}.Dockerfile").read_text().replace("\\\n", " ")


@pytest.mark.parametrize(
    ("kind", "name", "image"),
    [("StatefulSet", "edge-aggregator", "aggregator"), ("DaemonSet", "edge-node", "edge")],
)
def test_health_is_asked_as_the_image_asks(kind, name, image):
    (check,) = re.findall(r"HEALTHCHECK .*?CMD\s+(\[.*?\])", dockerfile(image))
    (container,) = pod(named(build("base"), kind, name))["containers"]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == json.loads(check)
    # Never of the HTTP port: strangers can fill it.
    registered = ["--service", LINK_SERVICE] if name == "edge-node" else []
    assert container["readinessProbe"]["exec"]["command"] == [*json.loads(check), *registered]


def test_no_page_puts_another_daemon_into_the_nodes_folder_on_the_machine():
    """A container gives that folder to the nodes' user, whoever had it."""
    (volume,) = [v for v in pod(named(build("base"), "DaemonSet", "edge-node"))["volumes"] if "hostPath" in v]
    folder = volume["hostPath"]["path"]
    units = [*(DEPLOY / "systemd").iterdir(), *(DEPLOY.parent / "docs").glob("*.md")]
    texts = [file.read_text() for file in units if file.name != "kubernetes.md"]
    used = {path for text in texts for path in re.findall(r"/var/lib/edge-[\w-]+", text)}
    assert {"/var/lib/edge-attention", "/var/lib/edge-node"} <= used
    assert folder not in used


def test_the_image_runs_as_the_user_of_the_pods():
    for name in ("aggregator", "edge"):
        assert "USER 10001:10001" in dockerfile(name).splitlines()
