"""Checkpoints: nothing lost when the writing ends anywhere, damage seen, hostile files inert."""

import builtins
import collections
import contextlib
import datetime
import enum
import errno
import hashlib
import json
import logging
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_pref import checkpoint
from recbole_pref.checkpoint import (
    CheckpointDir,
    CorruptCheckpoint,
    compare_fingerprints,
    data_fingerprint,
    load,
    newest_good,
    newest_run,
    rng_state,
    run_stem,
    save,
    set_rng_state,
    to_plain,
    verify,
)
from recbole_pref.environment import environment, git_commit, write_result
from recbole_pref.errors import PrefError

# torch warns about pickle protocols of other versions, which these tests use.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

ROOT = Path(__file__).resolve().parents[1]


class Color(enum.Enum):
    RED = 1


def state_of(n):
    """A small state in which every part depends on ``n``."""
    return {
        "epoch": n,
        "state_dict": {"w": torch.full((40,), float(n))},
        "config": {"model": "SASRec", "n": [n, None, True, 0.5]},
    }


def assert_is(state, n):
    assert state["epoch"] == n
    assert torch.equal(state["state_dict"]["w"], torch.full((40,), float(n)))
    assert state["config"] == {"model": "SASRec", "n": [n, None, True, 0.5]}


def names(folder):
    return sorted(os.listdir(folder))


def assert_one_sentence(message, *parts):
    assert "\n" not in message and message.endswith((".", "?"))
    for part in parts:
        assert part in message


# Plain data and the round trip


def test_to_plain_turns_everything_into_plain_values():
    plain = to_plain(
        {
            "tuple": (1, (2.5, "x")),
            "size": torch.Size([2, 3]),
            "set": {"b", "a"},
            "range": range(3),
            "scalars": [np.float64(0.5), np.int64(3), np.bool_(True), np.str_("s"), np.float32(2)],
            "long": np.longdouble(1.5),
            "enum": Color.RED,
            "device": torch.device("cuda", 1),
            "dtype": torch.bfloat16,
            "path": Path("saved") / "x.pth",
            "date": datetime.date(2025, 1, 2),
            "counter": collections.Counter("aab"),
            "words": np.array(["a", "b"]),
            Color.RED: None,
            np.int64(7): 1,
        }
    )
    assert plain == {
        "tuple": [1, [2.5, "x"]],
        "size": [2, 3],
        "set": ["a", "b"],
        "range": [0, 1, 2],
        "scalars": [0.5, 3, True, "s", 2.0],
        "long": 1.5,
        "enum": "RED",
        "device": "cuda:1",
        "dtype": "torch.bfloat16",
        "path": os.path.join("saved", "x.pth"),
        "date": "2025-01-02",
        "counter": {"a": 2, "b": 1},
        "words": ["a", "b"],
        "RED": None,
        7: 1,
    }
    assert [type(v) for v in plain["scalars"]] == [float, int, bool, str, float]
    assert type(plain["counter"]) is dict and type(plain["long"]) is float


def test_to_plain_arrays_and_tensors():
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    assert torch.equal(to_plain(array), torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32))
    parameter = to_plain(torch.nn.Parameter(torch.ones(2)))
    assert type(parameter) is torch.Tensor and not parameter.requires_grad


def test_a_view_does_not_store_the_tensor_it_looks_into(tmp_path):
    big = torch.arange(100_000.0)
    path = save({"view": big[10:12], "tied": [big[:1].clone()] * 2}, tmp_path / "a.pth")
    assert path.stat().st_size < 5_000
    state = load(path)
    assert state["view"].tolist() == [10.0, 11.0]
    assert state["tied"][0].data_ptr() == state["tied"][1].data_ptr()  # aliases stay aliases


def test_to_plain_names_the_position_of_a_value_that_cannot_be_stored():
    with pytest.raises(TypeError, match=r"state\['config'\]\['f'\]\[1\] is a object"):
        to_plain({"config": {"f": [1, object()]}})
    with pytest.raises(TypeError, match="a key of state"):
        to_plain({(1, 2): 3})
    assert to_plain({"f": [object]}, other=lambda value: value.__name__) == {"f": ["object"]}


numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
plain_values = st.recursive(
    st.one_of(numbers, st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=4),
    ),
    max_leaves=20,
)


@hypothesis_settings(deadline=None, max_examples=100)
@given(state=st.dictionaries(st.text(), plain_values, max_size=5))
def test_any_plain_state_comes_back_equal(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "hypothesis.pth"
    assert load(save(state, path)) == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    bits = torch.randint(0, 2, (16, 8), dtype=torch.uint8)
    tensor = bits.bool() if dtype == torch.bool else bits.view(dtype)
    odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    state = load(save({"t": tensor, "e": tensor[:0], "s": tensor[0, 0], "odd": odd}, tmp_path / "c"))
    assert state["t"].dtype == dtype and torch.equal(state["t"].view(torch.uint8), tensor.view(torch.uint8))
    assert state["e"].shape == tensor[:0].shape and state["s"].shape == ()
    assert torch.equal(state["odd"].view(torch.int32), odd.view(torch.int32))


def test_plain_torch_reads_our_checkpoints(tmp_path):
    path = save(state_of(3), tmp_path / "new" / "a.pth")  # the folder is created
    assert_is(torch.load(path, weights_only=True), 3)
    assert_is(torch.load(path, weights_only=True, mmap=True), 3)
    assert verify(path) is True


def test_optimizer_and_scheduler_continue_from_plain_data(tmp_path):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9), weight_decay=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5**s)

    def steps(parts, n):
        model, optimizer, scheduler = parts
        for _ in range(n):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            scheduler.step()

    whole, first, second = build(), build(), build()
    steps(whole, 5)
    steps(first, 2)
    path = save({str(i): part.state_dict() for i, part in enumerate(first)}, tmp_path / "a.pth")
    for i, part in enumerate(second):
        part.load_state_dict(load(path)[str(i)])
    steps(second, 3)
    assert torch.equal(whole[0].weight, second[0].weight)
    assert whole[2].get_last_lr() == second[2].get_last_lr()


def test_the_same_state_makes_the_same_bytes_under_any_name(tmp_path):
    a = save(state_of(1), tmp_path / "a.pth").read_bytes()
    b = save(state_of(1), tmp_path / "other.pth").read_bytes()
    assert a == b
    assert a[-71:-64] == b"sha256:" and a[-64:].decode() == hashlib.sha256(a[:-64]).hexdigest()


def test_a_plain_torch_file_without_checksum_is_read(tmp_path):
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "a.pth")
    assert verify(tmp_path / "a.pth") is False
    assert load(tmp_path / "a.pth")["weight"].shape == (1, 2)


# Damage


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    return save(state_of(5), tmp_path_factory.mktemp("good") / "a.pth").read_bytes()


def test_every_altered_byte_is_found(tmp_path, good_bytes):
    path, generator = tmp_path / "a.pth", random.Random(0)
    for position in range(len(good_bytes)):
        damaged = bytearray(good_bytes)
        damaged[position] ^= generator.choice([1, 0x20, 0x80, generator.randrange(1, 256)])
        path.write_bytes(damaged)
        with pytest.raises(CorruptCheckpoint):
            load(path, trust_pickle=True)


def test_every_truncation_is_found(tmp_path, good_bytes):
    path = tmp_path / "a.pth"
    for length in range(len(good_bytes)):
        path.write_bytes(good_bytes[:length])
        with pytest.raises(CorruptCheckpoint):
            load(path)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100, b"sha256:" + b"0" * 64])
def test_appended_bytes_are_found(tmp_path, good_bytes, extra):
    (tmp_path / "a.pth").write_bytes(good_bytes + extra)
    with pytest.raises(CorruptCheckpoint):
        load(tmp_path / "a.pth")


def test_blocks_of_zeros_and_swapped_blocks_are_found(tmp_path, good_bytes):
    """What a power cut leaves on some file systems: the right length, blocks missing."""
    path = tmp_path / "a.pth"
    for start in range(0, len(good_bytes) - 512, 256):
        zeroed = good_bytes[:start] + bytes(512) + good_bytes[start + 512 :]
        path.write_bytes(zeroed)
        with pytest.raises(CorruptCheckpoint):
            load(path)
    path.write_bytes(good_bytes[512:1024] + good_bytes[:512] + good_bytes[1024:])
    with pytest.raises(CorruptCheckpoint):
        load(path)


