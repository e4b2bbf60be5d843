"""For horovodrun, which imports frameworks until one says what Horovod was built with: torch comes sooner."""

import sys

sys.modules["tensorflow"] = None  # type: ignore[assignment]
