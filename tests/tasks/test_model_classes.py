"""The tables of transformers."""

from lorif_hf.registry import TASKS
from lorif_hf.tasks.model_classes import classes_of


def test_names_of_a_table_also_those_that_come_in_tuples():
    assert "BertForMaskedLM" in classes_of("MASKED_LM")
    assert {"DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"} <= classes_of(
        "IMAGE_CLASSIFICATION"
    )
    assert "" not in classes_of("IMAGE_CLASSIFICATION") and classes_of("NO_SUCH_TASK") == frozenset()


def test_no_class_is_of_two_tasks():
    """Which task a model is of does not depend on the order of their registration.

    (Those of both tables of speech and sequences are decoders alone; captions are made by encoders and decoders.)
    """
    tables = [
        "MASKED_LM",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "SPEECH_SEQ_2_SEQ",
        "CTC",
        "IMAGE_CLASSIFICATION",
        "MULTIPLE_CHOICE",
    ]
    tables += ["QUESTION_ANSWERING", "TOKEN_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION"]
    tables += ["CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT"]
    heard = classes_of("SPEECH_SEQ_2_SEQ") | classes_of("CAUSAL_LM")
    both = classes_of("SEQ_TO_SEQ_CAUSAL_LM") & heard
    for name in frozenset().union(*map(classes_of, tables)):
        config = type("Config", (), {"is_encoder_decoder": name not in both})()
        model = type(name, (), {"config": config})()
        accepting = {task.name for task in TASKS if task.accepts(model)} - {"image-to-text"}
        assert len(accepting) <= 1, (name, accepting)
