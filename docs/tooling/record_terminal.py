"""Record commands in a real terminal as an animated SVG, such as the one in the README.

It runs each command in a pseudo-terminal, follows the screen with pyte, and writes the screens one after the
other with the times of the run. A browser plays them without a script, also inside an <img>; with "reduced
motion" it shows the last screen. It needs pyte: pip install pyte.

    python docs/tooling/record_terminal.py docs/images/sort.svg \
        "spikewise sort simulation/recording -o sorted" "spikewise evaluate simulation/truth sorted"
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import struct
import subprocess
import termios
import time
from dataclasses import dataclass
from fcntl import ioctl
from html import escape
from pathlib import Path

import pyte

COLUMNS, ROWS = 92, 26
CHARACTER, LINE, PAD, BAR = 8.4, 19, 16, 30
"""Size of a character and of a line, and the room around them and above them, in pixels."""
SHORTEST_S = 0.2
"""Screens that last shorter are left out."""
TYPING_S, READING_S = 0.9, 1.2
"""Time for a command that is typed, and for its last screen before the next one."""
LAST_S = 6.0
COLOURS = {
    "black": "#3b4252", "red": "#ff7b88", "green": "#8fd18a", "brown": "#e5c07b", "blue": "#7fb0f5",
    "magenta": "#d6a3f0", "cyan": "#6fd3d9", "white": "#d8dee9", "brightblack": "#7b8496",
    "default": "#d8dee9",
}  # fmt: skip
"""Colours of text by pyte's names; it names others by their hexadecimal value."""
STYLE = """
text { font: 14px ui-monospace, "DejaVu Sans Mono", Consolas, monospace; white-space: pre; fill: #d8dee9; }
.b { font-weight: 700; }
g.screen { visibility: hidden; animation: %.2fs step-end infinite; }
"""


@dataclass(frozen=True)
class Screen:
    """What a terminal shows from a time on: for each line the parts of one colour, as SVG."""

    start_s: float
    lines: tuple[str, ...]


def record(command: str, screen: pyte.Screen, start_s: float, speed: float) -> list[Screen]:
    """Run a command in a pseudo-terminal and return its screens; the first one shows the command alone.

    What is read or typed takes as long however much faster the run is shown.
    """
    stream = pyte.ByteStream(screen)
    stream.feed(b"\x1b[32m$\x1b[0m \x1b[1m" + command.encode() + b"\x1b[0m\r\n")
    screens = [Screen(start_s, drawn(screen))]
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    process = subprocess.Popen(
        command, shell=True, stdin=follower, stdout=follower, stderr=follower, env=environment, close_fds=True
    )
    os.close(follower)
    began = time.monotonic()
    while select.select([leader], [], [], 0.05)[0] or process.poll() is None:
        try:
            if select.select([leader], [], [], 0)[0]:
                stream.feed(os.read(leader, 65536))
        except OSError:  # how Linux tells that the other end is closed
            break
        now, lines = start_s + TYPING_S * speed + time.monotonic() - began, drawn(screen)
        if lines != screens[-1].lines and now - screens[-1].start_s >= SHORTEST_S * speed:
            screens.append(Screen(now, lines))
    os.close(leader)
    if process.wait():
        raise SystemExit(f"{command} ended with the exit code {process.returncode}")
    end_s = start_s + TYPING_S * speed + time.monotonic() - began
    return [*screens, Screen(max(end_s, screens[-1].start_s + SHORTEST_S * speed), drawn(screen))]


def drawn(screen: pyte.Screen) -> tuple[str, ...]:
    """Return the lines of a terminal as parts of SVG text, without what follows the last character."""
    return tuple(_line([screen.buffer[row][column] for column in range(COLUMNS)]) for row in range(ROWS))


def _line(characters: list) -> str:
    while characters and characters[-1].data == " ":
        characters.pop()
    parts, start = [], 0
    for end in range(1, len(characters) + 1):
        if end < len(characters) and _look(characters[end]) == _look(characters[start]):
            continue
        text = "".join(character.data for character in characters[start:end])
        if text.strip():
            colour, is_bold = _look(characters[start])
            fill = "" if colour == COLOURS["default"] else f' fill="{colour}"'
            bold = ' class="b"' if is_bold else ""
            parts.append(f'<tspan x="{PAD + start * CHARACTER:.1f}"{fill}{bold}>{escape(text)}</tspan>')
        start = end
    return "".join(parts)


def _look(character) -> tuple[str, bool]:
    colour = COLOURS.get(character.fg.replace("bright", ""), f"#{character.fg}")
    return COLOURS.get(character.fg, colour), character.bold


def animated(screens: list[Screen], end_s: float, title: str, note: str) -> str:
    """Return an SVG that shows the screens one after the other; lines that recur are written once."""
    width, height = 2 * PAD + COLUMNS * CHARACTER, BAR + 2 * PAD + ROWS * LINE
    names: dict[str, str] = {}
    groups, rules = [], []
    for index, (screen, following) in enumerate(zip(screens, [*screens[1:], None], strict=True)):
        uses = []
        for row, line in enumerate(screen.lines):
            if line:
                name = names.setdefault(line, f"l{len(names)}")
                uses.append(f'<use href="#{name}" y="{BAR + PAD + (row + 1) * LINE - 5}"/>')
        stop_s = end_s if following is None else following.start_s
        first, last = 100 * screen.start_s / end_s, 100 * stop_s / end_s
        hidden = f"0% {{ visibility: hidden; }} {first:.3f}% {{ visibility: visible; }} "
        ended = "" if following is None else f"{last:.3f}% {{ visibility: hidden; }} "
        rules.append(f"@keyframes k{index} {{ {hidden if index else '0% { visibility: visible; } '}{ended}}}")
        groups.append(f'<g class="screen" style="animation-name: k{index}">{"".join(uses)}</g>')
    lines = "".join(f'<text id="{name}">{line}</text>' for line, name in names.items())
    still = (
        "@media (prefers-reduced-motion: reduce) { g.screen { animation: none; } "
        "g.screen:last-of-type { visibility: visible; } }"
    )
    style = STYLE % end_s + "\n".join(rules) + still
    dots = "".join(
        f'<circle cx="{PAD + 6 + 18 * k}" cy="{BAR / 2 + 2}" r="5" fill="{colour}"/>'
        for k, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<style>{style}</style><rect width="100%" height="100%" rx="8" fill="#15181d"/>{dots}'
        f'<text x="{width / 2:.0f}" y="{BAR / 2 + 7}" text-anchor="middle" opacity="0.6">{note}</text>'
        f"<defs>{lines}</defs>{''.join(groups)}</svg>\n"
    )


def main() -> None:
    """Record the commands that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the .svg file")
    parser.add_argument("commands", nargs="+", help="commands of a shell, which are run one after the other")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster it is shown")
    asked = parser.parse_args()
    screen, screens = pyte.Screen(COLUMNS, ROWS), []
    for command in asked.commands:
        start_s = screens[-1].start_s + READING_S * asked.speed if screens else 0.0
        screens += record(command, screen, start_s, asked.speed)
    screens = [Screen(one.start_s / asked.speed, one.lines) for one in screens]
    end_s = screens[-1].start_s + LAST_S
    note = f"shown {asked.speed:g} times faster" if asked.speed != 1 else ""
    asked.output.write_text(animated(screens, end_s, "; ".join(asked.commands), note), encoding="utf-8")
    print(f"{len(screens)} screens, {end_s:.1f} s, {asked.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
