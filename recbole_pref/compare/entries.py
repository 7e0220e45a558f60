"""What ``--compare`` and ``--seeds`` name: entries and seeds, read from text."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from recbole_pref.errors import PrefError
from recbole_pref.settings.files import FlowLoader, parse_value, shipped

_MOST_SEEDS = 1000  # a larger count is a seed that was meant as a list of one
_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a model with settings of its own.

    Attributes:
        label (str): what the table calls it.
        model (str): model name.
        settings (dict): beside those that all entries share.
    """

    label: str
    model: str
    settings: dict = field(default_factory=dict)


def parse_entries(text):
    """Read what ``--compare`` names: models and YAML files, separated by commas.

    ``LPOSASRec recommended/LPO.yaml tau=0.5`` adds files of settings and settings to a model, later ones win; a
    file in the model's place holds ``model`` and settings, its stem is the label, with its folder where two files have
    the same stem.

    Args:
        text (str): such as ``"CESASRec,LPOSASRec tau=0.5,tuned/rodpo.yaml"``.

    Returns:
        list of Entry

    Raises:
        PrefError: a word that is not understood, a file that cannot be used.
    """
    found = [_parse_entry(part) for part in split_text(text, ",")]
    labels = [entry.label for entry, _ in found]
    return [replace(entry, label=longer) if labels.count(entry.label) > 1 else entry for entry, longer in found]


def split_text(text, separators):
    """Return the parts of a text between separators that stand outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if depth <= 0 and character in separators:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parse_entry(text):
    """Return an entry, and its label with the folder of its file where it has one."""
    first, *rest = split_text(text, " \t\n")
    settings, words = {}, []
    for word in rest:
        if word.endswith(_FILES) and "=" not in word:
            content = _read_settings(word)
            if "model" in content:
                raise PrefError(
                    f"--compare: {word!r} in {text!r} names a model itself: write it in the place of {first!r}, or "
                    "take its line 'model' out."
                )
            settings.update(content)
            words.append(str(Path(word).with_suffix("")))
            continue
        key, equals, value = word.partition("=")
        if not equals:
            raise PrefError(f"--compare: {word!r} in {text!r} is not understood: write key=value or name a YAML file.")
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


def _read_settings(file):
    """Return the settings of a YAML file, data set and seed left out: dict."""
    try:
        content = yaml.load(Path(shipped(file)).read_text(encoding="utf-8"), Loader=FlowLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PrefError(f"--compare: {file!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PrefError(f"--compare: {file!r} holds no settings: write lines such as 'tau: 0.5'.")
    return {key: value for key, value in content.items() if key not in ("dataset", "seed")}  # as best.yaml holds them


def parse_seeds(seeds, first=2020):
    """Return the list of seeds: ``5`` means five from ``first`` on, a list or ``"1,2,3"`` names them.

    Raises:
        PrefError: no whole numbers, none at all, or a count so large that a seed was meant.
    """
    try:
        if isinstance(seeds, str):
            seeds = [int(word) for word in seeds.strip(",").split(",")] if "," in seeds else int(seeds)
        chosen = list(range(first, first + seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    except (TypeError, ValueError):
        raise PrefError(f"--seeds={seeds!r} is not accepted: write a count or a list, 1,2,3.") from None
    if not chosen:
        raise PrefError("--seeds is 0: a comparison needs one seed at least.")
    if isinstance(seeds, int) and seeds > _MOST_SEEDS:
        raise PrefError(
            f"--seeds={seeds} means {seeds} seeds, more than {_MOST_SEEDS}: write --seeds={seeds}, (with a comma) "
            "for that seed alone."
        )
    return list(dict.fromkeys(chosen))
