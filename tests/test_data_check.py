"""Damaged data files: one sentence with file and line, whatever the damage."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_pref.config import Config
from recbole_pref.data_check import check_atomic_files, check_split
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import prepare_data, run_recbole_pref

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
GOOD = [HEAD, "a\tx\t1", "a\ty\t2", "a\tz\t3", "b\tx\t1", "b\ty\t2", "b\tz\t4"]


def config_of(folder, **more):
    settings = {
        "data_path": str(folder), "state": "ERROR", "gpu_id": "", "topk": [1], "valid_metric": "NDCG@1",
        "metrics": ["NDCG"], "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "num_negatives": 1, **more,
    }  # fmt: skip
    return Config("LPOSASRec", "d", config_dict=settings)


def check(tmp_path, lines, model="LPOSASRec", **more):
    (tmp_path / "d").mkdir(exist_ok=True)
    data = lines if isinstance(lines, bytes) else ("\n".join(lines) + "\n").encode()
    (tmp_path / "d" / "d.inter").write_bytes(data)
    config = config_of(tmp_path, **more)
    return check_atomic_files(config["data_path"], "d", config)


def changed(line, text):
    lines = list(GOOD)
    lines[line - 1] = text
    return lines


def test_sound_files_pass_with_notes(tmp_path):
    assert check(tmp_path, GOOD) == []
    notes = check(tmp_path, [*GOOD, "c\tx\t5", "b\tx\t4"])
    assert len(notes) == 2 and "1 of 3 users" in notes[0] and "1 interactions" in notes[1]


def test_ml_100k_passes():
    config = Config("LPOSASRec", "ml-100k")
    assert isinstance(check_atomic_files(config["data_path"], "ml-100k", config), list)


@pytest.mark.parametrize(
    "lines, match",
    [
        (changed(1, "user_id\titem_id:token\ttimestamp:float"), "line 1: column 'user_id'"),
        (changed(1, "user_id:tokn\titem_id:token\ttimestamp:float"), "'token'"),
        (changed(1, "user_id:token\tuser_id:token\ttimestamp:float"), "twice"),
        (changed(1, "user:token\titem_id:token\ttimestamp:float"), "no column 'user_id'.*'user'"),
        (changed(1, "user_id:token\titem_id:token\ttimestamp:token"), "must be of type float"),
        (changed(4, "a\tz"), "line 4: 2 columns where the header names 3"),
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
        ([HEAD, "a\tx\t1", "b\ty\t2"], "every one of the 2 users"),
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
    with pytest.raises(PrefError, match="which is no folder"):
        check_atomic_files(str(tmp_path / "no" / "d"), "d", config_of(tmp_path))


def test_a_column_that_is_not_loaded_is_named(tmp_path):
    with pytest.raises(PrefError, match="load_col does not load 'timestamp'"):
        check(tmp_path, GOOD, load_col={"inter": ["user_id", "item_id"]})


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
        run_recbole_pref(
            "LPOSASRec", config_dict={**tiny_dataset, "user_inter_num_interval": "[1000,inf)"}
        )
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_ends_in_a_sentence_or_works(tmp_path, data):
    raw = bytearray(("\n".join(GOOD * 1 + [f"c\t{i}\t{n}" for n, i in enumerate("xyz")]) + "\n").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
        byte = data.draw(st.one_of(st.sampled_from(b"\t\n:,\" 0"), st.integers(0, 255)))
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
