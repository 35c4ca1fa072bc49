"""What a client says of deployments and asks of them, and what it gets back. One class a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge_attention.core.tensors import DataType

WORDS_OF_PLANS = ("auto", "tokens", "heads", "layers", "batch", "replicate")
"""What a plan can be called, instead of being said in full."""

INFER_BYTES = 256 * 1024 * 1024
"""Bytes of the inputs of one request, and of its outputs."""

PIECE_BYTES = 1024 * 1024
"""Of a piece as both sides send it; any that fits a message is taken."""

PLAN_FILE_BYTES = 2 * 1024 * 1024
"""Bytes of a plan that is said in full."""

ANY_RANK = "..."
"""The one dimension of a tensor of which a model says none: it has any number of them."""

MAX_BATCH = 1024
"""Rows of requests that run together, at most."""

MAX_QUEUE_DELAY = 10.0
"""Seconds that a request may be made to wait for others to run with."""

FILES = 1024
"""Files of a model besides the ONNX file."""


TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
"""Files beside a model that say what its tokens are in words; they come with its files of weights."""

DECODER_FILES = ("decoder.onnx", "decoder_with_past.onnx")
"""Files beside an encoder that are the decoder's, in any order; they come with its files of weights."""


class DeploymentState(Enum):
    """How a deployment is.

    planning    its model is being cut
    delivering  its weights are on their way to nodes
    serving     it takes requests
    waiting     it takes requests, which wait for nodes that hold parts, or for others that get them
    leaving     it takes no more requests; those under way end
    gone        nothing is left of it
    """

    PLANNING = "planning"
    DELIVERING = "delivering"
    SERVING = "serving"
    WAITING = "waiting"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass(frozen=True)
class DeployRequest:
    """See `DeployRequest` in inference.proto. `files`: path beside the model -> SHA-256."""

    name: str
    model: str
    files: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    plan_file: bytes = b""
    nodes: tuple[str, ...] = ()
    replicas: int = 0
    dimensions: Mapping[str, int] = field(default_factory=dict)
    halves: bool = False
    max_batch: int = 0
    max_queue_delay: float = 0.0


@dataclass(frozen=True)
class DeployProgress:
    """How far a deployment is: `done` of `total` bytes of what `node` is sent, or `text`."""

    stage: str
    node: str = ""
    done: int = 0
    total: int = 0
    text: str = ""


@dataclass(frozen=True)
class ModelTensor:
    """An input or output: by dimension a size, or the name of what is left open; or ANY_RANK alone."""

    name: str
    data_type: DataType
    shape: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeployedPart:
    """A share of a deployed model, and who holds it.

    Attributes:
        layers: of the model's row of layers.
        share: what it does of them, for a person.
        bytes: of the weights it needs.
        holders, live: nodes that hold it, and those of them that can be asked now.
    """

    part: int
    layers: range
    share: str
    bytes: int
    holders: tuple[str, ...] = ()
    live: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConsideredPlan:
    """A plan that was not taken: `seconds` it would take (0: not predicted), and why not."""

    plan: str
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class DeployedModel:
    """One deployment of a model.

    Attributes:
        version: of the deployments of this name, from 1.
        detail: what it waits for, or how far it is.
        created: seconds since 1970.
        digest, bytes: of the model's file; the size of all its files.
        plan: as it was asked for.
        plan_text: in words.
        coverage, lacking: what share of the model the parts do; what not, in words.
        considered: plans that were not taken.
        shapes: of inputs it is prepared for, the one used last first.
        requests, failed, in_flight: answered, ended by an error, and under way, since the aggregator began.
        whole: it is not cut: inputs of any sizes, results of whatever sizes they turn out to have.
        max_batch, max_queue_delay: rows of requests that may run together (1: none; 0: nobody said), and
            seconds that one may wait for others.
        batching: in words, whether requests run together, or why not.
        queued: of those under way, how many wait for their turn.
        sessions: it is a decoder that `generate` asks, too.
    """

    name: str
    version: int
    state: DeploymentState
    detail: str = ""
    created: float = 0.0
    owner: str = ""
    digest: str = ""
    bytes: int = 0
    inputs: tuple[ModelTensor, ...] = ()
    outputs: tuple[ModelTensor, ...] = ()
    plan: str = ""
    plan_text: str = ""
    halves: bool = False
    coverage: float = 1.0
    lacking: str = ""
    parts: tuple[DeployedPart, ...] = ()
    considered: tuple[ConsideredPlan, ...] = ()
    shapes: tuple[str, ...] = ()
    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    notes: tuple[str, ...] = ()
    whole: bool = False
    max_batch: int = 0
    max_queue_delay: float = 0.0
    batching: str = ""
    queued: int = 0
    sessions: bool = False


