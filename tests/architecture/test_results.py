"""The table of the demo in docs/evidence/results.md is that of its record."""

import json
import math
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence" / "results.md").read_text(encoding="utf-8").split("\n## ")[1]
RECORD = json.loads((ROOT / "results" / "demo" / "language.json").read_text(encoding="utf-8"))


def cells(row):
    """Return what the table says of one run."""
    tests = len(RECORD["expected"])
    right = row["correct"] / tests
    error = math.sqrt(right * (1 - right) / (tests - 1))
    return [
        row["method"],
        str(row["seed"]),
        str(row["rank"]),
        f"{row['trained']:,}",
        f"{row['file_size']:,}",
        f"{row['processor_seconds']:.0f}",
        f"{right:.2f} ± {error:.2f}",
        f"{row['loss']:.3f}",
    ]


def test_the_table_has_the_rows_of_the_record():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")
    ]
    assert rows[3:] == [cells(row) for row in RECORD["rows"][1:]]
    assert rows[2][-2:] == ["0.00 ± 0.00", f"{RECORD['rows'][0]['loss']:.3f}"]


def test_the_sentences_have_the_means_and_the_differences_of_the_record():
    text, trained = " ".join(PAGE.split()), RECORD["rows"][1:]
    names = ("LoRA", "LoTR", "MetaTT")
    right = {name: [row["correct"] / 100 for row in trained if row["method"] == name] for name in names}
    for name, found in right.items():
        error = statistics.stdev(found) / math.sqrt(len(found))
        assert f"{name} {statistics.mean(found):.3f} ± {error:.3f}" in text
    assert all(row["same"] == 100 for row in trained)
    merged, exported = (max(row[name] for row in trained) for name in ("merged", "exported"))
    assert f"largest difference of a logit is {merged:.1e}" in text
    assert f"as PEFT's LoRA, {exported:.1e}, of logits up to {max(row['logits'] for row in trained):.0f}" in text
    setting = RECORD["setting"]
    assert f"{setting['steps']} steps of {setting['batch']} questions" in text
    assert setting["learning_rate"] == 2**-6
    assert "the same learning rate, 2^-6," in text
    word, share = setting["frequent"]
    assert f"Always '{word}', the most frequent answer in training, is right for {share:.2f}" in text
