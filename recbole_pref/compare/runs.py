"""Train the runs of a comparison in processes that a worker server forks.

The server has imported all modules: imports take seconds, a fork takes milliseconds. With a process per run, a crash
does not end other runs, and each run can measure its peak memory. The server only imports modules. It runs no torch
operation and uses no GPU, so that its children can start OpenMP and CUDA.
"""

import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from filelock import FileLock, Timeout

from recbole_pref import checkpoint
from recbole_pref.build import build_run
from recbole_pref.compare.plan import Task
from recbole_pref.compare.progress import Progress
from recbole_pref.config import Config
from recbole_pref.environment import environment, python_path, sigterm_as_ctrl_c, threads_per_process
from recbole_pref.errors import PrefError
from recbole_pref.evaluation import evidence
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.memory import explained, peak_mb
from recbole_pref.quick_start import refuse_other_defaults
from recbole_pref.records import Run
from recbole_pref.training import reference

# Modules that every run imports when it starts, for its optimizer and its log.
_LATER = ("torch._dynamo", "torch.utils.tensorboard")
Report: TypeAlias = Callable[..., None]
_TICK = 0.2  # seconds between two checks for ended runs

# -- in the process of the comparison


@sigterm_as_ctrl_c()
def run_missing(tasks: list[Task], folder: Path, processes: int) -> dict[str, str]:
    """Run the tasks without a result, ``processes`` at a time.

    Returns:
        The reason of failure by run.

    Raises:
        PrefError: the folder cannot be written.
        KeyboardInterrupt: SIGINT or SIGTERM arrived; the runs have stored their state.
    """
    missing = [task for task in tasks if not task.record.is_file()]
    missing.sort(key=lambda task: task.provides is None)  # first the runs that serve as references
    for path in (folder, folder / "runs", folder / "logs", folder / "tasks"):
        _make_folder(path, folder)
    if not missing:
        return {}
    progress = Progress(missing, processes)
    waiting = list(missing)
    running: dict[str, Task] = {}
    failed: dict[str, str] = {}
    server = _Server(folder, threads_per_process(processes))
    try:
        while waiting or running:
            while len(running) < processes and (task := ready(waiting, running.values())):
                waiting.remove(task)
                running[task.id] = task
                server.start(task)
                progress.started(task)
            message = server.message()
            if "score" in message:
                progress.validated(**message)
            for name in list(running) if "error" in message else [message.get("ended")]:
                if name is not None:
                    task = running.pop(name)
                    if not task.record.is_file():
                        failed[name] = message.get("error") or _reason(message["code"], task.log)
                    progress.ended(task, failed.get(name))
            if "error" in message:
                failed |= {task.id: message["error"] for task in waiting}
                break
            progress.tick()
    finally:
        server.close()
    return failed


def ready(waiting: list[Task], running: Iterable[Task]) -> Task | None:
    """Return the first task whose reference model no running task is training, or None."""
    in_training = [task.provides for task in running if task.provides]
    return next((task for task in waiting if task.needs not in in_training), None)


