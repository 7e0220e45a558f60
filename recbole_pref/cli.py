"""The command line: ``run_recbole_pref.py`` and ``recbole-pref``.

Its modes are subcommands, ``recbole-pref compare CESASRec,LPOSASRec``; each may also be written as an option,
``recbole-pref --compare=CESASRec,LPOSASRec``. Without a mode, a model is trained. All other words are settings.
Modules that import torch are imported late, so that help and lists are fast.
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from recbole_pref.errors import Interrupted, PrefError, report, suggest
from recbole_pref.startup import garbage_collection_paused
from recbole_pref.version import __version__

DEFAULT_MODEL, DEFAULT_DATASET = "LPOSASRec", "ml-100k"
EXAMPLES = """
examples:
  recbole-pref --model=LPOSASRec
  recbole-pref --model=SDPOGRU4Rec --dataset=amazon-beauty --data_path=dataset/
  recbole-pref --model=LPOSASRec --config_files="my.yaml more.yaml" --tau=0.5 --seed=7
  recbole-pref --model=LPOSASRec --resume=True
  recbole-pref --predict=saved/NAME-best.pth --input=sequences.csv --output=top.csv --k=10
  recbole-pref --compare=CESASRec,LPOSASRec,SDPOSASRec --seeds=5 --processes=2
  recbole-pref --model=LPOSASRec --tune=properties/tune/lpo.yaml --num_samples=20
  recbole-pref --list
  recbole-pref --list=DynamicPO

