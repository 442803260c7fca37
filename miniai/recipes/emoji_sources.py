"""Where the emoji pictures come from: npm packages at pinned versions, checked by their integrity hash.

Nothing here runs code from a package: the tarball is only read, one JSON file at a time.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniai.base.errors import UserError
from miniai.base.files import make_folder

NPM_TIMEOUT_S = 600
NPM_OPTIONS = ("--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=2000")  # offline: say so in seconds
MAX_JSON_BYTES = 256 * 2**20  # the largest, fluent-emoji's icons.json, holds 51 MB


@dataclass(frozen=True)
class Source:
    """One npm package. `integrity` is npm's own form, "sha512-" and the base64 digest of the tarball."""

    name: str
    version: str
    integrity: str
    licence: str
    author: str = ""

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives the package: "@scope/name" 1.2.3 becomes "scope-name-1.2.3.tgz"."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def _style(name: str, version: str, digest: str, licence: str, author: str) -> Source:
    return Source(f"@iconify-json/{name}", version, f"sha512-{digest}", licence, author)


STYLES: Mapping[str, Source] = {
    "noto": _style(
        "noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0", "Google",
    ),
    "noto-v1": _style(
        "noto-v1", "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0", "Google",
    ),
    "twemoji": _style(
        "twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0", "Twitter and the Twemoji contributors",
    ),
    "fluent-emoji": _style(
        "fluent-emoji", "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT", "Microsoft Corporation",
    ),
    "fluent-emoji-flat": _style(
        "fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT", "Microsoft Corporation",
    ),
    "emojione": _style(
        "emojione", "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0", "EmojiOne / EmojiTwo",
    ),
    "fxemoji": _style(
        "fxemoji", "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0", "Mozilla",
    ),
}  # fmt: skip

# Not among those that the packaged model learned from, and so something that it can be taught.
FURTHER_STYLES: Mapping[str, Source] = {
    "fluent-emoji-high-contrast": _style(
        "fluent-emoji-high-contrast", "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "MIT", "Microsoft",
    ),
}  # fmt: skip

# CC BY-SA: a folder of its own, on explicit request; no model here is ever trained on it.
SEPARATE_STYLES: Mapping[str, Source] = {
    "openmoji": _style(
        "openmoji", "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0", "OpenMoji",
    ),
}  # fmt: skip

EMOJIBASE = Source(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "Miles Johnson",
)


def default_cache() -> Path:
    """Where downloaded tarballs are kept: `miniai/npm` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miniai" / "npm"


def fetch(source: Source, cache: Path) -> Path:
    """Path of the package's tarball in `cache`, downloaded with `npm pack` if it is not there yet.

    Raises UserError: npm missing, registry not reached, or a tarball whose hash is not the pinned one.
    """
    tarball = cache / source.tarball
    if not tarball.exists():
        _download(source, cache)
    check_integrity(tarball, source)
    return tarball


def check_integrity(tarball: Path, source: Source) -> None:
    """Raise UserError unless the file's sha512 is the one pinned in `source`."""
    digest = hashlib.sha512(tarball.read_bytes()).digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != source.integrity:
        raise UserError(
            f"{tarball}: not the {source.name} {source.version} that is pinned here "
            f"(its hash is {found[:19]}…, wanted {source.integrity[:19]}…); delete the file and run again"
        )


def _download(source: Source, cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is needed to download {source.name} {source.version} and was not found; "
            "install it (Debian, Ubuntu: apt install npm; macOS: brew install node) and run again"
        )
    make_folder(cache)
    try:
        scratch = tempfile.mkdtemp(dir=cache, prefix=".download-")
    except OSError as error:
        raise UserError(f"{cache}: cannot keep downloads here ({error.strerror}); give another cache folder") from error
    try:
        command = [npm, "pack", f"{source.name}@{source.version}", "--ignore-scripts", *NPM_OPTIONS]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
        tarball = Path(scratch) / source.tarball
        if done.returncode != 0 or not tarball.exists():
            raise UserError(
                f"npm pack {source.name}@{source.version} failed: {_reason(done.stderr)}; "
                f"check the connection, or put {source.tarball} into {cache}"
            )
        os.replace(tarball, cache / source.tarball)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"npm pack {source.name}@{source.version}: no answer in {NPM_TIMEOUT_S} s") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(stderr: str) -> str:
    """The line of npm's complaint that says what happened: its first lines hold only error numbers."""
    lines = [line.removeprefix("npm error").strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("code ", "syscall ", "errno "))]
    return lines[0] if lines else "npm gave no reason"


def read_members(tarball: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The parsed JSON of each of `names` (paths inside the package) that the tarball holds.

    Raises UserError for a file that is not a gzipped tarball or whose JSON is broken.
    """
    wanted = {f"package/{name}": name for name in names}
    found: dict[str, Any] = {}
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                if member.name not in wanted or not member.isfile():
                    continue
                if member.size > MAX_JSON_BYTES:
                    raise UserError(f"{tarball}: {member.name} is {member.size} bytes, more than is ever read")
                stream = archive.extractfile(member)
                assert stream is not None  # isfile() holds
                found[wanted[member.name]] = json.load(stream)
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{tarball}: cannot be read as an npm package ({error}); delete it and run again") from error
    return found
