"""The checker of the paper's own tables: what it finds there, and that it finds it because of the numbers."""

from collections import Counter
from dataclasses import replace

import pytest

from analysis.claims import CLAIMS
from analysis.published import published
from analysis.published_claims import average_gain, compared, own_support
from analysis.published_flags import check

CLAIM = {claim.key: claim for claim in CLAIMS}


def flags(kind, cells=None):
    return [flag for flag in check(cells) if flag.kind == kind]


def places(found):
    return {(f.cell.dataset, f.cell.arm, f.cell.label_fraction, f.cell.block) for f in found}


def changed(table, dataset, arm, fraction, block=None, **values):
    """The paper's cells with one of them printed otherwise."""
    key = (table, dataset, arm, fraction, block)
    cells = [
        replace(c, **values) if (c.table, c.dataset, c.arm, c.label_fraction, c.block) == key else c
        for c in published()
    ]
    assert sum(a is not b for a, b in zip(cells, published(), strict=True)) == 1
    return cells


def test_the_average_gains_are_those_of_the_abstract_and_take_the_better_loss():
    few, more = average_gain(0.01), average_gain(0.06)
    assert (round(few.relative, 2), round(few.points, 2)) == (5.09, 3.83)
    assert (round(more.relative, 2), round(more.points, 2)) == (2.03, 1.73)
    assert [(g.dataset, g.arm, round(g.points, 1)) for g in few.by_dataset] == [
        ("cxr14", "moco_barlow", 3.7),
        ("eyepacs", "moco_mse", 5.5),
        ("idc", "moco_mse", 2.3),
    ]
    assert {g.arm for g in more.by_dataset} == {"moco_mse"}
    texts = [flag.text for flag in flags("average of the better loss")]
    assert "average gain of 5.09% (3.83 points)" in texts[0]
    assert "MoCo + MSE 4.25%, MoCo + Barlow Twins 4.39%" in texts[0]
    assert "average gain of 2.03% (1.73 points)" in texts[1]


def test_a_gain_follows_from_the_cells_that_it_is_given():
    cells = changed("label_efficiency", "cxr14", "moco_barlow", 0.01, printed="59.2")
    gain = average_gain(0.01, cells).by_dataset[0]
    assert (gain.arm, round(gain.points, 1), round(gain.relative, 2)) == ("moco_mse", 2.2, 3.72)


def test_table_5_is_flagged_at_one_percent_of_idc_alone():
    found = [flag for flag in flags("against the claim") if flag.claim == "ks"]
    assert [(f.number, f.cell.dataset, f.cell.arm, f.cell.label_fraction) for f in found] == [
        (5, "idc", "moco_mse", 0.01)
    ]
    assert found[0].text == "idc at 1%: MoCo + MSE 0.082, MoCo 0.043"
    closer = changed("ks", "idc", "moco_mse", 0.01, printed="0.042")
    assert not [flag for flag in flags("against the claim", closer) if flag.claim == "ks"]


def test_the_falling_rows_of_block_3_are_flagged():
    found = [flag for flag in flags("against the claim") if flag.claim == "reuse" and flag.cell.block == 3]
    assert places(found) == {
        ("cxr14", "moco_mse", 0.06, 3),
        ("eyepacs", "moco_mse", 0.01, 3),
        ("eyepacs", "moco_mse", 0.06, 3),
        ("idc", "moco_mse", 0.01, 3),
        ("idc", "moco_mse", 0.06, 3),
        ("idc", "moco_barlow", 0.01, 3),
        ("idc", "moco_barlow", 0.06, 3),
    }
    assert {f.number for f in found} == {3}
    assert "idc at 1%, block 3: MoCo + MSE 0.58, MoCo 0.98" in {f.text for f in found}
    assert places(flags("equal")) == {("eyepacs", "moco_barlow", 0.06, 3)}
    others = [f for f in flags("against the claim") if f.claim == "reuse" and f.cell.block != 3]
    assert places(others) == {
        ("cxr14", "moco_barlow", 0.01, 4),
        ("eyepacs", "moco_mse", 0.01, 2),
        ("eyepacs", "moco_mse", 0.06, 4),
    }


def test_the_malformed_interval_is_flagged_and_any_other_would_be():
    (found,) = flags("malformed interval")
    assert (found.number, found.cell.dataset, found.cell.arm, found.cell.block) == (4, "idc", "moco_barlow", 1)
    assert "81.0 (90.7-81.4)" in found.text
    assert not flags("malformed interval", changed("probing", "idc", "moco_barlow", 1.0, 1, printed_low="80.7"))
    outside = flags("malformed interval", changed("linear", "idc", "moco", 1.0, printed="81.2"))
    assert [f.text for f in outside if f.number == 1] == [
        "idc: MoCo 81.2 (80.4-81.1): the value lies outside its interval"
    ]


