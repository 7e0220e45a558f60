"""The command line: ``run_recbole_pref.py`` and ``recbole-pref``."""

import argparse
import os
import sys
import textwrap

from recbole_pref.errors import Interrupted, PrefError

DEFAULT_MODEL, DEFAULT_DATASET = "LPOSASRec", "ml-100k"
EXAMPLES = """
examples:
  python run_recbole_pref.py --model=LPOSASRec
  python run_recbole_pref.py --model=SDPOGRU4Rec --dataset=amazon-beauty --data_path=dataset/
  python run_recbole_pref.py --model=LPOSASRec --config_files="my.yaml more.yaml" --tau=0.5 --seed=7
  python run_recbole_pref.py --model=LPOSASRec --resume=True
  python run_recbole_pref.py --predict=saved/NAME-best.pth --input=sequences.csv --output=top.csv --k=10
  python run_recbole_pref.py --compare=CESASRec,LPOSASRec,SDPOSASRec --seeds=5 --processes=2
  python run_recbole_pref.py --model=LPOSASRec --tune=properties/tune/lpo.yaml --num_samples=20
  python run_recbole_pref.py --list
  python run_recbole_pref.py --list=DynamicPO

Any other --key=value is a setting of RecBole or RecBole-Pref; the command line wins over files, files
over defaults. Exit code: 0 done, 2 a mistake in the input, told in one sentence, 130 stopped by Ctrl-C or SIGTERM.
"""


# Options that mean something with one of the others only.
_BELONGS = {
    "predict": ("input", "k", "keep_seen", "unknown", "device"),
    "compare": ("seeds", "processes", "baseline", "test", "columns"),
    "tune": ("num_samples", "storage_path", "name", "ray_address", "cpus_per_trial", "gpus_per_trial", "quiet"),
}
# What does one thing in the place of another, and the options of training that mean nothing to it.
_TOGETHER = ("nproc", "world_size", "ip", "port", "group_offset")
_MODES = {
    "predict": ("model", "dataset", "config_files", "resume", *_TOGETHER),
    "plots": ("model", "dataset", "config_files", "resume", "output", *_TOGETHER),
    "compare": ("model", "resume", *_TOGETHER),
    "tune": ("output", *_TOGETHER),
}


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


def build_parser():
    """Return the parser of the options that are no settings."""
    parser = _Parser(
        prog="recbole-pref",
        description="Preference optimization for sequential recommendation on RecBole.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", "-m", default=None, help="<Method><Backbone> or a model of RecBole (LPOSASRec)")
    add("--dataset", "-d", default=None, help="name of the data set (ml-100k)")
    add("--config_files", type=str.split, help="YAML files, separated by spaces; also shipped ones")
    add("--plugins", help="Python files with methods of your own, separated by commas (docs/extending.md)")
    add("--predict", metavar="CHECKPOINT", help="recommend for the sequences or users of --input instead of training")
    add("--compare", metavar="MODELS", help="models and YAML files to compare, separated by commas")
    add("--seeds", default="5", help="with --compare: how many seeds, or a list 1,2,3")
    add("--processes", type=int, default=1, help="with --compare: runs at a time")
    add("--baseline", help="with --compare: the label that the others are tested against (the first)")
    add("--test", default="t-test", help="with --compare: t-test or bootstrap")
    add("--columns", help="with --compare: metrics and costs of the tables, separated by commas (all)")
    add("--tune", metavar="FILE", help="sweep file with the search space (docs/tuning.md)")
    add("--num_samples", type=int, help="with --tune: trials; wins over the file")
    add("--storage_path", default="tune", help="with --tune: folder or URI that all machines reach")
    add("--name", help="with --tune: folder of the sweep in there (<model>-<dataset>)")
    add("--resume", nargs="?", const="True", help="go on: with the newest checkpoint, a path, or a sweep")
    add("--ray_address", help="with --tune: auto or HOST:PORT of a running Ray cluster")
    add("--cpus_per_trial", type=float, default=1.0, help="with --tune: also the threads of a trial")
    add("--gpus_per_trial", type=float, default=0.0, help="with --tune: may be a fraction")
    add("--quiet", action="store_true", help="with --tune: one line per finished trial, no live table")
    add("--plots", metavar="FOLDER", help="draw the pictures and the report of a comparison again")
    add("--input", help="with --predict: CSV or Parquet with 'items', or 'user' and 'item', or 'user' alone")
    add("--output", help="with --predict: CSV or Parquet file to write; with --compare: folder")
    add("--k", type=int, default=10, help="with --predict: items per sequence or user")
    add("--keep_seen", action="store_true", help="with --predict: seen items may be recommended")
    add("--unknown", choices=("error", "skip"), default="error", help="with --predict: unknown items or users")
    add("--device", help="with --predict: cpu, cuda:0, ... as torch names it (cpu); training takes gpu_id")
    add("--nproc", type=int, default=1, help="processes on this machine that train together")
    add("--world_size", type=int, default=-1, help="processes on all machines; -1 for nproc")
    add("--ip", default="localhost", help="where the first process of all machines listens")
    add("--port", default="5678", help="its port")
    add("--group_offset", type=int, default=0, help="number of this machine's first process")
    add("--list", nargs="?", const="all", metavar="METHOD", help="methods, backbones and settings")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="store_true", help="print the version")
    return parser


