"""What a generation is asked for, and what comes of it: plain types, for every door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aggregator.inference.batching.batch_queue import PRIORITIES, PRIORITY
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.generation.log_probabilities import check_likeliest
from edge_attention.core.generation.sampling import Sampling
from edge_attention.core.generation.stops import StopWords
from edge_attention.core.messages.inference import ToldToken
from edge_attention.core.tensors import Array

__all__ = [
    "MAX_TOKENS",
    "PROMPT_CHARACTERS",
    "PROMPT_TOKENS",
    "Finish",
    "GenerationEvent",
    "GenerationRequest",
    "GenerationUsage",
    "PromptTooLong",
]

MAX_TOKENS = 16_384
"""Tokens that one generation may bring; a deployment's sessions may be shorter."""
PROMPT_TOKENS = 32_768
PROMPT_CHARACTERS = 1 << 20
"""Of one prompt."""


class PromptTooLong(InvalidArgument):
    """The prompt has more tokens than a session of the model, or than any may."""


Finish = Literal["", "stop", "length"]


@dataclass(frozen=True)
class GenerationRequest:
    """A generation.

    Attributes:
        model: name of a deployed decoder.
        prompt: a text, where the deployment has a tokenizer; or token ids. Of a decoder beside an encoder it
            is the encoder's, or, with `inputs`, the decoder's first tokens, if not those that it always has.
        inputs: the encoder's, of one row, by name.
        max_tokens: that may come; with `echo` it may be 0.
        seed: of the draws; None: one is chosen, and the usage says which.
        stop: texts that end it; they are not given out. Of token ids without a tokenizer there is no text.
        speculate: whether tokens that the text itself suggests may be verified several a trip. The tokens
            are the same.
        special: whether the tokenizer puts special tokens around the prompt; one that a chat template has
            written has them already.
        priority: among those of the model that wait for a trip; 1 goes first, PRIORITIES last, 0 is PRIORITY.
        deployment: the one that it is for, as `Generator.deployment` names it; "": whichever serves.
        logprobs: how many tokens of each place are told with how likely they were, besides the one that came,
            which always is; None: nothing is told.
        echo: whether the prompt's text, and what is told of its tokens, comes before what follows. Not of a
            decoder beside an encoder.

    The others are `core/generation/sampling.py`'s.
    """

    model: str
    prompt: str | tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    speculate: bool = True
    special: bool = True
    inputs: Mapping[str, Array] = field(default_factory=dict)
    priority: int = 0
    deployment: str = ""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    echo: bool = False

    def sampling(self, seed: int) -> Sampling:
        """How tokens are chosen, with `seed` where the request names none."""
        return Sampling(
            self.repetition_penalty,
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            seed if self.seed is None else self.seed,
            self.frequency_penalty,
            self.presence_penalty,
            self.logit_bias,
        )

    def check(self) -> None:
        """Refuse what no model could do.

        Raises:
            InvalidArgument: names the field and its bounds.
        """
        least = 0 if self.echo else 1
        if not least <= self.max_tokens <= MAX_TOKENS:
            raise InvalidArgument(
                f"bound generation-tokens: max_tokens is {self.max_tokens}; it must be {least} to "
                f"{MAX_TOKENS:,}"
            )
        if not self.prompt and not self.inputs:
            raise InvalidArgument("the prompt is empty; give at least one token to go on from")
        most = PROMPT_CHARACTERS if isinstance(self.prompt, str) else PROMPT_TOKENS
        if len(self.prompt) > most:
            what = "characters" if isinstance(self.prompt, str) else "tokens"
            raise PromptTooLong(
                f"bound prompt-{what}: the prompt has {len(self.prompt):,} {what}, and has {most:,} at most"
            )
        if not 0 <= self.priority <= PRIORITIES:
            raise InvalidArgument(
                f"priority is {self.priority}; 1 goes first, {PRIORITIES} last, 0 is {PRIORITY}"
            )
        self.sampling(0).check()
        check_likeliest(self.logprobs)
        StopWords(self.stop)


@dataclass(frozen=True)
class GenerationUsage:
    """What a generation took.

    Attributes:
        trips: through the model, the prompt's included.
        guessed, accepted: tokens that were verified as guesses, and those of them that were right.
        seconds: by stage: prompt, tokens (all others), all.
        lacking: why the logits were not the whole model's, to rounding in its own types; empty: they were.
    """

    prompt_tokens: int
    completion_tokens: int
    seed: int
    trips: int = 0
    guessed: int = 0
    accepted: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    lacking: str = ""


@dataclass(frozen=True)
class GenerationEvent:
    """Some tokens, and the text that is sure by now: it may lag behind them.

    `told`: how likely these tokens were, where that is asked for; and before them the prompt's, with `echo`,
    whose text comes first, too. `end`: the same of the token that ended the text, which is none of it.
    `finish` is said in the last event, with `usage`: "stop" by a token or a word that ends the text, "length"
    by max_tokens or the session's longest.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: Finish = ""
    usage: GenerationUsage | None = None
    told: tuple[ToldToken, ...] = ()
    end: ToldToken | None = None
