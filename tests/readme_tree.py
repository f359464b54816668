"""The README's tree, made from the first sentence of each module: `python -m tests.readme_tree`."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
PACKAGES = ("pipelines", "assets", "resources", "millrace")
COLUMN = 32


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()))[0]


def build_tree() -> str:
    """One line per package and module."""
    lines: list[str] = []
    for package in PACKAGES:
        _add(lines, ROOT / package, 0)
    return "\n".join(lines) + "\n"


def _add(lines: list[str], folder: Path, depth: int) -> None:
    start = folder / "__init__.py"
    _line(lines, f"{folder.name}/", depth, first_sentence(start) if start.exists() else "")
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            _line(lines, path.name, depth + 1, first_sentence(path))
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (below / "__init__.py").exists() or (below / "defs.yaml").exists():
            _add(lines, below, depth + 1)


def _line(lines: list[str], name: str, depth: int, sentence: str) -> None:
    lines.append(f"{'  ' * depth + name:<{COLUMN - 1}} {sentence}".rstrip())


def with_tree(readme: str) -> str:
    """The README's text with the tree brought up to date."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + build_tree() + END + after


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text()))
    sys.stdout.write(build_tree())
