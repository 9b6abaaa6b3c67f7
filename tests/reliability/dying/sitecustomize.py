"""With this directory in `PYTHONPATH`, a worker dies after the steps that `DEATHS` names, once each, as it is told.

`DEATHS` is a file: a JSON array of `[step, how]`, from which each death takes the first away.
"""

import json
import os
import signal
import sys
from pathlib import Path

if "qlora_core.jobs.worker" in sys.orig_argv:
    import resource

    from qlora_core.runs.writer import RunWriter

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = RunWriter.log

    def die(how: str) -> None:
        if how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        if how.startswith("exit "):
            os._exit(int(how.removeprefix("exit ")))
        if how.startswith("raise "):
            raise RuntimeError(how.removeprefix("raise "))
        sys.stderr.write(how + "\n")
        sys.stderr.flush()
        os.abort()

    def log_and_die(writer: RunWriter, type: str, **fields: object) -> None:
        log(writer, type, **fields)
        path = Path(os.environ["DEATHS"])
        deaths = json.loads(path.read_text(encoding="utf-8"))
        if type == "step" and deaths and deaths[0][0] == fields["step"]:
            path.write_text(json.dumps(deaths[1:]), encoding="utf-8")
            die(deaths[0][1])

    RunWriter.log = log_and_die
