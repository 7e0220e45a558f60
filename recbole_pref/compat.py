"""RecBole 1.2.1 on today's numpy, pandas, torch and ray: every patch, here and nowhere else.

RecBole's package is used as published. A patch is small. It names its cause in RecBole's source and the change
of RecBole that makes it superfluous, and is applied only if its guard says that it is needed. ``apply`` runs once,
when RecBole is imported; ``applied()`` returns the applied patches.
"""

import builtins
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from recbole_pref.errors import PrefError
from recbole_pref.late import after_import

RECBOLE_VERSION = "1.2.1"
_INSTALL = f"pip install --no-deps recbole=={RECBOLE_VERSION}"
# The packages that RecBole imports: module and distribution.
_NEEDED = {
    "torch": "torch", "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "sklearn": "scikit-learn",
    "yaml": "pyyaml", "ray": "ray[tune]", "tqdm": "tqdm", "colorlog": "colorlog",
    "colorama": "colorama", "tensorboard": "tensorboard", "thop": "thop", "tabulate": "tabulate",
    "texttable": "texttable", "psutil": "psutil",
}  # fmt: skip


@dataclass(frozen=True)
class Patch:
    """One change to RecBole.

    Attributes:
        name: its name in ``applied()`` and in the tests.
        cause: file and line of RecBole 1.2.1, and the problem there.
        until: the change of RecBole that makes the patch superfluous.
        needed: returns whether this environment needs the patch.
        change: applies the patch.
    """

    name: str
    cause: str
    until: str
    needed: Callable[[], bool]
    change: Callable[[], None]


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


def _module(name: str) -> Any:
    return importlib.import_module(f"recbole.{name}")


def _replace(module: str, owner: str, name: str, function: Callable[..., Any], calls_original: bool = False) -> None:
    """Replace a method of RecBole by a function; with ``calls_original`` its first argument is the original method."""
    cls = getattr(_module(module), owner)
    original: Any = getattr(cls, name)

    @functools.wraps(original)
    def replacement(self: Any, *args: Any, **options: Any) -> Any:
        return function(original, self, *args, **options) if calls_original else function(self, *args, **options)

    replacement.original = original
    setattr(cls, name, replacement)


def _over(module: Any, **replaced: Any) -> Any:
    """Return a proxy of ``module`` with some names replaced."""
    proxy = types.ModuleType(module.__name__, module.__doc__)
    proxy.__getattr__ = lambda name: getattr(module, name)
    vars(proxy).update(replaced)
    return proxy


# -- numpy


def _numpy_names_missing() -> bool:
    import numpy

    return not hasattr(numpy, "float_")


def _name_numpy_types() -> None:
    import numpy

    numpy.float_, numpy.complex_, numpy.unicode_ = numpy.float64, numpy.complex128, numpy.str_


def _sort_interactions_as_arrays() -> None:
    import numpy

    interaction = _module("data.interaction")
    interaction.np = _over(interaction.np, argsort=lambda key, **options: numpy.argsort(numpy.asarray(key), **options))


# -- scipy


def _dict_update_missing() -> bool:
    from scipy.sparse import dok_matrix

    return not hasattr(dok_matrix, "_update")


def _update_dict_of_keys() -> None:
    from scipy.sparse import dok_matrix

    dok_matrix._update = lambda self, entries: self._dict.update(entries)


# -- pandas


def _pandas_copies() -> bool:
    return _version("pandas") >= (3, 0)


def _fill_missing_features() -> None:
    def fill_nan(original: Callable[..., Any], dataset: Any) -> None:
        # The original then finds these fields complete and only fills sequences.
        for name in dataset.feat_name_list:
            feat = getattr(dataset, name)
            for field in feat:
                kind = dataset.field2type[field].value
                if kind == "token":
                    feat[field] = feat[field].fillna(0).astype("int64")
                elif kind == "float":
                    feat[field] = feat[field].fillna(feat[field].mean())
        original(dataset)

    _replace("data.dataset.dataset", "Dataset", "_fill_nan", fill_nan, calls_original=True)


