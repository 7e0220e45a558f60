"""Parse the entries of ``--compare`` and the seeds of ``--seeds``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from recbole_pref.errors import PrefError
from recbole_pref.settings.files import FlowLoader, parse_value, shipped

_MOST_SEEDS = 1000  # a larger number is probably one seed, not a count
_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a model and its settings.

    Attributes:
        label: name in tables.
        model: name of the model.
        settings: settings of this entry, in addition to those of all entries.
    """

    label: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)


def parse_entries(text: str) -> list[Entry]:
    """Parse models and YAML files, separated by commas.

    ``LPOSASRec recommended/LPO.yaml tau=0.5`` adds files of settings and single settings to a model; later ones win.
    An entry may also be a file with ``model`` and settings. Its label is the stem of the file, with the folder if two
    files have the same stem.

    Args:
        text: the entries, such as ``"CESASRec,LPOSASRec tau=0.5,tuned/rodpo.yaml"``.

    Raises:
        PrefError: a word is not valid, or a file cannot be used.
    """
    entries = [_parse_entry(part) for part in split_text(text, ",")]
    labels = [entry.label for entry, _ in entries]
    return [replace(entry, label=longer) if labels.count(entry.label) > 1 else entry for entry, longer in entries]


def split_text(text: str, separators: str) -> list[str]:
    """Split a text at separators that are not inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if depth <= 0 and character in separators:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parse_entry(text: str) -> tuple[Entry, str]:
    """Return an entry, and the label that also names the folder of its file, if it has one."""
    first, *rest = split_text(text, " \t\n")
    settings: dict[str, Any] = {}
    words: list[str] = []
    for word in rest:
        if word.endswith(_FILES) and "=" not in word:
            content = _read_settings(word)
            if "model" in content:
                raise PrefError(
                    f"--compare: {word!r} in {text!r} names a model itself: write it instead of {first!r}, or "
                    "remove its line 'model'."
                )
            settings.update(content)
            words.append(str(Path(word).with_suffix("")))
            continue
        key, equals, value = word.partition("=")
        if not equals:
            raise PrefError(f"--compare: {word!r} in {text!r} is not valid: write key=value or name a YAML file.")
        settings[key] = parse_value(value)
        words.append(word)
    if not first.endswith(_FILES):
        label = " ".join([first, *words])
        return Entry(label, first, settings), label
    content = _read_settings(first)
    if not isinstance(content.get("model"), str):
        raise PrefError(
            f"--compare: {first!r} names no model: add a line such as 'model: LPOSASRec', or write the model before "
            f"the file, 'LPOSASRec {first}'."
        )
    model = content.pop("model")
    stem = Path(first).absolute().with_suffix("")
    label, longer = (" ".join([name, *words]) for name in (stem.name, f"{stem.parent.name}/{stem.name}"))
    return Entry(label, model, {**content, **settings}), longer


def _read_settings(file: str) -> dict[str, Any]:
    """Return the settings of a YAML file, without data set and seed."""
    try:
        content = yaml.load(Path(shipped(file)).read_text(encoding="utf-8"), Loader=FlowLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PrefError(f"--compare: {file!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PrefError(f"--compare: {file!r} holds no settings: write lines such as 'tau: 0.5'.")
    return {key: value for key, value in content.items() if key not in ("dataset", "seed")}  # best.yaml contains both


def parse_seeds(seeds: int | str | Sequence[int], first: int = 2020) -> list[int]:
    """Return the list of seeds. ``5`` means five seeds from ``first``; a list or ``"1,2,3"`` names the seeds.

    Raises:
        PrefError: not whole numbers, no seed, or a count that is probably a seed.
    """
    try:
        if isinstance(seeds, str):
            seeds = [int(word) for word in seeds.strip(",").split(",")] if "," in seeds else int(seeds)
        chosen = range(first, first + seeds) if isinstance(seeds, int) else [int(s) for s in seeds]
    except (TypeError, ValueError):
        raise PrefError(f"--seeds={seeds!r} is not accepted: write a count or a list, 1,2,3.") from None
    if not chosen:
        raise PrefError(f"--seeds={seeds!r} names no seed: a comparison needs at least one.")
    if isinstance(seeds, int) and seeds > _MOST_SEEDS:
        raise PrefError(
            f"--seeds={seeds} means {seeds} seeds, more than {_MOST_SEEDS}: write --seeds={seeds}, (with a comma) "
            "for that seed alone."
        )
    return list(dict.fromkeys(chosen))
