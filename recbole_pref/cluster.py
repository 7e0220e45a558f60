"""Ray clusters: the connection, data parallel training, and tasks that share the pieces of a file.

A run trains in the workers of Ray Train. A trial of Ray Tune trains together with tasks in its own placement group,
because Ray Train would reserve its workers outside of the trial's resources and report without the trial's checkpoints.
"""

import logging
import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from recbole_pref import distributed
from recbole_pref.environment import python_path, sigterm_as_ctrl_c
from recbole_pref.errors import Interrupted, PrefError

_MARKER = "shared"  # a file in the folder of Ray Train, for which each worker looks
_GRACE = 5.0  # seconds in which a process group notices that a member is gone


def connect(address: str | None, log_to_driver: bool = False) -> None:
    """Connect to a Ray cluster, or start Ray on this machine; without effect if this process is connected.

    Args:
        address: ``auto`` or ``HOST:PORT`` of a running cluster; None starts Ray.
        log_to_driver: whether the output of the workers is printed here.

    Raises:
        PrefError: no cluster answers.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # local workers must find a checkout that is not installed
        os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    dashboard = None if address else False
    try:
        # "local" starts a new Ray; None would connect to a running one.
        ray.init(
            address=address or "local",
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
            include_dashboard=dashboard,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PrefError(
            f"--ray_address={address!r}: no Ray cluster answers ({' '.join(str(error).split())[:200]}); "
            "start one with 'ray start --head', or remove the option."
        ) from None


def capacity(cpus: float, gpus: float) -> int:
    """Return how many workers with these numbers of CPUs and GPUs the machines of the cluster can hold."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = [(kind, number) for kind, number in (("CPU", cpus), ("GPU", gpus)) if number]
    return sum(min(int(node.get(kind, 0) / number) for kind, number in needs) for node in nodes)


def check_numbers(workers: int, cpus: float, gpus: float) -> None:
    """Refuse numbers that no cluster can satisfy.

    Args:
        workers: number of workers.
        cpus, gpus: CPUs and GPUs of a worker.

    Raises:
        PrefError: a number is too small.
    """
    bounds = {
        "--num_workers must be at least 1.": workers >= 1,
        "--cpus_per_worker must be above 0.": cpus > 0,
        "--gpus_per_worker must be 0 or more.": gpus >= 0,
    }
    for sentence, holds in bounds.items():
        if not holds:
            raise PrefError(sentence)


def check_capacity(workers: int, cpus: float, gpus: float) -> None:
    """Refuse more workers than the machines of the cluster can hold: Ray would wait forever.

    Raises:
        PrefError: the cluster has no room for the workers.
    """
    most = capacity(cpus, gpus)
    if most < workers:
        raise PrefError(
            f"--num_workers={workers} with --cpus_per_worker={cpus:g} --gpus_per_worker={gpus:g} is more than the "
            f"cluster can hold ({most}): set smaller numbers, or start Ray on more machines first."
        )


