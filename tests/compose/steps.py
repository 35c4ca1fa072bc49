"""What `make test-compose` does, in order. A step is a function; its docstring is what is printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from tests.compose import base, data
from tests.compose.carried import carried_over
from tests.compose.certificates import make_certificates, write_secret
from tests.compose.console import Failed, run, say, wait_for
from tests.compose.fleet import (
    AGGREGATOR,
    HARDENED,
    NODE,
    ROOT,
    Project,
    Prometheus,
    copy_into,
    get_page,
    healthy,
    last_object,
    make_variables,
    need,
    own_address,
)
from tests.compose.world import World

NODE_LIMIT = 230_000_000
"""Bytes of the edge image above its base."""


def bases(world: World) -> None:
    """Base images without a registry"""
    base.load_debian(world.engine)
    compose = (ROOT / "docker-compose.yml").read_text()
    image = re.search(r"image: (prom/prometheus:\S+)", compose)
    assert image
    base.load_prometheus(world.engine, image[1])


def valid(world: World) -> None:
    """The Compose files are valid, with every profile and override"""
    secrets = ["-f", "docker-compose.yml", "-f", "deploy/compose.secrets.yml"]
    for words in ([], ["--profile", "observability", "--profile", "gpu"], secrets):
        world.fleet(*words, "config")
    shown = Project(
        world.engine, "edge", ROOT / "deploy" / "edge", {"EDGE_AGGREGATOR": "a:1", "EDGE_JOIN_TOKEN": "eaj_x"}
    )("config")
    need("deploy/edge/docker-compose.yml takes the address", "EDGE_NODE_AGGREGATOR: a:1" in shown, shown)
    silent = Project(world.engine, "edge", ROOT / "deploy" / "edge", {"EDGE_AGGREGATOR": ""})
    printed = silent("config", check=False)
    need("without an address it says what is missing", "set EDGE_AGGREGATOR" in printed, printed)


def built(world: World) -> None:
    """The images are built from the repository's Dockerfiles"""
    world.run_document("build")


def images(world: World) -> None:
    """The images: size, user, what is in them and what is not"""
    bare = base.image_bytes(world.engine, base.DEBIAN)
    for name in (AGGREGATOR, NODE):
        image = world.image(name)
        above = base.image_bytes(world.engine, image) - bare
        say(f"  {image}: {above / 1e6:.0f} MB above its base of {bare / 1e6:.0f} MB")
        if name == NODE:
            need(f"at most {NODE_LIMIT / 1e6:.0f} MB above the base", above <= NODE_LIMIT, above)
        config = json.loads(world.engine.docker("image", "inspect", image))[0]["Config"]
        need(f"{image} runs as 10001:10001", config["User"] == "10001:10001", config["User"])
        need(f"{image} stops by SIGTERM", config["StopSignal"] == "SIGTERM", config["StopSignal"])
        need(f"{image} has a health check", config.get("Healthcheck", {}).get("Test"), config)
        version = config["Labels"]["org.opencontainers.image.version"]
        need(f"{image} is labelled with the version", version == world.version, version)
    settings = json.loads(world.engine.docker("image", "inspect", world.image(NODE)))[0]["Config"]["Env"]
    for variable in ("MALLOC_MMAP_THRESHOLD_=1073741824", "MALLOC_TRIM_THRESHOLD_=2147483648"):
        need(f"the edge image sets {variable}", variable in settings, settings)
    for words in (
        ("-c", "import onnx"),
        ("-c", "import pip"),
        ("-c", "import aggregator"),
        ("-m", "ensurepip"),
    ):
        printed = inside(world, NODE, "python3", *words, check=False)
        need(f"the edge image cannot `{words[1]}`", "No module named" in printed, printed)
    tools = "for t in pip pip3 gcc cc ld make curl wget git; do command -v $t || true; done"
    found = inside(world, NODE, "sh", "-c", tools).strip()
    need("the edge image has no build tool and no downloader", not found, found)


def inside(
    world: World, image: str, program: str, *words: str, check: bool = True, options: tuple[str, ...] = ()
) -> str:
    """A program in a container that has no network and may do nothing."""
    return world.engine.docker(
        "run",
        "--rm",
        "--network=none",
        *HARDENED,
        *options,
        f"--entrypoint={program}",
        world.image(image),
        *words,
        check=check,
    )


