"""The years after the first hour, over real processes: trim, repair, export, forget, back up, restore."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
from fleets import SPEC, Fleet, command, exact, queries, states, tokens, until
from trusted import TrustedFleet

from edge_attention import Client, InvalidArgument, NotFound
from edge_attention.core.errors import AlreadyExists, FailedPrecondition, PrivateTensor, Unauthenticated
from tests.compat import state as kept

CLIENT, AGGREGATOR = "edge_attention.cli.main", "aggregator.main"


def cli(fleet, *arguments, code=0):
    done = command(CLIENT, "--aggregator", fleet.address, *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code in (0, 3) else done.stderr


def test_contexts_are_trimmed_exported_imported_and_repaired_and_nodes_forgotten(tmp_path):
    keys, values = tokens(3000)
    with Fleet(tmp_path, "--lease", "5", state=True) as fleet:
        fleet.nodes("a", "b", "c")
        with fleet.client() as client:
            context = client.create_context("memory", **SPEC, replicas=2)
            context.append(keys, values)
            asked = queries(3)
            said = json.loads(cli(fleet, "contexts", "trim", "memory", "100:1100", "--json"))
            assert said["trimmed"] == 1000
            kept = np.r_[0:100, 1100:3000]
            exact(context.attend(asked), asked, keys[kept], values[kept])
            assert "trimmed 0 tokens of memory; it has 2,000" in cli(
                fleet, "contexts", "trim", "memory", "100:1100"
            )
            assert "is not START:STOP" in cli(fleet, "contexts", "trim", "memory", "7", code=2)

            file = tmp_path / "memory.safetensors"
            assert "wrote 2,000 tokens of memory" in cli(fleet, "contexts", "export", "memory", file)
            from safetensors.numpy import load_file

            found = load_file(file)
            np.testing.assert_array_equal(found["positions"], kept)
            np.testing.assert_array_equal(found["keys"], keys[kept])
            np.testing.assert_array_equal(found["values"], values[kept])
            assert "imported 2,000 tokens as copy" in cli(fleet, "contexts", "import", file, "copy")
            exact(client.context("copy").attend(asked), asked, keys[kept], values[kept])
            with pytest.raises(AlreadyExists):
                client.import_context(file)
            wrong = tmp_path / "wrong.safetensors"
            wrong.write_bytes(file.read_bytes()[:-5])
            assert "edge-attention: " in cli(fleet, "contexts", "import", wrong, "another", code=1)
            with pytest.raises(InvalidArgument, match="cannot be read"):
                client.import_context(tmp_path / "none.safetensors")
            assert not list(tmp_path.glob(".memory*"))

            with pytest.raises(FailedPrecondition, match="'c' is ready; stop it"):
                client.forget_node("c")
            fleet.kill("c")
            until(lambda: states(client)["c"] == "lost", "the lease ends")
            out = cli(fleet, "contexts", "repair", "memory")
            assert "tokens of" in out
            whole = client.context("memory").describe()
            assert all(set(s.holders) == {"a", "b"} for s in whole.segments)
            exact(context.attend(asked), asked, keys[kept], values[kept])
            assert cli(fleet, "nodes", "forget", "c") == "forgot node c\n"
            assert set(states(client)) == {"a", "b"}
            with pytest.raises(NotFound):
                client.forget_node("c")
            # Nobody else has a copy of what only one holds.
            alone = client.create_context("alone", **SPEC)
            alone.append(keys[:10], values[:10], node="b")
            fleet.kill("b")
            until(lambda: states(client)["b"] == "lost", "the lease ends")
            assert "no other node than 'b' has 10 tokens of context 'alone'" in cli(
                fleet, "nodes", "forget", "b", code=1
            )
            said = json.loads(cli(fleet, "nodes", "forget", "b", "--even-alone", "--json"))
            assert said["lost"][0] == "10 tokens of context 'alone'"
            assert "no other node is ready" in cli(fleet, "contexts", "repair", "memory", code=3)
            events = [
                json.loads(line)["event"] for line in (fleet.state / "audit.jsonl").read_text().splitlines()
            ]
            assert {"context_trimmed", "context_exported", "context_repaired", "node_forgotten"} <= set(
                events
            )
    # The same after a restart: what is trimmed stays gone.
    with Fleet(tmp_path, state=True) as fleet, fleet.client() as client:
        assert sum(s.count for s in client.context("memory").describe().segments) == 2000


def test_a_backup_under_load_is_what_was_acknowledged_then(tmp_path):
    """Contexts, runs, trust and deployments, of the moment it began; what came later is not in it."""
    keys, values = tokens(4000)
    new = tmp_path / "new"
    new.mkdir()
    with TrustedFleet(tmp_path) as fleet:
        joins = fleet.make_token("--name", "a", "--uses", "1")["token"]
        with fleet.client() as client:
            releases = sorted({one.release for one in client.plan(kept.job()) if one.release})
        rows = {"data": {"rows": kept.data(tmp_path)}, "allow_release": releases}
        fleet.trusted_node("a", token=joins, **rows)
        fleet.trusted_node("gone")
        fleet.aggregator("certificate", "revoke", "gone")
        good, bad = (fleet.make_token("--role", "user", "--name", name) for name in ("good", "bad"))
        fleet.aggregator("token", "revoke", bad["id"])
        acknowledged, stop = [0], threading.Event()
        with fleet.client() as client:
            context = client.create_context("memory", **SPEC)
            client.deploy(kept.classifier(), "classifier", plan="replicate", nodes=["a"])
            logits = client.model("classifier").infer({"x": kept.inputs()})["logits"]
            kept.finished(client.train(kept.job()))
            parameters = client.run("kept").parameters()

            def load():
                while not stop.is_set() and acknowledged[0] < len(keys):
                    at = acknowledged[0]
                    context.append(keys[at : at + 5], values[at : at + 5])
                    acknowledged[0] = at + 5

            thread = threading.Thread(target=load)
            thread.start()
            try:
                until(lambda: acknowledged[0] >= 50, "appends", 60)
                before = acknowledged[0]
                done = command(AGGREGATOR, "--state", fleet.state, "backup", tmp_path / "backup", "--json")
                after = acknowledged[0]
            finally:
                stop.set()
                thread.join()
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["contexts"] == 1
            client.deploy(kept.classifier(), "later", plan="replicate", nodes=["a"])
            kept.finished(client.train(kept.job(rounds=1)))
        later = fleet.make_token("--role", "user", "--name", "later")
        fleet.terminate("a")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "backup", broken)
    (broken / "state" / "id").unlink()
    done = command(AGGREGATOR, "restore", broken, "--state", new / "state")
    assert done.returncode == 1
    assert "is not whole: id is missing" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = command(AGGREGATOR, "restore", tmp_path / "backup", "--state", new / "state")
    assert done.returncode == 0, done.stderr
    assert "restored to" in done.stdout
    for name in ("a", "gone"):
        (tmp_path / name).rename(new / name)
    with TrustedFleet(new) as fleet:
        # By what they keep alone, without a token: the authority is the same, and who was revoked still is.
        fleet.start_node("a", "--threads", "1", "--store", str(new / "a"), **rows)
        gone = fleet.start_node("gone", "--threads", "1", "--store", str(new / "gone"), wait=False)
        gone.wait_for("certificate of node 'gone' was revoked")
        another = fleet.start_node(
            "b", "--threads", "1", "--store", str(new / "b"), "--join-token", joins, wait=False
        )
        another.wait_for("enrolling was refused")
        for token in (bad, later):
            with pytest.raises(Unauthenticated), Client(fleet.address, token=token["token"]) as client:
                client.nodes()
        with Client(fleet.address, token=good["token"], patience=60) as client:
            assert [run.name for run in client.runs()] == ["kept"]
            for name, array in client.run("kept").parameters().items():
                np.testing.assert_array_equal(array, parameters[name])
            assert [model.name for model in client.models()] == ["classifier"]
            again = client.model("classifier").infer({"x": kept.inputs()}, deadline=60)["logits"]
            np.testing.assert_array_equal(again, logits)
            context = client.context("memory")
            count = context.describe().tokens
            assert before <= count <= after + 5
            asked = queries(2)
            exact(context.attend(asked, deadline=120), asked, keys[:count], values[:count])
            context.append(keys[count : count + 7], values[count : count + 7])
            exact(context.attend(asked, deadline=120), asked, keys[: count + 7], values[: count + 7])


def test_tokens_of_a_nodes_own_data_are_not_exported(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.ones((20, 4), np.float32))
    from onnx import TensorProto, helper

    def reshaped(name):
        return helper.make_node("Reshape", ["x", "shape"], [name])

    graph = helper.make_graph(
        [reshaped("keys"), reshaped("values")],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1, 4])
            for name in ("keys", "values")
        ],
        [helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with Fleet(tmp_path) as fleet:
        fleet.start_node(
            "a", "--threads", "1", data={"rows": tmp_path / "rows.npz"}, allow_release=["attention"]
        )
        fleet.nodes("b")
        with fleet.client() as client:
            context = client.create_context(
                "own", query_heads=1, key_heads=1, key_dim=4, value_dim=4, replicas=2
            )
            context.append_dataset("a", "rows", model, {"x": "x"})
            with pytest.raises(PrivateTensor, match="is of the own data of node 'a', and does not leave it"):
                context.export(tmp_path / "own.safetensors")
            assert [path.name for path in tmp_path.iterdir() if "own" in path.name] == []
            repaired = context.repair()
            assert (repaired.copied, len(repaired.missing)) == (0, 1)
            assert "does not leave it" in repaired.missing[0].reason
            with pytest.raises(FailedPrecondition, match="it is trimmed as a whole"):
                context.trim(range(5, 10))
            assert context.attend(np.ones((1, 1, 4), np.float32)).exact
            assert context.trim(range(100)).trimmed == 20
