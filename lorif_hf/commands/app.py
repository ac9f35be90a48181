"""`lorif-hf app`."""

from typing import Annotated

import typer

from ..errors import LorifError
from .options import DEVICE, INDEX, REVISION, TOKEN
from .printing import print_line


def app(
    index: INDEX,
    model: Annotated[str, typer.Option(help="The model that was indexed: a folder or its Hub id.")],
    host: Annotated[
        str | None, typer.Option(help='Address to serve on, by default this machine alone; "0.0.0.0": all of them.')
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to serve on; by default the first free one from 7860.", min=1, max=65535)
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Give a public link, through Gradio's servers.")] = False,
    push_space: Annotated[
        str | None, typer.Option(help="Do not serve, but push the app as this Space of the Hub: user/my-space.")
    ] = None,
    device: DEVICE = None,
    revision: REVISION = None,
    token: TOKEN = None,
) -> None:
    """Serve a page on which an index is asked; or push that page to the Hub as a Space."""
    try:
        from ..app import launch
        from ..app import push_space as push
    except ModuleNotFoundError as error:
        raise LorifError(f'The app needs {error.name}: pip install "lorif-hf[app]".') from error
    if push_space is not None:
        print_line(str(push(push_space, index, model, revision=revision, token=token).repo_url))
        return
    launch(index, model, host=host, port=port, share=share, device=device, revision=revision, token=token)
