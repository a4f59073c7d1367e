"""The decoding worker returns what probe.py returns, and a crash, hang or memory shortage fails only one file."""

import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small
from places import ROOT
from terminal import PATIENCE, wait_for

import v2l
from v2l.video import client, limits, probe
from v2l.video.client import WorkerProcess
from v2l.video.protocol import INDEX_ARRAYS, SIZES, send, video_from_json, video_to_json
from v2l.video.worker import limit_memory

WANTED = [0, 3, 9, 30, 31]

HOOKED = """\
import os, sys, time
sys.path[:] = sys.argv[3:]
from v2l.video.worker import serve
def on_packet():
    {on_packet}
serve(int(sys.argv[1]), int(sys.argv[2]), heartbeat={heartbeat}, on_packet=on_packet)
"""
"""A worker's program with a statement that runs at every packet."""


def hooked(on_packet: str, heartbeat: float = 1.0) -> str:
    return HOOKED.format(on_packet=on_packet, heartbeat=heartbeat)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [small.write_video(folder / f"{n} \N{SNOWMAN}.mp4", seed=n) for n in range(2)]


@pytest.fixture
def start_worker(monkeypatch):
    """Make `WorkerProcess(**options)` the worker of this process during the test."""
    started = []

    def start(**options) -> WorkerProcess:
        started.append(WorkerProcess(**options))
        monkeypatch.setattr(client, "_worker", started[-1])
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def worker(start_worker):
    return start_worker()


def test_a_relative_name_is_resolved_against_this_process(worker, clips, monkeypatch, tmp_path):
    worker.start()
    monkeypatch.chdir(clips[0].parent)
    video = client.probe(clips[0].name)
    assert alike(client.read_frames(video, WANTED), probe.read_frames(probe.probe(clips[0]), WANTED))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(v2l.V2LError, match="no file"):
        client.probe(clips[0].name)


def alike(frames, others) -> bool:
    pairs = list(zip(frames, others, strict=True))
    return all((a.index, a.seconds) == (b.index, b.seconds) and np.array_equal(a.pixels, b.pixels) for a, b in pairs)


def test_the_worker_gives_what_the_decoder_gives(clips):
    for clip in clips:
        here, there = probe.probe(clip), client.probe(clip)
        assert here == there and np.array_equal(here.seconds, there.seconds)
        assert all(np.array_equal(getattr(here.index, name), getattr(there.index, name)) for name in INDEX_ARRAYS)
        assert alike(client.read_frames(there, WANTED), probe.read_frames(here, WANTED))
    assert client.decoder_version() == probe.decoder_version()


def test_several_files_are_open_at_once(clips):
    videos = [client.probe(clip) for clip in clips]
    together = list(zip(*(client.read_frames(each, WANTED) for each in videos), strict=True))
    for frames, clip in zip(zip(*together, strict=True), clips, strict=True):
        assert alike(frames, probe.read_frames(probe.probe(clip), WANTED))


def test_a_video_without_an_index_is_sent_and_read(clips):
    found = probe.probe(clips[0])
    bare = probe.Video(**vars(found) | {"index": None})
    again = video_from_json(*video_to_json(bare))
    assert again == bare and again.index is None and np.array_equal(again.seconds, bare.seconds)
    assert alike(client.read_frames(bare, WANTED), probe.read_frames(bare, WANTED))


