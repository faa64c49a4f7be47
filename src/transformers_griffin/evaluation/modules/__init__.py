"""
The metrics as modules of Hugging Face `evaluate`: scripts that also work alone, offline, on anyone's numbers.

The scripts lie one to a folder, as `evaluate.load(path)` and the Hub expect them: `acceptance_length` and
`misaligned_rate`. They only adapt `metrics.py`, where the metrics are defined.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from evaluate import EvaluationModule


FOLDER = Path(__file__).parent


def load_metric(name: str, **kwargs: Any) -> "EvaluationModule":
    """
    Loads one of the metrics as a module of `evaluate`, without network.

    Args:
        name (`str`): `"acceptance_length"` or `"misaligned_rate"`.
        kwargs: further arguments of `evaluate.load`, for example `num_process`, `process_id` and `experiment_id`.

    Raises:
        ValueError: if there is no such metric.
        ImportError: if `evaluate` is not installed.

    Example:

    ```python
    >>> tau = load_metric("acceptance_length")  # doctest: +SKIP
    >>> tau.add_batch(predictions=output.acceptance_lengths)  # of generate(); doctest: +SKIP
    >>> tau.compute()["tau"]  # doctest: +SKIP
    ```
    """
    names = sorted(path.parent.name for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name)
    if name not in names:
        raise ValueError(f"There is no metric {name!r}; there are {', '.join(names)}.")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(
            "Metrics are loaded with `evaluate`, which is not installed. Run `pip install "
            "transformers-griffin[evaluate]`, or use the functions of `transformers_griffin.evaluation`."
        ) from error
    return evaluate.load(str(FOLDER / name), **kwargs)


__all__ = ["load_metric"]
