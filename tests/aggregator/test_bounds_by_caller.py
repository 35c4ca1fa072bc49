"""Each bound where it is kept: what reaches it is refused by its name, and what it held is given back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small_job
from house import House, until
from onnx import helper, numpy_helper

from aggregator.api import service as api_module
from aggregator.api.service import Api
from aggregator.attention import attend_plan
from aggregator.attention import service as attention_module
from aggregator.attention.append import Appender
from aggregator.attention.attend_plan import Plans, require_answer, require_attend
from aggregator.attention.contexts import Contexts
from aggregator.attention.service import AttentionApi
from aggregator.bounds import bounds
from aggregator.bounds.budget import Budget, Budgets
from aggregator.engine import arriving
from aggregator.engine.counted import counted
from aggregator.inference.activity import InferenceActivity
from aggregator.inference.asking import ModelAsker
from aggregator.inference.deployments import Deployments
from aggregator.inference.feeds import pieces
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.protocol.statistics import InferenceCounts
from aggregator.inference.runner import ModelRunner
from aggregator.inference.service import InferenceApi
from aggregator.inference.whole.whole_runner import WholeRunner
from aggregator.training import runs as runs_module
from aggregator.training.runs import Runs
from aggregator.training.service import TrainingApi
from edge_attention.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidTensor,
    MessageTooLarge,
    Overloaded,
    ResourceExhausted,
)
from edge_attention.core.messages import attention, inference
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.attention import AppendRequest, AttendRequest, ContextSpec
from edge_attention.core.messages.link import DownloadRequest, UploadChunk
from edge_attention.wire import services

SPEC = ContextSpec("c", 2, 1, 4, 4)
ME, YOU = (SimpleNamespace(peer=lambda who=who: who, time_remaining=lambda: None) for who in ("me", "you"))


class Call:
    """A call of `who` whose callbacks gRPC calls when its answer was taken: at `end`."""

    def __init__(self, who):
        self.peer, self.time_remaining = (lambda: who), lambda: None
        self._callbacks = []

    def add_done_callback(self, callback):
        self._callbacks.append(callback)

    def end(self):
        for callback in self._callbacks:
            callback(self)


class Bounded:
    """A house whose bounds are small: `totals` by the bound's name."""

    def __init__(self, house, **totals):
        self.house, self.budgets = house, Budgets(house.metrics.bound_refused)
        for bound in bounds.ALL:
            if (total := totals.get(bound.name.replace("-", "_"))) is not None:
                self.budgets._budgets[bound.name] = Budget(
                    replace(bound, total=total), house.metrics.bound_refused
                )
        self.contexts = Contexts(house.state, house.membership, house.attend_metrics, self.budgets)
        house.contexts = self.contexts
        self.appender = Appender(self.contexts, house.membership, house.trips, house.bulk)
        house.attender._contexts = self.contexts
        self.api = Api(house.membership, house.bulk, budgets=self.budgets)
        parts = (house.trips, house.bulk, self.contexts, self.appender, house.attender)
        self.attention = AttentionApi(*parts, budgets=self.budgets)

    def refused(self, name):
        found = self.house.metrics.registry.get_sample_value(
            "edge_attention_aggregator_bound_refusals_total", {"bound": name}
        )
        return found or 0

    def nothing_held(self, *names):
        for bound in bounds.ALL:
            assert self.budgets[bound].used == 0 or bound.name in names, bound.name
            self.budgets[bound].check()


def tokens(count, spec=SPEC, seed=0):
    random = np.random.default_rng(seed)
    keys = random.standard_normal((count, spec.key_heads, spec.key_dim)).astype(np.float32)
    return keys, random.standard_normal((count, spec.key_heads, spec.value_dim)).astype(np.float32)


async def messages(keys, values, step, gate=None):
    for at in range(0, len(keys), step):
        if gate is not None and at:
            await gate.wait()
        yield AppendRequest("c", "", keys[at : at + step], values[at : at + step])


