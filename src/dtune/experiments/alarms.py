"""What a user ought to hear of while a run goes on, each thing once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PATIENCE = 5
"""Iterations on end after which what may happen now and then is told."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A metric that is too large."""

    key: str
    """Of the metric."""
    above: float
    """The largest value that is well."""
    iterations: int
    """So many on end are told."""
    said: str
    """What it means and what to do, with the value as `{}`."""


ALARMS = (
    Alarm(
        key="train/fresh_ratio_error",
        above=1e-3,
        iterations=1,
        said="importance ratios of an unchanged policy, which ought to be 1, are off by {:.2g}: if neither `relabel`"
        " nor a lower matmul_precision does it, the policy breaks a promise, and `dtune.check_policy` says which",
    ),
    Alarm(
        key="train/ratio_max",
        above=10.0,
        iterations=PATIENCE,
        said=f"importance ratios went above 10 in {PATIENCE} iterations on end, now to {{:.0f}}: the policy moves far"
        " from the one that acted; a lower learning rate or a higher kl_coef holds it",
    ),
    Alarm(
        key="rollout/dropped",
        above=0.9,
        iterations=PATIENCE,
        said=f"more than 90 % of members were dropped in {PATIENCE} iterations on end, now {{:.0%}}: the returns of a"
        " group hardly differ; a lower return_margin or a longer lookahead gives it more to learn from",
    ),
)


class Alarms:
    """Listens to the rows of a run.

    Args:
        alarms: what to listen for.
    """

    def __init__(self, alarms: tuple[Alarm, ...] = ALARMS) -> None:
        self._on_end = dict.fromkeys(alarms, 0)

    def heard(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Sentences about the row of one iteration; what was told is not told again."""
        for alarm, before in list(self._on_end.items()):
            if alarm.key not in metrics:
                continue
            self._on_end[alarm] = before + 1 if metrics[alarm.key] > alarm.above else 0
            if self._on_end[alarm] == alarm.iterations:
                del self._on_end[alarm]
                yield "note: " + alarm.said.format(metrics[alarm.key])
