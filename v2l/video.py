"""Opens one local video file safely, learns its true frames and their times, and decodes the chosen ones.

Runs in a spawned worker: imports only the standard library, numpy and OpenCV (late), and everything that crosses
the boundary can be pickled. Axes: N frames of the file, H and W pixels of a frame as it is shown (rotation applied).
"""

import itertools
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from v2l.errors import V2LError
from v2l.sampling import Video

MAX_FPS = 1000.0
MAX_SIDE = 16384
LIE_LIMIT = 1.05  # a header may promise this many times the frames that can be decoded
CLOCK_NOISE = 0.0015  # seconds; containers as coarse as 1 ms round the times of a constant rate by up to this much
SEEK_LEAD = 16  # OpenCV starts a seek this many frames before the frame asked for
SEEK_TRIES = 4
GRAB_TRIES = 16
HEAD_FRAMES = 40  # decoded at the start of a file to see whether the decoder's times are the packets' times

_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# Containers that hold their own pictures. Playlists, concat scripts and image sequences name other files, and an ID3
# tag in front of one hides it from a look at the first bytes, but not from this list, which FFmpeg itself enforces.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,h264,hevc,vvc,obu,av1,ivf,m4v,mjpeg,"
    "mxf,nut,gif,rm,dv,wtv,swf,yuv4mpegpipe,vc1,h263,h261,apng,3gp,amv,nsv,roq,bink,smk,fli,gxf,nuv"
)
_open_lock = threading.Lock()  # the options above travel through the environment of the whole process


def alive() -> None:
    """Called at every frame or packet that is passed: a decoding worker puts its sign of life here."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame: its index in the whole file, its presentation time in seconds from the stream's first frame
    (rounded to microseconds) and its pixels, (H, W, 3) uint8 RGB, upright."""

    index: int
    seconds: float
    pixels: np.ndarray


def load_cv2() -> ModuleType:
    """OpenCV with FFmpeg, quiet unless the user has set its log levels. V2LError if it is missing or cannot load."""
    quiet = "OPENCV_LOG_LEVEL" not in os.environ and os.environ.get("OPENCV_FFMPEG_LOGLEVEL", "-8") == "-8"
    if quiet:  # FFmpeg's level is read once, at the first file; a worker inherits it
        os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    try:
        import cv2
    except ImportError as error:
        if any(name in str(error) for name in ("libGL", "libgthread", "libglib", "libxcb", "libSM")):
            raise V2LError(
                f"OpenCV cannot load a system library ({error}): on Debian or Ubuntu run `apt-get install libgl1 "
                "libglib2.0-0`, or replace opencv-python with opencv-python-headless"
            ) from error
        raise V2LError(f"OpenCV cannot be imported ({error}): run `pip install opencv-python`") from error
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getBackends():
        raise V2LError(f"OpenCV {cv2.__version__} was built without FFmpeg: install opencv-python from PyPI")
    if quiet:
        (cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)  # 4.x, else 5.x
    return cv2


def probe(path: str | os.PathLike[str]) -> Video:
    """Open the file, check it, and learn its true frame count, rate, size and the time of every frame.

    Costs one read of the file without decoding, and a few dozen decoded frames at its start and end; a file whose
    times contradict themselves there is decoded once from start to end instead.
    V2LError: not a regular, readable local file; a playlist; no picture can be decoded; a header that promises over 5%
    more frames than can be decoded; a size or frame rate that cannot be true.
    """
    name = regular_file(path)
    clock, keys, recovery = _packet_clock(name)
    with Decoder(name) as decoder:
        width, height = decoder.size()
        promised, header_fps = decoder.header()
        if clock is not None and not _confirmed(decoder, clock, keys):
            clock, keys = None, keys[:0]
    count, times = _decoded_times(name) if clock is None else (len(clock), clock)
    if count == 0:
        raise V2LError(f"no frame of {name!r} can be decoded: re-encode it, or check that it is complete")
    seconds, fps, constant = _rate(name, times, count, header_fps)
    short = promised > count * LIE_LIMIT and promised / header_fps > count / fps * LIE_LIMIT
    # An edit list that hides a part of a whole file (a cut without re-encoding) is no lie.
    if short and promised > LIE_LIMIT * _decoded_times(name, "ignore_editlist;1")[0]:
        raise V2LError(
            f"the header of {name!r} promises {promised} frames, {count} can be decoded: the file is cut off or "
            "damaged; get it again whole, or re-mux or re-encode it"
        )
    return Video(name, count, fps, count / fps, width, height, constant, seconds, clock, keys, recovery)


