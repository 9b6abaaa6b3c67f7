"""The process that trains a run for the page: `python -m qlora_core.worker RUN --lock N`.

Its output is the run's `worker.log`; everything else it says is in the run directory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Train the run; 0 complete or stopped, 3 paused, 1 on an error written for people."""
    parser = argparse.ArgumentParser(prog="qlora_core.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the run's lock, taken by the parent")
    arguments = parser.parse_args()

    from .console import TrainingReporter
    from .errors import QLoraError
    from .export import keep_result
    from .runs import Run, RunLock, RunWriter
    from .storage import keep_private

    keep_private()
    run = Run(arguments.run)
    with RunWriter(run, RunLock(run.path, arguments.lock)) as writer:
        try:
            from . import trainer  # only here: mlx takes a second, and the run is already locked

            with trainer.listening(writer, TrainingReporter()):
                if trainer.train(writer).state == "paused":
                    return 3
            if problem := keep_result(run):
                sys.stderr.write(f"warning: {problem}\n")
            return 0
        except QLoraError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1


if __name__ == "__main__":
    sys.exit(main())
