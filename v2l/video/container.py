"""One local video file, opened: what it is, its video stream, and how FFmpeg is kept to this one file.

Runs in the decoding worker: imports only the standard library and PyAV (late).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from v2l.errors import V2LError

MAX_SIDE = 16384
THREADS = 8
"""Decoding threads at most; every one takes address space, and a machine may have hundreds of processors."""
READ_BYTES = 1 << 16
_OUTPUT_CORRUPT = 8  # AV_CODEC_FLAG_OUTPUT_CORRUPT: a damaged frame is shown, marked as such

# Containers that hold their own pictures. Playlists, concat scripts and image sequences name other files, and an ID3
# tag in front of one hides it from a look at the first bytes, but not from this list, which FFmpeg itself enforces.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,h264,hevc,vvc,obu,av1,ivf,m4v,mjpeg,"
    "mxf,nut,gif,rm,dv,wtv,swf,yuv4mpegpipe,vc1,h263,h261,apng,3gp,amv,nsv,roq,bink,smk,fli,gxf,nuv"
)
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "",
    "analyzeduration": "30000000",  # microseconds; a picture may come seconds after its sound
    "probesize": "50000000",
}
_STREAMED = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc", "m4v", "obu", "ivf", "dv"}
"""Formats without an index of their own: a part cut out of one anywhere is still such a file."""

_UNTIMED = {"avi", "asf", "mpegvideo", "h264", "hevc", "vvc", "m4v", "obu", "mjpeg", "vc1", "h263", "h261"}
"""Formats that store no presentation times, or only those of decoding."""

_HARMLESS = ("mmco: unref short failure",)
"""Reports that say nothing of the pictures: an open group of pictures may ask to forget one from before it."""

_log: list[tuple[int, str, str]] = []
"""What FFmpeg reported as errors: level, the reporting part's name, the text."""


def load_av() -> ModuleType:
    """PyAV, its error reports collected in this module. Raises V2LError where it cannot be imported."""
    try:
        import av
        import av.logging
    except ImportError as error:
        raise V2LError(f"PyAV cannot be imported ({error}): run `pip install av`") from error
    if av.logging.get_level() is None:
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.ERROR)
        global _log
        _log = av.logging.Capture(local=False).__enter__()  # of the decoder's own threads, too; for good
    return av


@dataclass
class Source:
    """An open file and its chosen video stream. Use it as a context manager; it releases the file.

    path: absolute; shown: the name as it was given, for messages
    stream: PyAV's video stream, chosen by its index `wanted` where that is given; others: the number of further video
        streams, covers not counted
    suspects: presentation times of packets that the container takes for damaged, which a mere join of two recordings
        makes it do
    """

    path: str
    shown: str
    options: dict[str, str]
    threads: int
    container: Any = None
    stream: Any = None
    others: int = 0
    wanted: int | None = None
    suspects: set[int | None] = field(default_factory=set)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self.container.close()

    def reopen(self, threads: int = 0) -> None:
        """Open the file anew and stand at its start. Raises V2LError as `open_source` does.

        threads: decoding threads from now on, 0 for as many as before; with one, an error that the decoder reports is
        of the packet that it was given last
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

    def fault(self, text: str) -> None:
        """Report an error as the decoder itself would."""
        _log.append((0, self.stream.codec_context.name, text))

    @property
    def streamed(self) -> bool:
        """Whether the format may begin and end anywhere, as a recording that was cut does."""
        return bool(_STREAMED & set(self.container.format.name.split(",")))

    def incomplete(self, frame: Any) -> bool:
        """Whether the decoder itself says that a frame lacks a part."""
        return frame.is_corrupt and frame.pts not in self.suspects

    def promised(self) -> tuple[int, float]:
        """Frames and seconds of the video stream as the header states them; 0 for what it does not state."""
        stream, seconds = self.stream, 0.0
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif stated := stream.metadata.get("DURATION", ""):
            seconds = _clock_seconds(stated)
        return max(stream.frames, 0), max(seconds, 0.0)

    def rates(self) -> list[float]:
        """Frame rates that the header states or FFmpeg guesses from it, per second, the likeliest first."""
        stream = self.stream
        return [float(rate) for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate) if rate]

    def stated_length(self) -> float:
        """Seconds from the container's start to the end of its longest stream, as the header states them; 0 where it
        does not, or states what is no length."""
        import av

        length = self.container.duration
        return length / av.time_base if length and length > 0 else 0.0

    def longest_stream(self, alive: Callable[[], None]) -> float:
        """Seconds from the container's start to where its last packet ends, of whatever stream, by reading them all."""
        av, end = load_av(), 0.0
        with _open_container(self.path, self.shown, self.options) as container, contextlib.suppress(av.FFmpegError):
            for packet in container.demux():
                alive()
                if packet.pts is not None and packet.size:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return end - (self.start() or 0.0)

    def start(self) -> float | None:
        """The container's start time in seconds, which is 0:00 for v2l as for players; None for formats that store no
        presentation times, whose first frame is at 0:00."""
        import av

        if _UNTIMED & set(self.container.format.name.split(",")):
            return None
        start = self.container.start_time
        return 0.0 if start is None else start / av.time_base


