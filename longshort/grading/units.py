"""The closed list of units: what may stand behind (or, for money, before) a number without being part of it.

A word that is not on the list is never thrown away. To add one, put it on a line of MEASURES (one unit per line, its
spellings behind it) or among COUNTED (each is a unit of its own). Plurals in -s, -es and -ies need no entry.
"""

from __future__ import annotations

from functools import cache

MEASURES = """
nm nanometer nanometre | μm um micrometer micrometre micron | mm millimeter millimetre 毫米
cm centimeter centimetre 厘米 公分 | dm decimeter decimetre 分米 | m meter metre 米 | km kilometer kilometre 公里 千米
in inch inches | ft foot feet | yd yard | mi mile | mcg microgram | mg milligram | g gram gm 克
kg kilogram kilo 千克 公斤 | t ton tonne 吨 | lb lbs pound
oz ounce | ns nanosecond | μs microsecond | ms millisecond
s sec second 秒 | min minute mins 分钟 | h hr hour hrs 小时 | day 天 日
week wk 周 星期 | month 个月 | yr year 年 岁 | decade
century centuries | am AM | pm PM | l L liter litre 升 | ml mL milliliter millilitre 毫升 | gal gallon | qt quart
pt pint | cup | tbsp tablespoon | tsp teaspoon | acre | ha hectare | N newton | J joule | kJ kilojoule
kcal kilocalorie | cal calorie | W watt | kW kilowatt | V volt | kWh | A amp ampere | Hz hertz | kHz | MHz | GHz
Pa pascal | kPa | atm | bar | mol mole | K kelvin | eV | ohm Ω | rad radian | bit | byte | kB KB | MB | GB
deg degree ° 度 | % percent percentage pct | celsius | fahrenheit | knot | ¤ dollar usd 美元 | € euro eur | £ gbp
¥ yen jpy yuan 元 人民币 cny rmb | ₹ rupee rs inr | ₽ ruble rouble | ₩ won | cent ¢ penny pennies | nickel | dime
bushel | barrel | unit
"""
_COUNTED = """
acorn adult animal ant apple arrangement baby babies bag ball balloon banana basket batch bead bean bear bee
beer berry bicycle bike bill bird biscuit block boat bone book bottle bouquet bow box boy bracelet brick brownie
bug bus button cake candle candy can car card carrot case cat chair chapter chicken child children chip
chocolate choice circle class coin color colour combination computer container cookie cousin cow crate crayon
cupcake customer dancer daughter deer desk diagonal digit dish divisor dog doll donut door doughnut dress duck
edge egg element employee envelope episode equation eraser event face factor factory family farmer fish flight
floor flower fold frog friend fruit function game gene gift girl glass goal goat grade grape graph group guest
guitar gumball hamburger handshake hat head hen home horse hotdog house insect integer intersection item jar kid
kitten lamp lap leaf leaves leg lemon lesson letter level light line lion lizard lollipop machine magazine man
marble mark match meal meatball member men mice mouse movie multiple muffin necklace nickel night notebook novel
number nut onion operation orange order outcome oyster pack package page painting pancake parent participant
party passenger passer path peach pea peanut pear pebble pen pencil penguin people permutation person pet photo
picture pie piece pig pill pineapple pitcher pizza place plane plant plate player plum pocket point polygon
popsicle possibility post potato present problem puppy puzzle question quiz rabbit rectangle ribbon ring road
rock roll room rose round row sandwich scarf school seashell seat seed segment sequence serving session set
shape sheep sheet shelf shell shirt shoe shot side sister slice snack sock solution song spot spoon squirrel
stamp star station step stick sticker stone store story strawberry street string student subset swan sweet table
team tennis term test ticket tile time tire token tomato tooth teeth top towel town toy tree triangle trip truck
turn turtle value vehicle vertex vertices visitor vote walnut watch way wheel window wing woman women word
worker 个 只 本 支 条 张 辆 人 名 次 件 棵 块 种 位 头 枚 颗 粒
"""
COUNTED = _COUNTED.split()
PREFIXED = {"¤": "¤", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "₽": "₽", "₩": "₩", "¢": "cent"}
"""Signs of money that may stand before the number."""
LOOSE = frozenset("mshgLlNJWVKA")
"""Units of one letter: behind a number and a blank, outside of `\\text{}`, they may be a unit or a variable."""
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
RAISED = {"squared": 2, "cubed": 3}
SCALES = {"c": "celsius", "celsius": "celsius", "f": "fahrenheit", "fahrenheit": "fahrenheit"}
COMPOUND = {
    "mph": (("h", -1), ("mi", 1)),
    "kph": (("h", -1), ("km", 1)),
    "kmh": (("h", -1), ("km", 1)),
    "fps": (("ft", 1), ("s", -1)),
}
_RANKED = "grade term place floor day row step week month yr person number position student lap chapter page line"
RANKED = frozenset(_RANKED.split())
"""What may stand behind 12th: a 5th root or part is not 5."""
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "teeth": "tooth",
}
_IRREGULAR |= {"leaves": "leaf", "vertices": "vertex", "babies": "baby"}

Unit = tuple[tuple[str, int], ...]
"""The units of a quantity with their powers, sorted: km/h is (("h", -1), ("km", 1)); () is none."""


def _table() -> dict[str, str]:
    table = {noun: _IRREGULAR.get(noun, noun) for noun in COUNTED}
    for line in MEASURES.replace("\n", "|").split("|"):
        for spelling in line.split():
            table[spelling] = line.split()[0]
    return table


UNITS = _table()


def names_unit(word: str) -> bool:
    """Return whether a word is a unit, or several such as mph."""
    return word in COMPOUND or bool(unit_named(word))


@cache
def unit_named(word: str) -> str:
    """Return the unit that a word names, in the singular or plural; "" if it names none."""
    for form in (word, word.lower()) if len(word) > 2 else (word,):
        if form in UNITS:
            return UNITS[form]
        stems = (
            (form[:-3] + "y",) * form.endswith("ies")
            + (form[:-1],) * form.endswith("s")
            + (form[:-2],) * form.endswith("es")
        )
        for stem in stems:
            if len(stem) > 2 and stem in UNITS:
                return UNITS[stem]
    return ""
