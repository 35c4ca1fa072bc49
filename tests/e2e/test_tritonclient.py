"""Stock `tritonclient` against real processes: what the gRPC examples of Triton's clients do, as calls.

Of those in its client repository are here: simple_grpc_infer_client, simple_grpc_async_infer_client,
simple_grpc_aio_infer_client, simple_grpc_health_metadata, simple_grpc_aio_health_metadata,
simple_grpc_model_control, simple_grpc_aio_model_control, simple_grpc_sequence_stream_infer_client,
simple_grpc_sequence_sync_infer_client, simple_grpc_aio_sequence_stream_infer_client,
simple_grpc_aio_sequence_sync_infer_client, simple_grpc_keepalive_client, simple_grpc_aio_keepalive_client,
simple_grpc_custom_args_client, simple_grpc_aio_custom_args_client, grpc_client,
grpc_explicit_int_content_client, reuse_infer_objects_client. Left out are those of shared memory, CUDA,
images, ensembles, vLLM, and of models that give more answers than they get requests.
"""

from __future__ import annotations

import asyncio
import queue
import re
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from fleets import Fleet, command_line
from open_models import FIRST, SECOND, TYPES, add_sub, identities
from test_deployments import MODEL, Whole, feeds
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs
from tritonclient.utils import InferenceServerException

from edge_attention.core.datatypes import NUMPY
from edge_attention.core.messages.open_inference import Datatype

NAME = "simple"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open-inference")
    file = folder / "simple.onnx"
    file.write_bytes(add_sub())
    with Fleet(folder, state=True) as fleet:
        fleet.nodes("a", "b")
        with fleet.client() as client:
            client.deploy(file, NAME, plan="replicate")
        yield fleet


@pytest.fixture
def client(fleet):
    with triton.InferenceServerClient(fleet.address) as client:
        yield client


def given(first=FIRST, second=SECOND, names=("INPUT0", "INPUT1"), kind=triton):
    inputs = []
    for name, array in zip(names, (first, second), strict=True):
        datatype = {"int32": "INT32", "float32": "FP32", "int64": "INT64"}[array.dtype.name]
        inputs.append(kind.InferInput(name, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def right(result, first=FIRST, second=SECOND):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), first + second)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), first - second)


# The 40 questions


def raw(count=2, tensors=2, size=64, typed=False, change=None):
    request = pb.ModelInferRequest(model_name=NAME)
    for index in range(count):
        tensor = request.inputs.add(name=f"INPUT{index}", datatype="INT32", shape=[1, 16])
        if typed:
            tensor.contents.int_contents.extend(range(16))
    request.raw_input_contents.extend([b"\0" * size] * tensors)
    if change is not None:
        change(request)
    return lambda client: client._client_stub.ModelInfer(request)


def tensor(name, array):
    return given(array, SECOND, (name, "INPUT1"))[0]


def asking(*inputs, **options):
    return lambda client: client.infer(options.pop("model", NAME), list(inputs), **options)


