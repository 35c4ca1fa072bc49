"""Decoders run in this process: cut ones by pieces over arrays, and whole files with their own past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, numpy_helper

from edge_attention.core.schedule.extents import take
from edge_attention.core.schedule.fold_plan import FoldPlan
from edge_attention.core.schedule.meeting import Meetings
from edge_attention.core.schedule.pieces import AttentionPiece, DecoderForm, GraphPiece
from edge_attention.core.schedule.plan import CutPlan
from edge_attention.core.schedule.schedule import Constant, Delivery, Kept, ModelInput, ModelSegment, Weight
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.decoding.cutting import ROWS_OF_TRIPS, DecoderCut, cut_decoder
from edge_attention.graphs.decoding.rewriting import SteppedModel, as_steps


def session_of(data: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@cache
def stepped_file(path: Path) -> SteppedModel:
    """A file that does not change, rewritten: once for all plans, as that takes longer than cutting it."""
    return as_steps(open_model(path))


@dataclass(eq=False)
class PaperSession:
    """What parts store of one session: by part and attention, keys and values of its own tokens in order."""

    length: int = 0
    memory: Array | None = None
    stored: dict[tuple[int, int], tuple[Array, Array]] = field(default_factory=dict)
    places: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """By part and attention, the positions of the tokens that are stored."""


class PaperDecoder:
    """A cut decoder, run in this process. With parts that share tokens each new token is the next part's."""

    def __init__(self, decoder: Path | OpenModel | SteppedModel, plan: CutPlan) -> None:
        """`decoder`: its file, or what was made of it."""
        opened = open_model(decoder) if isinstance(decoder, Path) else decoder
        self.stepped = as_steps(opened) if isinstance(opened, OpenModel) else opened
        self.plan = plan
        self._cuts: dict[int, DecoderCut] = {}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.form: DecoderForm | None = None

    def remember(self, session: PaperSession, states: Array) -> None:
        """Store keys and values of the memory, some rows at a time, by parts in turns where they share it."""
        for start in range(0, len(states), 5):
            rows = states[start : start + 5]
            size = next(n for n in ROWS_OF_TRIPS if n >= len(rows))
            made, form = self._cut(size)
            feeds = {form.states: np.zeros((size, 1, form.states_width), np.float32)}
            feeds[form.states][: len(rows), 0] = rows
            schedule = made.emitted.schedule
            kept: dict[tuple[int, str], Array] = {}
            attended = dict.fromkeys(range(schedule.parts), 0)
            for step in schedule.steps:
                for segment in step.segments:
                    pieces = made.pieces[segment.graph]
                    values = self._sources(made, segment, feeds, kept, None)
                    for piece in pieces:
                        if isinstance(piece, GraphPiece):
                            if piece.memory:
                                self._run(made, piece, values)
                            continue
                        at = attended[segment.part]
                        attended[segment.part] += 1
                        if not piece.memory:
                            continue
                        mine = np.arange(start, start + len(rows)) % schedule.parts == segment.part
                        mine |= not form.by_tokens
                        k, v = (values[name][: len(rows)][mine] for name in (piece.keys, piece.values))
                        old = session.stored.get((segment.part, at), (k[:0], v[:0]))
                        session.stored[segment.part, at] = tuple(
                            map(np.concatenate, zip(old, (k, v), strict=True))
                        )
                    kept |= {
                        (segment.part, name): values[out]
                        for out, name in segment.kept.items()
                        if out in values
                    }

    def _cut(self, size: int) -> tuple[DecoderCut, DecoderForm]:
        if size not in self._cuts:
            self._cuts[size], self.form = cut_decoder(self.stepped, self.plan, size)
        assert self.form is not None
        return self._cuts[size], self.form

    def _run(self, made: DecoderCut, piece: GraphPiece, values: dict[str, Array]) -> None:
        if piece.graph not in self._sessions:
            self._sessions[piece.graph] = session_of(made.emitted.graphs[piece.graph])
        given = {name: values[of] for name, of in piece.inputs.items()}
        found = self._sessions[piece.graph].run(list(piece.outputs), given)
        values |= dict(zip(piece.outputs.values(), found, strict=True))

    def step(self, rows: Sequence[tuple[PaperSession, int]]) -> Array:
        """Logits [rows, vocabulary] of new tokens, each of one session, in order."""
        size = next(n for n in ROWS_OF_TRIPS if n >= len(rows))
        made, form = self._cut(size)
        schedule = made.emitted.schedule
        places, owners = [], []
        for session, _ in rows:
            places.append(session.length)
            owners.append(session.length % schedule.parts if form.by_tokens else -1)
            session.length += 1
        feeds = {form.ids: np.zeros((size, 1), np.int64)}
        feeds[form.ids][: len(rows), 0] = [token for _, token in rows]
        if form.positions:
            feeds[form.positions] = np.zeros((size, 1), np.int64)
            feeds[form.positions][: len(rows), 0] = places
        for name in feeds:
            feeds[name] = feeds[name].astype(schedule.feeds[name].dtype)
        meetings = Meetings(FoldPlan(schedule))
        kept: dict[tuple[int, str], Array] = {}
        attended = dict.fromkeys(range(schedule.parts), 0)
        for number, step in enumerate(schedule.steps):
            for segment in step.segments:
                values = self._sources(made, segment, feeds, kept, meetings)
                for piece in made.pieces[segment.graph]:
                    match piece:
                        case GraphPiece():
                            if not piece.memory:
                                self._run(made, piece, values)
                        case AttentionPiece():
                            at = attended[segment.part]
                            attended[segment.part] += 1
                            cache = form.caches[segment.part][at]
                            assert cache.memory is piece.memory
                            if not piece.memory:
                                assert values[piece.keys].shape == (size, cache.heads, cache.key_width)
                                assert values[piece.values].shape == (size, cache.heads, cache.value_width)
                            self._attend(piece, values, rows, places, owners, segment.part, at)
                kept |= {
                    (segment.part, name): values[output]
                    for output, name in segment.kept.items()
                    if output in values
                }
                if segment.contributions:
                    wanted = {one.output: values[one.output] for one in segment.contributions}
                    meetings.add(number, segment.part, wanted)
        return np.array(meetings.whole(schedule.results[form.logits]))[: len(rows), 0]

    def _attend(
        self,
        piece: AttentionPiece,
        values: dict[str, Array],
        rows: Sequence[tuple[PaperSession, int]],
        places: Sequence[int],
        owners: Sequence[int],
        part: int,
        at: int,
    ) -> None:
        q = values[piece.queries]
        if piece.memory:
            k, v = next(session for session, _ in rows).stored[part, at]
        else:
            k, v = values[piece.keys], values[piece.values]
        out = np.zeros((*q.shape[:-1], v.shape[-1]), np.float32)
        lse = np.full((*q.shape[:-1], 1), -np.inf, np.float32)
        for row, (session, _) in enumerate(rows):
            old = session.stored.get((part, at), (k[:0], v[:0]))
            known = session.places.setdefault((part, at), [])
            if not piece.memory and owners[row] in (-1, part):
                new = np.concatenate([old[0], k[row : row + 1]]), np.concatenate([old[1], v[row : row + 1]])
                session.stored[part, at] = new
                known.append(places[row])
            keys, held = session.stored.get((part, at), old)
            seen = (
                list(range(len(keys)))
                if piece.memory
                else [
                    i
                    for i, place in enumerate(known)
                    if place <= places[row] and not (piece.window and place <= places[row] - piece.window)
                ]
            )
            if not seen:
                continue
            scores = piece.scale * np.einsum("gsd,tgd->gst", q[row].astype(np.float64), keys[seen])
            if piece.cap:
                scores = piece.cap * np.tanh(scores / piece.cap)
            if piece.bias:
                bias = values[piece.bias]
                away = places[row] - np.array([known[i] for i in seen])
                scores += bias[:, :, np.minimum(away, bias.shape[-1] - 1)]
            top = scores.max(-1, keepdims=True)
            p = np.exp(scores - top)
            total = p.sum(-1, keepdims=True)
            out[row] = np.einsum("gst,tge->gse", p / total, held[seen])
            lse[row] = top + np.log(total)
        values[piece.out] = out
        if piece.lse:
            values[piece.lse] = lse

    def _sources(
        self,
        made: DecoderCut,
        segment: ModelSegment,
        feeds: Mapping[str, Array],
        kept: Mapping[tuple[int, str], Array],
        meetings: Meetings | None,
    ) -> dict[str, Array]:
        """What is not there of rows of memories, or of tokens, is left out."""
        found: dict[str, Array] = {}
        for name, source in segment.inputs.items():
            match source:
                case ModelInput(of, extent) if of in feeds:
                    found[name] = np.ascontiguousarray(take(feeds[of], extent))
                case Delivery() if meetings is not None:
                    found[name] = np.ascontiguousarray(meetings.take(source))
                case Kept(of) if (segment.part, of) in kept:
                    found[name] = kept[segment.part, of]
                case Weight():
                    found[name] = self.stepped.model.piece(source)
                case Constant(of):
                    known = made.emitted.schedule.constants[of]
                    found[name] = made.emitted.constants[known.digest].reshape(known.spec.shape)
        return found


