"""Python code run in a fork of this process, which has imported everything already: that takes seconds otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence

from lora_detr.deploy.candidate import FORBIDDEN


def run_forked(command: Sequence[str], *, stdin: int, **options: object) -> subprocess.CompletedProcess[str]:
    """Do what ``subprocess.run`` does with ``python -c CODE ARGUMENTS``, as far as the proof of a strip needs it.

    The fork has imported the branches, of which a proof must know nothing, or nothing of the whole package if its code
    names none of it; it forgets them first, so that an import of them shows.
    """
    _, _, code, *arguments = command
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os._exit(_run(code, arguments, stdin, out.fileno(), err.fileno()))
        _, status = os.waitpid(child, 0)
        shown = []
        for file in (out, err):
            file.seek(0)
            shown.append(file.read().decode())
    return subprocess.CompletedProcess(list(command), os.waitstatus_to_exitcode(status), *shown)


def _run(code: str, arguments: Sequence[str], *streams: int) -> int:
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["-c", *arguments]
        forgotten = FORBIDDEN if "from lora_detr" in code else "lora_detr"
        for name in [name for name in sys.modules if name.startswith(forgotten)]:
            del sys.modules[name]
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as request:
        if isinstance(request.code, str):
            sys.stderr.write(f"{request.code}\n")
        return request.code if isinstance(request.code, int) else int(request.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
