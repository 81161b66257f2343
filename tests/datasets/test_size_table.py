"""Size csv files: every published variant, every fault, and our own format."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datasets.size_table import read_size_table, write_size_table
from processes.errors import UserError

PUBLISHED = Path(__file__).parents[3] / "shared" / "reference" / "sizes"
VARIANTS = {  # file: rows, K, columns that hold lists
    "prostate.csv": (
        578,
        2,
        "dumbpredwtags val_gt_size dumbprednotags dumbpredselect dumbpredselect2 dumbprednotags2 proposal_size",
    ),
    "prostate_.csv": (578, 2, "dumbpredwtags val_gt_size"),
    "prostate_proposal.csv": (578, 2, "proposal_size"),
    "ivd.csv": (4096, 2, "val_gt_size dumbpredwtags dumbprednotags"),
    "ivd_select.csv": (4096, 2, "val_gt_size dumbpredwtags dumbprednotags dumbpredselect"),
    "ivd_proposal.csv": (4096, 2, "proposal_size"),
    "ivdsag.csv": (576, 2, "val_gt_size dumbpredwtags dumbpredwtags2 dumbprednotags2"),
    "ivdsag_proposal.csv": (576, 2, "proposal_size"),
    "whs.csv": (29821, 5, "val_gt_size dumbpredwtags dumbprednotags"),
    "whs_or.csv": (29821, 5, "val_gt_size dumbpredwtags"),
    "whs_.csv": (29821, 5, "val_gt_size dumbpredwtags"),
    "whs3.csv": (29821, 5, "val_gt_size dumbpredwtags dumbprednotags"),
    "whs_proposal.csv": (26221, 5, "proposal_size"),
}


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published {name} is not beside the repository")
    return path


@pytest.fixture
def sizes_csv(tmp_path):
    """Writes the text to a csv and gives its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "sizes.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ------------------------------------------------------------------------------------------------ published


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variant(name):
    n_row, n_class, columns = VARIANTS[name]
    path = published(name)
    for column in columns.split():
        table = read_size_table(path, column, n_class)
        assert len(table.sizes) == n_row
        assert {sizes.shape for sizes in table.sizes.values()} == {(n_class,)}
        assert table.oracle == (column == "val_gt_size")
    with pytest.raises(UserError, match="has no column 'meansourcewtags'"):
        read_size_table(path, "meansourcewtags", n_class)


def test_published_values():
    prior = read_size_table(published("prostate.csv"), "dumbpredwtags", 2)
    assert prior["Case00_0.png"].tolist() == [140225, 8000]
    assert prior.ratios("Case00_0") == pytest.approx([140225 / 148225, 8000 / 148225], abs=1e-15)
    assert prior.supervision == "image-level tags"
    truth = read_size_table(published("ivdsag.csv"), "val_gt_size", 2)
    assert truth["Subj_0_10"].tolist() == [64430, 1106]
    assert read_size_table(published("ivdsag.csv"), "dumbprednotags2").supervision == "none"


def test_published_selection_skips_slices():
    table = read_size_table(published("prostate.csv"), "dumbpredselect", 2)
    assert len(table.skipped) == 234
    assert table.skips("Case00_0.nii")
    assert not table.skips("Case00_1.nii")
    with pytest.raises(UserError, match="all zero"):
        table.ratios("Case00_0")


@pytest.mark.parametrize("name", ["whs3.csv", "whs_or.csv"])
def test_malformed_file_gives_what_whs_holds(name):
    for column in ("val_gt_size", "dumbpredwtags"):
        expected = read_size_table(published("whs.csv"), column, 5)
        got = read_size_table(published(name), column, 5)
        assert list(got.sizes) == list(expected.sizes)
        assert np.array_equal(list(got.sizes.values()), list(expected.sizes.values()))


def test_corrupt_published_file_is_refused():
    with pytest.raises(
        UserError, match=r"whs2.csv is corrupt: 29821 of its 29821 rows .* line 2 \(1 fields\): '3706\]'"
    ):
        read_size_table(published("whs2.csv"), "dumbpredwtags", 5)


