r"""Tokens become an expression, or the text is refused. Nothing is skipped, nothing is guessed.

Ambiguous spellings are not read: `1/2x`, `x2`, `\sqrt23`, `\sin x/2`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from longshort.grading.atoms import CLOSING_SHAPE, FUNCTIONS, OPENING, ORDINALS, ZEROS, Atoms
from longshort.grading.tokens import Token, Unread
from longshort.grading.trees import DEGREE, MINUS, Expr, negated
from longshort.grading.units import names_unit

MOST_SIGNS = 2


class Parser(Atoms):
    """Reads expressions from a list of tokens. A unit ends an expression."""

    def __init__(self, tokens: Sequence[Token]):
        super().__init__(tokens)
        self.degrees = False

    def sum(self) -> Expr:
        terms = [self.signed(self.term)]
        while self.at("+", "-"):
            terms.append(self.signed(self.term))
        return terms[0] if len(terms) == 1 else ("+", tuple(terms))

    def signed(self, read: Callable[[], Expr]) -> Expr:
        signs = 0
        negative = False
        while self.at("+", "-"):
            signs += 1
            negative ^= self.take().text == "-"
        if signs > MOST_SIGNS:
            raise Unread("too many signs in a row")
        return negated(read()) if negative else read()

    def term(self) -> Expr:
        factors = [self.power()]
        divided = False
        while self.next is not None:
            if self.at("*"):
                self.take()
                factors.append(self.signed(self.power))
                divided = False
            elif self.at("/") and self.unit_below():
                break
            elif self.at("/"):
                self.take()
                factors.append(("^", self.signed(self.power), MINUS))
                divided = True
            elif self.next.kind == "command" and self.next.text in ("bmod", "mod"):
                self.take()
                return ("f", "mod", (factors[0] if len(factors) == 1 else ("*", tuple(factors)), self.power()))
            elif self.starts_factor(self.next):
                plain_fraction = [factor[0] for factor in factors] == ["n", "^"] and factors[1][1][0] == "n"
                if divided and not (plain_fraction and self.next.gap):
                    raise Unread("what is below the stroke is not clear; brackets would tell")
                factors.append(self.power())
            else:
                break
        return factors[0] if len(factors) == 1 else ("*", tuple(factors))

    def unit_below(self) -> bool:
        """Return whether the stroke is one of `$5/hour`."""
        below = self.tokens[self.position + 1 : self.position + 2]
        return not self.depth and bool(below) and below[0].kind in ("name", "word") and self.ends_before(below[0])

    def starts_factor(self, token: Token) -> bool:
        """Return whether a factor follows without a sign for "times". Units do not; a second number is refused."""
        text = token.text
        if token.kind == "number":
            if self.tokens[self.position - 1].text != "!":
                raise Unread("two numbers stand side by side")
            return True
        if token.kind in ("name", "word"):
            if text in ZEROS or text in ("i", "e"):
                return True
            return not (self.depth == 0 and self.ends_before(token)) and (token.kind == "name" or len(text) == 1)
        if token.kind == "command":
            return True
        if text == "{" and any(token.kind == "number" for token in self.tokens[self.position + 1 : self.position + 2]):
            raise Unread("two numbers stand side by side")
        return text in OPENING or text in CLOSING_SHAPE or text == "∞" or (text == "|" and not self.bars)

    def ends_before(self, token: Token) -> bool:
        """Return whether the expression ends before this name, which is a unit or an ordinal's ending."""
        if token.kind == "name" and (len(token.text) == 1 or token.text in FUNCTIONS) and token.text.isascii():
            called = token.text in FUNCTIONS and self.tokens[self.position + 1 : self.position + 2] == [
                Token("sign", "(")
            ]
            return token.text in FUNCTIONS and names_unit(token.text) and not called
        return names_unit(token.text) or token.text in ORDINALS or token.text in ("per", "square", "sq", "cubic", "cu")

    def power(self) -> Expr:
        base = self.postfix()
        if not self.at("^"):
            return base
        self.take()
        exponent = self.exponent()
        if self.at("^"):
            self.take()
            exponent = ("^", exponent, self.exponent())
        while self.at("^"):
            self.take()
            exponent = ("^", exponent, self.exponent())
        if self.at("!"):
            raise Unread("a factorial of a power needs brackets")
        return ("^", base, exponent)

    def exponent(self) -> Expr:
        if self.at("+", "-"):
            return self.signed(self.exponent)
        if self.next is not None and self.next.kind == "number":
            return self.number(self.take())
        return self.argument()

    def postfix(self) -> Expr:
        expr = self.atom()
        while True:
            if self.at("!"):
                self.take()
                if self.at("!"):
                    raise Unread("a double factorial")
                expr = ("f", "!", (expr,))
            elif self.at("%") and self.depth:
                self.take()
                expr = ("*", (expr, ("n", Fraction(1, 100))))
            elif self.at("°") and self.depth:
                self.take()
                expr = ("*", (expr, DEGREE))
            elif self.at("°") and self.position + 1 < len(self.tokens) and self.tokens[self.position + 1].text in "+-":
                self.take()
                self.degrees = True
            else:
                return expr