def _read_empty_sequences() -> None:
    dataset = _module("data.dataset.dataset")
    pandas = dataset.pd

    def read_csv(*args: Any, **options: Any) -> Any:
        frame = pandas.read_csv(*args, **options)
        sequences = [column for column in frame if str(column).endswith("_seq")]
        return frame.fillna({column: "" for column in sequences})

    dataset.pd = _over(pandas, read_csv=read_csv)


def _measure_elementwise() -> None:
    import pandas

    def _len(value: Any) -> int | Any:
        # ``series.agg(len)`` meant the length of each element; pandas 3 calls len(series).
        return value.map(builtins.len) if isinstance(value, pandas.Series) else builtins.len(value)

    for name in ("dataset", "sequential_dataset", "kg_dataset"):
        vars(_module(f"data.dataset.{name}"))["len"] = _len


# -- torch


def _anomaly_detection_set() -> bool:
    import torch

    # If sine.py is already imported, it has already switched anomaly detection on.
    before = torch.is_anomaly_enabled() and "recbole.model.sequential_recommender.sine" not in sys.modules
    _module("model.sequential_recommender")
    return torch.is_anomaly_enabled() and not before


def _unset_anomaly_detection() -> None:
    import torch

    torch.autograd.set_detect_anomaly(False)


# -- RecBole itself


def _collect_non_tensors() -> None:
    import torch

    def get_data_struct(original: Callable[..., Any], collector: Any) -> Any:
        collected = collector.data_struct._data_dict
        plain = {k: v for k, v in collected.items() if not isinstance(v, torch.Tensor)}
        for key in plain:
            del collected[key]
        struct = original(collector)
        collected.update(plain)
        struct._data_dict.update(plain)
        return struct

    _replace("evaluator.collector", "Collector", "get_data_struct", get_data_struct, calls_original=True)


def _late(module: str, name: str) -> Callable[..., Any]:
    """Return a function of ``recbole_pref.data`` that is imported when it is called.

    RecBole may be imported first by one of these modules, and is patched then.
    """

    def function(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"recbole_pref.data.{module}"), name)(*args, **options)

    return function


def _parse_in_c() -> None:
    recboles = _module("data.dataset.dataset")
    recboles.pd = _over(recboles.pd, read_csv=_late("reading", "read_csv"))


def _keep_sequences_as_slices() -> None:
    where = "data.dataset.sequential_dataset", "SequentialDataset"
    _replace(*where, "data_augmentation", _late("dataset", "augment"))
    _replace(*where, "_change_feat_format", _late("dataset", "change_feat_format"), calls_original=True)
    _replace(*where, "_benchmark_presets", _late("dataset", "cut_lists"), calls_original=True)


def _number_tokens_by_category() -> None:
    _replace(
        "data.dataset.dataset",
        "Dataset",
        "_concat_remaped_tokens",
        _late("dataset", "concat_tokens"),
        calls_original=True,
    )


def _count_on_arrays() -> None:
    _module("data.dataset.dataset").Counter = _late("dataset", "count")


def _split_on_arrays() -> None:
    where = "data.dataset.dataset", "Dataset"
    _replace(*where, "_grouped_index", _late("dataset", "grouped_index"))
    _replace(*where, "_split_index_by_leave_one_out", _late("dataset", "split_index_by_leave_one_out"))
    _replace(*where, "split_by_ratio", _late("dataset", "split_by_ratio"), calls_original=True)


def _number_rows_by_range() -> None:
    def as_list(values: Any = ()) -> Any:
        return values if isinstance(values, range) else builtins.list(values)

    vars(_module("data.dataloader.abstract_dataloader"))["list"] = as_list


def _draw_in_one_process() -> None:
    deterministic = (None, "inverse_itemseq")

    def prepare(original: Callable[..., Any], loader: Any, config: Any, *args: Any, **options: Any) -> None:
        original(loader, config, *args, **options)
        ranks_all = isinstance(loader, _module("data.dataloader.general_dataloader").FullSortEvalDataLoader)
        draws = loader._sampler is not None and not ranks_all or config["transform"] not in deterministic
        if loader.num_workers and draws:
            loader.num_workers = 0
            logging.getLogger().info(
                f"worker={config['worker']} has no effect on {type(loader).__name__}: its batches draw random numbers, "
                "so they are made in the main process."
            )

    _replace("data.dataloader.abstract_dataloader", "AbstractDataLoader", "__init__", prepare, calls_original=True)


