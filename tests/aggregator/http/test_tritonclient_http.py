"""Stock `tritonclient` over HTTP, and the HTTP examples of Triton's client repository, rewritten as calls.

The examples that need no shared memory: simple_http_infer_client, simple_http_async_infer_client,
simple_http_aio_infer_client, simple_http_string_infer_client, simple_http_health_metadata,
simple_http_model_control, and what of reuse_infer_objects_client needs none. Left out: the
simple_http_sequence_ clients (models with a state by sequence id are not served; decoders are sessions),
image_client and ensemble_image_client (they need their own models).
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pocket_models
import pytest
from ports import run

from aggregator.bounds.budget import Budgets
from aggregator.inference.protocol.data_plane import DataPlane
from edge_attention.core.messages.open_inference import Datatype

triton = pytest.importorskip("tritonclient.http", reason="stock clients: pip install 'tritonclient[http]'")
triton_aio = pytest.importorskip("tritonclient.http.aio")
ml_dtypes = pytest.importorskip("ml_dtypes")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

A = np.arange(16, dtype=np.int32)[None]
B = np.ones((1, 16), np.int32)


def with_client(work, **options):
    """Run `work(client, made)` in a thread, in front of pocket models."""
    models = {
        "simple": pocket_models.simple(),
        "simple_string": strings(),
        "floats": pocket_models.echo(Datatype.FP32, "floats"),
        "halves": pocket_models.echo(Datatype.FP16, "halves"),
        "brains": pocket_models.echo(Datatype.BF16, "brains"),
        "truths": pocket_models.echo(Datatype.BOOL, "truths"),
        "waits": pocket_models.waits(),
    }
    made = SimpleNamespace(models=models, source=pocket_models.PocketModels(*models.values()))

    async def scenario(port):
        address = f"{port.where[0]}:{port.where[1]}"

        def called():
            client = triton.InferenceServerClient(address, **options)
            try:
                work(client, made)
            finally:
                client.close()

        made.address = address
        await asyncio.to_thread(called)

    run(scenario, offers=(DataPlane([made.source], Budgets()),))


def strings():
    """Sums and differences of numbers written as text: Triton's model `simple_string`."""
    two = {"INPUT0": (Datatype.BYTES, (16,)), "INPUT1": (Datatype.BYTES, (16,))}
    out = {"OUTPUT0": (Datatype.BYTES, (16,)), "OUTPUT1": (Datatype.BYTES, (16,))}

    def work(feeds):
        a, b = (np.vectorize(int)(feeds[name]) for name in ("INPUT0", "INPUT1"))
        found = {}
        for name, numbers in (("OUTPUT0", a + b), ("OUTPUT1", a - b)):
            found[name] = np.empty(numbers.shape, object)
            found[name][:] = [[str(n).encode() for n in row] for row in numbers]
        return found

    return pocket_models.PocketModel("simple_string", two, out, work, rows=8)


def inputs(a=A, b=B, *, binary=True, datatype="INT32"):
    made = [triton.InferInput(name, list(a.shape), datatype) for name in ("INPUT0", "INPUT1")]
    made[0].set_data_from_numpy(a, binary_data=binary)
    made[1].set_data_from_numpy(b, binary_data=binary)
    return made


def right(result):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)


def refused(call, status, why):
    with pytest.raises(InferenceServerException, match=why) as raised:
        call()
    assert raised.value.status() == str(status)


@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_simple_http_infer_client(binary, packing):
    def work(client, made):
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("OUTPUT0", "OUTPUT1")]
        options = {"request_compression_algorithm": packing, "response_compression_algorithm": packing}
        right(client.infer("simple", inputs(binary=binary), outputs=outputs, request_id="7", **options))
        right(client.infer("simple", inputs(binary=binary), **options))
        result = client.infer("simple", inputs(), outputs=outputs[1:], query_params={"test_1": 1})
        assert result.as_numpy("OUTPUT0") is None
        stats = client.get_inference_statistics("simple")["model_stats"]
        assert stats[0]["name"] == "simple"

    with_client(work)


def test_simple_http_async_infer_client():
    def work(client, made):
        for pending in [client.async_infer("simple", inputs()) for _ in range(8)]:
            right(pending.get_result())

    with_client(work, concurrency=4)


def test_simple_http_aio_infer_client():
    async def scenario(port):
        async with triton_aio.InferenceServerClient(f"{port.where[0]}:{port.where[1]}") as client:
            assert await client.is_server_ready()
            found = await asyncio.gather(*(client.infer("simple", inputs()) for _ in range(8)))
            for result in found:
                right(result)
            right(await client.infer("simple", inputs(), response_compression_algorithm="gzip"))

    plane = DataPlane([pocket_models.PocketModels(pocket_models.simple())], Budgets())
    run(scenario, offers=(plane,))


