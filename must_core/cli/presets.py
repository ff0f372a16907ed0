"""``must presets``: the paper's settings."""

import json

from rich.console import Console
from rich.table import Table

from must_core.cli.told import DONE
from must_core.presets import PRESETS


def run(*, as_json: bool) -> int:
    """Print them."""
    if as_json:
        listed = {
            name: {
                "vit_b_16": preset.vit_b_16._asdict(),
                "vit_l_14": preset.vit_l_14._asdict() if preset.vit_l_14 else None,
                "metric": preset.metric,
                "templates": list(preset.templates),
                "templates_source": preset.templates_source,
            }
            for name, preset in PRESETS.items()
        }
        Console(soft_wrap=True).print_json(json.dumps(listed))
        return DONE
    table = Table("preset", "ViT-L/14", "metric", "templates", "their source")
    table.columns[-1].overflow = "fold"
    for name, preset in PRESETS.items():
        table.add_row(
            name,
            "yes" if preset.vit_l_14 else "no",
            preset.metric,
            str(len(preset.templates)),
            preset.templates_source,
        )
    Console().print(table)
    return DONE
