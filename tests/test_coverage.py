"""Every interval that a diagnosis prints covers the truth in 92 % of 200 simulated logs or more.

Logs are sampled from policies that are known: at the target, with deviations of every answer or
without, or collapsed beyond it; many prompts with one late group each, and one prompt with several.
"""

import ast
import dataclasses
import inspect
import itertools
import math
import pathlib
import re

import jax
import numpy as np
import pandas as pd
import pytest

import kltarget as kt
from kltarget import diagnosis
from kltarget.diagnosis import LogRatios, diagnose, fit_families
from kltarget.evidence import chance_of_seeing, entropy_of_counts, entropy_of_seen
from kltarget.recipes import Recipe

LEAST, NUMBER = 0.92, 200
PLAIN = Recipe()
GRPO = Recipe("loss", "weighted-k3", "token", "mean", normalize="group-std", ddof=1, epsilon=1e-4)
REWARDS = ("zero_std_groups", "pass@1", "pass@k", "diversity", "kept")
# Every name of a statement: those with intervals, which the simulations below must cover, and
# those that never have one.
WITH = {*REWARDS, "gradient", "effective_beta", "expected_reward", "reference_ratio", "flip_beta"}
WITH |= {"effective_modes", "path", "implied_beta"}
WITHOUT = {"direction", "right_answers", "reference", "favoured", "mara", "family", "distance"}
WITHOUT |= {"advantages", "answers"}
# Of curves, whose steps follow from each other.
WITHOUT |= {"kl_term", "kl_budget", "price", "asked_for", "token_entropy", "lengths", "controller"}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How logs are sampled.

    Attributes:
        prompts: how many, each with groups at every step.
        size: of a group.
        answers: of a prompt, all possible.
        steps: logged.
        levels: rewards; the last for all answers beyond one of each, or any of them.
        recipe: of the trainer; policies are at its target.
        beta: its coefficient.
        deviation: of log-probabilities from those of the target, the same at every step.
        sharper: times the target's log-probabilities, reached over the steps.
        logged: which log-probabilities are.
        groups: of a prompt at a step.
        most_right: whether answers beyond one of each reward are right.
        expected: names of statements that have intervals in some of the logs.
    """

    prompts: int
    size: int
    answers: int
    steps: int
    levels: tuple[float, ...]
    expected: tuple[str, ...]
    recipe: Recipe = PLAIN
    beta: float = 0.4
    deviation: float = 0.0
    sharper: float = 1.0
    logged: tuple[str, ...] = ("ref_logp", "logp")
    groups: int = 1
    most_right: bool = False
    first_step: bool = False

    @property
    def late_from(self):
        return self.steps - max(1, math.ceil(self.steps / 3), min(3, self.steps // 2))


TARGETS = ("expected_reward", "effective_modes")
AT_TARGET = (*REWARDS, *TARGETS, "path", "implied_beta")
FIRST_STEP = (*REWARDS, *TARGETS, "reference_ratio")
SCENARIOS = {
    "one late group of each prompt": Scenario(
        *(8, 8, 16, 3, (0.0, 0.25, 0.5, 1.0), AT_TARGET), beta=0.3, deviation=0.1, most_right=True
    ),
    "collapsed": Scenario(
        *(3, 8, 8, 6, (0.0, 1.0), (*REWARDS, *TARGETS, "path")), deviation=0.1, sharper=3.0
    ),
    "reference from counts": Scenario(
        *(2, 8, 6, 6, (0.0, 0.5, 1.0), (*FIRST_STEP, "flip_beta")),
        logged=(),
        first_step=True,
        beta=0.3,
    ),
    # Of one group at the first step no share of what it shows is told.
    "one prompt": Scenario(
        *(1, 4, 4, 12, (0.0, 1.0), tuple(x for x in FIRST_STEP if x != "kept")),
        logged=(),
        first_step=True,
    ),
    "normalised": Scenario(
        *(4, 8, 6, 9, (0.0, 0.5, 1.0), (*REWARDS, "gradient", "effective_beta")),
        recipe=GRPO,
        logged=(),
    ),
    "normalised, small groups": Scenario(
        *(2, 4, 4, 30, (0.0, 1.0), (*REWARDS, "gradient", "effective_beta")), recipe=GRPO, logged=()
    ),
}


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a log was sampled from: rewards and log-probabilities, ``[P, A]`` each."""

    reward: np.ndarray
    log_ref: np.ndarray
    target: np.ndarray
    policy: np.ndarray


