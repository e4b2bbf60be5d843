from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from hvdtrain.core.errors import DataError, HvdtrainError
from hvdtrain.core.process.paths import cache_root, user_path

NAMES = ("HVDTRAIN_CACHE_DIR", "XDG_CACHE_HOME", "HOME")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user id without an entry, and no HOME, as in many containers; returns the temporary directory."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_home_directory_is_found_as_a_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x", "here", DataError) == Path("/home/me/x")
    assert user_path("~root/x", "here", DataError) == Path(pwd.getpwnam("root").pw_dir, "x")
    assert user_path("a/~/x", "here", DataError) == Path("a/~/x")


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("path", "told"),
    [("~/x", "HOME is not set, and this user has no home"), ("~who/x", "the user who has no home")],
)
def test_a_missing_home_directory_is_told(path: str, told: str) -> None:
    with pytest.raises(DataError, match=f"^data.files: {path}: {told} directory; write the path in full$"):
        user_path(path, "data.files:", DataError)


@pytest.mark.usefixtures("nobody")
def test_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root() == Path("/home/me/.cache/hvdtrain")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/hvdtrain")
    monkeypatch.setenv("HVDTRAIN_CACHE_DIR", "~/mine")
    assert cache_root() == Path("/home/me/mine")


def test_a_user_without_a_home_has_a_cache_of_his_own(nobody: Path) -> None:
    root = cache_root()
    assert root == nobody / f"hvdtrain-{os.getuid()}"
    assert root.stat().st_mode & 0o777 == 0o700
    assert cache_root() == root


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_cache_that_another_user_may_have_made_is_refused(nobody: Path, trap: str) -> None:
    name = nobody / f"hvdtrain-{os.getuid()}"
    (nobody / "theirs").mkdir()
    if trap == "link":
        name.symlink_to(nobody / "theirs")
    elif trap == "open":
        name.mkdir()
        name.chmod(0o777)
    else:
        name.touch()
    with pytest.raises(HvdtrainError, match="set HVDTRAIN_CACHE_DIR to a directory of yours"):
        cache_root()
