"""Rollouts as columns of a data frame, gathered one at a time in little memory."""

from __future__ import annotations

import hashlib
import importlib.util
import operator
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kltarget._core import processes
from kltarget._core.words import abridged
from kltarget.rollouts import _prompt_groups
from kltarget.rollouts._rollout import NAN, BadRow, Rollout

if TYPE_CHECKING:
    import pandas as pd

    from kltarget.rollouts._blocks import Block

_NUMBERS = ("reward", "ref_logp", "logp", "num_tokens", "advantage")
_NO_STEP = -(2**62)
_CHUNK, _CHUNK_CHARACTERS = 1 << 16, 1 << 24
# Hashes of completions and answers, while the frame is made.
SAID, ANSWERED = "(said)", "(answered)"


class Texts:
    """Columns of texts that are packed chunk by chunk; missing ones are NA.

    Where a chunk of one column holds the same objects as that of the first, it is packed once.
    """

    def __init__(self, number: int) -> None:
        self.chunks: list[list[pd.Series]] = [[] for _ in range(number)]
        self.texts: list[list[str | None]] = [[] for _ in range(number)]
        self.size = 0

    def append(self, *texts: str | None) -> None:
        for column, text in zip(self.texts, texts, strict=True):
            column.append(text)
            self.size += 0 if text is None else len(text)
        if len(self.texts[0]) >= _CHUNK or self.size >= _CHUNK_CHARACTERS:
            self._pack()

    def append_all(self, *texts: list[str | None]) -> None:
        """Adds many, each column as a list."""
        for column, more in zip(self.texts, texts, strict=True):
            column += more
        self._pack()

    def extend(self, other: Texts) -> None:
        self._pack()
        other._pack()
        for chunks, more in zip(self.chunks, other.chunks, strict=True):
            chunks += more

    def _pack(self) -> None:
        import pandas as pd

        packed = importlib.util.find_spec("pyarrow") is not None
        dtype = pd.StringDtype("pyarrow" if packed else "python")
        first = self.texts[0]
        for chunks, texts in zip(self.chunks, self.texts, strict=True):
            same = texts is not first and all(map(operator.is_, texts, first))
            chunks.append(self.chunks[0][-1] if same else pd.Series(texts, dtype=dtype))
        self.texts, self.size = [[] for _ in self.texts], 0

    def series(self) -> list[pd.Series]:
        import pandas as pd

        self._pack()
        return [pd.concat(chunks, ignore_index=True) for chunks in self.chunks]


class Codes:
    """A column of values that recur, as integers in the order in which they appear."""

    def __init__(self) -> None:
        self.codes, self.of = array("i"), dict[Hashable, int]()

    def append(self, value: Hashable) -> None:
        self.codes.append(self.of.setdefault(value, len(self.of)))

    def extend(self, values: Iterable[Hashable], codes: np.ndarray) -> None:
        """Adds many: the different ones in the order in which they appear, and which each is."""
        here = [self.of.setdefault(value, len(self.of)) for value in values]
        self.codes.frombytes(np.array(here, np.intc)[codes].tobytes() if here else b"")

    def categorical(self) -> pd.Categorical:
        import pandas as pd

        return pd.Categorical.from_codes(np.asarray(self.codes), list(self.of))


