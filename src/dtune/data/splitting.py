"""Where one episode ends and the next begins: the rules that the paper's Tables 2-4 were counted by."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class Cut(NamedTuple):
    """Which rows of a recording are kept, and how many of them belong to each episode, in order."""

    rows: slice | Int64[Tensor, "kept"]  # a slice where nothing is left out in between: no copy is needed
    lengths: Int64[Tensor, "episodes"]


def episode_ends(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Int64[Tensor, "episodes"]:
    """The row after each episode's last one, by the rule for locomotion: cut at every terminal or timeout.

    Rows after the last cut are an unfinished episode.
    """
    return (terminals | timeouts).nonzero().squeeze(1) + 1


def adroit_episode_ends(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Int64[Tensor, "episodes"]:
    """The row after each episode's last one, by the rule the paper's Adroit numbers were made with.

    As `episode_ends`, but blind to the last row, so that a file that ends with an episode loses it: of the
    6,729 steps of door-human 6,504 are left.
    """
    return episode_ends(terminals[:-1], timeouts[:-1])


def cut_locomotion(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Cut:
    """Cuts by `episode_ends`; the unfinished tail is left out."""
    return _whole(episode_ends(terminals, timeouts))


def cut_adroit(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Cut:
    """Cuts by `adroit_episode_ends`; the unfinished tail is left out."""
    return _whole(adroit_episode_ends(terminals, timeouts))


def cut_antmaze(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Cut:
    """Cuts as D4RL's transitions for Q-learning are, which the paper's AntMaze numbers were made from.

    A transition needs the observation after it, so the last row of the file is left out, and so is the row
    of every timeout, which ends an episode one step early. A terminal ends an episode, too. The tail that
    nothing ends is kept as an episode, and so are episodes of a single step: with both, 998,573 and 999,000
    steps are left of D4RL's files, as in Table 4.
    """
    kept = ~timeouts
    kept[-1:] = False
    rows = kept.nonzero().squeeze(1)
    last = terminals[rows]
    last[:-1] |= rows.diff() > 1
    last[-1:] = True
    ends = last.nonzero().squeeze(1) + 1
    return Cut(rows, ends.diff(prepend=ends.new_zeros(1)))


Splitting = Literal["locomotion", "adroit", "antmaze"]
SPLITTINGS: dict[Splitting, Callable[[Tensor, Tensor], Cut]] = {
    "locomotion": cut_locomotion,
    "adroit": cut_adroit,
    "antmaze": cut_antmaze,
}


def _whole(ends: Int64[Tensor, "episodes"]) -> Cut:
    stop = int(ends[-1]) if len(ends) else 0
    return Cut(slice(0, stop), ends.diff(prepend=torch.zeros(1, dtype=torch.long)))
