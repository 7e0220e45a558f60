"""Drawn mistakes: each ends in one sentence, each sound run ends well, and no file is lost.

The draws are the same in every run (``derandomize``); to look further, raise the number of examples and
take that out.
"""

import contextlib
import io
import json
import logging
import math
import os
import pickle
import random
import re
import shutil
import sys
import threading
import types
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recbole.data import create_dataset

from recbole_pref import checkpoint, cli, quick_start
from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.data.check import check_atomic_files
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref
from recbole_pref.settings import SETTINGS, setting_of
from recbole_pref.settings.files import readable_keys
from tests.conftest import write_atomic

N_USERS, N_ITEMS = 12, 10
SEQUENCES = [[(user + step * (1 + user % 3)) % N_ITEMS for step in range(4 + user % 4)] for user in range(N_USERS)]
COLUMNS = ["user_id", "item_id", "timestamp"]
ITEMS = "item_id:token\tprice:float\tkind:token_seq\n" + "".join(f"i{n}\t{n}.5\ta b\n" for n in range(N_ITEMS))
# The shortest run there is; every example starts from it.
SMALL = {
    "load_col": {"inter": COLUMNS}, "MAX_ITEM_LIST_LENGTH": 5, "epochs": 1, "reference_epochs": 1,
    "train_batch_size": 16, "eval_batch_size": 16, "topk": [2, 5], "valid_metric": "NDCG@5",
    "metrics": ["Hit", "NDCG"], "n_layers": 1, "n_heads": 1, "hidden_size": 4, "inner_size": 4,
    "embedding_size": 4, "nv": 1, "nh": 1, "num_negatives": 1, "pool_size": 3, "state": "ERROR", "gpu_id": "",
    "use_gpu": False,
}  # fmt: skip
LONGEST = 600  # characters of a message
# Python messages that users should not see.
PYTHON = re.compile(r"object (has|is|does)|unexpected keyword|unsupported operand|NoneType|positional|Traceback")


def fuzz(examples):
    """Return hypothesis settings under which a test is the same in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the data set ``f``."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_atomic(folder / "data", "f", SEQUENCES)
    (folder / "data" / "f" / "f.item").write_text(ITEMS)
    return folder


def small(folder, more=None):
    """Return the settings of the shortest run on the data set in ``folder``, and more."""
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return {**SMALL, **places, **(more or {})}


def snapshot(folder):
    """Return the bytes of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_sentence(error, *names):
    """Check that a refusal is one short sentence for its reader that names one of ``names``."""
    text = str(error)
    assert text.strip() and "\n" not in text and not PYTHON.search(text), text
    assert len(text) <= LONGEST, text
    assert any(name in text for name in names), text


def quiet():
    """Close what a run's logging left open."""
    logger = logging.getLogger()
    for handler in list(logger.handlers):
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            logger.removeHandler(handler)
            handler.close()


def end_of(folder, model, names, **options):
    """Run and check the ending.

    Args:
        folder (Path): holds ``data/f/f.inter``.
        model: model name, or the value that was drawn instead.
        names (iterable of str): what a refusal may be about.
        **options: arguments of ``run_recbole_pref``.

    Returns:
        str: ``ran``, or the sentence of the refusal.
    """
    before = snapshot(folder / "data")
    try:
        result = run_recbole_pref(model, "f", saved=False, **options)
        assert result["test_result"], result
        assert all(math.isfinite(value) for value in result["test_result"].values()), result
        return "ran"
    except PrefError as error:
        assert_sentence(error, *names)
        return str(error)
    finally:
        assert snapshot(folder / "data") == before
        shutil.rmtree(folder / "saved", ignore_errors=True)
        quiet()


# Configurations

