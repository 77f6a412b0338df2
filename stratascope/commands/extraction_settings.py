"""Settings of `plan` and `extract`, for one store or for all stores of a pre-registered study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stratascope.commands.command_line import command_lines
from stratascope.commands.terminal import echo
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionPlan, ExtractionSettings
from stratascope.extract.plan.duration import ExtractionTiming
from stratascope.extract.plan.plan_summary import number_text, span_text
from stratascope.extract.plan.settings import BOX_POSITIONS
from stratascope.preregistration import StudyPlan
from stratascope.preregistration.study_plan import PAIR
from stratascope.store import condition_of
from stratascope.store.io.overview import bytes_text

FIXED = ("prompt", "answers", "record", "positions", "condition", "untrained")
"""Options that the plan of a study fixes."""


def settings_of(chosen: dict[str, Any]) -> ExtractionSettings:
    """Settings from the options of `plan` and `extract`."""
    if chosen.pop("no_system"):
        if chosen["system"] is not None:
            raise InvalidInputError(f"expected either --system or --no-system, found both, with {chosen['system']!r}")
        chosen["system"] = ""  # empty text: no system turn
    return ExtractionSettings(**chosen)


def study_settings(plan: StudyPlan, chosen: dict[str, Any]) -> dict[str, ExtractionSettings]:
    """Name of each store of a study -> the settings of its extraction; box positions that no example has are left out."""
    context = click.get_current_context()
    for name in FIXED:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"expected --{name} in the plan of the study alone, found it beside --for; leave it out")
    boxes = [name for name in BOX_POSITIONS if name in plan.token_positions]
    without = boxes if chosen["boxes"] is None else []
    if any(part in without for part in plan.primary.position.split(PAIR)):
        raise InvalidInputError(f"expected boxes for the primary outcome at {plan.primary.position}, found none; set `boxes`")
    if without:
        echo(f"no boxes given: {' and '.join(without)} are left out, a deviation from the plan (--boxes)", err=True)
    found = {}
    for store in plan.stores:
        fixed = plan.extraction_options(store)
        fixed["positions"] = tuple(name for name in fixed["positions"] if name not in without)
        found[store.name] = settings_of({**chosen, **fixed})
    return found


def study_lines(plans: dict[str, ExtractionPlan]) -> list[str]:
    """Bytes of each store of a study and of all together."""
    sizes = {name: int(plan.estimate["estimated_bytes"].sum()) for name, plan in plans.items()}
    conditions = {name: condition_of(plan.provenance) for name, plan in plans.items()}
    rows = [f"{name:<18} {conditions[name]:<16} {bytes_text(sizes[name]):>9}" for name in plans]
    return [f"{'store of the study':<18} {'condition':<16} {'on disk':>9}", *rows, f"{'all':<35} {bytes_text(sum(sizes.values())):>9}", ""]


def study_time(timing: ExtractionTiming, count: int, price: float | None) -> str:
    """Duration and cost of all stores of a study, from those of one."""
    text = f"study      {span_text(count * timing.low, count * timing.high)} for {count} stores, one after another"
    if price is None:
        return text
    cheap, dear = timing.cost(price)
    cost = f"{number_text(count * cheap)} to {number_text(count * dear)}"
    return f"{text}\ncost       {cost} at {price:g} per hour, without downloading the model"


def extract_line(settings: ExtractionSettings, chosen: dict[str, Any], store: str | Path) -> str:
    """The `extract` command that makes one store of a study by itself."""
    fixed = {name: getattr(settings, name) for name in FIXED}
    return command_lines()("extract", "", {**chosen, **fixed, "out": store})
