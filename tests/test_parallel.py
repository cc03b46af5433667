"""One run over several ranks is the run of one: the same walks, the same results to rounding, whatever happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pointmass import PointMass
from ranks import TESTS, Ranks
from tiny import GRPO, IQL, outcome

from dtune import parallel
from dtune.errors import ConfigError
from dtune.experiments import checkpoint
from dtune.experiments.encoding import encode


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    server = Ranks()
    yield server
    server.close()


# ---- the calls


def test_collectives(ranks):
    told = ranks.run("collectives", 3)
    first = told[0]
    assert first["shares"] == [[0, 2], [2, 4], [4, 5]]
    assert first["owners"] == [0, 0, 1, 1, 2]
    assert first["wide"] == torch.arange(30.0).view(5, 2, 3).tolist()
    assert first["flag"] == [True, False, True, False, True]
    assert first["narrow"] == [5, 4, 0]
    assert first["lonely"] == [[7.5] * 3]
    assert first["grads"] == [[3.0, 3.0], [5.0, 5.0], None]  # who has no gradient anywhere is not decayed either
    assert first["told"] == [3.0, 3.0]
    assert first["largest"] == [2.0, 0.0]
    assert (first["bytes"], first["empty"]) == ("000000", "")
    assert first["same"] == [False, True, [1.0, 2.0]]
    for other in told:
        assert other == first


def test_alone_nothing_is_sent_and_nothing_changes():
    parallel.traffic.clear()
    values, rows = torch.randn(3), {"x": torch.randn(2, 3)}
    assert parallel.ranks() == 1
    assert parallel.rank() == 0
    assert parallel.share(7) == slice(0, 7)
    assert parallel.total(values) is values
    assert parallel.largest(values) is values
    assert parallel.from_first(values) is values
    assert parallel.gather_rows(rows, [2])["x"] is rows["x"]
    assert parallel.bytes_from_first(b"abc") == b"abc"
    assert not parallel.same_from_first([values])
    assert not parallel.traffic


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0")])
def test_what_torchrun_would_not_say_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}.*{value}"), parallel.begun():
        pass


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_timeout_is_a_number_of_seconds(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DTUNE_TIMEOUT", value)
    with pytest.raises(ConfigError, match="DTUNE_TIMEOUT"), parallel.begun():
        pass


def test_a_rank_that_does_not_answer_ends_the_group_with_a_sentence(ranks, monkeypatch):
    told = ranks.run("silence", 2, seconds=4, variables={"DTUNE_TIMEOUT": "1"})
    assert told[0].startswith("ParallelError: rank 0 of 2 has lost the others (sum: Timed out")
    assert "--max-restarts, goes on from the last checkpoint" in told[0]


def test_what_the_first_rank_cannot_read_ends_all(ranks):
    first, other = ranks.run("refused", 2)
    assert first == "DataError: the first rank's file is damaged"
    assert other.startswith("ParallelError: rank 0 could not begin, and says why")


# ---- the same run


def close(a: Any, b: Any, tolerance: float = 2e-4) -> bool:
    return torch.allclose(torch.tensor(a).double(), torch.tensor(b).double(), rtol=tolerance, atol=tolerance)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"name": "grpo"},
    "context": {"name": "grpo", "context": 3, "reset_context": "parent", "lookahead_noise": 0.5, "mirrored": True},
    "starts": {"name": "grpo", "shared_start": False, "relabel": True, "update": {"ratio": "token"}},
    "idle": {"name": "grpo", "reset_trajectories": 1, "episodes_per_iteration": 1, "batch_size": 3},
    "reinformer": {"name": "grpo of a reinformer"},
    "ppo": {"name": "ppo", "context": 3},
    "q_guided": {"name": "q_guided"},
    "odt": {"name": "odt"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_walk_the_same_and_learn_the_same(ranks, variant):
    (alone,) = ranks.run("learn", 1, iterations=3, **VARIANTS[variant])
    for count in (2, 4) if variant in ("plain", "idle") else (3,):
        told = ranks.run("learn", count, iterations=3, **VARIANTS[variant])
        joined = {name: [row for part in told for row in part["members"][name]] for name in alone["members"]}
        assert joined == alone["members"]  # of the first iteration, to the last bit
        for part in told:
            assert part["replay"] == alone["replay"]
            assert part["rows"] == told[0]["rows"]
            assert part["parameters"] == told[0]["parameters"]
            assert close(part["parameters"], alone["parameters"])
        for row, expected in zip(told[0]["rows"], alone["rows"], strict=True):
            assert row.keys() == expected.keys()
            for key, value in expected.items():
                exact = key.startswith("count/") or key in ("rollout/faulty", "rollout/length")
                assert row[key] == value if exact else close(row[key], value, 1e-3), key
        state = {key: value for key, value in told[0]["state"] if not key.endswith("owners")}
        assert state.keys() == dict(alone["state"]).keys()
        assert all(close(state[key], value, 1e-3) for key, value in alone["state"])


def test_each_keeps_its_share_of_memory_and_walks_its_share(ranks):
    (alone,) = ranks.run("learn", 1, name="grpo", iterations=3)
    told = ranks.run("learn", 4, name="grpo", iterations=3)
    assert sum(part["held"] for part in told) == alone["held"]
    assert max(part["held"] for part in told) < 0.3 * alone["held"]
    assert sum(part["stepped"] for part in told) == alone["stepped"]
    assert max(part["stepped"] for part in told) < 0.4 * alone["stepped"]