# ------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize(
    "text",
    [
        'val_ids,prior\nA_0,"[3, 1]"\nA_1,"[4, 0]"\n',
        "val_ids;prior\r\nA_0.png;[3,1]\r\nA_1.png;[4,0]",
        "\ufeffval_ids\tprior\nA_0.nii.gz\t[3.0, 1.0]\nA_1.nii.gz\t[4.0, 0.0]\n\n\n",
        '"Unnamed: 0";"val_ids";"prior"\n0;A_0.npy;[3,1]\n1;A_1.npy;[4,0]\n;;\n',
        ',val_ids,prior,other\n7,A_0,"[3, 1]","[1,1]"\n9,A_1,"[4, 0]"","[1,1]"\n',
        "# made from: data/x (phantom)\n# a remark\nprior,val_ids,,\n'[3, 1]',A_0,,\n\n'[4, 0]',A_1,,\n",
        "val_ids;prior\rA_0;[3,1]\rA_1;[4,0];;\r",
    ],
)
def test_same_content_in_any_dress(sizes_csv, text):
    table = read_size_table(sizes_csv(text), "prior", 2)
    assert {name: sizes.tolist() for name, sizes in table.sizes.items()} == {"A_0": [3, 1], "A_1": [4, 0]}


def test_ids_match_by_stem(sizes_csv):
    table = read_size_table(sizes_csv("val_ids;prior\na.png;[3,1]\nb.nii.gz;[0,0]\n"), "prior")
    table.require(["a", "a.npy", "b.nii"])
    assert table["a.nii"].tolist() == [3, 1]
    assert table.skips("b.png")


def test_numbers_are_not_to_be_written_to(sizes_csv):
    table = read_size_table(sizes_csv("val_ids;prior\na;[3,1]\n"), "prior")
    with pytest.raises(ValueError, match="read-only"):
        table["a"][0] = 7


def test_equal_duplicates_pass(sizes_csv):
    assert len(read_size_table(sizes_csv("val_ids;prior\na.png;[3,1]\na.nii;[3, 1.0]\n"), "prior").sizes) == 1


@pytest.mark.parametrize(
    ("column", "comment", "supervision", "oracle"),
    [
        ("val_gt_size", "", "oracle (true sizes)", True),
        ("val_gt_size_x2", "# supervision: none\n", "oracle (true sizes)", True),
        ("dumbpredwtags", "# supervision dumbpredwtags: oracle of a reader\n", "oracle of a reader", True),
        ("dumbpredwtags", "# supervision: boxes\n", "boxes", False),
        ("dumbpredwtags", "# supervision other: oracle\n", "image-level tags", False),
        ("dumbprednotags2", "", "none", False),
        ("proposal_size", "", "not stated in the csv", False),
    ],
)
def test_supervision(sizes_csv, column, comment, supervision, oracle):
    table = read_size_table(sizes_csv(f"{comment}val_ids;{column}\na;[3,1]\n"), column)
    assert (table.supervision, table.oracle) == (supervision, oracle)


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a header with 'val_ids'.*found 0 lines"),
        ("val_ids;prior\n", "is empty.*found 1 lines"),
        ("# only: comments\n\n", "is empty"),
        (b"PK\x03\x04\xff\xfe\x00", "is corrupt: it is not text"),
        ("names;prior\na;[3,1]\n", "no column 'val_ids', which names the slices.*Known: names, prior"),
        ("val_ids;priors\na;[3,1]\n", "no column 'prior'.*Did you mean 'priors'"),
        ("val_ids;prior;prior\na;[3,1];[4,0]\n", "has 2 columns called 'prior'"),
        ("val_ids;prior\na;[3,1]\nb;[1,2,1]\nc;[1,1,1]\n", "expected 2 numbers.*found 3 in 2 of 3 slices: b, c"),
        (
            "val_ids;prior\na;[3,1]\nb;[1,one]\nc;3\nd;[1,\n",
            r"3 cells are no list.*line 3: '\[1,one\]', line 4: '3', line 5",
        ),
        ("val_ids;prior\na;[]\n", r"1 cells are no list of numbers.*line 2: '\[\]'"),
        ("val_ids;prior\na;[3,-1]\nb;[nan,1]\nc;[1,inf]\n", r"3 lists hold negative.*line 2: \[3,-1\]"),
        (
            "val_ids;prior\na.png;[3,1]\na.nii;[2,2]\n",
            r"1 rows differ from a later row of the same slice: a \(line 2\)",
        ),
        ("val_ids;prior\na;[3,1]\nb;[3,1];[2,2]\n", "is corrupt: 1 of its 2 rows"),
        ("val_ids;prior\na,[3,1]\n", "is corrupt: 1 of its 1 rows do not hold the 2 fields"),
    ],
)
def test_fault(sizes_csv, text, message):
    with pytest.raises(UserError, match=message):
        read_size_table(sizes_csv(text), "prior", 2)


