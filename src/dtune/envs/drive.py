"""Walks ask for the outcomes of their actions, and simulators answer: three ways to bring them together."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from threading import Event

import torch
from jaxtyping import Float32
from torch import Tensor

from dtune.data.steps import Steps
from dtune.envs.simulator import Outcome, Simulator

Actions = Float32[Tensor, "envs action"]
Step = Callable[[Actions], Outcome]
Walk = Generator[Actions, Outcome | None, Steps]
"""Yields actions, is sent what came of them (at first, None), and returns all the steps it took."""


def alone(walk: Walk, step: Step) -> Steps:
    """One after the other."""
    outcome = None
    while True:
        try:
            actions = walk.send(outcome)
        except StopIteration as end:
            taken: Steps = end.value
            return taken
        outcome = step(actions)


def side_by_side(walks: Sequence[Walk], simulators: Sequence[Simulator]) -> list[Steps]:
    """Each walk in a thread of its own, in which PyTorch has one: no thread ever waits for another.

    Where one fails, or the wait for them is interrupted, all end at their next step.
    """
    threads, inference, over = torch.get_num_threads(), torch.is_inference_mode_enabled(), Event()

    def walk_on(walk: Walk, simulator: Simulator) -> Steps:
        def step(actions: Actions) -> Outcome:
            if over.is_set():
                raise CancelledError
            return simulator.step(actions)

        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.no_grad():  # both are a thread's own
            return alone(walk, step)

    with ThreadPoolExecutor(len(walks), thread_name_prefix="walks") as pool:
        futures = [pool.submit(walk_on, *pair) for pair in zip(walks, simulators, strict=True)]
        try:
            for future in as_completed(futures):
                future.result()  # the first to fail is told, whichever it is
        finally:
            over.set()
            wait(futures)
            torch.set_num_threads(threads)
    return [future.result() for future in futures]


def alternate(walks: Sequence[Walk], simulators: Sequence[Simulator]) -> list[Steps]:
    """In turns: while one's actions are carried out, in a second thread, the next is asked for its own."""
    taken: dict[int, Steps] = {}
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="physics") as physics:

        def go_on(index: int, outcome: Outcome | None) -> None:
            try:
                actions = walks[index].send(outcome)
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
