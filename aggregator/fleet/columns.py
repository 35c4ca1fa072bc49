"""Which columns of nodes' datasets become the inputs of a graph: by name, the same on every node. Pure.

A `*` is resolved here, once, into a list that every node's program names; whoever goes on later keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edge_attention.core.errors import InvalidArgument, NotFound
from edge_attention.core.messages.link import Column, Dataset
from edge_attention.core.messages.table import (
    ColumnRead,
    ColumnSpec,
    MissingRule,
    MissingValues,
    TableSpec,
    TensorRead,
)
from edge_attention.core.release import table_source
from edge_attention.core.table_spec import check_spec, constant_of
from edge_attention.core.tensors import DataType

__all__ = [
    "ALL",
    "FLOATS",
    "TableView",
    "WantedInput",
    "refuse_rules",
    "resolve",
    "row_shapes",
    "rules_of",
]

ALL = "*"
"""Every column of numbers of the job's dataset that no input of the job names."""
FLOATS = (DataType.FLOAT32, DataType.FLOAT64)
"""Types as which a column may be read in which a mean stands for what is missing."""
_REFUSE = MissingValues(MissingRule.REFUSE)


@dataclass(frozen=True)
class WantedInput:
    """What an input of a graph takes: dtype by NumPy's name, shape of one row; None: any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class TableView:
    """How the rows of a dataset become the inputs of a graph, the same on every node.

    Attributes:
        tensors: input -> how it is read; the names they are stored as are still to be given.
        complete: rows that lack a value in one of these are left out.
        means: columns in which the mean of all nodes stands for what is missing. As long as it is not known
            they read None there: see `filled`.
    """

    dataset: str
    tensors: Mapping[str, TensorRead] = field(default_factory=dict)
    complete: tuple[ColumnRead, ...] = ()
    means: tuple[ColumnRead, ...] = ()

    def source(self, name: str) -> str:
        """What releases call the input, whatever the means are."""
        tensor = self.filled(dict.fromkeys(self.means, 0.0)).tensors[name]
        return table_source(self.dataset, tensor, self.complete)

    def stored(self, prefix: str) -> tuple[tuple[TensorRead, ...], dict[str, str]]:
        """The tensors with names that begin with `prefix`, each once, and input -> its tensor's name."""
        tensors: dict[TensorRead, str] = {}
        names = {
            name: tensors.setdefault(tensor, f"{prefix}/{at}")
            for at, (name, tensor) in enumerate(self.tensors.items())
        }
        return tuple(replace(tensor, stored=name) for tensor, name in tensors.items()), names

    def filled(self, means: Mapping[ColumnRead, float]) -> TableView:
        """With the means of the columns in `self.means`."""
        known = {(each.dataset, each.name): means[each] for each in self.means}

        def of(tensor: TensorRead) -> TensorRead:
            if tensor.data_type not in FLOATS:  # the same column for another input, which a mean seldom fits
                return tensor
            columns = tuple(
                read if mean is None else replace(read, constant=mean)
                for read in tensor.columns
                for mean in (known.get((read.dataset, read.name)),)
            )
            return replace(tensor, columns=columns)

        return replace(self, tensors={name: of(tensor) for name, tensor in self.tensors.items()})

    def to_json(self) -> dict[str, Any]:
        return asdict(self, dict_factory=_plain)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableView:
        return cls(
            data["dataset"],
            {name: _tensor(each) for name, each in data["tensors"].items()},
            tuple(map(_read, data["complete"])),
            tuple(map(_read, data["means"])),
        )


def _plain(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, DataType) else value for key, value in pairs}


def _read(data: Mapping[str, Any]) -> ColumnRead:
    return ColumnRead(**{**data, "categories": tuple(data["categories"])})


def _tensor(data: Mapping[str, Any]) -> TensorRead:
    columns = tuple(map(_read, data["columns"]))
    return TensorRead(**{**data, "data_type": DataType(data["data_type"]), "columns": columns})


def refuse_rules(spec: TableSpec, what: str = "") -> None:
    """Refuse the rules that need to know something of all rows first: jobs alone ask for that.

    Raises:
        InvalidArgument: naming the rule, and what to do instead.
    """
    for rule in (MissingRule.DROP, MissingRule.MEAN):
        if rule in rules_of(spec):
            raise InvalidArgument(
                f"{what}missing = {rule.value!r} is carried out by jobs that train alone: give the value "
                "that is read instead, or take such rows out of the file"
            )


