r"""One plain spelling of an answer: LaTeX, Markdown and Unicode that mean the same become the same characters.

`plain(r"\left\{\dfrac{1}{2},\, x⁴\right\}")` is `⦃\frac{1}{2}, x^{4}⦄`. Only what cannot change the meaning is undone
here; `reading.py` reads what the text says. Signs of the plain spelling: `⦃ ⦄` braces of sets, `⟦ ⟧` around words that
stood in `\text{}`, `⦅ & ¦ ⦆` a matrix with its columns and rows, `¤` dollars, `° ∅ ∞ ± ∓ ≤ ≥ ≠ ≈ ∈ ∪ ∩ ∖ ⟨ ⟩ ⌊ ⌋ ⌈ ⌉`.
"""

from __future__ import annotations

import json
import re
import unicodedata

_GREEK = """
alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ vartheta θ iota ι kappa κ lambda λ mu μ nu
ν xi ξ pi π rho ρ sigma σ tau τ upsilon υ phi φ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi
Π Sigma Σ Phi Φ Psi Ψ Omega Ω
"""
_SIGNS = """
times * cdot * ast * div / le ≤ leq ≤ leqslant ≤ ge ≥ geq ≥ geqslant ≥ lt < gt > ne ≠ neq ≠ approx ≈ simeq ≈ in ∈ cup
∪ cap ∩ setminus ∖ backslash ∖ infty ∞ pm ± mp ∓ emptyset ∅ varnothing ∅ mid | vert | lvert | rvert | colon : langle ⟨
rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ circ ∘ degree ° degrees ° lbrace ⦃ rbrace ⦄ lbrack [ rbrack ] lparen (
rparen ) cr ¦ euro € pounds £ yen ¥ prime ' R ℝ
"""
_SILENT = """
left right middle displaystyle textstyle scriptstyle limits nolimits quad qquad big Big bigg Bigg bigl bigr Bigl Bigr
biggl biggr Biggl Biggr large Large LARGE huge Huge small therefore bf rm it sf tt mathstrut hfill relax nobreak
"""
GREEK_NAMES: dict[str, str] = dict(zip(_GREEK.split()[::2], _GREEK.split()[1::2], strict=True))
COMMANDS: dict[str, str] = GREEK_NAMES | dict(zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True))
SILENT = frozenset(_SILENT.split())
"""Commands that only change how an answer looks."""

_UNICODE = str.maketrans(
    dict.fromkeys("−–—‐‑‒﹣", "-")
    | dict.fromkeys("×·∙⋅∗⁎•", "*")
    | dict.fromkeys("÷⁄∕", "/")
    | dict.fromkeys("′’‘`´", "'")
    | dict.fromkeys("“”„", '"')
    | {"″": "''", "≦": "≤", "⩽": "≤", "≧": "≥", "⩾": "≥", "º": "°", "、": ",", "。": ".", "∣": "|", "≃": "≈", "∶": ":"}
    | {"ℝ": r"\mathbb{R}", "ϕ": "φ", "ϵ": "ε", "ϑ": "θ", "∆": "Δ", "Ω": "Ω", "µ": "μ", "〈": "⟨", "〉": "⟩"}
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ"
_SCRIPTS = re.compile(f"(?P<up>[{_RAISED}]+)|(?P<down>[{_LOWERED}]+)|(?P<over>(?:[0-9][\u0305\u0304])+)")
_WRAPPED = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|sc|normal)?|mbox|hbox|emph|math(?:rm|bf|it|sf|tt|bb|cal)|operatorname\*?|boldsymbol|bm|pmb)\s*"
    r"(?:\{((?:[^{}]|\^\{[^{}]*\})*)\}|(?<=mathbb)([A-Z]))"
)
_FUNCTION_NAMES = frozenset({"lcm", "gcd", "max", "min", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sqrt"})
_ANY_MATRIX = (
    r"\\begin\{(?:[pbB]|small)?(?:matrix|array)\}(?:\{[lcr| ]*\})?(.*?)\\end\{(?:[pbB]|small)?(?:matrix|array)\}"
)
_MATRIX = re.compile(_ANY_MATRIX, re.DOTALL)
_BRACKETED_MATRIX = re.compile(rf"(?:\\left\s*)?[(\[]\s*{_ANY_MATRIX}\s*(?:\\right\s*)?[)\]]", re.DOTALL)
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|align|gathered|gather|split|equation|math|displaymath|center)\*?\}")
_LEAD = re.compile(
    r"^⟦?\s*(?:(?:so|thus|therefore|hence|then|and)\b,?\s*)?(?:(?:the|my|our|your)\s+)?(?:(?:final|correct|exact|required)\s+)*"
    r"(?:answer|result|solution|value)s?\b(?:\s+of\s+[A-Za-z]\w*(?=\s))?"
    r"(?:\s+(?:is|are|equals)\b\s*[:=]?|\s*[:=]|(?=\s*⟧?\s*[\d¤-]))(?=.*\w)\s*⟧?",
    re.IGNORECASE | re.DOTALL,
)
_PHRASES = [
    (re.compile(pattern, re.IGNORECASE), sign)
    for pattern, sign in (
        (r"\b(?:is\s+)?(?:greater|more|larger)\s+than\s+or\s+equal\s+to\b|\b(?:is\s+)?at\s+least\b", "≥"),
        (r"\b(?:is\s+)?(?:less|smaller|fewer)\s+than\s+or\s+equal\s+to\b|\b(?:is\s+)?at\s+most\b", "≤"),
        (r"\bis\s+(?:greater|more|larger)\s+than\b|(?<=\w )(?:greater|larger)\s+than\b", ">"),
        (r"\bis\s+(?:less|smaller)\s+than\b", "<"),
        (r"\b(?:is\s+)?not\s+equal\s+to\b", "≠"),
        (r"\bis\s+equal\s+to\b|\bequals\b", "="),
        (r"^(?:the\s+set\s+of\s+)?all\s+real(?:\s+number)?s?\b(?:\s+(?:numbers|x))?", "ℝ"),
        (r"(?<=ℝ)\s*,?\s*(?:except|excluding|but|other\s+than)\b(?:\s+for\b)?\s*(.+)$", r" ∖ ⦃\1⦄"),
        (
            r"^(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+)?(?:solutions?|roots?)(?:\s+exists?)?$|^(?:the\s+)?empty\s+set$",
            "∅",
        ),
        (r"(?<![\w\\])(?:infinity|inf|oo)(?!\w)", "∞"),
    )
]


