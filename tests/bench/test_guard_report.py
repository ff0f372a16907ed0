"""The guard bench's arithmetic, on results whose sums are plain."""

from dataclasses import replace

import pytest

from bench.guard_report import RULES, Result, print_report

GOOD = Result(
    version=1, task="a", seed=0, setting="auto", zero_shot=0.5, gains={"teacher": 0.2, "half_way": 0.1},
    unwatched=0.2, ended_at=1.0, collapsed=False, outcome="adapted", candidate="half_way",
    estimate=0.12, low=0.02, high=0.22, vetoes=[], candidate_here=0.1, judge_alone="half_way",
    vetoes_alone="teacher", more_confident=True, more_informed=False,
)  # fmt: skip
BAD = replace(
    GOOD, task="b", gains={"teacher": -0.3, "half_way": -0.1}, unwatched=-0.4, ended_at=0.5, collapsed=True,
    outcome="zero_shot", vetoes=["disagreement"], judge_alone="teacher",
)  # fmt: skip


def test_rules_ship_what_they_say() -> None:
    shipped = {name: (rule(GOOD), rule(BAD)) for name, rule in RULES.items()}
    assert shipped == {
        "guard": ("half_way", None),
        "guard without vetoes": ("half_way", "teacher"),
        "guard without judge": ("teacher", "teacher"),
        "always adapt": ("unwatched", "unwatched"),
        "always half-way": ("half_way", "half_way"),
        "if surer (mean score)": ("teacher", "teacher"),
        "if InfoMax grows": (None, None),
        "labels (oracle)": ("teacher", None),
    }


def test_worse_and_kept_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([GOOD, BAD])
    lines = {line[:24].strip(): line for line in capsys.readouterr().out.split("Settings that chose")[0].splitlines()}
    assert lines["guard"].split()[1:3] == ["1", "0"]
    assert "50% (" in lines["guard"]
    assert lines["guard without vetoes"].split()[3:5] == ["2", "1"]
    assert "-0.400" in lines["always adapt"]
    assert "-100% (" in lines["always adapt"]  # +0.2 and -0.4 of a possible 0.2
    assert "100% (" in lines["labels (oracle)"]
