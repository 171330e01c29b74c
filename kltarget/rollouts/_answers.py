"""Which completions are the same answer: the rules by which modes are told apart."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable

from kltarget.rollouts._rollout import RolloutError

Rule = Callable[[str], str | None]

_NUMBER = re.compile(r"(?:(?<![\w.)])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
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
    """
    found = _last(_NUMBER, completion)
    if found is None:
        return None
    text = found.group().replace(",", "").replace("−", "-")
    sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-")
    whole, _, decimals = digits.partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    return value if value == "0" else sign + value


def last_boxed(completion: str) -> str | None:
    r"""What stands in the last \boxed{…} whose braces balance.

    >>> last_boxed(r"so \boxed{\frac{1}{2}}, done")
    '\\frac{1}{2}'
    """
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
