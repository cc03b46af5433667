import pytest
import torch
from torch import Tensor

from dtune.data.columns import check_columns, make_dataset
from dtune.data.splitting import cut_locomotion
from dtune.errors import ConfigError, DataError


def flags(*rows: int, of: int) -> Tensor:
    result = torch.zeros(of, dtype=torch.bool)
    result[list(rows)] = True
    return result


def columns(rows: int = 6, observation_dim: int = 2, **replaced: Tensor) -> dict[str, Tensor]:
    """Two episodes of 2 and 3 steps, the first timed out, the second terminated, and an unfinished tail."""
    generator = torch.Generator().manual_seed(0)
    return {
        "observations": torch.randn(rows, observation_dim, generator=generator),
        "actions": torch.rand(rows, 2, generator=generator) * 2 - 1,
        "rewards": torch.arange(float(rows)),
        "terminals": flags(4, of=rows),
        "timeouts": flags(1, of=rows),
    } | replaced


def test_episodes_are_cut_and_the_unfinished_tail_is_dropped():
    given = columns()
    dataset = make_dataset(given, name="made", splitting="locomotion")
    assert dataset.lengths.tolist() == [2, 3]
    assert dataset.rewards.tolist() == [0, 1, 2, 3, 4]
    assert dataset.terminated.tolist() == [False, False, False, False, True]
    assert torch.equal(dataset.observations, given["observations"][:5])
    assert torch.equal(dataset.actions, given["actions"][:5])
    assert dataset.name == "made"


def test_the_splitting_asked_for_is_used():
    ending = columns(timeouts=flags(1, 5, of=6))
    assert make_dataset(ending, name="made", splitting="locomotion").lengths.tolist() == [2, 3, 1]
    assert make_dataset(ending, name="made", splitting="adroit").lengths.tolist() == [2, 3]


def test_an_unknown_splitting_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dtune.data.columns.SPLITTINGS", {"locomotion": cut_locomotion})
    with pytest.raises(ConfigError, match=r"no splitting 'adroit'.*locomotion"):
        make_dataset(columns(), name="made", splitting="adroit")


def test_flat_columns_may_be_one_wide_and_numbers_of_any_kind():
    plain = columns()
    odd = columns(
        rewards=plain["rewards"].long()[:, None],
        terminals=plain["terminals"].float()[:, None],
        timeouts=plain["timeouts"].to(torch.uint8),
        observations=plain["observations"].double(),
    )
    a, b = make_dataset(plain, name="made"), make_dataset(odd, name="made")
    for name in ("observations", "rewards", "terminated", "lengths"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_actions_a_rounding_outside_are_pulled_in_and_the_callers_are_left_alone():
    actions = torch.zeros(6, 2)
    actions[2, 1], actions[3, 0] = 1.0005, -1.0005
    dataset = make_dataset(columns(actions=actions), name="made")
    assert dataset.actions.aminmax().max == 1
    assert dataset.actions.aminmax().min == -1
    assert actions.max() > 1


@pytest.mark.parametrize("value", [1.01, -1.01])
def test_actions_further_outside_are_refused(value: float):
    actions = torch.zeros(6, 2)
    actions[3, 1] = value
    with pytest.raises(DataError, match=r"made: 'actions' reach 1\.01.*row 3.*scale"):
        make_dataset(columns(actions=actions), name="made")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_numbers_that_are_not_finite_are_refused_with_their_row(key: str, value: float):
    given = columns()
    given[key][2:, ...] = value
    with pytest.raises(DataError, match=rf"made: '{key}' holds {value} at row 2.*finite"):
        make_dataset(given, name="made")


@pytest.mark.parametrize("key", ["terminals", "timeouts"])
@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_flags_other_than_0_and_1_are_refused(key: str, value: float):
    wrong = torch.zeros(6)
    wrong[3] = value
    with pytest.raises(DataError, match=rf"made: '{key}' holds {value} at row 3"):
        make_dataset(columns(**{key: wrong}), name="made")


def test_ants_contact_forces_are_dropped_if_they_are_zero():
    observations = torch.randn(6, 111)
    observations[:, 27:] = 0
    dataset = make_dataset(columns(observations=observations), name="made")
    assert torch.equal(dataset.observations, observations[:5, :27])
    assert dataset.observations.is_contiguous()
    observations[4, 110] = 0.5
    with pytest.raises(DataError, match=r"made: 'observations' have 111 .*row 4.*first 27"):
        make_dataset(columns(observations=observations), name="made")


def test_other_wide_observations_are_kept():
    assert make_dataset(columns(observation_dim=112), name="made").observations.shape == (5, 112)


@pytest.mark.parametrize("rows", [0, 1, 6])
@pytest.mark.parametrize("splitting", ["locomotion", "adroit"])
def test_without_a_finished_episode_there_is_no_dataset(rows: int, splitting):
    none = torch.zeros(rows, dtype=torch.bool)
    with pytest.raises(DataError, match=rf"made has no finished episode in {rows} rows"):
        make_dataset(columns(6, terminals=none, timeouts=none) | cut(columns(), rows), name="made", splitting=splitting)


def cut(given: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {key: given[key][:rows] for key in ("observations", "actions", "rewards")}


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "timeouts"])
def test_a_missing_column_is_refused(key: str):
    given = columns()
    given["extra"] = given.pop(key)
    with pytest.raises(DataError, match=rf"made lacks \['{key}'\] and has .*'extra'"):
        make_dataset(given, name="made")


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "timeouts"])
def test_columns_of_unequal_length_are_refused(key: str):
    given = columns()
    given[key] = given[key][:5]
    with pytest.raises(DataError, match=r"made has columns of unequal length.*5"):
        make_dataset(given, name="made")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("observations", (6,)),
        ("observations", (6, 2, 1)),
        ("observations", (6, 0)),
        ("actions", (6,)),
        ("rewards", (6, 2)),
        ("rewards", ()),
        ("timeouts", (6, 2)),
        ("terminals", (1, 6)),
    ],
)
def test_a_column_of_a_wrong_shape_is_refused(key: str, shape: tuple[int, ...]):
    shapes = {name: tuple(value.shape) for name, value in columns().items()} | {key: shape}
    with pytest.raises(DataError, match=rf"made: '{key}' has the shape"):
        check_columns(shapes, name="made")
