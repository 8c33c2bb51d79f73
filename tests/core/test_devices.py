"""What a process does for its speed."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading

import pytest
import torch

from calotype.core import devices

PROGRAM = """
import resource, torch
from calotype.core import devices
if {kept}:
    devices.keep_memory()
def use():
    torch.empty(10 * 2**20).fill_(1)  # 40 MB
for _ in range(16):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_freed_is_used_again() -> None:
    def new_pages(kept: bool) -> int:
        ran = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, check=True)
        return int(ran.stdout)

    assert new_pages(kept=True) < new_pages(kept=False) / 4  # the heap may still grow now and then


def test_under_a_limit_another_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, here = torch.device("cpu"), threading.get_ident()
    monkeypatch.setattr(devices, "_is_limited", lambda: True)
    for device, apart in ((cpu, True), (torch.device("cuda"), False)):
        thread = devices.OwnThread(device)
        first = thread(threading.get_ident)
        assert (first != here) == apart
        assert thread(threading.get_ident) == first
        kept = [threading.current_thread()] if not apart else [thread(threading.current_thread)]
        thread.renew()
        assert (thread(threading.current_thread) not in kept) == apart
        with pytest.raises(ZeroDivisionError):
            thread(divmod, 1, 0)
    monkeypatch.setattr(devices, "_is_limited", lambda: False)
    assert devices.OwnThread(cpu)(threading.get_ident) == here
