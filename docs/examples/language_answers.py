"""Answer questions with a model and the file of a trained adapter: what a program that uses the result has to do.

    python language_answers.py demo_out/language/lotr-seed0.safetensors --questions demo_out/language/questions.json

It prints a JSON list of answers for each file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import transformers
from language_training import answer
from reasoning import Question, encode
from sentences import DataError
from smollm import load_model, unpacked

import tnadapt
import tnadapt_torch


def main() -> int:
    """Return 0 for success, 2 for invalid input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files that the demo wrote")
    parser.add_argument("--questions", type=Path, required=True, metavar="JSON", help="a list of [question, answer]")
    parser.add_argument("--model", type=Path, help="folder of the model (default SmolLM2-135M)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, tokenizer = load_model(args.model or unpacked(), args.device)
        questions = [Question(*pair) for pair in json.loads(args.questions.read_text(encoding="utf-8"))]
        rows = encode(questions, tokenizer)
        for file in args.files:
            state = tnadapt_torch.load(model, file)
            print(json.dumps(answer(model, tokenizer, rows, f"{file.name} in a fresh process")), flush=True)
            state.detach()
    except (DataError, OSError, ValueError, tnadapt.TnadaptError) as error:
        print(f"language_answers.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
