"""How the site is built: `sphinx-build -W --keep-going -b html docs build/docs`."""

from __future__ import annotations

import enum
import html
import keyword
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from docutils import nodes
from sphinx.util.nodes import make_refnode
from sphinx.writers.html5 import HTML5Translator
from typing_extensions import override

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.domains.python import PythonDomain
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parent.parent

project = "graceful-close"
author = "the graceful-close authors"
version = release = metadata.version("graceful-close")
urls = dict(
    url.split(", ", 1) for url in metadata.metadata("graceful-close").get_all("Project-URL", [])
)

# The build fetches nothing: no intersphinx, no fonts, no third-party scripts.
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

exclude_patterns = ["_build", "measured"]  # which pages include

# Markdown: the same links work on GitHub, which makes an anchor of each heading.
myst_heading_anchors = 3

# Docstrings are written for help(): `like this` is code, and a link where a name matches.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# The event loops have a Reaper, too, so the name alone in an annotation has several targets.
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
maximum_signature_line_length = 66
napoleon_numpy_docstring = False
napoleon_use_ivar = False

html_theme = "furo"
html_title = f"graceful-close {release}"
html_baseurl = urls["Documentation"]
html_favicon = "_static/favicon.svg"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "source_repository": urls["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}
# Both have enough contrast, and colours for diffs.
pygments_style = "default"
pygments_dark_style = "github-dark"

# A prompt or an output is not copied with a command.
copybutton_exclude = ".linenos, .gp, .go"

# Pages whose text is a file of the repository.
REPOSITORY_PAGES = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
}

RFC = re.compile(r"\bRFC (\d+), section ([\d.]*\d)")


