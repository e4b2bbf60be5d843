"""Runs a program as `hvdtrain run` runs a job: drive.py NP HOSTS LAUNCHER WIRE PROGRAM [ARGUMENT...]."""

import os
import sys
from pathlib import Path

from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.facts import find_facts
from hvdtrain.launch.hosts import is_local, parse_hosts, take_slots
from hvdtrain.launch.run import run_command

np, hosts, launcher, wire, *program = sys.argv[1:]
used = take_slots(parse_hosts(hosts), int(np))
request = LaunchRequest(
    program=tuple(program),
    hosts=used,
    local=is_local(used),
    workdir=str(Path.cwd()),
    launcher=Launcher(launcher),
    wire=Wire(wire),
    env=dict(os.environ),
)
facts = find_facts("torch")
sys.exit(run_command(build_command(request, choose_launch(request, facts), facts), os.environ).status)
