"""Settings: precedence, defaults of every method, and refusals in one sentence."""

import os
import re

import numpy as np
import pytest
import yaml
from recbole.config import Config as RecBoleConfig

from recbole_pref import cli
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.model.names import BACKBONES
from recbole_pref.settings import SETTINGS, check_setting
from recbole_pref.settings.files import parse_value, properties_dir, readable_keys


def refused(match, model="LPOSASRec", dataset="ml-100k", **settings):
    with pytest.raises(PrefError, match=match) as caught:
        Config(model, dataset, config_dict=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_model_has_sound_defaults(method, backbone):
    config = Config(method + backbone, "ml-100k")
    for name in METHODS[method].setting_names:
        check_setting(name, config[name])
    assert config["train_neg_sample_args"]["distribution"] == "none"
    assert config["loss_type"] == "CE"


def test_config_dict_wins_over_files_over_defaults_and_argv_is_not_read(tmp_path, monkeypatch):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("tau: 0.2\nlambda: 0.3\nbeta: 0.4\n")
    second.write_text("lambda: 0.6\nalpha_tail: 0.7\n")
    monkeypatch.setattr("sys.argv", ["run.py", "--beta=0.9"])
    given = {"alpha_tail": 0.8, "url": "http://a?b=c"}
    config = Config("LPOSASRec", "ml-100k", [str(first), str(second)], given)
    values = [config[key] for key in ("tau", "lambda", "alpha_tail", "beta", "num_negatives")]
    assert values == [0.2, 0.6, 0.8, 0.4, 5]
    assert config["url"] == "http://a?b=c"


def test_folders_may_be_numbers_or_begin_with_a_tilde():
    config = Config("LPOSASRec", "ml-100k", config_dict={"checkpoint_dir": 2024, "result_file": "~/result.json"})
    assert config["checkpoint_dir"] == "2024"
    assert config["result_file"] == os.path.expanduser("~/result.json")


def test_settings_may_be_numpys_scalars_and_tuples():
    given = {"seed": np.int64(5), "topk": [np.int64(5), 10], "tau": np.float64(0.5), "valid_metric": "NDCG@5"}
    given["eval_args"] = {"split": {"RS": (0.8, 0.1, 0.1)}}
    config = Config("LPOSASRec", "ml-100k", config_dict=given)
    assert [type(config["seed"]), type(config["topk"][0]), type(config["tau"])] == [int, int, float]
    assert config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}


