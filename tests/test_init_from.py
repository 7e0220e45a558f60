"""``init_from``: a run on a later day starts from the parameters of an earlier one, matched by token."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from recbole_pref import checkpoint, cli, tune
from recbole_pref.build import build_run
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.quick_start import load_data_and_model, run, run_recbole_pref
from recbole_pref.tune.space import Domain

from .conftest import tiny_sequences

PAD = "[PAD]"


def write_day(folder, name, interactions, items=None):
    """Write (user, item, time) rows, and item features (``{item: (tags, vector)}``), as a data set."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in interactions)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if items:
        lines = ["item_id:token\ttags:token_seq\tvector:float_seq"]
        lines += [f"{item}\t{tags}\t{vector}" for item, (tags, vector) in items.items()]
        (folder / name / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(users, items, seed=0):
    sequences = tiny_sequences(n_users=len(users), n_items=len(items), seed=seed)
    return [(user, items[i], time) for user, sequence in zip(users, sequences) for time, i in enumerate(sequence)]


@pytest.fixture
def days(tiny_dataset, tmp_path):
    """Settings of two days: the second lacks some items and users of the first, has new ones and other ids."""
    items = {n: f"i{n}" for n in range(50)}
    users = [f"u{n}" for n in range(70)]
    features = {f"i{n}": (f"t{n % 5} odd{n % 2}", f"{n % 7} {n % 3}") for n in range(50)}
    old = {item: features[item] for item in list(features)[:40]}
    write_day(tmp_path / "data", "old", rows_of(users[:60], [items[n] for n in range(40)]), old)
    later = [items[n] for n in (5, 6, 7, *reversed(range(8, 50)))]
    new = {item: features[item] for item in later}
    write_day(tmp_path / "data", "new", rows_of(users[:9:-1], later, seed=1), {**new, "i5": ("fresh t1", "1 2")})
    settings = {key: value for key, value in tiny_dataset.items() if key != "dataset"}
    settings |= {"data_path": str(tmp_path / "data"), "eval_step": 1}
    return {**settings, "dataset": "old"}, {**settings, "dataset": "new"}


def at_start(model, settings):
    """Return the run and its parameters before the first step."""
    trained = build_run(Config(model, config_dict=settings), log=False)
    trained.trainer.start(trained.train_data, trained.valid_data)
    return trained, {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def by_token(state, name, tokens):
    return dict(zip(tokens, state[name]))


def assert_matched(stored, current):
    """Known tokens have their vectors, and new ones the mean of the known."""
    known = (stored.keys() & current.keys()) - {PAD}
    new = current.keys() - stored.keys()
    assert known and new
    for token in known | ({PAD} & stored.keys()):
        assert torch.equal(current[token], stored[token]), token
    mean = torch.stack([stored[token] for token in known]).double().mean(dim=0).float()
    for token in new:
        torch.testing.assert_close(current[token], mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("model", ["CESASRec", "CECaser", "CEBERT4Rec", "CEHGN", "CETransRec"])
def test_known_items_and_users_keep_their_vectors(days, caplog, model):
    first, second = days
    path = run_recbole_pref(model, config_dict={**first, "epochs": 1})["checkpoint"]
    state = checkpoint.load(path)
    with caplog.at_level(logging.INFO):
        trained, values = at_start(model, {**second, "init_from": path, "state": "INFO"})
    tokens = {kind: list(trained.dataset.field2id_token[f"{kind}_id"]) for kind in ("item", "user")}
    by_item = [n for n in values if len(values[n]) in (46, 47) and ("item" in n or n in ("bias.weight", "output_bias"))]
    assert "item_embedding.weight" in by_item
    for name in by_item:
        assert_matched(
            by_token(state["state_dict"], name, state["item_tokens"]), by_token(values, name, tokens["item"])
        )
    users = "user_embedding.weight"
    if users in values:
        assert_matched(
            by_token(state["state_dict"], users, state["user_tokens"]), by_token(values, users, tokens["user"])
        )
    else:
        assert state["user_tokens"] is None
    if model == "CEBERT4Rec":  # the vector of the mask
        assert torch.equal(values["item_embedding.weight"][-1], state["state_dict"]["item_embedding.weight"][-1])
    for name in values.keys() - {*by_item, users}:
        assert torch.equal(values[name], state["state_dict"][name]), name
    expected = "items: 35 known, 10 new, 5 gone" + ("; users: 50 known, 10 new, 10 gone" if users in values else "")
    assert expected in caplog.text


def test_equal_numbers_of_items_are_matched_by_token_too(days, tmp_path):
    first, second = days
    # hidden_size equals the number of items with padding; only a small model shows that the dense layers are not items
    first, second = ({**day, "hidden_size": 40, "n_layers": 1} for day in days)
    write_day(tmp_path / "data", "old", rows_of([f"u{n}" for n in range(60)], [f"i{n}" for n in range(39)]))
    write_day(tmp_path / "data", "new", rows_of([f"u{n}" for n in range(60)], [f"i{n}" for n in range(50, 11, -1)]))
    path = run_recbole_pref("CESASRec", config_dict={**first, "epochs": 1})["checkpoint"]
    state = checkpoint.load(path)["state_dict"]
    trained, values = at_start("CESASRec", {**second, "init_from": path})
    assert trained.model.n_items == 40
    dense = "trm_encoder.layer.0.multi_head_attention.query.weight"
    assert torch.equal(values[dense], state[dense])
    items = trained.dataset.field2id_token["item_id"]
    old_items = checkpoint.load(path)["item_tokens"]
    assert_matched(
        by_token(state, "item_embedding.weight", old_items), by_token(values, "item_embedding.weight", items)
    )


@pytest.mark.parametrize("replace_id", ["none", "tail"])
def test_items_with_features_start_with_the_mean_as_id_part_only(days, replace_id):
    first, second = (
        {**day, "mm_fields": ["tags", "vector"], "replace_id": replace_id, "mm_fusion": "sum"} for day in days
    )
    path = run_recbole_pref("CEMMCaser", config_dict={**first, "epochs": 1})["checkpoint"]
    state = checkpoint.load(path)
    trained, values = at_start("CEMMCaser", {**second, "init_from": path})
    of_id, of_tags = "item_embedding.modalities.0.weight", "item_embedding.modalities.1.tokens.weight"
    rows = trained.trainer._tokens.rows
    assert rows[of_tags] == list(trained.dataset.field2id_token["tags"]) and "fresh" in rows[of_tags]
    assert len(state["row_tokens"][of_id]) == (40 if replace_id == "none" else 8)
    stored, current = ({PAD: t.new_zeros(1), **dict(zip(r, t))} for r, t in (
        (state["row_tokens"][of_id], state["state_dict"][of_id]), (rows[of_id], values[of_id])
    ))  # fmt: skip
    assert_matched(stored, current)
    before, now = (
        by_token(state["state_dict"], of_tags, state["row_tokens"][of_tags]),
        by_token(values, of_tags, rows[of_tags]),
    )
    assert all(torch.equal(now[token], before[token]) for token in before)
    for name in ("item_embedding.modalities.2.projection.weight", "item_embedding.padding", "fc1.weight"):
        assert torch.equal(values[name], state["state_dict"][name])
    assert not torch.equal(
        values["item_embedding.feature_digest"], state["state_dict"]["item_embedding.feature_digest"]
    )
    if replace_id == "none":  # two new items differ in their features
        new = [trained.dataset.token2id("item_id", token) for token in ("i41", "i43")]
        assert not torch.equal(*trained.model.item_embedding.weight[new])


def test_a_run_learns_from_there_and_is_repeated_by_its_resumption(days, tmp_path):
    first, second = days
    path = run_recbole_pref("CECaser", config_dict={**first, "epochs": 1})["checkpoint"]
    second |= {"epochs": 4, "keep_last": 9, "stopping_step": 9}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_recbole_pref("CECaser", config_dict={**second, "init_from": path, "checkpoint_dir": str(whole)})
    shutil.copytree(whole, broken)
    for file in [*broken.glob("*-last-3.pth"), *broken.glob("*-last-4.pth")]:
        file.unlink()
    run_recbole_pref("CECaser", config_dict={**second, "checkpoint_dir": str(broken), "resume": True})
    states = [checkpoint.load(next(folder.glob("*-last-4.pth"))) for folder in (whole, broken)]
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name
    histories = [[row["score"] for row in state["history"]] for state in states]
    assert histories[0] == histories[1] and len(histories[0]) == 4
    Path(path).unlink()  # a model is used without the one that it started from
    best = next(whole.glob("*-best.pth"))
    assert load_data_and_model(str(best))[1].n_items == 46


def test_the_reference_starts_from_it_and_the_policy_from_the_reference(days, tmp_path, monkeypatch):
    first, second = days
    path = run_recbole_pref("LPOSASRec", config_dict={**first, "epochs": 1, "reference": "auto"})["checkpoint"]
    old = checkpoint.load(path)
    seen = []
    from recbole_pref.training import trainer

    start = trainer.transfer.start

    def look(model, config, tokens):
        message = start(model, config, tokens)
        seen.append((type(model).__name__, model.item_embedding.weight.detach().clone()))
        return message

    monkeypatch.setattr(trainer.transfer, "start", look)
    second |= {"init_from": path, "reference": "auto", "reference_dir": str(tmp_path / "references")}
    trained, values = at_start("SDPOSASRec", second)
    ((name, weight),) = seen
    assert name == "CESASRec"
    items = trained.dataset.field2id_token["item_id"]
    assert_matched(by_token(old["state_dict"], "item_embedding.weight", old["item_tokens"]), dict(zip(items, weight)))
    (file,) = Path(second["reference_dir"]).glob("*.pth")
    reference = checkpoint.load(file)["state_dict"]
    for name, tensor in reference.items():
        assert torch.equal(values[name], tensor) and torch.equal(values[f"reference.{name}"], tensor)
    # another checkpoint under the same path is another reference, and so is none
    changed = {**old, "state_dict": {name: tensor + 1 for name, tensor in old["state_dict"].items()}}
    checkpoint.save(changed, path)
    at_start("SDPOSASRec", second)
    at_start("SDPOSASRec", {**second, "init_from": None})
    assert len(list(Path(second["reference_dir"]).glob("*.pth"))) == 3 and len(seen) == 2
    # a named reference is frozen as it is
    best = run_recbole_pref("CESASRec", config_dict={**second, "reference": "none", "init_from": None})["checkpoint"]
    _, values = at_start("SDPOSASRec", {**second, "reference": best})
    weight = "item_embedding.weight"
    assert torch.equal(values[f"reference.{weight}"], checkpoint.load(best)["state_dict"][weight])
    stored = by_token(changed["state_dict"], weight, old["item_tokens"])
    assert_matched(stored, by_token(values, weight, items))


REFUSED = [
    ("CEGRU4Rec", {}, r"holds CESASRec, and model='CEGRU4Rec' has another backbone"),
    ("CESASRec", {"hidden_size": 32}, r"was trained with hidden_size=16, this run has 32"),
    ("CESASRec", {"n_heads": 1}, r"trained with n_heads=2, this run has 1"),
    ("CESASRec", {"MAX_ITEM_LIST_LENGTH": 9}, r"trained with MAX_ITEM_LIST_LENGTH=8, this run has 9"),
    ("CESASRec", {"repeat_bias": True}, r"trained with repeat_bias=False, this run has True"),
    ("CESASRec", {"resume": True}, r"init_from=.* and resume=True exclude each other"),
    ("SASRec", {"train_neg_sample_args": None}, r"init_from has no effect on SASRec"),
]


@pytest.fixture
def started(days):
    first, second = days
    return run_recbole_pref("CESASRec", config_dict={**first, "epochs": 1})["checkpoint"], second


@pytest.mark.parametrize(("model", "change", "match"), REFUSED, ids=[str(case[:2]) for case in REFUSED])
def test_what_does_not_fit_is_refused_before_the_data_are_read(started, model, change, match):
    path, settings = started
    settings = {**settings, "data_path": "nowhere", "init_from": path, **change}
    with pytest.raises(PrefError, match=match):
        Config(model, config_dict=settings)


def test_settings_that_change_no_size_may_differ(started):
    path, settings = started
    settings |= {"hidden_dropout_prob": 0.1, "learning_rate": 0.1, "train_batch_size": 32}
    Config("LPOSASRec", config_dict={**settings, "init_from": path})


def test_other_files_are_refused(started, tmp_path):
    path, settings = started
    with pytest.raises(PrefError, match=r"init_from='nowhere.pth' does not exist"):
        Config("CESASRec", config_dict={**settings, "init_from": "nowhere.pth"})
    state = checkpoint.load(path)
    for missing in ("item_tokens", "model"):
        part = {key: value for key, value in state.items() if key != missing}
        checkpoint.save(part, tmp_path / "part.pth")
        with pytest.raises(PrefError, match="holds no item tokens"):
            Config("CESASRec", config_dict={**settings, "init_from": str(tmp_path / "part.pth")})
    checkpoint.save({**state, "item_tokens": [PAD, *(f"x{n}" for n in range(40))]}, tmp_path / "other.pth")
    with pytest.raises(PrefError, match="knows none of the items of dataset='new'"):
        run_recbole_pref("CESASRec", config_dict={**settings, "init_from": str(tmp_path / "other.pth")})


def test_files_of_earlier_versions_serve_where_they_hold_enough(days, tmp_path):
    first, second = days
    for model, enough in (("CESASRec", True), ("CECaser", False)):
        state = checkpoint.load(run_recbole_pref(model, config_dict={**first, "epochs": 1})["checkpoint"])
        old = {key: value for key, value in state.items() if key not in ("user_tokens", "row_tokens")}
        del old["config"]["init_from"]
        path = str(tmp_path / f"{model}.pth")
        checkpoint.save(old, path)
        if enough:
            at_start(model, {**second, "init_from": path})
        else:
            with pytest.raises(PrefError, match=r"does not name the rows of user_embedding.weight.*earlier version"):
                at_start(model, {**second, "init_from": path})


def test_users_of_one_session_all_start_from_the_mean(days, tmp_path):
    first, second = days
    path = run_recbole_pref("CECaser", config_dict={**first, "epochs": 1})["checkpoint"]
    write_day(tmp_path / "data", "new", rows_of([f"session{n}" for n in range(60)], [f"i{n}" for n in range(40)]))
    _, values = at_start("CECaser", {**second, "init_from": path})
    stored = checkpoint.load(path)["state_dict"]["user_embedding.weight"][1:].mean(dim=0)
    torch.testing.assert_close(values["user_embedding.weight"][1:], stored.expand(60, -1))


@pytest.mark.slow
def test_two_processes_start_like_one(started, tmp_path):
    path, settings = started
    weights = []
    for nproc in (1, 2):
        folder = tmp_path / f"{nproc}"
        settings |= {"init_from": path, "epochs": 1, "checkpoint_dir": str(folder), "hidden_dropout_prob": 0.0,
                     "attn_dropout_prob": 0.0}  # fmt: skip
        run("CESASRec", config_dict=settings, nproc=nproc)
        weights.append(checkpoint.load(next(folder.glob("*-last-1.pth")))["state_dict"]["item_embedding.weight"])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compare_and_estimate_take_it(started, tmp_path, warm_workers, monkeypatch):
    monkeypatch.setattr(cli, "_publish", lambda folder: None)  # charts and report take seconds
    path, settings = started
    relative = str(Path(path).relative_to(tmp_path))
    small = ("data_path", "MAX_ITEM_LIST_LENGTH", "epochs", "reference_epochs", "n_layers", "n_heads", "hidden_size",
             "inner_size", "eval_step", "num_negatives")  # fmt: skip
    words = [f"--{key}={settings[key]}" for key in small] + ["--dataset=new", f"--init_from={relative}"]
    assert cli.main(["compare", "CESASRec,SDPOSASRec", "--seeds=1", "--output=out", *words]) == 0
    logs = {log.name: log.read_text() for log in Path("out/logs").glob("*seed*.log")}
    assert len(logs) == 2
    found = {
        name.split("-")[0]: re.findall("(\\[reference\\] )?started from (.*?): items", log)
        for name, log in logs.items()
    }
    assert found["CESASRec"] == [("", path)]
    assert not found["SDPOSASRec"]  # its reference is the run of CESASRec
    assert len(list(Path("out/reference").glob("*.pth"))) == 1
    assert cli.main(["--estimate", "--model=CESASRec", *words]) == 0


def test_runs_with_other_working_folders_get_absolute_paths(started, tmp_path):
    path, settings = started
    relative = str(Path(path).relative_to(tmp_path))
    config = Config("CESASRec", config_dict={**settings, "init_from": relative, "prior": "TALE"})
    fixed = tune._fixed_settings(config)
    assert fixed["init_from"] == path and fixed["prior"] == "TALE"
    assert tune._with_absolute_paths("init_from", Domain("choice", (relative, None))).values == (path, None)
