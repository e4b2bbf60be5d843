"""Every policy in PyTorch and TensorFlow, on real ranks, against the simulator."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.compression.simulator import Simulator
from tests.conformance import worker
from tests.conformance.cases import COMBINING, POLICIES, gradients
from tests.jobs.runs import FRAMEWORKS, INSTALLED, launch

Results = list[dict[str, np.ndarray]]
# A framework, how many ranks, the policies.
World = tuple[str, int, tuple[str, ...]]


def run(
    framework: str, ranks: int, directory: Path, names: Iterable[str] = POLICIES, wire: str = "mpirun"
) -> Results:
    done = launch(ranks, [worker.__file__, framework, str(directory), *names], wire=wire, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
    return [dict(np.load(directory / f"{rank}.npz")) for rank in range(ranks)]


# TensorFlow traces a graph for each policy on each rank: one of a kind is quick.
FEW = ("none", "fp16", "bf16", "int8", "sign", "topk dgc", "randomk", "powersgd", "example")
EVERY = tuple(POLICIES)
QUICK = [("torch", 2, EVERY), ("torch", 3, EVERY), ("tensorflow", 2, FEW)]
SLOW = [("tensorflow", 2, tuple(name for name in EVERY if name not in FEW))]
SLOW += [("torch", ranks, EVERY) for ranks in (1, 4)] + [("tensorflow", ranks, EVERY) for ranks in (1, 3, 4)]
CASES = [
    pytest.param(world, name, id=f"{world[0]}-{world[1]}-{name}", marks=marks)
    for worlds, marks in ((QUICK, ()), (SLOW, pytest.mark.slow))
    for world in worlds
    for name in world[2]
]


class Runs(dict[World, Results]):
    """What each rank of a world found for its policies, in one launch."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory

    def __missing__(self, world: World) -> Results:
        framework, ranks, names = world
        self[world] = run(framework, ranks, self._factory.mktemp(framework), names)
        return self[world]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory)


@pytest.mark.parametrize(("world", "name"), CASES)
def test_ranks_agree_with_the_simulator_and_to_the_bit_with_each_other(
    runs: Runs, world: World, name: str
) -> None:
    check(runs[world], name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_gloo_as_well(framework: str, ranks: int, tmp_path: Path) -> None:
    found = run(framework, ranks, tmp_path, wire="gloo")
    for name in POLICIES:
        check(found, name)


@pytest.mark.gpu
@pytest.mark.parametrize("framework", INSTALLED)
def test_nccl_as_well(framework: str, tmp_path: Path) -> None:
    found = run(framework, 2, tmp_path, wire="nccl")
    for name in POLICIES:
        check(found, name)


@pytest.mark.parametrize(
    ("framework", "ranks"),
    [
        ("torch", 2),
        pytest.param("torch", 4, marks=pytest.mark.slow),
        pytest.param("tensorflow", 2, marks=pytest.mark.slow),
        pytest.param("tensorflow", 4, marks=pytest.mark.slow),
    ],
)
def test_adasum_is_the_simulators(framework: str, ranks: int, tmp_path: Path) -> None:
    check(run(framework, ranks, tmp_path, COMBINING), "adasum")


def check(results: Results, name: str) -> None:
    ranks, policy = len(results), (POLICIES | COMBINING)[name]
    # Horovod does not say in which order it rounds a sum of more than two 16-bit numbers.
    rounded = {"fp16": (2e-3, 5e-2), "bf16": (2e-2, 5e-1)}.get(name.partition(" ")[0])
    rtol, atol = rounded if rounded and ranks > 2 else (1e-10, 1e-10)
    simulators = [Simulator(policy, layout, ranks, seed=worker.SEED) for layout in worker.LAYOUT]
    for update in range(1, worker.UPDATES + 1):
        for layout, simulator in zip(worker.LAYOUT, simulators, strict=True):
            found = [result[f"{name}/{update}/{layout.index}"] for result in results]
            expected = simulator.reduce(gradients(update, ranks, layout.size), update)[0]
            simulator.commit()
            assert {array.tobytes() for array in found} == {found[0].tobytes()}
            assert found[0].dtype == np.float64
            np.testing.assert_allclose(found[0], expected, rtol=rtol, atol=atol, err_msg=f"update {update}")
        planned = sum(policy.at(update).wire_bytes(b, 8, ranks) for b in worker.LAYOUT)
        assert {int(result[f"{name}/{update}/bytes"]) for result in results} == {planned}
    assert not any(result[f"{name}/poisoned"].any() for result in results)