def test_a_split_next_to_eval_args_is_recognised_as_wrongly_indented(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("eval_args:\nsplit: {LS: valid_and_test}\n")
    with pytest.raises(PrefError, match="split=.* is a part of eval_args: indent its line below eval_args"):
        Config("LPOSASRec", "ml-100k", [str(file)])


def test_a_long_data_set_name_gets_its_own_remedy():
    with pytest.raises(PrefError, match="is longer than 100 characters: rename its folder"):
        Config("LPOSASRec", "x" * 240)


def test_the_order_of_time_loads_the_time_column_for_every_model():
    given = {"eval_args": {"order": "TO"}, "load_col": {"inter": ["user_id", "item_id"]}}
    assert Config("BPR", "ml-100k", config_dict=given)["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}


def test_a_part_of_eval_args_leaves_the_rest_as_it_is_for_sequential_models():
    for model in ("LPOSASRec", "SASRec"):
        given = {"eval_args": {"mode": "uni100"}, "train_neg_sample_args": None}
        found = Config(model, "ml-100k", config_dict=given)["eval_args"]
        assert found["split"] == {"LS": "valid_and_test"} and found["order"] == "TO"
        assert found["mode"] == {"valid": "uni100", "test": "uni100"}
    assert Config("BPR", "ml-100k", config_dict={"eval_args": {"mode": "full"}})["eval_args"]["order"] == "RO"


@pytest.mark.parametrize("given", ["beta=0.5", "clip_eps=0.1", "dropout_prob=0.5", "moe_experts=4"])
def test_settings_of_others_are_refused_on_the_command_line(given, capsys):
    assert cli.main(["--model=LPOSASRec", f"--{given}"]) == 2
    assert f"LPOSASRec has no setting {given.partition('=')[0]}: leave it out" in capsys.readouterr().err


def test_recboles_own_config_finds_our_defaults():
    config = RecBoleConfig("LPOSASRec", "ml-100k")
    assert config["tau"] == 0.1 and config["n_layers"] == 2


def test_a_backbones_own_file_is_read():
    assert Config("LPOCaser", "ml-100k")["MAX_ITEM_LIST_LENGTH"] == 10
    assert Config("LPOSASRec", "ml-100k")["MAX_ITEM_LIST_LENGTH"] == 50


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"taau": 0.1}, "taau.*'tau'"),
        ({"learning_rat": 0.1}, "learning_rat.*'learning_rate'"),
        ({"tau": 0}, r"tau=0 .*above 0"),
        ({"tau": -1.5}, r"tau=-1.5"),
        ({"tau": "warm"}, r"tau='warm'"),
        ({"tau": float("nan")}, r"tau=nan"),
        ({"head_ratio": 1.0}, r"head_ratio=1.0.*below 1"),
        ({"head_ratio": 0}, r"head_ratio=0"),
        ({"neg_sampler": "gumbell"}, r"neg_sampler='gumbell'.*'gumbel'"),
        ({"num_negatives": 2.5}, r"num_negatives=2.5"),
        ({"num_negatives": True}, r"num_negatives=True"),
        ({"epochs": -1}, r"epochs=-1"),
        ({"train_batch_size": 0}, r"train_batch_size=0"),
        ({"learner": "adm"}, r"learner='adm'.*'adam'"),
        ({"metrics": ["TailNDGC"]}, r"TailNDGC.*'tailndcg'"),
        ({"valid_metric": "NDCG@7"}, r"valid_metric='NDCG@7'.*add 7"),
        ({"valid_metric": "Recall@10"}, r"valid_metric.*add Recall"),
        ({"topk": [0]}, "topk"),
        ({"topk": "ten"}, "topk"),
        ({"eval_args": {"mode": "fulll"}}, "fulll"),
        ({"ce_weight": 0, "lambda": 0}, "both 0"),
        ({"loss_type": "BPR"}, "loss_type='BPR'"),
        ({"reweight": "soft"}, "'softmax'"),
        ({"neg_sampler": "reference_pool", "reference": "none"}, "reference_pool.*auto"),
        ({"mask_history": "yes"}, "mask_history='yes'"),
        ({"transform": "crop_itemseq"}, "eta is not set.*crop_itemseq"),
        ({"transform": "reorder_itemseq"}, "beta is not set.*reorder_itemseq"),
    ],
)
def test_mistakes_are_named(settings, match):
    refused(match, **settings)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"valid_metric": "GAUC", "metrics": ["GAUC"]}, "valid_metric='GAUC' has none: set tawin_anchor"),
        ({"tawin_anchor": 20}, "tawin_anchor=20 is not below num_negatives=20: set num_negatives to 42"),
    ],
)
def test_a_window_of_tawin_outside_its_group_is_refused(settings, match):
    refused(match, model="TAWinSASRec", **settings)
    Config("TAWinSASRec", "ml-100k", config_dict={"tawin_anchor": 19})


@pytest.mark.parametrize(
    "model, match",
    [
        ("LPOSASRek", "LPOSASRec"),
        ("LP0SASRec", "LPOSASRec"),
        ("SASRek", "SASRec"),
        ("", "model"),
        ("LPO", "Did you mean 'LPOSASRec'"),
        ("sdpo", "Did you mean 'SDPOSASRec'"),
    ],
)
def test_a_misspelt_model_is_named(model, match):
    refused(match, model=model)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler": "cosine"}, {"warmup_ratio": 0.1}, {"repeat_bias": True}, {"max_nan_steps": 3},
        {"objective": {"weights": {"NDCG@10": 1.0}, "of_reference": {"NDCG@10": 1.0}}},
    ],
)  # fmt: skip
def test_what_recboles_own_models_do_not_read_is_refused(settings):
    with pytest.raises(PrefError, match=f"{next(iter(settings))}.* has no effect on SASRec, .* leave it out"):
        Config("SASRec", "ml-100k", config_dict=settings)
    Config("CESASRec", "ml-100k", config_dict={**settings, "reference": "auto"})
    Config("SASRec", "ml-100k", config_dict={"lr_scheduler": "none", "repeat_bias": False, "tau": 0.5})


