"""README and docs: every relative link and anchor leads somewhere, and every page is on the map."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "tests", "recipes", "bench", "kernels", "mmfast", "examples")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def without_code(text: str) -> str:
    text = re.sub(r"^( *)(```|~~~).*?^ *\2", "", text, flags=re.M | re.S)
    return re.sub(r"(`+).+?\1", "", text)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them (and the docs site: mkdocs.yml)."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(
        r"^#{1,6} +(.+?)\s*$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def broken(page: Path) -> Iterator[str]:
    text = without_code(page.read_text())
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists():
            yield f"{target}: there is no {path}"
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there)):
            yield f"{target}: {there.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    assert list(broken(page)) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# One `two` [three](x.md): 4!\n## Again\n## Again\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n[1](b.md) [2](b.md#one-two-three-4) [3](b.md#again-1) [4](#a) [5](https://x.org/none) `[6](none.md)`\n"
        "```\n[7](none.md)\n```\n![8](none.png) [9](b.md#again-2) [10](#no) [11](b.md#no-heading) [12](gone/c.md#x)\n"
    )
    found = [line.partition(":")[0] for line in broken(page)]
    assert found == ["none.png", "b.md#again-2", "#no", "b.md#no-heading", "gone/c.md#x"]


def test_every_page_is_on_the_map_and_in_the_site():
    told = set(re.findall(r"\]\(([\w/-]+\.md)", (ROOT / "docs" / "README.md").read_text()))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    ops = {name for name in there if name.startswith("ops/")}  # ops/README.md is their map
    assert there - ops - told == {"README.md"} and "ops/README.md" in told, "docs/README.md is the map"
    listed = re.findall(r": (?:docs/)?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert there - set(listed) == set() and len(listed) == len(set(listed)) + 1, "mkdocs.yml lists the site's pages"
