r"""Draws a terminal: reads what it shows, with its colours, and writes a PNG.

terminal.py CHROMIUM PICTURE [TITLE] < TEXT

TEXT is what `tmux capture-pane -ep` prints. docs/images/octo.png is of a session while `octopus` runs:

    echo 'PS1="\n\[\e[1;35m\]\$\[\e[0m\] " PATH="target/debug/examples:$PATH"' > target/rc
    tmux new-session -ds octo -x 88 -y 40 -e OCTOLLM_URL=URL 'bash --rcfile target/rc'
    tmux send-keys -t octo 'octo submit "a story about a crab"' Enter
    tmux send-keys -t octo 'octo list --limit 10' Enter
    tmux send-keys -t octo 'octo arms' Enter
    tmux capture-pane -ept octo | python3 scripts/terminal.py chromium docs/images/octo.png octo
"""

import base64
import html
import pathlib
import re
import sys
import tempfile

from browser import Browser, Page

COLORS = ("#6e7681", "#ff7b72", "#3fb950", "#e3b341", "#79c0ff", "#bc8cff", "#56d4dd", "#e6edf3")
SCALE = 1.2
STYLE = """
body { margin: 0; background: #0d1117; display: inline-block; }
main { margin: 18px; border: 1px solid #30363d; border-radius: 12px; background: #161b22; overflow: hidden; }
header { display: flex; gap: 8px; padding: 11px 16px; background: #1f2630; font: 13px "DejaVu Sans", sans-serif; color: #9da7b3; }
header i { width: 12px; height: 12px; border-radius: 50%; }
header b { flex: 1; margin-right: 60px; text-align: center; font-weight: 500; line-height: 12px; }
pre { margin: 0; padding: 14px 20px 18px; color: #e6edf3; font: 13.5px/1.45 "DejaVu Sans Mono", monospace; }
"""


def styled(codes, style):
    """The style after the codes of a sequence."""
    for code in codes:
        match code:
            case 0:
                style = {}
            case 1:
                style = style | {"font-weight": "700"}
            case 2:
                style = style | {"opacity": ".6"}
            case 39:
                style = {name: value for name, value in style.items() if name != "color"}
            case _ if 30 <= code % 60 <= 37:
                style = style | {"color": COLORS[code % 10]}
    return style


def marked(text):
    """Text with its sequences as HTML."""
    style, pieces = {}, []
    for index, piece in enumerate(re.split("\x1b\\[([0-9;]*)m", text)):
        if index % 2:
            style = styled([int(code or 0) for code in piece.split(";")], style)
        elif piece:
            css = ";".join(f"{name}:{value}" for name, value in style.items())
            pieces.append(f'<span style="{css}">{html.escape(piece)}</span>')
    return "".join(pieces)


def main(chromium, picture, title="terminal"):
    text = sys.stdin.read().strip("\n")
    dots = "".join(f'<i style="background:{color}"></i>' for color in ("#ff5f57", "#febc2e", "#28c840"))
    body = f"<main><header>{dots}<b>{html.escape(title)}</b></header><pre>{marked(text)}</pre></main>"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "terminal.html")
        file.write_text(f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{body}')
        browser = Browser(chromium, f"{folder}/profile")
        page = Page(browser, file.as_uri(), "", "document.querySelector('main')", 1200, 900, {})
        box = page.run("(({ width, height }) => ({ width, height }))(document.body.getBoundingClientRect())")
        clip = box | {"x": 0, "y": 0, "scale": SCALE}
        data = page.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        pathlib.Path(picture).write_bytes(base64.b64decode(data))
        browser.close()


main(*sys.argv[1:])