MODELS = [
    "CESASRec", "LPOSASRec", "SDPOGRU4Rec", "DPOCaser", "DynamicPOSASRec", "RoDPOSASRec", "TAWinSASRec",
    "SimPOSASRec", "ORPOCaser", "MPPOGRU4Rec", "DMPOSASRec", "RoDPOMMSASRec", "DPONARM", "SASRec", "GRU4Rec",
    "Caser", "NARM", "STAMP", "FPMC", "BERT4Rec", "BPR",
]  # fmt: skip
NO_MODELS = ["LPOSASRek", "LP0SASRec", "sasrec", "LPO", "", "Ünïcode", "SASRec ", "../SASRec", "__init__", ".", 3]
HUGE = 10**12
NUMBERS = [0, 1, 2, 3, 0.0, 0.1, 0.5, 0.9, 1.0, 2.0, -1, -0.5, 1e-30, 1e30]
ODD = [
    None, True, "", " ", "auto", "none", "é ü 雪", "\0", "a\nb", "nan", "[1", "x" * 3000, "\udcff", [], {}, [[]],
    [None], {"a": {"b": [1, {}]}}, {1: 2}, (), (1, 2), b"x", object, [1] * 500, ["é"], [math.nan], math.nan,
    math.inf, -math.inf, HUGE, -HUGE, 10**400, 1e300,
]  # fmt: skip
# Values of RecBole's keys: what works, at least with some models, and what nothing can work with.
RECBOLE = {
    "epochs": ([0, 1, 2, 1.0, "1"], [-1, 1.5]),
    "train_batch_size": ([1, 2, 16.0, HUGE], [0]),
    "eval_batch_size": ([1, 2, 16.0, HUGE], [0]),
    "learning_rate": ([1e-3, 1, 1e-30, "0.1", 1e30], [1e300, 0]),
    "topk": ([5, [5, 2], "5", (2, 5), [5, 5], [10], [11, 5], [10**6, 5]],
             [[0], [-1], [1.5], ["5"], [True], [2, None], {2: 5}]),
    "metrics": (["NDCG", ["ndcg"], ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC"], ["NDCG", "NDCG"],
                 ["ItemCoverage", "NDCG", "GiniIndex"], ["TailHit", "HeadHit", "NDCG"],
                 ["ShannonEntropy", "AveragePopularity", "TailPercentage", "NDCG"]],
                [["NDCG", "AUC"], [["NDCG"]], {"NDCG": 1}, [None], "NDCG@5"]),
    "valid_metric": (["NDCG@5", "ndcg@2", "Hit@5"],
                     ["NDCG", "hit@05", "NDCG@", "@5", "NDCG@5@2", "NDCG@x", "NDCG@²", "AUC", "MRR@5", 5]),
    "objective": ([{"weights": {"NDCG@5": 1}}, {"weights": {"NDCG@5": 1}, "at_least": {"Hit@2": 0.1}}],
                  [{"weights": {"NDCG@5": math.inf}}, {"weights": {"NDCG": 1}}, {"weights": {}}, "NDCG@5",
                   {"wieghts": {}}, {"weights": {5: 1}}, {"weights": {"NDCG@5": 10**400}}, "NDCG@5", math.nan,
                   {"weights": {"NDCG@5": 1}, "at_least": 5}, {"weights": {"NDCG@5": 1}, "of_reference": 5}]),
    "eval_args": ([{"order": "TO", **more} for more in (
                      {}, {"mode": "full"}, {"mode": "uni3"}, {"mode": "pop3"}, {"mode": "uni100"},
                      {"mode": {"valid": "uni3", "test": "full"}}, {"mode": {}}, {"group_by": "user"},
                      {"group_by": "none"}, {"split": {"LS": "valid_and_test"}}, {"split": {"LS": "test_only"}},
                      {"split": {"RS": [0.8, 0.1, 0.1]}}, {"split": {"TS": [0.8, 0.1, 0.1]}})],
                  [{"order": "TO", **more} for more in (
                      {"mode": "uni"}, {"mode": "unix"}, {"mode": "uni-1"}, {"mode": "uni0"}, {"mode": "labeled"},
                      {"mode": {"valid": 3}}, {"mode": None}, {"mode": ["full"]}, {"mode": "ful"},
                      {"order": "XX"}, {"order": None}, {"group_by": "item"}, {"split": {"LS": "x"}},
                      {"split": {"RS": [0, 0, 0]}}, {"split": {"RS": [1]}}, {"split": {"RS": "x"}},
                      {"split": {"RS": [-1, 1, 1]}}, {"split": {"RS": [0.5, math.nan, 0.5]}}, {"split": {}},
                      {"split": None}, {"split": "LS"}, {"slpit": 1}, {1: 2},
                      {"split": {"LS": "valid_and_test", "RS": [8, 1, 1]}})]),
    "MAX_ITEM_LIST_LENGTH": ([1, 2, 5, 50, 5.0], [0, -1, HUGE]),
    "hidden_size": ([1, 4, 5, 4.0], [0]),
    "embedding_size": ([1, 4, 5], [0]),
    "inner_size": ([1, 4], [0]),
    "n_heads": ([1, 2, 4, 1.0], [0, -2]),
    "n_layers": ([1, 2, 1.0], [0, -1, HUGE]),
    "num_layers": ([1, 2, 1.0], [0, HUGE]),
    "hidden_act": (["gelu", "relu", "swish", "tanh", "sigmoid"], ["x", 3]),
    "layer_norm_eps": ([1e-12, 0], [-1, "x", math.nan]),
    "initializer_range": ([0.02, 0, 1e30], [-1, "x", math.nan]),
    "hidden_dropout_prob": ([0, 0.5, 0.999], [1, -0.1, "x"]),
    "attn_dropout_prob": ([0, 0.5], [1, -0.1]),
    "dropout_prob": ([0, 0.5, "0.1"], [1]),
    "weight_decay": ([0, 0.1, 1e30], [-1, "x"]),
    "stopping_step": ([0, 1, 10, 1.0], [-1, 1.5, "x"]),
    "eval_step": ([0, 1, 2, 1.0, 100], [-1, "x"]),
    "clip_grad_norm": ([None, {}, {"max_norm": 5}, {"max_norm": 5, "norm_type": 2}, "{'max_norm': 5}"],
                       [{"max_norm": "x"}, {"max_nrom": 5}, {"max_norm": -1}, {"max_norm": math.nan}, 5, True, [5],
                        {"norm_type": 2}, {"max_norm": 0}]),
    "load_col": ([None, {"inter": "*"}, {"inter": [*COLUMNS, "x"]}, {"inter": COLUMNS, "item": ["item_id", "price"]},
                  {"inter": COLUMNS, "item": ["item_id", "kind"]}, {"inter": COLUMNS, "item": None}],
                 [{}, {"inter": None}, {"inter": []}, {"inter": "user_id"}, {"inter": ["user_id"]},
                  {"inter": COLUMNS, "item": ["price"]}, {"inter": COLUMNS, "user": ["user_id"]},
                  {"inter": COLUMNS, "itme": ["item_id"]}, {"inter": [1, 2]}, {"inter": 5},
                  {"inter": {"user_id": 1}}, [["user_id"]], "inter", {"x": ["y"]}, {1: 2}]),
    "unload_col": ([None, {}], [{"inter": ["timestamp"]}, {"inter": "timestamp"}, "inter", ["x"], 5]),
    "user_inter_num_interval": (["[0,inf)", "[2,inf)", "(3,6]", "[0,1];[3,9]", None],
                                ["[1000,inf)", "[5,2]", "", "x", "[a,b]", "[0,inf", ";", 3]),
    "item_inter_num_interval": (["[0,inf)", "[2, inf)"], ["[1000,inf)", "[0,0]", "5", ["[0,inf)"]]),
    "val_interval": ([None, {}, {"timestamp": "[1,inf)"}, {"item_id": ["i1", "i2", "i3", "i4", "i5"]}],
                     [{"timestamp": "[1000,inf)"}, {"timestamp": "x"}, {"timestamp": ""}, {"item_id": 5},
                      {"x": "[0,1]"}, "timestamp", [1], {1: 2}, {"timestamp": None}, {"timestamp": 3}]),
    "filter_inter_by_user_or_item": ([True, False], ["x", None]),
    "rm_dup_inter": ([None, "first", "last"], ["x", 3, True]),
    "seed": ([0, 2020, 2**32 - 1, 1.0], [2**32, -1, 1.5, "x"]),
    "reproducibility": ([True, False], ["x"]),
    "device": (["cpu", "x", 3, None], []),
    "gpu_id": (["", "0", 0, "0,1", (0, 1), [0, 1], -1], [None, [None], ("0", "x")]),
    "use_gpu": ([True, False], ["x"]),
    "train_neg_sample_args": ([None, {}, {"distribution": "uniform"}, {"distribution": "popularity"},
                               {"distribution": "uniform", "sample_num": 2}, {"distribution": None},
                               {"distribution": "uniform", "dynamic": True, "candidate_num": 2}],
                              [{"distribution": "popularity", "alpha": "x"}, {"distribution": "x"},
                               {"distribution": "uniform", "sample_num": 0}, {"distribution": "uniform", "sample_num": "x"},
                               {"distribution": "uniform", "dynamic": True}, {"dist": "uniform"}, 5, "uniform",
                               {"distribution": "uniform", "dynamic": "x", "candidate_num": -1}, ["uniform"]]),
    "loss_type": (["CE", "BPR"], ["ce", "x", 3]),
    "learner": (["adam", "AdamW", "sgd", "adagrad", "rmsprop"], ["sparse_adam", "x", 3, None]),
    "state": (["INFO", "error", None], ["x", 3]),
    "shuffle": ([True, False], ["x", None]),
    "enable_amp": ([True, False], ["x", None]),
    "enable_scaler": ([True, False], ["x", None]),
    "worker": ([0, 0.0], [-1, "x", 1.5, HUGE]),
    "loss_decimal_place": ([None, 4, 0], [-1, "x", 1.5]),
    "metric_decimal_place": ([4, 0, 17, 4.0], [-1, "x"]),
    "repeatable": ([True], [False, "x", None]),
    "transform": ([None], ["mask_itemseq", "x", 3]),
    "USER_ID_FIELD": (["user_id"], ["item_id", "timestamp", "x", None, 3, ""]),
    "ITEM_ID_FIELD": (["item_id"], ["user_id", "x", None, 3]),
    "TIME_FIELD": (["timestamp"], ["user_id", "x", None]),
    "LIST_SUFFIX": (["_list", "é"], ["", None, 3]),
    "ITEM_LIST_LENGTH_FIELD": (["item_length", "x"], ["item_id", None, 3]),
    "POSITION_FIELD": (["position_id"], [None, 3]),
    "NEG_PREFIX": (["neg_"], ["", None, 3]),
    "LABEL_FIELD": (["label"], ["timestamp", None, 3]),
    "threshold": ([None, {}], [{"timestamp": 2}, {"x": 2}, {"timestamp": "x"}, 5]),
    "field_separator": (["\t"], [",", "", "ab", None, 3]),
    "seq_separator": ([" ", ","], ["", None, 3]),
    "seq_len": ([None, {}, {"kind": 1}], [{"kind": 0}, {"kind": "x"}, 5, "x"]),
    "encoding": (["utf-8", "latin-1", None], ["utf-16", "x", "hex", 3]),
    "additional_feat_suffix": ([None, []], [["x"], "x", 5]),
    "unused_col": ([None, {}, {"inter": ["timestamp"]}],
                   [{"inter": ["user_id"]}, {"item": ["price"]}, {"x": ["y"]}, 5, "inter"]),
    "numerical_features": ([[], ["timestamp"], "timestamp", None], [["x"], 5, "x"]),
    "normalize_field": ([None, [], ["timestamp"]], [["x"], 5]),
    "normalize_all": ([None, True, False], ["x"]),
    "discretization": ([None, {}], [{"timestamp": {"method": "ED"}}, {"x": {}}, {"x": {"method": "LD"}}, 5]),
    "preload_weight": ([None, {}], [{"item_id": "price"}, {"x": "y"}, 5]),
    "alias_of_user_id": ([None, []], [["x"], ["item_id"], 5]),
    "alias_of_item_id": ([None, []], [["x"], ["user_id"], "x"]),
    "benchmark_filename": ([None, []], [["x"], ["train", "valid", "test"], "x", 5]),
    "data_path": ([], [3, None, "", "nowhere", "\0", "x" * 3000, "x" * 300]),
    "checkpoint_dir": (["other", "a b/é"], [3, None, "", "\0", "a" * 300, "/proc/x"]),
    "show_progress": ([False], ["x"]),
    "save_dataset": ([True, False], ["x"]),
    "save_dataloaders": ([True, False], ["x"]),
    "dataset_save_path": ([None], [3]),
    "dataloaders_save_path": ([None], [3]),
    "mask_ratio": ([0.2, 1], [0, "x"]),
    "nv": ([1, 2], [0, "x"]),
    "nh": ([1, 2], [0, "x"]),
    "reg_weight": ([1e-4, 0], []),
    "require_pow": ([True], ["x"]),
    "log_wandb": ([False], [None, "x"]),
    "neg_sampling": ([None], []),
    "resume": ([True, False, None, ""], ["nowhere.pth", 3]),
    "result_file": ([None, "", "out/result.json"], ["\0", "/proc/x/y.json", 3]),
    "reference": (["auto", "none"], ["", "nowhere.pth", 3, "/"]),
    "reference_dir": ([None, "", "other"], ["\0", 3]),
    "run_stem": ([None, "", "é", "mine"], ["a/b", "\0", "x" * 300, "../x", 3]),
    "mm_fields": (["auto", ["price"], "price"], [[], 5]),
    "strict_config": ([False], ["x"]),
}  # fmt: skip