def simulated(scenario, number, seed=0):
    """Logs and what they were sampled from; all targets are solved at once."""
    rng = np.random.default_rng(seed)
    shape = number, scenario.prompts, scenario.answers
    reward = rng.choice(scenario.levels, shape)
    if scenario.most_right:
        reward[:] = scenario.levels[-1]
    reward[..., : len(scenario.levels)] = scenario.levels
    reward = rng.permuted(reward, axis=-1)
    log_ref = np.log(rng.dirichlet(np.ones(scenario.answers), shape[:2]))
    divergence = scenario.recipe.divergence or kt.ReverseKL()
    with jax.enable_x64(True):
        problem = kt.Objective(reward, log_ref, np.full(shape[:2], scenario.beta), divergence)
        target = np.asarray(kt.solve(problem).log_probs)
    policy = normal(scenario.sharper * target + scenario.deviation * rng.standard_normal(shape))
    for i in range(number):
        truth = Truth(reward[i], log_ref[i], target[i], policy[i])
        yield sampled(scenario, truth, rng), truth


def sampled(scenario, truth, rng):
    prompts, per_step = scenario.prompts, scenario.groups * scenario.size
    parts, who = [], np.repeat(np.arange(prompts), per_step)
    for step in range(scenario.steps):
        log_probs = truth.policy
        if scenario.sharper != 1:
            way = min(1, step / scenario.late_from)
            log_probs = normal(way * truth.policy + (1 - way) * truth.log_ref)
        if step == 0 and scenario.first_step:
            log_probs = truth.log_ref
        below = np.exp(log_probs).cumsum(1)
        drawn = rng.random((prompts, per_step, 1)) * below[:, None, -1:]
        answer = (drawn > below[:, None]).sum(2).ravel()
        group = np.arange(len(who)) // scenario.size + step * len(who)
        at = who, answer
        columns = (*at, truth.reward[at], np.full(len(who), step), group)
        parts.append((*columns, truth.log_ref[at], log_probs[at]))
    names = ("prompt", "answer", "reward", "step", "group_id", "ref_logp", "logp")
    columns = map(np.concatenate, zip(*parts, strict=True))
    frame = pd.DataFrame(dict(zip(names, columns, strict=True)))
    frame["prompt"] = "p" + frame.prompt.astype(str)
    frame["answer"] = "a" + frame.answer.astype(str)
    for name in {"ref_logp", "logp"}.difference(scenario.logged):
        frame[name] = np.nan
    return frame.assign(completion=frame.answer)


def normal(log_probs):
    return log_probs - np.logaddexp.reduce(log_probs, -1)[..., None]


def truth_of(statement, scenario, truth, frame, found):
    """What a statement's value is in truth."""
    p, right = np.exp(truth.policy), truth.reward >= 1
    name, size = statement.name, scenario.size
    if name == "zero_std_groups":
        equal = [(p * (truth.reward == x)).sum(1) ** size for x in scenario.levels]
        return float(np.mean(np.sum(equal, axis=0)))
    if name == "gradient":
        # All late groups of a prompt have equal rewards, not all the same.
        late = scenario.groups * (scenario.steps - scenario.late_from)
        masses = [(p * (truth.reward == x)).sum(1) for x in scenario.levels]
        return float(np.mean(np.sum([x**size for x in masses], axis=0) ** late))
    if name.startswith("pass@"):
        return float((1 - (1 - (p * right).sum(1)) ** int(name[5:])).mean())
    if name == "diversity":
        return float((1 - (p**2).sum(1)).mean())
    if name == "expected_reward":
        return float((p * truth.reward).sum(1).mean())
    if name == "effective_beta":
        return median_coefficient(scenario, truth, p)
    if name == "implied_beta":
        return scenario.beta
    if name in ("reference_ratio", "flip_beta"):
        prompt = int(found.featured.prompt[1:])
        i, j = map(int, re.findall(r"a(\d+)", statement.text)[:2])
        if name == "reference_ratio":
            return float(np.exp(truth.log_ref[prompt, i] - truth.log_ref[prompt, j]))
        with jax.enable_x64(True):
            problem = kt.Objective(truth.reward[prompt], truth.log_ref[prompt], 1.0)
            flip = float(kt.flip_beta(problem, i, j))
        return math.inf if math.isnan(flip) else flip
    if name == "kept":
        return kept_of(scenario, truth, frame, right)
    # Prompts of which two right answers were seen, and one lately.
    seen = frame[frame.reward >= 1]
    number = seen.groupby("prompt").answer.nunique()
    late = set(seen[seen.step >= scenario.late_from].prompt)
    chosen = [int(x[1:]) for x in number[number > 1].index if x in late]
    now, target = (
        np.array([entropy(law[i][right[i]]) for i in chosen])
        for law in (truth.policy, truth.target)
    )
    return float((target - now).mean() if name == "path" else np.exp(now).mean())


