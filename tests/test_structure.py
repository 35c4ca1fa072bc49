"""The structure DESIGN section 6 promises, read off the files. Imports between rooms: also .importlinter."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ("client", "jobs", "cli", "demo", "doctor", "torch")


def python(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no Python: this test looks in the wrong place"
    return files


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def trees_of_this_module():
    """Each file is parsed once for all tests here, and the trees go with the last of them."""
    yield
    parsed.cache_clear()


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it; `from a import b` is `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


DAEMON = "edge_node.link, edge_node.data.datasets, edge_node.main, edge_node.store.sequence_files"


def loaded_by_the_daemon(more: str = "") -> tuple[list[Path], int]:
    """The files of ours that a node has loaded before it holds anything, and its megabytes then."""
    code = f"""
import sys, {DAEMON}{more}
ours = [m for n, m in sys.modules.items() if n.partition('.')[0] in ('edge_node', 'edge_attention')]
print(*(m.__file__ for m in ours if m.__file__))
print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')) // 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files, megabytes = done.stdout.splitlines()
    return [Path(file) for file in files.split()], int(megabytes)


def test_the_node_is_small():
    """What the daemon loads of ours, in lines, and what it takes in memory. Measured: 12,190 and 68.

    Of these 350 are how columns are asked for and what releases say of them: each program names columns. 150
    are what keeps large tensors on the disk, mapped, over restarts: they lie there when a node starts. 80
    have a prepared program append where each call says. 100 say what a replica is called. 190 let an operator
    allow a whole job by one name, or on one machine all that programs ask for, and say so.
    """
    files, megabytes = loaded_by_the_daemon()
    assert 1_000 < sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 12_400
    assert 20 < megabytes < 80


def test_the_node_knows_no_model_and_no_strategy():
    """None of what it loads of ours, at a start or later, but for the names that users import."""
    words = re.compile(
        r"\b(model|optimizer|optimiser|sgd|adam|fedavg|strategy|gradient|training|loss|epoch)\w*",
        re.IGNORECASE,
    )
    # Not the reader of graphs: in the format a file is called a model.
    files, _ = loaded_by_the_daemon(
        ", edge_node.identity, edge_attention.tables.reading, edge_node.cell.worker"
    )
    users = ROOT / "edge_attention/__init__.py"  # what users import from there
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in sorted({*python("edge_node"), *files} - {users})
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


def test_core_is_numpy_and_the_standard_library():
    for path in python("edge_attention/core"):
        for name in imported(path):
            top = name.partition(".")[0]
            assert top == "numpy" or top in sys.stdlib_module_names or within(name, "edge_attention.core"), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_only_wire_names_generated_messages():
    for folder in ("edge_attention", "edge_node", "aggregator"):
        for path in python(folder):
            if (ROOT / "edge_attention/wire") in path.parents:
                continue
            generated = {
                name
                for name in imported(path)
                if re.search(r"_pb2(_grpc)?\b", name) or within(name, "protos")
            }
            # Health and reflection come with their own; protobuf's describe messages.
            foreign = ("grpc_health.", "grpc_reflection.", "google.protobuf.descriptor_pb2")
            generated = {n for n in generated if not n.startswith(foreign)}
            assert not generated, f"{path.relative_to(ROOT)} imports {sorted(generated)}"
            text = path.read_text(encoding="utf-8")
            assert not re.search(
                r"\b(attention|ensembles|fleet|link|open_inference|program|tensor|training|trust)_pb2", text
            ), path


HOST = "edge_attention/simulation/host.py"
"""A simulation is both daemons in one process: the one file that imports both, loaded by its name."""


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("edge_attention/trust", tuple(f"edge_attention.{name}" for name in CLIENT)),
        ("edge_node", ("aggregator", *(f"edge_attention.{name}" for name in CLIENT))),
        ("aggregator", ("edge_node", *(f"edge_attention.{name}" for name in CLIENT))),
        ("edge_attention", ("edge_node", "aggregator")),
        ("edge_attention/core", ("edge_attention.graphs", "edge_attention.wire", "protos")),
        ("edge_attention/graphs", ("edge_attention.wire", "protos", "grpc")),
        ("edge_attention/wire", ("edge_attention.graphs", "onnx", "onnxruntime", "edge_attention.trust")),
        ("edge_attention/trust", ("edge_attention.graphs", "protos", "onnx", "onnxruntime")),
    ],
)
def test_rooms_do_not_import(folder, others):
    for path in python(folder):
        if path == ROOT / HOST:
            continue
        for name in imported(path):
            for other in others:
                assert not within(name, other), f"{path.relative_to(ROOT)} imports {name}"


