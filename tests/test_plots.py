"""Pictures of comparisons and sweeps: what they show, and what is said when something is missing."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pref import plots
from recbole_pref.errors import PrefError

matplotlib = pytest.importorskip("matplotlib")

ENVIRONMENT = {
    "python": "3.11.7", "torch": "2.13.0+cpu", "recbole": "1.2.1", "platform": "Linux", "threads": 2,
    "device": "cpu", "device_name": "CPU", "git_commit": "0123abc",
    "command": "python run_recbole_pref.py --compare=mine.yaml",
}  # fmt: skip
DATA = {"n_items": 401, "n_users": 944, "n_interactions": 50000, "targets_sha256": "f57" + "0" * 61}
# label: overall and tail level of the made-up runs, how popular their lists are
LEVELS = {
    "CESASRec": (0.0604, 0.0241, 1.6), "LPOSASRec": (0.0519, 0.0666, 0.5), "SDPOSASRec": (0.0569, 0.0098, 2.2),
    "TAWinSASRec": (0.0576, 0.0321, 1.3), "RoDPOSASRec": (0.0549, 0.0249, 1.5),
    "DynamicPOSASRec": (0.0611, 0.0166, 1.9), "MPPOSASRec": (0.0606, 0.0149, 2.0),
    "ORPOSASRec": (0.0557, 0.0268, 1.4), "SimPOSASRec": (0.0602, 0.0256, 1.5),
}  # fmt: skip


def make_run(label, seed, overall, tail, steepness=1.0, epochs=12, n_items=401, rows=300, **config):
    """Return a record and its arrays as a comparison writes them, with made-up but plausible numbers."""
    rng = np.random.default_rng([seed, *label.encode()])
    overall, tail = overall + rng.normal(0, 0.0012), tail + rng.normal(0, 0.0015)
    history = []
    for epoch in range(epochs + seed % 3):
        grown = 1 - np.exp(-(epoch + 1) / 4)
        result = {"ndcg@10": overall * grown, "tailndcg@10": tail * grown**2}
        result = {key: round(value + rng.normal(0, 0.0006), 4) for key, value in result.items()}
        history.append({"epoch": epoch, "score": result["ndcg@10"], **result})
    test = {"ndcg@10": overall, "hit@10": 2.1 * overall, "tailndcg@10": tail, "headndcg@10": 1.5 * overall - tail}
    popularity = np.arange(1, n_items) ** -steepness
    popularity /= popularity.sum()
    count = np.concatenate(([0], rng.permutation(np.round(4000 * np.arange(1, n_items) ** -0.9)))).astype(np.int64)
    by_count = 1 + np.argsort(-count[1:], kind="stable")
    top = np.array([rng.choice(by_count, 10, replace=False, p=popularity) for _ in range(rows)])
    share = np.clip(rng.beta(8, 2 + 4 * steepness, rows), 0.01, 0.99)  # of the tail's probability
    tail_gap = share / (0.8 * (n_items - 1)) - 1 / (n_items - 1)
    record = {
        "label": label, "model": label.split()[0], "dataset": "ml-100k", "seed": seed,
        "best_valid_score": max(entry["score"] for entry in history), "valid_score_bigger": True,
        "best_valid_result": history[-1], "test_result": {k: round(v, 4) for k, v in test.items()},
        "seconds_per_epoch": 2.5, "epochs": len(history), "epochs_to_best": epochs, "peak_memory_mb": 640.0,
        "history": history, "environment": ENVIRONMENT, "data": DATA, "mask_history": False,
        "config": {"model": label.split()[0], "seed": seed, "valid_metric": "NDCG@10", "tau": 0.1, "topk": [5, 10],
                   "learning_rate": 0.001, "run_stem": f"{label}-{seed}", "head_ratio": 0.2, "tail_split": "items",
                   **config},
    }  # fmt: skip
    tail_mask = np.ones(n_items, dtype=bool)
    tail_mask[by_count[: n_items // 5]] = False
    arrays = {
        "user": np.array([f"u{i}" for i in range(rows)]), "target": rng.integers(1, n_items, rows),
        "rank": rng.integers(1, n_items, rows), "tail_gap": tail_gap.astype(np.float32), "top": top,
        "count": count, "tail": tail_mask,
    }  # fmt: skip
    return record, arrays


def as_run(record, arrays=None, **changed):
    """Return a run in memory from its record and arrays."""
    return plots.Run(**{**record, **changed}, arrays=arrays or {})


def write_run(folder, record, arrays=None):
    """Write one run into a comparison folder and return its JSON file."""
    name = "".join(c if c.isalnum() else "_" for c in f"{record['label']}-{record['seed']}")
    path = Path(folder, "runs", f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    if arrays is not None:
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return path


def write_comparison(folder, labels=tuple(LEVELS)[:4], seeds=(2020, 2021, 2022)):
    """Write a whole comparison folder and return the records."""
    records = []
    for label in labels:
        for seed in seeds:
            record, arrays = make_run(label, seed, *LEVELS.get(label, (0.05, 0.03, 1.0)))
            write_run(folder, record, arrays)
            records.append(record)
    rows = []
    metrics = list(records[0]["test_result"])
    for label in labels:
        own = [record["test_result"] for record in records if record["label"] == label]
        row = {
            "label": label,
            "seeds": len(own),
            "seconds_per_epoch": 2.5,
            "epochs_to_best": 9.0,
            "peak_memory_mb": 640.0,
        }
        for place, key in enumerate(metrics):
            values = [result[key] for result in own]
            first = label == labels[0]
            row[key] = {
                "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(own) > 1 else 0.0,
                "p": None if first else (0.004, 0.03, 0.2, 0.9)[place % 4],
                "difference": None if first else float(np.mean(values)) - rows[0][key]["mean"],
            }  # fmt: skip
        rows.append(row)
    table = {
        "baseline": labels[0], "metrics": metrics, "rows": rows,
        "test": (
            f"ml-100k, test set; mean and standard deviation over seeds. * differs from {labels[0]} (p < 0.05, paired "
            "t-test over users, corrected after Holm)."
        ),
        "command": "python run_recbole_pref.py --compare=mine.yaml",
    }  # fmt: skip
    Path(folder, "comparison.json").write_text(json.dumps(table), encoding="utf-8")
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of four labels and three seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    return plots.load_runs(folder)


def lines_of(axis):
    """Return {label: (x, y)} of the lines of an axis that have a label."""
    lines = {line.get_label(): line for line in axis.lines}
    return {label: tuple(map(np.asarray, line.get_data())) for label, line in lines.items() if label[0] != "_"}


def scope_of(figure):
    """Return the small line above the panels."""
    return figure.get_suptitle()


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def values(runs, label, key, result="test_result"):
    return np.array([getattr(run, result)[key] for run in runs if run.label == label])


# -- the Pareto front


def brute_front(points):
    """Return the points that no other dominates, pair by pair."""
    front = []
    for a in points:
        dominated = any(b[0] >= a[0] and b[1] >= a[1] and (b[0] > a[0] or b[1] > a[1]) for b in points)
        front.append(not dominated and not any(map(math.isnan, a)))
    return front


small = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(small, small), max_size=12))
def test_pareto_front_with_ties_and_missing_numbers(points):
    assert plots.pareto_front(points).tolist() == brute_front(points)


def test_pareto_front_of_random_points():
    points = np.random.default_rng(0).normal(size=(400, 2)).round(1)
    assert plots.pareto_front(points).tolist() == brute_front(points.tolist())
    assert 0 < plots.pareto_front(points).sum() < 400


def test_pareto_front_by_hand():
    assert plots.pareto_front([(1, 3), (2, 2), (3, 1), (2, 1), (1, 3)]).tolist() == [True, True, True, False, True]
    assert plots.pareto_front([]).tolist() == []
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        plots.pareto_front([[1, 2, 3]])


# -- exposure


def test_exposure_by_hand():
    # items 1 to 4 by count: 3 (9), 1 (5), 4 (5, after 1), 2 (0)
    count = np.array([0, 5, 0, 9, 5])
    slots, items = plots.exposure([[3, 1], [3, 4], [3, 0]], count, groups=2)
    assert slots.tolist() == [0.8, 0.2]
    assert items.tolist() == [0.5, 0.5]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_exposure_sums_to_one_and_matches_a_loop(n_items, seed):
    rng = np.random.default_rng(seed)
    count = np.concatenate(([0], rng.integers(0, 5, n_items)))
    top = rng.integers(1, n_items + 1, (7, 3))
    slots, items = plots.exposure(top, count)
    assert slots.sum() == pytest.approx(1) and items.sum() == pytest.approx(1)
    order = sorted(range(1, n_items + 1), key=lambda item: (-count[item], item))
    decile = {item: place * 10 // n_items for place, item in enumerate(order)}
    expected = [sum(decile[item] == d for item in top.ravel()) / 21 for d in range(10)]
    np.testing.assert_allclose(slots, expected)


# -- reading


def test_runs_are_read_in_the_order_of_the_table(tmp_path, runs):
    assert len(runs) == 12 and runs[0].arrays["top"].shape == (300, 10)
    write_comparison(tmp_path, ("SDPOSASRec", "CESASRec", "LPOSASRec"), seeds=(1, 2))
    assert list(plots.by_label(plots.load_runs(tmp_path))) == ["SDPOSASRec", "CESASRec", "LPOSASRec"]
    (tmp_path / "comparison.json").unlink()
    assert list(plots.by_label(plots.load_runs(tmp_path))) == ["CESASRec", "LPOSASRec", "SDPOSASRec"]


def test_only_runs_of_the_table_are_read(tmp_path):
    record, _ = make_run("LPOSASRec", 1, 0.05, 0.06)
    kept = write_run(tmp_path, record)
    write_run(tmp_path, {**record, "seed": 2})
    rows = {"rows": [{"label": "LPOSASRec"}], "runs": [kept.stem]}
    (tmp_path / "comparison.json").write_text(json.dumps(rows))
    assert [run.seed for run in plots.load_runs(tmp_path)] == [1]


def test_missing_folder_and_empty_folder(tmp_path):
    with pytest.raises(PrefError, match="does not exist"):
        plots.load_runs(tmp_path / "nowhere")
    with pytest.raises(PrefError, match="no finished run"):
        plots.draw_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("runs/a.json", '{"label": "x", ', "cannot be read"),
        ("runs/a.json", "[1, 2]", "holds no record"),
        ("runs/a.json", '{"label": "x"}', "test_result"),
        ("runs/LPOSASRec_1.npz", "no zip", "is damaged"),
        ("comparison.json", "{", "cannot be read"),
        ("comparison.json", '{"rows": [1]}', "no rows with labels"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, message):
    write_run(tmp_path, make_run("LPOSASRec", 1, 0.05, 0.06)[0])
    (tmp_path / name).write_text(text)
    with pytest.raises(PrefError, match=message) as caught:
        plots.draw_all(tmp_path)
    assert name in str(caught.value) and str(caught.value).count("\n") == 0


def test_any_damage_to_arrays_is_named(tmp_path):
    record, _ = make_run("LPOSASRec", 1, 0.05, 0.06)
    arrays = {"tail_gap": np.random.default_rng(0).random(30, np.float32), "count": np.arange(9)}
    path = write_run(tmp_path, record, arrays).with_suffix(".npz")
    whole = path.read_bytes()
    damaged = [whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :] for place, byte in enumerate(whole)]
    messages = []
    for content in (b"", whole[:-9], *damaged):
        path.write_bytes(content)
        try:
            plots.load_runs(tmp_path)
        except PrefError as error:
            assert f"{path}' is damaged" in str(error)
            messages.append(str(error))
    assert len(messages) > len(whole) / 2
    assert any("decompressing" in text for text in messages) and any("encrypted" in text for text in messages)


def test_two_data_sets_are_refused(tmp_path):
    record, _ = make_run("LPOSASRec", 1, 0.05, 0.06)
    write_run(tmp_path, record)
    write_run(tmp_path, {**record, "seed": 2, "dataset": "yelp"})
    with pytest.raises(PrefError, match="ml-100k, yelp"):
        plots.load_runs(tmp_path)


def test_main_metric_follows_what_the_runs_have(runs):
    assert plots.main_metric(runs) == "ndcg@10"
    other = [plots.Run("A", {"hit@5": 1, "mrr@5": 1}, config={"valid_metric": "MRR@5"})]
    assert plots.main_metric(other) == "mrr@5"
    with pytest.raises(PrefError, match="metrics"):
        plots.main_metric([*other, plots.Run("A", {"hit@20": 1})])


def benchmark(name):
    """Return a module of the folder benchmarks."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    if str(path.parent) not in sys.path:  # they import each other
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_collapse_benchmark_trains_each_seed_and_keeps_to_its_settings(tmp_path, monkeypatch):
    module, trained = benchmark("collapse"), []

    def train(model, k, arguments):
        trained.append((model, k, arguments.seed))
        numbers = {"reference": 0.01, "best": 0.1, "last": 0.1, "tail_best": 0.1, "loss": 1.0}
        same = {key: getattr(arguments, key) for key in module.SAME}
        return {**same, "model": model, "K": k, "seed": arguments.seed, **numbers}

    def run(*settings):
        output = f"--output={tmp_path / 'collapse'}"
        monkeypatch.setattr(sys, "argv", ["collapse.py", "--models=A", "--negatives=1,3", output, *settings])
        module.main()

    monkeypatch.setattr(module, "train", train)
    for seed in (1, 2, 1):
        run(f"--seed={seed}")
    assert trained == [("A", 1, 1), ("A", 3, 1), ("A", 1, 2), ("A", 3, 2)]
    assert len(plots.read_collapse(tmp_path / "collapse.csv")) == 4
    for setting in ("dataset=yelp", "epochs=30", "learning_rate=0.01"):
        with pytest.raises(
            PrefError, match=f"collapse.csv' holds rows with {setting.partition('=')[0]}=.* another one"
        ):
            run(f"--{setting}", "--seed=1")
    (tmp_path / "collapse.csv").write_text("model,K,seed,best,last,loss\nA,1,1,1,1,1\n")  # as it was once written
    with pytest.raises(PrefError, match="rows with dataset=None, not ml-100k"):
        run("--seed=1")