def read_frames(video: Video, indices: Sequence[int]) -> Iterator[Frame]:
    """Decode the frames with these ascending indices, one at a time; the pixels are those of a read from the start.

    Seeks where that decodes fewer frames, and proves by its time that the right frame came out; otherwise passes over
    the frames between. Closing the generator early releases the file.
    V2LError: indices that do not ascend or lie outside 0 .. frame_count - 1; a frame that cannot be decoded.
    """
    wanted = [int(index) for index in indices]
    if any(a >= b for a, b in itertools.pairwise(wanted)):
        raise V2LError("frame indices must ascend without repeats")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < video.frame_count:
        raise V2LError(f"frame indices {wanted[0]} to {wanted[-1]} leave {video.path!r}: 0 to {video.frame_count - 1}")
    with Decoder(regular_file(video.path), video.clock, video.keys, video.recovery) as decoder:
        for index in wanted:
            decoder.move_to(index)
            pixels = decoder.pixels()
            if pixels.shape != (video.height, video.width, 3):
                got = f"{pixels.shape[1]}x{pixels.shape[0]}"
                raise V2LError(
                    f"frame {index} of {video.path!r} is {got}, not {video.width}x{video.height}: re-encode the file"
                )
            yield Frame(index, float(video.seconds[index]), pixels)


class Decoder:
    """One open file and the frame it stands at. `decoded` counts the frames decoded so far, those that a seek passed
    over included (as far as the file's key frames tell). Use it as a context manager; it releases the file."""

    def __init__(
        self, path: str, clock: np.ndarray | None = None, keys: np.ndarray | None = None, recovery: int = 0
    ) -> None:
        self.path = path
        self.clock = clock
        self.keys = keys if keys is not None else np.zeros(0, np.int64)
        self.lead = SEEK_LEAD + recovery
        self._may_seek = clock is not None
        self.decoded = 0
        self._cv2 = load_cv2()
        self._reopen()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def header(self) -> tuple[int, float]:
        """Frame count and rate as the header has them: unchecked, 0 for what is no finite positive number."""
        get = self._capture.get
        count, fps = get(self._cv2.CAP_PROP_FRAME_COUNT), get(self._cv2.CAP_PROP_FPS)
        fps = fps if np.isfinite(fps) and fps > 0 else 0.0
        return (int(count) if fps and np.isfinite(count) and count > 0 else 0), fps

    def size(self) -> tuple[int, int]:
        """Width and height as shown, pixels. V2LError beyond MAX_SIDE."""
        width = int(self._capture.get(self._cv2.CAP_PROP_FRAME_WIDTH))
        height = int(self._capture.get(self._cv2.CAP_PROP_FRAME_HEIGHT))
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise V2LError(
                f"{self.path!r} says its pictures are {width}x{height}: 1 to {MAX_SIDE} pixels a side are read; "
                "re-encode it smaller"
            )
        return width, height

    def grab(self) -> float | None:
        """Decode the next frame; its time in milliseconds as the decoder reports it, None when no more comes."""
        # A damaged packet ends a grab like the end of the file does. Where times tell the frames, look behind it.
        alive()
        if not any(self._capture.grab() for _ in range(GRAB_TRIES if self.clock is not None else 1)):
            return None
        self.decoded += 1
        return self._capture.get(self._cv2.CAP_PROP_POS_MSEC)

    def pixels(self) -> np.ndarray:
        """The frame it stands at, (H, W, 3) uint8 RGB."""
        ok, image = self._capture.retrieve()
        if not ok or image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise self._lost(self.position)
        return self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)

    def move_to(self, index: int) -> None:
        """Stand at the frame with this index, at or after the present one. V2LError if it does not decode."""
        # Only past a key frame ahead of us: should a container ignore the seek, decoding still meets that key frame
        # before the target, so that no picture is built on references that the seek threw away.
        start = self.last_key(index - self.lead)
        if self._may_seek and start > self.position + SEEK_LEAD and not self.seek(index):
            self._begin_again()
        while self.position < index:
            self._step(index)
        if self.position > index:
            raise self._lost(index)

    def last_key(self, index: int) -> int:
        """The last key frame at or before this index, 0 if there is none."""
        at = int(np.searchsorted(self.keys, index, side="right"))
        return int(self.keys[at - 1]) if at else 0

    def seek(self, index: int) -> bool:
        """Stand at some frame at or before `index`, known by its time; False if seeking does not lead there."""
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        lead = 2.0 + self.lead - SEEK_LEAD
        for _ in range(SEEK_TRIES):
            # OpenCV turns frame numbers into times with its own rate; here the time leads and the number follows.
            number = int((self.clock[index] - self.clock[0]) / 1000 * fps - lead)
            if number <= SEEK_LEAD:
                return False
            self._sought = True
            self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, number)
            time = self.grab()
            landed = len(self.clock) if time is None else self._index_of(time)
            if landed < 0:
                return False
            self.decoded += landed - self.last_key(landed - SEEK_LEAD)
            if landed <= index:
                self.position = landed
                return True
            lead += 2.0 * (landed - index) + SEEK_LEAD
        return False

    def _step(self, target: int) -> None:
        time = self.grab()
        found = self._index_of(time) if time is not None and self.clock is not None else -1
        # After a seek, only the times say where we are. OpenCV may also stop too early then, by its own frame counter.
        if self._sought and found <= self.position:
            self._begin_again()
        elif time is None:
            raise self._lost(target if self.clock is not None else self.position + 1)
        else:  # A frame that did not decode leaves a gap in the times, never a shift of those after it.
            self.position = max(found, self.position + 1)

    def _index_of(self, time: float) -> int:
        at = int(np.searchsorted(self.clock, time))
        return at if at < len(self.clock) and self.clock[at] == time else -1

    def _begin_again(self) -> None:
        """Seeking and the times disagree: from the first frame on, without seeks."""
        self._capture.release()
        self._may_seek = False
        self._reopen()

    def _reopen(self) -> None:
        self._capture = open_capture(self.path)
        self._sought = False
        self.position = -1  # index of the frame it stands at, -1 before the first

    def _lost(self, index: int) -> V2LError:
        return V2LError(f"frame {index} of {self.path!r} cannot be decoded: the file is damaged there; re-encode it")