class WholeDecoder:
    """A decoder's file with its own past, one token at a time."""

    def __init__(self, path: Path) -> None:
        self._session = session_of(str(path))
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._past: dict[str, Array] = {}
        self.length = 0
        for name, one in self._inputs.items():
            if len(one.shape) == 4:
                width = one.shape[3] if isinstance(one.shape[3], int) else self._width(path)
                dtype = np.float16 if one.type == "tensor(float16)" else np.float32
                self._past[name] = np.zeros((1, one.shape[1], 0, width), dtype)

    @staticmethod
    def _width(path: Path) -> int:
        """Of a head, by the tables that turn all of it."""
        model = ModelProto.FromString(path.read_bytes())
        table = next(t for t in model.graph.initializer if t.name == "cos_cache")
        return 2 * int(numpy_helper.to_array(table).shape[1])

    def step(self, token: int) -> Array:
        """Logits [vocabulary] after one more token."""
        feeds = dict(self._past)
        for name, one in self._inputs.items():
            if name in self._past:
                continue
            if one.type == "tensor(bool)":  # of both steps in the file the one with a past
                feeds[name] = np.array([True])
            elif "logits" in name:  # of all tokens
                feeds[name] = np.zeros(one.shape, np.int64)
            elif "mask" in name:
                feeds[name] = np.ones((1, self.length + 1), np.int64)
            elif "position" in name:
                feeds[name] = np.array([[self.length]], np.int64)
            else:
                feeds[name] = np.array([[token]], np.int64)
        made = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        for name in self._past:
            self._past[name] = made[self._present(name)]
        self.length += 1
        return np.asarray(made["logits"][0, -1])

    def _present(self, past: str) -> str:
        wanted = past.replace("past_key_values", "present").replace("past", "present")
        return next(name for name in self._outputs if name == wanted)


