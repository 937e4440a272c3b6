"""Draws the README's two figures as SVG: `python -m docs.draw_figures`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
TEXT, IMAGE, JOINT, SELF = "#3b6fd4", "#e8862e", "#6b7280", "#f4c48d"
INK, FAINT, PAPER = "#1f2933", "#d5dae1", "#ffffff"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def text(x: float, y: float, words: str, size: int = 14, anchor: str = "middle", **style: str) -> str:
    more = "".join(f" {name.replace('_', '-')}='{value}'" for name, value in style.items())
    fill = "" if "fill" in style else f" fill='{INK}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' {FONT}{fill}{more}>{words}</text>"


def box(
    x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: int = 2
) -> str:
    return (
        f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='{radius}'"
        f" fill='{fill}' stroke='{stroke}'/>"
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{INK}' stroke-width='1.6' marker-end='url(#head)'/>"


def page(width: int, height: int, parts: list[str]) -> str:
    head = (
        "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7'"
        f" orient='auto'><path d='M0,0 L8,4 L0,8 z' fill='{INK}'/></marker></defs>"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        + head
        + box(0, 0, width, height, PAPER, radius=8)
        + "".join(parts)
        + "</svg>\n"
    )


# --- who attends to whom ----------------------------------------------------------------------------------------

TOKENS = ("Image", "1:", "i", "i", "what?", "cat", "Image", "2:", "i", "i", "same?", "no")
KINDS = "TTIITTTTIITT"
CELL, LEFT, TOP, GAP = 20, 62, 108, 66


def causal(query: int, key: int) -> str | None:
    return JOINT if key <= query else None


def cross(query: int, key: int) -> str | None:
    if KINDS[query] == "I":
        return SELF if key == query else None
    return JOINT if key <= query else None


def mmca(query: int, key: int) -> str | None:
    if KINDS[query] == "I":
        return SELF if key == query else None
    if key > query:
        return None
    return TEXT if KINDS[key] == "T" else IMAGE


def attention_grid(
    left: float, title: str, below: str, colour: Callable[[int, int], str | None]
) -> list[str]:
    size = CELL * len(TOKENS)
    parts = [text(left + size / 2, 34, title, 17, font_weight="bold")]
    for index, token in enumerate(TOKENS):
        fill = IMAGE if KINDS[index] == "I" else TEXT
        x, y = left + (index + 0.5) * CELL, TOP + (index + 0.68) * CELL
        parts.append(text(left - 6, y, token, 12, "end", fill=fill))
        parts.append(
            text(
                x + 4, TOP - 6, token, 12, "start", fill=fill, transform=f"rotate(-60 {x + 4:.1f} {TOP - 6})"
            )
        )
    for query in range(len(TOKENS)):
        for key in range(len(TOKENS)):
            fill = colour(query, key) or "#f3f5f8"
            parts.append(box(left + key * CELL + 1, TOP + query * CELL + 1, CELL - 2, CELL - 2, fill))
    parts.append(text(left + size / 2, TOP + size + 26, below, 13))
    return parts


def attention_figure() -> str:
    size = CELL * len(TOKENS)
    grids = (
        ("causal", "one softmax over everything before", causal),
        ("cross", "images see themselves; one softmax", cross),
        ("mmca", "images see themselves; two softmaxes, summed", mmca),
    )
    parts: list[str] = []
    for index, (title, below, colour) in enumerate(grids):
        parts += attention_grid(LEFT + index * (size + GAP), title, below, colour)
    width, legend = LEFT + 3 * size + 2 * GAP + 40, TOP + size + 58
    entries = (
        (JOINT, "joint softmax"),
        (TEXT, "softmax over text"),
        (IMAGE, "softmax over images"),
        (SELF, "itself only"),
    )
    for index, (fill, words) in enumerate(entries):
        x = LEFT + 60 + index * 205
        parts += [box(x, legend - 12, 15, 15, fill), text(x + 22, legend, words, 13, "start")]
    return page(width, legend + 24, parts)


# --- what is trained and what is frozen ---------------------------------------------------------------------------


def block(x: float, y: float, width: float, title: str, lines: tuple[str, ...], trained: bool) -> list[str]:
    height = 40 + 18 * len(lines)
    fill, stroke = ("#fdeede", IMAGE) if trained else ("#eef2f8", FAINT)
    parts = [
        box(x, y, width, height, fill, stroke, 8),
        text(x + width / 2, y + 25, title, 15, font_weight="bold"),
    ]
    return parts + [text(x + width / 2, y + 46 + 18 * n, line, 12.5) for n, line in enumerate(lines)]  # type: ignore[arg-type]


def architecture_figure() -> str:
    parts = [
        *block(30, 30, 200, "pictures", ("any number, at any turn",), False),
        *block(30, 130, 200, "visual encoder", ("CLIP, SigLIP", "last hidden state, frozen"), False),
        *block(30, 250, 200, "projection", ("linear | vit | perceiver", "trained"), True),
        *block(30, 370, 200, "conversation", ("### Image 1: ...", "### Question: ...", "### Answer:"), False),
        *block(310, 379, 200, "token embedding", ("LLaMA-2's own table", "trained"), True),
        *block(310, 250, 200, "interleave", ("image features take the", "places of their tokens"), False),
        *block(
            600, 196, 230, "decoder with MMCA",
            ("LLaMA-2 7B to 70B, frozen", "text reads text: one softmax",
             "text reads images: another", "images read themselves"),
            False,
        ),
        *block(600, 379, 230, "answer", ("token by token, streamed", "the cache is kept between rounds"), False),
        arrow(130, 88, 130, 128),
        arrow(130, 206, 130, 248),
        arrow(230, 288, 308, 288),
        arrow(230, 417, 308, 417),
        arrow(410, 379, 410, 328),
        arrow(510, 288, 598, 270),
        arrow(715, 308, 715, 377),
        box(575, 40, 16, 16, "#fdeede", IMAGE, 3),
        text(599, 53, "trained (LoRA too, where asked for)", 13, "start"),
        box(575, 68, 16, 16, "#eef2f8", FAINT, 3),
        text(599, 81, "frozen, or no weights at all", 13, "start"),
    ]  # fmt: skip
    return page(860, 490, parts)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "attention.svg").write_text(attention_figure())
    (IMAGES / "architecture.svg").write_text(architecture_figure())


if __name__ == "__main__":
    main()
