"""Writes docs/files.md, a line for every file, from their first lines; `--check` fails if it is stale."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "files.md"

ROOMS = ("protos", "edge_attention", "edge_node", "aggregator", "tools", "benchmarks", "deploy")
KINDS = (".py", ".proto", ".js", ".css")

HEAD = """# Every file, in a line

What a file is, it says in its first lines; this page is made of them. Tests mirror the folders and are not
listed. `python tools/files_page.py` writes it; `make check` and a test compare.
"""


def files() -> list[Path]:
    """What people wrote, by folder: a folder's own files before those of its folders."""
    found = [path for room in ROOMS for kind in KINDS for path in (ROOT / room).rglob(f"*{kind}")]
    found = [path for path in found if "_pb2" not in path.name and "__pycache__" not in path.parts]
    return sorted(found, key=lambda path: (ROOMS.index(folder(path).parts[0]), folder(path), path.name))


def folder(path: Path) -> Path:
    return path.parent.relative_to(ROOT)


def saying(path: Path) -> str:
    """The first paragraph of a file's docstring or leading comment, on one line; "" if it has neither."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".css":
        comment = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
        said = comment[1] if comment else ""
    else:
        lines = re.match(r"(?://.*\n)*", text)
        said = re.sub(r"^// ?", "", lines[0] if lines else "", flags=re.MULTILINE)
    return " ".join(said.strip().partition("\n\n")[0].split())


def page() -> str:
    """The page.

    Raises:
        SystemExit: a file does not say what it is.
    """
    lines, where = [HEAD], None
    for path in files():
        said = saying(path)
        if not said:
            raise SystemExit(f"{path.relative_to(ROOT)} does not say what it is: give it a docstring")
        if folder(path) != where:
            where = folder(path)
            lines.append(f"\n## {where}/\n")
            of_folder = path.parent / "__init__.py"
            if of_folder.exists():
                lines.append(f"{saying(of_folder)}\n")
        if path.name != "__init__.py":
            lines.append(f"- `{path.name}`: {said}")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not fresh:
            print(f"{PAGE} is stale; run python tools/files_page.py")
        return int(not fresh)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