def sound_values(key):
    """Return values of a key that work, at least with some models."""
    if key in RECBOLE:
        return RECBOLE[key][0]
    setting = SETTINGS[key]
    border = [setting.low, setting.high, setting.low + 1e-9, setting.high - 1e-9]
    candidates = [*setting.choices, True, False, *border, *NUMBERS]
    return [value for value in candidates if setting.accepts(value)]


def wrong_values(key):
    """Return values of a key of which none can work. A path may be a number: it is the name of a folder or a file."""
    values = RECBOLE[key][1] if key in RECBOLE else [*NUMBERS, *ODD, "x"]
    setting = setting_of(key)
    if setting is not None and setting.path:
        values = [value for value in values if isinstance(value, bool) or not isinstance(value, (int, float))]
    return values if key in RECBOLE else [value for value in values if not setting.accepts(value)]


KEYS = sorted({*SETTINGS, *RECBOLE})
SOUND_KEYS = [key for key in KEYS if sound_values(key)]


@st.composite
def configurations(draw):
    """Draw a model and settings: some sound, at most one odd, rarely a misspelt key."""
    model = draw(st.sampled_from(MODELS))
    chosen = draw(st.lists(st.sampled_from(SOUND_KEYS), max_size=5, unique=True))
    drawn = {key: draw(st.sampled_from(sound_values(key))) for key in chosen}
    mistake = draw(st.sampled_from(["none", "none", "wrong", "odd", "drawn", "key", "model"]))
    key = draw(st.sampled_from(KEYS))
    if mistake == "wrong":
        drawn[key] = draw(st.sampled_from([*wrong_values(key), None]))
    elif mistake == "odd":
        drawn[key] = draw(st.sampled_from(ODD))
    elif mistake == "drawn":
        drawn[key] = draw(st.one_of(st.text(max_size=8), st.floats(), st.lists(st.text(max_size=3), max_size=3)))
    elif mistake == "key":
        drawn[draw(st.one_of(st.text(max_size=8), st.sampled_from(["taau", 3, None, "\n", "x" * 3000])))] = 1
    elif mistake == "model":
        model = draw(st.one_of(st.sampled_from(NO_MODELS), st.text(max_size=8)))
    return model, drawn


