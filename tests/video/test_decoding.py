"""The decoding worker: what it gives is what probe.py gives, and no crash, hang or hunger of it ends anything else."""

import os
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

import v2l
from v2l.video import decoding, probe
from v2l.video import worker as decode_worker
from v2l.video.decoding import Worker
from v2l.video.worker import video_from_json, video_to_json

WANTED = [0, 3, 9, 30, 31]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [small.write_video(folder / f"{n} \N{SNOWMAN}.mp4", seed=n) for n in range(2)]


@pytest.fixture
def worker(monkeypatch):
    """One of this test's own, in the place of the process's."""
    worker = Worker()
    monkeypatch.setattr(decoding, "_worker", worker)
    yield worker
    worker.close()


def test_a_name_is_meant_from_where_this_process_stands(worker, clips, monkeypatch, tmp_path):
    worker.start()
    monkeypatch.chdir(clips[0].parent)
    seen = decoding.probe(clips[0].name)
    assert alike(decoding.read_frames(seen, WANTED), probe.read_frames(probe.probe(clips[0]), WANTED))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(v2l.V2LError, match="no file"):
        decoding.probe(clips[0].name)


def alike(frames, others) -> bool:
    pairs = list(zip(frames, others, strict=True))
    return all((a.index, a.seconds) == (b.index, b.seconds) and np.array_equal(a.pixels, b.pixels) for a, b in pairs)


def test_the_worker_gives_what_the_decoder_gives(clips):
    for clip in clips:
        here, there = probe.probe(clip), decoding.probe(clip)
        assert here == there
        assert all(np.array_equal(getattr(here, name), getattr(there, name)) for name in decode_worker.ARRAYS)
        assert alike(decoding.read_frames(there, WANTED), probe.read_frames(here, WANTED))
    assert decoding.decoder_version() == probe.decoder_version()


def test_several_files_are_open_at_once(clips):
    videos = [decoding.probe(clip) for clip in clips]
    together = list(zip(*(decoding.read_frames(each, WANTED) for each in videos), strict=True))
    for frames, clip in zip(zip(*together, strict=True), clips, strict=True):
        assert alike(frames, probe.read_frames(probe.probe(clip), WANTED))


def test_a_video_without_an_index_crosses_the_border(clips):
    found = probe.probe(clips[0])
    bare = probe.Video(**{**vars(found), **dict.fromkeys(("pts", "packet", "keys", "key_pts"))})
    again = video_from_json(*video_to_json(bare))
    assert again == bare and again.pts is None and again.keys is None
    assert alike(decoding.read_frames(bare, WANTED), probe.read_frames(bare, WANTED))