def _make_folder(path: Path, output: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrefError(f"--output={str(output)!r} cannot be written: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise PrefError(f"--output={str(output)!r}: {str(path)!r} cannot be written: name another folder.")


def _reason(code: int, log: Path) -> str:
    """Return why a run has no result: its error message, or the signal that ended it."""
    if code < 0:
        return f"killed by signal {-code} (perhaps out of memory); run the same command again to resume it"
    return _last_line(log) or f"exit code {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].removeprefix("recbole-pref: ") if lines else ""


class _Server:
    """The worker server, as used by the process of the comparison.

    Args:
        folder: the comparison folder, which is the working folder of the runs.
        threads: number of torch's threads in each run.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.log = folder / "logs" / "workers.log"
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path(sys.path)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "recbole_pref.compare"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables, cwd=folder,
            )  # fmt: skip
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        reason = _last_line(self.log) or "no message"
        self.messages.put({"error": f"the process that starts the runs has ended ({reason})"})

    def start(self, task: Task) -> None:
        """Start a run in the server."""
        assert self.process.stdin is not None
        file = task.write()
        with suppress(BrokenPipeError):  # the listener reports it
            self.process.stdin.write(f"{file}\n")
            self.process.stdin.flush()

    def message(self) -> dict[str, Any]:
        """Return the next message, or an empty dict after a short time without one.

        A run sends ``name``, ``epochs``, ``resumed`` and ``score`` after each validation. The server sends ``ended``
        and ``code`` when a run has ended. The listener sends ``error`` when the server has ended.
        """
        try:
            return self.messages.get(timeout=_TICK)
        except queue.Empty:
            return {}

    def close(self) -> None:
        """End the server. Active runs first store their state."""
        self.process.terminate()
        self.process.wait()


# -- in the worker server and its children


def preload() -> None:
    """Import the modules that every run needs and that this module does not import."""
    for name in _LATER:
        importlib.import_module(name)


def serve() -> int:
    """Fork a process for each task file that standard input names, until the input ends or SIGTERM arrives.

    Then send SIGTERM to active runs, which store their state.

    Returns:
        Exit code, in the server and in each child.
    """
    # Ctrl-C at the terminal reaches the whole group; the comparison then sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    running: dict[int, str] = {}  # names of the runs by process ID
    text, signalled = b"", False
    while True:
        if not stopped and select.select([0], [], [], _TICK)[0]:
            part = os.read(0, 2**16)
            stopped += [True] * (not part)
            *files, text = (text + part).split(b"\n")
            for file in map(os.fsdecode, files):
                pid = os.fork()
                if pid == 0:
                    return _work(file)
                running[pid] = Path(file).stem
        if stopped and not signalled:
            signalled = True
            for pid in running:
                os.kill(pid, signal.SIGTERM)
        while running:
            pid, status = os.waitpid(-1, 0 if stopped else os.WNOHANG)
            if pid == 0:
                break
            _send(1, ended=running.pop(pid), code=os.waitstatus_to_exitcode(status))
        if stopped:
            return 0


def _send(pipe: int, **message: Any) -> None:
    with suppress(BrokenPipeError):  # the comparison was killed
        os.write(pipe, json.dumps(message).encode() + b"\n")  # short enough for an atomic write


def _work(file: str) -> int:
    """Train one run in a child of the server; return the exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.orig_argv = [sys.executable, "-m", "recbole_pref.compare", file]  # the command that repeats only this run
    task = Task.read(file)
    pipe = os.dup(1)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)

    def report(**message: Any) -> None:
        _send(pipe, name=task.id, **message)

    return _run(task, report)


def _run(task: Task, report: Report | None = None) -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        with explained():
            train_and_record(task, report)
    except PrefError as error:
        print(f"recbole-pref: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    """Serve, or train the run whose task file the command line names; return the exit code."""
    files = sys.argv[1:]
    return _run(Task.read(files[0])) if files else serve()


def train_and_record(task: Task, report: Report | None = None) -> None:
    """Train one run of a comparison and write ``runs/<id>.npz`` and, last, ``runs/<id>.json``.

    Args:
        task: the run.
        report: a function that receives ``epochs``, ``resumed`` and ``score`` after each validation.

    Raises:
        PrefError: another process trains this run, or training fails.
    """
    folder = Path(task.folder)
    try:  # the lock is released when the process ends
        lock = FileLock(folder / "tasks" / f"{task.id}.lock").acquire(timeout=0)
    except Timeout:
        raise PrefError(
            f"{task.id} is being trained by another process in this folder: wait for that comparison or stop it, "
            "then run the same command again."
        ) from None
    with lock:
        if not task.record.is_file():  # another comparison may have written it
            _train_and_record(task, folder, report)


def _train_and_record(task: Task, folder: Path, report: Report | None = None) -> None:
    checkpoints = folder / "checkpoints" / task.id
    settings = {
        "reference_dir": str(folder / "reference"),
        **task.settings,
        "checkpoint_dir": str(checkpoints),
        "run_stem": task.id,
    }
    config = Config(task.model, task.dataset, config_dict=settings)
    refuse_other_defaults(config, task.defaults, "comparison")
    run = build_run(config)
    trainer = run.trainer
    newest = checkpoint.newest_good(checkpoints, task.id) if checkpoints.is_dir() else None
    if newest:
        trainer.resume_checkpoint(*newest)

    def validated(epoch_idx: int, score: float) -> None:
        assert report is not None
        report(epochs=epoch_idx + 1, resumed=trainer.start_epoch, score=float(trainer.best_valid_score))

    try:
        with reference.serving(trainer, run.train_data) as store_as_reference:
            best_score, best_result = trainer.fit(
                run.train_data, run.valid_data, callback_fn=validated if report else None
            )
            store_as_reference()
    finally:
        trainer.tensorboard.close()
    test_result, arrays = evidence.evaluate(trainer, run.train_data, run.test_data)
    Run(
        label=task.label,
        test_result=test_result,
        id=task.id,
        model=task.model,
        dataset=task.dataset,
        seed=task.seed,
        best_valid_score=best_score,
        valid_score_bigger=trainer.valid_metric_bigger,
        best_valid_result=best_result,
        seconds_per_epoch=float(np.mean(trainer.epoch_times)) if trainer.epoch_times else None,
        epochs=len(trainer.epoch_times),
        epochs_to_best=trainer.best_epoch,
        peak_memory_mb=peak_mb(),
        train_loss_per_row=trainer.losses_per_row(),
        history=trainer.history,
        mask_history=history_is_masked(config),
        data=trainer._data_fingerprint,
        environment=environment(config["device"]),
        config=checkpoint.to_plain(config.final_config_dict, other=str),
        checkpoint=str(Path("checkpoints", task.id, Path(trainer.saved_model_file).name)),
        arrays=arrays,
    ).write(folder)
    for path in checkpoints.glob("*-last-*.pth"):
        path.unlink()
