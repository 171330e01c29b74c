"""Which completions are the same answer: the rules by which modes are told apart."""

from __future__ import annotations

import collections
import fractions
import re
import unicodedata
from collections.abc import Callable

from kltarget.rollouts._rollout import RolloutError

Rule = Callable[[str], str | None]

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:[.．]\d+)?|[.．]\d+)"
_ONE = rf"{_PLAIN}(?:[eE][-+−]?\d{{1,9}}(?!\w))?"
_SIGN = r"(?:(?<![\w.)])[-+−－])?"
_IN_TEX = rf"\\[dt]?frac\s*\{{\s*({_PLAIN})\s*\}}\s*\{{\s*({_PLAIN})\s*\}}"
_NUMBER = re.compile(rf"{_SIGN}(?:{_IN_TEX}|{_ONE}(?:\ ?[/⁄]\ ?{_ONE})*)")
# So far from the end of a text a number is looked for before the whole text is.
_TAIL = 4096
# Numbers of more digits are compared as they are written.
_MOST_DIGITS = 300
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def answer_rule(answer: str | re.Pattern[str] | Rule) -> tuple[str, Rule]:
    """Which completions are the same answer, as ``read_rollouts`` is told it.

    Args:
        answer: a rule's name, a pattern, its text after "regex:", or a function.

    Returns:
        The rule's name, and its function from a completion to its answer, None if it has none.

    Raises:
        RolloutError: there is no such rule, or the pattern is none.

    Example:
        >>> from kltarget.rollouts import answer_rule
        >>> name, rule = answer_rule("number")
        >>> rule("so 1,200.50"), rule("who knows")
        ('1200.5', None)
    """
    if isinstance(answer, str) and answer.startswith("regex:"):
        try:
            answer = re.compile(answer.removeprefix("regex:"))
        except re.error as error:
            why = f"{{}} is no regular expression: {error}"
            raise RolloutError(why, "answer", answer) from None
    if isinstance(answer, re.Pattern):
        return f"regex:{answer.pattern}", _last_match(answer)
    if not isinstance(answer, str):
        return getattr(answer, "__name__", repr(answer)), _checked(answer)
    if answer not in _RULES:
        known = ", ".join(map(repr, _RULES))
        why = f"{{}} is no rule: give one of {known}, 'regex:…' or a function"
        raise RolloutError(why, "answer", answer)
    return answer, _RULES[answer]


def last_number(completion: str) -> str | None:
    """The last number of a text, spelled so that equal numbers are equal texts.

    >>> last_number("so 1,200 and -3.50")
    '-3.5'
    >>> last_number("1e-3"), last_number("it is 2/4"), last_number("1/3")
    ('0.001', '0.5', '1/3')
    """
    text = completion[-_TAIL:]
    found = _last(_NUMBER, text)
    if (found is None or found.start() < _TAIL // 2) and len(text) < len(completion):
        text = completion
        found = _last(_NUMBER, text)
    if found is None:
        return None
    written = found.group()
    negative, written = written[0] in "-−－", written.lstrip("+-−－")
    parts = [x for x in found.groups() if x] or re.split(r" ?[/⁄] ?", written)
    before = text[found.end() - len(written) - 1 : found.end() - len(written)]
    loose = before.isalnum() or before in ("/", "_")
    after = text[found.end() : found.end() + 1]
    # Of dates, paths and names, what stands last is a number of its own.
    if len(parts) > 2 or (len(parts) == 2 and (loose or after == "/" or after.isalpha())):
        negative, loose, parts = False, False, parts[-1:]
    if loose:
        parts = [re.split("[eE][-+−]?", parts[0])[-1]]
    top, bottom = parts[0], parts[1] if len(parts) == 2 else "1"
    value = _spelled(top, bottom)
    return value if value is None or value == "0" or not negative else f"-{value}"


def _spelled(top: str, bottom: str) -> str:
    """A fraction as a decimal number, or reduced where it is none."""
    (up, shift), (down, back) = map(_decimal, (top, bottom))
    longest = max(len(up) + abs(shift), len(down) + abs(back))
    if longest > _MOST_DIGITS or not int(down):
        if bottom != "1":
            return _spelled(bottom, "1")
        return _placed(up, shift) if abs(shift) <= len(up) else f"{up}e{shift}"
    value = fractions.Fraction(int(up), int(down)) * fractions.Fraction(10) ** (shift - back)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    return _placed(str(int(value * 10**places)), -places)


def _decimal(text: str) -> tuple[str, int]:
    """The digits of a number without zeros at either end, and the power of 10 they stand at."""
    mantissa, _, power = re.sub("[eE]", "e", text).partition("e")
    whole, _, decimals = mantissa.replace(",", "").replace("．", ".").partition(".")
    digits = "".join(map(_digit, whole + decimals)).lstrip("0")
    shift = int(power.replace("−", "-") or "0") - len(decimals)
    kept = digits.rstrip("0")
    return (kept, shift + len(digits) - len(kept)) if kept else ("0", 0)


def _digit(digit: str) -> str:
    """As ASCII spells it."""
    return digit if digit.isascii() else str(unicodedata.decimal(digit))


def _placed(digits: str, shift: int) -> str:
    """Digits with the point where it belongs."""
    if shift >= 0:
        return digits + "0" * shift
    digits = digits.rjust(1 - shift, "0")
    whole, decimals = digits[:shift], digits[shift:].rstrip("0")
    return f"{whole}.{decimals}" if decimals else whole


def last_boxed(completion: str) -> str | None:
    r"""What stands in the last \boxed{…} whose braces balance.

    >>> last_boxed(r"so \boxed{\frac{1}{2}}, done")
    '\\frac{1}{2}'
    """
    start = completion.rfind("\\boxed")
    if start < 0:
        return None
    # Most often the last is whole, and nothing before it matters.
    escaped = (start - len(completion[:start].rstrip("\\"))) % 2
    return (None if escaped else _boxed_in(completion[start:])) or _boxed_in(completion)


def _boxed_in(completion: str) -> str | None:
    best: tuple[int, int] | None = None
    opened: list[int | None] = []
    for brace in _BRACES.finditer(completion):
        token = brace.group()
        if token.startswith("\\boxed") and token.endswith("{"):
            opened.append(brace.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (best is None or start > best[0]):
                best = start, brace.start()
    return None if best is None else completion[slice(*best)].strip()


def last_tagged(completion: str) -> str | None:
    """What stands in the last <answer>…</answer>."""
    found = _TAGGED.findall(completion)
    return found[-1].strip() if found else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(collections.deque(pattern.finditer(text), maxlen=1)), None)


def _last_match(pattern: re.Pattern[str]) -> Rule:
    def rule(completion: str) -> str | None:
        found = _last(pattern, completion)
        return None if found is None else found.group(1 if pattern.groups else 0)

    return rule


def _checked(function: Rule) -> Rule:
    def rule(completion: str) -> str | None:
        found = function(completion)
        if found is not None and not isinstance(found, str):
            raise TypeError(f"answer must return a text or None, not {found!r}")
        return found

    return rule


_RULES: dict[str, Rule] = {
    "text": str.rstrip,
    "number": last_number,
    "boxed": last_boxed,
    "answer": last_tagged,
}