Without a mode, a model is trained. A mode may also be written as an option: --compare=MODELS is compare MODELS.
recbole-pref MODE --help lists the options of a mode. Any other --key=value is a setting of RecBole or RecBole-Pref;
the command line overrides files, and files override defaults. In a checkout of the source, the same command is
python run_recbole_pref.py.
Exit code: 0 for success, 2 for an error in the input (with a message), 130 after Ctrl-C or SIGTERM.
"""
MODES = {
    "train": "train and test a model (the default)",
    "compare": "train several models with several seeds; tables, tests of significance, report",
    "tune": "search for the best settings with Ray Tune",
    "predict": "recommend for sequences or users with a trained model",
    "export": "write vectors, indexes and the query encoder of a trained model, for serving",
    "plots": "draw the charts and the report of a comparison again",
    "list": "print methods, backbones and settings",
}
# Options without a value.
_FLAGS = ("--debug", "--quiet", "--keep_seen", "--dot_product_only", "--estimate", "--help", "--version")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PrefError(f"{message}; --help lists the options.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse would use the last of several values.
        words = [word.partition("=")[0] for word in args if word.startswith("-")]
        for action in self._actions:
            if sum(word in action.option_strings for word in words) > 1:
                raise PrefError(f"{action.option_strings[0]} is given twice: keep one of them.")
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the modes and their options."""
    parser = _Parser(
        prog="recbole-pref",
        description="Preference optimization for sequential recommendation on RecBole.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="modes", dest="mode", metavar="MODE")
    for mode, title in MODES.items():
        _add_options(
            subparsers.add_parser(mode, help=title, description=f"{title[0].upper()}{title[1:]}.", allow_abbrev=False),
            mode,
        )
    return parser


def _add_options(parser: argparse.ArgumentParser, mode: str) -> None:
    add, path = parser.add_argument, os.path.expanduser
    if mode in ("train", "tune"):
        add("--model", "-m", help=f"<Method><Backbone> or a model of RecBole ({DEFAULT_MODEL})")
    if mode in ("train", "tune", "compare"):
        add("--dataset", "-d", help=f"name of the data set ({DEFAULT_DATASET})")
        add("--config_files", type=split_paths,
            help="YAML files, separated by spaces; also files of the package (recommended/LPO.yaml)")  # fmt: skip
    if mode in ("train", "tune"):
        add("--resume", nargs="?", const="True", type=path, metavar="PATH",
            help="continue the sweep" if mode == "tune" else "continue from the newest checkpoint or PATH")  # fmt: skip
    if mode == "train":
        add("--estimate", action="store_true", help="print memory and time of the run from a few steps; train nothing")
        add("--nproc", type=int, default=1, help="processes on this machine that train together (1)")
        add("--world_size", type=int, default=-1, help="processes on all machines; -1 for nproc")
        add("--ip", default="localhost", help="address of the machine with the first process (localhost)")
        add("--port", help="port on that machine (a free one; 5678 for several machines)")
        add("--group_offset", type=int, default=0, help="rank of this machine's first process (0)")
        add("--ray_address", help="auto or HOST:PORT of a running Ray cluster on which --num_workers train")
        add("--num_workers", type=int, help="workers of the Ray cluster that train together")
        add("--cpus_per_worker", type=float, help="CPUs and threads of a worker (1)")
        add("--gpus_per_worker", type=float, help="GPUs of a worker (0)")
        add("--max_failures", type=int, help="restarts after a lost worker or machine (3)")
    if mode == "compare":
        add("compare", metavar="MODELS", type=_expanded, help="models and YAML files, separated by commas")
        add("--seeds", default="5", help="number of seeds, or a list 1,2,3 (5)")
        add("--processes", type=int, default=1, help="number of parallel runs (1)")
        add("--baseline", help="label with which the others are compared (the first)")
        add("--test", default="t-test", help="t-test or bootstrap (t-test)")
        add("--columns", help="metrics and costs of the tables, separated by commas (all)")
        add("--output", type=path, help="folder of the results")
    if mode == "tune":
        add("tune", metavar="FILE", type=path, help="sweep file with the search space (docs/tuning.md)")
        add("--num_samples", type=int, help="number of trials; overrides the file")
        add("--storage_path", default="tune", type=path, help="folder or URI that all machines can access (tune)")
        add("--name", help="folder of the sweep in --storage_path (<model>-<dataset>)")
        add("--ray_address", help="auto or HOST:PORT of a running Ray cluster")
        add("--cpus_per_trial", type=float, help="CPUs and threads of a trial (1)")
        add("--gpus_per_trial", type=float, help="GPUs of a trial; may be a fraction (0)")
        add("--num_workers", type=int, help="workers that train a trial together")
        add("--cpus_per_worker", type=float, help="CPUs and threads of a worker (1)")
        add("--gpus_per_worker", type=float, help="GPUs of a worker (0)")
        add("--quiet", action="store_true", help="print one line per finished trial instead of a live table")
    if mode == "predict":
        add("predict", metavar="CHECKPOINT", type=path, help="file of a trained model")
        add("--input", type=path, help="CSV or Parquet file with 'items', 'user' and 'item', or 'user'")
        add("--output", type=path, help="CSV or Parquet file to write")
        add("--k", type=int, default=10, help="items per sequence or user (10)")
        add("--keep_seen", action="store_true", help="recommend seen items as well")
        add("--unknown", choices=("error", "skip"), default="error", help="how to treat unknown items or users (error)")
        add("--device", default="cpu", help="a device of torch such as cuda:0 (cpu); training uses gpu_id")
        add("--data_path", type=path, help="folder of the data sets, if the model needs its data")
        add("--piece_rows", type=int, help="sequences or users in memory at the same time (50000)")
        add("--ray_address", help="auto or HOST:PORT of a running Ray cluster that reads the file in parallel")
        add("--cpus_per_worker", type=float, help="CPUs and threads of a Ray task (1)")
        add("--gpus_per_worker", type=float, help="GPUs of a Ray task (0)")
    if mode == "export":
        add("export", metavar="FOLDER", type=path, help="folder to write")
        add("--checkpoint", type=path, help="file of a trained model")
        add(
            "--input",
            type=path,
            help="CSV or Parquet file of sequences on which the recall of the HNSW index is measured",
        )
        add("--dot_product_only", action="store_true",
            help="ignore parts of the score that vectors cannot represent, such as repeat_bias")  # fmt: skip
        add("--data_path", type=path, help="folder of the data sets, if the model needs its data")
    if mode == "plots":
        add("plots", metavar="FOLDER", type=path, help="folder of the comparison")
    if mode == "list":
        add("list", metavar="METHOD", nargs="?", default="all", help="show only the settings of this method")
    add("--plugins", type=_expanded, help="Python files with your own methods, separated by commas (docs/extending.md)")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="store_true", help="print the version")