# -- pictures of a comparison


def test_learning_curves_hold_the_mean_over_seeds(runs):
    figure = plots.learning_curves(runs)
    assert [axis.get_ylabel() for axis in figure.axes] == ["valid NDCG@10", "valid Tail NDCG@10"]
    for axis, key in zip(figure.axes, ("ndcg@10", "tailndcg@10")):
        assert axis.get_xlabel() == "epoch"
        lines = lines_of(axis)
        assert list(lines) == list(plots.by_label(runs))
        for label, (x, y) in lines.items():
            curves = [[row[key] for row in run.history] for run in runs if run.label == label]
            shortest = min(map(len, curves))
            assert x.tolist() == list(range(1, shortest + 1))
            np.testing.assert_allclose(y, np.mean([curve[:shortest] for curve in curves], axis=0))
        bands = [path.get_paths()[0].vertices for path in axis.collections]
        first = np.array([[row[key] for row in run.history[:12]] for run in runs[:3]])
        assert bands[0][:, 1].max() == pytest.approx(first.max())
        assert bands[0][:, 1].min() == pytest.approx(first.min())
        longer = [line for line in axis.lines if line.get_label() == "_one seed"]
        assert len(longer) == sum(len(run.history) > 12 for run in runs)
    assert legend_texts(figure) == list(plots.by_label(runs))