def plain(answer: str) -> str:
    r"""Return the answer in the plain spelling. Refuse long ones first: some patterns take quadratic time."""
    text = _listed(_latex(_undecorated(_ascii(answer))))
    text = re.sub(r"^\s*[=≈:]\s*|(?<![.\s])\s*(?:[,;:¦\s]|(?<!\.)\.(?!\.))+$", "", text).strip()
    if inner := re.fullmatch(r"""⟦([^⟦⟧]*)⟧|"([^"]*)"|\{([^{}]*)\}""", text):
        text = plain(inner[1] or inner[2] or inner[3] or "")
    if (lead := _LEAD.match(text)) and lead.end() < len(text):
        text = plain(text[lead.end() :])
    if " " in text or "inf" in text:
        for pattern, sign in _PHRASES:
            text = pattern.sub(sign, text) if "⟦" not in text else _in_words(pattern, sign, text)
    return re.sub(r"\s+", " ", text).strip()


def _in_words(pattern: re.Pattern[str], sign: str, text: str) -> str:
    r"""Apply a phrase to `\text{}` too: `x⟦ is at least ⟧3` is `x≥3`."""
    bare = re.sub(r"[⟦⟧]", " ", text)
    return pattern.sub(sign, bare) if pattern.search(bare) else text


def _ascii(text: str) -> str:
    """Spell Unicode's raised, lowered, overlined and fractional digits in LaTeX, and other look-alikes plainly."""
    if text.isascii():
        return text

    def script(match: re.Match[str]) -> str:
        if match["over"]:
            return r"\overline{" + re.sub(r"\D", "", match["over"]) + "}"
        inner = unicodedata.normalize("NFKC", match.group()).replace("−", "-")
        return ("^{" if match["up"] else "_{") + inner + "}"

    text = _SCRIPTS.sub(script, text)
    for char in {char for char in text if unicodedata.decomposition(char).startswith("<fraction>")}:
        over, _, under = unicodedata.normalize("NFKC", char).partition("⁄")
        text = text.replace(char, rf"\frac{{{over}}}{{{under}}}")
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE)).translate(_UNICODE)
    return "".join(char for char in text if unicodedata.category(char) != "Cf")