def mark_code(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Docstrings indent their code, as for help(). To Sphinx that would be a quotation."""
    in_section = in_code = False
    marked: list[str] = []
    for line in lines:
        if line and not line[0].isspace():
            in_section, in_code = re.fullmatch("[A-Z][a-z]+:", line) is not None, False
        elif line and not in_section and not in_code:
            in_code = True
            marked += [".. code-block:: python", ""]
        marked.append(line if in_code else RFC.sub(r":rfc:`\g<0> <\1#section-\2>`", line))
    lines[:] = marked


def keep_colons(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Have a first line of one word, where napoleon takes what is before a colon for a type."""
    if what in {"attribute", "property"}:
        first = 0
    elif "Returns:" in lines:
        first = lines.index("Returns:") + 1
    else:
        return
    word = re.match(r"(\s*)\S+ ", lines[first])
    if word is not None:
        lines[first : first + 1] = [word[0], word[1] + lines[first][word.end() :]]


# Type aliases of ours, by what they stand for.
ALIASES = {
    "Until": "Literal[CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED]",
    "OnTimeout": "Literal[LingerPolicy.BACKGROUND, LingerPolicy.ABORT]",
    "Factory": "Callable[[], asyncio.BaseProtocol]",
    "L": "asyncio.AbstractEventLoop",
}


def spell_out(
    app: Sphinx,
    what: str,
    name: str,
    it: object,
    options: object,
    arguments: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Write out the aliases in a signature, which exist for type checkers alone."""
    if isinstance(it, type) and issubclass(it, enum.Enum):
        return "", returns  # enums are not called
    if not arguments:
        return None
    aliases = dict(ALIASES)
    parts = name.split(".")
    module = next(
        sys.modules[path]
        for path in (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        if path in sys.modules
    )
    if module.__file__ is not None:
        source = Path(module.__file__).read_text(encoding="utf-8")
        stream = re.search(r"^    Stream = (\([^)]+\)|.+)$", source, re.MULTILINE)
        if stream is not None:
            aliases["Stream"] = aliases["S"] = " ".join(stream[1].strip("()").split())
    name_of_one = re.compile(rf"(?:graceful_close\.\w+\.)?\b({'|'.join(aliases)})\b")

    def without_aliases(text: str) -> str:
        return name_of_one.sub(lambda found: aliases[found[1]], text)

    return without_aliases(arguments), returns and without_aliases(returns)


def take_from_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace the text of a page by the file of the repository that it stands for."""
    file = REPOSITORY_PAGES.get(name)
    if file is not None:
        app.env.note_dependency(ROOT / file)
        text = (ROOT / file).read_text(encoding="utf-8")
        # As seen from this folder. A file that is a page here is that page.
        text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text).replace("](docs/", "](")
        for page, path in REPOSITORY_PAGES.items():
            text = text.replace(f"](../{path}", f"]({page}.md")
        source[0] = text


# Letters: how many of a column's longest text stand on one line, unless one word is longer; and how
# many a phone shows beside each other.
COLUMN = 20
PHONE = 52


def fit_narrow_screens(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Mark what a phone shows differently; site.css has the rules for it.

    A wide table becomes a block for each row, with the head of the column beside each cell. The
    lines of commands and messages wrap, except where they are columns.
    """
    for table in doctree.findall(nodes.table):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        text = [[cell.astext() for cell in row] for row in rows]
        width = sum(
            max(min(max(map(len, cells)), COLUMN), *map(len, " ".join(cells).split()))
            for cells in zip(*text, strict=True)
        )
        if len(rows[0]) > 2 and width > PHONE:
            table["classes"].append("stacks")
            for row in rows[1:]:
                for cell, label in zip(row, text[0], strict=True):
                    cell["label"] = label
    for block in doctree.findall(nodes.literal_block):
        columns = re.search(r"\S {2,}\S", block.astext())
        if block.get("language") == "sh" or (block.get("language") == "text" and not columns):
            block["classes"].append("wraps")


# Where a long name in `code` may continue on the next line; elsewhere it may not, nor after a hyphen.
LONG = 24
BREAKS = re.compile(r"(?<=[^\W_]{2}[/_.(=:])(?=[^\W_]{2})")


class Translator(HTML5Translator):
    """Sphinx's, with the labels of cells, and names that break between their parts."""

    @override
    def starttag(self, node: Any, tagname: str, *args: Any, **attributes: Any) -> str:
        if isinstance(node, nodes.entry) and "label" in node:
            attributes["data-label"] = node["label"]
        return super().starttag(node, tagname, *args, **attributes)

    @override
    def visit_Text(self, node: nodes.Text) -> None:
        already = len(self.body)
        super().visit_Text(node)
        for number in range(already, len(self.body)):
            word = re.fullmatch('<span class="pre">(.*)</span>', self.body[number])
            if word is not None and len(word[1]) > LONG:
                parts = BREAKS.sub('</span><wbr><span class="pre">', word[1])
                self.body[number] = f'<span class="pre">{parts}</span>'


def offer_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Make a download of each linked file outside this folder; folders are not linked."""
    source[0] = re.sub(r"\]\((\.\./[^)]*\.(?:md|toml))\)", r"](path:\1)", source[0])
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^).]*\)", r"\1", source[0])


def describe(
    app: Sphinx,
    page: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Tell search engines and chat programs what a page is about: its first paragraph."""
    if doctree is None:
        return
    paragraphs = doctree.findall(nodes.paragraph)
    words = " ".join(next((p.astext() for p in paragraphs), project).split())
    text = html.escape(words if len(words) <= 160 else words[:157].rsplit(" ", 1)[0] + " ...")
    title = html.escape(context["title"] or project)
    context["metatags"] += (
        f'<meta name="description" content="{text}">'
        f'<meta property="og:title" content="{title}">'
        f'<meta property="og:description" content="{text}">'
        '<meta property="og:type" content="website">'
    )
    if page == "404":  # it is shown for addresses in any folder
        context["metatags"] += f'<base href="{html_baseurl}">'


# Where the names of others are documented.
PYTHON = "https://docs.python.org/3/library/"
TRIO = "https://trio.readthedocs.io/en/stable/reference-io.html#"
TRIO_CORE = "https://trio.readthedocs.io/en/stable/reference-core.html#"
ANYIO = "https://anyio.readthedocs.io/en/stable/api.html#"
WAITRESS = "https://docs.pylonsproject.org/projects/waitress/en/stable/"
WERKZEUG = "https://werkzeug.palletsprojects.com/en/stable/serving/#"
ELSEWHERE = {
    **dict.fromkeys(
        ("host", "listen", "port", "sockets", "threads", "unix_socket"),
        f"{WAITRESS}arguments.html",
    ),
    "Future": f"{PYTHON}concurrent.futures.html#concurrent.futures.Future",
    "SSLContext.wrap_socket": f"{PYTHON}ssl.html#ssl.SSLContext.wrap_socket",
    "BufferedByteStream": f"{ANYIO}anyio.streams.buffered.BufferedByteStream",
    "StapledByteStream": f"{ANYIO}anyio.streams.stapled.StapledByteStream",
    "TLSStream": f"{ANYIO}anyio.streams.tls.TLSStream",
    "TracebackType": f"{PYTHON}types.html#types.TracebackType",
    "UNIXSocketStream": f"{ANYIO}anyio.abc.UNIXSocketStream",
    "WSGIApplication": f"{PYTHON}wsgiref.html#wsgiref.types.WSGIApplication",
    "anyio.ClosedResourceError": f"{ANYIO}anyio.ClosedResourceError",
    "anyio.abc.SocketStream": f"{ANYIO}anyio.abc.SocketStream",
    "asyncio.AbstractEventLoop": f"{PYTHON}asyncio-eventloop.html#asyncio.AbstractEventLoop",
    "asyncio.BaseProtocol": f"{PYTHON}asyncio-protocol.html#asyncio.BaseProtocol",
    "asyncio.Protocol": f"{PYTHON}asyncio-protocol.html#asyncio.Protocol",
    "asyncio.SelectorEventLoop": f"{PYTHON}asyncio-eventloop.html#asyncio.SelectorEventLoop",
    "asyncio.StreamWriter": f"{PYTHON}asyncio-stream.html#asyncio.StreamWriter",
    "asyncio.Transport": f"{PYTHON}asyncio-protocol.html#asyncio.Transport",
    "collections.abc.Awaitable": f"{PYTHON}collections.abc.html#collections.abc.Awaitable",
    "collections.abc.Callable": f"{PYTHON}collections.abc.html#collections.abc.Callable",
    "asyncio.events.AbstractEventLoop": (
        f"{PYTHON}asyncio-eventloop.html#asyncio.AbstractEventLoop"
    ),
    "close_request": f"{PYTHON}socketserver.html#socketserver.BaseServer",
    "https_compatible": f"{TRIO}trio.SSLStream",
    "max_children": f"{PYTHON}socketserver.html#socketserver.ForkingMixIn",
    "loop.add_signal_handler": f"{PYTHON}asyncio-eventloop.html#asyncio.loop.add_signal_handler",
    "socket.create_server": f"{PYTHON}socket.html#socket.create_server",
    "socket.socket": f"{PYTHON}socket.html#socket.socket",
    "socket.socket.accept": f"{PYTHON}socket.html#socket.socket.accept",
    "ssl_shutdown_timeout": f"{PYTHON}asyncio-eventloop.html#asyncio.loop.create_connection",
    "socket_timeout": "https://eventlet.readthedocs.io/en/latest/modules/wsgi.html",
    "ssl.SSLContext": f"{PYTHON}ssl.html#ssl.SSLContext",
    "standard_compatible": f"{ANYIO}anyio.streams.tls.TLSStream",
    "sslsocket_class": f"{PYTHON}ssl.html#ssl.SSLContext.sslsocket_class",
    "threading.excepthook": f"{PYTHON}threading.html#threading.excepthook",
    "trio.ClosedResourceError": f"{TRIO_CORE}trio.ClosedResourceError",
    "trio.SSLStream": f"{TRIO}trio.SSLStream",
    "trio.SocketStream": f"{TRIO}trio.SocketStream",
    "trio.StapledStream": f"{TRIO}trio.StapledStream",
    "trio.socket": f"{TRIO}module-trio.socket",
    "trio.socket.SocketType": f"{TRIO}trio.socket.SocketType",
    "uvloop.Loop": "https://uvloop.readthedocs.io/api/index.html#uvloop.Loop",
    "waitress.serve": f"{WAITRESS}api.html#waitress.serve",
    "werkzeug.serving.run_simple": f"{WERKZEUG}werkzeug.serving.run_simple",
    "wsgi.file_wrapper": "https://peps.python.org/pep-3333/#optional-platform-specific-file-handling",
    "wsgi.input_terminated": "https://wsgi.readthedocs.io/en/latest/proposals-2.0.html",
}


def link_elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.TextElement
) -> nodes.Node | None:
    """Link a name that this module does not define, or leave it as code where that is all it is."""
    target = node["reftarget"]
    address = ELSEWHERE.get(target)
    if address is not None:
        link = nodes.reference("", "", internal=False, refuri=address, reftitle=target)
        link += contents
        return link
    if node["reftype"] != "obj":
        return None
    # A name of the package, or an attribute of a result, wherever it is mentioned.
    python = cast("PythonDomain", env.get_domain("py"))
    for owner in ("graceful_close", "graceful_close.CloseResult"):
        found = python.objects.get(f"{owner}.{target}")
        if found is not None:
            return make_refnode(
                app.builder, node["refdoc"], found.docname, found.node_id, contents, target
            )
    if keyword.iskeyword(target):
        return contents
    is_a_name = re.fullmatch(r"[\w.]+", target) is not None
    return contents if not is_a_name or target in arguments_of(env) else None


def arguments_of(env: BuildEnvironment) -> set[str]:
    """The names of the arguments of everything that was read so far."""
    found: set[str] = vars(env).setdefault("graceful_close_arguments", set())
    return found


def remember_arguments(
    app: Sphinx,
    what: str,
    name: str,
    it: object,
    options: object,
    arguments: str | None,
    returns: str | None,
) -> None:
    """What a docstring calls `timeout` is an argument, and no page has a place for it."""
    arguments_of(app.env).update(re.findall(r"(\w+):", arguments or ""))


def setup(app: Sphinx) -> None:
    app.connect("source-read", take_from_repository, priority=400)
    app.connect("source-read", offer_files)
    app.connect("doctree-resolved", fit_narrow_screens)
    app.set_translator("html", Translator)
    app.connect("html-page-context", describe)
    app.connect("missing-reference", link_elsewhere)
    app.connect("autodoc-process-signature", remember_arguments, priority=400)
    app.connect("autodoc-process-signature", spell_out)
    # Before napoleon, which makes sections of what it finds.
    app.connect("autodoc-process-docstring", mark_code, priority=400)
    app.connect("autodoc-process-docstring", keep_colons, priority=401)
