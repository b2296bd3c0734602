"""What hostile tests share."""

from pathlib import Path

import pytest

from .models import files_of


@pytest.fixture
def untouched(tmp_path: Path):
    """A folder for a test to work in, ``tmp_path / "work"``; nothing beside it may be there afterwards."""
    (tmp_path / "work").mkdir()
    (tmp_path / "beside").write_text("as it was")
    yield tmp_path / "work"
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["beside", "work"]
    assert files_of(tmp_path)["beside"] == b"as it was"