def _report_missing_gpus() -> None:
    def init_device(original: Callable[..., Any], config: Any) -> None:
        original(config)
        gpu = config["gpu_id"]
        if gpu not in ("", str(config.internal_config_dict["gpu_id"])) and config["device"].type == "cpu":
            warnings.warn(f"gpu_id={gpu} has no effect: torch finds no such GPU, so the CPU trains.", stacklevel=1)

    _replace("config.configurator", "Config", "_init_device", init_device, calls_original=True)


def _remove_duplicates_stably() -> None:
    _replace(
        "data.dataset.dataset",
        "Dataset",
        "_remove_duplication",
        _late("dataset", "remove_duplication"),
        calls_original=True,
    )


def _compare_values_as_texts() -> None:
    where = "data.dataset.dataset", "Dataset"
    _replace(*where, "_filter_by_field_value", _late("dataset", "filter_by_field_value"), calls_original=True)


def _refuse_outdated_datasets() -> None:
    utils = _module("data.utils")
    utils.pickle = _over(utils.pickle, load=_late("dataset", "load_saved"))


def _keep_times_exact() -> None:
    _replace(
        "data.dataset.dataset",
        "Dataset",
        "_change_feat_format",
        _late("dataset", "order_by_exact_time"),
        calls_original=True,
    )


def _share_items_of_lists() -> None:
    _replace("data.dataset.dataset", "Dataset", "_set_alias", _late("dataset", "add_list_alias"), calls_original=True)


def _save_checkpoint(state: Any, path: Any, **_: Any) -> None:
    """Write a checkpoint of RecBole's trainers as plain data; replaces ``torch.save``."""
    from recbole_pref import checkpoint

    state = dict(state)
    if "config" in state:
        state["config"] = checkpoint.to_plain(state["config"].final_config_dict, other=str)
    if state.get("other_parameter"):
        state["other_parameter"] = checkpoint.pack_arrays(state["other_parameter"])
    checkpoint.save(state, path)


def _load_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """Return a checkpoint of RecBole's trainers or of ours in RecBole's form; replaces ``torch.load``."""
    from recbole_pref import checkpoint

    remedy = (
        "train it again after importing recbole_pref, or read it with torch.load(path, weights_only=False) if you "
        "made the file yourself"
    )
    state = checkpoint.load(path, map_location, setting="model_file", remedy=remedy)
    if isinstance(state.get("config"), dict):
        state["config"] = _config_of(state["config"])
    state["other_parameter"] = checkpoint.unpack_arrays(state.get("other_parameter") or {})
    return state


def _config_of(settings: dict[str, Any]) -> Any:
    """Return RecBole's ``Config`` with the settings of a checkpoint, without evaluating any of them as code."""
    import torch

    cls, enums = _module("config.configurator").Config, _module("utils.enum_type")
    kinds = {"MODEL_TYPE": enums.ModelType, "MODEL_INPUT_TYPE": enums.InputType, "eval_type": enums.EvaluatorType}
    config = cls.__new__(cls)
    config._init_parameters_category()
    config.final_config_dict = settings | {key: kind[settings[key]] for key, kind in kinds.items() if key in settings}
    config["device"] = torch.device(settings["device"] if torch.cuda.is_available() else "cpu")
    return config


def _store_plain_checkpoints() -> None:
    trainer = _module("trainer.trainer")
    trainer.torch = _over(trainer.torch, save=_save_checkpoint, load=_load_checkpoint)


def _load_plain_checkpoints(original: Any, model_file: Any) -> Any:
    import torch

    state, load = _load_checkpoint(model_file), torch.load

    def load_or_state(file: Any, *args: Any, **options: Any) -> Any:
        return state if file is model_file else load(file, *args, **options)

    with mock.patch.object(torch, "load", load_or_state):
        return original(model_file)


