"""Tables and figures."""

import matplotlib.pyplot as plt
import numpy as np

from experiments import plotting


def test_a_table_is_markdown_with_aligned_columns():
    text = plotting.table({"name": ["a", "longer"], "value": ["1.5", "10.25"]})
    assert text.splitlines() == [
        "| name   | value |",
        "| ------ | ----: |",
        "| a      |   1.5 |",
        "| longer | 10.25 |",
    ]


def test_a_column_of_one_character_has_a_rule_that_markdown_knows():
    text = plotting.table({"name": ["a"], "k": ["1"]})
    assert text.splitlines()[1] == "| ---- | --: |"


def test_mean_and_deviation():
    assert plotting.mean_and_deviation(np.array([1.0])) == "1.000"
    assert plotting.mean_and_deviation(np.array([1.0, 3.0]), 1) == "2.0 ± 1.4"


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
