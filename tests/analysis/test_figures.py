"""Figures: what is drawn is what the table holds, and every reader can tell the arms apart."""

import ast
import inspect
import io
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb

from analysis import drawing, figures, pictures
from analysis.drawing import COLOURS, MUTED, looks
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fixture.study(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def tables(finished):
    return tidy("synthetic", finished)


def curves(arms=("a", "b"), seeds=(0, 1), outputs=(0, 1, 2), fractions=(0.01, 1.0)):
    """Distribution functions whose gap grows with the output, in the shape of the ks stage's curves.csv."""
    x = np.linspace(0, 1, 11)
    rows = [
        {"arm": a, "seed": s, "mode": "full", "label_fraction": f, "output": o, "x": v}
        | {"cdf": v, "reference_cdf": min(1.0, v + (0.1 + 0.05 * o + 0.01 * i) * (v == 0.5))}
        for i, a in enumerate(arms)
        for s in seeds
        for f in fractions
        for o in outputs
        for v in x.tolist()
    ]
    return pd.DataFrame(rows)


def history(epochs=5, **terms):
    epoch = np.arange(1, epochs + 1, dtype=float)
    return pd.DataFrame({"epoch": epoch, "info_nce": 6 - epoch / epochs} | {k: v / epoch for k, v in terms.items()})


def svg(figure):
    with matplotlib.rc_context(drawing.STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg")
    return file.getvalue()


def lines(axes, colour):
    """Lines of a colour that join points, as (x, y) arrays."""
    return [
        line.get_xydata()
        for line in axes.lines
        if to_hex(line.get_color()) == colour and line.get_linestyle() != "None"
    ]


def test_label_efficiency_draws_each_arms_mean_at_each_fraction(tables):
    table = tables["label_efficiency"]
    axes = figures.label_efficiency(table, metric="auroc", arms=fixture.ARMS).axes[0]
    assert axes.get_xscale() == "log"
    for arm, colour in zip(fixture.ARMS, COLOURS, strict=False):
        (points,) = lines(axes, colour)
        runs = table[(table["arm"] == arm) & (table["metric"] == "auroc")]
        means = [100 * runs.loc[runs["label_fraction"] == f, "value"].mean() for f in fixture.FRACTIONS]
        assert points[:, 1] == pytest.approx(means, abs=1e-9)
        assert points[:, 0] == pytest.approx(fixture.FRACTIONS, rel=0.15)  # set a little apart from other arms
    strokes = [c for c in axes.collections if isinstance(c, LineCollection)]
    seeds = np.concatenate([c.get_offsets()[:, 1] for c in axes.collections if c not in strokes])
    assert sorted(seeds) == pytest.approx(sorted(100 * table.loc[table["metric"] == "auroc", "value"]))
    drawn = np.concatenate([[path.vertices[:, 1] for path in c.get_paths()] for c in strokes])
    ends = table[table["metric"] == "auroc"].groupby(["arm", "label_fraction"])[["low", "high"]].mean()
    assert drawn[np.argsort(drawn[:, 0])] == pytest.approx(100 * ends.sort_values("low").to_numpy())


def test_label_efficiency_names_how_many_images_were_labelled(tables):
    figure = figures.label_efficiency(tables["label_efficiency"], metric="auroc", seen={0.01: 13, 1.0: 1300})
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1%\n13 images", "6%", "100%\n1,300 images"]


def test_probing_draws_each_arms_mean_at_each_block(tables):
    table = tables["probing"]
    axes = figures.probing(table, metric="f1_macro", arms=fixture.ARMS).axes[0]
    (points,) = lines(axes, COLOURS[1])
    runs = table[(table["arm"] == "moco_mse") & (table["metric"] == "f1_macro")]
    assert points[:, 1] == pytest.approx(100 * runs.groupby("block")["value"].mean().to_numpy())


def test_reuse_has_a_panel_a_kernel_and_fraction(tables):
    figure = figures.reuse(tables["reuse"], arms=fixture.ARMS)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{k}, {f} of labels" for k in ("Linear", "RBF", "Authors' RBF") for f in ("1%", "6%")]


def test_uninformative_similarities_are_hollow_and_off_the_line(tables):
    axes = figures.reuse(tables["reuse"], arms=fixture.ARMS).axes[4]  # authors' kernel, 1%
    (points,) = lines(axes, COLOURS[0])
    assert np.isnan(points[:, 1]).tolist() == [False, False, False, True]
    marks = [m for m in axes.lines if m.get_marker() not in ("", "None") and to_hex(m.get_color()) == COLOURS[0]]
    assert {m.get_markerfacecolor() == "none": len(m.get_xdata()) for m in marks} == {False: 3, True: 1}


def test_the_null_is_drawn_where_the_permutations_put_it(tables):
    axes = figures.reuse(tables["reuse"], arms=fixture.ARMS).axes[4]
    bars = axes.patches
    assert [bar.get_y() for bar in bars] == pytest.approx([0.11, 0.22, 0.33, 0.999])
    assert [bar.get_y() + bar.get_height() for bar in bars][:3] == pytest.approx([0.14, 0.25, 0.36])


def test_the_ks_gap_is_drawn_where_the_distributions_are_furthest_apart():
    part = curves(arms=("a",), seeds=(0,), outputs=(2,), fractions=(0.01,))
    axes = figures.distributions(part).axes[0]
    (gap,) = [line for line in axes.lines if to_hex(line.get_color()) == drawing.INK]
    assert gap.get_xdata().tolist() == [0.5, 0.5]
    assert gap.get_ydata() == pytest.approx([0.5, 0.7])
    assert axes.texts[0].get_text() == "1% of labels\ngap 0.20"


def test_the_representative_output_is_the_one_with_the_median_gap():
    chosen = figures.representative(curves())
    assert set(chosen["output"]) == {1}
    assert set(chosen["label_fraction"]) == {0.01}
    assert set(chosen["arm"]) == {"a", "b"}
    assert set(chosen["seed"]) == {0}
    more = curves()
    more = more[(more["seed"] == 1) | (more["arm"] == "a")]
    assert set(figures.representative(more)["seed"]) == {1}  # the seed that most models have
    assert figures.representative(curves(fractions=(1.0,))).empty


def test_losses_show_infonce_of_all_and_block_terms_of_those_that_have_them():
    histories = {("moco", 0): history(), ("moco_mse", 0): history(mse_1=0.5, mse_3=0.2)}
    figure = figures.losses(histories, arms=("moco", "moco_mse"))
    assert [a.get_title(loc="left") for a in figure.axes] == ["InfoNCE", "MoCo + MSE\nblock losses"]
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [history()["info_nce"].tolist()] * 2
    first, third = figure.axes[1].lines
    assert first.get_ydata()[0] == 0.5
    assert third.get_ydata()[0] == 0.2
    assert "mathdefault" not in svg(figure)


def test_a_long_history_is_thinned_without_moving_its_mean():
    long = history(epochs=1000)
    (line,) = figures.losses({("moco", 0): long}).axes[0].lines
    assert len(line.get_ydata()) == 200
    assert line.get_ydata().mean() == pytest.approx(long["info_nce"].mean(), abs=1e-12)


def draw_all(tables, narrow):
    arms = fixture.ARMS
    return [
        figures.label_efficiency(tables["label_efficiency"], metric="auroc", arms=arms, narrow=narrow),
        figures.reuse(tables["reuse"], arms=arms, narrow=narrow),
        figures.probing(tables["probing"], metric="auroc", arms=arms, narrow=narrow),
        figures.distributions(figures.representative(curves(arms=arms)), arms=arms, narrow=narrow),
        figures.losses({(a, 0): history() for a in arms}, arms=arms, narrow=narrow),
    ]


@pytest.fixture(scope="module")
def wide(tables):
    before = dict(matplotlib.rcParams)
    drawn = draw_all(tables, narrow=False)
    return drawn, before, dict(matplotlib.rcParams)


def test_an_arm_has_one_colour_in_every_figure(wide):
    for figure in wide[0]:
        keys = {t.get_text(): h for t, h in zip(figure.legends[0].texts, figure.legends[0].legend_handles, strict=True)}
        assert to_hex(keys["MoCo + MSE"].get_color()) == COLOURS[1]
        assert to_hex(keys["MoCo + Barlow Twins"].get_color()) == COLOURS[2]


def test_an_arm_keeps_its_look_where_others_are_missing(tables):
    probing = tables["probing"]
    axes = figures.probing(probing[probing["arm"] == "moco_barlow"], metric="auroc", arms=fixture.ARMS).axes[0]
    assert {to_hex(line.get_color()) for line in axes.lines} == {COLOURS[2]}


def test_a_phone_gets_a_narrow_figure_with_panels_below_each_other(wide, tables):
    for screen, narrow in zip(wide[0], draw_all(tables, narrow=True), strict=True):
        assert narrow.get_figwidth() < 4 < screen.get_figwidth()
        across = {round(axes.get_subplotspec().colspan.start) for axes in narrow.axes}
        assert len(across) <= 2


def test_no_figure_touches_global_state(wide):
    _, before, after = wide
    assert after == before
    for module in (figures, drawing, pictures):
        names = {
            name
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        }
        assert not [name for name in names if "pyplot" in name]


def test_names_that_mean_something_to_matplotlib_are_drawn_as_they_are(tables):
    names = {"moco": "_hidden", "moco_mse": "$\\frac{1}$", "moco_barlow": "a" * 60}
    table = tables["label_efficiency"].replace({"arm": names})
    text = svg(figures.label_efficiency(table, metric="auroc"))
    assert ">_hidden<" in text
    assert ">$\\frac{1}$<" in text
    panels = svg(figures.distributions(figures.representative(curves(arms=("$a_", "a" * 60))), output="<b>$x"))
    assert "&lt;b&gt;$x" in panels
    assert f">{'a' * 19}…<" in panels


#: Machado, Oliveira and Fernandes 2009, severity 1: what a linear RGB colour looks like to such a reader.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(rgb):
    """CIE L*a*b* of linear RGB, D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("blindness", [*BLINDNESS, None])
def test_colours_stay_apart_for_colour_blind_readers(blindness):
    matrix = np.array(BLINDNESS[blindness]) if blindness else np.eye(3)
    seen = [lab(np.clip(matrix @ linear(colour), 0, 1)) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10  # a just noticeable difference is 2.3


def test_arms_can_be_told_apart_without_colour():
    grey = [(look.marker, str(look.dash)) for look in looks(map(str, range(8))).values()]
    assert len(set(grey)) == 8
    every = looks(map(str, range(56))).values()
    assert len({(look.colour, look.marker) for look in every}) == 56


def test_the_first_arms_stand_out_from_white_paper():
    for colour in COLOURS[:4]:
        luminance = np.array([0.2126, 0.7152, 0.0722]) @ linear(colour)
        assert 1.05 / (luminance + 0.05) >= 3  # WCAG 2.2, 1.4.11
    assert to_hex(MUTED) == MUTED


def test_alternative_texts_say_the_numbers(tables):
    scores = tables["label_efficiency"]
    runs = scores[(scores["arm"] == "moco") & (scores["label_fraction"] == 0.06) & (scores["metric"] == "auroc")]
    assert f", 6% {100 * runs['value'].mean():.1f}, 100%" in figures.label_efficiency_alt(scores, metric="auroc")
    assert "12 of 144 values are uninformative" in figures.reuse_alt(tables["reuse"])
    assert "block 4 " in figures.probing_alt(tables["probing"], metric="auroc")
    assert "b at 1% 0.16" in figures.distributions_alt(figures.representative(curves()))
    assert "MoCo from 5.80 to 5.00" in figures.losses_alt({("moco", 0): history(), ("moco", 1): history()})


def test_pictures_are_those_that_the_stages_allow(finished, tables, tmp_path):
    given = {"arms": fixture.ARMS, "metric": "auroc", "class_names": fixture.CLASSES}
    names = [p.name for p in pictures.pictures(tables, finished, **given)]
    assert names == ["label_efficiency", "reuse", "probing", "distributions", "reliability", "losses"]
    few = [s for s in finished if s.kind == "probe"]
    assert [p.name for p in pictures.pictures(tidy("d", few), few, **given)] == ["probing"]
    bare = [Finished(s.kind, s.key, s.labels, tmp_path, s.rows) for s in finished]  # folders without files
    assert [p.name for p in pictures.pictures(tables, bare, **given)] == ["label_efficiency", "reuse", "probing"]
    assert pictures.pictures(tidy("d", []), [], **given) == []


def test_labelled_images_are_counted_from_the_stages_samples(finished):
    assert pictures.labelled_images(finished) == {0.01: 13, 0.06: 78, 1.0: 1300}
