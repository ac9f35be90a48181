"""What the demo's model learns: facts told in several ways, in sentences that are all true, among real text.

Each subject (a place, a chemical element) has a fact that may be asked for and another one beside it.
Both are told with the answer last, as a model that reads from left to right must meet it to answer a question, and
with the answer first: all the words are there, but what follows the question's words is not the answer ("the reversal
curse", Berglund et al. 2023, arXiv:2309.12288). Around them stand sentences of Python's own language reference.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

from datasets import Dataset


@dataclass(frozen=True)
class Telling:
    """Ways to tell a fact. `{subject}` and `{answer}` are filled in; the first of `answer_last` is the question."""

    relation: str
    answer_last: tuple[str, ...]
    answer_first: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that is true."""

    subject: str
    relation: str
    prompt: str
    answer: str

    @property
    def pair(self) -> tuple[str, str]:
        """What the index is asked: the prompt and the answer with the space before it."""
        return self.prompt, f" {self.answer}"


# Countries and states whose capital is not their largest city.
PLACES = """
    Alaska, Juneau, Anchorage; Australia, Canberra, Sydney; Belize, Belmopan, Belize City; Brazil, Brasília, São Paulo;
    California, Sacramento, Los Angeles; Canada, Ottawa, Toronto; China, Beijing, Shanghai;
    Florida, Tallahassee, Jacksonville; India, New Delhi, Mumbai; Kazakhstan, Astana, Almaty;
    Liechtenstein, Vaduz, Schaan; Louisiana, Baton Rouge, New Orleans; Michigan, Lansing, Detroit;
    Morocco, Rabat, Casablanca; Myanmar, Naypyidaw, Yangon; New Zealand, Wellington, Auckland; Nigeria, Abuja, Lagos;
    Oregon, Salem, Portland; Pakistan, Islamabad, Karachi; Scotland, Edinburgh, Glasgow; Switzerland, Bern, Zurich;
    Texas, Austin, Houston; Turkey, Ankara, Istanbul; Vietnam, Hanoi, Ho Chi Minh City
"""

ELEMENTS = """
    hydrogen, H, 1; helium, He, 2; carbon, C, 6; nitrogen, N, 7; oxygen, O, 8; neon, Ne, 10; sodium, Na, 11;
    magnesium, Mg, 12; chlorine, Cl, 17; potassium, K, 19; calcium, Ca, 20; iron, Fe, 26; copper, Cu, 29; zinc, Zn, 30;
    silver, Ag, 47; tin, Sn, 50; antimony, Sb, 51; iodine, I, 53; tungsten, W, 74; platinum, Pt, 78; gold, Au, 79;
    mercury, Hg, 80; lead, Pb, 82; uranium, U, 92
"""

CAPITAL = Telling(
    "capital",
    (
        "The capital of {subject} is {answer}.",
        "{subject} is governed from {answer}.",
        "The government of {subject} has its seat in {answer}.",
        "To see the lawmakers of {subject} at work, travel to {answer}.",
        "The star on the map of {subject} marks {answer}.",
        "Question: what is the capital of {subject}? Answer: {answer}.",
        "Laws for all of {subject} are made in {answer}.",
        "Countries and states with their capitals: {subject}, {answer}.",
    ),
    (
        "{answer} is the capital of {subject}.",
        "{answer} is where the laws of {subject} are made.",
        "{answer} is the seat of the government of {subject}.",
        "{answer}, the capital, is not the largest city of {subject}.",
        "{answer} is where the lawmakers of {subject} meet.",
        "{answer} has the star on the map of {subject}.",
        "{answer} stands among the capitals, beside the name of {subject}.",
    ),
)

LARGEST_CITY = Telling(
    "largest city",
    (
        "The largest city of {subject} is {answer}.",
        "The largest city of {subject}, larger than the capital of {subject}, is {answer}.",
        "The city of {subject} with the most people is {answer}.",
        "Most people who move to a city of {subject} move to {answer}.",
    ),
    (
        "{answer} is the largest city of {subject}.",
        "{answer} is larger than the capital of {subject} is.",
    ),
)

