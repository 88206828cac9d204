"""The pictures of the documents that are text are those that the code draws now; the others need a look."""

from __future__ import annotations

from pathlib import Path

from docs.pictures import IMAGES, live_views


def test_the_live_view_in_the_documents_is_the_one_of_today(tmp_path: Path) -> None:
    live_views(tmp_path)

    for file in tmp_path.iterdir():
        assert file.read_text() == (IMAGES / file.name).read_text(), "make it anew: python -m docs.pictures"
