"""Recorded episodes: what is known of them, and how training draws from them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from dtune.data.steps import Steps
from dtune.errors import DataError

ACTION_LIMIT = 1 - 1e-6  # recorded actions are pulled inside this before atanh, which is infinite at 1
STD_FLOOR = 1e-6  # added to the standard deviation, as online-dt does


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Finished episodes laid end to end, in environment units: row `starts[e] + t` is step t of episode e.

    `terminated` is True where the environment ended the episode itself; an episode whose last row is False
    there was cut by the clock. `name` is said in messages: the file the rows came from.
    """

    observations: Float32[Tensor, "steps obs"]
    actions: Float32[Tensor, "steps action"]
    rewards: Float32[Tensor, "steps"]
    terminated: Bool[Tensor, "steps"]
    lengths: Int64[Tensor, "episodes"]
    name: str

    def __len__(self) -> int:
        """Episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Rows of all episodes together."""
        return len(self.rewards)

    @cached_property
    def starts(self) -> Int64[Tensor, "episodes"]:
        """The first row of each episode."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def returns(self) -> Float64[Tensor, "episodes"]:
        """The undiscounted return of each episode."""
        return torch.segment_reduce(self.rewards.double(), "sum", lengths=self.lengths)

    def returns_to_go(self) -> Float32[Tensor, "steps"]:
        """What was earned from each row to the end of its episode: hindsight, for supervised methods only."""
        return self._returns_to_go

    @cached_property
    def _returns_to_go(self) -> Float32[Tensor, "steps"]:
        ends = (self.starts + self.lengths).repeat_interleave(self.lengths)
        remaining = ends - torch.arange(self.steps)
        # After the pass with `span`, `sums` adds up the next 2 * span rewards of the same episode. A running
        # sum over the whole file would need one pass only, but a huge reward would blur other episodes.
        sums, span = self.rewards.double(), 1
        while span < int(self.lengths.max()):
            sums[:-span] += sums[span:].where(remaining[:-span] > span, 0.0)
            span *= 2
        return sums.float()

    def observation_statistics(self) -> tuple[Float32[Tensor, "obs"], Float32[Tensor, "obs"]]:
        """Mean and standard deviation (+ 1e-6) of each observation number, over all rows, summed in float64.

        The published pipeline computes them before it drops the lowest-return episode.
        """
        # One dimension at a time: a float64 copy of everything would double the memory.
        pairs = [torch.std_mean(column.double(), correction=0) for column in self.observations.T]
        mean = torch.stack([mean for _, mean in pairs])
        std = torch.stack([std for std, _ in pairs])
        return mean.float(), (std + STD_FLOOR).float()

    def windows(self, episodes: Int64[Tensor, "batch"], starts_within: Int64[Tensor, "batch"], length: int) -> Steps:
        """The steps `[start, start + length)` of each episode, cut at its end, then padded on the left.

        start 2, length 3, an episode of 4 steps:     [padding, step 2, step 3]

        `returns_to_go` is hindsight, `raw_actions` the atanh of the recorded actions pulled inside
        ±(1 - 1e-6); `log_probs` are zeros: nobody recorded them.

        Args:
            episodes: which episode each window lies in.
            starts_within: its first step, from 0, below the length of the episode.
            length: steps of a window, padding included.

        Raises:
            ValueError: if a window starts outside its episode.
        """
        index, mask = self.window_rows(episodes, starts_within, length)

        def gather(rows: Tensor) -> Tensor:
            taken = rows[index]
            return taken.masked_fill(~mask.view(*mask.shape, *[1] * (taken.ndim - 2)), 0)

        actions = gather(self.actions)
        return Steps(
            observations=gather(self.observations),
            raw_actions=actions.clamp(-ACTION_LIMIT, ACTION_LIMIT).atanh(),
            actions=actions,
            rewards=gather(self.rewards),
            returns_to_go=gather(self._returns_to_go),
            log_probs=torch.zeros(mask.shape),
            timesteps=(index - self.starts[episodes][:, None]).where(mask, 0),
            mask=mask,
        )

    def window_rows(
        self, episodes: Int64[Tensor, "batch"], starts_within: Int64[Tensor, "batch"], length: int
    ) -> tuple[Int64[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """The rows that the steps of `windows` lie in, for columns that `Steps` does not carry; False on padding.

        Raises:
            ValueError: if a window starts outside its episode.
        """
        left = self.lengths[episodes] - starts_within
        if length < 1 or bool(((left < 1) | (starts_within < 0)).any()):
            raise ValueError("A window needs a length of at least 1 and a start inside its episode.")
        offset = torch.arange(length) - (length - left.clamp(max=length))[:, None]  # negative: padding
        mask = offset >= 0
        return (self.starts[episodes] + starts_within)[:, None] + offset.clamp(min=0), mask

    def draw_windows(
        self, batch: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "batch"], Int64[Tensor, "batch"]]:
        """Episodes drawn by length, and in each a step drawn evenly, with replacement: the first two arguments of
        `windows`. Both draws together are one: a step drawn evenly among all."""
        row = torch.randint(self.steps, (batch,), generator=generator)
        episodes = torch.searchsorted(self.starts, row, right=True) - 1
        return episodes, row - self.starts[episodes]

    def sample_windows(self, batch: int, length: int, generator: torch.Generator) -> Steps:
        """Windows of episodes drawn by length, each starting anywhere in its episode, with replacement.

        Windows near an end are short and left-padded, so that a transformer is trained on every context from
        1 step to `length`.
        """
        return self.windows(*self.draw_windows(batch, generator), length)

    def take(self, episodes: Int64[Tensor, "taken"]) -> "Dataset":
        """Some of the episodes, in the order given."""
        lengths = self.lengths[episodes]
        before = lengths.cumsum(0) - lengths
        rows = torch.arange(int(lengths.sum())) + (self.starts[episodes] - before).repeat_interleave(lengths)
        return Dataset(**{key: value[rows] for key, value in columns_of(self).items()}, lengths=lengths, name=self.name)

    def newest(self, episodes: int) -> "Dataset":
        """The last `episodes` of them; shares memory with this one."""
        gone = len(self) - episodes
        first = int(self.lengths[:gone].sum())
        columns = {key: value[first:] for key, value in columns_of(self).items()}
        return Dataset(**columns, lengths=self.lengths[gone:], name=self.name)


def columns_of(dataset: Dataset) -> dict[str, Tensor]:
    """The columns that have a row a step."""
    return {key: getattr(dataset, key) for key in ("observations", "actions", "rewards", "terminated")}


def join(parts: list[Dataset]) -> Dataset:
    """The episodes of all parts, one after the other, under the name of the first."""
    columns = {key: torch.cat([columns_of(part)[key] for part in parts]) for key in columns_of(parts[0])}
    return Dataset(**columns, lengths=torch.cat([part.lengths for part in parts]), name=parts[0].name)


def recorded(steps: Steps, terminated: Bool[Tensor, "episodes"], name: str) -> Dataset:
    """Walked episodes, one a row of `steps` from its first step on, as a dataset.

    Args:
        steps: padded at the end.
        terminated: whether the task ended each; False where the clock did.
        name: said in messages.
    """
    lengths = steps.mask.sum(1)
    ended = torch.zeros_like(steps.mask)
    ended[torch.arange(len(lengths)), lengths - 1] = terminated
    return Dataset(
        observations=steps.observations[steps.mask],
        actions=steps.actions[steps.mask],
        rewards=steps.rewards[steps.mask],
        terminated=ended[steps.mask],
        lengths=lengths,
        name=name,
    )


def drop_lowest_return(dataset: Dataset) -> Dataset:
    """Leaves out the one episode of the lowest return, as online-dt does; an only episode stays."""
    if len(dataset) == 1:
        return dataset
    lowest = int(dataset.returns.argmin())
    others = torch.arange(len(dataset))
    return dataset.take(others[others != lowest])


def check_fits(dataset: Dataset, observation_dim: int, action_dim: int) -> None:
    """Checks that episodes have the sizes a policy or a simulator works with.

    Raises:
        DataError: if they have others.
    """
    sizes = (dataset.observations.shape[1], dataset.actions.shape[1])
    if sizes != (observation_dim, action_dim):
        raise DataError(
            f"{dataset.name} has observations of {sizes[0]} and actions of {sizes[1]} numbers where "
            f"{observation_dim} and {action_dim} are needed: choose the dataset that belongs to the task."
        )
