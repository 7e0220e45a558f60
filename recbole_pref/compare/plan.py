"""Plan and check the runs of a comparison before the first one is trained."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recbole.utils import EvaluatorType, ModelType

from recbole_pref import checkpoint
from recbole_pref.build import check_files
from recbole_pref.compare.entries import Entry, parse_seeds
from recbole_pref.compare.tables import column_key
from recbole_pref.config import Config, absolute_paths, digest_of_defaults
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.records import run_path
from recbole_pref.records.summary import COSTS
from recbole_pref.settings import attribute_of_settings, check_setting, settings_with
from recbole_pref.training import reference

_READS = settings_with(reloads_data=True) | settings_with(filters=True)
_LABEL_PART = 80  # characters of the label in the name of a run, which is also a file name


@dataclass(frozen=True)
class Task:
    """One run of a comparison.

    Attributes:
        id: stem of the names of its files.
        settings: settings of the entry and of all entries, with the seed.
        folder: the comparison folder.
        defaults: digest of the property files when the run was planned.
        needs: key of the reference that the run starts from, or None.
        provides: key under which the run can serve as a reference, or None.
        epochs: largest number of epochs of the run.
    """

    id: str
    label: str
    model: str
    dataset: str
    seed: int
    settings: dict[str, Any]
    folder: str
    defaults: str
    needs: dict[str, Any] | None = None
    provides: dict[str, Any] | None = None
    epochs: int = 0

    @property
    def log(self) -> Path:
        """Path of the log of the run."""
        return Path(self.folder, "logs", f"{self.id}.log")

    @property
    def record(self) -> Path:
        """Path of the JSON file of the finished run."""
        return run_path(self.folder, self.id)

    def write(self) -> Path:
        """Write the file of the task, see :meth:`read`, and return its path."""
        path = Path(self.folder, "tasks", f"{self.id}.json")
        write_result(path, asdict(self), "output")
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Task":
        """Read a file of :meth:`write`."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def plan_runs(
    entries: list[Entry],
    dataset: str,
    seeds: int | str | list[int],
    files: list[str] | None,
    shared: dict[str, Any],
    folder: Path,
    columns: list[str] | None = None,
) -> list[Task]:
    """Return one task per entry and seed. Check every configuration, the columns and the data files.

    Raises:
        PrefError: one of them is not valid, or the entries do not fit in one table.
    """
    tasks: list[Task] = []
    configured = [(entry, *_configure(entry, dataset, files, shared)) for entry in entries]
    first_config = configured[0][1]
    first_measured, first_seed = _measured(first_config), first_config["seed"]
    _check_columns(columns or (), first_config)
    reads: dict[str, Config] = {}  # what decides which columns an entry needs -> a configuration
    for entry, config, settings in configured:
        if _test_row(config) != _test_row(first_config):
            raise PrefError(
                f"--compare: with eval_args split {config['eval_args']['split']}, a test row is {_test_row(config)} "
                f"for {entry.label} and {_test_row(first_config)} for {entries[0].label}: one table needs equal test "
                "rows, use split {LS: valid_and_test}."
            )
        for key, value in _measured(config).items():
            if value != first_measured[key]:
                what = _PART_OF.get(key, key)
                raise PrefError(
                    f"--compare: {entry.label} has {what} {value!r}, the first entry {first_measured[key]!r}: one "
                    f"table needs the same value, set it for all with --{key}=... on the command line."
                )
        needed = [config["MODEL_TYPE"], config["load_col"], *(config[key] for key in sorted(_READS))]
        reads.setdefault(repr(needed), config)
        defaults = digest_of_defaults(config)
        needs, provides = reference.needed_key(config), reference.serving_key(config)
        for seed in parse_seeds(seeds, first_seed):
            check_setting("seed", seed)
            seeded = {**settings, "seed": seed}
            name = _name_of(entry, dataset, seeded, defaults)
            tasks.append(
                Task(
                    id=name, label=entry.label, model=entry.model, dataset=dataset, seed=seed, settings=seeded,
                    folder=str(folder), defaults=defaults, needs=_of_seed(needs, seed),
                    provides=_of_seed(provides, seed), epochs=config["epochs"],
                )
            )  # fmt: skip
    check_different([task.id for task in tasks])
    if not all(task.record.is_file() for task in tasks):
        for config in reads.values():
            config["checkpoint_dir"] = str(folder / "checkpoints" / tasks[0].id)  # of pickled data sets
            check_files(config)
    return tasks


