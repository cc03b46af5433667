"""What is installed is the library, the whole of it, and nothing else; and what is said of it is true."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    assert re.fullmatch(r"dtune-[\d.]+-py3-none-any\.whl", path.name)
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_library_and_no_tests(wheel):
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    files = (path for path in (package / "dtune").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert inside == {path.relative_to(package).as_posix() for path in files}


def test_the_wheels_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    told = Parser().parsestr(wheel.read(name).decode())
    assert told["Name"] == "dtune"
    assert told["Requires-Python"] == ">=3.11"
    assert told["License-Expression"] == "MIT"
    assert {"all", "hub", "onnx", "dev"} <= set(told.get_all("Provides-Extra"))
    plain = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in plain if re.match("onnx|huggingface|mkdocs|pytest", line)]
    assert "decision transformers" in told.get_payload()[:400]  # the README
    assert wheel.read(name.replace("METADATA", "entry_points.txt")).decode().split() == [
        "[console_scripts]", "dtune", "=", "dtune.cli:main",
    ]  # fmt: skip


def test_all_is_every_extra_but_that_of_developers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.fullmatch(r"dtune\[(.+)\]", everything)[1].split(",")) == set(extras) - {"all", "dev"}


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (said["version"], said["license"]) == (project["version"], project["license"])
    assert said["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(said)


def test_hooks_run_what_lint_runs_and_fetch_nothing():
    yaml = pytest.importorskip("yaml")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    lines = [line.strip().removesuffix(" .") for line in linted.splitlines()]
    assert [hook["entry"] for hook in repository["hooks"]] == lines


def test_every_page_is_in_the_sites_contents():
    yaml = pytest.importorskip("yaml")
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == pages
