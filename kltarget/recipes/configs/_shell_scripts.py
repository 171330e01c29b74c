"""The command line of a shell script, taken apart as a shell would but never run."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator

_LAUNCHERS = re.compile(
    r"(bash|sh|python[\d.]*|ray|torchrun|accelerate|deepspeed|trl|swift|megatron|axolotl|srun|uv|uvx|poetry"
    r"|openrlhf|llamafactory-cli|areal|hydra)$"
)
_OPENING = {"if", "for", "while", "until", "case", "select", "function", "{"}
_CLOSING = {"fi", "done", "esac", "}"}
_SKIPPED = {"then", "do", "else", "elif", "!", "time", "exec", "nohup", "env", "sudo"}
_SKIPPED |= {"export", "local", "readonly", "typeset", "declare"}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_ARRAY = re.compile(r"([A-Za-z_]\w*)(\+?)=\(")
_HEREDOC = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1")
_VARIABLE = re.compile(
    r"\$\{(?P<array>\w+)\[[@*]\]\}|\$\{(?P<name>\w+)(?::?[-=](?P<default>[^{}]*))?\}|\$(?P<bare>\w+)"
)
_MOST_TEXT = 1_000_000


@dataclasses.dataclass
class _Word:
    """Pieces of text, and of each whether it is quoted and whether variables in it are replaced."""

    pieces: list[tuple[str, bool, bool]] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(text for text, _, _ in self.pieces)


@dataclasses.dataclass
class _Statement:
    """The words of a command, or of an array that is assigned to a name."""

    words: list[_Word]
    array: str | None = None
    appended: bool = False


def commands_of(text: str) -> list[list[str]]:
    """The commands of a shell script that start programs, variables replaced where it sets them.

    What the script does not say itself, such as ``$1`` or ``$(hostname)``, stays as it is written.

    Raises:
        ValueError: a quote or a parenthesis that is not closed.
    """
    variables = _Variables()
    depth, commands = 0, []
    for statement in _Scanner(text).statements():
        if statement.array is not None:
            values = [x for word in statement.words for x in variables.expanded(word)]
            before = variables.known.get(statement.array, []) if statement.appended else []
            variables.set(statement.array, [*before, *values])
            continue
        words = statement.words
        first = True
        while words and first:
            head = words[0].text
            depth += (head in _OPENING) - (head in _CLOSING)
            first = head in _OPENING | _CLOSING | _SKIPPED
            if head in ("for", "case", "select", "function"):
                if head == "for" and len(words) > 1:
                    variables.set(words[1].text, [f"${{{words[1].text}}}"])
                words = []
            words = words[1:] if first else words
        while words and (set_ := _ASSIGNMENT.fullmatch(words[0].text)):
            name, append, _ = set_.groups()
            value = "".join(variables.expanded(_value_of(words[0]), split=False))
            old = "".join(variables.known.get(name, [])) if append else ""
            # Which branch of an "if" is taken is not known.
            variables.set(name, [old + value] if depth <= 0 else [f"${{{name}}}"])
            words = words[1:]
        if words:
            commands.append([x for word in words for x in variables.expanded(word)])
    return [command for command in commands if _starts_a_program(command)]


def _starts_a_program(words: list[str]) -> bool:
    return any(_LAUNCHERS.match(pathlib.PurePosixPath(word).name) for word in words[:1])


def _value_of(word: _Word) -> _Word:
    """The word after its first ``=``."""
    name, quoted, expand = word.pieces[0]
    return _Word([(name.partition("=")[2], quoted, expand), *word.pieces[1:]])


class _Variables:
    """What a script sets, and how much text its expansions have made so far."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.made = 0

    def set(self, name: str, values: list[str]) -> None:
        """Sets one, which a script may make longer and longer."""
        self._count(values)
        self.known[name] = values

    def _count(self, made: list[str]) -> None:
        self.made += sum(map(len, made))
        if self.made > _MOST_TEXT:
            raise ValueError("its variables grow without bound: write the values out")

    def expanded(self, word: _Word, *, split: bool = True) -> list[str]:
        """The words that a word becomes."""
        done, current, started = [], "", False
        for text, quoted, expand in word.pieces:
            started = started or quoted or bool(text)
            position = 0
            for match in _VARIABLE.finditer(text) if expand else ():
                current += text[position : match.start()]
                position = match.end()
                values = self._values(match, split and not quoted)
                if match["array"] or (split and not quoted):
                    if len(values) > 1:
                        done += [current + values[0], *values[1:-1]]
                        current = values[-1]
                    elif values:
                        current += values[0]
                    elif not current:
                        started = False
                else:
                    current += "".join(values)
            current += text[position:]
        return [*done, current] if started or current else done

    def _values(self, match: re.Match[str], split: bool) -> list[str]:
        """What stands for a variable, in words if it is not quoted."""
        values = self.known.get(match["array"] or match["name"] or match["bare"])
        if values is None:
            return [match["default"] or match[0]]
        self._count(values)
        if not split:
            return values
        # What a program would print is one value that is not known.
        several = (x.split() if "$(" not in x and "`" not in x else [x] for x in values)
        return [x for parts in several for x in parts]


