"""Read and check sweep files: the search space, the objective and the algorithms.

A sweep file is YAML with the keys ``space``, ``objective``, ``search``, ``scheduler``, ``num_samples``,
``max_failures`` and ``max_concurrent``. RecBole's text files (``learning_rate loguniform -8,0``) and its dicts by type
are also supported.
"""

import math
import os
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from recbole_pref.errors import PrefError, suggest
from recbole_pref.settings import LINEAR_SETTINGS, SETTINGS, check_setting, is_number, setting_of
from recbole_pref.settings.files import FlowLoader, parse_value, readable_keys, shipped

RANGES = {"uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2}
LISTS = ("choice", "grid")
KINDS = (*RANGES, *LISTS, "fixed")
SEARCHES: dict[str, dict[str, Any]] = {
    # options with their defaults by name
    "random": {},
    "optuna": {},
    "hyperopt": {"n_initial_points": 20},
    "bohb": {},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {},
    "asha": {"grace_epochs": 5, "reduction_factor": 3},
    "hyperband": {"reduction_factor": 3},
    "median": {"grace_epochs": 5, "min_trials": 3},
    "pbt": {"interval_epochs": 5, "quantile": 0.25},
}
# Options of a scheduler or a search are above the first number and at most the second.
_LIMITS = {"reduction_factor": (1, math.inf), "quantile": (0, 0.5)}
TOP_KEYS = (
    "space", "objective", "search", "scheduler", "num_samples", "max_failures", "max_concurrent",
)  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """The domain of one setting: ``kind`` is one of ``KINDS``, ``values`` are its arguments."""

    kind: str
    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """Return the values to check: all values of a list, or both ends of a range."""
        if self.kind in (*LISTS, "fixed"):
            return list(self.values)
        low, high = self.values[:2]
        return [low, high - 1] if self.kind == "randint" else [low, high]

    def nearest(self, value: float) -> float:
        """Return the value of a range that is nearest to ``value``."""
        low, high = self.ends()
        step = {"randint": 1, "quniform": self.values[-1]}.get(self.kind)
        value = round(value / step) * step if step else value
        return min(max(value, low), high)

    def to_ray(self) -> Any:
        """Return Ray Tune's domain."""
        from ray import tune

        if self.kind == "fixed":
            return self.values[0]
        if self.kind == "grid":
            return tune.grid_search(list(self.values))
        if self.kind == "choice":
            return tune.choice(list(self.values))
        return getattr(tune, self.kind)(*self.values)


@dataclass(frozen=True)
class Plan:
    """The checked content of a sweep file.

    Attributes:
        space: the searched settings.
        objective: as in the file; None for ``valid_metric``.
        search, scheduler: names of the algorithms.
        search_options, scheduler_options: all options, with defaults.
        num_samples: number of trials (per point of the grid).
        max_failures: number of restarts of a trial whose process died.
        max_concurrent: largest number of parallel trials; None for as many as possible.
    """

    space: dict[str, Domain]
    objective: Any = None
    search: str = "random"
    search_options: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "none"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 10
    max_failures: int = 3
    max_concurrent: int | None = None

    @property
    def trials(self) -> int:
        """Number of trials of the sweep: ``num_samples`` times the size of the grid."""
        return self.num_samples * math.prod(len(d.values) for d in self.space.values() if d.kind == "grid")


def read_plan(source: str | os.PathLike[str] | dict[str, Any], num_samples: int | None = None) -> Plan:
    """Read and check a sweep file.

    Args:
        source: the file, or its content.
        num_samples: overrides the number in the file.

    Raises:
        PrefError: the file cannot be read; a key, a name or a kind is unknown; a range is empty; a setting does not
            accept a value or a kind of range.
    """
    content = dict(source) if isinstance(source, dict) else _read(source)
    unknown = sorted(set(content) - set(TOP_KEYS))
    if unknown:
        raise PrefError(
            f"tune: {unknown[0]!r} is not a key of a sweep file ({', '.join(TOP_KEYS)}).{suggest(unknown[0], TOP_KEYS)}"
        )
    if not isinstance(content.get("space"), dict) or not content["space"]:
        raise PrefError("tune: space is empty: write a line such as 'tau: {loguniform: [0.05, 2.0]}'.")
    space = {str(key): _domain(str(key), value) for key, value in content["space"].items()}
    for key, domain in space.items():
        _check_key(key)
        _check_values(key, domain)
    search, search_options = _named(content.get("search", "random"), "search", SEARCHES)
    scheduler, scheduler_options = _named(content.get("scheduler", "none"), "scheduler", SCHEDULERS)
    kinds = {domain.kind for domain in space.values()}
    if "grid" in kinds and search != "random":
        raise PrefError(f"tune: grid is not possible with search={search!r}: write choice, or search: random.")
    if kinds <= {"fixed"}:
        raise PrefError("tune: every setting of space is fixed: give one of them a range or a choice.")
    if scheduler == "pbt" and kinds <= {"grid", "fixed"}:
        raise PrefError("tune: scheduler 'pbt' changes settings during training: give one of them a range or a choice.")
    if search == "bohb" and scheduler != "hyperband":
        raise PrefError("tune: search 'bohb' needs scheduler: hyperband.")
    counts: dict[str, Any] = {"num_samples": 10, "max_failures": 3, "max_concurrent": None}
    for key in counts:
        value = content.get(key, counts[key])
        if key == "num_samples" and num_samples is not None:
            value = num_samples
        least = 0 if key == "max_failures" else 1
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not whole and not (value is None and key == "max_concurrent"):
            raise PrefError(f"tune: {key}={value!r} is not accepted: set it to a whole number >= {least}.")
        counts[key] = value
    return Plan(space, content.get("objective"), search, search_options, scheduler, scheduler_options, **counts)


def _read(source: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(shipped(os.fspath(source)))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        candidates = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PrefError(f"tune={str(path)!r} cannot be read: {reason}.{suggest(path, candidates)}") from None
    if path.suffix not in (".yaml", ".yml"):
        return {"space": _recbole_lines(text, path)}
    try:
        content = yaml.load(text, Loader=FlowLoader)
    except yaml.YAMLError as error:
        raise PrefError(f"tune={str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PrefError(f"tune={str(path)!r} must hold 'space:' with a line per setting.")
    by_type = set(content) <= {"choice", "uniform", "quniform", "loguniform"}
    return {"space": _recbole_dict(content, path)} if content and by_type else content


def _recbole_lines(text: str, path: Path) -> dict[str, Any]:
    """Read RecBole's params file: ``name type values`` per line; loguniform has natural logarithms."""
    space: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) < 3:
            raise PrefError(
                f"tune={str(path)!r}, line {number}: {line.strip()!r} does not have RecBole's form "
                "'name type values', such as 'learning_rate loguniform -8,0'."
            )
        name, kind, rest = words[0], words[1], "".join(words[2:])
        values = parse_value(rest if rest.startswith("[") else f"[{rest}]")
        space[name] = _recbole_domain(kind, values, f"tune={str(path)!r}, line {number}")
    return space


def _recbole_dict(content: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        name: _recbole_domain(kind, values, f"tune={str(path)!r}")
        for kind, settings in content.items()
        for name, values in (settings or {}).items()
    }


def _recbole_domain(kind: str, values: Any, where: str) -> dict[str, list[Any]]:
    if kind not in ("choice", "uniform", "quniform", "loguniform") or not isinstance(values, (list, tuple)):
        raise PrefError(f"{where}: {kind} {values!r} is not one of choice, uniform, quniform, loguniform.")
    if kind == "loguniform":
        if not all(isinstance(value, Real) for value in values):
            raise PrefError(f"{where}: loguniform takes two numbers, natural logarithms, not {values!r}.")
        values = [math.exp(value) for value in values]
    return {kind: list(values)}


def _domain(key: str, value: Any) -> Domain:
    if not isinstance(value, dict):
        return Domain("fixed", (value,))
    if len(value) != 1:
        raise PrefError(f"tune: {key}: {value!r} must name one of {', '.join(KINDS)}.")
    ((kind, values),) = value.items()
    if kind not in KINDS:
        raise PrefError(f"tune: {key}: {kind!r} is not one of {', '.join(KINDS)}.{suggest(kind, KINDS)}")
    if kind == "fixed":
        return Domain(kind, (values,))
    if not isinstance(values, (list, tuple)) or not values:
        raise PrefError(f"tune: {key}: {kind} takes a list, not {values!r}.")
    values = tuple(values)
    if kind in RANGES:
        _check_range(key, kind, values)
    return Domain(kind, values)


def _check_range(key: str, kind: str, values: Any) -> None:
    n_arguments = RANGES[kind]
    if len(values) != n_arguments or not all(map(is_number, values)):
        names = "low, high" + (", step" if n_arguments == 3 else "")
        raise PrefError(f"tune: {key}: {kind} takes [{names}] as numbers, not {list(values)!r}.")
    low, high = values[:2]
    if low >= high:
        raise PrefError(f"tune: {key}: {kind} {list(values)!r} is empty: set a low end below the high end.")
    if kind == "loguniform" and low <= 0:
        raise PrefError(f"tune: {key}: loguniform needs a low end above 0, not {low!r}.")
    if kind == "quniform" and not 0 < values[2] <= high - low:
        raise PrefError(f"tune: {key}: quniform needs a step above 0, within the range, not {values[2]!r}.")
    if kind == "quniform" and any(not math.isclose(end / values[2], round(end / values[2])) for end in (low, high)):
        raise PrefError(f"tune: {key}: quniform {list(values)!r} needs ends that are multiples of the step.")
    if kind == "randint" and any(value != int(value) for value in values):
        raise PrefError(f"tune: {key}: randint takes whole numbers, not {list(values)!r}.")


def _check_key(key: str) -> None:
    readable = readable_keys()
    if key not in readable:
        raise PrefError(f"tune: {key} is not a setting of RecBole or RecBole-Pref.{suggest(key, readable)}")


def _check_values(key: str, domain: Domain) -> None:
    setting = setting_of(key)
    fractions = domain.kind in ("uniform", "loguniform") or domain.kind == "quniform" and domain.values[2] % 1
    if fractions and setting is not None and setting.kind is int:
        raise PrefError(
            f"tune: {key} takes whole numbers, but {domain.kind} {list(domain.values)!r} draws fractions: write "
            "randint: [low, above the highest], quniform with a whole step, or choice."
        )
    for value in domain.ends():
        value = as_setting(key, value)
        if key in LINEAR_SETTINGS and LINEAR_SETTINGS[key].accepts(value):
            continue  # whether the model is one of those shows in the corners
        if key in SETTINGS or value is not None:
            check_setting(key, value)


def as_setting(key: str, value: Any) -> Any:
    """Convert a sampled value to a plain Python value; settings with whole numbers get an int.

    Args:
        key: the setting.
        value: a value of Ray, Optuna or numpy.
    """
    value = value.item() if hasattr(value, "item") else value
    setting = setting_of(key)
    if setting is not None and setting.kind is int and isinstance(value, float) and value == int(value):
        return int(value)
    return value


def _named(value: Any, key: str, choices: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Parse ``asha`` or ``{name: asha, grace_epochs: 3}`` to the name and all options."""
    options: Any = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or "name" not in options:
        raise PrefError(f"tune: {key}={value!r} names none of {', '.join(choices)}.")
    name = options["name"]
    if name not in choices:
        raise PrefError(f"tune: {key}={name!r} is not one of {', '.join(choices)}.{suggest(name, choices)}")
    options = {option: v for option, v in options.items() if option != "name"}
    for option, number in options.items():
        if option not in choices[name]:
            raise PrefError(
                f"tune: {option!r} is not an option of {key} {name!r} ({', '.join(choices[name]) or 'none'})."
                f"{suggest(option, choices[name])}"
            )
        above, most = _LIMITS.get(option, (0, math.inf))
        if not is_number(number) or not above < number <= most:
            end = "" if most == math.inf else f" and at most {most}"
            raise PrefError(f"tune: {option}={number!r} is not accepted: set it to a number above {above}{end}.")
    return name, {**choices[name], **options}
