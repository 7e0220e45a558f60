"""The command line: modes, options and settings, and how soon it answers."""

import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from recbole_pref import cli, cores, features_tool, startup
from recbole_pref.data import convert
from recbole_pref.errors import PrefError
from recbole_pref.model.names import sequential_model_names, sequential_models

from . import fresh

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "help": "import recbole_pref.cli as tool; tool.main(['--help'])",
    "version": "import recbole_pref.cli as tool; tool.main(['--version'])",
    "list": "import recbole_pref.cli as tool; tool.main(['--list'])",
    "list of a method": "import recbole_pref.cli as tool; tool.main(['--list=LPO'])",
    "bad setting": "import recbole_pref.cli as tool; tool.main(['--model=LPOSASRec', '--tau=-1'])",
    "data tool": "import recbole_pref.data.convert as tool; tool.main(['--help'])",
    "features tool": "import recbole_pref.features_tool as tool; tool.main(['--help'])",
}


def in_new_process(code, **environment):
    """Run code in a process of its own; return its exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", dedent(code)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("code", COMMANDS.values(), ids=list(COMMANDS))
def test_what_trains_nothing_imports_neither_torch_nor_pandas(code):
    heavy = ("torch", "recbole", "pandas", "scipy", "sklearn", "ray", "matplotlib")
    watched = f"""
    import atexit, sys
    atexit.register(lambda: print("imported:", [name for name in {heavy} if name in sys.modules]))
    {code}
    """
    _, out, error = in_new_process(watched)
    assert out.endswith("imported: []\n"), error


# -- RecBole finds us, in whatever order and process

TRAIN = """
from recbole.quick_start import run_recbole
SETTINGS = {{"epochs": 0, "state": "ERROR", "gpu_id": "", "checkpoint_dir": {folder!r}, "data_path": {data!r},
            "metrics": ["TailNDCG"], "valid_metric": "TailNDCG@10", "topk": [10],
            "load_col": {{"inter": ["user_id", "item_id", "timestamp"]}}}}
