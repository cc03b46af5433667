"""Films: the frames are of the recorded states, of the size asked for, and end up in a file."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dtune.envs.tasks import DATASETS, TASKS, make_simulator, task_info
from dtune.errors import ConfigError, SimulatorError
from dtune.experiments import checkpoint
from dtune.experiments.policies import describe
from dtune.experiments.reports import scenes, video
from dtune.experiments.reports.page import films
from dtune.experiments.reports.scenes import Scene
from dtune.experiments.reports.video import Film, place_in_run, record
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

SMALL = Film(width=64, height=48, max_steps=9, frames_per_second=60)


@pytest.fixture(scope="module")
def _opengl():
    try:
        scenes.backend()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Gives the folder of an untrained policy of a task; the seed is that of its weights."""

    def make(task: str, seed: int = 0):
        info, folder = task_info(task), tmp_path_factory.mktemp(task)
        shape = DecisionTransformerConfig(
            observation_dim=info.observation_dim, action_dim=info.action_dim, layers=1, heads=2, width=16
        )
        policy = DecisionTransformer(shape, torch.Generator().manual_seed(seed))
        dataset = next(name for name, known in DATASETS.items() if known == task)
        documents = describe(policy, dataset=dataset, return_to_go=100.0)
        return checkpoint.save(folder, 0, {"algorithm": {"policy": policy.state_dict()}}, best=0, documents=documents)

    return make


def walked(task: str, steps: int = 12):
    """A simulator of a task, and its snapshots along a random walk."""
    simulator, generator = make_simulator(task), torch.Generator().manual_seed(0)
    simulator.reset(1, generator)
    snapshots = [simulator.snapshot()[0]]
    for _ in range(steps):
        simulator.step(2 * torch.rand(1, simulator.action_dim, generator=generator) - 1)
        snapshots.append(simulator.snapshot()[0])
    return simulator, snapshots


def draw_ends(task: str):
    simulator, snapshots = walked(task)
    with Scene(simulator.task, task_info(task), width=96, height=72) as scene:
        return [scene.draw(snapshot) for snapshot in (snapshots[0], snapshots[-1], snapshots[0])]


@pytest.mark.usefixtures("_opengl")
def test_pictures_are_of_the_states():
    first, last, again = draw_ends("hopper")
    assert first.shape == (72, 96, 3)
    assert first.std() > 10
    assert (first != last).any()
    np.testing.assert_array_equal(first, again)  # a picture depends on its state alone


@pytest.mark.usefixtures("_opengl")
@pytest.mark.parametrize("task", TASKS)
def test_every_world_can_be_drawn(task):
    first, last, _ = draw_ends(task)
    assert first.std() > 10
    assert (first != last).any()


@pytest.mark.usefixtures("_opengl")
@pytest.mark.parametrize("task", ["door", "pen", "antmaze-umaze"])
def test_what_is_in_the_memory_is_drawn(task):
    """Where the door, the pen's target or the goal is belongs to the snapshot, not to the world."""
    simulator, (snapshot, *_) = walked(task, 1)
    moved = snapshot.copy()
    moved[-1 - simulator.task.memory_dim] += 0.5
    with Scene(simulator.task, task_info(task), width=96, height=72) as scene:
        assert (scene.draw(snapshot) != scene.draw(moved)).any()


@pytest.mark.usefixtures("_opengl")
def test_two_policies_are_filmed_side_by_side(stored, tmp_path):
    out = tmp_path / "deep" / "film.gif"
    before, after = stored("hopper", 0), stored("hopper", 5)
    found = record(after, out, before=before, film=SMALL)
    with Image.open(out) as image:
        assert image.size == (2 * 64, 48)
        assert image.n_frames == found["frames"]
        assert image.info["duration"] == pytest.approx(1000 / found["frames_per_second"], abs=10)
        image.seek(image.n_frames - 1)
        last = np.asarray(image.convert("RGB"))
    assert (last[:, :64] != last[:, 64:]).any()
    assert found["before_return"] != found["return"]
    assert [path.name for path in out.parent.iterdir()] == ["film.gif"]
    alone = record(before, tmp_path / "alone.gif", film=SMALL)
    assert alone["return"] == found["before_return"]  # the same start, the same walk


