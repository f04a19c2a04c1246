"""A figure's way into files and into the page: inline SVG whose colours the page can replace."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import drawing
from analysis.pictures import Picture


def embed(picture: Picture, folder: Path) -> dict[str, object]:
    """Write `<name>.svg` and `<name>.png`; give the page what it shows: both widths as inline SVG, and the words."""
    wide = picture.draw(False)
    drawn = _svg(wide, picture.name)
    opening, body = drawn.split(">", 1)
    (folder / f"{picture.name}.svg").write_text(
        f'{opening}><rect width="100%" height="100%" fill="{drawing.PAPER}"/>{body}'
    )
    wide.set_layout_engine("none")  # laid out once is enough
    with matplotlib.rc_context(drawing.STYLE):
        wide.savefig(folder / f"{picture.name}.png", dpi=180, facecolor=drawing.PAPER)
    return {
        "name": picture.name,
        "alt": picture.alt,
        "reading": picture.reading,
        "wide": inline(drawn, f"{picture.name}-w", picture.alt),
        "narrow": inline(_svg(picture.draw(True), picture.name), f"{picture.name}-n", picture.alt),
    }


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG document on a transparent ground: the same text for the same figure."""
    with matplotlib.rc_context({**drawing.STYLE, "svg.hashsalt": name}):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def inline(svg: str, prefix: str, alt: str) -> Markup:
    """An SVG document as an element for a page: its own ids, the page's fonts, and colours that the page can replace.

    Ink, rules and the arms' colours become CSS variables with the printed colour as fallback.
    """
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    opening, body = body.split(">", 1)
    box = re.search(r'viewBox="[-\d. ]+"', opening)
    assert box is not None  # matplotlib writes one in every SVG
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"', body)
    body = re.sub(r'url\(#|xlink:href="#', lambda m: f"{m[0].removeprefix('xlink:')}{prefix}-", body)
    body = body.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    for name, colour in _VARIABLES.items():
        body = body.replace(f": {colour}", f": var(--{name}, {colour})")
    label = Markup("{}").format(alt)
    return Markup(f'<svg role="img" aria-label="{label}" {box[0]} style="stroke-linejoin: round">{body}')


#: CSS variables of the page by the colour that they replace.
_VARIABLES = {
    "ink": drawing.INK,
    "muted": drawing.MUTED,
    "rule": drawing.RULE,
    "paper": drawing.PAPER,
    **{f"arm-{i}": colour for i, colour in enumerate(drawing.COLOURS)},
}
