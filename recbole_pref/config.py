"""RecBole's ``Config`` with our property files and with settings that are checked.

Order of precedence, as RecBole's: command line over ``config_dict`` over files over defaults. The
defaults are RecBole's own, then ``properties/overall.yaml``, ``method/<Method>.yaml``,
``backbone/<Backbone>.yaml`` and ``dataset/<dataset>.yaml`` of this package.
"""

import codecs
import copy
import hashlib
import importlib.util
import json
import os
import re
import sys
from logging import getLogger
from numbers import Real
from pathlib import Path

import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator.register import metric_information, metrics_dict
from recbole.utils import EvaluatorType, InputType, ModelType
from torch.nn import Module

from recbole_pref.errors import PrefError, suggest
from recbole_pref.evaluation.objective import check_measured, check_objective
from recbole_pref.methods import METHODS, method_of
from recbole_pref.model.names import model_class
from recbole_pref.settings import (
    RECBOLE_SETTINGS,
    SETTINGS,
    check_clipping,
    check_columns,
    check_discretization,
    check_eval_args,
    check_interval,
    check_negatives,
    check_recbole_setting,
    check_setting,
    is_finite,
    shown,
)
from recbole_pref.settings.files import keys_of_models, known_keys, load_properties, parse_value, shipped

# How RecBole's Config refuses a value, on purpose or by tripping over it.
_RECBOLES_REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError,
    AssertionError, SyntaxError, OverflowError,
)  # fmt: skip
# What metrics with a cut-off are computed from.
_CUT = ("rec.topk", "rec.items")
_ANY_DATA_SET = {"inter": ["user_id", "item_id"]}  # RecBole's load_col where there is no property file of the data set
_SEQUENTIAL_EVAL_ARGS = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
_TRANSFORM_KEYS = {"crop_itemseq": "eta", "reorder_itemseq": "beta"}  # RecBole's transforms, what each reads
# Names that columns have or get; two of the same would overwrite each other.
_FIELDS = (
    "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD", "ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD",
)  # fmt: skip
# Settings of training that only <Method><Backbone> models read, and what turns them off.
_OF_OUR_MODELS = {"lr_scheduler": "none", "warmup_ratio": 0, "repeat_bias": False, "max_nan_steps": 0}
# Options of the command line that would do nothing in a file.
_OPTIONS = ("nproc", "world_size", "ip", "port", "group_offset", "plots", "compare", "predict", "tune", "debug")





