"""`edge-attention attend`: attend to a context with queries from a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from edge_attention.cli.array_files import output_option, write_outputs
from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say, stretches
from edge_attention.client.contexts import MAX_DEADLINE
from edge_attention.client.results import Answer
from edge_attention.client.sync import Context
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array
from edge_attention.failing import json_option
from edge_attention.jobs.array_files import load_npy

RANDOM_BYTES = 2**30
NOT_EXACT = 3
LEAST_SECONDS = 0.05
"""What the attend itself gets where finding the context has used up the deadline."""

_EPILOG = """
Examples:

\b
  edge-attention attend memory --random 4 --causal
  edge-attention attend memory --queries q.npy --deadline 2 --require-exact --output answer.npz
"""


@click.command(epilog=_EPILOG)
@click.argument("context")
@click.option(
    "--queries",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An .npy file: [queries, query_heads, key_dim].",
)
@click.option("--random", "count", type=click.IntRange(min=1), help="Ask this many random queries instead.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Another one gives other random queries.")
@click.option("--causal", is_flag=True, help="A query sees positions up to and with its own.")
@click.option("--window", type=click.IntRange(1, 2**63 - 1), help="A query sees only so many last positions.")
@click.option("--scale", type=float, help="Multiplies the scores; by default 1 / sqrt(key_dim).")
@click.option(
    "--deadline",
    type=click.FloatRange(0, MAX_DEADLINE, min_open=True),
    help="Seconds; what is missing then is labelled.",
)
@click.option("--require-exact", is_flag=True, help="Exit with 3 if the answer is not exact.")
@click.option("--weights", is_flag=True, help="Also every token's global attention weight.")
@click.option(
    "--encoding",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="How results travel from nodes; float16: half the bytes, off by 2e-4.",
)
@output_option
@json_option
@click.pass_obj
def attend(
    address: str,
    context: str,
    queries: Path | None,
    count: int | None,
    seed: int,
    causal: bool,
    window: int | None,
    scale: float | None,
    deadline: float | None,
    require_exact: bool,
    weights: bool,
    encoding: Literal["float32", "float16"],
    output: Path | None,
    as_json: bool,
) -> None:
    """Attend to CONTEXT, wherever its tokens are: the exact result, and how much each node weighed.

    An answer that is not exact says so and says what is missing; the exit code is then still 0, or 3 with
    --require-exact.
    """
    if (queries is None) == (count is None):
        raise click.UsageError("give either --queries FILE.npy or --random N")
    with connect(address) as client:
        # The deadline is of the whole, of finding the context, too.
        began = time.monotonic()
        target = client.context(context, timeout=deadline)
        asked = load_npy(queries) if queries else _random(target, count or 1, seed)
        if deadline is not None:
            deadline = max(deadline - (time.monotonic() - began), LEAST_SECONDS)
        answer = target.attend(
            asked,
            causal=causal,
            window=window,
            scale=scale,
            deadline=deadline,
            weights=weights,
            encoding=encoding,
        )
    if output:
        _save(output, answer)
    if as_json:
        print_json(_summary(answer, len(asked)))
    else:
        _print(context, answer, len(asked), output)
    if require_exact and not answer.exact:
        say("edge-attention: the answer is not exact, and --require-exact was given", err=True)
        raise click.exceptions.Exit(NOT_EXACT)


def _random(context: Context, count: int, seed: int) -> Array:
    shape = count, context.spec.query_heads, context.spec.key_dim
    most = RANDOM_BYTES // (4 * shape[1] * shape[2])
    if count > most:
        raise InvalidArgument(f"--random {count} is too many; of this context's size it is at most {most}")
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _save(file: Path, answer: Answer) -> None:
    arrays: dict[str, Any] = {"out": answer.out, "lse": answer.lse}
    arrays |= {f"mass.{node}": mass for node, mass in answer.mass.items()}
    if answer.weights is not None:
        arrays["weights"] = answer.weights
    if answer.bound is not None:
        arrays["bound"] = answer.bound.error
    write_outputs(file, arrays)


def _summary(answer: Answer, queries: int) -> dict[str, Any]:
    return {
        "queries": queries,
        "tokens": answer.tokens,
        "exact": answer.exact,
        "coverage": answer.coverage,
        "mass": {node: float(mass.mean()) for node, mass in answer.mass.items()},
        "missing": answer.missing,
        "bound": None
        if answer.bound is None
        else {"largest": float(answer.bound.error.max(initial=0)), "tight": answer.bound.tight},
        "seconds": answer.seconds,
        "calls": answer.calls,
    }


def _print_times(answer: Answer) -> None:
    server = f"on the server, mean of {answer.calls} calls" if answer.calls > 1 else "on the server"
    stages = ", ".join(f"{stage} {1000 * s:.1f}" for stage, s in answer.seconds.items() if stage != "client")
    say(f"milliseconds: {1000 * answer.seconds['client']:.1f} in all; {server}: {stages}")


def _print(name: str, answer: Answer, queries: int, output: Path | None) -> None:
    covered = sum(map(len, answer.coverage))
    say(
        f"{'exact' if answer.exact else 'NOT EXACT'}: {queries} queries over {name}, "
        f"{answer.tokens:,} tokens, standing on positions {stretches(answer.coverage)} ({covered:,} tokens)"
    )
    for gap in answer.missing:
        say(f"missing: positions {stretches(gap.stretches)} on {', '.join(gap.holders)}: {gap.reason}")
    if answer.bound is not None:
        kind = "tight" if answer.bound.tight else "from the norms of the keys"
        say(f"no element is off by more than {answer.bound.error.max(initial=0):.3g} ({kind})")
    elif not answer.exact:
        say("no bound on the error can be given")
    held: dict[str, int] = {}
    for shard in answer.shards:
        held[shard.node] = held.get(shard.node, 0) + shard.count
    print_table(
        ("node", "tokens", "mass, mean", "smallest", "largest"),
        (
            (node, held[node], float(mass.mean()), float(mass.min(initial=1)), float(mass.max(initial=0)))
            for node, mass in answer.mass.items()
        ),
    )
    if answer.weights is not None and answer.weights.size:
        weights = np.nan_to_num(answer.weights).mean(axis=(0, 1))
        top = np.argsort(weights)[::-1][:5]
        say("most attended tokens: " + ", ".join(f"{i} ({weights[i]:.3g})" for i in top))
    _print_times(answer)
    if output:
        say(f"wrote {output}")
