"""Every argument of every call of a client, given what it is not for: an error that names the argument."""

import asyncio
import inspect
from pathlib import Path

import numpy as np
import pytest
from full_fake import small_model
from test_wrong_values import FEDERATED, WRONG

import edge_attention
from edge_attention import AsyncClient, Client, EdgeAttentionError, InvalidArgument, InvalidTensor, read_job
from edge_attention.client.context_files import ContextWriter
from edge_attention.client.contexts import AsyncContext
from edge_attention.client.ensembles import AsyncEnsemble
from edge_attention.client.models import AsyncServedModel
from edge_attention.client.runs import AsyncRun
from edge_attention.client.sync import Context, Ensemble, Run, ServedModel
from edge_attention.core.messages.attention import ContextPiece, ContextSpec
from edge_attention.core.messages.ensembles import DeployedEnsemble, EnsembleTensor
from edge_attention.core.messages.inference import DeployedModel, DeploymentState, ModelTensor
from edge_attention.core.tensors import DataType

ONES = np.ones((2, 2, 8), np.float32)
QUERIES = np.ones((2, 4, 8), np.float32)
RIGHT = {
    "aggregator": {}, "probe": {"node": "a"}, "context": {"name": "c"}, "run": {"run": "r1"},
    "create_context": {"name": "n", "query_heads": 4, "key_heads": 2, "key_dim": 8, "value_dim": 8},
    "train": {"job": FEDERATED}, "plan": {"job": FEDERATED},
    "append": {"keys": ONES, "values": ONES}, "attend": {"queries": QUERIES},
    "gradients": {"queries": QUERIES, "out": QUERIES, "dout": QUERIES, "lse": np.ones((2, 4), np.float32)},
    "append_dataset": {"node": "a", "dataset": "d", "model": b"m", "inputs": {"x": "x"}},
    "import_context": {"file": "KEPT"}, "forget_node": {"node": "a"}, "trim": {"positions": range(1)},
    "repair": {}, "export": {"file": "FILE"}, "describe": {},
    "events": {}, "parameters": {}, "save_parameters": {"file": "FILE"}, "onnx": {}, "trained": {},
    "save_onnx": {"file": "FILE"}, "predict": {"rows": {"x": ONES[0]}}, "model": {"name": "m"},
    "deploy": {"model": b"m", "name": "m", "plan": "tokens"},
    "deploy_ensemble": {"file": 'how = "mean"\n', "name": "m"}, "ensemble": {"name": "m"},
    "infer": {"inputs": {"x": ONES}}, "generate": {"prompt": [1, 2]},
}  # fmt: skip
TENSOR = ModelTensor("x", DataType.FLOAT32, tuple(map(str, ONES.shape)))
MODEL = DeployedModel("m", 1, DeploymentState.SERVING, inputs=(TENSOR,))
ENSEMBLE = DeployedEnsemble("e", 1, "mean", inputs=(EnsembleTensor("x", "FP32", ONES.shape),))
SIZES = {"query_heads": 4, "key_heads": 2, "key_dim": 8, "value_dim": 8}
PAIRS = {
    Client: AsyncClient, Context: AsyncContext, Run: AsyncRun, ServedModel: AsyncServedModel,
    Ensemble: AsyncEnsemble,
}  # fmt: skip


def arguments(cls):
    """The names of each call's arguments, by the call's name."""
    return {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }


CALLS = [(cls, name, one) for cls in PAIRS for name, all_ in arguments(cls).items() for one in all_]
ASYNC_CALLS = [(cls, name) for cls in PAIRS.values() for name, all_ in arguments(cls).items() if all_]


@pytest.fixture
def here(fake, tmp_path, monkeypatch):
    """A folder with an exported context, and a model to be predicted with."""
    monkeypatch.chdir(tmp_path)
    fake.trained = small_model()
    writer = ContextWriter(Path("KEPT"))
    writer.add(ContextPiece(ContextSpec("kept", **SIZES), 2, np.arange(2), ONES, ONES))
    writer.finish()


