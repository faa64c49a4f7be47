"""
A directory of Arrow shards that a killed writer can continue, and of which no half shard is ever read::

    manifest.json         what was written with which settings; names every finished shard with size and checksum
    shard-00000.arrow     a finished shard: it was written as *.tmp, forced to disk and renamed
    shard-00001.arrow
    shard-00002.arrow.tmp what a kill left behind; the next run removes it

A shard exists when the manifest names it, and the manifest is itself replaced in one step. It does not know what the
rows mean; those who do are `stored_features.py` and `regenerate.py`.

Next: `sources.py`.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from .fingerprints import differences


MANIFEST = "manifest.json"
FORMAT = 1
TEMPORARY = ".tmp"
PACKAGES = ("transformers-griffin", "transformers", "torch", "datasets")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Manifest = dict[str, Any]
Columns = dict[str, list[Any]]


class ShardWriter:
    """
    Writes shards one after the other, and continues where an earlier run with the same settings stopped.

    Args:
        path (`os.PathLike`): the directory; made if there is none.
        kind (`str`): what the rows are.
        settings (`dict`): all that determines the rows, ready for JSON; an earlier run must have had the same.
        num_shards (`int`): shards of the whole.
        about (`dict`): what a reader of the manifest may want to know; not compared.

    Raises:
        ValueError: if the directory holds something else, or the settings of the earlier run differ.
    """

    def __init__(
        self, path: str | os.PathLike, kind: str, settings: dict[str, Any], num_shards: int, about: dict[str, Any]
    ):
        self.path = Path(path)
        self._manifest: Manifest = {
            "format": FORMAT,
            "kind": kind,
            "about": about,
            "settings": json.loads(json.dumps(settings)),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "num_shards": num_shards,
            "complete": False,
            "shards": [],
        }
        if (self.path / MANIFEST).is_file():
            self._continue(read_manifest(self.path, kind))
        else:
            self._start()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """`file`, `num_rows`, `num_bytes` and `sha256` of every finished shard."""
        return self._manifest["shards"]

    def write_all(
        self,
        rows: Dataset,
        compute: Callable[[Columns, int], Columns],
        features: Features,
        batch_size: int,
        shard_size: int,
        description: str,
    ) -> None:
        """
        Writes what comes of all rows that earlier runs have not finished, with a progress bar, and marks it complete.

        Args:
            rows ([`~datasets.Dataset`]): the input.
            compute (`Callable`): from the columns of some rows, and the number of the first, to columns to write.
            features ([`~datasets.Features`]): types of the columns to write.
            batch_size (`int`): rows given to `compute` at once.
            shard_size (`int`): rows of the input that make a shard.
            description (`str`): what the progress bar shows.
        """
        num_done = min(len(self.shards) * shard_size, len(rows))
        with tqdm(total=len(rows), initial=num_done, unit="row", desc=description) as progress:

            def batches(start: int, end: int) -> Iterator[Columns]:
                for first in range(start, end, batch_size):
                    last = min(first + batch_size, end)
                    yield compute(rows[first:last], first)
                    progress.update(last - first)

            for start in range(num_done, len(rows), shard_size):
                self.write(batches(start, min(start + shard_size, len(rows))), features)
        with self._explaining_a_full_disk():
            self._save({**self._manifest, "complete": True})

    def write(self, batches: Iterable[Columns], features: Features) -> None:
        """
        Writes the next shard.

        Args:
            batches (`Iterable[dict[str, list]]`): columns of some rows at a time; only one batch is in memory.
            features ([`~datasets.Features`]): types of the columns.

        Raises:
            OSError: if the disk is full. Finished shards stay.
        """
        name = f"shard-{len(self.shards):05d}.arrow"
        with self._explaining_a_full_disk():
            shard = _write_shard(self.path / name, batches, features)
            # Only now does the shard exist.
            self._save({**self._manifest, "shards": [*self.shards, shard]})

    def _continue(self, earlier: Manifest) -> None:
        changed = differences(self._manifest["settings"], earlier["settings"])
        if changed:
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(changed)}. Continue with the settings of the "
                "earlier run, or write to another directory."
            )
        self._manifest = earlier
        for leftover in self.path.glob(f"*{TEMPORARY}"):
            leftover.unlink()

    def _start(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file. Give a directory to write to.")
        self.path.mkdir(parents=True, exist_ok=True)
        others = sorted(file.name for file in self.path.iterdir() if file.suffix != TEMPORARY)
        if others:
            raise ValueError(
                f"{self.path} holds {others[0]} but no {MANIFEST} of an earlier run. Give an empty directory."
            )
        with self._explaining_a_full_disk():
            self._save(self._manifest)

    def _save(self, manifest: Manifest) -> None:
        with _replacing(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        self._manifest = manifest

    @contextlib.contextmanager
    def _explaining_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                error.errno,
                f"The disk of {self.path} is full. {len(self.shards)} of {self._manifest['num_shards']} shards are "
                "finished and kept: free some space and run the same again",
            ) from error


def read_manifest(path: str | os.PathLike, kind: str) -> Manifest:
    """
    The manifest of a directory of shards.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, of another version or of another kind.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {MANIFEST}. Give a directory that `griffin prepare` wrote.")
    try:
        manifest: Manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["format"], manifest["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error!r}). Restore it, or prepare again in another directory."
        ) from error
    if found[0] != FORMAT:
        raise ValueError(f"{file} has format {found[0]}, but this version reads format {FORMAT}. Prepare again.")
    if found[1] != kind:
        raise ValueError(f"{path} holds {found[1]}, but {kind} are wanted here.")
    return manifest


