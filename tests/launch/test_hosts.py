from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.hosts import Host, format_hosts, is_local, parse_hostfile, parse_hosts, take_slots
from hvdtrain.launch.preflight import _check_host

EXAMPLES = Path(__file__).parents[2] / "hostfiles"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,20}", fullmatch=True)
HOSTS = st.lists(st.builds(Host, NAMES, st.integers(1, 512)), min_size=1, unique_by=lambda host: host.name)
FORMS = (
    "{0} slots={1}",
    "{0}   slots = {1}  # note",
    "{0} slots={1} max_slots={1}",
    "\t{0} max-slots={1} slots={1}",
    "{0}:{1}",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=4\nb slots=2\n", [("a", 4), ("b", 2)]),
        ("# two nodes\n\na slots=4 max_slots=8   # fast\r\n10.0.0.2 slots=2\n", [("a", 4), ("10.0.0.2", 2)]),
        ("a:3\nb", [("a", 3), ("b", 1)]),
        ("a\nb\na\n", [("a", 2), ("b", 1)]),
        ("a max_slots=4", [("a", 1)]),
    ],
)
def test_hostfile_forms(tmp_path: Path, text: str, expected: list[tuple[str, int]]) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    assert [(host.name, host.slots) for host in parse_hostfile(file)] == expected


@given(hosts=HOSTS, data=st.data())
def test_hostfile_and_option_round_trip(
    hosts: list[Host], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("hosts") / "hosts"
    forms = [data.draw(st.sampled_from(FORMS)) for _ in hosts]
    file.write_text(
        "\n".join(form.format(host.name, host.slots) for form, host in zip(forms, hosts, strict=True))
    )
    assert parse_hostfile(file) == parse_hosts(format_hosts(hosts)) == tuple(hosts)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a slot=2", "did you mean `slots=N`"),
        ("a slots=two", "found `two`"),
        ("a slots=0", "1 or more"),
        ("a slots=-1", "1 or more"),
        ("a slots=", "found ``"),
        ("a slots=4 max_slots=2", "less than slots=4"),
        ("a 4", "found `4`"),
        ("a:", "found ``"),
        ("user@a slots=2", "found `user@a`"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"# comment\nb slots=1\n{line}\n")
    with pytest.raises(LaunchError) as error:
        parse_hostfile(file)
    assert f"{file}, line 3" in str(error.value)
    assert complaint in str(error.value)


def test_unusable_hostfiles(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot be read"):
        parse_hostfile(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    with pytest.raises(LaunchError, match="names no host"):
        parse_hostfile(empty)


@pytest.mark.parametrize("text", ["", "a:2,", "a:x", "a:0", "a:1:2", "::1"])
def test_bad_hosts_option(text: str) -> None:
    with pytest.raises(LaunchError, match="-H"):
        parse_hosts(text)


@given(hosts=HOSTS, data=st.data())
def test_exactly_the_slots_wanted_in_order(hosts: list[Host], data: st.DataObject) -> None:
    np = data.draw(st.integers(1, sum(host.slots for host in hosts)))
    slots = [host.name for host in hosts for _ in range(host.slots)]
    assert [host.name for host in take_slots(hosts, np) for _ in range(host.slots)] == slots[:np]


@pytest.mark.parametrize(
    ("np", "complaint"), [(0, "at least one"), (-1, "at least one"), (4, "3 slots \\(a:2,b:1\\)")]
)
def test_impossible_numbers_of_ranks(np: int, complaint: str) -> None:
    with pytest.raises(LaunchError, match=complaint):
        take_slots((Host("a", 2), Host("b", 1)), np)


def test_local_hosts() -> None:
    own = (Host("localhost", 1), Host("127.0.0.1", 1), Host(socket.gethostname(), 1))
    assert is_local(own)
    # TEST-NET-1 and .invalid belong to nobody (RFC 5737, RFC 2606).
    assert not is_local((*own, Host("192.0.2.1", 1)))
    assert not is_local((Host("node.invalid", 1),))


@pytest.mark.parametrize("name", ["a..b", "a" * 64, ".a"])
def test_names_that_no_host_can_have(name: str) -> None:
    assert not is_local([Host(name, 1)])
    with pytest.raises(LaunchError, match=f"host {re.escape(name)}: its name has no address"):
        _check_host(Host(name, 1))


def test_example_hostfiles() -> None:
    assert parse_hostfile(EXAMPLES / "localhost") == (Host("localhost", 2),)
    two = (Host("node1", 2), Host("node2", 2))
    assert parse_hostfile(EXAMPLES / "two-hosts.horovod") == two
    assert parse_hostfile(EXAMPLES / "two-hosts.openmpi") == two