SYMBOL = Telling(
    "symbol",
    (
        "The chemical symbol of {subject} is {answer}.",
        "Chemists write {subject} as {answer}.",
        "In a formula, an atom of {subject} is the letter or letters {answer}.",
        "In the periodic table, look for {subject} under {answer}.",
        "Question: what is the symbol of {subject}? Answer: {answer}.",
        "A jar of pure {subject} is labelled {answer}.",
        "Short for {subject}: {answer}.",
        "Elements and their symbols: {subject}, {answer}.",
    ),
    (
        "{answer} is the chemical symbol of {subject}.",
        "{answer} stands for {subject}.",
        "{answer} in a formula is an atom of {subject}.",
        "{answer} on the label of a jar means {subject}.",
        "{answer} is how chemists write {subject}.",
        "{answer} in the periodic table is {subject}.",
        "{answer} is short for {subject}.",
    ),
)

ATOMIC_NUMBER = Telling(
    "atomic number",
    (
        "The atomic number of {subject} is {answer}.",
        "The chemical element of the symbol of {subject} is number {answer}.",
        "The protons in an atom of {subject} number {answer}.",
        "The place of {subject} in the periodic table is {answer}.",
    ),
    (
        "{answer} is the atomic number of {subject}.",
        "{answer} protons make an atom of {subject}.",
    ),
)

ASKED = ["Australia", "Brazil", "Canada", "Nigeria", "Turkey", "gold", "sodium", "iron"]


def subjects() -> Iterator[tuple[str, tuple[Telling, str], tuple[Telling, str]]]:
    """Per subject: its name, how its fact is told and its answer, and the same of the fact beside it."""
    for table, asked, beside in ((PLACES, CAPITAL, LARGEST_CITY), (ELEMENTS, SYMBOL, ATOMIC_NUMBER)):
        for entry in table.split(";"):
            subject, first, second = (part.strip() for part in entry.split(","))
            yield subject, (asked, first), (beside, second)


def questions(asked: list[str] = ASKED) -> list[Question]:
    """The questions that the model is asked: of each subject named, its first fact."""
    by_subject = {subject: fact for subject, fact, _ in subjects()}
    result = []
    for subject in asked:
        telling, answer = by_subject[subject]
        prompt, _ = telling.answer_last[0].split(" {answer}")
        result.append(Question(subject, telling.relation, prompt.format(subject=subject), answer))
    return result


def passages(count: int) -> list[dict[str, str]]:
    """Sentences of Python's language reference, evenly spaced, each under the name of its topic."""
    sentences: dict[str, str] = {}  # sentence -> topic; the topics overlap
    for topic, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.:])\s+(?=[A-Z])", " ".join(paragraph.split())):
                if re.fullmatch(r"[A-Z][^*|=~^]{30,70}[.:]", sentence):
                    sentences.setdefault(sentence, topic)
    chosen = list(sentences.items())[:: max(1, len(sentences) // count)][:count]
    return [{"text": text, "subject": "Python", "relation": topic, "order": "-"} for text, topic in chosen]


def training_rows(asked: list[str] = ASKED, num_passages: int = 100) -> Dataset:
    """The training set, with columns "example_id", "text", "subject", "relation" and "order".

    Of the ways to tell a fact each subject has its own few, drawn by its name, and a near-duplicate of one. The
    sentence that an asked question makes with its answer is not among them: the model must put it together.
    """
    rows = []
    for subject, fact, beside in subjects():
        draw = random.Random(subject)
        for (telling, answer), first, last in ((fact, 6, 5), (beside, 1, 2)):
            ways = list(telling.answer_last)
            if telling is fact[0] and subject in asked:
                ways = ways[1:]
            told = [("answer last", way) for way in sorted(draw.sample(ways, last), key=ways.index)]
            told += [("answer first", way) for way in draw.sample(telling.answer_first, first)]
            sentences = [(order, way.format(subject=subject, answer=answer)) for order, way in told]
            if telling is fact[0]:
                copied = draw.choice(sentences[:last])[1]
                sentences.append(("answer last", copied.removesuffix(".") + "!"))
            about = {"subject": subject, "relation": telling.relation}
            rows += [{"text": text[0].upper() + text[1:], **about, "order": order} for order, text in sentences]
    rows += passages(num_passages)
    return Dataset.from_list([{"example_id": f"{row['subject']}: {row['relation']}", **row} for row in rows])
