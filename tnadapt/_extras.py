"""Imports of optional packages: where one is missing, a single error names the command that installs it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from traceback import walk_tb

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
        ExtraError: for a module of this extra that is not installed, or for one that these modules import. Other
            errors pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = _missing(error, MODULES[name])
        if isinstance(error, ExtraError) or not module:
            raise
        text = f'{where}: expected {module} to be installed, got no such module. Run: pip install "tnadapt[{name}]"'
        raise ExtraError(text, name=module) from None


def _missing(error: BaseException, modules: Collection[str]) -> str:
    """Return the missing module if it is one of these, or if one of these imported it; otherwise an empty text.

    A package may name what it misses only in the error that its own was raised for: jax without jaxlib does.
    """
    chain: list[BaseException] = [error]
    while not getattr(chain[-1], "name", None):
        before = chain[-1].__cause__ or chain[-1].__context__
        if before is None:
            return ""
        chain.append(before)
    missing: str = getattr(chain[-1], "name", "").partition(".")[0]
    importing = (frame.f_globals.get("__name__", "") for one in chain for frame, _ in walk_tb(one.__traceback__))
    return missing if any(name.partition(".")[0] in modules for name in (missing, *importing)) else ""
