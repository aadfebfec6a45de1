r"""What stands between the signs of an expression: numbers, names, brackets, commands and functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from longshort.grading.tokens import Scanner, Token, Unread
from longshort.grading.trees import HALF, INFINITY, MINUS, Expr

ORDINALS = frozenset({"st", "nd", "rd", "th"})
ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FUNCTIONS = """sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh coth
ln log lg exp gcd lcm max min abs floor ceil sqrt"""
_MARKS = "vec hat bar overline overrightarrow tilde widehat underline angle triangle"
FUNCTIONS, MARKS = frozenset(_FUNCTIONS.split()), frozenset(_MARKS.split())
CALLED = frozenset({"f", "g", "h"})
OPENING = {"(": ")", "[": "]", "{": "}"}
CLOSING_SHAPE = {"⌊": ("⌋", "floor"), "⌈": ("⌉", "ceil")}
LONGEST_PRODUCT_OF_LETTERS = 3


class Atoms(Scanner):
    """Reads the factors of an expression; `Parser` reads the sums and products of them."""

    def __init__(self, tokens: Sequence[Token]):
        super().__init__(tokens)
        self.depth = self.bars = 0

    def sum(self) -> Expr:
        raise NotImplementedError

    def power(self) -> Expr:
        raise NotImplementedError

    def signed(self, read: Callable[[], Expr]) -> Expr:
        raise NotImplementedError

    def exponent(self) -> Expr:
        raise NotImplementedError

    def starts_factor(self, token: Token) -> bool:
        raise NotImplementedError

    def atom(self) -> Expr:
        token = self.take()
        if token.kind == "number":
            return self.mixed(token)
        if token.kind in ("name", "word"):
            self.position -= 1
            return self.named(token)
        if token.kind == "command":
            return self.command(token.text)
        if token.text in OPENING:
            return self.group(OPENING[token.text])
        if token.text in CLOSING_SHAPE:
            closing, name = CLOSING_SHAPE[token.text]
            return ("f", name, (self.group(closing),))
        if token.text == "|":
            self.bars += 1
            inner = self.group("|")
            self.bars -= 1
            return ("f", "abs", (inner,))
        if token.text == "∞":
            return INFINITY
        raise Unread(f"{token.text!r} is not expected")

    def group(self, closing: str) -> Expr:
        self.depth += 1
        bars, self.bars = self.bars, self.bars if closing == "|" else 0
        inner = self.sum()
        self.expect(closing)
        self.depth, self.bars = self.depth - 1, bars
        return inner

    def number(self, token: Token) -> Expr:
        if token.value is None:
            raise Unread(f"{token.text!r} is no number")
        return ("n", token.value) if token.places is None else ("d", token.value, token.places)

    def mixed(self, token: Token) -> Expr:
        r"""Return a number; a whole one before a fraction below 1 is a mixed number: `1\frac14`, `1 1/4`."""
        expr = self.number(token)
        follows = self.next
        if not token.text.isdigit() or follows is None:
            return expr
        if follows.kind == "command" and follows.text == "frac":
            before, kept = self.position, list(self.tokens)
            self.take()
            over, under = self.argument(), self.argument()
            if over[0] != "n" or under[0] != "n":
                self.position, self.tokens = before, kept
                return expr
        elif follows.kind == "number" and follows.gap and self.fraction_ahead():
            over = self.number(self.take())
            self.take()
            under = self.number(self.take())
        else:
            return expr
        if over[0] != "n" or under[0] != "n" or not 0 < over[1] < under[1]:
            raise Unread("neither a mixed number nor clearly a product")
        return ("n", expr[1] + over[1] / under[1])

    def fraction_ahead(self) -> bool:
        ahead = self.tokens[self.position : self.position + 3]
        return [token.kind for token in ahead] == ["number", "sign", "number"] and ahead[1].text == "/"

    def argument(self) -> Expr:
        r"""Return what TeX takes as an argument: a group in braces, or one digit, letter or command."""
        token = self.next
        if token is not None and token.kind == "number" and token.text.isdigit():
            return self.number(self.split())
        if token is not None and token.kind == "name":
            return self.named(self.split(), taken=True)
        if token is not None and (token.kind == "command" or token.text in ("{", "(", "∞")):
            return self.atom()
        raise Unread("an argument is missing")

    def named(self, token: Token, taken: bool = False) -> Expr:
        """Return what a run of letters stands for: a function, a constant, a name such as AB, or its first letter."""
        text = token.text
        if taken:
            return self.letter(text)
        if text in ZEROS:
            self.take()
            return ("n", Fraction(10 ** ZEROS[text]))
        if text in FUNCTIONS and token.kind == "name":
            self.take()
            return self.function(text)
        if len(text) > 1 and (token.kind == "word" or (text.isupper() and text.isascii())):
            if token.kind == "word" and not text.isupper():
                raise Unread(f"the word {text!r} is not a unit that is known")
            self.take()
            return self.letter(text)
        before = self.tokens[self.position - 1] if self.position else None
        behind_number = before is not None and before.kind == "number" and token.gap
        if len(text) > LONGEST_PRODUCT_OF_LETTERS - behind_number or (len(text) > 1 and not text.isascii()):
            for name in ("sin", "cos", "tan", "log"):
                if text.startswith(name) and len(text) == len(name) + 1:
                    self.split(len(name))
                    return self.function(name)
            raise Unread(f"the word {text!r} is not a unit that is known")
        return self.letter(self.split().text)

    def letter(self, text: str) -> Expr:
        if text in ("π", "e", "i"):
            if self.at("_"):
                raise Unread(f"{text} with an index")
            return ("c", text)
        name = text
        while self.at("'"):
            name += self.take().text
        if self.at("_"):
            self.take()
            name += "_" + self.index()
        if text in CALLED and self.at("("):
            self.take()
            return ("f", name, self.arguments(")"))
        return ("s", name)

    def index(self) -> str:
        if not self.at("{"):
            return self.take().text if self.next is not None and self.next.kind == "number" else self.split().text
        self.take()
        inner = ""
        while not self.at("}"):
            inner += self.take().text
        self.take()
        return inner

    def arguments(self, closing: str) -> tuple[Expr, ...]:
        self.depth += 1
        found = [self.sum()]
        while self.at(","):
            self.take()
            found.append(self.sum())
        self.expect(closing)
        self.depth -= 1
        return tuple(found)

    def command(self, name: str) -> Expr:
        if name == "frac":
            return ("*", (self.argument(), ("^", self.argument(), MINUS)))
        if name in ("binom", "dbinom", "tbinom"):
            return ("f", "binom", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in MARKS:
            return self.marked(name)
        raise Unread(f"\\{name} is not understood")

    def root(self) -> Expr:
        exponent = HALF
        if self.at("["):
            self.take()
            exponent = ("^", self.group("]"), MINUS)
        follows = self.next
        if follows is not None and follows.kind == "number" and len(follows.text) > 1:
            raise Unread("how far the root reaches is not clear")
        return ("^", self.argument(), exponent)

    def marked(self, mark: str) -> Expr:
        braces = self.at("{")
        if braces:
            self.take()
        inner = self.take()
        if inner.kind not in ("name", "word"):
            raise Unread(f"\\{mark} of no name")
        if braces:
            self.expect("}")
        return ("s", f"{mark} {inner.text}")

    def function(self, name: str) -> Expr:
        if name == "sqrt":
            return self.root()
        power, base = None, ("n", Fraction(10))
        while self.at("^", "_"):
            if self.take().text == "_":
                base = self.number(self.take()) if self.next and self.next.kind == "number" else self.argument()
            else:
                power = self.exponent()
        if power == MINUS:
            name, power = f"arc{name}", None
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}.get(name, name)
        if self.at("(") or self.at("{"):
            found = self.arguments(OPENING[self.take().text])
        else:
            found = (self.bare_argument(),)
        expr: Expr
        if name == "exp":
            expr = ("^", ("c", "e"), found[0])
        elif name == "log":
            expr = ("f", "log", (found[0], base))
        else:
            expr = ("f", name, found)
        if len(found) != 1 and name not in ("gcd", "lcm", "max", "min"):
            raise Unread(f"{name} of several arguments")
        if self.at("^") and power is None:
            self.take()
            power = self.exponent()
        return expr if power is None else ("^", expr, power)

    def bare_argument(self) -> Expr:
        r"""Return the argument of `\sin 2x`: the factors up to the next sign, bracket or function."""
        self.depth += 1
        factors = [self.signed(self.power)]
        while (token := self.next) is not None and token.kind in ("name", "command", "word"):
            if token.text in FUNCTIONS or not self.starts_factor(token):
                break
            factors.append(self.power())
        self.depth -= 1
        if self.at("/"):
            raise Unread("how far the function reaches is not clear")
        return factors[0] if len(factors) == 1 else ("*", tuple(factors))
