"""Networks on a GPU, without one: PyTorch's `meta` device has no numbers, but refuses to be mixed with the CPU's.

What comes back from there is refused as well ("Cannot copy out"): that this is where a call ends shows that all of the
network was computed where its parameters are. With a GPU (marker `gpu`) the numbers are compared.
"""

import pytest
import torch
from draws import draw_steps
from torch import nn

from dtune.errors import ConfigError
from dtune.models.acting import Angle, ReturnTable, StateToken, return_tokens
from dtune.models.critics import TwinCritic, ValueNetwork
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.device import choose_device, device_of, to_cpu, to_device
from dtune.models.perceptron_policy import PerceptronPolicy, PerceptronPolicyConfig
from dtune.models.reinformer import Reinformer, ReinformerConfig
from dtune.parallel import sum_gradients

ELSEWHERE = "meta"
COMES_BACK = "Cannot copy out of meta tensor"
SHAPE = {"observation_dim": 2, "action_dim": 2, "width": 16}
TRANSFORMERS = {
    "context 1": lambda: DecisionTransformer(DecisionTransformerConfig(**SHAPE, layers=2, heads=2)),
    "context 3": lambda: DecisionTransformer(DecisionTransformerConfig(**SHAPE, layers=2, heads=2, context_length=3)),
    "with timesteps": lambda: DecisionTransformer(
        DecisionTransformerConfig(**SHAPE, layers=2, heads=2, timestep_embedding=2000)
    ),
    "reinformer": lambda: Reinformer(ReinformerConfig(**SHAPE, layers=2, heads=2, context_length=3)),
    "perceptron": lambda: PerceptronPolicy(PerceptronPolicyConfig(**SHAPE)),
}


def test_what_is_elsewhere_is_not_mixed_with_what_is_here():  # what the tests below rest on
    with pytest.raises(RuntimeError, match="expected device"):
        nn.Linear(2, 2, device=ELSEWHERE)(torch.ones(1, 2))


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("grad", [True, False])
def test_a_policy_computes_where_it_is_and_answers_here(kind, grad):
    policy = TRANSFORMERS[kind]().to(ELSEWHERE)
    with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match=COMES_BACK):
        policy(draw_steps(5, policy.context_length))


def test_returns_are_predicted_where_the_policy_is_and_told_here():
    policy = TRANSFORMERS["reinformer"]().to(ELSEWHERE)
    with pytest.raises(NotImplementedError, match=COMES_BACK):
        policy.predict_return_to_go(draw_steps(5, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_acts_does_so_where_the_policy_is(dtype, monkeypatch):
    policy = TRANSFORMERS["context 1"]().to(ELSEWHERE)
    monkeypatch.setattr(Angle, "of", lambda policy: Angle(0.0, 1.0))  # numbers of the policy's own
    table = ReturnTable(policy)
    held = [table.table, table.weights, table.powers, table.ahead, return_tokens(policy, torch.zeros(4))]
    assert {x.device.type for x in held} == {ELSEWHERE}
    for act in (StateToken(policy, table, dtype), policy.last):
        with pytest.raises(NotImplementedError, match=COMES_BACK):
            act(draw_steps(5, 1))


@pytest.mark.parametrize("network", [ValueNetwork(2), TwinCritic(2, 2)])
def test_values_are_computed_where_the_network_is_and_told_here(network):
    steps = draw_steps(5, 3)
    inputs = (steps.observations, steps.actions)[: 1 if isinstance(network, ValueNetwork) else 2]
    assert network(*inputs).device.type == "cpu"
    with pytest.raises(NotImplementedError, match=COMES_BACK):
        network.to(ELSEWHERE)(*inputs)


def test_gradients_are_added_up_where_they_are(monkeypatch):
    sent = []
    monkeypatch.setattr("dtune.parallel.ranks", lambda: 2)
    monkeypatch.setattr("dtune.parallel.total", lambda values: (sent.append(values.device.type), values)[1])
    with_gradient, without = (
        nn.Parameter(torch.ones(3, device=ELSEWHERE)),
        nn.Parameter(torch.ones(2, device=ELSEWHERE)),
    )
    with_gradient.grad = torch.ones(3, device=ELSEWHERE)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # the sum is to be told here
        sum_gradients([with_gradient, without], torch.ones(3))
    assert sent == [ELSEWHERE]


def test_on_the_cpu_nothing_is_copied():
    policy, steps = TRANSFORMERS["context 1"](), draw_steps(5, 1)
    answer = policy(steps)
    assert to_device(steps, device_of(policy)) is steps
    assert to_cpu(answer) is answer


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:0", "meta"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"GPU 2.*sees 2 here"):
        choose_device("cuda:2")
    assert choose_device("cpu") == torch.device("cpu")


def test_each_rank_of_a_machine_has_a_gpu_of_its_own_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 3)
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_on_a_gpu_the_answer_and_the_gradient_are_those_of_the_cpu(kind):
    policy, moved = TRANSFORMERS[kind](), TRANSFORMERS[kind]().to("cuda")
    steps = draw_steps(64, policy.context_length)
    for network in (policy, moved):
        answer = network(steps)
        answer.base_log_prob(steps.raw_actions).sum().backward()
    torch.testing.assert_close(moved(steps).mean, policy(steps).mean, atol=1e-4, rtol=1e-3)
    for here, there in zip(policy.parameters(), moved.parameters(), strict=True):
        if here.grad is not None:
            torch.testing.assert_close(there.grad.cpu(), here.grad, atol=1e-2, rtol=1e-2)