def rules_of(spec: TableSpec) -> frozenset[MissingRule]:
    """Those that a job names."""
    every = (spec.missing, *(column.missing for column in spec.columns.values()))
    return frozenset(rule.rule for rule in every if rule is not None)


def named(name: str, inputs: Mapping[str, str], spec: TableSpec) -> tuple[str, ...]:
    """The columns that an input is made of, as the job says; an input left out is the column of its name."""
    listed = spec.inputs.get(name)
    return listed.columns if listed is not None else (inputs.get(name, name),)


def row_shapes(
    dataset: str, inputs: Mapping[str, str], spec: TableSpec, datasets: Sequence[Dataset]
) -> dict[str, tuple[int, ...]]:
    """The shape of one row of each input that the job names, as a node with `datasets` has it; without those
    whose columns it has not.

    Of a list, and of what is one-hot or `*`, it is one size; of a single column the column's own.
    """
    found: dict[str, tuple[int, ...]] = {}
    own = next((d for d in datasets if d.name == dataset), None)
    if own is None:
        return found
    used = _used(inputs, spec)
    for name in dict.fromkeys((*inputs, *spec.inputs)):
        try:
            texts = _expanded(named(name, inputs, spec), own, used)
            columns = [_find(text, own, datasets, "") for text in texts]
        except (NotFound, InvalidArgument):
            continue
        specs = [spec.columns.get(text, ColumnSpec()) for text in texts]
        alone = len(columns) == 1 and name not in spec.inputs and named(name, inputs, spec) != (ALL,)
        if alone and not specs[0].one_hot:
            found[name] = tuple(columns[0][1].shape)
        else:
            found[name] = (sum(_width(c, s) for (_, c), s in zip(columns, specs, strict=True)),)
    return found


def resolve(
    dataset: str,
    wanted: Sequence[WantedInput],
    inputs: Mapping[str, str],
    spec: TableSpec,
    nodes: Mapping[str, Sequence[Dataset]],
) -> TableView:
    """The view by which each of `nodes` (its name -> its datasets) reads the inputs `wanted`.

    Raises:
        NotFound: a node has no such dataset, or a column is not there: which, and on which node.
        InvalidArgument: a column is not what the input takes, or lacks values without a rule for it; or
            nodes have other columns than the first, where the job says `*`.
        FailedPrecondition: there is no node to learn from what `*` is.
    """
    check_spec(spec)
    used = _used(inputs, spec, [each.name for each in wanted])
    owns = {node: own_dataset(node, dataset, datasets) for node, datasets in sorted(nodes.items())}
    view: TableView | None = None
    for node, own in owns.items():
        texts = {each.name: _expanded(named(each.name, inputs, spec), own, used) for each in wanted}
        if view is None:
            first, columns = node, texts
            view = _view(node, own, wanted, texts, spec, nodes[node], inputs)
            continue
        for each in wanted:
            _same(
                each.name,
                columns[each.name],
                texts[each.name],
                first,
                node,
                dataset,
                named(each.name, inputs, spec),
            )
        _check(node, own, wanted, view, nodes[node])
    return _unseen(dataset, wanted, inputs, spec) if view is None else view


def _unseen(
    dataset: str, wanted: Sequence[WantedInput], inputs: Mapping[str, str], spec: TableSpec
) -> TableView:
    """As `_view`, of a dataset that no node here has: each column is taken to be as the input takes it."""
    names = {each.name: named(each.name, inputs, spec) for each in wanted}
    others: dict[str, list[Column]] = {dataset: []}
    for each in wanted:
        for text in (texts := names[each.name]):
            words = bool(spec.columns.get(text, ColumnSpec()).categories)
            shape = () if len(texts) > 1 or text == ALL else tuple(n or 1 for n in each.shape)
            other, colon, name = text.partition(":")
            column = Column(name if colon else text, DataType(each.dtype), shape, words=words)
            others.setdefault(other if colon else dataset, []).append(column)
    seen = [Dataset(name, 1, tuple(columns), identified=True) for name, columns in others.items()]
    return _view("", seen[0], wanted, names, spec, seen, inputs, check=False)


def own_dataset(node: str, name: str, datasets: Sequence[Dataset]) -> Dataset:
    """The dataset of that name, with rows. Raises NotFound, InvalidArgument."""
    found = next((d for d in datasets if d.name == name), None)
    if found is None:
        have = ", ".join(d.name for d in datasets) or "none"
        raise NotFound(
            f"node {node!r} has no dataset {name!r} (it has: {have}); start it with --data {name}=FILE"
        )
    if not found.rows:
        raise InvalidArgument(f"dataset {name!r} of node {node!r} has no rows")
    return found


