"""Pages of the site that stand elsewhere in the project: the README, the examples, and one for every public module."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
MODULES = (
    "hashfield.api", "hashfield.nn.encodings", "hashfield.nn.networks", "hashfield.nn.fields", "hashfield.tcnn.modules",
    "hashfield.ops", "hashfield.geometry.cameras", "hashfield.geometry.spaces", "hashfield.geometry.paths",
    "hashfield.geometry.camera_path",
    "hashfield.geometry.rays", "hashfield.data.dataset", "hashfield.data.write_cameras", "hashfield.tasks.frames",
    "hashfield.tasks.nerf_model", "hashfield.tasks.image_model", "hashfield.tasks.sdf_model", "hashfield.train.loop",
    "hashfield.train.checkpoint", "hashfield.errors",
)  # fmt: skip
"""What the reference shows, in this order."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {name: _moved((ROOT / source).read_text(encoding="utf-8")) for name, source in PAGES.items()}
    pages["examples.md"] = examples()
    pages["reference.md"] = reference()
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the pages made of those files."""
    return _moved(markdown)


def _moved(text: str) -> str:
    """The text with links as they must be on the site: all pages in one folder, no files of the project."""
    known = {source: name for name, source in PAGES.items()}

    def target(match: re.Match[str]) -> str:
        path, anchor = match[2].removeprefix("../").removeprefix("docs/"), match[3] or ""
        if path in known:
            return f"[{match[1]}]({known[path]}{anchor})"
        if (ROOT / "docs" / path).exists():
            return f"[{match[1]}]({path}{anchor})"
        return match[1]  # a file of the project that is no page

    return re.sub(r"\[([^\]\n]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", target, text)


def examples() -> str:
    """Every example, its text first."""
    parts = ["# Examples\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        parts.append(f"## {path.name}\n\n```python\n{source}```\n")
    return "\n".join(parts)


def reference() -> str:
    """What every public module offers, from its docstrings."""
    return "# Python reference\n\n" + "\n\n".join(f"::: {module}" for module in MODULES) + "\n"
