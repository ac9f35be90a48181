"""The widget of the Space. `evaluate` opens the script by its file: the repo may have another name than the metric."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget


(script,) = set(Path(__file__).parent.glob("*.py")) - {Path(__file__)}
launch_gradio_widget(evaluate.load(str(script)))
