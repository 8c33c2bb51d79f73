"""README.md and docs/ are true: their blocks run, and what they name exists."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from calotype import cli
from calotype.core.config import build
from calotype.data import DataConfig
from calotype.data.sources.glyphs import GlyphsConfig
from calotype.families import FAMILIES
from calotype.families.autoregressive import AutoregressiveConfig, AutoregressiveOptions
from calotype.families.diffusion import DiffusionConfig, DiffusionOptions
from calotype.families.gan import GANConfig, GANOptions
from calotype.families.vae import VAEConfig, VAEOptions
from calotype.optimization.config import TrainConfig
from tests.families import test_contract

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "console")  # other blocks are for reading

# What is long in the pages and short here. Each has to be needed by one of them.
CUTS = {
    "--budget 30m": "--budget 64img",
    "--budget 50kimg": "--budget 640img",
    'budget="30m"': 'budget="64img"',
    'budget="10m"': 'budget="64img"',
    "images=50_000": "images=6_400",
    " -n 64 ": " -n 16 ",
    ".sample(64,": ".sample(16,",
    "--first 64": "--first 16",
}
FINAL_GRID = 16  # images of the grid at the end of each training, instead of 64


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 2) for match in found]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def cut(text: str) -> str:
    for long, short in CUTS.items():
        text = text.replace(long, short)
    return text


def commands(block: Block) -> list[str]:
    """The command lines of a console block."""
    lines = block.text.splitlines()
    assert all(line.startswith("$ calotype ") for line in lines), "console blocks hold nothing but calotype's commands"
    return [line.removeprefix("$ ") for line in lines]


def run_console(block: Block, expected: str) -> None:
    """Run the commands; the last one is to fail where the page shows its error."""
    lines = commands(block)
    fails = expected.rstrip().rpartition("\n")[2].startswith("calotype: ")
    for number, line in enumerate(lines, 1):
        status = cli.main(shlex.split(cut(line))[1:])
        assert status == (2 if fails and number == len(lines) else 0), line


def run_page(page: Path, names: dict[str, Any]) -> Iterator[Block]:
    """Run the python and console blocks of a page in order, compare what they print, and yield each when it is done."""
    every = blocks(page)
    for block, following in zip(every, [*every[1:], Block("", "", 0)], strict=True):
        if block.kind not in RUN:
            continue
        expected = following.text if following.kind == "output" else ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if block.kind == "console":
                run_console(block, expected)
            else:  # with the line numbers of the page
                source = ast.parse("\n" * (block.line - 1) + cut(block.text), str(page))
                exec(compile(source, str(page), "exec", dont_inherit=True), names)
        if expected:
            pattern = re.escape(expected.strip()).replace(re.escape("..."), ".*?")
            assert re.fullmatch(pattern, printed.getvalue().strip(), re.DOTALL), (
                f"{page.name}:{block.line} prints\n{printed.getvalue()}\nand not\n{expected}"
            )
        yield block


@pytest.fixture
def workplace(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that docs/index.md promises: photos/ with pictures in two classes."""
    monkeypatch.chdir(picture_folder.parent)
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", FINAL_GRID)
    monkeypatch.setattr("calotype.evaluation.classifier.IMAGES", 64)  # what it learns is not shown
    return picture_folder.parent


@pytest.mark.parametrize(
    "name", ["data", "training", "clusters", *FAMILIES, "evaluation", pytest.param("compare", marks=pytest.mark.slow)]
)
def test_the_blocks_of_a_page_run(name: str, workplace: Path) -> None:
    assert list(run_page(ROOT / "docs" / f"{name}.md", {"__name__": "__main__"}))


def test_every_page_with_blocks_is_run() -> None:
    run = {page.stem for page in PAGES if any(block.kind in RUN for block in blocks(page))}
    families = set(FAMILIES)
    assert run == {"README", "data", "training", "clusters", "evaluation", "compare", "adding-a-family"} | families