@pytest.mark.parametrize("content", [b"", b"P", b"user_id:token\n1\n", b"PK\x03\x04", b"\x89PNG\r\n", bytes(5000)])
def test_a_file_that_is_not_a_checkpoint_is_reported_as_damaged(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CorruptCheckpoint) as error:
        load(tmp_path / "a.pth", setting="resume")
    assert_one_sentence(str(error.value), "resume='", "a.pth", "earlier checkpoint")


def test_paths_that_cannot_be_read(tmp_path):
    save(state_of(1), tmp_path / "SASRec-best.pth")
    os.mkfifo(tmp_path / "pipe")
    for path, part in [
        (tmp_path / "SASRec-bset.pth", "Did you mean 'SASRec-best.pth'?"),
        (tmp_path / "no" / "a.pth", "no folder"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("a\0b", "cannot be opened"),
        (str(tmp_path / ("n" * 300)), "cannot be opened"),
    ]:
        with pytest.raises(PrefError) as error:
            load(path, setting="reference")
        assert_one_sentence(str(error.value), "reference='", part)
        assert not isinstance(error.value, CorruptCheckpoint)


# Hostile and legacy pickles


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_raw(payload, path, protocol=4):
    path.write_bytes(pickle.dumps({"state_dict": payload}, protocol))


def write_zip(payload, path):
    torch.save({"state_dict": {}, "config": payload}, path, pickle_protocol=4)


def write_zip_protocol_2(payload, path):
    torch.save({"state_dict": {}, "config": payload}, path)


def write_legacy(payload, path):
    torch.save({"config": payload}, path, _use_new_zipfile_serialization=False)


def write_right_checksum(payload, path):
    """What a forger who knows the format makes."""
    with open(path, "wb") as file:
        writer = checkpoint.format.ChecksumWriter(file)
        torch.save({"config": payload}, writer)
        writer.finish()


HOSTILE = [write_raw, write_zip, write_zip_protocol_2, write_legacy, write_right_checksum]


@pytest.mark.parametrize("force", [None, "1"])
@pytest.mark.parametrize("write", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch, write, force):
    if force:  # the environment variable that makes old RecBole work must not disable our check
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    write(Payload(marker), path)
    with pytest.raises(PrefError) as error:
        load(path, setting="reference")
    assert not marker.exists()
    assert_one_sentence(str(error.value), "reference='", "run any code", "trust_checkpoint: True")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_raw_pickle_of_any_protocol_is_refused(tmp_path, protocol):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    write_raw(Payload(marker), path, protocol)
    with pytest.raises(PrefError):
        load(path)
    with pytest.raises(PrefError):
        newest_good_named(tmp_path, path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the payload is a real one
    assert marker.exists()


def newest_good_named(folder, path):
    shutil.copy(path, folder / "run-last-0.pth")
    return newest_good(folder, "run")


@pytest.mark.parametrize("write", [write_zip, write_zip_protocol_2, write_legacy])
def test_the_opt_in_unpickles(tmp_path, caplog, write):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    write(Payload(marker), path)
    with caplog.at_level(logging.WARNING):
        load(path, trust_pickle=True)
    assert marker.exists() and "trust_checkpoint" in caplog.text


def test_a_pickle_that_fails_even_when_trusted_is_one_sentence(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x02cno_such_module\nThing\n.")
    with pytest.raises(PrefError) as error:
        load(path, trust_pickle=True)
    assert_one_sentence(str(error.value), "cannot be unpickled")


def test_the_checkpoint_of_recbole_needs_the_opt_in(tmp_path):
    configurator = pytest.importorskip("recbole.config.configurator", exc_type=ImportError)
    config = configurator.Config.__new__(configurator.Config)
    config.final_config_dict = {"model": "SASRec"}
    path = tmp_path / "SASRec.pth"
    torch.save({"config": config, "state_dict": {"w": torch.ones(2)}}, path, pickle_protocol=4)
    with pytest.raises(PrefError, match="trust_checkpoint: True"):
        load(path)
    state = load(path, trust_pickle=True)
    assert state["config"]["model"] == "SASRec" and state["state_dict"]["w"].tolist() == [1, 1]


# Writing that is cut off


def run_driver(body, *arguments):
    """Run ``body`` in a fresh process, whose forks may be killed at will; return what it prints."""
    script = textwrap.dedent("""
        import json, os, random, signal, sys, time, torch
        from pathlib import Path
        from recbole_pref import checkpoint
        from recbole_pref.checkpoint import load, save
        torch.set_num_threads(1)
        folder = Path(sys.argv[1]); path = folder / "a.pth"
        def state(n, size):
            return {"n": n, "w": torch.full((size,), float(n)), "s": str(n)}
        def check(size):
            now = load(path)
            assert torch.equal(now["w"], torch.full((size,), float(now["n"]))), now
            assert now["s"] == str(now["n"])
            return now["n"]
        def strays():
            return [name for name in os.listdir(folder) if name != "a.pth"]
        """) + textwrap.dedent(body)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@needs_fork
def test_sigkill_at_random_moments_leaves_a_whole_checkpoint(tmp_path):
    result = run_driver(
        """
        size, generator = 200_000, random.Random(1)
        save(state(0, size), path)
        seen, middle = [], 0
        for kill in range(60):
            start = seen[-1] if seen else 0
            child = os.fork()
            if child == 0:
                n = start
                while True:
                    n += 1
                    save(state(n, size), path)
            time.sleep(generator.uniform(0.0, 0.04))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            seen.append(check(size))
            middle += len(strays()) > 0
            assert len(strays()) <= 1, strays()  # the next writer removed those of the dead
        save(state(-1, size), path)
        print(json.dumps({"seen": seen, "middle": middle, "strays": strays()}))
        """,
        tmp_path,
    )
    assert result["seen"] == sorted(result["seen"])  # what was once complete never goes back
    assert result["seen"][-1] > 0
    assert result["middle"] >= 5  # kills did hit the middle of writing
    assert result["strays"] == []


TRACE = """
        def stop_at(k, stop):
            "Call stop() when the k-th line of the package checkpoint is about to run; return the counter."
            count = [0]
            def trace(frame, event, _):
                code = frame.f_code  # to_plain comes before anything is written
                if not code.co_filename.startswith(os.path.dirname(checkpoint.__file__)) or "plain" in code.co_name:
                    return None
                if event == "line":
                    count[0] += 1
                    if count[0] == k:
                        stop()
                return trace
            sys.settrace(trace)
            return count
"""


@needs_fork
def test_sigkill_at_every_line_of_saving_leaves_a_whole_checkpoint(tmp_path):
    result = run_driver(
        TRACE
        + """
        os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
        save(state(1, 50), path)
        k, ends, strays_seen = 0, [], 0
        while True:
            k += 1
            child = os.fork()
            if child == 0:
                stop_at(k, lambda: os.kill(os.getpid(), signal.SIGKILL))
                save(state(2, 50), path)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            ends.append(check(50))
            strays_seen += len(strays())
            assert len(strays()) <= 1, strays()  # the next writer removed those of the dead
            if ends[-1] == 2:
                save(state(1, 50), path)
                assert strays() == [], strays()
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
        print(json.dumps({"ends": ends, "strays": strays_seen}))
        """,
        tmp_path,
    )
    # The old file up to some line, the new one from there on.
    assert result["ends"] == sorted(result["ends"])
    assert result["ends"].count(1) > 50 and result["ends"].count(2) >= 2
    assert result["strays"] > 20


def test_an_interrupt_at_every_line_of_saving_leaves_a_whole_checkpoint(tmp_path):
    result = run_driver(
        TRACE
        + """
        def stop():
            raise KeyboardInterrupt
        save(state(1, 50), path)
        k, ends = 0, []
        while True:
            k += 1
            stop_at(k, stop)
            try:
                save(state(2, 50), path)
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(None)
            ends.append(check(50))
            assert strays() == [], (k, strays())
            if not interrupted:
                break
            save(state(1, 50), path)
        print(json.dumps(ends))
        """,
        tmp_path,
    )
    assert result == sorted(result) and result.count(1) > 50


def test_stale_temporary_files_are_removed_and_those_of_the_living_kept(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    host, token = checkpoint.writing._HOST, "0" * 32
    stale = [f".{host}.{dead}.{token}.tmp", f".elsewhere.{dead}.{token}.tmp"]
    alive = [
        f".{host}.{os.getpid()}.{token}.tmp",
        f".elsewhere.{int(dead) + 1}.{token}.tmp",
        ".mine.tmp",
        "b.tmp",
    ]
    for name in stale + alive:
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / stale[1], (time.time() - 7200,) * 2)
    os.utime(tmp_path / "b.tmp", (0, 0))
    save(state_of(1), tmp_path / "a.pth")
    assert names(tmp_path) == sorted([*alive, "a.pth"])


def test_a_stale_file_that_may_not_be_removed_does_not_stop_the_writing(tmp_path, monkeypatch):
    stale = tmp_path / f".elsewhere.1.{'0' * 32}.tmp"
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert_is(load(save(state_of(1), tmp_path / "a.pth")), 1)


@pytest.mark.skipif(os.name == "nt", reason="needs limits on file sizes")
def test_a_file_that_cannot_grow_leaves_the_one_before(tmp_path):
    """The kernel itself refuses the bytes, at every size from nothing to all but one."""
    result = run_driver(
        """
        import resource
        from recbole_pref.errors import PrefError
        save(state(1, 50), path)
        size, messages = path.stat().st_size, set()
        limits = [*range(0, size, 37), size - 64, size - 22, size - 1]
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in limits:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                save(state(2, 50), path)
            except PrefError as error:
                messages.add(str(error))
            else:
                raise AssertionError(limit)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert check(50) == 1
            assert strays() == [], strays()
        save(state(2, 50), path)
        assert check(50) == 2
        print(json.dumps([len(limits), *messages]))
        """,
        tmp_path,
    )
    assert result[0] > 40 and len(result) == 2
    assert_one_sentence(result[1], f"checkpoint_dir='{tmp_path}'", "free some space")


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mount = shutil.which("mount")
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        small, large = {"epoch": 1, "w": torch.ones(1000)}, {"epoch": 2, "w": torch.ones(100_000)}
        path = save(small, disk / "a.pth")
        with pytest.raises(PrefError) as error:
            save(large, path)
        assert_one_sentence(str(error.value), f"checkpoint_dir='{disk}'", "free some space")
        assert names(disk) == ["a.pth"] and load(path)["epoch"] == 1
        save({**small, "epoch": 3}, path)  # the space is free again
        assert load(path)["epoch"] == 3


def test_a_read_only_disk_is_one_sentence(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        path = save(state_of(1), disk / "a.pth")
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True, capture_output=True)
        with pytest.raises(PrefError) as error:
            save(state_of(2), path)
        assert_one_sentence(str(error.value), f"checkpoint_dir='{disk}'", "allow writing")
        assert_is(load(path), 1)


class RefusingFile:
    """A file whose write, flush or close fails like a disk's."""

    def __init__(self, file, method, code):
        self.file, self.method, self.code = file, method, code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.fail("close")

    def fail(self, method):
        if method == self.method:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, data):
        self.fail("write")
        return self.file.write(data)

    def flush(self):
        self.fail("flush")
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize("step", ["open", "write", "flush", "close", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "allow writing"),
        (errno.EACCES, "allow writing"),
        (errno.EIO, "can be written"),
    ],
)
def test_a_refusal_at_any_step_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, step, code, remedy):
    path = save(state_of(1), tmp_path / "a.pth")

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    def open_(name, mode, **rest):
        if step == "open":
            refuse()
        return RefusingFile(builtins.open(name, mode, **rest), step, code)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.writing, "open", open_, raising=False)
        if step in ("fsync", "replace"):
            patch.setattr(os, step, refuse)
        with pytest.raises(PrefError) as error:
            save(state_of(2), path)
    assert_one_sentence(str(error.value), f"checkpoint_dir='{tmp_path}'", os.strerror(code), remedy)
    assert names(tmp_path) == ["a.pth"]
    assert_is(load(path), 1)


