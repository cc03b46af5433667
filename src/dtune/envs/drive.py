"""Who asks and who answers: walks ask for the outcomes of their actions, simulators answer."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from jaxtyping import Float32
from torch import Tensor

from dtune.data.steps import Steps
from dtune.envs.simulator import Outcome, Simulator

Walk = Generator[Float32[Tensor, "envs action"], Outcome, Steps]
"""Yields actions, is sent what came of them, and returns all the steps it took."""


def drive(walks: Sequence[Walk], simulators: Sequence[Simulator]) -> list[Steps]:
    """Walks each through its own simulator to its end.

    Several take turns: while one's actions are carried out, in a second thread, the next is asked for its own.
    """
    if len(walks) == 1:
        return [_alone(walks[0], simulators[0])]
    taken: dict[int, Steps] = {}
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="physics") as physics:

        def go_on(index: int, outcome: Outcome | None) -> None:
            try:
                actions = next(walks[index]) if outcome is None else walks[index].send(outcome)
            except StopIteration as end:
                taken[index] = end.value
            else:
                waiting.append((index, physics.submit(simulators[index].step, actions)))

        for index in range(len(walks)):
            go_on(index, None)
        while waiting:
            index, future = waiting.popleft()
            go_on(index, future.result())
    return [taken[index] for index in range(len(walks))]


def _alone(walk: Walk, simulator: Simulator) -> Steps:
    try:
        actions = next(walk)
        while True:
            actions = walk.send(simulator.step(actions))
    except StopIteration as end:
        found: Steps = end.value
        return found