def test_errors_are_the_decoders_own(tmp_path, clips):
    (tmp_path / "empty.mp4").touch()
    for path, says in (
        (tmp_path / "empty.mp4", "is empty"),
        (tmp_path / "gone.mp4", "no file"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(v2l.V2LError, match=says):
            decoding.probe(path)
    with pytest.raises(v2l.V2LError, match="must ascend"):
        list(decoding.read_frames(decoding.probe(clips[0]), [3, 3]))


def test_a_crash_fails_one_file_and_the_next_starts_anew(worker, clips):
    found = decoding.probe(clips[0])
    frames = decoding.read_frames(found, WANTED)
    next(frames)
    os.kill(worker.process.pid, signal.SIGSTOP)  # so that the request below is under way when it dies
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({worker.process.pid}, 9)"]
    )
    with pytest.raises(v2l.V2LError, match=r"1 .*\.mp4 crashed the decoder \(SIGKILL\); the file is damaged"):
        decoding.probe(clips[1])
    killer.wait()
    # the file that was open meanwhile is opened again and misses nothing
    assert alike(list(frames), list(probe.read_frames(probe.probe(clips[0]), WANTED))[1:])
    assert decoding.probe(clips[1]).frame_count == 32


def test_a_file_that_is_cut_short_while_it_is_decoded_is_an_error(worker, clips, tmp_path):
    """Too large to be held in the decoder's buffers."""
    path, noise = tmp_path / "large.avi", np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 8.0, (640, 480))
    for _ in range(30):
        writer.write(noise.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    writer.release()
    assert path.stat().st_size > 2**22
    frames = decoding.read_frames(decoding.probe(path), list(range(30)))
    next(frames)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(v2l.V2LError, match=r"large\.avi"):
        list(frames)
    assert decoding.probe(clips[0]).frame_count == 32


def test_a_worker_that_died_between_requests_costs_nothing(worker, clips):
    first = decoding.probe(clips[0])
    worker.process.kill()
    worker.process.wait()
    assert decoding.probe(clips[0]) == first


def test_a_hang_is_an_error(worker, clips):
    decoding.probe(clips[0])
    pid, worker.silence = worker.process.pid, 1.0
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(v2l.V2LError, match="kept the decoder busy for 1 s without a sign of life"):
        decoding.probe(clips[0])
    worker.silence = decoding.SILENCE
    assert not Path(f"/proc/{pid}").exists()
    assert decoding.probe(clips[0]).frame_count == 32


def test_every_packet_is_a_sign_of_life(clips):
    """Frame by frame, so that long work is known from a hang however few frames of it are asked for."""
    beats: list[int] = []
    found = probe.probe(clips[0], alive=lambda: beats.append(1))
    assert len(beats) >= found.frame_count
    beats.clear()
    list(probe.read_frames(found, [found.frame_count - 1], alive=lambda: beats.append(1)))
    assert len(beats) >= found.frame_count


def test_signs_of_life_reach_the_one_who_waits(monkeypatch, clips):
    """The worker is silent for longer in all than is allowed, and never at a stretch."""
    slow = "decode_worker.BEAT = 0.0; probe.HEAD_PACKETS = 32; wait = probe.scan.__globals__['packets_of']"
    slowly = "video.scan.__globals__['packets_of'] = lambda s: (time.sleep(0.05) or p for p in wait(s))"
    start = f"import time; from v2l.video import worker as decode_worker, probe; {slow}; {slowly}"
    monkeypatch.setattr(decoding, "_COMMAND", decoding._COMMAND.replace("from v2l.dec", f"{start}\nfrom v2l.dec"))
    worker = Worker(silence=1.0)
    monkeypatch.setattr(decoding, "_worker", worker)
    try:
        assert decoding.probe(clips[0]).frame_count == 32  # at 0.05 s a packet: 1.6 s
    finally:
        worker.close()


def test_a_pause_of_both_processes_is_no_hang(clips):
    """As when a terminal stops a job: the worker was given no time to answer in."""
    script = (
        "import os, signal, sys, threading\n"
        "from v2l.video import decoding\n"
        "decoding._worker = decoding.Worker(silence=4.0)\n"
        f"decoding.probe({str(clips[0])!r})\n"
        "print(decoding._worker.process.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        f"print(decoding.probe({str(clips[0])!r}).frame_count)\n"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=checkout_env()
    )
    worker = int(asking.stdout.readline())
    os.kill(worker, signal.SIGSTOP)
    asking.stdin.write("\n")
    asking.stdin.flush()
    while "select" not in waiting_in(asking.pid) and "poll" not in waiting_in(asking.pid):
        time.sleep(0.01)
    os.kill(asking.pid, signal.SIGSTOP)
    time.sleep(6)  # longer than the silence that is allowed
    os.kill(worker, signal.SIGCONT)
    os.kill(asking.pid, signal.SIGCONT)
    assert asking.communicate(timeout=60)[0].strip() == "32"


def waiting_in(pid: int) -> str:
    """The kernel function that a process sleeps in; "poll" where the kernel does not say."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "poll"
    except OSError:
        return "poll"


def test_a_file_that_needs_too_much_memory_is_an_error(monkeypatch, tmp_path):
    worker = Worker(memory=700 * 2**20)
    monkeypatch.setattr(decoding, "_worker", worker)
    large = small.write_video(tmp_path / "large.mp4", frames=3, width=7680, height=4320)
    try:
        with pytest.raises(v2l.V2LError, match=r"large\.mp4"):
            list(decoding.read_frames(decoding.probe(large), [0, 1, 2]))
        fine = small.write_video(tmp_path / "fine.mp4")
        assert decoding.probe(fine).frame_count == 32
    finally:
        worker.close()


def checkout_env(**extra):
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_worker_ends_with_its_process(clips):
    script = (
        f"from v2l.video import decoding; decoding.probe({str(clips[0])!r}); "
        "print(decoding._worker.process.pid, flush=True)"
    )
    run = [sys.executable, "-c"]
    pid = int(subprocess.run([*run, script], capture_output=True, text=True, check=True, env=checkout_env()).stdout)
    killed = subprocess.run(
        [*run, f"{script}; import os; os.kill(os.getpid(), 9)"], capture_output=True, text=True, env=checkout_env()
    )
    deadline = time.monotonic() + 20
    while not all(map(gone, (pid, int(killed.stdout)))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_in_the_middle_of_a_file_ends_with_its_killed_parent(clips):
    """Nobody reads what it writes, and it does not come to read that its input was closed."""
    busy = "import time; from v2l.video import probe; probe.probe = lambda *_: time.sleep(600)"
    script = (
        "from v2l.video import decoding\n"
        f"decoding._COMMAND = decoding._COMMAND.replace('from v2l.dec', {busy!r} + chr(10) + 'from v2l.dec')\n"
        "worker = decoding.the_worker()\nworker.start()\nprint(worker.process.pid, flush=True)\n"
        f"decoding.probe({str(clips[0])!r})\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=checkout_env())
    pid = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    deadline = time.monotonic() + 20  # within 5 s on an idle machine
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_module_beside_the_video_is_imported(clips, tmp_path):
    """Neither by name nor through the variables and files that Python and the libraries look for modules in."""
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
        "from v2l.video import decoding\n"
        # what a user's own shell may have set is honoured by that user's own process, and never handed on
        f"import os; sys.path[:0] = ['', '.', os.getcwd()]; os.environ.update({HOSTILE!r})\n"
        "print(decoding.probe('talk.mp4').frame_count)\n"
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
    found = decoding.import_path()
    assert {str(user), str(tmp_path / "kept")} <= set(found)
    assert not {"", ".", "lib", str(tmp_path), str(tmp_path / "lib")} & set(found)
    assert all(map(os.path.isabs, found))
    assert found.index(os.path.dirname(os.__file__)) < found.index(str(tmp_path / "kept"))


def test_packages_of_a_user_install_are_found(clips, tmp_path):
    """PyAV and numpy in a user's own site-packages, which an isolated interpreter would not look into."""
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
        f"from v2l.video import decoding; print(decoding.probe({str(clips[0])!r}).frame_count)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "32", done.stderr


@pytest.mark.parametrize("processors", [48, 128, 256])
def test_videos_open_on_a_machine_with_many_processors(clips, tmp_path, processors):
    """As many threads as that machine would start, each with the stack of a generous shell."""
    shim = tmp_path / "processors.so"
    source = tmp_path / "processors.c"
    source.write_text(MANY.replace("COUNT", str(processors)))
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    script = (
        "from v2l.video import decoding; from v2l.video import container\n"
        f"found = decoding.probe({str(clips[0])!r})\n"
        "print(sum(1 for _ in decoding.read_frames(found, range(found.frame_count))))\n"
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
