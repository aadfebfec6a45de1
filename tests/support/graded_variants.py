r"""Golds made at random, each with answers that say the same and answers that do not, in the form of graded_pairs."""

from __future__ import annotations

import itertools
import random

from tests.support.graded_pairs import Rows

SEED, PER_KIND = 14, 30
DECORATIONS = [
    "${}$",
    "**{}**",
    r"\({}\)",
    "{}.",
    "{},",
    r"\displaystyle {}",
    r"{{{}}}",
    " {} ",
    r"\text{{The answer is }}{}",
]
UNITS = ["cm", "km", r"\text{ m}", "minutes", r"\text{ kg}", "apples", "dollars", r"\text{ cm}^2", "mph", "liters"]


def decorated(rng: random.Random, text: str) -> str:
    return rng.choice(DECORATIONS).format(text)


def integers(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        n = rng.choice([rng.randint(2, 99), rng.randint(1000, 999_999), rng.randint(10**20, 10**21)])
        k = rng.randint(2, 9)
        right = (
            f"{n}.0",
            f"+{n}",
            f"{n - k}+{k}",
            rf"\frac{{{n * k}}}{{{k}}}",
            f"{n * k}/{k}",
            f"{n:,}",
            f"{n:,}".replace(",", " "),
        )
        right += (f"x={n}", f"{n - k} + {k} = {n}", decorated(rng, str(n)), f"{n} {rng.choice(UNITS)}", f"-(-{n})")
        wrong = (
            str(n + 1),
            str(n - 1),
            f"-{n}",
            f"{n}0",
            f"{n}.5",
            f"{n}.0000001",
            f"{n}i",
            f"{n}x",
            rf"\frac{{1}}{{{n}}}",
        )
        wrong += (
            f"{n}, {k}",
            f"{n} or {n + 1}",
            f"({n},{k})",
            f"{n}^2",
            f"{n} {k}",
            f"{n} halves",
            f"{n}:1",
            f"{n + 1}={n}",
        )
        rows.append((str(n), right, wrong))
    return rows


def fractions(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        b = rng.choice([3, 7, 9, 11, 13, 17, 19])
        a, k = rng.choice([a for a in range(1, 40) if a % b]), rng.randint(2, 9)
        right = (
            f"{a}/{b}",
            rf"\dfrac{{{a * k}}}{{{b * k}}}",
            rf"\frac{{{a}}}{{{b}}}",
            rf"{a}\cdot\frac{{1}}{{{b}}}",
            f"{a}*{b}^{{-1}}",
        )
        right += (
            f"{a / b:.8f}",
            decorated(rng, rf"\tfrac{{{a}}}{{{b}}}"),
            rf"-\frac{{{-a}}}{{{b}}}",
            rf"\frac{{{a}}}{{{b}}}+0",
        )
        right += (rf"{a // b}\frac{{{a % b}}}{{{b}}}",) if a > b else ()
        wrong = (
            f"{b}/{a}",
            f"{a + 1}/{b}",
            f"{a}/{b + 1}",
            f"-{a}/{b}",
            f"{a / b:.3f}",
            f"{a}:{b}",
            f"{a},{b}",
            f"{a} {b}",
            f"{a}{b}",
        )
        wrong += (
            f"{a / b + 1e-6:.8f}",
            rf"\frac{{{a}}}{{{b}}}+10^{{-25}}",
            rf"\frac{{{a}}}{{{b}}}x",
            rf"\frac{{{a}}}{{{b}i}}",
        )
        rows.append((rf"\frac{{{a}}}{{{b}}}", right, wrong))
    return rows


def tiny_and_huge(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        n, m = rng.randint(20, 300), rng.randint(2, 9)
        gold = rf"\frac{{{m}}}{{10^{{{n}}}}}"
        right = (
            f"{m}e-{n}",
            rf"{m}\cdot10^{{-{n}}}",
            rf"{m} \times 10^{{-{n}}}",
            rf"\frac{{{2 * m}}}{{2\cdot10^{{{n}}}}}",
        )
        wrong = (
            "0",
            f"{m}e-{n + 1}",
            rf"{m}\cdot10^{{{n}}}",
            rf"\frac{{{m + 1}}}{{10^{{{n}}}}}",
            f"10^{{-{n}}}",
            "0.000000",
        )
        rows += [(gold, right, wrong)]
        rows += [
            (
                f"{n}!",
                (rf"{n}\cdot{n - 1}!", rf"\frac{{{n + 1}!}}{{{n + 1}}}"),
                (f"{n - 1}!", f"{n + 1}!", f"{n}!+1", f"{n}", "1"),
            )
        ]
    return rows


def roots(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        a, b = rng.randint(2, 9), rng.choice([2, 3, 5, 6, 7, 10, 11])
        right = (
            rf"{a} \sqrt{{{b}}}",
            f"{a}*sqrt({b})",
            rf"\sqrt{{{a * a * b}}}",
            f"{a}√{b}",
            rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}",
        )
        right += (rf"\sqrt{{{b}}}\cdot{a}", f"{a}*{b}^{{1/2}}", decorated(rng, rf"{a}\sqrt{{{b}}}"))
        wrong = (
            rf"\sqrt{{{a * b}}}",
            rf"{a + 1}\sqrt{{{b}}}",
            rf"{a}\sqrt{{{b + 1}}}",
            str(a * b),
            rf"{a}+\sqrt{{{b}}}",
            rf"-{a}\sqrt{{{b}}}",
        )
        wrong += (
            rf"\sqrt[{a}]{{{b}}}" if a != 2 else "2",
            rf"\pm{a}\sqrt{{{b}}}",
            rf"{a}\sqrt{{{b}}}i",
            rf"{a}\sqrt{{{b}}}+10^{{-40}}",
        )
        rows.append((rf"{a}\sqrt{{{b}}}", right, wrong))
    return rows


def polynomials(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND // 2):
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        x = rng.choice("xynt")
        gold = f"{x}^2+{a + b}{x}+{a * b}"
        right = (
            f"({x}+{a})({x}+{b})",
            f"{a * b}+{a + b}*{x}+{x}**2",
            f"{x}²+{a + b}{x}+{a * b}",
            rf"{x}({x}+{a + b})+{a * b}",
        )
        wrong = (
            f"({x}-{a})({x}+{b})",
            f"{x}^2+{a + b}{x}",
            f"{x}^2+{a + b}{x}+{a * b + 1}",
            f"({x}+{a}),({x}+{b})",
            f"z^2+{a + b}z+{a * b}",
        )
        wrong += (
            f"{x}^2+{a * b}{x}+{a + b}" if a * b != a + b else "1",
            f"{x}^3+{a + b}{x}+{a * b}",
            f"{gold}=0",
            f"{gold}>0",
            f"{x.upper()}^2",
        )
        rows.append((gold, right, wrong))
    return rows


def several(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        numbers = rng.sample(range(-30, 60), rng.randint(2, 4))
        texts = [str(n) for n in numbers]
        turned = texts[::-1]
        right = (
            ",".join(turned),
            "; ".join(texts),
            r"\{" + ", ".join(turned) + r"\}",
            " and ".join(texts),
            ", ".join(f"x={n}" for n in texts),
        )
        right += (r" \text{ or } ".join(turned), decorated(rng, ", ".join(texts)))
        wrong = (
            ", ".join(texts[1:]),
            texts[0],
            f"({', '.join(texts)})",
            ", ".join([*texts, "99"]),
            ", ".join(str(n + 1) for n in numbers),
        )
        wrong += (", ".join([texts[0], *texts]), str(sum(numbers)) + "00", ", ".join([texts[0]] * len(texts)))
        rows.append((", ".join(texts), right, wrong))
    return rows


def pairs_and_intervals(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        a, b = sorted(rng.sample(range(-20, 21), 2))
        right = (
            f"({a},{b})",
            rf"\left( {a} , {b} \right)",
            f"({a}.0, {b})",
            rf"({a}, \frac{{{2 * b}}}{{2}})",
            f"(x,y)=({a},{b})",
        )
        wrong = (
            f"({b}, {a})",
            f"[{a}, {b}]",
            f"({a}, {b}]",
            f"{a}, {b}",
            rf"\{{{a}, {b}\}}",
            f"({a}, {b + 1})",
            f"({a}, {b}, 0)",
            f"{a}{b}",
        )
        rows.append((f"({a}, {b})", right, wrong))
        right = (
            rf"{a} \le x < {b}",
            rf"\{{x \mid {a} \le x < {b}\}}",
            rf"{b} > x \ge {a}",
            rf"x \in [{a},{b})",
            f"{a}<=x<{b}",
        )
        wrong = (
            f"({a},{b})",
            f"[{a},{b}]",
            f"({a},{b}]",
            f"[{a},{b + 1})",
            rf"x \ge {a}",
            f"x < {b}",
            rf"{a} < x \le {b}",
            f"{a},{b}",
        )
        rows.append((f"[{a},{b})", right, wrong))
    return rows


def quantities(rng: random.Random) -> Rows:
    spelled = {
        "cm": "centimeters",
        "km": "kilometers",
        "kg": "kilograms",
        "min": "minutes",
        "h": "hours",
        "mL": "milliliters",
    }
    rows: Rows = []
    for short, other in itertools.product(spelled, spelled):
        n = rng.randint(2, 500)
        if short != other:
            right = (
                f"{n} {spelled[short]}",
                str(n),
                rf"{n}\text{{ {short}}}",
                rf"{n}\ \mathrm{{{short}}}",
                rf"\text{{{n} {short}}}",
            )
            wrong = (
                f"{n} {spelled[other]}",
                rf"{n}\text{{ {other}}}",
                f"{n + 1} {spelled[short]}",
                rf"{n}\text{{ {short}}}^2",
            )
            wrong += (
                rf"{n}\text{{ {short}/{other}}}",
                f"{n} {spelled[short]} {n} {spelled[other]}",
                f"{n} zorks",
                rf"{n}\%",
            )
            rows.append((rf"{n}\text{{ {short}}}", right, wrong))
    return rows


def letters(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND):
        chosen = rng.sample("ABCDEFGHKLMNPQRSTUVW", rng.randint(3, 5))
        run, mixed = "".join(chosen), "".join(chosen[1:] + chosen[:1])
        right = (rf"\text{{{run}}}", ", ".join(chosen), ",".join(chosen), decorated(rng, run), " ".join(chosen))
        wrong = (
            mixed,
            run[::-1],
            run[:-1],
            run + "Z",
            ", ".join(mixed),
            rf"\text{{{mixed}}}",
            "+".join(chosen),
            run[0],
        )
        rows.append((run, right, wrong))
    return rows


def matrices(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND // 2):
        a, b, c, d = rng.sample(range(-9, 30), 4)
        form = r"\begin{{{0}}} {1} & {2} \\ {3} & {4} \end{{{0}}}".format
        right = (
            form("bmatrix", a, b, c, d),
            form("pmatrix", f"{a}.0", b, c, rf"\frac{{{2 * d}}}{{2}}"),
            rf"A = {form('pmatrix', a, b, c, d)}",
        )
        wrong = (
            form("pmatrix", b, a, c, d),
            form("pmatrix", a, c, b, d),
            form("pmatrix", a, b, c, d + 1),
            f"{a}, {b}, {c}, {d}",
            str(a),
        )
        wrong += (form("vmatrix", a, b, c, d), rf"\begin{{pmatrix}} {a} & {b} & {c} & {d} \end{{pmatrix}}")
        rows.append((form("pmatrix", a, b, c, d), right, wrong))
    return rows


def equations(rng: random.Random) -> Rows:
    rows: Rows = []
    for _ in range(PER_KIND // 2):
        a, b, k = rng.randint(2, 9), rng.randint(1, 20), rng.randint(2, 5)
        right = (
            f"{a}x+{b}",
            f"y={b}+{a}x",
            f"y-{a}x-{b}=0",
            f"{k}y={k * a}x+{k * b}",
            f"y = {a} x + {b}",
            f"{a}x - y + {b} = 0",
        )
        wrong = (
            f"y={a}x-{b}",
            f"y={a + 1}x+{b}",
            f"x={a}y+{b}",
            f"{k}y={a}x+{b}",
            f"y>{a}x+{b}",
            f"y={a}x",
            f"y={b}",
            f"{a}x-{b}",
        )
        rows.append((f"y={a}x+{b}", right, wrong))
    return rows


NUMBERS = [integers, fractions, tiny_and_huge, roots]
MAKERS = [*NUMBERS, polynomials, several, pairs_and_intervals, quantities, letters, matrices, equations]


def variants() -> dict[str, Rows]:
    """The rows by the name of their maker; the same at every call."""
    return {maker.__name__: maker(random.Random(SEED)) for maker in MAKERS}