def test_a_disk_that_fills_at_any_write_is_one_sentence(tmp_path, monkeypatch):
    """The errors reach the user through torch's writer, whatever it is doing."""
    path = save(state_of(1), tmp_path / "a.pth")

    class FillingFile(RefusingFile):
        left = 0

        def write(self, data):
            if type(self).left == 0:
                self.fail("write")
            type(self).left -= 1
            return self.file.write(data)

    def open_(name, mode):
        return FillingFile(builtins.open(name, mode), "write", errno.ENOSPC)

    monkeypatch.setattr(checkpoint.writing, "open", open_, raising=False)
    target = tmp_path / "b.pth"
    for refused in range(500):
        FillingFile.left = refused
        try:
            save(state_of(2), target)
        except PrefError as error:
            assert_one_sentence(str(error), "free some space")
            assert names(tmp_path) == ["a.pth"]
        else:
            break
    monkeypatch.undo()
    assert_is(load(target), 2)
    assert 30 < refused < 500
    assert_is(load(path), 1)


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    """fsync of the file, then the rename, then fsync of the folder."""
    events, fsync, replace = [], os.fsync, os.replace

    def logged_fsync(descriptor):
        kind = "folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file"
        events.append((kind, os.fstat(descriptor).st_size if kind == "file" else None))
        fsync(descriptor)

    def logged_replace(source, target):
        events.append(("rename", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    size = save(state_of(1), tmp_path / "a.pth").stat().st_size
    assert events == [("file", size), ("rename", size), ("folder", None)]


def test_a_state_that_cannot_be_stored_touches_nothing(tmp_path):
    path = save(state_of(1), tmp_path / "a.pth")
    with pytest.raises(TypeError, match="no plain form"):
        save({"f": lambda: 0}, path)
    assert names(tmp_path) == ["a.pth"]
    assert_is(load(path), 1)


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "saved").write_text("x")
    with pytest.raises(PrefError) as error:
        save(state_of(1), tmp_path / "saved" / "a.pth")
    assert_one_sentence(str(error.value), f"checkpoint_dir='{tmp_path / 'saved'}'")


# The checkpoints of a run


def test_rotation_keeps_the_last_ones_and_the_best(tmp_path):
    run = CheckpointDir(tmp_path / "saved", "SASRec-x", keep_last=3)
    assert run.last() is None and run.best() is None and run.files() == []
    (tmp_path / "saved").mkdir()
    others = ["SASRec-x2-last-1.pth", "SASRec-last-1.pth", "SASRec-x-last-1.txt", "SASRec-x.pth"]
    for name in others:
        (tmp_path / "saved" / name).write_text("not ours")
    for epoch in range(12):
        path = run.save_last(state_of(epoch))
        assert path == run.last() == tmp_path / "saved" / f"SASRec-x-last-{epoch}.pth"
        if epoch == 4:
            best = run.save_best(state_of(epoch))
    # 9, 10, 11: by number, not by the alphabet
    mine = ["SASRec-x-best.pth"] + [f"SASRec-x-last-{epoch}.pth" for epoch in (9, 10, 11)]
    assert names(tmp_path / "saved") == sorted(mine + others)
    assert run.best() == best
    assert_is(load(best), 4)
    assert [file.name for file in run.files()] == [*mine[:0:-1], mine[0]]


def test_continuing_from_an_earlier_epoch_removes_later_checkpoints(tmp_path):
    run = CheckpointDir(tmp_path, "r", keep_last=2)
    for epoch in (7, 8):
        run.save_last(state_of(epoch))
    run.save_last(state_of(3))
    assert names(tmp_path) == ["r-last-3.pth"]


def test_a_failed_save_drops_no_older_checkpoint(tmp_path, monkeypatch):
    run = CheckpointDir(tmp_path, "r", keep_last=1)
    run.save_last(state_of(1))

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PrefError):
        run.save_last(state_of(2))
    assert names(tmp_path) == ["r-last-1.pth"]


