"""Ranks that were started with different things are told so before they could hang or train apart."""

from __future__ import annotations

from pathlib import Path

from tests.jobs.runs import TINY, launch_each

ADVICE = "Start every rank with the same program, --spec, --set and --resume, and install the same versions"


def settings(*overrides: str) -> list[str]:
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]


def test_ranks_with_other_commands_are_told_every_difference(tmp_path: Path) -> None:
    """Three ranks in one launch: another framework, other settings, and another checkpoint or none."""
    places = [tmp_path / str(rank) for rank in range(3)]
    for place, content in zip(places, ("one", "another", "one"), strict=True):
        inside = place / "checkpoint-4" / "assets"
        inside.mkdir(parents=True)
        (inside / "vocabulary.txt").write_text(content)
    common = ["-m", "hvdtrain.torch.job", "--resume", "checkpoint-4", "--output-dir", "out"]
    programs = [
        # What concerns a host alone may differ.
        [*common, *settings("max_steps=8", "num_threads=2")],
        [*common, *settings("max_steps=9", "optimizer.learning_rate=1e-2", "mixed_precision=bf16")],
        [*common[:2], *settings("max_steps=8", "data.cache_dir=cache", "compression.type=int8")],
    ]
    programs[1][1] = "hvdtrain.tensorflow.job"
    done = launch_each(list(zip(places, programs, strict=True)))
    assert done.returncode != 0
    found = {line.partition(":")[2].strip() for line in done.stdout.splitlines() if line.startswith("[1,0]")}
    assert "[rank 0] error: ranks of this job differ:" in found, done.stdout[-3000:]
    for expected in (
        "max_steps is 8 on rank 0, but 9 on rank 1",
        "optimizer.learning_rate is 0.001 on rank 0, but 0.01 on rank 1",
        'mixed_precision is "no" on rank 0, but "bf16" on rank 1',
        'compression.type is "none" on rank 0, but "int8" on rank 2',
        '--resume is "checkpoint-4" on rank 0, but missing on rank 2',
    ):
        assert expected in found
    lines = sorted(line for line in found if " on rank 0, but " in line)
    assert any(line.startswith('framework is "torch ') and '"tensorflow ' in line for line in lines)
    assert any(line.startswith("--resume's content is ") and line.endswith(" on rank 1") for line in lines)
    assert not any("num_threads" in line or "cache_dir" in line for line in lines)
    assert any(line.startswith(ADVICE) for line in found)
    assert done.stdout.count("ranks of this job differ") == 1
    assert not any((place / "out").exists() for place in places)


def test_ranks_with_other_data_are_told(tmp_path: Path) -> None:
    """The same command, in directories where the same name means another text."""
    places = [tmp_path / str(rank) for rank in range(2)]
    for rank, place in enumerate(places):
        place.mkdir()
        words = "\n\n".join(f"the {word} of rank {rank}" for word in ["few", "many", "most", "other", "own"])
        (place / "corpus.txt").write_text(words)
    data = "data={corpus: null, files: [corpus.txt], cache_dir: cache, max_seq_length: 32}"
    program = ["-m", "hvdtrain.torch.job", *settings(data, "max_steps=8"), "--output-dir", "out"]
    done = launch_each([(place, program) for place in places])
    assert done.returncode != 0
    assert done.stdout.count("[rank 0] error: ranks of this job differ:") == 1, done.stdout[-3000:]
    assert "the data's fingerprint is " in done.stdout
    assert "give every node the same files" in done.stdout
    assert not any((place / "out").exists() for place in places)
