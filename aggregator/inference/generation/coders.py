"""A deployment's words: what turns text into tokens and back, from the files that lie beside the model.

tokenizer.json          of the library `tokenizers`; or `{"edge_attention": "bytes"}`: a token is a byte
tokenizer_config.json   special tokens by role, and a chat template (as `transformers` writes it)
generation_config.json  eos_token_id: tokens that end a text; decoder_start_token_id: the one that a decoder
                        beside an encoder begins with; forced_decoder_ids, those after it, and
                        forced_bos_token_id (BART, mBART), the first after it where these say none
chat_template.jinja     a chat template of its own
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages.inference import TEXT_FILES

__all__ = [
    "TOKENIZER",
    "BytesCoder",
    "TextCoder",
    "TextFiles",
    "TokenText",
    "read_begins",
    "read_text_files",
]

TOKENIZER = "tokenizer.json"
"""Whose deployment makes text."""
FILE_BYTES = 64 * 1024 * 1024
"""Of a tokenizer.json."""
CONFIG_BYTES = 4 * 1024 * 1024
"""Of each of the other files."""
MAX_ENDS = 64
"""Tokens that end a text."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenText:
    """A token as it is written behind others. `data`: UTF-8, that of part of a character where it is no more.
    `shown`: whether a text shows it; special tokens it does not."""

    data: bytes
    shown: bool = True


class TextCoder(Protocol):
    """Text to tokens and back, of one deployment."""

    async def encode(self, text: str, special: bool = True, seconds: float = math.inf) -> tuple[int, ...]:
        """The text's tokens; with `special` and those that the tokenizer puts around a text.

        Raises:
            InvalidArgument: it cannot be encoded within its time.
            DeadlineExceeded: nor in `seconds`, the turn of others included.
        """

    async def decode(self, windows: Sequence[Sequence[int]], seconds: float = math.inf) -> tuple[str, ...]:
        """The text of each; half a character is U+FFFD. Raises as `encode`."""

    async def written(self, ids: Sequence[int], seconds: float = math.inf) -> tuple[TokenText, ...]:
        """Each of the tokens by itself. Raises as `encode`."""

    async def token(self, text: str) -> int | None:
        """The one token that is written so, if there is one."""


class BytesCoder:
    """A token is a byte of UTF-8. Ids past 255 are no text."""

    async def encode(self, text: str, special: bool = True, seconds: float = math.inf) -> tuple[int, ...]:
        return tuple(text.encode("utf-8", "surrogatepass"))

    async def decode(self, windows: Sequence[Sequence[int]], seconds: float = math.inf) -> tuple[str, ...]:
        return tuple(bytes(t for t in window if t < 256).decode("utf-8", "replace") for window in windows)

    async def written(self, ids: Sequence[int], seconds: float = math.inf) -> tuple[TokenText, ...]:
        return tuple(TokenText(bytes([one]) if one < 256 else b"") for one in ids)

    async def token(self, text: str) -> int | None:
        data = text.encode("utf-8", "surrogatepass")
        return data[0] if len(data) == 1 else None


@dataclass(frozen=True)
class TextFiles:
    """What the files beside a model say.

    Attributes:
        tokenizer: the file for the library; None: a token is a byte.
        special: role -> token, as `eos_token`.
        ends: ids that end a text, of generation_config.json.
        chat_template: Jinja; somebody's code. None: none.
    """

    tokenizer: Path | None
    special: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    chat_template: str | None = None


def read_text_files(folder: Path) -> TextFiles | None:
    """Those of the model in `folder`; None: it has no tokenizer. Blocks on the disk.

    Raises:
        InvalidArgument: one is too large, or does not say what it should; names it.
    """
    paths = {name: folder / name for name in TEXT_FILES}
    tokenizer = paths[TOKENIZER]
    if not tokenizer.is_file():
        return None
    size = tokenizer.stat().st_size
    if size > FILE_BYTES:
        raise InvalidArgument(
            f"bound tokenizer-bytes: tokenizer.json has {size:,} bytes, and one has {FILE_BYTES:,} at most"
        )
    ours = size <= 256 and _object(tokenizer).get("edge_attention") == "bytes"
    config, generation = _object(paths["tokenizer_config.json"]), _object(paths["generation_config.json"])
    special = {}
    for role in SPECIAL:
        value = config.get(role)
        if isinstance(value, dict):  # as an AddedToken is written
            value = value.get("content")
        if isinstance(value, str):
            special[role] = value
    ends = generation.get("eos_token_id", ())
    ends = tuple(ends) if isinstance(ends, list) else (ends,) if isinstance(ends, int) else ()
    if len(ends) > MAX_ENDS or not all(type(one) is int and 0 <= one < 2**31 for one in ends):
        raise InvalidArgument(
            f"generation_config.json: eos_token_id is no token id, nor a list of at most {MAX_ENDS}"
        )
    template: Any = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if paths["chat_template.jinja"].is_file():
        template = _text(paths["chat_template.jinja"])
    return TextFiles(
        None if ours else tokenizer, special, ends, template if isinstance(template, str) else None
    )


def read_begins(folder: Path) -> tuple[int, ...]:
    """The tokens that a decoder beside an encoder begins with; () where nothing says so. Blocks on the disk.

    Raises:
        InvalidArgument: what says so is not what it should be.
    """
    said = _object(folder / "generation_config.json")
    first, forced = said.get("decoder_start_token_id"), said.get("forced_decoder_ids") or []
    if first is None:
        return ()
    found = [first]
    for pair in forced if isinstance(forced, list) else []:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] != len(found) or pair[1] is None:
            break  # which language, say: whoever asks says it
        found.append(pair[1])
    bos = said.get("forced_bos_token_id")
    if bos is not None and len(found) == 1:
        found.append(bos)
    if len(found) > MAX_ENDS or not all(type(one) is int and 0 <= one < 2**31 for one in found):
        raise InvalidArgument(
            "generation_config.json: decoder_start_token_id, forced_decoder_ids or forced_bos_token_id "
            "are no token ids"
        )
    return tuple(found)


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > CONFIG_BYTES:
        raise InvalidArgument(
            f"bound text-config-bytes: {path.name} has {size:,} bytes, and one has {CONFIG_BYTES:,} at most"
        )
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path.name} is not UTF-8") from None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in the file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path.name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path.name} holds no JSON object")
    return found
