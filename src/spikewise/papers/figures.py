"""The style of figures on the pages of the papers: inline SVG that takes its text colour from the page.

matplotlib draws with :data:`INK`, which becomes ``currentColor``, so that figures fit light and dark pages.
Only the colours of units are fixed; all of them are visible on white and on near-black. Text stays text.
Widths are in inches; the page scales the figures: :data:`WIDE` for a desktop, :data:`NARROW` for a telephone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from spikewise.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 10.4, 4.0

INK = "#010203"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spikewise",  # without a salt the ids of parts are random
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raise unless figures can be drawn.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "papers", "drawing these figures") from error


@contextmanager
def styled_figure(width: float, height: float) -> Iterator[Figure]:
    """Return an empty figure, drawn and saved in the style of the pages."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # typed as a list of every name
        yield Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """Return an SVG element for a page, with its own ids, the page's text colour and an alternative text."""
    text = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, dpi=160, metadata=no_metadata)
    svg = text.getvalue()
    body = re.sub(r"<style.*?</style>", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.DOTALL)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body).replace(INK, "currentColor")
    width, height = (72 * side for side in figure.get_size_inches())
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-alt">'
    )
    return f'{opening}<title id="{name}-alt">{escape(alt)}</title>{body}'
