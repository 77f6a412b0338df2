"""Where subject and object are in the picture, and the scores of predicting it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import NotRecordedError
from stratascope.stats.bootstrap import Bootstrap

Floats = NDArray[Any]
TARGETS = ("subject_x", "subject_y", "object_x", "object_y", "offset_x", "offset_y")


def geometry_targets(examples: pd.DataFrame, *, mirrored: bool = False) -> Floats:
    """(example, 6) centres of the gold boxes and the offset from object to subject, NaN where a box is not known.

    x and y are fractions of the image's width and height, y downwards: an offset_y below 0 means that the subject is above.

    Parameters
    ----------
    examples
        The store's table, whose boxes are those of the image as it was.
    mirrored
        Whether the model was shown the image flipped left-right (condition `mirror`): the centres are then where it saw them.

    Raises
    ------
    NotRecordedError
        The store has no boxes.
    """
    needed = [f"{who}_{side}" for who in ("subject", "object") for side in ("x0", "y0", "x1", "y1")]
    needed += ["image_width", "image_height"]
    absent = [name for name in needed if name not in examples.columns]
    if absent:
        raise NotRecordedError(
            f"task geometry: expected columns {', '.join(needed)}, found no {', '.join(absent)}; extract with --boxes instances.json"
        )
    column = {name: pd.to_numeric(examples[name], errors="coerce").to_numpy(float) for name in needed}
    centres = {
        who: [
            (column[f"{who}_{axis}0"] + column[f"{who}_{axis}1"]) / 2 / column[f"image_{size}"]
            for axis, size in (("x", "width"), ("y", "height"))
        ]
        for who in ("subject", "object")
    }
    subject, object_ = ([1 - x, y] if mirrored else [x, y] for x, y in centres.values())
    return np.stack([*subject, *object_, *(s - o for s, o in zip(subject, object_, strict=True))], axis=1)


def score_values(
    predicted: Floats, values: Floats, targets: tuple[str, ...], bootstrap: Bootstrap, noise_share: Floats
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """R2 by target and their mean `r2`: values (layer,) and draws (draw, layer), widened as in `score_layers`.

    Parameters
    ----------
    predicted
        (layer, target, example).
    values
        (example, target).
    noise_share
        (layer, target).
    """
    scores, draws = {}, {}
    width = np.sqrt(1 + noise_share)
    for number, target in enumerate(targets):
        y = values[:, number]
        squared = (predicted[:, number] - y).T.astype(np.float64) ** 2
        centred = y - y.mean()
        spread = bootstrap.mean(np.stack([centred**2, centred], axis=1).astype(np.float64))
        variance = np.maximum(spread[:, :1] - spread[:, 1:] ** 2, 1e-300)
        score = 1 - squared.mean(axis=0) / max(float((centred**2).mean()), 1e-300)
        scores[f"r2_{target}"] = score
        draws[f"r2_{target}"] = score + (1 - bootstrap.mean(squared) / variance - score) * width[:, number]
    return (
        {"r2": np.mean(list(scores.values()), axis=0), **scores},
        {"r2": np.mean(list(draws.values()), axis=0), **draws},
    )
