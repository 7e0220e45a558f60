"""Rows on arrays are RecBole's rows: compared with its own code in a process without the patches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.data.dataset import Groups, count
from recbole_pref.data.sequences import Lists, SequenceInteraction

from .stock_rows import rows_of

COLUMNS = ["user_id", "item_id", "timestamp"]
SIDE = [*COLUMNS, "rating", "kind", "tags", "vector"]
SEQUENTIAL = {"load_col": {"inter": COLUMNS}, "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 5}


def split(mode, group_by="user", order="TO", evaluation="full"):
    return {"eval_args": {"split": mode, "group_by": group_by, "order": order, "mode": evaluation}}


def sequential(**more):
    return ["SASRec", {**SEQUENTIAL, **more}]


CASES = {
    "leave one out": sequential(),
    "validation only": sequential(**split({"LS": "valid_only"})),
    "test only": sequential(**split({"LS": "test_only"})),
    "ratio by user": sequential(**split({"RS": [0.7, 0.2, 0.1]})),
    "ratio of all": sequential(**split({"RS": [0.7, 0.2, 0.1]}, "none")),
    "time": sequential(**split({"TS": [0.7, 0.2, 0.1]})),
    "lists of one item": sequential(MAX_ITEM_LIST_LENGTH=1),
    "k-core": sequential(user_inter_num_interval="[5,inf)", item_inter_num_interval="[4,inf)"),
    "first of duplicates": sequential(rm_dup_inter="first"),
    "last of duplicates": sequential(rm_dup_inter="last"),
    "intervals": sequential(load_col={"inter": SIDE}, val_interval={"rating": "[2,inf)", "kind": ["a", "b"]}),
    "normalized": sequential(normalize_all=True),
    "side features": sequential(load_col={"inter": SIDE, "item": ["item_id", "brand", "words"], "user": ["user_id", "age"]}),
    "numbers": ["SASRec", {**SEQUENTIAL, "load_col": {"inter": SIDE}, "numerical_features": ["rating"]}],
    "unused columns": sequential(load_col={"inter": SIDE}, unused_col={"inter": ["timestamp", "tags"]}),
    "sampled evaluation": sequential(**split({"LS": "valid_and_test"}, evaluation="uni5")),
    "negatives": ["SASRec", {"load_col": {"inter": COLUMNS}, "loss_type": "BPR", "MAX_ITEM_LIST_LENGTH": 5}],
    "negative lists": ["DIEN", {"load_col": {"inter": SIDE[:4]}, "MAX_ITEM_LIST_LENGTH": 5}],
    "general": ["BPR", {"load_col": {"inter": COLUMNS}, **split({"RS": [0.8, 0.1, 0.1]}, order="RO")}],
    "general by time": ["BPR", {"load_col": {"inter": COLUMNS}, **split({"LS": "valid_and_test"})}],
    "context": ["FM", {"load_col": {"inter": SIDE[:5], "item": ["item_id", "brand"]}, "threshold": {"rating": 3}}],
}  # fmt: skip


def write(folder, name, head, rows):
    path = Path(folder, "d", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["\t".join(head), *("\t".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_interactions(folder, users=40, items=25):
    rng = np.random.default_rng(0)
    rows = []
    for time in rng.permutation(users * 9):
        tags = " ".join(rng.choice(list("xyz"), rng.integers(0, 3)))
        vector = " ".join(map(str, rng.integers(0, 9, 2) / 4))
        user, item = int(rng.integers(users) * rng.random()), int(rng.integers(items) * rng.random())
        rows.append((f"u{user}", f"0{item}", time, rng.integers(1, 6) / 2 + 1, rng.choice(list("abc")), tags, vector))
    kinds = ("token", "token", "float", "float", "token", "token_seq", "float_seq")
    write(folder, "d.inter", [f"{name}:{kind}" for name, kind in zip(SIDE, kinds)], rows)
    features = [
        (f"0{i}", rng.choice(["", "p", "q"]), " ".join(rng.choice(list("vw"), rng.integers(0, 3))))
        for i in range(items)
    ]
    write(folder, "d.item", ["item_id:token", "brand:token", "words:token_seq"], features)
    write(
        folder,
        "d.user",
        ["user_id:token", "age:float"],
        [(f"u{u}", rng.choice(["", "20", "40"])) for u in range(users)],
    )


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder with a data set, and RecBole's own rows of each case."""
    folder = tmp_path_factory.mktemp("stock")
    write_interactions(folder)
    return folder, stock_rows(folder, CASES)


