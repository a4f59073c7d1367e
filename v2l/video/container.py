"""Opening of one local video file: checks of its kind, choice of its video stream, and confinement of FFmpeg to it.

Runs in the decoding worker: imports only the standard library and, inside functions, PyAV.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

from v2l.errors import V2LError

MAX_SIDE = 16384
THREADS = 8
"""Limit of decoding threads. Each takes address space, and a machine may have hundreds of processors."""
READ_BYTES = 1 << 16
_OUTPUT_CORRUPT = 8  # AV_CODEC_FLAG_OUTPUT_CORRUPT: output damaged frames, marked as such

# Containers of video data. Playlists, concat scripts and image sequences are excluded, because they name other files.
# FFmpeg enforces this list itself; an ID3 tag in front of a playlist would hide it from a check of the first bytes.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,h264,hevc,vvc,obu,av1,ivf,m4v,mjpeg,"
    "mxf,nut,gif,rm,dv,wtv,swf,yuv4mpegpipe,vc1,h263,h261,apng,3gp,amv,nsv,roq,bink,smk,fli,gxf,nuv"
)
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "",
    "analyzeduration": "30000000",  # microseconds; video may start seconds after audio
    "probesize": "50000000",
}
_STREAMED = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc", "m4v", "obu", "ivf", "dv"}
"""Formats without an index: any part cut out of such a file is a valid file."""

_UNTIMED = {"avi", "asf", "mpegvideo", "h264", "hevc", "vvc", "m4v", "obu", "mjpeg", "vc1", "h263", "h261"}
"""Formats that store no presentation times, or only decoding times."""

_HARMLESS = ("mmco: unref short failure",)
"""Error messages that do not concern the pictures: an open group of pictures may release one from before it."""

_log: list[tuple[int, str, str]] = []
"""Errors reported by FFmpeg: level, name of the component, text."""


def load_av() -> ModuleType:
    """Import PyAV and collect its error messages in this module. Raises V2LError if it cannot be imported."""
    try:
        import av
        import av.logging
    except ImportError as error:
        raise V2LError(f"PyAV cannot be imported ({error}): run `pip install av`") from error
    if av.logging.get_level() is None:
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.ERROR)
        global _log
        _log = av.logging.Capture(local=False).__enter__()  # also from decoder threads; never restored
    return av


@dataclass
class Source:
    """An open file and its selected video stream. A context manager that closes the file.

    path: absolute; shown: name for messages, as given by the user
    options: additional FFmpeg options; threads: number of decoding threads
    stream: PyAV's video stream; others: number of further video streams without covers
    wanted: index of the stream to select, None for the default
    decoded, decoding: number of frames that probing decoded, and the processor seconds that it took
    suspects: presentation times of packets that the container marks as damaged, as it also does at the joint of two
        recordings
    """

    path: str
    shown: str
    options: dict[str, str]
    threads: int
    container: Any = None
    stream: Any = None
    others: int = 0
    wanted: int | None = None
    decoded: int = 0
    decoding: float = 0.0
    suspects: set[int | None] = field(default_factory=set)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def reopen(self, threads: int = 0) -> None:
        """Reopen the file at its start. Raises V2LError as `open_source` does.

        threads: number of decoding threads from now on, 0 for no change. With one thread, a decoder error belongs to
            the last packet.
        """
        self.threads = threads or self.threads
        if self.container is not None:
            self.close()
        self.container = _open_container(self.path, self.shown, self.options)
        try:
            self.stream, self.others = _choose(self.container, self.shown, self.wanted)
            _prepare(self.container, self.stream, self.shown, self.threads)
        except BaseException:
            self.close()
            raise

    def add_error(self, text: str) -> None:
        """Record an error as if the decoder had reported it."""
        _log.append((0, self.stream.codec_context.name, text))

    @property
    def streamed(self) -> bool:
        """True if a file of this format may start and end anywhere, like a cut recording."""
        return bool(_STREAMED & set(self.container.format.name.split(",")))

    def incomplete(self, frame: Any) -> bool:
        """Return True if the decoder marks a frame as incomplete."""
        return frame.is_corrupt and frame.pts not in self.suspects

    def stated_frames_and_seconds(self) -> tuple[int, float]:
        """Return the number of frames and the seconds of the video stream from the header; 0 if not stated."""
        stream, seconds = self.stream, 0.0
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif stated := stream.metadata.get("DURATION", ""):
            seconds = _clock_seconds(stated)
        return max(stream.frames, 0), max(seconds, 0.0)

    def rates(self) -> list[float]:
        """Return frame rates stated in the header or guessed by FFmpeg, in frames per second, most likely first."""
        stream = self.stream
        return [float(rate) for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate) if rate]

    def stated_length(self) -> float:
        """Return the length of the longest stream in seconds from the header; 0 if missing or invalid."""
        import av

        length = self.container.duration
        return length / av.time_base if length and length > 0 else 0.0

    def longest_stream(self, heartbeat: Callable[[], None]) -> float:
        """Read all packets of all streams and return the end of the last one, in seconds from the container's start."""
        av, end = load_av(), 0.0
        with _open_container(self.path, self.shown, self.options) as container, contextlib.suppress(av.FFmpegError):
            for packet in container.demux():
                heartbeat()
                if packet.pts is not None and packet.size:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return end - (self.start() or 0.0)

    def start(self) -> float | None:
        """Return the container's start time in seconds, which v2l, like players, shows as 0:00.

        None for formats without presentation times, whose first frame is at 0:00.
        """
        import av

        if _UNTIMED & set(self.container.format.name.split(",")):
            return None
        start = self.container.start_time
        return 0.0 if start is None else start / av.time_base