def test_newest_good_skips_the_damaged_with_a_warning(tmp_path, caplog):
    run = CheckpointDir(tmp_path, "r", keep_last=3)
    run.save_best(state_of(2))  # cannot be continued, so it is never the answer
    assert newest_good(tmp_path, "r") is None and newest_good(tmp_path / "no", "r") is None
    for epoch in (8, 9, 10):
        run.save_last(state_of(epoch))
    for good in (10, 9, 8):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            path, state = newest_good(tmp_path, "r")
        assert path == tmp_path / f"r-last-{good}.pth"
        assert_is(state, good)
        skipped = [f"r-last-{epoch}.pth" for epoch in range(10, good, -1)]
        assert len(caplog.records) == len(skipped)
        for record, name in zip(caplog.records, skipped, strict=True):
            assert name in record.getMessage() and record.levelno == logging.WARNING
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint) as error:
        newest_good(tmp_path, "r")
    assert_one_sentence(str(error.value), "all 3 last checkpoints of 'r'", "resume: False")


def test_newest_run_is_the_one_that_wrote_last(tmp_path):
    assert newest_run(tmp_path, "SASRec", "x") is None
    assert newest_run(tmp_path / "no", "SASRec", "x") is None
    a, b, c = (f"20250102-030405-{letter * 8}" for letter in "abc")
    stamps = {
        f"SASRec-x-{a}-last-9.pth": 10,
        f"SASRec-x-{b}-last-1.pth": 30,
        f"SASRec-x-{a}-best.pth": 20,
        f"SASRec-x-small-{c}-last-1.pth": 99,  # other data
        f"GRU4Rec-x-{c}-last-1.pth": 99,
        f"SASRec-x-{c}.pth": 99,
        f"SASRec-x-{c}-last-x.pth": 99,
        "SASRec-x-Jan-02-2025_03-04-05.pth": 99,
    }
    for name, stamp in stamps.items():
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (stamp, stamp))
    assert newest_run(tmp_path, "SASRec", "x") == f"SASRec-x-{b}"
    os.utime(tmp_path / f"SASRec-x-{a}-best.pth", (40, 40))
    assert newest_run(tmp_path, "SASRec", "x") == f"SASRec-x-{a}"
    assert newest_run(tmp_path, "SASRec-x-") == f"SASRec-x-{a}"  # the names joined already
    assert newest_run(tmp_path, "SASRec") is None


