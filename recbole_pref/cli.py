"""The command line: ``run_recbole_pref.py`` and ``recbole-pref``.

Its modes are subcommands, ``recbole-pref compare CESASRec,LPOSASRec``; each may also be written as an option,
``recbole-pref --compare=CESASRec,LPOSASRec``. Without a mode, a model is trained. What is not an option is a setting.
Modules that import torch are imported where a mode needs them, so that help and lists appear at once.
"""

import argparse
import os
import re
import sys
import textwrap

from recbole_pref.errors import Interrupted, PrefError, suggest
from recbole_pref.startup import collector_paused
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
the command line wins over files, files win over defaults. In a checkout of the source, the same command is
python run_recbole_pref.py.
Exit code: 0 for success, 2 for a mistake in the input (one sentence says which), 130 after Ctrl-C or SIGTERM.
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
_FLAGS = ("--debug", "--quiet", "--keep_seen", "--dot_product_only", "--help", "--version")  # options without a value


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise PrefError(f"{message}; --help lists the options.")

    def parse_known_args(self, args=None, namespace=None):
        # argparse lets the last of several win.
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


def _add_options(parser, mode):
    add, path = parser.add_argument, os.path.expanduser
    if mode in ("train", "tune"):
        add("--model", "-m", help=f"<Method><Backbone> or a model of RecBole ({DEFAULT_MODEL})")
    if mode in ("train", "tune", "compare"):
        add("--dataset", "-d", help=f"name of the data set ({DEFAULT_DATASET})")
        add("--config_files", type=lambda text: _expanded(text).split(),
            help="YAML files, separated by spaces; also shipped ones")  # fmt: skip
    if mode in ("train", "tune"):
        add("--resume", nargs="?", const="True", type=path,
            help="continue: from the newest checkpoint, from the one with this path, or a sweep")  # fmt: skip
    if mode == "train":
        add("--nproc", type=int, default=1, help="processes on this machine that train together (1)")
        add("--world_size", type=int, default=-1, help="processes on all machines; -1 for nproc")
        add("--ip", default="localhost", help="address of the machine with the first process (localhost)")
        add("--port", help="port on that machine (a free one; 5678 for several machines)")
        add("--group_offset", type=int, default=0, help="number of this machine's first process (0)")
    if mode == "compare":
        add("compare", metavar="MODELS", type=_expanded, help="models and YAML files, separated by commas")
        add("--seeds", default="5", help="how many seeds, or a list 1,2,3 (5)")
        add("--processes", type=int, default=1, help="runs at a time (1)")
        add("--baseline", help="label of the run that the others are tested against (the first)")
        add("--test", default="t-test", help="t-test or bootstrap (t-test)")
        add("--columns", help="metrics and costs of the tables, separated by commas (all)")
        add("--output", type=path, help="folder of the results")
    if mode == "tune":
        add("tune", metavar="FILE", type=path, help="sweep file with the search space (docs/tuning.md)")
        add("--num_samples", type=int, help="trials; wins over the file")
        add("--storage_path", default="tune", type=path, help="folder or URI that all machines reach (tune)")
        add("--name", help="folder of the sweep in there (<model>-<dataset>)")
        add("--ray_address", help="auto or HOST:PORT of a running Ray cluster")
        add("--cpus_per_trial", type=float, default=1.0, help="also the threads of a trial (1)")
        add("--gpus_per_trial", type=float, default=0.0, help="may be a fraction (0)")
        add("--quiet", action="store_true", help="one line per finished trial, no live table")
    if mode == "predict":
        add("predict", metavar="CHECKPOINT", type=path, help="file of a trained model")
        add("--input", type=path, help="CSV or Parquet with 'items', or 'user' and 'item', or 'user' alone")
        add("--output", type=path, help="CSV or Parquet file to write")
        add("--k", type=int, default=10, help="items per sequence or user (10)")
        add("--keep_seen", action="store_true", help="recommend seen items as well")
        add("--unknown", choices=("error", "skip"), default="error", help="unknown items or users (error)")
        add("--device", default="cpu", help="cpu, cuda:0, ... as torch names it (cpu); training takes gpu_id")
        add("--data_path", type=path, help="folder of the data sets, where the model needs its data")
        add("--piece_rows", type=int, help="sequences or users that are in memory at a time (50000)")
    if mode == "export":
        add("export", metavar="FOLDER", type=path, help="folder to write")
        add("--checkpoint", type=path, help="file of a trained model")
        add("--input", type=path, help="CSV or Parquet file of sequences with which the HNSW index is measured")
        add("--dot_product_only", action="store_true", help="leave out what vectors cannot hold, such as repeat_bias")
        add("--data_path", type=path, help="folder of the data sets, where the model needs its data")
    if mode == "plots":
        add("plots", metavar="FOLDER", type=path, help="folder of the comparison")
    if mode == "list":
        add("list", metavar="METHOD", nargs="?", default="all", help="show the settings of this method alone")
    add("--plugins", type=_expanded, help="Python files with your own methods, separated by commas (docs/extending.md)")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="store_true", help="print the version")


