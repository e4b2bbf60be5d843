"""Which hosts there are: what a script says, and what becomes of one that fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch import discovery
from hvdtrain.launch.discovery import by_script
from hvdtrain.launch.hosts import Host, parse_hosts
from hvdtrain.launch.roster import Roster


def test_a_script_names_the_hosts(tmp_path: Path) -> None:
    script = tmp_path / "hosts.sh"
    script.write_text("#!/bin/sh\necho b:2\necho\necho c\n")
    script.chmod(0o755)
    find = by_script(str(script))
    assert find() == parse_hosts("b:2,c:1")
    for text, told in (("exit 3", "exit status 3"), ("echo b:x", "--host-discovery-script b:x: slots must")):
        script.write_text(f"#!/bin/sh\n{text}\n")
        with pytest.raises(LaunchError, match=told):
            find()
    script.write_bytes(b"#!/bin/sh\necho b\xff:2\n")
    with pytest.raises(LaunchError, match="expected a host name or IPv4 address, found `b\ufffd`"):
        find()
    with pytest.raises(LaunchError, match="cannot be run: No such file"):
        by_script(str(tmp_path / "none"))()
    for text, told in (("foo 'bar", "No closing quotation"), ("", "is empty"), (" ", "is empty")):
        with pytest.raises(LaunchError, match=f"--host-discovery-script.*{told}"):
            by_script(text)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LaunchError("no route"), "no route"),
        # Of whatever kind it is.
        (UnicodeError("label empty"), "looking for hosts failed: UnicodeError: label empty"),
    ],
)
def test_a_script_that_fails_later_changes_nothing_and_says_so_once(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(discovery, "who_answers", frozenset)
    monkeypatch.setattr(discovery, "_SECONDS_BETWEEN_LOOKS", 0.01)
    looks: list[bool] = []

    def find() -> Sequence[Host]:
        looks.append(True)
        if len(looks) > 3:
            raise error
        return parse_hosts("a:1,b:1")

    with discovery.Discovery(find, Roster()) as found:
        deadline = time.monotonic() + 60
        while len(looks) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert found.hosts() == parse_hosts("a:1,b:1")
    assert capsys.readouterr().err == f"hvdtrain: {told}\n"
