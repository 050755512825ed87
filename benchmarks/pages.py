# SPDX-License-Identifier: Apache-2.0
"""Pages of `docs/` that several benchmarks write their sections of."""

from __future__ import annotations

import re
from pathlib import Path


def put_section(page: Path, title: str, text: str) -> None:
    """Put a section of the second level into a Markdown page, in place of one of that title."""
    before = page.read_text(encoding="utf-8") if page.is_file() else f"# {page.stem.title()}\n"
    section = f"## {title}\n\n{text.strip()}\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if old.search(before):
        after = old.sub(lambda _: f"{section}\n", before)
    else:
        after = f"{before.rstrip()}\n\n{section}"
    page.write_text(f"{after.rstrip()}\n", encoding="utf-8")
