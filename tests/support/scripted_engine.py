"""An engine that replies with prepared texts."""

from longshort.miniature.tokenizer import build_tokenizer
from longshort.types import LONG, Completion, Sampling


class ScriptedEngine:
    """Replies with prepared texts, the last for ever, or with (text, stop); keeps the ids and the texts of its
    prompts."""

    def __init__(self, *replies: str | tuple[str, str], context: int = 100_000):
        self.tokenizer, self.context, self.replies = build_tokenizer(LONG), context, replies
        self.prompts: list[tuple[int, ...]] = []
        self.samplings: list[Sampling] = []

    async def generate(self, prompt_ids, sampling):
        reply = self.replies[min(len(self.prompts), len(self.replies) - 1)]
        text, stop = reply if isinstance(reply, tuple) else (reply, "eos")
        self.prompts.append(tuple(prompt_ids))
        self.samplings.append(sampling)
        return Completion(token_ids=(5,), logprobs=(-0.5,), text=text, stop=stop, version=0)

    def texts(self) -> list[str]:
        return [self.tokenizer.decode(prompt) for prompt in self.prompts]
