"""How the app looks: system fonts, nothing loaded from elsewhere, light and dark, from a phone up."""

from importlib.resources import files
from typing import Any


def appearance() -> dict[str, Any]:
    """Theme and styles, as arguments of `gradio.Blocks.launch` or `gradio.mount_gradio_app`."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="emerald",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # Gradio's own greys and greens are too pale to read for many: these have a contrast of 4.5 and more
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    css = files("lorif_hf.app").joinpath("templates/app.css").read_text(encoding="utf-8")
    return {"theme": theme, "css": css, "footer_links": ["gradio", "settings"]}
