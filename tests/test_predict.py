"""Recommendations from a checkpoint alone: tokens in, tokens out."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from recbole.data.interaction import Interaction
from recbole.utils.case_study import full_sort_topk

from recbole_pref import cli
from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.predict import Recommender, files, predict_file, read_sequences
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref
from tests.conftest import tiny_sequences, write_atomic


@pytest.fixture(params=["LPOSASRec", "SDPOGRU4Rec", "CECaser", "LPONARM"])
def trained(request, tiny_dataset):
    result = run_recbole_pref(request.param, config_dict={**tiny_dataset, "epochs": 1})
    return result["checkpoint"]


def test_recommending_does_not_need_what_only_training_needs(tiny_dataset, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    settings = {
        **tiny_dataset, "epochs": 1, "reference": "auto", "lambda": 0.0, "tail_split": "interactions",
        "objective": {"weights": {"TailNDCG@10": 1.0}, "of_reference": {"NDCG@10": 0.5}}, "gpu_id": "",
    }  # fmt: skip
    recommender = Recommender(run_recbole_pref("LPOSASRec", config_dict=settings)["checkpoint"])
    assert len(recommender.recommend([["i3", "i4"]], k=3)) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    wide = {"tail_split": "interactions", "head_ratio": 0.01}
    Recommender(run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "epochs": 1, **wide})["checkpoint"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    pool = {"neg_sampler": "pool", "neg_candidates": "tail", "pool_size": 16, "tail_split": "interactions"}
    result = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 1, **pool, "head_ratio": 0.5})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    Recommender(result["checkpoint"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,4"


@pytest.mark.parametrize("anchor", ["auto", 2])
def test_tawins_window_needs_no_group(tiny_dataset, anchor, caplog):
    settings = {**tiny_dataset, "epochs": 1, "reference_epochs": 1, "num_negatives": 20, "tawin_anchor": anchor}
    result = run_recbole_pref("TAWinSASRec", config_dict=settings)
    caplog.clear()
    assert len(Recommender(result["checkpoint"]).recommend([["i3", "i4"]], k=3)) == 3
    assert not caplog.records


SEQUENCES = [["i3", "i4"], ["i1"], [f"i{n % 20}" for n in range(30)]]


def test_scores_are_those_of_the_model_and_seen_items_are_left_out(trained):
    _, model, dataset, *_ = load_data_and_model(trained, state="ERROR")
    model.eval()
    frame = Recommender(trained).recommend(SEQUENCES, k=7)
    for row, sequence in enumerate(SEQUENCES):
        ids = [dataset.token2id("item_id", token) for token in sequence]
        kept = ids[-8:]
        batch = {
            "item_id_list": torch.tensor([kept + [0] * (8 - len(kept))]),
            "item_length": torch.tensor([len(kept)]),
            "user_id": torch.tensor([0]),
        }
        with torch.no_grad():
            scores = model.full_sort_predict(Interaction(batch)).view(-1).clone()
        scores[[0, *ids]] = -torch.inf
        best = scores.topk(7)
        own = frame[frame["row"] == row]
        assert own["rank"].tolist() == list(range(1, 8))
        np.testing.assert_allclose(own["score"], best.values.numpy(), rtol=1e-4, atol=1e-5)
        assert not set(own["item"]) & set(sequence)


@pytest.fixture
def recommender(tiny_dataset):
    result = run_recbole_pref("LPOSASRec", config_dict={**tiny_dataset, "epochs": 1})
    return Recommender(result["checkpoint"]), result["checkpoint"]


def test_seen_items_can_stay_and_batches_do_not_matter(recommender):
    model, _ = recommender
    whole = model.recommend(SEQUENCES, k=40, exclude_seen=False)
    assert set(whole[whole["row"] == 0]["item"]) >= {"i3", "i4"} and len(whole) == 120
    pd.testing.assert_frame_equal(model.recommend(SEQUENCES, 5), model.recommend(SEQUENCES, 5, batch_size=1))


def test_a_catalogue_can_run_out_of_unseen_items(recommender):
    model, _ = recommender
    frame = model.recommend([[f"i{n}" for n in range(35)]], k=40)
    assert len(frame) == 5


@pytest.mark.parametrize(
    "sequences, options, match",
    [
        ([["i1"], ["i99"]], {}, "sequence 2 holds the item 'i99'.*'i9'"),
        ([[]], {}, "sequence 1 holds no item"),
        ("i1", {}, "sequences is a text"),
        (["i1"], {}, "sequence 1 is a text"),
        ([["i1"]] * 3 + [["i99"]], {"batch_size": 2}, "sequence 4 holds the item 'i99'"),
        ([["i1"]], {"k": "3"}, "k='3' is not a whole number"),
        ([["[PAD]"]], {}, r"\[PAD\]"),
        ([["i1"]], {"k": 41}, "k=41 is not a whole number from 1 to the 40 items"),
    ],
)
def test_mistakes_are_named(recommender, sequences, options, match):
    with pytest.raises(PrefError, match=match):
        recommender[0].recommend(sequences, **options)


def test_a_text_is_not_a_sequence_even_if_unknown_items_are_skipped(recommender):
    with pytest.raises(PrefError, match="sequence 1 is a text"):
        recommender[0].recommend(["i1"], unknown="skip")


def write_backwards(folder, sequences):
    """Write the data set ``tiny`` with the latest interaction first and return its file."""
    file = write_atomic(folder, "tiny", sequences)
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *lines[::-1], ""]))
    return file


@pytest.mark.parametrize("model", ["LPOSASRec", "CECaser", "CEFPMC"])
def test_given_users_have_their_whole_history_and_vector(tiny_dataset, tmp_path, model, caplog):
    sequences = [*tiny_sequences(), [7]]  # the last user has no row to train on
    file = write_backwards(tmp_path / "data", sequences)
    path = run_recbole_pref(
        model, config_dict={**tiny_dataset, "data_path": str(tmp_path / "data"), "learning_rate": 0.05}
    )["checkpoint"]
    users = [60, 5, 59, 0, 5]
    names = [f"u{user}" for user in users]
    caplog.clear()
    recommender = Recommender(path)
    frame = recommender.recommend_users(names, k=6)
    assert not caplog.records and list(frame) == ["user", "rank", "item", "score"]
    assert frame["user"].tolist() == [name for name in names for _ in range(6)]
    in_parts = recommender.recommend_users(["u99", *names], k=6, unknown="skip", batch_size=2)
    assert in_parts["item"].tolist() == frame["item"].tolist() and "1 of 6 users" in caplog.text
    caplog.clear()

    # RecBole's model, on sequences made by hand
    _, trained, dataset, *_ = load_data_and_model(path, state="ERROR")
    trained.eval()
    for place, user in enumerate(users):
        ids = [int(dataset.token2id("item_id", f"i{item}")) for item in sequences[user]]
        kept = ids[-8:]
        batch = {
            "item_id_list": torch.tensor([kept + [0] * (8 - len(kept))]),
            "item_length": torch.tensor([len(kept)]),
            "user_id": torch.tensor([dataset.token2id("user_id", f"u{user}")]),
        }
        with torch.no_grad():
            scores = trained.full_sort_predict(Interaction(batch)).view(-1).clone()
        scores[[0, *ids]] = -torch.inf
        own = frame.iloc[6 * place : 6 * place + 6]
        np.testing.assert_allclose(own["score"], scores.topk(6).values.numpy(), rtol=1e-4, atol=1e-5)
        assert not set(own["item"]) & {f"i{item}" for item in sequences[user]}

    # the same as sequences: equal where the model holds no vector per user, else with a warning and others
    tokens = [[f"i{item}" for item in sequences[user]] for user in users]
    by_items = recommender.recommend(tokens, k=6)
    recommender.recommend(tokens)  # warns once
    same = np.allclose(by_items["score"], frame["score"], rtol=1e-4, atol=1e-5)
    assert same == (model == "LPOSASRec") == ("a vector per user" not in caplog.text)
    assert len(caplog.records) <= 1

    # RecBole's own lists of the test rows, after one more interaction of each user
    more = [f"u{user}\ti1\t1000" for user in range(60)]
    later = write_atomic(tmp_path / "later", "tiny", [])
    later.write_text(file.read_text() + "\n".join([*more, ""]))
    config = Config(model, config_dict={**tiny_dataset, "data_path": str(tmp_path / "later")})
    grown, (_, _, test_data) = prepare_data(config, log=False)
    ids = grown.token2id("user_id", [f"u{user}" for user in range(60)])
    best = full_sort_topk(ids, trained, test_data, 6, torch.device("cpu"))
    frame = recommender.recommend_users([f"u{user}" for user in range(60)], k=6, exclude_seen=False)
    np.testing.assert_allclose(frame["score"], best[0].flatten().numpy(), rtol=1e-4, atol=1e-5)
    assert (frame["item"] == grown.id2token("item_id", best[1].flatten().numpy())).mean() > 0.99


def test_histories_have_the_order_of_training_and_of_exact_times(tiny_dataset, tmp_path):
    sequences = [[(user + 3 * place) % 40 for place in range(7)] for user in range(60)]
    file = write_backwards(tmp_path / "data", sequences)
    header, *lines = file.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    # RecBole alone rounds times to 32 bits, here to multiples of 64.
    lines = [f"{user}\t{item}\t{881250900 + 25 * int(place)}" for user, item, place in cells]
    file.write_text("\n".join([header, *lines, ""]))
    path = run_recbole_pref("CESASRec", config_dict={**tiny_dataset, "epochs": 1, "data_path": str(tmp_path / "data")})[
        "checkpoint"
    ]
    dataset, test_data = (load_data_and_model(path)[place] for place in (2, 5))
    histories = Recommender(path)._histories
    rows = test_data._dataset.inter_feat
    orders = set()
    for user, items, length, last in zip(
        rows["user_id"], rows["item_id_list"], rows["item_length"], rows["item_id"], strict=True
    ):
        token = dataset.id2token("user_id", int(user))
        history = histories.of(token)
        assert history.tolist() == [*items[:length].tolist(), int(last)]
        tokens = dataset.id2token("item_id", history)
        orders.add(tuple(sequences[int(token[1:])].index(int(item[1:])) for item in tokens))
    assert orders == {tuple(range(7))}


def test_users_that_the_data_set_does_not_know(recommender, caplog):
    model, _ = recommender
    with pytest.raises(PrefError, match="user 2 is 'u99', which has no interactions in the data set 'tiny'.*'u9'"):
        model.recommend_users(["u1", "u99"])
    with pytest.raises(PrefError, match=r"user 1 is '\[PAD\]'"):
        model.recommend_users(["[PAD]"])
    with pytest.raises(PrefError, match="users is a text"):
        model.recommend_users("u1")
    with pytest.raises(PrefError, match="k=41 is not a whole number"):
        model.recommend_users(["u1"], k=41)
    frame = model.recommend_users(["u99", "u1", "u98"], k=2, unknown="skip")
    assert frame["user"].tolist() == ["u1", "u1"] and "2 of 3 users have no interactions" in caplog.text
    assert not len(model.recommend_users(["u99"], unknown="skip"))
    pd.testing.assert_frame_equal(
        model.recommend_users(["u1", "u2", "u3"]), model.recommend_users(["u1", "u2", "u3"], batch_size=2)
    )


def test_given_users_need_the_data_of_the_training(recommender, tiny_folder, tmp_path):
    _, path = recommender
    model = Recommender(path, data_path=str(tmp_path))
    with pytest.raises(PrefError, match="data_path"):
        model.recommend_users(["u1"])
    write_atomic(tmp_path, "tiny", tiny_sequences(seed=1))
    with pytest.raises(PrefError, match="was trained on other data .*set data_path"):
        model.recommend_users(["u1"])
    write_atomic(tmp_path, "tiny", tiny_sequences())
    assert len(model.recommend_users(["u1"])) == 10
    model = Recommender(path)
    model.config["benchmark_filename"] = ["train", "valid", "test"]
    with pytest.raises(PrefError, match="benchmark_filename=.*sequences of items instead"):
        model.recommend_users(["u1"])


def test_sequences_of_unknown_items_alone_get_nothing(recommender, caplog):
    frame = recommender[0].recommend([["i99"], ["i1", "i98"], []], k=2, unknown="skip")
    assert frame["row"].tolist() == [1, 1] and "2 of 3 sequences hold no known item" in caplog.text
    assert not len(recommender[0].recommend([["i99"]], unknown="skip"))


def test_a_damaged_parquet_file_gets_no_advice_for_csv(tmp_path):
    (tmp_path / "in.parquet").write_text("items")
    with pytest.raises(PrefError, match="not a Parquet file") as refused:
        read_sequences(tmp_path / "in.parquet")
    assert "quote fields" not in str(refused.value)


@pytest.mark.parametrize(
    "text, match",
    [
        ("user,item\na,242,4\na,302,5\n", "the same number of fields"),
        ("items\n242, 302\n", "the same number of fields"),
        ("user,item,items\na,1,2\n", "columns user, item, items"),
        ("user,itms\na,1\n", "columns user, itms: .* or only 'user'"),
        ("", "the same number of fields"),
        ("user;items\na;1\n", "columns user;items"),
        ("user,item\nann,i1\n,i2\n", "row 2 is not complete"),
        ("user,item\nann,i1\nbob,\n", "row 2 is not complete"),
        ("user,user\na,b\n", "two columns have the name 'user'"),
    ],
)
def test_tables_that_would_be_misread_are_refused(tmp_path, text, match):
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(PrefError, match=match):
        read_sequences(tmp_path / "in.csv")
    with pytest.raises(PrefError, match="is a folder"):
        read_sequences(tmp_path)


def test_parquet_holds_lists_and_no_gaps(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"items": [["i1", "i2"], ["i3"]]}).to_parquet(tmp_path / "a.parquet")
    assert read_sequences(tmp_path / "a.parquet") == (["1", "2"], [["i1", "i2"], ["i3"]])
    pd.DataFrame({"user": ["a", "b"], "item": ["i1", None]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(PrefError, match="row 2 is not complete"):
        read_sequences(tmp_path / "b.parquet")
    pd.DataFrame({"items": [[3, 4], [5]]}).to_parquet(tmp_path / "c.parquet")
    assert read_sequences(tmp_path / "c.parquet")[1] == [["3", "4"], ["5"]]
    for number, column in enumerate(([b"i3 i4"], [7], [["i1", None]])):
        pd.DataFrame({"items": column}).to_parquet(tmp_path / f"d{number}.parquet")
        with pytest.raises(PrefError, match="row 1 of 'items' is neither a text"):
            read_sequences(tmp_path / f"d{number}.parquet")


def test_whole_numbers_that_parquet_holds_as_floats(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"user": [196.0, 7.0], "item": [242.0, 302.0]}).to_parquet(tmp_path / "a.parquet")
    assert read_sequences(tmp_path / "a.parquet") == (["196", "7"], [["242"], ["302"]])
    pd.DataFrame({"user": [196.0, 7.5]}).to_parquet(tmp_path / "b.parquet")
    assert read_sequences(tmp_path / "b.parquet")[0] == ["196.0", "7.5"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("items\ni3 i4\n\ni5\n\n\n", (["1", "2", "3"], [["i3", "i4"], [], ["i5"]])),
        ("user,item\n\nann,i3\n\nann,i4\n", (["ann"], [["i3", "i4"]])),
        ("user\n\nu1\n\nu2\n", (["u1", "u2"], None)),
    ],
)
def test_blank_lines_shift_no_numbers(tmp_path, text, expected):
    (tmp_path / "in.csv").write_text(text)
    assert read_sequences(tmp_path / "in.csv") == expected


def test_nothing_that_is_read_is_overwritten(recommender, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("items\ni3 i4\n")
    before = source.read_bytes(), Path(recommender[1]).read_bytes()
    for target, option in ((source, "input"), (recommender[1], "predict")):
        with pytest.raises(PrefError, match=f"is the file of --{option}"):
            predict_file(recommender[1], source, target)
    assert (source.read_bytes(), Path(recommender[1]).read_bytes()) == before


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files(recommender, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    frame = pd.DataFrame({"user": ["ann", "ann", "bob"], "item": ["i3", "i4", "i1"]})
    frame.to_csv(source, index=False) if ending == "csv" else frame.to_parquet(source)
    assert predict_file(recommender[1], source, target, k=3) == (6, 2)
    back = pd.read_csv(target) if ending == "csv" else pd.read_parquet(target)
    assert back["user"].tolist() == ["ann"] * 3 + ["bob"] * 3
    assert back["item"].tolist() == recommender[0].recommend([["i3", "i4"], ["i1"]], k=3)["item"].tolist()
    assert read_sequences(source) == (["ann", "bob"], [["i3", "i4"], ["i1"]])


TABLES = {
    "items": "items\ni3 i4\n\ni5\ni1 i2\n\n\ni7\n\n\n",
    "user,items": "user,items\na,i3 i4\n\nb,i5\nc,i1 i2\nd,i7\n",
    "user,item": "user,item\nb,i3\na,i1\n\nb,i4\nc,i5\na,i2\nd,i9\n",
    "user": "user\nu3\nu1\nu7\nu9\nu4\n",
}


@pytest.mark.parametrize("columns", TABLES)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_pieces_give_what_one_piece_gives(recommender, tmp_path, columns, ending):
    source = tmp_path / "in.csv"
    source.write_text(TABLES[columns])
    whole, pieces = tmp_path / f"whole.{ending}", tmp_path / f"pieces.{ending}"
    counts = predict_file(recommender[1], source, whole, k=3, unknown="skip")
    assert predict_file(recommender[1], source, pieces, k=3, unknown="skip", piece_rows=2) == counts
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(pieces), read(whole))
    assert len(read(whole)) == counts.recommendations > 9
    assert sorted(path.name for path in tmp_path.iterdir() if "parts" in path.name) == []


def test_row_numbers_count_over_pieces(recommender, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("items\ni1\ni2\ni3\ni99\n")
    with pytest.raises(PrefError, match="sequence 4 holds the item 'i99'"):
        predict_file(recommender[1], source, target, piece_rows=3)
    source.write_text("user\nu1\nu2\nu3\nu99\n")
    shutil.rmtree(tmp_path / "out.csv.parts")
    with pytest.raises(PrefError, match="user 4 is 'u99'"):
        predict_file(recommender[1], source, target, piece_rows=3)
    source.write_text("user,items\na,i1\nb,i2\n,i3\n")
    with pytest.raises(PrefError, match="row 3 is not complete"):
        predict_file(recommender[1], source, tmp_path / "other.csv", piece_rows=2)
    with pytest.raises(PrefError, match="piece_rows=0"):
        predict_file(recommender[1], source, target, piece_rows=0)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_stopped_run_continues_with_its_next_piece(recommender, tmp_path, monkeypatch, ending):
    source, target = tmp_path / "in.csv", tmp_path / f"out.{ending}"
    source.write_text("items\n" + "".join(f"i{number}\n" for number in range(10)))
    expected = recommender[0].recommend([[f"i{number}"] for number in range(10)], k=2)
    original, pieces = Recommender.recommend, []

    def killed_at_the_third(self, sequences, **options):
        if len(pieces) == 2:
            pieces.clear()
            raise KeyboardInterrupt
        pieces.append(options["first"])
        return original(self, sequences, **options)

    target.write_text("of an earlier run")
    monkeypatch.setattr(Recommender, "recommend", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict_file(recommender[1], source, target, k=2, piece_rows=3)
    assert target.read_text() == "of an earlier run"
    with pytest.raises(PrefError, match=r"2 finished pieces of another command \(k changed since\).*remove the folder"):
        predict_file(recommender[1], source, target, k=3, piece_rows=3)
    with FileLock(tmp_path / f"out.{ending}.parts" / "lock"), pytest.raises(PrefError, match="by another process"):
        predict_file(recommender[1], source, target, k=2, piece_rows=3)
    assert predict_file(recommender[1], source, target, k=2, piece_rows=3) == (20, 10)
    assert pieces == [7, 10]  # the first two pieces were not made again
    back = pd.read_csv(target) if ending == "csv" else pd.read_parquet(target)
    assert back["item"].tolist() == expected["item"].tolist()
    np.testing.assert_allclose(back["score"], expected["score"], rtol=1e-5)
    assert not (tmp_path / f"out.{ending}.parts").exists()


def test_long_runs_show_their_progress(recommender, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "_PROGRESS_AFTER", 0)
    (tmp_path / "in.csv").write_text("items\ni1\ni2\ni3\n")
    predict_file(recommender[1], tmp_path / "in.csv", tmp_path / "out.csv", piece_rows=2)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["o.xlsx", "o", "o.csv.gz", "o.txt"])
def test_files_that_are_neither_csv_nor_parquet_are_refused(recommender, tmp_path, name):
    (tmp_path / name).write_text("items\ni3 i4\n")
    (tmp_path / "in.CSV").write_text("items\ni3 i4\n")
    with pytest.raises(PrefError, match="^input=[^:]* is not a CSV or Parquet file: use the suffix .csv or .parquet"):
        read_sequences(tmp_path / name)
    with pytest.raises(PrefError, match="^output=[^:]* is not a CSV or Parquet file: use the suffix .csv or .parquet"):
        predict_file("no model is needed", tmp_path / "in.CSV", tmp_path / name)
    assert predict_file(recommender[1], tmp_path / "in.CSV", tmp_path / "out.csv", k=2) == (2, 1)


def test_a_sequence_without_a_user_is_called_as_messages_call_it(recommender, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "o.csv"
    source.write_text("items\ni3 i4\ni1\n")
    predict_file(recommender[1], source, target, k=2)
    assert pd.read_csv(target)["user"].tolist() == [1, 1, 2, 2]
    source.write_text("items\ni3 i4\ni99\n")
    with pytest.raises(PrefError, match="sequence 2 holds"):
        predict_file(recommender[1], source, target)


def test_a_table_of_users(recommender, tmp_path, capsys, tiny_folder):
    source, target = tmp_path / "in.csv", tmp_path / "o.csv"
    source.write_text("user\nu3\nu1\n")
    assert read_sequences(source) == (["u3", "u1"], None)
    words = [f"--predict={recommender[1]}", f"--input={source}", f"--output={target}", "--k=2"]
    assert cli.main([*words, f"--data_path={tiny_folder}"]) == 0
    assert "4 recommendations for 2 users or sequences" in capsys.readouterr().out
    expected = recommender[0].recommend_users(["u3", "u1"], k=2)
    pd.testing.assert_frame_equal(pd.read_csv(target), expected, check_dtype=False)
    assert cli.main([*words, f"--data_path={tmp_path}"]) == 2
    assert "data_path" in capsys.readouterr().err
    source.write_text("user\nu3\nu99\n")
    assert cli.main([*words, "--unknown=skip"]) == 0
    assert "2 recommendations for 1 users or sequences" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["meta", "gpu", "", "cuda:99", "cpu:x"])
def test_devices_that_torch_cannot_use_are_refused_first(tmp_path, device, capsys):
    with pytest.raises(PrefError, match=f"device='{device}' cannot be used by torch here .*set it to cpu"):
        Recommender("no model is needed", device=device)
    words = ["--predict=x.pth", "--input=x.csv", f"--output={tmp_path / 'o.csv'}"]
    assert cli.main([*words, f"--device={device}"]) == 2
    assert f"device='{device}'" in capsys.readouterr().err


def test_the_device_reaches_the_model(recommender, tmp_path, monkeypatch):
    source = tmp_path / "in.csv"
    source.write_text("items\ni3 i4\n")
    used = []
    original = Recommender.__init__
    monkeypatch.setattr(
        Recommender, "__init__", lambda self, *given: (original(self, *given), used.append(self.device))[0]
    )
    words = [f"--predict={recommender[1]}", f"--input={source}", f"--output={tmp_path / 'o.csv'}"]
    assert cli.main([*words, "--device=cpu:0"]) == cli.main(words) == 0
    assert used == [torch.device("cpu:0"), torch.device("cpu")]


def test_command_line(recommender, tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("user,items\nann,i3 i4\n")
    words = [f"--predict={recommender[1]}", f"--input={source}", f"--output={tmp_path / 'o.csv'}", "--k=2"]
    assert cli.main(words) == 0
    assert "2 recommendations for 1 users or sequences" in capsys.readouterr().out
    assert cli.main(words[:2]) == 2
    assert "--output" in capsys.readouterr().err
    assert cli.main([words[0], f"--input={tmp_path / 'no.csv'}", words[2]]) == 2
    capsys.readouterr()
    for more, match in (("--exclude_seen=False", "exclude_seen has no effect"), ("--k=a", "--k"),
                        ("--gpu_id=0", "--device=cuda:0"),
                        ("--seeds=3", "--seeds has no effect with --predict")):  # fmt: skip
        assert cli.main([*words[:3], more]) == 2
        assert match in capsys.readouterr().err
    assert cli.main([f"--data_path={tmp_path}", *words]) == 0  # which models with item features need
    capsys.readouterr()
    for alone in ("--input=x.csv", "--k=5", "--device=cpu", "--quiet", "--dataset="):
        assert cli.main(["--epochs=1", alone]) == 2
        assert alone.partition("=")[0] in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, tiny_dataset):
    result = run_recbole_pref("SASRec", config_dict={**tiny_dataset, "epochs": 1})
    with pytest.raises(PrefError, match="CESASRec is SASRec"):
        Recommender(result["checkpoint"])
    torch.save({"state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(PrefError, match="no item tokens"):
        Recommender(tmp_path / "x.pth")
