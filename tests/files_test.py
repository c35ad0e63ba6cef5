from __future__ import annotations

from pathlib import Path

import pytest

from tfp_surgery.files import replaced_when_whole


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")

    def write() -> None:
        with replaced_when_whole(path) as unfinished:
            unfinished.write_text("half")
            assert unfinished.suffix == path.suffix
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_write_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with replaced_when_whole(path) as unfinished:
        unfinished.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
