"""Damaged data files: one sentence with file and line, whatever the damage."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.data.check import MISSING, check_atomic_files, check_split
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import run_recbole_pref

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
GOOD = [HEAD, "a\tx\t1", "a\ty\t2", "a\tz\t3", "b\tx\t1", "b\ty\t2", "b\tz\t4"]


def config_of(folder, model="LPOSASRec", **more):
    settings = {
        "data_path": str(folder), "state": "ERROR", "gpu_id": "", "topk": [1], "valid_metric": "NDCG@1",
        "metrics": ["NDCG"], "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "num_negatives": 1, **more,
    }  # fmt: skip
    return Config(model, "d", config_dict=settings)


def check(tmp_path, lines, model="LPOSASRec", **more):
    (tmp_path / "d").mkdir(exist_ok=True)
    data = lines if isinstance(lines, bytes) else ("\n".join(lines) + "\n").encode()
    (tmp_path / "d" / "d.inter").write_bytes(data)
    config = config_of(tmp_path, model, **more)
    return check_atomic_files(config["data_path"], "d", config)


def changed(line, text):
    lines = list(GOOD)
    lines[line - 1] = text
    return lines


def test_sound_files_pass_with_notes(tmp_path):
    assert check(tmp_path, GOOD) == []
    notes = check(tmp_path, [*GOOD, "c\tx\t5", "b\tx\t4"])
    assert len(notes) == 2 and "1 of 3 users" in notes[0] and "1 interactions" in notes[1]


def test_equal_times_are_reported(tmp_path):
    start = 1_100_000_000  # where 32-bit floats are 128 apart
    near = [GOOD[0], *(f"a\ti{time}\t{time}" for time in (start + 60, start, start + 900)), f"b\tx\t{start}", "b\ty\t1"]
    assert check(tmp_path, near) == []
    for unit in (1, 0.3):  # whole numbers or not
        same = [GOOD[0], *(f"{user}\tx\t{time * unit}" for user, time in zip("aabbbc", (5, 5, 7, 5, 7, 5)))]
        note = check(tmp_path, same)[-1]
        assert "2 interactions have the same user and time" in note and "in the order of the file" in note


def test_ml_100k_passes():
    config = Config("LPOSASRec", "ml-100k")
    assert isinstance(check_atomic_files(config["data_path"], "ml-100k", config), list)


@pytest.mark.parametrize(
    "lines, match",
    [
        (changed(1, "user_id\titem_id:token\ttimestamp:float"), "line 1: column 'user_id'"),
        (changed(1, "user_id:tokn\titem_id:token\ttimestamp:float"), "'token'"),
        (changed(1, "user_id:token\tuser_id:token\ttimestamp:float"), "two columns have the name"),
        (changed(1, "user:token\titem_id:token\ttimestamp:float"), "no column 'user_id'.*'user'"),
        (changed(1, "user_id:token\titem_id:token\ttimestamp:token"), "must be of type float"),
        (changed(4, "a\tz"), "line 4: 2 columns, but the header names 3"),
        (changed(4, "a\tz\t3\t9"), "line 4: 4 columns"),
        (changed(4, ""), "line 4: 1 columns"),
        (changed(5, "b\tx\tnoon"), "line 5: 'timestamp' is 'noon'"),
        (changed(5, "b\tx\tinf"), "line 5: 'timestamp' is 'inf'"),
        (changed(5, "b\tx\t"), "line 5: 'timestamp' is ''"),
        (changed(6, "\ty\t2"), "line 6: 'user_id' is empty"),
        (changed(6, "b\t\t2"), "line 6: 'item_id' is empty"),
        ([HEAD], "no interactions"),
        (b"", "is empty"),
        ("\n".join(GOOD).encode() + b"\n\xff\tx\t1\n", "line 8: the text is not utf-8"),
        ("\n".join(GOOD).encode() + b"\nc\0\tx\t1\n", "line 8: there is a NUL byte"),
        ([HEAD, "a\tx\t1", "b\ty\t2"], "each of the 2 users"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, lines, match):
    with pytest.raises(PrefError, match=match) as caught:
        check(tmp_path, lines)
    assert "d.inter" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_data_set_names_its_neighbour(tmp_path):
    check(tmp_path, GOOD)
    (tmp_path / "lastfm").mkdir()
    with pytest.raises(PrefError, match="'lastfmm'.*Did you mean 'lastfm'"):
        check_atomic_files(str(tmp_path / "lastfmm"), "lastfmm", config_of(tmp_path))
    with pytest.raises(PrefError, match="which is not a folder.*Did you mean 'ml-100k'"):
        check_atomic_files(str(tmp_path / "no" / "ml-100"), "ml-100", config_of(tmp_path))


def test_a_missing_data_set_is_refused_before_anything_is_logged(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrefError, match="was not found"):
        prepare_data(config_of(tmp_path, state="INFO"))
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_column_that_is_not_loaded_is_named(tmp_path):
    with pytest.raises(PrefError, match="load_col does not load 'item_id'"):  # the time column is added
        check(tmp_path, GOOD, load_col={"inter": ["user_id", "timestamp"]})
    with pytest.raises(PrefError, match="unload_col does not load 'timestamp'"):
        check(tmp_path, GOOD, load_col=None, unload_col={"inter": ["timestamp"]})
    with pytest.raises(PrefError, match="load_col names no columns of the interaction file"):
        check(tmp_path, GOOD, load_col={"item": ["item_id"]})


def test_vectors_are_numbers(tmp_path):
    lines = [f"{HEAD}\tv:float_seq", *(f"{line}\t1 2" for line in GOOD[1:])]
    load = {"inter": ["user_id", "item_id", "timestamp", "v"]}
    check(tmp_path, [*lines[:2], lines[2][:-3], *lines[3:]], load_col=load)
    wrong = [*lines[:2], f"{lines[2][:-3]}1 x 2", *lines[3:]]
    with pytest.raises(PrefError, match="line 3: 'v' holds a value that is not a number"):
        check(tmp_path, wrong, load_col=load)
    check(tmp_path, wrong)


def test_columns_that_are_not_loaded_may_hold_anything(tmp_path):
    lines = [f"{HEAD}\trating:float", *(f"{line}\tgood" for line in GOOD[1:])]
    assert check(tmp_path, lines) == []
    with pytest.raises(PrefError, match="line 2: 'rating' is 'good'"):
        check(tmp_path, lines, load_col={"inter": "*"})
    (note,) = check(tmp_path, GOOD, load_col={"inter": ["user_id", "item_id", "timestamp", "timestam"]})
    assert "no column 'timestam'" in note and "Did you mean 'timestamp'" in note


def test_the_order_of_time_needs_the_time_column(tmp_path):
    lines = [line.rsplit("\t", 1)[0] for line in GOOD]
    with pytest.raises(PrefError, match=r"no column 'timestamp' \(TIME_FIELD\)"):
        check(tmp_path, lines, model="BPR", eval_args={"order": "TO"}, load_col={"inter": ["user_id", "item_id"]})


def test_models_without_sequences_need_no_time(tmp_path):
    lines = [line.rsplit("\t", 1)[0] for line in GOOD]
    with pytest.raises(PrefError, match=r"no column 'timestamp' \(TIME_FIELD\)"):
        check(tmp_path, lines)
    assert check(tmp_path, lines, model="BPR", load_col={"inter": ["user_id", "item_id"]}) == []
    lines = [GOOD[0].replace("float", "token"), *(f"{line} o'clock" for line in GOOD[1:])]
    assert check(tmp_path, lines, model="BPR", load_col=None) == []


def test_strange_ids_are_ids(tmp_path):
    assert check(tmp_path, [*GOOD, "-7\t99999999999999999999999\t1", "-7\té ü\t2"]) == []


def test_ids_that_read_as_missing_are_refused(tmp_path):
    from pandas._libs.parsers import STR_NA_VALUES

    assert MISSING >= STR_NA_VALUES
    with pytest.raises(PrefError, match="line 8: 'user_id' is 'NA', which RecBole reads as missing"):
        check(tmp_path, [*GOOD, "NA\tx\t1"])
    with pytest.raises(PrefError, match="line 9: 'item_id' is 'null'"):
        check(tmp_path, [*GOOD, "a\tna\t5", "a\tnull\t7"])


def test_line_ends_of_all_systems(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        text = end.join(GOOD)
        assert check(tmp_path, text.encode()) == []
        assert check(tmp_path, (text + 3 * end).encode()) == []
        with pytest.raises(PrefError, match="line 8: 2 columns"):
            check(tmp_path, (text + end + "a\tx" + end).encode())


def test_separators_and_encodings_of_the_settings(tmp_path):
    for separator in (",", "::"):
        lines = [line.replace("\t", separator) for line in GOOD]
        if separator == ",":
            assert check(tmp_path, lines, field_separator=separator) == []
            with pytest.raises(PrefError, match="line 3: 2 columns"):
                check(tmp_path, [*lines[:2], "a,y"], field_separator=separator)
        with pytest.raises(PrefError, match="field_separator"):
            check(tmp_path, lines)
    latin = "\n".join([*GOOD, "é\tx\t1", "é\ty\t2"]).encode("latin-1")
    assert check(tmp_path, latin, encoding="latin-1") == []
    with pytest.raises(PrefError, match="line 8: the text is not utf-8"):
        check(tmp_path, latin)
    with pytest.raises(PrefError, match="encoding='latin-11' does not exist"):
        check(tmp_path, latin, encoding="latin-11")
    with pytest.raises(PrefError, match="line 1: .*byte order mark"):
        check(tmp_path, "\n".join(GOOD).encode("utf-8-sig"))
    assert check(tmp_path, "\n".join(GOOD).encode("utf-8-sig"), encoding="utf-8-sig") == []


def test_quotation_marks_that_swallow_lines_are_refused(tmp_path):
    with pytest.raises(PrefError, match="line 4: 'item_id' is '\"z', a quotation mark"):
        check(tmp_path, changed(4, 'a\t"z\t3'))
    assert check(tmp_path, changed(4, 'a\t"z ""q"""\t3')) == []
    assert check(tmp_path, changed(4, 'a\tz"\t3')) == []
    prepare_data(config_of(tmp_path), log=False)


