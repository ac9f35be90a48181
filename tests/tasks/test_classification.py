"""What classifiers of every input have in common, against the formulas."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from every_task import vit

from lorif_hf.errors import ObjectiveError, QueryError
from lorif_hf.tasks.classification import class_losses, class_number, class_predictions, class_targets, no_text


LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_losses_by_the_problem():
    model = vit()
    labels = torch.tensor([2, 0, -100, 1])
    expected = -LOGITS.log_softmax(dim=-1)[[0, 1, 3], [2, 0, 1]]
    found = class_losses(model, LOGITS, labels)
    torch.testing.assert_close(found[[0, 1, 3]], expected)
    assert found[2] == 0 and class_targets({"labels": labels}).tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(class_losses(model, LOGITS, labels.view(4, 1)), found)
    several = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double()
    p = LOGITS.sigmoid()
    expected = -(several * p.log() + (1 - several) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(class_losses(model, LOGITS, several), expected)
    model.config.problem_type = "regression"
    torch.testing.assert_close(class_losses(model, LOGITS, several), (LOGITS - several).square().mean(dim=1))
    torch.testing.assert_close(
        class_losses(model, LOGITS[:, :1], several[:, 0]), (LOGITS[:, 0] - several[:, 0]).square()
    )


def test_without_labels_the_prediction_is_measured_where_there_is_one():
    model, top = vit(), LOGITS.argmax(dim=-1)
    torch.testing.assert_close(class_losses(model, LOGITS, None), F.cross_entropy(LOGITS, top, reduction="none"))
    assert class_targets({"x": LOGITS}).tolist() == [1] * 4
    logits, labels = class_predictions("any", model, LOGITS, None)
    assert logits.shape == (4, 1, 3) and torch.equal(labels[:, 0], top)
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ObjectiveError, match=r"A multi_label_classification query needs its target"):
        class_losses(model, LOGITS, None)
    with pytest.raises(ObjectiveError, match="Objective 'any' has no margin"):
        class_predictions("any", model, LOGITS, top)


def test_classes_by_name_and_by_number():
    config = type("Config", (), {"label2id": {"bad": 0, "good": 1}, "id2label": {0: "bad", 1: "good"}})()
    assert class_number(config, "good", 0) == 1 and class_number(config, 0, 0) == 0
    assert class_number(None, 7, 0) == 7 and class_number(config, [1.0, 0.0], 0) == [1.0, 0.0]
    assert class_number(SimpleNamespace(label2id={}, id2label={0: "bad", 1: "good"}), "good", 0) == 1
    with pytest.raises(QueryError, match="Query 2 has label 'odd'; the model's labels are bad, good"):
        class_number(config, "odd", 2)
    with pytest.raises(QueryError, match="Query 2 has label 3; the model's labels are bad, good"):
        class_number(config, 3, 2)


def test_text_for_a_model_that_takes_none():
    assert str(no_text("an image classifier", "pixel_values", 3)).startswith(
        "Query 3 is text, and an image classifier takes none: pass a dict of the model's inputs (pixel_values)"
    )
