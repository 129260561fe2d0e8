"""What every test shares: no hub is asked for anything, how hard hypothesis and the compiler of JAX try."""

import os

from hypothesis import Phase, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # set before any test imports transformers

PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"

# What a test of the JAX binding spends is the time of XLA's optimizer, on programs that run once on a few numbers: a
# quarter remains without it. `make laws` asks the same tests with the compiler as users have it.
if PROFILE != "laws":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1"
    ).strip()

settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)  # its budget is 15 minutes for all
settings.register_profile("laws", deadline=None, max_examples=1000)
settings.register_profile(
    "mutants", deadline=None, max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(PROFILE)
