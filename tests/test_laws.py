"""Laws of the whole house that no single test of a floor can hold."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py"))
RUNS_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy"}
EVALUATES = {"eval", "exec", "compile", "__import__"}


def broken_laws(tree: ast.AST) -> list[str]:
    """What in a module could run the code of a stranger's file, or asks an object what it has."""
    return [f"line {node.lineno}: {law}" for node in ast.walk(tree) for law in laws_broken_by(node)]


def laws_broken_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"imports {name.name}" for name in node.names if name.name.split(".")[0] in RUNS_CODE]
    if isinstance(node, ast.ImportFrom):
        hides_load = node.module == "torch" and any(name.name == "load" for name in node.names)
        refused = hides_load or (node.module or "").split(".")[0] in RUNS_CODE
        return [f"imports from {node.module}"] if refused else []
    if not isinstance(node, ast.Call):
        return []
    name = ast.unparse(node.func)
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    checks = {
        f"calls {name}": name in EVALUATES or name in ("yaml.load", "os.system"),
        "hasattr: declare it in a protocol": name == "hasattr",
        "torch.load that unpickles": name == "torch.load" and options.get("weights_only") != "True",
        "allow_pickle": options.get("allow_pickle", "False") != "False",
        "shell=True": options.get("shell", "False") != "False",
    }
    return [law for law, broken in checks.items() if broken]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_a_stranger_runs_code(path):
    assert broken_laws(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import cloudpickle as cp",
        "from pickle import loads",
        "from torch import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "x = eval(text)",
        "exec(text)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "subprocess.run(x, shell=True)",
        "hasattr(x, 'y')",
    ],
)
def test_the_law_sees(code):
    assert broken_laws(ast.parse(f"def f():\n    {code}"))


@pytest.mark.parametrize("code", ["policy.eval()", "torch.load(f, weights_only=True)", "safetensors.torch.load(b)"])
def test_the_law_lets_pass(code):
    assert not broken_laws(ast.parse(code))


def test_there_is_something_to_hold_to_the_law():
    assert len(SOURCES) > 10


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, _, version in pins}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"dtune"} <= pinned().keys()
    assert pinned()["torch"] == "2.13.0"  # no local suffix: it has to be found on every machine
    assert pinned()["mujoco"] != "4.0.0"


def test_no_pin_names_where_it_comes_from():
    for name in ("constraints.txt", "Makefile", "pyproject.toml", ".ci/run"):
        assert not re.search(r"index-url|find-links|://(?!github\.com)", (ROOT / name).read_text()), name


PACKAGE = sorted((ROOT / "src").rglob("*.py"))
FLOORS = ("algorithms", "data", "envs", "functional", "models")
FILE, FUNCTION = 320, 50  # lines; of a function without its docstring


def concrete_parents(trees: list[ast.Module]) -> list[str]:
    """Classes that inherit from one of ours that is neither a protocol nor an exception."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    parents: dict[str, set[str]] = {}
    for node in classes:
        names = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
        parents.setdefault(node.name, set()).update(names)

    def is_exception(name: str) -> bool:
        return name == "Exception" or any(is_exception(base) for base in parents.get(name, ()))

    return [
        f"{node.name} inherits from {base}"
        for node in classes
        for base in sorted(parents[node.name])
        if base in parents and "Protocol" not in parents[base] and not is_exception(base)
    ]


def lengths(tree: ast.Module) -> list[tuple[str, int]]:
    """Functions, and their lines without docstrings."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[bool(ast.get_docstring(node)) :] or node.body
            found.append((node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1))
    return found


def test_every_concrete_class_is_final():
    assert concrete_parents([ast.parse(path.read_text()) for path in PACKAGE]) == []
    right = "class P(Protocol): ...\nclass Q(P, Protocol): ...\nclass E(Exception): ...\nclass C(P): ..."
    wrong = "class A: ...\nclass B(A[int]): ...\nclass D(C): ...\nclass G(module.A): ...\nclass F(E): ..."
    found = concrete_parents([ast.parse(right), ast.parse(wrong)])
    assert found == ["B inherits from A", "D inherits from C", "G inherits from A"]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE
    assert [(name, size) for name, size in lengths(ast.parse(text)) if size > FUNCTION] == []


def test_an_episode_that_ends_is_terminated_or_truncated_never_done():
    for path in PACKAGE:
        if path.relative_to(ROOT / "src" / "dtune").parts[0] in FLOORS:
            words = {
                word
                for node in ast.walk(ast.parse(path.read_text()))
                for word in (getattr(node, "id", ""), getattr(node, "arg", ""), getattr(node, "attr", ""))
            }
            assert not words & {"done", "dones"}, path