def check_different(names: list[str]) -> None:
    """Refuse a name that occurs twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PrefError(f"--compare names {twice!r} twice: keep one of them.")


def _configure(
    entry: Entry, dataset: str, files: list[str] | None, shared: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """Return the configuration of an entry and the settings of its runs."""
    for key, way in attribute_of_settings("shared_by_table").items():
        if key in entry.settings:
            raise PrefError(f"--compare: {entry.label!r} sets {key}, which all entries share: {way}.")
    settings = {**shared, **entry.settings}
    config = Config(entry.model, dataset, files, dict(settings))
    config.refuse_unread(entry.settings, f"--compare: {entry.label!r}: ")
    if config["eval_type"] != EvaluatorType.RANKING:
        raise PrefError(
            f"--compare: {entry.label} has metrics={config['metrics']}, which do not measure a ranking: set "
            "metrics to ranking metrics such as NDCG, and valid_metric to one of them."
        )
    if files:  # merge files and settings: temporary files may not exist when a run starts
        settings = {**config.file_config_dict, **settings}
        settings = {key: value for key, value in settings.items() if key not in ("model", "dataset")}
    return config, settings | absolute_paths(config)  # the runs have another working folder


def _name_of(entry: Entry, dataset: str, settings: dict[str, Any], defaults: str) -> str:
    """Return the name of a run: its label, its seed, and a digest of its settings and defaults."""
    unnamed = settings_with(scope="run") - {"seed"}
    named = {key: value for key, value in settings.items() if key not in unnamed}
    parts = [entry.model, dataset, checkpoint.to_plain(named, other=str), defaults]
    label = re.sub(r"[^A-Za-z0-9.=_-]+", "_", entry.label)[:_LABEL_PART]
    if label != entry.label.replace(" ", "_"):
        parts.append(entry.label)  # two labels may be shortened to the same text
    return f"{label}-seed{settings['seed']}-{checkpoint.short_digest(parts, 8)}"


def _test_row(config: Config) -> str:
    """Describe a test row of RecBole."""
    args = config["eval_args"]
    row_by_row = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and args["mode"]["test"] == "full"
    single = row_by_row or "LS" in args["split"]
    return "one target" if single else "a user with all targets"


# The part of a setting that must be equal for all entries of a table, in words.
_PART_OF = {"valid_metric": "cut-off of valid_metric", "topk": "first of topk"}


def _measured(config: Config) -> dict[str, Any]:
    """Return the values that must be equal for all entries of a table, by setting."""
    cutoff = str(config["valid_metric"]).partition("@")[2]
    same = {"metrics": sorted(map(str.lower, config["metrics"])), "valid_metric": cutoff}
    same["topk"] = "" if cutoff else config["topk"][0]  # the cut-off of the table in this case
    same |= {key: config[key] for key in settings_with(same_in_table=True)}
    return same | {"mask_history": history_is_masked(config)}


def _check_columns(columns: Iterable[str], config: Config) -> None:
    """Refuse a column that the runs of a configuration do not measure."""
    metrics = {metric.lower() for metric in config["metrics"]}
    for column in columns:
        name, _, cutoff = column_key(column).partition("@")
        if name not in COSTS and not (name in metrics and cutoff in ("", *map(str, config["topk"]))):
            raise PrefError(
                f"--columns={column!r} is not measured: choose from metrics={config['metrics']} at "
                f"topk={config['topk']}, and {', '.join(COSTS)}."
            )


def _of_seed(key: dict[str, Any] | None, seed: int) -> dict[str, Any] | None:
    return key and {**key, "training": {**key["training"], "seed": seed}}