def launch(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    workers: int,
    cpus: float,
    gpus: float,
    folder: str,
    max_failures: int,
) -> Any:
    """Run ``function(**arguments)`` in workers that form one process group, and return the first one's result.

    When a machine or a worker is lost, all workers start again, as soon as the cluster has room for them.

    Args:
        function: an importable function with a picklable result.
        arguments: its keyword arguments; they travel through Ray's object store.
        workers: number of workers.
        cpus, gpus: CPUs and GPUs of a worker; torch uses one thread per CPU.
        folder: a folder that all machines reach.
        max_failures: how many times the workers start again.

    Raises:
        PrefError: the cluster has no room for the workers, a worker refused its input, or too many were lost.
        Interrupted: a signal stopped the run.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    train: Any = ray.train  # the type checker sees the classes of its first version
    if not hasattr(train.Result, "return_value"):
        raise PrefError(f"--num_workers needs Ray 2.60 or newer, not {ray.__version__}: update it.")
    check_capacity(workers, cpus, gpus)
    with tempfile.TemporaryDirectory(prefix="ray-train-", dir=folder) as storage:
        marker = Path(storage, _MARKER)
        marker.touch()
        trainer: Any = TorchTrainer(
            _entry,
            train_loop_config={
                "function": function,
                "arguments": ray.put(arguments),
                "threads": max(1, int(cpus)),
                "marker": str(marker),
                "working_folder": os.getcwd(),
                "command": sys.orig_argv,
            },
            torch_config=_torch_config(),
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus, "GPU": gpus}
            ),
            run_config=train.RunConfig(
                storage_path=storage,
                failure_config=train.FailureConfig(max_failures=max_failures),
                logging_config=train.LoggingConfig(log_level="CRITICAL"),
                callbacks=[_refusal_ends_the_run()],
            ),
        )
        try:
            with sigterm_as_ctrl_c():
                result = trainer.fit()
        except (KeyboardInterrupt, SystemExit):  # Ray handles Ctrl-C and exits
            raise Interrupted("a signal stopped the run; continue with --resume=True.") from None
        except train.TrainingFailedError as error:
            cause = getattr(error, "controller_failure", error)
            if isinstance(cause, PrefError):
                raise cause from None
            raise PrefError(
                f"a machine or a worker was lost more than --max_failures={max_failures} times "
                f"({' '.join(str(error).split())[-300:]}): look there for the cause, then continue with --resume=True."
            ) from error
        return result.return_value


def _entry(shared: dict[str, Any]) -> Any:
    """Run the function in a worker, whose process group exists already."""
    import ray

    if not Path(shared["marker"]).exists():
        raise PrefError(
            f"checkpoint_dir={str(Path(shared['marker']).parents[1])!r} is not shared with the machine "
            f"{os.uname().nodename}: set it to a folder that all machines reach."
        )
    if os.path.isdir(shared["working_folder"]):  # for log/ and log_tensorboard/; Ray has changed into another one
        os.chdir(shared["working_folder"])
    logging.getLogger().handlers.clear()  # RecBole adds its handlers only to a logger without any
    sys.orig_argv = shared["command"]  # the log of a run begins with it
    torch.set_num_threads(shared["threads"])
    return shared["function"](**ray.get(shared["arguments"]))


def run_in_group(
    function: Callable[..., Any], arguments: dict[str, Any], workers: int, cpus: float, gpus: float
) -> Any:
    """Run ``function(**arguments)`` here and in other workers that form one process group, and return the result here.

    The others are tasks in the placement group of this process, and end with it. When one of them dies, this process
    raises or ends.

    Args:
        function: an importable function.
        arguments: its keyword arguments; they travel through Ray's object store.
        workers: number of workers, this one included.
        cpus, gpus: CPUs and GPUs of a worker.

    Raises:
        PrefError: a worker refused its input.
    """
    if workers == 1:
        return function(**arguments)
    import ray

    ip = ray.util.get_node_ip_address()
    store = distributed.open_store(ip, 0)  # listens until this function returns
    member = ("nccl" if gpus else "gloo", ip, store.port)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_member)
    shared = ray.put(arguments)
    others = [task.remote(function, shared, (*member, rank, workers)) for rank in range(1, workers)]
    ended = threading.Event()
    threading.Thread(target=_end_with, args=(others, ended), daemon=True).start()
    try:
        with distributed.group(*member, 0, workers):
            return function(**arguments)
    except RuntimeError:  # the process group's error, because another worker has ended
        for other in ray.wait(others, num_returns=len(others), timeout=_GRACE)[0]:
            with suppress(ray.exceptions.RayError):
                _result_of(other)
        raise
    finally:
        ended.set()


def _member(function: Callable[..., Any], arguments: dict[str, Any], member: tuple[Any, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="recbole_pref-") as folder, distributed.group(*member):
        os.chdir(folder)
        function(**arguments)


def _end_with(others: list[Any], ended: threading.Event) -> None:
    """End this process if another worker died and the process group does not notice it, as after a loss of power."""
    import ray

    while others:
        (done,), others = ray.wait(others)
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError:  # it has left the group
            continue
        except ray.exceptions.RayError:
            if not ended.wait(_GRACE):
                os._exit(1)


def shared_map(
    function: Callable[..., Any], common: Any, pieces: Iterable[Any], cpus: float, gpus: float
) -> Iterator[Any]:
    """Yield ``function(common, piece)`` of each piece in order, computed by tasks of the cluster.

    Few pieces are in memory at the same time. Ray repeats the task of a machine that is lost.

    Args:
        function: an importable function.
        common: an object that each process of the cluster receives once.
        pieces: are read as results are taken.
        cpus, gpus: CPUs and GPUs of a task; torch uses one thread per CPU.

    Raises:
        PrefError: the cluster has no room for a task, or the function refused a piece.
    """
    import ray

    check_numbers(1, cpus, gpus)
    most = capacity(cpus, gpus)
    if not most:
        raise PrefError(
            f"--cpus_per_worker={cpus:g} --gpus_per_worker={gpus:g} is more than any machine of the cluster has: set "
            "smaller numbers."
        )
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_task)
    reference = ray.put(common)
    waiting: deque[Any] = deque()
    for piece in pieces:
        if len(waiting) == 2 * most:
            yield _result_of(waiting.popleft())
        waiting.append(task.remote(function, [reference], piece, max(1, int(cpus))))
    while waiting:
        yield _result_of(waiting.popleft())


def _task(function: Callable[..., Any], references: list[Any], piece: Any, threads: int) -> Any:
    torch.set_num_threads(threads)
    return function(_received(references[0]), piece)


@lru_cache(maxsize=1)
def _received(reference: Any) -> Any:
    """Return the object behind a reference; a process unpickles it once and not in every task."""
    import ray

    return ray.get(reference)


def _result_of(task: Any) -> Any:
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PrefError):
            raise error.cause from None
        raise


def _refusal_ends_the_run() -> Any:
    """Return a callback with which a ``PrefError`` ends the run; other errors of workers start them again."""
    from ray.train import UserCallback

    class RefusalEndsTheRun(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, PrefError):
                    raise error

    return RefusalEndsTheRun()


def _torch_config() -> Any:
    """Return Ray's configuration of process groups, with gloo on the interface of each machine's address in Ray."""
    from ray.train.torch import TorchConfig

    ray_backend: Any = TorchConfig().backend_cls

    class Backend(ray_backend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_choose_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        backend_cls = Backend

    return Config(timeout_s=int(distributed.TIMEOUT.total_seconds()))


def _choose_interface() -> None:
    import ray

    distributed.choose_interface(ray.util.get_node_ip_address())