def _expanded(text: str) -> str:
    """Replace ``~`` at the beginning of each path in a text by the home folder."""
    return re.sub(r"(?<![^\s,])~[^\s,]*", lambda path: os.path.expanduser(path[0]), text)


def split_paths(text: str) -> list[str]:
    """Return the paths in a text, which spaces separate, with ``~`` as the home folder."""
    return _expanded(text).split()


def _joined(words: list[str]) -> list[str]:
    """Write ``--epochs 1`` as ``--epochs=1``."""
    joined: list[str] = []
    for word in words:
        last = joined[-1] if joined else ""
        needs_value = last.startswith("--") and "=" not in last and last not in _FLAGS
        if needs_value and (not word.startswith("-") or re.match(r"-[\d.]", word)):
            joined[-1] = f"{last}={word}"
        else:
            joined.append(word)
    return joined


def _mode_first(words: list[str]) -> list[str]:
    """Move the mode of a command line to the front: ``--compare=A,B`` becomes ``compare A,B``."""
    named = [word for word in words if word.startswith("--") and word[2:].partition("=")[0] in MODES.keys() - {"train"}]
    modes = [word[2:].partition("=")[0] for word in named]
    if words and words[0] in MODES:
        modes.insert(0, words[0])
    if len(modes) > 1:
        if modes[0] == modes[1]:
            raise PrefError(f"--{modes[0]} is given twice: keep one of them.")
        raise PrefError(f"--{modes[0]} and --{modes[1]} are two modes: keep one of them.")
    if not modes:
        return ["--help"] if {"-h", "--help"} & set(words) else ["train", *words]
    if not named:
        return words
    _, equals, value = named[0].partition("=")
    if equals and not value:
        raise PrefError(f"--{modes[0]} is empty: set a value or remove it.")
    return [modes[0], *([value] if equals else []), *(word for word in words if word != named[0])]


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Split a command line into options and settings.

    Args:
        argv: arguments without the program.

    Returns:
        The options, with ``mode``, and the settings.

    Raises:
        PrefError: an argument is not ``--key=value``, a key occurs twice, or an option belongs to another mode.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(_mode_first(_joined(argv)))
    for name in ("model", "dataset"):
        if getattr(options, name, None) == "":
            raise PrefError(f"--{name} is empty: set a value or remove it.")
    _refuse_options_of_other_modes(parser, options.mode, rest)
    settings = settings_from(rest)
    if getattr(options, "resume", None) is not None:
        options.resume = _value("resume", options.resume)
    return options, settings


def _refuse_options_of_other_modes(parser: argparse.ArgumentParser, mode: str, rest: list[str]) -> None:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    words = [word.partition("=")[0] for word in rest]
    for word in words:
        owners = [name for name, other in subparsers.choices.items() if word in other._option_string_actions]
        if not owners or word == "--data_path":  # a setting in other modes
            continue
        if mode == "train":
            raise PrefError(f"{word} needs --{' or --'.join(owners)}: add it or remove {word}.")
        raise PrefError(f"{word} has no effect with --{mode}: remove it.")


