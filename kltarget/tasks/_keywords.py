"""The words of Python's own grammar, which are the right answers of two tasks."""

# The hard keywords of Python 3.11, lower-cased; ``keyword.kwlist`` differs between versions.
# fmt: off
KEYWORDS = frozenset((
    "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif",
    "else", "except", "false", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "none", "nonlocal", "not", "or", "pass", "raise", "return", "true", "try", "while",
    "with", "yield",
))
# fmt: on