def test_stems_never_collide_and_leave_the_generators_alone(tmp_path):
    before = random.getstate()
    stems = {run_stem("SASRec", "data/ml 100k") for _ in range(200)}
    assert len(stems) == 200 and random.getstate() == before
    stem = stems.pop()
    assert stem.startswith("SASRec-data_ml_100k-") and os.path.basename(stem) == stem
    CheckpointDir(tmp_path, stem).save_last(state_of(1))
    assert newest_run(tmp_path, "SASRec", "data/ml 100k") == stem


# Random states


def draw():
    """Numbers of every generator, an odd number of normal ones: those are made in pairs."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(3).tolist(),
        np.random.normal(size=3).tolist(),
        torch.rand(5).tolist(),
        torch.randn(17).tolist(),
        torch.randperm(9).tolist(),
    ]


@pytest.mark.parametrize("burn", [0, 1, 5, 700])
def test_random_streams_continue_exactly(tmp_path, burn):
    random.seed(burn), np.random.seed(burn), torch.manual_seed(burn)
    for _ in range(burn):
        draw()
    path = save({"rng": rng_state()}, tmp_path / "a.pth")
    expected = [draw() for _ in range(3)]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    draw()
    assert draw() != expected[0]
    set_rng_state(torch.load(path, weights_only=True)["rng"])
    assert [draw() for _ in range(3)] == expected


def test_random_streams_continue_in_another_process(tmp_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    draw()
    save({"rng": rng_state()}, tmp_path / "a.pth")
    expected = [random.random(), np.random.normal(), torch.randn(1).item()]
    result = run_driver(
        """
        import numpy as np
        checkpoint.set_rng_state(load(path)["rng"])
        print(json.dumps([random.random(), np.random.normal(), torch.randn(1).item()]))
        """,
        tmp_path,
    )
    assert result == expected


def test_taking_the_state_draws_nothing():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    rng_state()
    assert draw() == first


def test_states_of_devices_that_are_missing_are_warned_of(caplog):
    state = rng_state()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 99
    with caplog.at_level(logging.WARNING):
        set_rng_state(state)
    assert "99 CUDA devices" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_streams_of_cuda_continue_exactly(tmp_path):
    torch.cuda.manual_seed_all(5)
    path = save({"rng": rng_state(), "w": torch.ones(3, device="cuda")}, tmp_path / "a.pth")
    expected = torch.rand(7, device="cuda")
    torch.rand(7, device="cuda")
    state = load(path, map_location="cuda")
    assert state["w"].is_cuda and not load(path)["w"].is_cuda
    set_rng_state(state["rng"])
    assert torch.equal(torch.rand(7, device="cuda"), expected)


# Fingerprints


def test_fingerprint_values():
    fingerprint = data_fingerprint(["[PAD]", "a", "ü"], 4, 9, torch.tensor([2, 1]))
    assert fingerprint == {
        "n_items": 3,
        "n_users": 4,
        "n_interactions": 9,
        "item_tokens_sha256": hashlib.sha256(b'["[PAD]", "a", "\\u00fc"]').hexdigest(),
        "targets_sha256": hashlib.sha256(bytes([2] + [0] * 7 + [1] + [0] * 7)).hexdigest(),
    }
    array = data_fingerprint(np.array(["[PAD]", "a", "ü"]), 4, 9, np.array([2, 1], dtype=np.int32))
    assert array == fingerprint  # neither the container nor the width of the ids matters
    assert compare_fingerprints(fingerprint, array) == []


@pytest.mark.parametrize(
    ("tokens", "users", "interactions", "targets", "fields"),
    [
        (["b", "a", "c"], 4, 9, [1, 2], ["item_tokens_sha256"]),  # order is what ids mean
        (["ab", "", "c"], 4, 9, [1, 2], ["item_tokens_sha256"]),
        (["a", "b"], 4, 9, [1, 2], ["n_items", "item_tokens_sha256"]),
        (["a", "b", "c"], 5, 8, [1, 2], ["n_users", "n_interactions"]),
        (["a", "b", "c"], 4, 9, [2, 1], ["targets_sha256"]),
        (["a", "b", "c"], 4, 9, [], ["targets_sha256"]),
    ],
)
def test_differences_are_named_with_both_values(tokens, users, interactions, targets, fields):
    saved = data_fingerprint(["a", "b", "c"], 4, 9, torch.tensor([1, 2]))
    current = data_fingerprint(tokens, users, interactions, torch.tensor(targets))
    differences = compare_fingerprints(saved, current)
    assert [difference.partition(":")[0] for difference in differences] == fields
    for difference, field in zip(differences, fields, strict=True):
        values = [str(saved[field])[:12], str(current[field])[:12]]
        assert difference == f"{field}: {values[0]} != {values[1]}"
    assert compare_fingerprints({}, {"n_users": 3}) == ["n_users: missing != 3"]


# Environment and results


def test_environment_is_complete_and_plain():
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__ and facts["numpy"] == np.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["command"].split()[0] == sys.orig_argv[0]
    fields = {"pandas", "ray", "recbole", "recbole_pref", "platform", "device_name", "git_commit"}
    assert fields < facts.keys()
    assert environment(torch.device("cpu"))["device"] == "cpu"


def test_git_commit_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    assert git_commit(tmp_path) is None or not shutil.which("git")
    if not shutil.which("git"):
        return

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_commit(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "one")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None  # no git: no failure


def test_results_are_strict_json(tmp_path):
    path = tmp_path / "out" / "result.json"
    write_result(
        path,
        {
            "ndcg@10": np.float64(0.1),
            "nan": float("nan"),
            "best": -math.inf,
            "row": torch.tensor([1.0, math.inf]),
            "one": torch.tensor(3),
            "device": torch.device("cpu"),
            "name": "ü",
            "function": len,
            5: Color.RED,
        },
    )

    def no_constant(name):
        raise AssertionError(name)

    result = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    assert result == {
        "ndcg@10": 0.1,
        "nan": "nan",
        "best": "-inf",
        "row": [1.0, "inf"],
        "one": 3,
        "device": "cpu",
        "name": "ü",
        "function": str(len),
        "5": "RED",
    }
    assert float(result["best"]) == -math.inf and math.isnan(float(result["nan"]))


def test_a_result_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, {"a": 1})

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(PrefError) as error:
        write_result(path, {"a": 2})
    assert_one_sentence(str(error.value), f"result_file='{path}'", "free some space")
    assert names(tmp_path) == ["result.json"] and json.loads(path.read_text()) == {"a": 1}
