"""CPU settings, each in a process of its own: they hold for a process from before Paddle is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIABLES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel")
CHILD = """
import json, os, sys
from pathlib import Path
import paddle_vheat.cpu as cpu
cpu._mkl_path_for_amd = lambda: {path!r}
cpu.count_cores = lambda: {cores}
line = cpu.configure_cpu()
loaded = [name for name in ("paddle", "numpy") if name in sys.modules]
print(json.dumps([line, {{n: os.environ.get(n) for n in {variables}}}, loaded]))
"""


def environment(**variables):
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in VARIABLES and not name.startswith(("PADDLE_", "MALLOC_"))
    }
    return {**inherited, "PYTHONPATH": str(ROOT), **variables}


def child(path="7", cores=6, **variables):
    code = CHILD.format(path=path, cores=cores, variables=VARIABLES)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    line, values, loaded = json.loads(done.stdout)
    assert loaded == []
    return line, [values[name] for name in VARIABLES]


def test_sets_what_is_unset():
    line, values = child()
    assert values == ["6", "7", "0"]
    assert line == "CPU: 6 threads, MKL's AVX-512 path"
    line, values = child(path="5")
    assert values == ["6", "5", "0"]
    assert line == "CPU: 6 threads, MKL's AVX2 path"


def test_on_other_processors_than_amd():
    line, values = child(path=None)
    assert values == ["6", None, "0"]
    assert line == "CPU: 6 threads"


def test_leaves_what_the_user_set():
    line, values = child(OMP_NUM_THREADS="3", MKL_DEBUG_CPU_TYPE="4", FLAGS_use_stride_kernel="1")
    assert values == ["3", "4", "1"]
    assert line.startswith("CPU: 3 threads; yours: ")
    for name, value in zip(VARIABLES, values):
        assert f"{name}={value}" in line


def test_off():
    line, values = child(PADDLE_VHEAT_CPU="off")
    assert values == [None, None, None]
    assert "PADDLE_VHEAT_CPU=off" in line


@pytest.mark.parametrize(("cores", "processes", "threads"), [(6, 2, "3"), (6, 4, "1"), (2, 8, "1"), (1, 1, "1")])
def test_processes_share_the_cores(cores, processes, threads):
    assert child(cores=cores, PADDLE_LOCAL_SIZE=str(processes))[1][0] == threads


def launched(**variables):
    """As ``paddle.distributed.launch`` does it: Paddle's import sets the thread number of the launcher to 1."""
    code = CHILD.format(path=None, cores=6, variables=VARIABLES)
    launcher = (
        "import os, subprocess, sys\n"
        "os.environ.setdefault('OMP_NUM_THREADS', '1')\n"
        "os.environ['PADDLE_LOCAL_SIZE'] = '2'\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher], env=environment(**variables), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)[1]["OMP_NUM_THREADS"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the launcher's environment from /proc")
def test_under_the_launcher_paddles_own_setting_is_not_the_users():
    assert launched() == "3"
    assert launched(OMP_NUM_THREADS="1") == "1"


def test_too_late():
    code = "import sys, types; sys.modules['paddle'] = types.ModuleType('paddle')\n"
    code += "from paddle_vheat.cpu import configure_cpu; configure_cpu()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: configure_cpu must be called before paddle is imported" in done.stderr


def test_cores_are_those_of_this_process():
    code = "import os, paddle_vheat.cpu as cpu; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "print(cpu.count_cores())"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


AVX2 = "fpu sse4_2 avx fma avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"


@pytest.mark.parametrize(
    ("vendor", "flags", "path"),
    [
        ("AuthenticAMD", AVX512, "7"),
        ("AuthenticAMD", AVX2, "5"),
        # A path whose instructions the processor lacks kills the process: none is better than a wrong one.
        ("AuthenticAMD", AVX512.replace(" avx512vl", ""), "5"),
        ("AuthenticAMD", "fpu sse4_2 avx", None),
        ("GenuineIntel", AVX512, None),
    ],
)
def test_path_is_one_that_the_processor_can_run(monkeypatch, vendor, flags, path):
    from paddle_vheat import cpu

    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbugs\t\t: avx2\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert cpu._mkl_path_for_amd() == path


def test_no_path_where_the_processor_is_unknown(monkeypatch):
    from paddle_vheat import cpu

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert cpu._mkl_path_for_amd() is None


def test_paddle_takes_the_threads():
    code = "from paddle_vheat.cpu import configure_cpu; configure_cpu()\n"
    code += "import os; from paddle_vheat._paddle import paddle; print(os.environ['OMP_NUM_THREADS'])\n"
    code += "print(paddle.get_flags(['FLAGS_use_stride_kernel']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(OMP_NUM_THREADS="2"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["2", "{'FLAGS_use_stride_kernel': False}"]
    assert done.stderr == ""