def up(world: World) -> None:
    """`docker compose up`: aggregator, three nodes, Prometheus; all healthy"""
    world.run_document("up")
    healthy(world.fleet, "aggregator", "edge-node", "prometheus")
    wait_for("three nodes", lambda: len(world.ready()) == 3, 600)
    world.names = sorted(world.nodes())
    called = {
        f"edge-node-{world.number_of(container)}": world.name_of(container)
        for container in world.fleet.containers("edge-node")
    }
    need("each replica is called by its number", all(map(str.__eq__, called, called.values())), called)
    need("these are the three", world.names == [f"edge-node-{n}" for n in (1, 2, 3)], world.names)
    world.engine.docker("cp", f"{world.fleet.containers('aggregator')[0]}:/run/edge-attention", world.trust)
    world.said.address = f"{own_address(world.fleet)}:{world.variables['AGGREGATOR_PORT']}"


def confined(world: World) -> None:
    """Containers: no root, no capability, no new privilege, nothing to write but volumes"""
    for service in ("aggregator", "edge-node"):
        for container in world.fleet.containers(service):
            status = world.engine.docker("exec", container, "cat", "/proc/1/status", "/proc/self/status")
            need(
                f"{service} has no capability",
                set(re.findall(r"CapEff:\s+(\S+)", status)) == {"0" * 16},
                status,
            )
            need(f"{service} gets none", set(re.findall(r"NoNewPrivs:\s+(\S+)", status)) == {"1"}, status)
            user = world.engine.docker("exec", container, "id", "-u").strip()
            need(f"{service} is user 10001", user == "10001", user)
            for path in ("/opt/edge-attention/x", "/etc/x", "/var/x"):
                printed = world.engine.docker("exec", container, "touch", path, check=False)
                need(f"{service} cannot write {path}", "Read-only file system" in printed, printed)
            limit = world.fleet.inspect(container)["HostConfig"]["Memory"]
            need(f"{service} has a memory limit", limit > 0, limit)
    printed = world.engine.docker(
        "exec", world.fleet.containers("edge-node")[0], "touch", "/run/edge-attention/x", check=False
    )
    need("a node cannot write the trust volume", "Read-only file system" in printed, printed)
    for service, token in (("edge-node", "join-token"), ("prometheus", "viewer-token")):
        container = world.fleet.containers(service)[0]
        held = sorted(world.engine.docker("exec", container, "ls", "/run/edge-attention").split())
        need(f"{service} is handed its own token only", held == ["authority.pem", token], held)
    # By name: whether bridges forward to each other is the firewall's, which this engine leaves alone.
    node = world.fleet.containers("edge-node")[0]
    found = world.engine.docker("exec", node, "getent", "hosts", "aggregator", "prometheus", check=False)
    names = [line.split()[1] for line in found.splitlines()]
    need("of the fleet, a node finds the aggregator only", names == ["aggregator"], found)


def pages(world: World) -> None:
    """The HTTP port: TLS, open health, a token for the rest"""
    url = f"https://localhost:{world.variables['HTTP_PORT']}"
    authority = world.trust / "authority.pem"
    viewer = (world.trust / "viewer-token").read_text().strip()
    for path, token, wanted in (
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/metrics", None, 401),
        ("/metrics", viewer, 200),
        ("/sd", viewer, 200),
    ):
        status, text = get_page(f"{url}{path}", authority, token)
        need(
            f"{path} {'with' if token else 'without'} a token answers {wanted}", status == wanted, text[:200]
        )


def password(world: World) -> None:
    """Grafana's first password: made once, at random, for Grafana only"""
    made = []
    for _ in range(2):
        world.fleet("run", "--rm", "--no-deps", "grafana-password")
        mount = f"--volume={world.fleet.name}_grafana-password:/run/grafana:ro"
        words = ("-c", "cat /run/grafana/password && stat -c ' %u %a' /run/grafana/password")
        made.append(inside(world, AGGREGATOR, "sh", *words, options=(mount, "--user=472")).split())
    need("it is made once", made[0] == made[1], made)
    text, owner, mode = made[0]
    need(
        "it is long, and Grafana's user alone reads it",
        len(text) >= 20 and (owner, mode) == ("472", "400"),
        made,
    )


def scraped(world: World) -> None:
    """Prometheus finds the aggregator and every node"""

    def found() -> bool:
        targets = world.prometheus.targets()
        good = {instance for (job, instance), health in targets.items() if health == "up"}
        if not {"aggregator:9464", *world.names} <= good:
            raise Failed(f"up: {sorted(good)}; {world.prometheus.errors()}")
        return True

    wait_for("Prometheus to scrape all of them", found, 600)
    need("alert rules are loaded", "EdgeNodeLost" in world.prometheus.rules(), world.prometheus.rules())


