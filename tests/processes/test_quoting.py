"""Words of any letters, written for each format and read back by what reads it."""

import csv
import io
import json
import os
import shlex
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nasty import NASTY

from processes.errors import UserError
from processes.quoting import (
    INVISIBLE,
    VisibleStream,
    for_cell,
    for_comment,
    for_html,
    for_latex,
    for_markdown,
    for_recipe,
    for_script,
    for_shell,
    from_cell,
    visible,
)

ARGUMENTS = [text for text in NASTY if "\0" not in text]


def said(*command, **how):
    """The words, each ended by a zero, that a command says; nothing else was run."""
    done = subprocess.run(command, capture_output=True, **how)
    assert (done.returncode, done.stderr) == (0, b"")
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("text", NASTY)
def test_what_is_visible_is_one_line_that_steers_nothing(text):
    seen = visible(text)
    assert not INVISIBLE.search(seen)
    assert len(seen.splitlines()) == 1
    assert (seen == text) == (not INVISIBLE.search(text))
    assert visible(text, keep="\n").count("\n") == text.count("\n")


def test_a_stream_passes_lines_and_shows_the_rest():
    stream = io.StringIO()
    print("a\x1b[2J\u202e\n\tb", "c", sep="\r", file=VisibleStream(stream))
    assert stream.getvalue() == "a\\x1b[2J\\u202e\n\tb\\rc\n"
    stream = io.StringIO()
    VisibleStream(stream, bars=True).write("\r 7%|\rx| 7/100\r")
    assert stream.getvalue() == "\r 7%|\\rx| 7/100\r"


def test_make_and_bash_hand_words_on_as_they_are(tmp_path):
    """In a variable of each kind, in a line that goes on, and in a recipe."""
    lines = ["SHELL := bash", "W = base", f"all: {' '.join(f't{n}' for n in range(len(ARGUMENTS)))}"]
    for n, text in enumerate(ARGUMENTS):
        word = for_recipe(text)
        lines += [f"V{n} = {word} \\", f"   --more={word}", f"t{n}: private W += X={word} \\", f"   {word}"]
        lines += [f"t{n}:", f"\t@printf '%s\\0' $(V{n}) $(W) {word}", f"# {for_comment(text)}"]
    (tmp_path / "m.make").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = said("make", "--warn-undefined-variables", "-f", "m.make", "all", cwd=tmp_path)
    assert found == [word for text in ARGUMENTS for word in (text, f"--more={text}", "base", f"X={text}", text, text)]
    assert [path.name for path in tmp_path.iterdir()] == ["m.make"]


def test_a_word_without_end_is_refused():
    for quote in (for_recipe, for_shell):
        with pytest.raises(UserError, match="number 0"):
            quote("a\0b")


def test_bash_hands_words_on_as_they_are(tmp_path):
    line = " ".join(["printf", "'%s\\0'", *map(for_shell, ARGUMENTS)])
    assert said("bash", "-c", line, cwd=tmp_path) == ARGUMENTS
    assert list(tmp_path.iterdir()) == []
    assert for_shell(Path("-rf")) == "./-rf"
    assert shlex.split(for_shell(Path("results/a b"))) == ["results/a b"]


@pytest.mark.parametrize("text", NASTY)
def test_a_spreadsheet_finds_words_and_python_the_same(text):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerow([for_cell(text), "x"])
    (row,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert from_cell(row[0]) == (visible(text) if set(text) & set("\0\udce9") else text)
    assert row[0] == "-1.5" or not row[0].startswith(tuple("=+-@\t\r"))


def test_what_only_python_takes_for_a_number_is_a_name():
    assert [for_cell(text) for text in ("-1.5_0", "+1_000", "-\u0661")] == ["'-1.5_0", "'+1_000", "'-\u0661"]
    assert for_cell(float("nan")) == ""


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+3", "1e-3", "-inf", "nan", 7, None, "Case00", "", "'quoted'"])
def test_numbers_and_plain_words_stay_as_they_are(value):
    assert for_cell(value) == value
    assert from_cell(str(value)) == str(value)


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_comment(self, data):
        self.tags.append(("comment", data))

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("text", NASTY)
def test_html_finds_words_and_no_element(text):
    page = Elements()
    page.feed(f'<p title="{for_html(text)}">{for_html(text)}</p>')
    assert (page.tags, page.words) == ([("p", [("title", visible(text))])], visible(text))
    script = for_script({text: [text]})
    assert json.loads(script) == {text: [text]}
    assert not set("<>&\u2028\n") & set(script)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a | b", r"a \| b"),
        ("a\\|b", r"a&#92;\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("SFDA_TrueSize sfda_lr0", "SFDA_TrueSize sfda_lr0"),
        ("_a_ *b* `c` $d$ ~e~ [f](g)", r"\_a\_ \*b\* \`c\` \$d\$ \~e\~ \[f\](g)"),
        ("- a", "&#45; a"),
        ("1. a", "&#49;. a"),
        ("-0.5 ± 0.1", "-0.5 ± 0.1"),
        ("---", "&#45;--"),
        ("a\nb", r"a&#92;nb"),
    ],
)
def test_markdown(text, written):
    assert for_markdown(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b & 5 % ± – {x} \\", r"a\_b \& 5 \% $\pm$ -- \{x\} \textbackslash{}"),
        ("~ |", r"\textasciitilde{} \textbar{}"),
        ("x\n\\input{y}", r"x\textbackslash{}n\textbackslash{}input\{y\}"),
        ("[a]*", "{}[a]*"),
        ("*a", "{}*a"),
        ("^^5cinput", r"\textasciicircum{}\textasciicircum{}5cinput"),
        ("$x$ #1", r"\$x\$ \#1"),
    ],
)
def test_latex(text, written):
    assert for_latex(text) == written
