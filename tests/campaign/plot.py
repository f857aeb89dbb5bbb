"""Curves over time as an SVG, drawn without a library."""

from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 720, 150, 60, 30, 40
_COLOURS = ("#1f5fa8", "#b3541e", "#3b7d3b")


@dataclass(frozen=True, slots=True)
class Curve:
    """Values, one for each moment."""

    name: str
    values: Sequence[float]


def svg(title: str, minutes: Sequence[float], panels: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """One panel below the other, each `(unit, curves)` with an axis from zero; all over the same minutes."""
    height = _TOP + len(panels) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-size="13">{title}</text>',
    ]
    for number, (unit, curves) in enumerate(panels):
        parts += _panel(_TOP + number * (_HEIGHT + _GAP), unit, minutes, curves)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(top: int, unit: str, minutes: Sequence[float], curves: Sequence[Curve]) -> list[str]:
    most = max(max(curve.values) for curve in curves) * 1.1 or 1.0
    last = max(minutes[-1], 1e-9)
    bottom = top + _HEIGHT
    parts = [f'<text x="{_LEFT}" y="{bottom + 14}">0</text>']
    parts += [f'<text x="{_LEFT + _WIDTH}" y="{bottom + 14}" text-anchor="end">{last:.0f} min</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * _HEIGHT
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share * most:.0f}</text>')
    for number, curve in enumerate(curves):
        points = " ".join(
            f"{_LEFT + at / last * _WIDTH:.1f},{bottom - value / most * _HEIGHT:.1f}"
            for at, value in zip(minutes, curve.values, strict=True)
        )
        colour = _COLOURS[number]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        x, y = _LEFT + _WIDTH - 8, bottom - curve.values[-1] / most * _HEIGHT - 6
        parts.append(f'<text x="{x}" y="{y:.1f}" text-anchor="end" fill="{colour}">{curve.name}, {unit}</text>')
    return parts
