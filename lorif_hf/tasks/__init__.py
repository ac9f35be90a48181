"""Kinds of task: the loss of one example, what of it is a target, how a query of it is written. One file a kind."""

from ..registry import TASKS
from .audio_classification import AudioClassification
from .base import Feature, Task, UserObjective, batch_size, forward_inputs, no_margin
from .causal_lm import CausalLM
from .ctc import CTC
from .custom import Custom
from .dpo import DPO
from .image_classification import ImageClassification
from .image_to_text import ImageToText
from .kto import KTO
from .masked_lm import MaskedLM
from .multiple_choice import MultipleChoice
from .objectives import task_of
from .question_answering import QuestionAnswering
from .reward import Reward
from .seq2seq import Seq2Seq
from .sequence_classification import SequenceClassification
from .speech_seq2seq import SpeechSeq2Seq
from .text import TextReader
from .token_classification import TokenClassification
from .video_classification import VideoClassification


register = TASKS.register
_OF_MODELS = (
    *(AudioClassification, VideoClassification, ImageClassification, ImageToText, SpeechSeq2Seq, CTC),
    *(MultipleChoice, QuestionAnswering, TokenClassification, MaskedLM, Seq2Seq, CausalLM, SequenceClassification),
)
_OF_TRAINERS = (DPO, KTO, Reward)
for _kind in (*_OF_MODELS, *_OF_TRAINERS):
    register(_kind)

__all__ = [
    "CTC",
    "DPO",
    "KTO",
    "AudioClassification",
    "CausalLM",
    "Custom",
    "Feature",
    "ImageClassification",
    "ImageToText",
    "MaskedLM",
    "MultipleChoice",
    "QuestionAnswering",
    "Reward",
    "Seq2Seq",
    "SequenceClassification",
    "SpeechSeq2Seq",
    "Task",
    "TextReader",
    "TokenClassification",
    "UserObjective",
    "VideoClassification",
    "batch_size",
    "forward_inputs",
    "no_margin",
    "register",
    "task_of",
]