@pytest.mark.parametrize(
    "text, match",
    [
        ("item_id:token\tprice:float\nx\t1\ny\n", "line 3: 1 columns"),
        ("item_id:token\tprice:float\nx\tcheap\n", "line 2: 'price' is 'cheap'"),
        ("item_id:token\tprice:flot\nx\t1\n", "line 1: column 'price:flot'.*'float'"),
        ("item:token\tprice:float\nx\t1\n", "no column 'item_id'"),
        ("item_id:token\n\n", "no rows"),
        ("", "is empty"),
    ],
)
def test_item_files_are_checked_when_they_are_loaded(tmp_path, text, match):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.item").write_text(text)
    assert check(tmp_path, GOOD) == []
    with pytest.raises(PrefError, match=match) as caught:
        check(tmp_path, GOOD, load_col=None)
    assert "d.item" in str(caught.value)


def test_item_files_that_pass_and_that_are_missing(tmp_path):
    load = {"inter": "*", "item": ["item_id", "price"]}
    with pytest.raises(PrefError, match="d.item'.*does not exist.*'item'"):
        check(tmp_path, GOOD, load_col=load)
    (tmp_path / "d" / "d.item").write_text("item_id:token\tprice:float\nx\t1\ny\t\nx\t2\n")
    repeated, dropped = check(tmp_path, GOOD, load_col=load)
    assert "1 rows repeat a 'item_id'" in repeated
    assert "2 interactions have a 'item_id' without a row" in dropped
    assert len(check(tmp_path, GOOD, load_col=load, filter_inter_by_user_or_item=False)) == 1