@fuzz(120)
@given(configurations())
def test_any_configuration_ends_well_or_in_a_sentence(workshop, drawn):
    model, given_settings = drawn
    names = [*readable_keys(), "f.inter", "model", "not a setting"]
    end_of(workshop, model, names, config_dict=small(workshop, given_settings))


def test_every_wrong_value_is_refused_by_name(workshop):
    for key in KEYS:
        values = wrong_values(key) if key in RECBOLE else wrong_values(key)[::12]
        for number, value in enumerate(values):
            drawn, model = small(workshop, {key: value}), ("DPOSASRec", "LPOSASRec")[number % 2]
            assert end_of(workshop, model, [key, ".inter"], config_dict=drawn) != "ran", (key, value)


# Data files

GOOD = "\n".join(
    ["\t".join(["user_id:token", "item_id:token", "timestamp:float"])]
    + [f"u{user}\ti{item}\t{time}" for user, items in enumerate(SEQUENCES) for time, item in enumerate(items)]
)
CELLS = [
    "", "nan", "NaN", "inf", "-inf", "NA", "None", "null", "0", "-1", "1e400", "1e-400", "9" * 400, "-" * 3, "1,5",
    "1 000", "０", "٣", "0x10", "1_000", "True", '"', '"a', 'a"', '""', '"NA"', '"a""b"', '"5"', '"a"b', "'", "#", "\\", "\ufeff", "\u2028", "\x85",
    "\x0b", "\x1c", "\x1f", " ", " u0", "u0 ", "[PAD]", "é", "雪", "x" * 70000, "a\tb", "a b", "1970-01-01", "=1+1",
]  # fmt: skip
HEADS = [
    "user_id:token\titem_id:token", "user_id:token\titem_id:token\ttimestamp:token", "user_id\titem_id\ttimestamp",
    "user_id:token\titem_id:token\ttimestamp:float\t", "user_id:token\tuser_id:token\ttimestamp:float", "",
    "item_id:token\tuser_id:token\ttimestamp:float", "user_id:float\titem_id:float\ttimestamp:float",
    "user_id:token_seq\titem_id:token\ttimestamp:float", "user_id:token\titem_id:token\ttimestamp:float_seq",
    "user_id:token,item_id:token,timestamp:float", "user_id:token item_id:token timestamp:float",
    "user_id:token\titem_id:token\ttimestamp:float\trating:float", ":token\t:token\t:float", "a:b:c\td:e\tf:g",
    "user_id:token\titem_id:token\ttimestamp:float\titem_length:float", '"user_id:token"\titem_id:token\ttimestamp:float',
    "user_id:token\titem_id_list:token_seq\ttimestamp:float", "user_id:token \titem_id:token\ttimestamp:float",
]  # fmt: skip


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damages(draw):
    """Draw the bytes of an interaction file with up to three damages."""
    lines = GOOD.split("\n")
    raw = None
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        lines = (raw or encoded("\n".join(lines))).decode("utf-8", "surrogateescape").split("\n")
        at = draw(st.integers(min(1, len(lines) - 1), len(lines) - 1))
        cells = lines[at].split("\t")
        cell = draw(st.integers(0, len(cells) - 1))
        kind = draw(st.sampled_from([
            "cell", "cell", "name", "name", "order", "double", "head", "drop", "double", "header", "column", "separator", "ends", "blank", "swap",
            "filter", "bytes", "bytes", "cut", "wrap", "same",
        ]))  # fmt: skip
        if kind == "cell":
            cells[cell] = draw(st.one_of(st.sampled_from(CELLS), st.text(max_size=6)))
            lines[at] = "\t".join(cells)
        elif kind == "name":  # another user or item: the file is still valid
            which = draw(st.sampled_from([0, 1]))
            cells[min(which, len(cells) - 1)] = draw(st.one_of(st.text("abc 09é雪-_.:;'\\", min_size=1), st.just("u3")))
            lines[at] = "\t".join(cells)
        elif kind == "order":
            lines[1:] = random.Random(at).sample(lines[1:], len(lines) - 1)
        elif kind == "head":
            lines[0] = draw(st.sampled_from(HEADS))
        elif kind == "drop":
            lines[at] = "\t".join(cells[:cell] + cells[cell + 1 :])
        elif kind == "double":
            lines[at:at] = [lines[at]] * draw(st.sampled_from([1, 2, 40]))
        elif kind == "header":
            lines.insert(at, lines[0])
        elif kind == "column":
            value = draw(st.sampled_from(CELLS))
            lines = [line.rpartition("\t")[0] + "\t" + value for line in lines]
        elif kind == "separator":
            wrong = draw(st.sampled_from([",", " ", "  ", ";", "|"]))
            lines = [line.replace("\t", wrong) for line in lines]
        elif kind == "ends":
            lines = [line + draw(st.sampled_from(["\r", " ", "\t"])) for line in lines]
        elif kind == "blank":
            lines[at:at] = [draw(st.sampled_from(["", " ", "\t\t", "\t"]))]
        elif kind == "swap":
            lines[at] = "\t".join(reversed(cells))
        elif kind == "filter":
            end = draw(st.integers(0, len(lines)))
            lines = lines[:1] + [line for line in lines[1:] if not line.startswith(f"u{at % N_USERS}")][:end]
        elif kind == "same":
            lines = lines[:1] + [re.sub(r"^u\d+", "u", line) for line in lines[1:]]
        raw = "\n".join(lines).encode("utf-8", "surrogateescape" if _is_escaped(lines) else "surrogatepass")
        if kind == "bytes" and raw:
            raw = bytearray(raw)
            for _ in range(draw(st.sampled_from([1, 1, 8, 200]))):
                spot = draw(st.integers(0, len(raw) - 1))
                raw[spot] = draw(st.one_of(st.sampled_from(b'\t\n\r:,"\0 0'), st.integers(0, 255)))
            raw = bytes(raw)
        elif kind == "cut":
            raw = raw[: draw(st.integers(0, len(raw)))]
        elif kind == "wrap":
            wraps = [
                b"\xef\xbb\xbf%s",
                b"\xff\xfe%s",
                b"%s\0",
                b"\x1f\x8b%s",
                b"%s\x1a",
                b"PK\x03\x04%s",
                b"\n%s",
                b'"%s',
            ]
            raw = draw(st.sampled_from(wraps)).replace(b"%s", raw)
    return raw


