"""Between two classifiers."""

import torch

from must_core.interpolation import STATIONS, between
from tests.support.runs import make_student
from tests.support.tiny import weights_digest


def test_a_station_is_its_share_of_the_way_from_zero_shot_to_the_teacher() -> None:
    zero_shot, teacher = make_student(), make_student()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(1.0)
    before = weights_digest(zero_shot), weights_digest(teacher)
    for share in STATIONS.values():
        moved = between(zero_shot, teacher, share).classifier - zero_shot.classifier
        assert torch.allclose(moved, torch.full_like(moved, share), atol=1e-6)
    assert (weights_digest(zero_shot), weights_digest(teacher)) == before
    assert STATIONS["quarter_way"] < STATIONS["half_way"] < STATIONS["three_quarters_way"]
