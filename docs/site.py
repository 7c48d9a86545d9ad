"""For MkDocs: README as the first page, and links that leave the site as plain text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the first page, which is no file of its own."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=re.sub(r"\]\(docs/", "](", readme)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to sources, and to pages that GitHub shows beside the code, have no place in the site."""
    outside = r"\[([^\]]+)\]\((?:\.\./[^)]*|benchmarks/|[A-Z]+\.md)\)"
    return re.sub(outside, r"\1", markdown)