def test_learning_curves_without_tail_and_with_missing_numbers(runs):
    history = [{"epoch": 0, "ndcg@10": 0.1}, {"epoch": 1, "ndcg@10": "nan"}, {"epoch": 2, "ndcg@10": 0.3}]
    figure = plots.learning_curves([plots.Run("A", {}, history=history)])
    (axis,) = figure.axes
    x, y = lines_of(axis)["A"]
    assert (x.tolist(), y.tolist()) == ([1, 3], [0.1, 0.3])
    with pytest.raises(PrefError, match="mrr@10"):
        plots.learning_curves(runs, "mrr@10")


def test_trade_off_holds_runs_means_and_front(runs):
    figure = plots.trade_off(runs)
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("test NDCG@10", "test Tail NDCG@10")
    means = []
    containers = {bars.get_label(): bars for bars in axis.containers}
    dots = {dots.get_label(): dots.get_offsets() for dots in axis.collections}
    for label in plots.by_label(runs):
        x, y = values(runs, label, "ndcg@10"), values(runs, label, "tailndcg@10")
        np.testing.assert_allclose(dots[f"_runs {label}"], np.column_stack((x, y)))
        line, _, (across, up) = containers[label]
        np.testing.assert_allclose(line.get_xydata(), [[x.mean(), y.mean()]])
        np.testing.assert_allclose(np.ptp(across.get_segments()[0][:, 0]), 2 * x.std(ddof=1))
        np.testing.assert_allclose(np.ptp(up.get_segments()[0][:, 1]), 2 * y.std(ddof=1))
        means.append((x.mean(), y.mean()))
    names = [text.get_text() for text in axis.texts]
    assert names == list(plots.by_label(runs))
    front = sorted(point for point, on in zip(means, brute_front(means)) if on)
    x, y = lines_of(axis)["front"]
    np.testing.assert_allclose(np.column_stack((x, y))[1:-1], front)
    assert axis.lines[-1].get_drawstyle() == "steps-pre"
    assert (x[0], y[-1]) == (axis.get_xlim()[0], axis.get_ylim()[0])


