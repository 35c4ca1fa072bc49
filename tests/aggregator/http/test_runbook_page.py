"""The runbook as alerts point to it: /runbook, from docs/runbook.md."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ports import run

from aggregator.http.runbook import anchor, as_html, read_runbook

ROOT = Path(__file__).parents[3]


def test_each_heading_is_a_place_and_each_link_leads_to_one():
    text = read_runbook()
    assert text == (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    said = as_html(text)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    places = set(re.findall(r'<h\d id="([^"]+)"', said))
    assert {anchor(heading) for heading in headings} == places
    assert len(places) == len(headings) > 10
    assert set(re.findall(r'href="#([^"]+)"', said)) <= places
    assert not re.findall(r'href="(?!#)', said), "other pages of docs/ are not served here: they are named"
    assert "federated.md" in said


def test_all_of_it_is_there_and_nothing_of_its_marks():
    said = as_html(read_runbook())
    assert said.count("<pre>") == read_runbook().count("```console") > 10
    prose = re.sub(r"<(code)\b.*?</\1>", "", said, flags=re.DOTALL)
    assert not re.search(r"\*\*|`|\]\(|^\||^#", prose, re.MULTILINE)


def test_html_in_the_text_stays_text_and_nothing_leads_elsewhere():
    assert as_html("a <b> & `<c>`") == "<p>a &lt;b&gt; &amp; <code>&lt;c&gt;</code></p>\n"
    assert as_html("<script>x</script>") == "<p>&lt;script&gt;x&lt;/script&gt;</p>\n"
    assert as_html('## "quoted" <i>') == '<h2 id="quoted-i">&quot;quoted&quot; &lt;i&gt;</h2>\n'
    assert as_html("[`a`](b.md#c)") == "<p><code>a</code> (docs/b.md)</p>\n"
    assert as_html("[b.md](b.md#c) [d](#e)") == '<p>docs/b.md <a href="#e">d</a></p>\n'
    for elsewhere in (
        "[a](javascript:b)",
        "[a](https://b.example)",
        "<https://b.example>",
        "![a](//b.example/c.png)",
    ):
        assert not re.search("href|src", as_html(elsewhere)), elsewhere
    table = as_html("| a | b |\n|---|---|\n| 1 | *2* |")
    assert '<th scope="col">a</th>' in table
    assert "<td><em>2</em></td>" in table


def test_it_is_served():
    async def scenario(port):
        answer = await port.get("/runbook")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert '<h2 id="edgenodelost">' in answer.text
        assert "<!-- runbook -->" not in answer.text
        again = await port.get("/runbook", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status == 304

    run(scenario)


def test_over_tls_it_is_for_viewers(house):
    async def scenario(port):
        assert (await port.get("/runbook")).status == 401
        browser = await port.get("/runbook", headers={"Accept": "text/html"})
        assert (browser.status, browser.headers["Location"]) == (303, "/signin")
        viewer = {"Authorization": f"Bearer {house.viewer}"}
        assert (await port.get("/runbook", headers=viewer)).status == 200

    house.run(scenario)


def test_it_is_in_the_package_and_in_the_image():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"docs/runbook.md": "aggregator/http/page/runbook.md"}
    assert "!docs/runbook.md" in (ROOT / ".dockerignore").read_text().splitlines()
