"""The client services on the wire: fleet, bulk, attention, training, inference. A new call is a line here.

Requests may come without a checksum, from clients in other languages; answers always have one.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

from edge_attention.core.messages import attention, ensembles, fleet, inference
from edge_attention.core.messages import training as jobs
from edge_attention.core.messages.inference import DeployedModel, DeployProgress
from edge_attention.core.messages.link import DownloadRequest, UploadChunk
from edge_attention.core.messages.training import TrainingRound, TrainingRun
from edge_attention.wire.codec import FIELDS, MESSAGE_LIMIT, Codec
from edge_attention.wire.frames import FrameCodec
from edge_attention.wire.link import download_chunk, upload_response
from edge_attention.wire.methods import Method, Service
from protos.edge_attention.v1 import (
    attention_pb2,
    ensembles_pb2,
    fleet_pb2,
    inference_pb2,
    link_pb2,
    training_pb2,
)

Q = TypeVar("Q")
R = TypeVar("R")

FLEET = Service("edge_attention.v1.FleetService")
BULK = Service("edge_attention.v1.BulkService")
ATTENTION = Service("edge_attention.v1.AttentionService")
TRAINING = Service("edge_attention.v1.TrainingService")
INFERENCE = Service("edge_attention.v1.InferenceService")
ENSEMBLES = Service("edge_attention.v1.EnsembleService")

REQUEST_PARTS = 1 << 16
"""Bytes of a client's request: its event loop is everybody's. 65,536 names, or 4,096 encoders."""
RUN_LIMIT = 1 << 20
"""Bytes of a request that describes a run; what an aggregator keeps of one is less."""

RunEvent = TrainingRound | TrainingRun
DeployEvent = DeployProgress | DeployedModel


def _method(
    service: Service,
    name: str,
    request: type[Q],
    response: type[R],
    messages: ModuleType,
    *,
    streams_request: bool = False,
    streams_response: bool = False,
    changes: bool = False,
    limit: int = MESSAGE_LIMIT,
) -> Method[Q, R]:
    """The method `name`, whose messages are called `<name>Request` and `<name>Response`, as buf wants it."""
    return Method(
        service,
        name,
        Codec[Q](
            request, getattr(messages, f"{name}Request"), limit=limit, parts=REQUEST_PARTS, fields=FIELDS
        ),
        Codec[R](response, getattr(messages, f"{name}Response"), sealed=True),
        streams_request,
        streams_response,
        changes=changes,
    )


a, j, i, a_pb, j_pb, i_pb = attention, jobs, inference, attention_pb2, training_pb2, inference_pb2

LIST_NODES = _method(FLEET, "ListNodes", fleet.ListNodesRequest, fleet.ListNodesResponse, fleet_pb2)
DESCRIBE_AGGREGATOR = _method(
    FLEET, "DescribeAggregator", fleet.DescribeAggregatorRequest, fleet.DescribeAggregatorResponse, fleet_pb2
)
PROBE_NODE = _method(FLEET, "ProbeNode", fleet.ProbeNodeRequest, fleet.ProbeNodeResponse, fleet_pb2)

FORGET_NODE = _method(
    FLEET, "ForgetNode", fleet.ForgetNodeRequest, fleet.ForgetNodeResponse, fleet_pb2, changes=True
)

BULK_UPLOAD = Method(
    BULK, "Upload", FrameCodec(UploadChunk, link_pb2.UploadRequest), upload_response, streams_request=True
)
BULK_DOWNLOAD = Method(
    BULK,
    "Download",
    Codec[DownloadRequest](DownloadRequest, link_pb2.DownloadRequest),
    download_chunk,
    streams_response=True,
)

CREATE_CONTEXT = _method(
    ATTENTION, "CreateContext", a.CreateContextRequest, a.CreateContextResponse, a_pb, changes=True
)
APPEND = _method(
    ATTENTION, "Append", a.AppendRequest, a.AppendResponse, a_pb, streams_request=True, changes=True
)
APPEND_DATASET = _method(
    ATTENTION, "AppendDataset", a.AppendDatasetRequest, a.AppendResponse, a_pb, changes=True
)
ATTEND = _method(ATTENTION, "Attend", a.AttendRequest, a.AttendResponse, a_pb)
ATTEND_GRADIENTS = _method(
    ATTENTION, "AttendGradients", a.AttendGradientsRequest, a.AttendGradientsResponse, a_pb
)
DESCRIBE_CONTEXT = _method(
    ATTENTION, "DescribeContext", a.DescribeContextRequest, a.DescribeContextResponse, a_pb
)
LIST_CONTEXTS = _method(ATTENTION, "ListContexts", a.ListContextsRequest, a.ListContextsResponse, a_pb)
DROP_CONTEXT = _method(
    ATTENTION, "DropContext", a.DropContextRequest, a.DropContextResponse, a_pb, changes=True
)
TRIM_CONTEXT = _method(
    ATTENTION, "TrimContext", a.TrimContextRequest, a.TrimContextResponse, a_pb, changes=True
)
EXPORT_CONTEXT = _method(
    ATTENTION, "ExportContext", a.ExportContextRequest, a.ContextPiece, a_pb, streams_response=True
)
REPAIR_CONTEXT = _method(
    ATTENTION, "RepairContext", a.RepairContextRequest, a.RepairContextResponse, a_pb, changes=True
)

START_RUN = _method(
    TRAINING, "StartRun", j.StartRunRequest, j.StartRunResponse, j_pb, changes=True, limit=RUN_LIMIT
)
PLAN_RUN = _method(TRAINING, "PlanRun", j.PlanRunRequest, j.PlanRunResponse, j_pb, limit=RUN_LIMIT)
WATCH_RUN = Method(
    TRAINING,
    "WatchRun",
    Codec[jobs.WatchRunRequest](jobs.WatchRunRequest, training_pb2.WatchRunRequest),
    Codec[RunEvent](
        RunEvent, training_pb2.WatchRunResponse, {TrainingRound: "round", TrainingRun: "run"}, sealed=True
    ),
    streams_response=True,
)
STOP_RUN = _method(TRAINING, "StopRun", j.StopRunRequest, j.StopRunResponse, j_pb, changes=True)
RESUME_RUN = _method(TRAINING, "ResumeRun", j.ResumeRunRequest, j.ResumeRunResponse, j_pb, changes=True)
DELETE_RUN = _method(TRAINING, "DeleteRun", j.DeleteRunRequest, j.DeleteRunResponse, j_pb, changes=True)
DESCRIBE_RUN = _method(TRAINING, "DescribeRun", j.DescribeRunRequest, j.DescribeRunResponse, j_pb)
LIST_RUNS = _method(TRAINING, "ListRuns", j.ListRunsRequest, j.ListRunsResponse, j_pb)
GET_PARAMETERS = _method(
    TRAINING, "GetParameters", j.GetParametersRequest, j.ParametersChunk, j_pb, streams_response=True
)
PREDICT = _method(TRAINING, "Predict", j.PredictRequest, j.PredictResponse, j_pb)
GET_MODEL = _method(TRAINING, "GetModel", j.GetModelRequest, j.ModelChunk, j_pb, streams_response=True)

DEPLOY = Method(
    INFERENCE,
    "Deploy",
    Codec[i.DeployRequest](i.DeployRequest, i_pb.DeployRequest, parts=REQUEST_PARTS, fields=FIELDS),
    Codec[DeployEvent](
        DeployEvent,
        i_pb.DeployResponse,
        {DeployProgress: "progress", DeployedModel: "model"},
        sealed=True,
    ),
    streams_response=True,
)
UNDEPLOY = _method(INFERENCE, "Undeploy", i.UndeployRequest, i.UndeployResponse, i_pb, changes=True)
LIST_MODELS = _method(INFERENCE, "ListModels", i.ListModelsRequest, i.ListModelsResponse, i_pb)
DESCRIBE_MODEL = _method(INFERENCE, "DescribeModel", i.DescribeModelRequest, i.DescribeModelResponse, i_pb)
WATCH_MODEL = _method(
    INFERENCE, "WatchModel", i.WatchModelRequest, i.WatchModelResponse, i_pb, streams_response=True
)
INFER = _method(
    INFERENCE,
    "Infer",
    i.InferRequest,
    i.InferResponse,
    i_pb,
    streams_request=True,
    streams_response=True,
)
GENERATE = _method(INFERENCE, "Generate", i.GenerateRequest, i.GenerateResponse, i_pb, streams_response=True)

DEPLOY_ENSEMBLE = _method(
    ENSEMBLES,
    "DeployEnsemble",
    ensembles.DeployEnsembleRequest,
    ensembles.DeployEnsembleResponse,
    ensembles_pb2,
    changes=True,
)
UNDEPLOY_ENSEMBLE = _method(
    ENSEMBLES,
    "UndeployEnsemble",
    ensembles.UndeployEnsembleRequest,
    ensembles.UndeployEnsembleResponse,
    ensembles_pb2,
    changes=True,
)
LIST_ENSEMBLES = _method(
    ENSEMBLES,
    "ListEnsembles",
    ensembles.ListEnsemblesRequest,
    ensembles.ListEnsemblesResponse,
    ensembles_pb2,
)
