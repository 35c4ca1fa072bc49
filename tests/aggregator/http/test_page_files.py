"""The page's files: nothing from elsewhere, nothing inline, colours that can be read."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import product
from pathlib import Path

import pytest

import aggregator
from aggregator.http.routes import recipes_module

OWN = {file.name: file.read_text(encoding="utf-8") for file in (files("aggregator.http") / "page").iterdir()}
RECIPES = {
    f"recipes/{path.parent.name}.js": path.read_text(encoding="utf-8")
    for path in Path(aggregator.__file__).parent.rglob("page.js")
}
PAGE = {**OWN, **RECIPES, "recipes.js": recipes_module([*RECIPES]).decode()}
SCRIPTS = [name for name in PAGE if name.endswith(".js")]
HTML = [name for name in PAGE if name.endswith(".html")]


def test_they_are_there():
    assert {"index.html", "signin.html", "style.css", "app.js", "icon.svg"} <= set(OWN)
    assert {"recipes/attention.js", "recipes/training.js"} <= set(RECIPES)


@pytest.mark.parametrize("name", ["index.html", *(name for name in OWN if name.endswith(".js"))])
def test_the_page_names_no_recipe(name):
    """What a recipe tells is drawn by its own script: nothing else reads it, or has words for it."""
    own = {"aggregator", "troubles", "nodes", "tiles", "you", "until", "skew"}
    assert set(re.findall(r"\bstate\??\.(\w+)", OWN[name])) <= own
    words = r"\b(contexts?|quer(?:y|ies)|training|loss|attention (?!\$))\b"
    assert not re.findall(words, OWN[name].replace("Edge Attention", ""), re.IGNORECASE)


def test_each_recipe_exports_what_the_page_asks_for_and_nothing_else():
    asked = set(re.findall(r"^//   (\w+) ", OWN["app.js"], re.M))
    assert asked == {"links", "sections", "tiles", "columns", "own", "news"}
    for name, text in RECIPES.items():
        exported = set(re.findall(r"^export (?:const|function) (\w+)", text, re.M))
        assert exported <= asked, name
        assert "sections" in exported, name


@pytest.mark.parametrize("name", PAGE)
def test_nothing_comes_from_elsewhere(name):
    found = re.findall(
        r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"']*", re.sub(r"^\s*//.*", "", PAGE[name], flags=re.M)
    )
    assert [url for url in found if not url.startswith("http://www.w3.org/2000/svg")] == []
    assert "@import" not in PAGE[name]


@pytest.mark.parametrize("name", HTML)
def test_nothing_is_inline(name):
    text = PAGE[name]
    assert "<style" not in text
    assert not re.search(r"\s(style|on[a-z]+)=", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    for path in re.findall(r'(?:src|href)="/([\w.]+\.(?:js|css|svg))"', text):
        assert path in PAGE


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_is_there_and_make_no_html_of_text(name):
    text = PAGE[name]
    for names, path in re.findall(r'import \{([^}]*)\} from "/([^"]+)"', text):
        for one in names.split(","):
            assert re.search(rf"export (async )?(function|const) {one.strip()}\b", PAGE[path]), (path, one)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
    )


def test_every_element_the_script_looks_for_is_in_the_page():
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', PAGE["app.js"]))
    there = set(re.findall(r'id="([\w-]+)"', PAGE["index.html"]))
    assert wanted
    assert wanted <= there
    for text in RECIPES.values():
        # What a section is labelled by is made with it (section in parts.js).
        titled = {f"{id}-title" for id in re.findall(r'section\("([\w-]+)"', text)}
        assert titled
        assert set(re.findall(r'"aria-labelledby": "([\w-]+)"', text)) <= titled
        links = set(re.findall(r'\["([\w-]+)", "\w+"\]', re.search(r"links = (.*);", text)[1]))
        assert {f"{id}-title" for id in links} <= titled
    labelled = set(re.findall(r'aria-labelledby="([\w-]+)"', PAGE["index.html"]))
    assert labelled <= there


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG's ratio."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_what_it_stands_on(theme):
    blocks = re.findall(r":root \{(.*?)\}", PAGE["style.css"], re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[["light", "dark"].index(theme)]))
    for text, back in product(("text", "soft", "link"), ("back", "card", "sunk")):
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for word in ("good", "warn", "bad", "note"):
        assert contrast(colours[word], colours["card"]) >= 4.5, word
        assert contrast(colours["text"], colours[f"{word}-back"]) >= 7, word
        assert contrast(colours["soft"], colours[f"{word}-back"]) >= 4.5, word
    for mark in [*(f"c{i}" for i in range(8)), "s0", "s1", "s2"]:
        assert contrast(colours[mark], colours["card"]) >= 3, mark


def test_colours_of_nodes_are_of_nodes_alone():
    """Stages, outcomes and curves have marks of their own: nothing but fleet.js gives out a node's."""
    for name in SCRIPTS:
        assert not re.search(r"""["'`\s]c[0-9]["'`\s]""", PAGE[name]), name
    assert "`c${colours.size % 8}`" in PAGE["fleet.js"]
    for theme in re.findall(r":root \{(.*?)\}", PAGE["style.css"], re.S):
        nodes, stages = (re.findall(rf"--{mark}\d: (#[0-9a-f]{{6}})", theme) for mark in "cs")
        assert (len(nodes), len(stages)) == (8, 3)
        assert not set(nodes) & set(stages)
        for colour in stages:
            parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert max(parts) - min(parts) < 64, f"{colour}: a stage is nearly grey, so that it is no node's"
