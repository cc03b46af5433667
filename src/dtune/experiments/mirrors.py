"""Weights & Biases and trackio as mirrors of a run's metrics. A run never depends on them."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

from dtune.errors import ConfigError

PROJECT = "dtune"
"""Under which runs are filed."""


def _wandb(module: Any, name: str, config: Mapping[str, Any], directory: Path) -> Any:
    """Offline unless $WANDB_MODE says otherwise: files in the run folder, which `wandb sync` sends."""
    return module.init(
        project=PROJECT,
        name=name,
        config=dict(config),
        dir=str(directory),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings={"silent": True, "console": "off"},  # the terminal is the live panel's
    )


def _trackio(module: Any, name: str, config: Mapping[str, Any], directory: Path) -> Any:  # noqa: ARG001
    """On this machine, in trackio's own folder ($TRACKIO_DIR)."""
    return module.init(project=PROJECT, name=name, config=dict(config), embed=False)


MIRRORS: dict[str, Callable[[Any, str, Mapping[str, Any], Path], Any]] = {"wandb": _wandb, "trackio": _trackio}
"""How a run is begun in each package of that name; what it gives has `log(metrics, step=)` and `finish()`."""


@final
class Mirror:
    """Repeats every row to a tracking service; the first that fails is the last, and nothing is raised.

    Args:
        package: what it is called.
        begin: begins the mirrored run.
        say: told in one sentence if the mirror is switched off.
    """

    def __init__(self, package: str, begin: Callable[[], Any], say: Callable[[str], None] = print) -> None:
        self._package, self._say = package, say
        self._run: Any = None
        self._attempt(begin, keep=True)

    def log(self, iteration: int, metrics: Mapping[str, int | float]) -> None:
        """Repeats the row of one iteration."""
        if self._run is not None:
            self._attempt(lambda: self._run.log(dict(metrics), step=iteration))

    def close(self) -> None:
        """Ends the mirrored run."""
        if self._run is not None:
            self._attempt(lambda: self._run.finish())
            self._run = None

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, call: Callable[[], Any], *, keep: bool = False) -> None:
        try:
            result = call()
            self._run = result if keep else self._run
        except Exception as error:  # somebody else's software and network: whatever it raises, training goes on
            self._run = None
            said = " ".join(str(error).split())[:200] or type(error).__name__
            self._say(f"{self._package} failed ({said}): the mirror is off, the run goes on and its record is complete")


def prepare(
    package: str, name: str, config: Mapping[str, Any], directory: Path
) -> Callable[[Callable[[str], None]], Mirror]:
    """Makes sure that a mirror is there, and gives what begins it: a function of whom to tell if it fails.

    Args:
        package: a key of `MIRRORS`.
        name: of the run.
        config: its settings, as JSON has them.
        directory: the run folder.

    Raises:
        ConfigError: if there is no such mirror, or its package is not installed.
    """
    if package not in MIRRORS:
        raise ConfigError(f"there is no mirror {package!r}: choose one of {', '.join(MIRRORS)}")
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{package} is not installed: pip install 'dtune[{package}]'") from error
    return lambda say: Mirror(package, lambda: MIRRORS[package](module, name, config, Path(directory)), say)
