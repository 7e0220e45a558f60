"""Fresh processes for tests, forked from a server that has imported torch and pandas but not RecBole.

Importing torch and pandas takes most of the start of a process, and a fork does not repeat it.
"""

import os
import sys
import warnings
from multiprocessing import forkserver, get_context, set_start_method
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

# Not the server that a process has by itself: recbole_pref.distributed starts that one, with RecBole.
_SERVER = forkserver.ForkServer()
_SERVER.set_forkserver_preload(["torch", "pandas", "scipy.sparse"])


def _execute(code, output, folder):
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    set_start_method("fork", force=True)  # children of this process are not made by the server
    sys.argv = ["-c"]
    warnings.filterwarnings("error", category=DeprecationWarning, module=r"recbole\Z")
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})


def run(code, folder="."):
    """Execute code in a fresh process with this working folder; return its exit code, output and errors."""
    with TemporaryDirectory() as temporary:
        output = f"{temporary}/output"
        process = get_context("forkserver").Process(target=_execute, args=(code, output, os.path.abspath(folder)))
        with mock.patch.object(forkserver, "connect_to_new_process", _SERVER.connect_to_new_process):
            process.start()
        process.join(120)
        return process.exitcode, *(Path(f"{output}.{ending}").read_text() for ending in ("out", "err"))