def _undecorated(text: str) -> str:
    """Take off Markdown's marks, the delimiters of formulas and layout environments."""
    text = re.sub(r"\\(?:text)?color\s*\{[^{}]*\}", "", text).strip()
    if boxed := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text, re.DOTALL):
        text = boxed[1].strip()
    if text.startswith("**") and text.count("**") % 2 == 0:
        text = text.replace("**", "")
    for mark in ("**", "__", "*", "_", "`"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    text = re.sub(r"\\\\(?=[A-Za-z]+\b\s*\{)", r"\\", text) if r"\\frac" in text or r"\\text" in text else text
    text = re.sub(r"\\\\(?:\[[^\]]*\])?|\\newline\b|\\cr\b", "¦", text)
    text = re.sub(r"¦\s*&?\s*(?==)|^¦+|¦+$", "", text)
    text = text.replace(r"\$", "¤")
    if text.count("$") % 2 == 0:
        text = text.replace("$", "")
    text = re.sub(r"\$(?=\s*-?[\d.])|(?<=\d)\$", "¤", text)
    return re.sub(r"\\[()\[\]]", " ", text).strip()


def _latex(text: str) -> str:
    """Replace commands by signs, words in `\\text{}` by ⟦words⟧, and spaces of every kind by blanks."""
    if _MATRIX.search(text):
        for pattern in (_BRACKETED_MATRIX, _MATRIX):
            text = pattern.sub(lambda match: f"⦅{match[1]}⦆", text)
    elif r"\begin" in text or "¦" in text:
        text = _ALIGNED.sub(" ", text).replace("¦", ";").replace("&", "")
    text = re.sub(r"\{,\}(?=\d{3})|,\s*\\!\s*(?=\d{3})", "", text)  # 1{,}000 and 1,\!000
    text = re.sub(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])", " ", text)
    text = re.sub(r"\\([{}%])", lambda match: {"{": "⦃", "}": "⦄", "%": "%"}[match[1]], text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)\s*\.", "", text)
    text = re.sub(r"\{([^{}]*)\\over\b([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\{([^{}]*)\\choose\b([^{}]*)\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"(?<![A-Za-z\\])m\s*(?=\\angle)", "", text)
    before = ""
    while before != text:
        before, text = text, _WRAPPED.sub(_words, text)
    text = re.sub(r"\\([A-Za-z]+)", _command, text)
    text = re.sub(
        r"(?<=\d)\s*(?:\^\s*)?\{?\s*⟦?\s*(st|nd|rd|th)\s*⟧?\s*\}?(?![A-Za-z}])", r"\1", text
    )  # 12^{\mathrm{th}}
    text = re.sub(r"\^\s*(?:∘|\{\s*∘\s*\})", "°", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-zπ]))", r"\\sqrt{\1\2}", text)
    text = re.sub(r"\b([apAP])\.\s?([mM])\.?(?!\w)", r"\1\2", text)
    text = re.sub(r"\bper\s+cent\b", "percent", text)
    text = re.sub(r"\b(sq|cu|ft|in|yd|lbs?|oz|hrs?|mins?|secs?|mi|gal)\.(?!\w)", r"\1", text)
    text = text.replace("**", "^")
    for pair, sign in (("<=", "≤"), (">=", "≥"), ("!=", "≠"), ("==", "=")):
        text = text.replace(pair, sign)
    return text


def _words(match: re.Match[str]) -> str:
    r"""Return what stands for `\text{…}`: bare digits, signs and styled letters, a function's command, or ⟦words⟧."""
    command, content = match[1], match[2] or match[3] or ""
    if command == "mathbb":
        return "ℝ" if content.strip() == "R" else content
    bare = re.sub(r"[⟦⟧]", "", content)
    behind = match.string[match.end() :].lstrip()[:1]
    if bare.strip() in _FUNCTION_NAMES and (behind in ("(", "{") or (behind and bare.strip() not in ("min", "max"))):
        return "\\" + bare.strip() + " "
    styled = command in ("mathbf", "mathit", "boldsymbol", "bm", "pmb", "textbf", "textit", "emph")
    if not re.search(r"[^\W\d_]", bare) or (styled and len(bare.strip()) == 1):
        return bare
    return f"⟦{bare}⟧"


def _command(match: re.Match[str]) -> str:
    name = match[1]
    return "" if name in SILENT else COMMANDS.get(name, match.group())


def _listed(text: str) -> str:
    """Spell a JSON or Python list of texts, such as `["1", "2"]`, as `1, 2`."""
    if re.match(r"""\[\s*["']""", text):
        try:
            items = json.loads(text.replace("'", '"'))
        except json.JSONDecodeError:
            return text
        return ", ".join(str(item) for item in items)
    return text
