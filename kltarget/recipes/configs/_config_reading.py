"""From a configuration to a preset, the fields that it changes, and the keys that do nothing."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kltarget._core.page import Block, Bullets, Heading, Item, Lines, Page, Paragraph, Table
from kltarget._core.words import compact
from kltarget.recipes._preset import Preset
from kltarget.recipes._presets import preset, recipe
from kltarget.recipes._recipe import Recipe
from kltarget.recipes.configs._detection import table_of
from kltarget.recipes.configs._flat_settings import (
    Setting,
    Settings,
    Source,
    read_settings,
    spelled,
)
from kltarget.recipes.configs._key_tables import (
    KeyRule,
    KeyTable,
    Variant,
    agrees,
    is_pseudo,
    matches,
)

_MAY_BE_NONE = ("log_ratio_clip", "kl_clip", "reward_clip", "clip", "clip_high", "group_size")
_CLIPS = ("clip", "clip_high")
_WHOLE = ("ddof", "group_size", "updates_per_batch", "reference_every")
_ALIKE, _LONGER = 0.84, 3


@dataclasses.dataclass(frozen=True)
class KeyRead:
    """A key of a configuration and what it does.

    Args:
        name: the key, as the file writes it.
        value: as the file gives it, as text.
        does: the fields of the recipe that it sets, ``"beta = 0.01"``, or why it does nothing.
    """

    name: str
    value: str
    does: str


@dataclasses.dataclass(frozen=True)
class ConfigReading:
    """What :func:`from_config` read.

    Args:
        files: the files, in their order.
        trainer: which trainer's configuration it is.
        preset: the preset that it starts from.
        recipe: what a run with this configuration does.
        acting: the keys that decide it.
        idle: keys of this trainer that do nothing in this combination, and why.
        unknown: keys that say nothing to this preset: data, models, optimisers, or misspellings.
        not_given: what comes from files or variables that were not given.
        notes: what the fields of the recipe cannot say.
    """

    files: tuple[str, ...]
    trainer: str
    preset: Preset
    recipe: Recipe
    acting: tuple[KeyRead, ...]
    idle: tuple[KeyRead, ...]
    unknown: tuple[str, ...]
    not_given: tuple[str, ...]
    notes: tuple[str, ...]

    def page(self) -> Page:
        """The keys of the configuration: which act, which do not, which are not known."""
        blocks: list[list[Block]] = [[Heading(f"Configuration: {', '.join(self.files)}")]]
        blocks[0].append(Lines([f"read as {self.preset.title} ({self.preset.trainer})"]))
        if self.acting:
            rows = [("acting key", "value", "sets")]
            rows += [(x.name, x.value, x.does) for x in self.acting]
            blocks.append([Table(rows, "lll")])
        else:
            blocks.append([Paragraph("No key acts: this is the preset as it comes.")])
        if self.not_given:
            items = [Item("- ", f"{text}.") for text in self.not_given]
            blocks.append([Heading("Not given"), Bullets(items)])
        if self.idle:
            items = [Item("- ", f"{x.name} = {x.value}: {x.does}.") for x in self.idle]
            blocks.append([Heading("Does nothing here"), Bullets(items)])
        if self.notes:
            items = [Item("- ", text) for text in self.notes]
            blocks.append([Heading("Not in the recipe"), Bullets(items)])
        if self.unknown:
            blocks.append([Heading("Not known to this preset"), Paragraph(", ".join(self.unknown))])
        return Page(*blocks)

    def __str__(self) -> str:
        return self.page().to_text()


def from_config(
    config: Source | Sequence[Source],
    *,
    trainer: str | None = None,
    overrides: Iterable[str] = (),
) -> ConfigReading:
    """Reads what a trainer's configuration files and command lines ask for, as a recipe.

    YAML (with PyYAML), JSON, TOML, the command line in a shell script and a ``GRPOConfig`` in a
    Python script are read; nothing in them is run, and YAML makes plain data alone. The trainer is
    told by its keys.

    Args:
        config: a file, a dictionary such as ``training_args.to_dict()``, or several of either, of
            which a later one counts before an earlier one.
        trainer: a trainer or a preset with a version perhaps, ``"trl-grpo==1.9.2"``, where the keys
            do not tell it. Without a version the newest counts.
        overrides: ``key=value`` as on a command line, on top of the files.

    Returns:
        The recipe, the preset that it starts from, and what became of each key.

    Raises:
        ImportError: a YAML file and no PyYAML.
        OSError: a file that cannot be opened.
        ValueError: a broken file; keys that tell no trainer, several, or another than was said; a
            value that the trainer does not know, or a combination that no recipe can say. The
            message names the file or the key.

    Example:
        >>> from kltarget import recipes
        >>> config = {"actor_rollout_ref": {"actor": {"kl_loss_coef": 0.01, "use_kl_loss": False}}}
        >>> reading = recipes.from_config(config)
        >>> reading.preset.name, reading.recipe.place
        ('verl', 'none')
        >>> [(key.name, key.does) for key in reading.idle]
        [('actor_rollout_ref.actor.kl_loss_coef', 'not read with …use_kl_loss = false')]
    """
    several = not isinstance(config, (str, os.PathLike, Mapping))
    sources: list[Source] = list(config) if several else [config]
    if not sources:
        raise ValueError("config: no file is given")
    files = tuple("a dictionary" if isinstance(x, Mapping) else os.fspath(x) for x in sources)
    where = ", ".join(files)
    settings = read_settings(sources, overrides)
    table, name = table_of(settings, trainer, where)
    version = (trainer or "").partition("==")[2].strip()
    try:
        return _Translation(settings, table, name, version).reading(files)
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from None


class _Refused(ValueError):
    """What this configuration asks for, no recipe says."""


class _Translation:
    """One configuration, in the words of one trainer's table."""

    def __init__(self, settings: Settings, table: KeyTable, name: str | None, version: str) -> None:
        self.table, self.settings = table, settings
        self.given = {table.canonical(key): x for key, x in settings.values.items()}
        self.known = {key: x for key, x in self.given.items() if not x.open}
        self.default = dict(table.default)
        self.fields: dict[str, Any] = {}
        self.set_by: dict[str, Setting] = {}
        self.notes: list[str] = []
        self.acting: list[KeyRead] = []
        self.idle: list[KeyRead] = []
        self.unknown: list[str] = []
        self.not_given: list[str] = []
        self.variant = self._variant(name)
        title = f"{self.variant.preset}=={version}" if version else self.variant.preset
        self.preset = preset(title)
        self.title = title
        self.default |= {"_preset": self.preset.name, "_versions": self.preset.versions}
        for rule in table.rules:
            if rule.field is not None and rule.factor == 1:
                self.default.setdefault(rule.key, getattr(self.preset.recipe, rule.field))

    def value(self, key: str) -> Any:
        """The value of a key, or what the trainer takes where nothing sets it."""
        if key.endswith(".*"):
            return "present" if any(matches(x, key) for x in self.given) else "absent"
        return self.known[key].value if key in self.known else self.default.get(key)

    def failing(self, when: Mapping[str, Any], unless: Mapping[str, Any] | None = None) -> str:
        """The first key whose value is not what it has to be; none if all are."""
        for key, wanted in when.items():
            if not agrees(self.value(key), wanted):
                return key
        for key, wanted in (unless or {}).items():
            if agrees(self.value(key), wanted):
                return key
        return ""

    def _variant(self, name: str | None) -> Variant:
        if name is not None:
            return self._named_variant(name)
        for variant in self.table.variants:
            if not self.failing(variant.when, variant.unless):
                if variant.refuse is not None:
                    raise _Refused(variant.refuse)
                return variant
        whens = [x for variant in self.table.variants for x in (variant.when, variant.unless)]
        keys = dict.fromkeys(key for when in whens for key in when if not is_pseudo(key))
        said = ", ".join(f"{self._shown(key)} = {spelled(self.value(key))}" for key in keys)
        raise _Refused(f"no preset of {self.table.name} is known for {said}: give a Recipe instead")

    def _named_variant(self, name: str) -> Variant:
        """The variant of a preset that was asked for, unless the configuration says another."""
        whole = next((x for x in self.table.variants if not self.failing(x.when, x.unless)), None)
        if whole is not None and whole.preset == name:
            return whole
        against = ""
        for variant in self.table.variants:
            if variant.preset != name or variant.refuse is not None:
                continue
            # What no file says is as the preset has it.
            stated = {key: x for key, x in variant.when.items() if key in self.known}
            against = self.failing(stated, variant.unless)
            if not against:
                first = {k: x[0] if isinstance(x, list) else x for k, x in variant.when.items()}
                self.default |= first
                return variant
        value = spelled(self.value(against))
        raise _Refused(f"{self._shown(against)} = {value} is not {name}: leave the trainer out")

    def _shown(self, key: str) -> str:
        return self.given[key].shown if key in self.given else key

    def reading(self, files: tuple[str, ...]) -> ConfigReading:
        """Goes through all keys."""
        self.fields |= _without_none(self.variant.recipe)
        if self.variant.note:
            self.notes.append(self.variant.note)
        for key, setting in self.given.items():
            self._take(key, setting)
        for rule in self.table.rules:
            unset = rule.always and rule.key not in self.known
            if unset and not self.failing(rule.when, rule.unless):
                self._apply(rule, Setting(rule.key, self.value(rule.key)))
        not_given = [
            f"{name}, which is named but not among the files: the trainer's defaults are taken for "
            "what it sets; give it before the others"
            for name in self.settings.named_files
        ]
        if self.settings.from_caller:
            not_given.append("$@, what the script is called with: give it as key=value")
        return ConfigReading(
            files=files,
            trainer=self.table.name,
            preset=self.preset,
            recipe=self._recipe(),
            acting=tuple(self.acting),
            idle=tuple(self.idle),
            unknown=tuple(self.unknown),
            not_given=(*self.not_given, *not_given),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _take(self, key: str, setting: Setting) -> None:
        """Says what becomes of one key."""
        if key in self.table.never:
            self.idle.append(KeyRead(setting.shown, setting.text, self.table.never[key]))
        elif key not in self.table.known:
            self.unknown.append(setting.shown + self._meant(key))
        elif setting.open:
            taken = "nothing given says what that is, and the trainer's default is taken"
            self.not_given.append(f"{setting.shown} = {setting.value}: {taken}")
        else:
            rules = [rule for rule in self.table.rules if rule.key == key]
            used = [rule for rule in rules if not self.failing(rule.when, rule.unless)]
            chooses = any(key in (*x.when, *x.unless) for x in self.table.variants)
            if used or chooses:
                does = ", ".join(filter(None, (self._apply(rule, setting) for rule in used)))
                chosen = f"the preset {self.variant.preset}"
                does = does or (chosen if chooses else "no field of the recipe")
            elif not rules:
                does = "which other keys are read"
            else:
                self.idle.append(KeyRead(setting.shown, setting.shown_value, self._why(rules)))
                return
            self.acting.append(KeyRead(setting.shown, setting.shown_value, does))

    def _apply(self, rule: KeyRule, setting: Setting) -> str:
        """Takes the fields over and says which."""
        changes: dict[str, Any] = {}
        note = rule.note
        if rule.values:
            entry = dict(rule.values.get(setting.text, rule.values.get("*", {})))
            if setting.text not in rule.values and "*" not in rule.values:
                known = ", ".join(rule.values)
                raise _Refused(f"{setting.shown} = {setting.text} is not known: {known} are")
            if "refuse" in entry:
                raise _Refused(f"{setting.shown} = {setting.text}: {entry['refuse']}")
            note = entry.pop("note", note)
            changes = _without_none(entry)
        elif rule.fields:
            changes = self._several(rule, setting)
        elif rule.field == "reward_weights" and setting.text != "none":
            changes = {rule.field: self._weights(setting)}
        elif rule.clearing and setting.text == "none":
            changes = dict.fromkeys([rule.field or ""])
        elif rule.field in _CLIPS and setting.number == 0:
            note = f"{setting.shown} = 0 clips every ratio, which no field says: left out."
        elif rule.field is not None and setting.text != "none":
            changes = {rule.field: self._number(rule.field, setting, setting.number, rule.factor)}
        if note:
            self.notes.append(note)
        self.fields |= changes
        self.set_by |= dict.fromkeys(changes, setting)
        shown = (compact(x) if isinstance(x, float) else x for x in changes.values())
        said = [f"{name} = {value}" for name, value in zip(changes, shown, strict=True)]
        if not changes and rule.field is not None:
            return f"{rule.field} as it comes"
        return ", ".join(said)

    def _several(self, rule: KeyRule, setting: Setting) -> dict[str, Any]:
        values = setting.value if isinstance(setting.value, (list, tuple)) else [setting.value]
        if setting.text == "none":
            return dict.fromkeys(rule.fields)
        if len(values) != len(rule.fields):
            raise _Refused(f"{setting.shown} = {setting.text} must be {len(rule.fields)} numbers")
        numbers = (Setting(setting.shown, x).number for x in values)
        return {
            field: self._number(field, setting, value, rule.factor)
            for field, value in zip(rule.fields, numbers, strict=True)
        }

    def _weights(self, setting: Setting) -> tuple[float, ...]:
        values = setting.value if isinstance(setting.value, (list, tuple)) else [setting.value]
        numbers = (Setting(setting.shown, x).number for x in values)
        return tuple(self._number("reward_weights", setting, x, 1.0) for x in numbers)

    def _number(self, field: str, setting: Setting, found: float | None, factor: float) -> Any:
        if found is None or (field in _WHOLE and found != int(found)):
            kind = "a whole number" if field in _WHOLE else "a number"
            raise _Refused(f"{setting.shown} = {setting.text} is not {kind}")
        if field == "group_size" and found < 2:
            raise _Refused(
                f"{setting.shown} = {setting.text} compares each answer with none: set 2 or more"
            )
        return int(found) if field in _WHOLE else found * factor

    def _recipe(self) -> Recipe:
        fields = dict(self.fields)
        try:
            return recipe(self.title, **fields)
        except ValueError as error:
            setting = next((x for name, x in self.set_by.items() if name in str(error)), None)
            said = f"{setting.shown} = {setting.text}: " if setting else ""
            raise _Refused(f"{said}{error}") from None

    def _why(self, rules: Sequence[KeyRule]) -> str:
        """Why none of the rules of a key holds."""
        failing = [self.failing(rule.when, rule.unless) for rule in rules]
        # What one may change in the file says more than which preset it is.
        key = next((x for x in failing if not x.startswith("_")), failing[0])
        if key == "_preset":
            return f"not read by {self.preset.name}"
        if key == "_versions":
            return f"not read by {self.preset.title}"
        shown = self._shown(key)
        parent = f"{self._parent(rules[0].key)}."
        shown = f"…{shown.removeprefix(parent)}" if shown.startswith(parent) else shown
        return f"not read with {shown} = {spelled(self.value(key))}"

    @staticmethod
    def _parent(key: str) -> str:
        return key.rpartition(".")[0] or "\0"

    def _meant(self, key: str) -> str:
        """A known key that looks like this one."""
        parent, _, name = key.rpartition(".")
        for known in sorted(self.table.known):
            where, _, other = known.rpartition(".")
            elsewhere = name == other and "kl" in name
            if elsewhere or (where == parent and _alike(name, other)):
                return f" (did you mean {known}?)"
        return ""


def _alike(name: str, other: str) -> bool:
    if abs(len(name) - len(other)) > _LONGER:
        return False
    return difflib.SequenceMatcher(None, name, other).ratio() >= _ALIKE


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a table: TOML has no None and writes it as a text."""
    return {
        field: None if value == "none" and field in _MAY_BE_NONE else value
        for field, value in fields.items()
    }