def test_intervals_that_the_papers_formula_cannot_give_are_flagged():
    found = flags("off-centre interval")
    assert places(found) == {
        ("eyepacs", "moco", 1.0, None),
        ("eyepacs", "moco_barlow", 0.06, None),
        ("eyepacs", "moco", 0.01, None),
        ("eyepacs", "moco_mse", 0.01, None),
        ("eyepacs", "moco", 1.0, 3),
        ("eyepacs", "moco_barlow", 1.0, 3),
    }
    (spread,) = flags("implied spread")
    assert "11.3 points" in spread.text  # 0.7 x sqrt(1000) / 1.96
    assert "0.36 points" in spread.text


def test_claims_of_significance_are_held_against_the_printed_intervals():
    assert places(flags("not significant")) == {
        ("cxr14", "moco_mse", 0.06, None),
        ("cxr14", "moco_barlow", 0.06, None),
    }
    (worse,) = flags("worse than MoCo")
    assert (worse.cell.dataset, worse.cell.arm, worse.cell.label_fraction) == ("cxr14", "moco_barlow", 1.0)
    cells = changed("label_efficiency", "cxr14", "moco_mse", 0.06, printed_low="70.5")
    assert places(flags("not significant", cells)) == {("cxr14", "moco_barlow", 0.06, None)}


def test_gains_that_do_not_grow_as_labels_become_few_are_flagged():
    assert places(flags("larger gain with all labels")) == {
        ("idc", arm, fraction, None) for arm in ("moco_mse", "moco_barlow") for fraction in (0.01, 0.06)
    }


def test_cells_that_do_not_fit_their_neighbours_are_flagged():
    assert places(flags("fewer labels, better score")) == {("idc", "moco_mse", 0.01, None)}
    assert places(flags("repeated cell")) == {("idc", "supervised", 0.06, None)}
    assert not flags("tables disagree")
    assert places(flags("tables disagree", changed("probing", "idc", "moco", 1.0, 4, printed="80.8"))) == {
        ("idc", "moco", 1.0, 4)
    }
    assert len(flags("later block more similar")) == 6
    assert {f.cell.arm for f in flags("later block more similar")} == {"moco", "moco_mse"}
    assert len(flags("not legible")) == 5


def test_flags_come_by_table_and_each_names_its_place():
    found = check()
    assert [f.number for f in found] == sorted(f.number for f in found)
    assert Counter(f.number for f in found)[1] == 0  # Table 1 agrees with itself and with the text
    assert all(f.text.startswith(f.cell.dataset) for f in found if f.cell)


@pytest.mark.parametrize(
    ("key", "outcome", "held", "of"),
    [
        ("gain_1", "supported", 6, 6),
        ("gain_6", "partly", 6, 6),  # better everywhere; on cxr14 the intervals overlap
        ("gain_100", "supported", 4, 4),
        ("linear", "supported", 2, 2),
        ("reuse", "partly", 37, 48),
        ("early_blocks", "supported", 8, 8),
        ("ks", "partly", 8, 9),
        ("pretraining", "supported", 27, 27),
    ],
)
def test_each_claim_on_the_papers_own_tables(key, outcome, held, of):
    own = own_support(CLAIM[key])
    assert (own.outcome, own.held, own.of) == (outcome, held, of)


def test_what_the_paper_excepts_neither_helps_nor_harms_a_claim():
    excepted = [pair for pair in compared(CLAIM["ks"], published()) if pair.excepted]
    assert [(p.arm.dataset, p.arm.arm, p.ahead) for p in excepted] == [
        ("cxr14", "moco_mse", -1),
        ("cxr14", "moco_barlow", None),
    ]
    assert own_support(CLAIM["ks"]).illegible == 1  # eyepacs at 6%; that of cxr14 is excepted
    everywhere = replace(CLAIM["ks"], excepted=frozenset())
    assert own_support(everywhere).held == 8
    assert own_support(everywhere).of == 10


def test_an_either_claim_takes_the_better_arm_of_each_cell():
    each = replace(CLAIM["early_blocks"], either=False)
    assert len(own_support(each).failing) == 4
    block = changed("probing", "idc", "moco_barlow", 1.0, 1, printed="80.8")
    assert [(p.arm.dataset, p.arm.block) for p in own_support(CLAIM["early_blocks"], block).failing] == [("idc", 1)]


def test_a_distance_is_better_the_lower():
    assert {pair.ahead for pair in compared(CLAIM["ks"], published()) if pair.arm.label_fraction == 0.01} == {1, -1}
    worse = [changed("ks", "cxr14", "moco_mse", 0.01, printed=text) for text in ("0.245", "0.243")]
    assert [own_support(CLAIM["ks"], cells).held for cells in worse] == [7, 8]


def test_the_papers_tables_support_a_claim_only_where_most_cells_hold():
    cells = [
        replace(c, printed="99.0") if c.table == "label_efficiency" and c.arm == "moco" else c for c in published()
    ]
    assert own_support(CLAIM["gain_1"], cells).outcome == "contradicted"
