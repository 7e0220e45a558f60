"""The converter: every format, the k-core, the summary, and mistakes by line."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pref.config import Config
from recbole_pref.data_tool import convert, k_core, main, summarize
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import prepare_data

PAIRS = [("a", "x"), ("a", "y"), ("b", "y"), ("a", "z"), ("b", "x")]


def read(folder, name="d"):
    return pd.read_csv(folder / name / f"{name}.inter", sep="\t", dtype=str)


def rows(folder):
    return read(folder)[["user_id:token", "item_id:token"]].to_numpy().tolist()


EXPECTED = [["a", "x"], ["a", "y"], ["a", "z"], ["b", "y"], ["b", "x"]]


def source(tmp_path, kind):
    """Write PAIRS in a format; return the file and the options."""
    if kind == "sequences":
        (tmp_path / "s").write_text("a x y z\n\nb y x\n")
        return tmp_path / "s", {"format": "sequences"}
    if kind == "pairs":
        (tmp_path / "s").write_text("\n".join(map(" ".join, PAIRS)))
        return tmp_path / "s", {"format": "pairs"}
    frame = pd.DataFrame(PAIRS, columns=["who", "what"])
    frame["when"] = [10, 20, 30, 40, 50]
    frame["stars"] = 5.0
    shuffled = frame.iloc[[3, 0, 4, 1, 2]]
    options = {"format": "table", "user": "who", "item": "what", "time": "when"}
    if kind == "csv":
        shuffled.to_csv(tmp_path / "s.csv", index=False)
        return tmp_path / "s.csv", options
    if kind == "tsv":
        shuffled.to_csv(tmp_path / "s.tsv", index=False, sep="\t")
        return tmp_path / "s.tsv", options
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        shuffled.to_parquet(tmp_path / "s.parquet")
        return tmp_path / "s.parquet", options
    if kind == "dates":
        shuffled.assign(when=shuffled["when"].map(lambda s: f"2024-01-01T00:00:{s}")).to_csv(
            tmp_path / "s.csv", index=False
        )
        return tmp_path / "s.csv", options
    if kind.startswith("amazon-ratings"):
        order = ["who", "what", "stars", "when"] if "2014" in kind else ["what", "who", "stars", "when"]
        shuffled[order].to_csv(tmp_path / "s.csv", index=False, header=False)
        return tmp_path / "s.csv", {"format": kind}
    keys = {
        "reviews": {"who": "reviewerID", "what": "asin", "when": "unixReviewTime", "stars": "overall"},
        "reviews-2023": {"who": "user_id", "what": "parent_asin", "when": "timestamp", "stars": "rating"},
    }[kind]
    with gzip.open(tmp_path / "s.json.gz", "wt") as file:
        for record in shuffled.rename(columns=keys).to_dict("records"):
            file.write(json.dumps(record) + "\n")
    return tmp_path / "s.json.gz", {"format": "amazon-reviews"}


@pytest.mark.parametrize(
    "kind",
    ["sequences", "pairs", "csv", "tsv", "parquet", "dates", "amazon-ratings-2014",
     "amazon-ratings-2018", "reviews", "reviews-2023"],
)  # fmt: skip
def test_every_format_gives_the_same_interactions(tmp_path, kind):
    file, options = source(tmp_path, kind)
    convert(file, name="d", output=tmp_path, **options)
    got = rows(tmp_path)
    assert [row for row in got if row[0] == "a"] == EXPECTED[:3]
    assert [row for row in got if row[0] == "b"] == EXPECTED[3:]
    assert read(tmp_path).columns[2] == "timestamp:float"


def test_summary_by_hand(tmp_path):
    (tmp_path / "s").write_text("a x y z\nb x y z\nc x z y\n")
    summary = convert(tmp_path / "s", "sequences", "d", tmp_path, dry_run=True)
    assert not (tmp_path / "d").exists()
    # One head item of three: x, the only one left when the last two of each user are taken off.
    assert summary == pytest.approx({
        "users": 3, "items": 3, "interactions": 9, "density": 1.0, "mean_length": 3.0,
        "head_share": 1 / 3, "tail_targets": 1.0,
    })  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(0, 4), st.integers(0, 4))
def test_k_core_by_brute_force(pairs, min_user, min_item):
    left = list(pairs)
    while True:
        users, items = [u for u, _ in left], [i for _, i in left]
        kept = [(u, i) for u, i in left if users.count(u) >= min_user and items.count(i) >= min_item]
        if kept == left:
            break
        left = kept
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    assert [tuple(row) for row in k_core(frame, min_user, min_item).to_numpy().tolist()] == left


def test_filters(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text("user_id,item_id,timestamp,r\na,x,1,5\na,x,2,5\na,y,3,2\nb,x,1,4\n")
    convert(file, "table", "d", tmp_path, rating="r", rating_min=4, drop_duplicates=True)
    assert rows(tmp_path) == [["a", "x"], ["b", "x"]]
    assert "rating:float" in read(tmp_path)


def test_item_features(tmp_path):
    (tmp_path / "s").write_text("a 1 2 3\n")
    (tmp_path / "f.json").write_text('{"1": [7, 8], "2": [], "9": [1]}')
    convert(tmp_path / "s", "sequences", "d", tmp_path, item_features=tmp_path / "f.json")
    lines = (tmp_path / "d" / "d.item").read_text().splitlines()
    assert lines == ["item_id:token\tattributes:token_seq", "1\t7 8", "2\t"]


@pytest.mark.parametrize(
    "text, options, match",
    [
        ("a\n", {"format": "sequences"}, "line 1: user 'a' has no items"),
        ("a x\nb\n", {"format": "pairs"}, "line 2: 1 words"),
        ("user_id,item_id,timestamp\na,x,1\na,y,noon\n", {"format": "table"}, "line 3: timestamp is 'noon'"),
        ("uid,item_id,timestamp\n", {"format": "table"}, "no column 'user_id'.*'uid'"),
        ("a,b\n", {"format": "amazon-ratings-2014"}, "2 columns where"),
        ("{}\n", {"format": "amazon-reviews"}, "line 1: there is neither"),
        ('{"reviewerID": 1, "asin": 2}\n', {"format": "amazon-reviews"}, "line 1: there is no 'unixReviewTime'"),
        ("[1\n", {"format": "amazon-reviews"}, "line 1: this is no JSON object"),
        ("a x y\n", {"format": "sequence"}, "format='sequence'.*'sequences'"),
        ("a x y\n", {"format": "sequences", "min_user": 5}, "min_user=5"),
        ("a x\n", {"format": "pairs", "rating_min": 3}, "rating_min=3 needs"),
    ],
)
def test_mistakes_are_named(tmp_path, text, options, match):
    (tmp_path / "s").write_text(text)
    with pytest.raises(PrefError, match=match):
        convert(tmp_path / "s", name="d", output=tmp_path, **options)
    assert not (tmp_path / "d").exists()


def test_nothing_is_overwritten_without_force(tmp_path, capsys):
    (tmp_path / "s").write_text("a x y\n")
    words = [f"--input={tmp_path / 's'}", "--format=sequences", "--name=d", f"--output={tmp_path}"]
    assert main(words) == 0
    assert "interactions" in capsys.readouterr().out
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["d.inter"]


def test_recbole_loads_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"u{u} " + " ".join(f"i{i}" for i in rng.integers(0, 20, 9)) for u in range(12)]
    (tmp_path / "s").write_text("\n".join(lines))
    summary = convert(tmp_path / "s", "sequences", "d", tmp_path)
    config = Config("LPOSASRec", "d", config_dict={
        "data_path": str(tmp_path), "state": "ERROR", "gpu_id": "",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    })  # fmt: skip
    dataset, loaders = prepare_data(config, log=False)
    assert dataset.user_num - 1 == summary["users"] and dataset.item_num - 1 == summary["items"]
    assert len(loaders[0]._dataset) == 12 * (9 - 3)
    row = loaders[2]._dataset[0]
    sequence = lines[0].split()[1:]
    user = dataset.id2token("user_id", row["user_id"].item())
    assert user == "u0"
    shown = dataset.id2token("item_id", row["item_id_list"][: row["item_length"]].numpy())
    assert list(shown) == sequence[:-1]
    assert dataset.id2token("item_id", row["item_id"].item()) == sequence[-1]


def test_real_data_come_back_from_sequences(tmp_path, real_data):
    frame = pd.read_csv(real_data / "lastfm-artists" / "lastfm-artists.inter", sep="\t", dtype=str)
    lines = frame.groupby("user_id:token", sort=False)["item_id:token"].agg(" ".join)
    (tmp_path / "s").write_text("\n".join(f"{user} {items}" for user, items in lines.items()))
    summary = convert(tmp_path / "s", "sequences", "d", tmp_path)
    assert (summary["users"], summary["items"], summary["interactions"]) == (1090, 3646, 52551)
    assert rows(tmp_path) == frame[["user_id:token", "item_id:token"]].to_numpy().tolist()


def test_summaries_do_not_depend_on_names():
    frame = pd.DataFrame({"user_id": ["1"] * 3, "item_id": ["p", "q", "r"]})
    assert summarize(frame)["tail_targets"] == 1.0
