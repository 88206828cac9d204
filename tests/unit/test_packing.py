"""What a built tree becomes for its way to the hosts."""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path

import pytest

from deploytools.errors import OperationFailed
from deploytools.releasing import packing
from deploytools.releasing.packing import END, FRAME, HEADER
from tests.support.shipping import Tree, members, pack, put


def payload(frames: list[bytes]) -> bytes:
    """What a host makes of frames."""
    whole = b""
    for frame in frames:
        kind, length = HEADER.unpack(frame[: HEADER.size])
        assert length == len(frame) - HEADER.size
        whole += zlib.decompress(frame[HEADER.size :]) if kind == b"z" else frame[HEADER.size :]
    return whole


def test_a_listing_has_every_name_and_every_content_once(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n")
    tree: Tree = {"a/b/c": b"one", "a/d": b"one", "empty": None, odd: b"two", "up": ("to", "a/d")}
    parcel = pack(put(tmp_path / "tree", tree))

    found = members(parcel)
    assert set(found) == {"a", "a/b", "a/b/c", "a/d", "empty", odd, "up"}
    assert found["a/b/c"] == found["a/d"]
    assert found["up"] == b"l a/d"
    assert [content.size for content in parcel.contents] == [3, 3]
    assert parcel.blocks[0] == b"1 1777629600"


def test_equal_trees_have_equal_listings_whatever_order_their_files_were_made_in(tmp_path: Path) -> None:
    one = put(tmp_path / "one", {"b/x": b"1", "a": b"2"})
    other = put(tmp_path / "other", {"a": b"2", "b/x": b"1"})
    (other / "a").chmod(0o640)
    os.utime(other / "a", (0, 0))

    assert pack(one).digest == pack(other).digest
    (other / "a").chmod(0o740)
    assert pack(one).digest != pack(other).digest


def test_a_change_in_one_directory_changes_no_block_of_another(tmp_path: Path) -> None:
    tree = put(tmp_path / "tree", {f"d{number}/f": b"x" for number in range(9)})
    before = pack(tree).blocks
    (tree / "d3/f").write_text("changed")

    assert len(set(pack(tree).blocks) - set(before)) == 1


def test_only_the_contents_that_are_asked_for_are_sent_from_where_they_go_on(tmp_path: Path) -> None:
    parcel = pack(put(tmp_path / "tree", {"a": b"first", "b": b"second", "c": b"third"}))

    stream = list(parcel.stream([0, 2], {2: 3}))
    *frames, end = [frame for frame, _ in stream]
    assert payload(frames) == b"firstrd"
    assert (end, stream[-1][1]) == (END, 7)


def test_content_is_deflated_where_that_is_worth_it_and_only_there(tmp_path: Path) -> None:
    text, noise = b"the same words again " * FRAME, os.urandom(FRAME)

    assert len(packing.frame(text[:FRAME])) < FRAME // 10
    assert len(packing.frame(noise)) == HEADER.size + FRAME
    parcel = pack(put(tmp_path / "tree", {"a": text, "b": noise}))
    *frames, _ = [frame for frame, _ in parcel.stream([0, 1], {})]
    assert payload(frames) == text + noise


def test_hosts_that_lack_the_same_share_what_was_deflated_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, frame = [], packing.frame
    monkeypatch.setattr(packing, "frame", lambda piece: made.append(len(piece)) or frame(piece))  # type: ignore[func-returns-value]
    parcel = pack(put(tmp_path / "tree", {"a": b"words and words " * FRAME}))
    sent: list[bytes] = []

    def host() -> None:
        sent.append(payload([frame for frame, _ in parcel.stream([0], {})][:-1]))

    hosts = [threading.Thread(target=host) for _ in range(5)]
    for one in hosts:
        one.start()
    for one in hosts:
        one.join(30)
    assert sent == [b"words and words " * FRAME] * 5
    assert sum(made) == 16 * FRAME


def test_content_that_can_not_be_read_any_more_fails_for_every_host(tmp_path: Path) -> None:
    parcel = pack(put(tmp_path / "tree", {"a": b"x"}))
    (tmp_path / "tree/a").unlink()

    for _ in range(2):
        with pytest.raises(OperationFailed, match="can't be read on this computer"):
            list(parcel.stream([0], {}))
