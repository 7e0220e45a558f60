"""``Setting``: the accepted values and the uses of one key of the configuration."""

import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from recbole_pref.errors import PrefError, suggest

LARGEST = 2**63 - 1  # of torch.int64
_LARGEST_FLOAT = 3.4e38  # torch's float32
UNSET: Any = object()


@dataclass(frozen=True)
class Setting:
    """All facts about one key, except its default and its explanation (``properties/``).

    Attributes:
        kind: ``float``, ``int``, ``bool``, ``str``, ``list`` (of names) or ``dict`` (with names as keys); None if
            RecBole checks the value.
        low, high, open_low, open_high: range of a number. Numbers are finite.
        choices: accepted words. A ``str`` accepts only these; other kinds accept them in addition to their values.
            A view of a registry (``SAMPLERS.keys()``) includes later additions.
        nullable: ``~``, an empty list and an empty mapping are accepted.
        flag: True and False are accepted in addition to a text.
        filled: an empty text is refused.
        scope: ``run`` (a name or a machine setting that does not change the trained model), ``data``, ``training``,
            ``evaluation``, or ``option`` (an option of the command line, without effect in a file).
        filters: the setting removes interactions.
        reloads_data: the data set must be loaded again when the value changes.
        names_column: the value is the name of a column; two columns must not share a name.
        of_our_models: only ``<Method><Backbone>`` models read the setting; ``off`` is the value that disables it.
        shapes_reference: an automatically trained reference model depends on the value.
        in_reference: the value with which a reference model is trained, whatever the value of the run is.
        free_on_resume: a resumed run may have another value.
        derived: the value is computed by RecBole or belongs to one run; it is not taken over from a checkpoint.
        same_in_table: all models of a comparison need the same value.
        shared_by_table: a comparison has one value for all models; the text says how to set it.
        shared_by_trials: all trials of a sweep share the value; the text says what to do instead of a search.
        any_case: a word may be written in upper or lower case.
        path: the value is a path; a leading ``~`` is expanded.
        set_by: the callers that set it instead of the user: ``comparison``, ``sweep``.
    """

    kind: type | None = None
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    choices: Collection[str] = ()
    nullable: bool = False
    flag: bool = False
    filled: bool = False
    scope: str = "training"
    filters: bool = False
    reloads_data: bool = False
    names_column: bool = False
    of_our_models: bool = False
    off: Any = None
    shapes_reference: bool = False
    in_reference: Any = UNSET
    free_on_resume: bool = False
    derived: bool = False
    same_in_table: bool = False
    shared_by_table: str = ""
    shared_by_trials: str = ""
    any_case: bool = False
    path: bool = False
    set_by: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the accepted values in words, for messages and the documentation."""
        if self.kind is str and self.choices:
            return "one of " + ", ".join(self.choices)
        words: dict[type | None, str] = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}
        words[list] = "a name or a list of names"
        words[dict] = "a mapping such as {name: value}"
        text = words[self.kind] + (" that is not empty" if self.filled else "")
        if self.low != float("-inf"):
            text += f" {'above' if self.open_low else 'of at least'} {self.low:g}"
        if self.high != float("inf"):
            joint = " and" if self.low != float("-inf") else ""
            text += f"{joint} {'below' if self.open_high else 'at most'} {self.high:g}"
        if self.choices:
            text += " or " + ", ".join(f"'{choice}'" for choice in self.choices)
        if self.flag:
            text += " or True or False"
        return text + (" or empty (~)" if self.nullable else "")

    def accepts(self, value: Any) -> bool:
        """Return whether ``value`` is allowed."""
        if self.kind is None:
            return True
        if value is None:
            return self.nullable
        if isinstance(value, str) and self.choices and self.kind is not list:
            return (value.lower() if self.any_case else value) in self.choices
        if self.kind is list:
            names = [value] if isinstance(value, str) else value
            full = self.nullable or names
            return isinstance(names, (list, tuple)) and bool(full) and all(map(_is_name, names))
        if self.kind is dict:
            return isinstance(value, dict) and all(map(_is_name, value)) and (self.nullable or bool(value))
        if isinstance(value, bool):
            return self.flag or self.kind is bool
        if self.kind is str:
            return isinstance(value, str) and _is_line(value) and not (self.filled and not value)
        if self.kind is bool or not is_finite(value):
            return False
        if self.kind is int and (int(value) != value or abs(value) > LARGEST):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not allowed.

        Args:
            name: name of the setting in the message.
            value: the value to check.

        Raises:
            PrefError: names the setting, the value, the accepted values and the nearest choice.
        """
        if not self.accepts(value):
            hint = suggest(value, self.choices) if isinstance(value, str) else ""
            raise PrefError(f"{name}={shown(value)} is not accepted: set it to {self.describe()}.{hint}")