def trained(world: World) -> None:
    """The demo's job and federated averaging, from a client container, over TLS with a token"""
    printed = world.fleet.execute(
        "aggregator", "edge-aggregator", "token", "create", "--role", "user", "--name", "tester", "--json"
    )
    world.token.write_text(last_object(printed)["token"])
    world.token.chmod(0o400)
    os.chown(world.token, 10001, 10001)
    world.data.mkdir()
    data.write(world.data)
    releases = world.client("releases")["releases"]
    for container in world.fleet.containers("edge-node"):
        number = world.number_of(container)
        copy_into(
            world.engine, world.data / str(number - 1), container, f"/var/lib/edge-attention/data-{number}"
        )
    files = [f"{name}=/var/lib/edge-attention/data-{{replica}}/{file}" for name, file in data.FILES.items()]
    world.fleet.env["NODE_DATA"] = " ".join(files)
    world.fleet.env["NODE_ALLOW_RELEASE"] = " ".join([*releases, "attention"])
    say("  the nodes' containers are made anew, with data; names and volumes stay")
    world.fleet("up", "-d")
    wait_for("the three nodes, under the same names", lambda: world.ready() == world.names, 600)
    say(f"  {world.client('train', *world.names)}")


def contained(world: World) -> None:
    """A user's own graphs run shut in; one that ends its process costs the node nothing"""
    container = world.fleet.containers("edge-node")[0]
    name = world.name_of(container)
    found = world.client(name, *data.KNOWN, program="foreign.py")
    need("the answers are exact, and the same after it", found["exact"] and found["same"], found)
    need("the answer is the column's mean", abs(found["mean"] - data.MEAN) < 1e-6, found)
    need("the call fails, and says no more than that", "failed on private data" in found["killed"], found)
    said = world.engine.docker("logs", container)
    need("the node's own log says what happened", "signal 8 (SIGFPE)" in said, said)
    shut = re.findall(r"cell is process \d+, shut in by: (.*)", said)
    # A container may make no namespace and has no other user; an old engine lets no Landlock through.
    need("the cell is shut in by seccomp at least", shut and all("seccomp" in line for line in shut), said)
    state = world.fleet.inspect(container)["State"]
    need("the container is the one it was", state["Running"] and not state["OOMKilled"], state)
    say(f"  shut in by: {shut[-1]}; {found['killed']}")


def attended(world: World) -> None:
    """An attend over a long context, exact"""
    world.client("spread", "memory")
    figures = world.client("attend", "memory")
    need("exact, over all three nodes", figures["exact"] and len(figures["mass"]) == 3, figures)
    say(f"  {figures}")


def upgraded(world: World) -> None:
    """An upgrade's `up -d`, a `down`, fewer nodes and more again: names, contexts and data are found again"""
    for what, steps in (
        ("the upgrade's command", [("up", "-d", "--force-recreate", "edge-node")]),
        ("down and up", [("down", "--timeout", "20"), ("up", "-d")]),
        ("one node, and three again", [("up", "-d", "--scale", "edge-node=1"), ("up", "-d")]),
    ):
        for words in steps:
            world.fleet(*words, deadline=180)
        wait_for(f"the three nodes after {what}", lambda: world.ready() == world.names, 600)
        figures = world.client("attend", "memory")
        exact = figures["exact"] and len(figures["mass"]) == 3
        need(f"exact, over the same three, after {what}", exact, figures)
        data_left = world.fleet.execute("aggregator", "edge-attention", "nodes", "--json")
        sets = [{one["name"] for one in node["datasets"]} for node in json.loads(data_left)]
        whole = all(found >= set(data.FILES) for found in sets)
        need(f"each has its datasets after {what}", whole, sets)
    # The network was made anew, and may have other addresses.
    world.said.address = f"{own_address(world.fleet)}:{world.variables['AGGREGATOR_PORT']}"


def fourth(world: World) -> None:
    """A fourth node, by deploy/edge/docker-compose.yml, with an address and a token"""
    world.run_document("token")
    began = time.monotonic()
    world.run_document("box")
    wait_for("the fourth node to be ready", lambda: len(world.ready()) == 4, 600, every=0.2)
    say(f"  ready {time.monotonic() - began:.1f} s after the box's first command")
    new = sorted(set(world.ready()) - set(world.names))
    need("it has the name of its token", new == ["loft"], new)
    printed = world.fleet.execute("aggregator", "edge-attention", "nodes")
    need("the operator sees it", "loft" in printed, printed)
    targets = world.prometheus.targets
    wait_for("Prometheus to find it", lambda: targets().get(("edge-attention-nodes", "loft")) == "up", 600)
    world.run_document("see")


