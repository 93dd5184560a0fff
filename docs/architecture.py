"""Draws docs/img/architecture.svg from the imports: ``python -m docs.architecture``.

Boxes are packages with their folders and files; an arrow is at least one import. An arrow that follows from others
(a imports b, b imports c) is left out, so that the picture shows the order of the rooms.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

from tests.imports import PACKAGES, ROOT, imports_of, python_files

OUT = ROOT / "docs" / "img" / "architecture.svg"
TOP = "train.py, test.py"
ROWS = ((TOP,), ("tools",), ("processor",), ("datasets", "model", "loss", "solver", "configs"), ("utils",))
WIDTHS = {"datasets": 4, "model": 3.4, "loss": 3.2, "solver": 2.6, "configs": 2.4}
"""Shares of the page's width in a row of several."""
WAY = (
    ("train.py", "reads the command line"),
    ("configs", "load_config: defaults, YAML, overrides"),
    ("datasets", "make_dataloader: lists, loaders, test sets"),
    ("model", "make_model: backbone and network"),
    ("processor", "a method's stages, each with losses and an optimizer"),
    ("processor", "Trainer.fit: the one loop; checkpoints"),
    ("processor", "evaluate: features, then utils.scoring: metrics"),
    ("tools", "the report, from the files of the run"),
)
PAGE, ASIDE, LINE, PAD, GAP = 1180, 300, 15, 12, 34
INK, PAPER, EDGE = "#1f2933", "#f4f6f8", "#8795a1"
COLOURS = {"tools": "#e7f0fa", "processor": "#e7f0fa", "configs": "#eef5ea", "utils": "#eef5ea"}


def contents(package: str) -> list[str]:
    """Returns a line per folder of the package, with its number of files, and the files at its top in one."""
    files = [path.relative_to(package) for path in python_files(package) if path.name != "__init__.py"]
    folders = sorted({path.parts[0] for path in files if len(path.parts) > 1})
    lines = [f"{folder}/  {sum(path.parts[0] == folder for path in files)} files" for folder in folders]
    top = [path.stem for path in files if len(path.parts) == 1 and path.stem != "__main__"]
    return [*lines, ", ".join(top)]


def purpose(package: str) -> str:
    """Returns the first sentence of the package's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "")


def arrows() -> set[tuple[str, str]]:
    """Returns the pairs (importer, imported) of boxes, without those that follow from others."""
    files = {package: python_files(package) for package in PACKAGES} | {TOP: [Path("train.py"), Path("test.py")]}
    direct = {
        package: {module.split(".")[0] for path in paths for _, module in imports_of(path)} - {package}
        for package, paths in files.items()
    }

    def below(package: str) -> set[str]:
        reached: set[str] = set()
        waiting = [package]
        while waiting:
            new = direct[waiting.pop()] - reached
            reached |= new
            waiting += new
        return reached

    return {
        (package, other)
        for package, others in direct.items()
        for other in others
        if not any(other in below(third) for third in others - {other})
    }


def wrapped(text: str, width: int) -> list[str]:
    """Returns the words in lines of at most ``width`` characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def lines_of(name: str, width: float) -> list[str]:
    """Returns the lines of text in a box of that width."""
    letters = int((width - 2 * PAD) / 6.4)
    if name == TOP:
        return ["parse, load_config, hand over"]
    return [*wrapped(purpose(name), letters), "", *(part for line in contents(name) for part in wrapped(line, letters))]


def box(name: str, lines: list[str], x: float, y: float, width: float, height: float) -> list[str]:
    """Returns the shapes of a package: frame, name, lines."""
    title = name if name == TOP else f"{name}/"
    return [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
        f'fill="{COLOURS.get(name, PAPER)}" stroke="{EDGE}"/>',
        f'<text x="{x + PAD:.0f}" y="{y + PAD + 12:.0f}" class="t">{escape(title)}</text>',
        *(
            f'<text x="{x + PAD:.0f}" y="{y + PAD + 32 + i * LINE:.0f}" class="s">{escape(line)}</text>'
            for i, line in enumerate(lines)
        ),
    ]


def draw() -> str:
    """Returns the SVG."""
    shapes, boxes, y = [], {}, PAD
    for row in ROWS:
        shares = [WIDTHS.get(name, 1.0) for name in row]
        widths = [(PAGE - ASIDE - PAD * (len(row) + 1)) * share / sum(shares) for share in shares]
        texts = [lines_of(name, width) for name, width in zip(row, widths, strict=True)]
        x, height = float(PAD), 2 * PAD + 20 + LINE * max(map(len, texts))
        for name, width, lines in zip(row, widths, texts, strict=True):
            boxes[name] = (x, y, width, height)
            shapes += box(name, lines, *boxes[name])
            x += width + PAD
        y += height + GAP
    for one, other in sorted(arrows()):
        (x1, y1, w1, h1), (x2, y2, w2, _) = boxes[one], boxes[other]
        if y1 == y2:  # in one row: along below it
            x, end, bottom = x1 + 0.75 * w1, x2 + 0.3 * w2, y1 + h1
            bend = f"M{x:.0f} {bottom:.0f}v14H{end:.0f}v-12"
            shapes.append(f'<path d="{bend}" fill="none" marker-end="url(#a)" class="l"/>')
            continue
        wide, narrow = ((x1, w1), (x2, w2)) if w1 > w2 else ((x2, w2), (x1, w1))
        x = min(max(narrow[0] + narrow[1] / 2, wide[0] + PAD), wide[0] + wide[1] - PAD)
        ends = f'x1="{x:.0f}" y1="{y1 + h1:.0f}" x2="{x:.0f}" y2="{y2 - 2:.0f}"'
        shapes.append(f'<line {ends} marker-end="url(#a)" class="l"/>')
    x, way = PAGE - ASIDE + PAD, PAD + 14
    shapes.append(f'<text x="{x}" y="{way}" class="t">The way of the data</text>')
    for i, (where, what) in enumerate(WAY, 1):
        way += 34
        shapes.append(f'<circle cx="{x + 10}" cy="{way - 4}" r="10" fill="{INK}"/>')
        shapes.append(f'<text x="{x + 10}" y="{way}" class="n">{i}</text>')
        for j, line in enumerate([where, *wrapped(what, 38)]):
            style = "b" if j == 0 else "s"
            shapes.append(f'<text x="{x + 28}" y="{way + j * LINE}" class="{style}">{escape(line)}</text>')
        way += LINE * (len(wrapped(what, 38)))
    height = max(y - GAP + PAD, way + 20)
    style = (
        f"text{{font-family:system-ui,sans-serif;fill:{INK}}}.t{{font-size:15px;font-weight:600}}.s{{font-size:12px}}"
        f".b{{font-size:12px;font-weight:600}}.n{{font-size:11px;fill:#fff;text-anchor:middle}}"
        f".l{{stroke:{INK};stroke-width:1.4}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PAGE} {height}" role="img" '
        f'aria-label="The packages of Lineup and which imports which"><style>{style}</style>'
        f'<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
        f'<rect width="100%" height="100%" fill="#fff"/>' + "\n".join(shapes) + "</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(draw(), encoding="utf-8")
    print(OUT.relative_to(ROOT))
