"""Pages of the documentation that are made from the code: settings and commands.

MkDocs calls ``on_files`` and ``on_page_markdown`` (``hooks`` in mkdocs.yml). A page may hold the line
``<!-- settings: method/LPO -->``, which becomes the table of that property file.
"""

import argparse
import re
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recbole_pref import cli, evaluate_tool, features_tool  # noqa: E402
from recbole_pref.data import convert  # noqa: E402
from recbole_pref.settings import LINEAR_SETTINGS, RECBOLE_SETTINGS, SETTINGS  # noqa: E402

PROPERTIES = ROOT / "properties"
_KIND = r"(?:[^()\[]|[(\[][^)\]]*[)\]])*"  # such as "float in (0, 1)"
_LINE = re.compile(rf"^(?P<name>\w+):\s*(?P<default>.*?)\s+# \((?P<kind>{_KIND})\)\s*(?P<meaning>.*)$")
_MARK = re.compile(r"<!-- settings: (\S+) -->")


class PlainRoles(griffe.Extension):
    """Show Sphinx's ``:class:`Name``` as code."""

    def on_object(self, *, obj, **kwargs):
        """Rewrite the docstring of every object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:class|func|meth|mod|attr):(?=`)", "", obj.docstring.value)


def sections(name):
    """Return the settings of a property file: list of (heading, list of (name, default, kind, meaning))."""
    parts = [("", [])]
    for line in (PROPERTIES / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        found = _LINE.match(line)
        if found:
            parts[-1][1].append(found.group("name", "default", "kind", "meaning"))
        elif line.startswith("# ") and parts[0][1]:
            parts.append((line[2:], []))
        elif line.startswith("# "):
            parts[0] = (line[2:], [])
    return [part for part in parts if part[1]]


def accepted(name, kind):
    """Return what a setting accepts: the words of its ``Setting``, else those of the property file."""
    for table in (SETTINGS, RECBOLE_SETTINGS, LINEAR_SETTINGS):
        if name in table and table[name].kind is not None:
            return table[name].describe()
    return kind


def cell(text):
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def table_of(rows):
    """Return the Markdown table of settings."""
    lines = ["| setting | default | accepts | meaning |", "|---|---|---|---|"]
    for name, default, kind, meaning in rows:
        shown = f"`{cell(default)}`" if default != "~" else "empty"
        lines.append(f"| `{name}` | {shown} | {cell(accepted(name, kind))} | {cell(meaning)} |")
    return "\n".join(lines)


def settings_page():
    """Return the page of all settings."""
    text = [
        "# Settings",
        "Generated from the files in `properties/` and the `Setting` objects of `recbole_pref/settings/`.",
        "RecBole's own settings work as well. The command line overrides files, files override defaults.",
        "A method's own defaults are on its [page](../methods/index.md).",
        "",
    ]
    for heading, rows in sections("overall"):
        heading = heading.partition(":")[0].rstrip(".")
        text += ["", f"## {heading}", "", table_of(rows)]
    shared = {row[0] for _, rows in sections("overall") for row in rows}
    of_method = {}
    for file in sorted((PROPERTIES / "method").glob("*.yaml")):
        for _, rows in sections(f"method/{file.stem}"):
            for name, default, kind, meaning in rows:
                if name not in shared and name in SETTINGS:
                    of_method.setdefault(name, []).append((file.stem, default, kind, meaning))
    text += ["", "## Settings of single methods", "", "| setting | accepts | method: default |", "|---|---|---|"]
    for name, uses in sorted(of_method.items()):
        where = ", ".join(f"[{method}](../methods/{method.lower()}.md): `{default}`" for method, default, *_ in uses)
        text.append(f"| `{name}` | {cell(accepted(name, uses[0][2]))} | {where} |")
    titles = {"Multimodal": "Item features (`MM` models)", "LinearRecommender": "Linear models"}
    for name, title in titles.items():
        if (PROPERTIES / "backbone" / f"{name}.yaml").is_file():
            rows = [row for _, part in sections(f"backbone/{name}") for row in part]
            text += ["", f"## {title}", "", table_of(rows)]
    return "\n".join(text) + "\n"


def commands_page():
    """Return the page of all commands, as ``--help`` prints them."""
    text = [
        "# Commands",
        "Generated from `--help`. In a checkout, `python run_recbole_pref.py` is the same command as `recbole-pref`.",
        "A mode is a subcommand or an option: `recbole-pref compare A,B` is the same as `recbole-pref --compare=A,B`.",
        "Values may follow an equals sign or a space, lists are written with commas.",
        "",
    ]
    parser = cli.build_parser()
    (modes,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    text += ["## recbole-pref", "", "```text", parser.format_help().strip(), "```", ""]
    for mode, sub in modes.choices.items():
        text += [f"### recbole-pref {mode}", "", "```text", sub.format_help().strip(), "```", ""]
    tools = {"data": convert, "features": features_tool, "evaluate": evaluate_tool}
    for name, module in tools.items():
        text += [f"## recbole-pref-{name}", "", "```text", module.build_parser().format_help().strip(), "```", ""]
    return "\n".join(text)


def on_files(files, config):
    """Add the generated pages."""
    pages = {"reference/settings.md": settings_page, "reference/commands.md": commands_page}
    for path, make in pages.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put the tables of property files in their places."""
    return _MARK.sub(lambda mark: table_of([row for _, rows in sections(mark[1]) for row in rows]), markdown)
