"""`zero_stage=1` of the torch wrapper on 3 ranks; on 2 in `test_torch`."""

from __future__ import annotations

import os

import pytest

from tests.dropin.test_torch import Results, checks, passed, said

MODULES = ("torch_sharding", "torch_sharding_groups")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
    try:
        return said(tmp_path_factory.mktemp("sharding") / "results", MODULES, ranks=3)
    finally:
        del os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"]


@pytest.mark.parametrize("check", [name for module in MODULES for name in checks(module)])
def test_on_three_ranks(check: str, results: Results) -> None:
    passed(check, results)
