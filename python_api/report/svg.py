"""The strokes that all charts are made of: inline SVG, coloured by classes of the style sheet.

No colour stands alone: lines also differ in dash and marker. All text passes through
`Markup.format`, which escapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

__all__ = ["STYLES", "dot_swatch", "mark_swatch", "marker", "path", "rule", "short", "svg", "write"]

STYLES = 6  # how many line styles the style sheet defines; more lines repeat them
DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2 1 2")


def svg(
    width: float, height: float, title: str, body: Sequence[Markup], *, css: str = ""
) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {w:g} {h:g}" role="img" class="chart {css}">'
        "<title>{title}</title>{body}</svg>"
    ).format(w=width, h=height, css=css, title=title, body=Markup("").join(body))


def write(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> Markup:
    return Markup(
        '<text x="{x:.1f}" y="{y:.1f}" text-anchor="{a}" class="{css}">{t}</text>'
    ).format(x=x, y=y, a=anchor, css=css, t=text)


def rule(x1: float, y1: float, x2: float, y2: float, *, css: str = "grid") -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, css
    )


def marker(x: float, y: float, style: int, *, size: float = 3.2) -> Markup:
    css = f"mark s{style % STYLES}"
    if style % 3 == 0:
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" class="{}"/>').format(
            x, y, size, css
        )
    if style % 3 == 1:
        return Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{s:g}" height="{s:g}" class="{c} hollow"/>'
        ).format(x - size, y - size, s=2 * size, c=css)
    return Markup('<path d="M{:.1f} {:.1f}l{s:g} {t:g}h-{u:g}z" class="{c}"/>').format(
        x, y - 1.3 * size, s=1.2 * size, t=2.2 * size, u=2.4 * size, c=css
    )


def path(points: Sequence[tuple[float, float]], style: int) -> Markup:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path d="{}" class="line s{}" stroke-dasharray="{}"/>').format(
        d, style % STYLES, DASHES[style % STYLES]
    )


def dot_swatch(css: str) -> Markup:
    """The sample of a dot that stands in a legend."""
    return Markup(
        '<svg viewBox="0 0 30 12" class="swatch" aria-hidden="true">'
        '<circle cx="15" cy="6" r="5" class="mark {}"/></svg>'
    ).format(css)


def mark_swatch(style: int) -> Markup:
    """The sample of a mark without a line that stands in a legend."""
    return Markup('<svg viewBox="0 0 30 12" class="swatch" aria-hidden="true">{}</svg>').format(
        marker(15, 6, style)
    )


def short(text: str, size: int = 14) -> str:
    """A name that fits a chart's margin; its end stays, which tells numbered names apart.

    >>> short("cat"), short("a name of many words 12")
    ('cat', 'a name of…s 12')
    """
    return text if len(text) <= size else f"{text[: size - 5]}…{text[-4:]}"
