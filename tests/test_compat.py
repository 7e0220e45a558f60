"""Each patch of RecBole: it fails without, it works with."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from recbole_pref import compat
from recbole_pref.errors import PrefError
from tests import fresh

PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3
needs_pandas_3 = pytest.mark.skipif(not PANDAS_3, reason="pandas 2 does not need the patch")


def probe(body, left_out="", folder="."):
    """Run a body in a fresh process without a patch; return its exit code and what it printed last."""
    code = textwrap.dedent(
        f"""
        import sys, types
        import importlib.util
        # Leave a patch out before the package applies them all.
        spec = importlib.util.find_spec("recbole_pref")
        package = types.ModuleType("recbole_pref")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["recbole_pref"] = package
        from recbole_pref import compat
        compat.PATCHES = tuple(p for p in compat.PATCHES if p.name != {left_out!r})
        compat.apply()
        from recbole_pref.registry import register
        register()
        """
    ) + textwrap.dedent(body)
    exit_code, output, errors = fresh.run(code, folder)
    return exit_code, output.strip().splitlines()[-1:] or [errors[-400:]]


DATASET = """
from recbole.config import Config
from recbole.data import create_dataset
config = Config("{model}", "d", config_dict=dict(data_path=".", state="ERROR", gpu_id="", {more}))
dataset = create_dataset(config)
"""


def write(folder, **files):
    target = folder / "d"
    target.mkdir(exist_ok=True)
    for name, lines in files.items():
        text = "\n".join("\t".join(line) for line in lines) + "\n"
        (target / f"d.{name.replace('_', '.')}").write_text(text)


def interactions(n_users=6):
    rows = [("user_id:token", "item_id:token", "timestamp:float")]
    return rows + [(f"u{u}", f"i{(u + t) % 5}", str(t)) for u in range(n_users) for t in range(5)]


def test_every_patch_states_its_cause_and_is_applied():
    import recbole  # noqa: F401

    needed = {p.name for p in compat.PATCHES if p.name != "anomaly_detection"}
    if not PANDAS_3:
        needed -= {"fill_nan", "empty_sequences", "elementwise_len"}
    assert needed <= set(compat.applied())
    for patch in compat.PATCHES:
        assert ".py" in patch.cause or ".yaml" in patch.cause
        assert patch.until


def test_dok_update(tmp_path):
    write(tmp_path, inter=interactions())
    body = DATASET.format(model="LightGCN", more="load_col=None") + (
        "from recbole.utils import get_model\n"
        "train = dataset.build()[0]\n"
        "model = get_model('LightGCN')(config, train)\n"
        "print(model.norm_adj_matrix.coalesce()._nnz() == 2 * len(train.inter_feat))"
    )
    assert probe(body, folder=tmp_path) == (0, ["True"])
    if "dok_update" in compat.applied():
        assert probe(body, left_out="dok_update", folder=tmp_path)[0] != 0


def test_numpy_type_names(tmp_path):
    write(tmp_path, inter=interactions())
    body = DATASET.format(model="BPR", more="") + "print(dataset.item_num)"
    assert probe(body, folder=tmp_path) == (0, ["6"])
    code, _ = probe(body, "numpy_type_names", tmp_path)
    assert code != 0


@needs_pandas_3
def test_missing_features_are_filled(tmp_path):
    items = [("item_id:token", "brand:token", "price:float")]
    items += [("i0", "x", "2"), ("i1", "", "4"), ("i2", "y", ""), ("i3", "x", "6")]
    write(tmp_path, inter=interactions(), item=items)
    more = "load_col=dict(inter=['user_id','item_id'], item=['item_id','brand','price']), normalize_all=False"
    body = DATASET.format(model="LR", more=more) + (
        "import torch\n"
        "dataset.build()\n"
        "feat = dataset.get_item_feature()\n"
        "print(int(feat['brand'].min()), bool(torch.isnan(feat['price']).any()), feat['price'].flatten()[0].item())"
    )
    assert probe(body, folder=tmp_path) == (0, ["0 False 4.0"])
    code, said = probe(body, "fill_nan", tmp_path)
    assert code != 0 or said != ["0 False 4.0"]


@needs_pandas_3
def test_sequence_features_with_empty_cells(tmp_path):
    items = [("item_id:token", "tags:token_seq"), ("i0", "a b c"), ("i1", ""), ("i2", "c")]
    write(tmp_path, inter=interactions(), item=items)
    more = "load_col=dict(inter=['user_id','item_id'], item=['item_id','tags'])"
    body = DATASET.format(model="LR", more=more) + (
        "dataset.build()\n"
        "ids = dataset.token2id('item_id', ['i0', 'i1', 'i2'])\n"
        "tags = dataset.get_item_feature()['tags'][ids]\n"
        "print([[str(dataset.id2token('tags', t)) for t in row if t] for row in tags.tolist()])"
    )
    expected = (0, ["[['a', 'b', 'c'], [], ['c']]"])
    assert probe(body, folder=tmp_path) == expected
    assert probe(body, "empty_sequences", tmp_path)[0] != 0
    assert probe(body, "elementwise_len", tmp_path)[0] != 0


@needs_pandas_3
def test_benchmark_files_have_the_lengths_of_their_rows(tmp_path):
    head = [("user_id:token", "item_id_list:token_seq", "item_id:token")]
    rows = [("u0", "i0 i1", "i2"), ("u1", "i1", "i0"), ("u2", "i2 i1 i0", "i1")]
    write(tmp_path, train_inter=head + rows, valid_inter=head + rows, test_inter=head + rows)
    more = (
        "benchmark_filename=['train','valid','test'], alias_of_item_id=['item_id_list'],"
        "load_col=dict(inter=['user_id','item_id_list','item_id']), MAX_ITEM_LIST_LENGTH=3,"
        "train_neg_sample_args=None"
    )
    body = DATASET.format(model="SASRec", more=more) + (
        "train = dataset.build()[0]\nprint(train.inter_feat['item_length'].tolist())"
    )
    assert probe(body, folder=tmp_path) == (0, ["[2, 1, 3]"])
    code, said = probe(body, "elementwise_len", tmp_path)
    assert code != 0 or said != ["[2, 1, 3]"]


def test_anomaly_detection_stays_off():
    body = "import recbole.model.sequential_recommender, torch\nprint(torch.is_anomaly_enabled())"
    assert probe(body) == (0, ["False"])
    assert probe(body, "anomaly_detection") == (0, ["True"])
    # RecBole's models may have been imported before this package.
    body = "import recbole.model.sequential_recommender\nimport recbole_pref.quick_start, torch\n"
    body += "print(torch.is_anomaly_enabled())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["False"], done.stderr


def test_interactions_sort_without_a_deprecated_call(tmp_path):
    body = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch\n"
        "from recbole.data.interaction import Interaction\n"
        "i = Interaction({'a': torch.tensor([2, 1, 2, 0]), 'b': torch.arange(4)})\n"
        "i.sort('a'); print(i['b'].tolist())"
    )
    assert probe(body) == (0, ["[3, 1, 0, 2]"])
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert probe(body, "interaction_sort")[0] != 0


def test_the_collector_keeps_values_that_are_not_tensors():
    body = (
        "from recbole.evaluator.collector import Collector, DataStruct\n"
        "import torch\n"
        "c = Collector.__new__(Collector); c.data_struct = DataStruct()\n"
        "c.data_struct.set('data.num_items', 7); c.data_struct.set('rec.items', torch.ones(2))\n"
        "s = c.get_data_struct(); print(s.get('data.num_items'), len(s.get('rec.items')), "
        "'rec.items' in c.data_struct, c.data_struct.get('data.num_items'))"
    )
    assert probe(body) == (0, ["7 2 False 7"])
    assert probe(body, "collector_cpu")[0] != 0


def test_recboles_config_reads_our_property_files():
    body = "from recbole.config import Config\nprint(Config('LPOSASRec', 'ml-100k')['head_ratio'])"
    assert probe(body) == (0, ["0.2"])
    code, said = probe(body, "our_properties")
    assert code != 0 or said != ["0.2"]


def test_additional_features_are_filtered(tmp_path):
    text = [("text_id:token", "text_emb:float_seq"), *((f"i{i}", "1 2") for i in range(9))]
    write(tmp_path, inter=[*interactions(), ("u0", "i8", "9")], text=text)
    more = (
        "mm_fields=['text_emb'], load_col=dict(inter=['user_id','item_id','timestamp'], text=['text_id','text_emb']),"
        "additional_feat_suffix=['text'], alias_of_item_id=['text_id'], preload_weight=dict(text_id='text_emb'),"
        "item_inter_num_interval='[2,inf)', train_neg_sample_args=None"
    )
    body = DATASET.format(model="SASRec", more=more) + "print(dataset.item_num)"
    assert probe(body, folder=tmp_path) == (0, ["6"])
    assert probe(body, "further_features", tmp_path) == (0, ["10"])


def test_plain_recbole_trains_our_model(tiny_dataset):
    from recbole.quick_start import run_recbole

    result = run_recbole("LPOSASRec", config_dict={**tiny_dataset, "train_neg_sample_args": None})
    assert 0 <= result["test_result"]["tailhit@10"] <= 1


# -- RecBole's quick start


@pytest.fixture
def stock_dataset(tiny_dataset):
    """Settings under which RecBole's own models train without a word about ours."""
    ours = {"reference_epochs", "num_negatives", "pool_size"}
    settings = {key: value for key, value in tiny_dataset.items() if key not in ours}
    return {**settings, "train_neg_sample_args": None, "epochs": 1, "reproducibility": True, "eval_step": 1}


