"""The structure of the code: imports point one way, randomness is an argument, importing is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "calotype"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module may import from its own package, and from those before it; calotype itself is above all.
PACKAGES = (
    "errors",
    "core",
    "distributed",
    "data",
    "nn",
    "families",
    "optimization",
    "sampling",
    "runs",
    "evaluation",
    "training",
    "applications",
    "commands",
    "cli",
    "__main__",
    "ray_job",
)
LEVEL = {name: level for level, name in enumerate(PACKAGES)}


def part(path: Path) -> str:
    """The module or package below calotype that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """The name of a file as a module."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in SOURCES}


def modules_imported(path: Path) -> set[str]:
    """The modules of calotype that a file imports anywhere, for type checkers alone too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("calotype.")}


def imported(path: Path) -> set[str]:
    """The packages of calotype that a file imports."""
    return {name.split(".")[1] for name in modules_imported(path)}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py" or p.parent != PACKAGE], ids=str)
def test_imports_point_downward(path: Path) -> None:
    own = part(path)
    for other in imported(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{path.name} imports {other}, which is not below it"


def test_every_module_has_a_layer() -> None:
    assert {part(path) for path in SOURCES} - {"__init__"} == set(LEVEL)


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Not even for type checkers."""
    edges = {module(path): modules_imported(path) for path in SOURCES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*way, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_networks_and_trainer_name_no_family() -> None:
    for path in SOURCES:
        if part(path) in {"nn", "optimization", "sampling", "data"}:
            assert "families" not in imported(path), path


def test_randomness_is_an_argument() -> None:
    forbidden = re.compile(
        r"\b(torch\.(randn|rand|randint|randperm|bernoulli|normal|multinomial|manual_seed)(_like)?"
        r"|np\.random\.\w+|random\.(random|randint|choice|shuffle|seed))\("
    )
    for path in SOURCES:
        if path.name != "rng.py":
            assert not forbidden.search(path.read_text(encoding="utf-8")), path


def test_nothing_is_unpickled() -> None:
    forbidden = re.compile(r"\b(pickle|allow_pickle=True|weights_only=False)\b|\btorch\.load\((?!.*weights_only=True)")
    for path in SOURCES:
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text(encoding="utf-8"))
        assert not forbidden.search(code), path


def test_importing_calotype_is_cheap() -> None:
    code = "import sys, calotype; print(sorted({'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_building_a_network_does_not_import_a_compiler() -> None:
    """It takes torch seconds, of every command that opens a run. Of the networks that a budget is matched with."""
    code = """if True:
    import sys, torch
    from calotype.families import FAMILIES
    from calotype.core.model import ImageSpec
    from calotype.nn.outline import outlined
    for family in FAMILIES.values():
        spec = ImageSpec(3, 16, 16)
        for name in ("tiny", "small"):
            preset = family.presets(spec)[name]
            config = family.measured(preset.model, torch.zeros(16, 3, 16, 16, dtype=torch.uint8))
            with outlined():
                family(spec, config)
    print("torch._dynamo" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> list[str]:
    """The public classes, functions and methods in a module or class that have no docstring."""
    found = []
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            inner = f"{name}.{child.name}"
            if not ast.get_docstring(child):
                found.append(inner)
            if isinstance(child, ast.ClassDef):
                found += undocumented(child, inner)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_public_names_have_docstrings(path: Path) -> None:
    """Overriding methods too, which linters may exempt."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path}: the module has no docstring"
    assert undocumented(tree, module(path)) == []


def test_public_names_can_be_had() -> None:
    import calotype

    for name in calotype.__all__:
        assert getattr(calotype, name).__doc__
    with pytest.raises(AttributeError):
        _ = calotype.nothing_of_that_name
