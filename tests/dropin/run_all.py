"""run_all.py "PROGRAM [ARGUMENT...]"...: runs programs one after another, so that start-up is paid once."""

import runpy
import shlex
import sys

if __name__ == "__main__":
    for line in sys.argv[1:]:
        sys.argv = shlex.split(line)
        runpy.run_path(sys.argv[0], run_name="__main__")
