"""Run PEFT's own tests on our method: `python -m tests.peft.suite [arguments of pytest]`.

The source distribution of the installed release of PEFT is fetched from the package index into build/, once. The tests
that do not apply to this method are left out by name, with the reason, and are counted in the summary.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = Path(__file__).with_name("suite_rows.py")
RELEASE = version("peft")
LEFT_OUT = {  # a regular expression for the names of tests -> why they do not apply
    r"test_save_pretrained.*pickle": "writes a pickle, which is refused here",
    r"test_adding_multiple_adapters_with_bias_raises": "sets `bias`, which TnConfig does not have",
    r"test_mixed_adapter_batches_lora_conv1d_emb": "adapts an embedding; here only linear layers are adapted",
    r"test_mixed_adapter_batches_lora_conv2d": "adapts a convolution; here only linear layers are adapted",
    r"test_mixed_adapter_batches_mha_raises": "adapts nn.MultiheadAttention, which is refused when the adapter is made",
    r"test_mixed_adapter_batches_lora_opt_timing": "measures seconds on a GPU, with a model from the hub",
    r"test_(prompt_|training_prompt_|set_requires_grad_prompt_)": "is about prompt learning",
    r"test_weighted_combination_of_adapters": "expects the combinations of LoRA; here two adapters are summed exactly",
    r"test_training_.*layer_indexing\[(lotr|lorta|tera|own)": (
        "counts the parameters of one layer and of all, which are equally many if layers share them"
    ),
}


class Report:
    """A plugin of pytest: leaves tests out, counts outcomes, and keeps the reasons."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests that do not apply."""
        kept = []
        for item in items:
            reason = next((why for rule, why in LEFT_OUT.items() if re.match(rule, item.name)), None)
            if reason is None:
                kept.append(item)
            else:
                self.left_out[reason] += 1
        if items:
            self.left_out["is about one method of PEFT, or about none"] = len(items[0].module.NOT_COLLECTED)
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: where it failed or was skipped, or at its call."""
        if report.when == "call" or not report.passed:
            self.outcomes[report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[str(report.longrepr[-1]).removeprefix("Skipped: ")] += 1

    def summary(self) -> str:
        """Return the numbers, and each reason with its number."""
        lines = [f"PEFT {RELEASE}: {self.outcomes['passed']} passed, {self.outcomes['failed']} failed"]
        for title, reasons in (("left out, since they do not apply", self.left_out), ("skipped by PEFT", self.skipped)):
            lines.append(f"{reasons.total()} {title}")
            lines += [f"  {number:5}  {why}" for why, number in reasons.most_common()]
        return "\n".join(lines)


def fetch(folder: Path) -> Path:
    """Fetch the source distribution unless it is there; return the folder of its tests."""
    name = f"peft-{RELEASE}"
    tests = folder / name / "tests"
    if not tests.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["download", "-q", "--no-deps", "--no-binary", "peft", "-d", str(folder), f"peft=={RELEASE}"]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return tests


def main() -> int:
    """Run the tests, print the summary, and return the exit code of pytest."""
    os.environ["PEFT_TESTS"] = str(fetch(ROOT / "build" / "peft-suite"))
    report = Report()
    with tempfile.TemporaryDirectory() as models:
        os.environ["PEFT_MODELS"] = models
        words = ["-q", "-n", "0", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings"]
        code = pytest.main([str(ROWS), *words, *sys.argv[1:]], plugins=[report])
    print(report.summary())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
