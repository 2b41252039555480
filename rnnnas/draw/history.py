"""A search as moving pictures: the cell of every epoch, as an animated SVG or a GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from rnnnas.draw.layout import INK, MARGIN, TEXT_SIZE, TITLE_SIZE, arrange_all
from rnnnas.draw.text_svg_dot import svg_cell
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype

SECONDS = 0.7  # of an epoch
_REST = 3  # epochs' time that the last one stays longer

Frames = Sequence[tuple[str, Genotype]]  # what is written above a cell, and the cell


def as_animation(frames: Frames, seconds: float = SECONDS) -> str:
    """One SVG that shows a cell after the other, over and over.

    The last cell stands still for whoever asks for less motion, and where nothing moves, as on
    paper.

    Raises:
        UsageError: where there is no frame.
    """
    _check(frames)
    drawn = [arrange_all(genotype) for _, genotype in frames]
    head = TITLE_SIZE + 10
    width, height = max(d.width for d in drawn), max(d.height for d in drawn) + head
    slots = len(frames) - 1 + _REST
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="{TEXT_SIZE}" fill="{INK}">',
        f"<title>the cell of a search, {escape(frames[-1][0])}</title>",
        "<style>",
        f".f{{visibility:hidden;animation:one {slots * seconds:.2f}s step-end infinite}}"
        f".last{{visibility:visible;animation-name:end}}"
        f"@keyframes one{{0%{{visibility:visible}}{100 / slots:.4f}%{{visibility:hidden}}}}"
        f"@keyframes end{{0%{{visibility:visible}}"
        f"{100 * _REST / slots:.4f}%{{visibility:hidden}}}}",
        "@media(prefers-reduced-motion:reduce){.f{animation:none}}",
        "</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="12" fill="#ffffff"/>',
    ]
    for i, ((caption, _), drawing) in enumerate(zip(frames, drawn, strict=True)):
        kind = "f last" if i == len(frames) - 1 else "f"
        shift = (width - drawing.width) / 2, head + (height - head - drawing.height) / 2
        # Delays are negative, so that nothing waits for its turn at the start.
        delay = (i - slots) * seconds
        lines.append(f'<g class="{kind}" style="animation-delay:{delay:.2f}s">')
        lines.append(
            f'<text x="{MARGIN:.0f}" y="{MARGIN + TITLE_SIZE - 3:.0f}" font-size="{TITLE_SIZE}" '
            f'font-weight="bold">{escape(caption, quote=False)}</text>'
        )
        lines.append(f'<g transform="translate({shift[0]:.1f} {shift[1]:.1f})">')
        for cell in drawing.cells:
            lines += svg_cell(cell, caption=len(drawing.cells) > 1)
        lines.append("</g></g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def as_gif(frames: Frames, seconds: float = SECONDS) -> bytes:
    """The same as a GIF that runs for ever, for places that show no SVG.

    Raises:
        UsageError: where there is no frame.
    """
    from PIL import Image, ImageDraw, ImageFont

    from rnnnas.draw.images import cell_image

    _check(frames)
    images = [Image.fromarray(cell_image(genotype, scale=1)) for _, genotype in frames]
    head = TITLE_SIZE + 10
    size = max(i.width for i in images), max(i.height for i in images) + head
    font = ImageFont.load_default(size=TITLE_SIZE)
    pages = []
    for (caption, _), image in zip(frames, images, strict=True):
        page = Image.new("RGB", size, "#ffffff")
        place = (size[0] - image.width) // 2, head + (size[1] - head - image.height) // 2
        page.paste(image, place)
        ImageDraw.Draw(page).text((MARGIN, MARGIN / 2), caption, fill=INK, font=font)
        pages.append(page.quantize(64, dither=Image.Dither.NONE))
    once = round(1000 * seconds)
    times = [once] * (len(pages) - 1) + [_REST * once]
    data = io.BytesIO()
    pages[0].save(
        data, "GIF", save_all=True, append_images=pages[1:], duration=times, loop=0, disposal=1
    )
    return data.getvalue()


def _check(frames: Frames) -> None:
    if not frames:
        raise UsageError(
            "this run has logged no cell an epoch or rung: there is no history to show",
            "searches log them; trainings do not, nor did version 0.1",
        )