def panels(world: World) -> None:
    """Every panel of the dashboards finds data in the real Prometheus"""
    # Rates look back for less than a minute, and a quick machine trains in ten seconds: so there is something
    # to see for as long as is looked for it.
    world.client("spread", "wide")
    program = ROOT / "tests" / "deploy" / "panels.py"
    over = Event()
    with ThreadPoolExecutor(2) as busy:
        trained = busy.submit(_until, over, world, "train", *world.names)
        attended = busy.submit(_until, over, world, "attend", "wide", "15")
        try:
            printed = run(
                [sys.executable, program, world.prometheus.url, "--wait", "600"], deadline=700, cwd=ROOT
            )
        finally:
            over.set()
        trained.result()
        figures = attended.result()
    need("all four nodes answer", len(figures["mass"]) == 4, figures)
    say(f"  {figures}")
    say("  " + printed.rstrip().splitlines()[-1])


def _until(over: Event, world: World, *words: str) -> dict[str, Any]:
    """What the client found the last time; it does the same again until it is `over`."""
    while True:
        found = world.client(*words)
        if over.is_set():
            return found


def lost(world: World) -> None:
    """One node is stopped: a labelled answer, metrics, an alert; started again: exact"""
    victim = world.fleet.containers("edge-node")[1]
    name = world.name_of(victim)
    world.engine.docker("kill", victim)
    up_now = f'edge_attention_aggregator_node_up{{node="{name}"}}'
    wait_for("the node to be lost in the metrics", lambda: world.prometheus.query(up_now)[0][1] == 0, 600)
    figures = world.client("attend", "memory")
    need("the answer is partial, and says so", not figures["exact"] and 0 < figures["covered"] < 1, figures)
    say(f"  without it: {figures}")
    alert = ("EdgeNodeLost", name)
    wait_for("EdgeNodeLost to fire", lambda: world.prometheus.alerts().get(alert) == "firing", 600)
    world.engine.docker("start", victim)
    wait_for("the node to be back", lambda: name in world.ready(), 600)
    figures = world.client("attend", "memory")
    need("the answer is exact again", figures["exact"], figures)
    say(f"  with it again: {figures}")
    wait_for("EdgeNodeLost to end", lambda: alert not in world.prometheus.alerts(), 600)


def drained(world: World) -> None:
    """`docker compose stop` ends both daemons cleanly, well within their time"""
    world.fleet("stop", "edge-node", deadline=60)
    world.fleet("stop", "aggregator", deadline=60)
    for service in ("edge-node", "aggregator"):
        for container in world.fleet.containers(service, stopped=True):
            state = world.fleet.inspect(container)["State"]
            need(
                f"{service} ended by itself with 0", state["ExitCode"] == 0 and not state["OOMKilled"], state
            )


def own_certificates(world: World) -> None:
    """deploy/compose.secrets.yml: certificates and tokens of the operator's, as secrets"""
    secrets = world.engine.folder / "secrets"
    make_certificates(secrets, "aggregator", "localhost")
    ports = make_variables(world.engine.folder)
    files = os.pathsep.join([ports["COMPOSE_FILE"], "deploy/compose.secrets.yml"])
    own = Project(world.engine, "own", ROOT, {**ports, "COMPOSE_FILE": files, "SECRETS": str(secrets)})
    try:
        own("up", "-d", "aggregator")
        healthy(own, "aggregator")
        for file, words in (("join-token", ["--unlimited"]), ("viewer-token", ["--role", "viewer"])):
            made = own.execute("aggregator", "edge-aggregator", "token", "create", *words, "--json")
            write_secret(secrets / file, last_object(made)["token"])
        own("up", "-d")
        healthy(own, "aggregator", "edge-node", "prometheus")
        said = own.engine.docker("logs", own.containers("edge-node")[0])
        need("the node is registered", "registered with aggregator:50051" in said, said)
        status, _ = get_page(f"https://localhost:{ports['HTTP_PORT']}/readyz", secrets / "authority.pem")
        need("the HTTP port shows the operator's certificate", status == 200, status)
        found = Prometheus(ports["PROMETHEUS_PORT"])
        target = ("edge-attention-aggregator", "aggregator:9464")
        wait_for("Prometheus to scrape it", lambda: found.targets().get(target) == "up", 600)
        left = own.execute("aggregator", "find", "/run/edge-attention", "-type", "f").split()
        need("nothing is handed over in the trust volumes", not left, left)
    except Failed as error:
        raise Failed(f"{error}\n{own.logs(15)}") from None
    finally:
        own("down", "--volumes", "--timeout", "10", check=False)


STEPS: list[Callable[[World], None]] = [
    bases, valid, built, images, up, confined, pages, password, scraped, trained, contained, attended,
    upgraded, fourth, panels, lost, drained, own_certificates, carried_over,
]  # fmt: skip


def clean(world: World) -> None:
    for project in (world.box, world.fleet):
        if (project.folder / "docker-compose.yml").exists():
            project("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
    for folder in (world.data, world.trust):
        shutil.rmtree(folder, ignore_errors=True)
