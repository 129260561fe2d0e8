"""The command: what it prints, its JSON, and one line of error for everything that can be asked wrongly."""

import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.thorough import IS_THOROUGH
from tnadapt import count, families, find_host, fit_rank
from tnadapt._command.main import RUNS, main
from tnadapt._command.terminal import IN_ASCII
from tnadapt._version import __version__
from tnadapt.testing import LAWS

OWN = """\
from tnadapt import AdapterSpec, frozen, raw, trainable, zeros
mine = AdapterSpec(name="mine", weight="out in", over="layer", scale=raw(),
                   factors={"A": trainable("r in"), "B": trainable("layer out r", init=zeros())})
small = AdapterSpec(name="lora", weight="out in", scale=raw(),
                    factors={"A": frozen("out r"), "s": trainable("r", init=zeros()), "B": frozen("r in")})
flat = AdapterSpec(name="flat", weight="out in", scale=raw(),
                   factors={"a": trainable("out", init=zeros()), "b": frozen("in")})
def made():
    return mine
"""
REFUSED = OWN + "bad = AdapterSpec(name='bad', weight='out in', scale=raw(), factors={'A': trainable('out r')})\n"
GPT2 = ("--sites", "gpt2", "--rank", "2")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A function: the status, output and errors of a command, run in a folder with files of one's own."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "refused.py").write_text(REFUSED)
    (tmp_path / "loud.py").write_text(f"print('loud')\n{OWN}")
    (tmp_path / "lines.py").write_text("raise ValueError('one\\ntwo')\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_show_prints_spec_report_plan_and_diagram(run):
    status, out, err = run("show", "lorta", *GPT2)
    assert (status, err) == (0, "")
    assert str(families.lorta()) in out
    host = find_host("gpt2")
    adapter = families.lorta().bind(host.sites(), rank=2, sizes={"dim": 64})
    assert f"{count(adapter).trainable:,} = in*r" in out
    assert "<= 2 (cut r)" in out
    assert re.search(r"%6 = \(x\), A +\[\(token\) in, in r -> \(token\) r\]", out)  # no word was taken for markup
    assert "apply at 1,024 tokens" in out
    assert "shared" in out.split("rank ≤")[1]  # the diagram


def test_show_json_is_the_report(run):
    status, out, _ = run(
        "show", "own.py:mine", *GPT2, "--json", "--tokens", "64", "--target-modules", "c_fc", "--seed", "3"
    )
    data = json.loads(out)
    assert status == 0
    assert data["report"]["trainable"] == 768 * 2 + 12 * 3072 * 2
    assert (data["report"]["tokens"], data["report"]["sites"]) == (64, 12)


def test_a_mode_named_head_has_the_size_of_the_host_unless_given(run):
    sizes = [
        json.loads(run("show", "lorta", *GPT2, "--json", *more)[1])["report"]["factors"][2]["shape"]
        for more in ((), ("--sizes", "head=4"), ("--sizes", "dim=2304"))
    ]
    assert sizes == ["36 x 2", "4 x 2", "1 x 2"]  # 12 heads each of the queries, keys and values that lie in one weight


def test_heads_of_keys_are_as_long_as_those_of_queries(run):
    words = ("show", "lorta", "--sites", "qwen2.5-7b", "--rank", "2", "--json", "--limit", "1")
    shapes = [row["shape"] for row in json.loads(run(*words)[1])["report"]["factors"] if row["factor"] == "H"]
    assert shapes == ["28 x 2", "4 x 2"]
    words = ("show", "lorta", "--sites", "llama-2-13b", "--target-modules", "all-linear", "--limit", "1")
    assert run(*words)[0] == 0


def test_specs_of_one_name_are_kept_apart(run):
    words = ("compare", "lora", "own.py:small", "--sites", "gpt2", "--budget", "5000", "--limit", "1", "--json")
    data = json.loads(run(*words)[1])
    assert [one["spec"] for one in data["over_budget"]] == ["lora"]
    assert [one["trainable"] for one in data["reports"]] == [12 * (2304 + 768), 12 * 416]


def test_what_is_asked_by_name_goes_to_the_specs_that_have_it(run):
    status, out, _ = run("compare", "lora", "lorta", "lotr", *GPT2[:2], "--sizes", "head=4", "--rank", "r=3,p=2,q=2")
    assert status == 0
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == ["lora", "lorta", "lotr"]


def test_a_spec_without_a_bond_is_compared_within_a_budget(run):
    words = ("compare", "own.py:flat", "lotr", "--sites", "gpt2", "--limit", "1", "--json", "--budget")
    assert json.loads(run(*words, "50000")[1])["reports"][0]["trainable"] == 12 * 2304
    assert [one["spec"] for one in json.loads(run(*words, "10000")[1])["over_budget"]] == ["flat"]


def test_the_rank_goes_to_the_specs_that_take_one(run):
    words = ("--sites", "gpt2", "--limit", "1", "--sizes", "i=32")
    assert run("show", "oft", *words)[::2] == (0, "")
    status, _, error = run("show", "oft", *words, "--rank", "4")
    assert status == 2
    assert error.startswith("tnadapt: rank: expected no rank, since no bond of oft takes one, got 4. Leave it out.")
    assert error.endswith(" Pass sizes={...} for its modes instead: g, i.\n")
    assert run("compare", "lora", "oft", *words[:4], "--rank", "4")[0] == 0
    assert run("compare", "lora", "oft", *words[:4], "--budget", "1000000")[0] == 0
    status, _, error = run("compare", "oft", "svdiff", *words, "--rank", "4")
    assert status == 2
    assert error == "tnadapt: compare: expected no rank, since no bond of these specs takes one, got 4. Leave it out.\n"


@pytest.mark.parametrize(
    ("word", "value"),
    [("--rank", "4"), ("--sizes", "r=4"), ("--alpha", "2"), ("--target-modules", "q")],
)
def test_a_size_that_no_diagram_would_show_is_refused(run, word, value):
    status, out, error = run("draw", "lora", word, value)
    assert (status, out) == (2, "")
    assert error.startswith(f"tnadapt: {word}: expected --sites as well, since a spec alone has no sizes, got none. ")


def test_what_a_file_prints_is_no_part_of_the_answer(run):
    assert json.loads(run("show", "loud.py:mine", *GPT2, "--json")[1])["report"]["spec"] == "mine"


def test_all_linear_and_a_config(run):
    host = find_host("gpt2")
    data = json.loads(run("show", "lora", *GPT2, "--json", "--target-modules", "all-linear", "--limit", "1")[1])
    assert data["report"]["sites"] == 12 * len(host.kinds)


def test_compare_prints_a_row_a_spec(run):
    status, out, err = run("compare", "lora", "lotr", "own.py:made", *GPT2)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["adapter", "lora", "lotr", "mine"]


def test_compare_within_a_budget(run):
    words = ("compare", "lora", "lotr", "--sites", "roberta-large", "--budget", "50000", "--limit", "1")
    status, out, _ = run(*words)
    assert status == 0
    assert "over the budget of 50,000 even at rank 1: lora (98,304)" in out
    data = json.loads(run(*words, "--json")[1])
    assert data["over_budget"] == [{"spec": "lora", "trainable": 98_304}]
    sites = find_host("roberta-large").sites()
    best = fit_rank(families.lotr(), sites, trainable=50_000)
    assert data["reports"][1]["trainable"] == count(families.lotr().bind(sites, rank=best)).trainable


def test_check_runs_the_laws(run):
    status, out, _ = run("check", "own.py:mine", "--examples", "3")
    assert status == 0
    assert out.count("holds  ") == len(LAWS)
    assert f"mine satisfies all {len(LAWS)} laws" in out
    data = json.loads(run("check", "lorta", "--examples", "2", "--sizes", "head=2", "--json")[1])
    assert (len(data["held"]), data["broken"]) == (len(LAWS), None)


def test_a_broken_law_is_one_line_and_status_1(run, monkeypatch):
    from tnadapt.testing import _laws

    monkeypatch.setattr(_laws, "rank_bound", lambda *args: type("Cut", (), {"rank": 0})())
    status, out, err = run("check", "own.py:mine", "--examples", "3")
    assert status == 1
    assert err.startswith("tnadapt: mine: law rank_keeps_its_bound: ")
    assert err.count("\n") == 1
    assert out.count("holds  ") == 5
    assert "The smallest case found" in out
    assert json.loads(run("check", "own.py:mine", "--examples", "3", "--json")[1])["broken"].startswith(
        "mine: law rank_keeps_its_bound: "
    )


def test_draw_prints_a_text_or_writes_an_svg(run, tmp_path):
    status, out, _ = run("draw", "lotr")
    assert status == 0
    assert "stacked over site" in out
    status, out, _ = run("draw", "lotr", *GPT2, "-o", "x.svg")
    assert (status, out) == (0, "x.svg\n")
    assert ET.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")
    assert "rank ≤ 2" in (tmp_path / "x.svg").read_text()
    assert [path.name for path in tmp_path.glob("*x.svg*")] == ["x.svg"]


def test_list_names_families_and_models(run):
    _, out, _ = run("list")
    assert all(name in out for name in (*families.__all__, "llama-2-7b", "config.json"))
    assert set(json.loads(run("list", "--json")[1])["families"]) == set(families.__all__)


WRONG = [
    (
        ("show", "lora", "--sites", "gpt3"),
        "find_host: expected a known model, a config.json or a folder that contains one, got 'gpt3'",
    ),
    (("show", "lora", "--sites", "config.json"), "expected the key 'hidden_size' in a config of type 'bert', got none"),
    (("show", "nothing", *GPT2), "expected a family or file.py:name, got 'nothing'; the families are"),
    (("show", "refused.py:bad", *GPT2), "weight mode 'in': no factor has it"),
    (
        ("show", "lora", "--sites", "gpt2", "--rank", "q=2"),
        "rank: expected bonds of lora or names of adapted modules, got 'q'",
    ),
    (("show", "lora", "--sites", "gpt2", "--rank", "many"), "expected a whole number, got 'many'"),
    (("show", "lora", *GPT2, "--target-modules", "foo"), "got 'foo', which matches none"),
    (("compare", *GPT2), "the following arguments are required"),
    (("draw", "lora", "-o", "nowhere/x.svg"), "nowhere/x.svg: expected a writable path, got error 'No such file"),
    (("draw", "lora", "-o", "x" * 300), "got error 'File name too long'. Choose a shorter name. Nothing was written."),
    (("draw", "lora", "-o", "/dev/full"), "/dev/full: expected the path of a file, got that of a device."),
    (("draw", "lora", "-o", "."), ".: expected the path of a file, got that of a folder."),
    (("show", "lines.py:x", *GPT2), "lines.py: ValueError: one two"),
    (("compare", "lora", *GPT2, "--budget", "9"), "not allowed with argument"),
    (
        ("compare", "lora", "lotr", *GPT2, "--sizes", "head=2"),
        "compare: expected a mode of these specs, got 'head'. Their modes are",
    ),
    (("fly",), "invalid choice: 'fly'"),
    (("show",), "the following arguments are required"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_an_error_is_one_line_and_status_2(words, message, run):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("tnadapt: ")
    assert err.count("\n") == 1
    assert message in err


def test_ctrl_c_is_status_130(run, monkeypatch):
    def stop(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["tnadapt._command.main"], "find_host", stop)
    assert run("show", "lora", *GPT2)[0] == 130


def test_without_hypothesis_check_says_what_to_install(run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tnadapt.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    status, out, err = run("check", "lora")
    assert (status, out) == (2, "")
    told = 'expected hypothesis to be installed, got no such module. Run: pip install "tnadapt[testing]"'
    assert err == f"tnadapt: tnadapt.testing: {told}\n"


COLD = """
import resource, sys
from tnadapt._command import main
status = main(["show", "lorta", "--sites", "llama-2-7b", "--rank", "8"])
times = resource.getrusage(resource.RUSAGE_SELF)
print(times.ru_utime + times.ru_stime, file=sys.stderr)
sys.exit(status)
"""


def test_show_of_a_7b_model_takes_under_two_seconds_cold():
    """Processor time of a fresh interpreter, since other tests run beside this one."""
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True)
    assert "34,288 of 34,320 (gauge 32)" in done.stdout
    assert float(done.stderr) < 2.0


def test_the_console_script_and_the_module_are_one_command():
    script = Path(sys.executable).with_name("tnadapt")
    commands = [[sys.executable, "-m", "tnadapt", "list"]] + ([[str(script), "list"]] if script.exists() else [])
    texts = {subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in commands}
    assert len(texts) == 1


def test_a_reader_that_leaves_is_no_error():
    """Its status is that of a program that SIGPIPE ends, as shells report it."""
    words = [sys.executable, "-m", "tnadapt", "list"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


@pytest.mark.parametrize("words", [("list",), ("draw", "lora"), ("list", "--json"), ("--help",), ()])
def test_a_closed_pipe_ends_quietly_however_little_is_printed(words, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # noqa: PTH123  (a descriptor)
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(words) == 141
        pipe.write("what the interpreter would flush at its end")
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_of_errors_ends_quietly_too(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:  # noqa: PTH123  (a descriptor)
        monkeypatch.setattr(sys, "stderr", pipe)
        assert main(("show", "lora", "--sites", "gpt3")) == 141


def test_no_arguments_print_help_with_examples(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    for command in RUNS:
        assert re.search(rf"^    {command} +\w", out, re.MULTILINE)
    assert "\nexamples:\n  tnadapt show lora\n" in out


def test_the_version(run):
    assert run("--version") == run("-V") == (0, f"tnadapt {__version__}\n", "")


@pytest.mark.parametrize("name", families.__all__ if IS_THOROUGH else ["lora", "lorta"])
def test_show_needs_no_model_and_says_whose_sizes_it_shows(name, run):
    if name in ("mtlora_tasks", "quantum_peft"):
        pytest.skip("no model says its tasks, or its sizes")
    status, out, err = run("show", name, "--limit", "1")
    assert (status, err) == (0, "")
    assert out.startswith("Sizes of roberta-large, the default. Choose others with --sites MODEL.\n")


def test_compare_needs_no_model_and_json_names_it(run):
    assert run("compare", "lora", "--limit", "1")[1].startswith("Sizes of roberta-large, the default. ")
    assert not run("compare", "lora", *GPT2)[1].startswith("Sizes")
    for words, model in ((GPT2, "gpt2"), ((), "roberta-large")):
        for command in ("show", "compare"):
            assert json.loads(run(command, "lora", *words, "--limit", "1", "--json")[1])["model"] == model


@pytest.mark.parametrize(("encoding", "locale"), [("cp1252", ""), ("ascii", ""), ("utf-8", "C"), ("utf-8", "POSIX")])
@pytest.mark.parametrize("words", [("draw", "tera", *GPT2), ("show", "lotr", *GPT2, "--limit", "1"), ("list",)])
def test_a_stream_that_cannot_show_more_gets_plain_ascii(encoding, locale, words, run, monkeypatch):
    whole = run(*words)[1]
    monkeypatch.setenv("LC_ALL", locale)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(words) == 0
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert text == whole.translate(IN_ASCII)
    assert text.isascii()
    assert whole.isascii() == (words == ("list",))


def test_escapes_are_for_terminals_alone(run, monkeypatch):
    assert "\x1b" not in "".join(map(str, run("list")))
    for name in ("NO_COLOR", "TERM", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    for more, expected in (
        ({"TERM": "xterm-256color"}, {"1", "0"}),
        ({"NO_COLOR": "1"}, {"1", "0"}),
        ({"TERM": "dumb"}, set()),
    ):
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert main(("list",)) == 0
        assert set(re.findall(r"\x1b\[(\d*)m", stream.getvalue())) == expected  # bold, and no colour


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_rank_is_8_where_none_is_asked(run):
    found = json.loads(run("show", "lora", "--sites", "gpt2", "--limit", "1", "--json")[1])["report"]
    assert found["trainable"] == 12 * 8 * (2304 + 768)


def test_scale_replaces_that_of_the_spec(run):
    """The text of the spec has the scale, and one that does not fit is refused in one line."""
    for given, told in (("unit:1.6", "scale 1.6 x unit"), ("3", "scale 3")):
        status, out, _ = run("show", "lotr", *GPT2, "--scale", given)
        assert status == 0
        assert told in out
    assert run("compare", "lotr", "lora", *GPT2, "--scale", "unit", "--limit", "1")[0] == 0
    status, _, err = run("show", "pissa", *GPT2, "--scale", "unit")
    assert (status, err.count("\n")) == (2, 1)
    assert "is read from the host's weights" in err
    assert run("show", "lotr", *GPT2, "--scale", "units")[2].startswith(
        "tnadapt: argument --scale: expected a number, unit or unit:1.6, got 'units'"
    )