def _used(inputs: Mapping[str, str], spec: TableSpec, names: Iterable[str] = ()) -> frozenset[str]:
    """The columns that inputs name, as they name them."""
    every = dict.fromkeys((*inputs, *spec.inputs, *names))
    return frozenset(text for name in every for text in named(name, inputs, spec))


def _expanded(texts: tuple[str, ...], own: Dataset, used: frozenset[str]) -> tuple[str, ...]:
    """With the columns that `*` stands for in the order of the dataset."""
    if ALL not in texts:
        return texts
    rest = tuple(c.name for c in own.columns if c.name not in used and not c.words and len(c.shape) < 2)
    at = texts.index(ALL)
    return (*texts[:at], *rest, *texts[at + 1 :])


def _find(text: str, own: Dataset, datasets: Sequence[Dataset], node: str) -> tuple[str, Column]:
    """The dataset ("": its own) and the column that `text` names.

    Raises:
        NotFound: there is none.
    """
    if (column := _column(own, text)) is not None:
        return "", column
    other, colon, name = text.partition(":")
    if colon and (found := next((d for d in datasets if d.name == other), None)) is not None:
        if (column := _column(found, name)) is not None:
            return other, column
        own, text = found, name
    have = ", ".join(c.name for c in own.columns)
    raise NotFound(
        f"dataset {own.name!r} of node {node!r} has no column {text!r}; it has: {have[:500]} (a column that "
        "was set aside is none; that node's log says which, and why, as edge-attention data check does)"
    )


def _column(dataset: Dataset, name: str) -> Column | None:
    return next((column for column in dataset.columns if column.name == name), None)


def _width(column: Column, spec: ColumnSpec) -> int:
    if spec.one_hot:
        return len(spec.categories)
    return column.shape[0] if column.shape else 1


def _view(
    node: str,
    own: Dataset,
    wanted: Sequence[WantedInput],
    texts: Mapping[str, tuple[str, ...]],
    spec: TableSpec,
    datasets: Sequence[Dataset],
    inputs: Mapping[str, str],
    check: bool = True,
) -> TableView:
    tensors: dict[str, TensorRead] = {}
    complete: dict[ColumnRead, None] = {}
    means: dict[ColumnRead, None] = {}
    used = _used(inputs, spec, [each.name for each in wanted])
    for name in spec.columns if check else ():
        _find(name, own, datasets, node)  # a rule for a column that is not there is a slip
    for each in wanted:
        reads: list[ColumnRead] = []
        said_texts = named(each.name, inputs, spec)
        if not texts[each.name]:
            raise InvalidArgument(
                f"dataset {own.name!r} of node {node!r} has no column of numbers left for input {each.name!r}"
            )
        for text in texts[each.name]:
            other, column = _find(text, own, datasets, node)
            said = spec.columns.get(text, ColumnSpec())
            star = text == ALL or (ALL in said_texts and text not in said_texts)
            read = ColumnRead(column.name, other, said.categories, said.one_hot, of_all=star)
            plain = ColumnRead(column.name, other, of_all=star)
            for rule in _rules(text, said, spec, used):
                if rule.rule is MissingRule.DROP:
                    complete[plain] = None
                elif rule.rule is MissingRule.MEAN:
                    if not _no_mean(column, each):
                        means[plain] = None
                    elif said.missing is not None:
                        raise InvalidArgument(f"column {text!r} {_no_mean(column, each)}; name another rule")
                elif rule.rule is MissingRule.CONSTANT:
                    read = replace(read, constant=constant_of(said, rule, f"column {text!r}"))
            reads.append(read)
        data_type = DataType(each.dtype)
        beside = len(each.shape) == 1 and not (
            len(reads) == 1
            and not reads[0].one_hot
            and len(_find(texts[each.name][0], own, datasets, node)[1].shape) == 1
        )
        if len(reads) > 1 and not beside:
            raise InvalidArgument(
                f"input {each.name!r} takes {_shown(each.shape)} a row; several columns are [{len(reads)}]"
            )
        tensors[each.name] = TensorRead("", data_type, tuple(reads), beside)
    view = TableView(own.name, tensors, tuple(complete), tuple(means))
    if check:
        _check(node, own, wanted, view, datasets)
    return view


def _rules(text: str, said: ColumnSpec, spec: TableSpec, used: frozenset[str]) -> Sequence[MissingValues]:
    """What is done where the column lacks a value; of a `*` that is not resolved all that may be."""
    if text == ALL:
        rules = [c.missing for name, c in spec.columns.items() if name not in used]
        return list({rule.rule: rule for rule in (spec.missing, *rules) if rule is not None}.values())
    if said.missing is not None or spec.missing is None:
        return (said.missing or _REFUSE,)
    numbers = spec.missing.rule in (MissingRule.MEAN, MissingRule.CONSTANT)
    return (_REFUSE,) if said.categories and numbers else (spec.missing,)  # which is no category


