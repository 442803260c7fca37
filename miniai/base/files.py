"""Files that are never half written, and JSON whose errors name the file."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from miniai.base.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file handle whose content appears at `path` whole, or not at all.

    The bytes go to a temporary file in the same folder, are forced to disk, and then take the name `path` in one step;
    on any error, Ctrl-C included, the temporary file is removed and what stood at `path` before stays.
    Raises UserError if the folder is missing or not writable, or the disk is full.
    """
    target = Path(os.path.realpath(path))  # through a link, onto the file itself
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it is not a regular file; choose another name")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:  # from before the file is opened, so that Ctrl-C at any moment leaves nothing behind
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in _FULL or error.filename in (str(temporary), str(target)):
            raise UserError(f"cannot write {path}: {_reason(error)}") from error
        raise
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder `path`, made with those above it where it is not there yet. Raises UserError if it cannot be."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {_reason(error)}") from error
    return folder


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the UserError that `atomic_file(path)` would raise; nothing is left behind, and what is at `path` stays."""
    with suppress(_ChangedMind), atomic_file(path):
        raise _ChangedMind


class _ChangedMind(Exception):  # noqa: N818 (not an error: it only leaves `atomic_file` before the rename)
    pass


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; file systems that cannot do this say so and are believed."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "the folder does not exist; create it first"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "permission denied; choose a folder you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space"
    if error.errno == errno.EEXIST:
        return "a file has that name; choose another"
    if error.errno == errno.ENOTDIR:
        return "a part of the path is a file, not a folder; choose another path"
    return (error.strerror or str(error)).lower()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises UserError if it is missing, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path, or get the file again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): get the file again or correct it") from error


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSON file that is a list of objects; none if there is no file. Raises UserError for another."""
    if not Path(path).is_file():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path} is not a list of records: move it away, or choose another folder")
    return found