def test_errors_are_the_decoders_own(tmp_path, clips):
    (tmp_path / "empty.mp4").touch()
    for path, says in (
        (tmp_path / "empty.mp4", "is empty"),
        (tmp_path / "gone.mp4", "no file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(v2l.V2LError, match=says):
            client.probe(path)
    with pytest.raises(v2l.V2LError, match="must ascend"):
        list(client.read_frames(client.probe(clips[0]), [3, 3]))


def test_a_crash_fails_one_file_and_the_next_request_starts_a_worker(start_worker, clips, tmp_path):
    """The worker kills itself at the next packet once a file exists, and only once."""
    trigger = tmp_path / "trigger"
    start_worker(
        program=hooked(f"if os.path.exists({str(trigger)!r}): os.remove({str(trigger)!r}); os.kill(os.getpid(), 9)")
    )
    frames = client.read_frames(client.probe(clips[0]), WANTED)
    next(frames)
    trigger.touch()
    with pytest.raises(v2l.V2LError, match=r"1 .*\.mp4 crashed the decoder \(SIGKILL\); the file is damaged"):
        client.probe(clips[1])
    assert not trigger.exists()
    # the other open file is reopened and loses no frame
    assert alike(list(frames), list(probe.read_frames(probe.probe(clips[0]), WANTED))[1:])
    assert client.probe(clips[1]).frame_count == 32


def test_a_file_that_is_cut_short_while_it_is_decoded_is_an_error(worker, clips, tmp_path):
    """The file is larger than what the decoder reads ahead, so that frames behind the cut are surely missing."""
    path, noise = tmp_path / "large.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 8.0, (640, 480))
    for _ in range(30):
        writer.write(noise.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    writer.release()
    assert path.stat().st_size > 2**22
    frames = client.read_frames(client.probe(path), list(range(30)))
    next(frames)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(v2l.V2LError, match=r"large\.avi"):
        list(frames)
    assert client.probe(clips[0]).frame_count == 32


def test_videos_open_on_systems_without_a_memory_limit_or_selectors_for_pipes(start_worker, clips, monkeypatch):
    """macOS refuses to limit the address space with ValueError. Windows refuses to wait for a pipe with OSError."""

    def refuse(*_, **__):
        raise OSError("an operation was attempted on something that is not a socket")

    for kind in {selectors.DefaultSelector, selectors.PollSelector, selectors.SelectSelector}:
        monkeypatch.setattr(kind, "register", refuse)
    refusal = (
        "import resource\n"
        "def refuse(*_): raise ValueError('current limit exceeds maximum limit')\n"
        "resource.setrlimit = refuse\n"
    )
    worker = start_worker(program=refusal + client.PROGRAM)
    video = client.probe(clips[0])
    assert alike(client.read_frames(video, WANTED), probe.read_frames(probe.probe(clips[0]), WANTED))
    limit = Path(f"/proc/{worker.process.pid}/limits").read_text()
    assert str(limits.MEMORY) not in limit


@pytest.mark.parametrize("refusal", [ValueError, OSError, AttributeError, ImportError])
def test_a_memory_limit_is_best_effort(monkeypatch, refusal):
    """AttributeError: a `resource` module without RLIMIT_AS; ImportError: none at all."""

    def refuse(*_):
        raise refusal

    monkeypatch.setattr(resource, "setrlimit", refuse)
    if refusal is AttributeError:
        monkeypatch.delattr(resource, "RLIMIT_AS")
    if refusal is ImportError:
        monkeypatch.setitem(sys.modules, "resource", None)
    limit_memory(limits.MEMORY)


def test_a_worker_that_died_between_requests_is_replaced(worker, clips):
    first = client.probe(clips[0])
    worker.process.kill()
    worker.process.wait()
    assert client.probe(clips[0]) == first


def test_a_hang_is_an_error(worker, clips):
    client.probe(clips[0])
    pid, worker.silence = worker.process.pid, 1.0
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(v2l.V2LError, match=r"made the decoder hang \(no heartbeat for 1 s\)"):
        client.probe(clips[0])
    worker.silence = limits.SILENCE
    assert not Path(f"/proc/{pid}").exists()
    assert client.probe(clips[0]).frame_count == 32


def test_every_packet_gives_a_heartbeat(clips):
    """Even if few frames are requested, so that long work is not mistaken for a hang."""
    beats: list[int] = []
    found = probe.probe(clips[0], heartbeat=lambda: beats.append(1))
    assert len(beats) >= found.frame_count
    beats.clear()
    list(probe.read_frames(found, [found.frame_count - 1], heartbeat=lambda: beats.append(1)))
    assert len(beats) >= found.frame_count


def test_heartbeats_are_sent_before_the_answer(clips):
    program = hooked("pass", heartbeat=-1.0)  # at every packet
    command = [sys.executable, "-c", program, str(limits.MEMORY), str(os.getpid()), *client.import_path()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        send(process.stdin, {"do": "probe", "path": str(clips[0]), "shown": "clip"})
        process.stdin.close()
        data, sizes = process.stdout.read(), []
    while data:
        header_size, payload_size = SIZES.unpack(data[: SIZES.size])
        sizes.append(header_size)
        data = data[SIZES.size + header_size + payload_size :]
    alive = len('{"alive": true}')
    assert len(sizes) > 32 and set(sizes[:-1]) == {alive} and sizes[-1] > alive


def test_heartbeats_of_long_work_keep_the_worker(start_worker, clips):
    """The worker takes longer in all than the permitted silence, but no single packet does."""
    start_worker(silence=4.0, program=hooked("time.sleep(0.1)", heartbeat=0.0))
    start = time.monotonic()
    assert client.probe(clips[0]).frame_count == 32
    assert time.monotonic() - start > 4.0


def test_a_pause_of_both_processes_is_no_hang(clips, tmp_path):
    """As when a terminal stops a job: the worker had no time to answer."""
    waiting, resume = tmp_path / "waiting", tmp_path / "resume"
    wait = f"open({str(waiting)!r}, 'w').close()\n    while not os.path.exists({str(resume)!r}): time.sleep(0.01)"
    script = (
        "from v2l.video import client\n"
        f"client._worker = client.WorkerProcess(silence=8.0, program={hooked(wait)!r})\n"
        "client._worker.start()\n"
        "print(client._worker.process.pid, flush=True)\n"
        f"print(client.probe({str(clips[0])!r}).frame_count)\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=checkout_env())
    worker = int(asking.stdout.readline())
    wait_for(waiting, asking)
    for pid in (asking.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(9)  # longer than the permitted silence
    resume.touch()
    for pid in (worker, asking.pid):
        os.kill(pid, signal.SIGCONT)
    assert asking.communicate(timeout=PATIENCE)[0].strip() == "32"


def test_a_file_that_needs_too_much_memory_is_an_error(start_worker, tmp_path):
    start_worker(memory=700 * 2**20)
    large = small.write_video(tmp_path / "large.mp4", frames=3, width=7680, height=4320)
    with pytest.raises(v2l.V2LError, match=r"large\.mp4"):
        list(client.read_frames(client.probe(large), [0, 1, 2]))
    fine = small.write_video(tmp_path / "fine.mp4")
    assert client.probe(fine).frame_count == 32


def checkout_env(**extra):
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


def gone(pid: int) -> bool:
    """Return True if a process has ended, even if its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"one of the processes {pids} never ended"
        time.sleep(0.05)


def test_the_worker_ends_with_its_process(clips):
    script = (
        f"from v2l.video import client; client.probe({str(clips[0])!r}); print(client._worker.process.pid, flush=True)"
    )
    run = [sys.executable, "-c"]
    pid = int(subprocess.run([*run, script], capture_output=True, text=True, check=True, env=checkout_env()).stdout)
    killed = subprocess.run(
        [*run, f"{script}; import os; os.kill(os.getpid(), 9)"], capture_output=True, text=True, env=checkout_env()
    )
    wait_until_gone(pid, int(killed.stdout))


def test_a_worker_in_the_middle_of_a_file_ends_with_its_killed_parent(clips, tmp_path):
    """It does not write to the closed pipe, and does not get to read that its input was closed."""
    busy = tmp_path / "busy"
    program = hooked(f"open({str(busy)!r}, 'w').close(); time.sleep(600)")
    script = (
        "from v2l.video import client\n"
        f"client._worker = client.WorkerProcess(program={program!r})\n"
        "client._worker.start()\n"
        "print(client._worker.process.pid, flush=True)\n"
        f"client.probe({str(clips[0])!r})\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=checkout_env())
    pid = int(asking.stdout.readline())
    wait_for(busy, asking)
    asking.kill()
    asking.communicate()
    wait_until_gone(pid)


def test_no_module_beside_the_video_is_imported(clips, tmp_path):
    """Neither by name nor through the variables and files by which Python and the libraries find modules."""
    loaded = "import sys, v2l.video.worker, av.logging, av.filter; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, env=checkout_env()).stdout
    marker = tmp_path / "EXECUTED"
    evil = f"open({str(marker)!r}, 'a').write(__name__)\n"
    for name in {*names.split(), "usercustomize", "sitecustomize"}:
        if "." not in name and name not in ("sys", "__main__", "v2l"):
            (tmp_path / f"{name}.py").write_text(evil)
    (tmp_path / "evil.pth").write_text(f"import sys; {evil}")
    (tmp_path / "talk.mp4").write_bytes(clips[0].read_bytes())
    folder, package = str(tmp_path), str(ROOT)
    script = (
        f"import sys; sys.path[:] = [p for p in sys.path if p] + [{package!r}]\n"
        "from v2l.video import client\n"
        # what a user's shell may have set applies to the user's process, but is never passed on
        f"import os; sys.path[:0] = ['', '.', os.getcwd()]; os.environ.update({HOSTILE!r})\n"
        "print(client.probe('talk.mp4').frame_count)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=clean)
    assert done.stdout.strip() == "32", done.stderr
    assert not marker.exists(), marker.read_text()


HOSTILE = {
    "PYTHONPATH": ".:",
    "PYTHONSTARTUP": "dataclasses.py",
    "PYTHONUSERBASE": ".",
    "PYTHONHOME": ".",
    "PYTHONINSPECT": "1",
    "LD_LIBRARY_PATH": ".:",
    "OPENCV_VIDEOIO_PLUGIN_PATH": ".",
    "FREI0R_PATH": ".",
    "LADSPA_PATH": ".",
}


def test_the_import_path_is_absolute_and_keeps_a_users_own_packages(monkeypatch, tmp_path):
    user = tmp_path / "home" / "site-packages"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "lib", str(tmp_path / "kept")]))
    given = ["", ".", "lib", str(tmp_path), str(tmp_path / "lib"), str(tmp_path / "kept"), str(user)]
    monkeypatch.setattr(sys, "path", [*given, *sys.path])
    found = client.import_path()
    assert {str(user), str(tmp_path / "kept")} <= set(found)
    assert not {"", ".", "lib", str(tmp_path), str(tmp_path / "lib")} & set(found)
    assert all(map(os.path.isabs, found))
    assert found.index(os.path.dirname(os.__file__)) < found.index(str(tmp_path / "kept"))


def test_packages_of_a_user_install_are_found(clips, tmp_path):
    """PyAV and numpy in user site-packages, which an isolated interpreter does not search."""
    import av

    site = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    for package in (av, np):
        source = Path(package.__file__).parent
        for each in source.parent.glob(f"{source.name}*"):
            (site / each.name).symlink_to(each)
    script = (
        f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [{str(site)!r}]\n"
        f"sys.path.append({str(ROOT)!r})\n"
        f"from v2l.video import client; print(client.probe({str(clips[0])!r}).frame_count)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "32", done.stderr


@pytest.mark.parametrize("processors", [48, 128, 256])
def test_videos_open_on_a_machine_with_many_processors(clips, tmp_path, processors):
    """The decoder would start one thread per processor, each with the large stack of `ulimit -s 262144`."""
    shim = tmp_path / "processors.so"
    source = tmp_path / "processors.c"
    source.write_text(MANY.replace("COUNT", str(processors)))
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    script = (
        "from v2l.video import client\n"
        f"found = client.probe({str(clips[0])!r})\n"
        "print(sum(1 for _ in client.read_frames(found, range(found.frame_count))))\n"
    )
    limited = 'ulimit -s 262144 2>/dev/null; exec "$0" "$@"'
    done = subprocess.run(
        ["sh", "-c", limited, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=checkout_env(LD_PRELOAD=str(shim)),
    )
    assert done.stdout.strip() == "32", done.stderr


MANY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

long sysconf(int name) {
    static long (*real)(int);
    if (!real) real = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF ? COUNT : real(name);
}

int sched_getaffinity(pid_t process, size_t size, cpu_set_t *set) {
    (void) process;
    memset(set, 0, size);
    for (int each = 0; each < COUNT; each++) CPU_SET_S(each, size, set);
    return 0;
}
"""


def test_the_worker_imports_neither_torch_nor_anything_of_the_model():
    script = "import sys, v2l.video.worker; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "PIL", "safetensors", "typer", "tokenizers", "cv2"} & set(loaded)
