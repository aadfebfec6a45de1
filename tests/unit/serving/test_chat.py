"""`longshort chat`: a dialogue on a terminal and in a pipe, and the command against a scripted endpoint."""

import io
import re

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from longshort import cli
from longshort.serving.chat import chat
from longshort.serving.command import read_key
from longshort.serving.replies import event_json
from longshort.serving.screen import AnswerOnly, Transcript
from longshort.team.conversation import Finished, Piece, TurnBegan, TurnEnded
from longshort.types import Completion, Episode, LongShortError, Problem, Turn
from tests.support.chat_server import Scripted, finished, serving, turn

DIALOGUE = [
    *turn("long", "</think>", "7^6: 9 3 ", "1 7 9", tokens=9),
    *turn("short", "</rethink>", "9+", "4", tokens=3),
    *turn("long", "</think>", "13", tokens=1),
    *turn("short", "</answer>", "\\boxed", "{3}", tokens=5),
    finished("\\boxed{3}", hand_backs=1),
]
PLAIN = """\
[long]
7^6: 9 3 1 7 9
[9 tokens]
[short]
9+4
[3 tokens, ↩ hands back: think again]
[long]
13
[1 token]
[short]
\\boxed{3}
[5 tokens]
[long 10 tokens, short 8 tokens, 1 hand-back, 0s]
"""


def shown(events, kind=Transcript) -> str:
    out = io.StringIO()
    show = kind(out)
    for event in events:
        show(event)
    return out.getvalue()


def on_screen(events, width=60) -> str:
    """All that is sent to a terminal of that width."""
    terminal = {"force_terminal": True, "color_system": "truecolor", "width": width, "height": 25}
    return shown(events, lambda out: Transcript(out, **terminal))