def decoding_threads() -> int:
    """Return the number of threads that decode selected frames."""
    return min(THREADS, _processors())


def open_source(
    path: str,
    shown: str,
    stream: int | None = None,
    threads: int | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Source:
    """Open a video file for software decoding.

    FFmpeg gets an open file and no protocol, so that it cannot open any other file, whatever this one names.
    path: absolute; shown: name for messages
    stream: index of the stream to select, None for the one marked as default, else the first
    threads: number of decoding threads, None for one per processor, at most THREADS
    options: additional FFmpeg options
    Raises V2LError if the file cannot be opened or has no video stream.
    """
    source = Source(path, shown, dict(options), threads or decoding_threads(), wanted=stream)
    source.reopen()
    return source


def take_errors(source: Source) -> list[str]:
    """Return and clear the errors that the stream's decoder reported since the last call."""
    decoder = source.stream.codec_context.name
    found = [text.strip() for _, name, text in _log if name == decoder and not text.startswith(_HARMLESS)]
    _log.clear()
    return found


def _open_container(path: str, shown: str, options: dict[str, str]) -> Any:
    av = load_av()
    file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed with the container
    try:
        return av.open(file, options=_OPTIONS | options, buffer_size=READ_BYTES, metadata_errors="replace")
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        file.seek(0)
        head = file.read(64)
        kind = _image(head) or _sound(head)
        file.close()
        raise V2LError(f"{shown!r} is {kind}" if kind else _no_stream(shown)) from error


def _prepare(container: Any, stream: Any, shown: str, threads: int) -> None:
    """Configure the decoder, and discard the packets of the other streams."""
    context = stream.codec_context
    _check_size(context.width, context.height, shown)
    from av.stream import Discard

    for each in container.streams:
        if each.index != stream.index:
            each.discard = Discard.all
    context.thread_count = threads
    context.thread_type = "AUTO"
    context.flags |= _OUTPUT_CORRUPT


def regular_file(path: str | os.PathLike[str], shown: str = "") -> str:
    """Return the resolved absolute path of a regular, readable file that does not name other files.

    The name is always taken as a local path, even if it looks like a URL or a pattern (`concat:`, `%d`).
    shown: name for messages, default: `path`
    Raises V2LError if it is not such a file, or is a still image or a playlist.
    """
    try:
        shown = shown or os.fsdecode(path)
        name = os.path.realpath(os.fsdecode(path))
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise V2LError(f"{shown!r} is {kind}: give a video file")
        if status.st_size == 0:
            raise V2LError(f"{shown!r} is empty (0 bytes): get the file again")
        with open(name, "rb") as file:
            head = file.read(65536)
    except FileNotFoundError as error:
        raise V2LError(f"no file {shown!r}: check the name; only local files are read, no URLs or patterns") from error
    except PermissionError as error:
        raise V2LError(f"no permission to read {shown!r}: change its mode or its owner") from error
    except (OSError, ValueError) as error:
        raise V2LError(f"cannot read {shown!r} ({error}): check the name and the disk") from error
    kind = _playlist(head)
    if kind:
        raise V2LError(f"{shown!r} is {kind} that names other files: give the video file itself")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"avif", b"mif1"):
        raise V2LError(f"{shown!r} is {_STILL}")
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


