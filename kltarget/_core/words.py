"""Words for people: labels and numbers as text, and lines of a width."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import unicodedata

# So many characters without a width may stand on each one that has some.
_MOST_MARKS = 16

DEFAULT_WIDTH = 96
"""Columns of a page in files, pipes and notebooks, where no terminal says how many it has."""

_LEAST_WIDTH = 40
_BREAKS = ("/,;", "\\:.-_=&?|")


def page_width() -> int:
    """Columns of a page: those of ``COLUMNS`` or of the terminal, else ``DEFAULT_WIDTH``."""
    asked = os.environ.get("COLUMNS", "")
    columns = int(asked) if asked.isdecimal() else 0
    # In a notebook the output is no terminal, though the kernel was perhaps started in one.
    if not columns and sys.stdout is sys.__stdout__ and sys.stdout.isatty():
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError):
            columns = 0
    return max(columns, _LEAST_WIDTH) if columns else DEFAULT_WIDTH


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


def abridged(text: str, most: int = 1000) -> str:
    """A long text as its beginning and its end, and between them what tells it from others."""
    if len(text) <= most:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    kept = most * 2 // 5
    return f"{text[:kept]} … {len(text):,} characters, {digest} … {text[-kept:]}"


def display_width(text: str) -> int:
    """Columns of a terminal: East Asian characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def wrapped(text: str, width: int = DEFAULT_WIDTH, indent: str = "") -> list[str]:
    """Lines of at most so many columns, all but the first after an indent.

    A percent sign stays with its number, and a no-break space becomes a space that does not break.
    A word is parted only if no line could hold it.
    """
    lines, start = [""], ""
    for word in words_of(text):
        for k, part in enumerate(_parts(word, width - len(indent))):
            glue = "" if k else " "
            if lines[-1] and (k or display_width(f"{lines[-1]}{glue}{part}") > width):
                lines.append("")
                start = indent
            lines[-1] = f"{lines[-1]}{glue}{part}" if lines[-1] else start + part
    return [line.replace("\u00a0", " ") for line in lines]


def words_of(text: str) -> list[str]:
    """What a line does not break in two, with no-break spaces where that has several words."""
    return text.replace(" %", "\u00a0%").split(" ")


def _parts(word: str, width: int) -> list[str]:
    """A word in pieces that fit, parted after a sign such as / where there is one."""
    parts = []
    while display_width(word) > width > 0:
        end = len(word)
        while end > 1 and display_width(word[:end]) > width:
            end -= 1
        places = [k for signs in _BREAKS for k in range(end, end // 3, -1) if word[k - 1] in signs]
        after_sign = places[0] if places else end
        parts.append(word[:after_sign])
        word = word[after_sign:]
    return [*parts, word]


def sentence(text: str) -> str:
    """A text that begins with a capital letter, whatever the others are."""
    return text[:1].upper() + text[1:]


def counted(number: int, noun: str) -> str:
    """A number of things, which the noun calls in the singular."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Of a regular noun; of several words the last."""
    if noun.endswith(("ch", "sh", "s", "x")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def singular(noun: str) -> str:
    """What a plural that :func:`plural` made is of; anything else is left as it is."""
    stems = (f"{noun[:-3]}y", noun[:-2], noun[:-1])
    return next((stem for stem in stems if stem and plural(stem) == noun), noun)


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
    """``exp(log_x)``, which may be outside the range of a float, with two digits.

    Where its exponent has more than six digits, the logarithm is named instead.
    """
    if abs(log_x) > 1e6:
        return f"exp({compact(log_x)})"
    exponent = math.floor(log_x / math.log(10))
    mantissa = math.exp(log_x - exponent * math.log(10))
    if mantissa >= 9.95:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"


def number(x: float, digits: int = 4) -> str:
    if not math.isfinite(x):
        return f"{x:g}".replace("inf", "∞")
    # A zero has no sign.
    return f"{x + 0.0:.{digits}g}"


def decimal(x: float, digits: int = 4) -> str:
    """A number of so many decimals, unless it is large; what rounds to 0 has no sign."""
    if not math.isfinite(x) or abs(x) >= 1e5:
        return number(x)
    return f"{round(x, digits) + 0.0:.{digits}f}"


def compact(x: float) -> str:
    """A number as people write it: 0.001, but 1e-4."""
    text = number(x)
    mantissa, e, exponent = text.partition("e")
    if not e and 0 < abs(x) < 1e-3:
        mantissa, e, exponent = f"{x:.3e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if e else text
