"""Building: what is refused, what a failure says, and that only whole wheels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.build import build, check_sdist, unpack
from hvdtrain.engine.cache import build_key, cache_dir, cached_wheel
from hvdtrain.engine.compiling import build_environment, compile_wheel, first_errors, load_check
from hvdtrain.engine.versions import Versions, find_versions

NOTHING = Versions("cp311-x86_64")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The session's sources are fetched before the cache is moved."""
    if "sdist" in request.fixturenames:
        request.getfixturevalue("sdist")
    monkeypatch.setenv("HVDTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_project(folder: Path, setup: str) -> Path:
    folder.mkdir()
    (folder / "setup.py").write_text(setup)
    return folder


def test_other_sources_are_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "horovod-0.28.1.tar.gz"
    wrong.write_bytes(b"not it")
    with pytest.raises(EngineError, match="92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"):
        unpack(wrong, tmp_path)
    with pytest.raises(EngineError, match="no such file"):
        check_sdist(tmp_path / "absent.tar.gz")


def test_the_real_sources_are_accepted(untouched: Path) -> None:
    assert "__version__ = '0.28.1'" in (untouched / "horovod" / "__init__.py").read_text()


def test_without_a_framework_there_is_nothing_to_build_for() -> None:
    with pytest.raises(EngineError, match=r"pip install 'hvdtrain\[torch\]'"):
        build(NOTHING, print)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apt-get install g\\+\\+ make cmake"):
        build(Versions("cp311-x86_64", torch="2.13.0"), print)


def test_a_cached_build_is_not_built_again(own_cache: Path) -> None:
    versions = Versions("cp311-x86_64", torch="2.13.0")
    wheel = own_cache / "engine" / build_key(versions) / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    said: list[str] = []
    found = build(versions, said.append)
    assert (found.path, found.built_now, said) == (wheel, False, [])


def test_a_failed_build_keeps_its_log_and_no_wheel(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A toolchain that fails at once, as a broken one does.
    folder = cache_dir().parent / "tools"
    folder.mkdir(parents=True)
    cmake = folder / "cmake"
    cmake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo cmake version 3.25.1 && exit\n'
        'echo "CMake Error: no luck"; exit 1\n'
    )
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    versions = find_versions()
    with pytest.raises(EngineError, match=r"(?s)CMake Error: no luck.*The whole log: (\S+)") as caught:
        build(versions, print, sdist)
    log = Path(str(caught.value).rpartition("log: ")[2])
    assert "no luck" in log.read_text()
    assert cached_wheel(build_key(versions)) is None
    assert not list(cache_dir().glob("build-*"))


def test_progress_is_said_once_every_tenth(tmp_path: Path) -> None:
    lines = "".join(f"print('[{i:3}%] Building CXX object')\n" for i in range(0, 101, 4))
    project = fake_project(tmp_path / "p", lines + "import sys; sys.exit(1)\n")
    said: list[str] = []
    with pytest.raises(EngineError):
        compile_wheel(project, tmp_path / "out", dict(os.environ), tmp_path / "log", said.append)
    assert said[0] == "10%"
    assert said == sorted(set(said), key=lambda text: int(text[:-1]))


def test_the_first_errors_are_shown_not_what_follows_from_them() -> None:
    log = (
        "ok\na.cc:3:1: error: no type named 'X'\nmake[2]: *** [a.o] Error 1\nfatal error: b.h: No such file\n"
    )
    assert first_errors(log) == "a.cc:3:1: error: no type named 'X'\nfatal error: b.h: No such file"
    assert first_errors("just\nended\n") == "just\nended"


def test_a_wheel_that_does_not_load_is_refused(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "horovod-0.28.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("horovod/__init__.py", "")
        archive.writestr("horovod/torch.py", "raise ImportError('undefined symbol: AsGpuStreamValue')")
    with pytest.raises(
        EngineError, match=r"(?s)torch, but does not load.*undefined symbol: AsGpuStreamValue"
    ):
        load_check(wheel, ("torch",), tmp_path / "loaded")


def test_the_environment_says_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "MPI")
    env = build_environment(Versions("cp311-x86_64", torch="2.13.0+cpu", mpi="Open MPI 4.1.4"))
    ours = {name: value for name, value in env.items() if name.startswith("HOROVOD_")}
    assert ours == {
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
    }