def test_contexts_by_owner_and_in_all_also_after_a_restart(tmp_path):
    with House(tmp_path) as house:
        b = Bounded(house, contexts=4)
        for number in range(2):
            asyncio.run(b.contexts.create(replace(SPEC, name=f"mine{number}"), "user/me"))
        with pytest.raises(ResourceExhausted, match="bound contexts: there are 2 of 4 contexts, 2 of them"):
            asyncio.run(b.contexts.create(replace(SPEC, name="mine2"), "user/me"))
        asyncio.run(b.contexts.create(replace(SPEC, name="yours"), "user/you"))
        assert b.refused("contexts") == 1
    with House(tmp_path) as house:
        b = Bounded(house, contexts=4)
        assert b.budgets[bounds.CONTEXTS].of("user/me") == 2
        with pytest.raises(ResourceExhausted):
            asyncio.run(b.contexts.create(replace(SPEC, name="mine2"), "user/me"))
        asyncio.run(b.contexts.drop(b.contexts.get("mine0")))
        asyncio.run(b.contexts.drop(b.contexts.get("mine1")))
        asyncio.run(b.contexts.drop(b.contexts.get("yours")))
        b.nothing_held()
        for number in range(4):  # without TLS nobody owns anything: the total alone counts
            asyncio.run(b.contexts.create(replace(SPEC, name=f"of nobody {number}".replace(" ", "-"))))
        with pytest.raises(ResourceExhausted, match="there are 4 of 4 contexts, drop contexts"):
            asyncio.run(b.contexts.create(replace(SPEC, name="one-more")))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"query_heads": 1024, "value_dim": 257}, "bound width is 262,144"),
        ({"query_heads": 1024, "key_dim": 257}, "bound width is 262,144"),
        (
            {"query_heads": 64, "key_heads": 64, "key_dim": 4096, "value_dim": 1},
            "bound token-bytes is 1,048,576",
        ),
    ],
)
def test_a_context_is_so_wide_at_most(changed, named):
    with pytest.raises(InvalidArgument, match=named):
        replace(SPEC, **changed).check()
    replace(SPEC, query_heads=1024, value_dim=256, key_dim=256).check()


def test_a_segment_that_would_be_one_too_many_is_not_committed_and_the_append_fails():
    async def run(house):
        house.node("a")
        b = Bounded(house, context_bytes=3 * 1024 + 200)
        context = await b.contexts.create(SPEC)
        await b.appender.append("c", "", *tokens(4))
        await b.appender.append("c", "", *tokens(4))  # grows the segment that is known
        assert len(context.segments) == 1
        await b.contexts.create(replace(SPEC, name="other"))
        with pytest.raises(ResourceExhausted, match="bound context-bytes"):
            await b.appender.append("other", "", *tokens(4))
        assert context.tokens == 8
        assert b.contexts.get("other").tokens == 0
        await b.contexts.drop(b.contexts.get("c"))
        await b.appender.append("other", "", *tokens(4))
        await b.contexts.drop(b.contexts.get("other"))
        b.nothing_held()

    with House() as house:
        asyncio.run(run(house))


def test_a_long_append_goes_through_the_disk_and_is_the_same(monkeypatch):
    monkeypatch.setattr(arriving, "IN_MEMORY", 256)

    async def run(house):
        box = house.node("a")
        b = Bounded(house)
        await b.contexts.create(SPEC)
        keys, values = tokens(3000)
        reply = await b.attention.append(messages(keys, values, 700), ME)
        assert reply.tokens == range(3000)
        assert list(house.bulk.folder.iterdir()) == []
        sequences = [name for name in box.node.store.sequences() if name.endswith("keys")]
        assert len(sequences) == 1
        asked = np.random.default_rng(1).standard_normal((3, 2, 4)).astype(np.float32)
        answer = await b.attention.attend(AttendRequest("c", asked), ME)
        scores = np.einsum("qhd,nd->qhn", asked.astype(np.float64), keys[:, 0].astype(np.float64)) / 2
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("qhn,nd->qhd", weights / weights.sum(-1, keepdims=True), values[:, 0])
        np.testing.assert_allclose(answer.out.array, out, atol=1e-5)
        await b.contexts.drop(b.contexts.get("c"))
        b.nothing_held()

    with House() as house:
        asyncio.run(run(house))