class _Scanner:
    """Goes through a script once, character by character."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.heredocs: list[str] = []

    def statements(self) -> Iterator[_Statement]:
        """The statements in order."""
        words: list[_Word] = []
        while self.at < len(self.text):
            array = _ARRAY.match(self.text, self.at)
            here = self.text[self.at]
            if array:
                self.at = array.end()
                yield _Statement(self._array(), array[1], bool(array[2]))
            elif self._skipped():
                continue
            elif here in "\n;&|()":
                self.at += 1
                if words:
                    yield _Statement(words)
                words = []
                if here == "\n":
                    self._skip_heredocs()
            elif here in "<>":
                self._redirect()
            else:
                words.append(self._word())
        if words:
            yield _Statement(words)

    def _unclosed(self, start: int, what: str) -> ValueError:
        return ValueError(f"line {self.text.count(chr(10), 0, start) + 1}: {what}")

    def _skipped(self) -> bool:
        """Goes over a space, a continued line or a comment, if one is here."""
        if self.text[self.at] in " \t\r":
            self.at += 1
        elif self.text.startswith(("\\\n", "\\\r\n"), self.at):
            self.at = self.text.index("\n", self.at) + 1
        elif self.text[self.at] == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        else:
            return False
        return True

    def _array(self) -> list[_Word]:
        start, words = self.at, []
        while self.at < len(self.text):
            if self.text[self.at] == ")":
                self.at += 1
                return words
            if self.text[self.at] in "\n;&|(<>":
                self.at += 1
            elif not self._skipped():
                words.append(self._word())
        raise self._unclosed(start, "the array is not closed: write )")

    def _redirect(self) -> None:
        heredoc = _HEREDOC.match(self.text, self.at)
        if heredoc:
            self.heredocs.append(heredoc[2])
            self.at = heredoc.end()
            return
        while self.at < len(self.text) and self.text[self.at] in "<>& \t":
            self.at += 1
        if self.at < len(self.text) and self.text[self.at] not in "\n;|()#":
            self._word()

    def _skip_heredocs(self) -> None:
        for mark in self.heredocs:
            end = re.compile(rf"^[\t]*{mark}[ \t\r]*$", re.MULTILINE).search(self.text, self.at)
            if end is None:
                raise self._unclosed(self.at, f"no line {mark!r} ends the text")
            self.at = end.end()
        self.heredocs = []

    def _word(self) -> _Word:
        word = _Word()
        while self.at < len(self.text):
            here = self.text[self.at]
            if here in " \t\r\n;&|()<>":
                break
            if here == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                self.at += 2
                if following == "\n":
                    break
                word.pieces.append((following, True, False))
            elif here == "'":
                word.pieces.append((self._until("'"), True, False))
            elif here == '"':
                word.pieces.append((self._double_quoted(), True, True))
            elif here == "`":
                word.pieces.append((f"`{self._until('`')}`", False, False))
            elif self.text.startswith(("$(", "${"), self.at):
                word.pieces.append((self._nested(), False, True))
            else:
                end = self.at + 1
                while end < len(self.text) and self.text[end] not in " \t\r\n;&|()<>\\'\"`$":
                    end += 1
                word.pieces.append((self.text[self.at : end], False, True))
                self.at = end
        return word

    def _until(self, mark: str) -> str:
        end = self.text.find(mark, self.at + 1)
        if end < 0:
            raise self._unclosed(self.at, f"a quote {mark} is not closed")
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def _double_quoted(self) -> str:
        start, parts = self.at, []
        self.at += 1
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == '"':
                self.at += 1
                return "".join(parts)
            if here == "\\" and self.text[self.at + 1 : self.at + 2] in ("\n", '"', "\\", "$", "`"):
                following = self.text[self.at + 1]
                parts.append("" if following == "\n" else following)
                self.at += 2
            elif self.text.startswith(("$(", "${"), self.at):
                parts.append(self._nested())
            else:
                parts.append(here)
                self.at += 1
        raise self._unclosed(start, 'a quote " is not closed')

    def _nested(self) -> str:
        """``$(…)`` or ``${…}`` with whatever brackets are inside."""
        start = self.at
        opening = self.text[start + 1]
        closing = ")" if opening == "(" else "}"
        depth, self.at = 0, start + 1
        while self.at < len(self.text):
            depth += (self.text[self.at] == opening) - (self.text[self.at] == closing)
            self.at += 1
            if depth == 0:
                return self.text[start : self.at]
        raise self._unclosed(start, f"${opening} is not closed")
