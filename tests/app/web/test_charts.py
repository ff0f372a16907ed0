"""Numbers on axes, and curves between them."""

import pytest

from app.web.charts import BOTTOM, LEFT, RIGHT, TOP, chart, interval, round_numbers


@pytest.mark.parametrize(
    ("low", "high", "cover", "expected"),
    [
        (3.2, 5.8, True, [3, 4, 5, 6]),
        (0.77, 1.0, True, [0.7, 0.8, 0.9, 1.0]),
        (1, 378, False, [100, 200, 300]),
        (7.6e-5, 5e-4, True, [0, 0.0002, 0.0004, 0.0006]),
        (1.0, 1.0, True, [0.5, 1.0, 1.5]),
        (0.0, 0.0, True, [-0.5, 0, 0.5]),
        (-3.0, -3.0, True, [-5, -4, -3, -2, -1]),
        (-1e300, 1e300, True, [-1e300, -5e299, 0, 5e299, 1e300]),
        (1e-300, 5e-300, False, [1e-300, 2e-300, 3e-300, 4e-300, 5e-300]),
        (0.0, 5e-324, True, [-0.5, 0, 0.5]),
        (5e-324, 5e-324, True, [-0.5, 0, 0.5]),
        (-1.7e308, 1.7e308, True, [-1e300, -5e299, 0, 5e299, 1e300]),
        (1.7e308, 1.7e308, True, [5e299, 1e300, 1.5e300]),
    ],
)
def test_numbers_on_an_axis_are_round_and_few(low: float, high: float, cover: bool, expected: list[float]) -> None:  # noqa: FBT001
    assert round_numbers(low, high, cover=cover) == pytest.approx(expected)


def test_curves_lie_between_their_axes() -> None:
    drawn = chart([("after", [(1, 3.2), (10, 5.8)])], title="", told="", x_name="step")
    ((kind, points),) = drawn.lines
    assert kind == "after"
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert (x0, x1) == (LEFT, RIGHT)
    assert TOP < y1 < y0 < BOTTOM
    assert [tick.text for tick in drawn.y_ticks] == ["3", "4", "5", "6"]
    assert [tick.at for tick in drawn.y_ticks][::3] == [BOTTOM, TOP]
    assert all(LEFT <= tick.at <= RIGHT for tick in drawn.x_ticks)


@pytest.mark.parametrize(("low", "high"), [(0.0, 5e-324), (-1.7e308, 1.7e308), (1.7e308, 1.7e308)])
def test_numbers_at_the_ends_of_floats_are_drawn_too(low: float, high: float) -> None:
    ((_, points),) = chart([("after", [(1, low), (2, high)])], title="", told="", x_name="").lines
    assert all(TOP <= float(point.partition(",")[2]) <= BOTTOM for point in points.split())


def test_shares_are_told_in_percent_and_from_zero() -> None:
    drawn = chart([("after", [(1, 0.4), (2, 0.5)])], title="", told="", x_name="", percent=True, from_zero=True)
    assert [tick.text for tick in drawn.y_ticks] == ["0 %", "20 %", "40 %", "60 %"]


def test_an_interval_lies_on_the_axis_from_0_to_1() -> None:
    found = interval("before", 0.0, 0.5, 1.0)
    assert (found.low, found.at, found.high) == (LEFT, (LEFT + RIGHT) / 2, RIGHT)
