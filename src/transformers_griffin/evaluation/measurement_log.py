"""
`measurements.jsonl`: every measurement on its line as soon as it is known, so that a killed run loses at most one.

Next: `summary.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .results import Measurement


FILE_NAME = "measurements.jsonl"


class MeasurementLog:
    """
    Measurements in the order they were made, in memory and, with a folder, on disk.

    A last line that a kill cut short is dropped, and so made again by a run that goes on.

    Args:
        folder (`Path`, *optional*): the results folder.

    Raises:
        ValueError: if another line is no measurement; the line is named.
    """

    def __init__(self, folder: Path | None = None):
        self.path = None if folder is None else folder / FILE_NAME
        self.by_key: dict[tuple, Measurement] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)

    def append(self, measurement: Measurement) -> None:
        """Adds one measurement; it is on disk when this returns."""
        self.by_key[measurement.key] = measurement
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(measurement)) + "\n")

    def _read(self, path: Path) -> None:
        *lines, torn = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                measurement = Measurement(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: no measurement ({error}). Delete the line to measure it again."
                ) from None
            self.by_key[measurement.key] = measurement
        if torn:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


__all__ = ["FILE_NAME", "MeasurementLog"]
