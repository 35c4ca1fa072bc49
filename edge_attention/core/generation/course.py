"""One generation as decisions: which tokens the model is given next, and which come of its logits.

The model's state holds the tokens it was given. Whoever performs asks for `ask`, gives those tokens to the
model, and hands its logits to `take`, which says what came. The first `length` tokens of the model's state
still stand then: it is to be cut back to them before it is asked again.

    course = GenerationCourse(prompt, sampling, 100, ends, rule)
    while not course.finish:
        logits = extend(course.ask())
        tokens = course.take(logits)
        truncate(course.length)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

from edge_attention.core.errors import InvalidArgument, InvalidTensor
from edge_attention.core.generation.log_probabilities import check_likeliest, told_token
from edge_attention.core.generation.lookup import NgramLookup
from edge_attention.core.generation.sampling import Sampling, choose
from edge_attention.core.generation.speculation import GuessRecord, SpeculationRule
from edge_attention.core.messages.inference import ToldToken
from edge_attention.core.tensors import Float32

__all__ = ["PROMPT_ROWS", "GenerationCourse"]

PROMPT_ROWS = 256
"""Tokens of a prompt that the model is given at a time: their logits are all in memory."""


class GenerationCourse:
    """From a prompt on.

    Args:
        prompt: token ids, at least one.
        most: tokens that may come; none, where the prompt is `told` and that is all.
        ends: tokens that end the text; they are not of it.
        rule: how many guesses are worth a trip; None: no guesses.
        likeliest: how many tokens of each place are told with how likely they were; None: nothing is told.
        prompt_told: whether the prompt's tokens are told as well.

    Attributes:
        tokens: the prompt's, and all that came.
        length: tokens that the model has.
        told: of the last `take`, what came with how likely it was, and before it the prompt's tokens. The
            prompt's first is told with the next.
        end: the same of the token that ended the text, which is none of it; None: none did, or none is told.
        finish: "" while it goes on, "stop" after a token that ends the text, "length" after `most` tokens.
        guessed, accepted: tokens that were verified as guesses, and those that were right.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        most: int,
        ends: Collection[int] = (),
        rule: SpeculationRule | None = None,
        prompt_rows: int = PROMPT_ROWS,
        likeliest: int | None = None,
        prompt_told: bool = False,
    ) -> None:
        sampling.check()
        check_likeliest(likeliest)
        if not prompt:
            raise InvalidArgument("the prompt is empty; give at least one token to go on from")
        if most < (0 if prompt_told else 1):
            raise InvalidArgument(f"max_tokens is {most}; it must be 1 or more")
        self._sampling = sampling
        self._end = len(prompt) + most
        self._ends = frozenset(ends)
        self._rule = rule
        self._prompt_rows = prompt_rows
        self._lookup = NgramLookup(prompt)
        self._record = GuessRecord()
        self._seen = set(prompt)
        self._came: Counter[int] = Counter()
        self._likeliest = likeliest
        self._untold = len(prompt) if prompt_told and likeliest is not None else 0
        """Of the first tokens, as many are to be told; those that the model has were."""
        self._asked: tuple[int, ...] = ()
        self._guesses = 0
        self.length = 0
        done = not most and self._untold < 2
        self.end: ToldToken | None = None
        self.told: tuple[ToldToken, ...] = (ToldToken(prompt[0]),) if done and self._untold else ()
        self.finish: Literal["", "stop", "length"] = "length" if done else ""
        self.guessed = 0
        self.accepted = 0

    @property
    def tokens(self) -> Sequence[int]:
        return self._lookup.tokens

    def ask(self) -> tuple[int, ...]:
        """The tokens that the model is to be given next; some of them may be guesses."""
        # The last of all is not given to the model: nothing comes after it.
        known = self._lookup.tokens[self.length : min(self.length + self._prompt_rows, self._end - 1)]
        guess: tuple[int, ...] = ()
        if self._rule is not None and len(known) == 1 and self.length + 1 == len(self._lookup.tokens):
            # The last token needs no guesses: nothing comes after it.
            size, guess = self._lookup.guess(min(self._rule.most, self._end - len(self._lookup.tokens) - 1))
            guess = guess[: self._rule.guesses(len(guess), self._record.right(size))]
        self._guesses = len(guess)
        self._asked = (*known, *guess)
        return self._asked

    def take(self, logits: Float32) -> tuple[int, ...]:
        """The tokens that come, from the logits after each token of `ask`; none while the prompt goes on.

        Args:
            logits: float32 [tokens asked, vocabulary].

        Raises:
            InvalidTensor: of another shape, or not finite.
        """
        if logits.ndim != 2 or len(logits) != len(self._asked):
            raise InvalidTensor(f"logits of {len(self._asked)} tokens have shape {logits.shape}")
        known = len(self._asked) - self._guesses
        self.told = self._prompt_told(logits[:known])
        self.length += known
        if self.length < len(self._lookup.tokens):
            if self.length == self._end - 1:
                self.finish = "length"
            return ()
        self.guessed += self._guesses
        came: list[int] = []
        for row in range(known - 1, len(self._asked)):
            token = self._next(logits[row])
            if self.finish == "stop":
                break
            came.append(token)
            if self.finish or row + 1 == len(self._asked) or token != self._asked[row + 1]:
                break
            self.length += 1
            self.accepted += 1
        return tuple(came)

    def _prompt_told(self, logits: Float32) -> tuple[ToldToken, ...]:
        """The prompt's tokens after those that these logits are of; before the second its first."""
        if self._likeliest is None or not self._untold:
            return ()
        tokens, begin = self._lookup.tokens, self.length + 1
        end = min(begin + len(logits), self._untold)
        told = (
            told_token(logits[place - begin], tokens[place], place, self._likeliest)
            for place in range(begin, end)
        )
        return ((ToldToken(tokens[0]),) if begin == 1 else ()) + tuple(told)

    def _next(self, logits: Float32) -> int:
        place = len(self._lookup.tokens)
        before = self._seen if self._sampling.repetition_penalty != 1 else ()
        token = choose(logits, self._sampling, place, before, self._came)
        told = None if self._likeliest is None else told_token(logits, token, place, self._likeliest)
        if token in self._ends:
            self.finish, self.end = "stop", told
            return token
        if told is not None:
            self.told += (told,)
        if self._sampling.counts:
            self._came[token] += 1
        if self._rule is not None:
            size, guess = self._lookup.guess(1)
            if size:
                self._record.fared(size, guess[0] == token)
        self._lookup.append(token)
        self._seen.add(token)
        if place + 1 == self._end:
            self.finish = "length"
        return token
