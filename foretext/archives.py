"""Compressed files as streams of bytes; one that is cut off or damaged is a sentence, never a shorter text."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from foretext.errors import UserError

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


def open_bytes(path: str | Path) -> IO[bytes]:
    """Open a file for reading bytes, decompressed by its suffix (.gz, .zst, .xz, .bz2).

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a folder")
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    return decompressed(file, path)


def decompressed(file: IO[bytes], path: Path) -> IO[bytes]:
    """The stream inside an open file, by the suffix of `path`; `file.tell()` goes on saying how far it was read."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(file)
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            return io.BufferedReader(_ZstdReader(file), 1 << 20)
    return file


@contextlib.contextmanager
def damage_is_a_sentence(path: Path) -> Iterator[None]:
    """Around reading `path`: what the libraries raise becomes a `UserError`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:  # gzip and bz2 raise OSError, as the disk does
        if path.suffix.lower() in COMPRESSIONS:
            raise UserError(f"{path}: the archive is cut off or damaged ({error}); get it again") from None
        raise UserError(f"{path}: cannot be read ({error})") from None


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a raw stream. The library's reader takes a cut-off file for a complete one; this does not."""

    def __init__(self, file: IO[bytes]):
        import zstandard

        self._errors = zstandard.ZstdError
        self._context = zstandard.ZstdDecompressor()
        self._frame = None
        self._file, self._out, self._rest = file, memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while not self._out:
            data = self._rest or self._file.read(1 << 17)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("end of file inside a zstd frame")
                return 0
            self._frame = self._frame or self._context.decompressobj()
            try:
                self._out = memoryview(self._frame.decompress(data))
            except self._errors as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._out))
        buffer[:size] = self._out[:size]
        self._out = self._out[size:]
        return size
