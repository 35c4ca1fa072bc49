"""The federated benchmark: its table, its meters, and that both sides do the same work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession

from benchmarks import federated
from benchmarks.federated_meter import Memory, Relay, Turn, installed_bytes, loopback_bytes, wait_until
from benchmarks.federated_table import Pair, side_by_side
from benchmarks.federated_work import SIZES, digits_accuracy, digits_work, idle_work
from edge_attention.graphs.models.model import gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model

MB = 1_000_000


def test_the_table_has_both_sides_and_the_bound_of_ours() -> None:
    report = side_by_side(
        "title",
        [
            Pair("wall", "s", 0.02, 6.2, 0.06),
            Pair("memory", "MB", 400.0, 390.0, 350.0),
            Pair("installed", "MB", None, 264.0),
        ],
        ["fifty nodes"],
    )
    lines = report.table().splitlines()
    (wall,) = [line for line in lines if "wall" in line]
    assert wall.split() == ["wall", "0.020", "6.20", "0.06", "s"]
    (memory,) = [line for line in lines if "memory" in line]
    assert "400.00" in memory
    assert "390.00" in memory
    assert "MISSED" in memory
    (installed,) = [line for line in lines if "installed" in line]
    assert installed.split() == ["installed", "-", "264.00", "MB"]
    assert "not measured: fifty nodes" in lines[-1]
    assert not report.met


def test_only_ours_is_bound() -> None:
    assert side_by_side("title", [Pair("wall", "s", 1.0, 9.0, 1.0)]).met
    found = side_by_side("title", [Pair("wall", "s", 1.0, 9.0, 1.0)]).json()
    assert [(f["name"], f["value"], f["bound"]) for f in found["figures"]] == [
        ("wall: ours", 1.0, 1.0),
        ("wall: Flower", 9.0, None),
    ]
    assert "pairs" not in found


def turn(seconds: float, **changed: object) -> dict[str, object]:
    return {
        "seconds": [seconds, seconds, 50 * seconds],
        "first": 2.0,
        "job": 5.0,
        "loopback": [MB, 3 * MB],
        "relayed": [MB, 1.5 * MB],
        "server": 90 * MB,
        "server_apart": {"aggregator.main": 80 * MB},
        "node": 70 * MB,
        "private_network": True,
        **changed,
    }


def test_rows_take_the_median_of_seconds_the_mean_of_bytes_and_the_peak_of_memory() -> None:
    found = {
        "ours": [turn(0.01), turn(0.03, server=120 * MB, node=100 * MB)],
        "flower": [turn(6.0, server_apart={"flower-superlink": 60 * MB, "flwr-serverapp": 30 * MB})],
    }
    pairs = {pair.name: pair for pair in federated.rows("10 KB", 3, found, found)}
    wall = pairs["10 KB, 3 nodes: wall time a round"]
    assert (wall.ours, wall.flower, wall.bound) == (0.03, 6.0, 0.06)
    assert pairs["10 KB, 3 nodes: sent between boxes a round"].ours == 1.25
    assert pairs["10 KB, 3 nodes: sent by all processes a round"].flower == 2.0
    server = pairs["10 KB, 3 nodes: server, peak memory"]
    assert (server.ours, server.flower, server.bound) == (120, 90, 350)
    assert pairs["10 KB, 3 nodes:   of it flwr-serverapp"].flower == 30
    assert pairs["10 KB, 3 nodes:   of it flwr-serverapp"].ours is None
    assert pairs["10 KB, 3 nodes: one node, peak memory"].ours == 100


def test_bytes_of_all_processes_are_left_out_where_others_share_the_loopback() -> None:
    found = {"ours": [turn(0.01, private_network=False)]}
    names = [pair.name for pair in federated.rows("50 MB", 5, found, found)]
    assert not any("all processes" in name for name in names)
    assert any("between boxes" in name for name in names)


def test_only_three_nodes_bind_what_grows_with_them() -> None:
    found = {"ours": [turn(9.0)]}
    bounds = {pair.name: pair.bound for pair in federated.rows("50 MB", 5, found, found)}
    assert bounds["50 MB, 5 nodes: wall time a round"] is None
    assert bounds["50 MB, 5 nodes: server, peak memory"] == 350


def test_many_nodes_may_hold_four_models() -> None:
    found = {"ours": [turn(1.0, server_apart={"aggregator.main": 201 * MB})]}
    (aggregator, *_) = federated.many_rows(found)
    assert aggregator.bound == 200
    assert not aggregator.figures()[0].met


def test_digits_are_compared_by_accuracy() -> None:
    found = {"ours": [turn(0.1, accuracy=0.95)], "flower": [turn(6.0, accuracy=0.96)]}
    accuracy = federated.digits_rows(found)[0]
    assert (accuracy.ours, accuracy.flower) == (95, 96)
    assert "after 4 rounds" in accuracy.name


def test_a_relay_counts_what_passes_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data * 2)

        threading.Thread(target=answer, daemon=True).start()
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        before = loopback_bytes()
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port)), timeout=180) as client:
            client.sendall(b"a" * 1000)
            received = b""
            while len(received) < 2000:
                received += client.recv(1 << 16)
        assert relay.bytes == 3000
        assert loopback_bytes() - before >= 6000
        relay.close()


def test_memory_adds_a_process_and_its_children() -> None:
    held = "import sys; held = bytearray(b'1') * (64 << 20); print('held', flush=True); sys.stdin.read()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    memory = Memory(lambda: {"all": [child.pid], "own": [os.getpid()]})
    memory.look()
    child.communicate(b"")
    assert memory.peak("all") > 64 << 20
    memory.look()
    assert memory.peak("all") > 64 << 20, "a peak stays"
    memory.reset()
    assert memory.peak("all") == 0
    assert memory.peak("nobody") == 0


def test_a_turn_reports_what_came_between_the_ends_of_its_rounds() -> None:
    memory = Memory(lambda: {"server": [os.getpid()], "node": [os.getpid()]})
    run = Turn(memory, None)
    start = time.monotonic()
    for at in (start + 100, start + 102, start + 106):
        run.ended(at)
    assert run.rounds == 3
    found = run.found(["node"])
    assert found["seconds"] == pytest.approx([2, 4])
    assert found["job"] - found["first"] == pytest.approx(6)
    assert found["first"] >= 100
    assert len(found["loopback"]) == 2
    assert found["relayed"] == []
    assert found["server"] > 0
    assert found["node"] > 0


def test_waiting_has_an_end() -> None:
    with pytest.raises(SystemExit, match="for the moon"):
        wait_until(lambda: False, 0.0, "the moon")


def test_installed_bytes_are_those_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "inner" / "a.py").write_bytes(b"12345")
    (tmp_path / "alone.py").write_bytes(b"123")
    assert installed_bytes([tmp_path / "package", tmp_path / "alone.py"]) == 8


def test_sizes_are_what_they_are_called() -> None:
    sizes = {size: count * k * m * 4 for size, (count, k, m) in SIZES.items()}
    assert sizes == {"10 KB": 10_000, "50 MB": 50_000_000}


def test_both_sides_take_the_same_idle_step() -> None:
    """Flower's client subtracts lr * row / m from every column; the gradient of our graph is that."""
    work = idle_work("10 KB", 2)
    model = load_model(work.model.SerializeToString(), loss=work.loss)
    check_model(model, 1)
    session = InferenceSession(gradient_graph(model, 1).SerializeToString())
    (name,) = work.initial
    row = work.data["node-0"]["x"][3:4]
    gradient, loss = session.run(["grad/0", "loss"], {"x": row, "x/0": work.initial[name]})
    expected = np.repeat(row.T.astype(np.float64) / 100, 100, axis=1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert loss == pytest.approx((row.astype(np.float64) @ work.initial[name]).mean(), rel=1e-4)
    assert not np.array_equal(work.data["node-0"]["x"], work.data["node-1"]["x"])


def test_flowers_digits_epoch_is_gradient_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of `epoch` against finite differences of the loss in float64."""
    client = flower_client(monkeypatch)
    rng = np.random.default_rng(0)
    shapes = [(6, 5), (5,), (5, 3), (3,)]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    image, label = rng.standard_normal((4, 6)), np.array([0, 1, 2, 1])

    def loss(of: list[np.ndarray]) -> float:
        scores = np.maximum(image @ of[0] + of[1], 0) @ of[2] + of[3]
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(4), label]))

    after = client.epoch(arrays, image, label, 4, 1.0, np.random.default_rng(1))
    for index, array in enumerate(arrays):
        gradient = array - after[index]
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arrays]
                moved[index][place] += step
                ends.append(loss(moved))
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_flowers_idle_step_differs_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    client = flower_client(monkeypatch)
    start = np.ones((2, 4), np.float32)
    (after,) = client.idle([start], np.array([1, -2], np.float32), 0.5)
    np.testing.assert_allclose(after, [[0.875] * 4, [1.25] * 4])
    assert after.dtype == np.float32


def flower_client(monkeypatch: pytest.MonkeyPatch):
    """The module of Flower's client without Flower: only its arithmetic is looked at."""
    import importlib.util
    from types import ModuleType

    class ClientApp:
        def train(self):
            return lambda function: function

    for name, members in {
        "flwr": {},
        "flwr.app": dict.fromkeys(
            ["ArrayRecord", "Context", "Message", "MetricRecord", "RecordDict"], object
        ),
        "flwr.clientapp": {"ClientApp": ClientApp},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    path = Path(federated.__file__).parent / "flower_app" / "flower_app" / "client_app.py"
    spec = importlib.util.spec_from_file_location("flower_client_app", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_digits_network_learns_nothing_from_nothing() -> None:
    work, test = digits_work()
    assert sum(len(data["label"]) for data in work.data.values()) + len(test.label) == 1797
    assert digits_accuracy(work.initial, test) < 0.3
    load_model(work.model.SerializeToString(), loss=work.loss)
