"""The fake aggregator, with models, ensembles, and what becomes of contexts, runs and nodes over years."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from fake import Fake
from onnx import TensorProto, helper

from edge_attention.core import errors
from edge_attention.core.messages import attention as a
from edge_attention.core.messages import ensembles as e
from edge_attention.core.messages import fleet
from edge_attention.core.messages import inference as i
from edge_attention.core.messages import open_inference as o
from edge_attention.core.messages import training as jobs
from edge_attention.core.tensors import DataType
from edge_attention.wire import services as s
from edge_attention.wire.open_inference import MODEL_INFER

ROW = np.arange(8, dtype=np.float32)[None]
REPORT = i.GenerateReport("length", 2, 1, 7, 1, 0, 0, {"tokens": 0.1})


def small_model(width: int = 8) -> bytes:
    """An ONNX file: y = x, rows of `width` numbers."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "small", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


class FullFake(Fake):
    """Knows a model `m`, an ensemble `e`, and a node `a`; whatever it is asked of them is as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = small_model()
        x = i.ModelTensor("x", DataType.FLOAT32, ("batch", "8"))
        self.deployed = i.DeployedModel("m", 1, i.DeploymentState.SERVING, inputs=(x,), outputs=(x,))
        tensor = e.EnsembleTensor("x", "FP32", (-1, 8))
        self.ensemble = e.DeployedEnsemble("e", 1, "mean", ("m",), (tensor,), (tensor,))
        self.handlers |= {
            s.FORGET_NODE: self.forget_node,
            s.TRIM_CONTEXT: self.trim,
            s.REPAIR_CONTEXT: self.repair,
            s.EXPORT_CONTEXT: self.export,
            s.DELETE_RUN: self.delete_run,
            s.PREDICT: self.predict,
            s.LIST_MODELS: self.models,
            s.DESCRIBE_MODEL: self.describe_model,
            s.DEPLOY: self.deploy,
            s.UNDEPLOY: self.undeploy,
            s.INFER: self.infer,
            s.GENERATE: self.generate,
            s.LIST_ENSEMBLES: self.ensembles,
            s.DEPLOY_ENSEMBLE: self.deploy_ensemble,
            s.UNDEPLOY_ENSEMBLE: self.undeploy_ensemble,
            MODEL_INFER: self.model_infer,
        }

    async def forget_node(self, request, context):
        if request.node != "a":
            raise errors.NotFound(f"no node {request.node!r}; nodes seen: a")
        return fleet.ForgetNodeResponse(("tokens 0-9 of context 'memory'",))

    async def trim(self, request, context):
        self.found(request.context)
        return a.TrimContextResponse(len(request.tokens), self.told(request.context))

    async def repair(self, request, context):
        self.found(request.context)
        return a.RepairContextResponse(0, 0, (), self.told(request.context))

    async def export(self, request, context):
        spec, keys, values = self.found(request.context)
        keys, values = np.concatenate(keys), np.concatenate(values)
        yield a.ContextPiece(spec, len(keys), np.arange(len(keys)), keys, values)

    async def delete_run(self, request, context):
        await self.describe_run(request, context)
        return jobs.DeleteRunResponse(self.end)

    async def predict(self, request, context):
        return jobs.PredictResponse(5, {"y": np.zeros((len(request.ids), 2), np.float32)}, {"a": 1.0})

    def model_called(self, name):
        if name != self.deployed.name:
            raise errors.NotFound(f"no model {name!r} is deployed; deployed here: {self.deployed.name}")
        return self.deployed

    async def models(self, request, context):
        return i.ListModelsResponse((self.deployed,))

    async def describe_model(self, request, context):
        return i.DescribeModelResponse(self.model_called(request.name))

    async def deploy(self, request, context):
        if self.blobs[request.model] == b"no model":
            raise errors.InvalidGraph("model.onnx: not an ONNX file")
        yield i.DeployProgress("planning", text="one box")
        yield replace(self.deployed, name=request.name)

    async def undeploy(self, request, context):
        return i.UndeployResponse(replace(self.model_called(request.name), state=i.DeploymentState.GONE))

    async def infer(self, messages, context):
        first, *_ = [message async for message in messages]
        self.model_called(first.model)
        y = i.ModelTensor("y", DataType.FLOAT32, ("1", "8"))
        piece = i.TensorPiece("y", DataType.FLOAT32, (1, 8), 0, ROW.tobytes())
        yield i.InferResponse(i.InferReport(1, True, 1.0, outputs=(y,)), (piece,))

    async def generate(self, request, context):
        self.model_called(request.model)
        yield i.GenerateResponse("so", (5,))
        yield i.GenerateResponse(report=REPORT)

    async def ensembles(self, request, context):
        return e.ListEnsemblesResponse((self.ensemble,))

    async def deploy_ensemble(self, request, context):
        return e.DeployEnsembleResponse(replace(self.ensemble, name=request.name))

    async def undeploy_ensemble(self, request, context):
        return e.UndeployEnsembleResponse(self.ensemble)

    async def model_infer(self, request, context):
        return o.InferenceResponse(request.model, "1", outputs=(o.NamedTensor("y", "FP32", (1, 8), ROW),))
