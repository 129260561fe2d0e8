"""Where the modules of a host stand, read from their paths."""

from collections.abc import Mapping

from tnadapt._hosts.site import Site

__all__ = ["sites_of"]


def sites_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """The sites of weights of these shapes, by the paths of their modules; an out axis comes first.

    The layer is the first number in a path, the kind what follows that number. Where the modules lie in several stacks
    (an encoder and a decoder), the kind begins with the stack's path. A module outside of any stack has layer 0 and its
    path as kind.
    """
    places = {path: _place(path) for path in shapes}
    several = len({stack for stack, layer, _ in places.values() if layer is not None}) > 1
    sites = []
    for path, (stack, layer, inner) in places.items():
        kind = f"{stack}.{inner}" if several and layer is not None and stack else inner
        sites.append(Site(path, shapes[path], {"layer": layer or 0, "kind": kind}))
    return tuple(sites)


def _place(path: str) -> tuple[str, int | None, str]:
    words = path.split(".")
    for place, word in enumerate(words):
        if word.isdecimal():
            stack, inner = ".".join(words[:place]), ".".join(words[place + 1 :])
            return stack, int(word), inner or stack or "linear"
    return "", None, path