@pytest.mark.usefixtures("_opengl")
def test_time_runs_as_in_the_world(stored, tmp_path):
    """A step of the Hopper is 8 ms: of 125 a second every fifth is shown, 25."""
    found = record(stored("hopper"), tmp_path / "x.gif", film=Film(width=64, height=48, max_steps=9))
    assert found["frames"] == 2
    assert found["frames_per_second"] == pytest.approx(25)


# imageio-ffmpeg leaves its pipes to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_opengl")
def test_mp4(stored, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    found = record(stored("hopper"), tmp_path / "x.mp4", film=SMALL)
    reader = ffmpeg.read_frames(str(tmp_path / "x.mp4"))
    about, frames = next(reader), list(reader)
    assert about["size"] == (64, 48)
    assert len(frames) == found["frames"]


def test_who_has_ended_stands_still(monkeypatch):
    shown = []

    class Drawer:
        def __init__(self, *_, **__):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def draw(self, snapshot):
            shown.append(snapshot[0])
            return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(video, "Scene", Drawer)
    simulator = make_simulator("hopper")
    walks = {
        name: video.Walk(
            info=TASKS["hopper"], simulator=simulator, rewards=np.ones(steps),
            snapshots=np.arange(steps, dtype=float)[:, None],
        )
        for name, steps in (("before", 3), ("after", 6))
    }  # fmt: skip
    frames = list(video.pictures(walks, Film(width=16, height=16), 2))
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * 3
    assert shown == [0, 0, 2, 2, 2, 4]


@pytest.mark.parametrize("options", [{"width": 63}, {"height": 8}, {"frames_per_second": 0}, {"max_steps": 0}])
def test_impossible_films_are_refused(options):
    with pytest.raises(ConfigError, match="must be"):
        Film(**options)


def test_what_is_missing_is_said(stored, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"\.mp4 or \.gif"):
        record(tmp_path, tmp_path / "x.avi")
    with pytest.raises(ConfigError, match="holds no policy"):
        record(tmp_path, tmp_path / "x.gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"pip install 'dtune\[video\]'"):
        record(tmp_path, tmp_path / "x.mp4")


def test_a_film_goes_into_the_run_folder_where_its_page_finds_it(stored, tmp_path):
    run, loose = tmp_path / "run", tmp_path / "loose"
    shutil.copytree(stored("hopper"), run / "checkpoints" / "iteration_000007")
    (run / "checkpoints" / "last").symlink_to("iteration_000007")
    place = place_in_run(run)
    assert place == run.resolve() / "videos" / "iteration_000007.mp4"
    assert place_in_run(run / "checkpoints" / "iteration_000007") == place
    place.parent.mkdir()
    place.touch()
    (run / "own.gif").touch()
    assert [path.name for path in films(run)] == ["own.gif", "iteration_000007.mp4"]
    shutil.copytree(stored("hopper"), loose)
    with pytest.raises(ConfigError, match="lies in no run folder: say with --out"):
        place_in_run(loose)


def test_two_tasks_are_not_compared(stored, tmp_path):
    with pytest.raises(ConfigError, match="different tasks"):
        record(stored("hopper"), tmp_path / "x.gif", before=stored("walker2d"), film=SMALL)


def test_a_machine_without_opengl_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(scenes, "_TRIAL", "raise ImportError('{0}')")
    scenes.backend.cache_clear()
    with pytest.raises(ConfigError, match="apt install libegl1"):
        scenes.backend()
    scenes.backend.cache_clear()


@pytest.mark.usefixtures("_opengl")
def test_a_snapshot_of_another_task_is_refused():
    with (
        Scene(make_simulator("hopper").task, TASKS["hopper"], width=32, height=32) as scene,
        pytest.raises(SimulatorError, match="not of hopper"),
    ):
        scene.draw(np.zeros(5))