def stock_rows(folder, cases):
    """Return RecBole's own rows of the cases, from a process without the patches."""
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("stock_rows.py")
    subprocess.run(
        [sys.executable, str(script), "cases.json", "rows.pt"], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    return torch.load(folder / "rows.pt", weights_only=False)


def assert_same(ours, theirs, where=""):
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}, {key}")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    elif isinstance(ours, list) and ours and isinstance(ours[0], dict):
        assert len(ours) == len(theirs), where
        for number, parts in enumerate(zip(ours, theirs)):
            assert_same(*parts, f"{where}, {number}")
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_recbole(stock, monkeypatch, case):
    folder, rows = stock
    monkeypatch.chdir(folder)
    assert_same(rows_of(*CASES[case]), rows[case], case)
    assert all(len(part) for part in rows[case]["splits"]) and len(rows[case]["splits"][0]["item_id"]) > 50


def both(rows=7, width=4):
    """The same columns as lists and as tensors."""
    rng = np.random.default_rng(0)
    values = torch.arange(1, 31)
    lengths = torch.from_numpy(rng.integers(1, width + 1, rows))
    lists = Lists.of(values, torch.from_numpy(rng.integers(0, 20, rows)), lengths, width)
    padded = [values[s : s + n].tolist() + [0] * (width - n) for s, n in zip(lists.starts, lengths.tolist())]
    plain = {"a": torch.from_numpy(rng.permutation(rows)), "length": lengths}
    return SequenceInteraction({**plain, "a_list": lists}), Interaction({**plain, "a_list": torch.tensor(padded)})


@pytest.mark.parametrize(
    "use",
    [
        lambda rows: rows[[4, 2, 2]],
        lambda rows: rows[np.array([True, False] * 3 + [True])],
        lambda rows: rows[torch.tensor([1, 0])],
        lambda rows: rows[[]],
        lambda rows: rows[2:5],
        lambda rows: rows[3],
        lambda rows: rows.to("cpu", selected_field="a_list"),
        lambda rows: rows.repeat(2),
        lambda rows: rows.repeat_interleave(2),
        lambda rows: Interaction(rows.numpy()),
        lambda rows: [rows.sort("a"), rows][1],
        lambda rows: [rows.sort(["length", "a"]), rows][1],
        lambda rows: [torch.manual_seed(0), rows.shuffle(), rows][2],
        lambda rows: [rows.drop("a"), rows][1],
        lambda rows: [rows.add_prefix("neg_"), rows[[1]]][1],
        lambda rows: [rows.update(Interaction({"b": torch.zeros(7)})), rows[[1]]][1],
        lambda rows: [rows["a_list"].fill_(3), rows[[1]]][1],
    ],
)
def test_list_columns_behave_as_tensors(use):
    ours, theirs = map(use, both())
    assert len(ours) == len(theirs) and str(ours) == str(theirs)
    assert_same({name: ours[name] for name in ours}, {name: theirs[name] for name in theirs})


def test_lists_are_padded_for_the_rows_at_hand(tiny_dataset):
    for loader in prepare_data(Config("CESASRec", config_dict=tiny_dataset), log=False)[1]:
        rows = loader._dataset.inter_feat
        batch = next(iter(loader))
        batch = batch[0] if isinstance(batch, tuple) else batch
        assert batch["item_id_list"].shape == (len(batch), 8)
        assert rows.lists("item_id_list") is not None and rows.lists("timestamp_list") is not None


