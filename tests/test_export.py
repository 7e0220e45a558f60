"""Vectors and exported files rank as the model that they come from."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_pref import cli
from recbole_pref.errors import PrefError
from recbole_pref.export import export
from recbole_pref.predict import Recommender
from recbole_pref.quick_start import run_recbole_pref

SEQUENCES = [["i3", "i4"], ["i1"], [f"i{n % 20}" for n in range(30)], ["i9"] * 3]
SERVE = Path(__file__).resolve().parents[1] / "examples" / "serve.py"


def train(tiny_dataset, model, **settings):
    return run_recbole_pref(model, config_dict={**tiny_dataset, "epochs": 1, **settings})["checkpoint"]


def ranked(vectors, items, tokens, sequences, k=10):
    """Return the items with the largest dot products that are not in the sequence, for each."""
    scores = vectors @ items.T
    for row, sequence in zip(scores, sequences):
        row[[tokens.index(token) for token in sequence]] = -np.inf
    return [[tokens[place] for place in row] for row in np.argsort(-scores, axis=1, kind="stable")[:, :k]]


@pytest.mark.parametrize("model", ["LPOSASRec", "SDPOGRU4Rec", "CECaser"])
def test_vectors_and_the_exported_program_rank_as_the_model(tiny_dataset, tmp_path, model):
    checkpoint = train(tiny_dataset, model)
    recommender = Recommender(checkpoint)
    frame = recommender.recommend(SEQUENCES, k=10)
    expected = [frame[frame["row"] == row]["item"].tolist() for row in range(len(SEQUENCES))]
    tokens, items = recommender.item_vectors()
    users = recommender.user_vectors(SEQUENCES)
    assert items.dtype == users.dtype == np.float32 and items.shape == (40, 16) and users.shape == (4, 16)
    assert ranked(users, items, tokens, SEQUENCES) == expected
    np.testing.assert_array_equal(recommender.user_vectors([["i99"], ["i1"]], unknown="skip")[0], np.zeros(16))

    export(checkpoint, tmp_path / "out")
    items = np.load(tmp_path / "out" / "item_vectors.npy")
    tokens = json.loads((tmp_path / "out" / "item_tokens.json").read_text())
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["max_length"] == 8 and settings["n_items"] == 40 and settings["left_out"] == {}
    encode = torch.export.load(tmp_path / "out" / "query_encoder.pt2").module()
    for batch in (SEQUENCES, SEQUENCES[:1]):
        kept = [[tokens.index(token) + 1 for token in sequence][-8:] for sequence in batch]
        ids = torch.tensor([row + [0] * (8 - len(row)) for row in kept])
        vectors = encode(ids, torch.tensor([len(row) for row in kept])).detach().numpy()
        assert ranked(vectors, items, tokens, batch) == expected[: len(batch)]


def test_what_vectors_cannot_hold_is_refused_or_left_out(tiny_dataset, tmp_path, capsys):
    checkpoint = train(tiny_dataset, "CESASRec", repeat_bias=True)
    recommender = Recommender(checkpoint)
    assert set(recommender.terms_beside_vectors()) == {"repeat_bias"}
    for call in (recommender.item_vectors, lambda: recommender.user_vectors([["i1"]])):
        with pytest.raises(PrefError, match=r"dot products plus repeat_bias .*dot_product_only"):
            call()
    words = [f"--export={tmp_path / 'out'}", f"--checkpoint={checkpoint}"]
    assert cli.main(words) == 2 and "repeat_bias" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--dot_product_only"]) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["left_out"] == recommender.terms_beside_vectors()
    # Without the items of the sequence, which alone have the bias, the lists are the same.
    tokens, items = recommender.item_vectors(dot_product_only=True)
    users = recommender.user_vectors(SEQUENCES, dot_product_only=True)
    assert sum(ranked(users, items, tokens, SEQUENCES), []) == recommender.recommend(SEQUENCES)["item"].tolist()

    both = Recommender(train(tiny_dataset, "CESASRec", repeat_bias=True, prior="EASE", prior_weight=0.5))
    assert set(both.terms_beside_vectors()) == {"repeat_bias", "prior"}
    assert both.terms_beside_vectors()["prior"] == 0.5


def test_models_without_vectors_are_refused(tiny_dataset, tmp_path):
    checkpoint = train(tiny_dataset, "LPONARM")
    with pytest.raises(PrefError, match="LPONARM has no vectors of sequences.*choose SASRec"):
        export(checkpoint, tmp_path / "out")


def test_command_line(tiny_dataset, tmp_path, capsys):
    checkpoint = train(tiny_dataset, "CESASRec")
    words = [f"--export={tmp_path / 'out'}", f"--checkpoint={checkpoint}"]
    assert cli.main(words[:1]) == 2 and "--checkpoint" in capsys.readouterr().err
    assert cli.main([*words, "--epochs=3"]) == 2 and "--epochs" in capsys.readouterr().err
    (tmp_path / "users.csv").write_text("user\nu1\n")
    assert cli.main([*words, f"--input={tmp_path / 'users.csv'}"]) == 2
    assert "no sequence of items" in capsys.readouterr().err


def test_indexes_find_the_exact_neighbours(tiny_dataset, tmp_path, capsys):
    faiss = pytest.importorskip("faiss")
    checkpoint = train(tiny_dataset, "CESASRec")
    (tmp_path / "in.csv").write_text("items\ni1 i2\ni3\n")
    words = [f"--export={tmp_path / 'out'}", f"--checkpoint={checkpoint}"]
    assert cli.main([*words, f"--input={tmp_path / 'in.csv'}"]) == 0
    printed = capsys.readouterr().out
    assert "recall@10 of hnsw.faiss against exact.faiss: 1.0000, 2 sequences" in printed
    recommender = Recommender(checkpoint)
    tokens, items = recommender.item_vectors()
    users = recommender.user_vectors(SEQUENCES)
    expected = np.argsort(-(users @ items.T), axis=1)[:, :10]
    for name in ("exact.faiss", "hnsw.faiss"):
        np.testing.assert_array_equal(faiss.read_index(str(tmp_path / "out" / name)).search(users, 10)[1], expected)


def test_the_example_serves_what_the_model_recommends(tiny_dataset, tmp_path, monkeypatch):
    for package in ("faiss", "fastapi", "httpx"):
        pytest.importorskip(package)
    from fastapi.testclient import TestClient

    checkpoint = train(tiny_dataset, "LPOSASRec")
    export(checkpoint, tmp_path / "out")
    monkeypatch.setenv("EXPORT", str(tmp_path / "out"))
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = TestClient(module.app)
    for sequence in SEQUENCES:
        answer = client.post("/recommend", json={"items": ["strange", *sequence], "k": 5})
        frame = Recommender(checkpoint).recommend([sequence], k=5)
        assert [line["item"] for line in answer.json()] == frame["item"].tolist()
        np.testing.assert_allclose([line["score"] for line in answer.json()], frame["score"], rtol=1e-4, atol=1e-5)
    assert client.post("/recommend", json={"items": ["strange"]}).status_code == 422