@pytest.mark.parametrize("binary", [True, False])
def test_simple_http_string_infer_client(binary):
    def texts(numbers):
        return np.array([str(n).encode() for n in numbers.reshape(-1)], object).reshape(numbers.shape)

    def work(client, made):
        asked = inputs(texts(A), texts(B), binary=binary, datatype="BYTES")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("OUTPUT0", "OUTPUT1")]
        result = client.infer("simple_string", asked, outputs=outputs)
        assert [int(one) for one in result.as_numpy("OUTPUT0").reshape(-1)] == (A + B).reshape(-1).tolist()
        assert [int(one) for one in result.as_numpy("OUTPUT1").reshape(-1)] == (A - B).reshape(-1).tolist()

    with_client(work)


def test_simple_http_health_metadata():
    def work(client, made):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        assert client.get_server_metadata()["name"] == "edge-attention"
        assert client.get_model_metadata("simple")["name"] == "simple"
        refused(lambda: client.get_model_metadata("wrong_name"), 404, "unknown model: 'wrong_name'")

    with_client(work)


def test_simple_http_model_control():
    def work(client, made):
        assert {one["name"] for one in client.get_model_repository_index()} == set(made.models)
        client.load_model("simple")
        assert client.is_model_ready("simple")
        client.unload_model("simple")
        assert not client.is_model_ready("simple")
        refused(lambda: client.load_model("wrong_model_name"), 404, "failed to load 'wrong_model_name'")
        assert [one[:2] for one in made.source.changed][:2] == [("load", "simple"), ("unload", "simple")]

    with_client(work)


def test_reuse_infer_objects_client():
    def work(client, made):
        asked = inputs()
        outputs = [triton.InferRequestedOutput(name, binary_data=True) for name in ("OUTPUT0", "OUTPUT1")]
        right(client.infer("simple", asked, outputs=outputs))
        asked[0].set_data_from_numpy(A, binary_data=False)
        right(client.infer("simple", asked, outputs=outputs))

    with_client(work)


def test_types_of_elements():
    def echoed(client, model, datatype, array):
        asked = triton.InferInput("x", list(array.shape), datatype)
        asked.set_data_from_numpy(array)
        return client.infer(model, [asked]).as_numpy("y")

    def work(client, made):
        for model, datatype, dtype in (
            ("floats", "FP32", np.float32),
            ("halves", "FP16", np.float16),
            ("truths", "BOOL", bool),
        ):
            given = np.array([0, 1, 1], dtype)
            np.testing.assert_array_equal(echoed(client, model, datatype, given), given)
        given = np.array([0.5, -2.0], ml_dtypes.bfloat16)
        np.testing.assert_array_equal(echoed(client, "brains", "BF16", given), given)

    with_client(work)


def test_a_timeout_of_the_client_is_the_clients():
    def work(client, made):
        asked = triton.InferInput("x", [1], "FP32")
        asked.set_data_from_numpy(np.zeros(1, np.float32))
        with pytest.raises(Exception, match=r"(?i)time"):
            client.infer("waits", [asked])

    with_client(work, network_timeout=0.5)


def one(name, shape, datatype, array):
    made = triton.InferInput(name, shape, datatype)
    made.set_data_from_numpy(array)
    return made