def test_row_numbers_tokens_and_counts_are_arrays(tiny_dataset):
    config = Config("CESASRec", config_dict=tiny_dataset)
    dataset = create_dataset(config)
    train = data_preparation(config, dataset)[0]
    assert vars(train)["dataset"] == range(len(train._dataset))
    assert dataset.inter_feat is not None and isinstance(dataset._grouped_index(np.array([3, 1, 3])), Groups)
    assert list(count(np.array([3, 1, 3])).items()) == [(3, 2), (1, 1)] and count() == {}
    table = pd.DataFrame({"item_id": pd.Categorical(["b", "a", "b"])})
    tokens, _ = dataset._concat_remaped_tokens([(table, "item_id", FeatureType.TOKEN)])
    assert isinstance(tokens, pd.Categorical)


def test_a_file_is_parsed_once(tiny_dataset, monkeypatch):
    parsed, read_csv = [], pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *args, **options: parsed.append(options) or read_csv(*args, **options))
    prepare_data(Config("CESASRec", config_dict=tiny_dataset), log=False)
    assert [options["engine"] for options in parsed] == ["c"]


@pytest.mark.parametrize("separator", [",", "::"])
def test_files_with_another_separator_are_read(tiny_dataset, tmp_path, separator):
    rows = [(f"u{u}", f"i{(u + t) % 7}", t) for u in range(9) for t in range(6)]
    path = write(tmp_path, "d.inter", ["user_id:token", "item_id:token", "timestamp:float"], rows)
    path.write_text(path.read_text().replace(":", "?").replace("\t", separator).replace("?", ":"))
    settings = {**tiny_dataset, "dataset": "d", "data_path": str(tmp_path), "field_separator": separator}
    dataset, _ = prepare_data(Config("CESASRec", config_dict=settings), log=False)
    assert dataset.item_num == 8 and dataset.user_num == 10


def test_equal_times_keep_the_order_of_the_file(tiny_dataset, tmp_path):
    rows = [(f"u{u}", f"i{n * 37 % 101}", day) for day in range(3) for u in range(60) for n in range(u, u + 9)]
    write(tmp_path, "d.inter", ["user_id:token", "item_id:token", "timestamp:float"], rows)
    settings = {**tiny_dataset, "dataset": "d", "data_path": str(tmp_path), "rm_dup_inter": "first"}
    dataset, (_, _, test) = prepare_data(Config("CESASRec", config_dict=settings), log=False)
    items = {}
    for user, item, _ in rows:
        items.setdefault(user, dict.fromkeys(()))[item] = None
    rows = test._dataset.inter_feat
    assert len(rows) == 60
    for user, item in zip(dataset.id2token("user_id", rows["user_id"]), dataset.id2token("item_id", rows["item_id"])):
        assert item == list(items[user])[-1]


def test_times_that_32_bits_confuse_are_in_order(tiny_dataset, tmp_path):
    start = 1_100_000_000  # where 32-bit floats are 128 apart
    times = np.random.default_rng(0).permutation(60 * 9) + start
    rows = [(f"u{n % 60}", f"i{time}", time) for n, time in enumerate(times)]
    write(tmp_path, "d.inter", ["user_id:token", "item_id:token", "timestamp:float"], rows)
    settings = {**tiny_dataset, "dataset": "d", "data_path": str(tmp_path), "MAX_ITEM_LIST_LENGTH": 9}
    dataset, (_, _, test) = prepare_data(Config("CESASRec", config_dict=settings), log=False)
    rows = test._dataset.inter_feat
    sequences = torch.cat([rows["item_id_list"][:, :8], rows["item_id"][:, None]], dim=1)
    ordered = lambda: np.diff([[int(token[1:]) for token in line] for line in tokens]).min(axis=1) > 0
    tokens = dataset.id2token("item_id", sequences)
    assert ordered().all()
    # RecBole alone orders hardly any of these sequences: its times are multiples of 128.
    stock = stock_rows(tmp_path, {"stock": sequential(MAX_ITEM_LIST_LENGTH=9)})["stock"]
    test = stock["splits"][2]
    sequences = torch.cat([test["item_id_list"][:, :8], test["item_id"][:, None]], dim=1)
    tokens = np.array(stock["tokens"]["item_id"])[sequences]
    assert ordered().mean() < 0.2