def _is_escaped(lines):
    return any("\udc80" <= character <= "\udcff" for line in lines for character in line)


DATA_SETTINGS = [
    {}, {}, {}, {"load_col": None}, {"encoding": "latin-1"}, {"rm_dup_inter": "first"},
    {"user_inter_num_interval": "[3,inf)"}, {"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO"}},
    {"load_col": {"inter": "*"}, "numerical_features": ["timestamp"]},
]  # fmt: skip


@fuzz(120)
@given(damages(), st.sampled_from(["CESASRec", "SASRec", "DPOCaser", "BPR"]), st.sampled_from(DATA_SETTINGS))
def test_any_interaction_file_ends_well_or_in_a_sentence(workshop, raw, model, more):
    folder = workshop / "damaged"
    file = folder / "data" / "f" / "f.inter"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)
    drawn = {**small(folder), "topk": [1], "valid_metric": "NDCG@1", **more}
    end_of(folder, model, ["f.inter", *readable_keys()], config_dict=drawn)
    assert file.read_bytes() == raw


def rows_of(raw, encoding):
    """Return the rows of an interaction file as a naive reader sees them."""
    lines = re.split("\r\n|\r|\n", raw.decode(encoding))
    names = [cell.partition(":")[0] for cell in lines[0].split("\t")]
    unquoted = [
        [cell[1:-1].replace('""', '"') if cell[:1] == '"' else cell for cell in line.split("\t")]
        for line in lines[1:]
        if line
    ]
    cells = [dict(zip(names, row, strict=True)) for row in unquoted]
    return [(row["user_id"], row["item_id"], float(row["timestamp"])) for row in cells]


@fuzz(80)
@given(damages(), st.sampled_from(["utf-8", "latin-1"]))
def test_a_file_that_passes_the_check_is_read_row_by_row(workshop, raw, encoding):
    folder = workshop / "damaged"
    file = folder / "data" / "f" / "f.inter"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)
    config = Config("SASRec", "f", config_dict=small(folder, {"encoding": encoding}))
    try:
        check_atomic_files(config["data_path"], "f", config)
    except PrefError as error:
        assert_sentence(error, "f.inter")
        return
    dataset = create_dataset(config)
    tokens = [dataset.field2id_token[name][dataset.inter_feat[name]] for name in COLUMNS[:2]]
    read = zip(*tokens, dataset.inter_feat["timestamp"])
    assert [tuple(row) for row in read] == rows_of(raw, encoding)