def test_nobody_imports_the_host_of_a_simulation():
    module = HOST.removesuffix(".py").replace("/", ".")
    for folder in TOPS:
        for path in python(folder):
            assert not any(within(name, module) for name in imported(path)), path.relative_to(ROOT)


TOPS = ("edge_attention", "edge_node", "aggregator")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Each of our modules, and those of ours it imports anywhere: in a function or for types only, too."""
    files = {module_of(path): path for top in TOPS for path in python(top)}
    found: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # `from a import b`: of a module a.b if there is one, else of what is in a.
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in files else str(node.module) for name in whole]
            else:
                continue
            found[module].update(name for name in names if name in files and name != module)
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return sorted(found)


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "c"}}) == [["b", "c"]]


def test_no_imports_go_in_a_circle():
    graph = imports()
    assert sum(map(len, graph.values())) > 1_000, "imports are not read"
    assert not circles(graph)


SIDES = {
    "the node": ("edge_node",),
    "the aggregator": ("aggregator",),
    "the user": tuple(f"edge_attention.{name}" for name in CLIENT),
}
SHARED = ("wire", "trust", "metrics")
ONE_SIDED = {
    "edge_attention.wire.health",
}  # generated messages are touched by wire alone


def sides_of(module: str, graph: dict[str, set[str]]) -> set[str]:
    """Who comes to `module`, itself or over others of the library."""
    importers: dict[str, set[str]] = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others:
            importers[other].add(name)
    seen, left, found = set(), [module], set()
    while left:
        for name in importers[left.pop()] - seen:
            seen.add(name)
            sides = {side for side, rooms in SIDES.items() if any(within(name, room) for room in rooms)}
            found |= sides
            left += [] if sides else [name]
    return found


def test_what_several_sides_share_is_what_several_sides_use():
    """A file that one side uses lives on that side. Core and graphs are libraries: what is pure may wait."""
    graph = imports()
    files = list((ROOT / "edge_attention").glob("*.py"))
    files += [path for folder in SHARED for path in python(f"edge_attention/{folder}")]
    modules = {module_of(path) for path in files if path.name != "__init__.py"}
    assert {"edge_attention.options", "edge_attention.wire.codec"} <= modules
    assert {m for m in modules if len(sides_of(m, graph)) < 2} == ONE_SIDED


def test_the_top_of_the_aggregator_is_its_command_line_and_what_puts_it_together():
    assert {path.stem for path in (ROOT / "aggregator").glob("*.py")} == {
        "__init__",
        "main",
        "recipes",
        "server",
    }


def test_no_alias_bears_the_name_of_a_class():
    """A name has one meaning: an alias of a type is not called as a class of another file is."""
    classes: set[str] = set()
    aliases: dict[str, str] = {}
    for top in TOPS:
        for path in python(top):
            tree = parsed(path)
            classes |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    aliases[f"{module_of(path)}.{node.targets[0].id}"] = node.targets[0].id
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            for alias in (alias for node in imports for alias in node.names):
                if alias.asname not in (None, alias.name):
                    aliases[f"{module_of(path)}.{alias.asname}"] = str(alias.asname)
    assert "Client" in classes
    assert "edge_attention.jobs.job.ModelFile" in aliases
    assert not {where for where, name in aliases.items() if name in classes}


USERS = "what a user writes or holds; the message it becomes, or is made of, has the bare name"
SHARED_NAMES = {
    "Context": USERS,
    "Encoder": USERS,
    "FederatedJob": USERS,
    "FederatedModel": USERS,
    "FusionJob": USERS,
    "Head": USERS,
    "Run": USERS,
    "SplitJob": USERS,
}
"""Names that two classes may have, and why: those of `edge_attention` and its client, as README has them."""


def test_no_two_classes_have_one_name():
    """A name has one meaning: the message of the wire has the bare one, all else a word before it."""
    found: dict[str, list[str]] = {}
    for top in TOPS:
        for path in python(top):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert len(found) > 500, "classes are not read"
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert twice.keys() == SHARED_NAMES.keys(), twice
    for name in SHARED_NAMES:
        users, message = sorted(twice[name], key=lambda path: "/messages/" in path)
        assert users.startswith(("edge_attention/client/", "edge_attention/jobs/")), users
        assert message.startswith("edge_attention/core/messages/"), message


TELLING = {"message", "reason", "detail", "details", "problem", "why", "error"}
READING = {"startswith", "endswith", "find", "index", "partition", "rpartition", "removeprefix"}


def for_people(node: ast.AST) -> bool:
    """Whether an expression stands for a sentence that is meant for people: an error's, or a reason."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("lower", "upper", "casefold", "strip") and for_people(node.func.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr"):
        return any(isinstance(given, ast.Name) and given.id in TELLING for given in node.args)
    if isinstance(node, ast.Name):
        return node.id in TELLING - {"message", "error"}
    return isinstance(node, ast.Attribute) and node.attr in TELLING


