"""The attribution app: it asks the model named by the variable MODEL about the index named by INDEX."""

import os

from lorif_hf.app import launch


launch(os.environ["INDEX"], os.environ["MODEL"], revision=os.environ.get("REVISION"), token=os.environ.get("HF_TOKEN"))