result = run_recbole(model="LPOSASRec", dataset="tiny", config_dict=SETTINGS, saved=False)
"""
CHECK = """
assert "tailndcg@10" in result["test_result"], result
from recbole_pref import compat
assert "our_properties" in compat.applied()
"""
IMPORTS = {
    "ours first": "import recbole_pref",
    "RecBole first": "import recbole, recbole_pref",
    "all of RecBole first": "import recbole.quick_start, recbole_pref",
    "a part of ours first": "import recbole_pref.evaluation.metrics",
    "the registry first": "import recbole_pref.registry",
}


@pytest.mark.parametrize("first", IMPORTS.values(), ids=list(IMPORTS))
def test_plain_recbole_trains_our_models(first, tiny_folder, tmp_path):
    code = first + TRAIN.format(folder=str(tmp_path), data=str(tiny_folder)) + CHECK
    code, _, error = fresh.run(code)
    assert code == 0, error[-2000:]


def test_spawned_processes_know_our_models_and_plugins(tmp_path):
    plugin = tmp_path / "hinge.py"
    plugin.write_text(
        "from recbole_pref.plugins import add_method\n"
        "def hinge(pos, neg, *, margin): return (margin - pos + neg.mean(1)).relu()\n"
        "add_method('Hinge', hinge, 'hinge loss', {'margin': 1.0})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, recbole_pref\n"
        "from recbole.utils import get_model, get_trainer\n"
        "from recbole.utils.enum_type import ModelType\n"
        "def names(queue):\n"
        "    trainer = get_trainer(ModelType.SEQUENTIAL, 'HingeGRU4Rec')\n"
        "    queue.put([get_model('HingeGRU4Rec').__name__, trainer.__name__])\n"
        "if __name__ == '__main__':\n"
        "    queue = multiprocessing.get_context('spawn').Queue()\n"
        "    process = multiprocessing.get_context('spawn').Process(target=names, args=(queue,))\n"
        "    process.start()\n"
        "    print(*queue.get(timeout=60))\n"
        "    process.join()\n"
    )
    environment = {"RECBOLE_PREF_PLUGINS": str(plugin)}
    code, out, error = in_new_process(
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", **environment
    )
    assert (code, out.split()) == (0, ["HingeGRU4Rec", "PrefTrainer"]), error


def test_recbole_is_prepared_again_after_a_failure():
    code = """
    import recbole_pref, recbole_pref.compat as compat
    version, compat.RECBOLE_VERSION = compat.RECBOLE_VERSION, "9.9"
    try:
        import recbole
    except ValueError as error:
        assert "RecBole-Pref works with 9.9" in str(error)
    compat.RECBOLE_VERSION = version
    import recbole
    assert compat.applied()
    """
    code, _, error = fresh.run(dedent(code))
    assert code == 0, error


def test_scikit_learn_is_imported_when_a_value_metric_is_computed():
    code = """
    import sys
    import recbole_pref, recbole.evaluator.metrics as metrics
    assert "sklearn" not in sys.modules and "scipy.stats" not in sys.modules
    assert metrics.sk_auc([0.0, 0.5, 1.0], [0.0, 1.0, 1.0]) == 0.75
    from sklearn.metrics import auc, f1_score
    """
    code, _, error = fresh.run(dedent(code))
    assert code == 0, error


def test_optimizers_compute_the_same_without_dynamo():
    code = """
    import sys, torch
    from recbole_pref.training.optimizer import without_dynamo
    def trained(cls, make):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        optimizer = make(lambda: cls(net.parameters(), lr=0.1, weight_decay=0.01))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            scheduler.step()
        optimizer.load_state_dict(optimizer.state_dict())
        return net.weight.detach()
    kinds = [getattr(torch.optim, name) for name in ("Adam", "AdamW", "SGD", "Adagrad", "RMSprop")]
    ours = [trained(cls, without_dynamo) for cls in kinds]
    assert "torch._dynamo" not in sys.modules
    assert all(torch.equal(mine, trained(cls, lambda build: build())) for cls, mine in zip(kinds, ours))
    assert "torch._dynamo" in sys.modules
    """
    code, _, error = fresh.run(dedent(code))
    assert code == 0, error


@pytest.mark.parametrize(
    ("given", "busy", "expected"),
    [
        ({}, 0, None),
        ({}, 1, "PASSIVE"),
        ({"OMP_NUM_THREADS": "3"}, 1, None),
        ({"OMP_NUM_THREADS": "3"}, 2, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 4, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "9"}, 4, None),
    ],
)
def test_threads_sleep_if_others_need_their_cores_unless_the_user_chose(monkeypatch, given, busy, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "_other_threads", lambda: busy)
    startup.choose_wait_policy()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the kernel does not say how many threads run")
def test_busy_cores_are_counted():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        assert max(cores.busy_cores() for _ in range(5)) >= 1
    finally:
        process.kill()
        process.wait()


# -- options and settings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epochs", "1", "--tau=-0.5"], {"epochs": 1, "tau": -0.5}),
        (["--tau", "-0.5", "--topk", "5,10"], {"tau": -0.5, "topk": (5, 10)}),
        (
            ["--mm_fields=brand, price", "--metrics=Hit,NDCG"],
            {"mm_fields": ["brand", "price"], "metrics": ["Hit", "NDCG"]},
        ),
        (["--mm_fields=auto", "--mask_history", "True"], {"mm_fields": "auto", "mask_history": True}),
        (["--checkpoint_dir=2024", "--checkpoint_dir_=1"], {"checkpoint_dir": "2024", "checkpoint_dir_": 1}),
        (["--a=b=c", "--d=[1, 2]", "--e=~"], {"a": "b=c", "d": [1, 2], "e": None}),
    ],
)
def test_settings_from_words(words, expected):
    assert cli.settings_from(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tau"], "'tau' is not valid"),
        (["--tau"], "'--tau' is not valid"),
        (["compare"], "'compare' is a mode: write it first"),
        (["--=1"], "'--=1' is not valid"),
        (["--topk", "5", "10"], "lists with commas"),
        (["--tau=1", "--tau", "2"], "--tau is given twice"),
        (["comparee"], "Did you mean 'compare'"),
    ],
)
def test_what_is_not_a_setting_is_refused(words, message):
    with pytest.raises(PrefError, match=message):
        cli.settings_from(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--compare=A,B", "--seeds=2", "--tau=1"],
        ["--compare", "A,B", "--seeds", "2", "--tau", "1"],
        ["--tau", "1", "--seeds=2", "--compare", "A,B"],
        ["compare", "A,B", "--seeds=2", "--tau=1"],
        ["compare", "--tau", "1", "A,B", "--seeds", "2"],
    ],
)
def test_a_mode_is_a_subcommand_or_an_option(words):
    options, settings = cli.parse(words)
    assert (options.mode, options.compare, options.seeds, settings) == ("compare", "A,B", "2", {"tau": 1})


@pytest.mark.parametrize(
    ("words", "mode", "attributes"),
    [
        (["-m", "LPOCaser", "--resume"], "train", {"model": "LPOCaser", "resume": True, "nproc": 1, "port": None}),
        (["--resume=saved/x.pth", "-d", "yelp"], "train", {"dataset": "yelp", "resume": "saved/x.pth"}),
        (["--list"], "list", {"list": "all"}),
        (["--list", "LPO"], "list", {"list": "LPO"}),
        (["--model=A", "--tune=s.yaml", "--quiet"], "tune", {"tune": "s.yaml", "model": "A", "quiet": True}),
        (["--predict=x.pth", "--keep_seen", "--input=i"], "predict", {"predict": "x.pth", "keep_seen": True, "k": 10}),
        (["--plots=out"], "plots", {"plots": "out"}),
    ],
)
def test_documented_command_lines(words, mode, attributes):
    options, settings = cli.parse(words)
    assert options.mode == mode and not settings
    assert {name: getattr(options, name) for name in attributes} == attributes


def test_the_home_folder_is_found_in_all_paths(monkeypatch, tmp_path):
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    options, _ = cli.parse(["--config_files=~/a.yaml b.yaml", "--plugins=~/p.py,~/q.py", "--resume=~/x.pth"])
    assert options.config_files == [f"{home}/a.yaml", "b.yaml"] and options.resume == f"{home}/x.pth"
    assert options.plugins == f"{home}/p.py,{home}/q.py"
    options, _ = cli.parse(["--compare=CESASRec,~/b.yaml,LPOSASRec ~/c.yaml", "--output=~/out"])
    assert options.compare == f"CESASRec,{home}/b.yaml,LPOSASRec {home}/c.yaml"
    assert options.output == f"{home}/out"
    words = ["--input=~/log.csv", "--format=table", "--name=mine", "--output=~/data", "--item_features=~/items.csv"]
    options = convert.build_parser().parse_args(words)
    paths = [options.input, options.output, options.item_features]
    assert paths == [f"{home}/log.csv", f"{home}/data", f"{home}/items.csv"]
    options = features_tool.build_parser().parse_args(["image", "--data_path=~/data", "--images=~/covers"])
    assert (options.data_path, options.images) == (f"{home}/data", f"{home}/covers")


def test_bare_command_prints_help(capsys):
    assert cli.main([]) == 0
    assert "compare" in capsys.readouterr().out


def test_each_mode_has_its_help(capsys):
    for words in (["tune", "--help"], ["--tune=x.yaml", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        text = capsys.readouterr().out
        assert "--storage_path" in text and "--seeds" not in text


def test_backbones_are_listed_without_importing_them():
    assert sorted(sequential_model_names()) == sorted(cls.__name__ for cls in sequential_models().values())


@pytest.mark.parametrize(
    "words", [["--user_inter_num_interval=[100,inf)"], ["--reference=missing.pth"], ["--hidden_size=15"]], ids=str
)
def test_a_refused_run_leaves_nothing_behind(tiny_dataset, tmp_path, words):
    arguments = [
        "--model=SDPOSASRec",
        "--dataset=tiny",
        f"--data_path={tiny_dataset['data_path']}",
        "--gpu_id=",
        *words,
    ]
    code = f"import sys, recbole_pref.cli as tool; sys.exit(tool.main({arguments!r}))"
    before = sorted(tmp_path.rglob("*"))
    assert fresh.run(code)[0] == 2
    assert sorted(tmp_path.rglob("*")) == before