@st.composite
def mangled(draw, raw):
    """Draw damaged copies of some bytes."""
    kind = draw(st.sampled_from(["flip", "flip", "flips", "cut", "head", "insert", "zeros", "empty", "twice", "text"]))
    at = draw(st.integers(0, len(raw) - 1))
    if kind in ("flip", "flips"):
        damaged = bytearray(raw)
        for spot in [at] if kind == "flip" else random.Random(at).choices(range(len(raw)), k=30):
            damaged[spot] ^= draw(st.integers(1, 255))
        return bytes(damaged)
    return {
        "cut": raw[:at],
        "head": raw[at:],
        "insert": raw[:at] + draw(st.binary(min_size=1, max_size=9)) + raw[at:],
        "zeros": raw[:at] + bytes(len(raw[at : at + 512])) + raw[at + 512 :],
        "empty": b"",
        "twice": raw + raw,
        "text": json.dumps({"state_dict": {}, "model": "LPOSASRec"}).encode(),
    }[kind]


@fuzz(30)
@given(mangled(ITEMS.encode()), st.sampled_from(["RoDPOMMSASRec", "SASRec"]), st.sampled_from([None, "price", "kind"]))
def test_any_item_file_ends_well_or_in_a_sentence(workshop, raw, model, column):
    folder = workshop / "items"
    file = write_atomic(folder / "data", "f", SEQUENCES).with_suffix(".item")
    file.write_bytes(raw)
    load = None if column is None else {"inter": COLUMNS, "item": ["item_id", column]}
    drawn = {**small(folder), "load_col": load, "topk": [1], "valid_metric": "NDCG@1"}
    end_of(folder, model, ["f.item", *readable_keys()], config_dict=drawn)


@pytest.mark.parametrize("suffix", ["inter", "item"])
@pytest.mark.parametrize("model", ["SASRec", "RoDPOMMSASRec"])
def test_a_path_that_is_not_a_regular_file_is_refused(workshop, tmp_path, model, suffix):
    shutil.copytree(workshop / "data", tmp_path / "data")
    path = tmp_path / "data" / "f" / f"f.{suffix}"
    path.unlink()
    path.mkdir()
    more = {"load_col": {"inter": COLUMNS, "item": ["item_id", "price"]}}
    assert end_of(tmp_path, model, [f"f.{suffix}", "mm_fields"], config_dict=small(tmp_path, more)) != "ran"
    path.rmdir()
    path.symlink_to(tmp_path / "gone")
    assert end_of(tmp_path, model, [f"f.{suffix}", "mm_fields"], config_dict=small(tmp_path, more)) != "ran"


def test_a_file_that_may_not_be_read(workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop / "data", tmp_path / "data")

    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # root may read every file
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(PrefError, match="f.inter cannot be read: Permission denied"):
            prepare_data(Config("SASRec", "f", config_dict=small(tmp_path)), log=False)


# Checkpoints


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


LONGER = {"epochs": 4, "run_stem": "CESASRec-f-20250102-030405-0123abcd", "keep_last": 3}


@pytest.fixture(scope="module")
def trained(workshop):
    """A folder with the checkpoints of a run of three epochs, and the end of one of four."""
    patch = pytest.MonkeyPatch()
    patch.chdir(workshop)
    patch.setattr(sys, "argv", ["test"])
    state = small(workshop, {**LONGER, "checkpoint_dir": str(workshop / "trained")})
    run_recbole_pref("CESASRec", "f", config_dict={**state, "epochs": 3})
    whole = small(workshop, {**LONGER, "checkpoint_dir": str(workshop / "whole")})
    result = run_recbole_pref("CESASRec", "f", config_dict=whole)
    quiet()
    patch.undo()
    weights = {path.name: checkpoint.load(path)["state_dict"] for path in (workshop / "trained").glob("*.pth")}
    assert len(weights) == 4  # three last ones and the best
    return types.SimpleNamespace(folder=workshop / "trained", result=result, weights=weights)


@st.composite
def ruined(draw, folder, marker):
    """Draw damage to one or several checkpoints of a folder: dict of name to bytes."""
    names = sorted(path.name for path in folder.glob("*.pth"))
    found = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True)):
        raw = (folder / name).read_bytes()
        kind = draw(st.sampled_from(["bytes", "bytes", "bytes", "zip", "pickle", "foreign", "mixed"]))
        if kind == "bytes":
            found[name] = draw(mangled(raw))
        elif kind == "zip":
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker)))
                archive.writestr("archive/version", "3\n")
            found[name] = file.getvalue()
        elif kind == "pickle":
            found[name] = pickle.dumps({"state_dict": Payload(marker)}, draw(st.integers(0, 5)))
        elif kind == "foreign":
            file = io.BytesIO()
            content = [[], {}, 3, torch.ones(2), {"config": {}}, {"model": "CESASRec"}, {"model": "CESASRec", "rng": 1},
                       {"model": "CESASRec", "config": {"dataset": "f"}},
                       {"model": 3, "config": {"dataset": 4}, "state_dict": {}}]  # fmt: skip
            torch.save(draw(st.sampled_from(content)), file)
            found[name] = file.getvalue()
        else:  # the head of one and the tail of another
            other = (folder / draw(st.sampled_from(names))).read_bytes()
            at = draw(st.integers(1, min(len(raw), len(other)) - 1))
            mixed = raw[:at] + other[at:]
            found[name] = raw if mixed == other else mixed  # a copy of another valid file is not damaged
    return found


