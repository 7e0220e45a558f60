"""Write the results of a sweep: tables, CSV, JSON, pictures, and the settings of the winner."""

from __future__ import annotations  # Ray is imported late

import json
import shutil
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tabulate import tabulate

from recbole_pref import checkpoint
from recbole_pref.build import build_run
from recbole_pref.compare.tables import rows_as_csv
from recbole_pref.config import Config
from recbole_pref.environment import environment, write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.metrics import display_name, group_key
from recbole_pref.restore import settings_of
from recbole_pref.settings import settings_set_by
from recbole_pref.tune.space import Plan, as_setting
from recbole_pref.tune.trial import STEM

if TYPE_CHECKING:
    from ray.tune import Result, ResultGrid


def trial_rows(grid: Iterable[Result], plan: Plan) -> list[dict[str, Any]]:
    """Return a dict per trial, the best first and the failed last.

    Args:
        grid: the results of Ray Tune.
        plan: the sweep.

    Returns:
        Dicts with ``trial_id``, ``state`` (``done`` or ``failed``), ``reason``, ``score`` (of the best validation), the
        searched settings, ``valid/<metric>`` of the best epoch, and the costs.
    """
    rows = []
    for result in grid:
        metrics = result.metrics or {}
        row = {
            "trial_id": Path(result.path).name,
            "state": "failed" if result.error else "done",
            "reason": failure_reason(result.error) if result.error else "",
            "score": metrics.get("best_score"),
            **{key: as_setting(key, (result.config or {}).get(key)) for key in plan.space},
            "epochs": metrics.get("epoch"),
            "best_epoch": metrics.get("best_epoch"),
            "seconds_per_epoch": metrics.get("seconds_per_epoch"),
            "peak_memory_mb": metrics.get("peak_memory_mb"),
            "seconds": metrics.get("time_total_s"),
        }
        columns = ("best_score", "best_epoch")
        best = {k: v for k, v in metrics.items() if k.startswith("best_") and k not in columns}
        row.update({f"valid/{name.removeprefix('best_')}": value for name, value in best.items()})
        rows.append(row)
    low = float("-inf")
    rows.sort(key=lambda row: (row["state"] == "failed", -(low if row["score"] is None else row["score"])))
    return rows


def failure_reason(error: BaseException) -> str:
    """Return why a trial failed in one line: the text of its PrefError, or Ray's message about its process."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    for line in reversed(lines):
        name, colon, text = line.partition(": ")
        if colon and name.endswith("PrefError"):
            return text
    last = lines[-1] if lines else type(error).__name__
    return f"the trial's process ended unexpectedly: {last}" if "ActorDied" in str(type(error)) else last


def finish(grid: ResultGrid, folder: Path, plan: Plan, config: Config, settings: dict[str, Any]) -> None:
    """Write the results of a sweep and print the table.

    The files in ``folder`` are ``trials.csv``, ``trials.json``, ``table.md``, ``pareto.*`` and
    ``parallel_coordinates.*``; for the winner ``best.yaml``, ``best.pth`` and ``best.json``. Only the winner is
    evaluated on the test set.

    Raises:
        PrefError: no trial succeeded.
    """
    results: list[Result] = [grid[index] for index in range(len(grid))]
    rows = trial_rows(results, plan)
    write_result(folder / "trials.json", {"objective": settings["objective"], "trials": rows})
    _write_csv(folder / "trials.csv", rows)
    text = table(rows, plan, config, settings)
    checkpoint.write_atomically(folder / "table.md", lambda file: file.write(f"{text}\n".encode()), "storage_path")
    print(text)
    # The best successful trial is the first row.
    if not rows or rows[0]["state"] == "failed" or rows[0]["score"] is None:
        reasons = "; ".join(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
        raise PrefError(f"tune: no trial succeeded ({reasons or 'none was started'}).")
    _draw(rows, plan, folder, _pair(settings, config))
    winner = next(result for result in results if Path(result.path).name == rows[0]["trial_id"])
    test = export(winner, folder, config, plan)
    shown = ", ".join(f"{display_name(name)} {value:.4f}" for name, value in test.items())
    print(f"best trial {rows[0]['trial_id']}, test set: {shown}")
    print(f"run it again: --config_files={folder / 'best.yaml'}")
    for result in results:
        _drop_older(Path(result.path))


def _drop_older(trial: Path) -> None:
    """Remove all checkpoints of a finished trial except the newest, if they are on a local disk."""
    if trial.is_dir():
        for path in sorted(trial.glob("checkpoint_*"))[:-1]:
            shutil.rmtree(path, ignore_errors=True)


def table(rows: list[dict[str, Any]], plan: Plan, config: Config, settings: dict[str, Any]) -> str:
    """Return the Markdown table of a sweep, best first."""
    overall, tail = _pair(settings, config)
    metrics = [name for name in (overall, tail) if any(f"valid/{name}" in row for row in rows)]
    names = [f"valid {display_name(name)}" for name in metrics]
    header = ["trial", "state", "score", *names, *plan.space, "epochs", "s"]
    cells = [
        [row["trial_id"], row["state"], _shown(row["score"])]
        + [_shown(row.get(f"valid/{name}")) for name in metrics]
        + [_shown(row[key]) for key in plan.space]
        + [_shown(row["epochs"]), "" if row["seconds"] is None else f"{row['seconds']:.0f}"]
        for row in rows
    ]
    text = tabulate(cells, header, "github", disable_numparse=True)
    objective = settings["objective"]
    text += f"\n\nscore: {_in_words(objective['weights'])}"
    if objective.get("at_least"):
        text += f", no validation below {_in_words(objective['at_least'])} (a score below 0 violates it)"
    for row in rows:
        if row["state"] == "failed":
            text += f"\n{row['trial_id']} failed: {row['reason']}"
    return text


def _in_words(values: Any) -> str:
    """Format metrics and their numbers: ``NDCG@10 0.5, Tail NDCG@10 1``."""
    return ", ".join(f"{display_name(str(name).lower())} {_shown(value)}" for name, value in dict(values).items())


def _pair(settings: dict[str, Any], config: Config) -> tuple[str, str]:
    """Return the overall and the tail metric of table and picture."""
    k = config["valid_metric"].partition("@")[2] or str(config["topk"][0])
    return f"ndcg@{k}", group_key("tail", f"ndcg@{k}")


def short(value: Any) -> str:
    """Return a value for a table; a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    return "" if value is None else short(value)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    checkpoint.write_atomically(path, lambda file: file.write(rows_as_csv(rows).encode()), "storage_path")