def settings_from(argv: list[str]) -> dict[str, Any]:
    """Return the settings of a command line: ``--key=value`` or ``--key value``.

    Lists may be written with commas (``--mm_fields=brand,price``).

    Args:
        argv: arguments that are all settings.

    Returns:
        The values by setting.

    Raises:
        PrefError: an argument is not a setting, or a setting occurs twice.
    """
    settings: dict[str, Any] = {}
    for word in _joined(argv):
        key, equals, text = word[2:].partition("=")
        if word in MODES:
            raise PrefError(f"{word!r} is a mode: write it first, recbole-pref {word} ...")
        if not word.startswith("--") or not equals or not key:
            raise PrefError(
                f"{word!r} is not valid: write settings as --key=value, lists with commas.{suggest(word, MODES)}"
            )
        if key in settings:
            raise PrefError(f"--{key} is given twice: keep one of them.")
        settings[key] = _value(key, text)
    return settings


def _value(key: str, text: str) -> Any:
    from recbole_pref.settings import setting_of
    from recbole_pref.settings.files import parse_value

    value = parse_value(text)
    setting = setting_of(key)
    kind = None if setting is None else setting.kind
    if kind is list and isinstance(value, str) and "," in value:
        return [name.strip() for name in value.split(",")]
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return text  # a folder may be called 2024
    return value


