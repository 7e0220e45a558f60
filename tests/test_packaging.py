"""What is installed: the property files, the commands, every module."""

import configparser
import importlib
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import recbole_pref

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = tmp_path_factory.mktemp("source") / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], check=True)
    (path,) = folder.glob("recbole_pref-*.whl")
    return path


def test_the_wheel_holds_code_and_property_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "properties").rglob("*.yaml"):
        assert f"recbole_pref/properties/{file.relative_to(ROOT / 'properties')}" in names
    for file in (ROOT / "recbole_pref").rglob("*.py"):
        assert str(file.relative_to(ROOT)) in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_an_installed_copy_works_from_any_folder(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        "import recbole_pref, sys; from recbole_pref.config import Config; from recbole_pref.settings.files import properties_dir\n"
        "assert recbole_pref.__file__.startswith(sys.argv[1]), recbole_pref.__file__\n"
        "assert str(properties_dir()).startswith(sys.argv[1])\n"
        "print(Config('LPOSASRec', 'ml-100k')['tau'])"
    )
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=tmp_path, env=environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "0.1"


def test_every_command_points_at_a_function():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    assert {"recbole-pref", "recbole-pref-data"} <= {line.split("=")[0].strip() for line in scripts}
    for line in scripts:
        module, _, function = line.split("=")[1].strip().partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_every_module_imports():
    found = [m.name for m in pkgutil.walk_packages(recbole_pref.__path__, "recbole_pref.")]
    assert len(found) > 20
    for name in found:
        if ".properties" not in name:
            importlib.import_module(name)


def test_every_package_of_the_checkout_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = set(setup["options"]["packages"].split())
    for file in ROOT.glob("recbole_pref/**/__init__.py"):
        assert ".".join(file.parent.relative_to(ROOT).parts) in declared
    for file in (ROOT / "properties").rglob("*.yaml"):
        package = ".".join(("recbole_pref", "properties", *file.parent.relative_to(ROOT / "properties").parts))
        assert package in declared


def test_versions_agree():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: recbole_pref.version.__version__"