def _image(head: bytes) -> str:
    """Describe the still image that starts with these bytes; empty if it is not one."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moving = head[12:16] == b"VP8X" and head[20] & 2
        return "an animated WebP, which v2l does not read: convert it to MP4" if moving else _STILL
    magic = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"\0\0\x01\0", b"8BPS")
    return _STILL if head.startswith(magic) else ""


def _sound(head: bytes) -> str:
    """Describe the sound file that starts with these bytes; empty if it is not one."""
    container = head[:4] + head[8:12]
    known = container in (b"RIFFWAVE", b"FORMAIFF", b"FORMAIFC") or head.startswith((b"ID3", b"fLaC", b"#!AMR"))
    return _SOUND if known or (head[:1] == b"\xff" and head[1:2] in _SYNCS) else ""


_SYNCS = tuple(bytes([each]) for each in b"\xe2\xe3\xf0\xf1\xf2\xf3\xf4\xf5\xf8\xf9\xfa\xfb\xfc\xfd")
"""Second bytes of MPEG audio after 0xff: MP2 and MP3 of all versions, and AAC."""
_SOUND = "sound without video: give a video file"
_STILL = "an image, not a video: give a video file"


def _no_stream(shown: str) -> str:
    return f"FFmpeg finds no video stream it can open in {shown!r}: check that it is a complete video file"


def _choose(container: Any, shown: str, wanted: int | None) -> tuple[Any, int]:
    """Select a stream, the default one first and no covers, and return it with the number of further streams."""
    import av.stream

    kinds = av.stream.Disposition
    moving = [each for each in container.streams.video if not each.disposition & kinds.attached_pic]
    pictures = len(container.streams.video) > len(moving)
    thumbnails = kinds.timed_thumbnails | kinds.still_image
    films = [each for each in moving if not each.disposition & thumbnails] or moving
    if wanted is not None:
        films = [each for each in films if each.index == wanted] or films
    if not films:
        if pictures:
            raise V2LError(f"{shown!r} has only a cover picture, no video: give a video file")
        raise V2LError(f"{shown!r} is {_SOUND}" if container.streams.audio else _no_stream(shown))
    chosen = next((each for each in films if each.disposition & kinds.default), films[0])
    if chosen.codec_context is None:
        raise V2LError(f"{shown!r} holds video of a kind that FFmpeg cannot decode: re-encode it to H.264")
    return chosen, len(moving) - 1


def _check_size(width: int, height: int, shown: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise V2LError(
            f"{shown!r} states a frame size of {width}x{height}: sides of 1 to {MAX_SIDE} pixels are supported; "
            "re-encode it smaller"
        )


def _processors() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clock_seconds(text: str) -> float:
    """Parse Matroska's `HH:MM:SS.fraction` to seconds; 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds[:9])
    except ValueError:
        return 0.0
