"""Checks of anybody's policy: what importance ratios rely on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.findings import Finding, find, require
from dtune.models.distributions import TanhNormal
from dtune.models.policy import ActingPolicy, LastStepPolicy, Policy, ReturnPredictor, TrainablePolicy, actor_of

_ROWS = 16
_STEPS = 12
RATIO_TOLERANCE = 1e-3
"""How far a ratio of the unchanged policy may be from 1."""


def check_policy(policy: Any, observation_dim: int, *, return_to_go: float = 1000.0, seed: int = 0) -> list[Finding]:
    """Feeds a policy random windows and compares what it answers with what `Policy` promises.

    It is asked in evaluation mode, and left in the mode and with the context length it had.

    Args:
        policy: anybody's, meant to be a `Policy`.
        observation_dim: numbers in an observation.
        return_to_go: about the size of a return, in environment reward units.
        seed: of everything random.

    Returns:
        One finding a check. The policy can be finetuned if all that are `needed` have passed.
    """
    members = find("members", lambda: _members(policy))
    if not members.passed:
        return [members]
    check = _Check(policy, observation_dim, return_to_go, seed)
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("output", check.output, True),
        ("deterministic", check.deterministic, True),
        ("company", check.company, True),
        ("causal", check.causal, True),
        ("padding", check.padding, True),
        ("unread", check.unread, True),
        ("likelihoods", check.likelihoods, True),
        ("acting is training", check.acting_is_training, True),
        ("next return-to-go", check.next_return_to_go, True),
        ("gradients", check.gradients, True),
        ("return matters", check.return_matters, False),
    ]
    if isinstance(policy, ReturnPredictor):
        checks.insert(-2, ("predicted return", check.predicted_return, True))
    if isinstance(policy, LastStepPolicy):
        checks.insert(2, ("last step", check.last_step, True))
    if isinstance(policy, ActingPolicy):
        checks.insert(2, ("acting", check.acting, True))
    findings = [members]
    with _evaluating(policy):
        for name, run, needed in checks:
            policy.context_length = check.length  # whatever the check before left
            findings.append(find(name, run, needed=needed))
            if name == "output" and not findings[-1].passed:
                break  # nothing further could be said
    return findings


def _members(policy: Any) -> str:
    for name in ("context_length", "action_dim"):
        value = getattr(policy, name, None)
        require(isinstance(value, int) and value > 0, f"{name} has to be a whole number above 0, and is {value!r}")
    for name in ("__call__", "next_return_to_go"):
        require(callable(getattr(policy, name, None)), f"it has no method {name}: a Policy has four members")
    return f"reads {policy.context_length} steps, acts with {policy.action_dim} numbers"


def _close(answers: Tensor, others: Tensor) -> bool:
    """The same but for rounding: another shape of batch may round differently."""
    return torch.allclose(answers, others, rtol=1e-4, atol=1e-5)


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Without dropout, and afterwards everything as it was."""
    context, training = policy.context_length, getattr(policy, "training", False)
    if isinstance(policy, TrainablePolicy):
        policy.eval()
    try:
        yield
    finally:
        policy.context_length = context
        if isinstance(policy, TrainablePolicy):
            policy.train(training)


