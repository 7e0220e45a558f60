"""The converter: every format, the k-core, the summary, and mistakes by line."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_pref.build import prepare_data
from recbole_pref.cli import parse
from recbole_pref.config import Config
from recbole_pref.data import tables
from recbole_pref.data.check import check_atomic_files
from recbole_pref.data.convert import FORMATS, build_parser, convert, main
from recbole_pref.data.formats import READERS
from recbole_pref.data.interactions import k_core, summarize
from recbole_pref.data.public import public_names
from recbole_pref.data.sequences import train_counts
from recbole_pref.errors import PrefError
from recbole_pref.popularity import head_tail_split
from recbole_pref.quick_start import run_recbole_pref

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
    if kind in ("columns", "u.data", "ratings.dat"):
        file, separator = tmp_path / kind, {"u.data": "\t", "ratings.dat": "::"}.get(kind, ";")
        lines = shuffled[["who", "what", "stars", "when"]].astype(str).agg(separator.join, axis=1)
        file.write_text("\n\n".join(lines) + "\n")
        own = {"format": "table", "separator": ";", "columns": ["user", "item", "rating", "time"]}
        return file, own if kind == "columns" else {"format": "movielens"}
    if kind == "ratings.csv":
        names = {"who": "userId", "what": "movieId", "stars": "rating", "when": "timestamp"}
        shuffled.rename(columns=names).to_csv(tmp_path / kind, index=False)
        return tmp_path / kind, {"format": "movielens"}
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


@pytest.mark.parametrize("part_rows", [1, 500_000])
@pytest.mark.parametrize(
    "kind",
    ["sequences", "pairs", "csv", "tsv", "parquet", "dates", "columns", "u.data", "ratings.dat", "ratings.csv",
     "amazon-ratings-2014", "amazon-ratings-2018", "reviews", "reviews-2023"],
)  # fmt: skip
def test_every_format_gives_the_same_interactions(tmp_path, monkeypatch, kind, part_rows):
    monkeypatch.setattr(tables, "PART_ROWS", part_rows)
    file, options = source(tmp_path, kind)
    convert(file, name="d", output=tmp_path, **options)
    got = rows(tmp_path)
    assert [row for row in got if row[0] == "a"] == EXPECTED[:3]
    assert [row for row in got if row[0] == "b"] == EXPECTED[3:]
    assert read(tmp_path).columns[2] == "timestamp:float"


@pytest.mark.parametrize("times", [[1602133857705, 1602133857706], [-5, 1.25], [0.1, 1e15]])
def test_times_keep_all_their_digits(tmp_path, times):
    (tmp_path / "s.csv").write_text(f"user_id,item_id,timestamp\na,x,{times[1]!r}\na,y,{times[0]!r}\n")
    convert(tmp_path / "s.csv", "table", "d", tmp_path)
    assert read(tmp_path)["timestamp:float"].astype(float).tolist() == times
    assert rows(tmp_path) == [["a", "y"], ["a", "x"]]


@pytest.mark.parametrize("kind", ["csv", "parquet", "unsigned.parquet", "json"])
def test_nanoseconds_keep_their_order_and_digits(tmp_path, kind):
    times = [1600000000000000300, 1600000000000000100, 1600000000000000200]
    if "parquet" in kind:
        pytest.importorskip("pyarrow")
    times = np.array(times, dtype="uint64" if "unsigned" in kind else "int64")
    frame = pd.DataFrame({"user_id": "a", "parent_asin": list("xyz"), "timestamp": times, "rating": 4.5})
    if kind == "json":
        frame.to_json(tmp_path / "s.json", orient="records", lines=True)
        convert(tmp_path / "s.json", "amazon-reviews", "d", tmp_path)
    else:
        frame = frame.rename(columns={"parent_asin": "item_id"})
        write = frame.to_parquet if "parquet" in kind else frame.to_csv
        write(tmp_path / f"s.{kind}", index=False)
        convert(tmp_path / f"s.{kind}", "table", "d", tmp_path)
    assert rows(tmp_path) == [["a", "y"], ["a", "z"], ["a", "x"]]
    assert read(tmp_path)["timestamp:float"].tolist() == [str(time) for time in sorted(times)]


@pytest.mark.parametrize("kind", ["text", "zone", "seconds", "milliseconds", "nanoseconds", "date"])
def test_dates_become_seconds(tmp_path, kind):
    seconds = [951782400, 951868800]  # 29 February and 1 March 2000, 0:00 UTC
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [7, 8], "timestamp": ["2000-02-29", "2000-03-01"]})
    if kind == "zone":
        frame["timestamp"] = ["2000-02-29T02:00:00+02:00", "2000-02-29 23:00:00-0100"]
    if kind in ("text", "zone"):
        file = tmp_path / "s.csv"
        frame.to_csv(file, index=False)
    else:
        pytest.importorskip("pyarrow")
        file = tmp_path / "s.parquet"
        dates = pd.to_datetime(frame["timestamp"])
        unit = {"seconds": "s", "milliseconds": "ms", "nanoseconds": "ns"}.get(kind)
        frame["timestamp"] = dates.dt.as_unit(unit) if unit else dates.dt.date
        frame.to_parquet(file)
    convert(file, "table", "d", tmp_path)
    assert read(tmp_path).to_numpy().tolist() == [["1", "7", str(seconds[0])], ["1", "8", str(seconds[1])]]


def test_dates_far_from_1970(tmp_path):
    pytest.importorskip("pyarrow")
    times = np.array(["0024-01-02", "2024-01-01"], dtype="datetime64[s]")
    pd.DataFrame({"user_id": "a", "item_id": ["x", "y"], "timestamp": times}).to_parquet(tmp_path / "s.parquet")
    convert(tmp_path / "s.parquet", "table", "d", tmp_path)
    assert read(tmp_path)["timestamp:float"].astype(int).tolist() == times.astype(int).tolist()


def test_a_table_without_times_keeps_its_order(tmp_path):
    (tmp_path / "s.csv").write_text("item_id::user_id\nz::a\nx::b\ny::a\n\n")
    convert(tmp_path / "s.csv", "table", "d", tmp_path, time="", separator="::")
    assert read(tmp_path).to_numpy().tolist() == [["a", "z", "0"], ["a", "y", "1"], ["b", "x", "0"]]


def test_text_is_read_in_parts_and_mistakes_keep_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PART_ROWS", 3)
    head, lines = "user_id,item_id,timestamp\n", [f"u{row % 4},i{row},5\n" for row in range(20)]
    (tmp_path / "s").write_text(head + "".join(lines))
    assert [len(part) for part in tables.text_parts(tmp_path / "s", ",")] == [5, 5, 5, 5]
    convert(tmp_path / "s", "table", "d", tmp_path)
    # equal times: the order of the file
    assert rows(tmp_path) == [[f"u{user}", f"i{row}"] for user in range(4) for row in range(user, 20, 4)]
    for place, bad in ((13, "u1,,5\n"), (18, "u1,i1,noon\n")):
        (tmp_path / "s").write_text(head + "\n" + "".join([*lines[:place], bad, *lines[place:]]))
        with pytest.raises(PrefError, match=f"line {place + 3}: "):
            convert(tmp_path / "s", "table", "e", tmp_path)
    (tmp_path / "s").write_text(head + "".join([*lines[:5], *(f"a,i{n},2024-01-0{n + 1}\n" for n in range(5))]))
    with pytest.raises(PrefError, match="line 7: timestamp is '2024-01-01'"):
        convert(tmp_path / "s", "table", "e", tmp_path)


EVENTS = """who;event;what;at;price
a;view;x;3;1.5
a;cart;y;2;
b;buy;x;1;4
a;buy;x;4;2
b;view;z;5;9
"""


def test_an_event_log_keeps_events_and_extra_columns(tmp_path, capsys):
    (tmp_path / "s.csv").write_text(EVENTS)
    words = [f"--input={tmp_path / 's.csv'}", "--format=table", "--name=d", f"--output={tmp_path}", "--separator=;"]
    words += ["--user=who", "--item=what", "--time=at", "--keep=event:buy", "--keep=event:cart"]
    assert main([*words, "--extra_columns=event,price"]) == 0
    frame = pd.read_csv(tmp_path / "d/d.inter", sep="\t", dtype=str, keep_default_na=False)
    assert list(frame)[3:] == ["event:token", "price:float"]
    assert frame.to_numpy().tolist() == [
        ["b", "x", "1", "buy", "4"], ["a", "y", "2", "cart", ""], ["a", "x", "4", "buy", "2"]
    ]  # fmt: skip
    assert main([*words, "--keep=who:b", "--force"]) == 0
    assert rows(tmp_path) == [["b", "x"]]
    capsys.readouterr()
    for option, message in (
        ("--keep=event:bought", "event:bought selects no row of .*; the column holds buy, cart, view"),
        ("--keep=kind:buy", "no column 'kind' .--keep."),
        ("--extra_columns=cost", "no column 'cost' .--extra_columns."),
        ("--extra_columns=user_id", "would be written twice"),
    ):
        assert main([*words, option, "--force"]) == 2
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main([*words, "--keep=event"])


def test_the_command_ends_with_the_path_and_the_next_command(tmp_path, capsys):
    (tmp_path / "s").write_text("a x y z\n")
    words = [f"--input={tmp_path / 's'}", "--format=sequences", "--name=d", "--output=data"]
    assert main([*words, "--dry_run"]) == 0
    assert "wrote" not in capsys.readouterr().out
    assert main(words) == 0
    wrote, command = capsys.readouterr().out.splitlines()[-2:]
    assert wrote == f"wrote {Path('data/d/d.inter')}" and Path("data/d/d.inter").is_file()
    options, settings = parse(command.partition("recbole-pref ")[2].split())
    assert (options.dataset, settings) == ("d", {"data_path": "data"})


@pytest.mark.parametrize("name", public_names())
def test_a_missing_data_set_of_the_literature_comes_with_its_command(tmp_path, monkeypatch, name):
    config = Config("CESASRec", name, config_dict={"data_path": str(tmp_path), "state": "ERROR", "gpu_id": ""})
    with pytest.raises(PrefError) as caught:
        check_atomic_files(config["data_path"], name, config)
    assert "download " in str(caught.value) and "https://" in str(caught.value)
    _, *words = shlex.split(re.search("run '(.*)'", str(caught.value))[1])
    (file,) = (Path(word.partition("=")[2]) for word in words if word.startswith("--input"))
    file.parent.mkdir(exist_ok=True)
    text = {".dat": "1::2::3::4\n1::3::3::5\n", ".csv": "userId,movieId,rating,timestamp\n1,2,3,4\n1,3,3,5\n"}
    file.write_text(text.get(file.suffix, "1 2 3\n"))
    file.with_name(f"{file.stem}_item2attributes.json").write_text("{}")
    assert main(words) == 0
    check_atomic_files(config["data_path"], name, config)


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
    (tmp_path / "f.json").write_text('{"1": [7, "Hair Care"], "2": [], "9": [1]}')
    options = {"format": "sequences", "name": "d", "output": tmp_path}
    summary = convert(tmp_path / "s", item_features=tmp_path / "f.json", **options)
    lines = (tmp_path / "d" / "d.item").read_text().splitlines()
    assert lines == ["item_id:token\tattributes:token_seq", "1\t7 Hair_Care", "2\t", "3\t"]
    assert summary["items_with_features"] == 2
    (tmp_path / "f.csv").write_text('item_id,price,brand,tags\n1,2.5,"B ""&"" C",a b\n3,,D,c\n')
    convert(tmp_path / "s", item_features=tmp_path / "f.csv", force=True, **options)
    item = pd.read_csv(tmp_path / "d" / "d.item", sep="\t", dtype=str, keep_default_na=False)
    assert list(item) == ["item_id:token", "price:float", "brand:token_seq", "tags:token_seq"]
    assert item.to_numpy().tolist() == [
        ["1", "2.5", 'B "&" C', "a b"], ["2", "", "", ""], ["3", "", "D", "c"]
    ]  # fmt: skip


METADATA = {
    "2014": "{'asin': 'x', 'title': 'A  \"Big\" B', 'price': 12.5, 'brand': 'C D', 'categories': [['Hair Care', 'E'], ['E']]}",
    "2018": '{"asin": "x", "title": "A  \\"Big\\" B", "price": "$12.5", "brand": "C D", "category": ["Hair Care", "E"]}',
    "2023": '{"parent_asin": "x", "title": "A  \\"Big\\" B", "price": 12.5, "store": "C D", "categories": ["Hair Care", "E"]}',
}


@pytest.mark.parametrize("year", METADATA)
def test_amazon_metadata_become_item_features(tmp_path, year):
    (tmp_path / "s").write_text("a x y z\n")
    key = "parent_asin" if year == "2023" else "asin"
    lines = [
        METADATA[year],
        f'{{"{key}": "other"}}',
        f'{{"{key}": "y", "price": "$1 - $2", "description": ["g\\n", "h"]}}',
    ]
    lines.append(f'{{"{key}": "x", "title": "the same again"}}')
    with gzip.open(tmp_path / "meta.json.gz", "wt") as file:
        file.write("\n".join(lines))
    summary = convert(tmp_path / "s", "sequences", "d", tmp_path, item_features=tmp_path / "meta.json.gz")
    assert summary["items_with_features"] == 2
    item = pd.read_csv(tmp_path / "d" / "d.item", sep="\t", dtype=str, keep_default_na=False)
    assert list(item) == [
        "item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "price:float", "description:token_seq"
    ]  # fmt: skip
    assert item.to_numpy().tolist() == [
        ["x", 'A "Big" B', "C D", "Hair_Care E", "12.5", ""], ["y", "", "", "", "", "g h"], ["z"] + [""] * 5
    ]  # fmt: skip


def test_item_features_are_loaded_by_recbole(tmp_path):
    lines = [f"u{u} " + " ".join(f"i{(u + k) % 9}" for k in range(6)) for u in range(9)]
    (tmp_path / "s").write_text("\n".join(lines))
    (tmp_path / "f.csv").write_text('item_id,price,tags\ni0,2,"""q x"\ni1,,x y\n')
    convert(tmp_path / "s", "sequences", "d", tmp_path, item_features=tmp_path / "f.csv")
    config = Config("LPOSASRec", "d", config_dict={
        "data_path": str(tmp_path), "state": "ERROR", "gpu_id": "", "load_col": None,
    })  # fmt: skip
    dataset, _ = prepare_data(config, log=False)
    assert dataset.inter_num == 9 * 5 and dataset.item_num == 10  # nothing was dropped
    (item,) = np.flatnonzero(dataset.field2id_token["item_id"] == "i0")
    tags = dataset.item_feat["tags"][item]
    assert list(dataset.id2token("tags", tags.numpy())) == ['"q', "x"]


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("f.json", '{"1": "red"}', "attributes of item '1' are not a list"),
        ("f.json", "[1]", "not a JSON object of lists"),
        ("f.json", "{", "not a JSON object of lists"),
        ("f.json", '{"1": ["\\ud800"]}', "half a Unicode character"),
        ("f.csv", "item,price\n1,2\n", "no column 'item_id'"),
        ("f.csv", "item_id,a:b\n1,2\n", "'a:b' cannot name a column"),
        ("f.csv", "item_id,a\n1,2\n1,3\n", "item '1' has two rows"),
        ("f.csv", 'item_id,a\n\n1,2\n2,"x\ty"\n', "line 4: 'a' holds a tab"),
        ("f.csv", "item_id,a\n1,2,3\n", "more cells than the first line"),
        ("g.csv", "", "item_features=.*g.csv' does not exist"),
    ],
)
def test_mistakes_in_item_features_leave_nothing_behind(tmp_path, name, text, match):
    (tmp_path / "s").write_text("a 1 2 3\n")
    (tmp_path / "f.csv").write_text("")
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(PrefError, match=match):
        convert(tmp_path / "s", "sequences", "d", tmp_path, item_features=tmp_path / name)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "text, options, match",
    [
        ("a\n", {"format": "sequences"}, "line 1: user 'a' has no items"),
        ("a x\nb\n", {"format": "pairs"}, "line 2: 1 words"),
        ("a,x,1\n", {"format": "table", "columns": ["uid", "item", "time"]}, "--user is not set"),
        (
            "a::x::1\n\na::::2\n",
            {"format": "table", "separator": "::", "columns": ["user", "item", "time"]},
            "line 3: item_id is empty",
        ),
        ("user_id,item_id,timestamp\na,x,1\na,y,noon\n", {"format": "table"}, "line 3: timestamp is 'noon'"),
        ("uid,item_id,timestamp\n", {"format": "table"}, "no column 'user_id'.*'uid'"),
        ("a x\nb y\na z\n", {"format": "sequences"}, "line 3: user 'a' is already in line 1"),
        ("a x\nb y NA\n", {"format": "sequences"}, "line 2: item_id is 'NA', which RecBole reads as missing"),
        ("a x\n\nb NA\n", {"format": "pairs"}, "line 3: item_id is 'NA'"),
        ("user_id,item_id,item_id,timestamp\na,x,y,1\n", {"format": "table"}, "two columns have the name 'item_id'"),
        (
            "user_id,item_id,timestamp\na,x,1\n",
            {"format": "table", "separator": "\n"},
            "separator='.n' is not accepted",
        ),
        (
            "user_id,item_id,timestamp\na,x,03/04/2024\na,y,13/04/2024\n",
            {"format": "table"},
            "line 3.*nor a date .YYYY",
        ),
        ("user_id,item_id,timestamp\na,x,2024-01-01\na,y,now\n", {"format": "table"}, "line 3.*'now'"),
        (
            "user_id;item_id;timestamp\na;x;1,5\na;y;20,5\n",
            {"format": "table", "separator": ";"},
            "line 2: timestamp is '1,5'",
        ),
        (
            "user_id;item_id;timestamp\na;x;2001,5\n",
            {"format": "table", "separator": ";"},
            "line 2: timestamp is '2001,5'",
        ),
        ("user_id,item_id,timestamp\na,x,12:30\n", {"format": "table"}, "line 2: timestamp is '12:30'"),
        ("user_id,item_id,timestamp\na,x,10h\n", {"format": "table"}, "line 2: timestamp is '10h'"),
        ('user_id,item_id,timestamp,t\na,x,1,"b" c\na,y,2,d\n', {"format": "table"}, "line 2: a quotation mark opens"),
        ('user_id,item_id,timestamp,t\na,x,1,"b\na,y,2,"c"\n', {"format": "table"}, "line 2: a quotation mark opens"),
        (
            'user_id\titem_id\ttimestamp\tt\na\tx\t1\tb\na\ty\t2\t"c\na\tz\t3\t8"\n',
            {"format": "table", "separator": "\t"},
            "line 3: a quotation",
        ),
        ("user_id,item_id,timestamp\na,x,1\n\n\na,,2\n", {"format": "table"}, "line 5: item_id is empty"),
        ("user_id,item_id,timestamp\na,x,1\nb\n", {"format": "table"}, "line 3: item_id is empty"),
        ('user_id,item_id,timestamp\n"a\nb",x,1\n', {"format": "table"}, "line 3: user_id.*line end"),
        ("user_id,item_id,timestamp\na,x,1\na,x,1,1\n", {"format": "table"}, "3 fields in line 3, saw 4"),
        ("user_id,item_id,timestamp\na,x,1,1\n", {"format": "table"}, "more cells than the first line"),
        (
            "user_id,item_id,timestamp\na,x,2024-01-01\na,x,2024-01-02\na,x,?\n",
            {"format": "table"},
            "line 4.*nor a date",
        ),
        (
            "user_id,item_id,timestamp,r\na,x,1,4\na,y,1,A\n",
            {"format": "table", "rating": "r"},
            "line 3: rating is 'A'",
        ),
        ("user_id,item_id,timestamp\na,x,1\na,y,1\na,y,inf\n", {"format": "table"}, "line 4: timestamp is 'inf'"),
        ("user_id,item_id,timestamp\n", {"format": "table"}, "holds no interactions"),
        ("user_id,item_id,timestamp\na,x,1\n", {"format": "table", "user": ""}, "--user is not set"),
        ("", {"format": "table"}, "is empty"),
        ("\n", {"format": "sequences"}, "holds no interactions"),
        ("u,x,5,1\nu,y,5,1\nu,y,5,no\n", {"format": "amazon-ratings-2014"}, "line 3: timestamp is 'no'"),
        (
            '{"user_id": "a", "parent_asin": ["x"], "timestamp": 1, "rating": 1}',
            {"format": "amazon-reviews"},
            "'parent_asin' is",
        ),
        (
            '\n{"user_id": null, "parent_asin": "x", "timestamp": 1, "rating": 1}',
            {"format": "amazon-reviews"},
            "line 2: user_id is empty",
        ),
        (
            '{"user_id": "\\ud800", "parent_asin": "x", "timestamp": 1, "rating": 1}',
            {"format": "amazon-reviews"},
            "line 1: there is half",
        ),
        ("a x\n", {"format": "sequences", "user": "u"}, "user='u' is an option of format='table'"),
        ("a,b\n", {"format": "amazon-ratings-2014"}, "first line has 2 cells, but 4"),
        ("{}\n", {"format": "amazon-reviews"}, "line 1: there is neither"),
        ('{"reviewerID": 1, "asin": 2}\n', {"format": "amazon-reviews"}, "line 1: there is no 'unixReviewTime'"),
        ("[1\n", {"format": "amazon-reviews"}, "line 1: this is not a JSON object"),
        ("a x y\n", {"format": "sequence"}, "format='sequence'.*'sequences'"),
        ("a x y\n", {"format": "sequences", "min_user": 5}, "min_user=5"),
        ("a x\n", {"format": "pairs", "rating_min": 3}, "rating_min=3 needs"),
    ],
)
def test_mistakes_are_named(tmp_path, text, options, match):
    (tmp_path / "s").write_text(text)
    with pytest.raises(PrefError, match=match) as caught:
        convert(tmp_path / "s", name="d", output=tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_quoted_cells_are_read_over_line_ends(tmp_path):
    text = 'user_id,item_id,timestamp,t\na,x,1,"one, ""two""\nthree, 5"" long, 2, 7"\na,"y",2,12" pan\n'
    text += f'a,"z",3,"{"long, " * 50_000}"\n'
    (tmp_path / "s.csv").write_text(text)
    assert convert(tmp_path / "s.csv", "table", "d", tmp_path)["interactions"] == 3


def test_the_first_row_of_a_file_without_header_may_end_with_an_empty_cell(tmp_path):
    columns = ["user", "item", "time", "note"]
    for first in ("a\tx\t1\t\n", '"a"\tx\t1\t"two\nlines"\n'):
        (tmp_path / "s.tsv").write_text(first + "a\ty\t2\tz\n")
        assert convert(tmp_path / "s.tsv", "table", "d", tmp_path, columns=columns, force=True)["items"] == 2


def test_an_item_file_of_other_data_is_not_kept(tmp_path):
    (tmp_path / "s").write_text("a x y z\n")
    (tmp_path / "more").write_text("a x y z w\n")
    (tmp_path / "f.json").write_text('{"x": [1]}')
    convert(tmp_path / "s", "sequences", "d", tmp_path, item_features=tmp_path / "f.json")
    before = (tmp_path / "d" / "d.inter").read_text()
    assert "items_without_interactions" not in convert(tmp_path / "s", "sequences", "d", tmp_path, force=True)
    (tmp_path / "less").write_text("a x z\n")
    less = convert(tmp_path / "less", "sequences", "d", tmp_path, force=True, dry_run=True)
    assert less["items_without_interactions"] == 1
    with pytest.raises(
        PrefError, match="d.item belongs to other data: it has no row for item 'w'; remove it or pass --item_f"
    ):
        convert(tmp_path / "more", "sequences", "d", tmp_path, force=True)
    assert (tmp_path / "d" / "d.inter").read_text() == before
    convert(tmp_path / "more", "sequences", "d", tmp_path, force=True, item_features=tmp_path / "f.json")


def test_what_was_converted_trains_without_further_settings(tmp_path, tiny_dataset):
    lines = [f"u{u} " + " ".join(f"i{(u + t) % 12}" for t in range(6)) for u in range(12)]
    (tmp_path / "s").write_text("\n".join(lines))
    convert(tmp_path / "s", "sequences", "mine", tmp_path / "dataset")
    settings = {key: value for key, value in tiny_dataset.items() if key != "load_col"}
    more = {"dataset": "mine", "data_path": str(tmp_path / "dataset")}
    assert run_recbole_pref("CESASRec", config_dict={**settings, **more})["test_result"]["ndcg@10"] > 0


def test_what_would_never_be_read_is_not_written(tmp_path):
    (tmp_path / "s").write_text("a x y z\n")
    with pytest.raises(PrefError, match="name='ml-100k' would never be read"):
        convert(tmp_path / "s", "sequences", "ml-100k", tmp_path)
    assert convert(tmp_path / "s", "sequences", "ml-100k", tmp_path, dry_run=True)["items"] == 3


def test_a_separator_of_one_character_may_have_two_bytes(tmp_path):
    (tmp_path / "s").write_text("user_id§item_id§timestamp\na§x§1\na§y§2\n", encoding="utf-8")
    assert convert(tmp_path / "s", "table", "d", tmp_path, separator="§")["items"] == 2


def test_whole_numbers_that_parquet_made_floats_stay_whole(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"user_id": [1.0, 10.0], "item_id": [2, 3], "timestamp": [1, 2]})
    frame.to_parquet(tmp_path / "s.PARQUET")
    convert(tmp_path / "s.PARQUET", "table", "d", tmp_path)
    assert (tmp_path / "d/d.inter").read_text().splitlines()[1:] == ["1\t2\t1", "10\t3\t2"]


