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
import contextlib, multiprocessing, os, signal, sys, time
from hvdtrain.core.process import preemption
from hvdtrain.core.process.ending import ends_the_job
from hvdtrain.core.process.preemption import Preempted, heed_preemption, requests_wait, told_to_stop

def told():
    while not told_to_stop():
        time.sleep(0.01)

def kill(name):
    os.kill(os.getpid(), getattr(signal, name))

with {around}:
    {body}
print("after")
"""


JOB, LOOP = (
    "heed_preemption(), ends_the_job()",
    "contextlib.nullcontext(preemption.heed_preemption_for_good())",
)


def run(
    *body: str, ignored: str = "", rank: str = "0", around: str = JOB
) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(body="\n    ".join(body), around=around)
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


def test_who_leaves_last_is_not_told_to_by_a_launcher_that_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEARTBEAT, "1")
    done = run(
        "from hvdtrain.core.run.requests import leave",
        "class Ranks: is_chief = False; sum = lambda self, values: kill('SIGTERM') or time.sleep(0.2)",
        "with requests_wait(): leave(Ranks(), 4, '')",
    )
    assert (done.returncode, done.stderr) == (85, "")


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


def test_a_loop_that_asks_is_told_and_one_that_does_not_ends_at_once() -> None:
    ends = ("kill('SIGTERM')", "time.sleep(50)")
    done = run(*ends, around=LOOP)
    assert (done.returncode, done.stdout) == (
        85,
        "stopped by a signal: start it again with the same command to go on from its last checkpoint\n",
    )
    noted = ("preemption.note_requests(True)", "kill('SIGUSR1')", "told()")
    assert run(*noted, around=LOOP).stdout == "after\n"
    assert run(*noted, "preemption.note_requests(False)", *ends, around=LOOP).returncode == 85
    assert run(*noted, "preemption.ignore_requests()", "kill('SIGTERM')", around=LOOP).stdout == "after\n"


def test_a_programs_own_handlers_stay_its_own() -> None:
    own = "signal.signal(signal.SIGUSR1, lambda *_: print('own', told_to_stop()))"
    again = "preemption.heed_preemption_for_good()"
    called = ("preemption.note_requests(True)", "kill('SIGUSR1')", "time.sleep(0.2)", "print(told_to_stop())")
    for around, body in (("contextlib.nullcontext()", (own, again)), (LOOP, (again, own))):
        done = run(*body, *called, around=around)
        assert (done.returncode, done.stdout) == (0, "own False\nFalse\nafter\n")


@pytest.mark.parametrize("around", [JOB, LOOP])
def test_a_forked_process_ends_by_sigterm_and_does_not_tell_its_parent(around: str) -> None:
    """As those of a `multiprocessing.Pool`, which SIGTERM ends."""
    done = run(
        "preemption.note_requests(True)",
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(50,))",
        "child.start()",
        "time.sleep(0.3)",
        # What a launcher passes on to the whole group.
        "os.kill(child.pid, signal.SIGUSR1)",
        "time.sleep(0.1)",
        "child.terminate()",
        "child.join()",
        "print(child.exitcode, told_to_stop())",
        around=around,
    )
    assert done.stdout == f"{-signal.SIGTERM} False\nafter\n", done.stderr