def kept_of(scenario, truth, frame, right):
    """Of how right answers differ, over prompts with two right rollouts lately.

    Before them stand two right answers, by the reference, or two right rollouts of the first steps.
    """
    seen = frame[frame.reward >= 1]
    enough = seen[seen.step >= scenario.late_from].groupby("prompt").size() > 1
    if scenario.logged:
        before, many = truth.log_ref, seen.groupby("prompt").answer.nunique() > 1
    else:
        before = truth.log_ref if scenario.first_step else truth.policy
        early = max(1, scenario.steps // 10)
        many = seen[seen.step < early].groupby("prompt").size() > 1
    chosen = [int(x[1:]) for x in many[many].index.intersection(enough[enough].index)]
    then, now = (
        np.mean([1 - (np.exp(normal(law[i][right[i]])) ** 2).sum() for i in chosen])
        for law in (before, truth.policy)
    )
    return float(now / then)


def entropy(log_masses):
    log_probs = normal(log_masses)
    return -float(np.exp(log_probs) @ log_probs)


def median_coefficient(scenario, truth, p):
    """Of groups whose rewards differ, by all that can be in a group."""
    masses = np.stack([(p * (truth.reward == x)).sum(1) for x in scenario.levels], 1)
    size, chances = scenario.size, {}
    for counts in itertools.product(range(size + 1), repeat=len(scenario.levels)):
        if sum(counts) == size and max(counts) < size:
            ways = math.factorial(size) / math.prod(map(math.factorial, counts))
            rewards = np.repeat(scenario.levels, counts)
            deviation = round(float(rewards.std(ddof=scenario.recipe.ddof)), 12)
            chance = ways * float((masses ** np.array(counts)).prod(1).mean())
            chances[deviation] = chances.get(deviation, 0.0) + chance
    deviations = np.array(sorted(chances))
    shares = np.cumsum([chances[x] for x in deviations])
    middle = deviations[np.searchsorted(shares, shares[-1] / 2)]
    recipe = dataclasses.replace(scenario.recipe, group_size=size)
    return scenario.beta * float(recipe.effective_factor(np.array([middle]))[0])


def covered(scenario, number):
    """Whether every interval of every log holds what it should, by the names of statements."""
    hits = {}
    reference = "first-step" if scenario.first_step else None
    for i, (frame, truth) in enumerate(simulated(scenario, number)):
        found = diagnose(
            frame,
            scenario.recipe,
            beta=scenario.beta,
            threshold=1.0,
            reference=reference,
            num_bootstrap=50,
            key=jax.random.key(i),
        )
        for statement in found.statements:
            # Beyond the target no coefficient is the right one.
            nothing = statement.name == "implied_beta" and scenario.sharper != 1
            if statement.interval is None or nothing:
                continue
            value = truth_of(statement, scenario, truth, frame, found)
            low, high = statement.interval
            near = 1e-6 * abs(value) if math.isfinite(value) else 0.0
            name = re.sub(r"^pass@(?!1$)\d+", "pass@k", statement.name)
            hits.setdefault(name, []).append(low - near <= value <= high + near)
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_interval_covers_the_truth(name):
    scenario = SCENARIOS[name]
    hits = covered(scenario, NUMBER)
    shares = {key: sum(x) / len(x) for key, x in hits.items()}
    print(name, {key: (round(share, 3), len(hits[key])) for key, share in shares.items()})
    assert set(hits) == set(scenario.expected)
    assert min(shares.values()) >= LEAST, shares


def cells_of(rng, family, prompts, answers, samples, steps, deviation, persistent, beta):
    """Distinct completions of every step, of a policy that deviates from the target."""
    shape = prompts, answers
    log_ref = np.log(rng.dirichlet(np.ones(answers), prompts))
    reward = rng.choice([0.0, 0.5, 1.0], shape)
    reward[:, :3] = [0, 0.5, 1]
    divergence = kt.ForwardKL() if family == "forward" else kt.ReverseKL()
    with jax.enable_x64(True):
        problem = kt.Objective(reward, log_ref, np.full(prompts, beta), divergence)
        target = np.asarray(kt.solve(problem).log_probs)
    parts, deviations = [], deviation * rng.standard_normal(shape)
    for step in range(steps):
        if not persistent:
            deviations = deviation * rng.standard_normal(shape)
        log_probs = normal(target + deviations)
        count = rng.multinomial(samples, np.exp(log_probs))
        who, answer = np.nonzero(count)
        at = who, answer
        labels = who + prompts * step, who * answers + answer, np.full(len(who), step)
        parts.append(((log_probs - log_ref)[at], reward[at], count[at].astype(float), *labels))
    return LogRatios(*map(np.concatenate, zip(*parts, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "design"),
    [
        ("reverse", (6, 8, 8, 2, 0.1, True)),
        ("forward", (6, 8, 8, 2, 0.1, True)),
        ("reverse", (1, 4, 8, 10, 0.1, True)),
        ("forward", (4, 8, 8, 3, 0.3, False)),
    ],
)
def test_the_implied_coefficient_covers_the_truth(family, design):
    rng, hits = np.random.default_rng(0), []
    for _ in range(NUMBER):
        cells = cells_of(rng, family, *design, beta=0.3)
        if not any(np.ptp(cells.x[cells.line == line]) for line in np.unique(cells.line)):
            continue
        fit = fit_families(cells, rng, 2)[family == "forward"]
        low, high = fit.interval
        hits.append(low <= 0.3 <= high)
    print(family, design, np.mean(hits))
    assert np.mean(hits) >= LEAST


def test_entropies_allow_for_what_was_not_sampled():
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.ones(12))
    true, plain, counted, weighed = entropy(np.log(law)), [], [], []
    for count in rng.multinomial(12, law, size=1000):
        seen = count > 0
        share = count[seen] / 12
        plain.append(-share @ np.log(share))
        counted.append(entropy_of_counts(np.append(count, 0))[0])
        chance = chance_of_seeing(law[seen], 12)
        weighed.append(entropy_of_seen(np.log(law[seen]) + 3, chance)[0])
    assert np.mean(plain) < true - 0.3
    assert abs(np.mean(counted) - true) < 0.1
    assert abs(np.mean(weighed) - true) < 0.05
    exact, variance = entropy_of_seen(np.log(law), np.ones(12))
    assert exact == pytest.approx(true, rel=1e-12)
    assert variance == 0
    assert np.isnan(entropy_of_counts(np.zeros((1, 3)))[0])


def test_every_statement_with_an_interval_is_simulated():
    """A statement of another name has to be listed, and simulated if it has an interval."""
    names = set()
    for path in pathlib.Path(inspect.getfile(diagnosis)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Statement":
                name = node.args[0] if node.args else None
                if isinstance(name, ast.JoinedStr):
                    name = ast.Constant("pass@k")
                # One other is a variable: the names of a status.
                if isinstance(name, ast.Constant):
                    names.add(name.value)
    assert names == WITH | WITHOUT
    assert {x for scenario in SCENARIOS.values() for x in scenario.expected} == WITH