def test_items_that_nobody_had_are_reported(tmp_path):
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.item").write_text("item_id:token\tprice:float\nw\t1\nx\t1\ny\t2\nz\t3\n")
    (note,) = check(tmp_path, GOOD, load_col=load)
    assert "1 items of" in note and "are in no interaction" in note
    dataset, _ = prepare_data(config_of(tmp_path, load_col=load), log=False)
    assert dataset.item_num == 5  # with padding


LIST_HEAD = "user_id:token\titem_id_list:token_seq\titem_id:token"


def check_presplit(tmp_path, *rows, head=LIST_HEAD, **more):
    (tmp_path / "d").mkdir(exist_ok=True)
    for part in ("train", "valid", "test"):
        lines = [head, *(rows if part == "valid" else ["a\tx y\tz"])]
        (tmp_path / "d" / f"d.{part}.inter").write_text("\n".join(lines) + "\n")
    more = {"load_col": None, "MAX_ITEM_LIST_LENGTH": 3, **more}
    config = config_of(tmp_path, benchmark_filename=["train", "valid", "test"], **more)
    return check_atomic_files(config["data_path"], "d", config)


def test_benchmark_files_are_looked_for_by_name(tmp_path):
    with pytest.raises(PrefError, match="d.train.inter.*the folder holds d.inter"):
        check(tmp_path, GOOD, benchmark_filename=["train", "valid", "test"], load_col=None)
    assert check_presplit(tmp_path, "a\tx\ty") == []
    with pytest.raises(PrefError, match="d.valid.inter, line 2"):
        check_presplit(tmp_path, "a\tx")