def parse(argv):
    """Split a command line into options and settings.

    Args:
        argv (list of str): arguments without the program.

    Returns:
        tuple: argparse namespace, dict of settings.

    Raises:
        PrefError: an argument that is no ``--key=value``, a key given twice, an option without its partner.
    """
    from recbole_pref.settings.files import parse_value

    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    for name in ("model", "dataset", *_MODES):
        if getattr(options, name) == "":
            raise PrefError(f"--{name} is empty: name one or leave it out.")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    for mode, names in _BELONGS.items():
        for name in names:
            if mode not in given and name in given:
                raise PrefError(f"--{name} goes with --{mode}: add it or leave --{name} out.")
    modes = [mode for mode in _MODES if mode in given]
    if len(modes) > 1:
        raise PrefError(f"--{modes[0]} and --{modes[1]} are two commands: give one of them.")
    for mode in modes:
        for name in _MODES[mode]:
            if name in given:
                raise PrefError(f"--{name} means nothing to --{mode}: leave it out.")
    if not modes and "output" in given:
        raise PrefError("--output goes with --predict or --compare: add one or leave --output out.")
    settings = {}
    for argument in rest:
        key, equals, text = argument[2:].partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise PrefError(f"{argument!r} is not understood: write settings as --key=value.")
        if key in settings:
            raise PrefError(f"--{key} is given twice: keep one of them.")
        settings[key] = parse_value(text)
    if options.resume is not None:
        options.resume = parse_value(options.resume)
    return options, settings


def check(model, dataset, arguments):
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