def words(*choices: str, **attributes: Any) -> Setting:
    """Return a setting that accepts only these words."""
    return Setting(str, choices=choices, **attributes)


class Names(Collection[str]):
    """The names in a registry, later additions included. The first use imports its module.

    Args:
        module: import path of the module.
        registry: name of a mapping in it.
    """

    def __init__(self, module: str, registry: str) -> None:
        self._module, self._registry = module, registry

    def _names(self) -> Collection[str]:
        return getattr(importlib.import_module(self._module), self._registry).keys()

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


def one_of(module: str, registry: str, **attributes: Any) -> Setting:
    """Return a setting that accepts the names in a registry, see :class:`Names`."""
    return Setting(str, choices=Names(module, registry), **attributes)


def weight(**attributes: Any) -> Setting:
    """Return a setting that accepts numbers of at least 0."""
    return Setting(float, low=0.0, **attributes)


def positive(**attributes: Any) -> Setting:
    """Return a setting that accepts numbers above 0."""
    return Setting(float, low=0.0, open_low=True, **attributes)


def share(**attributes: Any) -> Setting:
    """Return a setting that accepts numbers between 0 and 1, both excluded."""
    return Setting(float, low=0.0, high=1.0, open_low=True, open_high=True, **attributes)


def count(**attributes: Any) -> Setting:
    """Return a setting that accepts whole numbers of at least 1."""
    return Setting(int, low=1, **attributes)


def flag(**attributes: Any) -> Setting:
    """Return a setting that accepts True and False."""
    return Setting(bool, **attributes)


def text(**attributes: Any) -> Setting:
    """Return a setting that accepts a text that is not empty."""
    return Setting(str, filled=True, **attributes)


def names(**attributes: Any) -> Setting:
    """Return a setting that accepts a name, a list of names, or nothing."""
    return Setting(list, nullable=True, **attributes)


def table(**attributes: Any) -> Setting:
    """Return a setting that accepts a mapping by names, or nothing."""
    return Setting(dict, nullable=True, **attributes)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _is_line(value)


def _is_line(text: str) -> bool:
    return len(text) <= 1000 and not set(text) & set("\0\n\r")


def is_finite(value: Any) -> bool:
    """Return whether a value is a number in the range of float32."""
    try:
        return isinstance(value, Real) and abs(float(value)) <= _LARGEST_FLOAT
    except OverflowError:  # a whole number beyond the range of a float
        return False


def is_number(value: Any) -> bool:
    """Return whether a value is a number as :func:`is_finite` accepts, but not True or False."""
    return is_finite(value) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Format a value for a message: its ``repr`` on one line, shortened if it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number or a nesting that Python does not print
        return f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def plain_value(value: Any) -> Any:
    """Copy a value and convert it to plain Python types: numpy scalars to numbers, tuples and arrays to lists."""
    if isinstance(value, dict):
        return {plain_value(key): plain_value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(part) for part in value]
    return plain_value(value.tolist()) if hasattr(value, "tolist") else value  # numpy's