@pytest.mark.parametrize("model", ["SASRec", "BPR", "EASE", "LPOSASRec"])
def test_plain_recbole_loads_what_it_stored(stock_dataset, model):
    from recbole.quick_start import load_data_and_model, run
    from recbole.utils import get_trainer
    from recbole.utils.case_study import full_sort_topk

    if model == "BPR":
        stock_dataset["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
    result = run(model, "tiny", config_dict=stock_dataset)
    (file,) = (path for path in Path(stock_dataset["checkpoint_dir"]).glob("*.pth") if "-last-" not in path.name)
    torch.load(file, weights_only=True)  # plain data
    config, loaded, dataset, train_data, _, test_data = load_data_and_model(str(file))
    assert (config["model"], config["epochs"], dataset.item_num) == (model, 1, 41)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, loaded)
    trainer.eval_collector.data_collect(train_data)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    _, items = full_sort_topk([1, 2], loaded, test_data, k=3, device=config["device"])
    assert items.shape == (2, 3) and items.min() > 0


def test_plain_recbole_resumes_what_it_stored(stock_dataset):
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    def trainer(epochs):
        config = Config("SASRec", config_dict={**stock_dataset, "epochs": epochs})
        init_seed(1, True)
        loaders = data_preparation(config, create_dataset(config))
        return Trainer(config, get_model("SASRec")(config, loaders[0]._dataset)), loaders

    first, (train, valid, _) = trainer(1)
    first.fit(train, valid, verbose=False)
    second, (train, valid, test) = trainer(2)
    second.resume_checkpoint(first.saved_model_file)
    second.fit(train, valid, verbose=False)
    assert list(second.train_loss_dict) == [1]
    assert 0 <= second.evaluate(test, model_file=first.saved_model_file)["recall@10"] <= 1