def regular_file(path: str | os.PathLike[str]) -> str:
    """The absolute path behind `path`, once it is known to be a regular, readable file that names no other file.
    V2LError otherwise. Whatever the name looks like (URL, `concat:`, `%d`), it is only ever a local name."""
    try:
        shown = os.fsdecode(path)
        name = os.path.realpath(shown)
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise V2LError(f"{shown!r} is {kind}: give a video file")
        if status.st_size == 0:
            raise V2LError(f"{shown!r} is empty (0 bytes): get the file again")
        with open(name, "rb") as file:
            head = file.read(65536)
        name.encode()
    except FileNotFoundError as error:
        raise V2LError(f"no file {shown!r}: check the name; only local files are read, no URLs or patterns") from error
    except PermissionError as error:
        raise V2LError(f"no permission to read {shown!r}: change its mode or its owner") from error
    except UnicodeEncodeError as error:
        raise V2LError(f"the name {shown!r} is not UTF-8, which OpenCV needs: rename the file") from error
    except (OSError, ValueError) as error:
        raise V2LError(f"cannot read {shown!r} ({error}): check the name and the disk") from error
    kind = _playlist(head)
    if kind:
        raise V2LError(f"{shown!r} is {kind} that names other files: give the video file itself")
    return name


def _playlist(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"#extm3u", b"#extinf", b"[playlist]", b"<asx", b"<smil", b"[reference]")):
        return "a playlist"
    if text.startswith(b"ffconcat"):
        return "a concat script"
    if text.startswith(b"v=0") and b"\nm=" in text:
        return "a session description (SDP)"
    return "a DASH manifest" if text.startswith((b"<?xml", b"<mpd", b"<!--")) and b"<mpd" in text else ""


