"""The inference recipe as the server adds it: deployed models, and requests through them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aggregator.engine.recipe import Engine, Recipe
from aggregator.inference.activity import InferenceActivity
from aggregator.inference.asking import ModelAsker
from aggregator.inference.decoding.sessions import DecoderSessions
from aggregator.inference.deployed import Deployed
from aggregator.inference.deployments import Deployments
from aggregator.inference.ensembles.ensemble_models import EnsembleModels
from aggregator.inference.ensembles.kept_ensembles import KeptEnsembles
from aggregator.inference.ensembles.service import EnsembleApi
from aggregator.inference.generation.generator import Generator
from aggregator.inference.generation.metrics import GenerationMetrics
from aggregator.inference.generation.request import GenerationUsage
from aggregator.inference.generation.service import GenerationApi
from aggregator.inference.generation.streamed_models import (
    SUFFIX,
    ServedDecoder,
    StreamedDecoders,
    require_no_stream,
)
from aggregator.inference.generation.texts import DeploymentTexts
from aggregator.inference.metrics import InferenceMetrics
from aggregator.inference.page import InferencePage
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.inference.protocol.deployed_models import DeployedModels, described_tensors
from aggregator.inference.protocol.service import OpenInferenceApi
from aggregator.inference.protocol.statistics import InferenceCounts
from aggregator.inference.protocol.triton_metrics import TritonMetrics
from aggregator.inference.runner import ModelRunner
from aggregator.inference.service import InferenceApi
from aggregator.inference.whole.whole_runner import WholeRunner
from edge_attention.core.messages.inference import DECODER_FILES, TEXT_FILES, InferReport


def inference(engine: Engine) -> Recipe:
    """Answers with whole models. Deployments of an earlier life are back when the server resumes."""
    metrics, activity = InferenceMetrics(engine.metrics), InferenceActivity()
    deployments = Deployments(engine, ModelRunner(engine), WholeRunner(engine), metrics, activity.forget)
    counts = InferenceCounts()
    asker = ModelAsker(deployments, metrics, activity, counts)
    api = InferenceApi(asker, engine.budgets, engine.turns)
    models = DeployedModels(asker)
    plane = DataPlane([models], engine.budgets)
    sessions = DecoderSessions(engine, deployments)

    TritonMetrics(plane.model_statistics, engine.metrics.registry, deployments.waiting)

    async def forget(gone: Deployed) -> None:
        serves = deployments.serving(gone.name)
        if serves is None or serves is gone or serves.version != gone.version:
            counts.forget(gone.name, gone.version)
            counts.forget(gone.name + SUFFIX, gone.version)

    deployments.leaving.append(forget)

    def text_folder(model: str) -> tuple[str, Path]:
        deployed = deployments.require(model)
        return deployed.id, deployed.folder.model.parent

    async def check_texts(deployed: Deployed) -> None:
        await DeploymentTexts.check(deployed.folder.model.parent)

    async def check_name(deployed: Deployed) -> None:
        require_no_stream(deployed.name)

    deployments.checks += [check_name, check_texts]
    texts = DeploymentTexts(text_folder)

    def serves(model: str) -> ServedDecoder | None:
        deployed = deployments.serving(model)
        if deployed is None or deployed.planned is None or models.find(model, "") is None:
            return None
        files, inputs = deployed.request.files, deployed.planned.inputs
        arrays = DECODER_FILES[0] in files and any(one.data_type.value.startswith("float") for one in inputs)
        taken = described_tensors(inputs) if arrays else ()
        return ServedDecoder(str(deployed.version), TEXT_FILES[0] in files, taken)

    def generated(model: str, seconds: float, usage: GenerationUsage | None) -> None:
        if (found := serves(model)) is None:
            return
        name, version = model + SUFFIX, int(found.version)
        if usage is None:
            counts.failed(name, version, seconds)
            return
        said = usage.lacking
        counts.answered(name, version, 1, InferReport(version, not said, 1.0, said, {"all": seconds}, {}))

    generator = Generator(
        sessions, texts, engine.budgets, GenerationMetrics(engine.metrics), activity.traffic, generated
    )
    plane.add(StreamedDecoders(generator, serves, counts))

    async def close() -> None:
        await texts.close()
        await sessions.shut()
        await deployments.close()

    ensembles = KeptEnsembles(
        engine.state,
        plane,
        lambda name: deployments.serving(name) is not None,
        counts.forget,
    )
    plane.add(EnsembleModels(ensembles, plane, asker.counts))

    def recall() -> None:
        ensembles.recall()
        deployments.recall()

    return Recipe(
        "inference",
        (
            *api.endpoints(),
            *GenerationApi(generator).endpoints(),
            *OpenInferenceApi(plane, engine.budgets).endpoints(),
            *EnsembleApi(ensembles, plane).endpoints(),
        ),
        InferencePage(deployments, activity),
        Path(__file__).with_name("page.js"),
        unneeded=lambda member: (*deployments.unneeded(member), *sessions.unneeded(member)),
        only_on=lambda node: only_on(node, deployments.deployed()),
        recall=recall,
        resume=deployments.resume,
        close=close,
        offers=(plane, generator),
    )


def only_on(node: str, serving: Iterable[Deployed]) -> tuple[str, ...]:
    """What of the models that serve no other node than this one holds, a few words each."""
    found = []
    for deployed in serving:
        holders = deployed.planned.holders if deployed.planned is not None else {}
        if count := sum(set(nodes) == {node} for nodes in holders.values()):
            found.append(f"{count} of {len(holders)} parts of model {deployed.name!r}")
    return tuple(found)