def test_plain_recbole_searches(stock_dataset, tmp_path):
    pytest.importorskip("hyperopt")
    from recbole.quick_start import objective_function
    from recbole.trainer import HyperTuning

    file = tmp_path / "fixed.yaml"
    file.write_text(yaml.safe_dump({**stock_dataset, "model": "SASRec"}))
    space = {"learning_rate": [0.001, 0.01]}
    search = HyperTuning(
        objective_function, algo="exhaustive", early_stop=10, max_evals=2, params_dict={"choice": space},
        fixed_config_file_list=[str(file)],
    )  # fmt: skip
    search.run()
    assert len(search.params2result) == 2
    assert set(search.best_params) == {"learning_rate"}


def test_plain_recbole_refuses_a_pickle(tmp_path):
    from recbole.quick_start import load_data_and_model

    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"config": Touch(), "state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(PrefError, match="unpickling can run any code: train it again after importing recbole_pref"):
        load_data_and_model(str(tmp_path / "foreign.pth"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("wrong", ["1.2.0", None])
def test_a_wrong_recbole_names_the_command(monkeypatch, wrong):
    def version(name):
        if wrong is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return wrong

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(PrefError, match="pip install --no-deps recbole==1.2.1"):
        compat.check_installation()


def test_missing_packages_name_the_command(monkeypatch):
    monkeypatch.setitem(compat._NEEDED, "no_such_module_here", "no-such[tune]")
    with pytest.raises(PrefError, match=r'pip install "no-such\[tune\]"'):
        compat.check_installation()


def test_torch_is_recent_enough():
    assert tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 6)


@pytest.mark.parametrize("left_out", ["", "one_process_draws"])
def test_negatives_do_not_depend_on_workers(tmp_path, left_out):
    rows = [(f"u{user}", f"i{(user * 5 + time) % 30}", str(time)) for user in range(20) for time in range(8)]
    write(tmp_path, inter=[interactions()[0], *rows])
    body = """
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed
    negatives = []
    for worker in (0, 1):
        config = Config("BPR", "d", config_dict=dict(data_path=".", state="ERROR", gpu_id="", worker=worker))
        init_seed(0, True)
        train = data_preparation(config, create_dataset(config))[0]
        negatives.append(torch.cat([batch["neg_item_id"] for batch in train]))
    print(torch.equal(*negatives))
    """
    assert probe(body, left_out, tmp_path) == (0, [str(not left_out)])


@pytest.mark.parametrize(("gpu", "warned"), [("3", True), (3, True), ("0", False), ("", False)])
@pytest.mark.parametrize("config", ["recbole.config", "recbole_pref.config"])
def test_a_gpu_that_is_not_there_is_reported(tiny_dataset, monkeypatch, recwarn, config, gpu, warned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # RecBole changes it
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    importlib.import_module(config).Config("BPR", config_dict={"dataset": "tiny", "gpu_id": gpu})
    assert [str(warning.message) for warning in recwarn if "gpu_id" in str(warning.message)] == warned * [
        "gpu_id=3 has no effect: torch finds no such GPU, so the CPU trains."
    ]
