"""A worker server of comparisons that starts at once: the fork of a process that has imported what it needs."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil

_COMMAND = [sys.executable, "-m", "recbole_pref.compare"]
_PARENT = """
import json, os, signal, socket, sys
import recbole.model.general_recommender
from recbole_pref.compare import runs

runs.preload()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
requests = socket.socket(fileno=int(sys.argv[1]))
while True:
    text, streams, *_ = socket.recv_fds(requests, 2**20, 3)
    if not text:
        break
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        folder, variables = json.loads(text)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        sys.exit(runs.serve())
    for stream in streams:
        os.close(stream)
    requests.sendall(str(pid).encode())
"""


class Parent:
    """Forks worker servers. It replaces ``subprocess`` in ``recbole_pref.compare.runs``."""

    PIPE = subprocess.PIPE

    def __init__(self):
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-W", "ignore", "-c", _PARENT, str(theirs.fileno())]
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            cwd=Path(__file__).parent,
        )  # fmt: skip
        theirs.close()

    def close(self):
        """End the process that forks."""
        self.requests.close()
        self.process.wait()

    def Popen(self, command, stdin, stdout, stderr, text, env, cwd):  # noqa: N802, as in subprocess
        """Start a worker server; other commands start as usual."""
        if command != _COMMAND:
            return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, text=text, env=env, cwd=cwd)
        (to_read, stdin), (stdout, to_write) = os.pipe(), os.pipe()
        socket.send_fds(self.requests, [json.dumps([str(cwd), env]).encode()], [to_read, to_write, stderr.fileno()])
        os.close(to_read)
        os.close(to_write)
        process = psutil.Process(int(self.requests.recv(64)))
        return SimpleNamespace(
            stdin=open(stdin, "w"), stdout=open(stdout), wait=process.wait, pid=process.pid,
            terminate=lambda: process.is_running() and os.kill(process.pid, signal.SIGTERM),
        )  # fmt: skip