class WholeEncoderDecoder:
    """An encoder's file and its decoder's two, as exporters write them, one token at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._encoder, self._first, self._step = (
            session_of(str(folder / f"{name}_{kind}.onnx"))
            for kind in ("encoder", "decoder", "decoder_with_past")
        )
        self._past: dict[str, Array] = {}
        self.states = np.zeros((1, 0, 0), np.float32)

    def encode(self, given: Array) -> Array:
        """What the encoder makes of ids or features, each of one row."""
        name, *mask = [one.name for one in self._encoder.get_inputs()]
        feeds = {name: given} | {one: np.ones(given.shape, np.int64) for one in mask}
        (self.states,) = self._encoder.run(None, feeds)
        self._past = {}
        return np.asarray(self.states[0])

    def step(self, token: int) -> Array:
        """Logits [vocabulary] after one more token."""
        session = self._step if self._past else self._first
        mask = np.ones(self.states.shape[:2], np.int64)
        feeds = {"input_ids": np.array([[token]]), "encoder_hidden_states": self.states}
        feeds |= {"encoder_attention_mask": mask} | self._past
        names = [one.name for one in session.get_inputs()]
        outputs = [one.name for one in session.get_outputs()]
        made = dict(zip(outputs, session.run(None, {name: feeds[name] for name in names}), strict=True))
        self._past |= {
            name.replace("present", "past_key_values"): array
            for name, array in made.items()
            if name.startswith("present")
        }
        return np.asarray(made["logits"][0, -1])