def _prepare_quick_start() -> None:
    # RecBole's quick start imports Ray, which takes seconds: patch it when it is imported.
    def change() -> None:
        module, package = (sys.modules.get(f"recbole.quick_start{name}") for name in (".quick_start", ""))
        original = module.load_data_and_model
        load = functools.wraps(original)(functools.partial(_load_plain_checkpoints, original))
        module.load_data_and_model = load
        if hasattr(package, "load_data_and_model"):  # imported before
            package.load_data_and_model = load
        tune = module.tune
        module.tune = _over(tune, report=lambda **metrics: tune.report(metrics))

    after_import("recbole.quick_start.quick_start", change)


def _read_our_properties() -> None:
    def load(original: Callable[..., Any], config: Any, model: Any, model_class: Any, dataset: Any) -> None:
        original(config, model, model_class, dataset)
        if getattr(model_class, "preference_method", None) is not None or hasattr(model_class, "own_settings"):
            from recbole_pref.settings.files import load_properties

            load_properties(config, model_class, dataset)

    _replace("config.configurator", "Config", "_load_internal_config_dict", load, calls_original=True)


class _NoCurves:
    """Replaces TensorBoard's writer in the processes that write no files."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


def _write_curves_once() -> None:
    from recbole_pref import distributed

    trainer = _module("trainer.trainer")
    original = trainer.get_tensorboard
    trainer.get_tensorboard = lambda logger: original(logger) if distributed.is_first() else _NoCurves()


class _FlatSettings(dict):
    """The settings of a configuration by flat names, as wandb shows them, with the attributes that RecBole reads."""

    def __init__(self, config: Any) -> None:
        from recbole_pref.checkpoint import to_plain

        self.wandb_project = config["wandb_project"]
        parts = list(to_plain(config.final_config_dict, other=str).items())
        while parts:
            name, value = parts.pop(0)
            if isinstance(value, dict) and value:
                parts = [(f"{name}.{key}", part) for key, part in value.items()] + parts
            else:
                self[name] = value


def _give_wandb_settings() -> None:
    def setup(original: Any, self: Any) -> None:
        if self.log_wandb:
            self.config = _FlatSettings(self.config)
        original(self)

    _replace("utils.wandblogger", "WandbLogger", "setup", setup, calls_original=True)


def _draw_with_generators() -> None:
    import numpy

    search = _module("trainer.hyper_tuning")
    search.np = _over(numpy, random=_over(numpy.random, RandomState=numpy.random.default_rng))


def _filter_further_features() -> None:
    import pandas

    def filter_by_inter_num(original: Callable[..., Any], dataset: Any) -> None:
        original(dataset)
        if dataset.config["mm_fields"] is None:  # no model with item features
            return
        sources = [feat[dataset.iid_field] for feat in (dataset.inter_feat, dataset.item_feat) if feat is not None]
        items = pandas.concat(sources).unique()
        for suffix in dataset.config["additional_feat_suffix"] or ():
            feat = getattr(dataset, f"{suffix}_feat")
            for field in set(feat) & set(dataset.alias["item_id"]):
                removed = feat.index[~feat[field].isin(items)]
                feat.drop(removed, inplace=True)
                if len(removed):
                    name = f"{dataset.dataset_name}.{suffix}"
                    dataset.logger.info(f"{name}: {len(removed)} items without interactions are removed")

    _replace("data.dataset.dataset", "Dataset", "_filter_by_inter_num", filter_by_inter_num, calls_original=True)


def _silence_notices() -> None:
    for category, message in (
        (FutureWarning, r".*torch\.cuda\.amp\.GradScaler.*"),
        (UserWarning, r"The given NumPy array is not writable.*"),
        (UserWarning, r"torch\.set_num_threads.*"),
        (DeprecationWarning, r".*distutils Version classes are deprecated.*"),
    ):
        warnings.filterwarnings("ignore", message=message, category=category)
    import pandas

    for name in ("ChainedAssignmentError", "Pandas4Warning"):
        of_pandas = getattr(pandas.errors, name, None)
        if of_pandas is not None:
            warnings.filterwarnings("ignore", category=of_pandas, module=r"recbole\.")


def _always() -> bool:
    return True


PATCHES = (
    Patch(
        "numpy_type_names",
        "config/configurator.py:630-635 reads np.float_, np.complex_ and np.unicode_, gone in numpy 2",
        "RecBole stops reading them",
        _numpy_names_missing,
        _name_numpy_types,
    ),
    Patch(
        "interaction_sort",
        "data/interaction.py:347 calls np.argsort on a tensor, which numpy 2 deprecates",
        "RecBole sorts with torch",
        _always,
        _sort_interactions_as_arrays,
    ),
    Patch(
        "dok_update",
        "model/general_recommender/lightgcn.py:111 and six more fill a dok_matrix through its _update, which "
        "today's scipy does not have",
        "RecBole builds the matrix from rows and columns",
        _dict_update_missing,
        _update_dict_of_keys,
    ),
    Patch(
        "fill_nan",
        "data/dataset/dataset.py:648-650 fills a copy under pandas 3: missing tokens become "
        "-9223372036854775808, missing floats stay NaN",
        "RecBole assigns the filled column",
        _pandas_copies,
        _fill_missing_features,
    ),
    Patch(
        "c_parser",
        "data/dataset/dataset.py:492 reads files with pandas' parser in Python, 50 microseconds a line",
        "RecBole reads with engine='c'",
        _always,
        _parse_in_c,
    ),
    Patch(
        "token_categories",
        "data/dataset/dataset.py:1175 concatenates tokens as Python objects to number them",
        "RecBole numbers categories",
        _always,
        _number_tokens_by_category,
    ),
    Patch(
        "counter",
        "data/dataset/dataset.py:893 and :1409 count rows one by one in Python",
        "RecBole counts with numpy",
        _always,
        _count_on_arrays,
    ),
    Patch(
        "stable_duplicates",
        "data/dataset/dataset.py:853 sorts by time with pandas' unstable sort before it removes duplicates: "
        "interactions with equal times change their order",
        "RecBole sorts with kind='stable'",
        _always,
        _remove_duplicates_stably,
    ),
    Patch(
        "splits",
        "data/dataset/dataset.py:1591-1729 groups and splits rows one by one in Python lists",
        "RecBole splits with numpy",
        _always,
        _split_on_arrays,
    ),
    Patch(
        "sequences",
        "data/dataset/sequential_dataset.py:100-152 fills a padded list for every prefix in Python, and :163 keeps "
        "the first width of pre-split lists: [N, L] integers a column, lists longer than MAX_ITEM_LIST_LENGTH",
        "RecBole keeps sequences and offsets",
        _always,
        _keep_sequences_as_slices,
    ),
    Patch(
        "exact_times",
        "data/dataset/dataset.py:2202 rounds times to 32-bit floats before interactions are sorted by them: seconds "
        "since 1970 become multiples of 128",
        "RecBole sorts by 64-bit times",
        _always,
        _keep_times_exact,
    ),
    Patch(
        "list_alias",
        "data/dataset/dataset.py:525 numbers the items in the lists of pre-split files separately from their targets "
        "unless alias_of_item_id is set",
        "RecBole sets the alias",
        _always,
        _share_items_of_lists,
    ),
    Patch(
        "token_values",
        "data/dataset/dataset.py:1055 compares token columns, which are texts, with the numbers that YAML reads: "
        "val_interval drops the rows of 1 under ['0', 1]",
        "RecBole compares texts",
        _always,
        _compare_values_as_texts,
    ),
    Patch(
        "outdated_datasets",
        "data/utils.py:61 considers a saved data set current even if its files have changed",
        "RecBole compares their times",
        _always,
        _refuse_outdated_datasets,
    ),
    Patch(
        "row_numbers",
        "data/dataloader/abstract_dataloader.py:66 makes a list of all row numbers, 40 bytes a row",
        "RecBole passes a range",
        _always,
        _number_rows_by_range,
    ),
    Patch(
        "one_process_draws",
        "data/dataloader/abstract_dataloader.py:69 lets worker processes, which have random states of their own, draw "
        "negatives and transforms: results depend on worker",
        "RecBole draws from a generator of the loader",
        _always,
        _draw_in_one_process,
    ),
    Patch(
        "missing_gpus",
        "config/configurator.py:490 falls back to the CPU without a word if gpu_id names a GPU that is not there",
        "RecBole warns",
        _always,
        _report_missing_gpus,
    ),
    Patch(
        "empty_sequences",
        "data/dataset/dataset.py:501 fills a copy under pandas 3: an empty *_seq cell crashes",
        "RecBole assigns the filled column",
        _pandas_copies,
        _read_empty_sequences,
    ),
    Patch(
        "elementwise_len",
        "data/dataset/dataset.py:1217 and sequential_dataset.py:163 call series.agg(len), which counts "
        "rows under pandas 3: token_seq features crash, benchmark files get wrong lengths",
        "RecBole uses map(len)",
        _pandas_copies,
        _measure_elementwise,
    ),
    Patch(
        "anomaly_detection",
        "model/sequential_recommender/sine.py:25 switches autograd's anomaly detection on for every "
        "model as soon as it is imported, which makes training up to twice as slow",
        "sine.py stops doing so",
        _anomaly_detection_set,
        _unset_anomaly_detection,
    ),
    Patch(
        "collector_cpu",
        "evaluator/collector.py:226 calls .cpu() on counts: ItemCoverage, GiniIndex, AveragePopularity "
        "and TailPercentage crash (RecBole #2194)",
        "RecBole merges #2209",
        _always,
        _collect_non_tensors,
    ),
    Patch(
        "plain_checkpoints",
        "trainer/trainer.py:308, :770 and :999 pickle the configuration, which torch.load of torch 2.6 and later "
        "refuses at :323 and :583",
        "RecBole stores plain data",
        _always,
        _store_plain_checkpoints,
    ),
    Patch(
        "quick_start",
        "quick_start/quick_start.py:250 loads a pickled configuration, and :223 calls tune.report as Ray 1 had it",
        "RecBole stores plain data and follows Ray 2",
        _always,
        _prepare_quick_start,
    ),
    Patch(
        "curves_once",
        "trainer/trainer.py:119 writes the same curves in every process of a run, so that each step is there twice",
        "RecBole writes them in the first process",
        _always,
        _write_curves_once,
    ),
    Patch(
        "wandb_settings",
        "utils/wandblogger.py:39 gives wandb the Config object, of which it shows no settings",
        "RecBole passes final_config_dict",
        _always,
        _give_wandb_settings,
    ),
    Patch(
        "search_generator",
        "trainer/hyper_tuning.py:117 makes a RandomState, and hyperopt 0.2.7 draws from a Generator",
        "RecBole calls default_rng",
        _always,
        _draw_with_generators,
    ),
    Patch(
        "our_properties",
        "config/configurator.py:236 looks for property files in RecBole's own folder only",
        "RecBole lets a package add property files",
        _always,
        _read_our_properties,
    ),
    Patch(
        "further_features",
        "data/dataset/dataset.py:172-190 does not filter additional feature files: items that filters removed, or that "
        "are in no interaction, return to the catalogue with their features",
        "RecBole filters additional features",
        _always,
        _filter_further_features,
    ),
    Patch(
        "notices",
        "trainer.py:235, dataset.py:2202 and utils/utils.py:298 make today's libraries warn at each run",
        "RecBole follows their new names",
        _always,
        _silence_notices,
    ),
)
_applied: list[str] = []


def check_installation() -> None:
    """Check that RecBole 1.2.1 and its dependencies are installed.

    Raises:
        PrefError: names the missing packages and the command that installs them.
    """
    try:
        version = importlib.metadata.version("recbole")
    except importlib.metadata.PackageNotFoundError:
        raise PrefError(f"RecBole is not installed: run '{_INSTALL}'.") from None
    if version != RECBOLE_VERSION:
        raise PrefError(
            f"RecBole {version} is installed and RecBole-Pref works with {RECBOLE_VERSION}: run '{_INSTALL}'."
        )
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        quoted = " ".join(f'"{name}"' if "[" in name else name for name in missing)
        raise PrefError(f"packages that RecBole imports are missing: run 'pip install {quoted}'.")


def apply() -> None:
    """Check the installation and apply the necessary patches; repeated calls have no effect."""
    if _applied:
        return
    check_installation()
    for patch in PATCHES:
        if patch.needed():
            patch.change()
            _applied.append(patch.name)


def applied() -> tuple[str, ...]:
    """Return the names of the applied patches."""
    return tuple(_applied)
