"""The package as a whole: what importing loads, what it exports, who imports whom, and what the docstrings promise."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from tools.rooms import FREE, MODULES, SOURCE, imports_of, module_of, room_of, rooms, tree_of

import gradwire as gw
import gradwire.errors

FILES = sorted(MODULES.values())
HEAVY = ("torch", "plotly", "jinja2", "numba", "sklearn", "pydantic", "typer", "flwr", "rich", "safetensors", "pandas")

# --- importing ------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """Which of the heavy modules are in sys.modules after running some code in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_loads_nothing_heavy():
    assert loaded_by("import gradwire") == set()


def test_the_checker_notices_torch():
    """Meta: the check above must be able to fail."""
    assert "torch" in loaded_by("import gradwire, torch")


def test_layouts_of_numpy_arrays_need_no_torch():
    code = (
        "import numpy as np, gradwire as gw\n"
        "layout = gw.Layout.from_arrays({'w': np.ones(4, np.float32)})\n"
        "gw.Layout.from_arrays({'w': np.ones(4, np.float32)}).unflatten(layout.flatten({'w': np.ones(4, np.float32)}))"
    )
    assert loaded_by(code) == set()


# --- what is exported -----------------------------------------------------------------------------


def test_all_is_sorted_and_complete():
    assert gw.__all__ == sorted(gw.__all__)
    assert len(set(gw.__all__)) == len(gw.__all__)
    for name in gw.__all__:
        assert hasattr(gw, name), name
    public = {n for n, v in vars(gw).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public <= set(gw.__all__), "everything imported into the package is meant to be public"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_all_of_each_module(path):
    names = next(
        (
            ast.literal_eval(node.value)
            for node in tree_of(path).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        ),
        None,
    )
    if names is None:
        return
    assert len(set(names)) == len(names)
    assert all(not n.startswith("_") or n == "__version__" for n in names)


FIXED_NAMES = [
    "parse", "Compressor", "Round", "encode", "decode", "decompress", "inspect", "Limits", "Layout", "Client",
    "Server", "Aggregator", "dense", "topk", "randk", "fp16", "bf16", "uniform", "ef", "Unbiased", "Contractive",
    "Absolute", "Unknown",
]  # fmt: skip


def test_fixed_names_are_there():
    assert [n for n in FIXED_NAMES if n not in gw.__all__] == []


def test_error_tree():
    tree = {
        "GradwireError": (Exception,),
        "ConfigError": (gw.GradwireError, ValueError),
        "UpdateError": (gw.GradwireError, ValueError),
        "StateError": (gw.GradwireError,),
        "ProtocolError": (gw.GradwireError,),
        "Duplicate": (gw.ProtocolError,),
        "Forgotten": (gw.ProtocolError,),
        "StaleReference": (gw.ProtocolError,),
        "TooFewClients": (gw.ProtocolError,),
        "BackendUnavailable": (gw.GradwireError, ImportError),
        "DecodeError": (gw.GradwireError, ValueError),
        "Truncated": (gw.DecodeError,),
        "BadChecksum": (gw.DecodeError,),
        "LimitExceeded": (gw.DecodeError,),
        "UnsupportedVersion": (gw.DecodeError,),
        "UnknownCodec": (gw.DecodeError,),
        "Malformed": (gw.DecodeError,),
    }
    for name, bases in tree.items():
        assert name in gw.__all__
        cls = getattr(gw, name)
        assert cls.__bases__ == bases, name
        assert cls.__name__ == name
        assert f"+-- {name}" in gradwire.errors.__doc__ or name == "GradwireError"
    defined = {n for n, v in vars(gradwire.errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined == set(tree)


# --- who imports whom -----------------------------------------------------------------------------


HAND_ON = {"gradwire.federated"}  # names of what is inside, asked for when they are needed
GROUND = {"errors.py", "checks.py", "fields.py", "layout.py", "rng.py", "payload.py", "saved.py"}
BESIDE = {"checks.py": {"errors.py"}, "wire": {*GROUND, "kernels"}}  # rooms that may not import all that is below them


def test_every_module_has_its_room():
    """And every room of docs/architecture.md is there, in the order of its floors."""
    assert [room.floor for room in rooms().values()] == sorted(room.floor for room in rooms().values())
    assert [name for name in rooms() if not (SOURCE / name).exists()] == []
    of_rooms = {f"gradwire.{name.split('/')[0]}" for name in rooms() if "/" in name}
    lost = {module for module in MODULES if room_of(module) is None} - {*FREE}
    assert lost <= of_rooms, f"docs/architecture.md gives no room to {', '.join(sorted(lost - of_rooms))}"
    for face in lost - HAND_ON:
        assert imports_of(tree_of(MODULES[face])) == set(), f"{face} is a room of rooms, which only says what it is"


def test_imports_point_one_way():
    """To the own room or to a lower floor, for type checkers and inside functions, too."""
    wrong = []
    for importer, path in MODULES.items():
        room = room_of(importer)
        if importer in FREE or room is None:
            continue
        for imported in imports_of(tree_of(path), types=True):
            if imported == "gradwire":  # only what stands outside the core may lean on the public names
                if room.floor <= rooms()["ends"].floor:
                    wrong.append(f"{importer} imports the package itself")
                continue
            there = room_of(imported)
            if there is None:
                wrong.append(f"{importer} imports {imported}, which has no room")
            elif there == room:
                continue
            elif there.floor >= room.floor:
                wrong.append(f"{importer} imports {imported}: floor {there.floor} from floor {room.floor}")
            elif there.name not in BESIDE.get(room.name, {there.name}):
                wrong.append(
                    f"{importer} imports {imported}: {room.name} stands on {', '.join(BESIDE[room.name])} alone"
                )
    assert wrong == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other: strongly connected components of more than one node."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, set())) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def test_no_two_modules_import_each_other():
    """No circle is left, imports for type checkers and inside functions included; packages only hand names on."""
    graph = {name: imports_of(tree_of(path), types=True) - {*FREE, name} for name, path in MODULES.items()}
    graph = {name: imported for name, imported in graph.items() if name not in FREE}
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert circles({n: i - faces for n, i in graph.items() if n not in faces}) == []


def test_circles_are_noticed():
    """Meta: the finder of circles must be able to fail."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_direction_check_notices():
    """Meta: the import finder sees every form of import."""
    code = "import gradwire.ends.server\nfrom gradwire.ends.client import Client\nfrom gradwire import report\n"
    code += "from gradwire.wire import encode\nimport numpy\n"
    code += "def f():\n    from gradwire.wire.index import NAMES\n"
    code += "if TYPE_CHECKING:\n    from gradwire.cli import main\n"
    runtime = {
        "gradwire.ends.server",
        "gradwire.ends.client",
        "gradwire.report",
        "gradwire.wire",
        "gradwire.wire.index",
    }
    assert imports_of(ast.parse(code)) == runtime
    assert imports_of(ast.parse(code), types=True) == runtime | {"gradwire.cli"}


def test_private_names_stay_in_their_module():
    wrong = []
    for importer, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradwire"):
                private = [
                    alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"
                ]
                wrong += [f"{importer} imports {name} from {node.module}" for name in private]
    assert wrong == []


def test_no_module_named_utils():
    assert [p for p in FILES if "util" in p.stem or "helper" in p.stem or p.stem == "common"] == []


# --- what must not be in the source ---------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_forbidden_in_the_source(path):
    wrong = []
    for node in ast.walk(tree_of(path)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Assert):
            wrong.append(f"{line}: assert")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "print" and module_of(path) != "gradwire.cli":
                wrong.append(f"{line}: print(")
            if node.func.id in ("eval", "exec", "__import__"):
                wrong.append(f"{line}: {node.func.id}(")
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        wrong += [f"{line}: {m}" for m in modules if m.split(".")[0] in ("pickle", "dill", "marshal", "shelve")]
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and getattr(node.value, "value", 1) is not False
        ):
            wrong.append(f"{line}: allow_pickle")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "random":
            name = getattr(node.value.value, "id", "")
            if name in ("np", "numpy") and node.attr not in ("Philox", "Generator", "default_rng", "SeedSequence"):
                wrong.append(f"{line}: the global generator numpy.random.{node.attr}")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            wrong.append(f"{line}: bare except")
    assert wrong == []


# --- docstrings -----------------------------------------------------------------------------------

PUBLIC = [
    name
    for name in gw.__all__
    if callable(getattr(gw, name))
    and not (isinstance(getattr(gw, name), type) and issubclass(getattr(gw, name), (Exception, gw.Guarantee)))
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstring_has_an_example(name):
    doc = inspect.getdoc(getattr(gw, name)) or ""
    assert "Example:" in doc
    assert ">>> " in doc.split("Example:")[1]


def test_everything_public_is_documented():
    missing = []
    for name in gw.__all__:
        value = getattr(gw, name)
        if not callable(value):
            continue
        if not (value.__doc__ or "").strip():
            missing.append(name)
        if isinstance(value, type):
            own = [(m, v) for m, v in vars(value).items() if not m.startswith("_")]
            missing += [
                f"{name}.{m}"
                for m, v in own
                if (inspect.isfunction(v) or isinstance(v, (property, classmethod, staticmethod)))
                and not (inspect.getdoc(getattr(value, m)) or "").strip()
            ]
    assert missing == []


def doctest_modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(gw.__path__, "gradwire.")]
    return ["gradwire", *(name for name in found if name not in ("gradwire.cli", "gradwire.__main__"))]


@pytest.mark.parametrize("name", doctest_modules())
def test_doctests(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, report=True)
    assert results.failed == 0


def test_doctests_are_found():
    """Meta: there are examples to run."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(len(t.examples) for n in doctest_modules() for t in finder.find(importlib.import_module(n)))
    assert count > 25
