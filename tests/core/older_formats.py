"""Checkpoints as earlier versions wrote them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE, SPEC_FILE, FileRecord, read_manifest
from hvdtrain.core.checkpoints.rank_files import rank_file


def make_format_2(place: Path) -> Path:
    """As an earlier version would have saved it: all ranks in one file, along a first axis or by name."""
    manifest = read_manifest(place)
    assert manifest is not None
    files = [place / rank_file(rank) for rank in range(manifest.ranks)]
    every = [load_file(file) for file in files]
    for name in ("compression", "optimizer"):
        own = [key for key in every[0] if key.startswith(f"{name}.")]
        rows = {key.partition(".")[2]: np.stack([each[key] for each in every]) for key in own}
        save_file(load_file(place / f"{name}.safetensors") | rows, place / f"{name}.safetensors")
    generators = {
        key.replace("generator.framework", str(rank)): array
        for rank, each in enumerate(every)
        for key, array in each.items()
        if key.startswith("generator.")
    }
    save_file(generators, place / "generators.safetensors")
    for file in (*files, place / MANIFEST_FILE):
        file.unlink()
    record = json.loads((place / "state.json").read_text()) | {"format": 2}
    (place / "state.json").write_text(json.dumps(record))
    records = {file.name: FileRecord.of(file.read_bytes()) for file in place.iterdir()}
    (place / MANIFEST_FILE).write_text(replace(manifest, format=2, files=records).text())
    return place


def make_format_1(place: Path) -> None:
    """As the version before that would have saved it."""
    make_format_2(place)
    for name in (MANIFEST_FILE, SPEC_FILE, "generators.safetensors"):
        (place / name).unlink()
    record = json.loads((place / "state.json").read_text())
    del record["format"]
    (place / "state.json").write_text(json.dumps(record))