ONE, TWO = given()
MANY = np.zeros((1025, 16), np.int32)
OK, INVALID, NONE = "OK", "INVALID_ARGUMENT", "NOT_FOUND"
QUESTIONS = {
    "a request": (asking(ONE, TWO), OK, ""),
    "a model that is not there": (
        asking(ONE, TWO, model="no"),
        NONE,
        "Request for unknown model: 'no' is not",
    ),
    "a version that is not there": (
        asking(ONE, TWO, model_version="7"),
        NONE,
        "'simple' version 7 is not found",
    ),
    "another size": (
        asking(tensor("INPUT0", FIRST[:, :15]), TWO),
        INVALID,
        r"Expected \[-1,16\], got \[1,15\]",
    ),
    "another rank": (
        asking(tensor("INPUT0", FIRST[None]), TWO),
        INVALID,
        r"Expected \[-1,16\], got \[1,1,16\]",
    ),
    "another type": (
        asking(tensor("INPUT0", FIRST.astype(np.float32)), TWO),
        INVALID,
        "input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    "too few inputs": (asking(ONE), INVALID, r"expected 2 inputs but got 1 .* missing .* \['INPUT1'\]"),
    "an input of no name of its": (
        asking(ONE, tensor("INPUT9", FIRST)),
        INVALID,
        "unexpected inference input 'INPUT9' for model 'simple'",
    ),
    "too many inputs": (
        asking(ONE, TWO, tensor("INPUT9", FIRST)),
        INVALID,
        "expected 2 inputs but got 3 inputs",
    ),
    "an input twice": (asking(ONE, ONE, TWO), INVALID, "input 'INPUT0' already exists in request"),
    "an output of no name of its": (
        asking(ONE, TWO, outputs=[triton.InferRequestedOutput("NOPE")]),
        INVALID,
        "unexpected inference output 'NOPE' for model 'simple'",
    ),
    "one output": (asking(ONE, TWO, outputs=[triton.InferRequestedOutput("OUTPUT1")]), OK, ""),
    "a batch past the most": (
        asking(*given(MANY, MANY)),
        INVALID,
        "inference request batch-size must be <= 1024 for 'simple'",
    ),
    "whether no model is ready": (lambda client: client.is_model_ready("no"), OK, "False"),
    "whether no version is": (lambda client: client.is_model_ready(NAME, "7"), OK, "False"),
    "metadata of none": (lambda client: client.get_model_metadata("no"), NONE, "unknown model: 'no'"),
    "configuration of none": (lambda client: client.get_model_config("no"), NONE, "unknown model: 'no'"),
    "configuration": (lambda client: client.get_model_config(NAME), OK, 'max_batch_size: 1024[^"]*"INPUT0"'),
    "the index": (
        lambda client: client.get_model_repository_index(),
        OK,
        'name: "simple"[^"]*"1"[^"]*"READY"',
    ),
    # Triton did not answer these two as its models were not to be loaded by calls (UNAVAILABLE).
    "to load none": (lambda client: client.load_model("no"), NONE, "failed to load 'no'"),
    "to unload none": (lambda client: client.unload_model("no"), NONE, "failed to unload 'no'"),
    "statistics": (lambda client: client.get_inference_statistics(NAME), OK, "inference_count: [1-9]"),
    "statistics of all": (lambda client: client.get_inference_statistics(), OK, 'name: "simple"'),
    "statistics of none": (
        lambda client: client.get_inference_statistics("no"),
        INVALID,
        "requested model 'no' is not available",
    ),
    "trace settings": (lambda client: client.get_trace_settings(), OK, "trace_level"),
    "log settings": (lambda client: client.get_log_settings(), OK, "log_verbose_level"),
    "regions of shared memory": (lambda client: client.get_system_shared_memory_status(), OK, "^$"),
    "CUDA regions": (lambda client: client.get_cuda_shared_memory_status(), OK, "^$"),
    "a deadline too soon": (asking(ONE, TWO, client_timeout=1e-5), "DEADLINE_EXCEEDED", ""),
    "a priority and a timeout": (asking(ONE, TWO, priority=1, timeout=120_000_000), OK, ""),
    "parameters of its own": (asking(ONE, TWO, parameters={"a": 1, "b": "x", "c": True}), OK, ""),
    "typed contents": (raw(tensors=0, typed=True), OK, ""),
    "too few raw tensors": (
        raw(tensors=1),
        INVALID,
        "unable to find data for input tensor 'INPUT1' for model",
    ),
    # Triton answers: what is sent and belongs to nothing is its sender's mistake here.
    "too many raw tensors": (raw(tensors=3), INVALID, "raw_input_contents has 3 tensors"),
    "too few bytes": (
        raw(size=60),
        INVALID,
        "input byte size mismatch for input 'INPUT0' .* Expected 64, got 60",
    ),
    "too many bytes": (
        raw(size=68),
        INVALID,
        "input byte size mismatch for input 'INPUT0' .* Expected 64, got 68",
    ),
    "raw and typed": (
        raw(typed=True),
        INVALID,
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'simple'",
    ),
    "no data": (raw(tensors=0), INVALID, "unable to find data for input tensor 'INPUT0' for model 'simple'"),
    "no type that there is": (
        raw(change=lambda q: setattr(q.inputs[0], "datatype", "BOGUS")),
        INVALID,
        "data-type is 'BOGUS', but model 'simple' expects 'INT32'",
    ),
    "a negative size": (
        raw(change=lambda q: q.inputs[0].shape.__setitem__(0, -1)),
        INVALID,
        "input 'INPUT0' batch size does not match other inputs for 'simple'",
    ),
    "no shape": (
        raw(change=lambda q: q.inputs[0].ClearField("shape")),
        INVALID,
        "input 'INPUT0' has no shape but model requires batch dimension for 'simple'",
    ),
    "no name of a model": (raw(change=lambda q: q.ClearField("model_name")), NONE, "unknown model: ''"),
}


def answered(client, ask):
    """Status, and what is said: the answer as text, or the error's message."""
    try:
        answer = ask(client)
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode."), error.message()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    if isinstance(answer, triton.InferResult):
        answer = answer.get_response()
    if isinstance(answer, pb.ModelInferResponse):
        assert all(len(one) == 64 for one in answer.raw_output_contents)
    return OK, " ".join(str(answer).split())


def test_forty_questions_and_tritons_answers(client):
    assert len(QUESTIONS) >= 40
    wrong = {}
    for name, (ask, status, said) in QUESTIONS.items():
        found = answered(client, ask)
        if found[0] != status or not re.search(said, found[1]):
            wrong[name] = found
    assert not wrong


# The examples


def test_infer(client):
    outputs = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    result = client.infer(NAME, given(), outputs=outputs, request_id="x1", headers={"test": "1"})
    right(result)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (NAME, "1", "x1")
    # As often as anybody likes, with the same objects and with others' compression.
    inputs = given()
    for first in (FIRST, FIRST + 7, -FIRST):
        inputs[0].set_data_from_numpy(first)
        right(client.infer(NAME, inputs, outputs=outputs, compression_algorithm="gzip"), first)
    batch = np.arange(32, dtype=np.int32).reshape(2, 16)
    right(client.infer(NAME, given(batch, batch)), batch, batch)


def test_the_example_of_the_docs(fleet):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    code = re.search(r"<!-- test: tritonclient -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    assert "127.0.0.1:50051" in code
    said = command_line(code.replace("127.0.0.1:50051", fleet.address))
    assert said.split() == ["[[2", *["2"] * 14, "2]]"]


def test_async_infer(client):
    results = queue.Queue()
    for number in range(9):
        first = FIRST + number
        client.async_infer(
            NAME,
            given(first),
            lambda result, error, first=first: results.put((result, error, first)),
            request_id=str(number),
        )
    for _ in range(9):
        result, error, first = results.get(timeout=60)
        assert error is None
        right(result, first)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    server = client.get_server_metadata()
    assert server.name == "edge-attention"
    assert "model_repository" in server.extensions
    model = client.get_model_metadata(NAME)
    assert (model.name, list(model.versions), model.platform) == (NAME, ["1"], "onnxruntime_onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in model.outputs] == [
        ("OUTPUT0", "INT32", [-1, 16]),
        ("OUTPUT1", "INT32", [-1, 16]),
    ]
    config = client.get_model_config(NAME, as_json=True)["config"]
    assert config["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": ["16"]}
    with pytest.raises(InferenceServerException, match="unknown model: 'wrong_model_name'"):
        client.get_model_metadata("wrong_model_name")
    with pytest.raises(InferenceServerException, match="integral value"):
        client.get_model_metadata(NAME, "one")


def test_model_control(client):
    client.load_model(NAME)
    assert client.is_model_ready(NAME)
    client.unload_model(NAME)
    try:
        assert not client.is_model_ready(NAME)
        (listed,) = client.get_model_repository_index().models
        assert (listed.state, listed.reason) == ("UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="unknown model"):
            client.infer(NAME, given())
    finally:
        client.load_model(NAME)
    right(client.infer(NAME, given()))
    with pytest.raises(InferenceServerException, match="failed to load 'simple': a load with parameters"):
        client.load_model(NAME, config='{"max_batch_size":"16"}')
    for change in (client.update_trace_settings, client.update_log_settings):
        with pytest.raises(InferenceServerException, match="cannot be changed"):
            change(settings={"log_info": False} if "log" in change.__name__ else {"trace_rate": "1"})
    with pytest.raises(InferenceServerException, match="shared memory regions cannot be registered"):
        client.register_system_shared_memory("r", "/r", 64)
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'r'"):
        client.get_cuda_shared_memory_status("r")
    region = given()
    region[0].set_shared_memory("r", 64)
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'"):
        client.infer(NAME, region)


def test_requests_on_a_stream_end_when_they_end(client):
    """Answers have the ids of their requests; what is wrong with one is its answer, and it goes on."""
    results = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    firsts = {str(number): FIRST + number for number in range(20)}
    for number, first in firsts.items():
        sequence = {"sequence_id": 7, "sequence_start": number == "0", "sequence_end": number == "19"}
        client.async_stream_infer(NAME, given(first), request_id=number, **sequence)
        if number == "9":
            client.async_stream_infer("no", given(), request_id="wrong")
            client.async_stream_infer(NAME, given()[:1], request_id="few")
    errors = []
    for _ in range(22):
        result, error = results.get(timeout=60)
        if error is not None:
            errors.append(str(error))
            continue
        right(result, firsts.pop(result.get_response().id))
    client.stop_stream()
    assert not firsts
    assert len(errors) == 2
    assert any("unknown model: 'no'" in error for error in errors)
    assert any("[request id: few] expected 2 inputs but got 1" in error for error in errors)


def test_keepalive_and_arguments_of_channels(fleet):
    options = triton.KeepAliveOptions(2**31 - 1, 20_000, False, 2)
    with triton.InferenceServerClient(fleet.address, keepalive_options=options) as client:
        right(client.infer(NAME, given()))
    arguments = [("grpc.keepalive_time_ms", 30_000), ("grpc.max_receive_message_length", 1 << 20)]
    with triton.InferenceServerClient(fleet.address, channel_args=arguments) as client:
        right(client.infer(NAME, given()))


def test_the_stub_alone(fleet):
    with grpc.insecure_channel(fleet.address) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        request = pb.ModelInferRequest(
            model_name=NAME, raw_input_contents=[FIRST.tobytes(), SECOND.tobytes()]
        )
        for name in ("INPUT0", "INPUT1"):
            request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 2
        request.outputs.add(name="OUTPUT1")
        answer = stub.ModelInfer(request)
        classes, differences = answer.outputs
        assert (classes.datatype, list(classes.shape)) == ("BYTES", [1, 2])
        assert answer.raw_output_contents[0] == b"\x05\0\0\x0016:15\x05\0\0\x0015:14"
        assert (differences.name, answer.raw_output_contents[1]) == ("OUTPUT1", (FIRST - SECOND).tobytes())


def test_asyncio(fleet):
    async def scenario():
        async with triton_aio.InferenceServerClient(fleet.address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready(NAME)
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.get_model_metadata("no")
            results = await asyncio.gather(
                *(client.infer(NAME, given(FIRST + n, kind=triton_aio)) for n in range(9))
            )
            for number, result in enumerate(results):
                right(result, FIRST + number)

            async def requests():
                for number in range(5):
                    first = given(FIRST + number, kind=triton_aio)
                    yield {"model_name": NAME, "inputs": first, "request_id": str(number)}

            found = set()
            async for result, error in client.stream_infer(requests()):
                assert error is None
                number = int(result.get_response().id)
                right(result, FIRST + number)
                found.add(number)
            assert found == set(range(5))

    asyncio.run(scenario())


def test_a_model_that_is_cut(fleet, client, tmp_path):
    """Over two nodes by tokens: what the whole file answers, and its open dimensions are -1."""
    whole = Whole(MODEL)
    with fleet.client() as own:
        own.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": 24})
    metadata = client.get_model_metadata("bert")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("input_ids", "INT64", [-1, -1]),
        ("attention_mask", "INT64", [-1, -1]),
    ]
    sent = feeds(24)
    result = client.infer("bert", given(*sent.values(), names=tuple(sent)), client_timeout=60)
    for name, value in zip(whole.outputs, whole._session.run(None, sent), strict=True):
        np.testing.assert_allclose(result.as_numpy(name), value, atol=1e-5 * np.abs(value).max())
    counted = client.get_inference_statistics("bert").model_stats[0]
    assert (counted.inference_count, counted.execution_count) == (1, 1)
    stages = counted.inference_stats
    assert stages.success.count == 1
    assert stages.success.ns >= stages.queue.ns + stages.compute_infer.ns > 0
    with fleet.client() as own:
        own.model("bert").undeploy()
    assert time.time() * 1000 - counted.last_inference < 60_000


def test_every_type_raw_and_typed(fleet, client, tmp_path):
    file = tmp_path / "types.onnx"
    file.write_bytes(identities())
    with fleet.client() as own:
        own.deploy(file, "types", plan="replicate")
    ends = {name: np.array([0, 1, 1], NUMPY[Datatype(name)]) for name in TYPES}
    for array in ends.values():
        if array.dtype.kind in "iu":
            array[:2] = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    inputs = [triton.InferInput(name, [3], name) for name in TYPES]
    for one, array in zip(inputs, ends.values(), strict=True):
        one.set_data_from_numpy(array)
    result = client.infer("types", inputs, client_timeout=60)
    for name, array in ends.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, strict=True)
    halves = ends.pop("FP16")
    request = pb.ModelInferRequest(model_name="types")
    for name, array in ends.items():
        field = {"U": "uint", "I": "int", "B": "bool", "F": name.lower()}[name[0]]
        field += "64" if name.endswith("INT64") else ""
        contents = request.inputs.add(name=name, datatype=name, shape=[3]).contents
        getattr(contents, f"{field}_contents").extend(array.tolist())
    request.inputs.add(name="FP16", datatype="FP16", shape=[3]).contents.fp32_contents.extend(halves.tolist())
    with pytest.raises(grpc.RpcError, match="FP16 and BF16 have no typed contents"):
        client._client_stub.ModelInfer(request)


@pytest.mark.may_hold("gRPC copies a message on the loop: this one has 24 MB")
def test_messages_past_what_other_services_take(fleet, client, tmp_path):
    """Of this service alone: 8 MiB were gRPC's limit, and others' messages have 4 at most."""
    file = tmp_path / "wide.onnx"
    file.write_bytes(add_sub(columns="columns"))
    with fleet.client() as own:
        own.deploy(file, "wide", plan="replicate", dimensions={"columns": 3})
    rows = np.arange(12_000_000 // 4, dtype=np.int32).reshape(3, -1)
    right(client.infer("wide", given(rows, rows[::-1].copy()), client_timeout=60), rows, rows[::-1])
    with grpc.insecure_channel(fleet.address) as channel:
        call = channel.unary_unary("/edge_attention.v1.FleetService/ListNodes")
        with pytest.raises(grpc.RpcError, match="has at most 4,194,304") as refused:
            call(bytes(12_000_000), timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