@fuzz(30)
@given(data=st.data(), wanted=st.sampled_from(["True", "path"]))
def test_a_run_resumes_exactly_or_is_refused_if_its_checkpoints_are_damaged(workshop, trained, data, wanted):
    marker, folder = workshop / "payload-ran", workshop / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained.folder, folder)
    damage = data.draw(ruined(trained.folder, marker))
    for name, raw in damage.items():
        (folder / name).write_bytes(raw)
    newest = sorted(name for name in trained.weights if "last" in name)[-1]
    resume = True if wanted == "True" else str(folder / newest)
    before = snapshot(folder)
    try:
        result = run_recbole_pref("CESASRec", "f", config_dict=small(workshop, {**LONGER, "resume": resume}))
    except PrefError as error:
        assert_sentence(error, "resume", "checkpoint", "reference")
        after = snapshot(folder)
        for name in trained.weights.keys() - damage.keys():
            if name in after or "best" in name:  # nothing sound is lost, but what rotation drops
                assert after[folder / name] == before[folder / name] or "best" in name
    else:
        assert result["test_result"] == trained.result["test_result"]
        assert result["best_valid_result"] == trained.result["best_valid_result"]
    finally:
        quiet()
        shutil.rmtree(folder)
    assert not marker.exists()


@fuzz(30)
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_as_model_and_as_reference(workshop, trained, data):
    marker, folder = workshop / "payload-ran", workshop / "single"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained.folder, folder)
    damage = data.draw(ruined(trained.folder, marker))
    for name, raw in damage.items():
        path = folder / name
        path.write_bytes(raw)
        same = raw == (trained.folder / name).read_bytes()
        try:
            model = load_data_and_model(str(path), data_path=str(workshop / "data"))[1]
        except PrefError as error:
            assert_sentence(error, "model_file")
        else:
            assert same and all(map(torch.equal, model.state_dict().values(), trained.weights[name].values()))
        more = {"reference": str(path), "checkpoint_dir": str(workshop / "saved")}
        sentence = end_of(workshop, "DPOSASRec", ["reference"], config_dict=small(workshop, more))
        assert (sentence == "ran") == same, sentence
    quiet()
    assert not marker.exists()


# The command line

YAML = [
    "", "tau: 0.2\n", "a: [1\n", "- 1\n", "tau\n", "\0", "\xff", "tau: 0.1\ntau: 0.2\n", "? {a: b}\n: c\n", "tau: !!python/name:os.system\n",
    "x: !!python/object/apply:os.system ['touch payload-ran']\n", "&a [*a]\n", "tau: *b\n", "\t- x\n", "%YAML 9.9\n---\ntau: 1\n", "3: 4\n",
    "~: 4\n", "model: 3\n", "model: nothing\n", "dataset: [f]\n", "tau: 2020-01-01\n", "tau: 1e400\n", "topk: &x [*x]\n",
    "epochs: " + "9" * 5000 + "\n", "--- 1\n--- 2\n", '"\\ud800": 1\n', "tau: .nan\n", "tau: 1:30\n",
]  # fmt: skip
WORDS = [
    "oops", "-x", "--", "---", "--=", "--=3", "--tau", "--tau=", "--tau=1=2", "-tau=1", "--tau 1", "—tau=1", "--tau=\udcff", "--\udcff=1",
    "--TAU=1", "--taau=1", "--nproc=x", "--nproc=0", "--nproc=-1", "--k=x", "--k=0", "--k=-1", "--list=nothing", "--unknown=maybe", "--mod=SASRec",
    "--model=", "--model=nothing", "--model=../x", "--dataset=nothing", "--dataset=a/b", "--dataset=..", "--config_files=nothing.yaml",
    "--config_files=.", "--config_files=", "--resume=nothing.pth", "--resume=.", "--predict=nothing.pth", "--predict=.", "--predict=",
    "--epochs=" + "9" * 5000, "--topk=" + "[" * 2000, "--topk=[" + "1," * 2000 + "]", "--tau=__import__('os').system('touch payload-ran')", "--tau=()",
    "--tau=" + "1+" * 3000 + "1", "--tau={1:2}", "--device=x", "--port=x", "--world_size=x", "--group_offset=x", "--debug=1", "--seed=1e3", "--é=1",
    "--config_files=drawn.yaml nothing.yaml", "--result_file=.", "--checkpoint_dir=drawn.yaml", "--checkpoint_dir=drawn.yaml/x", "--data_path=drawn.yaml",
    "--benchmark_filename=['x']", "--compare=nothing", "--compare=", "--tune=nothing.yaml", "--plots=nothing", "--input=nothing", "--seeds=x",
]  # fmt: skip


@st.composite
def command_lines(draw):
    """Draw words of a command line and the text of a configuration file."""
    words = draw(st.lists(st.sampled_from(WORDS), max_size=2))
    if draw(st.booleans()):
        key = draw(st.sampled_from(KEYS))
        words.append(f"--{key}={draw(st.sampled_from([*wrong_values(key), *sound_values(key)[:3], 'x']))}")
    if draw(st.integers(0, 4)) == 0:
        words.append(draw(st.text(max_size=10)))
    text = draw(st.one_of(st.none(), st.sampled_from(YAML), st.binary(max_size=30)))
    if text is not None:
        words.append("--config_files=drawn.yaml")
    return words, text.encode("latin-1") if isinstance(text, str) else text or b""


@fuzz(80)
@given(command_lines())
def test_any_command_line_ends_well_or_in_one_line_with_exit_code_2(workshop, drawn):
    words, text = drawn
    with open("drawn.yaml", "wb") as file:
        file.write(text)
    given_keys = {word[2:].partition("=")[0] for word in words}
    options = {"model": "CESASRec", "dataset": "f", **small(workshop)}
    before = snapshot(workshop / "data")
    argv = [f"--{key}={value}" for key, value in options.items() if key not in given_keys] + words
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(argv)
        except SystemExit as stop:  # the parser of the options, which also prints the usage
            code = stop.code
            assert code in (0, 2) and (code == 0 or "recbole-pref: error:" in err.getvalue())
            return
        finally:
            quiet()
            shutil.rmtree(workshop / "saved", ignore_errors=True)
    message = err.getvalue()
    assert code in (0, 2) and "Traceback" not in message and not os.path.exists("payload-ran")
    assert snapshot(workshop / "data") == before
    if code == 2:
        assert message.rstrip("\n").rpartition("\n")[2].startswith("recbole-pref: "), message
        assert_sentence(message.rstrip("\n").rpartition("\n")[2], "")


