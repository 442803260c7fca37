"""Models by hub id: found in the standard Hugging Face cache, without a network and without `huggingface_hub`.

models--owner--name/refs/main           the name of a commit
models--owner--name/snapshots/<commit>  the model's folder
"""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from miniai.base.errors import UserError
from miniai.sd.weight_files import files_to_fetch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TRUE = {"1", "ON", "YES", "TRUE"}


def find_model(
    name: str | os.PathLike[str],
    *,
    revision: str = "main",
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = True,
    token: str | bool | None = None,
    variant: str | None = None,
    files: Sequence[str] | None = None,
    without: Collection[str] = (),
) -> Path:
    """The path called `name`: one that exists, or the snapshot of the hub id of that name in the local cache.

    - revision: a branch, a tag or a whole commit.
    - cache_dir: None is the cache that HF_HUB_CACHE, HF_HOME or XDG_CACHE_HOME name, or ~/.cache/huggingface/hub.
    - local_files_only: False asks for the network, through `huggingface_hub`, unless HF_HUB_OFFLINE is set.
    - token: for a model that is not public; None is the one that `huggingface_hub` keeps.
    - variant: of the weights to be downloaded; files: patterns of the files, in place of those of a whole model,
      whose parts `without` are not needed.

    A name that is neither comes back as the path it would be. Raises UserError for a hub id that cannot be had.
    """
    path = Path(name)
    if path.exists() or not _HUB_ID.fullmatch(str(name)):
        return path
    cache = default_cache() if cache_dir is None else Path(cache_dir)
    if local_files_only:
        found = cached_snapshot(cache, str(name), revision)
        if found is not None:
            return found
        raise UserError(
            f"there is no folder {name}, and no model of that name in {cache} (revision {revision}): "
            "check the path, or download it (huggingface-cli download, or from_pretrained with local_files_only=False)"
        )
    return _download(str(name), revision, cache, token, variant, files, without)


def default_cache() -> Path:
    """Where `huggingface_hub` keeps models, as its environment variables say."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return (Path(os.environ.get("HF_HOME") or base) / "hub").expanduser()


def cached_snapshot(cache: Path, hub_id: str, revision: str) -> Path | None:
    """The snapshot of `hub_id` in `cache`, or None."""
    model = cache / f"models--{hub_id.replace('/', '--')}"
    if ".." in Path(revision).parts or Path(revision).is_absolute():
        raise UserError(f"revision {revision!r} is not possible: give a branch, a tag or a commit")
    reference = model / "refs" / revision
    commit = reference.read_text(errors="replace").strip() if reference.is_file() else revision
    snapshot = model / "snapshots" / commit
    return snapshot if commit and Path(commit).name == commit and snapshot.is_dir() else None


def _download(
    hub_id: str,
    revision: str,
    cache: Path,
    token: str | bool | None,
    variant: str | None,
    files: Sequence[str] | None,
    without: Collection[str],
) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        raise UserError(f"{hub_id} is to be downloaded, and HF_HUB_OFFLINE forbids it: unset one of the two")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("downloading needs the package huggingface_hub: install it with pip") from error
    try:
        if files is None:
            names = huggingface_hub.list_repo_files(hub_id, revision=revision, token=token)
            files = [name for name in files_to_fetch(names, variant) if name.split("/")[0] not in without]
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision,
            cache_dir=cache,
            token=token,
            allow_patterns=list(files),
        )
    except Exception as error:  # the many errors of three HTTP libraries
        raise UserError(f"cannot download {hub_id}: {' '.join(str(error).split())[:200]}") from error
    return Path(folder)
