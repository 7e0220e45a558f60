"""Multimodal encoder: routing against a dense mixture, fusion, missing features, files, whole runs."""

import copy
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recbole.data import create_dataset
from torch import nn

from recbole_pref import checkpoint
from recbole_pref import encoder as multimodal
from recbole_pref import model as models
from recbole_pref.build import prepare_data
from recbole_pref.config import Config
from recbole_pref.encoder import features, fusion, item_table
from recbole_pref.encoder.features import Feature
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model.names import model_class
from recbole_pref.model.packing import PackedLoader
from recbole_pref.predict import Recommender
from recbole_pref.quick_start import load_data_and_model, run_recbole_pref

from .conftest import tiny_sequences, write_atomic

SETTINGS = {
    "mm_fusion": "moe", "moe_experts": 3, "moe_top_k": 2, "moe_hidden": None,
    "moe_balance_weight": 0.01, "moe_z_weight": 0.001,
}  # fmt: skip
WIDTH = 6
N_ITEMS = 40
LACKS_TEXT = {7, 23}
LACKS_TAGS = {3, 7}


# -- fusion


@given(n_rows=st.integers(1, 30), n_experts=st.integers(1, 6), data=st.data(), seed=st.integers(0, 10**6))
@hypothesis_settings(max_examples=60, deadline=None)
def test_dispatch_equals_a_dense_mixture_of_the_chosen_experts(n_rows, n_experts, data, seed):
    top_k = data.draw(st.integers(1, n_experts))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(n_rows, n_experts, generator=generator, dtype=torch.float64) * 3
    matrices = torch.randn(n_experts, 5, 4, generator=generator, dtype=torch.float64)
    gates, experts, probs = fusion.route(logits, top_k)
    seen = []

    def run_expert(expert, block):
        seen.append((expert, len(block)))
        return block @ matrices[expert].T

    got = fusion.dispatch(rows, gates, experts, n_experts, run_expert)
    expected = torch.zeros(n_rows, 5, dtype=torch.float64)
    for row in range(n_rows):
        p = [math.exp(x) for x in (logits[row] - logits[row].max()).tolist()]
        p = [x / sum(p) for x in p]
        best = sorted(range(n_experts), key=lambda e: -p[e])[:top_k]
        total = sum(p[e] for e in best) if top_k > 1 else 1.0
        for e in best:
            expected[row] += p[e] / total * (matrices[e] @ rows[row])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    # Only what was chosen is computed, each expert in one block.
    assert sum(n for _, n in seen) == n_rows * top_k
    assert len({e for e, _ in seen}) == len(seen)


def test_balance_and_z_loss_by_hand():
    probs = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    experts = torch.tensor([[0], [0], [0], [1]])
    # f = [3/4, 1/4], P = [0.5, 0.5]: 2 (0.375 + 0.125) = 1
    assert fusion.balance_loss(probs, experts).item() == pytest.approx(1.0)
    # all on expert 0 with P = [0.9, 0.1]: 2 * 0.9
    crowded = torch.tensor([[0.9, 0.1]]).expand(4, 2)
    assert fusion.balance_loss(crowded, torch.zeros(4, 1, dtype=torch.long)).item() == pytest.approx(1.8)
    # k = 2 of 3: f = [2/4, 1/4, 1/4], P = [0.5, 0.3, 0.2]: 3 (0.25 + 0.075 + 0.05)
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]])
    experts = torch.tensor([[0, 1], [0, 2]])
    assert fusion.balance_loss(probs, experts).item() == pytest.approx(1.125)
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    assert fusion.router_z_loss(logits).item() == pytest.approx(expected)


def test_balance_loss_pushes_probability_off_the_crowded_expert():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    _, experts, probs = fusion.route(logits, 1)
    fusion.balance_loss(probs, experts).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_gradient_reaches_router_and_chosen_experts(top_k):
    torch.manual_seed(0)
    mixture = fusion.ExpertFusion(2, WIDTH, {**SETTINGS, "moe_top_k": top_k})
    nn.init.normal_(mixture.weight_out)
    parts = torch.randn(20, 2, WIDTH)
    fused, routing = mixture(parts)
    fused.square().sum().backward()
    chosen = set(routing.experts.flatten().tolist())
    assert mixture.router.weight.grad.abs().sum() > 0
    for expert in range(3):
        for weight in (mixture.weight_in, mixture.weight_out):
            assert (weight.grad[expert].abs().sum() > 0) == (expert in chosen)


