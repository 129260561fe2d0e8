"""What every test shares: no hub is asked for anything, and how hard hypothesis tries."""

import os

from hypothesis import Phase, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # set before any test imports transformers

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("laws", deadline=None, max_examples=1000)
settings.register_profile(
    "mutants", deadline=None, max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "dev")
