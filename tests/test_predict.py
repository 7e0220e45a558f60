"""Recommendations from a checkpoint alone: tokens in, tokens out."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_pref import cli
from recbole_pref.errors import PrefError
from recbole_pref.predict import Recommender, predict_file, read_sequences
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref


@pytest.fixture(params=["LPOSASRec", "SDPOGRU4Rec", "CECaser", "LPONARM"])
def trained(request, tiny_dataset):
    result = run_recbole_pref(request.param, config_dict={**tiny_dataset, "epochs": 1})
    return result["checkpoint"]


def test_what_only_training_needs_does_not_stand_in_the_way(tiny_dataset, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    settings = {
        **tiny_dataset, "epochs": 1, "reference": "auto", "lambda": 0.0, "tail_split": "interactions",
        "objective": {"weights": {"TailNDCG@10": 1.0}, "of_reference": {"NDCG@10": 0.5}}, "gpu_id": "",
    }  # fmt: skip
    recommender = Recommender(run_recbole_pref("LPOSASRec", config_dict=settings)["checkpoint"])
    assert len(recommender.recommend([["i3", "i4"]], k=3)) == 3
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
        from recbole.data.interaction import Interaction

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


def test_sequences_of_unknown_items_alone_get_nothing(recommender, caplog):
    frame = recommender[0].recommend([["i99"], ["i1", "i98"], []], k=2, unknown="skip")
    assert frame["row"].tolist() == [1, 1] and "2 of 3 sequences hold no item" in caplog.text
    assert not len(recommender[0].recommend([["i99"]], unknown="skip"))


@pytest.mark.parametrize(
    "text, match",
    [
        ("user,item\na,242,4\na,302,5\n", "as many fields"),
        ("items\n242, 302\n", "as many fields"),
        ("user,item,items\na,1,2\n", "columns user, item, items"),
        ("", "as many fields"),
        ("user;items\na;1\n", "columns user;items"),
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
    assert read_sequences(tmp_path / "a.parquet") == (["0", "1"], [["i1", "i2"], ["i3"]])
    pd.DataFrame({"user": ["a", "b"], "item": ["i1", None]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(PrefError, match="row 2 is not complete"):
        read_sequences(tmp_path / "b.parquet")


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
    written = predict_file(recommender[1], source, target, k=3)
    assert written["user"].tolist() == ["ann"] * 3 + ["bob"] * 3
    back = pd.read_csv(target) if ending == "csv" else pd.read_parquet(target)
    assert back["item"].tolist() == written["item"].tolist()
    assert read_sequences(source) == (["ann", "bob"], [["i3", "i4"], ["i1"]])


def test_command_line(recommender, tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("user,items\nann,i3 i4\n")
    words = [f"--predict={recommender[1]}", f"--input={source}", f"--output={tmp_path / 'o.csv'}", "--k=2"]
    assert cli.main(words) == 0
    assert "2 recommendations for 1 sequences" in capsys.readouterr().out
    assert cli.main(words[:2]) == 2
    assert "--output" in capsys.readouterr().err
    assert cli.main([words[0], f"--input={tmp_path / 'no.csv'}", words[2]]) == 2
    capsys.readouterr()
    for more, match in (("--exclude_seen=False", "exclude_seen means nothing"), ("--k=a", "--k"),
                        ("--seeds=3", "--seeds goes with --compare")):  # fmt: skip
        assert cli.main([*words[:3], more]) == 2
        assert match in capsys.readouterr().err
    assert cli.main([f"--data_path={tmp_path}", *words]) == 0  # which models with item features need
    capsys.readouterr()
    for alone in ("--input=x.csv", "--k=5", "--quiet", "--dataset="):
        assert cli.main(["--epochs=1", alone]) == 2
        assert alone.partition("=")[0] in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, tiny_dataset):
    result = run_recbole_pref("SASRec", config_dict={**tiny_dataset, "epochs": 1})
    with pytest.raises(PrefError, match="CESASRec is SASRec"):
        Recommender(result["checkpoint"])
    torch.save({"state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(PrefError, match="no item tokens"):
        Recommender(tmp_path / "x.pth")