def stable_hash(text: str | None) -> int:
    """A hash that all processes have of a text."""
    digest = hashlib.blake2b((text or "").encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Columns:
    """Columns that grow with every rollout."""

    def __init__(self) -> None:
        # That of Python is another in every process.
        self.hash: Callable[[Any], int] = stable_hash if processes.are_several() else hash
        self.prompt, self.source, self.group = Codes(), Codes(), Codes()
        self.step, self.position = array("q"), array("q")
        self.numbers = {name: array("d") for name in _NUMBERS}
        self.parts: dict[str, array[float]] = {}
        self.texts, self.said, self.answered = Texts(2), array("q"), array("q")
        self.session, self.turn, self.run = Codes(), array("i"), Codes()
        self.tokens: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.unrewarded = self.padding = 0
        self.first_missing, self.in_rows = "", False

    def __len__(self) -> int:
        return len(self.position)

    def add(
        self,
        rollout: Rollout,
        answer: str | None,
        source: str,
        position: int,
        apart: bool = False,
        run: tuple[tuple[str, str], ...] = (),
        texts: tuple[str, str | None] | None = None,
    ) -> None:
        """Adds one, unless its group is missing though others have one.

        No group goes over several files, unless what names groups keeps them ``apart``. Other
        ``texts`` than its completion and answer may be kept of it.
        """
        keyed, said = rollout.group is not None, rollout.completion
        if len(self) and keyed != bool(self.group.of):
            raise BadRow(f"{'a' if keyed else 'no'} group, unlike the rows before it")
        if keyed:
            self.group.append((None if apart else source, rollout.step, rollout.group))
        for name in rollout.parts:
            if name not in self.parts:
                self.parts[name] = array("d", [NAN]) * len(self)
        for name, part in self.parts.items():
            part.append(rollout.parts.get(name, NAN))
        self.prompt.append(rollout.prompt)
        self.source.append(source)
        self.step.append(_NO_STEP if rollout.step is None else rollout.step)
        self.position.append(position if rollout.index is None else rollout.index)
        self.texts.append(*((said, answer) if texts is None else texts))
        self.said.append(self.hash(said))
        self.answered.append(self.hash(answer))
        self.session.append(rollout.session)
        self.run.append(run)
        self.turn.append(-1 if rollout.turn is None else rollout.turn)
        self.padding += rollout.padding
        if rollout.tokens is not None and rollout.ref_token_logps is not None:
            self.tokens[len(self) - 1] = rollout.tokens, rollout.ref_token_logps
        self.unrewarded += rollout.reward is None
        for name, values in self.numbers.items():
            value = getattr(rollout, name)
            values.append(NAN if value is None else value)

    def takes(self, block: Block) -> bool:
        """Whether groups are missing neither here nor there, or in both."""
        return not len(self) or (block.group is not None) == bool(self.group.of)

    def add_all(
        self,
        block: Block,
        rule: Callable[[str], str | None],
        source: str,
        position: int,
        step: int | None,
        apart: bool,
        run: tuple[tuple[str, str], ...],
        full_text: bool,
    ) -> None:
        """Adds the rows of a block, which this ``takes``; the first of them has this position."""
        size = len(block)
        same = np.zeros(size, np.intp)
        steps = np.where(block.step[1], _NO_STEP if step is None else step, block.step[0])
        if block.group is not None:
            names, group = block.group
            times, time = np.unique(steps, return_inverse=True)
            cells, first, cell = np.unique(
                group * len(times) + time, return_index=True, return_inverse=True
            )
            order = np.argsort(first)
            whole = [int(times[c % len(times)]) for c in cells]
            keys = [
                (None if apart else source, None if t == _NO_STEP else t, names[c // len(times)])
                for c, t in zip(cells, whole, strict=True)
            ]
            self.group.extend([keys[i] for i in order], np.argsort(order)[cell])
        for name in self.parts:
            self.parts[name].extend(array("d", [NAN]) * size)
        self.prompt.extend(*block.texts["prompt"])
        self.source.extend([source], same)
        self.session.extend([None], same)
        self.run.extend([run], same)
        self.step.frombytes(steps.astype(np.int64).tobytes())
        self.position.extend(range(position, position + size))
        self.turn.extend(array("i", [-1]) * size)
        for name, values in self.numbers.items():
            values.frombytes(np.asarray(block.numbers[name], np.float64).tobytes())
        said, which = block.texts["completion"]
        answers = [rule(text) for text in said]
        for hashes, texts in ((self.said, said), (self.answered, answers)):
            hashes.frombytes(np.array(list(map(self.hash, texts)), np.int64)[which].tobytes())
        if not full_text:
            kept = [abridged(text) for text in said]
            pairs = zip(said, answers, kept, strict=True)
            answers = [k if a is s else a and abridged(a) for s, a, k in pairs]
            said = kept
        self.texts.append_all(*(np.array(x, object)[which].tolist() for x in (said, answers)))

    def extend(self, other: Columns) -> bool:
        """Adds the rows of files that come next; False if they were not read as one after these."""
        if len(self) and len(other) and bool(self.group.of) != bool(other.group.of):
            return False
        size = len(self)
        self.tokens |= {size + row: tokens for row, tokens in other.tokens.items()}
        for name in other.parts:
            if name not in self.parts:
                self.parts[name] = array("d", [NAN]) * size
        for name, part in self.parts.items():
            part.extend(other.parts.get(name, array("d", [NAN]) * len(other)))
        for name in ("prompt", "source", "group", "session", "run"):
            codes = getattr(other, name)
            getattr(self, name).extend(codes.of, np.array(codes.codes))
        for name in ("step", "said", "answered", "turn", "position"):
            getattr(self, name).extend(getattr(other, name))
        for name, values in self.numbers.items():
            values.extend(other.numbers[name])
        self.texts.extend(other.texts)
        self.unrewarded += other.unrewarded
        self.padding += other.padding
        self.first_missing = self.first_missing or other.first_missing
        self.in_rows |= other.in_rows
        return True

    def group_ids(
        self, grouping: str, num_generations: int | None, whole: bool
    ) -> tuple[np.ndarray, str]:
        """The group of every row, and a line that says where it is from.

        Args:
            grouping: "blocks" or "prompt", see ``Format``.
            num_generations: the size of groups, if the user knows.
            whole: whether all rows of the files are here, so that no block is cut short.
        """
        if self.group.of:
            unused = "" if num_generations is None else ", so num_generations is not used"
            whose = "are the completions of a row" if self.in_rows else "as the files name them"
            return np.array(self.group.codes), f"groups {whose}{unused}"
        source, prompt, position, step = map(
            np.asarray, (self.source.codes, self.prompt.codes, self.position, self.step)
        )
        if num_generations is not None:
            groups = _prompt_groups.blocks(position, source, step, num_generations)
            _prompt_groups.check_blocks(groups, prompt, num_generations, whole)
            return groups, f"groups are blocks of {num_generations} rows, as given"
        advantage = np.asarray(self.numbers["advantage"])
        if grouping == "blocks" or np.isfinite(advantage).all():
            size, confirmed = _prompt_groups.guess_size(position, source, step, prompt, advantage)
            if size > 1 and (confirmed or grouping == "blocks"):
                why = "and advantages that sum to zero" if confirmed else "alone"
                note = f"num_generations={size} is a guess from runs of equal prompts {why}"
                return _prompt_groups.blocks(position, source, step, size), note
        if (step == _NO_STEP).all():
            runs = _prompt_groups.equal_runs(source, prompt)
            if runs is not None:
                note = f"num_generations={runs[0]} is a guess from runs of equal prompts alone"
                return runs[1], note
        note = "groups are a guess: all completions of one prompt at one step"
        return _prompt_groups.first_seen(source, step, prompt), note

    def runs(self) -> list[Any]:
        """What may be the run of every row, by the columns that name it, if there are several."""
        names = list(self.run.of)
        return [names[code] for code in self.run.codes] if len(names) > 1 else []

    def sessions(self) -> np.ndarray | None:
        """A code for the session of every row, None if none was named."""
        if not set(self.session.of) - {None}:
            return None
        codes = np.array(self.session.codes)
        return np.where(codes == self.session.of.get(None, -1), -1, codes)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Makes the reward the weighted sum of its parts; those of no weight are none."""
        self.parts = {name: part for name, part in self.parts.items() if weights[name]}
        parts = np.stack([weights[name] * np.array(part) for name, part in self.parts.items()])
        total = np.where(np.isnan(parts).all(0), NAN, np.nansum(parts, 0))
        self.numbers["reward"] = array("d", total.tolist())

    def frame(self, group_id: np.ndarray) -> pd.DataFrame:
        """The columns so far, whose memory the frame shares: none can be added to any more."""
        import pandas as pd

        step = np.asarray(self.step)
        place = pd.Series(group_id).groupby(group_id).cumcount()
        completion, answer = self.texts.series()
        columns: dict[str, Any] = {
            "prompt_id": np.asarray(self.prompt.codes),
            "sample_id": place.to_numpy(np.int32),
            "step": pd.arrays.IntegerArray(step, step == _NO_STEP),
            "prompt": self.prompt.categorical(),
            "completion": completion,
            "answer": answer,
            **{name: np.asarray(values) for name, values in self.numbers.items()},
            "source": self.source.categorical(),
            "group_id": group_id,
            **{f"reward/{name}": np.asarray(values) for name, values in self.parts.items()},
            SAID: np.asarray(self.said),
            ANSWERED: np.asarray(self.answered),
        }
        if self.tokens:
            tokens, logps = np.full((2, len(self)), None, object)
            for row, (of_row, logps_of_row) in self.tokens.items():
                tokens[row], logps[row] = of_row, logps_of_row
            columns |= {"tokens": tokens, "ref_token_logps": logps}
        return pd.DataFrame(columns, copy=False)
