"""What mkdocs calls while it builds the site: generated pages, notebooks as pages, links out of docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import reference_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]

FROM_CODE = {
    "reference/commands.md": reference_pages.commands_page,
    "reference/settings.md": reference_pages.settings_page,
    "reference/python.md": reference_pages.python_page,
    "reference/formats.md": reference_pages.formats_page,
}
FROM_REPOSITORY = {
    "changelog.md": "CHANGELOG.md",
    "model-card.md": "src/spikewise/models/weights/MODEL_CARD.md",
}
"""Pages whose source is elsewhere in the repository; links to them from docs/ are rewritten."""

NOTEBOOKS = {"locust-tetrode.md": "locust-tetrode.ipynb"}
"""Notebooks that are shown as pages; links to them lead to the page, which links to the file."""
EXAMPLE = "example-report.html"
"""Where the site has the report of ``make demo``, if there is one."""
DEMO_REPORT = REPOSITORY / "demo" / "report.html"
PICTURE = re.compile(r"(!\[[^]]*\]\(images/report\.png\))")

_titles: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    for uri, write in FROM_CODE.items():
        files.append(File.generated(config, uri, content=write()))
    for uri, source in FROM_REPOSITORY.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    for uri, notebook in NOTEBOOKS.items():
        files.append(File.generated(config, uri, content=notebook_page(REPOSITORY / "docs" / notebook)))
    if DEMO_REPORT.is_file():
        files.append(File.generated(config, EXAMPLE, abs_src_path=str(DEMO_REPORT)))
    return files


def notebook_page(notebook: Path) -> str:
    """Return the cells of a notebook, which holds no output, as a page."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([*parts, f"[Download this notebook]({notebook.name})."])


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Remember the titles of the pages."""
    _titles.update({page.file.src_uri: str(page.title) for page in nav.pages})
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to files of the repository to their pages, and name pages by their titles."""
    for uri, source in FROM_REPOSITORY.items():
        markdown = markdown.replace(f"](../{source})", f"]({uri})")
    for uri, notebook in NOTEBOOKS.items():
        if page.file.src_uri != uri:
            markdown = markdown.replace(f"]({notebook})", f"]({uri})")
    if files.get_file_from_path(EXAMPLE):
        markdown = PICTURE.sub(rf"[\1]({EXAMPLE})\n\n[Open this report]({EXAMPLE}).", markdown)
    return re.sub(r"\[([\w-]+\.md)\](?=\(\1)", lambda link: f"[{_titles[link[1]]}]", markdown)
