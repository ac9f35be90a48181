"""What the app does at each button. What a user asks lives in that user's session: it comes as an argument and goes
back as a result, and nothing is kept here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import QueryError
from .downloads import remove, write_downloads
from .query_files import read_query_file
from .questions import Choices, Questions
from .shown import answer_html, groups_html, ranking_html, row_html, suspects_html


PAGE = 20  # rows of self-influence that are shown together

Updates = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """What a session asked last.

    Args:
        prompt (`str`): the prompt.
        said (`str` or `None`): the answer that was attributed; `None`: the prompt as it stands.
        chat (`bool`): whether these are messages of a chat.
    """

    prompt: str
    said: str | None
    chat: bool


class Handlers:
    """The events of the app.

    Args:
        questions (`Questions`): the index and its model.
    """

    def __init__(self, questions: Questions):
        self.questions = questions

    def ask(
        self,
        prompt: str,
        said: str,
        top_k: float,
        opponents: float,
        length: float,
        fold: bool,
        shade: bool,
        chat: bool,
        downloads: list[str] | None,
    ) -> Iterator[Updates]:
        """The model's answer, then the rows behind it.

        Yields what is shown: answer, ranking, what was asked, files, their buttons, groups.
        """
        remove(downloads)
        yield "", "", None, None, *_buttons(None), ""
        choices = Choices.within(top_k, opponents, length, fold, shade)
        answer = None
        attributed: str | None = said or None
        if attributed is None:
            answer = self.questions.answer(prompt, choices.max_new_tokens, chat)
            attributed = None if answer is None else answer.text
        shown = answer_html(answer)
        yield shown, "", None, None, *_buttons(None), ""
        result = self.questions.attribute(prompt, attributed, choices, chat)
        files = write_downloads(result)
        yield shown, ranking_html(result), Asked(prompt, attributed, chat), files, *_buttons(files), ""

    def groups(self, asked: Asked | None, column: str | None) -> str:
        """The influence of all rows on what was asked last, summed by a column."""
        if asked is None or column not in self.questions.columns:
            raise QueryError("There is nothing to sum up yet: ask first, then choose a column.")
        return groups_html(self.questions.influence_by(asked.prompt, asked.said, column, asked.chat))

    def file(
        self,
        path: str | None,
        top_k: float,
        opponents: float,
        length: float,
        fold: bool,
        shade: bool,
        chat: bool,
        downloads: list[str] | None,
    ) -> Iterator[Updates]:
        """The rows behind every query of a file: rankings, files, their buttons."""
        remove(downloads)
        yield "", None, *_buttons(None)
        if path is None:
            raise QueryError("There is no file yet: upload a .txt, .jsonl or .csv file of queries.")
        choices = Choices.within(top_k, opponents, length, fold, shade)
        result = self.questions.attribute_file(read_query_file(Path(path)), choices, chat)
        files = write_downloads(result)
        yield ranking_html(result), files, *_buttons(files)

    def row(self, number: float | None) -> str:
        """A row in full."""
        if number is None:
            raise QueryError(f"Which row? Type a number from 0 to {len(self.questions.index) - 1:,}.")
        return row_html(self.questions.row(int(number)))

    def suspects(self, page: int) -> Updates:
        """Rows by their self-influence, and the page that this is."""
        last = (len(self.questions.index) - 1) // PAGE
        page = min(max(page, 0), last)
        rows = self.questions.suspects(page, PAGE)
        return suspects_html(rows, len(self.questions.index)), page

    def suspects_before(self, page: int) -> Updates:
        """The page of higher ones."""
        return self.suspects(page - 1)

    def suspects_after(self, page: int) -> Updates:
        """The page of lower ones."""
        return self.suspects(page + 1)


def _buttons(files: list[str] | None) -> list[Any]:
    """The download buttons, with a result's files or hidden."""
    import gradio as gr

    if files is None:
        return [gr.update(value=None, visible=False)] * 3
    return [gr.update(value=path, visible=True) for path in files]