@pytest.mark.parametrize("format", ["sequences", "pairs", "table", "amazon-ratings-2014", "amazon-reviews"])
def test_text_that_is_not_utf_8_is_named_by_line(tmp_path, format):
    good = {
        "pairs": "a x\n", "sequences": "a x\n", "table": "user_id,item_id,timestamp\na,x,1\n",
        "amazon-ratings-2014": "a,x,5,1\n",
    }.get(format, '{"user_id": "a", "parent_asin": "x", "timestamp": 1, "rating": 1}\n')  # fmt: skip
    (tmp_path / "s").write_bytes(good.encode() + b"\n\xe9,\xe9,1,1\n")
    with pytest.raises(PrefError, match=f"line {good.count(chr(10)) + 2}: the text is not UTF-8"):
        convert(tmp_path / "s", format, "d", tmp_path)


def test_a_byte_order_mark_is_not_part_of_an_id(tmp_path):
    (tmp_path / "s").write_bytes(b"\xef\xbb\xbfa x\n")
    convert(tmp_path / "s", "pairs", "d", tmp_path)
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfuser_id,item_id,timestamp\na,x,0\n")
    convert(tmp_path / "t", "table", "e", tmp_path)
    assert rows(tmp_path) == [["a", "x"]] == read(tmp_path, "e").iloc[:, :2].to_numpy().tolist()


