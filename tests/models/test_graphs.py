"""Calls that are recorded once and replayed, without a GPU: a recording that, as CUDA's, reads and writes in place."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from draws import draw_steps

from dtune.models import graphs
from dtune.models.acting import ReturnTable, StateToken
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.graphs import Replayed

CPU = torch.device("cpu")


class Recorder:
    """What `cuda_graph` does, where a function called again stands for launches replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        self.recorded += 1
        outputs = function()

        def replay():
            self.replayed += 1
            for held, new in zip(outputs, function(), strict=True):
                held.copy_(new)
            return outputs

        for held in outputs:
            held.fill_(float("nan"))  # a recording computes nothing yet
        return replay


@pytest.fixture
def at_once(monkeypatch):
    """Records at the first call."""
    monkeypatch.setattr(graphs, "UNRECORDED", 0)


def test_who_asks_a_few_times_waits_for_no_recording():
    record = Recorder()
    double = Replayed(lambda x: (2 * x,), CPU, record)
    for call in range(graphs.UNRECORDED + 3):
        x = torch.randn(3 + call % 2)
        assert torch.equal(double(x)[0], 2 * x)
        assert record.recorded == (0 if call < graphs.UNRECORDED else 1 if call == graphs.UNRECORDED else 2)


@pytest.mark.usefixtures("at_once")
def test_a_recording_that_says_something_else_is_not_used():
    def wrong(function):
        return lambda: tuple(x + 1 for x in function())

    double = Replayed(lambda x: (2 * x,), CPU, wrong)
    with pytest.warns(UserWarning, match="acts without: its recording says something else"):
        assert torch.equal(double(torch.ones(3))[0], torch.full((3,), 2.0))
    assert torch.equal(double(torch.zeros(2))[0], torch.zeros(2))


@pytest.mark.usefixtures("at_once")
def test_rows_are_computed_whatever_their_number():
    record = Recorder()
    double = Replayed(lambda x, y: (2 * x, x + y[:, 0]), CPU, record)
    for rows, recordings in [(3, 1), (2, 1), (3, 1), (5, 2), (1, 2), (4, 2)]:
        x, y = torch.randn(rows), torch.randn(rows, 2)
        once, other = double(x, y)
        assert torch.equal(once, 2 * x)
        assert torch.equal(other, x + y[:, 0])
        assert record.recorded == recordings
    assert record.replayed == 6 + 2  # each recording is looked at once before


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_recorded_is_called():
    def refuse(function):
        raise RuntimeError("no capture")

    double = Replayed(lambda x: (2 * x,), CPU, refuse)
    for rows in (3, 2, 5):
        x = torch.randn(rows)
        if rows == 2:  # as many as were recorded, or fewer
            (answer,) = double(x)
        else:
            with pytest.warns(UserWarning, match="acts without: no capture"):
                (answer,) = double(x)
        assert torch.equal(answer, 2 * x)


class Streams:
    """What `cuda_graph` asks of CUDA; a capture that breaks off, and leaves its stream the current one."""

    def __init__(self, monkeypatch):
        self.current, self.captures = "own", 0
        monkeypatch.setattr(graphs, "_failures", [])
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda _: None, name=self.current)
        )
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream.name))

    @contextmanager
    def capture(self, graph, stream):
        self.captures, self.current = self.captures + 1, "aside"
        yield
        raise RuntimeError("capture broke off")


def test_after_a_recording_that_broke_off_the_stream_is_the_former_and_none_is_begun(monkeypatch):
    streams = Streams(monkeypatch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broke off"):
            graphs.cuda_graph(torch.device("cuda"), lambda: (torch.ones(1),))
    assert (streams.current, streams.captures) == ("own", 1)


@pytest.mark.usefixtures("at_once")
def test_what_was_given_is_not_written_to():
    x = torch.ones(3)
    halve = Replayed(lambda x: (x / 2,), CPU, Recorder())
    halve(x)
    halve(torch.zeros(3))
    assert torch.equal(x, torch.ones(3))


@pytest.mark.usefixtures("at_once")
@torch.no_grad()
def test_a_replayed_actor_acts_as_ever():
    shape = DecisionTransformerConfig(observation_dim=2, action_dim=2, layers=2, heads=2, width=16, context_length=1)
    policy, record = DecisionTransformer(shape, torch.Generator().manual_seed(1)), Recorder()
    plain, replayed = (StateToken(policy, ReturnTable(policy)) for _ in range(2))
    replayed.compute = Replayed(replayed.compute, CPU, record)
    for rows in (40, 24, 32, 64, 20):
        steps = draw_steps(rows, 1)
        expected, answer = plain(steps), replayed(steps)
        assert torch.equal(answer.mean, expected.mean)
        assert torch.equal(answer.std, expected.std)
    assert (record.recorded, record.replayed) == (2, 5 + 2)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_an_actor_is_a_graph_and_acts_as_the_policy():
    shape = DecisionTransformerConfig(observation_dim=2, action_dim=2, layers=2, heads=2, width=64, context_length=1)
    policy = DecisionTransformer(shape, torch.Generator().manual_seed(1)).to("cuda")
    actor = policy.acting()
    assert actor.kind == "tabulated"
    assert isinstance(actor.act.compute, Replayed)
    for rows in (*[512] * graphs.UNRECORDED, 512, 300, 17, 512):
        steps = draw_steps(rows, 1)
        torch.testing.assert_close(actor(steps).mean, policy(steps)[:, -1].mean, atol=1e-5, rtol=1e-5)
    assert actor.act.compute.rows == 512
