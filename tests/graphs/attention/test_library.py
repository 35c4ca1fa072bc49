"""The committed graphs: what they are called, that they are what the code builds, and who may see what."""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import onnx
import pytest

from edge_attention.core.errors import NotFound
from edge_attention.graphs.attention import library, library_build
from edge_attention.graphs.attention.build import GRAPHS, build
from edge_attention.graphs.onnx_builder import IR_VERSION, OPSET


def test_names_are_those_of_the_code() -> None:
    assert library.names() == tuple(sorted(GRAPHS))


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_committed_graph_is_what_the_code_builds(name: str) -> None:
    assert onnx.load_model_from_string(library.load(name)) == build(name)
    bytes_twice = [build(name).SerializeToString(deterministic=True) for _ in range(2)]
    assert bytes_twice[0] == bytes_twice[1]


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_every_dimension_is_symbolic_and_versions_are_pinned(name: str) -> None:
    model = onnx.load_model_from_string(library.load(name))
    assert model.ir_version == IR_VERSION
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    for value in [*model.graph.input, *model.graph.output]:
        assert all(dim.dim_param for dim in value.type.tensor_type.shape.dim), value.name


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_digest_is_of_the_bytes(name: str) -> None:
    assert library.digest(name) == sha256(library.load(name)).hexdigest()


def test_check_finds_what_is_stale(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    shutil.copytree(library_build.FOLDER, folder)
    assert library_build.stale(folder) == []
    (folder / "attention_lse.onnx").write_bytes(library.load("attention_decode"))
    (folder / "attention_values.onnx").unlink()
    (folder / "left_over.onnx").write_bytes(b"")
    assert library_build.stale(folder) == ["attention_lse", "attention_values", "left_over"]
    assert library_build.main(["--check"]) == 0


def test_a_node_reads_the_library_without_onnx() -> None:
    code = (
        "import sys; from edge_attention.graphs.attention import library; "
        "library.release('attention'); print('onnx' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(NotFound, match="'nothing'"):
        library.load("nothing")
    with pytest.raises(NotFound, match="'nothing'"):
        library.release("nothing")
    with pytest.raises(NotFound, match="'nothing'"):
        build("nothing")


def test_a_release_names_outputs_that_exist_and_none_that_lays_out_tokens() -> None:
    released = {digest: rule.leaves for digest, rule in library.release("attention").graphs.items()}
    assert not released.pop("*")
    # What sessions store and make is never private, and what is stored as it is nobody may release.
    kept = [name for name in library.names() if name.startswith("cached_")]
    others = set(library.names()) - {*kept, "likeliest", "stored_tiles"}
    assert released.keys() == {library.digest(name) for name in others}
    for name in others:
        outputs = {output.name for output in onnx.load_model_from_string(library.load(name)).graph.output}
        allowed = released[library.digest(name)]
        assert allowed <= outputs
        assert outputs - allowed <= {"p", "dkeys", "dvalues"}
        assert not allowed & {"p", "dkeys", "dvalues"}


@pytest.mark.parametrize(
    ("queries", "group", "graph"),
    [
        (1, 1, "attention_decode"),
        (1, 16, "attention_decode"),
        (16, 1, "attention_decode"),
        (16, 4, "attention_prefill"),
        (512, 1, "attention_prefill"),
    ],
)
def test_the_graph_for_a_size(queries: int, group: int, graph: str) -> None:
    assert library.forward_graph(queries, group) == graph