def _no_mean(column: Column, wanted: WantedInput) -> str:
    """Why the mean does not stand for what the column lacks; nothing: it does."""
    if DataType(wanted.dtype) not in FLOATS:
        return f"is read as {wanted.dtype}, which a mean seldom is"
    return f"is {list(column.shape)} a row, which has no one mean" if column.shape else ""


def _same(
    name: str,
    columns: tuple[str, ...],
    here: tuple[str, ...],
    first: str,
    node: str,
    dataset: str,
    said: tuple[str, ...],
) -> None:
    """Refuse a node whose `*` is another than the first one's; their order does not count."""
    if ALL not in said or set(columns) == set(here):
        return
    more = ", ".join(sorted(set(here) - set(columns)))
    less = ", ".join(sorted(set(columns) - set(here)))
    what = " and ".join(part for part in (more and f"has {more}", less and f"lacks {less}") if part)
    raise InvalidArgument(
        f"dataset {dataset!r} of node {node!r} {what}, unlike that of node {first!r}: input {name!r} is '*', "
        "every column of numbers; list the columns that it is made of, or give the nodes the same"
    )


def _check(
    node: str, own: Dataset, wanted: Sequence[WantedInput], view: TableView, datasets: Sequence[Dataset]
) -> None:
    """Refuse a node whose columns cannot be read so."""
    for each in wanted:
        tensor = view.tensors[each.name]
        width = 0
        for read in tensor.columns:
            text = f"{read.dataset}:{read.name}" if read.dataset else read.name
            other, column = _find(text, own, datasets, node)
            if other != read.dataset:
                raise NotFound(
                    f"node {node!r} has column {text!r} in another dataset than other nodes; call it alike"
                )
            _fits(node, own, each, tensor, read, column)
            ruled = (*view.complete, *(view.means if tensor.data_type in FLOATS else ()))
            rule = any((c.dataset, c.name) == (read.dataset, read.name) for c in ruled)
            if column.gaps and read.constant is None and not rule:
                raise InvalidArgument(
                    f"column {text!r} of node {node!r} lacks values; say what is read "
                    f"instead: columns.{text}.missing, or missing_values for all columns"
                )
            width += len(read.categories) if read.one_hot else column.shape[0] if column.shape else 1
        if tensor.side_by_side and each.shape[0] not in (None, width):
            names = ", ".join(read.name for read in tensor.columns[:20])
            more = f" and {len(tensor.columns) - 20} more" if len(tensor.columns) > 20 else ""
            raise InvalidArgument(
                f"input {each.name!r} takes {_shown(each.shape)} a row, its columns ({names}{more}) are "
                f"[{width}] on node {node!r}"
            )


def _fits(
    node: str, own: Dataset, wanted: WantedInput, tensor: TensorRead, read: ColumnRead, column: Column
) -> None:
    """Refuse a column that is not what the input takes."""
    where = f"column {column.name!r} of node {node!r}"
    takes = f"input {wanted.name!r} takes {wanted.dtype} {_shown(wanted.shape)}"
    if read.categories:
        if column.shape:
            raise InvalidArgument(f"{where} is {list(column.shape)} a row; categories are one value a row")
        if wanted.shape and not tensor.side_by_side:
            raise InvalidArgument(f"{where} is one category a row, {takes}")
        return
    if column.words:
        raise InvalidArgument(f"{where} holds words, {takes}: list the categories that they are read as")
    data_type = tensor.data_type
    fits = (
        data_type is column.data_type
        or (data_type in (DataType.FLOAT32, DataType.FLOAT64) and column.float32)
        or (data_type is DataType.INT64 and column.int64)
        or (data_type is DataType.INT32 and column.data_type in (DataType.INT8, DataType.UINT8))
    )
    shape = column.shape if len(column.shape) != 1 or not tensor.side_by_side else ()
    whole = wanted.shape if not tensor.side_by_side else ()
    alike = len(shape) == len(whole) and all(
        want in (None, have) for want, have in zip(whole, shape, strict=True)
    )
    if not fits or not alike:
        raise InvalidArgument(
            f"{where} is {column.data_type.value} {list(column.shape)} a row, {takes}"
            + ("" if fits else f"; not every value of it is {wanted.dtype} exactly")
        )


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"
