"""What docs/kubernetes.md hands to nodes and Prometheus stays good when the aggregator's pod is replaced."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from pathlib import PurePosixPath

import yaml
from click.testing import CliRunner
from daemon_settings import DEPLOY, ROOT, command

from aggregator.trust.authority import Authority, folder_of
from aggregator.trust.bootstrap import write_bootstrap
from aggregator.trust.registry import Registry
from edge_attention.trust.tokens import parse_token

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
FOLDER = DEPLOY / "kubernetes" / "aggregator"
STATE = PurePosixPath("/var/lib/edge-attention")


def settings():
    lines = (FOLDER / "edge-aggregator.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def kept(path):
    """Whether a path in the pod is on its claim, which outlives it."""
    spec = yaml.safe_load((FOLDER / "statefulset.yaml").read_text())["spec"]
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    (container,) = spec["template"]["spec"]["containers"]
    mounts = {PurePosixPath(mount["mountPath"]): mount["name"] for mount in container["volumeMounts"]}
    under = [mount for mount in mounts if PurePosixPath(path).is_relative_to(mount)]
    return bool(under) and mounts[max(under, key=lambda mount: len(mount.parts))] in claims


def made_as_documented():
    """The words after `edge-aggregator` of each token the page makes in a command block."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(words) for words in re.findall(r"edge-aggregator (token create[^|>\n]*)", text)]


def test_what_bootstrap_writes_stays_with_the_state():
    """It revokes what it finds missing: on a volume that ends with the pod, at every start."""
    assert kept(STATE)
    assert kept(settings()["EDGE_AGGREGATOR_BOOTSTRAP"])
    assert not kept("/run/edge-attention")


def test_files_named_are_those_bootstrap_writes(tmp_path):
    folder = PurePosixPath(settings()["EDGE_AGGREGATOR_BOOTSTRAP"])
    state = folder_of(tmp_path / "state")
    authority = Authority.open(state).certificate
    with contextlib.closing(Registry(state)) as registry:
        write_bootstrap(tmp_path / "bootstrap", registry, (authority,), time.time())
    named = [settings()["EDGE_ATTENTION_TOKEN_FILE"], *re.findall(r"-- cat (\S+)", PAGE)]
    assert len(named) >= 2
    for path in named:
        assert (tmp_path / "bootstrap" / PurePosixPath(path).relative_to(folder)).is_file()
    # Tokens of bootstrap's own are for use in the pod: it may revoke them.
    assert not re.search(r"cat \S+-token", PAGE)


def test_the_pages_tokens_outlast_every_bootstrap(tmp_path):
    state = tmp_path / "state"
    daemon, folder = command("edge-aggregator"), folder_of(state)
    authority = Authority.open(folder).certificate  # the pod has started once
    texts = []
    for words in made_as_documented():
        done = CliRunner().invoke(daemon, words, env={"EDGE_AGGREGATOR_STATE": str(state)})
        assert done.exit_code == 0, done.output
        texts.append(done.stdout.strip())
    with contextlib.closing(Registry(folder)) as registry:
        for start in range(3):  # as if nothing were left of the folder: all of its own tokens are made anew
            assert (
                len(write_bootstrap(tmp_path / f"bootstrap{start}", registry, (authority,), time.time())) == 3
            )
        join, viewer = (registry.token(parse_token(text).id) for text in texts)
    in_ten_years = time.time() + 10 * 365 * 86400
    assert (join.kind, join.role, join.uses, join.state(in_ten_years)) == ("join", "node", None, "valid")
    assert (viewer.kind, viewer.role, viewer.state(in_ten_years)) == ("access", "viewer", "valid")