@pytest.mark.parametrize("option", ["nproc", "port", "plots", "tune"])
def test_options_of_the_command_line_are_not_settings(tmp_path, option):
    (tmp_path / "mine.yaml").write_text(f"{option}: 2\n")
    with pytest.raises(PrefError, match=f"{option}=2 is not a setting but an option of the command line"):
        Config("LPOSASRec", "ml-100k", [str(tmp_path / "mine.yaml")])


def test_a_key_that_is_a_number_is_named():
    with pytest.raises(PrefError, match="^2024='x' is not a setting of RecBole"):
        Config("CESASRec", "ml-100k", config_dict={2024: "x"})


def test_keys_of_your_own_need_to_be_allowed():
    config = Config("LPOSASRec", "ml-100k", config_dict={"zzz": 1, "strict_config": False})
    assert config["zzz"] == 1


@pytest.mark.parametrize(
    "text, match", [("a: [1\n", "not valid YAML"), ("- 1\n", "key: value"), ("\0", "not valid YAML")]
)
def test_broken_files_are_named(tmp_path, text, match):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(PrefError, match=match):
        Config("LPOSASRec", "ml-100k", [str(file)])


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "mine.yaml").write_text("tau: 1\n")
    with pytest.raises(PrefError, match="mine.yaml"):
        Config("LPOSASRec", "ml-100k", [str(tmp_path / "mne.yaml")])


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.1", 0.1), ("1e-3", 1e-3), ("[5, 10]", [5, 10]), ("True", True), ("false", False),
        ("None", None), ("{'LS': 'x'}", {"LS": "x"}), ("NDCG@10", "NDCG@10"), ("1/0", "1/0"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"), ("none", "none"),
        ("[NDCG, Hit]", ["NDCG", "Hit"]), ("[1, 2", "[1, 2"), ("{a: [1e-3, x]}", {"a": [1e-3, "x"]}),
        ("{weights: {NDCG@10: 1.0}}", {"weights": {"NDCG@10": 1.0}}),
        ("[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),
    ],
)  # fmt: skip
def test_texts_become_values_without_running_code(text, value):
    assert parse_value(text) == value


def test_every_key_of_the_property_files_is_explained_and_checked():
    files = [properties_dir() / "overall.yaml", *(properties_dir() / "method").glob("*.yaml")]
    assert len(files) == len(METHODS) + 1
    for file in files:
        for line in file.read_text().splitlines():
            if re.match(r"\w+:", line):
                assert re.search(r"  # \((float|int|bool|str|list|dict)[^)]*\)? ?.*\S", line), line
        for key, value in yaml.safe_load(file.read_text()).items():
            assert key in readable_keys()
            if key in SETTINGS:
                check_setting(key, value)


def test_every_setting_has_a_default():
    defaults = set()
    for file in properties_dir().rglob("*.yaml"):
        defaults |= set(yaml.safe_load(file.read_text()) or {})
    assert set(SETTINGS) <= defaults


def test_cli_prints_one_sentence_and_returns_2(capsys):
    assert cli.main(["--model=LPOSASRec", "--tau=0"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tau=0" in error and "Traceback" not in error


@pytest.mark.parametrize("words", [["oops"], ["--tau"], ["--tau=1", "--tau=2"]])
def test_cli_refuses_what_it_does_not_understand(words, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(PrefError):
        cli.main(["--debug", "--tau=0"])


def test_list_names_all_methods_and_defaults(capsys):
    assert cli.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert all(method in text for method in METHODS) and "head_ratio: 0.2" in text
    assert cli.main(["--list=DynamicPO"]) == 0
    assert "gamma: 0.5" in capsys.readouterr().out


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "--model=LPOSASRec" in capsys.readouterr().out
