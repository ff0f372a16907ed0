"""``must models``: what can be done with which base model."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.progress import track
from rich.table import Table

from must_core.cli.told import DONE, plain_console
from must_core.models import ModelSupport, architectures, support_of, survey, weights_at_hand


def run(name: str | None, *, as_json: bool) -> int:
    """Print one model with its reason and weights, or a row for each that open_clip has."""
    if name is not None:
        known = name in architectures()
        found = survey(name) if known else support_of(name)
        addresses = [f"{name}/{tag.name}" for tag in found.pretrained] if known else [name]
        at_hand = {address: weights_at_hand(address) for address in addresses}
        if as_json:
            Console(soft_wrap=True).print_json(json.dumps({**asdict(found), "weights_at_hand": at_hand}))
        else:
            _print_one(found, at_hand)
        return DONE
    progress = Console(stderr=True)
    names = track(architectures(), "looking", console=progress, disable=not progress.is_terminal, transient=True)
    found_all = [survey(architecture) for architecture in names]
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps([asdict(found) for found in found_all]))
    else:
        _print_all(found_all)
    return DONE


def _print_one(found: ModelSupport, at_hand: dict[str, bool]) -> None:
    console = plain_console()
    console.print(f"{found.architecture}: {'masked training' if found.masked else 'self-training only'}")
    console.print(found.reason)
    grid = f", patches of {found.patch_size}, {found.num_layers} layers {found.width} wide" if found.masked else ""
    console.print(f"images of {found.image_size} pixels{grid}; {found.num_parameters / 1e6:.0f} M parameters")
    for address, here in at_hand.items():
        console.print(f"  {address}  {'weights at hand' if here else 'weights not here'}")


def _print_all(found_all: list[ModelSupport]) -> None:
    table = Table("architecture", "masked", "pixels", "patch", "M params", "tags", "why")
    for found in found_all:
        table.add_row(
            found.architecture,
            "yes" if found.masked else "no",
            str(found.image_size),
            str(found.patch_size or ""),
            f"{found.num_parameters / 1e6:.0f}",
            str(len(found.pretrained)),
            found.reason,
        )
    table.columns[0].no_wrap = True
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    masked = sum(found.masked for found in found_all)
    Console().print(f"{masked} of {len(found_all)} can be trained on masked images", highlight=False)
