"""Policies go to the hub and come back; the hub is a stand-in on this machine."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import GRPO, finish, start

import dtune
from dtune.errors import ConfigError, DataError
from dtune.experiments import checkpoint
from dtune.experiments.sharing import hub
from dtune.experiments.sharing import push as sharing
from dtune.experiments.sharing.card import Facts, interval, model_card

pytest.importorskip("huggingface_hub")
from hub import standing_in

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections that the library leaves open


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with standing_in(monkeypatch, tmp_path / "cache") as state:
        yield state


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    code, _, err = finish(start([*GRPO, "--policy", str(pretrained), "--out", "run"], folder))
    assert code == 0, err
    return folder / "run"


def weights(policy) -> dict[str, torch.Tensor]:
    return policy.state_dict()


# There and back


def test_there_and_back(server, pretrained):
    address = sharing.push_policy(pretrained, "somebody/hopper", private=True)
    assert address == f"{server.address}/somebody/hopper"
    assert server.settings["visibility"] == "private"
    sent = server.repositories["somebody/hopper"]
    policy_files = {f"checkpoints/best/{name}" for name in ("policy.json", "policy.safetensors", "MANIFEST.sha256")}
    assert set(sent) == policy_files | {".gitattributes", "README.md", "config.json", "metrics.csv"}

    here, there = dtune.load_policy(pretrained), dtune.load_policy("somebody/hopper")
    assert there.config == here.config
    assert all(torch.equal(value, weights(there)[name]) for name, value in weights(here).items())
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for method, path in server.asked if method == "GET"}
    assert fetched - {""} == policy_files  # nothing else of the repository comes here


def test_commands_take_a_repository_for_a_policy(server, pretrained, capsys):
    sharing.push_policy(pretrained, "somebody/hopper")
    from dtune.cli import main

    main(["evaluate", "somebody/hopper", "--episodes", "2"])
    assert "hopper-random-v2" in capsys.readouterr().out


def test_a_path_here_wins(server, pretrained, tmp_path):
    sharing.push_policy(pretrained, "runs/hopper")
    asked = len(server.asked)
    shutil.copytree(pretrained, tmp_path / "runs" / "hopper", symlinks=True)
    policy = dtune.load_policy("runs/hopper")
    with pytest.raises(ConfigError, match="runs/hoper is not there"):  # a slip is not asked for far away
        dtune.load_policy("runs/hoper")
    assert policy.action_dim == 3
    assert len(server.asked) == asked


def test_what_was_changed_on_its_way_is_refused(server, pretrained):
    sharing.push_policy(pretrained, "somebody/hopper")
    sent = server.repositories["somebody/hopper"]
    name = "checkpoints/best/policy.safetensors"
    sent[name] = sent[name][:-1] + bytes([sent[name][-1] ^ 1])
    with pytest.raises(checkpoint.CheckpointError, match=r"policy\.safetensors does not have the hash"):
        dtune.load_policy("somebody/hopper")


def test_nothing_pulled_is_unpickled(server, pretrained, tmp_path):
    """A pickle in the place of the weights, hashed like them, and one beside them."""
    sharing.push_policy(pretrained, "somebody/hopper")
    sent = server.repositories["somebody/hopper"]
    torch.save({"x": Bomb(tmp_path / "burst")}, tmp_path / "bomb")
    files = {
        name.rpartition("/")[2]: data for name, data in sent.items() if "best" in name and "MANIFEST" not in name
    } | {"policy.safetensors": (tmp_path / "bomb").read_bytes(), "more.pt": (tmp_path / "bomb").read_bytes()}
    files["MANIFEST.sha256"] = checkpoint._manifest(files)
    sent |= {f"checkpoints/best/{name}": data for name, data in files.items()}
    with pytest.raises(checkpoint.CheckpointError, match="does not hold the policy"):
        dtune.load_policy("somebody/hopper")
    assert not (tmp_path / "burst").exists()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# What is refused


def test_there_is_no_such_repository(server):
    with pytest.raises(DataError, match="nobody/nothing is no folder here, and could not be fetched"):
        dtune.load_policy("nobody/nothing")


def test_nobody_answers(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"somebody/hopper is no folder here.*your network"):
        dtune.load_policy("somebody/hopper")


def test_a_fresh_process_gets_as_far_as_the_server(server, tmp_path):
    """Parts of huggingface_hub are there only once somebody has imported them, as this process has."""
    code = "from dtune.experiments.sharing.hub import pull; print(pull('somebody/hopper'))"
    server.repositories["somebody/hopper"] = {f"{hub.PLACE}/policy.json": b"{}"}
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / hub.PLACE / "policy.json").read_bytes() == b"{}"


def test_a_fault_of_code_is_not_called_one_of_the_network(server, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: None.nothing)
    with pytest.raises(AttributeError):
        hub.pull("somebody/hopper")


def test_who_may_not_write_is_told_to_log_in(server, pretrained):
    server.token = "secret"
    with pytest.raises(DataError, match=r"could not be pushed .*hf auth login"):
        sharing.push_policy(pretrained, "somebody/hopper")
    assert not server.repositories


@pytest.mark.parametrize("name", ["hopper", "a/b/c", "https://x/y", "../x"])
def test_a_repository_is_user_and_name(server, pretrained, name):
    with pytest.raises(ConfigError, match=r"a repository is called user/name"):
        sharing.push_policy(pretrained, name)
    assert not hub.is_repository(name)


def test_without_the_library(monkeypatch, pretrained, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for act in (lambda: dtune.load_policy("somebody/hopper"), lambda: sharing.push_policy(pretrained, "some/one")):
        with pytest.raises(ConfigError, match=r"huggingface_hub is needed: pip install 'dtune\[hub\]'"):
            act()


# Links of strangers


def gathered(run: Path, out: Path) -> set[str]:
    sharing.gather(run, "a/b", out)
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def strange(pretrained, tmp_path) -> Path:
    """A run folder with its links, as a stranger sent it."""
    return Path(shutil.copytree(pretrained, tmp_path / "strange", symlinks=True))


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "meta.json"])
def test_a_link_in_the_place_of_a_file_sends_nothing(server, strange, tmp_path, name):
    secret = shutil.move(strange / name, tmp_path / "secret")
    (strange / name).symlink_to(secret)
    for act in (lambda: sharing.push_policy(strange, "a/b"), lambda: sharing.gather(strange, "a/b", tmp_path / "out")):
        with pytest.raises(DataError, match=rf"{name} is not a regular file, and nothing else is sent"):
            act()
    assert not server.asked
    assert not server.repositories


@pytest.mark.parametrize(
    ("link", "given"),
    [
        ("checkpoints/best", ""),
        ("checkpoints/best", "checkpoints"),
        ("checkpoints/best", "checkpoints/best"),
        ("checkpoints", ""),
        ("checkpoints", "checkpoints/best"),
        ("best", ""),
        ("best", "best"),
    ],
)
def test_a_link_to_the_policy_of_another_run_sends_nothing(strange, finetuned, tmp_path, link, given):
    shutil.rmtree(strange / "checkpoints")
    (strange / link).parent.mkdir(exist_ok=True)
    (strange / link).symlink_to(finetuned / "checkpoints" / link.removeprefix("checkpoints").removeprefix("/"))
    with pytest.raises(DataError, match=r"strange/.* leads to .*finetuned.*, and a link out of its folder"):
        sharing.gather(strange / given, "a/b", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["", "checkpoints", "checkpoints/best", "checkpoints/last"])
def test_links_inside_of_a_run_are_followed(strange, tmp_path, given):
    (tmp_path / "runs").symlink_to(strange.parent)  # and so is the user's own way to it
    sent = gathered(tmp_path / "runs" / "strange" / given, tmp_path / "out")
    assert {"config.json", "metrics.csv", "README.md", "checkpoints/best/policy.json"} <= sent
    assert (tmp_path / "out" / "config.json").read_bytes() == (strange / "config.json").read_bytes()


def test_a_checkpoint_alone_is_sent_from_inside_it_too(strange, tmp_path, monkeypatch):
    shutil.copytree(strange / "checkpoints" / "best", tmp_path / "alone")
    monkeypatch.chdir(tmp_path / "alone")
    assert "checkpoints/best/policy.safetensors" in gathered(Path(), tmp_path / "out")
    monkeypatch.chdir(strange / "checkpoints" / "last")
    assert "config.json" in gathered(Path(), tmp_path / "more")


# The card

FACTS = Facts(
    repository="somebody/hopper-grpo",
    kind="DecisionTransformer",
    method="GRPO-DT",
    dataset="hopper-random-v2",
    return_to_go=7200.0,
    data_file="mine.hdf5",
    data_hash="ab12",
    commands=[["dtune", "finetune", "grpo/hopper-random-v2", "--out", "my run"]],
    versions={"dtune": "0.1.0"},
    rows=[
        {"iteration": 0, "eval/return": 30.0, "eval/return_std": 5.0, "eval/normalized_score": 1.5, "eval/length": 20},
        {"iteration": 5},
        {"iteration": 10, "eval/return": 900.0, "eval/return_std": 50.0, "eval/normalized_score": 28.3,
         "eval/normalized_score_std": 1.5, "eval/length": 400.0},
        {"iteration": 20, "eval/return": 800.0, "eval/return_std": 60.0, "eval/length": 380.0},
    ],
    episodes=26,
    license="cc-by-4.0",
)  # fmt: skip


def test_the_card_says_everything():
    card = model_card(FACTS)
    assert "| **this policy**, the best of 3 | 10 | 900.0 | [880.4, 919.6] | 28.3 | [27.7, 28.9] | 400 |" in card
    assert "| before | 0 | 30.0 | [28.0, 32.0] | 1.5 |  | 20 |" in card
    assert "26 episodes each from fixed starts, mean actions, asking for 7200" in card
    assert "* Offline data: `mine.hdf5`, SHA-256 `ab12`" in card  # it need not be D4RL's
    assert "dtune finetune grpo/hopper-random-v2 --out 'my run'" in card
    for said in ("GRPO-DT", "SHA-256 `ab12`", "hopper-random-v2", "cc-by-4.0", "dtune 0.1.0", "somebody/hopper-grpo"):
        assert said in card


def test_the_head_of_the_card_is_what_the_hub_reads():
    lines = model_card(FACTS).split("---\n")[1].splitlines()
    head = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}
    assert head["license"] == "cc-by-4.0"
    assert head["pipeline_tag"] == "reinforcement-learning"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "normalized_score", "value": 28.3, "name": "normalized_score"}]


def test_a_name_cannot_break_out_of_the_head():
    card = model_card(replace(FACTS, dataset="x\n---\nlicense: other"))
    assert card.splitlines()[1] == 'license: "cc-by-4.0"'
    assert "license: other" not in card.split("\n---\n")[0].splitlines()


def test_what_is_not_known_is_not_made_up():
    card = model_card(Facts(repository="a/b", kind="Reinformer"))
    for said in ("Nobody has judged it", "The command is not recorded", "a world it does not name"):
        assert said in card
    assert "model-index" not in card


def test_an_interval_by_hand():
    """Of 1, 2, 3: mean 2, deviation with n - 1 is 1; 1.96 / √3 = 1.1316."""
    assert interval(2.0, (2 / 3) ** 0.5, 3) == pytest.approx((0.8684, 3.1316), abs=1e-4)


def facts_of(run: Path) -> Facts:
    return sharing.collect_facts((run / "checkpoints" / "best").resolve(), run, "a/b", "mit")


def test_facts_of_a_finetuned_run(finetuned, pretrained):
    facts = facts_of(finetuned)
    assert (facts.method, facts.dataset, facts.episodes) == ("GRPO-DT", "hopper-random-v2", 2)
    assert facts.kind == "DecisionTransformer"
    assert facts.return_to_go == 7200
    began = json.loads((pretrained / "meta.json").read_bytes())["begun"]
    assert facts.data_hash == began["dataset_sha256"]  # of the data, not of the checkpoint it began from
    assert facts.data_file == Path(began["dataset"]).name
    assert facts.commands[-1][1:3] == ["finetune", "grpo/hopper-random-v2"]
    assert len(facts.rows) == 7


@pytest.mark.parametrize("changed", ["checkpoint", "record"])
def test_a_run_begun_from_is_looked_up_only_where_its_hash_is_the_one_recorded(
    finetuned, pretrained, tmp_path, changed
):
    shutil.copytree(pretrained, tmp_path / "first", symlinks=True)
    shutil.copytree(finetuned, tmp_path / "run", symlinks=True)
    first, record = tmp_path / "first" / "checkpoints" / "best", tmp_path / "run" / "meta.json"
    meta = json.loads(record.read_bytes())
    meta["begun"]["dataset"] = str(first)
    record.write_text(json.dumps(meta))
    known = facts_of(tmp_path / "run")
    assert (len(known.commands), known.data_hash is None) == (2, False)
    if changed == "checkpoint":
        shutil.copytree(finetuned / "checkpoints" / "last", tmp_path / "other")
        first.unlink()
        first.symlink_to(tmp_path / "other")
    else:
        meta["begun"]["dataset_sha256"] = None
        record.write_text(json.dumps(meta))
    facts = facts_of(tmp_path / "run")
    assert [command[1] for command in facts.commands] == ["finetune"]
    assert facts.data_hash is None  # that of a checkpoint is none of the data


def test_every_command_of_a_run_is_told_once(finetuned, tmp_path):
    shutil.copytree(finetuned, tmp_path / "run", symlinks=True)
    meta = json.loads((finetuned / "meta.json").read_bytes())
    (first,) = (command for command in facts_of(finetuned).commands if command[1:2] == ["finetune"])
    longer = [*meta["begun"]["command"], "--iterations", "9"]
    again = [meta["begun"] | {"command": words} for words in (meta["begun"]["command"], longer, longer)]
    (tmp_path / "run" / "meta.json").write_text(json.dumps(meta | {"continued": [*again, 3, {}]}))
    commands = facts_of(tmp_path / "run").commands
    assert commands[-2:] == [first, [*first, "--iterations", "9"]]
    assert len(commands) == len(facts_of(finetuned).commands) + 1


@pytest.mark.parametrize("place", ["/", "/dev/zero", "/nowhere", "a\0b", "x" * 9999, 5])
def test_a_record_may_name_any_place(finetuned, tmp_path, place):
    shutil.copytree(finetuned, tmp_path / "run", symlinks=True)
    begun = json.loads((finetuned / "meta.json").read_bytes())["begun"] | {"dataset": place}
    (tmp_path / "run" / "meta.json").write_text(json.dumps({"begun": begun, "continued": []}))
    assert len(facts_of(tmp_path / "run").commands) == 1


def test_what_would_be_sent_can_be_looked_at(finetuned, tmp_path, capsys):
    from dtune.cli import main

    main(["push", str(finetuned), "a/b", "--out", str(tmp_path / "sent"), "--license", "cc0-1.0"])
    assert "not sent" in capsys.readouterr().out
    assert dtune.load_policy(tmp_path / "sent").action_dim == 3  # a repository looks like a run folder
    assert 'license: "cc0-1.0"' in (tmp_path / "sent" / "README.md").read_text()
    with pytest.raises(ConfigError, match="is not empty"):
        sharing.gather(finetuned, "a/b", tmp_path / "sent")
    with pytest.raises(ConfigError, match="a repository is called user/name"):
        sharing.gather(finetuned, "nobody", tmp_path / "elsewhere")
