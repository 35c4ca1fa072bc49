"""Sentences, some of which say the same in other words; and which of them a model finds alike."""

from __future__ import annotations

import numpy as np

from edge_attention.core.tensors import Array

__all__ = ["SAID_TWICE", "SENTENCES", "alike"]

SAID_TWICE = (
    ("The ferry to the island leaves at seven.", "A boat sails for the island at seven o'clock."),
    ("My bicycle has a flat tyre.", "The wheel of my bike has lost its air."),
    ("She planted tomatoes behind the house.", "Behind her home she is growing tomatoes."),
    ("The doctor told him to rest for a week.", "His physician ordered seven days of rest."),
    ("It will rain heavily this afternoon.", "Expect strong showers later today."),
    ("The museum is closed on Mondays.", "On Mondays you cannot visit the museum."),
    ("He lost his keys on the train.", "On a train ride his keys went missing."),
    ("The bakery sells out of bread before noon.", "By midday there is no bread left at the baker's."),
    ("Our team won the match in the last minute.", "A goal at the very end gave us the victory."),
    ("The old bridge is being repaired.", "Workers are fixing the ancient bridge."),
    ("Please turn down the music.", "Could you make the music less loud?"),
    ("The cat is asleep on the windowsill.", "A kitten naps by the window."),
    ("Prices of coffee have doubled this year.", "Coffee costs twice what it did a year ago."),
    ("The children built a castle of sand.", "A sandcastle was made by the kids."),
)
"""Pairs that mean the same."""

ALONE = (
    "The telescope found a planet without a star.",
    "An accountant checks the books every quarter.",
    "Whales sing to each other over great distances.",
    "The court adjourned without a verdict.",
    "Glass is made of sand and heat.",
    "The violin needs a new string.",
    "A glacier moves a few metres in a year.",
    "The password must have twelve characters.",
)
"""What no other says again."""

SENTENCES = (*(first for first, _ in SAID_TWICE), *ALONE, *(again for _, again in SAID_TWICE))


def alike(embeddings: Array, count: int) -> list[tuple[int, int, float]]:
    """The `count` pairs most alike, by the cosine of their vectors [sentences, width], all of length 1.

    Returns:
        Numbers of two sentences, the lower first, and their cosine; the most alike first.
    """
    cosines = np.triu(embeddings @ embeddings.T, 1)
    order = np.argsort(-cosines, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, cosines.shape)
    return [(int(i), int(j), float(cosines[i, j])) for i, j in zip(rows, columns, strict=True)]
