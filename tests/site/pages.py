"""The built site: served on this machine, its pages by address, and the links, anchors and pictures in them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

SITE = Path(__file__).parents[2] / "site"


class Quiet(SimpleHTTPRequestHandler):
    """A server that writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine. Yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def addresses(folder: Path) -> list[str]:
    """Return the address of every page below the root, "" for the front page."""
    return sorted(path.parent.relative_to(folder).as_posix().strip(".") for path in folder.rglob("index.html"))


@dataclass
class Content(HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    links: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Start the parser."""
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, pictures and anchors."""
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and (link := given.get("href")):
            self.links.append(link)
        if tag in ("img", "script") and (source := given.get("src")):
            self.pictures.append(source)
        if tag == "link" and given.get("rel") in ("stylesheet", "icon") and (source := given.get("href")):
            self.pictures.append(source)


@functools.cache
def content_of(path: Path) -> Content:
    """Parse a page."""
    content = Content()
    content.feed(path.read_text(encoding="utf-8"))
    return content


def broken(folder: Path, address: str) -> list[str]:
    """Return the links, anchors, pictures and scripts of a page that lead nowhere. Other sites are not asked."""
    page = content_of(folder / address / "index.html")
    faults = []
    for link in dict.fromkeys([*page.links, *page.pictures]):
        parts = urlsplit(urljoin(f"http://site/{address}/" if address else "http://site/", link))
        if parts.netloc != "site" or parts.scheme != "http":
            continue
        target = folder / unquote(parts.path).lstrip("/")
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            faults.append(f"{link}: no such file")
        elif parts.fragment and unquote(parts.fragment) not in content_of(target).anchors:
            faults.append(f"{link}: no such anchor")
    return faults
