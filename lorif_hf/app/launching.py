"""From names to a running app."""

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import AppError
from ..querying.loading import load_model
from .query_files import MOST_BYTES
from .questions import Questions


if TYPE_CHECKING:
    import gradio

    from ..index import InfluenceIndex


def build_app(
    index: "InfluenceIndex",
    model: nn.Module,
    *,
    processing_class: Any = None,
    strict: bool = True,
    device: str | None = None,
) -> "gradio.Blocks":
    """The app of an index and its model, to be launched or mounted.

    Args:
        index ([`~lorif_hf.InfluenceIndex`]): the index.
        model (`nn.Module`): the model that was indexed.
        processing_class (*optional*): the tokenizer; by default the one in the index.
        strict (`bool`, *optional*, defaults to `True`): refuse a model with other weights.
        device (`str`, *optional*): where the index is scored, as "cuda"; by default on the CPU.

    Returns:
        `gradio.Blocks`: the app. Its look goes to Gradio when it is launched or mounted:
        [`~lorif_hf.app.appearance.appearance`].

    Raises:
        [`~lorif_hf.errors.QueryError`]: the index cannot be asked in text.
        [`~lorif_hf.errors.ModelMismatchError`]: it is the index of another model.
        [`~lorif_hf.errors.AppError`]: Gradio is not installed.

    Example:

    ```python
    from lorif_hf.app import build_app

    from lorif_hf.app.appearance import appearance

    build_app(index, model).launch(**appearance())
    ```
    """
    questions = Questions(index, model, processing_class, strict=strict, device=device)
    _gradio()
    from .blocks import blocks

    return blocks(questions)


def launch(
    index: "InfluenceIndex | str | os.PathLike[str]",
    model: nn.Module | str,
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    processing_class: Any = None,
    strict: bool = True,
    device: str | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> "gradio.Blocks":
    """Load an index and its model, and serve the app until it is interrupted.

    Args:
        index ([`~lorif_hf.InfluenceIndex`] or `str`): the index, its folder, or its repo on the Hub.
        model (`nn.Module` or `str`): the model that was indexed, or a Hub id or folder to load it from.
        host (`str`, *optional*): address to listen on; by default this machine alone. "0.0.0.0": the whole network.
        port (`int`, *optional*): by default the first free one from 7860.
        share (`bool`, *optional*, defaults to `False`): a public link for 72 hours, through a tunnel of Gradio's.
        revision (`str`, *optional*): branch, tag or commit of the index.
        token (`str` or `bool`, *optional*): Hub token; by default the one you logged in with.
        processing_class, strict: as in [`build_app`].
        device (`str`, *optional*): where the model runs and the index is scored, as "cuda"; by default the CPU, or
            where a model that is passed already is.
        open_browser (`bool`, *optional*, defaults to `False`): open the app in a browser.
        block (`bool`, *optional*, defaults to `True`): whether to return only when the app is interrupted.

    Returns:
        `gradio.Blocks`: the running app; `close()` ends it.

    Raises:
        [`~lorif_hf.errors.AppError`]: it cannot listen there, or Gradio is not installed.
        [`~lorif_hf.errors.LorifError`]: a typed one for everything else that can be wrong with what it is given.
    Example:

    ```python
    from lorif_hf.app import launch

    launch("me/my-index", "me/my-model")
    ```
    """
    from ..index import InfluenceIndex

    _gradio()
    if not isinstance(index, InfluenceIndex):
        index = InfluenceIndex.from_pretrained(index, revision=revision, token=token)
    if isinstance(model, (str, os.PathLike)):
        model = load_model(os.fspath(model), index.manifest.model, token, [m.name for m in index.manifest.modules])
        model.eval()
    if device is not None:
        model.to(device)
    app = build_app(index, model, processing_class=processing_class, strict=strict, device=device)
    from .appearance import appearance

    try:
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=open_browser,
            prevent_thread_lock=not block,
            max_file_size=MOST_BYTES,
            enable_monitoring=False,
            run_history=False,  # what is asked is nobody else's business on a shared machine
            **appearance(),
        )
    except OSError as error:
        where = f"{host or 'this machine'}, port {port or '7860 and those after it'}"
        raise AppError(f"The app cannot listen on {where} ({error}): pass another port= or host=.") from error
    return app


def _gradio() -> Any:
    """Gradio, which is told before its import that it may not report to anybody."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise AppError('The app needs Gradio: pip install "lorif-hf[app]".') from error
    return gradio