def test_what_is_wrong_in_the_middle_of_a_long_append_is_said_and_nothing_is_left(monkeypatch):
    monkeypatch.setattr(arriving, "IN_MEMORY", 256)

    async def run(house):
        house.node("a")
        b = Bounded(house)
        context = await b.contexts.create(SPEC)
        for name, value, where in (("keys", np.nan, 0), ("values", np.inf, 1), ("keys", 1e30, 0)):
            pair = [array.copy() for array in tokens(400)]
            pair[where][350] = value
            with pytest.raises(InvalidTensor, match=name):
                await b.attention.append(messages(*pair, 100), ME)
        assert context.tokens == 0
        assert list(house.bulk.folder.iterdir()) == []
        b.nothing_held("contexts", "context-bytes")

    with House() as house:
        asyncio.run(run(house))


def test_bytes_of_appends_under_way_are_a_caller_s_share_and_another_has_its_own(monkeypatch):
    monkeypatch.setattr(arriving, "IN_MEMORY", 256)
    size = 100 * 32  # of a message: 100 tokens of 8 floats

    async def run(house):
        house.node("a")
        b = Bounded(house, append_bytes=8 * size)
        context = await b.contexts.create(SPEC)
        keys, values = tokens(400)
        gate = asyncio.Event()
        held = asyncio.create_task(b.attention.append(messages(keys[:200], values[:200], 100, gate), ME))
        await until(lambda: b.budgets[bounds.APPEND_BYTES].used == size)
        with pytest.raises(Overloaded, match="bound append-bytes: there are") as refused:
            await b.attention.append(messages(keys, values, 100), ME)
        assert refused.value.retry_after == 2.0
        assert (await b.attention.append(messages(keys[:100], values[:100], 50), YOU)).tokens == range(100)
        gate.set()
        assert (await held).tokens == range(100, 300)
        assert context.tokens == 300
        b.nothing_held("contexts", "context-bytes")

    with House() as house:
        asyncio.run(run(house))


