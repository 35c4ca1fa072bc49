"""Plans of jobs through the split: who holds what, what is refused, and what stays where samples are on
nodes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import one_machine
import pytest
import safetensors.numpy

from aggregator.inference.course import Course
from aggregator.inference.cut_request import NodeTold
from aggregator.training.split import planner
from aggregator.training.split.on_nodes import node_views
from aggregator.training.split.plan import CUT, MODEL, SplitPlan, sums_of
from aggregator.training.split.planner import plan
from aggregator.training.split.releases import part_releases
from edge_attention.core.errors import FailedPrecondition, InvalidArgument, InvalidTensor, ResourceExhausted
from edge_attention.core.messages.training import FederatedModel, OptimizerSpec, SplitData, SplitJob
from edge_attention.core.schedule.schedule import ModelInput
from edge_attention.graphs.axes.folder import CutFolder

NODES = tuple(NodeTold(name, 1 << 28, 0, 1) for name in "abc")
ROWS = {"a": {"input_ids": (12,), "attention_mask": (12,)}, "c": {"labels": ()}}


class Job:
    """A job, and its files."""

    def __init__(self, folder, kind="bert"):
        data, loss, parameters, head = one_machine.model_of(kind)
        digest = hashlib.sha256(data).hexdigest()
        self.folder = folder
        (folder / digest).write_bytes(data)
        safetensors.numpy.save_file(one_machine.samples(kind), folder / "samples")
        self.files = {digest: folder / digest, "0" * 64: folder / "samples"}
        model = FederatedModel(digest, loss, parameters, head=head)
        self.job = SplitJob(
            "job", model, "layers", OptimizerSpec("sgd"), 2, 8, SplitData("0" * 64), micro_batches=2
        )

    def plan(self, nodes=NODES, **changed):
        into = self.folder / "into"
        into.mkdir()
        try:
            made = plan(replace(self.job, **changed), self.files, into, ROWS, nodes)
            files = CutFolder(into / "cut" / MODEL, into / "cut" / CUT)
            assert all(files.graph(digest).exists() for digest in files.schedule().graphs.values())
            self.sums = sums_of(into / "cut")
            return SplitPlan.from_json(made.to_json()), CutFolder(
                into / "cut" / MODEL, into / "cut" / CUT
            ).schedule()
        finally:
            into.rename(self.folder / f"into{len(list(self.folder.iterdir()))}")


@pytest.fixture
def made(tmp_path):
    return Job(tmp_path)


def test_layers_go_to_the_nodes_in_their_order_and_every_parameter_has_its_gradient(made):
    found, schedule = made.plan()
    assert found.holders == {0: ("a",), 1: ("b",), 2: ("c",)}
    assert found.stages == 3
    assert found.samples == 96
    assert {f"grad:{name}" for name in found.names} == made.sums.results.keys()
    assert not made.sums.results.keys() & schedule.results.keys(), "of two pieces the nodes send the sum"
    _, schedule = made.plan(micro_batches=1)
    assert made.sums is None
    assert {f"grad:{name}" for name in found.names} <= schedule.results.keys()
    assert sum(part.trained for part in found.parts) >= 4 * sum(found.sizes)
    assert found.text.startswith("layers 0-")


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"nodes": ()}, FailedPrecondition, "no node is here"),
        ({"nodes": tuple(replace(n, memory_limit=20_000) for n in NODES)}, ResourceExhausted, "a would hold"),
        ({"split": "head"}, InvalidArgument, "split is 'head'"),
        (
            {"split": "auto"},
            InvalidArgument,
            "split is 'auto'; it must be one of layers, heads,",
        ),
        (
            {"split": "heads:merge"},
            InvalidArgument,
            r"split is 'heads:merge'; .* \(tokens:gather,",
        ),
        ({"split": "tokens:x"}, InvalidArgument, "split is 'tokens:x'"),
        ({"split": "", "plan": b"{}"}, InvalidArgument, "plan"),
        ({"batch": 7}, InvalidArgument, "equal pieces"),
        (
            {"batch": 98},
            InvalidArgument,
            "batch is 98, and 96 samples are trained on: .* set batch = 96, or less",
        ),
    ],
)
def test_what_cannot_be_split_so_is_refused(made, changed, error, said):
    with pytest.raises(error, match=said):
        made.plan(**changed)


def test_a_token_id_that_the_model_does_not_know_is_found_before_there_is_a_run(made):
    arrays = one_machine.samples("bert")
    arrays["input_ids"] = arrays["input_ids"].copy()
    arrays["input_ids"][41, 3] = 1 << 20
    safetensors.numpy.save_file(arrays, made.folder / "samples")
    with pytest.raises(
        InvalidTensor, match=r"'input_ids' holds 1048576 in row 41, and the model looks it up in a table of"
    ):
        made.plan()


def test_what_would_be_refused_as_too_much_at_a_time_once_the_run_starts_has_no_plan(made, monkeypatch):
    _, schedule = made.plan()
    peak = Course(made.sums).peak
    assert peak > Course(schedule).peak
    monkeypatch.setattr(planner, "PEAK_BYTES", peak)
    made.plan()
    monkeypatch.setattr(planner, "PEAK_BYTES", peak - 1)
    with pytest.raises(ResourceExhausted, match=f"takes {peak:,} bytes at a time.*train fewer parameters"):
        made.plan()


@pytest.mark.parametrize("together", [True, False])
def test_activations_of_the_pieces_under_way_count_and_computing_them_again_is_proposed(
    made, monkeypatch, together
):
    if not together:
        monkeypatch.setattr(planner, "TOGETHER_BYTES", 0)
    found, _ = made.plan(batch=32, micro_batches=4)
    again, _ = made.plan(batch=32, micro_batches=4, recompute=True)

    def needs(plan):
        # All pieces are under way, and their sum is made at the end; else there are three sums, as parts are
        # small enough to be written over.
        gradients = 5 if together else 7
        return max(part.weights + gradients * part.trained + 4 * part.kept for part in plan.parts)

    assert all(part.kept > 0 for part in found.parts[:2])
    assert found.parts[2].kept == 0, "its two passes are one"
    assert needs(again) < needs(found)

    def of(size):
        return tuple(replace(node, memory_limit=size) for node in NODES)

    made.plan(of(needs(found)), batch=32, micro_batches=4)
    with pytest.raises(ResourceExhausted, match=r"with 4 pieces under way: .* set recompute = true"):
        made.plan(of(needs(found) - 1), batch=32, micro_batches=4)
    made.plan(of(needs(again)), batch=32, micro_batches=4, recompute=True)
    with pytest.raises(ResourceExhausted, match=r"would hold .*: name more nodes"):
        made.plan(of(needs(again) - 1), batch=32, micro_batches=4, recompute=True)
    with pytest.raises(ResourceExhausted, match=r"would hold .*: name more nodes"):
        made.plan(of(needs(again) - 1), batch=32, micro_batches=4)


def test_samples_of_another_type_are_refused_by_their_input(made):
    samples = one_machine.samples("bert")
    samples["input_ids"] = samples["input_ids"].astype("float32")
    safetensors.numpy.save_file(samples, made.files["0" * 64])
    with pytest.raises(InvalidTensor, match="'input_ids' is float32"):
        made.plan()


@pytest.mark.parametrize("together", [True, False])
def test_a_mask_that_later_layers_read_is_passed_on_only_where_the_job_says_so(made, monkeypatch, together):
    if not together:
        monkeypatch.setattr(planner, "TOGETHER_PIECES", 1)
    data = SplitData(inputs="texts", labels="marks")
    with pytest.raises(InvalidArgument, match=r"data\.passes = \['attention_mask'\]"):
        made.plan(data=data)
    with pytest.raises(InvalidArgument, match="set split to layers"):
        made.plan(data=data, split="heads")
    job = replace(made.job, data=replace(data, passes=("attention_mask",)))
    found, schedule = made.plan(data=job.data)
    reads = {
        (segment.part, source.name)
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, ModelInput)
    }
    assert reads == {(0, "input_ids"), (0, "attention_mask"), (2, "labels")}
    assert [part.read for part in found.parts] == [("input_ids", "attention_mask"), (), ("labels",)]
    needed = part_releases([schedule], node_views(job, found, {}), made.sums)
    assert needed.keys() == {0, 2}
    leaves = {name for rule in needed[0].graphs.values() for name in rule.leaves}
    assert "passed/attention_mask" in leaves
    names = ("all",) if together else ("first", "next")
    adding = [needed[0].graphs[schedule.graphs[f"sum/0/{name}"]] for name in names]
    assert all(rule.leaves == {"t/*"} for rule in adding)
    gradients = adding[0].inputs["g/*/*" if together else "g/*"]
    assert gradients
    if not together:
        assert adding[1].inputs["g/*"] == gradients
        assert adding[1].inputs["s/*"] == {f"{schedule.graphs[f'sum/0/{n}']}:t/*" for n in names}
    trained = {one.output for one in made.sums.steps[0].segments[0].contributions}
    kept = {n for step in schedule.steps for s in step.segments for n, to in s.kept.items() if to in trained}
    assert kept, "of gradients of a piece nothing leaves"
    assert not any(
        name in rule.leaves
        for step in schedule.steps
        for s in step.segments
        for name, to in s.kept.items()
        if to in trained
        for rule in (needed.get(s.part, needed[0]).graphs.get(schedule.graphs[s.graph]),)
        if rule is not None
    )
    assert needed[0].columns == (
        'column "attention_mask" of dataset "texts"',
        'column "input_ids" of dataset "texts"',
    )
    assert needed[2].columns == ('column "labels" of dataset "marks"',)
