"""What makes a model a Policy."""

from torch import Tensor

from dtune.data.steps import Steps
from dtune.models.distributions import TanhNormal
from dtune.models.policy import Policy


class Whole:
    context_length = 1
    action_dim = 2

    def __call__(self, context: Steps) -> TanhNormal:
        return TanhNormal(context.actions, context.actions.exp())

    def next_return_to_go(self, returns_to_go: Tensor, rewards: Tensor) -> Tensor:
        return returns_to_go - rewards


class Unconditioned:
    context_length = 1
    action_dim = 2

    def __call__(self, context: Steps) -> TanhNormal:
        return TanhNormal(context.actions, context.actions.exp())


def test_four_members_make_a_policy_and_no_base_class_does():
    assert isinstance(Whole(), Policy)


def test_a_model_that_cannot_say_its_next_return_to_go_is_no_policy():
    assert not isinstance(Unconditioned(), Policy)
