"""What a process makes of SIGTERM and SIGUSR1, in processes without a framework."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.core.process.heartbeat import HEARTBEAT
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE

# What it says, it says when it has got there; `told` goes on as soon as the rank was told.
SCRIPT = """
import contextlib, os, signal, sys, time
from hvdtrain.core.process.ending import ends_the_job
from hvdtrain.core.process.preemption import Preempted, heed_preemption, requests_wait, told_to_stop

def told():
    while not told_to_stop():
        time.sleep(0.01)

def kill(name):
    os.kill(os.getpid(), getattr(signal, name))

with heed_preemption(), ends_the_job():
    {body}
print("after")
"""


def run(*body: str, ignored: str = "", rank: str = "0") -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(body="\n    ".join(body))
    command = [sys.executable, "-c", script]
    if ignored:
        command = ["sh", "-c", f"trap '' {ignored}; exec \"$@\"", "sh", *command]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOROVOD_RANK": rank}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_before_the_first_update_it_ends_at_once_in_whatever_it_is_at(name: str) -> None:
    waits = "while True: __import__('ctypes').CDLL(None).sleep(50)"
    started = f"__import__('threading').Timer(0.1, kill, ['{name}']).start()"
    done = run(started, waits)
    assert (done.returncode, done.stdout) == (85, f"{BEFORE_FIRST_UPDATE}\n")
    # One rank speaks for all.
    assert run(started, waits, rank="1").stdout == ""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_in_training_it_is_noted_and_afterwards_it_is_nothing(name: str) -> None:
    training = f"with requests_wait(): print(told_to_stop()); kill('{name}'); kill('{name}'); told()"
    done = run(training, f"kill('{name}')", "print(told_to_stop())")
    assert (done.returncode, done.stdout) == (0, "False\nTrue\nafter\n")


@pytest.mark.parametrize(("name", "said"), [("SIGTERM", r"\x16\d+ -1 0 told\n"), ("SIGUSR1", "")])
def test_who_was_told_and_has_saved_ends_with_a_status_of_its_own(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A launcher that listens passes on SIGUSR1: SIGTERM is of another.
    monkeypatch.setenv(HEARTBEAT, "1")
    done = run(f"with requests_wait(): kill('{name}'); told()", "raise Preempted")
    assert (done.returncode, done.stdout) == (85, "")
    assert re.fullmatch(said, done.stderr)


def test_a_second_request_ends_it_at_once() -> None:
    again = "while True: kill('SIGUSR1'); __import__('ctypes').CDLL(None).sleep(1)"
    done = run("waiting = requests_wait(); waiting.__enter__()", "kill('SIGTERM')", again)
    assert done.returncode == 128 + signal.SIGUSR1
    assert done.stderr == "[rank 0] ended by a second SIGUSR1\n"


def test_what_the_parent_ignores_stays_ignored_and_handlers_come_back() -> None:
    done = run("kill('SIGTERM')", "print('here')", ignored="TERM")
    assert (done.returncode, done.stdout) == (0, "here\nafter\n")
    done = run("print(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)")
    assert done.stdout == "False\nafter\n"
    restored = "with heed_preemption(): pass"
    done = run("pass", restored, "kill('SIGUSR1')", "time.sleep(50)")
    assert done.returncode == 85
