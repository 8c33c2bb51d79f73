"""What stands for schedulers in tests: commands that note what they are given, and words that are hard to pass on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calotype import cli

TRAIN = ["train", "vae", "glyphs:gray:60", "--size", "8", "--set", "training.precision=fp32"]
TRAIN += ["--set", "training.threads=1", "--set", "training.batch_size=8", "--set", "training.checkpoint_every=32"]
SHORT, LONG = ["--budget", "96img"], ["--budget", "160000img"]
HOSTILE = [
    "/shared/a run",
    '/shared/it\'s "one"',
    "/shared/$HOME `id` $(id) $$",
    "/shared/a\nb\n#SBATCH --nodes=9\n--- # : {}",
    "/shared/%j \\ \\n ! * ~ & ; | > # é 画 😀 \x7f\x85\u2028\ufeff",
    "/shared/-",
]


def launched(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The job that a command writes."""
    assert cli.main(["launch", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


STUBS = {
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo localhost; echo elsewhere; else echo "$@" >> "$NOTES/scontrol"; fi
""",
    # One task for each node, all here.
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((k = 0; k < NODES; k++)); do
    SLURM_NODEID=$k SLURMD_NODENAME=localhost "$@" & pids+=($!); echo $! >> "$NOTES/tasks"
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit $status
""",
    # Slurm tells all processes of the tasks, and torchrun then tells its own once more.
    "scancel": """#!/bin/bash
echo "$@" >> "$NOTES/scancel"
for task in $(cat "$NOTES/tasks"); do kill -TERM "$task" $(cat /proc/"$task"/task/*/children); done
""",
    "sbatch": """#!/bin/bash
cat > "$NOTES/sbatch"; echo "Submitted batch job 7"
""",
    "kubectl": """#!/bin/bash
echo "$@" > "$NOTES/kubectl"; cat > "$NOTES/manifest"; [ -z "$FULL" ] || { echo "quota exceeded" >&2; exit 1; }
""",
    "torchrun": """#!/bin/bash
printf '%s\\0' "$@" > "$NOTES/torchrun-$SLURM_NODEID"
env -0 > "$NOTES/environment"
""",
}


def stubs_in(tmp_path: Path) -> Path:
    """A new folder of commands that stand for those of schedulers, and of what they note."""
    folder = tmp_path / "stubs"
    (folder / "notes").mkdir(parents=True)
    for name, text in STUBS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def slurm(stubs: Path, nodes: int, **more: str) -> dict[str, str]:
    """What a script finds around it as a job of Slurm."""
    known = {"PATH": f"{stubs}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    known |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "nodes[1-2]"}
    known |= {"NOTES": str(stubs / "notes"), "NODES": str(nodes)}  # of the stubs
    return known | {k: v for k, v in os.environ.items() if k.startswith("CALOTYPE")} | more


def noted(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\0")[:-1]