def open_capture(name: str, option: str = "") -> Any:
    """A `cv2.VideoCapture` on this absolute path: FFmpeg only, file protocol only, containers of `_FORMATS` only,
    software decoding, upright. The user's own capture options are kept and put back. V2LError if nothing opens."""
    cv2 = load_cv2()
    settings = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE]
    with _open_lock:
        before = os.environ.get(_OPTIONS)
        ours = ("protocol_whitelist;", "format_whitelist;")
        kept = [each for each in (before or "").split("|") if each and not each.startswith(ours)]
        kept += [option] * bool(option)
        os.environ[_OPTIONS] = "|".join([*kept, "protocol_whitelist;file", f"format_whitelist;{_FORMATS}"])
        try:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, settings)
        finally:
            if before is None:
                del os.environ[_OPTIONS]
            else:
                os.environ[_OPTIONS] = before
    if not capture.isOpened():
        capture.release()
        raise V2LError(f"FFmpeg finds no video stream it can open in {name!r}: check that it is a complete video file")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def _packet_clock(name: str) -> tuple[np.ndarray | None, np.ndarray, int]:
    """Presentation times (N,) in the decoder's milliseconds, ascending, of the packets of the video stream, read
    without decoding, the indices (K,) of the key frames, and how many frames after one may be imperfect; the times are
    None where packets do not tell the frames."""
    cv2 = load_cv2()
    capture = open_capture(name)
    try:
        nothing = None, np.zeros(0, np.int64), 0
        fourcc = (int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF).to_bytes(4, "little")
        # VP8 keeps reference pictures that are never shown in packets of their own.
        if fourcc == b"VP80" or not capture.set(cv2.CAP_PROP_FORMAT, -1):
            return nothing
        times, keys, clean = [], [], True
        while capture.grab():
            alive()
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            keys.append(capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) == 1)
            if keys[-1] and clean and fourcc.lower() in (b"avc1", b"h264", b"x264", b"avc3"):
                got, packet = capture.retrieve()
                clean = got and bool(re.search(rb"\x00\x00\x01[\x25\x45\x65]", packet.tobytes()))
    finally:
        capture.release()
    order = np.argsort(np.array(times), kind="stable")
    clock = np.array(times, np.float64)[order]
    if len(clock) == 0 or np.any(np.diff(clock) <= 0):
        return nothing
    starts = np.flatnonzero(np.array(keys)[order])
    # Without an IDR picture a key frame may only begin a refresh, which is complete when the next one begins.
    gaps = np.diff(np.append(starts, len(clock)))
    return clock, starts, 0 if clean or len(gaps) == 0 else int(gaps.max())


def _confirmed(decoder: Decoder, clock: np.ndarray, keys: np.ndarray) -> bool:
    """Whether the first frames and those at the end decode with exactly the packets' times: packets can lack times,
    lie outside an edit list, or be damaged, and then only decoding everything tells."""
    decoder.clock, decoder.keys = clock, keys
    last = len(clock) - 1
    while decoder.position < min(HEAD_FRAMES, last):
        time = decoder.grab()
        following = decoder.position + 1
        # FFmpeg's time 0 reaches OpenCV as the packet's decoding time, so that of the first frame is only bounded.
        expected = time is not None and (time == clock[following] if following else last == 0 or time < clock[1])
        if not expected:
            return False
        decoder.position = following
    if decoder.last_key(last - SEEK_LEAD) > decoder.position + SEEK_LEAD and not decoder.seek(last):
        return False
    while (time := decoder.grab()) is not None:
        if decoder.position == last or time != clock[decoder.position + 1]:
            return False
        decoder.position += 1
    return decoder.position == last


def _decoded_times(name: str, option: str = "") -> tuple[int, np.ndarray | None]:
    """Frame count by decoding everything, and the times (N,) in milliseconds if they ascend, else None."""
    cv2 = load_cv2()
    capture = open_capture(name, option)
    times = []
    while capture.grab():
        alive()
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
    capture.release()
    ascending = len(times) > 0 and bool(np.all(np.diff(times) > 0))
    return len(times), np.array(times, np.float64) if ascending else None


def _rate(name: str, times: np.ndarray | None, count: int, fps: float) -> tuple[np.ndarray, float, bool]:
    """Seconds (N,), average rate, and whether the rate is constant, from the times and the header's rate."""
    index = np.arange(count)
    if times is not None and count > 1:
        first = 0.0 if times[0] < 0 < times[1] else times[0]  # negative: a decoding time, see _confirmed
        seconds = np.concatenate([[0.0], (times[1:] - first) / 1000])
        measured = (count - 1) / float(seconds[-1])
        rates = [rate for rate in (fps, measured) if 0 < rate <= MAX_FPS]
        steady = [rate for rate in rates if np.abs(seconds - index / rate).max() <= CLOCK_NOISE]
        if not steady and measured <= MAX_FPS:
            return np.round(seconds, 6), measured, False
        fps = steady[0] if steady else measured
    if not 0 < fps <= MAX_FPS:
        raise V2LError(f"{name!r} has a frame rate of {fps:g} per second: 0 to {MAX_FPS:g} is read; re-encode the file")
    return np.round(index / fps, 6), fps, True