@dataclass(frozen=True)
class UndeployRequest:
    name: str


@dataclass(frozen=True)
class UndeployResponse:
    model: DeployedModel


@dataclass(frozen=True)
class ListModelsRequest:
    pass


@dataclass(frozen=True)
class ListModelsResponse:
    models: tuple[DeployedModel, ...]


@dataclass(frozen=True)
class DescribeModelRequest:
    name: str


@dataclass(frozen=True)
class DescribeModelResponse:
    model: DeployedModel


@dataclass(frozen=True)
class WatchModelRequest:
    name: str


@dataclass(frozen=True)
class WatchModelResponse:
    model: DeployedModel


@dataclass(frozen=True)
class TensorPiece:
    """Bytes of a tensor from `offset` on; the first of a tensor says what it is."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    offset: int
    data: bytes


@dataclass(frozen=True)
class InferRequest:
    """A message of a request; all but `pieces` counts in the first.

    `priority`: 1 goes first, 16 last; 0 is 8.
    """

    model: str
    deadline_seconds: float | None = None
    outputs: tuple[str, ...] = ()
    partial: bool = False
    pieces: tuple[TensorPiece, ...] = ()
    priority: int = 0


@dataclass(frozen=True)
class InferReport:
    """What an answer stands on, and what it took. Seconds by stage and, in graphs, by part.

    `rows`: of the batch that it ran in with others; 0: it ran alone.
    """

    version: int
    exact: bool
    coverage: float
    lacking: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    part_seconds: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    trips: int = 0
    again: int = 0
    outputs: tuple[ModelTensor, ...] = ()
    rows: int = 0


@dataclass(frozen=True)
class InferResponse:
    """A message of an answer; `report` is in the first."""

    report: InferReport | None = None
    pieces: tuple[TensorPiece, ...] = ()


@dataclass(frozen=True)
class TokenValue:
    token: int
    value: float


@dataclass(frozen=True)
class ToldToken:
    """A token and its log probability, by the model's own logits.

    Attributes:
        logprob: natural; -inf where it could not come. None: nothing is before it that would say, as of a
            prompt's first.
        likeliest: the likeliest tokens of the place with theirs, the likeliest first, of equal ones the
            lowest number; the token may be none of them.
    """

    token: int
    logprob: float | None = None
    likeliest: tuple[TokenValue, ...] = ()


@dataclass(frozen=True)
class GenerateRequest:
    """See `GenerateRequest` in inference.proto: a prompt as `text`, or as `ids`; or an encoder's inputs."""

    model: str
    text: str = ""
    ids: tuple[int, ...] = ()
    max_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    deadline_seconds: float | None = None
    no_speculation: bool = False
    inputs: tuple[TensorPiece, ...] = ()
    priority: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[TokenValue, ...] = ()
    logprobs: int | None = None
    echo: bool = False

    @property
    def later(self) -> tuple[str, ...]:
        """Fields that are set and that earlier releases do not know: these pass over them."""
        told = ("logprobs",) if self.logprobs is not None else ()
        names = ("frequency_penalty", "presence_penalty", "logit_bias", "echo")
        return (*(name for name in names if getattr(self, name)), *told)


@dataclass(frozen=True)
class GenerateReport:
    """What a generation took.

    Attributes:
        finish: why it ended: "stop" by a token or word that ends the text, "length" by its most tokens.
        seed: of the draws, as asked for or as it was chosen.
        trips: through the model, the prompt's included.
        guessed, accepted: tokens that were verified several a trip, and those of them that were right.
        seconds: by stage: prompt, tokens, all.
        exact: its tokens are of the whole model's logits, to rounding in its types; `lacking` says why not.
        heeded: `GenerateRequest.later`, as far as the aggregator knows them.
        end: with `logprobs`, the token that ended the text, which is none of its tokens; None: none did.
    """

    finish: str
    prompt_tokens: int
    completion_tokens: int
    seed: int
    trips: int
    guessed: int
    accepted: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    exact: bool = True
    lacking: str = ""
    heeded: tuple[str, ...] = ()
    end: ToldToken | None = None


@dataclass(frozen=True)
class GenerateResponse:
    """Tokens that came, and the text that is sure by now; `report` is in the last.

    `told`: of these tokens, and before them of the prompt's with `echo`."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    report: GenerateReport | None = None
    told: tuple[ToldToken, ...] = ()