def _draw(rows: list[dict[str, Any]], plan: Plan, folder: Path, pair: tuple[str, str]) -> None:
    from recbole_pref import plots

    done = [row for row in rows if row["state"] == "done" and row["score"] is not None]
    overall, tail = (f"valid/{name}" for name in pair)
    try:
        if all(overall in row and tail in row for row in done):
            plots.save(plots.sweep_pareto(done, overall, tail), folder / "pareto")
        plots.save(plots.parallel_coordinates(done, list(plan.space), "score"), folder / "parallel_coordinates")
    except PrefError as error:  # matplotlib is optional
        getLogger().warning(f"no pictures: {error}")


def export(result: Result, folder: Path, config: Config, plan: Plan) -> dict[str, float]:
    """Write the winner's checkpoint, its complete settings and its test metrics.

    Args:
        result: the result of the winner.
        folder: the folder of the sweep.
        config: the configuration of the sweep.
        plan: the sweep.

    Returns:
        The test metrics.
    """
    target = folder / "best.pth"
    metrics = result.metrics
    assert metrics is not None and result.checkpoint is not None
    with result.checkpoint.as_directory() as directory:
        best = Path(directory, f"{STEM}-best.pth")
        checkpoint.write_atomically(target, lambda file: file.write(best.read_bytes()), "storage_path")
    state = checkpoint.load(target)
    settings = settings_of(state)
    for key in settings_set_by("sweep"):
        settings.pop(key, None)
    settings["gpu_id"] = config["gpu_id"]  # the trial used the GPU that Ray assigned
    # If the scheduler stopped the trial, train for the same epochs, unless the learning rate depends on their number.
    stopped = metrics["epoch"] < settings["epochs"]
    if stopped and settings.get("lr_scheduler", "none") == "none" and not settings.get("warmup_ratio"):
        settings["epochs"] = metrics["epoch"]
    winner = {"model": state["model"], "dataset": state["config"]["dataset"], **settings}
    text = f"# Best of {plan.trials} trials; run it with --config_files={target.with_suffix('.yaml').name}\n"
    text += yaml.safe_dump(json.loads(json.dumps(winner)), sort_keys=False, allow_unicode=True)
    checkpoint.write_atomically(folder / "best.yaml", lambda file: file.write(text.encode()), "storage_path")
    test = _test(state, target, settings, folder)
    write_result(
        folder / "best.json",
        {
            "trial_id": Path(result.path).name,
            "best_valid_score": metrics["best_score"],
            "best_valid_result": dict(state["best_valid_result"]),
            "test_result": test,
            "settings": winner,
            "environment": environment(config["device"]),
        },
    )
    return test


def _test(state: dict[str, Any], path: Path, settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Evaluate the winner on the test set, which the sweep does not use otherwise."""
    settings = {**settings, "checkpoint_dir": str(folder / "test")}
    run = build_run(Config(state["model"], state["config"]["dataset"], config_dict=settings), log=False)
    metrics = run.trainer.evaluate(run.test_data, model_file=str(path))
    return {name: float(value) for name, value in metrics.items()}