@pytest.mark.parametrize("format", ["sequences", "table", "amazon-ratings-2014", "amazon-reviews"])
def test_damaged_archives_are_refused(tmp_path, format):
    line = b'{"user_id": "a", "parent_asin": "x", "timestamp": 1, "rating": 1}\n'
    text = {"amazon-reviews": line, "sequences": b"a " + b"x" * 60, "table": b"user_id,item_id,timestamp\na,x,1\n"}
    whole = gzip.compress(text.get(format, b"a,x,1,1\n"))
    for data in (whole[:-5], b"text", whole[:-8] + bytes(8)):
        (tmp_path / "s.gz").write_bytes(data)
        with pytest.raises(PrefError, match="s.gz is not a complete gzip file"):
            convert(tmp_path / "s.gz", format, "d", tmp_path)


def test_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "s.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(PrefError, match="s.parquet is not a Parquet file"):
        convert(tmp_path / "s.parquet", "table", "d", tmp_path)
    frame = pd.DataFrame({"user_id": ["a", None], "item_id": [1, 2], "timestamp": [1, 2]})
    frame.to_parquet(tmp_path / "s.parquet")
    with pytest.raises(PrefError, match="row 2: user_id is empty"):
        convert(tmp_path / "s.parquet", "table", "d", tmp_path)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "s").write_text("a x y\n")
    with pytest.raises(PrefError, match="d.inter cannot be written"):
        convert(tmp_path / "s", "sequences", "d", tmp_path / "s")
    for name in ("", "..", "a/b"):
        with pytest.raises(PrefError, match="cannot name a folder"):
            convert(tmp_path / "s", "sequences", name, tmp_path)
    with pytest.raises(PrefError, match="input=.*/t' does not exist.*Did you mean '.*/s'"):
        convert(tmp_path / "t", "sequences", "d", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    (tmp_path / "s").write_text("a x y\n")
    convert(tmp_path / "s", "sequences", "d", tmp_path)
    before = (tmp_path / "d" / "d.inter").read_bytes()
    (tmp_path / "s").write_text("b x y z\n")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PrefError, match="No space left"):
        convert(tmp_path / "s", "sequences", "d", tmp_path, force=True)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["d.inter"]
    assert (tmp_path / "d" / "d.inter").read_bytes() == before