def test_names_in_the_trade_off_do_not_cover_each_other(tmp_path):
    write_comparison(tmp_path, tuple(LEVELS))
    figure = plots.trade_off(plots.load_runs(tmp_path))
    figure.draw_without_rendering()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in figure.axes[0].texts]
    overlaps = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert len(overlaps) == 36 and not any(overlaps)
    frame = figure.axes[0].get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_trade_off_needs_the_tail_metric(runs):
    with pytest.raises(PrefError, match="Did you mean 'tailndcg@10'"):
        plots.trade_off([replace(run, test_result={"ndcg@1": 1, "tailndcg@10": 1}) for run in runs], "ndcg@1")


def test_tail_gap_marks_the_median(runs):
    (axis,) = plots.tail_gap(runs).axes
    steps = {patch.get_label(): patch for patch in axis.patches if patch.get_label()}
    marks = {line.get_label(): line.get_xdata()[0] for line in axis.lines}
    for row, label in enumerate(plots.by_label(runs)):
        own = np.concatenate([run.arrays["tail_gap"] for run in runs if run.label == label])
        assert marks[f"_median {label}"] == pytest.approx(float(np.median(own)), rel=1e-5)
        heights, edges, base = steps[label].get_data()
        counts = np.histogram(own.astype(float), edges)[0]
        np.testing.assert_allclose(heights, -row + 0.8 * counts / counts.max())
        assert base == -row and counts.sum() == 900
    assert [text.get_text() for text in axis.get_yticklabels()] == list(plots.by_label(runs))
    assert "(" + r"$\times 10^{-3}$" + ")" in axis.get_xlabel()
    own = np.concatenate([run.arrays["tail_gap"] for run in runs[:3]])
    assert axis.texts[0].get_text() == f"{1000 * np.median(own):.2f}".replace("-", "−")


def test_exposure_picture_holds_mean_shares(runs):
    figure = plots.popularity_exposure(runs)
    (axis,) = figure.axes
    lines = lines_of(axis)
    for label in plots.by_label(runs):
        own = [run.arrays for run in runs if run.label == label]
        shares = np.mean([plots.exposure(a["top"], a["count"])[0] for a in own], axis=0)
        x, y = lines[label]
        assert x.tolist() == list(range(1, 11)) and y.sum() == pytest.approx(1)
        np.testing.assert_allclose(y, shares)
    np.testing.assert_allclose(lines["uniform"][1], np.full(10, 0.1))
    assert axis.get_ylabel() == "share of top-10 slots" and axis.get_yscale() == "log"
    assert legend_texts(figure)[-1] == "uniform"


