"""Image-level tags told by a person: pages and templates made, filled in, read, and refused where not whole."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from datasets.size_table import read_size_table
from preprocess import size_priors, tags
from preprocess.tags import THUMB, read_tags
from processes.errors import UserError

NAMES = ["Case04_0", "Case04_1", "Case04_2", "Case04_3", "Case05_0", "Case05_1", "Case05_2", "Case05_3"]


def run(module, *words):
    args = module.parse_args(list(map(str, words)))
    args.run(args)


@pytest.fixture
def images(sites, tmp_path):
    """The validation images of the target, and no ground truth."""
    shutil.copytree(sites[1] / "val" / "IMG", tmp_path / "images" / "val" / "IMG")
    return tmp_path / "images"


def fill(path, shown, mark="x"):
    rows = list(csv.reader(path.read_text().splitlines()))
    for row in rows[1:]:
        row[1] = mark if row[0] in shown else ""
    path.write_text("".join(",".join(row) + "\n" for row in rows))


def test_a_template_is_filled_in_and_becomes_a_prior(images, tmp_path):
    out = tmp_path / "tags.csv"
    run(tags, "template", "--data", images, "--classes", "disc", "--out", out)
    assert out.read_text().splitlines()[:2] == ["val_ids,disc", "Case04_0,"]
    shown = {"Case04_1", "Case04_2", "Case05_3"}
    fill(out, shown)
    assert read_tags(out, NAMES, 2)[:, 0].tolist() == [name in shown for name in NAMES]
    words = ("--data", images, "--folder", "IMG", "--unlabelled", "--n_class", 2, "--constant", 80, "--tags", out)
    run(size_priors, "make", *words, "--out", tmp_path / "prior.csv")
    table = read_size_table(tmp_path / "prior.csv", "dumbpredwtags", 2)
    assert {name for name, sizes in table.sizes.items() if sizes[1]} == shown
    assert table.supervision == f"image-level tags (from {out})"
    with pytest.raises(UserError, match="never overwritten"):
        run(tags, "template", "--data", images, "--classes", "disc", "--out", out)


@pytest.mark.parametrize(("mark", "separator"), [("1", ","), ("yes", ";"), ("X", "\t"), ("TRUE", ";")])
def test_what_spreadsheets_make_of_it(tmp_path, mark, separator):
    lines = [
        f"val_ids{separator}a{separator}b",
        f"P_0.png{separator}{mark}{separator}",
        f"P_1{separator}0{separator}{mark}",
    ]
    (tmp_path / "tags.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert read_tags(tmp_path / "tags.csv", ["P_0", "P_1.nii"], 3).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["val_ids,a", "P_0,x"], "slices without a row: P_1"),
        (["val_ids,a", "P_0,x", "P_1,?"], r"neither x, 1, yes nor 0, no or empty: P_1 \(a: '\?'\)"),
        (["val_ids,a", "P_0,", "P_1,"], "patients without a mark .*: P"),
        (["val_ids,a,b", "P_0,x,", "P_1,,"], "one for each of the 1 classes"),
        (["name,a", "P_0,x"], "expected a column val_ids"),
        ([], "has no rows"),
        (["val_ids;tags", "P_0;[1, 1]"], "no row for 1 of 2"),
    ],
)
def test_what_is_not_whole_is_told(tmp_path, lines, says):
    (tmp_path / "tags.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=says):
        read_tags(tmp_path / "tags.csv", ["P_0", "P_1"], 2)


def test_rows_that_contradict_each_other_are_refused(tmp_path):
    (tmp_path / "tags.csv").write_text("val_ids,a\nP_0,x\nP_1,\nP_0,\nP_1.png,\n")
    with pytest.raises(UserError, match="contradict each other, of P_0; keep one"):
        read_tags(tmp_path / "tags.csv", ["P_0", "P_1"], 2)


def test_slices_numbered_behind_a_hyphen_are_of_one_patient_in_a_table_in_utf_16(tmp_path):
    (tmp_path / "tags.csv").write_bytes("val_ids\ta\nP-10\t\nP-9\tx\n".encode("utf-16"))
    assert read_tags(tmp_path / "tags.csv", ["P-9", "P-10"], 2)[:, 0].tolist() == [True, False]
    assert [tags.number_of(name) for name in ("P-9", "P_10", "P")] == [9, 10, -1]


def test_a_class_that_is_named_twice_is_refused(tmp_path):
    words = ["--data", "data/x", "--out", str(tmp_path / "out"), "--classes", "lv", "rv", "lv"]
    with pytest.raises(UserError, match="--classes names each class once.*lv stands there several times"):
        tags.parse_args(["page", *words])


def test_a_zero_says_that_a_patient_shows_nothing(tmp_path):
    (tmp_path / "tags.csv").write_text("val_ids,a\nP_0,0\nP_1,\n")
    assert not read_tags(tmp_path / "tags.csv", ["P_0", "P_1"], 2).any()


def test_check_counts_both_kinds_of_faults(sites, tmp_path, capsys):
    lines = ["val_ids,disc"] + [f"Case0{p}_{i},{'x' if i != 1 else 0}" for p in range(6) for i in range(4)]
    (tmp_path / "tags.csv").write_text("\n".join(lines))  # the true ones: every slice but the first
    run(tags, "check", "--data", sites[1], "--tags", tmp_path / "tags.csv", "--n_class", 2)
    told = capsys.readouterr().out
    assert re.search(r"1 +50\.0% +6 +6$", told, re.M)
    assert "Case00_0, Case00_1, Case01_0" in told


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(images, tmp_path):
    run(tags, "page", "--data", images, "--classes", "disc", "<b>", "--out", tmp_path / "tags.html")
    return tmp_path / "tags.html"


def test_a_page_holds_every_slice_and_asks_nobody_for_anything(page, images):
    text = page.read_text()
    assert not re.search(r"https?://|<link|src=[\"'](?!data:)", text)
    facts = json.loads(re.search(r"^const data = (.*);$", text, re.M)[1].replace("<\\/", "</"))
    assert (facts["set"], facts["classes"]) == ("images", ["disc", "<b>"])
    assert [p["slices"] for p in facts["patients"]] == [NAMES[:4], NAMES[4:]]
    for patient in facts["patients"]:
        for name, address in zip(patient["slices"], patient["images"], strict=True):
            seen = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
            stored = np.asarray(Image.open(images / "val" / "IMG" / f"{name}.png")).astype(float)
            assert seen.size == stored.shape  # W to the right
            assert max(seen.size) <= THUMB
            assert np.corrcoef(np.asarray(seen).T.ravel(), stored.ravel())[0, 1] > 0.99


DRIVER = """
<script>
const patient = data.patients[0]; const at = (i, shift) => mark(patient, patient.slices[i], shift);
localStorage.clear(); state = empty();
at(2); at(1);                       // a range, from its end
at(3, true);                        // one more slice
chosen = 1; none(patient);
const before = csv();
read(before.replace("Case05_0;[1, 0, 0]", "Case05_0;[1, 0, 1]"));
document.title = JSON.stringify([before, csv(), document.getElementById("progress").textContent]);
document.body.innerHTML = "<pre id=found></pre>"; document.getElementById("found").textContent = document.title;
</script>
"""


def test_clicks_make_the_csv(page, tmp_path):
    """In a browser, where there is one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here: apt-get install chromium")
    page.write_text(page.read_text().replace("</html>", DRIVER + "</html>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", f"--user-data-dir={tmp_path}/browser", "--virtual-time-budget=2000"]
    done = subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr
    before, after, progress = json.loads(found[1])
    (tmp_path / "tags.csv").write_text(before)
    told = read_tags(tmp_path / "tags.csv", NAMES, 3)
    assert told[:, 0].tolist() == [False, True, True, True, False, False, False, False]
    assert not told[:, 1].any()
    (tmp_path / "tags.csv").write_text(after)
    assert np.argwhere(read_tags(tmp_path / "tags.csv", NAMES, 3) != told).tolist() == [[4, 1]]
    assert progress == "2 of 2 patients done"
