"""Several machines train as one process does: two network namespaces with addresses of their own are two hosts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from calotype import cli
from calotype.runs import checkpoints
from calotype.runs.run import Run
from tests.distributed.test_processes import CASES, COMMAND, PROGRAM, assert_alike, trained, weights

pytestmark = [pytest.mark.slow, pytest.mark.hosts]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29_400
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host(NamedTuple):
    """A network namespace."""

    name: str
    interface: str
    address: str

    def start(self, words: Sequence[str], options: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        """Two workers of a program or module here, of four on both hosts."""
        root = Path(__file__).parents[2]
        known = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        # Gloo would look for an interface by the name of the machine, which both have.
        known |= {"GLOO_SOCKET_IFNAME": self.interface}
        known |= {k: v for k, v in os.environ.items() if k.startswith("CALOTYPE")}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-id=test", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"]
        torchrun += [f"--rdzv-conf=is_host={int(self.address == ADDRESSES[0])}", f"--local-addr={self.address}"]
        pipe = subprocess.PIPE
        command = ["ip", "netns", "exec", self.name, *torchrun, *options, *words]
        return subprocess.Popen(command, cwd=root, env=known | environment, stdout=pipe, stderr=pipe, text=True)

    def received(self) -> int:
        """Bytes that have come from the other host."""
        path = f"/sys/class/net/{self.interface}/statistics/rx_bytes"
        return int(
            subprocess.run(["ip", "netns", "exec", self.name, "cat", path], check=True, capture_output=True).stdout
        )

    def processes(self) -> list[int]:
        """The processes that run here."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def workers(self, run: Path) -> list[int]:
        """Those that train a run, as soon as a checkpoint of what it has learned is there."""
        for _ in range(3_000):
            time.sleep(0.1)
            if len(checkpoints.found(run / "checkpoints")) > 1:
                break
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if b"\0LOCAL_RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        assert len(found) == 2
        return found

    def lose(self, pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them."""
    mark = f"calo{os.getpid() % 100_000}"
    first, second = (Host(f"{mark}{k}", f"{mark}{k}", address) for k, address in zip("ab", ADDRESSES, strict=True))
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    try:
        ip("netns", "add", first.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    try:
        ip("netns", "add", second.name)
        ip(
            "link",
            "add",
            first.interface,
            "netns",
            first.name,
            "type",
            "veth",
            "peer",
            "name",
            second.interface,
            "netns",
            second.name,
        )
        for host in (first, second):
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                ip("-n", host.name, "link", "set", interface, "up")
        yield first, second
    finally:
        for host in (first, second):
            host.lose(host.processes())
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def ended(*processes: subprocess.Popen[str]) -> str:
    """What processes said that have ended well."""
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return "".join(out for out, _ in said)


def test_hosts_train_as_one_process_does(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ended(*(host.start([str(tmp_path / "program.py"), str(tmp_path)]) for host in hosts))
    found = [torch.load(tmp_path / f"{k}.pt", weights_only=True) for k in range(4)]
    for case in CASES:
        for name, value in trained(case).items():
            assert torch.allclose(found[0][case][name], value, rtol=1e-6, atol=1e-9), (case, name)
            for other in found[1:]:
                assert torch.equal(other[case][name], found[0][case][name]), (case, name)


def test_hosts_train_a_run_as_any(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    words = ["-m", "calotype", *COMMAND, "--out", str(tmp_path / "run")]
    said = ended(*(host.start(words) for host in hosts))
    assert said.count("run directory:") == said.count("trained on 96 images") == 1
    assert cli.main([*COMMAND, "--out", str(tmp_path / "one")]) == 0
    assert_alike(weights(tmp_path / "run"), weights(tmp_path / "one"))
    assert (tmp_path / "run" / "config.toml").read_text() == (tmp_path / "one" / "config.toml").read_text()
    # Each host hears at least once a step what the gradients of the other are.
    size = sum(value.numel() * value.element_size() for value in weights(tmp_path / "one").values())
    assert all(host.received() > 96 // 8 * size for host in hosts)


LONGER = [word.replace("96img", "640img") for word in COMMAND]


@pytest.fixture(scope="module")
def undisturbed(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    ended(*(host.start(["-m", "calotype", *LONGER, "--out", str(path)]) for host in hosts))
    return weights(path)


def assert_went_on(run: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    events = [record["event"] for record in Run.open(run).read_log()]
    assert "resumed" in events
    assert events[-1] == "finished"
    found = weights(run)
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


@pytest.mark.fault(
    "kill -9 of the processes of one of two machines",
    "the job goes on by itself, to the weights of an undisturbed one",
)
def test_workers_of_a_host_that_are_killed_are_started_again(
    hosts: tuple[Host, Host], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    words = ["-m", "calotype", *LONGER, "--out", str(tmp_path / "run")]
    started = [host.start(words, ["--max-restarts=2"], **OWN_STORE) for host in hosts]
    hosts[0].lose(hosts[0].workers(tmp_path / "run"))  # the first of all among them
    ended(*started)
    assert_went_on(tmp_path / "run", undisturbed)


@pytest.mark.fault(
    "one of two machines lost, and started again",
    "the job goes on, to the weights of an undisturbed one",
)
def test_a_host_that_is_lost_and_comes_again_goes_on(
    hosts: tuple[Host, Host], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    words = ["-m", "calotype", *LONGER, "--out", str(tmp_path / "run"), "--go-on"]
    first, second = (host.start(words, ["--max-restarts=2"], **OWN_STORE) for host in hosts)
    hosts[1].workers(tmp_path / "run")
    hosts[1].lose(hosts[1].processes())
    second.communicate()
    ended(first, hosts[1].start(words, ["--max-restarts=2"], **OWN_STORE))
    assert_went_on(tmp_path / "run", undisturbed)