@pytest.mark.parametrize("empty", [1, 2, 3])  # seeds of three that recommend nothing from the last decile
def test_an_empty_decile_is_drawn_at_the_lower_end_of_a_log_axis(empty):
    runs = []
    for seed in range(3):
        record, arrays = make_run("A", seed, 0.05, 0.03, steepness=1.5)
        last = np.argsort(-arrays["count"][1:], kind="stable")[360:] + 1
        top = np.where(np.isin(arrays["top"], last), 0, arrays["top"])
        top[0, 0] = 0 if seed < empty else last[0]
        runs.append(as_run(record, {**arrays, "top": top}))
    shares = np.array([plots.exposure(run.arrays["top"], run.arrays["count"])[0] for run in runs])
    (axis,) = plots.popularity_exposure(runs).axes
    low, mean = axis.get_ylim()[0], shares.mean(axis=0)
    assert axis.get_yscale() == "log" and 0 < low < shares[shares > 0].min() and low < mean[mean > 0].min()
    band = axis.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(low)
    assert sorted(band[band[:, 1] < 1.001 * low][:, 0])[0] == 10  # nothing drops before the decile that is empty
    assert lines_of(axis)["A"][1][-1] == pytest.approx(max(mean[-1], low))
    assert "a share of 0 is drawn at the lower end" in plots.caption("exposure")


def test_pictures_name_data_set_and_tail(runs):
    subtitle = "ml-100k; tail: all but the most popular 20% of the items"
    assert scope_of(plots.trade_off(runs)) == scope_of(plots.learning_curves(runs)) == subtitle
    assert scope_of(plots.tail_gap(runs)).replace("\n", " ") == subtitle
    assert scope_of(plots.popularity_exposure(runs)) == "ml-100k"
    assert scope_of(plots.sensitivity(sweep_runs("tau", (0.1, 0.5)), "tau")) == subtitle
    figure = plots.trade_off(runs)
    figure.draw_without_rendering()
    (axis,), line = figure.axes, figure.texts[0].get_window_extent()
    assert line.y0 >= axis.get_window_extent().y1 and line.x1 <= figure.bbox.x1 and line.y1 <= figure.bbox.y1


def test_only_what_all_runs_have_in_common_is_named():
    config = {"head_ratio": 0.8, "tail_split": "interactions"}
    runs = [plots.Run("A", {}, dataset="d", config={**config, "head_ratio": ratio}) for ratio in (0.8, 0.2)]
    assert plots.scope(runs, tail=True) == plots.scope(runs) == "d"
    named = "tail: all but the most popular items with 80% of the interactions"
    assert plots.tail_definition(runs[:1]) == named and plots.scope(runs[:1], tail=True) == f"d; {named}"
    assert (
        plots.scope([plots.Run("A", {}, config=config), *runs], tail=True)
        == plots.scope([plots.Run("A", {})], tail=True)
        == ""
    )


def test_collapse_averages_seeds_over_a_log_axis():
    rows = [
        {"method": method, "K": k, "metric": 0.06 - slope * k / 100 + seed / 1000, "loss": 1 / k, "reference": 0.06}
        for method, slope in (("DMPO", 0.1), ("DynamicPO", 0.01)) for k in (1, 5, 50) for seed in (0, 2)
    ]  # fmt: skip
    figure = plots.collapse(rows[::-1], "ndcg@20")
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_xscale()) == ("test NDCG@20", "log")
    x, y = lines_of(upper)["DMPO"]
    assert x.tolist() == [1, 5, 50]
    np.testing.assert_allclose(y, [0.06 - 0.001 * k + 0.001 for k in x])
    np.testing.assert_allclose(lines_of(lower)["DynamicPO"][1], [1, 0.2, 0.02])
    assert lines_of(upper)["reference"][1].tolist() == pytest.approx([0.06, 0.06])
    assert [text.get_text() for text in lower.get_xticklabels()] == ["1", "5", "50"]
    with pytest.raises(PrefError, match="no rows"):
        plots.collapse([])


