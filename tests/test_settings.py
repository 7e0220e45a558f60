"""Settings as objects: queries over their attributes, and additions from outside."""

import pytest
import torch

from recbole_pref import plugins
from recbole_pref.config import Config
from recbole_pref.errors import PrefError
from recbole_pref.methods import METHODS
from recbole_pref.quick_start import run_recbole_pref
from recbole_pref.samplers import SAMPLERS, Sampler
from recbole_pref.settings import SETTINGS, Setting, attribute_of_settings, settings_set_by, settings_with
from recbole_pref.settings.files import readable_keys


@pytest.fixture
def registries():
    """Leave the tables as they were."""
    kept = [(table, dict(table)) for table in (SETTINGS, METHODS, SAMPLERS)]
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


def test_queries_follow_the_attributes(registries):
    assert "seed" in settings_with(scope="run") and "tau" not in settings_with(scope="run")
    assert settings_with(filters=True) == {
        "user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter",
    }  # fmt: skip
    assert attribute_of_settings("in_reference")["lambda"] == 0.0
    assert attribute_of_settings("in_reference")["objective"] is None
    assert settings_set_by("sweep") - settings_set_by("comparison") == {"reference_dir"}
    SETTINGS["mine"] = Setting(int, low=1, scope="run", filters=True)
    assert "mine" in settings_with(scope="run") & settings_with(filters=True) & readable_keys()


def test_every_setting_of_ours_has_a_default_and_an_explanation():
    from recbole_pref.settings.files import properties_dir, top_level_keys

    files = [*properties_dir().glob("*.yaml"), *properties_dir().glob("method/*.yaml")]
    files += properties_dir().glob("backbone/*.yaml")
    explained = set().union(*map(top_level_keys, files))
    assert SETTINGS.keys() <= explained


def first_candidates(sampler, call):
    """Draw the first K candidates that are not the positive."""
    wanted = sampler.candidates[: sampler.k + 1].expand(len(call.positives), -1)
    place = (wanted == call.positives.unsqueeze(1)).int()
    order = torch.argsort(place, dim=1, stable=True)[:, : sampler.k]
    return wanted.gather(1, order)


def test_a_setting_a_sampler_and_a_method_from_outside_are_used(registries, tiny_dataset):
    def gap(pos, neg, *, distance):
        return (distance - pos.unsqueeze(1) + neg).relu().mean(dim=1)

    with pytest.raises(PrefError, match="neg_sampler='first' is not accepted"):
        Config("LPOSASRec", config_dict={**tiny_dataset, "neg_sampler": "first"})
    SAMPLERS["first"] = Sampler(first_candidates)
    plugins.add_method(
        "Gap", gap, "distance between scores",
        defaults={"distance": 2.0, "neg_sampler": "first", "num_negatives": 2, "ce_weight": 0.0},
        settings={"distance": Setting(float, low=0.0, high=5.0)},
    )  # fmt: skip
    with pytest.raises(PrefError, match="distance=9 is not accepted: set it to a number of at least 0 and at most 5"):
        Config("GapSASRec", config_dict={**tiny_dataset, "distance": 9})
    result = run_recbole_pref("GapSASRec", config_dict={**tiny_dataset, "epochs": 1, "distance": 1.5})
    assert result["history"][0]["reward_margin"] != 0


def test_choices_name_what_was_added(registries):
    SAMPLERS["first"] = Sampler(first_candidates)
    assert "first" in SETTINGS["neg_sampler"].describe()
