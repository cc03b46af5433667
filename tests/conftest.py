import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import PRETRAIN

# Small networks are slower with two threads, and ten times slower where another process wants the second core.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs set torch's threads, of the whole process: puts them back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretrained Hopper policy; read only."""
    from dtune.cli import main

    folder = tmp_path_factory.mktemp("pretrained")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTUNE_DATA", str(folder / "data"))
        main([*PRETRAIN, "--out", str(folder / "run")])
    torch.set_num_threads(threads)
    return folder / "run"
