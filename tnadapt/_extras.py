"""Imports of optional packages: where one is missing, a single error names the command that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from tnadapt._errors import ExtraError

__all__ = ["ExtraError", "extra"]

MODULES = {  # the extra -> the modules that it is installed for
    "torch": ("torch",),
    "jax": ("jax", "jaxlib", "optax"),
    "nnx": ("flax",),
    "peft": ("peft", "transformers", "accelerate"),
    "testing": ("hypothesis",),
    "completion": ("shtab",),
}


@contextmanager
def extra(name: str, where: str) -> Iterator[None]:
    """Run imports that need an extra of this package.

    Args:
        name: the extra, as in `pip install "tnadapt[name]"`.
        where: the module or the command that imports; it begins the message.

    Raises:
        ExtraError: for a module of this extra that is not installed. Other errors pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if isinstance(error, ExtraError) or module not in MODULES[name]:
            raise
        text = f'{where}: expected {module} to be installed, got no such module. Run: pip install "tnadapt[{name}]"'
        raise ExtraError(text, name=module) from None
