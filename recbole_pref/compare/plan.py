"""The runs of a comparison, planned and checked before the first one is trained."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from recbole.utils import EvaluatorType, ModelType

from recbole_pref import checkpoint
from recbole_pref.compare.entries import Entry, parse_seeds
from recbole_pref.compare.tables import column_key
from recbole_pref.config import Config, absolute_paths, digest_of_defaults
from recbole_pref.environment import write_result
from recbole_pref.errors import PrefError
from recbole_pref.evaluation.ranking import history_is_masked
from recbole_pref.quick_start import check_files
from recbole_pref.records import run_path
from recbole_pref.records.summary import COSTS
from recbole_pref.settings import attribute_of_settings, check_setting, settings_with
from recbole_pref.training import reference

_READS = settings_with(reloads_data=True) | settings_with(filters=True)
_LABEL_PART = 80  # characters of the label in the name of a run, which is a file's name


@dataclass(frozen=True)
class Task:
    """One run of a comparison.

    Attributes:
        id: stem of its files.
        settings: of the entry and those of all entries, the seed included.
        folder: of the comparison.
        defaults: digest of the property files that the run is planned with.
        asks: key of the reference that the run starts from, or None.
        offers: key under which the run can serve as a reference, or None.
        epochs: most epochs that the run trains.
    """

    id: str
    label: str
    model: str
    dataset: str
    seed: int
    settings: dict
    folder: str
    defaults: str
    asks: dict | None = None
    offers: dict | None = None
    epochs: int = 0

    @property
    def log(self) -> Path:
        """Return the file of the run's log."""
        return Path(self.folder, "logs", f"{self.id}.log")

    @property
    def record(self) -> Path:
        """Return the JSON file that the finished run leaves."""
        return run_path(self.folder, self.id)

    def write(self) -> Path:
        """Write the task's file, which :meth:`read` takes, and return its path."""
        path = Path(self.folder, "tasks", f"{self.id}.json")
        write_result(path, asdict(self), "output")
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Task":
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def plan_runs(
    entries: list[Entry],
    dataset: str,
    seeds: int | str | list[int],
    files: list[str] | None,
    shared: dict,
    folder: Path,
    columns: list[str] | None = None,
) -> list[Task]:
    """Return one task per entry and seed, every configuration, the columns and the data checked.

    Raises:
        PrefError: a mistake in any of them, or entries that one table cannot hold.
    """
    tasks, first_config, first_measured, first_seed = [], None, None, None
    reads = {}  # what decides which columns an entry needs -> a configuration
    for entry in entries:
        config, settings = _configure(entry, dataset, files, shared)
        measured = _measured(config)
        if first_config is None:
            first_config, first_measured, first_seed = config, measured, config["seed"]
            _check_columns(columns or (), config)
        if _test_row(config) != _test_row(first_config):
            raise PrefError(
                f"--compare: with eval_args split {config['eval_args']['split']} a test row is {_test_row(config)} for "
                f"{entry.label} and {_test_row(first_config)} for {entries[0].label}: one table needs the same, which "
                "split {LS: valid_and_test} gives."
            )
        for what, value in measured.items():
            if value != first_measured[what]:
                raise PrefError(
                    f"--compare: {entry.label} has {what} {value!r}, the first entry {first_measured[what]!r}: one "
                    f"table needs the same, set it for all with --{what.rpartition(' ')[2]}=... on the command line."
                )
        needed = [config["MODEL_TYPE"], config["load_col"], *(config[key] for key in sorted(_READS))]
        reads.setdefault(repr(needed), config)
        defaults = digest_of_defaults(config)
        asks, offers = reference.key_asked(config), reference.key_offered(config)
        for seed in parse_seeds(seeds, first_seed):
            check_setting("seed", seed)
            own = {**settings, "seed": seed}
            name = _name_of(entry, dataset, own, defaults)
            tasks.append(
                Task(name, entry.label, entry.model, dataset, seed, own, str(folder), defaults,
                     _of_seed(asks, seed), _of_seed(offers, seed), config["epochs"])
            )  # fmt: skip
    check_different([task.id for task in tasks])
    if not all(task.record.is_file() for task in tasks):
        for config in reads.values():
            config["checkpoint_dir"] = str(folder / "checkpoints" / tasks[0].id)  # where a run looks for pickles
            check_files(config)
    return tasks


def check_different(names: list[str]) -> None:
    """Refuse a name that occurs twice."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PrefError(f"--compare names {twice!r} twice: keep one of them.")


def _configure(entry, dataset, files, shared):
    """Return the configuration of an entry and the settings that its runs are given."""
    for key, way in attribute_of_settings("shared_by_table").items():
        if key in entry.settings:
            raise PrefError(f"--compare: {entry.label!r} sets {key}, which no entry has for itself: {way}.")
    settings = {**shared, **entry.settings}
    config = Config(entry.model, dataset, files, dict(settings))
    config.refuse_unread(entry.settings, f"--compare: {entry.label!r}: ")
    if config["eval_type"] != EvaluatorType.RANKING:
        raise PrefError(
            f"--compare: {entry.label} has metrics={config['metrics']}, which measure no ranking: name NDCG or "
            "the like, and a valid_metric among them."
        )
    if files:  # the runs are given one dict: paths of files may not outlive this process
        settings = {**config.file_config_dict, **settings}
        settings = {key: value for key, value in settings.items() if key not in ("model", "dataset")}
    return config, settings | absolute_paths(config)  # the runs' working folder is another one


def _name_of(entry, dataset, settings, defaults):
    """Return the name of a run: its label, its seed, and a digest of all that it is made of."""
    unnamed = settings_with(scope="run") - {"seed"}
    lasting = {key: value for key, value in settings.items() if key not in unnamed}
    made_of = [entry.model, dataset, checkpoint.to_plain(lasting, other=str), defaults]
    label = re.sub(r"[^A-Za-z0-9.=_-]+", "_", entry.label)[:_LABEL_PART]
    if label != entry.label.replace(" ", "_"):
        made_of.append(entry.label)  # two labels may have the same name
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    return f"{label}-seed{settings['seed']}-{digest}"


def _test_row(config):
    """Return what RecBole's test rows hold, in words."""
    args = config["eval_args"]
    row_by_row = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and args["mode"]["test"] == "full"
    alone = row_by_row or "LS" in args["split"]
    return "one target" if alone else "a user with all targets"


def _measured(config):
    """Return what must be the same for all entries of a table: name to value."""
    at = str(config["valid_metric"]).partition("@")[2]
    same = {"metrics": sorted(map(str.lower, config["metrics"])), "cut-off of valid_metric": at}
    same["first of topk"] = "" if at else config["topk"][0]  # which the table shows then
    same |= {key: config[key] for key in settings_with(same_in_table=True)}
    return same | {"mask_history": history_is_masked(config)}


def _check_columns(columns, config):
    """Refuse a column that the runs of a configuration do not measure."""
    metrics = {metric.lower() for metric in config["metrics"]}
    for column in columns:
        name, _, cutoff = column_key(column).partition("@")
        if name not in COSTS and not (name in metrics and cutoff in ("", *map(str, config["topk"]))):
            raise PrefError(
                f"--columns={column!r} is not measured: choose from metrics={config['metrics']} at "
                f"topk={config['topk']}, and {', '.join(COSTS)}."
            )


def _of_seed(key, seed):
    return key and {**key, "training": {**key["training"], "seed": seed}}
