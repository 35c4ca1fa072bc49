"""`edge-attention contexts`: list, create, append, describe, trim, repair, export, import, drop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from edge_attention.cli.connection import connect
from edge_attention.cli.output import print_json, print_table, say, stretches
from edge_attention.cli.progress import append_progress
from edge_attention.client.results import Appended
from edge_attention.core.errors import EdgeAttentionError, InvalidTensor
from edge_attention.core.messages.attention import Context, Segment
from edge_attention.failing import json_option
from edge_attention.jobs.array_files import load_npz

_EPILOG = """
Examples:

\b
  edge-attention contexts create memory --query-heads 8 --key-heads 2 --key-dim 64
  edge-attention contexts append memory tokens.npz
  edge-attention attend memory --queries queries.npy
"""
_size = click.IntRange(1)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(invoke_without_command=True, epilog=_EPILOG)
@json_option
@click.pass_context
def contexts(ctx: click.Context, as_json: bool) -> None:
    """List contexts, or create, append to, describe, trim, repair, export, import and drop them."""
    if ctx.invoked_subcommand is not None:
        return
    with connect(ctx.obj) as client:
        found = client.contexts()
    if as_json:
        print_json([context.info for context in found])
    elif not found:
        say(
            "no contexts; make one with: "
            "edge-attention contexts create NAME --query-heads 8 --key-heads 2 --key-dim 64"
        )
    else:
        print_table(
            ("context", "tokens", "query heads", "key heads", "key dim", "value dim", "replicas", "segments"),
            (
                (
                    c.spec.name,
                    _count(c.info.segments),
                    c.spec.query_heads,
                    c.spec.key_heads,
                    c.spec.key_dim,
                    c.spec.value_dim,
                    c.spec.replicas,
                    len(c.segments),
                )
                for c in found
            ),
        )


@contexts.command("list", epilog="Example: edge-attention contexts list --json")
@json_option
@click.pass_context
def list_contexts(ctx: click.Context, as_json: bool) -> None:
    """List contexts."""
    ctx.invoke(contexts, as_json=as_json)


@contexts.command(
    epilog="Example: edge-attention contexts create memory --query-heads 8 --key-heads 2 --key-dim 64"
)
@click.argument("name")
@click.option("--query-heads", type=_size, required=True, help="Heads of a query.")
@click.option("--key-heads", type=_size, required=True, help="Heads of a key; they divide the query heads.")
@click.option("--key-dim", type=_size, required=True, help="Numbers of a key, in one head.")
@click.option("--value-dim", type=_size, help="Numbers of a value, in one head. By default as of a key.")
@click.option("--replicas", type=_size, default=1, help="Nodes that hold each segment.")
@json_option
@click.pass_obj
def create(
    address: str,
    name: str,
    query_heads: int,
    key_heads: int,
    key_dim: int,
    value_dim: int | None,
    replicas: int,
    as_json: bool,
) -> None:
    """Create the empty context NAME."""
    with connect(address) as client:
        made = client.create_context(
            name,
            query_heads=query_heads,
            key_heads=key_heads,
            key_dim=key_dim,
            value_dim=key_dim if value_dim is None else value_dim,
            replicas=replicas,
        )
    print_json(made.spec) if as_json else say(f"created context {name}")


@contexts.command(epilog="Example: edge-attention contexts append memory tokens.npz --node a")
@click.argument("name")
@click.argument("file", type=_file)
@click.option("--node", help="Keep the tokens on this node. By default the aggregator places them.")
@json_option
@click.pass_obj
def append(address: str, name: str, file: Path, node: str | None, as_json: bool) -> None:
    """Append the arrays `keys` and `values` of an .npz FILE to context NAME.

    keys [tokens, key_heads, key_dim], values [tokens, key_heads, value_dim].
    """
    arrays = load_npz(file, ("keys", "values"))
    with connect(address) as client:
        context = client.context(name)
        before = _count(context.segments)
        try:
            with append_progress(as_json) as told:
                appended = context.append(arrays["keys"], arrays["values"], node=node, progress=told)
        except KeyboardInterrupt:
            with suppress(EdgeAttentionError):  # which says less than Ctrl-C does
                now = _count(context.describe(timeout=5.0).segments)
                say(
                    f"stopped: context {name} has {now:,} tokens, {now - before:,} more than before; an "
                    f"append stores its tokens in order, so what is left of {file} begins there",
                    err=True,
                )
            raise
        except InvalidTensor as error:
            raise InvalidTensor(f"{file}, for context {name!r}: {error.message}") from None
    _print_appended(name, appended, as_json)


_APPEND_DATASET_EPILOG = """
The node must be started with --allow-release attention: what it tells of its tokens is of private data.