def test_the_table_of_a_sweep_over_k_is_read(tmp_path):
    path = tmp_path / "collapse-beauty.csv"
    path.write_text("model,K,seed,reference,best,last,tail_best,loss,mean_beta\nDMPOSASRec,5,1,.06,.07,.05,.01,.3,\n")
    (row,) = plots.read_collapse(path)
    numbers = {"method": "DMPOSASRec", "K": 5, "metric": 0.05, "loss": 0.3, "reference": 0.06, "name": "ndcg@10"}
    assert row == {**numbers, "dataset": None, "epochs": "after the last epoch"}
    best = plots.read_collapse(path, "best")[0]
    assert best["metric"] == 0.07 and best["epochs"] == "metric of the best epoch, loss of the last"
    upper = plots.collapse(plots.read_collapse(path, "tail_best")).axes[0]
    assert upper.get_ylabel() == "test Tail NDCG@10" and "reference" not in lines_of(upper)
    path.write_text("dataset,model,K,last,loss\nbeauty,DMPOSASRec,5,.05,.3\n")
    assert scope_of(plots.collapse(plots.read_collapse(path))) == "beauty; after the last epoch"
    with pytest.raises(PrefError, match="'worst'"):
        plots.read_collapse(path, "worst")
    path.write_text("model,K,last,loss\nDMPOSASRec,five,1,1\n")
    with pytest.raises(PrefError, match="five"):
        plots.read_collapse(path)
    with pytest.raises(PrefError, match="cannot be read"):
        plots.read_collapse(tmp_path / "nothing.csv")
    path.write_bytes(b"model,K,last,loss\n\xe9,1,1,1\n")
    with pytest.raises(PrefError, match="cannot be read"):
        plots.read_collapse(path)
    path.write_text("")
    with pytest.raises(PrefError, match="no column"):
        plots.read_collapse(path)


def collapse_runs(label="DMPOSASRec", ks=(1, 3, 8), **more):
    """Return runs that differ in the number of negatives and the seed, with the losses of two epochs."""
    runs = []
    for k in ks:
        for seed in (1, 2):
            record, _ = make_run(label, seed, 0.05, 0.03, epochs=1, rows=1, **{**more, "num_negatives": k})
            result = {"ndcg@10": 0.1 * k + seed}
            losses = {"epochs_to_best": 1, "train_loss_per_row": [1 / k + seed, 0.0]}
            runs.append(as_run(record, **losses, test_result=result))
    return runs


def test_runs_that_differ_in_k_make_a_collapse_curve(tmp_path):
    runs = collapse_runs() + collapse_runs("SDPOSASRec", (1, 3)) + collapse_runs("DMPOGRU4Rec", (8, 1, 3, 20))
    figure = plots.collapse(plots.collapse_rows(runs), "ndcg@10")
    upper, lower = map(lines_of, figure.axes)
    assert list(upper) == list(lower) == ["DMPOSASRec", "DMPOGRU4Rec"]  # two values are not a curve
    assert upper["DMPOSASRec"][0].tolist() == [1, 3, 8] and upper["DMPOGRU4Rec"][0].tolist() == [1, 3, 8, 20]
    np.testing.assert_allclose(upper["DMPOSASRec"][1], [1.6, 1.8, 2.3])
    np.testing.assert_allclose(lower["DMPOSASRec"][1], [2.5, 1 / 3 + 1.5, 1.625])  # of the best epoch
    assert scope_of(figure) == "ml-100k; metric and loss of the best epoch"
    for place, run in enumerate(runs):
        write_run(tmp_path, {**vars(run), "arrays": None, "seed": place})
    assert "collapse" in plots.figures(tmp_path)
    (tmp_path / "collapse.csv").write_text("model,K,last,loss\nDMPO,1,0.1,0.2\n")
    assert scope_of(plots.figures(tmp_path)["collapse"]) == "after the last epoch"


def test_records_without_a_loss_have_no_collapse_curve():
    old = [replace(run, train_loss_per_row=[]) for run in collapse_runs()]
    assert plots.collapse_rows(old) == [] == plots.collapse_rows(collapse_runs(ks=(1, 3)))
    assert plots.collapse_rows([plots.Run("A", {})]) == []
    rows = plots.collapse_rows(old[:2] + collapse_runs()[2:])
    assert [math.isnan(row["loss"]) for row in rows] == [True, True, False, False, False, False]
    (_, lower) = plots.collapse(rows).axes
    assert lines_of(lower)["DMPOSASRec"][0].tolist() == [3, 8]


# -- one setting


def sweep_runs(setting, sweep, **more):
    """Return runs that differ in one setting and the seed."""
    runs = []
    for value in sweep:
        for seed in (1, 2):
            record, _ = make_run("LPOSASRec", seed, 0.05, 0.03, epochs=1, rows=1, **{**more, setting: value})
            record["test_result"] = {"ndcg@10": 0.01 * seed, "tailndcg@10": len(str(value)) + seed}
            runs.append(as_run(record))
    return runs


@pytest.mark.parametrize(
    ("sweep", "scale"),
    [((0.1, 0.5, 3.0), "linear"), ((0.1, 1, 3.1), "log"), ((0, 0.1, 4), "symlog"), ((5, 10, 20, 50), "linear")],
)
def test_sensitivity_scale_and_values(sweep, scale):
    upper, lower = plots.sensitivity(sweep_runs("lambda", sweep[::-1]), "lambda").axes
    assert lower.get_xscale() == scale and lower.get_xlabel() == "lambda"
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("test NDCG@10", "test Tail NDCG@10")
    x, y = lines_of(lower)["LPOSASRec"]
    assert x.tolist() == list(sweep)
    assert y.tolist() == [len(str(value)) + 1.5 for value in sweep]
    np.testing.assert_allclose(lines_of(upper)["LPOSASRec"][1], 0.015)