def test_debug_shows_the_traceback(tmp_path, capsys):
    words = [f"--input={tmp_path / 's'}", "--format=sequences", "--name=d"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("recbole-pref-data: input=") and err.count("\n") == 1
    with pytest.raises(PrefError):
        main([*words, "--debug"])


def test_the_commands_of_the_documentation_run(tmp_path):
    text = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = "\n".join(text.split("```")[1::2]).replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("recbole-pref-data")]
    assert len(commands) == 10
    ratings = "".join(f"u{u},i{i},5.0,{u + i}\n" for u in range(5) for i in range(5))
    contents = {
        "log.csv": "uid,sku,ts\na,x,1\n",
        "events.csv": "timestamp,visitorid,event,itemid\n2,a,addtocart,x\n3,a,view,y\n4,a,transaction,y\n",
        "ratings.txt": "a::x::5::1\n",
        "ratings_Beauty.csv": ratings,
        "reviews_Beauty_5.json.gz": '{"reviewerID": "a", "asin": "x", "unixReviewTime": 1, "overall": 5}\n',
        "meta_Beauty.json.gz": "{'asin': 'x', 'title': 'y'}\n",
    }
    for words in commands:
        for file in {word.split("=")[1] for word in words if word.startswith(("--input", "--item_features"))}:
            content = contents.get(file, '{"x": [1]}' if "json" in file else "a x y z\n")
            with (gzip.open if file.endswith(".gz") else open)(tmp_path / file, "wt") as stream:
                stream.write(content)
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)  # two make a data set of one name
        assert main(words) == 0
        (name,) = (word.split("=")[1] for word in words if word.startswith("--name"))
        assert (tmp_path / "dataset" / name / f"{name}.inter").is_file()
        known = (Path(__file__).resolve().parents[1] / "properties" / "dataset" / f"{name}.yaml").is_file()
        assert known == (name not in ("shop", "ratings", "events", "beauty"))