def load_shards(path: str | os.PathLike, kind: str, verify_checksums: bool = True) -> Dataset:
    """
    Opens all shards as one memory-mapped dataset.

    Args:
        path (`os.PathLike`): the directory.
        kind (`str`): what the rows must be.
        verify_checksums (`bool`, defaults to `True`): whether to read every shard once to compare its SHA-256. Sizes
            are compared in any case.

    Raises:
        FileNotFoundError: if there is no manifest, or a shard is missing.
        ValueError: if the manifest is damaged, the writer did not finish, or a shard was changed.
    """
    path, manifest = Path(path), read_manifest(path, kind)
    if not manifest["complete"]:
        raise ValueError(
            f"{path} is not complete: {len(manifest['shards'])} of {manifest['num_shards']} shards are finished. Run "
            "`griffin prepare` with the same arguments again to continue."
        )
    for shard in manifest["shards"]:
        _check_shard(path / shard["file"], shard, verify_checksums)
    return concatenate_datasets([Dataset.from_file(str(path / shard["file"])) for shard in manifest["shards"]])


def _check_shard(file: Path, shard: dict[str, Any], verify_checksums: bool) -> None:
    remedy = (
        "Copy it again from where it was made, or remove this shard and those after it from the manifest, set "
        "`complete` to false and run `griffin prepare` again."
    )
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {remedy}")
    if file.stat().st_size != shard["num_bytes"]:
        raise ValueError(f"{file} has {file.stat().st_size} bytes instead of {shard['num_bytes']}. {remedy}")
    if verify_checksums and sha256_of(file) != shard["sha256"]:
        raise ValueError(f"{file} is damaged: its SHA-256 is not that of the manifest. {remedy}")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_shard(file: Path, batches: Iterable[Columns], features: Features) -> dict[str, Any]:
    with _replacing(file) as temporary:
        writer = ArrowWriter(path=str(temporary), features=features)
        try:
            for columns in batches:
                writer.write_batch(columns)
            num_rows, _ = writer.finalize()
        finally:
            # On a full disk, closing fails for the same reason as writing.
            with contextlib.suppress(OSError):
                writer.close()
        facts = {"num_rows": num_rows, "num_bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    return {"file": file.name, **facts}


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A temporary path; what is written there becomes `file` in one step, or vanishes if an error is raised."""
    temporary = file.with_name(file.name + TEMPORARY)
    try:
        yield temporary
        _force_to_disk(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        _force_to_disk(file.parent)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["MANIFEST", "ShardWriter", "load_shards", "read_manifest", "sha256_of"]
