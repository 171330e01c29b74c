"""Words for people: labels and numbers as text, and lines of a width."""

from __future__ import annotations

import math
import unicodedata

# So many characters without a width may stand on each one that has some.
_MOST_MARKS = 16


def quoted(label: str) -> str:
    return f"“{short(label)}”"


def short(label: str, room: int = 36) -> str:
    """A label for one cell: control characters as escapes, a long middle left out."""
    # Labels may be whole books: no more of them is looked at than is shown.
    whole = _start(label, room)
    if len(whole) == len(label):
        return "".join(whole)
    head = _start(label, room - room // 3 - 1)
    tail = _start(label, room // 3, backwards=True)
    return f"{''.join(head)}…{''.join(reversed(tail))}"


def _start(label: str, room: int, backwards: bool = False) -> list[str]:
    """The first characters of a label, or the last from the end, that fit, as they are printed."""
    shown, width, most = [], 0, _MOST_MARKS * (room + 1)
    for c in reversed(label[-most:]) if backwards else label[:most]:
        printed = c if c.isprintable() else c.encode("unicode_escape").decode()
        width += display_width(printed)
        if width > room:
            break
        shown.append(printed)
    return shown


def display_width(text: str) -> int:
    """Columns of a terminal: East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def wrapped(text: str, width: int = 96, indent: str = "") -> list[str]:
    """Lines of at most so many columns, all but the first after an indent.

    A percent sign stays with its number, and a no-break space becomes a space that does not break.
    """
    lines, start = [""], ""
    for word in text.replace(" %", "\u00a0%").split(" "):
        if lines[-1] and display_width(f"{lines[-1]} {word}") > width:
            lines.append("")
            start = indent
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else start + word
    return [line.replace("\u00a0", " ") for line in lines]


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(log_p: float) -> str:
    """A probability in percent with three digits; 100 only if nothing is left."""
    if math.isnan(log_p):
        return "nan"
    if log_p == -math.inf:
        return "0 %"
    share = 100 * math.exp(log_p)
    if share < 1e-2:
        return f"{scientific(log_p + math.log(100))} %"
    if 99.95 <= share < 100 * (1 - 1e-6):
        return "> 99.9 %"
    return f"{share:.3g} %"


def probability(log_p: float) -> str:
    """A probability with four decimals, or two digits if it is smaller, perhaps than any float."""
    if math.isnan(log_p):
        return "nan"
    if log_p == -math.inf:
        return "0"
    if log_p >= math.log(0.9999e-3):
        return f"{math.exp(log_p):.4f}"
    return scientific(log_p)


def times(log_p: float, log_q: float) -> str:
    """How many times as probable as before, ``p/q``."""
    if math.isnan(log_p):
        return "nan"
    if log_q == -math.inf:
        return "" if log_p == -math.inf else "new"
    if log_p == -math.inf:
        return "× 0"
    log_ratio = log_p - log_q
    if -7 < log_ratio < 9:
        return f"× {math.exp(log_ratio):.3g}"
    return f"× {scientific(log_ratio)}"


def ratio(log_ratio: float) -> str:
    if log_ratio < 9:
        return f"{math.exp(log_ratio):.3g} : 1"
    return f"{scientific(log_ratio)} : 1"


def scientific(log_x: float) -> str:
    """``exp(log_x)``, which may be outside the range of a float, with two digits."""
    exponent = math.floor(log_x / math.log(10))
    mantissa = math.exp(log_x - exponent * math.log(10))
    if mantissa >= 9.95:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"


def number(x: float, digits: int = 4) -> str:
    if not math.isfinite(x):
        return f"{x:g}".replace("inf", "∞")
    return f"{x:.{digits}g}"


def compact(x: float) -> str:
    """A number as people write it: 0.001, but 1e-4."""
    text = number(x)
    mantissa, e, exponent = text.partition("e")
    if not e and 0 < abs(x) < 1e-3:
        mantissa, e, exponent = f"{x:.3e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if e else text