def test_the_forty_questions():
    """Those of the prototype's probe that HTTP has a form for; status and message as Triton's (its gRPC
    status, as its HTTP door translates it: NOT_FOUND 404, INVALID_ARGUMENT 400, UNAVAILABLE 503).

    Where ours differs on purpose: `load` and `unload` of a model that is not there say so (404), as models
    are loaded explicitly here; a missing input says all that it lacks.
    """

    def work(client, made):
        i = inputs()

        def infer(given=i, model="simple", **more):
            return lambda: client.infer(model, given, **more)

        result = client.infer("simple", i, request_id="x1")
        assert result.get_response()["id"] == "x1"
        assert result.get_response()["model_version"] == "1"
        refused(infer(model="nope"), 404, "Request for unknown model: 'nope' is not found")
        refused(infer(model_version="7"), 404, "Request for unknown model: 'simple' version 7 is not found")
        shape = r"unexpected shape for input 'INPUT0' for model 'simple'. Expected \[-1,16\], got "
        short = one("INPUT0", [1, 15], "INT32", A[:, :15].copy())
        refused(infer([short, i[1]]), 400, shape + r"\[1,15\]")
        refused(infer([one("INPUT0", [1, 1, 16], "INT32", A[None]), i[1]]), 400, shape + r"\[1,1,16\]")
        wrong = one("INPUT0", [1, 16], "FP32", A.astype(np.float32))
        why = "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"
        refused(infer([wrong, i[1]]), 400, why)
        why = (
            r"expected 2 inputs but got 1 inputs for model 'simple'. Got input\(s\) \['INPUT0'\], but "
            r"missing required input\(s\) \['INPUT1'\]"
        )
        refused(infer([i[0]]), 400, why)
        other = one("INPUT9", [1, 16], "INT32", A)
        refused(infer([i[0], other]), 400, "unexpected inference input 'INPUT9' for model 'simple'")
        refused(infer([*i, other]), 400, "expected 2 inputs but got 3 inputs for model 'simple'")
        refused(infer([i[0], i[0], i[1]]), 400, "input 'INPUT0' already exists in request")
        nope = [triton.InferRequestedOutput("NOPE")]
        refused(infer(outputs=nope), 400, "unexpected inference output 'NOPE' for model 'simple'")
        only = client.infer("simple", i, outputs=[triton.InferRequestedOutput("OUTPUT1")])
        assert [o["name"] for o in only.get_response()["outputs"]] == ["OUTPUT1"]
        nine = [one(name, [9, 16], "INT32", np.zeros((9, 16), np.int32)) for name in ("INPUT0", "INPUT1")]
        refused(infer(nine), 400, "inference request batch-size must be <= 8 for 'simple'")
        assert client.is_model_ready("nope") is False
        assert client.is_model_ready("simple", "7") is False
        unknown = "Request for unknown model: 'nope' is not found"
        refused(lambda: client.get_model_metadata("nope"), 404, unknown)
        refused(lambda: client.get_model_config("nope"), 404, unknown)
        config = client.get_model_config("simple")
        assert (config["name"], config["max_batch_size"]) == ("simple", 8)
        assert config["version_policy"] == {"latest": {"num_versions": 1}}
        listed = {"name": "simple", "version": "1", "state": "READY", "reason": ""}
        assert listed in client.get_model_repository_index()
        refused(lambda: client.load_model("nope"), 404, "nope")
        refused(lambda: client.unload_model("nope"), 404, "nope")
        assert len(client.get_inference_statistics("simple")["model_stats"]) == 1
        assert len(client.get_inference_statistics()["model_stats"]) == len(made.models)
        unknown = "requested model 'nope' is not available"
        refused(lambda: client.get_inference_statistics("nope"), 400, unknown)
        assert client.get_trace_settings()["trace_mode"] == "triton"
        assert client.get_log_settings()["log_warning"] is True
        assert client.get_system_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status() == []
        told = client.infer("simple", i, priority=1, timeout=1_000_000)
        assert told.get_response()["model_name"] == "simple"
        told = client.infer("simple", i, sequence_id=(1 << 64) - 1, sequence_start=True)
        assert told.get_response()["model_name"] == "simple"
        told = client.infer("simple", i, parameters={"a": 1, "b": "x", "c": True})
        assert told.get_response()["model_name"] == "simple"

    with_client(work)


def test_settings_cannot_be_changed_and_there_are_no_regions():
    def work(client, made):
        for model in (None, "simple"):
            assert client.get_trace_settings(model)["trace_mode"] == "triton"
            change = lambda model=model: client.update_trace_settings(model, {"trace_rate": "1"})  # noqa: E731
            refused(change, 501, "trace settings cannot be changed")
        refused(lambda: client.get_trace_settings("nope"), 404, "unknown model: 'nope'")
        change = lambda: client.update_log_settings({"log_info": False})  # noqa: E731
        refused(change, 501, "log settings cannot be changed")
        register = lambda: client.register_system_shared_memory("r", "/r", 64)  # noqa: E731
        refused(register, 501, "shared memory regions cannot be registered")
        register = lambda: client.register_cuda_shared_memory("r", b"handle", 0, 64)  # noqa: E731
        refused(register, 501, "shared memory regions cannot be registered")
        why = "Unable to find {} shared memory region: 'r'"
        refused(lambda: client.get_system_shared_memory_status("r"), 404, why.format("system"))
        refused(lambda: client.get_cuda_shared_memory_status("r"), 404, why.format("cuda"))
        output = triton.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory("r", 64)
        region = lambda: client.infer("simple", inputs(), outputs=[output])  # noqa: E731
        refused(region, 404, "Unable to find shared memory region: 'r'")
        for name in ("", "r"):
            client.unregister_system_shared_memory(name)
            client.unregister_cuda_shared_memory(name)

    with_client(work)
