"""The one-way rule, kept by reading every import of the tree, those inside functions too.

loadtests -HTTP-> server -> adakron -> torch, transformers, tokenizers, safetensors, numpy
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RUNTIME = {"adakron", "torch", "transformers", "tokenizers", "safetensors", "numpy", "triton"}
TRAINING = RUNTIME | {"datasets", "accelerate", "peft", "sklearn", "scipy", "matplotlib", "tqdm"}
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Of the standard library, what the method's runtime has no business with.
NOT_FOR_THE_RUNTIME = {"asyncio", "http", "socket", "socketserver", "wsgiref"}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, `importlib.import_module("x")` and `__import__("x")` included.

    Of `from a import b` both a and a.b are given: b may be a module.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield node.lineno, module
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module


def import_faults(path: str, source: str) -> list[str]:
    """What in the file at `path` (relative to the root, with slashes) is imported against the rule."""
    faults = []
    for line, module in imported_modules(ast.parse(source, path)):
        top = module.partition(".")[0]
        if reason := _import_reason(path, top):
            faults.append(f"{path}:{line} imports {module}: {reason}")
    return faults


def _import_reason(path: str, top: str) -> str | None:
    package = path.partition("/")[0]
    if package in {"adakron", "server"}:
        if top in UNSAFE:
            return "it runs code hidden in data"
        if top == "ray" and path != "server/deployment.py":
            return "only server/deployment.py knows Ray"
    if package == "adakron":
        if top in NOT_FOR_THE_RUNTIME:
            return "the method knows nothing of HTTP or event loops"
        allowed = TRAINING if path.startswith("adakron/training/") else RUNTIME
        if top not in allowed and top not in sys.stdlib_module_names:
            return f"adakron may import {', '.join(sorted(allowed))} and the standard library"
    if package == "server" and top in {"loadtests", "tests"}:
        return "the service does not know who tests it"
    if package == "loadtests":
        engine_benchmark = path.startswith(("loadtests/engine", "loadtests/http_"))
        if top == "server" and path == "loadtests/http_stacks.py":
            return None  # it is a server: a child process that others measure through HTTP
        if top in {"server", "tests"} or (top == "adakron" and not engine_benchmark):
            return "load tests see the server through HTTP alone"
    return None


def call_faults(path: str, source: str) -> list[str]:
    """Calls in the file that could run code from data: eval, exec, torch.load, trust_remote_code.

    `adakron/importing.py` and `adakron/importing/` read other people's checkpoints and may call torch.load; nothing
    in `server` may import them.
    """
    faults = []
    may_torch_load = path.startswith("adakron/importing")
    for node in ast.walk(ast.parse(source, path)):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                faults.append(f"{path}:{node.lineno} calls {name}")
            case ast.Attribute(value=ast.Name(id="torch"), attr="load") if not may_torch_load:
                faults.append(f"{path}:{node.lineno} uses torch.load")
            case ast.ImportFrom(module="torch", names=names) if not may_torch_load:
                faults.extend(f"{path}:{node.lineno} imports torch.load" for alias in names if alias.name == "load")
            case ast.keyword(arg="trust_remote_code", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    faults.append(f"{path}:{value.lineno} sets trust_remote_code")
            case ast.Constant(value="trust_remote_code"):
                faults.append(f"{path}:{node.lineno} names trust_remote_code in a string, as keyword dictionaries do")
    return faults


def python_files(*packages: str) -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def test_every_package_was_found() -> None:
    for package in ("adakron", "server", "loadtests"):
        assert python_files(package), package


def test_imports_point_one_way() -> None:
    faults = [
        fault
        for path in python_files("adakron", "server", "loadtests")
        for fault in import_faults(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_nothing_runs_code_from_data() -> None:
    faults = [
        fault
        for path in python_files("adakron", "server")
        for fault in call_faults(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_server_does_not_import_the_checkpoint_importer() -> None:
    faults = [
        f"{path}:{line}"
        for path in python_files("server")
        for line, module in imported_modules(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if module.startswith("adakron.importing")
    ]
    assert not faults, "\n".join(faults)


def test_nothing_but_the_command_line_leads_to_the_checkpoint_importer() -> None:
    """So that whatever a server imports of adakron, it does not import that."""
    faults = [
        f"{path}:{line}"
        for path in python_files("adakron", "loadtests")
        if path != "adakron/cli.py" and not path.startswith("adakron/importing/")
        for line, module in imported_modules(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if module.startswith("adakron.importing")
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("adakron/engine.py", "import pydantic"),
        ("adakron/engine.py", "import asyncio"),
        ("adakron/engine.py", "import server.app"),
        ("adakron/engine.py", "def f():\n    import ray"),
        ("adakron/engine.py", "def f():\n    from fastapi import FastAPI"),
        ("adakron/engine.py", "import importlib\nimportlib.import_module('ray.serve')"),
        ("adakron/engine.py", "__import__('sklearn')"),
        ("adakron/engine.py", "from sklearn.metrics import f1_score"),
        ("adakron/engine.py", "import pickle"),
        ("adakron/training/loop.py", "import fastapi"),
        ("server/app.py", "import ray"),
        ("server/app.py", "def f():\n    from ray import serve"),
        ("server/blobs.py", "from joblib import load"),
        ("server/app.py", "import tests.reference"),
        ("loadtests/users.py", "from server.schemas import ClassifyRequest"),
        ("loadtests/users.py", "def f():\n    import adakron"),
        ("loadtests/engine.py", "import server"),
        ("loadtests/http.py", "import server"),
        ("loadtests/http_engine.py", "import server"),
        ("loadtests/http_stacks.py", "import tests.reference"),
    ],
)
def test_a_planted_import_is_found(path: str, source: str) -> None:
    assert import_faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("adakron/engine.py", "import torch.nn.functional as F\nfrom . import bank\nfrom adakron.bank import Bank"),
        ("adakron/training/metrics.py", "from sklearn.metrics import f1_score"),
        ("server/deployment.py", "def f():\n    from ray import serve"),
        ("server/app.py", "import asyncio\nfrom adakron import Engine"),
        ("loadtests/engine.py", "import adakron, peft"),
        ("loadtests/http_engine.py", "import adakron"),
        ("loadtests/http_stacks.py", "import server.app"),
        ("loadtests/users.py", "import locust, numpy"),
    ],
)
def test_a_proper_import_passes(path: str, source: str) -> None:
    assert import_faults(path, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('x = 1')",
        "import torch\ntorch.load('x')",
        "import torch\nread = torch.load",
        "from torch import load",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "AutoModel.from_pretrained('x', **{'trust_remote_code': True})",
    ],
)
def test_a_planted_call_is_found(source: str) -> None:
    assert call_faults("server/app.py", source)


def test_a_harmless_call_passes() -> None:
    source = "model.eval()\nsafetensors.torch.load(data)\nAutoModel.from_pretrained('x', trust_remote_code=False)"
    assert call_faults("adakron/backbone.py", source) == []


def test_only_the_importer_may_call_torch_load() -> None:
    assert call_faults("adakron/importing.py", "import torch\ntorch.load('x', weights_only=True)") == []