def sentences_read(tree: ast.AST) -> list[str]:
    """Where a sentence is searched for words: `in`, a method of strings, a regular expression."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            reads = for_people(node.comparators[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            reads = of_re and any(map(for_people, node.args))
            reads |= node.func.attr in READING and for_people(node.func.value)
        else:
            continue
        if reads:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    ["'late' in m.reason", "'x' not in str(error).lower()", "why.startswith(W)", "re.search(p, e.message)"],
)
def test_a_sentence_that_is_read_is_found(line):
    assert sentences_read(ast.parse(line)) == [line]


def test_nobody_reads_sentences():
    """What the program goes by is data: no text for people is searched for words, whoever wrote it."""
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for top in TOPS
        for path in python(top)
        if (lines := sentences_read(parsed(path)))
    }
    # What gRPC itself finds wrong with a connection it says in words alone.
    assert list(found) == ["edge_attention/wire/errors.py"], found


def loaded_by(module: str) -> set[str]:
    """Top-level modules and ours that a fresh interpreter has after importing `module`."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_node_loads_nothing_a_box_need_not_have():
    loaded = loaded_by("edge_node.main")
    assert "edge_node.main" in loaded
    assert not loaded & {"onnx", "onnx_ad", "sklearn", "rich", "safetensors", "torch", "pandas", "aggregator"}


def test_a_node_without_tls_or_a_port_spares_what_these_take():
    """Certificates take 8 MB; prometheus_client, with the web and the mail that it brings, 4."""
    assert not loaded_by(DAEMON) & {"cryptography", "jwt", "prometheus_client", "email", "http", "zipfile"}


def test_importing_the_package_loads_no_grpc_until_it_is_used():
    assert not loaded_by("edge_attention.core.partial") & {"grpc", "onnx", "onnxruntime", "google.protobuf"}


WAYS = [((), "tests.arm64 "), (("HOW=process",), "tests.arm64 --as process")]


@pytest.mark.parametrize(("given", "said"), WAYS)
def test_make_passes_on_what_was_given_and_nothing_of_its_own(given, said):
    """make has variables by itself: AS is the assembler."""
    # `make test` hands its flags and level down: with them this make reports the folder it enters, too.
    of_make = {"MAKEFLAGS", "MAKELEVEL", "HOW"}
    outside = {name: value for name, value in os.environ.items() if name not in of_make}
    command = ["make", "--dry-run", "test-arm64", *given]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1].endswith(said), done


def test_no_two_files_of_tests_have_one_name():
    """Pytest would collect neither: the folders of tests are no packages."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 50
    assert len(set(names)) == len(names), sorted(n for n in set(names) if names.count(n) > 1)