def wrong_calls(name, argument):
    """Arguments of a call of which one is what it is not for."""
    for wrong in WRONG:
        if not (argument == "progress" and callable(wrong)):
            yield RIGHT.get(name, {}) | {argument: wrong}


def check_refusals(messages, argument):
    """The catalogue's errors of calls with a wrong `argument`: they name it, and there are enough of them."""
    names = {argument} | ({"a model", "the model"} if argument == "model" else set())
    # What only the aggregator can know, as that there is no such run, it says in its own words.
    known = {"there is no", "no context", "already", "is taken", "at least one", "Method not found"}
    for message in messages:
        assert "cannot be sent" not in message
        assert any(word in message for word in names | known), message
    assert len(messages) > len(WRONG) / 4


@pytest.fixture
def held(here, client):
    context = client.create_context("c", **SIZES)
    context.append(ONES, ONES)
    return {
        Client: client,
        Context: context,
        Run: client.run("r1"),
        ServedModel: ServedModel(client, AsyncServedModel(client._client.connection, MODEL)),
        Ensemble: Ensemble(client, AsyncEnsemble(client._client.connection, ENSEMBLE)),
    }


def test_both_clients_take_the_same_arguments():
    for one, other in PAIRS.items():
        for name, mine in arguments(one).items():
            assert mine == arguments(other)[name], name
    assert len(CALLS) > 40
    assert {(PAIRS[cls], name) for cls, name, _ in CALLS} == set(ASYNC_CALLS)


@pytest.mark.parametrize(
    ("cls", "name", "argument"), CALLS, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_wrong_argument_raises_the_catalogue_s_error_and_names_it(held, cls, name, argument):
    refused = []
    for given in wrong_calls(name, argument):
        try:
            answer = getattr(held[cls], name)(**given)
            list(answer) if name == "events" else answer
        except EdgeAttentionError as error:
            refused.append(error.message)
    check_refusals(refused, argument)


@pytest.mark.parametrize(("cls", "name"), ASYNC_CALLS, ids=lambda part: getattr(part, "__name__", part))
def test_the_asyncio_client_says_the_same(here, address, cls, name):
    async def refusals():
        found = {}
        async with AsyncClient(address, timeout=20, patience=5) as client:
            context = await client.create_context("c", **SIZES)
            await context.append(ONES, ONES)
            thing = {
                AsyncClient: client,
                AsyncContext: context,
                AsyncRun: await client.run("r1"),
                AsyncServedModel: AsyncServedModel(client.connection, MODEL),
                AsyncEnsemble: AsyncEnsemble(client.connection, ENSEMBLE),
            }[cls]
            for argument in arguments(cls)[name]:
                found[argument] = []
                for given in wrong_calls(name, argument):
                    try:
                        answer = getattr(thing, name)(**given)
                        if inspect.isasyncgen(answer):
                            [event async for event in answer]
                        elif inspect.isawaitable(answer):
                            await answer
                    except EdgeAttentionError as error:
                        found[argument].append(error.message)
        return found

    for argument, messages in asyncio.run(refusals()).items():
        check_refusals(messages, argument)


@pytest.mark.parametrize("argument", list(inspect.signature(Client).parameters))
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_wrong_argument_of_a_client_is_refused_as_it_is_made(cls, argument):
    refused = []
    for wrong in WRONG:
        try:
            cls(**{"address": "127.0.0.1:1"} | {argument: wrong})
        except EdgeAttentionError as error:
            refused.append(error.message)
    assert all(argument in message or "HOST:PORT" in message for message in refused), refused
    assert len(refused) > len(WRONG) / 3


def test_a_wrong_path_of_a_job_is_refused(tmp_path):
    for wrong in (*WRONG, tmp_path, tmp_path / "none.toml"):
        with pytest.raises(InvalidArgument):
            read_job(wrong)
    with pytest.raises(InvalidArgument):
        read_job(Path("\ud800"))


def test_what_is_exported_is_there():
    for name in edge_attention.__all__:
        assert getattr(edge_attention, name) is not None
    with pytest.raises(InvalidTensor, match="keys"):
        raise InvalidTensor("keys")