def test_who_stops_sending_gives_its_room_back(monkeypatch):
    monkeypatch.setattr(attention_module, "APPEND_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(api_module, "UPLOAD_IDLE_SECONDS", 0.1)

    async def run(house):
        b = Bounded(house)
        await b.contexts.create(SPEC)
        with pytest.raises(DeadlineExceeded, match=r"an append's next message did not come in 0\.1 s"):
            await b.attention.append(messages(*tokens(4), 2, asyncio.Event()), ME)

        async def chunks():
            yield UploadChunk("", "a" * 64, 0, 10, b"x")
            await asyncio.Event().wait()

        with pytest.raises(DeadlineExceeded, match=r"an upload's next chunk did not come in 0\.1 s"):
            await b.api.upload(chunks(), ME)
        b.nothing_held("contexts", "context-bytes")
        assert list(house.bulk.folder.iterdir()) == []

    with House() as house:
        asyncio.run(run(house))


def test_an_append_comes_within_a_quarter_of_an_hour(monkeypatch):
    monkeypatch.setattr(attention_module, "APPEND_COMING_SECONDS", 0.2)

    async def run(house):
        b = Bounded(house)
        await b.contexts.create(SPEC)

        async def slowly():
            while True:
                yield AppendRequest("c", "", *tokens(1))
                await asyncio.sleep(0.02)

        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s of the first"):
            await b.attention.append(slowly(), ME)

    with House() as house:
        asyncio.run(run(house))


def test_the_disk_keeps_a_reserve(monkeypatch):
    monkeypatch.setattr("aggregator.store.folder.DISK_RESERVE", 1 << 60)
    whole = SimpleNamespace(f_blocks=100, f_frsize=1000, f_bavail=6, f_files=9, f_favail=9)
    monkeypatch.setattr("aggregator.store.folder.os.statvfs", lambda folder: whole)
    monkeypatch.setattr(arriving, "IN_MEMORY", 256)

    async def run(house):
        b = Bounded(house)
        await b.contexts.create(SPEC)
        with pytest.raises(ResourceExhausted, match="bound disk-reserve: the disk of"):
            await b.attention.append(messages(*tokens(100), 50), ME)

        async def chunks():
            yield UploadChunk("", "a" * 64, 0, 2000, b"x")

        with pytest.raises(ResourceExhausted, match="bound disk-reserve"):
            await b.api.upload(chunks(), ME)
        b.nothing_held("contexts", "context-bytes")

    with House() as house:
        asyncio.run(run(house))


def test_uploads_by_number_and_bytes():
    async def run(house):
        b = Bounded(house, uploads=2, upload_bytes=4000)
        gate = asyncio.Event()

        async def chunks(size, wait=False):
            data = bytes(size)
            digest = hashlib.sha256(data).hexdigest()
            yield UploadChunk("", digest, 0, size, data[:1])
            if wait:
                await gate.wait()
            yield UploadChunk("", digest, 1, size, data[1:])

        with pytest.raises(Overloaded, match="bound upload-bytes"):
            await b.api.upload(chunks(2001), ME)
        held = asyncio.create_task(b.api.upload(chunks(2000, wait=True), ME))
        await until(lambda: b.budgets[bounds.UPLOAD_BYTES].used == 2000)
        with pytest.raises(Overloaded, match="bound uploads: there are 1 of 2 uploads under way"):
            await b.api.upload(chunks(10), ME)
        assert (await b.api.upload(chunks(10), YOU)).received == 10
        gate.set()
        assert (await held).received == 2000
        b.nothing_held()

    with House() as house:
        asyncio.run(run(house))


async def reading(stream):
    """The first of it, and it; the rest is never read."""
    return await anext(aiter(stream)), stream


def test_downloads_models_and_parameters_that_are_being_read():
    async def run(house):
        b = Bounded(house, downloads=2)
        digest = house.bulk.lend(bytes(2_000_000))
        _, held = await reading(b.api.download(DownloadRequest("", digest, 0), ME))
        with pytest.raises(Overloaded, match="bound downloads: there are 1 of 2"):
            await reading(b.api.download(DownloadRequest("", digest, 0), ME))
        _, other = await reading(b.api.download(DownloadRequest("", digest, 0), YOU))
        await held.aclose()
        await other.aclose()
        b.nothing_held()

    with House() as house:
        asyncio.run(run(house))


def test_runs_planned_going_on_kept_and_watched():
    async def run(house):
        b = Bounded(house, runs=2, runs_kept=5, planning=2, watches=2)
        runs = Runs(house.runs._services, b.budgets)
        training = TrainingApi(runs, b.budgets)
        job, files = small_job.job(rounds=1000)
        for data in files.values():
            house.state.put_blob(data)
        # The other node never comes: all runs wait for it.
        planned = (await runs.plan(job)).graphs
        releases = sorted({graph.release for graph in planned if graph.node == "a" and graph.release})
        house.node("a", datasets=small_job.datasets("a"), releases=releases)
        first = await runs.start(job, "user/me")
        with pytest.raises(ResourceExhausted, match="bound runs: there are 1 of 2 runs going on"):
            await runs.start(job, "user/me")
        second = await runs.start(job, "user/you")
        assert b.budgets[bounds.RUNS].used == 2

        _, watch = await reading(training.watch(jobs.WatchRunRequest(first.id, -1), ME))
        with pytest.raises(Overloaded, match="bound watches: there are 1 of 2"):
            await reading(training.watch(jobs.WatchRunRequest(first.id, -1), ME))
        await watch.aclose()

        await runs.stop(first.id)
        assert b.budgets[bounds.RUNS].of("user/me") == 0
        third = await runs.start(job, "user/me")
        with pytest.raises(ResourceExhausted, match="bound runs: "):
            await runs.resume_run(first.id)
        for info in (second, third):
            await runs.stop(info.id)
        await runs.resume_run(first.id)
        await runs.stop(first.id)
        with pytest.raises(ResourceExhausted, match="bound runs-kept: there are 3 of 5 runs kept, 2 of them"):
            await runs.start(job, "user/me")
        assert b.budgets[bounds.RUNS].used == 0, "what was refused holds nothing"

        with (
            b.budgets.take(bounds.EXPORTS, "me", 4),
            pytest.raises(Overloaded, match="bound exports: there "),
        ):
            await reading(training.model(jobs.GetModelRequest(first.id), ME))
        with b.budgets.take(bounds.DOWNLOADS, "me", 128), pytest.raises(Overloaded, match="bound downloads"):
            await reading(training.parameters(jobs.GetParametersRequest(first.id), ME))

        planning = asyncio.create_task(training.plan(jobs.PlanRunRequest(job), ME))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="bound planning: there are 1 of 2 jobs being planned"):
            await training.plan(jobs.PlanRunRequest(job), ME)
        await planning
        b.nothing_held("runs-kept")
        again = Budgets()
        Runs(house.runs._services, again).recall()  # as a restart does before anything else
        assert again[bounds.RUNS_KEPT].of("user/me") == 2

    with House() as house:
        asyncio.run(run(house))


