"""Batches on their way into a shard, as a build takes them there: recorded, encoded, put."""

import torch

from lorif_hf.building.recording_pass import ShardContents
from lorif_hf.codecs import codec_of
from lorif_hf.curvature import curvature_of
from lorif_hf.curvature.encoding import Encoder, draw_projection, module_entry, stored_entries
from lorif_hf.layers.selection import Selection
from lorif_hf.recording.recorder import GradientRecorder, without_gradient
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import OUTPUTS


class ShardRows:
    """The rows of a shard of one model and config.

    Args:
        model: it.
        config: of the index.
        first (*optional*): by module, what the first pass kept, which does not depend on the device.
    """

    def __init__(self, model, config, first=None):
        self.model, self.config = model, config
        self.modules = Selection(model, config.target_modules, config.exclude_modules, ()).modules
        self.entries = [module_entry(tracked, config) for tracked in self.modules]
        self.projections = {entry.name: draw_projection(entry, config)[0] for entry in self.entries}
        self.objective = OUTPUTS[config.output](task_of(model))
        self.encoder = Encoder(config, self.entries, first or {})

    def first_pass(self, batch):
        """What the curvature's first pass keeps of a batch."""
        first_pass = curvature_of(self.config).first_pass
        if first_pass is None:
            return {}
        statistics = {entry.name: first_pass.statistic(entry) for entry in self.entries}
        with self.recorder(statistics, dict.fromkeys(statistics, without_gradient)) as recorder:
            recorder.record(batch)
        return {entry.name: first_pass.tensors(entry, statistics[entry.name], 1.0) for entry in self.entries}

    def recorder(self, statistics=None, reductions=None):
        reductions = self.encoder.reductions() if reductions is None else reductions
        scales = self.encoder.in_scales()
        return GradientRecorder(
            self.model, self.modules, self.projections, self.objective, statistics, reductions, scales=scales
        )

    def contents(self, count):
        return ShardContents(0, count, codec_of(self.config), stored_entries(self.config, self.entries))

    def put(self, contents, start, recording):
        rows = range(start, start + len(recording.losses))
        contents.put(rows, torch.ones(len(rows), dtype=torch.int64), recording, self.encoder)

    def record(self, batches, before=lambda: None):
        """The contents of a shard of these batches; `before` is called before each."""
        sizes = [len(batch["input_ids"]) for batch in batches]
        contents, start = self.contents(sum(sizes)), 0
        with self.recorder() as recorder:
            for batch, size in zip(batches, sizes, strict=True):
                before()
                self.put(contents, start, recorder.record(batch))
                start += size
        return contents