def check(model: str, dataset: str, arguments: list[str]) -> None:
    """Check the settings of a run before its data exist.

    Args:
        model: ``<Method><Backbone>``.
        dataset: name of the data set.
        arguments: other arguments of the run.

    Raises:
        PrefError: the settings are not valid.
    """
    options, settings = _read(arguments)
    _check_settings(model, dataset, options.config_files, settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program; by default ``sys.argv[1:]``.

    Returns:
        The exit code: 0, 2 or 130.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv:
        build_parser().print_help()
        return 0
    try:
        options, settings = _read(argv)
        if options.version:
            print(__version__)
            return 0
        return _RUN[options.mode](options, settings)
    except PrefError as error:
        code = report(error, "recbole-pref", debug="--debug" in argv)
        return 130 if isinstance(error, Interrupted) else code
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        remedy = "run the same command again to continue a comparison; add --resume to continue a sweep."
        print(f"recbole-pref: stopped by a signal; {remedy}", file=sys.stderr)
        return 130


def _read(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    options, settings = parse(argv)
    if options.plugins is not None:
        from recbole_pref import plugins

        plugins.load(path.strip() for path in options.plugins.split(",") if path.strip())
    _check_values(settings)
    return options, settings


def _check_values(settings: dict[str, Any]) -> None:
    """Refuse a value that a setting does not accept, before torch is imported."""
    from recbole_pref.settings import check_setting

    for key, value in settings.items():
        check_setting(key, value)


def _check_settings(model: str, dataset: str, files: list[str] | None, settings: dict[str, Any]) -> None:
    from recbole_pref.config import Config

    Config(model, dataset, files, dict(settings)).refuse_unread(settings, "")


def _model_and_dataset(options: argparse.Namespace) -> tuple[str, str]:
    """Return model and dataset from the options, the config files or the defaults, in this order."""
    in_files = _named_in(options.config_files)
    model = getattr(options, "model", None) or in_files.get("model", DEFAULT_MODEL)
    return model, options.dataset or in_files.get("dataset", DEFAULT_DATASET)


def _train(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    model, dataset = _model_and_dataset(options)
    if options.resume is not None:
        settings["resume"] = options.resume
    with garbage_collection_paused():
        from recbole_pref.memory import explained
        from recbole_pref.quick_start import run, run_on_cluster

    with explained():
        _check_settings(model, dataset, options.config_files, settings)
        if options.estimate:
            from recbole_pref.estimate import estimate

            print(estimate(model, dataset, options.config_files, settings).text())
            return 0
        cluster_options = _cluster_options(options)
        result: dict[str, Any] | None
        if cluster_options:
            result = run_on_cluster(model, dataset, options.config_files, settings, **cluster_options)
        else:
            result = run(
                model,
                dataset,
                options.config_files,
                settings,
                nproc=options.nproc,
                world_size=options.world_size,
                ip=options.ip,
                port=options.port,
                group_offset=options.group_offset,
            )
    if result is None:
        print("recbole-pref: this machine is done; the first one prints the results.")
        return 0
    from recbole_pref.compare.tables import result_table

    print(result_table(result, model, dataset))
    if result.get("checkpoint"):
        print(f"best model: {result['checkpoint']}")
    return 0


def _given(options: argparse.Namespace, names: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, Any]:
    """Return the options among ``names`` that are given, by name.

    Raises:
        PrefError: one is given without all that are ``needed``.
    """
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    for name in given:
        for missing in needed:
            if missing not in given:
                raise PrefError(f"--{name} needs --{missing}: add it or remove --{name}.")
    return given


def _cluster_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of training on a Ray cluster that are given, by name.

    Raises:
        PrefError: an option is missing, or belongs to processes without Ray.
    """
    names = ("num_workers", "ray_address", "cpus_per_worker", "gpus_per_worker", "max_failures")
    given = _given(options, names, needed=("num_workers", "ray_address"))
    defaults = {"nproc": 1, "world_size": -1, "ip": "localhost", "port": None, "group_offset": 0}
    for name, default in defaults.items():
        if given and getattr(options, name) != default:
            raise PrefError(f"--{name} has no effect with --num_workers: remove one of them.")
    return given


def _list(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    _refuse_settings(settings, "list")
    print(describe(options.list))
    return 0


def _plots(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    _refuse_settings(settings, "plots")
    _publish(options.plots)
    return 0


def _refuse_settings(settings: dict[str, Any], mode: str) -> None:
    if settings:
        raise PrefError(f"--{next(iter(settings))} has no effect with --{mode}, which does not train: remove it.")


def _named_in(files: list[str] | None) -> dict[str, str]:
    """Return ``model`` and ``dataset`` of the config files, if they name them; the last file wins."""
    import yaml

    from recbole_pref.settings.files import shipped

    values: dict[str, str] = {}
    for file in map(shipped, files or ()):
        try:
            with open(file, encoding="utf-8") as stream:
                content = yaml.safe_load(stream)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Config reports the error
        if isinstance(content, dict):
            values.update({key: content[key] for key in ("model", "dataset") if content.get(key)})
    return values


def _compare(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    from recbole_pref.compare import compare

    done = compare(
        options.compare,
        dataset=_model_and_dataset(options)[1],
        seeds=options.seeds,
        config_file_list=options.config_files,
        config_dict=settings,
        output=options.output,
        baseline=options.baseline,
        processes=options.processes,
        test=options.test,
        columns=options.columns and [name.strip() for name in options.columns.split(",") if name.strip()],
    )
    print(done.text)
    _publish(done.folder)
    return 2 if done.failed else 0


def _tune(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    from recbole_pref.tune import tune

    resources = _given(options, ("cpus_per_trial", "gpus_per_trial"), needed=())
    workers = _given(options, ("num_workers", "cpus_per_worker", "gpus_per_worker"), needed=("num_workers",))
    if workers and resources:
        name = next(iter(resources))
        raise PrefError(f"--{name} has no effect with --num_workers: use --{name.replace('trial', 'worker')}.")
    model, dataset = _model_and_dataset(options)
    _check_settings(model, dataset, options.config_files, settings)
    tune(
        model,
        dataset,
        options.tune,
        options.config_files,
        settings,
        num_samples=options.num_samples,
        storage_path=options.storage_path,
        name=options.name,
        resume=options.resume not in (None, False),
        ray_address=options.ray_address,
        quiet=options.quiet,
        **resources,
        **workers,
    )
    return 0


def _publish(folder: str | Path) -> None:
    from recbole_pref.report import draw_and_report

    print(f"report: {draw_and_report(folder)}")


def _predict(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    if "gpu_id" in settings:
        raise PrefError("--gpu_id has no effect with --predict: use --device=cuda:0.")
    _refuse_settings(settings, "predict")
    for option in ("input", "output"):
        if not getattr(options, option):
            raise PrefError(f"--predict needs --{option}: name a CSV or Parquet file.")
    cluster_options = _given(options, ("ray_address", "cpus_per_worker", "gpus_per_worker"), needed=("ray_address",))
    if cluster_options and options.device != "cpu":
        raise PrefError("--device has no effect with --ray_address: use --gpus_per_worker=1.")
    from recbole_pref.predict import PIECE_ROWS, predict_file

    written = predict_file(
        options.predict,
        options.input,
        options.output,
        k=options.k,
        exclude_seen=not options.keep_seen,
        unknown=options.unknown,
        data_path=options.data_path,
        device=options.device,
        piece_rows=PIECE_ROWS if options.piece_rows is None else options.piece_rows,
        **cluster_options,
    )
    print(f"{written.recommendations} recommendations for {written.users} users or sequences: {options.output}")
    return 0


def _export(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    _refuse_settings(settings, "export")
    if not options.checkpoint:
        raise PrefError("--export needs --checkpoint: name the file of a trained model.")
    from recbole_pref.export import export

    print(export(options.checkpoint, options.export, options.input, options.dot_product_only, options.data_path))
    return 0


def describe(method_name: str = "all") -> str:
    """Return the text of ``--list``: methods, backbones, settings with defaults and meaning.

    Args:
        method_name: ``all``, or a method.
    """
    from recbole_pref.methods import METHODS
    from recbole_pref.model.names import BACKBONES, sequential_model_names
    from recbole_pref.settings.files import properties_dir

    width = max(60, min(110, os.get_terminal_size().columns if sys.stdout.isatty() else 100))
    if method_name != "all":
        names = {name.lower(): name for name in METHODS}
        if method_name.lower() not in names:
            hint = suggest(method_name, METHODS)
            raise PrefError(f"--list={method_name} is not a method: choose one of {', '.join(METHODS)}.{hint}")
        method = METHODS[names[method_name.lower()]]
        head = f"{method.name}: {method.title}\n"
        if method.defaults is not None:
            return head + "\n".join(f"  {key}: {value}" for key, value in method.defaults.items())
        return head + _settings_of(properties_dir() / "method" / f"{method.name}.yaml", width)
    lines = ["methods:"]
    lines += [f"  {method.name:<10} {method.title}" for method in METHODS.values()]
    others = sorted(set(sequential_model_names()) - set(BACKBONES))
    lines += [
        "",
        *textwrap.wrap(
            f"backbones: {', '.join(BACKBONES)}, and RecBole's other sequential models, see docs/backbones.md for "
            f"those that work: {', '.join(others)}",
            width,
        ),
        "a model is <Method><Backbone>, such as LPOSASRec; --list=METHOD shows a method's settings",
        "MM before the backbone fuses item features with the item's ID: LPOMMSASRec",
        "",
        "settings shared by all, with defaults:",
        _settings_of(properties_dir() / "overall.yaml", width),
        "",
        "settings of models with MM, with defaults:",
        _settings_of(properties_dir() / "backbone" / "Multimodal.yaml", width),
    ]
    return "\n".join(lines)


def _settings_of(file: Path, width: int) -> str:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        setting, mark, meaning = line.partition("  #")
        if not mark or ":" not in setting:
            continue
        lines.append("  " + setting.strip())
        lines += textwrap.wrap(meaning.strip(), width - 6, initial_indent="      ",
                               subsequent_indent="      ")  # fmt: skip
    return "\n".join(lines)


_RUN: dict[str, Callable[[argparse.Namespace, dict[str, Any]], int]] = {
    "train": _train, "compare": _compare, "tune": _tune, "predict": _predict, "export": _export, "plots": _plots,
    "list": _list,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
