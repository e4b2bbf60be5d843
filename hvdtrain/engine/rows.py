"""One line of what `hvdtrain doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "absent", "missing", "open"]


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        status: `ok`; `absent` for what training can do without; `missing` for what it cannot; `open` for what
            others can use against this machine.
        found: what is there.
        action: what to do; empty when nothing is.
    """

    name: str
    status: Status
    found: str
    action: str = ""