def open_source(path: str, shown: str, stream: int | None = None, threads: int | None = None, **options: str) -> Source:
    """Open a file whose absolute path is `path`: containers of `_FORMATS`, software decoding on a few threads.

    FFmpeg gets the open file and no protocol, so that nothing else can be opened, whatever the file names.

    stream: index of the stream to take, None for the one that is marked as the default, else the first
    threads: that decode, None for one a processor, at most THREADS; options: more of FFmpeg's, by name
    Raises V2LError where nothing opens or there is no video stream.
    """
    source = Source(path, shown, options, threads or min(THREADS, _processors()), wanted=stream)
    source.reopen()
    return source


def take_errors(source: Source) -> list[str]:
    """What the decoder of the stream reported as errors since the last call, one text each."""
    decoder = source.stream.codec_context.name
    found = [text.strip() for _, name, text in _log if name == decoder and not text.startswith(_HARMLESS)]
    _log.clear()
    return found


def _open_container(path: str, shown: str, options: dict[str, str]) -> Any:
    av = load_av()
    file = open(path, "rb", buffering=0)  # noqa: SIM115  # the container keeps it
    try:
        return av.open(file, options=_OPTIONS | options, buffer_size=READ_BYTES, metadata_errors="replace")
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        file.seek(0)
        kind = _image(file.read(64))
        file.close()
        raise V2LError(f"{shown!r} is {kind}" if kind else _no_stream(shown)) from error


def _prepare(container: Any, stream: Any, shown: str, threads: int) -> None:
    """Sets how the stream is decoded, and leaves the others unread."""
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
    """The absolute path behind `path`, once it is known to be a regular, readable file that names no other file.

    shown: the name for messages, `path` itself where empty. Whatever the name looks like (URL, `concat:`, `%d`), it is
    only ever a local name. Raises V2LError where it is no such file, or holds a picture or a playlist.
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
    """What kind of picture the first bytes of a file that holds no video are; empty where they are none."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        moving = head[12:16] == b"VP8X" and head[20] & 2
        return "an animated WebP, which v2l does not read: convert it to MP4" if moving else _STILL
    magic = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"\0\0\x01\0", b"8BPS")
    return _STILL if head.startswith(magic) else ""


_STILL = "an image, not a video: give a video file"


def _no_stream(shown: str) -> str:
    return f"FFmpeg finds no video stream it can open in {shown!r}: check that it is a complete video file"


def _choose(container: Any, shown: str, wanted: int | None) -> tuple[Any, int]:
    """The stream to read and the number of further ones: marked as default before others, no covers."""
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
            raise V2LError(f"{shown!r} holds only a cover picture, no video: give a video file")
        raise V2LError(_no_stream(shown))
    chosen = next((each for each in films if each.disposition & kinds.default), films[0])
    if chosen.codec_context is None:
        raise V2LError(f"{shown!r} holds video of a kind that FFmpeg cannot decode: re-encode it to H.264")
    return chosen, len(moving) - 1


def _check_size(width: int, height: int, shown: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise V2LError(
            f"{shown!r} says its pictures are {width}x{height}: 1 to {MAX_SIDE} pixels a side are read; "
            "re-encode it smaller"
        )


def _processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clock_seconds(text: str) -> float:
    """Seconds of Matroska's `HH:MM:SS.fraction`, 0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds[:9])
    except ValueError:
        return 0.0