HELP = """
import sys, types
package = types.ModuleType("recbole_pref")  # what the import of the package itself loads does not count here
package.__path__ = [sys.argv[1]]
sys.modules["recbole_pref"] = package
from {module} import build_parser
print(build_parser().format_help())
print({{"torch", "pandas", "numpy", "recbole", "yaml", "scipy"}} & sys.modules.keys())
"""


@pytest.mark.parametrize("module", ["recbole_pref.data.convert", "recbole_pref.features_tool"])
def test_help_needs_no_heavy_package(module):
    package = Path(__file__).resolve().parents[1] / "recbole_pref"
    command = [sys.executable, "-c", HELP.format(module=module), str(package)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "examples:" in shown and shown.splitlines()[-1] == "set()"


def test_help_lists_every_format():
    assert tuple(READERS) == FORMATS
    assert all(format in "".join(build_parser().format_help().split()) for format in FORMATS)


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


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6))
def test_the_summary_is_that_of_the_trainer(tmp_path, seed):
    rng = np.random.default_rng(seed)
    lengths = [6, 6, *rng.integers(1, 7, 30)]
    lines = [f"u{u} " + " ".join(map(str, rng.integers(0, 25, n))) for u, n in enumerate(lengths)]
    (tmp_path / "s").write_text("\n".join(lines))
    summary = convert(tmp_path / "s", "sequences", "d", tmp_path, force=True)
    config = Config("LPOSASRec", "d", config_dict={
        "data_path": str(tmp_path), "state": "ERROR", "gpu_id": "",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    })  # fmt: skip
    dataset, loaders = prepare_data(config, log=False)
    counts = train_counts(loaders[0]._dataset)
    head = head_tail_split(counts, "items", 0.2)
    targets = loaders[2]._dataset.inter_feat["item_id"]
    expected = (~head[targets]).float().mean().item()
    assert summary["tail_targets"] == pytest.approx(expected)
    shown = set(dataset.id2token("item_id", head.nonzero()[:, 0].numpy()))
    items = [item for line in lines for item in line.split()[1:]]
    assert summary["head_share"] == pytest.approx(np.mean([item in shown for item in items]))


