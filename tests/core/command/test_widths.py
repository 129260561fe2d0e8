"""Every command in every width from 60 to 200 columns: no line is longer, and no number is folded or lost."""

import io
import re
import sys
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from tests.thorough import IS_THOROUGH
from tnadapt import draw, families, find_host, grid, save
from tnadapt._command import compress, terminal
from tnadapt.testing import random_params

main = sys.modules["tnadapt._command.main"]  # the module: the folder exports the function of that name
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")
WIDTHS = range(60, 201)
SMALL = ("--sites", "gpt2", "--rank", "2", "--limit", "1")
COMMANDS = {
    "show": ("show", "lora", *SMALL),
    "show a tensor": ("show", "lorta", "--sites", "llama-2-7b", "--rank", "8", "--limit", "1"),
    "show a circuit": ("show", "quanta", *SMALL),
    "show two networks": ("show", "lora", *SMALL, "--target-modules", "all-linear"),
    "compare two": ("compare", "lora", "lotr", *SMALL),
    "compare many": (
        "compare",
        *["lora", "lotr", "lorta", "tlora", "vera", "fact_tk", "lora_xs"],
        *SMALL[:2],
        *SMALL[4:],
    ),
    "over a budget": ("compare", "lora", "lotr", "--sites", "gpt2", "--limit", "1", "--budget", "5000"),
    "check": ("check", "lora", "--examples", "1"),
    "compress": ("compress", "given.safetensors", "--to", "lora", "--rank", "2", "-o", "small"),
    "list": ("list",),
}
PRINTERS = ("print_lines", "print_table", "print_diagram")


@pytest.fixture
def printed(monkeypatch, tmp_path):
    """A function: run a command once, and return a function that prints all of it again in a width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    adapter = families.lora().bind(grid(layers=11, kinds={"self_attn.a_projection_of_a_long_name": (6, 4)}), rank=2)
    save(adapter, random_params(adapter, np.random.default_rng(0)), "given.safetensors")

    def run(words):
        calls = []
        for name in PRINTERS:
            printer = getattr(terminal, name)

            def record(console, *args, printer=printer, **options):
                calls.append((printer, args, options))

            for module in (main, compress):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, record)
        assert main.main(words) == 0

        def again(width):
            console = Console(file=io.StringIO(), width=width, soft_wrap=True, highlight=False)
            for printer, args, options in calls:
                if printer is not terminal.print_diagram:  # it is drawn for a width, as tested below
                    printer(console, *args, **options)
            return console.file.getvalue()

        return again

    return run


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_line_is_too_wide_and_no_number_is_folded(words, printed):
    again = printed(words)
    whole = Counter(NUMBER.findall(again(terminal.UNLIMITED)))
    assert whole
    for width in WIDTHS if IS_THOROUGH else WIDTHS[::4]:
        text = again(width)
        found = Counter(NUMBER.findall(text))
        assert max(map(len, text.splitlines())) <= width
        assert found.keys() == whole.keys(), width
        assert all(found[number] >= often for number, often in whole.items()), width


@pytest.mark.parametrize("name", ["lorta", "quanta", "fact_tk", "tt_lora"] if IS_THOROUGH else ["lorta"])
def test_a_diagram_fits_every_width_and_shows_every_factor(name):
    spec = getattr(families, name)()
    network = spec.bind(find_host("gpt2").sites(), rank=2, sizes={"dim": 64} if name == "lorta" else {}).networks[0]
    for of in (spec, network):
        whole = str(draw(of, columns=1000))
        dots, numbers = whole.count("●"), set(NUMBER.findall(whole))
        for width in WIDTHS if IS_THOROUGH else (60, 73, 100, 200):
            text = str(draw(of, columns=width))
            assert max(map(len, text.splitlines())) <= width
            assert text.count("●") == dots
            assert set(NUMBER.findall(text)) == numbers


@pytest.mark.parametrize("name", ["", *main.RUNS])
@pytest.mark.parametrize("width", [60, 80])
def test_help_fits(name, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit, match="0"):
        main.main([*name.split(), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width