def test_lists_of_mixed_length_without_n_class(sizes_csv):
    with pytest.raises(UserError, match="expected 2 numbers.*found 3 in 1 of 3 slices: c"):
        read_size_table(sizes_csv("val_ids;prior\na;[3,1]\nb;[3,1]\nc;[1,1,1]\n"), "prior")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"There is no size csv .*none.csv.*size_priors make"):
        read_size_table(tmp_path / "none.csv", "prior")
    with pytest.raises(UserError, match="There is no size csv"):
        read_size_table(tmp_path, "prior")


def test_missing_slices_are_listed(sizes_csv):
    text = "# made from: data/x (phantom)\nval_ids;prior\na;[3,1]\nb;[3,1]\n"
    table = read_size_table(sizes_csv(text), "prior")
    message = r"no row for 2 of 3 slices: c.png, d.png\. It has 2 rows, such as a, b, made from data/x \(phantom\)"
    with pytest.raises(UserError, match=message):
        table.require(["a.png", "c.png", "d.png"])
    with pytest.raises(UserError, match="no row for 1 of 1 slices"):
        table["e"]


# ------------------------------------------------------------------------------------------------ writing


def test_written_is_read(tmp_path):
    path = tmp_path / "new" / "sizes.csv"
    columns = {
        "dumbpredwtags": {"a": [3, 1.0], "b": [2.5, 1.5]},
        "val_gt_size": {"a": [4, 0], "b": np.array([1.0, 3.0])},
    }
    write_size_table(path, columns, {"made from": "data/x\n", "supervision dumbpredwtags": "tags: of slices"})
    assert path.read_text() == (
        "# made from: data/x\n# supervision dumbpredwtags: tags: of slices\nval_ids,dumbpredwtags,val_gt_size\n"
        'a,"[3, 1]","[4, 0]"\nb,"[2.5, 1.5]","[1, 3]"\n'
    )
    for column, rows in columns.items():
        table = read_size_table(path, column, 2)
        assert {name: sizes.tolist() for name, sizes in table.sizes.items()} == {n: list(r) for n, r in rows.items()}
    assert read_size_table(path, "dumbpredwtags").supervision == "tags: of slices"


def test_written_is_read_by_pandas_too(tmp_path):
    write_size_table(tmp_path / "a.csv", {"dumbpredwtags": {"Case00_0": [90, 10]}}, {"made from": "data/a, b"})
    table = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert table.to_dict("records") == [{"val_ids": "Case00_0", "dumbpredwtags": "[90, 10]"}]


def test_unwritable_names_leave_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot name slices with .*: a,b$|a,b\."):
        write_size_table(tmp_path / "s.csv", {"prior": {"a,b": [1, 2], "c": [1, 2]}}, {})
    with pytest.raises(ValueError, match="different slices"):
        write_size_table(tmp_path / "s.csv", {"p": {"a": [1, 2]}, "q": {"b": [1, 2]}}, {})
    assert list(tmp_path.iterdir()) == []
