"""Time and memory of a run before it is trained."""

import pytest

from recbole_pref import cli, estimate
from recbole_pref.errors import PrefError
from recbole_pref.training.trainer import TrainerMixin


def test_an_epoch_is_its_first_step_and_the_others():
    # 2 s to make batches, 0.5 s a step
    assert estimate.whole_epoch(2.5, 4.5, 4, 101) == 2.5 + 100 * 0.5
    assert estimate.whole_epoch(2.5, 2.5, 0, 1) == 2.5
    assert estimate.whole_epoch(2.5, 2.4, 4, 101) == 2.5


@pytest.mark.parametrize("model, prior", [("SDPOSASRec", "EASE"), ("CECaser", "none"), ("SimPOSASRec", "none")])
def test_nothing_is_trained_or_written(tiny_dataset, tmp_path, monkeypatch, model, prior):
    def refuse(*given, **named):
        raise AssertionError("an estimate trains no reference and saves nothing")

    for name in ("obtain_reference", "_measure_reference", "fit", "_save_last"):
        monkeypatch.setattr(TrainerMixin, name, refuse)
    found = estimate.estimate(model, "tiny", None, {**tiny_dataset, "prior": prior, "epochs": 7})
    assert found.epochs == 7 and found.steps > 1 and found.epoch_seconds > 0
    # The kernel counts pages about.
    assert 50 < found.data_mb <= found.training_mb + 1 <= found.evaluation_mb + 2 and found.validation_seconds > 0
    assert (found.prior_mb == pytest.approx(8 * 41**2 / 2**20)) if prior == "EASE" else found.prior_mb is None
    assert not (tmp_path / "saved").exists()
    assert "7 epochs with a validation each" in found.text()


def test_command_line(tiny_dataset, tmp_path, capsys):
    words = [f"--{key}={tiny_dataset[key]}" for key in ("dataset", "data_path", "train_batch_size", "hidden_size")]
    assert cli.main(["--model=CESASRec", *words, "--estimate", "--inner_size=16"]) == 0
    assert "| training" in capsys.readouterr().out and not (tmp_path / "saved").exists()
    with pytest.raises(PrefError, match="CESASRec is SASRec with cross-entropy"):
        estimate.estimate("SASRec", "tiny", None, tiny_dataset)
