"""The demo's English text: the chapters about the Python language that every CPython carries.

`pydoc_data.topics` is what `help("for")` prints. Only prose is kept, a line a paragraph: no tables and
little code. Many chapters repeat paragraphs of others: each is kept once, in the longest chapter that has
it, so that what is held out is nowhere else. The vocabulary is fixed, the printable characters of ASCII and
the line feed: no node has to tell which characters it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_attention.core.tensors import Array, Int64
from edge_attention.graphs.reading import read_graph

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(ALPHABET)
DATASET = "text"
HELD_OUT = 8  # every eighth chapter
PROSE = 0.9  # share of letters, spaces, commas and full stops from which on a paragraph is prose
SHORTEST = 40  # characters; what is shorter is mostly a heading
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "."})
_NUMBERS = {character: number for number, character in enumerate(ALPHABET)}


@dataclass(frozen=True, eq=False)
class Sequences:
    """`tokens` int64 [rows, length], and `labels` of the same shape: at each place the token that follows."""

    tokens: Int64
    labels: Int64

    @classmethod
    def of(cls, text: str, length: int) -> Sequences:
        """Cut `text` in rows of `length` characters; each row's labels reach one character further."""
        return cls.of_tokens(encode(text), length, "characters")

    @classmethod
    def of_tokens(cls, numbers: Int64, length: int, unit: str = "tokens") -> Sequences:
        """Cut `numbers` int64 [tokens] in such rows. `unit`: what an error calls them."""
        rows = (len(numbers) - 1) // length
        if not rows:
            raise ValueError(f"a text of {len(numbers)} {unit} has no row of {length} and one more")
        ends = rows * length
        return cls(numbers[:ends].reshape(rows, length), numbers[1 : ends + 1].reshape(rows, length))

    def write(self, path: Path) -> Path:
        """As .npz with columns `tokens` and `labels`, for `edge-node --data text=FILE`."""
        np.savez(path, tokens=self.tokens, labels=self.labels)
        return path


def chapters() -> dict[str, str]:
    """Chapter -> its prose, longest chapter first, without paragraphs that a longer one has."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    found = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        lines = [" ".join(paragraph.split()) for paragraph in topics[name].split("\n\n")]
        prose = [line for line in dict.fromkeys(lines) if line not in seen and _is_prose(line)]
        seen.update(prose)
        if prose:
            found[name] = "\n".join(prose) + "\n"
    return found


def split(nodes: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """Each node's text, chapters of its own, of about equal length; and the text of held-out chapters."""
    texts = dict.fromkeys(nodes, "")
    held_out = ""
    for number, text in enumerate(chapters().values(), start=1):
        if number % HELD_OUT == 0:
            held_out += text
        else:
            shortest = min(nodes, key=lambda node: len(texts[node]))
            texts[shortest] += text
    return texts, held_out


def encode(text: str) -> Int64:
    """Characters as numbers below VOCABULARY; what is not in the alphabet becomes a question mark."""
    unknown = _NUMBERS["?"]
    return np.array([_NUMBERS.get(c, unknown) for c in text.translate(_PLAIN)], np.int64)


def decode(numbers: Array) -> str:
    return "".join(ALPHABET[number] for number in numbers.tolist())


def _is_prose(line: str) -> bool:
    return len(line) >= SHORTEST and sum(c.isalpha() or c in " ,." for c in line) >= PROSE * len(line)


def entropy(texts: Mapping[str, str], held_out: str) -> float:
    """The loss, in nats a character, of knowing only how often each character is in `texts`."""
    counts = np.bincount(encode("".join(texts.values())), minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[encode(held_out)].mean())


def generate(model: bytes, prompt: str, count: int, *, temperature: float = 0.7, seed: int = 0) -> str:
    """Continue `prompt` by `count` characters, each drawn from softmax(logits / temperature).

    `model` is an ONNX file of a causal model: input `tokens` int64 [B, length], output `logits` float32
    [B, length, VOCABULARY]. It sees the last `length` characters. The same arguments give the same text.
    """
    import onnxruntime

    checked = read_graph(model, "the trained model")  # it came from an aggregator
    session = onnxruntime.InferenceSession(checked.data, providers=["CPUExecutionProvider"])
    length = int(session.get_inputs()[0].shape[1])
    rng = np.random.default_rng(seed)
    written = encode(prompt).tolist()
    for _ in range(count):
        seen = written[-length:]
        # What follows the last character cannot be seen from it: zeros do.
        window = np.array([seen + [0] * (length - len(seen))], np.int64)
        (logits,) = session.run(["logits"], {"tokens": window})
        scores = logits[0, len(seen) - 1].astype(np.float64) / temperature
        shares = np.exp(scores - scores.max())
        written.append(int(rng.choice(VOCABULARY, p=shares / shares.sum())))
    return decode(np.array(written[len(encode(prompt)) :], np.int64))
