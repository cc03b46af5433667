import torch

from dtune.data.datasets import Dataset
from dtune.data.transitions import asked_returns_to_go, sample_transitions


def three_and_two() -> Dataset:
    """An episode of 3 steps that terminated and one of 2 that the clock cut; each number says which step it is of."""
    return Dataset(
        observations=torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0]]),
        actions=torch.tensor([[0.0], [0.1], [0.2], [0.5], [0.6]]),
        rewards=torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]),
        terminated=torch.tensor([False, False, True, False, False]),
        lengths=torch.tensor([3, 2]),
        name="steps",
    )


def drawn(length: int, history: int = 0) -> dict[tuple[float, ...], dict[str, list]]:
    """Every window there is, by the observations of its real steps to learn from."""
    data = three_and_two()
    batch = sample_transitions(
        data, data.returns_to_go(), 200, length, torch.Generator().manual_seed(0), history=history
    )
    windows = {}
    for row in range(200):
        own, seen = batch.own, batch.following
        windows[tuple(own.observations[row, own.mask[row], 0].tolist())] = {
            "known": batch.known[row].tolist(),
            "terminated": batch.terminated[row].tolist(),
            "following": seen.observations[row, seen.mask[row], 0].tolist(),
            "asked": seen.returns_to_go[row, seen.mask[row]].tolist(),
            "context": batch.steps.observations[row, batch.steps.mask[row], 0].tolist(),
            "mask": batch.steps.mask[row].tolist(),
            "clock": batch.steps.timesteps[row].tolist(),
        }
    return windows


def test_windows_begin_anywhere_and_know_what_followed():
    windows = drawn(2)
    assert windows.keys() == {(0, 1), (1, 2), (2,), (10, 11), (11,)}
    inner, ending, cut, over = windows[0, 1], windows[1, 2], windows[10, 11], windows[11,]
    assert (inner["known"], inner["terminated"], inner["following"]) == ([True] * 2, [False] * 2, [1, 2])
    assert (ending["known"], ending["terminated"], ending["following"]) == ([True] * 2, [False, True], [2])
    assert (cut["known"], cut["terminated"], cut["following"]) == ([True, False], [False] * 2, [11])
    assert (over["known"], over["terminated"], over["following"]) == ([False] * 2, [False] * 2, [])
    assert windows[2,]["known"] == [True, False]  # its end needs no successor, the padding behind it has no target
    assert inner["asked"] == [6, 4]


def test_context_comes_along_and_is_not_learned_from():
    windows = drawn(1, history=2)
    assert windows.keys() == {(0,), (1,), (2,), (10,), (11,)}
    assert [windows[step,]["context"] for step in (0, 1, 2, 11)] == [[0], [0, 1], [0, 1, 2], [10, 11]]
    assert [windows[step,]["following"] for step in (0, 1, 2, 10)] == [[0, 1], [0, 1, 2], [1, 2], [10, 11]]
    assert windows[1,]["mask"] == [False, True, True]
    assert windows[2,]["clock"] == [0, 1, 2]
    assert [windows[step,]["known"] for step in (0, 2, 10, 11)] == [[True], [True], [True], [False]]


def test_every_step_is_as_likely_as_any_other():
    data = three_and_two()
    batch = sample_transitions(data, data.returns_to_go(), 20_000, 1, torch.Generator().manual_seed(1))
    shares = torch.bincount(batch.steps.observations.flatten().long(), minlength=12)[[0, 1, 2, 10, 11]] / 20_000
    assert shares.sub(0.2).abs().max() < 0.01
    assert batch.steps.raw_actions.tanh().allclose(batch.steps.actions)


def test_what_is_left_of_the_return_asked_for():
    """Not what was earned later: 7, 6, 4 and 24, 16."""
    assert asked_returns_to_go(three_and_two(), 100.0).tolist() == [100, 99, 97, 100, 92]