@pytest.mark.parametrize("head", ["user_id:token\titems:token_seq\titem_id:token", LIST_HEAD.replace("_seq", "")])
def test_presplit_files_need_their_list_column(tmp_path, head):
    with pytest.raises(PrefError, match="d.train.inter, line 1: .*'item_id_list'"):
        check_presplit(tmp_path, "a\tx\ty", head=head)
    with pytest.raises(PrefError, match="load_col does not load 'item_id_list'"):
        check_presplit(tmp_path, "a\tx\ty", load_col={"inter": ["user_id", "item_id"]})


@pytest.mark.parametrize(
    "row, problem",
    [("b\t\tx", "is empty"), ("b\t \tx", "is empty"), ("b\tx 0 0\ty", "padded"), ("b\t0 x\ty", "padded")],
)
def test_presplit_lists_are_checked_line_by_line(tmp_path, row, problem):
    with pytest.raises(PrefError, match=f"d.valid.inter, line 3: 'item_id_list' .*{problem}"):
        check_presplit(tmp_path, "a\tx y\tz", row, "b\tx\ty")
    if problem == "padded":  # an item may be called 0
        assert check_presplit(tmp_path, row, "b\tx\t0") == []


def test_long_presplit_lists_are_reported(tmp_path):
    (note,) = check_presplit(tmp_path, "a\tx y z x\ty", "b\tx y z\tx")
    assert "d.valid.inter: 1 lists are longer than MAX_ITEM_LIST_LENGTH=3" in note


def test_values_that_no_row_has_are_reported(tmp_path):
    lines = [f"{HEAD}\tkind:token", *(f"{line}\t{n % 2}" for n, line in enumerate(GOOD[1:]))]
    load = {"inter": ["user_id", "item_id", "timestamp", "kind"]}
    assert check(tmp_path, lines, load_col=load, val_interval={"kind": ["0", 1]}) == []
    (note,) = check(tmp_path, lines, load_col=load, val_interval={"kind": [1, "buy"]})
    assert "val_interval, kind: no row of" in note and "'buy'" in note


def test_an_empty_part_names_the_filters():
    check_split(5, 0, 2, 9)
    with pytest.raises(PrefError, match="no training rows.*user_inter_num_interval"):
        check_split(0, 2, 2, 9)
    with pytest.raises(PrefError, match="no test rows"):
        check_split(5, 2, 0, 9)
    with pytest.raises(PrefError, match="only 1 item"):
        check_split(5, 2, 1, 2)


def test_filters_that_leave_nothing_end_in_one_sentence(tiny_dataset):
    with pytest.raises(PrefError) as caught:
        run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "user_inter_num_interval": "[1000,inf)"})
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_ends_in_a_sentence_or_works(tmp_path, data):
    raw = bytearray(("\n".join(GOOD * 1 + [f"c\t{i}\t{n}" for n, i in enumerate("xyz")]) + "\n").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        byte = data.draw(st.one_of(st.sampled_from(b'\t\n:," 0'), st.integers(0, 255)))
        if kind == "set":
            raw[at] = byte
        elif kind == "insert":
            raw.insert(at, byte)
        elif kind == "delete" and len(raw) > 1:
            del raw[at]
        elif kind == "cut":
            del raw[max(1, at) :]
    (tmp_path / "d").mkdir(exist_ok=True)
    (tmp_path / "d" / "d.inter").write_bytes(bytes(raw))
    try:
        prepare_data(config_of(tmp_path), log=False)
    except PrefError as error:
        assert "\n" not in str(error)
