"""The app's page in Gradio: what is typed, what is shown, and which button asks what."""

from typing import TYPE_CHECKING, Any

from .downloads import remove
from .handlers import Handlers
from .messages import told
from .query_files import MOST_QUERIES
from .questions import LONGEST_PROMPT, Choices, Questions
from .shown import about_html


if TYPE_CHECKING:
    import gradio


AT_ONCE = 4  # questions that are answered at once: while one reads the index, another has the model
WAITING = 64  # questions that wait for their turn, before more are refused
_HOUR = 3600
_FILES = ("Page", "CSV", "JSON")


def blocks(questions: Questions) -> "gradio.Blocks":
    """The app of an index and its model."""
    import gradio as gr

    handlers = Handlers(questions)
    with gr.Blocks(
        title="Which training examples made the model say this?",
        analytics_enabled=False,
        delete_cache=(_HOUR, _HOUR),
    ) as app:
        gr.HTML(about_html(questions), padding=False, apply_default_css=False)
        with gr.Tab("Ask"):
            _ask_tab(handlers)
        with gr.Tab("Self-influence") as suspects:
            _suspects_tab(handlers, suspects)
        with gr.Tab("File"):
            _file_tab(handlers)
        with gr.Tab("Row"):
            _row_tab(handlers)
    app.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)
    return app


def _ask_tab(handlers: Handlers) -> None:
    import gradio as gr

    answerer = handlers.questions.answerer
    prompt = gr.Textbox(
        label="A text" if answerer.kind == "text" else "Prompt",
        lines=3,
        max_length=LONGEST_PROMPT,
        autofocus=True,
        elem_id="lorif-prompt",
    )
    if answerer.kind == "label":
        labels = [("the model's own", ""), *((name, name) for name in answerer.labels)]
        said: Any = gr.Dropdown(labels, value="", label="Label to attribute", elem_id="lorif-said")
    else:
        said = gr.Textbox(
            label="Answer to attribute",
            placeholder="empty: the model's own",
            lines=2,
            max_length=LONGEST_PROMPT,
            visible=answerer.kind == "completion",
            elem_id="lorif-said",
        )
    options = _options(handlers)
    ask = gr.Button("Ask", variant="primary", elem_id="lorif-ask")
    answer = gr.HTML(elem_id="lorif-answer", padding=False, apply_default_css=False)
    ranking = gr.HTML(elem_id="lorif-ranking", padding=False, apply_default_css=False)
    files, downloads = _files()
    asked = gr.State(None, time_to_live=_HOUR)
    columns = handlers.questions.columns
    with gr.Accordion("Groups: influence summed over all rows", open=False, visible=bool(columns)):
        column = gr.Dropdown(columns, value=columns[0] if columns else None, label="Column")
        sum_up = gr.Button("Sum up")
        groups = gr.HTML(elem_id="lorif-groups", padding=False, apply_default_css=False)
    gr.on(
        [ask.click, prompt.submit],
        told(handlers.ask),
        [prompt, said, *options, downloads],
        [answer, ranking, asked, downloads, *files, groups],
        api_name="ask",
        concurrency_id="model",
        concurrency_limit=AT_ONCE,
        show_progress="minimal",
    )
    sum_up.click(
        told(handlers.groups),
        [asked, column],
        groups,
        api_visibility="private",
        concurrency_id="model",
        show_progress="minimal",
    )


def _suspects_tab(handlers: Handlers, tab: Any) -> None:
    import gradio as gr

    page = gr.State(0)
    table = gr.HTML(elem_id="lorif-suspects", padding=False, apply_default_css=False)
    with gr.Row():
        before, after = gr.Button("Higher ranks"), gr.Button("Lower ranks")
    tab.select(told(handlers.suspects), page, [table, page], api_visibility="private")
    before.click(told(handlers.suspects_before), page, [table, page], api_visibility="private")
    after.click(told(handlers.suspects_after), page, [table, page], api_visibility="private")


def _file_tab(handlers: Handlers) -> None:
    import gradio as gr

    gr.HTML(
        "<p class=lorif-file>A .txt file with a prompt a line; a .jsonl or .csv with <code>prompt</code>, with "
        "<code>prompt</code> and <code>completion</code> (or <code>label</code>), or with <code>text</code>, which is "
        f"attributed as it is. At most {MOST_QUERIES}. Where no completion is given, the model answers.</p>",
        padding=False,
        apply_default_css=False,
    )
    file = gr.File(label="Queries", file_types=[".txt", ".jsonl", ".csv"], type="filepath", elem_id="lorif-file")
    options = _options(handlers)
    ask = gr.Button("Ask all", variant="primary", elem_id="lorif-ask-all")
    ranking = gr.HTML(elem_id="lorif-rankings", padding=False, apply_default_css=False)
    files, downloads = _files()
    ask.click(
        told(handlers.file),
        [file, *options, downloads],
        [ranking, downloads, *files],
        api_name="ask_file",
        concurrency_id="model",
        show_progress="minimal",
    )


def _row_tab(handlers: Handlers) -> None:
    import gradio as gr

    number = gr.Number(0, label="Row of the training set", precision=0, minimum=0, elem_id="lorif-row-number")
    show = gr.Button("Show", variant="primary", elem_id="lorif-row-show")
    row = gr.HTML(elem_id="lorif-row", padding=False, apply_default_css=False)
    gr.on([show.click, number.submit], told(handlers.row), number, row, api_name="row", show_progress="minimal")


def _options(handlers: Handlers) -> list[Any]:
    """Proponents, opponents, length of an answer, folding, shading, chat: in the order in which handlers take them."""
    import gradio as gr

    answerer, usual = handlers.questions.answerer, Choices()
    with gr.Accordion("Options", open=False):
        with gr.Row():
            top_k = gr.Slider(1, Choices.MOST, usual.top_k, step=1, label="Proponents")
            opponents = gr.Slider(0, Choices.MOST, usual.opponents, step=1, label="Opponents")
            length = gr.Slider(
                1,
                Choices.LONGEST,
                usual.max_new_tokens,
                step=1,
                label="Longest answer, in tokens",
                visible=answerer.kind == "completion",
            )
        with gr.Row():
            fold = gr.Checkbox(usual.fold_duplicates, label="Fold near-duplicates")
            shade = gr.Checkbox(usual.shade, label="Shade tokens by what they add")
            chat = gr.Checkbox(answerer.chats, label="The prompt is a chat's message", visible=answerer.chats)
    return [top_k, opponents, length, fold, shade, chat]


def _files() -> tuple[list[Any], Any]:
    """Buttons that download a result, hidden until there is one, and the state that holds its files."""
    import gradio as gr

    with gr.Row():
        buttons = [gr.DownloadButton(name, visible=False, size="sm") for name in _FILES]
    return buttons, gr.State(None, time_to_live=_HOUR, delete_callback=remove)