@pytest.mark.parametrize("text", [*YAML, "a: " + "[" * 3000])
def test_any_configuration_file_is_read_or_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "drawn.yaml").write_bytes(text.encode("latin-1"))
    try:
        Config("CESASRec", "ml-100k", [str(tmp_path / "drawn.yaml")])
    except PrefError as error:
        assert_sentence(error, "drawn.yaml", "not a setting", "tau", "model", "topk", "epochs")
    assert not os.path.exists("payload-ran")


# What the draws above found, one by one


def test_the_settings_of_the_caller_stay_as_they_are(workshop):
    given_settings = small(workshop, {"train_neg_sample_args": {"distribution": "uniform"}})
    Config("FPMC", "f", config_dict=given_settings)
    assert given_settings["train_neg_sample_args"] == {"distribution": "uniform"}


def test_values_come_in_the_form_that_recbole_can_use(workshop):
    wanted = {"epochs": 1e1, "topk": "5,2", "numerical_features": "timestamp", "normalize_field": "timestamp"}
    config = Config("CESASRec", "f", config_dict=small(workshop, wanted))
    assert config["epochs"] == 10 and type(config["epochs"]) is int
    assert config["topk"] == [5, 2] and config["normalize_field"] == config["numerical_features"] == ["timestamp"]


@pytest.mark.parametrize("nproc", [0, -1, 1.5, "2"])
def test_impossible_numbers_of_processes(workshop, nproc):
    with pytest.raises(PrefError, match="nproc="):
        quick_start.run("CESASRec", "f", config_dict=small(workshop), nproc=nproc)


def test_models_that_predict_labels_keep_their_metrics():
    assert Config("FM", "ml-100k")["valid_metric"] == "AUC"
    assert Config("SASRec", "ml-100k")["valid_metric"] == "NDCG@10"


@pytest.mark.parametrize(
    "model, name, setting",
    [
        ("CESASRec", "f-SequentialDataset.pth", "checkpoint_dir"),
        ("BPR", "f-Dataset.pth", "checkpoint_dir"),
        ("CESASRec", "f-for-CESASRec-dataloader.pth", "checkpoint_dir"),
        ("CESASRec", "mine", "dataset_save_path"),
        ("CESASRec", "mine", "dataloaders_save_path"),
    ],
)
def test_a_data_set_that_recbole_pickled_is_not_unpickled(workshop, tmp_path, model, name, setting):
    marker, file = tmp_path / "payload-ran", tmp_path / "saved" / name
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(Payload(marker)))
    more = small(workshop, {setting: str(file if setting.endswith("path") else file.parent)})
    assert end_of(workshop, model, ["trust_checkpoint: True"], config_dict=more) != "ran"
    if setting == "checkpoint_dir":  # a file of another run does not matter
        other = "SASRec" if model == "BPR" or "for" in name else "BPR"
        assert end_of(workshop, other, [], config_dict=more) == "ran"
    assert not marker.exists()
    with pytest.raises(PrefError, match="cannot be prepared"):
        run_recbole_pref(model, "f", config_dict={**more, "trust_checkpoint": True})
    assert marker.exists()  # the payload is a real one


def test_saved_loaders_give_the_run_that_saved_them(workshop, tmp_path):
    more = small(workshop, {"checkpoint_dir": str(tmp_path / "saved"), "epochs": 2})
    plain, saving, loading = (
        run_recbole_pref("CESASRec", "f", config_dict={**more, **extra})["history"]
        for extra in ({}, {"save_dataloaders": True, "save_dataset": True}, {"trust_checkpoint": True})
    )
    assert plain == saving == loading
    quiet()


@pytest.mark.parametrize(
    "blocked, setting, more",
    [
        ("log", "log file", {}),
        ("log_tensorboard", "log_tensorboard", {}),
        ("out", "checkpoint_dir", {"checkpoint_dir": "out/saved"}),
        ("out", "result_file", {"result_file": "out/result.json"}),
    ],
)
def test_outputs_that_cannot_be_written_are_reported_before_training(workshop, tmp_path, blocked, setting, more):
    (tmp_path / blocked).write_text("a file")
    assert setting in end_of(workshop, "CESASRec", [setting], config_dict=small(workshop, more))
    assert (tmp_path / blocked).read_text() == "a file"
    assert not list(workshop.glob("saved/*.pth"))


def test_runs_leave_no_threads_and_no_wrapped_streams(workshop):
    before = sys.stdout, sys.stderr, threading.active_count()
    end_of(workshop, "CESASRec", [], config_dict=small(workshop))
    assert (sys.stdout, sys.stderr, threading.active_count()) == before


def test_an_error_in_this_package_is_not_reported_as_an_error_in_the_input(workshop, monkeypatch):
    def broken(*args):
        raise TypeError("'NoneType' object is not iterable")

    with monkeypatch.context() as patch:
        patch.setattr("recbole_pref.model.preference.PreferenceMixin.calculate_loss", broken)
        with pytest.raises(TypeError):
            run_recbole_pref("LPOSASRec", "f", config_dict=small(workshop, {"head_ratio": 0.5}), saved=False)
    quiet()
    more = {"embedding_size": 1, "train_positions": "last"}  # the size is squeezed away by RecBole's Caser
    assert "failed" in end_of(workshop, "CECaser", ["model='CECaser'"], config_dict=small(workshop, more))
