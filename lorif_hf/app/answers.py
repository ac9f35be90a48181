"""What the model itself says to a prompt, and the query that asks why it said so. The model is left as it was."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..errors import QueryError
from ..layers.modules import base_model, unwrap
from ..recording.model_lock import model_lock
from ..tasks import CausalLM, Seq2Seq, SequenceClassification
from ..tasks.base import known_task
from ..tasks.chat import ChatReader
from ..tasks.query_texts import decoded
from ..tasks.text import TextReader


# The likeliest token each time, and no other answers beside it. What is left out here is filled in from the model's
# own settings, so that everything that makes answers random or several is named.
_GREEDY = {
    **{"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0},
    **{"num_beams": 1, "num_return_sequences": 1, "early_stopping": False, "length_penalty": 1.0},
    **{"min_length": 0, "min_new_tokens": None, "max_length": None, "stop_strings": None, "use_cache": True},
    **{"return_dict_in_generate": False, "output_scores": False, "output_logits": False},
}

Kind = Literal["completion", "label", "text"]


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Args:
        text (`str`): the completion, or the name of the class.
        probability (`float` or `None`): of the class.
        finished (`bool`): whether the model ended there itself, rather than at the length that was asked for.
    """

    text: str
    probability: float | None = None
    finished: bool = True


class Answerer:
    """Asks one model, which may be in use by others at the same time.

    Args:
        model (`nn.Module`): the model that was indexed.
        tokenizer: the one that reads queries.

    Attributes:
        kind (`str`): what an answer is: a "completion" of a language model, the "label" of a classifier; "text": such
            a model gives none, and a text is attributed as it stands.
        chats (`bool`): whether the tokenizer has a chat template.
        labels (`list[str]`): the classes of a classifier.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        self.model = unwrap(model)
        self._reader = TextReader(self.model, tokenizer)
        task = known_task(self.model)
        self.kind: Kind = "text"
        if isinstance(task, (CausalLM, Seq2Seq)):
            self.kind = "completion"
        elif isinstance(task, SequenceClassification) and self._has_classes():
            self.kind = "label"
        self._names: dict[int, str] = getattr(base_model(self.model).config, "id2label", None) or {}
        self.labels = [str(name) for name in self._names.values()] if self.kind == "label" else []
        self._encodes_prompt = isinstance(task, Seq2Seq)
        self.chats = self.kind == "completion" and bool(getattr(self._reader.tokenizer, "chat_template", None))

    def answer(self, prompt: str, max_new_tokens: int = 32, chat: bool = False) -> Answer | None:
        """What the model says: the likeliest token each time, or the likeliest class.

        Args:
            prompt (`str`): what it is asked.
            max_new_tokens (`int`, *optional*, defaults to 32): how long a completion may be; cut to what the model
                takes together with its prompt.
            chat (`bool`, *optional*, defaults to `False`): whether the prompt is a user's message of a chat.

        Returns:
            `Answer`, or `None` of a model that gives none.

        Raises:
            [`~lorif_hf.errors.QueryError`]: the model cannot take the prompt, or says nothing to it.
        """
        if self.kind == "completion":
            return self._completion(prompt, max_new_tokens, chat)
        return self._label(prompt) if self.kind == "label" else None

    def query(self, prompt: str, said: str | None, chat: bool = False) -> Any:
        """The question why the model says that, as [`InfluenceIndex.attribute`] takes it."""
        if said is None:
            return prompt
        if chat:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        return (prompt, said)

    def _has_classes(self) -> bool:
        """Whether one class is right: neither a number is predicted, nor several classes at once."""
        config: Any = base_model(self.model).config
        return config.num_labels > 1 and config.problem_type in (None, "single_label_classification")

    def _completion(self, prompt: str, max_new_tokens: int, chat: bool) -> Answer:
        ids = self._prompt_tokens(prompt, chat)
        base = base_model(self.model)
        room = self._reader.limits.positions
        if room and not self._encodes_prompt:
            if len(ids) >= room:
                raise QueryError(
                    f"The prompt has {len(ids)} tokens and the model takes {room} in all, so that none is left for an "
                    "answer: shorten the prompt."
                )
            max_new_tokens = min(max_new_tokens, room - len(ids))
        config = self._greedy(base, max_new_tokens)
        with self._undisturbed() as device:
            tokens = torch.tensor([ids], device=device)
            output = base.generate(  # type: ignore[operator]
                input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=config
            )[0].tolist()
        said = output[1:] if self._encodes_prompt else output[len(ids) :]
        ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
        end = next((place for place, token in enumerate(said) if token in ends), len(said))
        text = self._continuation([] if self._encodes_prompt else ids, said[:end])
        if not text.strip():
            raise QueryError(
                "The model says nothing to this prompt: it ends at once. Ask otherwise, or write the answer to "
                "attribute."
            )
        return Answer(text, finished=end < len(said))

    def _prompt_tokens(self, prompt: str, chat: bool) -> list[int]:
        if chat:
            messages = [{"role": "user", "content": prompt}]
            ids = ChatReader(self._reader).tokens(messages, 0, add_generation_prompt=True)
        else:
            ids = self._reader.tokens(prompt, 0)
            end = getattr(self._reader.tokenizer, "eos_token_id", None)
            if not self._encodes_prompt and ids[-1:] == [end]:
                ids = ids[:-1]  # some tokenizers close each text, and a closed one has no continuation
        self._reader.limits.check({"input_ids": ids}, 0, labels_are_tokens=False)
        return ids

    def _continuation(self, start: list[int], said: list[int]) -> str:
        """The text of what was said, with the space before it that some tokenizers only show behind other tokens."""
        tokenizer = self._reader.tokenizer
        before, whole = decoded(start, tokenizer) if start else "", decoded(start + said, tokenizer)
        return whole[len(before) :] if whole.startswith(before) else decoded(said, tokenizer)

    def _greedy(self, base: Any, max_new_tokens: int) -> Any:
        """The model's own settings of generation, without what is random in them; a copy."""
        config = copy.deepcopy(base.generation_config)
        for name, value in {**_GREEDY, "max_new_tokens": max_new_tokens}.items():
            setattr(config, name, value)
        if config.eos_token_id is None:
            config.eos_token_id = getattr(self._reader.tokenizer, "eos_token_id", None)
        if config.pad_token_id is None:
            ends = config.eos_token_id
            config.pad_token_id = (ends[0] if isinstance(ends, list) else ends) if ends is not None else 0
        return config

    def _label(self, text: str) -> Answer:
        encoded = self._reader.encoded(text, 0)
        self._reader.limits.check(encoded, 0, labels_are_tokens=False)
        with self._undisturbed() as device:
            inputs = {name: torch.tensor([ids], device=device) for name, ids in encoded.items()}
            logits = self.model(**inputs).logits[0].float()
        best = int(logits.argmax())
        return Answer(str(self._names.get(best, best)), probability=float(logits.softmax(-1)[best]))

    @contextmanager
    def _undisturbed(self) -> Iterator[Any]:
        """The model alone, in evaluation mode, without gradients; gives its device. Afterwards every module is in the
        mode in which it was."""
        with model_lock(self.model), torch.no_grad(), ExitStack() as held:
            for module in self.model.modules():
                held.callback(setattr, module, "training", module.training)
            self.model.eval()
            yield next(self.model.parameters()).device
