"""The Open Inference Protocol over HTTP: a real socket before the real data plane."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pocket_models
import pytest
from ports import run, until

from aggregator.bounds.bounds import BODIES
from aggregator.bounds.budget import Budgets
from aggregator.http import bodies, json_apart
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.errors import DeadlineExceeded, Overloaded
from edge_attention.core.messages.open_inference import Datatype

A = list(range(16))
HEADER = "Inference-Header-Content-Length"


@pytest.fixture
def made():
    """Runs scenarios in front of the pocket models."""
    budgets = Budgets()
    models = {
        "simple": pocket_models.simple(),
        "bytes": pocket_models.echo(Datatype.BYTES, "bytes"),
        "floats": pocket_models.echo(Datatype.FP32, "floats"),
        "raw": pocket_models.echo(Datatype.UINT8, "raw"),
        "waits": pocket_models.waits(),
        "late": pocket_models.fails(DeadlineExceeded("it took too long"), "late"),
        "full": pocket_models.fails(Overloaded("too much", retry_after=2.2), "full"),
        "broken": pocket_models.fails(RuntimeError("secret"), "broken"),
    }
    source = pocket_models.PocketModels(*models.values())
    plane = DataPlane([source], budgets)
    return SimpleNamespace(
        run=lambda scenario, **more: run(scenario, offers=(plane,), budgets=budgets, **more),
        budgets=budgets,
        models=models,
        source=source,
    )


def sums(a=A, b=A, **more):
    def one(name, data):
        return {"name": name, "datatype": "INT32", "shape": [1, 16], "data": data}

    return {"inputs": [one("INPUT0", a), one("INPUT1", b)], **more}


def floats(values, **more):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}], **more}


def in_bytes(name, datatype, shape, data, **more):
    """A body of JSON and bytes, and its headers."""
    parameters = {"binary_data_size": len(data)}
    one = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [one], **more}).encode()
    return {"data": head + data, "headers": {HEADER: str(len(head))}}


def test_what_there_is(made):
    async def scenario(port):
        for path in ("/v2", "/v2/"):
            told = (await port.get(path)).json
            assert told["name"] == "edge-attention"
            assert "binary_tensor_data" in told["extensions"]
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/simple/ready"):
            answer = await port.get(path)
            assert (answer.status, answer.json) == (200, {path.rpartition("/")[2]: True}), path
        assert (await port.get("/v2/models/simple/versions/1/ready")).status == 200
        assert (await port.get("/v2/models/nope/ready")).status == 400
        assert (await port.get("/v2/models/simple/versions/7/ready")).status == 400
        model = (await port.get("/v2/models/simple")).json
        assert model == (await port.get("/v2/models/simple/versions/1")).json
        assert (model["versions"], model["platform"]) == (["1"], "onnxruntime_onnx")
        assert model["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
        config = (await port.get("/v2/models/simple/config")).json
        assert config["max_batch_size"] == 8
        assert config["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16]}
        assert (await port.get("/v2/models/bytes/config")).json["input"][0]["data_type"] == "TYPE_STRING"
        stats = (await port.get("/v2/models/simple/stats")).json["model_stats"]
        assert [(one["name"], one["version"]) for one in stats] == [("simple", "1")]
        assert len((await port.get("/v2/models/stats")).json["model_stats"]) == len(made.models)
        index = (await port.post("/v2/repository/index")).json
        assert {"name": "simple", "version": "1", "state": "READY", "reason": ""} in index
        assert (await port.post("/v2/repository/index", json={"ready": True})).json == index
        assert (await port.get("/v2/systemsharedmemory/status")).json == []
        assert (await port.get("/v2/trace/setting")).json["trace_level"] == ["OFF"]
        assert (await port.get("/v2/logging")).json["log_info"] is True

    made.run(scenario)


def test_a_request_in_json_is_answered_in_json(made):
    async def scenario(port):
        answer = await port.post("/v2/models/simple/infer", json=sums(id="q7"))
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert HEADER not in answer.headers
        assert (answer.json["id"], answer.json["model_version"]) == ("q7", "1")
        one, two = answer.json["outputs"]
        assert one == {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16], "data": [2 * n for n in A]}
        assert two["data"] == [0] * 16
        wanted = sums(outputs=[{"name": "OUTPUT1"}])
        answer = await port.post("/v2/models/simple/versions/1/infer", json=wanted)
        assert [one["name"] for one in answer.json["outputs"]] == ["OUTPUT1"]
        # What a form sends as a string is JSON, whatever its type is called.
        assert (await port.post("/v2/models/simple/infer", data=json.dumps(sums()))).status == 200

    made.run(scenario)


def test_tensors_travel_as_bytes(made):
    values = np.array([0.5, np.nan, np.inf], np.float32)

    async def scenario(port):
        asked = in_bytes("x", "FP32", [3], values.tobytes(), parameters={"binary_data_output": True})
        answer = await port.post("/v2/models/floats/infer", **asked)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        head = int(answer.headers[HEADER])
        told = json.loads(answer.body[:head])["outputs"][0]
        assert told["parameters"] == {"binary_data_size": 12}
        assert answer.body[head:] == values.tobytes()
        # The same in JSON is refused, as JSON has no NaN.
        answer = await port.post("/v2/models/floats/infer", **in_bytes("x", "FP32", [3], values.tobytes()))
        assert answer.status == 400
        assert "NaN or infinity" in answer.json["error"]
        words = b"\2\0\0\0hi\1\0\0\0\xff"
        asked = in_bytes(
            "x", "BYTES", [2], words, outputs=[{"name": "y", "parameters": {"binary_data": True}}]
        )
        answer = await port.post("/v2/models/bytes/infer", **asked)
        assert answer.body[int(answer.headers[HEADER]) :] == words

    made.run(scenario)


def test_errors_are_tritons(made):
    async def scenario(port):
        async def refused(path, status, why, method="POST", **asked):
            answer = await port.get(path, method, **asked)
            assert (answer.status, sorted(answer.json)) == (status, ["error"]), answer.text
            assert why in answer.json["error"]
            return answer

        infer = "/v2/models/simple/infer"
        await refused("/v2/models/nope/infer", 404, "Request for unknown model: 'nope'", json=sums())
        await refused("/v2/models/simple/versions/7/infer", 404, "version 7 is not found", json=sums())
        await refused("/v2/models/nope", 404, "unknown model: 'nope'", "GET")
        await refused("/v2/models/nope/config", 404, "unknown model: 'nope'", "GET")
        await refused("/v2/models/nope/stats", 400, "requested model 'nope' is not available", "GET")
        await refused("/v2/nowhere", 404, "/v2/nowhere", "GET")
        answer = await refused(infer, 405, "GET", "GET")
        assert answer.headers["Allow"] == "POST"
        await refused(infer, 400, "failed to parse the request JSON buffer", data=b"{")
        await refused(infer, 400, "failed to parse the request JSON buffer", data=b"")
        await refused(infer, 400, "object member 'inputs'", json={})
        await refused(infer, 400, "does not fit in INT32", json=sums([2**31, *A[1:]]))
        await refused(infer, 400, "Shape does not match true shape", json=sums(A[1:]))
        wrong = sums()
        wrong["inputs"][0]["datatype"] = "FP32"
        await refused(infer, 400, "data-type is 'FP32', but model 'simple' expects 'INT32'", json=wrong)
        await refused("/v2/models/late/infer", 504, "too long", json=floats([1]))
        answer = await refused("/v2/models/full/infer", 503, "too much", json=floats([1]))
        assert answer.headers["Retry-After"] == "2"
        answer = await refused("/v2/models/broken/infer", 500, "RuntimeError", json=floats([1]))
        assert "secret" not in answer.text
        await refused(infer, 501, "Content-Encoding 'br'", data=b"x", headers={"Content-Encoding": "br"})
        await refused(infer, 400, "it is the length of the JSON", data=b"{}", headers={HEADER: "3"})
        await refused("/v2/repository/models/nope/load", 404, "failed to load 'nope'")

    made.run(scenario)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_packed_both_ways(made, encoding, pack):
    values = [1.0] * 2000

    async def scenario(port):
        body = pack(json.dumps(floats(values)).encode())
        headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
        url = port.base + "/v2/models/floats/infer"
        async with port.client.post(url, data=body, headers=headers) as answer:
            assert answer.headers["Content-Encoding"] == encoding
            assert (await answer.json())["outputs"][0]["data"] == values
        # A short answer is not worth it.
        body = pack(json.dumps(floats([1.0])).encode())
        async with port.client.post(url, data=body, headers=headers) as answer:
            assert "Content-Encoding" not in answer.headers
        ones = np.ones(2000, np.float32).tobytes()
        asked = in_bytes("x", "FP32", [2000], ones, parameters={"binary_data_output": True})
        asked = {"data": pack(asked["data"]), "headers": {**asked["headers"], **headers}}
        async with port.client.post(url, **asked) as answer:
            read = await answer.read()
            assert read[int(answer.headers[HEADER]) :] == ones

        async def refused(data, why, status=400):
            answer = await port.post("/v2/models/floats/infer", data=data, headers=headers)
            assert answer.status == status
            assert why in answer.json["error"]

        await refused(body[:-1] + b"x" + b"y" * 9, encoding)
        await refused(body + b"more", "goes on after the end")
        await refused(body[:-5], "ends before")
        await refused(b"plain", f"no {encoding}")

    made.run(scenario)


def test_what_unpacks_to_too_much_is_refused_and_given_back(made, monkeypatch):
    monkeypatch.setattr(bodies, "UNPACKED_BYTES", 1 << 20)

    async def scenario(port):
        bomb = gzip.compress(b" " * (64 << 20))
        answer = await port.post("/v2/models/floats/infer", data=bomb, headers={"Content-Encoding": "gzip"})
        assert answer.status == 413
        assert "bound unpacked-bytes" in answer.json["error"]
        assert made.budgets[BODIES].used == 0

    made.run(scenario)


def test_bodies_are_bounded_by_length_and_by_what_is_under_way(made, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_BYTES", 1 << 20)
    monkeypatch.setattr("aggregator.http.open_inference.BODY_BYTES", 1 << 20)

    async def scenario(port):
        answer = await port.post("/v2/models/raw/infer", data=b"x" * (2 << 20))
        assert answer.status == 413

        async def chunks():
            for _ in range(3):
                yield b"x" * (1 << 19)

        answer = await port.post("/v2/models/raw/infer", data=chunks())
        assert (answer.status, "bound body-bytes" in answer.json["error"]) == (413, True)
        # One caller has as much as is left free.
        with made.budgets.take(BODIES, None, BODIES.total - (1 << 18)):
            answer = await port.post("/v2/models/raw/infer", data=b"x" * (1 << 19))
            assert answer.status == 503
            assert "bound body-bytes" in answer.json["error"]
            assert "Retry-After" in answer.headers
        assert made.budgets[BODIES].used == 0

    made.run(scenario)


def test_a_long_body_arrives_as_it_was(made):
    data = np.random.default_rng(1).integers(0, 256, 24 << 20, np.uint8).tobytes()

    async def scenario(port):
        asked = in_bytes("x", "UINT8", [len(data)], data, parameters={"binary_data_output": True})
        answer = await port.post("/v2/models/raw/infer", **asked)
        assert answer.body[int(answer.headers[HEADER]) :] == data
        assert made.budgets[BODIES].used == 0

    made.run(scenario)


def test_who_sends_slowly_is_told_and_holds_nothing(made, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_IDLE_SECONDS", 0.2)

    async def scenario(port):
        reader, writer = await asyncio.open_connection(*port.where)
        writer.write(b"POST /v2/models/raw/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(180):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 504 ")
        writer.close()
        assert made.budgets[BODIES].used == 0

    made.run(scenario)


def test_who_reads_slowly_is_left(made, monkeypatch):
    monkeypatch.setattr(bodies, "STUCK_SECONDS", 0.3)

    async def scenario(port):
        data = bytes(32 << 20)
        asked = in_bytes("x", "UINT8", [len(data)], data, parameters={"binary_data_output": True})
        reader, writer = await asyncio.open_connection(*port.where, limit=1 << 16)
        length, header = len(asked["data"]), asked["headers"][HEADER]
        writer.write(
            f"POST /v2/models/raw/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
            f"{HEADER}: {header}\r\n\r\n".encode()
            + asked["data"]
        )
        await writer.drain()
        await until(lambda: made.models["raw"].asked and not made.budgets[BODIES].used)
        # It was broken off: not all of it is there to read.
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(len(data))
        writer.close()

    made.run(scenario)


def test_who_goes_away_is_not_waited_for(made):
    async def scenario(port):
        asking = asyncio.create_task(port.post("/v2/models/waits/infer", json=floats([1.0])))
        await until(lambda: made.models["waits"].asked)
        asking.cancel()
        await until(lambda: made.models["waits"].cancelled)
        assert made.budgets[BODIES].used == 0

    made.run(scenario)


def test_a_body_is_asked_for_only_where_it_is_wanted(made):
    """curl sends `Expect: 100-continue` before a long body."""

    async def scenario(port):
        answer = await port.post("/v2/models/simple/infer", json=sums(), expect100=True)
        assert answer.status == 200

    made.run(scenario)


def test_long_json_is_read_elsewhere_to_the_same_end(made, monkeypatch):
    monkeypatch.setattr(json_apart, "INLINE_BYTES", 1024)

    async def scenario(port):
        values = [n / 8 for n in range(2000)]
        answer = await port.post("/v2/models/floats/infer", json=floats(values, id="long"))
        assert (answer.status, answer.json["id"]) == (200, "long"), answer.text
        assert answer.json["outputs"][0]["data"] == values
        texts = [f"ä{n}" for n in range(500)]
        asked = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [500], "data": texts}]}
        answer = await port.post("/v2/models/bytes/infer", json=asked)
        assert answer.json["outputs"][0]["data"] == texts

        answer = await port.post("/v2/models/floats/infer", json=floats([*values, 1e300]))
        assert (answer.status, "does not fit in FP32" in answer.json["error"]) == (400, True)
        answer = await port.post("/v2/models/floats/infer", data=json.dumps(floats(values))[:-1])
        assert answer.status == 400
        assert "failed to parse the request JSON buffer" in answer.json["error"]
        aside = floats([1.0], parameters={"a": "x" * 200_000})
        answer = await port.post("/v2/models/floats/infer", json=aside)
        assert answer.status == 400

    made.run(scenario)


@pytest.mark.parametrize(
    "inputs", [[{}] * 1025, {"0": {}}, [{}, 5], None], ids=["too many", "an object", "a number", "null"]
)
def test_inputs_that_are_none_leave_no_files(inputs, tmp_path):
    """Each of many small ones would be a file of its own, which takes seconds, before it was refused."""
    one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    if isinstance(inputs, list):
        inputs = [one if place == {} else place for place in inputs]
    (tmp_path / "request.json").write_text(json.dumps({"inputs": inputs}))
    assert json_apart.main(tmp_path, "the JSON") == 1
    assert "inputs" in json.loads((tmp_path / "error.json").read_text())["message"]
    assert {file.name for file in tmp_path.iterdir()} == {"request.json", "error.json"}


def test_few_processes_read_json_at_a_time(made, monkeypatch):
    monkeypatch.setattr(json_apart, "INLINE_BYTES", 1024)
    at_work = most = 0
    run = json_apart.apart.run

    async def counted(*asked):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        try:
            return await run(*asked)
        finally:
            at_work -= 1

    monkeypatch.setattr(json_apart.apart, "run", counted)

    async def scenario(port):
        values = [n / 8 for n in range(2000)]
        ask = [
            port.post("/v2/models/floats/infer", json=floats(values))
            for _ in range(2 * json_apart.JSON_PROCESSES)
        ]
        assert {answer.status for answer in await asyncio.gather(*ask)} == {200}
        assert most == json_apart.JSON_PROCESSES

    made.run(scenario)


def test_a_connection_is_kept_for_the_next_request(made):
    async def scenario(port):
        reader, writer = await asyncio.open_connection(*port.where)
        body = json.dumps(sums()).encode()
        one = b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
        for _ in range(3):
            writer.write(one % (len(body), body))
            async with asyncio.timeout(180):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"Content-Length: (\d+)", head)[1])
                assert json.loads(await reader.readexactly(length))["model_name"] == "simple"
        writer.close()

    made.run(scenario)


def test_without_tls_another_sites_page_gets_nothing(made):
    async def scenario(port):
        for headers in (
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://evil"},
        ):
            answer = await port.post("/v2/models/simple/infer", json=sums(), headers=headers)
            assert (answer.status, "error" in answer.json) == (403, True)

    made.run(scenario)


def test_what_is_said_of_priority_and_time_is_what_the_model_is_asked_with(made):
    async def asked(port):
        told = await port.post(
            "/v2/models/simple/infer", json=sums(parameters={"priority": 3, "timeout": 2_500_000})
        )
        assert told.status == 200
        (request,) = made.models["simple"].asked
        assert (request.priority, request.seconds) == (3, 2.5)
        told = await port.post("/v2/models/simple/infer", json=sums(parameters={"priority": -1}))
        assert told.status == 400
        assert "'priority' must be a whole number" in told.json["error"]

    made.run(asked)