def test_an_expert_nobody_chooses_is_not_run_and_not_changed():
    mixture = fusion.ExpertFusion(1, WIDTH, {**SETTINGS, "moe_top_k": 1})
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.norm.weight.zero_()
        mixture.norm.bias.fill_(1.0)
        mixture.router.weight[1] = 5.0
    ran = []
    mixture.run_expert = lambda e, block: ran.append(e) or block[:, :WIDTH]
    mixture(torch.randn(9, 1, WIDTH))
    assert ran == [1]


@pytest.mark.parametrize("name", fusion.FUSIONS)
def test_every_fusion_starts_as_the_sum(name):
    parts = torch.randn(11, 3, WIDTH)
    fused, _ = fusion.FUSIONS[name](3, WIDTH, SETTINGS)(parts)
    torch.testing.assert_close(fused, parts[:, 0] + parts[:, 1] + parts[:, 2])


def test_concat_is_a_projection_of_the_concatenation():
    concat = fusion.ConcatFusion(2, WIDTH, SETTINGS)
    nn.init.normal_(concat.projection.weight)
    parts = torch.randn(5, 2, WIDTH)
    expected = torch.cat([parts[:, 0], parts[:, 1]], 1) @ concat.projection.weight.T
    torch.testing.assert_close(concat(parts)[0], expected)


def test_more_chosen_experts_than_experts_are_refused():
    with pytest.raises(PrefError, match="moe_top_k=4 .*moe_experts=3"):
        fusion.ExpertFusion(2, WIDTH, {**SETTINGS, "moe_top_k": 4})


# -- the table


def vectors_feature(n_items=9, width=4, missing=(3,)):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(n_items, width, generator=generator) * 5 + 2
    present = torch.ones(n_items, dtype=torch.bool)
    present[[0, *missing]] = False
    values[~present] = 0
    return Feature("text", values, present)


def tokens_feature():
    values = torch.tensor([[0, 0], [1, 2], [2, 0], [0, 0], [3, 3], [1, 0], [1, 0], [2, 3], [1, 1]])
    return Feature("tags", values, (values != 0).any(1), 4)


def make_table(fusion_name="sum", has_id=None, features=None, **settings):
    torch.manual_seed(3)
    embedding = nn.Embedding(9, WIDTH, padding_idx=0)
    nn.init.normal_(embedding.weight, std=0.1)
    has_id = torch.ones(9, dtype=torch.bool) if has_id is None else has_id
    features = features or [vectors_feature(), tokens_feature()]
    settings = {**SETTINGS, "mm_fusion": fusion_name, **settings}
    return embedding, item_table.ItemTable(embedding, features, has_id, settings)


