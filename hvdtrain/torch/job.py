"""The job script of the PyTorch side: `python -m hvdtrain.torch.job --spec SPEC` under a launcher."""

from __future__ import annotations

from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.script import run_job


def main(default_spec: str = "bert") -> None:
    """Train a spec on this rank.

    Args:
        default_spec: the spec used without `--spec`: a file or a packaged spec's name.
    """
    run_job(load, default_spec)


def load() -> Framework:
    """What a job needs of this framework, which is imported here.

    Raises:
        HvdtrainError: Horovod was not built for the framework that is installed.
    """
    from hvdtrain.engine.cache import require_fit, wire_types

    require_fit("torch")

    from hvdtrain.torch import world
    from hvdtrain.torch.model import build_network
    from hvdtrain.torch.trainer import build_trainer

    return Framework(
        "torch",
        world.init,
        build_network,
        build_trainer,
        world.shutdown,
        ("torch", "transformers"),
        wire_types(),
    )


if __name__ == "__main__":
    main()
