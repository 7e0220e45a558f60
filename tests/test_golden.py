"""golden.json is what its generator computes, and a difference between the two is found."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
spec = importlib.util.spec_from_file_location("make_golden", DATA / "make_golden.py")
make_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_golden)
ENTRIES = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture
def copied_file(tmp_path, monkeypatch):
    """A copy of golden.json that the generator reads and writes."""
    path = tmp_path / "golden.json"
    path.write_bytes((DATA / "golden.json").read_bytes())
    monkeypatch.setattr(make_golden, "PATH", path)
    return path


def change(path, name, edit):
    """Apply ``edit`` to the entry called ``name``."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    edit(next(entry for entry in golden["cases"] if entry["id"] == name))
    path.write_text(json.dumps(golden), encoding="utf-8")


def test_generator_computes_the_file():
    assert make_golden.check(ENTRIES) == {}
    assert [case.id for case in make_golden.CASES] == [entry["id"] for entry in ENTRIES]


@pytest.mark.parametrize(
    "name, edit, place",
    [
        ("sdpo_A_b1.0", lambda entry: entry.update(loss=entry["loss"] + 1e-9), ".loss"),
        ("lpo_batch_paper", lambda entry: entry["grad_logits"][1].__setitem__(2, 0.0), ".grad_logits[1][2]"),
        ("tawin_A_ddof1", lambda entry: entry["aux"]["advantages"].pop(), ".aux.advantages"),
        ("rodpo_pool_history", lambda entry: entry["aux"]["pool_excl_pos"].reverse(), ".aux.pool_excl_pos[0]"),
        ("ips_weights", lambda entry: entry["params"].update(clip=4.0), ".params.clip"),
    ],
)
def test_a_changed_value_is_found(copied_file, capsys, name, edit, place):
    assert make_golden.main(["--check"]) == 0
    change(copied_file, name, edit)
    assert make_golden.main(["--check"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{name}: {place}: ")


def test_a_missing_and_an_unknown_case_are_found(copied_file, capsys):
    change(copied_file, "ce_A", lambda entry: entry.update(id="ce_B"))
    assert make_golden.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == ["ce_B: not in CASES", "ce_A: not in the file"]


def test_writing_restores_a_changed_number_and_keeps_all_others(copied_file):
    change(copied_file, "orpo_A", lambda entry: entry.update(loss=0.0))
    assert make_golden.main([]) == 0
    restored = json.loads(copied_file.read_text(encoding="utf-8"))["cases"]
    assert make_golden.check(restored) == {}
    changed = [entry["id"] for entry, before in zip(restored, ENTRIES, strict=True) if entry != before]
    assert changed in ([], ["orpo_A"])  # another processor may change its last digits
    assert list(copied_file.parent.iterdir()) == [copied_file]


def test_a_new_case_is_one_entry(copied_file, monkeypatch):
    new = make_golden.Case("ipo_B", "IPO", make_golden.ipo, make_golden.B, {"beta": 0.5})
    monkeypatch.setattr(make_golden, "CASES", [*make_golden.CASES, new])
    make_golden.main([])
    *others, added = json.loads(copied_file.read_text(encoding="utf-8"))["cases"]
    assert others == ENTRIES
    s, r = np.array(added["inputs"]["logits"]), np.array(added["inputs"]["ref_logits"])
    # mean_l ((s_w - s_l) - (r_w - r_l) - 1)^2 with w = 5 and l = 2, 0, 7, 3.
    expected = np.mean([(s[5] - s[j] - r[5] + r[j] - 1) ** 2 for j in (2, 0, 7, 3)])
    assert added["loss"] == pytest.approx(expected, rel=1e-12)


def test_a_wrong_analytic_gradient_is_refused():
    def wrong(s, x, p):
        value, grad, aux = make_golden.ce(s, x, p)
        return value, grad + 1e-6, aux

    with pytest.raises(ArithmeticError, match="wrong_ce: analytic gradient"):
        make_golden.evaluate(make_golden.Case("wrong_ce", "CE", wrong, make_golden.FREE))