def main(argv=None):
    """Run the command line.

    Args:
        argv (list of str, optional): arguments without the program; by default ``sys.argv[1:]``.

    Returns:
        int: exit code, 0, 2 or 130.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(*_read(argv))
    except PrefError as error:
        if "--debug" in argv:
            raise
        print(f"recbole-pref: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        told = "stopped by a signal; the same command goes on with a comparison, with --resume added with a sweep."
        print(f"recbole-pref: {told}", file=sys.stderr)
        return 130


def _read(argv):
    # RecBole reads sys.argv wherever a Config is made; the settings reach it through config_dict.
    sys.argv = sys.argv[:1]
    options, settings = parse(argv)
    if options.plugins is not None:
        from recbole_pref import plugins

        plugins.load(path.strip() for path in options.plugins.split(",") if path.strip())
    return options, settings


def _check_settings(model, dataset, files, settings):
    from recbole_pref.config import Config

    Config(model, dataset, files, dict(settings)).refuse_unread(settings, "")


def _dispatch(options, settings):
    if options.version:
        from recbole_pref import __version__

        print(__version__)
        return 0
    if options.list:
        print(describe(options.list))
        return 0
    if options.predict:
        data_path = settings.pop("data_path", None)
        if "gpu_id" in settings:
            raise PrefError("--gpu_id means nothing to --predict: name a device as torch does, --device=cuda:0.")
        _refuse_settings(settings, "predict")
        return _predict(options, data_path)
    if options.plots:
        _refuse_settings(settings, "plots")
        return _publish(options.plots)
    files = options.config_files
    named = _named_in(files)
    model = options.model or named.get("model", DEFAULT_MODEL)
    dataset = options.dataset or named.get("dataset", DEFAULT_DATASET)
    if options.compare:
        return _compare(options, dataset, files, settings)
    if options.tune:
        return _tune(options, model, dataset, files, settings)
    if options.resume is not None:
        settings["resume"] = options.resume
    from recbole_pref.compare.tables import result_table
    from recbole_pref.memory import explained
    from recbole_pref.quick_start import run

    with explained():
        _check_settings(model, dataset, files, settings)
        result = run(
            model,
            dataset,
            files,
            settings,
            nproc=options.nproc,
            world_size=options.world_size,
            ip=options.ip,
            port=options.port,
            group_offset=options.group_offset,
        )
    print(result_table(result, model, dataset))
    return 0


def _refuse_settings(settings, mode):
    if settings:
        raise PrefError(f"--{next(iter(settings))} means nothing to --{mode}, which trains nothing: leave it out.")


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
            continue  # Config tells what is wrong with it
        if isinstance(content, dict):
            found.update({key: content[key] for key in ("model", "dataset") if content.get(key)})
    return found


def _compare(options, dataset, files, settings):
    from recbole_pref.compare import compare

    done = compare(
        options.compare,
        dataset,
        options.seeds,
        files,
        settings,
        options.output,
        options.baseline,
        options.processes,
        options.test,
        options.columns and [name.strip() for name in options.columns.split(",") if name.strip()],
    )
    print(done.text)
    _publish(done.folder)
    return 2 if done.failed else 0


def _tune(options, model, dataset, files, settings):
    from recbole_pref.tune import tune

    _check_settings(model, dataset, files, settings)
    tune(
        model,
        dataset,
        options.tune,
        files,
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


def _predict(options, data_path):
    from recbole_pref.predict import predict_file

    for option in ("input", "output"):
        if not getattr(options, option):
            raise PrefError(f"--predict needs --{option}: name a CSV or Parquet file.")
    frame = predict_file(
        options.predict,
        options.input,
        options.output,
        options.k,
        not options.keep_seen,
        options.unknown,
        data_path,
        "cpu" if options.device is None else options.device,
    )
    print(f"{len(frame)} recommendations for {(frame['rank'] == 1).sum()} users or sequences: {options.output}")
    return 0


def describe(wanted="all"):
    """Return the text of ``--list``: methods, backbones, settings with defaults and meaning.

    Args:
        wanted (str): ``all``, or a method whose settings are shown.
    """
    from recbole_pref.errors import suggest
    from recbole_pref.methods import METHODS
    from recbole_pref.model.names import BACKBONES, sequential_models
    from recbole_pref.settings.files import properties_dir

    width = max(60, min(110, os.get_terminal_size().columns if sys.stdout.isatty() else 100))
    if wanted != "all":
        names = {name.lower(): name for name in METHODS}
        if wanted.lower() not in names:
            raise PrefError(
                f"--list={wanted} is no method: choose one of {', '.join(METHODS)}.{suggest(wanted, METHODS)}"
            )
        method = METHODS[names[wanted.lower()]]
        head = f"{method.name}: {method.title}\n"
        if method.defaults is not None:
            return head + "\n".join(f"  {key}: {value}" for key, value in method.defaults.items())
        return head + _settings_of(properties_dir() / "method" / f"{method.name}.yaml", width)
    lines = ["methods:"]
    lines += [f"  {method.name:<10} {method.title}" for method in METHODS.values()]
    others = sorted(cls.__name__ for cls in sequential_models().values() if cls.__name__ not in BACKBONES)
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


if __name__ == "__main__":
    sys.exit(main())
