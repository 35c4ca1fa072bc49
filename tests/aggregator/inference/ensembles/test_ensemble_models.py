"""Ensembles over models that answer, are late, or are not there."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest

from aggregator.inference.ensembles.ensemble_models import EnsembleModels
from aggregator.inference.ensembles.kept_ensembles import KeptEnsembles
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.served import ModelAnswered
from aggregator.inference.protocol.statistics import InferenceCounts
from aggregator.store.state import State
from edge_attention.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    InvalidTensor,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from edge_attention.core.messages.open_inference import (
    ConfiguredInput,
    ConfiguredOutput,
    Datatype,
    InferenceRequest,
    ModelConfig,
    ModelMetadata,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    NamedTensor,
    TensorMetadata,
)


class Model:
    """Gives `outputs` (name -> what it makes of its input) after `seconds`."""

    version = "1"
    joined = MappingProxyType({})

    def __init__(self, name, outputs, *, seconds=0.0, takes="x", shape=(-1, 2), said=None, decoupled=False):
        self.name, self.outputs, self.seconds, self.takes = name, outputs, seconds, takes
        self.shape, self.said = shape, said or {}
        self.ready, self.error, self.under_way, self.cancelled = True, None, 0, 0
        self.priority, self.decoupled, self.seen = None, decoupled, None
        self.came = asyncio.Event()

    def metadata(self):
        inputs = (TensorMetadata(self.takes, "FP32", self.shape),)
        made = {
            name: make(np.zeros([max(n, 1) for n in self.shape], np.float32))
            for name, make in self.outputs.items()
        }
        outputs = tuple(TensorMetadata(name, "FP32", (-1, *array.shape[1:])) for name, array in made.items())
        return ModelMetadata(self.name, ("1",), "test", inputs, outputs)

    def config(self):
        metadata = self.metadata()
        return ModelConfig(
            self.name,
            "test",
            ModelVersionPolicy(),
            0,
            tuple(ConfiguredInput(one.name, Datatype.FP32, one.shape) for one in metadata.inputs),
            tuple(ConfiguredOutput(one.name, Datatype.FP32, one.shape) for one in metadata.outputs),
            model_transaction_policy=ModelTransactionPolicy(self.decoupled),
        )

    async def infer(self, request):
        self.under_way += 1
        self.priority, self.seen = request.priority, request
        self.came.set()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return ModelAnswered(
            {name: self.outputs[name](request.feeds[self.takes]) for name in request.outputs}, self.said
        )

    async def stream(self, request):
        yield await self.infer(request)


class Models:
    def __init__(self, *models):
        self.all = {model.name: model for model in models}

    def find(self, name, version):
        found = self.all.get(name)
        return found if found is not None and version in ("", "1") else None

    def index(self):
        return ()

    def statistics(self, name, version):
        return ()

    async def load(self, name, parameters, caller):
        return False

    async def unload(self, name):
        return False


class House:
    """A data plane with models, and ensembles of them."""

    def __init__(self, folder, *models):
        self.models = Models(*models)
        self.plane = DataPlane([self.models])
        self.counts = InferenceCounts()
        self.state = State(folder)
        self.kept = KeptEnsembles(self.state, self.plane, lambda name: name in self.models.all)
        self.ensembles = EnsembleModels(self.kept, self.plane, self.counts)
        self.plane.add(self.ensembles)

    async def deploy(self, text, name="both"):
        return await self.kept.deploy(name, text, "me")

    async def ask(self, name="both", seconds=30.0, **inputs):
        tensors = tuple(NamedTensor(key, "FP32", tuple(value.shape), value) for key, value in inputs.items())
        reply = await self.plane.infer(InferenceRequest(name, inputs=tensors, seconds=seconds), "me")
        return {one.name: one.data for one in reply.outputs}, dict(reply.parameters)


X = np.float32([[1, 2], [3, 4]])
MEAN = '[[member]]\nmodel = "one"\n[[member]]\nmodel = "two"\nweight = 3.0\n'


def twice(x):
    return 2 * x


def same(x):
    return x


def test_members_are_asked_at_once_and_averaged(tmp_path):
    async def run():
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))
        await house.deploy(MEAN)
        metadata = house.plane.model_metadata("both")
        assert [(one.name, one.shape) for one in metadata.inputs] == [("x", (-1, 2))]
        assert [(one.name, one.shape) for one in metadata.outputs] == [("output", (-1, 2))]
        outputs, said = await house.ask(x=X)
        np.testing.assert_array_equal(outputs["output"], 1.75 * X)
        assert not said
        given = (NamedTensor("x", "FP32", (2, 2), X),)
        await house.plane.infer(InferenceRequest("both", parameters={"priority": 2}, inputs=given), "me")
        assert house.models.all["one"].priority == house.models.all["two"].priority == 2
        assert house.counts.of("both", 1).inference_stats.success.count == 2

    asyncio.run(run())


def test_who_is_late_is_left_out_and_named_and_ends(tmp_path):
    async def run():
        late = Model("two", {"y": twice}, seconds=20.0)
        house = House(tmp_path, Model("one", {"y": same}), late)
        await house.deploy("seconds = 0.2\n" + MEAN)
        outputs, said = await house.ask(x=X)
        np.testing.assert_array_equal(outputs["output"], X)
        assert said == {"exact": False, "coverage": 0.25, "lacking": "member two: no answer in 0.2 s"}
        assert (late.under_way, late.cancelled) == (0, 1)
        await house.deploy('seconds = 0.2\nneeds = ["two"]\n' + MEAN)
        with pytest.raises(DeadlineExceeded, match=r"member 'two', which is needed: no answer in 0\.2 s"):
            await house.ask(x=X)
        assert (late.under_way, late.cancelled) == (0, 2)

    asyncio.run(run())


def test_who_goes_away_while_members_end_is_gone(tmp_path):
    """A cancellation that comes while an absent member ends was lost: the request went on for nobody."""

    async def run():
        lingers, goes_on = asyncio.Event(), asyncio.Event()
        late = Model("two", {"y": twice})

        async def infer(request):
            try:
                await asyncio.Event().wait()
            finally:
                lingers.set()
                await goes_on.wait()

        late.infer = infer
        house = House(tmp_path, Model("one", {"y": same}), late)
        await house.deploy("seconds = 0.1\n" + MEAN)
        asked = asyncio.create_task(house.ask(x=X))
        await lingers.wait()
        asked.cancel()
        await asyncio.sleep(0)
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(run())


def test_a_member_that_fails_is_absent_and_what_is_wrong_with_the_input_is_said(tmp_path):
    async def run():
        one, two = Model("one", {"y": same}), Model("two", {"y": twice})
        house = House(tmp_path, one, two)
        await house.deploy(MEAN)
        two.error = Unavailable("its node went")
        _, said = await house.ask(x=X)
        assert said["lacking"] == "member two: its node went"
        del house.models.all["two"]
        _, said = await house.ask(x=X)
        assert "two" in said["lacking"]
        assert house.plane.model_ready("both")
        one.error = DeadlineExceeded("too late")
        two_late = Model("two", {"y": twice}, seconds=20.0)
        house.models.all["two"] = two_late
        with pytest.raises(
            DeadlineExceeded, match=r"no member of the ensemble answered .one: too late; two: no"
        ):
            await house.ask(x=X, seconds=0.2)
        del house.models.all["two"]
        one.error = Unavailable("gone, too")
        with pytest.raises(Unavailable, match=r"no member of the ensemble answered .one: gone, too"):
            await house.ask(x=X)
        one.error = InvalidTensor("x is not finite")
        with pytest.raises(InvalidTensor, match="member 'one': x is not finite"):
            await house.ask(x=X)
        with pytest.raises(InvalidArgument, match="'x'"):
            await house.ask(y=X)
        one.error, house.models.all["two"] = None, Model("two", {"y": twice})
        await house.deploy('needs = ["two"]\n' + MEAN)
        del house.models.all["two"]  # the ensemble is there, and its member is not
        with pytest.raises(FailedPrecondition, match=r"member 'two': .*unknown model: 'two'"):
            await house.ask(x=X)

    asyncio.run(run())


def test_what_a_member_lacks_is_said(tmp_path):
    async def run():
        partly = Model("two", {"y": twice}, said={"exact": False, "lacking": "part 1"})
        house = House(tmp_path, Model("one", {"y": same}), partly)
        await house.deploy(MEAN)
        _, said = await house.ask(x=X)
        assert (said["exact"], said["lacking"]) == (False, "member two: part 1")

    asyncio.run(run())


def test_side_by_side_with_zeros_for_the_absent(tmp_path):
    async def run():
        two = Model("two", {"z": lambda x: x[:, :1], "y": twice}, takes="sound")
        house = House(tmp_path, Model("one", {"y": same}), two)
        text = 'how = "concatenate"\n{}[[member]]\nmodel = "one"\ninputs = {{ x = "image" }}\n'
        text += '[[member]]\nmodel = "two"\n'
        with pytest.raises(InvalidArgument, match="say which one meets"):
            await house.deploy(text.format(""))
        text += 'output = "z"\n'
        await house.deploy(text.format(""))
        assert {one.name for one in house.plane.model_metadata("both").inputs} == {"image", "sound"}
        outputs, _ = await house.ask(image=X, sound=-X)
        np.testing.assert_array_equal(outputs["output"], np.concatenate([X, -X[:, :1]], 1))
        two.error = Unavailable("away")
        with pytest.raises(Unavailable, match="member 'two': away"):
            await house.ask(image=X, sound=-X)
        await house.deploy(text.format('absent = "zeros"\n'))
        outputs, said = await house.ask(image=X, sound=-X)
        np.testing.assert_array_equal(outputs["output"], np.concatenate([X, np.zeros((2, 1))], 1))
        assert said["coverage"] == 0.5

    asyncio.run(run())


def tokens(count):
    def make(x):
        array = np.stack([x * (n + 1) for n in range(count)], 1)  # [batch, tokens, 2]
        return array[:, :, None, :].astype(np.float32)

    return make


def test_attention_over_members_and_a_head(tmp_path):
    async def run():
        one = Model("one", {"keys": tokens(2), "values": tokens(2)})
        two = Model("two", {"keys": tokens(3), "values": tokens(3)})
        head = Model(
            "head", {"y": lambda fused: fused.reshape(len(fused), -1)}, takes="fused", shape=(-1, 1, 1, 2)
        )
        house = House(tmp_path, one, two, head)
        text = 'how = "attention"\nqueries = [[[1.0, 0.5]]]\n{}' + MEAN
        await house.deploy(text.format(""))
        outputs, said = await house.ask(x=X)
        assert not said
        keys = np.concatenate([tokens(2)(X), tokens(3)(X)], 1).astype(np.float64)[:, :, 0]
        scores = keys @ np.array([1.0, 0.5]) / np.sqrt(2)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        np.testing.assert_allclose(outputs["output"][:, 0, 0], (weights[..., None] * keys).sum(1), atol=1e-5)
        np.testing.assert_allclose(outputs["mass"], [[w[:2].sum(), w[2:].sum()] for w in weights], atol=1e-6)
        await house.deploy(text.format('head = "head"\n'))
        headed, _ = await house.ask(x=X)
        np.testing.assert_allclose(headed["y"], outputs["output"].reshape(2, -1), atol=1e-6)
        one.error = Unavailable("away")
        alone, said = await house.ask(x=X)
        np.testing.assert_allclose(alone["mass"], [[0, 1], [0, 1]])
        assert said["lacking"] == "member one: away"
        head.error = Unavailable("its node went")
        with pytest.raises(Unavailable, match="head 'head': its node went"):
            await house.ask(x=X)
        del house.models.all["head"]
        with pytest.raises(FailedPrecondition, match=r"head 'head': .*unknown model"):
            await house.ask(x=X)
        await house.deploy(text.replace("queries = [[[1.0, 0.5]]]", 'queries = "q"').format(""))
        one.error = None
        q = np.broadcast_to(np.float32([1.0, 0.5]), (2, 1, 1, 2)).copy()
        given, _ = await house.ask(x=X, q=q)
        np.testing.assert_allclose(given["output"], outputs["output"], atol=1e-6)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('[[member]]\nmodel = "three"', FailedPrecondition, "model 'three' is not deployed"),
        ('[[member]]\nmodel = "one"\nversion = "7"', FailedPrecondition, "version 7 is not deployed"),
        ('[[member]]\nmodel = "one"\nversion = "x"', InvalidArgument, "member 'one': .* version string 'x'"),
        ('[[member]]\nmodel = "one"\noutput = "z"', InvalidArgument, "has no output 'z'; it has y"),
        ('[[member]]\nmodel = "one"\ninputs = { a = "b" }', InvalidArgument, "has no input 'a'; it has x"),
        ('[[member]]\nmodel = "both"', InvalidArgument, "would ask itself"),
        (MEAN + '[[member]]\nmodel = "wide"', InvalidArgument, r"input 'x' is FP32 \[-1, 2\]"),
        (MEAN + '[[member]]\nmodel = "wide"\ninputs = { x = "w" }', InvalidArgument, "do not meet"),
        ('how = "attention"\nqueries = "q"\n[[member]]\nmodel = "one"', InvalidArgument, "no output 'keys'"),
        ('how = "concatenate"\naxis = 2\n' + MEAN, InvalidArgument, "axis is 2"),
    ],
)
def test_members_that_do_not_fit_are_named_when_it_is_deployed(tmp_path, text, error, says):
    async def run():
        wide = Model("wide", {"y": lambda x: x[..., None]}, shape=(-1, 3))
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}), wide)
        with pytest.raises(error, match=says):
            await house.deploy(text)
        assert house.kept.find("both") is None
        with pytest.raises(AlreadyExists, match="'wide'"):
            await house.deploy(MEAN, "wide")
        for name in ("../both", "both.generate"):
            with pytest.raises(InvalidArgument, match="name"):
                await house.deploy(MEAN, name)

    asyncio.run(run())


NARROW = '[[member]]\nmodel = "narrow"\n'
SIDE = 'how = "concatenate"\n'
ATTENTION = 'how = "attention"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (MEAN + NARROW, r"'narrow' answers FP32 \[-1, 1\] and 'one' FP32 \[-1, 2\]: they do not meet"),
        (SIDE + "axis = 0\n" + MEAN + NARROW, "they do not meet"),
        (SIDE + MEAN + NARROW, None),
        (MEAN + '[[member]]\nmodel = "pieces"', "member 'pieces': .* on streams alone"),
        ('head = "one"\n' + MEAN, "head is of how = 'attention', and this ensemble's is 'mean'"),
        ('absent = "zeros"\n' + MEAN, "absent is of how = 'concatenate'"),
    ],
)
def test_outputs_that_cannot_meet_are_refused_when_it_is_deployed(tmp_path, text, says):
    models = (
        Model("one", {"y": same}),
        Model("two", {"y": twice}),
        Model("narrow", {"y": lambda x: x[:, :1]}),
        Model("pieces", {"y": same}, decoupled=True),
    )
    deployed(tmp_path, models, text, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("queries = [[[1.0, 0.5]]]\n", None),
        ('queries = "q"\n', None),
        ("queries = [[[1.0, 0.5, 2.0]]]\n", "member 'one' answers keys .* the members before it, fit keys"),
        ("queries = [[[1.0, 0.5], [1.0, 2.0]]]\n", "member 'one' answers keys .* and values"),
        ('queries = "q"\nhead = "head"\n', None),
        ('queries = "q"\nhead = "flat"\n', r"head 'flat' takes FP32 \[-1, 2\]; what was attended to is FP32"),
        ('queries = "q"\nhead = "wide"\n', r"head 'wide' takes FP32 \[-1, 1, 1, 3\]"),
        ('queries = "q"\nhead = "pieces"\n', "the head: model 'pieces' gives its answer piece by piece"),
        ('queries = "q"\noutput = "mass"\n', "give it another name"),
    ],
)
def test_keys_queries_and_a_head_that_do_not_fit_are_refused_when_it_is_deployed(tmp_path, text, says):
    def flat(fused):
        return fused.reshape(len(fused), -1)

    models = (
        Model("one", {"keys": tokens(2), "values": tokens(2)}),
        Model("two", {"keys": tokens(3), "values": tokens(3)}),
        Model("head", {"y": flat}, shape=(-1, 1, 1, 2)),
        Model("wide", {"y": flat}, shape=(-1, 1, 1, 3)),
        Model("flat", {"y": flat}),
        Model("pieces", {"y": flat}, shape=(-1, 1, 1, 2), decoupled=True),
    )
    deployed(tmp_path, models, ATTENTION + text + MEAN, says)


def deployed(folder, models, text, says):
    """It is, or, if it says so, is not."""

    async def run():
        house = House(folder, *models)
        if says is None:
            await house.deploy(text)
            return
        with pytest.raises(InvalidArgument, match=says):
            await house.deploy(text)
        assert house.kept.find("both") is None

    asyncio.run(run())


def test_an_ensemble_of_ensembles_and_none_that_goes_round(tmp_path):
    async def run():
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))
        await house.deploy(MEAN)
        await house.deploy('[[member]]\nmodel = "both"', "outer")
        outputs, _ = await house.ask("outer", x=X)
        np.testing.assert_array_equal(outputs["output"], 1.75 * X)
        with pytest.raises(InvalidArgument, match="ask itself, by way of another"):
            await house.deploy('[[member]]\nmodel = "outer"')
        await house.deploy('[[member]]\nmodel = "outer"', "third")
        await house.deploy('[[member]]\nmodel = "third"', "fourth")
        with pytest.raises(InvalidArgument, match="DEPTH"):
            await house.deploy('[[member]]\nmodel = "fourth"', "fifth")
        many = "".join(f'[[member]]\nname = "m{n}"\nmodel = "both"\n' for n in range(32))
        await house.deploy(many, "many")
        more = "".join(f'[[member]]\nname = "m{n}"\nmodel = "many"\n' for n in range(8))
        with pytest.raises(InvalidArgument, match="MAX_ASKED"):
            await house.deploy(more, "more")

    asyncio.run(run())


def test_outputs_meet_in_turn_and_within_bounds(tmp_path):
    """It takes a thread its time, of which all else needs some, too."""

    async def run():
        long = Model("one", {"keys": tokens(2), "values": tokens(2)})
        house = House(tmp_path, long, Model("two", {"y": same}))
        await house.deploy('how = "attention"\nqueries = "q"\n[[member]]\nmodel = "one"\n')
        many = np.zeros((2, 1 << 14, 1, 2), np.float32)
        made = np.broadcast_to(np.float32(0), (2, 1 << 20, 1, 2))
        long.outputs = {name: lambda x: made for name in ("keys", "values")}
        with pytest.raises(ResourceExhausted, match="bound attended-products: 32,768 queries of 1 heads"):
            await house.ask(x=X, q=many)
        await house.deploy('[[member]]\nmodel = "two"\n')
        for caller in ("ana", "ben"):
            await house.ensembles._turns.enter(caller)
        with pytest.raises(DeadlineExceeded, match="for those of other requests to meet"):
            await house.ask(x=X, seconds=0.5)
        house.ensembles._turns.leave("ana")
        await house.ask(x=X)

    asyncio.run(run())


def test_a_head_has_what_waiting_for_a_turn_has_left_of_the_deadline(tmp_path):
    async def run():
        one = Model("one", {"keys": tokens(2), "values": tokens(2)})
        takes = {"takes": "fused", "shape": (-1, 1, 1, 2)}
        head = Model("head", {"y": lambda fused: fused.reshape(len(fused), -1)}, seconds=60.0, **takes)
        house = House(tmp_path, one, head)
        said = 'how = "attention"\nqueries = [[[1.0, 0.5]]]\nhead = "head"\n[[member]]\nmodel = "one"\n'
        await house.deploy(said)
        for caller in ("ana", "ben"):
            await house.ensembles._turns.enter(caller)
        asking = asyncio.create_task(house.ask(x=X, seconds=40.0))
        await asyncio.sleep(0.5)
        assert not head.under_way
        house.ensembles._turns.leave("ana")
        await asyncio.wait_for(head.came.wait(), 30)
        assert head.seen.seconds < 39.6
        asking.cancel()
        await asyncio.wait([asking])

    asyncio.run(run())


def test_an_ensemble_is_not_deployed_anew_with_more_than_those_that_ask_it_may_ask(tmp_path):
    """One request could ask a million models so, 32 by 32 by 32 by 32."""

    async def run():
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))

        def several(model, count):
            return "".join(f'[[member]]\nname = "m{n}"\nmodel = "{model}"\n' for n in range(count))

        await house.deploy(several("one", 1), "low")
        await house.deploy(several("low", 32), "middle")
        await house.deploy(several("middle", 1), "top")
        for text in (several("one", 32), several("two", 8)):
            with pytest.raises(InvalidArgument, match="ensemble 'middle' asks this one: bound MAX_ASKED"):
                await house.deploy(text, "low")
        with pytest.raises(InvalidArgument, match="would ask itself"):
            await house.deploy(several("top", 1), "low")
        await house.deploy(several("two", 1), "low")
        await house.kept.undeploy("low")
        await house.deploy(several("one", 1), "deep")
        await house.deploy(several("deep", 1), "deeper")
        with pytest.raises(InvalidArgument, match="ensemble 'top' asks this one: bound DEPTH"):
            await house.deploy(several("deeper", 1), "low")
        await house.deploy(several("one", 1), "low")

    asyncio.run(run())


def test_a_member_that_was_deployed_anew_with_other_tensors_is_no_crash(tmp_path):
    async def run():
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))
        await house.deploy(MEAN)
        house.models.all["two"] = Model("two", {"y": twice}, takes="z")
        _, said = await house.ask(x=X)
        assert "deployed anew" in said["lacking"]
        house.models.all["two"] = Model("two", {"y": twice, "z": twice})
        _, said = await house.ask(x=X)
        assert "deployed anew" in said["lacking"]
        house.models.all["one"] = Model("one", {"y": lambda x: x.astype(np.float64)})
        with pytest.raises(FailedPrecondition, match="is not FP32 any more"):
            await house.ask(x=X)

    asyncio.run(run())


def test_it_is_there_after_a_restart_and_gone_after_undeploy(tmp_path):
    async def run():
        house = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))
        first = await house.deploy(MEAN)
        second = await house.deploy(MEAN)
        assert (first.version, second.version) == (1, 2)
        (tmp_path / "ensembles" / "torn.json").write_text('{"name": "torn"')
        house.state.close()
        again = House(tmp_path, Model("one", {"y": same}), Model("two", {"y": twice}))
        again.kept.recall()
        assert [(one.name, one.version, one.tensors) for one in again.kept] == [("both", 2, second.tensors)]
        outputs, _ = await again.ask(x=X)
        np.testing.assert_array_equal(outputs["output"], 1.75 * X)
        await again.kept.undeploy("both")
        with pytest.raises(NotFound):
            await again.kept.undeploy("both")
        with pytest.raises(NotFound):
            await again.ask(x=X)
        again.kept.recall()
        assert Counter(one.name for one in again.kept) == Counter()
        again.state.close()

    asyncio.run(run())
