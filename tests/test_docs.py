"""The documents agree with the repository: every file has its line, every link leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


def test_the_architecture_has_one_line_for_each_file():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = []
    for folder, block in re.findall(r"^### (\S+)\n(?:[^#`]+)?```\n(.*?)```", text, re.MULTILINE | re.DOTALL):
        listed += [folder + line.split("  ")[0] for line in block.splitlines()]
        assert all(re.fullmatch(r"\S+\.py  +\S.*", line) for line in block.splitlines())
    files = [path for part in ("src/whatwhere", "tests/support") for path in (ROOT / part).rglob("*.py")]
    files += [path for part in ("benchmarks", "examples") for path in (ROOT / part).glob("*.py")]
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in files)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_named_exists(page):
    named = set(re.findall(r"(?<![\w/.-])(?:\w+/)+[a-z0-9_]+\.py", page.read_text(encoding="utf-8")))
    folders = (ROOT / part for part in ("src", "tests", "benchmarks", "examples"))
    files = [path.as_posix() for folder in folders for path in folder.rglob("*.py")]
    assert not {name for name in named if not any(path.endswith(f"/{name}") for path in files)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_images_of_the_documents_are_small():
    images = list((ROOT / "docs" / "images").iterdir())
    assert images
    assert all(path.stat().st_size < 300_000 for path in images)