def test_sensitivity_to_words():
    (_, lower) = plots.sensitivity(sweep_runs("lpo_space", ("probability", "logit")), "lpo_space").axes
    assert [text.get_text() for text in lower.get_xticklabels()] == ["probability", "logit"]


def test_sensitivity_to_numbers_and_a_word():
    (_, lower) = plots.sensitivity(sweep_runs("window_stride", (10, "auto", 1, 5)), "window_stride").axes
    assert [text.get_text() for text in lower.get_xticklabels()] == ["1", "5", "10", "auto"]


def test_sensitivity_joins_only_runs_that_are_equal_otherwise():
    runs = sweep_runs("tau", (0.1, 1.0)) + sweep_runs("tau", (0.1, 0.5), learning_rate=0.01)
    lines = plots.variants(runs, "tau")
    assert {name: list(cells) for name, cells in lines.items()} == {
        "LPOSASRec learning_rate=0.001": [0.1, 1.0], "LPOSASRec learning_rate=0.01": [0.1, 0.5],
    }  # fmt: skip
    assert plots.swept_settings(runs) == []
    assert plots.swept_settings(sweep_runs("tau", (0.1, 0.5, 1))) == ["tau"]
    with pytest.raises(PrefError, match="only in 'learning_rate'"):
        plots.variants(sweep_runs("tau", (0.1,)) + sweep_runs("tau", (0.2,), learning_rate=0.1), "learning_rate")
    with pytest.raises(PrefError, match="Did you mean 'tau'"):
        plots.variants(runs, "tauu")


# -- sweeps

TRIALS = [
    {"trial_id": "t_1", "config/tau": 0.01, "config/K": 5, "config/sampler": "gumbel", "ndcg": 0.05, "tail": 0.02},
    {"trial_id": "t_2", "config/tau": 1.0, "config/K": 10, "config/sampler": "uniform", "ndcg": 0.06, "tail": 0.01},
    {"trial_id": "t_3", "config/tau": 0.1, "config/K": 20, "config/sampler": "gumbel", "ndcg": 0.04, "tail": 0.015},
    {"trial_id": "t_4", "config/tau": 0.1, "config/K": 20, "config/sampler": "gumbel", "tail": 0.5},
    {"trial_id": "t_5", "config/tau": math.nan, "config/K": 20, "config/sampler": "gumbel", "ndcg": 0.9},
]


def test_sweep_pareto_marks_the_front():
    (axis,) = plots.sweep_pareto(TRIALS, "ndcg", "tail").axes
    dots = {dots.get_label(): dots.get_offsets().tolist() for dots in axis.collections}
    assert dots == {"trials": [[0.04, 0.015]], "on the front": [[0.05, 0.02], [0.06, 0.01]]}
    assert [text.get_text() for text in axis.texts] == ["1", "2"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("NDCG", "tail")
    rows = [{"valid/mrr@5": 1, "valid/tailmrr@5": 1}]
    (axis,) = plots.sweep_pareto(rows, "valid/mrr@5", "valid/tailmrr@5").axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("valid MRR@5", "valid Tail MRR@5")
    with pytest.raises(PrefError, match="'mrr'"):
        plots.sweep_pareto(TRIALS, "mrr", "tail")


def test_parallel_coordinates_scale_each_axis():
    figure = plots.parallel_coordinates(TRIALS, ["config/tau", "config/K", "config/sampler"], "ndcg")
    axis = figure.axes[0]
    lines = np.array([segment[:, 1] for segment in axis.collections[0].get_segments()])
    # worst trial first; tau spans a factor of 100, so its axis is logarithmic
    expected = [[0.5, 1, 0, 0], [0, 0, 0, 0.5], [1, 1 / 3, 1, 1]]
    np.testing.assert_allclose(lines, expected, atol=1e-12)
    assert axis.collections[0].get_array().tolist() == [0.04, 0.05, 0.06]
    np.testing.assert_allclose(lines_of(axis)["best trial"][1], expected[-1], atol=1e-12)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["tau", "K", "sampler", "NDCG"]
    assert {"0.01", "0.1", "1", "5", "10", "20", "gumbel", "uniform"} <= {text.get_text() for text in axis.texts}
    for columns in ([], ["config/tau", "absent"]):
        with pytest.raises(PrefError, match="No trial"):
            plots.parallel_coordinates(TRIALS, columns, "ndcg")


def test_parallel_coordinates_of_one_trial_and_many_values():
    plots.parallel_coordinates(TRIALS[:1], ["config/tau"], "ndcg")
    rows = [{"a": float(i), "b": 10.0 ** (i / 5), "c": i % 2 == 0, "s": i} for i in range(30)]
    axis = plots.parallel_coordinates(rows, ["a", "b", "c"], "s").axes[0]
    ticks = [text.get_text() for text in axis.texts]
    assert ticks[0] == "0" and "29" in ticks and "False" in ticks
    axis = plots.parallel_coordinates([{"a": a, "s": a} for a in (1.0, 1.01, 2.0)], ["a"], "s").axes[0]
    assert [text.get_text() for text in axis.texts] == ["1", "2"]  # 1.01 would cover 1


def test_parallel_coordinates_have_ticks_with_room_between():
    axis = plots.parallel_coordinates([{"a": float(i), "s": i} for i in range(30)], ["a"], "s").axes[0]
    heights = [text.xy[1] for text in axis.texts]
    assert len(heights) > 4 and min(np.diff(heights)) >= 0.07


# -- how pictures look


def test_styles_differ_for_all_labels():
    look = plots.styles(map(str, range(77)))
    assert len({(s["color"], s["marker"], str(s["linestyle"])) for s in look.values()}) == 77
    colours = [s["color"] for s in list(look.values())[:7]]
    assert len(set(colours)) == 7


@pytest.mark.parametrize(("count", "columns"), [(6, None), (7, 1)])
def test_legend_is_outside_the_axes(tmp_path, count, columns):
    labels = tuple(LEVELS)[:count]
    figure = plots.learning_curves(
        [plots.Run(label, {}, history=[{"epoch": e, "ndcg@10": e} for e in range(3)]) for label in labels]
    )
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, (axis,) = legend.get_window_extent(), figure.axes
    frame = axis.get_window_extent()
    if columns == 1:
        assert box.x0 >= frame.x1  # on the right
    else:
        assert box.y1 <= frame.y0  # below
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert len(legend.get_texts()) == count


def test_labels_are_never_mathematics_nor_hidden():
    labels = ["_hidden", "costs $5 and $6", "<b>&", "a" * 80]
    history = [{"epoch": 0, "ndcg@10": 0.1}]
    figure = plots.learning_curves([plots.Run(label, {}, history=history) for label in labels])
    (legend,) = figure.legends
    shown = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert shown == ["_hidden", r"costs \$5 and \$6", "<b>&", "a" * 80]
    plots.as_svg(figure)


def test_text_is_large_enough(runs):
    for figure in (plots.trade_off(runs), plots.tail_gap(runs), plots.popularity_exposure(runs)):
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
        assert len(texts) > 8 and min(text.get_fontsize() for text in texts) >= 9


def test_settings_of_the_process_are_left_alone(runs):
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        figure = plots.trade_off(runs)
        assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].xaxis.label.get_fontsize() == 10
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# -- files


