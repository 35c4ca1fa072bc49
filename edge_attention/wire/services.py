"""The client services on the wire: fleet, bulk, attention, training."""

from __future__ import annotations

from edge_attention.core import attention, fleet, jobs
from edge_attention.core.jobs import TrainingRound, TrainingRun
from edge_attention.wire.codec import Codec
from edge_attention.wire.link import download_chunk, download_request, upload_chunk, upload_response
from edge_attention.wire.methods import Method, Service
from protos.edge_attention.v1 import attention_pb2, fleet_pb2, training_pb2

FLEET = Service("edge_attention.v1.FleetService")
LIST_NODES = Method(
    FLEET,
    "ListNodes",
    Codec[fleet.ListNodesRequest](fleet.ListNodesRequest, fleet_pb2.ListNodesRequest),
    Codec[fleet.ListNodesResponse](fleet.ListNodesResponse, fleet_pb2.ListNodesResponse),
)

BULK = Service("edge_attention.v1.BulkService")
BULK_UPLOAD = Method(BULK, "Upload", upload_chunk, upload_response, streams_request=True)
BULK_DOWNLOAD = Method(BULK, "Download", download_request, download_chunk, streams_response=True)

ATTENTION = Service("edge_attention.v1.AttentionService")
CREATE_CONTEXT = Method(
    ATTENTION,
    "CreateContext",
    Codec[attention.CreateContextRequest](attention.CreateContextRequest, attention_pb2.CreateContextRequest),
    Codec[attention.CreateContextResponse](
        attention.CreateContextResponse, attention_pb2.CreateContextResponse
    ),
)
append_response = Codec[attention.AppendResponse](attention.AppendResponse, attention_pb2.AppendResponse)
APPEND = Method(
    ATTENTION,
    "Append",
    Codec[attention.AppendRequest](attention.AppendRequest, attention_pb2.AppendRequest),
    append_response,
    streams_request=True,
)
APPEND_DATASET = Method(
    ATTENTION,
    "AppendDataset",
    Codec[attention.AppendDatasetRequest](attention.AppendDatasetRequest, attention_pb2.AppendDatasetRequest),
    Codec[attention.AppendResponse](attention.AppendResponse, attention_pb2.AppendDatasetResponse),
)
ATTEND = Method(
    ATTENTION,
    "Attend",
    Codec[attention.AttendRequest](attention.AttendRequest, attention_pb2.AttendRequest),
    Codec[attention.AttendResponse](attention.AttendResponse, attention_pb2.AttendResponse),
)
DESCRIBE_CONTEXT = Method(
    ATTENTION,
    "DescribeContext",
    Codec[attention.DescribeContextRequest](
        attention.DescribeContextRequest, attention_pb2.DescribeContextRequest
    ),
    Codec[attention.DescribeContextResponse](
        attention.DescribeContextResponse, attention_pb2.DescribeContextResponse
    ),
)
LIST_CONTEXTS = Method(
    ATTENTION,
    "ListContexts",
    Codec[attention.ListContextsRequest](attention.ListContextsRequest, attention_pb2.ListContextsRequest),
    Codec[attention.ListContextsResponse](attention.ListContextsResponse, attention_pb2.ListContextsResponse),
)
DROP_CONTEXT = Method(
    ATTENTION,
    "DropContext",
    Codec[attention.DropContextRequest](attention.DropContextRequest, attention_pb2.DropContextRequest),
    Codec[attention.DropContextResponse](attention.DropContextResponse, attention_pb2.DropContextResponse),
)

TRAINING = Service("edge_attention.v1.TrainingService")
RunEvent = TrainingRound | TrainingRun
START_RUN = Method(
    TRAINING,
    "StartRun",
    Codec[jobs.StartRunRequest](jobs.StartRunRequest, training_pb2.StartRunRequest),
    Codec[jobs.StartRunResponse](jobs.StartRunResponse, training_pb2.StartRunResponse),
)
PLAN_RUN = Method(
    TRAINING,
    "PlanRun",
    Codec[jobs.PlanRunRequest](jobs.PlanRunRequest, training_pb2.PlanRunRequest),
    Codec[jobs.PlanRunResponse](jobs.PlanRunResponse, training_pb2.PlanRunResponse),
)
WATCH_RUN = Method(
    TRAINING,
    "WatchRun",
    Codec[jobs.WatchRunRequest](jobs.WatchRunRequest, training_pb2.WatchRunRequest),
    Codec[RunEvent](RunEvent, training_pb2.WatchRunResponse, {TrainingRound: "round", TrainingRun: "run"}),
    streams_response=True,
)
STOP_RUN = Method(
    TRAINING,
    "StopRun",
    Codec[jobs.StopRunRequest](jobs.StopRunRequest, training_pb2.StopRunRequest),
    Codec[jobs.StopRunResponse](jobs.StopRunResponse, training_pb2.StopRunResponse),
)
DESCRIBE_RUN = Method(
    TRAINING,
    "DescribeRun",
    Codec[jobs.DescribeRunRequest](jobs.DescribeRunRequest, training_pb2.DescribeRunRequest),
    Codec[jobs.DescribeRunResponse](jobs.DescribeRunResponse, training_pb2.DescribeRunResponse),
)
LIST_RUNS = Method(
    TRAINING,
    "ListRuns",
    Codec[jobs.ListRunsRequest](jobs.ListRunsRequest, training_pb2.ListRunsRequest),
    Codec[jobs.ListRunsResponse](jobs.ListRunsResponse, training_pb2.ListRunsResponse),
)
GET_PARAMETERS = Method(
    TRAINING,
    "GetParameters",
    Codec[jobs.GetParametersRequest](jobs.GetParametersRequest, training_pb2.GetParametersRequest),
    Codec[jobs.ParametersChunk](jobs.ParametersChunk, training_pb2.GetParametersResponse),
    streams_response=True,
)
