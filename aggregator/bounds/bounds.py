"""Everything a caller can make grow at the aggregator, and how far. One line a bound; docs/security.md lists
them with the calls they hold.

`budget.py` keeps the accounts. A caller is who the certificate or token names; without TLS a connection. What
nobody gives back by leaving (contexts, runs) is counted by owner, which without TLS is everybody together.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_attention.core.messages.attention import ATTEND_BYTES, ATTEND_QUERIES, TOKEN_BYTES, WIDTH

__all__ = ["ALL", "ATTEND_BYTES", "ATTEND_QUERIES", "TOKEN_BYTES", "WIDTH", "CallerBound", "ProcessBound"]

MIB, GIB = 1024 * 1024, 1024 * 1024 * 1024


@dataclass(frozen=True)
class CallerBound:
    """`total` of `unit` over all callers. One caller has at most as much as is left free, so alone a half.

    `retry`: seconds after which room may have come, for what calls give back when they end; None for what
    stays until somebody removes it. `remedy`: what the refused caller can do.
    """

    name: str
    total: int
    unit: str
    remedy: str
    retry: float | None = None


@dataclass(frozen=True)
class ProcessBound:
    """Of one process that works on a model somebody sent (aggregator/engine/apart.py): bounds
    `NAME-seconds`, by the clock, `NAME-processor-seconds`, and `NAME-memory`, the bytes it may write to."""

    name: str
    seconds: float
    processor_seconds: int
    memory: int


# What calls hold while they are under way.

CALLS = CallerBound("calls", 4096, "calls under way", "wait for some of them to end", 0.5)
REQUEST_BYTES = CallerBound(
    "request-bytes", 512 * MIB, "bytes of requests under way", "have fewer calls under way at a time", 0.5
)
"""Of attends, from when they are read to their answer."""
ANSWER_BYTES = CallerBound(
    "answer-bytes", 256 * MIB, "bytes of answers not read yet", "read those that have come", 0.5
)
"""Of calls without a stream of responses, from when they are answered until their callers have taken them.
Streams hold a message each, and their numbers have bounds of their own."""
APPEND_BYTES = CallerBound(
    "append-bytes", 4 * GIB, "bytes of appends under way", "have fewer appends under way at a time", 2.0
)
"""On the disk of the state folder, not in memory (aggregator/engine/arriving.py)."""
APPENDS = CallerBound("appends", 128, "appends under way", "have fewer appends under way at a time", 1.0)
UPLOADS = CallerBound("uploads", 128, "uploads under way", "send fewer files at a time", 1.0)
UPLOAD_BYTES = CallerBound(
    "upload-bytes", 32 * GIB, "bytes of uploads under way", "send fewer files at a time", 5.0
)
"""On the disk of the state folder."""
DOWNLOADS = CallerBound("downloads", 256, "downloads under way", "read fewer files at a time", 1.0)
EXPORTS = CallerBound("exports", 8, "models being read", "read one model after the other", 5.0)
"""Each is put together on the disk of the state folder before it is sent."""
WATCHES = CallerBound("watches", 1024, "watches of runs", "end some of them", 5.0)
PLANNING = CallerBound("planning", 8, "jobs being planned", "plan one job after the other", 5.0)
"""Of StartRun and PlanRun: its models are loaded, differentiated and tried, in a process each."""
DEPLOYING = CallerBound("deploying", 8, "models being cut", "deploy one model after the other", 5.0)
"""Of Deploy, and of requests of a new shape: each is cut in a process of its own."""
INFERENCES = CallerBound(
    "inferences", 1024, "requests to models under way", "have fewer requests under way at a time", 0.5
)
INFERENCE_STREAMS = CallerBound(
    "inference-streams", 256, "streams of requests to models", "send more requests over fewer streams", 1.0
)
"""Of ModelStreamInfer: each may hold one message that is coming."""
INFERENCE_BYTES = CallerBound(
    "inference-bytes",
    8 * GIB,
    "bytes of inputs and outputs of requests to models",
    "have fewer requests under way at a time, or send fewer rows in one",
    0.5,
)
GENERATIONS = CallerBound(
    "generations", 256, "generations under way", "have fewer generations under way at a time", 1.0
)
"""Each has a session of a decoder, and its bounds besides."""
BODIES = CallerBound(
    "body-bytes",
    4 * GIB + 256 * MIB,
    "bytes of bodies over HTTP",
    "have fewer requests under way at a time, or send fewer rows in one",
    0.5,
)
"""Of requests to models over HTTP, from their first byte until they are answered: one caller can have one of
2 GiB."""

# What stays.

CONTEXTS = CallerBound("contexts", 10_000, "contexts", "drop contexts that nobody needs")
CONTEXT_BYTES = CallerBound(
    "context-bytes",
    512 * MIB,
    "bytes known of segments",
    "drop contexts that nobody needs, or append more at a time",
)
"""What is kept in memory of every segment of a context: its place and its summary."""
CONTEXT_SEGMENTS = 2048
"""Segments of one context: each is asked by itself. Of appends to nodes in turn each node has one."""
CONTEXT_STRETCHES = 131_072
"""Ranges of positions of all segments of one context: an answer that is not whole names what it stands on."""
RUNS = CallerBound("runs", 64, "runs going on", "stop one, or wait for one to end")
RUNS_KEPT = CallerBound(
    "runs-kept", 4096, "runs kept", "delete runs that nobody needs, or have --keep-runs do it"
)
"""Those that have ended, too: their jobs, records and versions stay."""
DEPLOYMENTS = CallerBound("deployments", 128, "deployed models", "undeploy models that nobody needs")
DEPLOYMENT_BYTES = CallerBound(
    "deployment-bytes", 256 * GIB, "bytes of deployed models", "undeploy models that nobody needs"
)
"""On the disk of the state folder: the files as they came."""
DECODER_SESSIONS = CallerBound("decoder-sessions", 1024, "sessions of decoders", "close some of them")
"""What nodes store of each is bounded by their memory besides (cache-bytes)."""
ENCODER_BYTES = CallerBound(
    "encoder-bytes", 1 * GIB, "bytes that encoders made for sessions", "close some of the sessions"
)
"""Kept here as long as the session is: of it nodes store keys and values, and again where one has gone."""
SHAPES = 16
"""Shapes of inputs that one deployment is prepared for; then the one used longest ago goes."""
SHAPES_KEPT = 64
"""Of those, and others that it was prepared for, whose schedules are kept on the disk."""
SHAPE_SECONDS = 7 * 86400.0
"""A schedule that nobody has used for so long is not kept."""

ALL = tuple(value for value in vars().copy().values() if isinstance(value, CallerBound))

# Of one call alone, whoever makes it.

APPEND_LIMIT = 256 * MIB
"""Bytes of keys and values one append may bring: it is checked and placed as a whole."""
APPEND_IDLE_SECONDS = 30.0
APPEND_COMING_SECONDS = 900.0
"""Until an append's next message, and its last: who sends slowly does not hold its room for ever."""
UPLOAD_IDLE_SECONDS = 60.0
"""Until the next chunk of a client's upload."""
ATTENDS_BYTES = 384 * MIB
"""What all attends that run have together, as `attend_bytes` counts. Others wait for their turn."""
PLANNING_PROCESS = ProcessBound("planning", 900.0, 1800, 8 * GIB)
"""In which a job's models are loaded, differentiated and tried."""
PROBE_PROCESS = ProcessBound("probe", 300.0, 600, 8 * GIB)
"""In which attention on a probe batch is computed, a round."""
CUTTING_PROCESS = ProcessBound("cutting", 600.0, 1200, 8 * GIB)
"""In which a model is looked at, its plan is made, and it is cut for inputs of one shape."""
TOKENIZER_PROCESS = ProcessBound("tokenizer", 10.0, 600, 1 * GIB)
"""In which a deployment's texts become tokens and back. Its seconds by the clock are of one answer."""
JSON_PROCESS = ProcessBound("json", 60.0, 60, 4 * GIB)
"""In which the JSON of a request is read that is too long for the event loop."""
TEMPLATE_PROCESS = ProcessBound("template", 5.0, 600, 512 * MIB)
"""In which a model's chat template makes prompts. Its seconds by the clock are of one prompt."""
EXPORT_PROCESS = ProcessBound("export", 300.0, 600, 8 * GIB)
"""In which a trained model is written as an ONNX file."""
PREDICTED_SAMPLES = 4096
"""Ids of one call that asks a fusion run's model about samples on nodes."""
PREDICTED_BYTES = 3 * MIB
"""Of what the model says of them: it is one message, and a head may make anything of a sample."""
PREDICTED_FUSED = 256 * MIB
"""Bytes of the fused outputs that the head is then given."""
JOB_BYTES = 256 * 1024
"""Of one job as it is kept."""
DISK_RESERVE = 256 * MIB
"""Bytes of the state folder's disk that appends and uploads leave free: what is committed goes there."""
