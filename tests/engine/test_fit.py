"""A job refuses a Horovod that was compiled for other frameworks, before importing it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from hvdtrain.core.errors import EngineError
from hvdtrain.engine import cache
from hvdtrain.engine.cache import Installed, require_fit, wire_types


def install(monkeypatch: pytest.MonkeyPatch, found: Installed | None) -> None:
    monkeypatch.setattr(cache, "installed_horovod", lambda: found)


def test_the_installed_horovod_fits() -> None:
    require_fit("torch")
    require_fit("tensorflow")


def test_an_upgraded_framework_asks_for_a_rebuild(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Installed(Path(), None, {"torch": "2.4.1", "tensorflow": version("tensorflow")}))
    with pytest.raises(EngineError, match=r"built for torch 2\.4\.1, but .* engine build --install"):
        require_fit("torch")
    require_fit("tensorflow")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, "Horovod is not installed"),
        (Installed(Path(), None, {"tensorflow": "2.21.0"}), "built without torch"),
    ],
)
def test_a_missing_horovod_is_told(
    monkeypatch: pytest.MonkeyPatch, found: Installed | None, expected: str
) -> None:
    install(monkeypatch, found)
    with pytest.raises(EngineError, match=expected):
        require_fit("torch")


def test_the_wire_is_what_the_installed_build_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wire_types() == {"bfloat16"}
    install(monkeypatch, Installed(Path(), None, {"torch": "2.13.0"}))
    assert wire_types() == set()


def test_without_a_horovod_the_wire_is_that_of_a_build_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert wire_types() == {"bfloat16"}