def presplit(folder, train, suffix=".inter", head=("user_id:token", "item_id_list:token_seq", "item_id:token")):
    for part in ("train", "valid", "test"):
        write(
            folder, f"d.{part}{suffix}", head, train if part == "train" else [("u1", "3 4 5", "6"), ("u2", "4 5", "6")]
        )
    return {
        "data_path": str(folder), "benchmark_filename": ["train", "valid", "test"], "state": "ERROR", "gpu_id": "",
        "load_col": None, "MAX_ITEM_LIST_LENGTH": 4, "train_neg_sample_args": None,
    }  # fmt: skip


LISTS = [("u1", "3", "4"), ("u2", "1 2 3 4 5 6", "5"), ("u1", "3 4", "5")]


def test_presplit_lists_share_the_items_of_the_targets_and_keep_their_latest(tmp_path):
    config = RecBoleConfig("SASRec", "d", config_dict=presplit(tmp_path, LISTS))
    dataset = create_dataset(config)
    train = data_preparation(config, dataset)[0]._dataset.inter_feat
    assert dataset.item_num == 7  # 1 to 6 and the padding
    lists = [" ".join(dataset.id2token("item_id", row[row > 0])) for row in train["item_id_list"]]
    assert lists == ["3", "3 4 5 6", "3 4"] and train["item_length"].tolist() == [1, 4, 2]


def test_scores_of_presplit_rows_do_not_depend_on_the_longest_list(tmp_path):
    from recbole.utils import get_model

    # RecBole pads to the longest list of the files, here two items, which Caser and positions do not expect.
    config = RecBoleConfig("Caser", "d", config_dict=presplit(tmp_path, [("u1", "3", "4"), ("u2", "4", "5")]))
    loaders = data_preparation(config, create_dataset(config))
    batch = next(iter(loaders[0]))
    assert batch["item_id_list"].shape == (2, 4)
    model = get_model("Caser")(config, loaders[0]._dataset)
    assert model.full_sort_predict(batch).shape[0] == 2


@pytest.mark.parametrize("values", [[0, "1"], ["0", 1]])
def test_filters_by_token_take_numbers(tmp_path, values):
    write_interactions(tmp_path)
    path = tmp_path / "d" / "d.inter"
    for old, new in (("\ta\t", "\t0\t"), ("\tb\t", "\t1\t"), ("\tc\t", "\t10\t")):
        path.write_text(path.read_text().replace(old, new))
    settings = {"data_path": str(tmp_path), "state": "ERROR", "gpu_id": "", "load_col": {"inter": SIDE}}
    config = RecBoleConfig("BPR", "d", config_dict={**settings, "val_interval": {"kind": values}})
    dataset = create_dataset(config)
    assert sorted(dataset.field2id_token["kind"]) == ["0", "1", "[PAD]"]
    assert config["val_interval"] == {"kind": values}


def test_a_saved_data_set_older_than_its_files_is_not_used(tmp_path, caplog):
    write_interactions(tmp_path)
    settings = {**SEQUENTIAL, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "save_dataset": True}
    load = lambda: create_dataset(
        RecBoleConfig("SASRec", "d", config_dict={**settings, "state": "ERROR", "gpu_id": ""})
    )
    size = len(load().inter_feat)
    (saved,) = tmp_path.glob("d-*.pth")
    os.utime(saved, ns=(saved.stat().st_mtime_ns + 10**9,) * 2)
    assert len(load().inter_feat) == size and not caplog.records
    path = tmp_path / "d" / "d.inter"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-5]) + "\n")
    os.utime(path, ns=(saved.stat().st_mtime_ns + 10**9,) * 2)
    assert len(load().inter_feat) == size - 5
    assert "d.inter" in caplog.text and "is older than" in caplog.text
