"""Which process of a job this is, and how many of them tell of its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed import TCPStore

from tiprctl import job
from tiprctl.cores import cores
from tiprctl.errors import TiprError, UsageError
from tiprctl.job import Place, Terminated, place, tell_once, termination
from tiprctl.process_group import joined


def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as the second of two on a machine, with the store of their job."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": store.port}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    return store


def test_the_place_is_the_one_that_torchrun_gave():
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert place(given) == Place(process=5, processes=8, local=1, locals=4)
    assert place({"WORLD_SIZE": "8"}) == place({}) == Place(0, 1, 0, 1)


def test_processes_of_a_machine_share_its_cores(second_of_two, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)), raising=False)
    assert cores() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1
    alone(monkeypatch)
    assert cores() == 9


def test_a_process_alone_tells_each_time(monkeypatch):
    alone(monkeypatch)
    told = []
    tell_once(lambda: told.append(1))
    tell_once(lambda: told.append(2))
    assert told == [1, 2]


def test_in_a_job_only_the_first_tells(second_of_two):
    told = []
    tell_once(lambda: told.append(1))
    tell_once(lambda: told.append(2))
    assert told == [1]


def test_after_a_restart_the_end_is_told_again(second_of_two, monkeypatch):
    told = []
    tell_once(lambda: told.append(1))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    tell_once(lambda: told.append(2))
    assert told == [1, 2]


def test_without_the_store_everyone_tells(second_of_two, monkeypatch):
    monkeypatch.setattr(job, "HEARD_WITHIN", job.timedelta(seconds=1))
    monkeypatch.setenv("MASTER_PORT", "1")
    told = []
    tell_once(lambda: told.append(1))
    assert told == [1]


def test_being_terminated_is_raised_once_so_that_it_can_be_told():
    before = signal.getsignal(signal.SIGTERM)
    with termination(lambda: pytest.fail("it was heard")):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    try:
        with pytest.raises(Terminated), termination(lambda: pytest.fail("it was heard")):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_waits_in_vain_has_its_last_word():
    script = (
        "import os, signal, datetime, threading; from torch.distributed import TCPStore; from tiprctl import job\n"
        "job.GRACE = 0.2\n"
        "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "with job.termination(lambda: print('cut short', flush=True)):\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    store.wait(['never'], datetime.timedelta(seconds=60))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (1, "cut short\n"), done.stderr


def test_each_process_has_its_own_gpu(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes on this machine and 1 GPUs"), joined(None, print):
        pass
    with pytest.raises(UsageError, match="and not all of them cuda:1"), joined("cuda:1", print):
        pass


def test_a_gpu_that_is_not_there_is_called_as_it_was_typed(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UsageError, match="The device 'cuda' cannot be used"), joined("cuda", print):
        pass


def refuse(*_given, **_named):
    raise RuntimeError("No CUDA GPUs are available")


def test_processes_that_do_not_meet_are_told_where(second_of_two, monkeypatch):
    monkeypatch.setattr("tiprctl.process_group.TIMEOUT", job.timedelta(seconds=1))
    monkeypatch.setattr(signal, "alarm", lambda seconds: 0)
    port = os.environ["MASTER_PORT"]
    with pytest.raises(TiprError, match="do not find each other") as error, joined("cpu", print):
        pass
    assert error.value.where == f"127.0.0.1:{port}"


def test_alone_the_device_is_the_one_that_was_named(monkeypatch):
    alone(monkeypatch)
    with joined("cpu", print) as here:
        assert here.device.type == "cpu"
    with pytest.raises(UsageError), joined("tpu9", print):
        pass
