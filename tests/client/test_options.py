"""Types of options the three command lines share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from edge_attention.options import (
    ADDRESS,
    BYTES,
    OneLine,
    Seldom,
    name_sources,
    name_variables,
    unknown_variables,
)
from edge_node.identity import node_dial
from edge_node.options import JoinOptions


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 10**6), ("64KiB", 65_536), ("2GiB", 2 << 30), ("70000", 70_000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert BYTES.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "10", "1kB", "-1GB", "much", "1 i"])
def test_a_size_that_is_none_or_nothing_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a size|or more"):
        BYTES.convert(text, None, None)


def test_what_a_peer_can_have_written_again_and_again_does_not_fill_a_disk():
    now = 0.0
    seldom, formatter = Seldom(burst=3, a_second=1, clock=lambda: now), OneLine("%(message)s")

    def written(message, *arguments, level=logging.WARNING):
        record = logging.LogRecord("x", level, "x", 1, message, arguments, None)
        return formatter.format(record) if seldom.filter(record) else None

    first = [written("node %s says nonsense", n) for n in range(1000)]
    assert first == [f"node {n} says nonsense" for n in range(3)] + [None] * 997
    assert written("another") == "another"
    now = 1.0
    assert written("node %s says nonsense", "a") == "node a says nonsense (997 more like it)"
    assert written("node %s says nonsense", "b") is None
    now = 100.0
    assert written("node %s says nonsense", "c") == "node c says nonsense (1 more like it)"
    assert written("node %s says nonsense", "d") == "node d says nonsense"
    assert all(written("for debugging", level=logging.DEBUG) for _ in range(10))
    for n in range(5000):  # a message that was put together beforehand
        written(f"text {n}")
    assert len(seldom._left) <= 1024


def test_a_log_line_cannot_be_forged():
    formatter = OneLine("%(levelname)s %(message)s")

    def said(message, *arguments, error=None):
        info = (type(error), error, None) if error else None
        record = logging.LogRecord("x", logging.INFO, "x", 1, message, arguments, info)
        return formatter.format(record)

    forged = "x\n2026-11-25 INFO node evil registered\r\x1b[31m\x7f\x9b\u2028ä"
    line = said("refused %s", forged)
    assert line == r"INFO refused x\n2026-11-25 INFO node evil registered\r\x1b[31m\x7f\x9b\u2028ä"
    first, *rest = said("failed", error=ValueError(forged)).splitlines()
    assert first == "INFO failed"
    assert rest
    assert all(line.startswith("  ") and "\x1b" not in line for line in rest)


def test_a_variable_that_sets_nothing_is_named_with_the_one_that_may_be_meant():
    group = click.Group("x", params=[click.Option(["--memory-limit"]), click.Option(["--metrics-port"])])
    group.add_command(click.Command("token", params=[click.Option(["--role"])]))
    prefix = "EDGE_AGGREGATOR"

    def unknown(*names):
        found = unknown_variables(group, prefix, {f"{prefix}_{name}": "" for name in names})
        return {name.removeprefix(f"{prefix}_"): meant for name, meant in found.items()}

    known = ("MEMORY_LIMIT", "METRICS_PORT", "TOKEN_ROLE")
    cluster = ("SERVICE_HOST", "PORT", "PORT_50051_TCP_ADDR", "SERVICE_PORT_GRPC")
    assert unknown(*known, *cluster) == {}
    assert unknown_variables(group, prefix, {"PATH": "", "EDGE_AGGREGATORS_X": ""}) == {}
    assert unknown("MEMROY_LIMIT", "METRCS_PORT") == {
        "MEMROY_LIMIT": f"{prefix}_MEMORY_LIMIT",
        "METRCS_PORT": f"{prefix}_METRICS_PORT",
    }
    assert unknown("COLOUR", "TOKEN", "URL") == {"COLOUR": "", "TOKEN": "", "URL": ""}


def test_a_daemon_warns_of_such_a_variable():
    environment = {**os.environ, "EDGE_NODE_THREDS": "2", "EDGE_NODE_DATA": "nowhere"}
    code = [sys.executable, "-c", "from edge_node.main import main; main()"]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "variable EDGE_NODE_THREDS sets no option; is EDGE_NODE_THREADS meant?" in done.stderr


@pytest.mark.parametrize("named", [True, False])
def test_a_bad_value_of_the_environment_is_refused_by_its_name(named):
    @click.command(context_settings={} if named else {"auto_envvar_prefix": "X"})
    @click.option("--lease", type=click.FloatRange(1, 10), default=5.0)
    @click.option("--at", type=ADDRESS, default="a:1")
    def command(lease, at):
        pass

    if named:
        name_variables(command, "x")
    else:
        name_sources(command)
    run = CliRunner()
    assert run.invoke(command, env={"X_LEASE": "2", "X_AT": "b:2"}).exit_code == 0
    said = run.invoke(command, env={"X_LEASE": "abc"}).output
    assert "'--lease' (from X_LEASE): 'abc' is not a valid float" in said
    assert "'--at' (from X_AT)" in run.invoke(command, env={"X_AT": "b"}).output
    assert "from" not in run.invoke(command, ["--lease", "0"], env={"X_LEASE": "2"}).output


@pytest.mark.parametrize("given", ["http://box.local/", "grpc://box.local:50051"])
def test_a_web_address_is_told_what_an_address_looks_like(given):
    @click.command()
    @click.option("--at", type=ADDRESS)
    def command(at):
        pass

    said = CliRunner().invoke(command, ["--at", given])
    assert (said.exit_code, "is HOST:PORT, as 'box.local:50051'" in said.output) == (2, True)


def test_an_identity_that_is_not_there_is_told_of(tmp_path, caplog):
    node_dial(JoinOptions(identity=tmp_path), "127.0.0.1:1", "n", None)
    assert f"--identity {tmp_path} holds no identity" in caplog.text
    assert "--join-token" in caplog.text


def test_a_message_is_one_line_of_the_log_and_a_traceback_more():
    code = """if True:
        import logging
        from edge_attention.options import set_up
        set_up("info")
        log = logging.getLogger("x")
        log.warning("node a failed: %s", "bad\\n2026-01-01 INFO    node b registered\\x1b[2J")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("own")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *rest = done.stderr.splitlines()
    assert first.endswith(r" WARNING node a failed: bad\n2026-01-01 INFO    node b registered\x1b[2J")
    assert second.endswith(" ERROR   own")
    assert rest[0] == "  Traceback (most recent call last):"