class Config(RecBoleConfig):
    """RecBole's ``Config`` that refuses what cannot work, in one sentence each.

    Raises:
        PrefError: unknown model, key or metric, a value out of range, a broken property file.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        if config_dict and not isinstance(config_dict, dict):
            raise PrefError(f"config_dict={shown(config_dict)} is not accepted: pass a dict of settings.")
        if isinstance(config_file_list, str):
            raise PrefError(f"config_file_list={shown(config_file_list)} is a text: pass a list of files.")
        config_dict = copy.deepcopy(config_dict) if config_dict else None  # RecBole fills in parts
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except PrefError:
            raise
        except _RECBOLES_REFUSALS as error:
            raise PrefError(" ".join(str(error).split()) or repr(error)) from error

    def _load_internal_config_dict(self, model, cls, dataset):
        super()._load_internal_config_dict(model, cls, dataset)
        if method_of(cls) is None:
            # Baselines are evaluated as our models are; ours come through the plug-in for RecBole.
            stock_training = dict(self.internal_config_dict)
            load_properties(self, cls, dataset)
            kept = ["train_neg_sample_args"]
            if cls.type in (ModelType.CONTEXT, ModelType.DECISIONTREE):  # these predict labels, not ranks
                kept += ["metrics", "valid_metric"]
            for key in kept:
                if key in stock_training:
                    self.internal_config_dict[key] = stock_training[key]
            self._let_cross_entropy_have_no_negatives(cls)

    def _let_cross_entropy_have_no_negatives(self, cls):
        # RecBole refuses its own default negatives for its own default loss of sequential models.
        merged = {**self.internal_config_dict, **self.external_config_dict}
        by_loss_type = not hasattr(cls, "input_type") and merged.get("loss_type") == "CE"
        if by_loss_type and "train_neg_sample_args" not in self.external_config_dict:
            self.internal_config_dict["train_neg_sample_args"] = None

    def _get_model_and_dataset(self, model, dataset):
        model = model if model is not None else self.external_config_dict.get("model")
        if model is None:
            raise PrefError("model is not set: pass --model=LPOSASRec or name one in a config file.")
        if dataset is None and self.external_config_dict.get("dataset") is None:
            raise PrefError("dataset is not set: pass --dataset=ml-100k or name one in a config file.")
        if isinstance(model, str):
            cls = model_class(model)
            if not isinstance(cls, type):  # a name such as __init__, which every module has
                raise PrefError(f"model={shown(model)} does not exist: --list prints all.")
        elif isinstance(model, type) and issubclass(model, Module):
            cls = model
        else:
            raise PrefError(f"model={shown(model)} is neither a name nor a model class.")
        dataset = str(dataset if dataset is not None else self.external_config_dict["dataset"])
        if not re.fullmatch(r"[^/\\\0]{1,100}", dataset) or dataset in (".", ".."):
            raise PrefError(
                f"dataset={shown(dataset)} is no name of a data set: give the name of its folder, and where that "
                "folder lies in data_path."
            )
        return cls.__name__, cls, dataset

    def _load_config_files(self, file_list):
        merged = {}
        for file in map(shipped, file_list or ()):
            if not os.path.isfile(file):
                folder = Path(file).parent
                near = [str(path) for path in folder.glob("*.y*ml")] if folder.is_dir() else []
                raise PrefError(
                    f"config_files names {file!r}, which does not exist.{suggest(file, near)}"
                )
            try:
                with open(file, encoding="utf-8") as stream:
                    content = yaml.load(stream.read(), Loader=self.yaml_loader)
            except (yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
                reason = " ".join(str(error).split())[:300]
                raise PrefError(f"config file {file!r} is not valid YAML: {reason}") from None
            if content is not None and not isinstance(content, dict):
                raise PrefError(f"config file {file!r} must hold lines of the form 'key: value'.")
            merged.update(content or {})
        return merged

    def _convert_config_dict(self, config_dict):
        """Turn texts into numbers, lists and so on, without evaluating them as code."""
        for key, text in config_dict.items():
            if isinstance(text, str):
                config_dict[key] = parse_value(text)
        return config_dict

    def _load_cmd_line(self):
        """Read ``--key=value`` from the command line; values may hold ``=``."""
        if "ipykernel_launcher" in sys.argv[0]:
            return {}
        found, ignored = {}, []
        for argument in sys.argv[1:]:
            key, equals, value = argument[2:].partition("=")
            if not argument.startswith("--") or not equals:
                ignored.append(argument)
            elif found.setdefault(key, value) != value:
                raise PrefError(f"--{key} is given twice, as {found[key]!r} and {value!r}.")
        if ignored:
            getLogger().warning(f"command line args [{' '.join(ignored)}] are not used")
        found = self._convert_config_dict(found)
        unknown = sorted(set(found) - known_keys())
        if unknown:
            getLogger().warning(f"command line settings {unknown} are not known to RecBole-Pref")
        return found

    def _check_keys(self):
        given = {**self.file_config_dict, **self.variable_config_dict}
        if given.get("strict_config", True) is False:
            return
        of_model = known_keys()
        for key in given:
            if key in _OPTIONS:
                raise PrefError(
                    f"{key}={shown(given[key])} is no setting but an option of the command line: write "
                    f"--{key}=... there, or give it to the function that does it in Python."
                )
            if key not in of_model:
                raise PrefError(
                    f"{shown(key)[1:-1]}={shown(given[key])} is not a setting of RecBole or RecBole-Pref."
                    f"{suggest(key, of_model) or ' Set strict_config: False to allow keys of your own.'}"
                )

    def refuse_unread(self, keys, where):
        """Refuse settings that have no default for this <Method><Backbone>: they would do nothing.

        Args:
            keys (iterable of str): settings that were given for this model alone.
            where (str): what messages begin with.

        Raises:
            PrefError: names the first of another method or backbone.
        """
        if method_of(self.model_class) is None:
            return
        of_losses = {name for method in METHODS.values() for name in method.setting_names}
        own = self.internal_config_dict
        foreign = (keys_of_models() | of_losses) - own.keys()
        for key in keys:
            if key in foreign:
                raise PrefError(f"{where}{self.model} has no setting {key}: leave it out.{suggest(key, own)}")

    def _set_default_parameters(self):
        self._check_keys()
        self._check_values()
        known = sorted(metrics_dict)
        metrics = self.final_config_dict.get("metrics")
        for metric in [metrics] if isinstance(metrics, str) else metrics or []:
            if not isinstance(metric, str) or metric.lower() not in metrics_dict:
                raise PrefError(
                    f"metrics names {shown(metric)}, which does not exist.{suggest(metric, known)}"
                )
        for key in ("eval_args", "topk", "valid_metric", "metrics"):
            if not self.final_config_dict.get(key):
                raise PrefError(f"{key} is empty: set it or remove the line to use the default.")
        super()._set_default_parameters()
        self._check_valid_metric()
        self._check_evaluation()

    def _check_evaluation(self):
        final = self.final_config_dict
        pairs = final.get("MODEL_INPUT_TYPE") == InputType.PAIRWISE
        if pairs and not (final.get("train_neg_sample_args") or {}).get("distribution"):
            raise PrefError(
                f"train_neg_sample_args is empty, and {self.model} compares with negatives: set it to "
                "{distribution: uniform, sample_num: 1}."
            )
        if final["eval_type"] == EvaluatorType.RANKING and "labeled" in final["eval_args"]["mode"].values():
            raise PrefError(
                "eval_args, mode: 'labeled' goes with value metrics such as AUC, not with ranking metrics such as "
                f"{final['metrics'][0]}: set mode to full or uni100."
            )
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final["eval_args"]["order"] != "TO":
            raise PrefError(
                f"eval_args, order: {final['eval_args']['order']!r} does not go with sequential models: set it to TO."
            )

    def _check_valid_metric(self):
        final = self.final_config_dict
        self._check_cutoff("valid_metric", final["valid_metric"])
        check_measured(final["valid_metric"], final["metrics"], final["topk"], "valid_metric")
        objective = final.get("objective")
        if not objective:
            return
        if not isinstance(objective, dict) or not all(isinstance(part, str) for part in objective):
            raise PrefError(
                f"objective={shown(objective)} names no weights: write objective: {{weights: {{NDCG@10: 1.0}}}}."
            )
        for part in objective.values():
            for metric, number in part.items() if isinstance(part, dict) else ():
                self._check_cutoff("objective", str(metric))
                if isinstance(number, Real) and not is_finite(number):
                    raise PrefError(f"objective: {metric}={shown(number)} is not a finite number.")
        check_objective(objective, final["metrics"], final["topk"])

    def _check_cutoff(self, key, wanted):
        name, at, k = wanted.partition("@")
        topk = self.final_config_dict["topk"]
        needs = metric_information.get(name.lower())
        if needs is None:
            return  # an unknown name, which is told elsewhere
        has_cutoffs = any(need.startswith(_CUT) for need in needs)
        if has_cutoffs and k not in map(str, topk):
            more = f"add {k} to it or " if k.isdigit() else ""
            raise PrefError(
                f"{key}={shown(wanted)} is not measured: topk is {shown(topk)}, {more}write "
                f"{name}@{topk[0]}."
            )
        if at and not has_cutoffs:
            raise PrefError(f"{key}={shown(wanted)} is not measured: {name} has no cut-offs, write {name}.")

    def _check_values(self):
        final = self.final_config_dict
        own = getattr(self.model_class, "own_settings", {})
        for key, setting in own.items():
            if key in final:
                check_setting(key, final[key], setting)
        for table, check in ((SETTINGS, check_setting), (RECBOLE_SETTINGS, check_recbole_setting)):
            for key in table:
                if key in final and key not in own:
                    check(key, final[key])
                    final[key] = self._tidied(key, final[key], table[key])
        self._check_texts()
        sequential = getattr(self.model_class, "type", None) == ModelType.SEQUENTIAL
        given = self.file_config_dict.keys() | self.variable_config_dict.keys()
        if sequential and final["load_col"] == _ANY_DATA_SET and not given & {"load_col", "benchmark_filename"}:
            # RecBole's default for data sets that it does not know leaves out what orders the sequences.
            final["load_col"] = {"inter": [final[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]}
        if sequential and isinstance(final["eval_args"], dict):
            # RecBole fills what is left out with a random 80/10/10 split, which is not what it has for these models.
            final["eval_args"] = {**_SEQUENTIAL_EVAL_ARGS, **final["eval_args"]}
        check_eval_args(final["eval_args"])
        check_negatives(final.get("train_neg_sample_args") or {})
        check_clipping(final.get("clip_grad_norm") or {})
        self._check_data()
        self._check_topk()
        loss_type = final.get("loss_type")
        method = method_of(self.model_class)
        if method is None:
            exact = str(loss_type).upper()
            if loss_type not in (None, exact) and exact in ("CE", "BPR"):
                raise PrefError(f"loss_type={loss_type!r} is not accepted. Did you mean '{exact}'?")
            self._refuse_what_is_not_read()
            return
        missing = [key for key in method.setting_names if final.get(key) is None]
        if missing:
            raise PrefError(f"{missing[0]} is not set: {method.name} needs it in a property file.")
        if final["lambda"] == 0 and final["ce_weight"] == 0:
            raise PrefError("lambda and ce_weight are both 0: nothing would be learnt, set one above 0.")
        objective = final.get("objective")
        wants_reference = isinstance(objective, dict) and objective.get("of_reference")
        if final["reference"] == "none" and wants_reference:
            raise PrefError(
                "objective: of_reference compares with a reference model, and reference is 'none': set it to "
                "auto or to the path of a checkpoint."
            )
        if final["reference"] == "none" and method.needs_reference(final):
            by_loss = method.uses_reference(final)
            what = f"{method.name} compares with" if by_loss else "neg_sampler='reference_pool' draws from"
            raise PrefError(
                f"reference='none' is not possible: {what} a reference model, "
                "set reference to auto or to the path of a checkpoint."
            )
        if "tawin_anchor" in method.setting_names and final["lambda"] > 0:
            self._check_anchor()
        loss_type = self.external_config_dict.get("loss_type", "CE")
        if loss_type != "CE":
            raise PrefError(
                f"loss_type={shown(loss_type)} does not go with {self.model}: leave it at 'CE', "
                "the method brings its own loss."
            )

    def _refuse_what_is_not_read(self):
        """Refuse settings that change how our models are trained and that RecBole's own know nothing of."""
        final = self.final_config_dict
        objective = final.get("objective")
        given = [key for key, off in _OF_OUR_MODELS.items() if final.get(key) not in (None, off)]
        if isinstance(objective, dict) and objective.get("of_reference"):
            given.append("objective: of_reference")
        if given:
            raise PrefError(
                f"{given[0]} does nothing with {self.model}, which is RecBole's own: leave it out, or take a "
                "<Method><Backbone> model (CESASRec is SASRec with cross-entropy)."
            )

    def _check_anchor(self):
        final = self.final_config_dict
        anchor, negatives = final["tawin_anchor"], final["num_negatives"]
        if anchor == "auto" and not str(final["valid_metric"]).partition("@")[2].isdigit():
            raise PrefError(
                "tawin_anchor='auto' takes the cut-off of valid_metric, and "
                f"valid_metric={shown(final['valid_metric'])} has none: set tawin_anchor to a whole number."
            )
        if anchor != "auto" and anchor >= negatives:
            raise PrefError(
                f"tawin_anchor={anchor} lies beyond the {negatives} negatives, ranks 0 to {negatives - 1}: set "
                f"num_negatives to {2 * (anchor + 1)} or tawin_anchor to less."
            )

    def _tidied(self, key, value, setting):
        """Return an accepted value in the form in which RecBole can use it."""
        if setting.kind is int and isinstance(value, float):
            return int(value)  # YAML reads 1e3 as 1000.0
        if key in RECBOLE_SETTINGS and setting.kind is list and isinstance(value, str):
            return [value]
        if key == "numerical_features":
            return value or []
        return value or None if key in ("threshold", "benchmark_filename", "seq_len") else value

    def _check_data(self):
        final = self.final_config_dict
        for key in ("user_inter_num_interval", "item_inter_num_interval"):
            if final.get(key) is not None:
                check_interval(key, final[key])
        for key in ("load_col", "unload_col", "unused_col"):
            check_columns(key, final.get(key) or {})
            if final.get(key):
                final[key] = {source: names or [] for source, names in final[key].items()}
        for field, values in (final.get("preload_weight") or {}).items():
            if not isinstance(values, str):
                raise PrefError(f"preload_weight, {field}: {shown(values)} is not accepted: name a column.")
        check_discretization(final.get("discretization") or {})
        for field, length in (final.get("seq_len") or {}).items():
            check_recbole_setting("MAX_ITEM_LIST_LENGTH", length, f"seq_len, {field}")
        try:
            b"".decode(codecs.lookup(final.get("encoding") or "utf-8").name)
        except LookupError:
            raise PrefError(f"encoding={shown(final['encoding'])} does not exist: use utf-8.") from None
        roles = {}
        for key in _FIELDS:
            other = roles.setdefault(final.get(key), key)
            if other != key:
                raise PrefError(f"{key}={shown(final[key])} is the {other} as well: give it another name.")
        parts = final.get("benchmark_filename")
        if parts and len(parts) != 3:
            raise PrefError(
                f"benchmark_filename={shown(parts)} is not accepted: name three parts such as [train, valid, test]."
            )
        needed = self.internal_config_dict.get("transform")
        if needed and final.get("transform") != needed:
            raise PrefError(
                f"transform={shown(final.get('transform'))} does not go with {self.model}: leave it at {needed!r}."
            )
        if final.get("transform") == "mask_itemseq":
            share, length = final.get("mask_ratio"), final["MAX_ITEM_LIST_LENGTH"]
            if share is None or int(share * length) < 1:
                raise PrefError(
                    f"mask_ratio={share} masks no item of MAX_ITEM_LIST_LENGTH={length}: set a larger one, as "
                    "transform='mask_itemseq' needs it."
                )
        needed = _TRANSFORM_KEYS.get(final.get("transform"))
        if needed and not isinstance(final.get(needed), Real):
            raise PrefError(f"{needed} is not set: transform={final['transform']!r} needs it, as a share below 1.")

    def _check_texts(self):
        final = self.final_config_dict
        for key, value in final.items():
            if isinstance(value, int) and abs(value) >= 2**63:  # no library below counts further
                raise PrefError(f"{key}={shown(value)} is not accepted: set it to a smaller number.")
            if isinstance(value, str) and not _is_utf8(value):
                raise PrefError(f"{key}={shown(value)} is not accepted: write it in UTF-8.")
        stem = final.get("run_stem")
        if stem and (os.path.basename(stem) != stem or len(stem.encode()) > 200):
            raise PrefError(
                f"run_stem={shown(stem)} is not accepted: set it to a file name of at most 200 characters."
            )
        gpu = final.get("gpu_id")
        if isinstance(gpu, list):  # of YAML or JSON
            gpu = final["gpu_id"] = tuple(gpu)
        several = isinstance(gpu, tuple) and all(type(number) is int for number in gpu)
        if not several and (not isinstance(gpu, (str, int)) or not str(gpu).isprintable()):
            raise PrefError(f"gpu_id={shown(gpu)} is not accepted: set it to a number or to several, such as '0,1'.")
        if final.get("log_wandb") and importlib.util.find_spec("wandb") is None:
            raise PrefError("log_wandb=True needs the package wandb: run 'pip install wandb' or leave it out.")

    def _check_topk(self):
        final = self.final_config_dict
        for key in ("topk", "metrics"):
            if isinstance(final.get(key), tuple):  # --topk=5,10
                final[key] = list(final[key])
        topk = final.get("topk")
        cutoffs = topk if isinstance(topk, list) else [topk]
        sound = all(isinstance(k, int) and not isinstance(k, bool) and 0 < k < 2**31 for k in cutoffs)
        if not 0 < len(cutoffs) <= 100 or not sound:
            raise PrefError(
                f"topk={shown(topk)} is not accepted: set it to at most 100 whole numbers above 0, as [5, 10]."
            )


def given_data_path(config):
    """Return ``data_path`` as it was given: RecBole appends the data set's name to it.

    Args:
        config (Config or Mapping): a configuration, or what a checkpoint holds of one.
    """
    return config["data_path"].removesuffix(config["dataset"]) or "."


def absolute_paths(config):
    """Return the settings that name files to read, absolute, for processes that work in other folders: dict."""
    paths = {"data_path": given_data_path(config), "reference_dir": config["reference_dir"]}
    if config["reference"] not in ("none", "auto"):
        paths["reference"] = config["reference"]
    return {key: os.path.abspath(path) for key, path in paths.items() if path}


def digest_of_defaults(config):
    """Return what tells runs with the same settings apart: a hash of all defaults, and of a plugin's file.

    Another version of a package or an edited property file gives another one.
    """
    # Of RecBole's own models this one follows the given loss_type.
    defaults = {key: value for key, value in config.internal_config_dict.items() if key != "train_neg_sample_args"}
    made_of = [defaults, getattr(method_of(config.model_class), "source", None)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()


def _is_utf8(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are none
        return False
    return True
