"""The structure of the code: imports point one way, randomness is an argument, importing is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "calotype"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module may import from its own layer's package or from layers below.
LAYERS = [
    {"errors", "untrusted"},
    {"files", "signals", "environment", "paths"},
    {
        "rng",
        "images",
        "outputs",
        "config",
        "display",
        "devices",
        "processes",
        "terminal",
        "mirror",
        "caches",
        "logs",
        "outlines",
    },
    {"places", "changes", "locks"},
    {"dividing", "guidance", "classes", "manifests"},
    {"model", "curves", "optimizers", "distributions", "leading"},
    {"nn", "data"},
    {"families"},
    {"trainer", "sampling", "checkpoints", "latents", "baselines", "scaling"},
    {"runs", "export", "evaluation"},
    {"plan", "judging", "drawing"},
    {"loop", "request", "extension", "given", "stages"},
    {"training", "sampling_job", "completion_job", "latent_job", "evaluation_job", "scaling_job", "launching"},
    {"comparison_job"},
    {"cli"},
    {"__main__", "ray_job"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part(path: Path) -> str:
    """The module or package below calotype that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "calotype" else [module]
            found |= {name.split(".")[1] for name in names if name.startswith("calotype.")}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("calotype.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py" or p.parent != PACKAGE], ids=str)
def test_imports_point_downward(path: Path) -> None:
    own = part(path)
    for other in imported(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{path.name} imports {other}, which is not below it"


def test_every_module_has_a_layer() -> None:
    assert {part(path) for path in SOURCES} - {"__init__"} == set(LEVEL)


def test_networks_and_trainer_name_no_family() -> None:
    for path in SOURCES:
        if part(path) in {"nn", "trainer", "sampling", "loop", "plan", "export", "checkpoints", "data"}:
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
    from calotype.model import ImageSpec
    from calotype.outlines import outlined
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


def test_public_names_can_be_had() -> None:
    import calotype

    for name in calotype.__all__:
        assert getattr(calotype, name).__doc__
    with pytest.raises(AttributeError):
        _ = calotype.nothing_of_that_name
