"""Put a class in front of a module's own class, and take it away: to code that asks, the class is the same as before.

The class of an instance is what `torch.compile` guards, what a copy or a pickle keeps, and what lies inside the user's
hooks, sharding and offloading. A forward hook is none of these.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__: list[str] = []


class Front:
    """The base of each class that is put in front. It has no __slots__: with them, a class could not be exchanged."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce to the module's own class, which can be found by its name, and the fronts to put on it again."""
        reduced = super().__reduce_ex__(protocol)
        cls = type(self)
        fronts, own = _taken_apart(cls)
        if isinstance(reduced, str) or not fronts:  # no front on top: the class that wraps this one is asked
            return reduced
        make, args, *rest = reduced
        return _remake, (fronts, make, tuple(own if each is cls else each for each in args)), *rest


_made: dict[tuple[type, type], type] = {}  # by the front and the class behind it: equal modules share one class


def put_front(module: nn.Module, front: type[Front]) -> None:
    """Put a class in front of a module's own class. Raise TypeError, with nothing changed, if the class forbids it."""
    _exchange(module, with_front(type(module), front))


def drop_front(module: nn.Module, front: type[Front]) -> bool:
    """Take a front away, wherever other libraries put it in the meantime. Return whether that was possible.

    A class that calls super() without arguments names itself, so it cannot be made anew over another base.
    """
    try:
        _exchange(module, _without(type(module), front))
    except Exception:  # whatever a class raises that forbids subclasses
        return False
    return True


def unshare(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: torch lets a deep copy share it, and changes it at a removal."""
    cls = type(module)
    if _is_parametrized(cls):
        _exchange(module, _over(cls, cls.__bases__))


def with_front(cls: type, front: type[Front]) -> type:
    """Return the class with a front before it, and below what parametrizes it, as if it had been there first."""
    if issubclass(cls, front):
        return cls
    if _is_parametrized(cls):
        return _over(cls, (with_front(cls.__bases__[0], front),))  # such a class belongs to one module
    if (front, cls) not in _made:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        make: Callable[..., type] = type(cls)
        _made[front, cls] = make(cls.__name__, (front, cls), names)
    return _made[front, cls]


def class_behind(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module behind the fronts on it."""
    return _taken_apart(type(module))[1]


def _is_parametrized(cls: type) -> bool:
    """Return whether this is a class that torch made for one parametrized module."""
    return cls.__module__ == parametrize.__name__ and len(cls.__bases__) == 1


def _without(cls: type, front: type[Front]) -> type:
    if not issubclass(cls, front):
        return cls
    if cls.__bases__[0] is front:
        return cls.__bases__[1]
    return _over(cls, tuple(_without(base, front) for base in cls.__bases__))


def _over(cls: type, bases: tuple[type, ...]) -> type:
    """Make a class anew over other bases. Raise TypeError if it calls super() without arguments."""
    space = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    for value in space.values():
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType) and "__class__" in function.__code__.co_freevars:
            raise TypeError(f"{cls.__qualname__} calls super()")
    return type(cls)(cls.__name__, bases, space)


def _taken_apart(cls: type) -> tuple[list[type[Front]], type]:
    """Return the fronts on top of a class, the outermost first, and the class behind them."""
    fronts = []
    while Front in cls.__bases__[0].__bases__:
        fronts.append(cls.__bases__[0])
        cls = cls.__bases__[1]
    return fronts, cls


def _remake(fronts: list[type[Front]], make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    module = make(*args)
    for front in reversed(fronts):
        object.__setattr__(module, "__class__", with_front(type(module), front))
    return module


def _exchange(module: nn.Module, cls: type) -> None:
    """Exchange the class. Methods bound to the old forward that are kept on the module, as by accelerate, follow."""
    old = type(module)
    if cls is old:
        return
    object.__setattr__(module, "__class__", cls)
    for name, value in list(vars(module).items()):
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is old.forward:
            vars(module)[name] = MethodType(cls.forward, module)  # type: ignore[attr-defined]