def test_the_sum_is_id_plus_projected_vector_plus_mean_of_tokens():
    embedding, table = make_table()
    text, tags = vectors_feature(), tokens_feature()
    rows = text.values[text.present]
    scale = (rows - rows.mean(0)).square().mean().sqrt()
    _, of_text, of_tags = table.modalities
    for item in range(1, 9):
        expected = embedding.weight[item].detach().clone()
        if text.present[item]:
            x = (text.values[item] - rows.mean(0)) / scale
            expected += of_text.projection.weight @ x + of_text.projection.bias
        else:
            expected += of_text.default
        tokens = [t for t in tags.values[item].tolist() if t]
        if tokens:
            expected += sum(of_tags.tokens.weight[t] for t in tokens) / len(tokens)
        else:
            expected += of_tags.default
        torch.testing.assert_close(table.weight[item], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(table.weight[0], embedding.weight[0])
    ids = torch.tensor([[1, 5], [0, 3]])
    torch.testing.assert_close(table(ids), table.weight[ids])


@pytest.mark.parametrize("name", fusion.FUSIONS)
def test_items_without_a_modality_get_its_learned_default(name):
    _, table = make_table(name)
    text = table.modalities[1]
    assert text.default.abs().min() > 0
    before = table.weight.detach().clone()
    table.weight[3].sum().backward()
    assert text.default.grad.abs().sum() > 0
    assert text.projection.weight.grad.abs().sum() == 0  # item 3 alone has no text
    with torch.no_grad():
        text.default += 1.0
    changed = (table.weight - before).abs().amax(1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [3]


def test_ids_can_be_replaced_for_some_items_or_all():
    head = torch.tensor([False, True, True, False, False, False, True, False, False])
    embedding, some = make_table(has_id=head)
    assert some.modalities[0].weight.shape == (3, WIDTH)
    ids = some.modalities[0]()
    torch.testing.assert_close(ids[[0, 1, 5]], embedding.weight[[1, 2, 6]])
    for tail in (2, 3, 4, 6, 7):
        torch.testing.assert_close(ids[tail], some.modalities[0].default)
    everything = item_table.ItemTable(embedding, [vectors_feature()], None, SETTINGS)
    assert [type(m).__name__ for m in everything.modalities] == ["Modality"]
    assert everything.weight.shape == (9, WIDTH)


def test_standardizing_undoes_affine_normalization_and_keeps_angles():
    text = vectors_feature()
    once = features.standardized(text.values, text.present)
    shifted = torch.where(text.present[:, None], text.values * 0.1 + 7, 0)
    torch.testing.assert_close(once, features.standardized(shifted, text.present), rtol=1e-4, atol=1e-4)
    rows = once[text.present]
    torch.testing.assert_close(rows.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert rows.square().mean().item() == pytest.approx(1.0, rel=1e-5)
    assert (once[~text.present] == 0).all()


def test_a_constant_feature_gives_finite_vectors():
    values = torch.full((9, 4), 2.0)
    present = torch.tensor([False] + [True] * 8)
    assert torch.isfinite(features.standardized(values, present)).all()
    nobody = Feature("text", torch.zeros(9, 4), torch.zeros(9, dtype=torch.bool))
    _, table = make_table(features=[nobody])
    assert torch.isfinite(table.weight).all()


def counting(table):
    """Count how often the table is computed."""
    calls, original = [], table._fuse
    table._fuse = lambda: calls.append(1) or original()
    return calls


def test_the_table_is_kept_until_a_weight_changes():
    _, table = make_table("moe")
    table.eval()
    calls = counting(table)
    with torch.no_grad():
        first = table.weight
        assert table.weight is first and table(torch.tensor([1])).shape == (1, WIDTH)
        assert len(calls) == 1
        for parameter in list(table.parameters()):
            before = table.weight
            parameter.add_(0.25)
            assert table.weight is not before
        assert len(calls) == 1 + len(list(table.parameters()))
    state = {k: v + 1 if v.is_floating_point() else v for k, v in table.state_dict().items()}
    kept = table.weight
    table.load_state_dict(state)
    assert not torch.equal(table.weight, kept)


@pytest.mark.parametrize("learner", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_step_is_noticed(learner):
    _, table = make_table("moe")
    optimizer = learner(table.parameters(), lr=0.1)
    before = table.weight.detach().clone()
    table.weight.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert (table.weight - before).abs().max() > 1e-3


def test_each_training_step_computes_the_table_once():
    _, table = make_table("moe")
    calls = counting(table)
    for _ in range(2):
        loss = table(torch.tensor([1, 2])).sum() + table.weight.sum()
        (loss + table.finish_step()[0]).backward()
    assert len(calls) == 2


def test_tables_can_be_copied_and_pickled_in_the_middle_of_a_step():
    _, table = make_table("moe")
    expected = table.weight.detach().clone()
    twin = copy.deepcopy(table)
    torch.testing.assert_close(twin.weight, expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(table)).weight, expected)


def test_padding_learns_from_scores_and_not_from_sequences():
    _, table = make_table()
    table(torch.tensor([[0, 1]])).sum().backward()
    assert table.padding.grad.abs().sum() == 0
    table.finish_step()
    table.weight.sum().backward()
    assert table.padding.grad.abs().sum() > 0


# -- files of a data set


def write_vectors(folder, width=5, lines=None, name="tiny", suffix="text"):
    """Write a feature file of the tiny data set and return what it says: dict of token to vector."""
    rng = np.random.default_rng(4)
    vectors = {f"i{i}": rng.normal(size=width).round(4) for i in range(N_ITEMS) if i not in LACKS_TEXT}
    if lines is None:
        lines = [f"{token}\t{' '.join(map(str, vector))}" for token, vector in vectors.items()]
    path = folder / name / f"{name}.{suffix}"
    head = f"{suffix}_id:token\t{suffix}_emb:float_seq"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return vectors


@pytest.fixture
def shop(tmp_path, tiny_dataset):
    """The tiny data set with tags in its item file and text vectors in another; settings of a run."""
    folder = tmp_path / "shop"
    write_atomic(folder, "tiny", tiny_sequences())
    tags = ["item_id:token\ttags:token_seq"]
    for item in range(N_ITEMS):
        tags.append(f"i{item}\t{'' if item in LACKS_TAGS else f't{item % 4} t{item % 7}'}")
    (folder / "tiny" / "tiny.item").write_text("\n".join(tags) + "\n", encoding="utf-8")
    write_vectors(folder)
    return {**tiny_dataset, "data_path": str(folder), "moe_experts": 3}


def build(name, settings, **more):
    config = Config(name, config_dict={**settings, **more})
    dataset, loaders = prepare_data(config, log=False)
    torch.manual_seed(0)
    model = model_class(name)(config, loaders[0]._dataset)
    model.prepare_training(config, loaders[0]._dataset)
    return config, model, loaders


def test_features_are_those_of_the_files(shop):
    config, model, loaders = build("CEMMSASRec", shop)
    dataset = loaders[0]._dataset
    tags, text = features.read(dataset, "auto")
    assert (tags.name, text.name) == ("tags", "text_emb")
    assert config["preload_weight"] == {"text_id": "text_emb"}
    tokens = dataset.field2id_token["item_id"]
    assert len(tokens) == N_ITEMS + 1
    vectors = write_vectors(Path(shop["data_path"]))
    tag_names = dataset.field2id_token["tags"]
    for row, token in enumerate(tokens[1:], start=1):
        item = int(token[1:])
        assert text.present[row].item() == (item not in LACKS_TEXT)
        assert tags.present[row].item() == (item not in LACKS_TAGS)
        if item not in LACKS_TEXT:
            expected = torch.tensor(vectors[token], dtype=torch.float32)
            torch.testing.assert_close(text.values[row], expected, rtol=1e-5, atol=1e-6)
        names = [tag_names[t] for t in tags.values[row].tolist() if t]
        assert names == ([] if item in LACKS_TAGS else [f"t{item % 4}", f"t{item % 7}"])
    assert not text.present[0] and not tags.present[0]
    np.testing.assert_allclose(dataset.get_preload_weight("text_id"), text.values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("fields", ["tags", "text_emb", ["text_emb", "tags"]])
def test_mm_fields_choose_and_order_the_modalities(shop, fields):
    _, model, loaders = build("CEMMGRU4Rec", shop, mm_fields=fields)
    found = [f.name for f in features.read(loaders[0]._dataset, fields)]
    assert found == ([fields] if isinstance(fields, str) else fields)
    assert len(model.item_embedding.modalities) == 1 + len(found)


def test_recboles_own_way_of_loading_is_taken_as_it_is(shop):
    settings = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "text": ["text_id", "text_emb"]},
        "additional_feat_suffix": ["text"],
        "alias_of_item_id": ["text_id"],
        "preload_weight": {"text_id": "text_emb"},
    }
    config, model, loaders = build("CEMMSASRec", {**shop, **settings})
    assert [f.name for f in features.read(loaders[0]._dataset, "auto")] == ["text_emb"]
    assert config["load_col"] == settings["load_col"]


def test_float_columns_of_the_item_file_are_features(shop, tmp_path):
    path = tmp_path / "shop" / "tiny" / "tiny.item"
    lines = ["price:float\titem_id:token\tpicture:float_seq"]
    lines += [f"{i % 9}\ti{i}\t{'' if i == 5 else f'{i + 1} {i * i}'}" for i in range(N_ITEMS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _, model, loaders = build("CEMMSASRec", shop, mm_fields=["price", "picture"])
    price, picture = features.read(loaders[0]._dataset, ["price", "picture"])
    assert price.present[1:].all() and price.values.shape == (N_ITEMS + 1, 1)
    tokens = loaders[0]._dataset.field2id_token["item_id"]
    assert [tokens[row] for row in (~picture.present).nonzero().flatten().tolist()] == ["[PAD]", "i5"]


def test_numbers_of_a_feature_file_are_missing_where_it_has_no_line(shop, tmp_path):
    lines = [
        "text_id:token\ttext_emb:float_seq\tprice:float",
        *(f"i{i}\t1 2\t{1000 + i}" for i in range(N_ITEMS) if i != 5),
    ]
    (tmp_path / "shop" / "tiny" / "tiny.text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _, _, loaders = build("CEMMSASRec", shop, mm_fields="price")
    (price,) = features.read(loaders[0]._dataset, "price")
    tokens = loaders[0]._dataset.field2id_token["item_id"]
    assert [tokens[row] for row in (~price.present).nonzero().flatten().tolist()] == ["[PAD]", "i5"]


def test_columns_that_are_not_features_of_the_run_may_hold_anything(shop, tmp_path):
    path = tmp_path / "shop" / "tiny" / "tiny.item"
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    lines = [f"{head}\thistory:float_seq", *(f"{line}\t{' 1' * (i % 3)}" for i, line in enumerate(lines))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    build("CEMMSASRec", shop, mm_fields="tags")


def test_names_that_recbole_would_mix_up_are_refused(shop, tmp_path):
    folder = tmp_path / "shop" / "tiny"
    write_vectors(tmp_path / "shop", suffix="picture")
    picture = (folder / "tiny.picture").read_text(encoding="utf-8")
    for head, match in (
        ("text_id:token\tpicture_emb", r"line 1: its item column is called text_id.*: rename it to (picture|text)_id"),
        (
            "item_id:token\tpicture_emb",
            r"tiny\.picture, line 1: its item column is called item_id.*rename it to picture_id",
        ),
        ("picture_id:token\ttext_emb", r"tiny\.picture and .*tiny\.text both have a column text_emb: rename"),
    ):
        text = picture.replace("picture_id:token\tpicture_emb", head)
        (folder / "tiny.picture").write_text(text, encoding="utf-8")
        refused(shop, match)
    (folder / "tiny.picture").unlink()
    text = (folder / "tiny.text").read_text(encoding="utf-8").splitlines()
    lines = [f"{text[0]}\tkind:token", *(f"{line}\tk" for line in text[1:])]
    (folder / "tiny.text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _, model, _ = build("CEMMSASRec", shop)
    assert len(model.item_embedding.modalities) == 3  # ID, tags and vectors
    refused(shop, "mm_fields names 'kind', which is in no feature file", mm_fields="kind")


def refused(settings, match, **more):
    with pytest.raises(PrefError, match=match) as caught:
        build("CEMMSASRec", settings, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lines, match",
    [
        (["i0\t1 2", "i1\t1 2 3"], r"tiny\.text, line 3: text_emb holds 3 numbers .* 2"),
        (["i0\t1 2", "i1\t1 x"], r"tiny\.text, line 3: .*not a finite 32-bit number"),
        (["i0\t1 2", "i1\t1 nan"], r"tiny\.text, line 3: .*not a finite 32-bit number"),
        (["i0\t1 2", "i1\t", "i2\t1 inf"], r"tiny\.text, line 4: .*not a finite 32-bit number"),
        (["i0\t1 2", "nobody\t1 2"], r"tiny\.text, line 3: item 'nobody' is neither"),
        (["i0\t1 2", "i3\t1 2", "i0\t1 2"], r"tiny\.text, line 4: item 'i0' is already in line 2"),
        (["i0\t1 2", "i1\t1 1e39"], r"tiny\.text, line 3: .*not a finite 32-bit number"),
        (["i0\t1 2", "i1"], r"tiny\.text, line 3: 1 columns, but the header names 2"),
    ],
)
def test_wrong_lines_are_refused_with_file_and_line(shop, tmp_path, lines, match):
    write_vectors(tmp_path / "shop", lines=lines)
    refused(shop, match)


def test_damaged_text_is_named_with_its_line(shop, tmp_path):
    path = tmp_path / "shop" / "tiny" / "tiny.text"
    path.write_bytes(path.read_bytes() + b"i7\xff\t1 2 3 4 5\n")
    refused(shop, rf"tiny\.text, line {N_ITEMS - len(LACKS_TEXT) + 2}: the text is not utf-8", mm_fields="text_emb")


def test_items_that_filters_remove_do_not_come_back_with_their_features(shop):
    few = {"item_inter_num_interval": "[8,inf)", "mm_fields": "text_emb"}
    plain = prepare_data(Config("CESASRec", config_dict={**shop, **few}), log=False)[0]
    _, _, loaders = build("CEMMSASRec", shop, **few)
    dataset = loaders[0]._dataset
    assert set(dataset.field2id_token["item_id"]) == set(plain.field2id_token["item_id"])
    assert dataset.item_num < N_ITEMS
    (text,) = features.read(dataset, "text_emb")
    vectors = write_vectors(Path(shop["data_path"]))
    for row, token in enumerate(dataset.field2id_token["item_id"][1:], start=1):
        np.testing.assert_allclose(text.values[row], vectors.get(token, np.zeros(5)), rtol=1e-5)


def test_a_column_without_any_number_is_not_a_feature(shop, tmp_path):
    lines = ["item_id:token\tprice:float", *(f"i{i}\t" for i in range(N_ITEMS))]
    (tmp_path / "shop" / "tiny" / "tiny.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused(shop, "mm_fields names 'price', which holds no finite numbers", mm_fields="price")


def test_wrong_vectors_in_the_item_file_are_refused_too(shop, tmp_path):
    path = tmp_path / "shop" / "tiny" / "tiny.item"
    lines = ["item_id:token\tpicture:float_seq", "i0\t1 2", "i1\t1"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused(shop, r"tiny\.item, line 3: picture holds 1 numbers", mm_fields="picture")


def test_unknown_fields_and_data_without_features_are_refused(shop, tiny_dataset):
    refused(shop, "mm_fields names 'txt_emb'.*'text_emb'", mm_fields=["txt_emb"])
    refused(tiny_dataset, "mm_fields='auto' finds no item features")
    refused(shop, r"mm_fields=\[\] is not accepted", mm_fields=[])
    refused(shop, "mm_fusion='mo'", mm_fusion="mo")
    refused(shop, "moe_top_k=9", moe_top_k=9)
    with pytest.raises(PrefError, match="CEMMHGN is not possible"):
        build("CEMMHGN", shop)


# -- models


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec", "Caser"])
@pytest.mark.parametrize("method", METHODS)
def test_names_with_mm_are_classes_on_the_backbone(method, backbone):
    cls = model_class(f"{method}MM{backbone}")
    assert cls.__name__ == f"{method}MM{backbone}" and cls.preference_method == method
    assert issubclass(cls, getattr(multimodal, f"MM{backbone}"))
    assert pickle.loads(pickle.dumps(cls)) is cls is getattr(models, cls.__name__)
    from recbole.utils import get_model

    assert get_model(cls.__name__) is cls


def test_misspelt_names_with_mm_get_the_right_one():
    with pytest.raises(PrefError, match="'RoDPOMMSASRec'"):
        model_class("RoDPOmmSASRec")
    with pytest.raises(PrefError, match="'RoDPOMMSASRec'"):
        model_class("RoDPOMMSASRek")
    with pytest.raises(PrefError, match="does not exist"):
        model_class("RoDPOMMNothing")


def test_mixed_precision_keeps_the_table_in_float32(shop):
    _, model, loaders = build("CEMMSASRec", shop)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.item_embedding.weight.dtype == torch.float32
        loss = model.calculate_loss(next(iter(PackedLoader(loaders[0], 4))))
    loss.backward()
    assert torch.isfinite(loss)
    assert model.item_embedding.fusion.weight_out.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec", "Caser"])
def test_sequences_and_catalogue_read_the_same_fused_vectors(shop, backbone):
    """The backbone with a plain embedding that holds the fused vectors gives the same scores."""
    config, model, loaders = build(f"CEMM{backbone}", shop)
    stock_config = Config(f"CE{backbone}", config_dict=shop)
    stock = model_class(f"CE{backbone}")(stock_config, loaders[0]._dataset)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("item_embedding.")}
    model.eval(), stock.eval()
    with torch.no_grad():
        stock.load_state_dict({**state, "item_embedding.weight": model.item_embedding.weight})
        rows = loaders[0]._dataset[torch.arange(20)]
        assert not torch.equal(stock.item_embedding.weight[1], stock.item_embedding.weight[2])
        torch.testing.assert_close(model.full_sort_predict(rows), stock.full_sort_predict(rows))
        torch.testing.assert_close(model.predict(rows), stock.predict(rows))


@pytest.mark.parametrize("name", ["CEMMSASRec", "LPOMMGRU4Rec", "RoDPOMMSASRec", "SDPOMMCaser", "DPOMMNARM"])
def test_every_path_trains_features_router_and_experts(shop, name):
    config, model, loaders = build(name, shop)
    for parameter in (model.item_embedding.fusion.weight_out,):
        nn.init.normal_(parameter, std=0.1)
    loader = PackedLoader(loaders[0], 4) if model.step.train_path == "all" else loaders[0]
    if model.reference is not None:
        rows = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("reference.")}
        model.start_from(rows)
        nn.init.normal_(model.reference.item_embedding.fusion.weight_out, std=0.1)
    batches = [batch for batch, _ in zip(loader, range(2))]
    for batch in batches:  # the second step has a graph of its own
        model.zero_grad()
        model.calculate_loss(batch).backward()
    table = model.item_embedding
    for part, parameter in table.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), part
    for part in ("fusion.router.weight", "fusion.weight_in", "modalities.0.weight"):
        assert dict(table.named_parameters())[part].grad.abs().sum() > 0, part
    shares = {k: v for k, v in model.pop_diagnostics().items() if k.endswith("_share")}
    assert len(shares) == 3 and sum(shares.values()) == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_that_of_the_vectors_plus_balance_and_z(shop):
    switches = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "moe_balance_weight": 0.0}
    _, model, loaders = build("CEMMSASRec", shop, **switches, moe_z_weight=0.0)
    batch = next(iter(PackedLoader(loaders[0], 4)))
    base = model.calculate_loss(batch)
    model.item_embedding.balance_weight, model.item_embedding.z_weight = 0.5, 0.25
    with torch.no_grad():
        logits, probs, experts = model.item_embedding._fuse()[1]
        share = torch.bincount(experts.flatten(), minlength=3) / experts.numel()
        balance = 3 * (share * probs.mean(0)).sum()
        z = logits.exp().sum(1).log().square().mean()
    expected = base + 0.5 * balance + 0.25 * z
    torch.testing.assert_close(model.calculate_loss(batch), expected, rtol=1e-5, atol=1e-6)


def test_recboles_own_loss_gets_the_experts_losses_too(shop):
    """Cross-entropy on RecBole's rows goes through RecBole's calculate_loss."""
    _, model, loaders = build("CEMMCaser", shop, train_positions="last", moe_balance_weight=0.0, moe_z_weight=0.0)
    assert model.step.is_plain
    model.eval()
    batch = loaders[0]._dataset[torch.arange(10)]
    base = model.calculate_loss(batch).item()
    model.item_embedding.balance_weight = 1.0
    assert model.calculate_loss(batch).item() - base > 0.9


def test_tail_items_share_one_id_vector(shop):
    _, model, _ = build("CEMMSASRec", shop, replace_id="tail", head_ratio=0.25)
    ids = model.item_embedding.modalities[0]
    assert len(ids.weight) == int(model.step.head_mask.sum())
    vectors = ids()
    tail = ~model.step.head_mask[1:]
    torch.testing.assert_close(vectors[tail], ids.default.expand(int(tail.sum()), -1))


# -- whole runs


def test_a_run_with_reference_resumes_and_loads_with_its_features(shop, tmp_path):
    result = run_recbole_pref("RoDPOMMSASRec", config_dict={**shop, "epochs": 2, "keep_last": 2})
    assert result["epochs"] == 2 and math.isfinite(result["test_result"]["ndcg@10"])
    diagnostics = result["history"][-1]
    assert {"expert_0_share", "expert_balance", "router_z"} <= set(diagnostics)
    references = list((tmp_path / "saved" / "reference").glob("*.pth"))
    assert [re.sub("-[0-9a-f]{12}", "", path.name) for path in references] == ["tiny-MMSASRec.pth"]

    # The run continues from the start of its second epoch and ends with the same weights.
    last = sorted((tmp_path / "saved").glob("*-last-*"))
    second = next(path for path in last if checkpoint.load(path)["start_epoch"] == 1)
    stored = checkpoint.load(result["checkpoint"])["state_dict"]
    again = run_recbole_pref("RoDPOMMSASRec", config_dict={**shop, "epochs": 2, "resume": str(second), "keep_last": 2})
    assert again["test_result"] == result["test_result"]
    best = checkpoint.load(again["checkpoint"])["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in stored.items())
    assert not any(name.endswith("values") for name in best)  # features stay in their files

    _, model, _, _, _, test_data = load_data_and_model(result["checkpoint"])
    model.eval()
    rows = test_data._dataset[torch.arange(10)]
    for name, value in model.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert torch.isfinite(model.full_sort_predict(rows)).all()

    # other features under the same names
    write_vectors(tmp_path / "shop", width=5, lines=[f"i{i}\t{i} 2 3 4 5" for i in range(N_ITEMS)])
    with pytest.raises(PrefError, match="other item features"):
        load_data_and_model(result["checkpoint"])


def test_references_of_other_features_are_not_shared(shop, tmp_path):
    settings = {**shop, "epochs": 1, "reference_epochs": 1}
    run_recbole_pref("DPOMMSASRec", config_dict=settings)
    run_recbole_pref("DPOMMSASRec", config_dict=settings)
    run_recbole_pref("DPOMMSASRec", config_dict={**settings, "mm_fields": "tags"})
    run_recbole_pref("DPOMMSASRec", config_dict={**settings, "mm_fusion": "sum"})
    write_vectors(tmp_path / "shop", lines=[f"i{i}\t{i} 2 3 4 5" for i in range(N_ITEMS)])
    run_recbole_pref("DPOMMSASRec", config_dict=settings)
    assert len(list((tmp_path / "saved" / "reference").glob("*.pth"))) == 4


def test_plain_recbole_trains_a_multimodal_model(shop):
    from recbole.quick_start import run_recbole

    settings = {
        **shop, "epochs": 1, "mm_fields": "tags",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "tags"]},
    }  # fmt: skip
    result = run_recbole("CEMMSASRec", "tiny", config_dict=settings, saved=False)
    assert math.isfinite(result["test_result"]["ndcg@10"])


def test_evaluation_computes_the_table_once(shop):
    config, model, loaders = build("CEMMSASRec", shop, eval_batch_size=8)
    model.eval()
    calls = counting(model.item_embedding)
    rows = loaders[2]._dataset
    with torch.no_grad():
        for start in range(0, 40, 8):
            part = rows[torch.arange(start, start + 8)]
            model.score_items(model.encode(part), part)
    assert len(calls) == 1
    model.train()
    model.eval()
    with torch.no_grad():
        model.full_sort_predict(rows[torch.arange(8)])
    assert len(calls) == 2


def test_recommendations_from_a_checkpoint(shop, monkeypatch):
    path = run_recbole_pref("LPOMMSASRec", config_dict={**shop, "epochs": 1})["checkpoint"]
    read = []
    monkeypatch.setattr("recbole_pref.build.create_dataset", lambda config: read.append(1) or create_dataset(config))
    recommender = Recommender(path)
    frame = recommender.recommend([["i3", "i4"]], k=5)
    assert len(frame) == 5 and not {"i3", "i4"} & set(frame["item"])
    assert len(recommender.recommend_users(["u1"], k=5)) == 5
    assert len(read) == 1  # for the features and for the users
