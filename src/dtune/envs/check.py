"""Checks of anybody's simulator: what every algorithm relies on, and what only going back needs."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from dtune.envs.comparison import Walked, WrongError, going, require, require_equal, require_rows, same, take
from dtune.envs.simulator import Inspectable, Outcome, Restorable, Simulator
from dtune.envs.trial import missing_parts
from dtune.errors import ConfigError, DtuneError, SimulatorError
from dtune.findings import Finding, find

_ROWS = 6
_FIELDS = ("observations", "rewards", "terminated", "truncated", "faulty")
_RULED_OUT = "that rules out GRPO-DT"


def check_simulator(simulator: Simulator, *, steps: int = 100, seed: int = 0) -> list[Finding]:
    """Walks a simulator and compares what it does with what `Simulator` and `Restorable` promise.

    Args:
        simulator: anybody's; its present episodes are forgotten.
        steps: compared after going back.
        seed: of everything random.

    Returns:
        One finding a check. The simulator can be used if all that are `needed` have passed.

    Raises:
        ConfigError: if there are no steps to compare.
    """
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    check = _Check(simulator, steps, seed)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("reset", check.reset),
        ("step", check.step),
        ("same seed", check.same_seed),
        ("keep", check.keep),
        ("outcomes", check.outcomes),
        ("actions", check.actions),
        ("faults", check.faults),
        ("horizon", check.horizon),
    )
    findings = []
    for name, run in checks:
        findings.append(find(name, run))
        if not findings[-1].passed and name in ("reset", "step"):
            return findings  # nothing further could be said
    return [*findings, _find_restore(check)]


def _find_restore(check: "_Check") -> Finding:
    if not isinstance(check.simulator, Restorable):
        message = f"it has no snapshot and restore: {_RULED_OUT}, but not PPO-DT or Q-guided GRPO-DT"
        return Finding(name="going back", passed=False, message=message, needed=False)
    try:
        check.begin()
        check.simulator.snapshot()
    except DtuneError as error:
        message = f"{str(error).rstrip('.')}; {_RULED_OUT}"
        return Finding(name="going back", passed=False, message=message, needed=False)
    except Exception:  # not a refusal: `restore` meets it again and tells
        pass
    return find("going back", check.restore)


class _Check:
    """The checks, each a method that gives what it saw or raises `WrongError`."""

    def __init__(self, simulator: Simulator, steps: int, seed: int) -> None:
        self.simulator, self.steps, self.seed = simulator, steps, seed

    def begin(self, rows: int = _ROWS, seed: int = 0) -> Tensor:
        return self.simulator.reset(rows, torch.Generator().manual_seed(self.seed + seed))

    def reset(self) -> str:
        simulator = self.simulator
        for name in ("observation_dim", "action_dim", "horizon"):
            value = getattr(simulator, name, None)
            require(isinstance(value, int) and value > 0, f"{name} has to be a whole number above 0, and is {value!r}")
        seen = self.begin()
        require_rows("reset", "observations", seen, (_ROWS, simulator.observation_dim), torch.float64)
        require(bool(seen.isfinite().all()), "the first observations are not finite")
        require_rows("reset", "observations", self.begin(2), (2, simulator.observation_dim), torch.float64)
        alike = " (all the same, whatever the seed)" if len(torch.unique(seen, dim=0)) == 1 else ""
        return f"{simulator.observation_dim} numbers seen, {simulator.action_dim} in an action{alike}"

    def step(self) -> str:
        self.begin()
        outcome = self.simulator.step(self._draw(1)[0])
        shapes = {"observations": (_ROWS, self.simulator.observation_dim)}
        for name in _FIELDS:
            dtype = torch.float64 if name in ("observations", "rewards") else torch.bool
            require_rows("step", name, getattr(outcome, name, None), shapes.get(name, (_ROWS,)), dtype)
        both = outcome.terminated & outcome.truncated
        require(not both.any(), "a row is terminated and truncated at once: truncated means that only time ran out")
        require(not (outcome.faulty & ~outcome.terminated).any(), "a faulty row has to be terminated as well")
        return "shapes and types as they should be"

    def same_seed(self) -> str:
        actions = self._draw(self.steps)
        self.begin()
        first = self._walk(actions)
        self.begin()
        require_equal(
            first, self._walk(actions), "the same seed and actions give other episodes: whatever is random must come "
            "from the generator that reset is given",
        )  # fmt: skip
        return f"gives the same {len(first)} steps twice, to the last bit"

    def keep(self) -> str:
        actions, chosen = self._draw(min(30, self.steps)), torch.tensor([4, 1, 5])
        self.begin()
        everybody = [self.simulator.step(action) for action in actions[:1]]
        alive = ~(everybody[0].terminated | everybody[0].truncated)
        chosen = chosen[alive[chosen]]
        walked = self._walk_from(actions[1:], alive.nonzero().squeeze(1))
        self.begin()
        self.simulator.step(actions[0])
        self.simulator.keep(chosen)
        kept = self._walk(actions[1:], chosen)
        for (rows, outcome), (others, other) in zip(kept, walked):
            where = [int((others == row).nonzero()) for row in rows if bool((others == row).any())]
            equal = len(where) == len(rows) and same(outcome, take(other, where))
            require(equal, "rows that were kept go on otherwise than beside the others: they are mixed up")
        return "rows go on alone as beside the others, in the order asked for"

    def outcomes(self) -> str:
        self.begin()
        actions = self._draw(3)
        outcome = self.simulator.step(actions[0])
        copies = Outcome(*(field.clone() for field in outcome))
        self.simulator.step(actions[1])
        require(same(outcome, copies), "a step writes over the tensors of the one before: give copies")
        return "no later step writes to them"

    def actions(self) -> str:
        results = []
        for size in (1.0, 3.0):
            self.begin()
            try:
                results.append(self.simulator.step(torch.full((_ROWS, self.simulator.action_dim), size)))
            except SimulatorError:
                return "outside of [-1, 1] they are refused"
        if same(*results):
            return "outside of [-1, 1] they are clipped"
        return "outside of [-1, 1] they are taken as they are"

    def faults(self) -> str:
        self.begin()
        action = self._draw(1)[0]
        clean = self.simulator.step(action)
        action[2, 0] = torch.nan
        self.begin()
        outcome, others = self.simulator.step(action), [0, 1, 3, 4, 5]
        require(bool(outcome.faulty[2]), "NaN in an action has to make its row faulty")
        require(same(take(outcome, others), take(clean, others)), "NaN in an action of one row changes others")
        return "NaN in an action makes its own row faulty, and no other"

    def horizon(self) -> str:
        horizon = self.simulator.horizon
        self.begin()
        walked = self._walk(0.3 * self._draw(horizon + 1))
        early = [step for step, (_, outcome) in enumerate(walked, 1) if outcome.truncated.any() and step < horizon]
        require(not early, f"a row is truncated at step {early[:1]}, before the horizon of {horizon}")
        require(len(walked) <= horizon, f"rows go on after the horizon of {horizon} steps: truncate them there")
        if len(walked) < horizon:
            return f"all ended by themselves, after {len(walked)} steps at most, before the horizon of {horizon}"
        return f"time runs out after {horizon} steps"

    def restore(self) -> str:
        horizon = self.simulator.horizon
        longest = self._points((0, 1, min(12, horizon - 1), min(40, horizon - 1)))
        late = self._points((max(0, horizon - 3),), gently=True)
        return f"bit for bit over {longest} steps, into other rows" + (", clock included" if late == 3 else "")

    def _points(self, points: tuple[int, ...], *, gently: bool = False) -> int:
        """Goes back to `points` of one walk; the most steps that were compared."""
        simulator = self.simulator
        assert isinstance(simulator, Restorable)
        actions = self._draw(points[-1] + self.steps) * (0.3 if gently else 1.0)
        longest = 0
        for point in sorted(set(points)):
            seen = self.begin()
            before = self._walk(actions[:point])
            rows = before[-1][0][going(before[-1][1])] if before else torch.arange(_ROWS)
            if not len(rows):
                break
            seen = before[-1][1].observations[going(before[-1][1])] if before else seen
            snapshots, named = simulator.snapshot(), self._named()
            recorded = self._walk(actions[point:], rows)
            for order in ([0], [*reversed(range(len(rows))), 0, 0, len(rows) - 1]):
                self._disturb()
                shown = simulator.restore(snapshots[order])
                require(torch.equal(shown, seen[order]), "restore shows other observations than were seen there")
                got, wanted = self._named(), [named[index] for index in order] if named else []
                require(np.array_equal(simulator.snapshot(), snapshots[order]), _blame(wanted, got, None, point))
                for part, other in zip(wanted, got):  # an episode may end before its horizon and never show it
                    require(part.get("clock") == other.get("clock"), _blame(wanted, got, None, point))
                self._compare_copies(recorded, actions[point:], rows[order], (wanted, got), point)
            longest = max(longest, len(recorded))
        return longest

    def _compare_copies(
        self, recorded: Walked, actions: Tensor, rows: Tensor, named: tuple[list, list], point: int
    ) -> None:
        """Walks rows that were gone back to beside what was recorded of them."""
        place = torch.arange(len(rows))  # of each living copy among those that began
        for (alive, outcome), action in zip(recorded, actions):
            again = self.simulator.step(action[rows[place]])
            where = [int((alive == row).nonzero()) for row in rows[place]]
            wanted = take(outcome, where)
            if not same(again, wanted):
                raise WrongError(_blame(*named, (again, wanted), point))
            stay = going(again)
            self.simulator.keep(stay)
            place = place[stay]
            if not len(place):
                return

    def _disturb(self) -> None:
        """Leaves the rows in another state than any that is gone back to."""
        self.begin(_ROWS + 3, seed=17)
        self._walk(self._draw(5, rows=_ROWS + 3, seed=18), torch.arange(_ROWS + 3))

    def _named(self) -> list[dict[str, str]]:
        return self.simulator.named() if isinstance(self.simulator, Inspectable) else []

    def _draw(self, steps: int, rows: int = _ROWS, seed: int = 1) -> Float32[Tensor, "steps rows action"]:
        generator = torch.Generator().manual_seed(self.seed + seed)
        return 2 * torch.rand(steps, rows, self.simulator.action_dim, generator=generator) - 1

    def _walk_from(self, actions: Float32[Tensor, "steps rows action"], alive: Int64[Tensor, "alive"]) -> Walked:
        self.simulator.keep(alive)
        return self._walk(actions, alive)

    def _walk(self, actions: Float32[Tensor, "steps rows action"], alive: Tensor | None = None) -> Walked:
        """Walks until all have ended, which are dropped as they do."""
        return list(self._steps(actions, torch.arange(actions.shape[1]) if alive is None else alive))

    def _steps(self, actions: Tensor, alive: Tensor) -> Iterator[tuple[Tensor, Outcome]]:
        for action in actions:
            if not len(alive):
                return
            outcome = self.simulator.step(action[alive])
            require(
                not outcome.faulty.any(),
                "a row is faulty though all of its actions lay in [-1, 1]: what it shows "
                "or earns is not finite, or its physics warn",
            )
            yield alive, outcome
            stay = going(outcome)
            if len(stay) < len(alive):
                self.simulator.keep(stay)
            alive = alive[stay]


def _blame(
    wanted: list[dict[str, str]], got: list[dict[str, str]], outcomes: tuple[Outcome, Outcome] | None, point: int
) -> str:
    """Says that going back is not exact, and what is missing as far as can be told."""
    missing = next(filter(None, (missing_parts(part, other) for part, other in zip(wanted, got))), "")
    if missing:
        return f"going back to step {point} is not exact: a snapshot misses the {missing}"
    if outcomes is None:
        return f"a snapshot taken just after restore differs from the one gone back to (step {point})"
    fields = [name for name in _FIELDS if not torch.equal(getattr(outcomes[0], name), getattr(outcomes[1], name))]
    if fields == ["truncated"]:
        return f"going back to step {point} is not exact: a snapshot misses the clock, so time runs out at another step"
    return (
        f"going back to step {point} is not exact ({', '.join(fields)} differ): a snapshot misses something, such as "
        "the warm start of a solver, a field of a model, a clock or a random generator"
    )