def test_the_example_family_trains_and_keeps_the_contract(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in run_page(ROOT / "docs" / "adding-a-family.md", names):
        if "class Pixels(" in block.text:  # the line that the page tells its reader to add
            monkeypatch.setitem(FAMILIES, "pixels", names["Pixels"])  # type: ignore[arg-type]
    assert sum(names["losses"][-10:]) / 10 < names["losses"][0] - 0.05
    for spec in test_contract.SPECS:
        model = test_contract.smallest("pixels", spec)
        for name, test in inspect.getmembers(test_contract, inspect.isfunction):
            if name.startswith("test_") and list(inspect.signature(test).parameters) == ["model"]:
                test(model)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_and_leave_what_it_says(workplace: Path) -> None:
    assert list(run_page(ROOT / "README.md", {"__name__": "__main__"}))
    assert (workplace / "new" / "000000.png").is_file()
    listed = re.search(r"## The run directory\n+(.*?)\n##", prose(ROOT / "README.md"), re.DOTALL)
    assert listed
    for name in re.findall(r"`([\w./]+)`", re.sub(r"(?m)^(\|[^|]*\|).*$", r"\1", listed[1])):
        assert (workplace / "runs" / "photos" / name).exists(), name


def test_the_demo_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(GlyphsConfig, "parse", lambda _: GlyphsConfig(count=200))  # drawing 10,000 takes some seconds
    monkeypatch.setattr(sys.modules["calotype.commands.demo"], "IMAGES", 24)
    assert cli.main(["demo", "--budget", "64img"]) == 0
    assert "page: runs/glyphs-compare/comparison.html" in capsys.readouterr().out
    assert (workplace / "runs" / "glyphs-compare" / "comparison.html").is_file()


def test_make_knows_the_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        name for page in PAGES for name in re.findall(r"(?m)(?:^|`)make ([\w-]+)", page.read_text(encoding="utf-8"))
    }
    assert {"demo", "test", "test-all"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"make {name}"
    assert re.search(r"^demo:.*\n\t@?\$\(BIN\)/calotype demo$", makefile, re.MULTILINE)


def test_every_cut_is_needed() -> None:
    code = "".join(block.text for page in PAGES for block in blocks(page) if block.kind in RUN)
    assert [long for long in CUTS if long not in code] == []


def help_of(command: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return printed.getvalue()


def options_of(command: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(command)))


BENCHMARK = r"python benchmarks/(\w+\.py)([^`\n]*)"  # a command, with its arguments


def test_every_option_exists() -> None:
    known = {command: options_of(command) for command in cli.COMMANDS}
    anywhere = set().union(*known.values())
    for page in PAGES:
        text = re.sub(r"\\\n", " ", page.read_text(encoding="utf-8"))
        for name, asked in re.findall(BENCHMARK, text):
            source = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
            for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", asked):
                assert f'add_argument("{option}"' in source, f"{page.name}: {name} {option}"
        # and the options of others
        theirs = rf"{BENCHMARK}|torchrun( --[\w-]+ \d+)+(.*?-m calotype)?|#SBATCH .*|srun --[\w-]+"
        ours = re.sub(theirs, "", text)
        named = re.findall(r"(?<![\w-])--[a-z][\w-]*", ours)
        assert set(named) <= anywhere, page.name
        for line in (line for block in blocks(page) if block.kind == "console" for line in commands(block)):
            for part in line.removeprefix("calotype ").split(" -- "):  # launch, and what it launches
                words = part.split()
                assert {word for word in words[1:] if re.match(r"--?[a-z]", word)} <= known[words[0]], line
    table = prose(ROOT / "docs" / "diffusion.md").partition("| Option of `calotype sample` |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(--?[a-z]+)`", table))
    assert listed == known["sample"] - {"--n", "-h", "--help"}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_relative_link_resolves() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"https?:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), f"{page.name}: {link}"
            headings = re.findall(r"^#+ (.+)$", prose(target), re.MULTILINE)
            assert not anchor or anchor in {slug(heading) for heading in headings}, f"{page.name}: {link}"
    assert {page.name for page in PAGES} <= set(re.findall(r"[\w-]+\.md", prose(ROOT / "docs" / "index.md"))) | {
        "index.md"
    }


@pytest.mark.parametrize(
    ("page", "heading", "kind"),
    [
        ("data.md", "## Entries of [data]", DataConfig),
        ("training.md", "## Entries of [training]", TrainConfig),
        ("autoregressive.md", "## Entries of [model]", AutoregressiveConfig),
        ("autoregressive.md", "## Sampling", AutoregressiveOptions),
        ("diffusion.md", "## Entries of [model]", DiffusionConfig),
        ("diffusion.md", "## Sampling", DiffusionOptions),
        ("gan.md", "## Entries of [model]", GANConfig),
        ("gan.md", "## Sampling", GANOptions),
        ("vae.md", "## Entries of [model]", VAEConfig),
        ("vae.md", "## Sampling", VAEOptions),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_tables_of_entries_are_complete_and_state_the_defaults(page: str, heading: str, kind: type) -> None:
    section = prose(ROOT / "docs" / page).partition(heading)[2].partition("\n## ")[0]
    table = section.partition("| Entry | Default | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    assert list(stated) == list(fields)
    values = {k: tomllib.loads(f"v = {v.strip('`')}")["v"] for k, v in stated.items() if v != "required"}
    instance = build(kind, required(kind), "")
    assert {k: getattr(instance, k) for k in values} == {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    assert {k for k, v in fields.items() if v is dataclasses.MISSING} == set(stated) - set(values)


def required(kind: type) -> dict[str, Any]:
    """Something for the entries that have no default."""
    return {"source": "glyphs"} if kind is DataConfig else {"images": 1} if kind is TrainConfig else {}


def test_recipes_on_the_pages_are_read() -> None:
    kinds = {"data": DataConfig, "model": DiffusionConfig, "training": TrainConfig}
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "toml":
                for section, values in tomllib.loads(block.text).items():
                    build(kinds[section], required(kinds[section]) | values, section)


def test_the_events_of_the_log_are_listed() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "calotype").rglob("*.py"))
    table = prose(ROOT / "docs" / "training.md").partition("| `event` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(re.findall(r'run\.log\(\s*"(\w+)"', source))


# Names in the prose that are not of this repository: column types, files of others, and examples.
ELSEWHERE = set("ClassLabel Image __MACOSX Thumbs db bars dots sh output toml NAME PLAYER null".split())
ELSEWHERE |= set("ReadWriteMany send_user_signal NCCL_SOCKET_IFNAME".split())


def test_names_in_the_prose_exist() -> None:
    files = [*(ROOT / "calotype").rglob("*.py"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    code += "".join(block.text for page in PAGES for block in blocks(page) if block.kind in RUN)
    known = set(re.findall(r"\w+", code)) | ELSEWHERE
    for page in PAGES:
        text = prose(page)
        for quoted in re.findall(r"`([^`\n]+)`", text):
            if path := re.fullmatch(r"(calotype|tests|docs)/[\w/]+\.\w+", quoted):
                assert "NAME" in quoted or (ROOT / path[0]).is_file(), f"{page.name}: {quoted}"
            elif call := re.fullmatch(r"([A-Za-z_]+(?:\.[A-Za-z_]+)*)(\([\w, *]*\))?", quoted):
                missing = set(call[1].split(".")) - known
                assert not missing, f"{page.name}: `{quoted}` is nowhere in the code"
