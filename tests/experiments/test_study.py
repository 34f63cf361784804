"""Options, tables and figures of the studies."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import ode, plotting, study


def test_a_table_is_markdown_with_a_dash_where_a_row_has_no_number():
    text = study.table([{"name": "a", "k": 10, "x": "1.50"}, {"name": "b", "k": 2}])
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["name", "k", "x"] and rows[1][0][0] == ":" == rows[1][1][-1]
    assert rows[2:] == [["a", "10", "1.50"], ["b", "2", "–"]]


def test_mean_and_deviation():
    assert study.mean_and_deviation([1.0]) == "1.000"
    assert study.mean_and_deviation([1.0, 3.0], 1) == "2.0 ± 1.4"


@pytest.mark.parametrize("value", [0, (2, 0), ()])
def test_an_option_that_is_too_small_is_named(value):
    with pytest.raises(SystemExit, match="--seeds must be at least 1; got"):
        study.at_least(1, ode.Config(seeds=value), "steps", "seeds")


def test_seeds_are_drawn_faint_behind_their_mean():
    _, axes = plt.subplots()
    curves = np.array([[1.0, 10.0], [100.0, 1000.0]])
    plotting.plot_seeds(axes, np.arange(2), curves, label="x", logarithmic=True)
    mean, *seeds = axes.lines
    np.testing.assert_allclose(mean.get_ydata(), [10.0, 100.0])
    assert len(seeds) == 2 and all(s.get_alpha() < 0.5 for s in seeds)
    plt.close()


def test_the_median_is_drawn_in_a_band_of_the_quartiles_also_where_seeds_diverge():
    _, axes = plt.subplots()
    curves = np.array([[1.0], [2.0], [3.0], [4.0], [np.inf]])
    plotting.plot_quartiles(axes, np.arange(1), curves, label="x")
    (median,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(median.get_ydata(), [3.0])
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == 2 and heights.max() == 4
    plt.close()