def test_save_writes_three_files(tmp_path, caplog):
    caplog.set_level("INFO")  # as RecBole's log
    rows = [{"method": "A", "K": 1, "metric": 0.1, "loss": 1}]
    figure = plots.collapse(rows)
    paths = plots.save(figure, tmp_path / "new" / "curve@v1.5")
    assert [path.name for path in paths] == ["curve@v1.5.png", "curve@v1.5.pdf", "curve@v1.5.svg"]
    assert not caplog.records
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG", b"%PDF", b"<?xm"]
    width = int.from_bytes(paths[0].read_bytes()[16:20], "big")
    assert width == pytest.approx(200 * figure.get_figwidth(), abs=1)
    again = [path.read_bytes() for path in plots.save(plots.collapse(rows), tmp_path / "again")]
    assert again == [path.read_bytes() for path in paths]


def test_save_names_a_place_that_cannot_be_written(tmp_path):
    figure = plots.collapse([{"method": "A", "K": 1, "metric": 0.1, "loss": 1}])
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefError, match="output"):
        plots.save(figure, tmp_path / "file" / "curve")


def test_draw_all_draws_what_the_data_allow(tmp_path):
    for run in sweep_runs("tau", (0.1, 0.5, 2.0)):
        arrays = {name: make_run("A", 1, 0, 0, rows=5)[1][name] for name in ("tail_gap", "top", "count")}
        write_run(tmp_path, {**vars(run), "arrays": None, "seed": f"{run.seed}-{run.config['tau']}"}, arrays)
    (tmp_path / "collapse-a.csv").write_text("model,K,last,loss\nDMPO,1,0.1,0.2\n")
    drawn = plots.draw_all(tmp_path, tmp_path / "out")
    names = ["trade_off", "learning_curves", "tail_gap", "exposure", "sensitivity_tau", "collapse-a"]
    assert list(drawn) == names
    assert all(plots.caption(name).endswith(".") for name in names)
    assert drawn == {name: tmp_path / "out" / f"{name}.png" for name in names}
    assert all(path.is_file() and path.with_suffix(".pdf").is_file() for path in drawn.values())


def test_draw_all_without_arrays_tail_and_history(tmp_path):
    record = {"label": "A", "model": "A", "dataset": "d", "test_result": {"hit@10": 0.1}}
    write_run(tmp_path, {**record, "seed": 1})
    assert plots.draw_all(tmp_path) == {}
    write_run(tmp_path, {**record, "seed": 2, "history": [{"epoch": 0, "hit@10": 0.1}]})
    assert plots.draw_all(tmp_path) == {"learning_curves": tmp_path / "plots" / "learning_curves.png"}


def test_without_matplotlib(monkeypatch, folder, runs):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: plots.draw_all(folder), lambda: plots.trade_off(runs)):
        with pytest.raises(PrefError, match="pip install matplotlib"):
            draw()
    assert plots.pareto_front([(1, 2)]).tolist() == [True]