def test_a_job_is_so_large_at_most(monkeypatch):
    monkeypatch.setattr(runs_module, "JOB_BYTES", 100)

    async def run(house):
        b = Bounded(house)
        runs = Runs(house.runs._services, b.budgets)
        job, files = small_job.job()
        for data in files.values():
            house.state.put_blob(data)
        for lab in "ab":
            house.node(lab, datasets=small_job.datasets(lab))
        with pytest.raises(ResourceExhausted, match="bound job-bytes: this job takes"):
            await runs.start(job)
        assert list(house.state.each_run()) == []
        b.nothing_held()

    with House() as house:
        asyncio.run(run(house))


def test_models_being_cut_and_requests_to_them(tmp_path):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, 1, ["rows", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", *([e] for e in ends), [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    async def run(house):
        b = Bounded(house, deploying=2, inferences=2)
        engine = SimpleNamespace(
            state=house.state,
            membership=house.membership,
            budgets=b.budgets,
            trips=house.trips,
            bulk=house.bulk,
            plan_anew=0.0,
        )
        metrics = InferenceMetrics(house.metrics)
        deployments = Deployments(engine, ModelRunner(engine), WholeRunner(engine), metrics)
        asker = ModelAsker(deployments, metrics, InferenceActivity(), InferenceCounts())
        api = InferenceApi(asker, b.budgets)
        for name in "ab":
            house.node(name)
        digest = house.state.put_blob(model.SerializeToString())

        def deploy(name):
            return api.deploy(inference.DeployRequest(name, digest, plan="batch", dimensions={"rows": 2}), ME)

        async def asked(rows, gate=None):
            if gate is not None:
                await gate.wait()
            x = np.ones((rows, 4), np.float32)
            yield inference.InferRequest("m", 30.0, (), False, tuple(pieces({"x": x})))

        async def infer(rows, gate=None):
            return [answer async for answer in api.infer(asked(rows, gate), ME)]

        under_way = deploy("m")
        await anext(under_way)
        with pytest.raises(Overloaded, match="bound deploying: there are 1 of 2 models being cut"):
            await anext(deploy("other"))
        assert [event async for event in under_way][-1].state.value == "serving"

        gate = asyncio.Event()
        first = asyncio.create_task(infer(2, gate))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="bound inferences: there are 1 of 2"):
            await infer(2)
        gate.set()
        assert (await first)[0].report.exact
        # Cutting for another shape is at the cost of who asks: others' deployments go on.
        with (
            b.budgets.take(bounds.DEPLOYING, "me"),
            pytest.raises(Overloaded, match=r"bound deploying: .* 1 of them"),
        ):
            await infer(4)
        assert (await infer(4))[0].report.exact
        await api.undeploy(inference.UndeployRequest("m"), ME)
        b.nothing_held()
        await deployments.close()

    with House(tmp_path) as house:
        asyncio.run(run(house))


