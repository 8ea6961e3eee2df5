"""The figure of a hook layer: how one token is answered, and which tokens of a sequence the gate lets through."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

BASE, EDITED, INK = "#E69F00", "#0072B2", "#333333"  # Okabe and Ito's: apart under every common colour blindness
TOKENS = {"Ada": 0.4, " Love": 0.9, "lace": 3.4, " was": 0.7, " born": 1.1, " in": 0.6}  # a sketch, nothing measured
THRESHOLD = 2.2


def box(axes, x, y, text, colour, fill="white", width=3.0):
    corner, look = (x - width / 2, y - 0.42), {"fc": fill, "ec": colour, "lw": 1.6}
    axes.add_patch(FancyBboxPatch(corner, width, 0.84, boxstyle="round,pad=0.06", **look))
    axes.text(x, y, text, ha="center", va="center", color=INK)


def arrow(axes, start, end, colour=INK, line="-"):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4, "linestyle": line})


def draw_layer(axes):
    """One token through one hook layer."""
    axes.set(xlim=(-0.6, 9.4), ylim=(-0.8, 4.6))
    axes.axis("off")
    axes.text(0, 2, "key $k$", ha="center", va="center", color=INK)
    box(axes, 2.9, 3.6, "$W_0$, never written", BASE)
    box(axes, 2.9, 2.0, r"$W_h = W_0 + \Delta W$", EDITED)
    box(axes, 2.9, 0.3, "gate: is $k$ an edit's?", INK, "#F2F2F2")
    for y in (3.6, 2.0, 0.3):
        arrow(axes, (0.45, 2 + 0.12 * (y - 2)), (1.3, y))
    axes.plot([4.5, 6.0], [3.6, 2.9], color=BASE, lw=2.0, ls="--")
    axes.plot([4.5, 6.0], [2.0, 2.1], color=EDITED, lw=2.0)
    axes.plot([6.1, 7.0], [2.1, 2.5], color=INK, lw=2.4)  # the switch, on the hook layer's side
    for x, y in ((6.05, 2.9), (6.05, 2.1), (7.05, 2.5)):
        axes.plot(x, y, "o", ms=6, mfc="white", mec=INK, mew=1.4)
    axes.plot([4.5, 6.55], [0.3, 0.3], color=INK, lw=1.2, ls=":")
    arrow(axes, (6.55, 0.3), (6.55, 2.15), line=":")
    arrow(axes, (7.2, 2.5), (8.0, 2.5))
    axes.text(8.1, 2.5, "output", ha="left", va="center", color=INK)


def draw_sequence(axes):
    """What the gate measures, token by token."""
    open_at = [value >= THRESHOLD for value in TOKENS.values()]
    colours = [EDITED if opened else BASE for opened in open_at]
    bars = axes.bar(range(len(TOKENS)), TOKENS.values(), color=colours, width=0.62, edgecolor=INK, linewidth=0.6)
    for bar, opened in zip(bars, open_at, strict=True):
        bar.set_hatch(None if opened else "//")
        label = "$W_h$" if opened else "$W_0$"
        axes.text(bar.get_x() + bar.get_width() / 2, bar.get_height() + 0.08, label, ha="center", color=INK)
    axes.axhline(THRESHOLD, color=INK, lw=1.2, ls="--")
    axes.text(len(TOKENS) - 0.5, THRESHOLD + 0.1, "threshold", ha="right", color=INK)
    axes.set_xticks(range(len(TOKENS)), [token.replace(" ", "␣") for token in TOKENS])
    axes.set(yticks=[], ylim=(0, 4.2), ylabel="what the gate measures")
    axes.spines[["top", "right"]].set_visible(False)


figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.1), width_ratios=(1.35, 1), layout="constrained")
draw_layer(left)
draw_sequence(right)