\b
Example:
  edge-attention contexts append-dataset memory a patients encoder.onnx --input x='*' --rows 0:1000
"""


@contexts.command("append-dataset", epilog=_APPEND_DATASET_EPILOG)
@click.argument("name")
@click.argument("node")
@click.argument("dataset")
@click.argument("model", type=_file)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="INPUT=COLUMN",
    help="An input of MODEL and the column of DATASET it reads; *: all columns of numbers, [rows, n]; one "
    "input given several times: these columns side by side.",
)
@click.option("--rows", metavar="START:STOP", help="Which rows; by default all.")
@json_option
@click.pass_obj
def append_dataset(
    address: str,
    name: str,
    node: str,
    dataset: str,
    model: Path,
    inputs: tuple[str, ...],
    rows: str | None,
    as_json: bool,
) -> None:
    """Append to NAME what NODE computes from its own DATASET with the ONNX file MODEL; no row leaves it.

    MODEL has the outputs `keys` [rows, key_heads, key_dim] and `values` [rows, key_heads, value_dim],
    float32: each row of the dataset becomes one token.
    """
    columns: dict[str, str | list[str]] = {}
    for name_, column in map(_pair, inputs):
        known = columns.get(name_)
        columns[name_] = (
            column if known is None else [*([known] if isinstance(known, str) else known), column]
        )
    with connect(address) as client:
        appended = client.context(name).append_dataset(
            node, dataset, model, columns, None if rows is None else _range(rows)
        )
    _print_appended(name, appended, as_json)


@contexts.command(epilog="Example: edge-attention contexts describe memory")
@click.argument("name")
@json_option
@click.pass_obj
def describe(address: str, name: str, as_json: bool) -> None:
    """Show the segments of context NAME and the nodes that hold them."""
    with connect(address) as client:
        context = client.context(name).describe()
    print_json(context) if as_json else _print_context(context)


@contexts.command(epilog="Example: edge-attention contexts trim memory 0:100000")
@click.argument("name")
@click.argument("positions", metavar="START:STOP")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, help="Seconds it may take."
)
@json_option
@click.pass_obj
def trim(address: str, name: str, positions: str, timeout: float, as_json: bool) -> None:
    """Forget the tokens of context NAME at the positions START up to, without, STOP. The others keep theirs.

    Tokens of a node's own data go by whole segments: contexts describe NAME.
    """
    span = _range(positions, "START:STOP")
    with connect(address) as client:
        trimmed = client.context(name).trim(span, timeout=timeout)
    if as_json:
        print_json(trimmed)
    else:
        say(f"trimmed {trimmed.trimmed:,} tokens of {name}; it has {_count(trimmed.context.segments):,}")


@contexts.command(epilog="Example: edge-attention contexts repair memory")
@click.argument("name")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, help="Seconds it may take."
)
@json_option
@click.pass_obj
def repair(address: str, name: str, timeout: float, as_json: bool) -> int:
    """Copy what fewer nodes hold of context NAME than it has replicas to further nodes.

    Exit code 3 where copies still lack: run it again, as when there was no time or no node for them.
    """
    with connect(address) as client:
        repaired = client.context(name).repair(timeout=timeout)
    if as_json:
        print_json(repaired)
    else:
        say(f"copied {repaired.copied:,} tokens of {repaired.segments:,} segments of {name}")
        for one in repaired.missing:
            say(f"  segment {one.shard}, {one.count:,} tokens, is not whole: {one.reason}")
    return 3 if repaired.missing else 0


@contexts.command(epilog="Example: edge-attention contexts export memory memory.safetensors")
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@click.pass_obj
def export(address: str, name: str, file: Path, as_json: bool) -> None:
    """Write the tokens of context NAME to FILE, as safetensors: keys, values, positions.

    Tokens of a node's own data do not leave it: such a context is not exported.
    """
    with connect(address) as client:
        tokens = client.context(name).export(file)
    if as_json:
        print_json({"context": name, "tokens": tokens, "file": str(file)})
    else:
        say(f"wrote {tokens:,} tokens of {name} to {file}")


@contexts.command("import", epilog="Example: edge-attention contexts import memory.safetensors memory-2")
@click.argument("file", type=_file)
@click.argument("name", required=False)
@click.option("--replicas", type=_size, help="Nodes that hold each segment.  [default: as it had]")
@json_option
@click.pass_obj
def import_(address: str, file: Path, name: str | None, replicas: int | None, as_json: bool) -> None:
    """Make a context of FILE, which `contexts export` has written: as NAME, or as it was called.

    Positions are given anew, from 0 on without gaps.
    """
    with connect(address) as client:
        made = client.import_context(file, name, replicas=replicas).describe()
    print_json(made) if as_json else say(f"imported {made.tokens:,} tokens as {made.spec.name}")


@contexts.command(epilog="Example: edge-attention contexts drop memory")
@click.argument("name")
@json_option
@click.pass_obj
def drop(address: str, name: str, as_json: bool) -> None:
    """Forget context NAME and its tokens."""
    with connect(address) as client:
        client.context(name).drop()
    print_json({"dropped": name}) if as_json else say(f"dropped context {name}")


def _print_context(context: Context) -> None:
    spec, stored = context.spec, _count(context.segments)
    gaps = f" (some are trimmed: positions go to {context.tokens - 1:,})" if stored < context.tokens else ""
    say(
        f"{spec.name}: {stored:,} tokens{gaps}; {spec.query_heads} query heads, {spec.key_heads} key "
        f"heads, key dim {spec.key_dim}, value dim {spec.value_dim}, {spec.token_bytes:,} bytes a token, "
        f"replicas {spec.replicas}"
    )
    if context.segments:
        print_table(
            ("segment", "positions", "tokens", "held by", "reachable"),
            (
                (
                    s.id,
                    stretches(s.stretches),
                    s.count,
                    ", ".join(s.holders),
                    ", ".join(s.live) or "none",
                )
                for s in context.segments
            ),
        )


def _print_appended(name: str, appended: Appended, as_json: bool) -> None:
    if as_json:
        print_json(appended)
        return
    holders = sorted({holder for segment in appended.segments for holder in segment.holders})
    say(
        f"appended {appended.tokens:,} tokens to {name}, positions {stretches(appended.ranges)}, "
        f"on {', '.join(holders) or 'no node'}"
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise click.BadParameter(f"{text!r} is not INPUT=COLUMN", param_hint="--input")
    return name, column


def _count(segments: Sequence[Segment]) -> int:
    return sum(segment.count for segment in segments)


def _range(text: str, hint: str = "--rows") -> range:
    start, colon, stop = text.partition(":")
    whole = all(one.isascii() and one.isdigit() and len(one) < 19 for one in (start, stop))
    if not (colon and whole and int(start) < int(stop)):
        raise click.BadParameter(
            f"{text!r} is not START:STOP, as 0:1000, the lower one first", param_hint=hint
        )
    return range(int(start), int(stop))