def test_requests_in_memory_and_calls_under_way():
    async def run(house):
        box = house.node("a")
        b = Bounded(house, request_bytes=2 * 3 * 32, calls=2)
        await b.contexts.create(SPEC)
        await b.appender.append("c", "", *tokens(4))
        queries = np.zeros((3, 2, 4), np.float32)
        box.mute = True
        request = AttendRequest("c", queries, deadline_seconds=2.0)
        held = asyncio.create_task(b.attention.attend(request, ME))
        await until(lambda: b.budgets[bounds.REQUEST_BYTES].used)
        with pytest.raises(Overloaded, match="bound request-bytes"):
            await b.attention.attend(request, ME)
        assert not (await b.attention.attend(replace(request, queries=queries[:1]), YOU)).exact
        assert not (await held).exact

        handlers = counted(
            {services.ATTEND: b.attention.attend, services.BULK_DOWNLOAD: b.api.download}, b.budgets
        )
        attend, refused, download = Call("me"), Call("me"), Call("you")
        held = asyncio.create_task(handlers[services.ATTEND](request, attend))
        await until(lambda: b.budgets[bounds.CALLS].used == 1)
        digest = house.bulk.lend(b"x")
        with pytest.raises(Overloaded, match="bound calls: there are 1 of 2 calls under way"):
            await reading(handlers[services.BULK_DOWNLOAD](DownloadRequest("", digest, 0), refused))
        download_request = DownloadRequest("", digest, 0)
        chunk, stream = await reading(handlers[services.BULK_DOWNLOAD](download_request, download))
        assert chunk.data == b"x"
        await stream.aclose()
        held.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await held
        # Their callers may not have taken the answers yet.
        assert b.budgets[bounds.CALLS].used == 2
        for call in (attend, refused, download):
            call.end()
        await until(lambda: box.cancelled)  # a node hears that nobody waits any more
        b.nothing_held("contexts", "context-bytes")

    with House() as house:
        asyncio.run(run(house))


def test_an_attend_is_computed_before_a_node_is_asked():
    async def run(house):
        box = house.node("a")
        b = Bounded(house)
        context = await b.contexts.create(replace(SPEC, query_heads=256, value_dim=1024, key_dim=1))
        await b.appender.append("c", "", *tokens(4, context.spec))
        asked = len(box.programs)
        for count, weights, cls, words in (
            (70_000, False, ResourceExhausted, "bound attend-queries: 70,000 queries"),
            (200, False, ResourceExhausted, "bound attend-bytes: 200 queries over 1 segments of context 'c'"),
            (5, False, MessageTooLarge, "the answer to 5 queries of 256 heads over 1 segments takes 5,25"),
        ):
            request = AttendRequest("c", np.zeros((count, 256, 1), np.float32), weights=weights)
            with pytest.raises(cls, match=words):
                await b.attention.attend(request, ME)
        await b.contexts.create(replace(SPEC, name="long"))
        await b.appender.append("long", "", *tokens(3000))
        asked = len(box.programs)
        request = AttendRequest("long", np.zeros((100, 2, 4), np.float32), weights=True)
        with pytest.raises(
            MessageTooLarge, match="the weights of 100 queries over 3,000 tokens take 2,400,000"
        ):
            await b.attention.attend(request, ME)
        assert len(box.programs) == asked
        b.nothing_held("contexts", "context-bytes")

    with House() as house:
        asyncio.run(run(house))


def test_what_queries_see_of_many_segments_is_bounded_too():
    context = SimpleNamespace(spec=SPEC, segments=range(1000))
    request = AttendRequest("c", np.zeros((60_000, 2, 4), np.float32))
    with pytest.raises(
        ResourceExhausted, match="60,000 queries over 1,000 segments of context 'c' take 960,0"
    ):
        require_attend(context, request)
    plan = attend_plan.Plan(
        SPEC, (4, 2, 4), 9, 1.0, attend_plan.Encoding.RAW, dict.fromkeys(range(1000)), stretches=1000
    )
    assert require_answer(context, request, plan) == attention.attend_bytes(SPEC, 4, 1000)


def test_plans_that_are_kept_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(attend_plan, "_PLANS_BYTES", 20_000)

    async def run(house):
        house.node("a")
        b = Bounded(house)
        context = await b.contexts.create(SPEC)
        await b.appender.append("c", "", *tokens(100))
        plans = Plans()
        for count in range(1, 40):
            plans.get(context, AttendRequest("c", np.zeros((count, 2, 4), np.float32)))
        kept = sum(plan.nbytes for plan in plans._plans.values())
        assert 10_000 < kept == plans._bytes <= 20_000
        plans.get(context, AttendRequest("c", np.zeros((2000, 2, 4), np.float32)))  # alone too large
        assert (len(plans._plans), plans._bytes) == (0, 0)

    with House() as house:
        asyncio.run(run(house))