def without_colours(sent: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", sent)


def test_events_as_json():
    completion = Completion(token_ids=(5, 6), logprobs=(-0.1, 0.0), text="9", stop="</rethink>", version=0)
    said = Turn(role="short", prompt_ids=(1,), completion=completion)
    episode = Episode(problem=Problem(id="p", question="?", answer=""), turns=(said, said), stop="max_turns")
    events = [TurnBegan(role="short", number=1), Piece(role="short", text="9"), TurnEnded(turn=said)]
    assert list(map(event_json, events)) == [
        {"event": "turn_began", "role": "short", "turn": 1},
        {"event": "piece", "role": "short", "text": "9"},
        {"event": "turn_ended", "role": "short", "tokens": 2, "stop": "</rethink>"},
    ]
    assert event_json(Finished(episode=episode, text="", finish_reason="length")) == finished(
        "", stop="max_turns", hand_backs=2
    )


def test_plain_text_and_the_answer_alone():
    assert shown(DIALOGUE) == PLAIN
    assert shown(DIALOGUE, AnswerOnly) == "\\boxed{3}\n"
    cut = [*turn("long", "episode_length", "7 9", tokens=2), finished("", stop="episode_length")]
    limit = "[no answer: the dialogue reached its limit of tokens (--max-tokens)]\n"
    assert shown(cut) == f"[long]\n7 9\n[2 tokens]\n{limit}[long 2 tokens, 0 hand-backs, 0s]\n"
    assert shown(cut, AnswerOnly) == ""


def test_the_screen_shows_every_turn_and_frames_the_answer():
    lines = without_colours(on_screen(DIALOGUE, width=60)).splitlines()
    *dialogue, summary = PLAIN.splitlines()
    assert lines == [
        *dialogue,
        "╭─ answer · short ─────────────────────────────────────────╮",
        "│ \\boxed{3}                                                │",
        "╰──────────────────────────────────────────────────────────╯",
        summary,
    ]


def test_a_turn_is_on_the_screen_while_it_is_written_in_its_own_words():
    out = io.StringIO()
    show = Transcript(out, force_terminal=True, width=30)
    show({"event": "turn_began", "role": "long"})
    show({"event": "piece", "text": "[b]word:smile:[/b] " * 40})
    assert without_colours(out.getvalue()) == "[long]\n" + "[b]word:smile:[/b] " * 40, "neither wrapped nor marked up"
    show.broken("stopped")
    assert without_colours(out.getvalue()).splitlines()[-2:] == ["[not finished]", "[stopped]"]


def test_what_a_model_writes_cannot_steer_the_terminal():
    hostile = "a\x1b]0;title\x07\x1b[2Jb\r\x9bc\u202ed\te\x7f"
    for sent in (
        on_screen(
            [
                *turn("long", "</think>", hostile, tokens=1),
                *turn("short", "</answer>", hostile, tokens=1),
                finished(hostile),
            ]
        ),
    ):
        assert (
            "\x1b]0" not in sent
            and "\x1b[2J" not in sent
            and "\x07" not in sent
            and "\x9b" not in sent
            and "\u202e" not in sent
        )
    assert (
        shown([*turn("short", "</answer>", hostile, tokens=1), finished(hostile)], AnswerOnly)
        == "a␛]0;title␇␛[2Jb␍\ufffdc\ufffdd\te␡\n"
    )


@pytest.fixture
def endpoint():
    return Scripted()


@pytest.fixture
def address(endpoint):
    with serving(endpoint.app) as found:
        yield found


def test_one_question_through_a_pipe(endpoint, address, capsys, monkeypatch):
    endpoint.script = DIALOGUE
    monkeypatch.setattr("sys.stdin", io.StringIO("Last digit of 7^6+4?\n"))
    assert cli.main(["chat", address, "--seed", "7", "--max-turns", "2", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == PLAIN
    assert cli.main(["chat", f"{address}/v1/", "--once", "again?", "--answer-only", "--mode", "short"]) == 0
    assert capsys.readouterr().out == "\\boxed{3}\n"
    first, second = endpoint.requests
    assert first == {
        "model": "sum-team",
        "messages": [{"role": "user", "content": "Last digit of 7^6+4?\n"}],
        "stream": True,
        "stream_options": {"include_dialogue": True},
        "temperature": 0.0,
        "max_turns": 2,
        "seed": 7,
    }
    assert second["mode"] == "short" and second["seed"] >= 0 and "temperature" not in second


def test_no_answer_and_errors_are_told_by_the_exit_status(endpoint, address, capsys, monkeypatch):
    ask = ["chat", address, "--once", "?"]
    endpoint.script = [*turn("long", "context", "7", tokens=1), finished("", stop="context")]
    assert cli.main(ask) == 1 and "no answer: the dialogue no longer fits" in capsys.readouterr().out
    endpoint.script = [*turn("long", "</think>", "7", tokens=1), {"error": {"message": "the long engine died"}}]
    assert cli.main(ask) == 1 and capsys.readouterr().err == "longshort: the long engine died\n"
    endpoint.script = [*turn("long", "</think>", "7", tokens=1), "break"]
    assert cli.main(ask) == 1 and "broke off" in capsys.readouterr().err
    endpoint.script = {"message": "the queue is full"}
    assert cli.main(ask) == 1 and capsys.readouterr().err == f"longshort: {address}: the queue is full (status 429)\n"
    endpoint.key = "s3cret"
    assert cli.main(ask) == 1 and "no such key (status 401)" in capsys.readouterr().err
    endpoint.script = DIALOGUE
    monkeypatch.setenv("LONGSHORT_API_KEY", "s3cret")
    assert cli.main(ask) == 0 and endpoint.keys[-1] == "Bearer s3cret"
    assert cli.main([*ask, "seed=1"]) == 1 and "is a setting of local engines" in capsys.readouterr().err


class Team:
    """One on this machine, as far as the command knows it: it writes one piece and then waits for `rest`."""

    name = "here"

    def __init__(self, *rest):
        self.rest, self.asked, self.log = rest, [], []

    def from_pretrained(self, team, overrides):
        self.log.append((team, overrides))
        return self

    def __enter__(self):
        print("starting engines")
        return self

    def __exit__(self, *_):
        self.log.append("engines ended")

    def stream(self, question, **settings):
        self.asked.append((question, settings))
        try:
            yield TurnBegan(role="short", number=0)
            yield Piece(role="short", text="4")
            for each in self.rest:
                if isinstance(each, type):
                    raise each
                yield each
        finally:
            self.log.append("freed")


def test_a_team_on_this_machine(monkeypatch, capsys):
    completion = Completion(token_ids=(5,), logprobs=(0.0,), text="4", stop="</answer>", version=0)
    said = Turn(role="short", prompt_ids=(1,), completion=completion)
    end = Finished(
        episode=Episode(problem=Problem(id="p", question="?", answer=""), turns=(said,), stop="answered"),
        text="4",
        finish_reason="stop",
    )
    team = Team(TurnEnded(turn=said), end)
    monkeypatch.setattr("longshort.team.team.Team", team)
    assert (
        cli.main(
            [
                "chat",
                "runs/x/team",
                "long.engine.num_gpus=1",
                "--once",
                "2+2?",
                "--mode",
                "short",
                "--seed",
                "5",
                "--max-tokens",
                "9",
            ]
        )
        == 0
    )
    told_apart = capsys.readouterr()
    assert (
        told_apart.out == "[short]\n4\n[1 token]\n[short 1 token, 0 hand-backs, 0s]\n"
        and told_apart.err == "starting engines\n"
    )
    assert team.asked == [("2+2?", {"mode": "short", "max_tokens": 9, "seed": 5})]
    assert team.log == [("runs/x/team", ["long.engine.num_gpus=1"]), "freed", "engines ended"]
    for interruption, status in ((KeyboardInterrupt, 130), (LongShortError, 1)):
        team = Team(interruption)
        monkeypatch.setattr("longshort.team.team.Team", team)
        assert cli.main(["chat", "runs/x/team", "--once", "2+2?"]) == status and team.log[1:] == [
            "freed",
            "engines ended",
        ]
    ends = [f"[short]\n4\n[not finished]\n[{reason}]\n" for reason in ("stopped", "no answer")]
    assert capsys.readouterr().out == "".join(ends)


def test_nobody_there(capsys):
    assert cli.main(["chat", "http://127.0.0.1:9", "--once", "?"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert cli.main(["chat", "no/such/team", "--once", "?"]) == 1
    assert "no/such/team" in capsys.readouterr().err


def stdin_of(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def test_bytes_on_a_pipe_that_are_no_text_are_refused_in_one_sentence(endpoint, address, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", stdin_of(b"1+\xff?"))
    assert cli.main(["chat", address]) == 1
    refusal = "longshort: the question is not text: character 3 is not UTF-8; send UTF-8\n"
    assert capsys.readouterr().err == refusal
    assert endpoint.paths == [], "before anything is started or asked"


def test_bytes_that_python_itself_cannot_read_are_refused_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", stdin_of(b"1+\xff?"))
    with pytest.raises(LongShortError, match=r"the question is not text .*; send it in utf-8"):
        chat("http://127.0.0.1:9")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_asked_without_a_proxy(endpoint, address, monkeypatch, variable, host):
    endpoint.script = DIALOGUE
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert cli.main(["chat", address.replace("127.0.0.1", host), "--once", "?"]) == 0


def test_only_loopback_is_asked_without_a_proxy(endpoint, address, monkeypatch):
    endpoint.script = DIALOGUE
    monkeypatch.setenv("http_proxy", address)
    assert cli.main(["chat", "http://[::1]:9", "--once", "?"]) == 1
    assert endpoint.paths == []
    assert cli.main(["chat", "http://pair.example", "--once", "?"]) == 0
    assert endpoint.paths == ["/v1/models", "/v1/chat/completions"]


@pytest.mark.parametrize(
    ("proxy", "host", "says"),
    [
        ("socks5://127.0.0.1:9", "pair.example", "a proxy or certificate that the environment names cannot be used"),
        ("gopher://127.0.0.1:9", "pair.example", "a proxy or certificate that the environment names cannot be used"),
        ("gopher://127.0.0.1:9", "127.0.0.1:9", "does not answer"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_unless_it_is_not_needed(monkeypatch, capsys, proxy, host, says):
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert cli.main(["chat", f"http://{host}", "--once", "?"]) == 1
    assert says in capsys.readouterr().err


def test_an_address_that_is_no_url_is_refused(capsys):
    assert cli.main(["chat", "http://[::1", "--once", "?"]) == 1
    assert capsys.readouterr().err.startswith("longshort: http://[::1 is no URL (Invalid port")


def answering(content: str, kind: str = "application/json", models: str = '{"data": [{"id": "x"}]}') -> Starlette:
    """A server whose list of models is `models` and whose every answer is `content`."""
    routes = [
        Route("/v1/models", lambda _: Response(models, media_type="application/json")),
        Route("/v1/chat/completions", lambda _: Response(content, media_type=kind), methods=["POST"]),
    ]
    return Starlette(routes=routes)


@pytest.mark.parametrize("models", ["<html>", "[]", "{}", '{"data": []}', '{"data": [7]}'])
def test_a_server_that_lists_no_model_is_no_endpoint(models, capsys):
    with serving(answering("", models=models)) as address:
        assert cli.main(["chat", address, "--once", "?"]) == 1
    expected = f"longshort: {address} lists no model: this is not an endpoint of longshort serve\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("line", ["<html>", "data: {", "data: 7", 'data: {"error": "no"}', 'data: {"longshort": 7}'])
def test_a_stream_that_is_no_dialogue_is_refused(line, capsys):
    with serving(answering(f"{line}\n\ndata: [DONE]\n\n", "text/event-stream")) as address:
        assert cli.main(["chat", address, "--once", "?", "--answer-only"]) == 1
    message = capsys.readouterr().err
    assert "is no event of a dialogue: this is not an endpoint" in message or "broke off before" in message


@pytest.mark.parametrize("key", ["clé", "two words"])
def test_a_key_in_the_environment_is_one_ascii_word(key, monkeypatch):
    monkeypatch.setenv("LONGSHORT_API_KEY", key)
    with pytest.raises(LongShortError, match="LONGSHORT_API_KEY is no key") as caught:
        read_key(None)
    assert key not in str(caught.value)


def test_a_key_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSHORT_API_KEY", "other ")
    (tmp_path / "key").write_text("s3cret\n")
    assert read_key(str(tmp_path / "key")) == "s3cret" and read_key(None) == "other"
    (tmp_path / "key").write_text("two words")
    with pytest.raises(LongShortError, match="holds 2 words"):
        read_key(str(tmp_path / "key"))
    with pytest.raises(LongShortError, match="cannot be read as a key"):
        read_key(str(tmp_path / "none"))