SOURCES = {
    "sequences": b"a x y z\nb y x\nc z z y\n",
    "pairs": b"a x\na y\nb x\n",
    "table": b"user_id,item_id,timestamp\na,x,1\na,y,2\nb,x,2024-01-01\n",
    "amazon-ratings-2018": b"x,a,5.0,1\ny,a,4.0,2\nx,b,1.0,3\n",
    "amazon-reviews": b'{"user_id": "a", "parent_asin": "x", "timestamp": 1, "rating": 5}\n' * 3,
}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_ends_in_a_sentence_or_in_loadable_data(tmp_path, data):
    format = data.draw(st.sampled_from(sorted(SOURCES)))
    raw = bytearray(SOURCES[format])
    zipped = data.draw(st.booleans())
    if zipped:
        raw = bytearray(gzip.compress(bytes(raw), mtime=0))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        byte = data.draw(st.one_of(st.sampled_from(b'\t\n\r ,:"{}0'), st.integers(0, 255)))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        if kind == "set":
            raw[at] = byte
        elif kind == "insert":
            raw.insert(at, byte)
        elif kind == "delete" and len(raw) > 1:
            del raw[at]
        elif kind == "cut":
            del raw[max(1, at) :]
    file = tmp_path / ("s.gz" if zipped else "s")
    file.write_bytes(bytes(raw))
    try:
        summary = convert(file, format, "d", tmp_path, force=True)
    except PrefError as error:
        assert "\n" not in str(error)
        return
    assert summary["interactions"] == len(rows(tmp_path))
    config = Config("BPR", "d", config_dict={"data_path": str(tmp_path), "state": "ERROR", "gpu_id": ""})
    check_atomic_files(config["data_path"], "d", config)


def test_summaries_do_not_depend_on_names():
    frame = pd.DataFrame({"user_id": ["1"] * 3, "item_id": ["p", "q", "r"]})
    assert summarize(frame)["tail_targets"] == 1.0
