"""The columns of a table of results: each takes a system's row of measures and says it in one number, and what stands small below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from longshort.report.run_files import Row
from longshort.types import ROLES


class Cell(NamedTuple):
    """A number for people, what stands small below it, and whether it is the best beyond doubt."""

    main: str = "–"
    below: str = ""
    best: bool = False


def signed(value: float, digits: int) -> str:
    """0.1 -> `+0.100`, −2 -> `−2.000`, 0 -> `0.000`"""
    text = f"{value:+,.{digits}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]


def plain(name: str, digits: int) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.get(name)
        return Cell() if value is None else Cell(f"{value:,.{digits}f}")

    return cell


def _accuracy(row: Row) -> Cell:
    error = row.get("stderr")
    below = f"[{row.bounds[0]:.3f}, {row.bounds[1]:.3f}]" if row.bounds else ""
    return Cell(f"{row.get('accuracy'):.3f}" + (f" ± {error:.3f}" if error is not None else ""), below)


def _by_role(name: str, digits: int) -> Callable[[Row], Cell]:
    """A measure, and below it long + short."""

    def cell(row: Row) -> Cell:
        total = row.get(name)
        parts = [row.get(f"{name}/{role}") for role in ROLES]
        below = " + ".join(f"{part:,.{digits}f}" for part in parts) if None not in parts else ""
        return Cell() if total is None else Cell(f"{total:,.{digits}f}", below)

    return cell


def _hand_back(row: Row) -> Cell:
    rate, mean = row.get("hand_back_rate"), row.get("hand_backs")
    return Cell() if rate is None else Cell(f"{rate:.2f}", f"{mean:.2f} each" if mean is not None else "")


def _format(row: Row) -> Cell:
    value, parts = row.get("format"), [row.get(f"format/{role}") for role in ROLES]
    return (
        Cell()
        if value is None
        else Cell(f"{value:.2f}", " · ".join(f"{part:.2f}" for part in parts) if None not in parts else "")
    )


def _stops(row: Row) -> Cell:
    """The share of dialogues that ended with an answer, and below how the others ended."""
    stops = row.named("stop/")
    others = [
        f"{name.replace('_', ' ')} {share:.2f}"
        for name, share in stops.items()
        if share >= 0.005 and name != "answered"
    ]
    return Cell(f"{stops['answered']:.2f}", "\n".join(others)) if "answered" in stops else Cell()


def _rethinking(row: Row) -> Cell:
    mean, rate = row.get("rethinking"), row.get("rethinking_rate")
    return Cell() if mean is None else Cell(f"{mean:.2f}", f"in {rate:.0%}" if rate is not None else "")


def _aes(row: Row) -> Cell:
    score = row.get("aes")
    others = [
        f"{name} {signed(value, 2)}" for name in ("characters", "cost") if (value := row.get(f"aes_{name}")) is not None
    ]
    return Cell() if score is None else Cell(signed(score, 2), "\n".join(others))


COLUMNS: dict[str, Callable[[Row], Cell]] = {
    "Accuracy": _accuracy,
    "Tokens": _by_role("tokens", 1),
    "Characters": _by_role("characters", 0),
    "Cost": plain("cost", 1),
    "Messages": plain("turns", 2),
    "Hand-back": _hand_back,
    "Format": _format,
    "Answered": _stops,
    "Rethinking": _rethinking,
    "AES": _aes,
}
