"""The lab's SVG files: their number, contents and colours."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import pytest

from graceful_close_lab import files, lost_reply
from graceful_close_lab.picture import picture
from graceful_close_lab.tables import Column, Table, Words
from graceful_close_lab.timeline import Kind, Side, Timeline
from lab_program import THE_LAB, exits, run

pytest.importorskip("rich")

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab") / "made" / "by it"


@pytest.fixture(scope="module")
def drawn(folder: Path) -> CompletedProcess[str]:
    names = "linger-abort,reply-close,reply-graceful-close,platform"
    return run(*THE_LAB, "--only", names, "--svg", str(folder), "--json")


def texts(drawing: str) -> list[str]:
    """Return the texts of a drawing, in order; ParseError if it is not XML."""
    printed = [
        "".join(text.itertext()).replace("\xa0", " ").strip()
        for text in ElementTree.fromstring(drawing).iter(f"{SVG}text")
    ]
    return [text for text in printed if text]


def test_each_experiment_and_each_table_has_a_file(
    drawn: CompletedProcess[str], folder: Path
) -> None:
    assert drawn.returncode == 0
    names = [
        "linger-abort",
        "reply-close",
        "reply-graceful-close",
        "reply",
        "linger",
        "platform",
    ]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name}.svg" for name in names
    )
    printed = [line for line in drawn.stderr.splitlines() if line.startswith("wrote ")]
    assert printed == [f"wrote {folder / name}.svg" for name in names]


def test_stdout_has_only_the_json(drawn: CompletedProcess[str]) -> None:
    assert json.loads(drawn.stdout)["ok"] is True


def test_every_file_is_an_svg_that_loads_nothing(
    drawn: CompletedProcess[str], folder: Path
) -> None:
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert root.get("aria-label")
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace(
            "http.client", ""
        )
        assert not {"url(h", "@import", "<image", "<script"} & set(re.findall(r"\S{5}", text))


def rules(style: str) -> dict[str, str]:
    """Return the fill colours of a style, by selector."""
    return {
        selector.strip(): colour[1]
        for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style)
        if (colour := re.search(r"fill: (#\w{6})", body))
        for selector in selectors.split(",")
    }


def test_every_file_has_colours_for_light_and_dark_themes(
    drawn: CompletedProcess[str], folder: Path
) -> None:
    def brightness(colour: str) -> int:
        return sum(bytes.fromhex(colour.removeprefix("#")))

    for file in folder.iterdir():
        style = ElementTree.parse(file).findtext(f"{SVG}style")
        assert style is not None
        light, dark = map(rules, style.split("@media (prefers-color-scheme: dark)"))
        assert brightness(light[".ground"]) > 700
        assert brightness(dark[".ground"]) < 100
        assert light.keys() - {".ground", ".event"} >= {*dark} - {".ground", ".event"}
        letters = [each for each in light if each in ("text", ".time") or "-r" in each]
        assert letters
        for each in letters:
            assert brightness(light[".ground"]) - brightness(light[each]) > 250, (file, each)
            assert brightness(dark[each]) - brightness(dark[".ground"]) > 250, (file, each)


def test_the_picture_of_the_lost_reply_shows_the_reset(
    drawn: CompletedProcess[str], folder: Path
) -> None:
    printed = texts((folder / "reply-close.svg").read_text(encoding="utf-8"))
    assert printed[:3] == ["unread input: close()", "server", "client"]
    assert {"RST", "send(reply)", "close()", "the head"} <= set(printed)
    assert "A cross: the receiving program never saw it." in printed
    printed = texts((folder / "reply-graceful-close.svg").read_text(encoding="utf-8"))
    assert printed.count("FIN") == 2
    assert "RST" not in printed
    assert any(text.startswith("peer closed, ") for text in printed)


def test_the_table_as_svg_has_the_same_text_as_on_the_screen(
    drawn: CompletedProcess[str], folder: Path
) -> None:
    printed = texts((folder / "reply.svg").read_text(encoding="utf-8"))
    assert printed[0] == "Unread input: the lost reply"
    assert printed[printed.index("close()") + 1 :][0] == "0 of 20"
    assert printed[printed.index("graceful_close") + 1 :][0] == "20 of 20"


def test_no_two_labels_overlap() -> None:
    timeline = Timeline()
    now = timeline.add_event(Side.SERVER, "all at the same time")
    for text in ("one", "two", "three"):
        timeline.add_packet(Side.SERVER, Kind.DATA, text, now, now)
    root = ElementTree.fromstring(picture("labels", timeline.exchange()))
    places = [(text.get("x"), text.get("y")) for text in root.iter(f"{SVG}text")]
    assert len(set(places)) == len(places)


def test_texts_are_escaped_for_xml() -> None:
    timeline = Timeline()
    now = timeline.add_event(Side.SERVER, "<&>\"'")
    timeline.add_packet(Side.SERVER, Kind.DATA, "</svg>", now, None)
    assert {"<&>\"'", "</svg>", "a < b & c"} <= set(
        texts(picture("a < b & c", timeline.exchange()))
    )
    table = Table("t", "{a} < b & c", "&amp;", (Column("<x>"),), [(Words("{0}"),)])
    assert texts(files.table_picture(table)) == ["{a} < b & c", "&amp;", "<x>", "---", "{0}"]


def test_a_folder_that_cannot_be_made_is_reported_before_any_experiment(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    errors = exits(2, "--svg", str(tmp_path / "file"))
    assert "argument --svg: " in errors
    assert "[ 1/13]" not in errors


def test_pictures_without_rich_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    errors = exits(2, "--svg", str(tmp_path / "drawn"))
    assert "needs rich: pip install 'graceful-close[lab]'" in errors
    assert not (tmp_path / "drawn").exists()


def test_the_text_output_names_the_files(tmp_path: Path) -> None:
    output = exits(0, "--only", "linger-abort", "--svg", str(tmp_path))
    assert output.endswith(
        f"\n\nwrote {tmp_path / 'linger-abort.svg'}\nwrote {tmp_path / 'linger.svg'}\n"
    )


def test_a_try_that_ends_early_can_be_drawn() -> None:
    replies = lost_reply.run(lost_reply.WAYS[0], tries=1)
    assert texts(picture(replies.way, replies.exchange))