def _expanded(text):
    """Return a text in which the home folder stands for the ``~`` that each of several paths may begin with."""
    return re.sub(r"(?<![^\s,])~[^\s,]*", lambda path: os.path.expanduser(path[0]), text)


def _joined(words):
    """Write ``--epochs 1`` as ``--epochs=1``."""
    joined = []
    for word in words:
        last = joined[-1] if joined else ""
        waiting = last.startswith("--") and "=" not in last and last not in _FLAGS
        if waiting and (not word.startswith("-") or re.match(r"-[\d.]", word)):
            joined[-1] = f"{last}={word}"
        else:
            joined.append(word)
    return joined


def _mode_first(words):
    """Return the words of a command line, its mode first: ``--compare=A,B`` becomes ``compare A,B``."""
    named = [word for word in words if word.startswith("--") and word[2:].partition("=")[0] in MODES.keys() - {"train"}]
    modes = [word[2:].partition("=")[0] for word in named]
    if words and words[0] in MODES:
        modes.insert(0, words[0])
    if len(modes) > 1:
        if modes[0] == modes[1]:
            raise PrefError(f"--{modes[0]} is given twice: keep one of them.")
        raise PrefError(f"--{modes[0]} and --{modes[1]} are two commands: give one of them.")
    if not modes:
        return ["--help"] if {"-h", "--help"} & set(words) else ["train", *words]
    if not named:
        return words
    _, equals, value = named[0].partition("=")
    if equals and not value:
        raise PrefError(f"--{modes[0]} is empty: name one or leave it out.")
    return [modes[0], *([value] if equals else []), *(word for word in words if word != named[0])]


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    """Split a command line into options and settings.

    Args:
        argv (list of str): arguments without the program.

    Returns:
        tuple: argparse namespace, which has ``mode``, and dict of settings.

    Raises:
        PrefError: an argument that is not ``--key=value``, a key given twice, an option of another mode.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(_mode_first(_joined(argv)))
    for name in ("model", "dataset"):
        if getattr(options, name, None) == "":
            raise PrefError(f"--{name} is empty: name one or leave it out.")
    _refuse_options_of_other_modes(parser, options.mode, rest)
    settings = settings_from(rest)
    if getattr(options, "resume", None) is not None:
        options.resume = _value("resume", options.resume)
    return options, settings


def _refuse_options_of_other_modes(parser, mode, rest):
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    words = [word.partition("=")[0] for word in rest]
    for word in words:
        owners = [name for name, other in subparsers.choices.items() if word in other._option_string_actions]
        if not owners or word == "--data_path":  # which is a setting elsewhere
            continue
        if mode == "train":
            raise PrefError(f"{word} goes with --{' or --'.join(owners)}: add it or leave {word} out.")
        raise PrefError(f"{word} has no effect with --{mode}: leave it out.")


def settings_from(argv: list[str]) -> dict:
    """Return the settings that a command line gives as ``--key=value`` or ``--key value``.

    Lists may be written with commas (``--mm_fields=brand,price``).

    Args:
        argv (list of str): arguments that are all settings.

    Returns:
        dict: setting to value, with its type.

    Raises:
        PrefError: an argument that is not a setting, or a setting given twice.
    """
    settings = {}
    for word in _joined(argv):
        key, equals, text = word[2:].partition("=")
        if not word.startswith("--") or not equals or not key:
            raise PrefError(
                f"{word!r} is not understood: write settings as --key=value, lists with commas.{suggest(word, MODES)}"
            )
        if key in settings:
            raise PrefError(f"--{key} is given twice: keep one of them.")
        settings[key] = _value(key, text)
    return settings


def _value(key, text):
    from recbole_pref.settings import RECBOLE_SETTINGS, SETTINGS
    from recbole_pref.settings.files import parse_value

    value = parse_value(text)
    setting = SETTINGS.get(key) or RECBOLE_SETTINGS.get(key)
    kind = None if setting is None else setting.kind
    if kind is list and isinstance(value, str) and "," in value:
        return [name.strip() for name in value.split(",")]
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return text  # a folder may be called 2024
    return value


def check(model: str, dataset: str, arguments: list[str]) -> None:
    """Refuse a run that could not start, before its data exist.

    Args:
        model (str): ``<Method><Backbone>``.
        dataset (str): name of the data set.
        arguments (list of str): further arguments of the run.

    Raises:
        PrefError: what the run itself would be refused for before it reads its data.
    """
    options, settings = _read(arguments)
    _check_settings(model, dataset, options.config_files, settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (list of str, optional): arguments without the program; by default ``sys.argv[1:]``.

    Returns:
        int: exit code, 0, 2 or 130.
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
        if "--debug" in argv:
            raise
        print(f"recbole-pref: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        remedy = "run the same command again to continue a comparison, with --resume added to continue a sweep."
        print(f"recbole-pref: stopped by a signal; {remedy}", file=sys.stderr)
        return 130


def _read(argv):
    options, settings = parse(argv)
    if options.plugins is not None:
        from recbole_pref import plugins

        plugins.load(path.strip() for path in options.plugins.split(",") if path.strip())
    _check_values(settings)
    return options, settings


def _check_values(settings):
    """Refuse a value that a setting does not accept, before torch is imported."""
    from recbole_pref.settings import check_setting

    for key, value in settings.items():
        check_setting(key, value)


def _check_settings(model, dataset, files, settings):
    from recbole_pref.config import Config

    Config(model, dataset, files, dict(settings)).refuse_unread(settings, "")
    if settings.get("gpu_id") not in (None, ""):
        import torch

        if not torch.cuda.is_available():
            print(
                f"recbole-pref: gpu_id={settings['gpu_id']} has no effect: torch finds no GPU, so the CPU trains.",
                file=sys.stderr,
            )


def _model_and_dataset(options):
    """Return what the options name, otherwise what the config files name, otherwise the defaults."""
    named = _named_in(options.config_files)
    model = getattr(options, "model", None) or named.get("model", DEFAULT_MODEL)
    return model, options.dataset or named.get("dataset", DEFAULT_DATASET)


def _train(options, settings):
    model, dataset = _model_and_dataset(options)
    if options.resume is not None:
        settings["resume"] = options.resume
    with collector_paused():
        from recbole_pref.memory import explained
        from recbole_pref.quick_start import run

    with explained():
        _check_settings(model, dataset, options.config_files, settings)
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
    return 0


def _list(options, settings):
    _refuse_settings(settings, "list")
    print(describe(options.list))
    return 0


def _plots(options, settings):
    _refuse_settings(settings, "plots")
    return _publish(options.plots)


def _refuse_settings(settings, mode):
    if settings:
        raise PrefError(f"--{next(iter(settings))} has no effect with --{mode}, which does not train: leave it out.")


def _named_in(files):
    """Return ``model`` and ``dataset`` where config files name them; the last file wins."""
    import yaml

    from recbole_pref.settings.files import shipped

    found = {}
    for file in map(shipped, files or ()):
        try:
            with open(file, encoding="utf-8") as stream:
                content = yaml.safe_load(stream)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Config reports what is wrong with it
        if isinstance(content, dict):
            found.update({key: content[key] for key in ("model", "dataset") if content.get(key)})
    return found


def _compare(options, settings):
    from recbole_pref.compare import compare

    done = compare(
        options.compare,
        _model_and_dataset(options)[1],
        options.seeds,
        options.config_files,
        settings,
        options.output,
        options.baseline,
        options.processes,
        options.test,
    )
    print(done.text)
    _publish(done.folder)
    return 2 if done.failed else 0


def _tune(options, settings):
    from recbole_pref.tune import tune

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
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        quiet=options.quiet,
    )
    return 0


def _publish(folder):
    from recbole_pref.report import draw_and_report

    print(f"report: {draw_and_report(folder)}")
    return 0


def _predict(options, settings):
    if "gpu_id" in settings:
        raise PrefError("--gpu_id has no effect with --predict: name a device as torch does, --device=cuda:0.")
    _refuse_settings(settings, "predict")
    for option in ("input", "output"):
        if not getattr(options, option):
            raise PrefError(f"--predict needs --{option}: name a CSV or Parquet file.")
    from recbole_pref.predict import PIECE_ROWS, predict_file

    written = predict_file(
        options.predict,
        options.input,
        options.output,
        options.k,
        not options.keep_seen,
        options.unknown,
        options.data_path,
        options.device,
        PIECE_ROWS if options.piece_rows is None else options.piece_rows,
    )
    print(f"{written.recommendations} recommendations for {written.users} users or sequences: {options.output}")
    return 0


def _export(options, settings):
    _refuse_settings(settings, "export")
    if not options.checkpoint:
        raise PrefError("--export needs --checkpoint: name the file of a trained model.")
    from recbole_pref.export import export

    print(export(options.checkpoint, options.export, options.input, options.dot_product_only, options.data_path))
    return 0


def describe(wanted: str = "all") -> str:
    """Return the text of ``--list``: methods, backbones, settings with defaults and meaning.

    Args:
        wanted (str): ``all``, or a method whose settings are shown.
    """
    from recbole_pref.methods import METHODS
    from recbole_pref.model.names import BACKBONES, sequential_model_names
    from recbole_pref.settings.files import properties_dir

    width = max(60, min(110, os.get_terminal_size().columns if sys.stdout.isatty() else 100))
    if wanted != "all":
        names = {name.lower(): name for name in METHODS}
        if wanted.lower() not in names:
            raise PrefError(
                f"--list={wanted} is not a method: choose one of {', '.join(METHODS)}.{suggest(wanted, METHODS)}"
            )
        method = METHODS[names[wanted.lower()]]
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
            f"backbones: {', '.join(BACKBONES)}, and RecBole's other sequential models, of which docs/backbones.md "
            f"says which work: {', '.join(others)}", width),
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


def _settings_of(file, width):
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        setting, mark, meaning = line.partition("  #")
        if not mark or ":" not in setting:
            continue
        lines.append("  " + setting.strip())
        lines += textwrap.wrap(meaning.strip(), width - 6, initial_indent="      ",
                               subsequent_indent="      ")  # fmt: skip
    return "\n".join(lines)


_RUN = {"train": _train, "compare": _compare, "tune": _tune, "predict": _predict, "export": _export,
        "plots": _plots, "list": _list}

if __name__ == "__main__":
    sys.exit(main())
