"""An upgrade from the release that gave each replica a volume without a name: its nodes are carried over."""

from __future__ import annotations

import json
import re

from tests.compose import document
from tests.compose.console import Failed, run, say, wait_for
from tests.compose.fleet import (
    AGGREGATOR,
    ROOT,
    Project,
    client,
    healthy,
    last_object,
    make_variables,
    need,
)
from tests.compose.world import World

COUNT = 2


def file_before() -> str:
    """docker-compose.yml as it was: a volume a replica, no number in a node's name or folder."""
    text = (ROOT / "docker-compose.yml").read_text()
    for now, then in (
        (r"- nodes:(/var/lib/edge-attention)\n", r"- \1\n"),
        (r" +EDGE_NODE_(NAME|STORE): \S*\{replica\}\n", ""),
        (r"    scale: \$\{NODES:-1\}\n", ""),
    ):
        text, count = re.subn(now, then, text)
        assert count, f"docker-compose.yml has no {now}"
    return text


class Upgrade:
    """A fleet of the release before, and the same fleet by this release's file."""

    def __init__(self, world: World) -> None:
        self.world = world
        folder = world.engine.folder
        self.variables = {**make_variables(folder), "COMPOSE_PROFILES": "", "NODES": str(COUNT)}
        files = self.variables["COMPOSE_FILE"]
        old = folder / "before.yml"
        old.write_text(file_before())
        variables = {**self.variables, "COMPOSE_FILE": files.replace("docker-compose.yml", str(old))}
        self.before = Project(world.engine, "before", ROOT, variables)
        # The project's folder is the first file's, unless it is said.
        self.before.compose = [*self.before.compose, "--project-directory", str(ROOT)]
        self.now = Project(world.engine, "before", ROOT, self.variables)
        self.token = folder / "before-token"

    def started(self) -> list[str]:
        """The names of the old release's nodes, which hold a context."""
        self.before("up", "-d", "--scale", f"edge-node={COUNT}", "aggregator", "edge-node")
        healthy(self.before, "aggregator", "edge-node")
        words = ("edge-aggregator", "token", "create", "--role", "user", "--json")
        self.token.write_text(last_object(self.before.execute("aggregator", *words))["token"])
        self.token.chmod(0o444)
        names = wait_for("the old release's nodes", lambda: self.ready(COUNT), 600)
        self._client("spread")
        self.exact("before the upgrade")
        return names

    def up(self, nodes: int) -> None:
        self.now.env["NODES"] = str(nodes)
        self.now("up", "-d", "aggregator", "edge-node", deadline=600)

    def carry(self, *words: str) -> list[str]:
        """The volumes of which deploy/carry_over.sh says that it has carried them over."""
        command = ["sh", "deploy/carry_over.sh", *words]
        said = document.commands("carry")
        need("docs/deploy.md has the command", " ".join(command[:2]) in said, said)
        printed = run(command, env=self.now.env, cwd=ROOT, deadline=600)
        say("  " + printed.strip().replace("\n", "\n             "))
        return sorted(set(re.findall(r"has what volume (\w+) holds", printed)))

    def back(self, names: list[str]) -> None:
        wait_for(f"{', '.join(names)}", lambda: set(names) <= set(self.ready() or []), 600)

    def named(self) -> None:
        """Every replica keeps what it has in the volume that outlives `down`."""
        mounts = [self.now.inspect(one)["Mounts"] for one in self.now.containers("edge-node")]
        found = [
            one["Name"] for each in mounts for one in each if one["Destination"] == "/var/lib/edge-attention"
        ]
        need("each replica has the volume `nodes`", set(found) == {"before_nodes"}, found)

    def exact(self, when: str) -> None:
        figures = self._client("attend")
        need(
            f"exact, over the same nodes, {when}", figures["exact"] and len(figures["mass"]) == COUNT, figures
        )

    def ready(self, count: int = 1) -> list[str] | None:
        printed = self.now.execute("aggregator", "edge-attention", "nodes", "--json")
        found = sorted(node["name"] for node in json.loads(printed) if node["state"] == "ready")
        return found if len(found) >= count else None

    def _client(self, what: str) -> dict[str, object]:
        image = self.world.image(AGGREGATOR)
        return last_object(client(self.now, image, self.token, self.world.data, what, "memory"))


def carried_over(world: World) -> None:
    """Nodes of the release before, a volume each, are carried over: before the upgrade, and after it"""
    upgrade = Upgrade(world)
    try:
        names = upgrade.started()
        volumes = upgrade.carry()
        need("each replica's volume is carried over", len(volumes) == COUNT, volumes)
        upgrade.up(COUNT)
        upgrade.back(names)
        upgrade.exact("after carrying over and `up`")
        upgrade.named()
        need("again there is nothing to do", not upgrade.carry(), "volumes")
        upgrade.now("down", "--volumes", "--timeout", "10")
        world.engine.docker("volume", "rm", *volumes)

        names = upgrade.started()
        upgrade.up(1)
        wait_for("the new node 1", lambda: "edge-node-1" in (upgrade.ready() or []), 600)
        lost = not set(names) & set(upgrade.ready() or [])
        need("its file alone finds nothing of the old nodes", lost, names)
        volumes = upgrade.carry("--left")
        need("what was left is carried over", len(volumes) == COUNT, volumes)
        upgrade.up(COUNT + 1)
        upgrade.back(names)
        upgrade.exact("after carrying over what an upgrade had left")
        upgrade.named()
    except Failed as error:
        raise Failed(f"{error}\n{upgrade.now.logs(15)}") from None
    finally:
        upgrade.now("down", "--volumes", "--remove-orphans", "--timeout", "10", check=False)
