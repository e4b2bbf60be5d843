"""The proof that ranks make in C++ is the one that the launcher checks in Python."""

from __future__ import annotations

import hashlib
import hmac
import shutil
import subprocess
from pathlib import Path

from hvdtrain.engine.edit import patch


def test_the_proof_of_ranks_is_that_of_the_launcher(tmp_path: Path) -> None:
    """The digests in C++ against Python's, at every length around the blocks of 64 bytes."""
    shutil.copy(Path(__file__).with_name("proof.cc"), tmp_path)
    (tmp_path / "job_proof.h").write_text(patch("job_proof.h"))
    subprocess.run(["g++", "-std=c++17", "-o", "proof", "proof.cc"], cwd=tmp_path, check=True)
    key = bytes(range(32))
    done = subprocess.run(
        ["./proof"], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={"HOROVOD_JOB_SECRET": key.hex()},
    )  # fmt: skip
    nonces = set()
    for line in done.stdout.splitlines():
        length, nonce, digest, proof, proves, forged = line.split()
        body = b"\xe9" * int(length)
        assert digest == hashlib.sha256(body).hexdigest()
        signed = "\n".join(("PUT", "/global/0", nonce, digest)).encode()
        assert proof == hmac.new(key, signed, hashlib.sha256).hexdigest()
        assert (proves, forged) == ("1", "0")
        nonces.add(nonce)
    assert len(nonces) == 300
    assert all(len(nonce) == 32 for nonce in nonces)