class _Check:
    """The checks, each a method that says what it saw or raises `WrongError`."""

    def __init__(self, policy: Policy, observation_dim: int, return_to_go: float, seed: int) -> None:
        self.policy, self.observation_dim, self.return_to_go = policy, observation_dim, return_to_go
        self.length = policy.context_length
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, time: int, rows: int = _ROWS) -> Steps:
        """Steps nobody has walked."""

        def normal(*size: int) -> Tensor:
            return torch.randn(rows, time, *size, generator=self.generator)

        raw = normal(self.policy.action_dim)
        return Steps(
            observations=normal(self.observation_dim),
            raw_actions=raw,
            actions=raw.tanh(),
            rewards=normal(),
            returns_to_go=self.return_to_go * (1 + 0.5 * normal()),
            log_probs=normal(),
            timesteps=torch.arange(time).expand(rows, time) + torch.randint(50, (rows, 1), generator=self.generator),
            mask=torch.ones(rows, time, dtype=torch.bool),
        )

    @torch.no_grad()
    def ask(self, context: Steps) -> Float[Tensor, "batch time both"]:
        """Means and deviations, side by side."""
        distribution = self.policy(context)
        return torch.cat([distribution.mean, distribution.std], -1)

    def output(self) -> str:
        for time in {1, self.length}:
            distribution = self.policy(self.draw(time))
            require(isinstance(distribution, TanhNormal), f"it returns {type(distribution).__name__}, not a TanhNormal")
            expected = (_ROWS, time, self.policy.action_dim)
            for name in ("mean", "std"):
                value = getattr(distribution, name)
                got = tuple(value.shape)
                require(got == expected, f"{name} of a window of {time} has to be {expected} and is {got}")
                require(bool(value.isfinite().all()), f"{name} is not finite, though all numbers in the window are")
            require(bool((distribution.std > 0).all()), "std has to be above 0 everywhere: give it a lower bound")
        return "means and positive deviations at every step of a window"

    def last_step(self) -> str:
        context = self.draw(self.length)
        assert isinstance(self.policy, LastStepPolicy)
        with torch.no_grad():
            last = self.policy.last(context)
        same = _close(torch.cat([last.mean, last.std], -1), self.ask(context)[:, -1])
        require(same, "last(context) differs from the last step of self(context): updates ask it, and nothing else")
        return "the same answer where the last step alone is asked for"

    @torch.no_grad()
    def acting(self) -> str:
        for context in (1, self.length):
            self.policy.context_length = context
            window = self.draw(context)
            act = actor_of(self.policy)(window)
            same = _close(torch.cat([act.mean, act.std], -1), self.ask(window)[:, -1])
            require(
                same, f"what acting() makes acts otherwise than the policy at context {context}: walks ask it alone"
            )
        return "what acts for it acts as it does"

    def deterministic(self) -> str:
        context = self.draw(self.length)
        require(
            torch.equal(self.ask(context), self.ask(context)),
            "the same window gives two answers in evaluation mode: something random (dropout?) stays on, and no ratio"
            " would be 1",
        )
        return "the same window gives the same answer"

    def company(self) -> str:
        context = self.draw(self.length)
        half = context.map(lambda x: x[: _ROWS // 2])
        require(
            _close(self.ask(context)[: _ROWS // 2], self.ask(half)),
            "a row's answer depends on the other rows of its batch (batch normalisation?)",
        )
        return "rows do not see each other"

    def causal(self) -> str:
        context = self.draw(self.length)
        before = self.ask(context)
        for name, lag in (("observations", 0), ("returns_to_go", 0), ("actions", 1)):
            for time in range(self.length):
                changed = self._changed(context, name, slice(time, None))
                after, own = self.ask(changed)[:, : time + lag], before[:, : time + lag]
                require(
                    _close(after, own),
                    f"{name} from step {time} on change the answer at an earlier step"
                    + (" or at that one, where the action is not chosen yet" if lag else ""),
                )
        return "an answer depends on nothing later"

    def padding(self) -> str:
        if self.length == 1:
            return "a context of 1 has none"
        window = self.draw(self.length - 1)
        alone = self.ask(window)
        nothing = empty_steps(_ROWS, 1, self.observation_dim, self.policy.action_dim)
        content = replace(self.draw(1), mask=nothing.mask)
        for before in (nothing, content):
            padded = self.ask(concatenate([before, window], 1))
            require(bool(padded.isfinite().all()), "answers on padding have to be finite, whatever they are")
            require(
                _close(padded[:, 1:], alone),
                "steps whose mask is False change the answer: hide them in the attention",
            )
        behind = replace(window, mask=torch.zeros_like(window.mask))
        require(bool(self.ask(behind).isfinite().all()), "a window of nothing but padding has to give finite numbers")
        return "padding changes nothing, whatever stands in it"

    def unread(self) -> str:
        context = self.draw(self.length)
        before = self.ask(context)
        for name in ("rewards", "raw_actions", "log_probs"):
            after = self.ask(self._changed(context, name, slice(None)))
            require(torch.equal(before, after), f"it reads {name}, which nobody knows yet when it acts")
        return "reads observations, returns-to-go, actions before, and the clock at most"

    @torch.no_grad()
    def likelihoods(self) -> str:
        context = self.draw(self.length)
        distribution = self.policy(replace(context, observations=10 * context.observations))
        raw = distribution.sample_raw(torch.randn(distribution.mean.shape, generator=self.generator))
        for value in (distribution.base_log_prob(raw), distribution.log_prob(raw)):
            require(bool(value.isfinite().all()), "the likelihood of an action it drew itself is not finite")
        return f"σ from {distribution.std.min().item():.3g} to {distribution.std.max().item():.3g}"

    def acting_is_training(self) -> str:
        worst = 0.0
        for context in (1, self.length):
            self.policy.context_length = context
            history = empty_steps(_ROWS, context - 1, self.observation_dim, self.policy.action_dim)
            walked = self._act(history)
            windows = concatenate([history, walked], 1).windows(context)
            log_probs = self.policy(windows)[:, -1].base_log_prob(walked.raw_actions.flatten(0, 1))
            error = (log_probs.view_as(walked.mask) - walked.log_probs).abs().max().item()
            require(
                error <= RATIO_TOLERANCE,
                f"at context {context} an action is {error:.2g} nats likelier or less likely in training than it was"
                " when it was taken: the answer depends on more than its own window",
            )
            worst = max(worst, error)
        return f"ratios are 1 before the first update, at context 1 and {self.length} (within {worst:.1g})"

    @torch.no_grad()
    def _act(self, history: Steps) -> Steps:
        """Walks through random observations, a step at a time."""
        coming, taken = self.draw(_STEPS), []
        for time in range(_STEPS):
            now = coming.slice_time(time, time + 1)
            unknown = replace(now, actions=torch.zeros_like(now.actions), raw_actions=torch.zeros_like(now.raw_actions))
            distribution = self.policy(concatenate([history, unknown], 1))[:, -1]
            raw = distribution.sample_raw(now.raw_actions[:, 0])
            log_probs = distribution.base_log_prob(raw)[:, None]
            now = replace(now, raw_actions=raw[:, None], actions=raw.tanh()[:, None], log_probs=log_probs)
            history = concatenate([history, now], 1).slice_time(1)
            taken.append(now)
        return concatenate(taken, 1)

    def next_return_to_go(self) -> str:
        context = self.draw(1)
        following = self.policy.next_return_to_go(context.returns_to_go[:, 0], context.rewards[:, 0])
        require(
            isinstance(following, Tensor) and following.shape == (_ROWS,),
            f"next_return_to_go has to give one number a row, ({_ROWS},)",
        )
        require(bool(following.isfinite().all()), "next_return_to_go gives numbers that are not finite")
        return "one number a row"

    @torch.no_grad()
    def predicted_return(self) -> str:
        assert isinstance(self.policy, ReturnPredictor)
        context = self.draw(self.length)
        before = self.policy.predict_return_to_go(context)
        expected = (_ROWS, self.length)
        require(before.shape == expected, f"predict_return_to_go has to be {expected} and is {tuple(before.shape)}")
        for name in ("returns_to_go", "actions"):
            after = self.policy.predict_return_to_go(self._changed(context, name, slice(-1, None)))
            require(
                _close(after, before),
                f"the return it predicts depends on {name} of the step predicted for, which are not known yet",
            )
        return f"predicts returns from {before.min().item():.3g} to {before.max().item():.3g}, whatever is asked for"

    def gradients(self) -> str:
        policy = self.policy
        require(isinstance(policy, TrainablePolicy), "it is no nn.Module: it can act, but nothing can train it")
        assert isinstance(policy, TrainablePolicy)
        context, parameters = self.draw(self.length), [p for p in policy.parameters() if p.requires_grad]
        distribution = policy(context)
        loss = distribution.base_log_prob(context.raw_actions).sum()
        found = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
        require(all(bool(g.isfinite().all()) for g in found), "gradients of its likelihoods are not finite")
        require(any(bool((g != 0).any()) for g in found), "no gradient of its likelihoods reaches a parameter")
        return f"reach {len(found)} of {len(parameters)} tensors of parameters"

    def return_matters(self) -> str:
        context = self.draw(self.length)
        after = self.ask(self._changed(context, "returns_to_go", slice(None)))
        require(
            not torch.equal(self.ask(context), after),
            "its actions do not depend on the return asked for: it can be finetuned, but asking for more does nothing",
        )
        return "the return asked for changes its actions"

    def _changed(self, context: Steps, name: str, time: slice) -> Steps:
        """The window with other numbers in one field."""
        value = getattr(context, name).clone()
        value[:, time] = getattr(self.draw(value.shape[1]), name)[:, time]
        return replace(context, **{name: value})
