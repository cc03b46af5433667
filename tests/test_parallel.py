"""One run over several ranks is the run of one: the same walks, results to rounding, whatever happens to them."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, check_alike, close, iterations, torchrun, wait_for, workers
from tiny import GRPO, IQL, PRETRAIN, outcome

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
    assert not first["same"]
    assert first["unlike"] == {"ulps": True, "more ulps": True, "order": True}
    assert first["made alike"] == [[1.0, 2.0, 3.0]] * 3
    sent = [other.pop("traffic") for other in told]
    assert [each["gather"] for each in sent] == [
        2 * 49,
        2 * 49 + 12,
        2 * 49,
    ]  # the one that has three numbers sends them
    assert [each.get("broadcast", 0) for each in sent] == [2 * 8 + 3 + 3 * 12, 0, 0]
    assert {each["sum"] for each in sent} == {4 * (6 + 3 + 2)}
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
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}.*{value}"), parallel.begun():
        pass


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_timeout_is_a_number_of_seconds(monkeypatch, value):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DTUNE_TIMEOUT", value)
    with pytest.raises(ConfigError, match="DTUNE_TIMEOUT"), parallel.begun():
        pass


def test_a_rank_that_does_not_answer_ends_the_group_with_a_sentence(ranks, monkeypatch):
    told = ranks.run("silence", 2, seconds=7, variables={"DTUNE_TIMEOUT": "3"})
    assert told[0].startswith("ParallelError: rank 0 of 2 has lost the others (sum: Timed out")
    assert "--max-restarts, goes on from the last checkpoint" in told[0]


def test_ranks_started_again_meet_though_the_store_remembers_those_before(monkeypatch):
    monkeypatch.setenv("DTUNE_TIMEOUT", "10")
    store, names = dist.HashStore(), set()
    store.set_timeout(timedelta(seconds=10))
    for early in (0, 1, 0):  # who is there first, and finds only what those before had asked and answered
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(parallel._meet, store, early, 2)
            time.sleep(0.3)
            other = pool.submit(parallel._meet, store, 1 - early, 2)
        assert one.result() == other.result()
        names.add(one.result())
    assert len(names) == 3


def test_what_the_first_rank_cannot_read_ends_all(ranks):
    first, other = ranks.run("refused", 2)
    assert first == "DataError: the first rank's file is damaged"
    assert other.startswith("ParallelError: rank 0 could not begin, and says why")


# ---- the same run


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"name": "grpo", "subtrajectory_capacity": 64},  # the oldest have to leave
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
    (alone,) = ranks.run("learn", 1, name="grpo", iterations=3, subtrajectory_capacity=64)
    told = ranks.run("learn", 4, name="grpo", iterations=3, subtrajectory_capacity=64)
    assert sum(part["held"] for part in told) == alone["held"]
    assert max(part["held"] for part in told) < 0.3 * alone["held"]
    assert sum(part["stepped"] for part in told) == alone["stepped"]
    assert max(part["stepped"] for part in told) < 0.4 * alone["stepped"]


# ---- the run folder


def test_a_run_goes_on_with_any_number_of_ranks_and_no_folder_in_common(ranks, tmp_path):
    (tmp_path / "many").mkdir()
    ranks.run("finetune", 1, folder=str(tmp_path / "one"), iterations=6)
    for until, count in ((2, 2), (4, 1), (6, 4)):
        ranks.run("finetune", count, folder=str(tmp_path / "many"), iterations=until, own=True)
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["0"]
    check_alike(tmp_path / "many" / "0", tmp_path / "one")


def test_as_many_ranks_go_on_to_the_last_bit(ranks, tmp_path):
    for folder, pieces in (("whole", (6,)), ("pieces", (2, 4, 6))):
        for until in pieces:
            ranks.run("finetune", 2, folder=str(tmp_path / folder), iterations=until)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "pieces")


def test_a_world_of_one_is_no_world(ranks, tmp_path):
    ranks.run("finetune", 1, folder=str(tmp_path), iterations=2)
    assert not [name for name in encode(checkpoint.load(tmp_path / "checkpoints" / "last"))[1] if "owners" in name]


def test_a_killed_rank_comes_back_and_nobody_can_tell(ranks, tmp_path):
    ranks.run("finetune", 2, folder=str(tmp_path / "whole"), iterations=8)
    two = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    process = torchrun(*two, folder=str(tmp_path / "killed"), iterations=8, seconds=0.02)
    wait_for(process, tmp_path / "killed", 3)
    os.kill(workers(process)["0"], signal.SIGKILL)  # the one that writes
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert out.count("finished") == 2
    assert out.count("continuing after iteration") == 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_asked_to_stop_all_stop_after_the_same_iteration(ranks, tmp_path):
    ranks.run("finetune", 2, folder=str(tmp_path / "whole"), iterations=8)
    two = ("--standalone", "--nproc-per-node", "2")
    process = torchrun(*two, folder=str(tmp_path / "stopped"), iterations=8, seconds=0.02)
    wait_for(process, tmp_path / "stopped", 2)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode
    done = iterations(tmp_path / "stopped")
    assert err.count(f"stopped by SIGTERM after iteration {done}: saved") == 2
    assert checkpoint.load_last(tmp_path / "stopped").iteration == done
    ranks.run("finetune", 2, folder=str(tmp_path / "stopped"), iterations=8)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


# ---- commands


def told(folder: Path, rank: int) -> str:
    return (folder / str(rank) / "err").read_text()


def test_the_command_reads_writes_and_speaks_on_the_first_rank(ranks, pretrained, tmp_path):
    """The other ranks see neither the policy nor the run folder."""
    policy = tmp_path / "0" / "policy"
    arguments = [*GRPO, "--policy", "policy", "--out", "run"]
    codes = ranks.run("command", 2, arguments=arguments, folder=str(tmp_path), links={"0": {"policy": str(pretrained)}})
    assert codes == [0, 0], told(tmp_path, 0) + told(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == ["err", "out"]
    assert "before" in (tmp_path / "0" / "out").read_text()
    assert policy.exists()
    assert [(tmp_path / "1" / name).read_text() for name in ("out", "err")] == ["", ""]
    assert {"config.json", "meta.json", "metrics.csv"} <= {path.name for path in (tmp_path / "0" / "run").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (PRETRAIN, "pretraining is done by one process, and torchrun has started 2: run `dtune pretrain` without"),
        (IQL, "IQL is done by one process, and torchrun has started 2: start it without"),
    ],
)
def test_what_cannot_be_shared_is_refused(ranks, pretrained, tmp_path, arguments, said):
    data = ["--data", str(next((pretrained.parent / "data").iterdir()))]
    codes = ranks.run("command", 2, arguments=[*arguments, *data, "--out", "run"], folder=str(tmp_path))
    assert codes == [2, 2]
    assert said in told(tmp_path, 0)


def test_ranks_with_other_settings_are_refused(ranks, pretrained, tmp_path):
    arguments = [*GRPO, "--policy", str(pretrained), "--out", "run", "--seed"]
    codes = ranks.run("command", 2, arguments=arguments, folder=str(tmp_path), own=["0", "1"])
    assert codes == [1, 2]
    assert "rank 1 of 2 was started with other settings than rank 0" in told(tmp_path, 1)
    assert "has lost the others" in told(tmp_path, 0)
